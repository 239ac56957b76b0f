"""A meter in a training loop: hooks the steps of an optimizer and hands their force budgets to sinks."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..budget import ForceBudget
from ..dispatch import find_kernel
from ..names import Named
from ..optimizers import parameters_of, require_no_own_shards
from ..processes import this_process
from ..shards import is_sharded
from ..sinks.outbox import Outbox
from ..tensors import column, require_readable
from .delivery import Delivery
from .displacement import rate_of
from .hooks import StepHooks, is_hooked
from .labels import Labels
from .probes import Probe, new_probe, placed_parameters
from .readings import Pending, Reading

Optimizer = torch.optim.Optimizer

STATISTICS = ("moments", "weibull")

_log = logging.getLogger("weibull_kernels")


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int = 1,
    names: Named | None = None,
    only: str | Sequence[str] = "*",
    statistics: str = "moments",
    sinks: Iterable[Any] = (),
    roles: Mapping[str, str] | None = None,
    decoupled: bool | None = None,
    rank: int | None = 0,
    backend: str | None = None,
) -> Meter:
    """Measures every so-manieth step of an optimizer from now on and writes the budgets to sinks.

    The meter hooks `optimizer.step()`, so that it reads the rates that the step used, before a
    scheduler moves on, and nothing else in the loop changes: weights, moments and random state are the
    same bits with and without it. What it measures depends on the optimizer:

        `wk.AdamW`               its ledger: every record is the exact sum over all steps since the
                                 one before, and the steps in between cost nothing more
        `torch.optim.AdamW`, `Adam`  `wk.forces` of the one step that is due
        any other (Muon, Lion, SGD, …)  the displacement of the weights in the one step that is due,
                                 for which they are copied: η·u = c·w − w⁺

    Nothing waits for the device: numbers are sent to the host and handed to the sinks when they have
    arrived, on a CPU at once, else as a rule when the next step begins. A sink that fails never stops
    the training; it is reported once by the logger "weibull_kernels", and what it missed is written when it
    works again. Should measuring itself fail, that is logged and the meter stops.

    Steps that a gradient scaler skips, and tensors without a gradient, are not booked. A meter goes where
    the optimizer goes: a `deepcopy` of the optimizer is measured too, into the same sinks, and parameter
    groups that are added later are measured from then on.

    In a distributed job call it on every rank. Sharded parameters (DTensor: FSDP2, HSDP, tensor parallel)
    are measured as a whole: a record takes one all-reduce per device mesh; replicated ones (DDP) take none.
    Sinks are written on rank 0.

    Args:
        optimizer: or several that train one model together (Muon and AdamW; one for each parameter, stepped
            in the backward pass), whose rows make one record. Wrappers, such as accelerate's, are looked
            through.
        every: steps between two records: those whose number is a multiple of it.
        names: a model, or pairs or a mapping of names and parameters, for the rows. Else the names are those
            given to the optimizer (`AdamW(model.named_parameters())`), else positions, "group.index".
        only: patterns, as in `fnmatch`, of the names to record.
        statistics: "moments", those of the same pass over memory; or "weibull", which counts the histogram
            of |w| as well and fits shape and scale of every role, `k` and `scale` of the records.
        sinks: where the budgets go: `wk.ParquetSink`, `wk.JsonLinesSink`, `wk.ConsoleSink`; anything with
            `.log(dict, step)` such as a wandb run, a TensorBoard `SummaryWriter` or a function f(dict, step),
            which get the totals by role; anything with `write(step, budget, **scalars)` and `close()`.
        roles: patterns to roles, as in `wk.forces`.
        decoupled: whether weight decay of an optimizer that the library does not know is w ← (1−ηω)·w; with
            False it acts through the gradient, and there is no force of decay.
        rank: of the process whose sinks are written; None for every process, as where each has a stage
            of the model and a file of its own.
        backend: "reference", "cpu", "triton", or None to let the device choose.

    Returns:
        A `Meter`; `detach()` it, or use it in a `with` block, to have the last steps recorded.

    Raises:
        TypeError: no optimizer, one whose parameters are flat shards of an engine's own, or parameters that
            the kernels cannot read; or a sink is none of these.
        ValueError: an argument out of its range, parameters that `names` does not name, or an optimizer
            that has a meter already.
        RuntimeError: the named backend cannot run here.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> records = []
    >>> with attach(optimizer, names=model, sinks=[lambda values, step: records.append(step)]):
    ...     for _ in range(3):
    ...         model(torch.ones(1, 4)).sum().backward()
    ...         optimizer.step()
    >>> records
    [1, 2, 3]
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a whole number of steps from 1, got {every!r}")
    if statistics not in STATISTICS:
        raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, got {statistics!r}")
    optimizers = [_inner(one) for one in (optimizer if isinstance(optimizer, (list, tuple)) else [optimizer])]
    _require_measurable(optimizers, backend)
    labels = Labels(optimizers, names, only, roles)
    meter = Meter(labels, every, Delivery(Outbox(sinks if _writes_here(rank) else ())))
    for one in optimizers:
        histogram = statistics == "weibull"
        meter.hook(one, new_probe(one, histogram=histogram, decoupled=decoupled, backend=backend))
    return meter


class Meter:
    """Measures the steps of the optimizers it is attached to; `attach` makes it.

    Leaving a `with` block, or `detach()`, records what is left and takes the hooks off. It need not be
    kept: the optimizers keep it, and at the end of the program what has been measured is handed on.
    """

    def __init__(self, labels: Labels, every: int, delivery: Delivery) -> None:
        self._labels, self._every, self._delivery = labels, every, delivery
        self._hooks: list[StepHooks] = []
        self._read: dict[int, Pending] = {}
        self._copies: list[weakref.ref[Meter]] = []
        self._ended: tuple[int, ...] = ()  # the steps, once it is detached
        # Where nobody detaches it: at the end of the program, or when the optimizers are gone.
        self._finish = weakref.finalize(self, delivery.finish)

    @property
    def latest(self) -> ForceBudget | None:
        """The budget of the last record, on the host; None before the first."""
        return self._delivery.latest

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each optimizer, with those that a gradient scaler has skipped since it was attached."""
        return self._ended or tuple(hooks.count for hooks in self._hooks)

    def flush(self) -> None:
        """Hands all that has been measured to the sinks; waits for the device."""
        self._close()
        self._delivery.finish()

    def detach(self) -> None:
        """Records the steps that a ledger has booked since the last record, and takes all hooks off.

        Waits for the device. Where parameters are sharded every process must call it. Sinks are not closed
        but let go: a record file that nobody else holds is completed. The second time it does nothing.
        """
        self._detach(rest=True)

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were, which not every optimizer counts itself (SGD, Muon, Lion)."""
        return {"steps": list(self.steps)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on counting where the saved meter was; after the optimizers have loaded their states.

        Raises:
            ValueError: it is not the state of a meter of as many optimizers.
        """
        steps = state_dict.get("steps")
        if not isinstance(steps, (list, tuple)) or len(steps) != len(self._hooks):
            raise ValueError(
                f"expected the state of a meter of {len(self._hooks)} optimizers, {{'steps': [...]}}, got "
                f"{dict(state_dict)!r}"
            )
        for hooks, count in zip(self._hooks, steps, strict=True):
            hooks.count = int(count)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error other processes may be gone, and sums over shards would wait for them.
        self._detach(rest=kind is None or not self._sharded)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        """The meter that copies of the optimizers get; see `_follow`."""
        if self._ended:
            return self
        for hooks in self._hooks:
            copy.deepcopy(hooks.optimizer, memo)
        meter: Meter = memo[id(self)]
        return meter

    def __getstate__(self) -> None:
        raise TypeError("a meter cannot be pickled; save meter.state_dict(), and attach a new one to resume")

    def hook(self, optimizer: Optimizer, probe: Probe, steps: int = 0) -> None:
        """Measures one more optimizer from now on; `steps` it has made already, if its state does not say."""
        callbacks: dict[str, Any] = {
            "on_step": self._delivery.poll,
            "on_read": self._take,
            "on_copy": self._follow,
            "on_failure": self._fail,
        }
        hooks = StepHooks(optimizer, len(self._hooks), probe, self._every, steps, **callbacks)
        self._hooks.append(hooks)

    @property
    def _sharded(self) -> bool:
        optimizers = [hooks.optimizer for hooks in self._hooks]
        return any(is_sharded(p) for one in optimizers if one is not None for p in parameters_of(one))

    def _take(self, hooks: StepHooks, optimizer: Optimizer, budget: ForceBudget) -> None:
        """Sends what was read on its way; a record is whole when every optimizer has been read."""
        budget, groups = self._labels.on(hooks.place, optimizer, budget)
        home = budget.alignment.device
        rates = [rate_of(group) for group in optimizer.param_groups]
        decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        lr, weight_decay = (column((by_group[i] for i in groups), home) for by_group in (rates, decays))
        if hooks.place in self._read:  # of the others some did not step
            self._close()
        self._read[hooks.place] = Pending(Reading.of(budget, lr, weight_decay), hooks.count)
        if len(self._read) == len(self._hooks):
            self._close()

    def _close(self) -> None:
        """Hands the readings of one record over."""
        if self._read:
            self._delivery.add([self._read[place] for place in sorted(self._read)])
            self._read = {}

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
        self._detach(rest=False)

    def _detach(self, *, rest: bool) -> None:
        for twin in self._copies:
            if (meter := twin()) is not None:
                meter._detach(rest=rest)
        self._ended, (hooked, self._hooks) = self.steps, (self._hooks, [])
        for hooks in hooked:
            hooks.remove()
        if rest:
            self._take_rest(hooked)
        self.flush()
        # Nothing of the meter holds the sinks any more; what was measured last can still be asked for.
        self._finish.detach()
        self._delivery = self._delivery.ended()

    def _take_rest(self, hooked: list[StepHooks]) -> None:
        """The record of what ledgers have booked since the last one."""
        self._close()
        for hooks in hooked:
            optimizer = hooks.optimizer
            if optimizer is not None and (budget := hooks.probe.rest(optimizer)) is not None:
                self._take(hooks, optimizer, budget)


def _inner(optimizer: Any) -> Optimizer:
    """The optimizer that does the steps, inside of what wraps it.

    Raises:
        TypeError: it is none, or one that steps shards of its own.
    """
    require_no_own_shards(optimizer)
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
        require_no_own_shards(optimizer)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected a torch.optim.Optimizer or a list of them, got {type(optimizer).__module__}."
            f"{type(optimizer).__qualname__}; for an engine that is none, give its shards to wk.forces_from"
        )
    return optimizer


def _require_measurable(optimizers: Sequence[Optimizer], backend: str | None) -> None:
    """Raises an error if there is nothing to measure, or something that the kernels cannot read."""
    if not optimizers:
        raise ValueError("expected an optimizer or several, got an empty list")
    if any(map(is_hooked, optimizers)) or len(set(map(id, optimizers))) < len(optimizers):
        raise ValueError(
            "an optimizer can have one meter: give all sinks to one wk.attach(), or detach() the first meter"
        )
    for place, optimizer in enumerate(optimizers):
        rows = list(placed_parameters(optimizer))
        if not rows:
            raise ValueError(f"optimizer {place} has no parameters to measure")
        for row in rows:
            if not isinstance(row.tensor, torch.nn.UninitializedParameter):  # a lazy module's: it will be
                require_readable(row.name or row.place, row.tensor)
                find_kernel("sums", backend, row.tensor.device)


def _writes_here(rank: int | None) -> bool:
    """Whether this process is one whose sinks are written."""
    return rank is None or this_process()[0] == rank
