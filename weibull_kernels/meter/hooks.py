"""Hooks on one optimizer: they count its steps and have those that are due read by its probe."""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..budget import ForceBudget
from ..kernels.memory import capturing
from ..optimizers import placed_parameters
from ..tensors import column
from .probes import Probe

Optimizer = torch.optim.Optimizer

_log = logging.getLogger("weibull_kernels")


def is_hooked(optimizer: Optimizer) -> bool:
    """Whether a `StepHooks` is on it."""
    return isinstance(getattr(vars(optimizer).get("__deepcopy__"), "__self__", None), StepHooks)


class StepHooks:
    """Counts the steps of an optimizer and reads every so-manieth of them.

    The optimizer keeps the hooks and not they it, so that both go when nobody holds it.

    Args:
        optimizer: to be hooked.
        place: of it among those of its meter.
        probe: how its steps are read.
        every: those are due whose count is a multiple of it.
        count: steps it has made already, where its state does not say.
        on_step: called before every step.
        on_read: called with the optimizer and the budget of a step that was due.
        on_copy: called with the optimizer, a `deepcopy` of it, which has no hooks yet, and the memo of
            that deepcopy.
        on_failure: called with what went wrong where a step could not be read.

    Attributes:
        seen: calls of `optimizer.step()` since the hooks are on.
        count: calls of `optimizer.step()` that came to their end, from the count of its state on. Whether a
            gradient scaler skipped one of them only the device knows.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        place: int,
        probe: Probe,
        every: int,
        count: int = 0,
        *,
        on_step: Callable[[], None],
        on_read: Callable[[StepHooks, Optimizer, ForceBudget], None],
        on_copy: Callable[[StepHooks, Optimizer, dict[int, Any]], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.place, self.probe, self.every, self.count = place, probe, every, count
        self._on_step, self._on_read, self._on_copy = on_step, on_read, on_copy
        self._on_failure = on_failure
        self._optimizer = weakref.ref(optimizer)
        self._due = False
        self.seen = 0
        self._unnumbered = False
        self._told_of_graphs = False
        self._recount(optimizer)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(self._recount),
        ]
        # A copy has no hooks, since torch does not copy them, and nothing else tells of it.
        optimizer.__deepcopy__ = self._copied  # type: ignore[attr-defined]

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, where anybody still has it."""
        return self._optimizer()

    def remove(self) -> None:
        """Leaves the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        if (optimizer := self.optimizer) is not None:
            vars(optimizer).pop("__deepcopy__", None)

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self._begin_uncompiled(optimizer)
        elif not _inside_another_step(optimizer):
            self._begin(optimizer)

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self._end_uncompiled(optimizer)
        elif not _inside_another_step(optimizer):
            self._end(optimizer)

    def _begin(self, optimizer: Optimizer) -> None:
        if self._captured(optimizer):
            return
        with self._watched():
            self._on_step()
            if self._unnumbered:
                self._warn_of_numbers()
            if self._due:  # the step before never came to its end
                self.probe.forget()
            self._due = (self.count + 1) % self.every == 0
            if self._due:
                with torch.no_grad():
                    self.probe.before(optimizer)

    def _end(self, optimizer: Optimizer) -> None:
        if self._captured(optimizer):
            return
        self.count += 1
        self.seen += 1
        if self._due:
            self._due = False
            with self._watched(), torch.no_grad():
                self._on_read(self, optimizer, self.probe.after(optimizer, self.count))

    # Where torch compiles the step. Not everywhere, since it costs the steps that are not due most of what
    # they pay; and not in the public form, which would load the compiler.
    _begin_uncompiled = torch._disable_dynamo(_begin)  # type: ignore[attr-defined]
    _end_uncompiled = torch._disable_dynamo(_end)  # type: ignore[attr-defined]

    def _captured(self, optimizer: Optimizer) -> bool:
        """Whether the step is not made now but goes into a CUDA graph, whose replays call no hooks."""
        first = next(placed_parameters(optimizer), None)
        if first is None or not capturing(first.tensor.device):
            return False
        if not self._told_of_graphs:
            self._told_of_graphs = True
            _log.warning(
                "a meter does not record the steps of a CUDA graph, whose replays call no hooks; "
                "call wk.forces(), or ledger.drain() of a wk.AdamW, after a replay"
            )
        return True

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Training goes on where measuring fails."""
        try:
            yield
        except Exception as error:
            self._on_failure(error)

    def _recount(self, optimizer: Optimizer) -> None:
        """Takes the count from the optimizer's state, where that has one: at first, and after loading."""
        states = [optimizer.state.get(row.tensor, {}) for row in placed_parameters(optimizer)]
        if counts := [state["step"] for state in states if "step" in state]:
            self.count = int(column(counts, torch.device("cpu")).max())
        self._unnumbered = not counts and any(states) and self.count == 0

    def go_on_from(self, count: int) -> None:
        """So many steps were made, whatever the optimizer's state says."""
        self.count, self._unnumbered = count, False

    def _warn_of_numbers(self) -> None:
        """Of an optimizer that has made steps, nobody knows how many."""
        self._unnumbered = False
        _log.warning(
            "the optimizer has made steps before and does not count them: its records begin with step 1. "
            "To go on where a run stopped, load the state_dict() of its meter, as {'steps': [count]}"
        )

    def _copied(self, memo: dict[int, Any]) -> Optimizer:
        """`copy.deepcopy` of the optimizer, as it would be without a meter, and then hooked as well."""
        optimizer = self.optimizer
        assert optimizer is not None  # it is being copied
        mine = vars(optimizer).pop("__deepcopy__")
        try:
            twin = copy.deepcopy(optimizer, memo)
        finally:
            optimizer.__deepcopy__ = mine  # type: ignore[attr-defined]
        self._on_copy(self, twin, memo)
        return twin


def _inside_another_step(optimizer: Optimizer) -> bool:
    """Whether a `step` of the optimizer has called that of its parent class, as `super().step()` does.

    Torch wraps both, and hooks run in either wrapper; only the outermost is a step.
    """
    wrapper = sys._getframe(2)
    frame = wrapper.f_back
    while frame is not None:
        if frame.f_code is wrapper.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False
