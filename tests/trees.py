"""Modules with the names and shapes of three families of models, and their param groups."""

import warnings

import torch
from neox import GPTNeoXForCausalLM
from torch import nn

from weibull_kernels import scaling


def tree(shapes):
    """Modules whose parameters have the given names and shapes."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(0.02 * torch.randn(shape)))
    return root


def gpt2(width=16, layers=2, vocabulary=40):
    def layer(i):
        h = f"transformer.h.{i}."
        return {
            **{f"{h}ln_{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")},
            f"{h}attn.c_attn.weight": (width, 3 * width),
            f"{h}attn.c_attn.bias": (3 * width,),
            f"{h}attn.c_proj.weight": (width, width),
            f"{h}attn.c_proj.bias": (width,),
            f"{h}mlp.c_fc.weight": (width, 4 * width),
            f"{h}mlp.c_fc.bias": (4 * width,),
            f"{h}mlp.c_proj.weight": (4 * width, width),
            f"{h}mlp.c_proj.bias": (width,),
        }

    model = tree(
        {
            "transformer.wte.weight": (vocabulary, width),
            "transformer.wpe.weight": (32, width),
            **{name: shape for i in range(layers) for name, shape in layer(i).items()},
            **{f"transformer.ln_f.{leaf}": (width,) for leaf in ("weight", "bias")},
        }
    )
    model.lm_head = nn.Module()
    model.lm_head.weight = model.transformer.wte.weight
    return model


def llama(width=16, layers=2, vocabulary=40):
    inner = 8 * width // 3

    def layer(i):
        h = f"model.layers.{i}."
        return {
            **{f"{h}self_attn.{p}_proj.weight": (width, width) for p in "qkvo"},
            **{f"{h}mlp.{p}_proj.weight": (inner, width) for p in ("gate", "up")},
            f"{h}mlp.down_proj.weight": (width, inner),
            f"{h}input_layernorm.weight": (width,),
            f"{h}post_attention_layernorm.weight": (width,),
        }

    return tree(
        {
            "model.embed_tokens.weight": (vocabulary, width),
            **{name: shape for i in range(layers) for name, shape in layer(i).items()},
            "model.norm.weight": (width,),
            "lm_head.weight": (vocabulary, width),
        }
    )


def neox(width=16):
    return GPTNeoXForCausalLM(40, width, 2, 2)


TREES = {"gpt_neox": neox, "llama": llama, "gpt2": gpt2}


def groups_of(model, m=4.0, **choices):
    settings = {"lr": 0.01, "weight_decay": 0.2} | choices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tied and fused ones, tested below
        return scaling.param_groups(model, width=64 * m, base_width=64, **settings)
