"""Force budgets of optimizers whose update is not known: from the weights before and after a step."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..budget import ForceBudget
from ..dispatch import find_kernel, frames_to_the_caller
from ..kernels.interface import Rows, Sums
from ..kernels.memory import numel_on
from ..optimizers import scalar
from ..shards import local_of, sums_over_shards
from ..statistics import WeightStatistics
from ..tensors import column

_IN_THE_GRADIENT = (
    *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.ASGD),
    *(torch.optim.LBFGS, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop),
    torch.optim.SGD,
)
"""Torch's optimizers whose weight decay is a part of the gradient, or that have none."""

_DECOUPLED = (torch.optim.Adafactor, torch.optim.AdamW, torch.optim.Muon)


def snapshot(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the weights as they are now; of sharded ones the entries that lie here."""
    return [local_of(weight).detach().clone() for weight in weights]


def displacement_budget(
    before: Sequence[Tensor],
    weights: Sequence[Tensor],
    lost: Tensor,
    *,
    histogram: bool = False,
    backend: str | None = None,
    **described: Any,
) -> ForceBudget:
    """The budget of a step that took the weights from w to w⁺ = w + Δ, whatever the optimizer did.

        η·u = c·w − w⁺ = −(Δ + (1−c)·w)

    All that the step did and decay does not explain is its update, so the budget closes by definition, and
    the rounding of single entries is a part of u. Only the product η·u occurs, so η may be 0.

    Args:
        before: from `snapshot`.
        weights: P tensors of one device after the step; all processes of a job where they are sharded.
        lost: 1 − c = ηω where decay is decoupled, 0 where it is not; float64 [P].
        histogram: as in `wk.forces`.
        backend: likewise.
        described: `names` and `step` of the budget.

    Returns:
        `ForceBudget` [P]; a tensor with Δ = 0 made no step: no force and `steps` 0.
    """
    sums = sums_over_shards(weights, _sums(before, weights, histogram, backend))
    along, moved_sq = sums.weight_update, sums.update_sq
    norm_sq = sums.weight_sq - 2 * along - moved_sq
    moved = moved_sq != 0  # a NaN moved too
    lost = torch.where(moved, lost, 0.0)
    numel = numel_on(weights, lost.device)
    names = described.get("names", tuple(map(str, range(len(weights)))))
    return ForceBudget.from_sums(
        -along - lost * norm_sq,
        moved_sq + 2 * lost * along + lost**2 * norm_sq,
        norm_sq,
        lr=1.0,
        weight_decay=lost,
        numel=numel,
        steps=moved.long(),
        weights=WeightStatistics.from_sums(names, numel, sums),
        **described,
    )


def _sums(before: Sequence[Tensor], weights: Sequence[Tensor], histogram: bool, backend: str | None) -> Sums:
    """Statistics of the weights that lie here, with ⟨w,Δ⟩ as `weight_update` and ‖Δ‖² as `update_sq`."""
    here = [local_of(weight).detach() for weight in weights]
    device, nothing = here[0].device, [None] * len(here)
    one = torch.ones(len(here), dtype=torch.float64, device=device)
    sums: Sums = find_kernel("sums", backend, device)(
        Rows(here, nothing, nothing, one, one, one), with_histogram=histogram
    )
    gram = find_kernel("gram", backend, device)
    products = torch.stack(
        [gram([old.reshape(-1), new.reshape(-1)])[1] for old, new in zip(before, here, strict=True)]
    )
    return dataclasses.replace(sums, weight_update=products[:, 0], update_sq=products[:, 1])


def lost_to_decay(groups: Sequence[Mapping[str, Any]], decoupled: bool, device: torch.device) -> Tensor:
    """1 − c = ηω by the param group of each row, float64 [P]; 0 where decay is not decoupled.

    A group that says `decoupled_weight_decay` itself is taken at its word.

    Raises:
        ValueError: a group decays by a rate that it does not tell.
    """
    decays = [
        scalar(group.get("weight_decay", 0.0)) if group.get("decoupled_weight_decay", decoupled) else 0.0
        for group in groups
    ]
    for group, decay in zip(groups, decays, strict=True):
        if group.get("lr") is None and decay:
            raise ValueError(
                f"a param group has lr {group.get('lr')!r} and weight_decay {decay!r}, so what a step decays "
                "is not known; set its lr, or say decoupled=False to have decay counted with the update"
            )
    return column(map(rate_of, groups), device).nan_to_num() * column(decays, device)


def rate_of(group: Mapping[str, Any]) -> float | Tensor:
    """The lr of a param group; NaN where it has none, as where an optimizer chooses its own."""
    rate: float | Tensor | None = group.get("lr")
    return math.nan if rate is None else scalar(rate)


def decays_decoupled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether weight decay is w ← (1−ηω)·w beside the update, and not a part of the gradient.

    Of torch's optimizers it is known; of others it is taken to be so, which a warning says where they
    have any decay.
    """
    known = next((kind for kind in type(optimizer).__mro__ if kind in _DECOUPLED + _IN_THE_GRADIENT), None)
    if known is not None:
        return known in _DECOUPLED
    if any(group.get("weight_decay") for group in optimizer.param_groups):
        warnings.warn(
            f"{type(optimizer).__qualname__} is measured by how it moves the weights, its weight decay being "
            "taken as decoupled, w ← (1 − lr·weight_decay)·w; say decoupled=True if so, or decoupled=False "
            "if it acts through the gradient",
            stacklevel=frames_to_the_caller(),
        )
    return True
