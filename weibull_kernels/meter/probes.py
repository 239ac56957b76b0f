"""How the last step of an optimizer is read: from its moments, its ledger, or how it moved the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adamw import AdamW
from ..budget import ForceBudget
from ..measure import last_step, on_each_device
from ..optimizers import PlacedParameter, placed_parameters, update_is_known
from ..shards import local_of
from ..tensors import column, require_readable
from .displacement import decays_decoupled, displacement_budget, lost_to_decay, snapshot


class Probe:
    """Reads the budgets of one optimizer's steps: `before` and `after` each step that is due.

    The optimizer is handed over and not kept: it keeps the probe, by its hooks.

    Args:
        histogram: also count the bit-pattern histogram into `budget.weights`.
        backend: as in `wk.forces`.
    """

    def __init__(self, *, histogram: bool, backend: str | None) -> None:
        self.histogram, self.backend = histogram, backend

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes what cannot be told after the step."""

    def forget(self) -> None:
        """The step that was to be read did not come to its end."""

    def after(self, optimizer: torch.optim.Optimizer, count: int) -> ForceBudget:
        """The budget [P] in the order of `placed_parameters`, on the device of the parameters.

        Rows that made no step have no force and `steps` 0.

        Args:
            optimizer: right after its step.
            count: the steps it has made, this one included.
        """
        raise NotImplementedError

    def rest(self, optimizer: torch.optim.Optimizer) -> ForceBudget | None:
        """The budget of the steps since the last that was read; None where they were not measured."""
        return None


class MomentsProbe(Probe):
    """Of `torch.optim.AdamW` and `Adam`: `wk.forces`, of the tensors that the step moved."""

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the step counts: a step that a gradient scaler skips, or without a gradient, leaves them."""
        rows = list(placed_parameters(optimizer))
        counts = (optimizer.state.get(row.tensor, {}).get("step", 0.0) for row in rows)
        self._standing = column(counts, _home(rows))

    def after(self, optimizer: torch.optim.Optimizer, count: int) -> ForceBudget:
        """See `Probe.after`."""
        return last_step(optimizer, since=self._standing, histogram=self.histogram, backend=self.backend)


class LedgerProbe(Probe):
    """Of `wk.AdamW`: what its ledger has booked since the last time."""

    def after(self, optimizer: torch.optim.Optimizer, count: int) -> ForceBudget:
        """See `Probe.after`; over all steps since the last drain."""
        assert isinstance(optimizer, AdamW)
        return optimizer.ledger.drain(histogram=self.histogram)

    def rest(self, optimizer: torch.optim.Optimizer) -> ForceBudget | None:
        """See `Probe.rest`."""
        return self.after(optimizer, 0)


class DisplacementProbe(Probe):
    """Of any other: a copy of the weights before the step, and `displacement_budget`."""

    def __init__(self, *, histogram: bool, backend: str | None, decoupled: bool) -> None:
        super().__init__(histogram=histogram, backend=backend)
        self._decoupled = decoupled
        self._copied: list[tuple[PlacedParameter, Tensor]] = []

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Copies the weights, until the step is over."""
        rows = list(placed_parameters(optimizer))
        for row in rows:
            require_readable(row.name or row.place, row.tensor)  # of a group that was added lately
        self._copied = list(zip(rows, snapshot([row.tensor for row in rows]), strict=True))

    def forget(self) -> None:
        """See `Probe.forget`: the copies are of the size of the model."""
        self._copied = []

    def after(self, optimizer: torch.optim.Optimizer, count: int) -> ForceBudget:
        """See `Probe.after`."""
        copied, self._copied = self._copied, []
        return on_each_device(
            [row.tensor for row, _ in copied], lambda places: self._budget([copied[i] for i in places], count)
        )

    def _budget(self, copied: Sequence[tuple[PlacedParameter, Tensor]], count: int) -> ForceBudget:
        rows = [row for row, _ in copied]
        device = local_of(rows[0].tensor).device
        return displacement_budget(
            [before for _, before in copied],
            [row.tensor for row in rows],
            lost_to_decay([row.group for row in rows], self._decoupled, device),
            histogram=self.histogram,
            backend=self.backend,
            names=tuple(row.name or row.place for row in rows),
            step=torch.full((len(rows),), count, device=device),
        )


def new_probe(
    optimizer: torch.optim.Optimizer, *, histogram: bool, decoupled: bool | None, backend: str | None
) -> Probe:
    """The most exact way to read this optimizer."""
    if isinstance(optimizer, AdamW) and optimizer._tables is not None:
        return LedgerProbe(histogram=histogram, backend=backend)
    if update_is_known(optimizer):
        return MomentsProbe(histogram=histogram, backend=backend)
    if decoupled is None:
        decoupled = decays_decoupled(optimizer)
    lost_to_decay(optimizer.param_groups, decoupled, torch.device("cpu"))  # or say now why it cannot be told
    return DisplacementProbe(histogram=histogram, backend=backend, decoupled=decoupled)


def _home(rows: Sequence[PlacedParameter]) -> torch.device:
    """The first accelerator that parameters are on."""
    devices = [row.tensor.device for row in rows]
    return next((device for device in devices if device.type != "cpu"), devices[0])
