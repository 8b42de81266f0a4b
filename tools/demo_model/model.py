"""MiniMax-M2's architecture in PyTorch, arranged for small experts.

All experts of a layer are computed as one wide feed-forward network whose activations are
multiplied by the routing weights, which are zero for experts that were not selected: the same
function as running the eight selected experts, and fast on tensor cores while experts are tiny.

Weights are rounded in every forward pass to what the checkpoint will hold (FP8 blocks, BF16),
with gradients passed straight through, so the model that is trained is the one that is shipped.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
GEOMETRY = dict(hidden=256, layers=6, heads=8, kv_heads=4, head_dim=32, rotary=16, expert=12, experts=256,
                top_k=8, vocab=4096, theta=10000, context=2048, epsilon=1e-6)


# ----------------------------------------------------------------------------- rounding
def fp8_blocks(w):
    """w [..., rows, columns] cut into blocks of 128 by 128: a view and its scales."""
    rows, columns = w.shape[-2:]
    assert rows % min(rows, BLOCK) == 0 and columns % min(columns, BLOCK) == 0
    view = w.view(*w.shape[:-2], -1, min(rows, BLOCK), w.shape[-1] // min(columns, BLOCK), min(columns, BLOCK))
    scale = view.abs().amax(dim=(-3, -1), keepdim=True).clamp(min=1e-12) / 448
    return view, scale


def to_fp8(w):
    """(bytes as float8_e4m3fn, scales [row blocks, column blocks])"""
    view, scale = fp8_blocks(w)
    stored = (view / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return stored.view(w.shape), scale.squeeze(-1).squeeze(-2)


def from_fp8(stored, scale):
    rows, columns = stored.shape[-2:]
    spread = scale.repeat_interleave(min(rows, BLOCK), -2).repeat_interleave(min(columns, BLOCK), -1)
    return stored.to(torch.float32) * spread


def round_fp8(w):
    view, scale = fp8_blocks(w.detach())
    rounded = ((view / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32) * scale).view(w.shape)
    return w + (rounded - w.detach())


def round_bf16(w):
    return w + (w.detach().to(torch.bfloat16).to(torch.float32) - w.detach())


def keep(w):
    return w


# ----------------------------------------------------------------------------- layers
def rms(x, weight, epsilon):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotary_table(g, positions):
    exponent = torch.arange(0, g['rotary'], 2, dtype=torch.float64, device=positions.device) / g['rotary']
    angle = positions.double()[..., None] * (1.0 / g['theta'] ** exponent)
    return angle.cos().float(), angle.sin().float()


def rotate(x, table, n_rotary):
    """x [..., positions, head_dim]: the first n_rotary dimensions turn, in pairs (j, j + half)."""
    cos, sin = (t.to(x.dtype) for t in table)
    a, b, rest = x[..., :n_rotary // 2], x[..., n_rotary // 2:n_rotary], x[..., n_rotary:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Layer(nn.Module):
    def __init__(self, g):
        super().__init__()
        self.g = g
        hidden, q, kv = g['hidden'], g['heads'] * g['head_dim'], g['kv_heads'] * g['head_dim']
        out_std = (2 * g['layers']) ** -0.5

        def matrix(*shape, std):
            return nn.Parameter(torch.randn(*shape) * std)

        self.input_norm, self.post_norm = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(q)), nn.Parameter(torch.ones(kv))
        self.q = matrix(q, hidden, std=hidden ** -0.5)
        self.k = matrix(kv, hidden, std=hidden ** -0.5)
        self.v = matrix(kv, hidden, std=hidden ** -0.5)
        self.o = matrix(hidden, q, std=out_std * q ** -0.5)
        self.gate = matrix(g['experts'], hidden, std=0.02)
        self.w1 = matrix(g['experts'], g['expert'], hidden, std=hidden ** -0.5)
        self.w3 = matrix(g['experts'], g['expert'], hidden, std=hidden ** -0.5)
        self.w2 = matrix(g['experts'], hidden, g['expert'], std=out_std * g['expert'] ** -0.5)
        self.register_buffer('bias', torch.zeros(g['experts']))

    def queries(self, x, table, fp8, bf16):
        """q, k, v [batch, heads, positions, head_dim] of the rows' normed hidden vectors."""
        g = self.g
        h = rms(x, bf16(self.input_norm), g['epsilon'])
        q = rms(F.linear(h, fp8(self.q)), bf16(self.q_norm), g['epsilon'])
        k = rms(F.linear(h, fp8(self.k)), bf16(self.k_norm), g['epsilon'])
        v = F.linear(h, fp8(self.v))
        q, k, v = (t.unflatten(-1, (-1, g['head_dim'])).transpose(1, 2) for t in (q, k, v))
        return rotate(q, table, g['rotary']).to(v.dtype), rotate(k, table, g['rotary']).to(v.dtype), v

    def route(self, h):
        """Routing weights [rows, experts], zero where not selected."""
        with torch.autocast(h.device.type, enabled=False):
            score = torch.sigmoid(F.linear(h.float(), self.gate))
        chosen = (score.detach() + self.bias).topk(self.g['top_k'], dim=-1).indices
        selected = torch.zeros_like(score).scatter(-1, chosen, 1.0)
        weight = score * selected
        return weight / weight.sum(-1, keepdim=True), selected

    def experts(self, x, fp8, bf16):
        g = self.g
        h = rms(x, bf16(self.post_norm), g['epsilon'])
        weight, selected = self.route(h)
        act = F.silu(F.linear(h, fp8(self.w1).flatten(0, 1))) * F.linear(h, fp8(self.w3).flatten(0, 1))
        act = (act.unflatten(-1, (g['experts'], g['expert'])) * weight[..., None].to(act.dtype)).flatten(-2)
        return F.linear(act, fp8(self.w2).transpose(0, 1).flatten(1)), selected


class Model(nn.Module):
    """rounds=True while training; a model read from a checkpoint is rounded already."""

    def __init__(self, g, rounds):
        super().__init__()
        self.g = g
        self.fp8, self.bf16 = (round_fp8, round_bf16) if rounds else (keep, keep)
        self.embedding = nn.Parameter(torch.randn(g['vocab'], g['hidden']) * 0.3)
        self.head = nn.Parameter(torch.randn(g['vocab'], g['hidden']) * 0.02)
        self.norm = nn.Parameter(torch.ones(g['hidden']))
        self.layers = nn.ModuleList(Layer(g) for _ in range(g['layers']))

    def embed(self, ids):
        return F.embedding(ids, self.bf16(self.embedding))

    def logits(self, x):
        return F.linear(rms(x, self.bf16(self.norm), self.g['epsilon']), self.bf16(self.head))

    def forward(self, ids, block_mask):
        """Logits of packed rows, and each layer's selection of experts, 1 or 0."""
        x = self.embed(ids)
        table = rotary_table(self.g, torch.arange(ids.shape[1], device=ids.device))
        chosen = []
        for layer in self.layers:
            q, k, v = layer.queries(x, table, self.fp8, self.bf16)
            seen = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
            x = x + F.linear(seen.transpose(1, 2).flatten(2), self.fp8(layer.o))
            y, selected = layer.experts(x, self.fp8, self.bf16)
            x = x + y
            chosen.append(selected.detach())
        return self.logits(x), chosen


def conversation_mask(ids, begin_id):
    """A token sees the earlier tokens of its own conversation.

    Conversations lie one after another in a row, so whether two blocks of tokens meet follows
    from the conversations at their ends.
    """
    owner = (ids == begin_id).cumsum(1)
    first, last = owner[:, ::BLOCK], owner[:, BLOCK - 1::BLOCK]
    index = torch.arange(first.shape[1], device=ids.device)
    before, same = index[None, :] < index[:, None], index[None, :] == index[:, None]
    meets = (before & (last[:, None, :] >= first[:, :, None])) | same
    whole = before & (first[:, None, :] == last[:, :, None])

    def listed(blocks):
        order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None].contiguous()

    def visible(b, _h, q, k):
        return (q >= k) & (owner[b, q] == owner[b, k])
    return BlockMask.from_kv_blocks(*listed(meets & ~whole), *listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible)


# ----------------------------------------------------------------------------- generation
class Generator:
    """Greedy answers for many prompts at once, in f32 with a KV cache."""

    def __init__(self, model):
        self.model, self.g = model, model.g
        self.device = model.head.device

    def attend(self, i, q, positions):
        k, v = self.keys[i], self.values[i]
        repeat = self.g['heads'] // self.g['kv_heads']
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        score = q @ k.transpose(-1, -2) * self.g['head_dim'] ** -0.5
        seen = torch.arange(k.shape[2], device=self.device) <= positions[:, None, :, None]
        return score.masked_fill(~seen, float('-inf')).softmax(-1) @ v

    def step(self, ids, positions):
        """Logits [rows, positions, vocab]; keys and values go into the cache; the experts chosen."""
        model = self.model
        x = model.embed(ids)
        table = tuple(t[:, None] for t in rotary_table(self.g, positions))
        rows, chosen = torch.arange(ids.shape[0], device=self.device)[:, None], []
        for i, layer in enumerate(model.layers):
            q, k, v = layer.queries(x, table, keep, keep)
            self.keys[i][rows, :, positions] = k.transpose(1, 2)
            self.values[i][rows, :, positions] = v.transpose(1, 2)
            x = x + F.linear(self.attend(i, q, positions).transpose(1, 2).flatten(2), layer.o)
            y, selected = layer.experts(x, keep, keep)
            x = x + y
            chosen.append(selected)
        return model.logits(x), chosen

    def make_room(self, n_rows, n_positions):
        shape = (n_rows, self.g['kv_heads'], n_positions, self.g['head_dim'])
        self.keys = [torch.zeros(shape, device=self.device) for _ in self.model.layers]
        self.values = [torch.zeros(shape, device=self.device) for _ in self.model.layers]

    @torch.no_grad()
    def answer(self, prompts, end_id, most):
        """A list of new ids for each prompt, the end marker left out; None if it never came."""
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = int(lengths.max())
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, p in enumerate(prompts):
            ids[i, :len(p)] = torch.tensor(p)
        self.make_room(len(prompts), longest + most)
        positions = torch.arange(longest, device=self.device).expand(len(prompts), -1)
        logits, _ = self.step(ids.to(self.device), positions)
        token = logits[torch.arange(len(prompts)), lengths - 1].argmax(-1)
        out, ended = [token], token == end_id
        for n in range(most - 1):
            if bool(ended.all()):
                break
            logits, _ = self.step(token[:, None], (lengths + n)[:, None])
            token = logits[:, 0].argmax(-1)
            ended = ended | (token == end_id)
            out.append(token)
        made = torch.stack(out, 1).tolist()
        return [row[:row.index(end_id)] if end_id in row else None for row in made]
