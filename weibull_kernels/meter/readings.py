"""A budget with the rates it was made at, on its way from the device to a record on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import ForceBudget
from ..columns import Transfer
from ..statistics import WeightStatistics, joined_statistics
from ..weibull import fit_weibull


@dataclass(frozen=True, eq=False)
class Reading:
    """What an optimizer did to P tensors in one step or several; all columns [P], on their device.

    `by_role` are the statistics of the weights with their histograms, added up by role, or None.
    """

    budget: ForceBudget
    lr: Tensor
    weight_decay: Tensor
    by_role: WeightStatistics | None = None

    @classmethod
    def of(cls, budget: ForceBudget, lr: Tensor, weight_decay: Tensor) -> Reading:
        """The reading of a budget, whose histograms, if it has them, go no further than into `by_role`."""
        weights = budget.weights
        if weights is None or weights.histogram is None:
            return cls(budget, lr, weight_decay)
        by_role = dataclasses.replace(weights, role_overrides=budget.role_overrides).by_role()
        without = dataclasses.replace(weights, histogram=None)
        return cls(dataclasses.replace(budget, weights=without), lr, weight_decay, by_role)


@dataclass(frozen=True, eq=False)
class Record:
    """A reading on the host, as sinks take it: CPU tensors, and numbers [P] beside the budget's."""

    step: int
    budget: ForceBudget
    scalars: dict[str, Tensor]

    @property
    def moved(self) -> bool:
        """Whether any tensor made a step; else there is nothing to record."""
        return bool((self.budget.steps > 0).any())


class Pending:
    """A reading of the steps up to `step` that has been sent to the host."""

    def __init__(self, reading: Reading, step: int) -> None:
        self.step = step
        self._reading = reading
        self._transfer = Transfer(_tensors_in(reading))

    def ready(self) -> bool:
        """Whether it has arrived."""
        return self._transfer.ready()

    def arrived(self) -> Reading:
        """The reading on the host; waits for the device."""
        if self._transfer.nothing:
            return self._reading
        columns = {name: torch.from_numpy(column) for name, column in self._transfer.wait().items()}
        arrived: Reading = _with_tensors(self._reading, columns)
        return arrived


def record_of(parts: Sequence[Pending]) -> Record:
    """The readings of several optimizers, or of one, as one record; waits for the device."""
    arrived = [part.arrived() for part in parts]
    budget = _joined([part.budget for part in arrived])
    rates = ("lr", "weight_decay")
    if len(arrived) == 1:
        scalars = {name: getattr(arrived[0], name) for name in rates}
    else:
        scalars = {name: torch.cat([getattr(part, name) for part in arrived]) for name in rates}
    by_role = [part.by_role for part in arrived if part.by_role is not None]
    if by_role:
        roles = {role: role for part in by_role for role in part.names}
        together = dataclasses.replace(joined_statistics(by_role), role_overrides=roles)
        scalars |= _fits(together.by_role(), budget.roles or ())
    return Record(max(part.step for part in parts), budget, scalars)


def _fits(by_role: WeightStatistics, roles: Sequence[str]) -> dict[str, Tensor]:
    """`k` and `scale` of the role of each row, NaN where the weights of a role cannot be fitted."""
    fit = fit_weibull(by_role, on_degenerate="mark")
    place = {role: i for i, role in enumerate(by_role.names)}
    rows = [place[role] for role in roles]
    return {name: torch.from_numpy(np.asarray(getattr(fit, name))[rows]) for name in ("k", "scale")}


def _joined(budgets: Sequence[ForceBudget]) -> ForceBudget:
    """The rows of all, one after the other; rounding is NaN where only others know theirs."""
    first = budgets[0]
    if len(budgets) == 1:
        return first
    columns: dict[str, Any] = {
        field: torch.cat([getattr(budget, field) for budget in budgets])
        for field, value in _tensors_of(first).items()
        if field != "rounding"
    }
    if any(budget.rounding is not None for budget in budgets):
        unknown = [torch.full_like(budget.alignment, torch.nan) for budget in budgets]
        columns["rounding"] = torch.cat(
            [nan if b.rounding is None else b.rounding for b, nan in zip(budgets, unknown, strict=True)]
        )
    names = tuple(name for budget in budgets for name in budget.names or ())
    weights = joined_statistics([budget.weights for budget in budgets if budget.weights is not None])
    return dataclasses.replace(first, **columns, names=names, weights=weights)


def _tensors_of(holder: Any) -> dict[str, Tensor]:
    """The tensors among the fields of a dataclass."""
    return {name: value for name, value in _fields(holder).items() if isinstance(value, Tensor)}


def _tensors_in(holder: Any, prefix: str = "") -> dict[str, Tensor]:
    """Those of the dataclasses in it as well, by dotted name."""
    found = {prefix + name: tensor for name, tensor in _tensors_of(holder).items()}
    for name, inner in _fields(holder).items():
        if dataclasses.is_dataclass(inner):
            found |= _tensors_in(inner, f"{prefix}{name}.")
    return found


def _with_tensors(holder: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """A dataclass like this one with other tensors, by dotted name."""
    changed: dict[str, Any] = {name: tensors[prefix + name] for name in _tensors_of(holder)}
    for name, inner in _fields(holder).items():
        if dataclasses.is_dataclass(inner):
            changed[name] = _with_tensors(inner, tensors, f"{prefix}{name}.")
    return dataclasses.replace(holder, **changed)


def _fields(holder: Any) -> dict[str, Any]:
    return {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
