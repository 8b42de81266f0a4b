"""The demo model as files: released names, FP8 blocks with scales, BF16, F32 routers."""
import json
import os

import torch
from safetensors.torch import load_file, save_file

import model as m

ATTENTION = {'q': 'q_proj', 'k': 'k_proj', 'v': 'v_proj', 'o': 'o_proj'}
NORMS = {'input_norm': 'input_layernorm', 'post_norm': 'post_attention_layernorm',
         'q_norm': 'self_attn.q_norm', 'k_norm': 'self_attn.k_norm'}
TOP = {'embedding': 'model.embed_tokens', 'norm': 'model.norm', 'head': 'lm_head'}


def tensors_of(model):
    """Every tensor of the checkpoint under its released name."""
    out = {}

    def fp8(name, w):
        stored, scale = m.to_fp8(w.detach().float().contiguous())
        out[name + '.weight'], out[name + '.weight_scale_inv'] = stored.contiguous(), scale.contiguous()

    for field, name in TOP.items():
        out[name + '.weight'] = getattr(model, field).detach().to(torch.bfloat16)
    for i, layer in enumerate(model.layers):
        p = f'model.layers.{i}.'
        for field, name in NORMS.items():
            out[f'{p}{name}.weight'] = getattr(layer, field).detach().to(torch.bfloat16)
        for field, name in ATTENTION.items():
            fp8(f'{p}self_attn.{name}', getattr(layer, field))
        p += 'block_sparse_moe.'
        out[p + 'gate.weight'] = layer.gate.detach().float()
        out[p + 'e_score_correction_bias'] = layer.bias.float()
        for e in range(model.g['experts']):
            for field in ('w1', 'w2', 'w3'):
                fp8(f'{p}experts.{e}.{field}', getattr(layer, field)[e])
    return {name: t.cpu() for name, t in out.items()}


def values_of(folder):
    """Every tensor of a checkpoint in f32, FP8 blocks multiplied out."""
    stored = load_file(os.path.join(folder, 'model.safetensors'))
    values = {}
    for name, t in stored.items():
        if name.endswith('_scale_inv'):
            continue
        scale = stored.get(name + '_scale_inv')
        values[name] = m.from_fp8(t, scale) if scale is not None else t.to(torch.float32)
    return values


def geometry_of(folder):
    with open(os.path.join(folder, 'config.json')) as f:
        c = json.load(f)
    return dict(hidden=c['hidden_size'], layers=c['num_hidden_layers'], heads=c['num_attention_heads'],
                kv_heads=c['num_key_value_heads'], head_dim=c['head_dim'], rotary=c['rotary_dim'],
                expert=c['intermediate_size'], experts=c['num_local_experts'], top_k=c['num_experts_per_tok'],
                vocab=c['vocab_size'], theta=c['rope_theta'], context=c['max_position_embeddings'],
                epsilon=c['rms_norm_eps'])


def load(folder, rounds=False):
    """The model of a checkpoint, on the CPU."""
    g, values = geometry_of(folder), values_of(folder)
    model = m.Model(g, rounds)
    with torch.no_grad():
        for field, name in TOP.items():
            getattr(model, field).copy_(values[name + '.weight'])
        for i, layer in enumerate(model.layers):
            p = f'model.layers.{i}.'
            for field, name in NORMS.items():
                getattr(layer, field).copy_(values[f'{p}{name}.weight'])
            for field, name in ATTENTION.items():
                getattr(layer, field).copy_(values[f'{p}self_attn.{name}.weight'])
            p += 'block_sparse_moe.'
            layer.gate.copy_(values[p + 'gate.weight'])
            layer.bias.copy_(values[p + 'e_score_correction_bias'])
            for field in ('w1', 'w2', 'w3'):
                getattr(layer, field).copy_(torch.stack(
                    [values[f'{p}experts.{e}.{field}.weight'] for e in range(g['experts'])]))
    return model


def released_config(g, first_added):
    return dict(
        architectures=['MiniMaxM2ForCausalLM'], model_type='minimax_m2', vocab_size=g['vocab'],
        hidden_size=g['hidden'], num_hidden_layers=g['layers'], num_attention_heads=g['heads'],
        num_key_value_heads=g['kv_heads'], head_dim=g['head_dim'], rotary_dim=g['rotary'], rope_theta=g['theta'],
        max_position_embeddings=g['context'], rms_norm_eps=g['epsilon'], hidden_act='silu',
        intermediate_size=g['expert'], mlp_intermediate_size=4 * g['expert'], shared_intermediate_size=0,
        num_local_experts=g['experts'], num_experts_per_tok=g['top_k'], scoring_func='sigmoid',
        use_routing_bias=True, use_qk_norm=True, qk_norm_type='per_layer', attn_type_list=[1] * g['layers'],
        sliding_window=None, attention_dropout=0.0, tie_word_embeddings=False, use_mtp=False, num_mtp_modules=0,
        mtp_transformer_layers=0, torch_dtype='bfloat16', bos_token_id=first_added + 34,
        eos_token_id=first_added + 20,
        quantization_config=dict(
            quant_method='fp8', fmt='float8_e4m3fn', activation_scheme='dynamic',
            weight_block_size=[m.BLOCK, m.BLOCK],
            modules_to_not_convert=['gate', 'e_score_correction_bias', 'lm_head']))


def save(model, folder, first_added):
    os.makedirs(folder, exist_ok=True)
    save_file(tensors_of(model), os.path.join(folder, 'model.safetensors'), metadata={'format': 'pt'})
    generation = dict(bos_token_id=first_added + 19, eos_token_id=first_added + 20, do_sample=False)
    for name, value in (('config', released_config(model.g, first_added)), ('generation_config', generation)):
        with open(os.path.join(folder, name + '.json'), 'w') as f:
            json.dump(value, f, indent=2)
            f.write('\n')
