"""Passes over many matrices at once: which are worked on together, and what is found of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .krylov import Found, KrylovSpaces, lengths, one_step, stacked, starting_block, within

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
class Solved:
    """Columns [P, …] of `TopSingularValues`, for P matrices in their order."""

    values: Tensor
    residual: Tensor
    converged: Tensor
    passes: Tensor
    vectors: tuple[Tensor, ...]


class Solution:
    """What is known of each matrix, filled in as it is found."""

    def __init__(self, names: list[str], matrices: list[Tensor], count: int) -> None:
        self.names, self.matrices, self.count = names, matrices, count
        devices = [matrix.device for matrix in matrices]
        self.home = next((device for device in devices if device.type != "cpu"), devices[0])
        self.parts: list[tuple[list[int], Found, Tensor, Tensor, int]] = []

    def add(self, rows: list[int], found: Found, scale: Tensor, noise: Tensor, passes: int) -> None:
        """Of the matrices at `rows`, which were multiplied by `scale` [G]."""
        self.parts.append((rows, found, scale, noise, passes))

    def result(self, tolerance: float) -> Solved:
        """Of all, in the order of the matrices."""
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
        return Solved(
            values=values.sqrt() / scale[:, None],
            residual=torch.where(values > 0, residuals / values, 0.0),
            converged=within(values, residuals, tolerance, noise).all(dim=1),
            passes=passes,
            vectors=tuple(vectors[row] for row in range(len(order))),
        )


def portions(
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


class Batch:
    """Matrices of one width that are worked on together; those of extreme numbers are scaled."""

    def __init__(self, solved: Solution, rows: list[int]) -> None:
        self.rows, self.matrices = rows, [solved.matrices[row] for row in rows]
        self.names = [solved.names[row] for row in rows]
        self.device, self.columns = self.matrices[0].device, self.matrices[0].shape[-1]
        noise = [_NOISE.get(matrix.dtype, _FLOAT_NOISE) for matrix in self.matrices]
        self.noise = torch.tensor(noise, dtype=torch.float64, device=self.device)
        self.scale = torch.ones_like(self.noise)

    def starting(self, width: int, start: Sequence[Tensor] | None) -> Tensor:
        """The vectors to begin with, [G, b, n]: of an earlier result, and new ones for what it lacks."""
        width = min(width, self.columns)
        if start is None:
            fresh = starting_block(width, self.columns, self.device)
            return fresh.expand(len(self.rows), -1, -1)
        block = stacked([start[row].to(self.device)[:width] for row in self.rows])
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

    def settle(self, solved: Solution, done: Tensor, passes: int, space: KrylovSpaces) -> None:
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


def _multiplied(batches: list[Batch], blocks: list[Tensor], kernel: Kernel, *, first: bool) -> list[Tensor]:
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


def one_pass(batches: list[Batch], blocks: list[Tensor], solved: Solution, kernel: Kernel) -> None:
    """What a single pass tells."""
    products = _multiplied(batches, blocks, kernel, first=True)
    for batch, block, product in zip(batches, blocks, products, strict=True):
        found = one_step(block, product, batch.noise, solved.count)
        solved.add(batch.rows, found, batch.scale, batch.noise, 1)


def many_passes(
    batches: list[Batch],
    blocks: list[Tensor],
    solved: Solution,
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
