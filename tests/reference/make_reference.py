#!/usr/bin/env python3
"""Makes the small checkpoints and answers that tests/reference holds the engine against.

  make_reference.py --out tests/reference/cases [CASE...]   make them: needs torch and transformers
  make_reference.py --check tests/reference/cases/*          verify them: needs Python only

Each case is a random MiniMax-M2 or MiniMax-M3 checkpoint with the released tensor names and
dtypes, run through transformers' own text model in f32 on the CPU.  A case directory holds

  config.json                     as released, in small
  model.safetensors               or shards and model.safetensors.index.json
  reference.safetensors           prompt               I32 [T]
                                  hidden               F32 [layers + 1, T, hidden]: the embedding,
                                                       then the stream after each layer
                                  routed               I32 [layers with experts, T, top_k],
                                                       ascending
                                  selected             M3: I32 [sparse layers, T, KV heads,
                                                       top-k blocks], ascending, -1 where a row
                                                       sees fewer
                                  logits               F32 [T, vocab]
                                  continuation         I32 [24], greedy
                                  continuation_logits  F32 [24, vocab]: row i chose token i
  reference.json                  versions, seed, smallest gaps

Weights are rounded tensor by tensor (bf16, FP8 with 128x128 scales, MXFP8) and loaded into an f32
model, so that nothing but the weights is rounded: casting the module would also round the
rotary frequencies.  Seeds are tried until every choice is decisive: the k-th and the next
router score, the last block that is seen and the next, and the two best logits of each greedy
step, lie far enough apart that the last bits of f32 cannot change them.
"""
import argparse
import array
import json
import math
import operator
import os
import re
import struct
import sys

BLOCK = 128
STEPS = 24
MIN_ROUTER_GAP = 1e-4
MIN_LOGIT_MARGIN = 1e-3  # of the logits' standard deviation
MIN_BLOCK_GAP = 3e-5  # of the block scores' standard deviation
TOLERANCE = 1e-4  # of a tensor's standard deviation, for --check
MX_BLOCK = 32
PREFIX = {'m2': '', 'm3': 'language_model.'}

CASES = {
    # Nothing is a power of two except what must be; router tensors in BF16 too.
    'bf16': dict(weights='bf16', hidden=48, layers=2, heads=6, kv_heads=2, head_dim=12, rotary=8,
                 expert=18, experts=256, top_k=8, vocab=331, prompt=29, theta=5000000, shards=1),
    # 256 experts, partial scale blocks at the right edge.
    'fp8': dict(weights='fp8', hidden=136, layers=2, heads=6, kv_heads=3, head_dim=20, rotary=10,
                expert=12, experts=256, top_k=8, vocab=331, prompt=20, theta=5000000, shards=1),
    # Partial blocks in both directions of every kind of matrix; top-4 of 10; three shards.
    'fp8_wide': dict(weights='fp8', hidden=264, layers=2, heads=6, kv_heads=3, head_dim=48,
                     rotary=24, expert=136, experts=10, top_k=4, vocab=300, prompt=23,
                     theta=10000, shards=3),
    # GQA groups of 16, small blocks: rows choose from position 48 on.  BF16.
    'm3': dict(family='m3', weights='bf16', hidden=48, layers=3, dense_layers=1, full_layers=1,
               heads=32, kv_heads=2, head_dim=12, rotary=8, expert=18, shared=20, dense=34, experts=9,
               top_k=4, vocab=150, prompt=131, theta=5000000, shards=2, block=16, top_blocks=3,
               index_dim=10, router_gap=2e-5),
    # MXFP8 with partial scale blocks; the real block size: rows choose from position 256 on.
    'm3_mx': dict(family='m3', weights='mxfp8', hidden=40, layers=2, dense_layers=0, full_layers=0,
                  heads=16, kv_heads=1, head_dim=16, rotary=8, expert=20, shared=36, dense=40,
                  experts=8, top_k=4, vocab=100, prompt=420, theta=10000, shards=1, block=128,
                  top_blocks=2, index_dim=16, router_gap=1e-5),
}


def is_m3(c):
    return c.get('family') == 'm3'


def expert_layers(c):
    """Layers with routed experts, as numbers."""
    return range(c.get('dense_layers', 0), c['layers'])


def sparse_layers(c):
    return range(c['full_layers'], c['layers']) if is_m3(c) else range(0)


def fail(text):
    sys.exit('make_reference: ' + text)


# ----------------------------------------------------------------------------- files
ITEM_BYTES = {'F32': 4, 'I32': 4, 'BF16': 2, 'F8_E4M3': 1, 'U8': 1}


def write_safetensors(path, tensors):
    """tensors: list of (name, dtype, shape, bytes)."""
    head, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, dtype, shape, data in tensors:
        if len(data) != math.prod(shape) * ITEM_BYTES[dtype]:
            fail(f'{name}: {len(data)} bytes do not fill {dtype} {shape}')
        head[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[offset, offset + len(data)])
        offset += len(data)
    text = json.dumps(head, separators=(',', ':')).encode()
    text += b' ' * (-(len(text) + 8) % 64)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)) + text)
        for tensor in tensors:
            f.write(tensor[3])


def write_json(path, value):
    with open(path, 'w') as f:
        json.dump(value, f, indent=2)
        f.write('\n')


def write_checkpoint(folder, tensors, n_shards):
    if n_shards == 1:
        return write_safetensors(os.path.join(folder, 'model.safetensors'), tensors)
    total = sum(len(t[3]) for t in tensors)
    shards, done = [[] for _ in range(n_shards)], 0
    for tensor in tensors:
        shards[min(done * n_shards // total, n_shards - 1)].append(tensor)
        done += len(tensor[3])
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = f'model-{i + 1:05d}-of-{n_shards:05d}.safetensors'
        write_safetensors(os.path.join(folder, file_name), shard)
        weight_map.update((tensor[0], file_name) for tensor in shard)
    write_json(os.path.join(folder, 'model.safetensors.index.json'),
               dict(metadata=dict(total_size=total), weight_map=weight_map))


def layer_flags(n_zeros, c):
    return [int(i >= n_zeros) for i in range(c['layers'])]


def released_text_config(c):
    """Every field of the released M3's text_config."""
    first_added = c['vocab'] - 54
    return dict(
        architectures=['MiniMaxM3SparseForCausalLM'], model_type='minimax_m3',
        vocab_size=c['vocab'], hidden_size=c['hidden'], num_hidden_layers=c['layers'],
        num_attention_heads=c['heads'], num_key_value_heads=c['kv_heads'],
        head_dim=c['head_dim'], rotary_dim=c['rotary'],
        partial_rotary_factor=c['rotary'] / c['head_dim'], rope_theta=c['theta'],
        max_position_embeddings=1024, rms_norm_eps=1e-6, use_gemma_norm=True, use_qk_norm=True,
        qk_norm_type='per_head', attention_output_gate=False, hidden_act='swigluoai',
        swiglu_alpha=1.702, swiglu_limit=7.0, swiglu_beta=1.0, intermediate_size=c['expert'],
        shared_intermediate_size=c['shared'], n_shared_experts=1,
        dense_intermediate_size=c['dense'], num_local_experts=c['experts'],
        num_experts_per_tok=c['top_k'], scoring_func='sigmoid', use_routing_bias=True,
        routed_scaling_factor=2.0, moe_layer_freq=layer_flags(c['dense_layers'], c),
        tie_word_embeddings=False, num_mtp_modules=7, num_nextn_predict_layers=1,
        torch_dtype='bfloat16', bos_token_id=first_added + 34, eos_token_id=first_added + 20,
        sparse_attention_config=dict(
            use_sparse_attention=True, sparse_index_dim=c['index_dim'],
            sparse_num_index_heads=c['kv_heads'], sparse_topk_blocks=c['top_blocks'],
            sparse_block_size=c['block'], sparse_score_type='max', sparse_init_block=0,
            sparse_local_block=1, sparse_attention_freq=layer_flags(c['full_layers'], c),
            sparse_disable_index_value=layer_flags(c['full_layers'], c)))


def released_m3_config(c):
    config = dict(
        architectures=['MiniMaxM3SparseForConditionalGeneration'], model_type='minimax_m3_vl',
        text_config=released_text_config(c), vision_config=dict(model_type='clip_vision_model'),
        image_token_index=c['vocab'] - 29, video_token_index=c['vocab'] - 28)
    if c['weights'] == 'mxfp8':
        config['quantization_config'] = dict(
            quant_method='mxfp8', activation_scheme='dynamic', scale_fmt='ue8m0',
            weight_block_size=[1, MX_BLOCK])
    return config


def released_config(c):
    """Every field of the released config.json."""
    if is_m3(c):
        return released_m3_config(c)
    first_added = c['vocab'] - 54
    config = dict(
        architectures=['MiniMaxM2ForCausalLM'], model_type='minimax_m2', vocab_size=c['vocab'],
        hidden_size=c['hidden'], num_hidden_layers=c['layers'], num_attention_heads=c['heads'],
        num_key_value_heads=c['kv_heads'], head_dim=c['head_dim'], rotary_dim=c['rotary'],
        rope_theta=c['theta'], max_position_embeddings=512, rms_norm_eps=1e-6, hidden_act='silu',
        intermediate_size=c['expert'], mlp_intermediate_size=4 * c['expert'],
        shared_intermediate_size=0, num_local_experts=c['experts'],
        num_experts_per_tok=c['top_k'], scoring_func='sigmoid', use_routing_bias=True,
        use_qk_norm=True, qk_norm_type='per_layer', attn_type_list=[1] * c['layers'],
        sliding_window=None, attention_dropout=0.0, tie_word_embeddings=False, use_mtp=True,
        num_mtp_modules=3, mtp_transformer_layers=1, torch_dtype='bfloat16',
        bos_token_id=first_added + 34, eos_token_id=first_added + 20)
    if c['weights'] == 'fp8':
        config['quantization_config'] = dict(
            quant_method='fp8', fmt='float8_e4m3fn', activation_scheme='dynamic',
            weight_block_size=[BLOCK, BLOCK],
            modules_to_not_convert=['gate', 'e_score_correction_bias', 'lm_head'])
    return config


def e4m3_value(byte):
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = mantissa * 2.0 ** -9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte >> 7 else size


# ----------------------------------------------------------------------------- making
def raw(torch, tensor):
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


class Maker:
    """Random weights of one case: `files` as they are stored, `values` as f32 means them."""

    def __init__(self, torch, case, seed):
        self.torch, self.c = torch, case
        self.random = torch.Generator().manual_seed(seed)
        self.files, self.values = [], {}
        self.table = torch.tensor([e4m3_value(b) for b in range(256)], dtype=torch.float32)
        self.make()

    def normal(self, *shape):
        return self.torch.randn(*shape, generator=self.random, dtype=self.torch.float32)

    def store(self, name, dtype, stored, value):
        if not bool(self.torch.isfinite(value).all()):
            fail(f'{name}: not finite')
        self.files.append((name, dtype, tuple(stored.shape), raw(self.torch, stored)))
        self.values[name] = value

    def bf16(self, name, value):
        stored = value.to(self.torch.bfloat16)
        self.store(name, 'BF16', stored, stored.to(self.torch.float32))

    def f32(self, name, value):
        self.store(name, 'F32', value, value.clone())

    def fp8(self, name, value):
        torch = self.torch
        rows, cols = value.shape
        scale = torch.empty(-(-rows // BLOCK), -(-cols // BLOCK), dtype=torch.float32)
        stored = torch.empty(rows, cols, dtype=torch.uint8)
        means = torch.empty(rows, cols, dtype=torch.float32)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
                scale[i, j] = value[at].abs().max() / 448
                scaled = (value[at] / scale[i, j]).clamp(-448, 448)
                stored[at] = scaled.to(torch.float8_e4m3fn).contiguous().view(torch.uint8)
                means[at] = self.table[stored[at].long()] * scale[i, j]
        if not bool((means - value).abs().max() <= value.abs().max() / 16):
            fail(f'{name}: FP8 rounding is off by more than its precision')
        self.store(name, 'F8_E4M3', stored, means)
        self.f32(name + '_scale_inv', scale)

    def mxfp8(self, name, value):
        torch = self.torch
        rows, cols = value.shape
        blocks = -(-cols // MX_BLOCK)
        exponents = torch.empty(rows, blocks, dtype=torch.uint8)
        stored = torch.empty(rows, cols, dtype=torch.uint8)
        means = torch.empty(rows, cols, dtype=torch.float32)
        for j in range(blocks):
            at = (slice(None), slice(j * MX_BLOCK, (j + 1) * MX_BLOCK))
            largest = value[at].abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
            power = torch.ceil(torch.log2(largest / 448))
            exponents[:, j] = (power[:, 0] + 127).to(torch.uint8)
            scale = torch.exp2(power)
            scaled = (value[at] / scale).clamp(-448, 448)
            stored[at] = scaled.to(torch.float8_e4m3fn).contiguous().view(torch.uint8)
            means[at] = self.table[stored[at].long()] * scale
        if not bool((means - value).abs().max() <= value.abs().max() / 16):
            fail(f'{name}: MXFP8 rounding is off by more than its precision')
        self.store(name, 'F8_E4M3', stored, means)
        self.store(name + '_scale_inv', 'U8', exponents, exponents.to(torch.float32))

    def matrix(self, name, rows, cols, gain=1.0):
        value = self.normal(rows, cols) * (gain / cols ** 0.5)
        getattr(self, self.c['weights'])(name, value)

    def norm(self, name, size, mean=None):
        """M3 stores weights less 1."""
        mean = (0 if is_m3(self.c) else 1) if mean is None else mean
        self.bf16(name, mean + 0.2 * self.normal(size))

    def mlp(self, prefix, size):
        hidden = self.c['hidden']
        self.matrix(prefix + 'gate_proj.weight', size, hidden)
        self.matrix(prefix + 'up_proj.weight', size, hidden)
        self.matrix(prefix + 'down_proj.weight', hidden, size, 1.5)

    def m3_layer(self, i):
        c, p = self.c, f'{PREFIX["m3"]}model.layers.{i}.'
        q, kv = c['heads'] * c['head_dim'], c['kv_heads'] * c['head_dim']
        # The released layer 0 has weights near -1, which 1 + w in bf16 would ruin.
        self.bf16(p + 'input_layernorm.weight',
                  (0.05 if i == 0 else 0.2) * self.normal(c['hidden']) - (0.9 if i == 0 else 0))
        self.matrix(p + 'self_attn.q_proj.weight', q, c['hidden'])
        self.matrix(p + 'self_attn.k_proj.weight', kv, c['hidden'])
        self.matrix(p + 'self_attn.v_proj.weight', kv, c['hidden'])
        self.matrix(p + 'self_attn.o_proj.weight', c['hidden'], q, 1.5)
        self.norm(p + 'self_attn.q_norm.weight', c['head_dim'], 0.5)
        self.norm(p + 'self_attn.k_norm.weight', c['head_dim'], 0.5)
        if i in sparse_layers(c):
            self.matrix(p + 'self_attn.index_q_proj.weight', c['kv_heads'] * c['index_dim'],
                        c['hidden'])
            self.matrix(p + 'self_attn.index_k_proj.weight', c['index_dim'], c['hidden'])
            self.norm(p + 'self_attn.index_q_norm.weight', c['index_dim'])
            self.norm(p + 'self_attn.index_k_norm.weight', c['index_dim'])
        self.norm(p + 'post_attention_layernorm.weight', c['hidden'])
        if i < c['dense_layers']:
            return self.mlp(p + 'mlp.', c['dense'])
        p += 'block_sparse_moe.'
        self.f32(p + 'gate.weight',
                 self.normal(c['experts'], c['hidden']) * (1.5 / c['hidden'] ** 0.5))
        self.f32(p + 'e_score_correction_bias', 0.15 * self.normal(c['experts']))
        self.mlp(p + 'shared_experts.', c['shared'])
        for e in range(c['experts']):
            self.matrix(f'{p}experts.{e}.w1.weight', c['expert'], c['hidden'])
            self.matrix(f'{p}experts.{e}.w2.weight', c['hidden'], c['expert'], 1.5)
            self.matrix(f'{p}experts.{e}.w3.weight', c['expert'], c['hidden'])

    def layer(self, i):
        c, p = self.c, f'model.layers.{i}.'
        q, kv = c['heads'] * c['head_dim'], c['kv_heads'] * c['head_dim']
        self.norm(p + 'input_layernorm.weight', c['hidden'])
        self.matrix(p + 'self_attn.q_proj.weight', q, c['hidden'])
        self.matrix(p + 'self_attn.k_proj.weight', kv, c['hidden'])
        self.matrix(p + 'self_attn.v_proj.weight', kv, c['hidden'])
        self.matrix(p + 'self_attn.o_proj.weight', c['hidden'], q, 1.5)
        self.norm(p + 'self_attn.q_norm.weight', q)
        self.norm(p + 'self_attn.k_norm.weight', kv)
        self.norm(p + 'post_attention_layernorm.weight', c['hidden'])
        p += 'block_sparse_moe.'
        router = self.f32 if c['weights'] == 'fp8' else self.bf16
        gate = self.normal(c['experts'], c['hidden']) * (1.5 / c['hidden'] ** 0.5)
        router(p + 'gate.weight', gate)
        router(p + 'e_score_correction_bias', 0.15 * self.normal(c['experts']))
        for e in range(c['experts']):
            self.matrix(f'{p}experts.{e}.w1.weight', c['expert'], c['hidden'])
            self.matrix(f'{p}experts.{e}.w2.weight', c['hidden'], c['expert'], 3.0)
            self.matrix(f'{p}experts.{e}.w3.weight', c['expert'], c['hidden'])

    def make(self):
        c, p = self.c, PREFIX[self.c.get('family', 'm2')]
        self.bf16(p + 'model.embed_tokens.weight', self.normal(c['vocab'], c['hidden']))
        for i in range(c['layers']):
            self.m3_layer(i) if is_m3(c) else self.layer(i)
        self.norm(p + 'model.norm.weight', c['hidden'])
        self.bf16(p + 'lm_head.weight',
                  self.normal(c['vocab'], c['hidden']) * (2 / c['hidden'] ** 0.5))
        if is_m3(c):  # what a text model skips
            self.bf16('vision_tower.embeddings.proj.weight', self.normal(4, 6))


def new_m3_model(torch, c):
    """The text model alone, with a head of our own: Trace wants `.model` and `.logits`."""
    from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling
    text = released_text_config(c)
    for unknown in ('architectures', 'model_type', 'hidden_act', 'torch_dtype',
                    'partial_rotary_factor', 'rope_theta', 'rotary_dim', 'num_mtp_modules',
                    'num_nextn_predict_layers', 'scoring_func', 'use_gemma_norm', 'use_qk_norm',
                    'qk_norm_type', 'attention_output_gate', 'swiglu_beta', 'use_routing_bias',
                    'n_shared_experts'):
        text.pop(unknown)
    share, theta = c['rotary'] / c['head_dim'], float(c['theta'])
    rope = dict(rope_type='default', rope_theta=theta, partial_rotary_factor=share)
    ways = [dict(rope_parameters=rope, rotary_dim=c['rotary']), dict(rope_parameters=rope),
            dict(rope_theta=theta, rotary_dim=c['rotary']),
            dict(rope_theta=theta, partial_rotary_factor=share)]
    wanted = 1.0 / theta ** (torch.arange(0, c['rotary'], 2, dtype=torch.float64) / c['rotary'])
    seen = []
    for way in ways:
        try:
            config = modeling.MiniMaxM3VLTextConfig(**text, **way)
            config._attn_implementation = 'eager'
            config._experts_implementation = 'eager'
            model = modeling.MiniMaxM3VLTextModel(config).to(torch.float32).eval()
            found = model.rotary_emb.inv_freq.to(torch.float64)
        except Exception as e:  # another version: try the next way, say all at the end
            seen.append(f'{sorted(way)}: {type(e).__name__}: {e}')
            continue
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-6, atol=0):
            if model.config._attn_implementation != 'eager':
                fail('the model does not use eager attention')
            return WithHead(torch, model, c)
        seen.append(f'{sorted(way)}: {tuple(found.shape)[0]} rotary frequencies, '
                    f'expected {tuple(wanted.shape)[0]}')
    fail('no way to configure the text model worked:\n  ' + '\n  '.join(seen))


class WithHead:
    def __init__(self, torch, model, c):
        self.model, self.head = model, torch.zeros(c['vocab'], c['hidden'])
        self.logits = None

    def __call__(self, input_ids, use_cache):
        hidden = self.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        self.logits = hidden @ self.head.T
        return self


def load_m3_weights(torch, with_head, values, c):
    """Fills the text model from tensors under their released names."""
    used, state, model = set(), {}, with_head.model
    prefix = PREFIX['m3']

    def take(name):
        name = prefix + name
        if name not in values:
            fail(f'the model wants {name}, which the checkpoint does not have')
        used.add(name)
        return values[name]

    def experts(at, build):
        return torch.stack([build(f'{at}{e}.') for e in range(c['experts'])])

    for key, present in model.state_dict().items():
        name = 'model.' + key
        layer = re.match(r'layers\.(\d+)\.mlp\.', key)
        if layer and int(layer.group(1)) >= c['dense_layers']:
            name = name.replace('.mlp.', '.block_sparse_moe.')
        name = name.replace('.gate.e_score_correction_bias', '.e_score_correction_bias')
        name = name.replace('.self_attn.indexer.', '.self_attn.index_')
        if name.endswith('.experts.gate_up_proj'):
            value = experts(name[:-len('gate_up_proj')], lambda p: torch.cat(
                [take(p + 'w1.weight'), take(p + 'w3.weight')]))
        elif name.endswith('.experts.down_proj'):
            value = experts(name[:-len('down_proj')], lambda p: take(p + 'w2.weight'))
        elif name.endswith('gate_up_proj.weight'):
            at = name[:-len('gate_up_proj.weight')]
            value = torch.cat([take(at + 'gate_proj.weight'), take(at + 'up_proj.weight')])
        else:
            value = take(name)
        if tuple(value.shape) != tuple(present.shape) or present.dtype != torch.float32:
            fail(f'{key}: the model has {present.dtype} {tuple(present.shape)}, expected float32 '
                 f'{tuple(value.shape)}')
        state[key] = value
    with_head.head = take('lm_head.weight')
    left = [n for n in values if n not in used and not n.endswith('_scale_inv') and
            n.startswith(prefix)]
    if left:
        fail(f'{len(left)} tensors have no place in the model, such as {left[0]}')
    result = model.load_state_dict(state, strict=True)
    if result.missing_keys or result.unexpected_keys:
        fail(f'load_state_dict: {result}')
    for key, value in model.state_dict().items():
        if not torch.equal(value, state[key]):
            fail(f'{key}: did not take the value')
    for name, _ in list(model.named_parameters()) + list(model.named_buffers()):
        if name not in state and 'inv_freq' not in name:
            fail(f'{name}: in no state dict')


def new_model(torch, c):
    """An f32 model of this geometry whose rotary frequencies are the released rule's."""
    if is_m3(c):
        return new_m3_model(torch, c)
    from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM
    released = released_config(c)
    common = {k: released[k] for k in (
        'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
        'num_attention_heads', 'num_key_value_heads', 'head_dim', 'max_position_embeddings',
        'rms_norm_eps', 'num_experts_per_tok', 'num_local_experts', 'hidden_act',
        'tie_word_embeddings', 'attention_dropout', 'bos_token_id', 'eos_token_id')}
    share = c['rotary'] / c['head_dim']
    rope = dict(rope_type='default', rope_theta=float(c['theta']), partial_rotary_factor=share)
    # How the class wants to be told about partial rotation has changed between versions.
    ways = [dict(rope_parameters=rope), dict(rope_parameters=rope, rotary_dim=c['rotary']),
            dict(rope_theta=float(c['theta']), rotary_dim=c['rotary']),
            dict(rope_theta=float(c['theta']), partial_rotary_factor=share)]
    exponent = torch.arange(0, c['rotary'], 2, dtype=torch.float64) / c['rotary']
    wanted = 1.0 / float(c['theta']) ** exponent
    seen = []
    for way in ways:
        try:
            config = MiniMaxM2Config(**common, **way)
            config._attn_implementation = 'eager'
            config._experts_implementation = 'eager'  # a plain attribute in older versions
            model = MiniMaxM2ForCausalLM(config).to(torch.float32).eval()
            found = model.model.rotary_emb.inv_freq.to(torch.float64)
        except Exception as e:  # another version: try the next way, say all at the end
            seen.append(f'{sorted(way)}: {type(e).__name__}: {e}')
            continue
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-6, atol=0):
            if model.config._attn_implementation != 'eager':
                fail('the model does not use eager attention')
            return model
        seen.append(f'{sorted(way)}: {tuple(found.shape)[0]} rotary frequencies, '
                    f'expected {tuple(wanted.shape)[0]}')
    fail('no way to configure partial rotation worked:\n  ' + '\n  '.join(seen))


def load_weights(torch, model, values, c):
    """Fills every parameter and buffer of `model` from tensors under their released names."""
    if is_m3(c):
        return load_m3_weights(torch, model, values, c)
    used, state = set(), {}

    def take(name):
        if name not in values:
            fail(f'the model wants {name}, which the checkpoint does not have')
        used.add(name)
        return values[name]

    def experts(prefix, build):
        return torch.stack([build(f'{prefix}{e}.') for e in range(c['experts'])])

    for key, present in model.state_dict().items():
        name = re.sub(r'(layers\.\d+\.)mlp\.', r'\1block_sparse_moe.', key)
        name = name.replace('.gate.e_score_correction_bias', '.e_score_correction_bias')
        if name.endswith('experts.gate_up_proj'):
            value = experts(name[:-len('gate_up_proj')], lambda p: torch.cat(
                [take(p + 'w1.weight'), take(p + 'w3.weight')]))
        elif name.endswith('experts.down_proj'):
            value = experts(name[:-len('down_proj')], lambda p: take(p + 'w2.weight'))
        else:
            value = take(name)
        if tuple(value.shape) != tuple(present.shape):
            fail(f'{key}: the model has {tuple(present.shape)}, expected {tuple(value.shape)}')
        if present.dtype != torch.float32:
            fail(f'{key}: the model holds {present.dtype}, expected float32')
        state[key] = value
    left = [n for n in values if n not in used and not n.endswith('_scale_inv')]
    if left:
        fail(f'{len(left)} tensors have no place in the model, such as {left[0]}')
    result = model.load_state_dict(state, strict=True)
    if result.missing_keys or result.unexpected_keys:
        fail(f'load_state_dict: {result}')
    for key, value in model.state_dict().items():
        if not torch.equal(value, state[key]):
            fail(f'{key}: did not take the value')
    for name, parameter in model.named_parameters():
        if name not in state:
            fail(f'{name}: a parameter that is in no state dict')


class Trace:
    """What one forward pass went through: the stream after each layer, and the routing."""

    def __init__(self, torch, model, c):
        self.torch, self.model, self.c = torch, model, c
        self.hooks, self.layers, self.gates, self.indexers = [], {}, {}, {}
        self.watch(model.model.embed_tokens, self.layers, 0)
        for i, layer in enumerate(model.model.layers):
            self.watch(layer, self.layers, i + 1)
            if i in sparse_layers(c):
                indexers = [m for n, m in layer.named_modules() if n.endswith('.indexer')]
                if len(indexers) != 1:
                    fail(f'layer {i}: found {len(indexers)} indexers, expected 1')
                self.watch(indexers[0], self.indexers, i)
            if i not in expert_layers(c):
                continue
            gates = [m for n, m in layer.named_modules() if n.endswith('.gate')]
            if len(gates) != 1:
                fail(f'layer {i}: found {len(gates)} router gates, expected 1')
            self.watch(gates[0], self.gates, i)

    def watch(self, module, into, key):
        def hook(_module, args, kwargs, output):
            first = args[0] if args else next(iter(kwargs.values()))
            into[key] = (first.detach(), output)
        self.hooks.append(module.register_forward_hook(hook, with_kwargs=True))

    def close(self):
        for hook in self.hooks:
            hook.remove()

    def run(self, ids):
        """Returns hidden [layers + 1, T, H], routed [layers, T, K], logits, smallest gap; leaves
        self.selected and self.block_gap."""
        torch, c = self.torch, self.c
        self.layers.clear()
        self.gates.clear()
        self.indexers.clear()
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        hidden = []
        for i in range(c['layers'] + 1):
            output = self.layers[i][1]
            output = output[0] if isinstance(output, tuple) else output
            hidden.append(output.reshape(len(ids), c['hidden']))
        routed, gap = [], math.inf
        for i in expert_layers(c):
            chosen, layer_gap = self.routing(i, len(ids))
            routed.append(chosen)
            gap = min(gap, layer_gap)
        self.selected, self.block_gap = [], math.inf
        for i in sparse_layers(c):
            blocks, block_gap = self.selection(i, len(ids))
            self.selected.append(blocks)
            self.block_gap = min(self.block_gap, block_gap)
        return torch.stack(hidden), torch.stack(routed), logits, gap

    def routing(self, i, n_rows):
        """Our own reading of the router on its input, compared with the model's choice."""
        torch, c = self.torch, self.c
        p = f'{PREFIX[c.get("family", "m2")]}model.layers.{i}.block_sparse_moe.'
        x = self.gates[i][0].reshape(n_rows, c['hidden']).to(torch.float64)
        score = torch.sigmoid(x @ self.values[p + 'gate.weight'].to(torch.float64).T)
        score = score + self.values[p + 'e_score_correction_bias'].to(torch.float64)
        best, order = score.sort(dim=1, descending=True)
        ours = order[:, :c['top_k']].sort(dim=1).values
        output = self.gates[i][1]
        outputs = output if isinstance(output, tuple) else (output,)
        theirs = [t for t in outputs if torch.is_tensor(t) and not t.is_floating_point() and
                  tuple(t.shape) == (n_rows, c['top_k'])]
        if theirs and not torch.equal(theirs[0].sort(dim=1).values, ours):
            print(f'  layer {i}: our routing differs from the model\'s (a tie?)', flush=True)
            return ours, 0.0
        if not theirs:
            print(f'  layer {i}: the router does not show its choice; ours is recorded', flush=True)
        gap = (best[:, c['top_k'] - 1] - best[:, c['top_k']]).min().item()
        return ours, gap


    def selection(self, i, n_rows):
        """Our own reading of the indexer on its input, compared with the model's choice."""
        torch, c = self.torch, self.c
        p = f'{PREFIX["m3"]}model.layers.{i}.self_attn.index_'
        x = self.indexers[i][0].reshape(n_rows, c['hidden']).to(torch.float64)
        wide = lambda name: self.values[p + name].to(torch.float64)
        q = (x @ wide('q_proj.weight').T).reshape(n_rows, c['kv_heads'], c['index_dim'])
        k = (x @ wide('k_proj.weight').T).reshape(n_rows, 1, c['index_dim'])

        def prepare(v, weight):
            v = v / torch.sqrt((v * v).mean(dim=-1, keepdim=True) + 1e-6) * (1 + weight)
            half = c['rotary'] // 2
            angle = torch.arange(n_rows, dtype=torch.float64)[:, None] * float(c['theta']) ** (
                -torch.arange(0, c['rotary'], 2, dtype=torch.float64) / c['rotary'])
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            a, b = v[..., :half], v[..., half:2 * half]
            return torch.cat([a * cos - b * sin, b * cos + a * sin, v[..., 2 * half:]], dim=-1)

        q, k = prepare(q, wide('q_norm.weight')), prepare(k, wide('k_norm.weight'))[:, 0]
        scores = torch.einsum('thd,jd->htj', q, k)
        size, top = c['block'], c['top_blocks']
        ours = torch.full((n_rows, c['kv_heads'], top), -1, dtype=torch.long)
        gap, std = math.inf, scores.std().item()
        for t in range(n_rows):
            own = t // size
            for h in range(c['kv_heads']):
                best = [scores[h, t, b * size:(b + 1) * size].max().item() for b in range(own)]
                order = sorted(range(own), key=lambda b: (-best[b], b))
                blocks = sorted(order[:top - 1]) + [own]
                if own > top - 1 and top > 1:
                    gap = min(gap, (best[order[top - 2]] - best[order[top - 1]]) / std)
                ours[t, h, :len(blocks)] = torch.tensor(blocks)
        theirs = self.indexers[i][1].detach()[0].transpose(0, 1)
        want = torch.full_like(ours, -1)
        for t in range(n_rows):
            for h in range(c['kv_heads']):
                blocks = sorted(b for b in theirs[t, h].tolist() if b >= 0)
                want[t, h, :len(blocks)] = torch.tensor(blocks)
        if not torch.equal(want, ours):
            print(f'  layer {i}: our blocks differ from the model\'s (a tie?)', flush=True)
            return ours, 0.0
        return ours, gap


def generate(torch, trace, prompt):
    """Greedy: the ids, the logits that chose them, and the smallest top-2 margin / std."""
    ids, rows, margin = list(prompt), [], math.inf
    for _ in range(STEPS):
        row = trace.run(ids)[2][-1]
        top = row.topk(2)
        margin = min(margin, ((top.values[0] - top.values[1]) / row.std()).item())
        rows.append(row)
        ids.append(int(top.indices[0]))
    return ids[len(prompt):], torch.stack(rows), margin


def make_case(torch, name, out):
    import transformers
    c = CASES[name]
    config = released_config(c)
    eos_id = config.get('text_config', config)['eos_token_id']
    router_gap = c.get('router_gap', MIN_ROUTER_GAP)
    model = new_model(torch, c)
    for seed in range(20261122, 20261122 + 200):
        maker = Maker(torch, c, seed)
        load_weights(torch, model, maker.values, c)
        random = torch.Generator().manual_seed(seed + 1)
        prompt = torch.randint(0, c['vocab'] - 54, (c['prompt'],), generator=random).tolist()
        trace = Trace(torch, model, c)
        trace.values = maker.values
        hidden, routed, logits, gap = trace.run(prompt)
        selected, block_gap = trace.selected, trace.block_gap
        if gap < router_gap or block_gap < MIN_BLOCK_GAP:
            print(f'{name}: seed {seed}: router gap {gap:.1e}, block gap {block_gap:.1e}: no',
                  flush=True)
            trace.close()
            continue
        ids, rows, margin = generate(torch, trace, prompt)
        gap = min(gap, trace.run(prompt + ids)[3])
        block_gap = min(block_gap, trace.block_gap)
        trace.close()
        print(f'{name}: seed {seed}: router gap {gap:.2e}, logit margin {margin:.2e} of std, '
              f'{len(set(ids))} different tokens', flush=True)
        if (gap >= router_gap and block_gap >= MIN_BLOCK_GAP and margin >= MIN_LOGIT_MARGIN and
                len(set(ids)) >= 4 and eos_id not in ids):
            break
    else:
        fail(f'{name}: no seed with decisive choices')
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    for old in os.listdir(folder):
        if old.endswith(('.safetensors', '.json')):
            os.remove(os.path.join(folder, old))
    write_json(os.path.join(folder, 'config.json'), config)
    write_checkpoint(folder, maker.files, c['shards'])
    results = dict(prompt=torch.tensor(prompt), hidden=hidden, routed=routed, logits=logits,
                   continuation=torch.tensor(ids), continuation_logits=rows)
    if selected:
        results['selected'] = torch.stack(selected)
    tensors = []
    for key, value in results.items():
        kind, dtype = ('F32', torch.float32) if value.is_floating_point() else ('I32', torch.int32)
        if kind == 'F32' and not bool(torch.isfinite(value).all()):
            fail(f'{name}: {key} is not finite')
        tensors.append((key, kind, tuple(value.shape), raw(torch, value.to(dtype))))
    write_safetensors(os.path.join(folder, 'reference.safetensors'), tensors)
    write_json(os.path.join(folder, 'reference.json'), dict(
        made_by='tests/reference/make_reference.py', case=name, geometry=c, seed=seed,
        python=sys.version.split()[0], torch=torch.__version__,
        transformers=transformers.__version__, arithmetic='f32, eager attention, CPU',
        smallest_router_gap=gap, smallest_logit_margin_in_std=margin,
        **(dict(smallest_block_gap_in_std=block_gap) if selected else {}),
        hidden_std_per_layer=[h.std().item() for h in hidden], logits_std=logits.std().item()))
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f'{name}: {size / 1e6:.2f} MB, stream std '
          + ' '.join(f'{h.std().item():.2f}' for h in hidden)
          + f', logits std {logits.std().item():.2f}', flush=True)
    return size


# ----------------------------------------------------------------------------- checking
class Tensors:
    """A case's tensors as lists of f64 rows, decoded at first use."""

    def __init__(self, paths):
        self.files, self.rows = {}, {}
        for path in paths:
            with open(path, 'rb') as f:
                n, = struct.unpack('<Q', f.read(8))
                head, data = json.loads(f.read(n)), f.read()
            for name, entry in head.items():
                if name != '__metadata__':
                    begin, end = entry['data_offsets']
                    self.files[name] = (entry['dtype'], entry['shape'], data[begin:end])

    def flat(self, name):
        dtype, shape, data = self.files[name]
        if dtype == 'F32':
            return array.array('f', data).tolist()
        if dtype == 'I32':
            return array.array('i', data).tolist()
        if dtype == 'U8':
            return [2.0 ** (b - 127) for b in data]
        if dtype == 'BF16':
            wide = array.array('I', [h << 16 for h in array.array('H', data)])
            return array.array('f', wide.tobytes()).tolist()
        table = [e4m3_value(b) for b in range(256)]
        return [table[b] for b in data]

    def vector(self, name):
        if name not in self.rows:
            self.rows[name] = self.flat(name)
        return self.rows[name]

    def matrix(self, name):
        if name in self.rows:
            return self.rows[name]
        dtype, (n_rows, n_cols), _ = self.files[name]
        flat = self.flat(name)
        rows = [flat[r * n_cols:(r + 1) * n_cols] for r in range(n_rows)]
        if dtype == 'F8_E4M3' and self.files[name + '_scale_inv'][0] == 'U8':
            scale = self.matrix(name + '_scale_inv')
            rows = [[v * scale[r][k // MX_BLOCK] for k, v in enumerate(row)]
                    for r, row in enumerate(rows)]
        elif dtype == 'F8_E4M3':
            scale = self.matrix(name + '_scale_inv')
            rows = [[v * scale[r // BLOCK][k // BLOCK] for k, v in enumerate(row)]
                    for r, row in enumerate(rows)]
        self.rows[name] = rows
        return rows


def dot(a, b):
    return sum(map(operator.mul, a, b))


def apply(matrix, x):
    return [dot(row, x) for row in matrix]


def rms(x, weight, eps):
    r = 1 / math.sqrt(dot(x, x) / len(x) + eps)
    return [v * r * w for v, w in zip(x, weight)]


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def rotate(head, pos, c):
    half, out = c['rotary_dim'] // 2, list(head)
    for j in range(half):
        angle = pos * c['rope_theta'] ** (-2 * j / c['rotary_dim'])
        cos, sin = math.cos(angle), math.sin(angle)
        out[j] = head[j] * cos - head[j + half] * sin
        out[j + half] = head[j + half] * cos + head[j] * sin
    return out


def attend(w, p, c, xs):
    size, group = c['head_dim'], c['num_attention_heads'] // c['num_key_value_heads']
    keys, values, outs = [], [], []
    split = lambda v: [v[i:i + size] for i in range(0, len(v), size)]
    for pos, x in enumerate(xs):
        h = rms(x, w.vector(p + 'input_layernorm.weight'), c['rms_norm_eps'])
        q, k, v = (apply(w.matrix(f'{p}self_attn.{n}_proj.weight'), h) for n in 'qkv')
        q = split(rms(q, w.vector(p + 'self_attn.q_norm.weight'), c['rms_norm_eps']))
        k = split(rms(k, w.vector(p + 'self_attn.k_norm.weight'), c['rms_norm_eps']))
        keys.append([rotate(head, pos, c) for head in k])
        values.append(split(v))
        out = []
        for a, head in enumerate(q):
            head = rotate(head, pos, c)
            s = [dot(head, key[a // group]) / math.sqrt(size) for key in keys]
            top = max(s)
            e = [math.exp(v - top) for v in s]
            total = sum(e)
            out += [sum(e[t] * values[t][a // group][d] for t in range(pos + 1)) / total
                    for d in range(size)]
        y = apply(w.matrix(p + 'self_attn.o_proj.weight'), out)
        outs.append([a + b for a, b in zip(x, y)])
    return outs


def experts(w, p, c, x):
    h = rms(x, w.vector(p + 'post_attention_layernorm.weight'), c['rms_norm_eps'])
    p += 'block_sparse_moe.'
    score = [sigmoid(z) for z in apply(w.matrix(p + 'gate.weight'), h)]
    choice = [s + b for s, b in zip(score, w.vector(p + 'e_score_correction_bias'))]
    chosen = sorted(sorted(range(len(score)), key=lambda e: (-choice[e], e))
                    [:c['num_experts_per_tok']])
    total, out = sum(score[e] for e in chosen), list(x)
    for e in chosen:
        gate = apply(w.matrix(f'{p}experts.{e}.w1.weight'), h)
        up = apply(w.matrix(f'{p}experts.{e}.w3.weight'), h)
        y = apply(w.matrix(f'{p}experts.{e}.w2.weight'),
                  [g * sigmoid(g) * u for g, u in zip(gate, up)])
        out = [a + score[e] / total * b for a, b in zip(out, y)]
    return out, chosen


def gnorm(x, weight, eps):
    return rms(x, [1 + w for w in weight], eps)


def heads_of(v, size, weight, c, pos):
    """Cut into heads, each normed by itself and rotated."""
    parts = [v[i:i + size] for i in range(0, len(v), size)]
    return [rotate(gnorm(part, weight, c['rms_norm_eps']), pos, c) for part in parts]


def seen_blocks(queries, keys, pos, sparse):
    """m3.md 5.3: for each index head the blocks that a row sees, ascending."""
    size, top = sparse['sparse_block_size'], sparse['sparse_topk_blocks']
    own, out = pos // size, []
    for q in queries:
        best = [max(dot(q, keys[j]) for j in range(b * size, (b + 1) * size)) for b in range(own)]
        order = sorted(range(own), key=lambda b: (-best[b], b))
        out.append(sorted(order[:top - 1]) + [own])
    return out


def attend_m3(w, p, c, i, xs, selected):
    size, group = c['head_dim'], c['num_attention_heads'] // c['num_key_value_heads']
    sparse = c['sparse_attention_config']
    is_sparse, block = sparse['sparse_attention_freq'][i] == 1, sparse['sparse_block_size']
    keys, values, index_keys, outs = [], [], [], []
    for pos, x in enumerate(xs):
        h = gnorm(x, w.vector(p + 'input_layernorm.weight'), c['rms_norm_eps'])
        q, k, v = (apply(w.matrix(f'{p}self_attn.{n}_proj.weight'), h) for n in 'qkv')
        q = heads_of(q, size, w.vector(p + 'self_attn.q_norm.weight'), c, pos)
        keys.append(heads_of(k, size, w.vector(p + 'self_attn.k_norm.weight'), c, pos))
        values.append([v[a:a + size] for a in range(0, len(v), size)])
        seen = [range(pos + 1)] * c['num_key_value_heads']
        if is_sparse:
            dim = sparse['sparse_index_dim']
            iq = heads_of(apply(w.matrix(p + 'self_attn.index_q_proj.weight'), h), dim,
                          w.vector(p + 'self_attn.index_q_norm.weight'), c, pos)
            index_keys += heads_of(apply(w.matrix(p + 'self_attn.index_k_proj.weight'), h), dim,
                                   w.vector(p + 'self_attn.index_k_norm.weight'), c, pos)
            blocks = seen_blocks(iq, index_keys, pos, sparse)
            selected += [b for row in blocks
                         for b in row + [-1] * (sparse['sparse_topk_blocks'] - len(row))]
            seen = [[j for b in row for j in range(b * block, min((b + 1) * block, pos + 1))]
                    for row in blocks]
        out = []
        for a, head in enumerate(q):
            g = a // group
            s = [dot(head, keys[j][g]) / math.sqrt(size) for j in seen[g]]
            top = max(s)
            e = [math.exp(v - top) for v in s]
            total = sum(e)
            out += [sum(e[n] * values[j][g][d] for n, j in enumerate(seen[g])) / total
                    for d in range(size)]
        y = apply(w.matrix(p + 'self_attn.o_proj.weight'), out)
        outs.append([a + b for a, b in zip(x, y)])
    return outs


def swiglu_oai(g, u, c):
    g = min(g, c['swiglu_limit'])
    u = min(max(u, -c['swiglu_limit']), c['swiglu_limit'])
    return g * sigmoid(c['swiglu_alpha'] * g) * (u + c['swiglu_beta'])


def mlp_m3(w, names, h, c):
    gate, up = (apply(w.matrix(n), h) for n in names[:2])
    return apply(w.matrix(names[2]), [swiglu_oai(g, u, c) for g, u in zip(gate, up)])


def named(p):
    return [f'{p}{n}_proj.weight' for n in ('gate', 'up', 'down')]


def experts_m3(w, p, c, i, x):
    h = gnorm(x, w.vector(p + 'post_attention_layernorm.weight'), c['rms_norm_eps'])
    if not c['moe_layer_freq'][i]:
        return [a + b for a, b in zip(x, mlp_m3(w, named(p + 'mlp.'), h, c))], None
    p += 'block_sparse_moe.'
    score = [sigmoid(z) for z in apply(w.matrix(p + 'gate.weight'), h)]
    choice = [s + b for s, b in zip(score, w.vector(p + 'e_score_correction_bias'))]
    chosen = sorted(sorted(range(len(score)), key=lambda e: (-choice[e], e))
                    [:c['num_experts_per_tok']])
    total, out = sum(score[e] for e in chosen), list(x)
    for e in chosen:
        y = mlp_m3(w, [f'{p}experts.{e}.w{n}.weight' for n in (1, 3, 2)], h, c)
        scale = c['routed_scaling_factor'] * score[e] / total
        out = [a + scale * b for a, b in zip(out, y)]
    return [a + b for a, b in zip(out, mlp_m3(w, named(p + 'shared_experts.'), h, c))], chosen


def worst(got, want):
    """Largest difference in units of the wanted values' standard deviation."""
    mean = sum(want) / len(want)
    std = math.sqrt(sum((v - mean) ** 2 for v in want) / len(want))
    return max(abs(a - b) for a, b in zip(got, want)) / std


def check_case(folder):
    with open(os.path.join(folder, 'config.json')) as f:
        c = json.load(f)
    is_new = 'text_config' in c
    c, prefix = c.get('text_config', c), PREFIX['m3' if is_new else 'm2']
    w = Tensors(sorted(os.path.join(folder, f) for f in os.listdir(folder)
                       if f.startswith('model') and f.endswith('.safetensors')))
    ref = Tensors([os.path.join(folder, 'reference.safetensors')])
    prompt, ids = ref.vector('prompt'), ref.vector('continuation')
    n_prompt, n_vocab = len(prompt), c['vocab_size']
    xs = [w.matrix(prefix + 'model.embed_tokens.weight')[i] for i in prompt + ids[:-1]]
    streams, routed, selected = [xs], [], []
    for i in range(c['num_hidden_layers']):
        p = f'{prefix}model.layers.{i}.'
        if is_new:
            blocks = []
            pairs = [experts_m3(w, p, c, i, x) for x in attend_m3(w, p, c, i, xs, blocks)]
            per_row = c['num_key_value_heads'] * c['sparse_attention_config']['sparse_topk_blocks']
            selected += blocks[:n_prompt * per_row]
        else:
            pairs = [experts(w, p, c, x) for x in attend(w, p, c, xs)]
        xs = [x for x, _ in pairs]
        streams.append(xs)
        routed += [e for _, chosen in pairs[:n_prompt] for e in chosen or []]
    head, norm = w.matrix(prefix + 'lm_head.weight'), gnorm if is_new else rms
    final = w.vector(prefix + 'model.norm.weight')
    logits = [apply(head, norm(x, final, c['rms_norm_eps'])) for x in xs]
    hidden = [v for stream in streams for x in stream[:n_prompt] for v in x]
    chosen = [row.index(max(row)) for row in logits[n_prompt - 1:]]
    flat = lambda rows: [v for row in rows for v in row]
    found = dict(hidden=worst(hidden, ref.vector('hidden')),
                 logits=worst(flat(logits[:n_prompt]), ref.vector('logits')),
                 continuation=worst(flat(logits[n_prompt - 1:]),
                                    ref.vector('continuation_logits')))
    good = all(v < TOLERANCE for v in found.values())
    good = good and routed == ref.vector('routed') and chosen == ids
    good = good and (not is_new or selected == ref.vector('selected'))
    good = good and len(ref.vector('logits')) == n_prompt * n_vocab
    print(f'{folder}: ' + ', '.join(f'{k} {v:.1e}' for k, v in found.items())
          + f', routing {"equal" if routed == ref.vector("routed") else "DIFFERS"}'
          + f', tokens {"equal" if chosen == ids else "DIFFER"}: {"ok" if good else "WRONG"}',
          flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(
        description='Makes or verifies the reference cases.  Differences that it prints are in '
                    'standard deviations.')
    parser.add_argument('--out', help='folder to write the cases to')
    parser.add_argument('--check', nargs='+', metavar='FOLDER', help='case folders to verify')
    parser.add_argument('cases', nargs='*', metavar='CASE',
                        help=f'of {", ".join(CASES)}; default all')
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f'unknown case {unknown[0]}')
    if bool(args.out) == bool(args.check):
        parser.error('give either --out or --check')
    if args.check:
        sys.exit(0 if all([check_case(folder) for folder in args.check]) else 1)
    import torch
    torch.set_default_dtype(torch.float32)
    names = args.cases or list(CASES)
    total = sum(make_case(torch, name, args.out) for name in names)
    print(f'{total / 1e6:.2f} MB in all', flush=True)
    if not all([check_case(os.path.join(args.out, name)) for name in names]):
        fail('the cases do not agree with the plain reading of the specification')


if __name__ == '__main__':
    main()
