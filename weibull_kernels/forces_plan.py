"""The tensors that `wk.forces` reads, gathered and checked once for as long as they stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .device_tables import ByStream, DeviceTables, picker, user
from .hyperparameters import Kinds, Numbers, PresentNumbers
from .kernels.host import Facts, Found, walk
from .kernels.interface import SteppedTensors
from .kernels.memory import capturing
from .optimizers import is_by_torch, placed_parameters, read_optimizer
from .shards import is_sharded, local_of

_STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")
_EXECUTION = ("fused", "foreach", "capturable", "differentiable", "amsgrad", "decoupled_weight_decay")

_PLANS: Any = WeakIdKeyDictionary()


class Measured(NamedTuple):
    """What a kernel needs to measure the tensors of one device, and which rows of the budget they are."""

    places: list[int]
    weights: list[Tensor]  # the optimizer's own: DTensors where they are sharded
    tensors: SteppedTensors
    hyperparameters: Tensor
    numel: Tensor
    sharded: bool  # whether there are DTensors among the weights


class ForcesPlan:
    """The parameters of an optimizer of torch's after a step, with their state, by device.

    It holds none of these tensors and not the optimizer, so that whoever replaces or drops them has their
    memory back.

    Args:
        optimizer: whose step is known; see `read_optimizer`, which checks the tensors.
        found: the tensors of it, their state under the names `_STATE`.

    Attributes:
        names: of the rows, as the optimizer knows them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, found: Found) -> None:
        rows, placed = read_optimizer(optimizer), list(placed_parameters(optimizer))
        self.names = tuple(row.name for row in rows)
        self.places = tuple(row.place for row in placed)
        self._by_torch = is_by_torch(optimizer)
        self._of_groups = _facts_of_groups(optimizer)
        self._sizes = found.sizes
        self._facts = Facts(_columns(found))
        by_device: dict[torch.device, list[_Row]] = {}
        for place, (row, at) in enumerate(zip(rows, placed, strict=True)):
            count = None if row.exp_avg is None else row.step
            by_device.setdefault(row.weight.device, []).append(
                _Row(place, row.weight, count, at.group_index, bool(at.group["amsgrad"]))
            )
        self._batches = [_Batch(device, here, len(rows)) for device, here in by_device.items()]
        kinds = [batch.kinds for batch in self._batches]
        self._numbers = PresentNumbers(kinds, by_torch=self._by_torch, looking_back=True)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> tuple[ForcesPlan, Found]:
        """The plan that holds, made if there is none, and the tensors to use it on now.

        Raises:
            RuntimeError: one would have to be made while a CUDA graph is captured.
        """
        found = walk(optimizer, _STATE)
        plan: ForcesPlan | None = _PLANS.get(optimizer)
        if plan is None or not plan._holds(optimizer, found):
            if any(map(capturing, {parameter.device for parameter in found.parameters})):
                raise RuntimeError(
                    "wk.forces() has to see this optimizer before it is captured into a CUDA graph: call it "
                    "once after a step, outside of the graph, and replace no tensor and no setting since"
                )
            plan = _PLANS[optimizer] = cls(optimizer, found)
        return plan, found

    def measured(
        self, optimizer: torch.optim.Optimizer, found: Found, rates: Sequence[float | Tensor | None]
    ) -> Iterator[Measured]:
        """What is to be measured on each device, with these rates in place of the groups' own where given."""
        numbers = self._numbers.of(optimizer.param_groups, rates)
        for batch, theirs in zip(self._batches, numbers, strict=True):
            yield batch.measured(optimizer, found, theirs)

    def _holds(self, optimizer: torch.optim.Optimizer, found: Found) -> bool:
        return (
            self._sizes == found.sizes
            and self._by_torch == is_by_torch(optimizer)
            and self._of_groups == _facts_of_groups(optimizer)
            and self._facts.hold_for(_columns(found))
        )


class _Row(NamedTuple):
    place: int
    weight: Tensor
    count: Any  # None where there is no state
    group: int
    amsgrad: bool


class _Batch:
    """The rows of one device."""

    def __init__(self, device: torch.device, rows: list[_Row], total: int) -> None:
        self._places = [row.place for row in rows]
        self._pick = picker(self._places, total)
        self.kinds = Kinds(device, [(row.group, row.weight.dtype, row.count is not None) for row in rows])
        self._used = user([row.amsgrad for row in rows])
        self._sharded = any(is_sharded(row.weight) for row in rows)
        # Counts that lie on the device are read there; others are sent, 0 for what has no state.
        self._elsewhere = [i for i, row in enumerate(rows) if not _lies_on(device, row.count)]
        self._to_send = [i for i in self._elsewhere if rows[i].count is not None]
        self._tables = ByStream(device, [row.weight.numel() for row in rows])

    def measured(self, optimizer: torch.optim.Optimizer, found: Found, numbers: Numbers) -> Measured:
        """The rows as they are now."""
        tables = self._tables.now(optimizer)
        columns = [self._pick(column) for column in _columns(found)]
        weights, exp_avgs, exp_avg_sqs, largest, counts = columns
        largest = self._used(largest)
        if self._elsewhere:
            counts = self._with_counts_sent(counts, tables)
        here = [weights, exp_avgs, exp_avg_sqs, largest, counts]
        if self._sharded:
            here = [[None if tensor is None else local_of(tensor) for tensor in column] for column in here]
        tensors = SteppedTensors(
            here[0], here[1], here[2], here[3], here[4], self.kinds.of_rows, self._places, tables.prepared
        )
        return Measured(
            self._places, weights, tensors, tables.hyperparameters(numbers), tables.numel, self._sharded
        )

    def _with_counts_sent(self, counts: list[Any], tables: DeviceTables) -> list[Tensor]:
        """The counts with those that lie elsewhere in the places that the tables have for them."""
        device = self._tables.device
        if self._to_send:
            if capturing(device):
                raise RuntimeError(
                    "the optimizer counts its steps on the host, where a CUDA graph cannot follow them; make "
                    "it with capturable=True or fused=True"
                )
            tables.send_counts(counts, self._to_send)
        counts = list(counts)
        for i in self._elsewhere:
            counts[i] = tables.count_of[i]
        return counts


def _lies_on(device: torch.device, count: Any) -> bool:
    return (
        isinstance(count, Tensor)
        and count.dtype == torch.float32
        and count.device == device
        and count.numel() == 1
    )


def _columns(found: Found) -> list[list[Any]]:
    return [found.parameters, *found.states]


def _facts_of_groups(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What of the groups a plan is made for, but for their numbers."""
    facts: list[Any] = []
    for group in optimizer.param_groups:
        names = group.get("param_names")
        facts += [None if names is None else list(names), *(group[name] for name in _EXECUTION)]
    return facts
