"""The tensors that `wk.AdamW` steps, gathered and checked once for as long as they stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .kernels.interface import HYPERPARAMETERS, Step, SteppedTensors
from .optimizers import column, fits, misfit, name_at, settings_of

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

_State = dict[str, Any]
_DTYPE, _LAYOUT = attrgetter("dtype"), attrgetter("layout")


class StepPlan:
    """Every parameter that has a gradient, with its state, by device.

    Args:
        optimizer: whose parameters they are.
        begin: makes the state of a weight and its group where there is none.

    Raises:
        ValueError: gradient or state do not fit the weight.
        TypeError: they are sparse or of another kind than the kernels read.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, begin: Callable[[Tensor, dict[str, Any]], _State]
    ) -> None:
        self._optimizer = optimizer
        by_device: dict[torch.device, list[_Row]] = {}
        place = -1
        for index, group in enumerate(optimizer.param_groups):
            for position, weight in enumerate(group["params"]):
                place += 1
                if weight.grad is None:
                    continue
                if not optimizer.state[weight]:
                    optimizer.state[weight] = begin(weight, group)
                state = _checked(name_at(group, index, position), weight, optimizer.state[weight], group)
                by_device.setdefault(weight.device, []).append(_Row(weight, *state, index, place))
        self._batches = [_batch(device, rows) for device, rows in by_device.items()]
        self._tensors = self._present_tensors()
        self._facts = self._present_facts()

    def holds(self) -> bool:
        """Whether the same tensors are to be stepped and none has moved.

        It looks at all of them, since a tensor may be given other memory without a word
        (`weight.data = …`), but at no entry.
        """
        tensors = self._present_tensors()
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and self._present_facts() == self._facts
        )

    def steps(
        self,
        ledger: Callable[[torch.device], Tensor | None],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> Iterator[tuple[torch.device, SteppedTensors, Step]]:
        """What the kernel of each device is to do now, with its part of the ledger."""
        for batch in self._batches:
            groups = [(self._optimizer.param_groups[index], weight) for index, weight in batch.groups]
            numbers = chain.from_iterable(_hyperparameters(group, weight) for group, weight in groups)
            yield (
                batch.device,
                batch.tensors,
                Step(
                    grads=[cast(Tensor, weight.grad) for weight in batch.tensors.weights],
                    hyperparameters=column(numbers, batch.device).reshape(-1, len(HYPERPARAMETERS)),
                    ledger=ledger(batch.device),
                    grad_scale=_sent(grad_scale, batch.device),
                    found_inf=_sent(found_inf, batch.device),
                ),
            )

    def _present_tensors(self) -> list[Any]:
        """The weights that have gradients, and their states."""
        groups, state = self._optimizer.param_groups, self._optimizer.state
        weights = [weight for group in groups for weight in group["params"] if weight.grad is not None]
        states = [state[weight] for weight in weights]
        return [*weights, *(found.get(name) for name in ("step", *MOMENTS) for found in states)]

    def _present_facts(self) -> list[list[Any]]:
        """Where those of the plan lie and how, what their gradients are, and how the groups are cut."""
        tensors: list[Any] = [tensor for tensor in self._tensors if tensor is not None]
        grads: list[Any] = [weight.grad for batch in self._batches for weight in batch.tensors.weights]
        return [
            *([*map(fact, tensors)] for fact in (Tensor.data_ptr, Tensor.numel, Tensor.stride, _DTYPE)),
            *([*map(fact, grads)] for fact in (Tensor.numel, _DTYPE, _LAYOUT)),
            [(len(group["params"]), group["amsgrad"]) for group in self._optimizer.param_groups],
        ]


class _Row(NamedTuple):
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    steps_made: Tensor
    group: int
    place: int


@dataclass(frozen=True)
class _Batch:
    """The tensors of one device, and for each row of their hyperparameters a group and a weight of it."""

    device: torch.device
    tensors: SteppedTensors
    groups: list[tuple[int, Tensor]]


def _batch(device: torch.device, rows: list[_Row]) -> _Batch:
    # How c is rounded depends on the dtype of the weight too.
    keys = [(row.group, row.weight.dtype) for row in rows]
    kinds = {key: (row.group, row.weight) for key, row in zip(keys, rows, strict=True)}
    place_of = {key: place for place, key in enumerate(kinds)}
    tensors = SteppedTensors(
        weights=[row.weight for row in rows],
        exp_avgs=[row.exp_avg for row in rows],
        exp_avg_sqs=[row.exp_avg_sq for row in rows],
        max_exp_avg_sqs=[row.max_exp_avg_sq for row in rows],
        counts=[row.steps_made for row in rows],
        groups=[place_of[key] for key in keys],
        places=[row.place for row in rows],
    )
    return _Batch(device, tensors, list(kinds.values()))


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
    columns = {"the gradient": weight.grad, **{moment: state[moment] for moment in needed}}
    for what, tensor in columns.items():
        if not fits(tensor, weight):
            raise misfit(f"{what} of '{name}'", tensor, weight)
    count = state["step"]
    if not isinstance(count, Tensor) or count.dtype != torch.float32 or count.device != weight.device:
        raise ValueError(
            f"the step of '{name}' must be a float32 tensor on {weight.device}, got {count!r}; pass the "
            "state through load_state_dict()"
        )
    return state["exp_avg"], state["exp_avg_sq"], columns.get("max_exp_avg_sq"), count


def _hyperparameters(group: dict[str, Any], weight: Tensor) -> tuple[float | Tensor, ...]:
    """The `HYPERPARAMETERS` of a group for weights like this one."""
    settings = settings_of(group, by_torch=False)
    sign = -1.0 if group["maximize"] else 1.0
    return settings.lr, settings.decay_factor(weight), settings.beta1, settings.beta2, settings.eps, sign


def _sent(number: Tensor | None, device: torch.device) -> Tensor | None:
    if number is None:
        return None
    return number.to(device, torch.float32, non_blocking=device.type != "cpu")
