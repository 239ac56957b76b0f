"""Top eigenpairs of many normal matrices AᵀA at once, each known by its products with a few vectors alone.

A block Krylov space with Rayleigh–Ritz in it and thick restarts. The small algebra is batched over the
matrices of one width, so that its cost does not grow with their number as calls do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 4
"""Vectors that a product takes at a time: a block is a multiple of it."""

_CAPACITY = 6
_KEPT = 3
"""Blocks of a basis before it is restarted, and after. Twice as many would save a tenth of the passes; but
LAPACK takes eigenproblems beyond 25 in another way, which wakes threads, and on a busy machine they take
longer to come than a pass."""

_SLICE = 256
"""Columns that are restarted at a time, so few that no library wakes threads for them."""


@dataclass(frozen=True)
class Found:
    """Of G matrices: σ² and ‖AᵀA·v − σ²·v‖ [G, count] by falling σ², and vectors [G, b, n] to go on from."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor


class KrylovSpaces:
    """Block Krylov spaces of G matrices B = AᵀA of one width n, in float64 on one device.

    The rows of Q are an orthonormal basis, T = Q·B·Qᵀ, and all that B·Q has beside Q is W, which is that of
    the last block: B·Q = T·Q + (0, …, 0, W). A direction that is not there (the space is exhausted) is a row
    of zeros, whose Ritz value 0 does no harm: B has no negative eigenvalues.
    """

    def __init__(self, start: Tensor, passes: int, noise: Tensor) -> None:
        """From `start` [G, b, n], for `passes` products; `noise` [G] is the relative error of one."""
        groups, self.width, n = start.shape
        rows = self.rows(self.width, passes)
        self.basis = start.new_zeros(groups, rows, n)
        self.projected = start.new_zeros(groups, rows, rows)
        self.noise = noise
        self.size = 0
        self.is_current = False  # the Ritz pairs
        self.scale = start.new_zeros(groups)  # of B, by the products so far
        self.block = orthonormal(start, self.scale)

    @staticmethod
    def rows(width: int, passes: int) -> int:
        """Vectors of a basis at most."""
        return width * min(passes, _CAPACITY)

    def take(self, product: Tensor, *, last: bool) -> None:
        """Takes in B·V [G, b, n] of the rows V of `block`; makes the next block unless it is the `last`."""
        if self.size + self.width > self.basis.shape[1]:
            self._restart()
        self.is_current = False
        self.scale = torch.maximum(self.scale, torch.linalg.vector_norm(product, dim=(1, 2)))
        begin, self.size = self.size, self.size + self.width
        self.basis[:, begin : self.size] = self.block
        basis = self.basis[:, : self.size]
        overlaps = dot(basis, product.mT)  # [G, d, b]
        self.rest = product - dot(overlaps.mT, basis)
        self.projected[:, : self.size, begin : self.size] = overlaps
        self.projected[:, begin : self.size, : self.size] = overlaps.mT
        own = overlaps[:, begin:]  # as symmetric as rounding lets it be
        self.projected[:, begin : self.size, begin : self.size] = (own + own.mT) / 2
        if not last:
            # Twice: what is left of a product that lies almost in the space is mostly rounding.
            block = orthonormal(self.rest, self.noise * self.scale)
            rounding = dot(dot(block, basis.mT), basis)
            self.block = orthonormal(block - rounding, 0.1 + torch.zeros_like(self.scale))

    def ritz(self) -> None:
        """Works out the Ritz pairs of the basis as it stands."""
        if self.is_current:
            return
        self.is_current = True
        values, vectors = eigh(self.projected[:, : self.size, : self.size])
        self.values = values.flip(-1).clamp(min=0)  # [G, d]
        self.coordinates = vectors.flip(-1).mT  # [G, d, d], a row each
        ends = self.coordinates[:, : self.width, -self.width :]
        # ⟨rᵢ, rⱼ⟩ of the residuals rᵢ = B·xᵢ − θᵢ·xᵢ, which are combinations of W.
        self.crossed = dot(dot(ends, dot(self.rest, self.rest.mT)), ends.mT)
        self.residuals = self.crossed.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    def converged(self, count: int, tolerance: float) -> Tensor:
        """Which of the values are within `tolerance` of an eigenvalue, bool [G, count], after `ritz`."""
        return within(self.values[:, :count], self.residuals[:, :count], tolerance, self.noise)

    def found(self, rows: Tensor, count: int) -> Found:
        """The results of some of the matrices, after `ritz`."""
        theta, crossed = self.values[rows, : self.width], self.crossed[rows]
        values, residuals, inverse = _moved_on(theta, crossed, self.noise[rows])
        coordinates = self.coordinates[rows, : self.width]
        # A whole power step, B·xᵢ/θᵢ = xᵢ + rᵢ/θᵢ.
        step = dot(inverse[:, :, None] * coordinates[:, :, -self.width :], self.rest[rows])
        vectors = step + dot(coordinates, self.basis[rows, : self.size])
        return Found(values[:, :count], residuals[:, :count], vectors)

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the matrices alone."""
        for name in ("basis", "projected", "noise", "scale", "block", "rest", "values", "coordinates"):
            setattr(self, name, getattr(self, name)[rows])

    def _restart(self) -> None:
        """Leaves the top Ritz vectors alone: the recurrence holds for them as for the whole basis."""
        self.ritz()
        kept = _KEPT * self.width
        for some in torch.split(self.basis[:, : self.size], _SLICE, dim=2):
            some[:, :kept] = dot(self.coordinates[:, :kept], some)
        self.projected.zero_()
        self.projected[:, :kept, :kept] = torch.diag_embed(self.values[:, :kept])
        self.size = kept


def one_step(vectors: Tensor, product: Tensor, noise: Tensor, count: int) -> Found:
    """The results from one product B·V alone, of vectors V [G, b, n] that are near the top ones.

    Those of a `KrylovSpaces` after one product, worked out in the inner products of V and B·V, so that the
    long vectors are touched twice: for these, and for the vectors to go on from.
    """
    width = vectors.shape[1]
    both = joined((vectors, product), dim=1)
    inner = dot(both, both.mT)
    own, projected, squares = inner[:, :width, :width], inner[:, :width, width:], inner[:, width:, width:]
    sizes, axes = eigh(own)
    kept = sizes > 1e-14 * sizes[:, -1:]
    basis = (axes * torch.where(kept, sizes, torch.inf).rsqrt()[:, None, :]).mT
    theta, axes = eigh(dot(dot(basis, (projected + projected.mT) / 2), basis.mT))
    theta, coordinates = theta.flip(-1).clamp(min=0), dot(axes.flip(-1).mT, basis)
    # ⟨Bxᵢ, Bxⱼ⟩ − θᵢθⱼδᵢⱼ: the difference keeps half of the digits, which is enough for a residual.
    crossed = dot(dot(coordinates, squares), coordinates.mT) - torch.diag_embed(theta.square())
    values, residuals, inverse = _moved_on(theta, crossed, noise)
    # xᵢ + rᵢ/θᵢ is Bxᵢ/θᵢ, and xᵢ where there is nothing to divide by.
    weights = torch.cat(((inverse == 0)[:, :, None] * coordinates, inverse[:, :, None] * coordinates), dim=2)
    return Found(values[:, :count], residuals[:, :count], dot(weights, both))


def _moved_on(theta: Tensor, crossed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """σ², ‖B·xᵢ − σᵢ²·xᵢ‖ and 1/θᵢ [G, b] from Ritz values θ and the inner products of residuals [G, b, b].

    The σ² are the Ritz values of A·Aᵀ on the left vectors A·xᵢ, which are half a power step ahead of the
    xᵢ. What is lost in the noise of the top one is not divided by: its 1/θ is 0.
    """
    inverse = torch.where(theta > noise[:, None] * theta[:, :1], theta, torch.inf).reciprocal()
    root = inverse.sqrt()
    left = torch.diag_embed(theta) + root[:, :, None] * crossed * root[:, None, :]
    values = torch.linalg.eigvalsh(left).flip(-1).clamp(min=0)
    squares = crossed.diagonal(dim1=1, dim2=2).clamp(min=0)
    return values, (squares + (values - theta).square()).sqrt(), inverse


def within(values: Tensor, residuals: Tensor, tolerance: float, noise: Tensor) -> Tensor:
    """Which of the σ² [G, count] are known: σ to `tolerance`, or as well as products with errors can tell.

    There is an eigenvalue of B within ‖B·v − σ²·v‖ of σ², hence a σ within half of that over σ².
    """
    return residuals <= torch.maximum(2 * tolerance * values, noise[:, None] * values[:, :1])


def orthonormal(rows: Tensor, floor: Tensor) -> Tensor:
    """An orthonormal basis [G, b, n] of the span of rows [G, b, n]; zeros for what is below `floor` [G]."""
    for last in (False, True):
        sizes, axes = eigh(dot(rows, rows.mT))
        kept = sizes > torch.maximum((0.1 if last else 1e-14) * sizes[:, -1], floor.square())[:, None]
        scale = torch.where(kept & (sizes > 0), sizes, torch.inf).rsqrt()
        rows = dot((axes * scale[:, None, :]).mT, rows)
        floor = torch.zeros_like(floor)
    return rows


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The products a @ b of float64 stacks [G, …]; on a CPU without torch's threads.

    To wake them takes longer than products as small as these, and on a busy machine a hundred times so.
    """
    if a.device.type == "cpu":
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    return a @ b


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`; on a CPU without threads, for the same reason."""
    if parts[0].device.type == "cpu":
        return torch.from_numpy(np.concatenate([part.numpy() for part in parts], axis=dim))
    return torch.cat(list(parts), dim=dim)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, likewise."""
    return joined([part[None] for part in parts], dim=0)


def lengths(vectors: Tensor) -> Tensor:
    """The norms [G, b] of vectors [G, b, n], likewise."""
    if vectors.device.type == "cpu":
        return torch.from_numpy(np.sqrt(np.einsum("gbn,gbn->gb", vectors.numpy(), vectors.numpy())))
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=2)
    return norms


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of float64 [G, d, d]; on a CPU without threads, for the same reason."""
    if matrices.device.type == "cpu":
        values, vectors = np.linalg.eigh(matrices.numpy())
        return torch.from_numpy(values), torch.from_numpy(vectors)
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors


@functools.lru_cache(maxsize=64)
def starting_block(width: int, n: int, device: torch.device) -> Tensor:
    """The same vectors [width, n] for every matrix of a width, whatever is random elsewhere. Read only."""
    generator = torch.Generator().manual_seed(n)
    return torch.randn(width, n, dtype=torch.float64, generator=generator, device="cpu").to(device)
