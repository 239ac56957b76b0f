"""Rows of `LEDGER_COLUMNS`, the form in which kernels say what steps did, and the budgets they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .budget import ForceBudget
from .kernels.interface import LEDGER_COLUMNS
from .kernels.memory import capturing
from .shards import over_shards
from .statistics import WeightStatistics

SUMMED = LEDGER_COLUMNS.index("steps") + 1
"""The columns that an interval sums come first."""
NORM_SQ_START, NORM_SQ, STEP = (LEDGER_COLUMNS.index(name) for name in ("norm_sq_start", "norm_sq", "step"))

STATISTICS = ("norm_sq", "log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count")

# Not sums over the entries of a tensor: of the shards of one, the largest is that of the whole.
MAXIMA = [LEDGER_COLUMNS.index(name) for name in ("steps", "max_abs", "step")]

_COUNTS = ("steps", "zero_count", "non_finite_count", "step")
_FORCES = ("alignment", "injection", "decay", "coupling")


def rows_over_shards(
    weights: Sequence[Tensor], rows: Tensor, histogram: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Rows [P, 14] of what lies here, and histograms [P, BINS], as those of the whole tensors.

    A collective call where tensors are sharded; see `over_shards`.
    """
    if capturing(rows.device):
        raise RuntimeError(
            "sums over shards (DTensor) cannot be captured into a CUDA graph; read the ledger, or call "
            "wk.forces(), outside of it"
        )
    if histogram is None:
        return over_shards(weights, rows, maxima=MAXIMA), None
    whole = over_shards(weights, torch.cat([rows, histogram.double()], dim=1), maxima=MAXIMA)
    return whole[:, : len(LEDGER_COLUMNS)], whole[:, len(LEDGER_COLUMNS) :].long()


def without_steps(rows: Tensor, standing: Tensor) -> Tensor:
    """Rows in which the tensors that are `standing`, bool [P], made no step: no force, the norm of now."""
    rows = rows.clone()
    rows[:, :SUMMED] = torch.where(standing[:, None], 0.0, rows[:, :SUMMED])
    rows[:, NORM_SQ_START] = torch.where(standing, rows[:, NORM_SQ], rows[:, NORM_SQ_START])
    return rows


def budget_of_rows(
    rows: Tensor,
    names: tuple[str, ...],
    numel: Tensor,
    histogram: Tensor | None,
    *,
    change_measured: bool = False,
) -> ForceBudget:
    """The budget of rows [P, 14] float64 of whole tensors.

    Args:
        rows: by `LEDGER_COLUMNS`.
        names: of the tensors.
        numel: their entries, int64 [P].
        histogram: of the weights, [P, BINS], or None.
        change_measured: whether `change` was measured, and so the rounding is known.
    """
    columns = dict(zip(LEDGER_COLUMNS, rows.unbind(1), strict=True))
    whole = rows.long()
    counts = {name: whole[:, LEDGER_COLUMNS.index(name)] for name in _COUNTS}
    forces: dict[str, Any] = {name: columns[name] for name in _FORCES}
    statistics: dict[str, Any] = {name: (counts if name in counts else columns)[name] for name in STATISTICS}
    return ForceBudget(
        **forces,
        rounding=columns["change"] - sum(forces.values()) if change_measured else None,
        norm_sq=columns["norm_sq_start"],
        numel=numel,
        steps=counts["steps"],
        step=counts["step"],
        names=names,
        weights=WeightStatistics(names=names, numel=numel, histogram=histogram, **statistics),
    )
