"""All singular values of every matrix, and how far apart two spectra are in shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .columns import Columns, on_host, require_pandas
from .fused import Fused, whole
from .matrices import matrices_of
from .names import Named
from .roles import roles_of

if TYPE_CHECKING:
    import pandas

_SMALL = 1 << 14
"""Entries up to which matrices of one shape are taken together: a call costs more than they do."""

_TOGETHER = 256


@dataclass(frozen=True, eq=False)
class Spectra(Columns):
    """The singular values of P matrices.

    Attributes:
        names: of the matrices, [P].
        values: σ₁ ≥ σ₂ ≥ … of each, float64 [min(m, n)], on the matrix's device.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    role_overrides: Mapping[str, str] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each matrix, as by `wk.role_of`; a part of a fused parameter has that of the whole."""
        return roles_of(map(whole, self.names), self.role_overrides)

    @property
    def top(self) -> Tensor:
        """σ₁ of each, [P]: the spectral norm. This and what follows is on the host."""
        return torch.stack([values[0].cpu() for values in self.values])

    @property
    def norm_sq(self) -> Tensor:
        """Σσ² = ‖w‖² of each, [P]."""
        return torch.stack([values.square().sum().cpu() for values in self.values])

    @property
    def stable_rank(self) -> Tensor:
        """Σσ²/σ₁², [P], from 1 to min(m, n): how many directions carry the norm; 0 for a matrix of zeros."""
        return (self.norm_sq / self.top.square()).nan_to_num(0.0, posinf=0.0)

    def normalized(self) -> tuple[Tensor, ...]:
        """σ over its root mean square √(Σσ²/min(m, n)), of each: the shape that `shape_distance` compares."""
        return tuple(_normalized(values) for values in self.values)

    def to_dict(self) -> dict[str, Any]:
        """`name`, `role`, `top`, `norm_sq` and `stable_rank` [P], and `values`, a list of arrays."""
        labels = {"name": np.array(self.names), "role": np.array(self.roles)}
        numbers = {"top": self.top, "norm_sq": self.norm_sq, "stable_rank": self.stable_rank}
        return labels | on_host(numbers) | {"values": [values.cpu().numpy() for values in self.values]}

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row per singular value: `name`, `role`, its `index` from 1, `value`.

        Raises:
            ImportError: pandas is not installed.
        """
        counts = [len(values) for values in self.values]
        frame: pandas.DataFrame = require_pandas().DataFrame(
            {
                "name": np.repeat(self.names, counts),
                "role": np.repeat(self.roles, counts),
                "index": np.concatenate([np.arange(1, count + 1) for count in counts]),
                "value": np.concatenate([values.cpu().numpy() for values in self.values]),
            }
        )
        return frame


@torch.no_grad()
def spectrum(named: Named, *, split: Mapping[str, Fused] | None = None, pattern: str = "*") -> Spectra:
    """All singular values of every matrix of a model, in float64.

    One matrix at a time by `torch.linalg.svdvals`, small ones of one shape together. This takes time like
    m·n·min(m, n); for the largest few, or at every step, there is `wk.top_singular_values`.

    Args:
        named: a module, pairs (name, tensor), or a mapping; as for `wk.top_singular_values`.
        split: patterns to what the parameters of those names fuse, see `wk.Fused`.
        pattern: only parameters whose names match, as in `fnmatch`.

    Returns:
        `Spectra` in the order of `named`. Vectors have no row, convolutions are [out, everything else].

    Raises:
        TypeError, ValueError: as `wk.top_singular_values` does.

    >>> found = spectrum({"w": torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])})
    >>> [round(value, 12) for value in found.values[0].tolist()]
    [3.0, 2.0]
    """
    matrices = matrices_of(named, split, pattern)
    alike: dict[Any, list[str]] = {}
    for name, matrix in matrices.items():
        small = matrix.numel() <= _SMALL
        alike.setdefault((matrix.device, matrix.shape) if small else name, []).append(name)
    found: dict[str, Tensor] = {}
    for names in alike.values():
        for first in range(0, len(names), _TOGETHER):
            some = names[first : first + _TOGETHER]
            stacked = torch.stack([matrices[name].double().flatten(0, -2) for name in some])
            finite = stacked.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                raise ValueError(
                    f"'{some[finite.index(False)]}' has entries that are not finite, so it has no singular "
                    "values; find them with wk.weight_statistics, or leave it out with pattern"
                )
            found |= zip(some, torch.linalg.svdvals(stacked).unbind(), strict=True)
    return Spectra(tuple(matrices), tuple(found[name] for name in matrices))


def shape_distance(a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> float:
    """How far apart the shapes of two spectra are, whatever their scales and lengths.

        d² = ∫₀¹ (a(p) − b(p))² dp,   a(p) = the ⌈p·r⌉-th largest of r values, over their root mean square

    This is the 2-Wasserstein distance of the two sets of values, each divided by its root mean square: a
    metric on shapes, 0 for equal ones, at most √2. Matrices of one law and different sizes are near 0. The
    root mean square and not the top value sets the scale, because it belongs to the whole spectrum: one
    outlier would otherwise shrink all others, and the top of a random matrix depends on its size. A spectrum
    of zeros stays one, at distance 1 from every other.

    Args:
        a: singular values, [r], in any order; a tensor or an array.
        b: likewise, of its own length.

    Returns:
        d, from 0 to √2.

    Raises:
        ValueError: a spectrum is empty, has more than one dimension, or has values that are negative or not
            finite.

    >>> shape_distance([3.0, 3.0, 1.0, 1.0], [6.0, 2.0])
    0.0
    >>> round(shape_distance([1.0, 1.0], [1.0, 0.0]), 4)
    0.7654
    """
    shapes = [_shape(values) for values in (a, b)]
    # Both are constant between the multiples of 1/r of either: in whole numbers, so that equal ones meet.
    sizes = [len(shape) for shape in shapes]
    edges = np.union1d(np.arange(sizes[0] + 1) * sizes[1], np.arange(sizes[1] + 1) * sizes[0])
    left = edges[:-1]
    difference = shapes[0][left // sizes[1]] - shapes[1][left // sizes[0]]
    return float(np.sqrt(np.sum(np.diff(edges) / edges[-1] * difference**2)))


def _shape(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    """In falling order, over the root mean square."""
    # Not torch.as_tensor alone, for which a list of floats is of float32.
    found = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    found = found.detach().double().cpu()
    if found.ndim != 1 or not len(found) or not bool(((found >= 0) & found.isfinite()).all()):
        raise ValueError(
            f"a spectrum is one or more finite singular values [r], none negative, got shape "
            f"{tuple(found.shape)} from {found.min().item() if found.numel() else 'nothing'} to "
            f"{found.max().item() if found.numel() else 'nothing'}"
        )
    shape: NDArray[np.float64] = _normalized(found.sort(descending=True).values).numpy()
    return shape


def _normalized(values: Tensor) -> Tensor:
    # By the largest first: squares must not leave the range of float64.
    values = values / torch.where(values[:1] > 0, values.amax(), 1.0)
    return values / torch.where(values[:1] > 0, values.square().mean().sqrt(), 1.0)
