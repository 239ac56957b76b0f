"""The matrices of a model: which tensors have singular values, and how they are viewed."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from .fused import Fused
from .names import Named, pairs
from .roles import EXPERTS
from .tensors import require_plain


def matrices_of(
    named: Named, split: Mapping[str, Fused] | None = None, pattern: str = "*"
) -> dict[str, Tensor]:
    """The matrices by name, in their order: [m, n], or [heads, size, n] for rows in several pieces.

    Stacked experts [E, m, n] are E matrices, `name[0]` to `name[E-1]`; any other tensor of more than two
    dimensions is [out, everything else]. All are views where the strides let them be: rows may lie apart in
    memory, their entries not; and none requires a gradient.

    Raises:
        TypeError: `named` is none of these; a tensor has a dtype or layout that the kernels do not read.
        ValueError: nothing with two dimensions is left, a matrix is empty, two have one name, or a
            pattern of `split` matches nothing or does not fit.
    """
    tensors = {name: tensor for name, tensor in _tensors(named).items() if fnmatchcase(name, pattern)}
    if not tensors:
        raise ValueError(f"no tensor matches the name pattern {pattern!r}")
    wide = {name: tensor for name, tensor in tensors.items() if tensor.ndim >= 2}
    if not wide:
        raise ValueError(
            f"none of the {len(tensors)} tensors has two dimensions, so none has singular values; "
            f"they begin with {', '.join(list(tensors)[:3])}"
        )
    unused = dict.fromkeys(split or {})
    found: dict[str, Tensor] = {}
    for name, tensor in wide.items():
        require_plain(name, tensor)
        if not tensor.numel():
            raise ValueError(
                f"'{name}' has shape {tuple(tensor.shape)}: an empty matrix has no singular values; "
                "leave it out, or gather the shards first"
            )
        key = next((key for key in split or {} if fnmatchcase(name, key)), None)
        for one, matrix in _stacked(name, tensor.detach()):
            parts = {one: matrix} if split is None or key is None else _parts(one, matrix, split[key])
            if taken := found.keys() & parts.keys():
                raise ValueError(
                    f"'{name}' has a part called '{taken.pop()}', as another matrix is; rename one"
                )
            found |= parts
        if key is not None:
            unused.pop(key, None)
    if unused:
        raise ValueError(
            f"split: no matrix matches {next(iter(unused))!r}, or an earlier pattern took all it matches; "
            f"the {len(wide)} names begin with {', '.join(list(wide)[:3])}"
        )
    return found


def _stacked(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The matrices [m, n] that a tensor is."""
    if tensor.ndim == 3 and EXPERTS.search(name):
        return [(f"{name}[{expert}]", matrix) for expert, matrix in enumerate(tensor)]
    return [(name, tensor.flatten(1))]


def _parts(name: str, matrix: Tensor, fused: Fused) -> dict[str, Tensor]:
    # Columns in several pieces are no rows that a kernel could step through.
    return {part: piece.flatten(1) if fused.dim == 1 else piece for part, piece in fused.split(name, matrix)}


def shape_of(matrix: Tensor) -> tuple[int, int]:
    """Rows and columns, the pieces taken together."""
    return matrix.shape[:-1].numel(), matrix.shape[-1]


def _tensors(named: Named) -> dict[str, Tensor]:
    """Tensors by name; the parameters of a module once each, under the first of their names."""
    found: dict[str, Tensor] = {}
    once = isinstance(named, torch.nn.Module)
    seen = set()
    for name, tensor in pairs(named):
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise TypeError(f"expected a tensor under each name, got {type(tensor).__name__} under {name!r}")
        if name in found:
            raise ValueError(f"two tensors are called {name!r}; name them apart")
        if not once or id(tensor) not in seen:
            found[name] = tensor
        seen.add(id(tensor))
    return found
