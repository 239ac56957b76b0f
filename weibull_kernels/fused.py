"""Parameters that hold several matrices: which rows or columns are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def whole(name: str) -> str:
    """The name of the parameter that a part such as w[q] is of; any other name as it is."""
    return name.partition("[")[0]


@dataclass(frozen=True)
class Fused:
    """What a parameter fuses: along `dim` it is heads × (the parts one after the other).

        rows of part p of head h:  h·Σsizes + Σ sizes before p, then sizes[p] of them

    GPT-NeoX keeps query, key and value of each head together, `Fused(("q", "k", "v"), heads=8)`; GPT-2
    keeps its Conv1D transposed, `Fused(("q", "k", "v"), dim=1)`; grouped queries are of unequal sizes,
    `Fused(("q", "k", "v"), sizes=(4096, 1024, 1024))`; a LLaMA may fuse `Fused(("gate", "up"))`.

    Attributes:
        parts: a name for each part; the matrix of part q of `w` is called `w[q]`.
        sizes: rows (or columns) of each part in one head; None for equal ones.
        heads: how often the parts repeat along `dim`; 1 where each part is in one piece.
        dim: 0 or 1, the dimension along which they are fused.

    Raises:
        ValueError: no parts, two of one name, as many sizes as parts there are not, or a number that
            is not positive.
    """

    parts: Sequence[str] = ("q", "k", "v")
    sizes: Sequence[int] | None = None
    heads: int = 1
    dim: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.parts, str) or not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts must be names, each once, such as ('q', 'k', 'v'), got {self.parts!r}")
        if self.sizes is not None and (
            len(self.sizes) != len(self.parts) or not all(size > 0 for size in self.sizes)
        ):
            raise ValueError(
                f"sizes must be a positive number for each of {', '.join(self.parts)}, got {self.sizes!r}"
            )
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads!r}")
        if self.dim not in (0, 1):
            raise ValueError(f"dim must be 0 or 1, got {self.dim!r}")

    def split(self, name: str, matrix: Tensor) -> list[tuple[str, Tensor]]:
        """The parts of a matrix by name, as views.

        Args:
            name: of the parameter.
            matrix: [m, n], of any dtype.

        Returns:
            A pair for each part: along dim 0 rows [heads, size, n], along dim 1 columns
            [m, heads, size]; two dimensions where `heads` is 1.

        Raises:
            ValueError: the matrix does not divide so; all numbers are named.

        >>> parts = Fused(("q", "kv"), sizes=(1, 2), heads=2).split("w", torch.arange(6.0)[:, None])
        >>> [(name, part.flatten().tolist()) for name, part in parts]
        [('w[q]', [0.0, 3.0]), ('w[kv]', [1.0, 2.0, 4.0, 5.0])]
        """
        length = matrix.shape[self.dim]
        sizes = self.sizes
        if sizes is None:
            each, rest = divmod(length, self.heads * len(self.parts))
            if rest or not each:
                raise ValueError(
                    f"'{name}' has {length} along dim {self.dim}, which does not divide into {self.heads} "
                    f"heads × {len(self.parts)} parts ({', '.join(self.parts)}); correct heads or dim, or "
                    "give sizes"
                )
            sizes = [each] * len(self.parts)
        elif self.heads * sum(sizes) != length:
            raise ValueError(
                f"'{name}' has {length} along dim {self.dim}, but {self.heads} heads × "
                f"({' + '.join(map(str, sizes))}) is {self.heads * sum(sizes)}; correct sizes, heads or dim"
            )
        if self.heads > 1:
            shape = list(matrix.shape)
            shape[self.dim : self.dim + 1] = [self.heads, length // self.heads]
            matrix = matrix.view(shape)
        pieces = torch.split(matrix, list(sizes), dim=self.dim + (self.heads > 1))
        return [(f"{name}[{part}]", piece) for part, piece in zip(self.parts, pieces, strict=True)]
