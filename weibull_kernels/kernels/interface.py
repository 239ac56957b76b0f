"""What goes into a kernel and what comes out, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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


LEDGER_COLUMNS = (
    *("alignment", "injection", "decay", "coupling", "change", "steps"),
    *("norm_sq_start", "norm_sq", "log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count"),
    "step",
)
"""Of a tensor's row in the ledger: what the `steps` of the interval summed to, then what holds now.

`change` is the measured Σ(w⁺−w)(w⁺+w), `norm_sq_start` is ‖w‖² before the interval, `norm_sq` and
what follows are of the weights after the latest step, and `step` is the optimizer's count of it.
"""

HYPERPARAMETERS = ("lr", "decay_factor", "beta1", "beta2", "eps", "sign", "float32_corrections")
"""Of a param group: `decay_factor` is the c of w⁺ = c·w − η·u, `sign` the gradient's, −1 to maximize.

`float32_corrections` is 1 where the optimizer rounded its 1 − βᵗ to float32, else 0.
"""


@dataclass(frozen=True, eq=False)
class SteppedTensors:
    """P tensors of one device that a kernel steps, or has just stepped, for as long as they stay there.

    Weights and moments have one shape a row; `max_exp_avg_sqs` is None for a row without amsgrad,
    and `counts` are float32 tensors of one entry on the device, the steps made so far. `groups` says
    which row of the hyperparameters a tensor is stepped by, `places` which row of the ledger it is
    booked in. Only what is measured and not stepped may be without moments (None): before its first step.
    `prepared` keeps what a backend works out for them once.
    """

    weights: Sequence[Tensor]
    exp_avgs: Sequence[Tensor | None]
    exp_avg_sqs: Sequence[Tensor | None]
    max_exp_avg_sqs: Sequence[Tensor | None]
    counts: Sequence[Tensor]
    groups: Sequence[int]
    places: Sequence[int]
    prepared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Step:
    """What is new in every step: P gradients, and numbers that are on the device of the tensors.

    `hyperparameters` is float64 [G, 7] and `ledger` float64 [L, 14], or None where nothing is
    booked. A gradient scaler's `grad_scale` divides the gradients, and where its `found_inf` is not
    0 nothing happens; both are float32 with one entry, or None.
    """

    grads: Sequence[Tensor]
    hyperparameters: Tensor
    ledger: Tensor | None = None
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


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
