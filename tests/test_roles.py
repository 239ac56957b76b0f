"""Roles by the names that models have in transformers, torch and nanoGPT."""

import pytest

import weibull_kernels as wk
from weibull_kernels.roles import roles_of

NAMES = {
    "qkv": [
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.11.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.0.self_attn.q_b_proj.weight",
        "h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_attn.weight",
        "model.transformer.blocks.0.att_proj.weight",
        "layers.0.self_attn.in_proj_weight",
        "layers.0.attention.wq.weight",
        "qkv.weight",
        "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.layers.0.self_attention.linear_qkv.weight",
        "layers.0.attn.wkv_b.weight",
        "transformer.h.0.crossattention.q_attn.weight",
        "transformer.h.0.attn.attn.weight",
    ],
    "attention_output": [
        "gpt_neox.layers.0.attention.dense.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "h.0.attn.c_proj.weight",
        "transformer.h.0.attn.c_proj.weight",
        "model.transformer.blocks.0.attn_out.weight",
        "layers.0.self_attn.out_proj.weight",
        "layers.0.attention.wo.weight",
        "transformer.blocks.0.norm_attn_norm.attn.out_proj.weight",
        "encoder.block.0.layer.0.SelfAttention.o.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "rwkv.blocks.0.attention.output.weight",
        "decoder.layers.0.self_attention.linear_proj.weight",
    ],
    "ffn": [
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.experts.3.gate_proj.weight",
        "model.layers.0.block_sparse_moe.experts.7.w2.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
        "model.transformer.blocks.0.ff_out.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.0.linear1.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "rwkv.blocks.0.feed_forward.key.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "t_embedder.mlp.0.weight",
    ],
    "embedding": [
        "gpt_neox.embed_in.weight",
        "model.embed_tokens.weight",
        "wte.weight",
        "transformer.wpe.weight",
        "tok_embeddings.weight",
        "shared.weight",
        "bert.embeddings.word_embeddings.weight",
        "pos_embed",
    ],
    "head": [
        "embed_out.weight",
        "lm_head.weight",
        "score.weight",
        "model.transformer.ff_out.weight",
        "output.weight",
        "lm_head.decoder.weight",
        "classifier.out_proj.weight",
        "model.output_layer.weight",
    ],
    "norm": [
        "gpt_neox.layers.0.input_layernorm.weight",
        "gpt_neox.layers.0.post_attention_layernorm.bias",
        "gpt_neox.final_layer_norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.norm.weight",
        "h.0.ln_1.weight",
        "transformer.ln_f.bias",
        "layers.0.norm1.weight",
        "bert.embeddings.LayerNorm.weight",
        "transformer.word_embeddings_layernorm.weight",
    ],
    "bias": [
        "gpt_neox.layers.0.attention.query_key_value.bias",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.bias",
        "model.layers.0.self_attn.q_proj.bias",
        "h.0.attn.c_attn.bias",
        "h.0.mlp.c_proj.bias",
        "layers.0.self_attn.in_proj_bias",
    ],
    "other": [
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "layers.0.ffn.gate.weight",
        "model.layers.0.feed_forward.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "lm_head.dense.weight",
        "blocks.0.norm1.linear.weight",
        "time_embed.linear_1.weight",
        "conv1.weight",
        "0.1",
        "weight",
        "kernel.weight",
        "overhead.weight",
        "lnet.weight",
        "vq.weight",
    ],
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names])
def test_role_of(role, name):
    assert wk.role_of(name) == role


def test_every_role_has_names():
    assert set(NAMES) == set(wk.ROLES)
    assert set(wk.TRANSMISSION) == {"attention_output", "ffn"}


def test_overrides_come_first_and_in_their_order():
    overrides = {"*.adapter.*": "adapter", "*.o_proj.*": "mine", "*.weight": "never for the others"}
    names = ["a.adapter.o_proj.weight", "a.o_proj.weight", "a.o_proj.bias"]
    assert roles_of(names, overrides) == ("adapter", "mine", "mine")
    assert roles_of(names) == ("attention_output", "attention_output", "bias")
    assert wk.role_of("A.ADAPTER.bias", overrides) == "bias"
