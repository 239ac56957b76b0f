"""The largest singular values of every matrix of a model, as cheap as a look at it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .columns import Columns, require_pandas
from .dispatch import find_kernel, frames_to_the_caller
from .fused import Fused
from .krylov import BLOCK, Found, KrylovSpaces, lengths, one_step, stacked, starting_block, within
from .matrices import matrices_of, shape_of
from .names import Named
from .roles import roles_of

if TYPE_CHECKING:
    import pandas

_PASSES = 500
"""Of a cold call before it gives up; of matrices met so far none took more than some sixty."""

_EXTRA = 2
"""Vectors of a block beside those asked for, at least."""

_NOISE = {torch.float64: 1e-13}
_FLOAT_NOISE = 2e-6
"""Relative errors of a product AᵀA·v in float64 and in float32, generously."""

_BASES = 1 << 28
"""Bytes that the bases of a cold call take at a time; matrices beyond them wait."""

_ALONE = 1 << 15
"""Entries of a tensor from which on torch wakes its threads on a CPU."""

_FRESH = 0.1
"""Of the length of a tracked block's last vector, what is new in it at every call."""

_SURE = 3
"""Passes before values count as found: with fewer, a lower one of a cluster may be taken for the top."""

_EXPONENTS = 1000
"""Powers of two that numbers are scaled by at most, which float64 can hold."""

_TOO_SMALL = 2.0**-80
"""Products of float32 numbers below this have lost digits, or all of them."""


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
        return roles_of((name.partition("[")[0] for name in self.names), self.role_overrides)

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
        from .report import columns_table

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
        backend: "reference", "cpu", "triton", or None to let the device choose.

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
    solved = _Solution(list(matrices), list(matrices.values()), count)
    width = BLOCK * -(-(count + _EXTRA) // BLOCK)
    for device in dict.fromkeys(matrix.device for matrix in solved.matrices):
        kernel = find_kernel("normal_product", backend, device)
        for portion in _portions(solved.matrices, device, width, passes):
            batches = [_Batch(solved, rows) for rows in portion]
            blocks = [batch.starting(width, start) for batch in batches]
            if passes == 1:
                _one_pass(batches, blocks, solved, kernel)
            else:
                _many_passes(batches, blocks, solved, kernel, tolerance, passes)
    result = solved.result(shapes, tolerance)
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


class _Solution:
    """What is known of each matrix, filled in as it is found."""

    def __init__(self, names: list[str], matrices: list[Tensor], count: int) -> None:
        self.names, self.matrices, self.count = names, matrices, count
        devices = [matrix.device for matrix in matrices]
        self.home = next((device for device in devices if device.type != "cpu"), devices[0])
        self.parts: list[tuple[list[int], Found, Tensor, Tensor, int]] = []

    def add(self, rows: list[int], found: Found, scale: Tensor, noise: Tensor, passes: int) -> None:
        """Of the matrices at `rows`, which were multiplied by `scale` [G]."""
        self.parts.append((rows, found, scale, noise, passes))

    def result(self, shapes: tuple[tuple[int, int], ...], tolerance: float) -> TopSingularValues:
        """All, in the order of the matrices."""
        order = [row for rows, *_ in self.parts for row in rows]
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self.home)

        def column(parts: Iterator[Tensor]) -> Tensor:
            return torch.cat([part.to(self.home) for part in parts])[back]

        values = column(found.values for _, found, *_ in self.parts)
        residuals = column(found.residuals for _, found, *_ in self.parts)
        noise = column(part[3] for part in self.parts)
        scale = column(part[2] for part in self.parts)
        passes = column(torch.full((len(part[0]),), part[4]) for part in self.parts)
        vectors: dict[int, Tensor] = {}
        for rows, found, *_ in self.parts:
            vectors |= zip(rows, found.vectors.unbind(), strict=True)
        return TopSingularValues(
            names=tuple(self.names),
            shapes=shapes,
            values=values.sqrt() / scale[:, None],
            residual=torch.where(values > 0, residuals / values, 0.0),
            converged=within(values, residuals, tolerance, noise).all(dim=1),
            passes=passes,
            vectors=tuple(vectors[row] for row in range(len(order))),
        )


def _portions(
    matrices: Sequence[Tensor], device: torch.device, width: int, passes: int
) -> Iterator[list[list[int]]]:
    """The matrices of a device in batches of one width n, as many at a time as their bases may be large."""
    by_width: dict[int, list[int]] = {}
    for row, matrix in enumerate(matrices):
        if matrix.device == device:
            by_width.setdefault(matrix.shape[-1], []).append(row)
    portion: list[list[int]] = []
    held = 0
    for n, rows in by_width.items():
        each = 8 * n * KrylovSpaces.rows(min(width, n), passes)
        while rows:
            fitting = max((_BASES - held) // each, 0 if portion else 1)
            if device.type == "cpu" and passes > 1:
                # The algebra of few matrices at a time stays with this thread; see krylov.dot.
                fitting = min(fitting, max(_ALONE // (2 * width * n), 1))
            if not fitting:
                yield portion
                portion, held = [], 0
                continue
            portion.append(rows[:fitting])
            held += each * len(portion[-1])
            rows = rows[fitting:]
    if portion:
        yield portion


Kernel = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class _Batch:
    """Matrices of one width that are worked on together; those of extreme numbers are scaled."""

    def __init__(self, solved: _Solution, rows: list[int]) -> None:
        self.rows, self.matrices = rows, [solved.matrices[row] for row in rows]
        self.names = [solved.names[row] for row in rows]
        self.device, self.columns = self.matrices[0].device, self.matrices[0].shape[-1]
        noise = [_NOISE.get(matrix.dtype, _FLOAT_NOISE) for matrix in self.matrices]
        self.noise = torch.tensor(noise, dtype=torch.float64, device=self.device)
        self.scale = torch.ones_like(self.noise)

    def starting(self, width: int, start: TopSingularValues | None) -> Tensor:
        """The vectors to begin with, [G, b, n]: of an earlier result, and new ones for what it lacks."""
        width = min(width, self.columns)
        if start is None:
            fresh = starting_block(width, self.columns, self.device)
            return fresh.expand(len(self.rows), -1, -1)
        block = stacked([start.vectors[row].to(self.device)[:width] for row in self.rows])
        fresh = starting_block(width, self.columns, self.device).expand(len(self.rows), -1, -1)
        lost = lengths(block) < 0.5
        if block.shape[1] < width or bool(lost.any()):
            block = torch.cat((block, fresh[:, block.shape[1] :]), dim=1)
            lost = torch.nn.functional.pad(lost, (0, width - lost.shape[1]))
            block = torch.where(lost[:, :, None], fresh, block)
        if width < self.columns:
            # Passes drive out of the block what a matrix does not have. Something of every direction comes
            # back with the last vector, which is none of those asked for: one that grows is then found.
            block[:, -1] += _FRESH / self.columns**0.5 * fresh[:, -1]
        return block

    def product(self, products: list[Tensor], vectors: Tensor, kernel: Kernel, *, first: bool) -> Tensor:
        """The products with the matrices, [G, b, n].

        The `first` may leave the range of float32; the matrix is then one of float64 from there on, scaled.

        Raises:
            ValueError: it is the entries of a matrix that are not finite.
        """
        product = stacked(products)
        if not first:
            return product
        size = lengths(product).amax(dim=1)
        # Not below: a NaN compares false.
        for i in (~((size > _TOO_SMALL) & (size < torch.inf))).nonzero().flatten().tolist():
            entry = self.matrices[i].abs().amax().double()
            if not entry.isfinite():
                raise ValueError(
                    f"'{self.names[i]}' has entries that are not finite, so it has no singular values; "
                    "find them with wk.weight_statistics, or leave it out with pattern"
                )
            if entry > 0:
                self.scale[i] = torch.exp2(-entry.log2().round().clamp(-_EXPONENTS, _EXPONENTS))
                self.matrices[i] = self.matrices[i].double() * self.scale[i]
                product[i] = kernel([self.matrices[i]], [vectors[i]])[0]
        return product

    def settle(self, solved: _Solution, done: Tensor, passes: int, space: KrylovSpaces) -> None:
        """Hands over what is found of those that are `done`, bool [G], and goes on with the others."""
        rows = done.nonzero().flatten()
        if not len(rows):
            return
        chosen = rows.tolist()
        found = space.found(rows, solved.count)
        solved.add([self.rows[i] for i in chosen], found, self.scale[rows], self.noise[rows], passes)
        left = (~done).nonzero().flatten()
        for name in ("rows", "matrices", "names"):
            setattr(self, name, [getattr(self, name)[i] for i in left.tolist()])
        self.scale, self.noise = self.scale[left], self.noise[left]
        space.keep(left)


def _multiplied(batches: list[_Batch], blocks: list[Tensor], kernel: Kernel, *, first: bool) -> list[Tensor]:
    """The products of all batches with their blocks, in one read of the matrices."""
    products = iter(
        kernel(
            [matrix for batch in batches for matrix in batch.matrices],
            [vectors for block in blocks for vectors in block.unbind()],
        )
    )
    return [
        batch.product([next(products) for _ in batch.rows], block, kernel, first=first)
        for batch, block in zip(batches, blocks, strict=True)
    ]


def _one_pass(batches: list[_Batch], blocks: list[Tensor], solved: _Solution, kernel: Kernel) -> None:
    """What a single pass tells."""
    products = _multiplied(batches, blocks, kernel, first=True)
    for batch, block, product in zip(batches, blocks, products, strict=True):
        found = one_step(block, product, batch.noise, solved.count)
        solved.add(batch.rows, found, batch.scale, batch.noise, 1)


def _many_passes(
    batches: list[_Batch],
    blocks: list[Tensor],
    solved: _Solution,
    kernel: Kernel,
    tolerance: float,
    passes: int,
) -> None:
    """Pass after pass over the matrices that are not yet within the tolerance."""
    spaces = [KrylovSpaces(block, passes, batch.noise) for batch, block in zip(batches, blocks, strict=True)]
    for number in range(1, passes + 1):
        last = number == passes
        products = _multiplied(batches, [space.block for space in spaces], kernel, first=number == 1)
        for batch, space, product in zip(batches, spaces, products, strict=True):
            space.take(product, last=last)
            # The small eigenproblems of every pass would cost as much as the pass.
            if last or number == _SURE or (number > _SURE and number % 2 == 0):
                space.ritz()
                done = space.converged(solved.count, tolerance).all(dim=1)
                batch.settle(solved, done | last, number, space)
        spaces = [space for batch, space in zip(batches, spaces, strict=True) if batch.rows]
        batches = [batch for batch in batches if batch.rows]
        if not batches:
            return
