"""Named tensors, however they are handed over, and their names without what wrappers put into them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

Named = torch.nn.Module | Iterable[tuple[str, Any]] | Mapping[str, Any]
"""A model, pairs of name and tensor, or a mapping; a shape may stand for a tensor where none is needed."""

# By torch.compile, FSDP, activation checkpointing and DeepSpeed.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")


def unwrapped(names: Iterable[str]) -> list[str]:
    """The names that the parameters of a model have before it is compiled, sharded or replicated.

    >>> unwrapped(["_orig_mod.model.norm.weight", "_orig_mod.layers.0._fsdp_wrapped_module.q_proj.weight"])
    ['model.norm.weight', 'layers.0.q_proj.weight']
    """
    plain = []
    for name in names:
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        plain.append(name)
    # DataParallel's prefix; where only some names have it, it is a module of the model's own.
    if plain and all(name.startswith("module.") for name in plain):
        return [name.removeprefix("module.") for name in plain]
    return plain


def pairs(named: Named) -> list[tuple[str, Any]]:
    """Names without what wrappers put into them, and what each stands for; a tied one by each name.

    Raises:
        TypeError: `named` is none of the kinds of `Named`.
    """
    if isinstance(named, torch.nn.Module):
        found = list(named.named_parameters(remove_duplicate=False))
    elif isinstance(named, Mapping):
        found = list(named.items())
    elif isinstance(named, Iterable) and not isinstance(named, (torch.Tensor, str)):
        found = list(named)
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in found):
            raise TypeError(
                "expected pairs (name, tensor), such as model.named_parameters(); names are needed to "
                "tell what a parameter is"
            )
    else:
        raise TypeError(
            "expected a model, pairs (name, tensor) or a mapping from name to tensor or shape, got "
            f"{type(named).__name__}"
            + ("; load a file first" if isinstance(named, (str, os.PathLike)) else "")
        )
    return list(zip(unwrapped(name for name, _ in found), (item for _, item in found), strict=True))
