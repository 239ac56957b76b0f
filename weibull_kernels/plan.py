"""The tensors that `wk.AdamW` steps, gathered and checked once for as long as they stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels.interface import HYPERPARAMETERS, Step, SteppedTensors
from .kernels.memory import sent
from .optimizers import name_at, parameters_of, settings_of
from .shards import is_sharded, local_of
from .tensors import fits, misfit, require_readable

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

_State = dict[str, Any]
_DTYPE, _LAYOUT = attrgetter("dtype"), attrgetter("layout")


class StepPlan:
    """Every parameter that has a gradient, with its state, by device.

    Of tensors that are sharded (DTensor) the kernels get what lies here.

    It does not keep the optimizer, which keeps it: dropped, both would wait for the garbage collector,
    and the moments with them.

    Args:
        optimizer: whose parameters they are.
        begin: makes the state of a weight and its group where there is none.

    Raises:
        ValueError: gradient or state do not fit the weight.
        TypeError: a weight, its gradient or its state is of a kind that the kernels do not read.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, begin: Callable[[Tensor, dict[str, Any]], _State]
    ) -> None:
        by_device: dict[torch.device, list[_Row]] = {}
        place = -1
        for index, group in enumerate(optimizer.param_groups):
            for position, weight in enumerate(group["params"]):
                place += 1
                if weight.grad is None:
                    continue
                name = name_at(group, index, position)
                require_readable(name, weight)
                if not optimizer.state[weight]:
                    optimizer.state[weight] = begin(weight, group)
                state = _checked(name, weight, optimizer.state[weight], group)
                by_device.setdefault(weight.device, []).append(_Row(weight, *state, index, place))
        self._batches = [_Batch(device, rows) for device, rows in by_device.items()]
        self._tensors = _tensors_of(optimizer)
        self._sharded = any(map(is_sharded, self._tensors))
        self._facts = self._present_facts(optimizer)

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the same tensors are to be stepped and none has moved.

        It looks at all of them, since a tensor may be given other memory without a word
        (`weight.data = …`), but at no entry.
        """
        tensors = _tensors_of(optimizer)
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and self._present_facts(optimizer) == self._facts
        )

    def steps(
        self,
        optimizer: torch.optim.Optimizer,
        ledger: Callable[[torch.device], Tensor | None],
    ) -> Iterator[tuple[list[Tensor], SteppedTensors, Step]]:
        """The weights of each device, and what its kernel is to do now, with its part of the ledger."""
        for batch in self._batches:
            grads: list[Any] = [weight.grad for weight in batch.weights]
            yield (
                batch.weights,
                batch.tensors,
                Step(
                    grads=[*map(_shard_for, grads, batch.weights)] if self._sharded else grads,
                    hyperparameters=batch.hyperparameters(optimizer.param_groups),
                    ledger=ledger(batch.device),
                    grad_scale=_sent(getattr(optimizer, "grad_scale", None), batch.device),
                    found_inf=_sent(getattr(optimizer, "found_inf", None), batch.device),
                ),
            )

    def _present_facts(self, optimizer: torch.optim.Optimizer) -> list[list[Any]]:
        """Where the tensors of the plan lie and how, what gradients are, and how the groups are cut."""
        tensors: list[Any] = [tensor for tensor in self._tensors if tensor is not None]
        grads: list[Any] = [weight.grad for batch in self._batches for weight in batch.weights]
        placed: list[Any] = []
        if self._sharded:
            placed = [(g.device_mesh, g.placements) if is_sharded(g) else None for g in grads]
            tensors, grads = [*map(local_of, tensors)], [*map(local_of, grads)]
        return [
            placed,
            *([*map(fact, tensors)] for fact in (Tensor.data_ptr, Tensor.numel, _DTYPE)),
            # Of most, not to make a tuple of each.
            [None if tensor.is_contiguous() else tensor.stride() for tensor in tensors],
            *([*map(fact, grads)] for fact in (type, Tensor.numel, _DTYPE, _LAYOUT)),
            [(len(group["params"]), group["amsgrad"]) for group in optimizer.param_groups],
        ]


class _Row(NamedTuple):
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    steps_made: Tensor
    group: int
    place: int


class _Batch:
    """The tensors of one device, and the table of their hyperparameters there."""

    def __init__(self, device: torch.device, rows: list[_Row]) -> None:
        self.device = device
        self.weights = [row.weight for row in rows]
        # How c is rounded depends on the dtype of the weight too.
        kinds = [(row.group, row.weight.dtype) for row in rows]
        examples = dict(zip(kinds, rows, strict=True))
        self._groups = [(row.group, row.weight) for row in examples.values()]
        table_row = {kind: i for i, kind in enumerate(examples)}
        self.tensors = SteppedTensors(
            weights=[local_of(weight) for weight in self.weights],
            exp_avgs=[local_of(row.exp_avg) for row in rows],
            exp_avg_sqs=[local_of(row.exp_avg_sq) for row in rows],
            max_exp_avg_sqs=[
                None if row.max_exp_avg_sq is None else local_of(row.max_exp_avg_sq) for row in rows
            ],
            counts=[row.steps_made for row in rows],
            groups=[table_row[kind] for kind in kinds],
            places=[row.place for row in rows],
        )
        self._sent: tuple[list[float], Tensor] | None = None

    def hyperparameters(self, param_groups: list[dict[str, Any]]) -> Tensor:
        """`HYPERPARAMETERS` [G, 6]; numbers are sent when they have changed, tensors copied on the device."""
        numbers: list[float | Tensor] = []
        for index, weight in self._groups:
            numbers += _hyperparameters(param_groups[index], weight)
        known = [0.0 if isinstance(number, Tensor) else number for number in numbers]
        if self._sent is None or self._sent[0] != known:
            table = torch.tensor(known, dtype=torch.float64, device="cpu").reshape(-1, len(HYPERPARAMETERS))
            self._sent = known, sent(table, self.device)
        table = self._sent[1]
        for cell, number in enumerate(numbers):
            if isinstance(number, Tensor):
                table.view(-1)[cell].copy_(number, non_blocking=self.device.type != "cpu")
        return table


def _tensors_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """All parameters, then the weights that have gradients, then their states; None for what is not there."""
    parameters, state = parameters_of(optimizer), optimizer.state
    weights = [weight for weight in parameters if weight.grad is not None]
    states = [state[weight] for weight in weights]
    amsgrad = any(group["amsgrad"] for group in optimizer.param_groups)
    names = ("step", *(MOMENTS if amsgrad else MOMENTS[:2]))
    return [*parameters, *weights, *(found.get(name) for name in names for found in states)]


def _checked(
    name: str, weight: Tensor, state: _State, group: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The moments and the count of a weight's state, after a look at them and at its gradient."""
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
    return state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"] if group["amsgrad"] else None, count


def _shard_for(grad: Tensor, weight: Tensor) -> Tensor:
    """The entries of a gradient that are those of the weight here."""
    if is_sharded(grad) and is_sharded(weight) and grad.placements != weight.placements:
        # Such as a sum still to be made. A collective call, which torch's AdamW makes too.
        grad = grad.redistribute(placements=weight.placements)
    return local_of(grad)


def _hyperparameters(group: dict[str, Any], weight: Tensor) -> tuple[float | Tensor, ...]:
    """The `HYPERPARAMETERS` of a group for weights like this one."""
    settings = settings_of(group, by_torch=False)
    sign = -1.0 if group["maximize"] else 1.0
    return settings.lr, settings.decay_factor(weight), settings.beta1, settings.beta2, settings.eps, sign


def _sent(number: Tensor | None, device: torch.device) -> Tensor | None:
    if number is None:
        return None
    return number.to(device, torch.float32, non_blocking=device.type != "cpu")
