"""Statistics of the weights themselves, from the same pass over memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .columns import Columns
from .kernels.interface import Sums


@dataclass(frozen=True, eq=False)
class WeightStatistics(Columns):
    """The distribution of |w| of P tensors in a few numbers each, [P].

    Logarithms are natural and run over the finite non-zero entries, of which there are
    `numel − zero_count − non_finite_count`; `max_abs` runs over the finite ones. `norm_sq` is
    the plain Σw². `histogram` is [P, BINS] int64 on the grid of float32's exponent and six
    leading mantissa bits, or None where it was not asked for. Source: [W1], log-moments.
    """

    names: tuple[str, ...]
    numel: Tensor
    norm_sq: Tensor
    log_sum: Tensor
    log_sq_sum: Tensor
    max_abs: Tensor
    zero_count: Tensor
    non_finite_count: Tensor
    histogram: Tensor | None = None

    @classmethod
    def from_sums(cls, names: tuple[str, ...], numel: Tensor, sums: Sums) -> WeightStatistics:
        """What a kernel returned, under the names of the tensors."""
        return cls(
            names=names,
            numel=numel,
            norm_sq=sums.weight_sq,
            log_sum=sums.log_sum,
            log_sq_sum=sums.log_sq_sum,
            max_abs=sums.max_abs,
            zero_count=sums.zero_count,
            non_finite_count=sums.non_finite_count,
            histogram=sums.histogram,
        )

    @property
    def rms(self) -> Tensor:
        """σ = √(‖w‖²/n), [P]: the root mean square, not the standard deviation of |w|."""
        return (self.norm_sq / self.numel).sqrt()

    def select(self, rows: list[int]) -> WeightStatistics:
        """The statistics of the given rows alone."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "names"}
        picked: dict[str, Any] = {name: None if c is None else c[rows] for name, c in columns.items()}
        return WeightStatistics(names=tuple(self.names[row] for row in rows), **picked)
