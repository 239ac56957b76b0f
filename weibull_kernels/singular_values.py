"""The largest singular values of every matrix of a model, as cheap as a look at it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .columns import Columns, require_pandas
from .dispatch import find_kernel, frames_to_the_caller
from .fused import Fused, whole
from .krylov import BLOCK
from .krylov_batches import Batch, Solution, many_passes, one_pass, portions
from .matrices import matrices_of, shape_of
from .names import Named
from .roles import roles_of
from .tables import columns_table

if TYPE_CHECKING:
    import pandas

_PASSES = 500
"""Of a cold call before it gives up; of matrices met so far none took more than some sixty."""

_EXTRA = 2
"""Vectors of a block beside those asked for, at least."""


@dataclass(frozen=True, eq=False)
class TopSingularValues(Columns):
    """The largest singular values of P matrices, and how well they are known.

    Attributes:
        names: of the matrices, [P].
        shapes: (m, n) of each.
        values: σ₁ ≥ σ₂ ≥ …, [P, count] float64.
        residual: ‖AᵀA·v − σ²·v‖/σ² of each, [P, count]; 0 for a matrix of zeros. *Some* singular value is
            within half of it, relatively, of σ, and much closer where the next one is far; that it is the top
            one no residual can tell.
        converged: bool [P]: every value is within the tolerance by that bound, or its residual is below what
            the arithmetic can tell (σ₁² times 2e-6; of float64 matrices 1e-13).
        passes: how often each matrix was read, int64 [P].
        vectors: what a later call goes on from: for each matrix float64 [b, n] with b ≥ count, the first
            rows near its top right singular vectors, not normalised.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    values: Tensor
    residual: Tensor
    converged: Tensor
    passes: Tensor
    vectors: tuple[Tensor, ...] = field(repr=False)
    role_overrides: Mapping[str, str] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each matrix, as by `wk.role_of`; a part of a fused parameter has that of the whole."""
        return roles_of(map(whole, self.names), self.role_overrides)

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row per matrix; the columns of values are `value_1`, `value_2`, ….

        Raises:
            ImportError: pandas is not installed.
        """
        columns = self.to_dict()
        flat: dict[str, Any] = {name: columns[name] for name in ("name", "role")}
        flat |= {"rows": [m for m, _ in self.shapes], "columns": [n for _, n in self.shapes]}
        for i in range(self.values.shape[1]):
            flat |= {
                f"value_{i + 1}": columns["values"][:, i],
                f"residual_{i + 1}": columns["residual"][:, i],
            }
        flat |= {name: columns[name] for name in ("converged", "passes")}
        frame: pandas.DataFrame = require_pandas().DataFrame(flat)
        return frame

    def __str__(self) -> str:
        return columns_table(self.to_dict())


@torch.no_grad()
def top_singular_values(
    named: Named,
    count: int = 1,
    *,
    start: TopSingularValues | None = None,
    tolerance: float = 1e-4,
    max_passes: int | None = None,
    split: Mapping[str, Fused] | None = None,
    pattern: str = "*",
    backend: str | None = None,
) -> TopSingularValues:
    """The largest singular values of every matrix of a model.

        θ = eigenvalues of V·AᵀA·Vᵀ over a space of vectors V,   σ = √θ,   residual = ‖AᵀA·v − σ²·v‖/σ²

    Rayleigh–Ritz in a block Krylov space (Golub and Underwood), all matrices at once. Each pass reads every
    matrix once and multiplies by A and by Aᵀ while it is at hand. Without `start` it goes on until the
    residuals say that the values are within `tolerance`. With the result of an earlier call, of weights a
    little older, one pass does: its vectors are moved on by a power step, and the values are those of the
    left vectors A·v. Tracked so through a training run the vectors keep up where weights change slowly;
    `residual` says how well, and `max_passes=4` follows faster ones. A direction that comes up from nothing
    is found some calls later, from the little of a new vector that each call mixes in.

    Weights, gradients and torch's random state are left as they are, and nothing here is random: it starts
    from the same vectors every time. On a CPU the products have the same bits whatever the number of threads;
    the small algebra around them is torch's, and rounds as it does. Vectors such as biases and norms have no
    row; a convolution is [out, everything else]. Matrices whose entries do not lie side by side in memory
    are copied, one at a time. The call waits for the device.

    Args:
        named: a module, for its parameters; pairs (name, tensor) such as `model.named_parameters()`; or a
            mapping from name to tensor. float32, float64, bfloat16, float16; float64 is multiplied in
            float64, everything else in float32 (σ below a thousandth of the top then loses its digits).
        count: how many values of each matrix.
        start: the last result, of matrices of the same names and shapes.
        tolerance: relative, of σ.
        max_passes: 1 with a `start` of as many values, 500 without; with `start` and more, it ends within the
            tolerance, after three at least.
        split: patterns (as in `fnmatch`) to what the parameters of those names fuse, see `wk.Fused`; the
            first that matches counts. The parts have rows of their own, called `name[part]`.
        pattern: only parameters whose names match.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

    Returns:
        `TopSingularValues` in the order of `named`, on the device of the tensors (the first accelerator if
        there are several).

    Raises:
        TypeError: a tensor, which is named, is of integers, complex, sparse or a wrapper.
        ValueError: no matrix is left; a matrix is empty, has entries that are not finite, or fewer than
            `count` singular values; names or shapes are not those of `start`; `split` does not fit.
        RuntimeError: the named backend cannot run here.

    Warns:
        RuntimeWarning: without `start`, matrices whose values are not within the tolerance at the end.

    >>> weights = {"a": torch.diag(torch.tensor([3.0, 1.0, 2.0])), "bias": torch.ones(3)}
    >>> sigma = top_singular_values(weights, count=2)
    >>> sigma.names, [round(value, 4) for value in sigma.values[0].tolist()]
    (('a',), [3.0, 2.0])
    >>> weights["a"] *= 1.01
    >>> round(top_singular_values(weights, start=sigma).values.item(), 4)
    3.03
    """
    _check_numbers(count, tolerance, max_passes)
    matrices = matrices_of(named, split, pattern)
    shapes = tuple(shape_of(matrix) for matrix in matrices.values())
    for name, shape in zip(matrices, shapes, strict=True):
        if min(shape) < count:
            raise ValueError(
                f"'{name}' of shape {shape} has {min(shape)} singular values, count={count} asks for more; "
                "choose fewer, or other matrices with pattern"
            )
    if start is not None:
        _require_same(start, tuple(matrices), shapes)
    if max_passes is not None:
        passes = max_passes
    else:
        passes = 1 if start is not None and start.values.shape[1] >= count else _PASSES
    solved = Solution(list(matrices), list(matrices.values()), count)
    width = BLOCK * -(-(count + _EXTRA) // BLOCK)
    for device in dict.fromkeys(matrix.device for matrix in solved.matrices):
        kernel = find_kernel("normal_product", backend, device)
        for portion in portions(solved.matrices, device, width, passes):
            batches = [Batch(solved, rows) for rows in portion]
            blocks = [batch.starting(width, None if start is None else start.vectors) for batch in batches]
            if passes == 1:
                one_pass(batches, blocks, solved, kernel)
            else:
                many_passes(batches, blocks, solved, kernel, tolerance, passes)
    result = TopSingularValues(tuple(matrices), shapes, **vars(solved.result(tolerance)))
    if start is None and not result.converged.all():
        _warn(result, tolerance)
    return result


def _check_numbers(count: int, tolerance: float, max_passes: int | None) -> None:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number, at least 1, got {count!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is relative and must be between 0 and 1, got {tolerance!r}")
    if max_passes is not None and max_passes < 1:
        raise ValueError(f"max_passes must be at least 1 or None, got {max_passes!r}")


def _require_same(
    start: TopSingularValues, names: tuple[str, ...], shapes: tuple[tuple[int, int], ...]
) -> None:
    if names != start.names:
        strange = next((name for name in names if name not in start.names), None) or next(
            (name for name in start.names if name not in names), None
        )
        where = "has another order" if strange is None else f"differs in '{strange}'"
        raise ValueError(f"start {where}; give the result of a call on the same matrices, or no start")
    for name, shape, before in zip(names, shapes, start.shapes, strict=True):
        if shape != before:
            raise ValueError(f"'{name}' has shape {shape}, in start it has {before}; leave start out once")


def _warn(result: TopSingularValues, tolerance: float) -> None:
    rows = (~result.converged).nonzero().flatten().tolist()
    told = ", ".join(f"{result.names[row]} ({result.residual[row].max().item():.1e})" for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    warnings.warn(
        f"top_singular_values: after {int(result.passes.max())} passes the residuals of {told}{more} are "
        f"above 2·tolerance = {2 * tolerance:g}; raise tolerance or max_passes, or go on with start=",
        RuntimeWarning,
        stacklevel=frames_to_the_caller(),
    )
