"""The meter on the steps of one optimizer or several: what is read becomes records on their way to sinks."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from ..budget import ForceBudget
from ..optimizers import parameters_of, scalar
from ..shards import is_sharded
from ..tensors import column
from .delivery import Delivery
from .displacement import rate_of
from .hooks import StepHooks
from .labels import Labels
from .probes import Probe
from .readings import Pending, Reading

Optimizer = torch.optim.Optimizer

_log = logging.getLogger("weibull_kernels")


class Meter:
    """Measures the steps of the optimizers it is attached to; `attach` makes it.

    Leaving a `with` block, or `detach()`, records what is left and takes the hooks off. It need not be
    kept: the optimizers keep it, and at the end of the program what has been measured is handed on.
    """

    def __init__(self, labels: Labels, every: int, delivery: Delivery) -> None:
        self._labels, self._every, self._delivery = labels, every, delivery
        # The optimizers keep their hooks and those keep the meter: no reference goes back, so that all of it
        # goes with them and nothing waits for the garbage collector.
        self._hooked: list[weakref.ref[StepHooks]] = []
        self._read: dict[int, Pending] = {}
        self._copies: list[weakref.ref[Meter]] = []
        self._ended: tuple[int, ...] | None = None  # the steps, once it is detached
        # Where nobody detaches it: at the end of the program, or when the optimizers are gone.
        self._finish = weakref.finalize(self, delivery.finish)

    @property
    def attached(self) -> bool:
        """Whether it still measures: it was not detached, and measuring has not failed."""
        return self._ended is None

    @property
    def latest(self) -> ForceBudget | None:
        """The budget of the last record, on the host; None before the first."""
        return self._delivery.latest

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each optimizer, with those that a gradient scaler has skipped since it was attached."""
        return tuple(hooks.count for hooks in self._hooks) if self._ended is None else self._ended

    def flush(self) -> None:
        """Hands all that has been measured to the sinks; waits for the device."""
        self._close()
        self._delivery.finish()

    def detach(self) -> None:
        """Records the steps that a ledger has booked since the last record, and takes all hooks off.

        Waits for the device. Where parameters are sharded every process must call it. Sinks are not closed
        but let go: a record file that nobody else holds is completed. The second time it does nothing. Should
        the last record fail, that is logged, and raised where other processes wait for it.
        """
        for hooks in self._hooks:
            if self.attached and hooks.seen == 0 and not self._copies:
                _log.warning("a meter is taken off that has seen no step: was the optimizer made anew?")
        self._detach(rest=True, wait=True, raises=self._sharded)

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were, which not every optimizer counts itself (SGD, Muon, Lion)."""
        return {"steps": list(self.steps)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on counting where the saved meter was; after the optimizers have loaded their states.

        Raises:
            ValueError: it is not the state of a meter of as many optimizers.
        """
        steps = state_dict.get("steps")
        if not isinstance(steps, (list, tuple)) or len(steps) != len(self.steps):
            raise ValueError(
                f"expected the state of a meter of {len(self.steps)} optimizers, {{'steps': [...]}}, got "
                f"{dict(state_dict)!r}"
            )
        for hooks, count in zip(self._hooks, steps, strict=False):
            hooks.go_on_from(int(count))
        self._ended = None if self.attached else tuple(map(int, steps))

    def hook(self, optimizer: Optimizer, probe: Probe, steps: int = 0) -> None:
        """Measures one more optimizer from now on; `steps` it has made already, if its state does not say."""
        callbacks: dict[str, Any] = {
            "on_step": self._delivery.poll,
            "on_read": self._take,
            "on_copy": self._follow,
            "on_failure": self._fail,
        }
        hooks = StepHooks(optimizer, len(self._hooked), probe, self._every, steps, **callbacks)
        self._hooked.append(weakref.ref(hooks))
        # The sums over shards may wait for a process that is gone: nobody waits for them at the end.
        self._delivery.patient = not self._sharded

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error other processes may be gone, and whoever waits for their shards waits for ever.
        alone, well = not self._sharded, kind is None
        self._detach(rest=alone or well, wait=alone or well, raises=well and not alone)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        """The meter that copies of the optimizers get, see `_follow`; itself where it measures no more."""
        optimizers = [hooks.optimizer for hooks in self._hooks]
        if not self.attached or not optimizers or None in optimizers:
            return self
        for optimizer in optimizers:
            copy.deepcopy(optimizer, memo)
        meter: Meter = memo[id(self)]
        return meter

    def __getstate__(self) -> None:
        raise TypeError("a meter cannot be pickled; save meter.state_dict(), and attach a new one to resume")

    @property
    def _hooks(self) -> list[StepHooks]:
        """Those of the optimizers that are still there."""
        return [hooks for one in self._hooked if (hooks := one()) is not None]

    @property
    def _sharded(self) -> bool:
        optimizers = [hooks.optimizer for hooks in self._hooks]
        return any(is_sharded(p) for one in optimizers if one is not None for p in parameters_of(one))

    def _take(self, hooks: StepHooks, optimizer: Optimizer, budget: ForceBudget) -> None:
        """Sends what was read on its way; a record is whole when every optimizer has been read."""
        budget, groups = self._labels.on(hooks.place, optimizer, budget)
        home = budget.alignment.device
        rates = [rate_of(group) for group in optimizer.param_groups]
        decays = [scalar(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        lr, weight_decay = (column((by_group[i] for i in groups), home) for by_group in (rates, decays))
        if hooks.place in self._read:  # of the others some did not step
            self._close()
        self._read[hooks.place] = Pending(Reading.of(budget, lr, weight_decay), hooks.count)
        if len(self._read) == len(self._hooked):
            self._close()

    def _close(self) -> None:
        """Hands the readings of one record over."""
        if self._read:
            readings, self._read = [self._read[place] for place in sorted(self._read)], {}
            self._delivery.add(readings, author=id(self))

    def _follow(self, hooks: StepHooks, twin: Optimizer, memo: dict[int, Any]) -> None:
        """Measures a copy of an optimizer as well, by a meter of its own with the same sinks.

        Optimizers that are copied together share it, and it is what `deepcopy` makes of this meter.
        """
        if id(self) not in memo:
            memo[id(self)] = Meter(self._labels, self._every, self._delivery)
            self._copies.append(weakref.ref(memo[id(self)]))
        optimizer = hooks.optimizer
        assert optimizer is not None
        self._labels.follow(hooks.place, optimizer, twin)
        memo[id(self)].hook(twin, copy.copy(hooks.probe), hooks.count)

    def _fail(self, error: Exception) -> None:
        """Stops measuring; among processes that share tensors it raises, since the others would wait."""
        if self._sharded:
            raise error
        _log.error("measuring failed and has stopped, the training goes on: %s", error, exc_info=error)
        self._detach(rest=False, wait=True, raises=False)

    def _detach(self, *, rest: bool, wait: bool, raises: bool) -> None:
        for twin in self._copies:
            if (meter := twin()) is not None:
                meter._detach(rest=rest, wait=wait, raises=raises)
        if self._ended is not None:
            return
        hooked, self._ended = self._hooks, self.steps
        for hooks in hooked:
            hooks.remove()
        try:
            if rest:
                self._take_rest(hooked)
            self._close()
            self._delivery.finish(wait=wait)
        except Exception as error:
            if raises:
                raise
            _log.error("the last records could not be taken: %s", error, exc_info=error)
        finally:
            # The sinks are let go; what was measured last can still be asked for.
            self._finish.detach()
            self._delivery = self._delivery.ended()

    def _take_rest(self, hooked: list[StepHooks]) -> None:
        """The record of what ledgers have booked since the last one."""
        self._close()
        for hooks in hooked:
            optimizer = hooks.optimizer
            if optimizer is not None and (budget := hooks.probe.rest(optimizer)) is not None:
                self._take(hooks, optimizer, budget)
