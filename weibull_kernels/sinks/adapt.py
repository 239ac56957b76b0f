"""A sink of whatever a training loop already logs to."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from rich.console import Console

from .console import ConsoleSink
from .live import LiveSink, Metrics
from .protocol import Sink

_KINDS = (
    "a sink of weibull_kernels, an object with write(step, budget, **scalars) and close(), one with "
    "log(dict, step=) such as a wandb run, one with log_metrics(dict, step=) such as a Lightning logger, a "
    "TensorBoard SummaryWriter, a rich Console, or a function f(dict, step)"
)


def as_sinks(things: Iterable[Any]) -> list[Sink]:
    """`as_sink` of each.

    Raises:
        TypeError: one of them is no sink, or they are not in a list.
    """
    if isinstance(things, (str, os.PathLike)) or not isinstance(things, Iterable):
        sink = f"wk.ParquetSink({str(things)!r})" if isinstance(things, (str, os.PathLike)) else repr(things)
        raise TypeError(f"sinks must be several, in a list, got {things!r}; write [{sink}]")
    return [as_sink(thing) for thing in things]


def as_sink(thing: Any) -> Sink:
    """The sink that a thing is, or one that gives it the `role_metrics` of each record.

    - A sink, ours or anyone's: an object with `write(step, budget, **scalars)` and `close()`. It stays
      what it is.
    - A TensorBoard `SummaryWriter`: `add_scalar(name, value, step)`.
    - Lightning's loggers and the module mlflow: `log_metrics(dict, step=)`.
    - A wandb run, the modules wandb and trackio, an accelerator: `log(dict, step=)`.
    - A function `f(dict, step)`, and a rich `Console`, which gets the lines of a `ConsoleSink`.

    wandb drops what comes with a step below its current one, which the loop's own logging may have moved
    on. So a wandb run gets its current step where that is larger, and the chart takes its axis from
    the metrics, once told so:

        run.define_metric("forces/step")
        run.define_metric("forces/*", step_metric="forces/step")

    Raises:
        TypeError: it is none of these; or a path, an open file or a logger of `logging`, of which the
            message says what to give instead.

    >>> seen = []
    >>> as_sink(lambda metrics, step: seen.append(step))
    LiveSink(<lambda>)
    """
    _refuse(thing)
    if isinstance(thing, Console):
        return ConsoleSink(thing)
    if callable(getattr(thing, "write", None)) and callable(getattr(thing, "close", None)):
        _require(thing.write, thing, "write(step, budget, **scalars)", 0, None, lr=0.0, weight_decay=0.0)
        sink: Sink = thing
        return sink
    called = getattr(thing, "__name__", type(thing).__name__)
    if callable(getattr(thing, "add_scalar", None)):
        return LiveSink(_adding(thing.add_scalar), called)
    if callable(getattr(thing, "log_metrics", None)):
        _require(thing.log_metrics, thing, "log_metrics(dict, step=)", {}, step=0)
        return LiveSink(lambda metrics, step: thing.log_metrics(metrics, step=step), called)
    if callable(getattr(thing, "log", None)):
        _require(thing.log, thing, "log(dict, step=)", {}, step=0)
        return LiveSink(lambda metrics, step: thing.log(metrics, step=_allowed(thing, step)), called)
    if callable(thing):
        _require(thing, thing, "f(dict, step)", {}, 0)
        return LiveSink(thing, called)
    raise TypeError(f"{thing!r} cannot take records; a sink is {_KINDS}")


def _refuse(thing: Any) -> None:
    """What looks like a sink, or is often given for one, and is none."""
    if isinstance(thing, (str, os.PathLike)):
        raise TypeError(
            f"a path is no sink: give wk.ParquetSink({os.fspath(thing)!r}), or a wk.JsonLinesSink"
        )
    if isinstance(thing, type):
        raise TypeError(f"{thing.__name__} is a class; a sink is one of its objects")
    if isinstance(thing, (logging.Logger, logging.LoggerAdapter)) or thing is logging:
        raise TypeError(
            f"{thing!r} takes messages, not numbers; give a function such as "
            "lambda metrics, step: logger.info('%d %s', step, metrics), or a wk.ConsoleSink()"
        )
    if hasattr(thing, "fileno") or hasattr(thing, "readline"):
        path = getattr(thing, "name", "run.jsonl")
        raise TypeError(f"an open file is no sink: give wk.JsonLinesSink({path!r}), or a wk.ParquetSink")


def _require(function: Callable[..., Any], thing: Any, form: str, *args: Any, **kwargs: Any) -> None:
    """Raise where a function does not take what it will be given: now, and not in the training loop."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled; nothing says what it takes
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{thing!r} does not take {form} ({error}); a sink is {_KINDS}") from None


def _adding(add_scalar: Callable[[str, float, int], object]) -> Callable[[Metrics, int], None]:
    def send(metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            add_scalar(name, value, step)

    return send


def _allowed(thing: Any, step: int) -> int:
    """The step, or the one that wandb is at where that is larger: what comes with a smaller one it drops."""
    run = getattr(thing, "run", None) if isinstance(thing, ModuleType) else thing
    if type(run).__module__.split(".")[0] != "wandb":
        return step
    current = getattr(run, "step", step)
    return max(step, current) if isinstance(current, int) else step
