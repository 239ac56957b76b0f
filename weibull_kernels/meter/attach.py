"""One line in a training loop: `attach` checks what it is given and puts a meter on the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..dispatch import find_kernel
from ..names import Named
from ..optimizers import placed_parameters, require_no_own_shards
from ..processes import this_process
from ..sinks.outbox import Outbox
from ..tensors import require_readable
from .delivery import Delivery
from .hooks import is_hooked
from .labels import Labels
from .meter import Meter
from .probes import new_probe

Optimizer = torch.optim.Optimizer

STATISTICS = ("moments", "weibull")


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    names: Named | None = None,
    *,
    every: int = 1,
    only: str | Sequence[str] = "*",
    statistics: str = "moments",
    sinks: Iterable[Any] = (),
    roles: Mapping[str, str] | None = None,
    decoupled: bool | None = None,
    rank: int | None = 0,
    backend: str | None = None,
) -> Meter:
    """Measures every so-manieth step of an optimizer and writes the budgets to sinks.

    The meter hooks `optimizer.step()`, so that it reads the rates that the step used, before a
    scheduler moves on, and nothing else in the loop changes: weights, moments and random state are the
    same bits with and without it. What it measures depends on the optimizer:

        `wk.AdamW`               its ledger: every record is the exact sum over all steps since the
                                 one before (the first: since the ledger was last drained), and the
                                 steps in between cost nothing more
        `torch.optim.AdamW`, `Adam`  `wk.forces` of the one step that is due
        any other (Muon, Lion, SGD, …)  the displacement of the weights in the one step that is due,
                                 for which they are copied: η·u = c·w − w⁺

    Nothing waits for the device: numbers are sent to the host and handed to the sinks when they have
    arrived, on a CPU at once, else as a rule when the next step begins. A sink that fails never stops
    the training; it is reported once by the logger "weibull_kernels", and what it missed is written when it
    works again. Should measuring itself fail, that is logged and the meter stops.

    Steps that a CUDA graph makes are not recorded: its replays call no hooks, and the logger says so once.
    Steps that a gradient scaler skips, and tensors without a gradient, are not booked. Parameter groups that
    are added later are measured from then on. So is a `deepcopy` of the optimizer, which goes on in the
    same sinks from the last record; where both are trained, steps that the sinks have already are left
    out, and the logger says so.

    In a distributed job call it on every rank. Sharded parameters (DTensor: FSDP2, HSDP, tensor parallel)
    are measured as a whole: a record takes one all-reduce per device mesh; replicated ones (DDP) take none.
    Sinks are written on rank 0.

    Args:
        optimizer: or several that train one model together (Muon and AdamW; one for each parameter, stepped
            in the backward pass), whose rows make one record. Wrappers, such as accelerate's, are looked
            through.
        names: a model, or pairs or a mapping of names and parameters, for the rows. Else the names are those
            given to the optimizer (`AdamW(model.named_parameters())`), else positions, "group.index", of
            which no role can be told: a warning says so.
        every: steps between two records: those whose number is a multiple of it.
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
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.

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
    histogram = statistics == "weibull"
    # All of them first: where one cannot be measured none is hooked.
    probes = [new_probe(one, histogram=histogram, decoupled=decoupled, backend=backend) for one in optimizers]
    meter = Meter(labels, every, Delivery(Outbox(sinks if _writes_here(rank) else ())))
    for one, probe in zip(optimizers, probes, strict=True):
        meter.hook(one, probe)
    return meter


def _inner(optimizer: Any) -> Optimizer:
    """The optimizer that does the steps, inside of what wraps it.

    Raises:
        TypeError: it is none, or one that steps shards of its own.
    """
    if isinstance(optimizer, torch.optim.lr_scheduler.LRScheduler):
        raise TypeError(
            f"expected an optimizer, got a scheduler, {type(optimizer).__name__}; pass its optimizer"
        )
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
