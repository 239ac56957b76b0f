"""What goes into a kernel and what comes out, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

BIN_BITS = 6
BINS = 255 << BIN_BITS
"""Bins of the bit-pattern histogram: 64 an octave, over the exponents of every finite float32."""


@dataclass(frozen=True)
class Rows:
    """P tensors of one device with their AdamW moments; without moments (None) only the weight is read.

    The columns are float64 [P], on that device: `bias_correction1` = 1 − β₁ᵗ,
    `bias_correction2` = 1 − β₂ᵗ, and ε.
    """

    weights: Sequence[Tensor]
    exp_avgs: Sequence[Tensor | None]
    exp_avg_sqs: Sequence[Tensor | None]
    bias_correction1: Tensor
    bias_correction2: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Sums:
    """The sums over the entries of each tensor, [P] on the device of the rows; float64, counts int64.

    ⟨w,u⟩, ‖u‖² and ‖w‖² are plain sums: a NaN shows. The logarithms run over the finite
    non-zero entries and `max_abs` over the finite ones; the counts say how many were left out.
    `histogram` is [P, BINS] int64, or None where it was not asked for.
    """

    weight_update: Tensor
    update_sq: Tensor
    weight_sq: Tensor
    log_sum: Tensor
    log_sq_sum: Tensor
    max_abs: Tensor
    zero_count: Tensor
    non_finite_count: Tensor
    histogram: Tensor | None

    @classmethod
    def from_columns(cls, values: Tensor, counts: Tensor, histogram: Tensor | None) -> Sums:
        """From float64 [P, 6] and int64 [P, 2], in the order of the fields."""
        weight_update, update_sq, weight_sq, log_sum, log_sq_sum, max_abs = values.unbind(1)
        zero_count, non_finite_count = counts.unbind(1)
        return cls(
            weight_update,
            update_sq,
            weight_sq,
            log_sum,
            log_sq_sum,
            max_abs,
            zero_count,
            non_finite_count,
            histogram,
        )
