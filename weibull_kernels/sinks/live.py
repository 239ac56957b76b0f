"""Records as a few numbers by role, for what draws charts while the run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..budget import Array, ForceBudget
from ..records import FORCES
from ..roles import TRANSMISSION, in_order
from .rows import record_rows

Metrics = dict[str, float]
_SHARED = ("alignment", "injection", "decay")  # the absolute budget is theirs


def role_metrics(budget: ForceBudget, **scalars: Array) -> Metrics:
    """A budget as a flat dict of Python floats, by role: dozens of series, where tensors have thousands.

    For each role that occurs, in the order of `wk.ROLES`, then for "transmission" (attention output and
    FFN) and for "all":

        forces/<role>/alignment, injection, decay     signed, of one step in the mean of those covered
        forces/<role>/alignment_share, …              of the absolute budget |alignment|+|injection|+|decay|
        forces/<role>/net                             the four forces together, of one step
        forces/<role>/rms                             σ = √(‖w‖²/n) after the last step
        forces/<role>/k, scale                        where the scalars have them: the fit of the role

    and of the record `forces/step`, the optimizer's count of steps, `forces/non_finite`, weights
    that are not finite, and `forces/non_finite_tensors`, tensors with a force that is not. What is not known
    or not finite has no key. Waits for the device.

    >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1, names=("lm_head.weight",))
    >>> round(role_metrics(budget)["forces/head/net"], 4)
    0.0294
    """
    totals = RoleTotals(budget, scalars)
    found = {
        f"forces/{role}/{name}": value
        for role in totals.rows
        for name, value in totals.metrics(role).items()
        if name != "absolute"
    }
    found["forces/step"] = totals.last_step
    found["forces/non_finite"] = totals.non_finite_weights
    found["forces/non_finite_tensors"] = totals.non_finite_tensors
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


class RoleTotals:
    """The tensors of each role taken together, numbers on the host.

    Attributes:
        rows: the rows of each role that occurs, of "transmission" where it does, and of "all".
    """

    def __init__(self, budget: ForceBudget, scalars: Mapping[str, Array]) -> None:
        self._columns = record_rows(0, budget, {name: scalars[name] for name in _FITTED if name in scalars})
        role = np.array(self._columns["role"])
        self.rows: dict[str, np.ndarray] = {}
        if budget.names is not None:
            self.rows = {label: np.flatnonzero(role == label) for label in in_order(role)}
            if len(transmission := np.flatnonzero(np.isin(role, TRANSMISSION))):
                self.rows["transmission"] = transmission
        self.rows["all"] = np.arange(len(role))

    def metrics(self, role: str) -> Metrics:
        """Those of one of `rows`, by the last part of their names; NaN is what is not known."""
        rows = self.rows[role]
        steps = max(int(self._columns["steps"][rows].max(initial=0)), 1)
        forces = {name: self._sum(name, rows) / steps for name in FORCES}
        absolute = sum(abs(forces[name]) for name in _SHARED)
        found = {name: forces[name] for name in _SHARED}
        found |= {f"{name}_share": forces[name] / absolute if absolute else math.nan for name in _SHARED}
        found |= {"net": sum(forces.values()), "absolute": absolute, "rms": self._rms(rows)}
        if role not in ("transmission", "all"):
            found |= {name: self._of_role(name, rows) for name in _FITTED if name in self._columns}
        return found

    @property
    def last_step(self) -> float:
        """The most steps that the optimizer has made on a tensor; NaN where it is not told."""
        counts = self._columns.get("optimizer_step", ())
        return float(max(counts, default=math.nan))

    @property
    def non_finite_weights(self) -> int:
        """How many weights are not finite; 0 where the budget has no statistics."""
        return int(np.sum(self._columns.get("non_finite_count", 0)))

    @property
    def non_finite_tensors(self) -> int:
        """How many tensors have a force that is not finite."""
        return int(np.sum(~np.isfinite([self._columns[name] for name in FORCES]).all(axis=0)))

    def _sum(self, name: str, rows: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):  # infinite forces of both signs: what is left out says so
            return float(self._columns[name][rows].sum())

    def _rms(self, rows: np.ndarray) -> float:
        entries = self._sum("numel", rows) if "numel" in self._columns else math.nan
        return math.sqrt(max(self._sum("norm_sq_after", rows), 0) / entries) if entries else math.nan

    def _of_role(self, name: str, rows: np.ndarray) -> float:
        known = self._columns[name][rows]
        known = known[~np.isnan(known)]
        return float(known[0]) if len(known) else math.nan


_FITTED = ("k", "scale")


class LiveSink:
    """Gives the `role_metrics` of each record to a function of a dict and a step.

    `as_sink` makes it of a wandb run, a Lightning logger, a TensorBoard `SummaryWriter` or a function.
    It shows the run and keeps no account of it: what the tensors did one by one belongs in a record
    file beside it.

    Args:
        send: takes the metrics and the step.
        called: what it is called in messages.
    """

    def __init__(self, send: Callable[[Metrics, int], object], called: str) -> None:
        self._send, self._called = send, called

    def write(self, step: int, budget: ForceBudget, **scalars: Array) -> None:
        """Send the metrics of one record."""
        self._send(role_metrics(budget, **scalars) | {"forces/step": float(step)}, step)

    def close(self) -> None:
        """Do nothing: the run behind it is its owner's to finish."""

    def __repr__(self) -> str:
        return f"LiveSink({self._called})"
