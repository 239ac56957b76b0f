"""The tensors that `wk.AdamW` steps, gathered and checked once for as long as they stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .device_tables import ByStream, keep_for_graphs, picker, user
from .hyperparameters import Kinds, PresentNumbers
from .kernels.host import Facts, Found, walk
from .kernels.interface import Step, SteppedTensors
from .kernels.memory import capturing
from .optimizers import names_of, placed_parameters
from .shards import is_sharded, local_of
from .tensors import fits, misfit, require_readable

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_STATE = (*MOMENTS, "step")

_State = dict[str, Any]


def found_in(optimizer: torch.optim.Optimizer) -> Found:
    """What a plan is made for and used on: parameters, gradients and state."""
    return walk(optimizer, _STATE, gradients=True)


class StepPlan:
    """Every parameter that has a gradient, with its state, by device.

    Of tensors that are sharded (DTensor) the kernels get what lies here.

    It holds none of these tensors and not the optimizer, so that whoever replaces or drops them has their
    memory back.

    Args:
        optimizer: whose parameters they are.
        begin: makes the state of a weight and its group where there is none.

    Attributes:
        devices: that tensors are stepped on.

    Raises:
        ValueError: gradient or state do not fit the weight.
        TypeError: a weight, its gradient or its state is of a kind that the kernels do not read.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, begin: Callable[[Tensor, dict[str, Any]], _State]
    ) -> None:
        by_device: dict[torch.device, list[_Row]] = {}
        names = names_of(optimizer)
        for place, (_, _, weight, index, group) in enumerate(placed_parameters(optimizer)):
            if weight.grad is None:
                continue
            name = names[place]
            require_readable(name, weight)
            if not optimizer.state[weight]:
                optimizer.state[weight] = begin(weight, group)
            _require_fitting(name, weight, optimizer.state[weight], group)
            by_device.setdefault(weight.device, []).append(_Row(place, weight, index, bool(group["amsgrad"])))
        found = found_in(optimizer)
        self._batches = [_Batch(device, rows, len(names)) for device, rows in by_device.items()]
        kinds = [batch.kinds for batch in self._batches]
        self._numbers = PresentNumbers(kinds, by_torch=False, looking_back=False)
        self.devices = tuple(by_device)
        self._sharded = any(map(is_sharded, found.parameters))
        self._groups = _of_groups(optimizer)
        self._facts = Facts(_columns(found))
        self._gradients = Facts([found.gradients], addresses=False)

    def holds(self, optimizer: torch.optim.Optimizer, found: Found) -> bool:
        """Whether the same tensors are to be stepped and none has moved.

        It looks at all of them, since a tensor may be given other memory without a word
        (`weight.data = …`), but at no entry.
        """
        return (
            self._gradients.hold_for([found.gradients])
            and self._facts.hold_for(_columns(found))
            and self._groups == _of_groups(optimizer)
        )

    def steps(
        self,
        optimizer: torch.optim.Optimizer,
        found: Found,
        ledger: Callable[[torch.device], Tensor | None],
    ) -> Iterator[tuple[list[Tensor], SteppedTensors, Step]]:
        """The weights of each device, and what its kernel is to do now, with its part of the ledger."""
        numbers = self._numbers.of(optimizer.param_groups, [None] * len(optimizer.param_groups))
        for batch, theirs in zip(self._batches, numbers, strict=True):
            tables, booked = batch.tables.now(optimizer), ledger(batch.device)
            if booked is not None and capturing(batch.device):
                keep_for_graphs(optimizer, booked)
            weights, grads, *state = batch.columns(found)
            here = [weights, *state]
            if self._sharded:
                grads = [*map(_shard_for, grads, weights)]
                here = [[None if t is None else local_of(t) for t in column] for column in here]
            yield (
                weights,
                SteppedTensors(
                    here[0],
                    here[1],
                    here[2],
                    here[3],
                    here[4],
                    batch.kinds.of_rows,
                    batch.places,
                    tables.prepared,
                ),
                Step(
                    grads=grads,
                    hyperparameters=tables.hyperparameters(theirs),
                    ledger=booked,
                    grad_scale=_sent(getattr(optimizer, "grad_scale", None), batch.device),
                    found_inf=_sent(getattr(optimizer, "found_inf", None), batch.device),
                ),
            )


class _Row(NamedTuple):
    place: int
    weight: Tensor
    group: int
    amsgrad: bool


class _Batch:
    """The rows of one device."""

    def __init__(self, device: torch.device, rows: list[_Row], total: int) -> None:
        self.device = device
        self.places = [row.place for row in rows]
        self.kinds = Kinds(device, [(row.group, row.weight.dtype, True) for row in rows])
        self.tables = ByStream(device, [row.weight.numel() for row in rows])
        self._pick = picker(self.places, total)
        self._used = user([row.amsgrad for row in rows])

    def columns(self, found: Found) -> tuple[list[Any], ...]:
        """Weights, gradients, moments and counts."""
        columns: list[list[Any]] = [found.parameters, found.gradients, *found.states]
        weights, grads, exp_avgs, exp_avg_sqs, largest, counts = map(self._pick, columns)
        return weights, grads, exp_avgs, exp_avg_sqs, self._used(largest), counts


def _columns(found: Found) -> list[list[Any]]:
    return [found.parameters, *found.states]


def _of_groups(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [(len(group["params"]), group["amsgrad"]) for group in optimizer.param_groups]


def _require_fitting(name: str, weight: Tensor, state: _State, group: dict[str, Any]) -> None:
    """Raises an error unless gradient, moments and count of a weight can go with it into a kernel."""
    needed = MOMENTS if group["amsgrad"] else MOMENTS[:2]
    if missing := [key for key in (*needed, "step") if key not in state]:
        raise ValueError(
            f"the state of '{name}' has no {', '.join(missing)}; load the state of an AdamW with the same "
            "amsgrad setting"
        )
    assert weight.grad is not None
    if not fits(weight.grad, weight, placed_alike=False):
        raise misfit(f"the gradient of '{name}'", weight.grad, weight)
    for moment in needed:
        if not fits(state[moment], weight):
            raise misfit(f"{moment} of '{name}'", state[moment], weight)
    count = state["step"]
    if not isinstance(count, Tensor) or (count.dtype, count.device, count.numel()) != (
        torch.float32,
        weight.device,
        1,
    ):
        raise ValueError(
            f"the step of '{name}' must be a float32 tensor of one entry on {weight.device}, got {count!r}; "
            "pass the state through load_state_dict()"
        )


def _shard_for(grad: Tensor, weight: Tensor) -> Tensor:
    """The entries of a gradient that are those of the weight here."""
    if is_sharded(grad) and is_sharded(weight) and grad.placements != weight.placements:
        # Such as a sum still to be made. A collective call, which torch's AdamW makes too.
        grad = grad.redistribute(placements=weight.placements)
    return local_of(grad)


def _sent(number: Tensor | None, device: torch.device) -> Tensor | None:
    if number is None:
        return None
    return number.to(device, torch.float32, non_blocking=device.type != "cpu")
