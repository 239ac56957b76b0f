"""Learning-rate schedules: the rate of every optimizer step, from whatever is known of it."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from .budget import Array

Schedule: TypeAlias = (
    float | Callable[..., Any] | Mapping[int, float] | tuple[Array, Array] | str | os.PathLike[str]
)
"""A number, a function of the step, a table, the path of one, or a description; see `rates`."""


def rates(lr: Schedule, steps: np.ndarray) -> np.ndarray:
    """The learning rate η(t) of each optimizer step t, the first of which is t = 1.

        a number       η, also as text: "1e-3"
        a function     η(t), of all steps as one array, or of one step as an int where it takes no array
        a table        {step: η}, a pair (steps [N], η [N]), or the path of a .csv or .parquet file
                       with the columns `step` and `lr`; straight between its rows
        a description  "kind:key=value,key=value", with p = t − 1 + first

            any of them    peak·p/warmup where p < warmup, then
            constant       lr
            linear         peak·(floor + (1 − floor)·(1 − f)),               f = (p − warmup)/(total − warmup)
            cosine         peak·(floor + (1 − floor)·(1 + cos πf)/2),        the same f
            inverse_sqrt   peak·√(warmup/p)
            wsd            peak, and peak·(floor + (1 − floor)·(total − p)/decay) in the last `decay` steps

    `floor` is a part of the peak. `warmup`, `floor` and `first` may be left out (0, 0 and 1), but not
    the warm-up of inverse_sqrt; the other keys are needed. In trainers with a LambdaLR (torch,
    Hugging Face) the first step has position 0: `first=0`.

    Args:
        lr: one of these. A mapping is sorted; other tables ascend.
        steps: t, whole numbers from 1, of any shape.

    Returns:
        η, float64, of the shape of `steps`.

    Raises:
        ValueError: `lr` is none of these, fails at a step or does not cover all of them, or a rate
            is negative or not finite; what was expected and what came is then named.

    >>> rates("cosine:peak=1e-3,total=8,warmup=2,floor=0.5", np.array([1, 2, 5, 8])).tolist()
    [0.0005, 0.001, 0.00075, 0.0005]
    >>> rates({1: 0.0, 11: 1.0}, np.array([1, 6])).tolist()
    [0.0, 0.5]
    """
    steps = np.asarray(steps)
    if not (np.isfinite(steps) & (steps >= 1) & (steps == np.floor(steps))).all():
        raise ValueError(f"steps must be whole numbers from 1, got {steps.ravel().tolist()[:8]}")
    if isinstance(lr, (str, os.PathLike)):
        found = _from_text(os.fspath(lr), steps)
    elif isinstance(lr, Mapping):
        rows, values = _numbers("lr", lr.keys()), _numbers("lr", lr.values())
        order = np.argsort(rows)
        found = _from_table("lr", rows[order], values[order], steps)
    elif isinstance(lr, (tuple, list)) and len(lr) == 2:
        found = _from_table("lr", _numbers("lr[0]", lr[0]), _numbers("lr[1]", lr[1]), steps)
    elif callable(lr):
        found = _from_function(lr, steps)
    else:
        try:
            found = np.full(steps.shape, _number(lr))
        except (TypeError, ValueError):
            raise ValueError(
                f"lr must be a number, a function of the step, {{step: lr}}, (steps, lrs) or text; got {lr!r}"
            ) from None
    _require_rates("lr", steps, found)
    return found


def _constant(p: np.ndarray, lr: float, **_: float) -> np.ndarray:
    return np.full(p.shape, lr)


def _linear(p: np.ndarray, peak: float, total: float, warmup: float, floor: float) -> np.ndarray:
    return peak * (floor + (1 - floor) * (1 - _fraction(p, total, warmup)))


def _cosine(p: np.ndarray, peak: float, total: float, warmup: float, floor: float) -> np.ndarray:
    return peak * (floor + (1 - floor) * (1 + np.cos(np.pi * _fraction(p, total, warmup))) / 2)


def _inverse_sqrt(p: np.ndarray, peak: float, warmup: float) -> np.ndarray:
    return peak * np.sqrt(warmup / p)


def _wsd(p: np.ndarray, peak: float, total: float, decay: float, floor: float, **_: float) -> np.ndarray:
    return peak * (floor + (1 - floor) * np.minimum((total - p) / decay, 1))


def _fraction(p: np.ndarray, total: float, warmup: float) -> np.ndarray:
    return (p - warmup) / max(total - warmup, 1)  # a warm-up to the very end leaves nothing after it


_KINDS: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...], dict[str, float]]] = {
    "constant": (_constant, ("lr",), {"warmup": 0}),
    "linear": (_linear, ("peak", "total"), {"warmup": 0, "floor": 0}),
    "cosine": (_cosine, ("peak", "total"), {"warmup": 0, "floor": 0}),
    "inverse_sqrt": (_inverse_sqrt, ("peak", "warmup"), {}),
    "wsd": (_wsd, ("peak", "total", "decay"), {"warmup": 0, "floor": 0}),
}
"""The rate from the end of the warm-up on, the keys it needs, and those it may have."""


def _from_text(text: str, steps: np.ndarray) -> np.ndarray:
    with suppress(ValueError):
        return np.full(steps.shape, float(text))
    path = Path(text)
    if path.suffix in (".csv", ".parquet") and path.is_file():
        columns = _columns(path)
        if missing := [name for name in ("step", "lr") if name not in columns]:
            raise ValueError(f"{text} must have the columns step and lr, it lacks {' and '.join(missing)}")
        rows, values = (_numbers(f"the column {name} of {text}", columns[name]) for name in ("step", "lr"))
        return _from_table(text, rows, values, steps)
    kind, _, settings = text.strip().partition(":")
    if kind not in _KINDS:
        raise ValueError(
            f"lr must be a number, an existing .csv or .parquet file, or kind:key=value,key=value with a "
            f"kind of {', '.join(_KINDS)}; got {text!r}"
        )
    try:
        given = _settings(kind, settings)
    except ValueError as error:
        raise ValueError(f"{error}; in lr={text!r}") from None
    first, warmup = given.pop("first"), given["warmup"]
    end = given.get("total", math.inf) + 1 - first
    _require_covered(f"lr={text!r}", 1, end, steps, "give it a larger total")
    p = steps.astype(np.float64) - 1 + first
    # No formula is asked for positions before its own: √(warmup/p) has none at 0.
    after = _KINDS[kind][0](np.maximum(p, warmup), **given)
    return np.where(p < warmup, after * p / max(warmup, 1), after)


def _settings(kind: str, text: str) -> dict[str, float]:
    """The value of every key of a description, defaults included."""
    needed, optional = _KINDS[kind][1], _KINDS[kind][2] | {"first": 1}
    values: dict[str, float] = {}
    for pair in text.split(",") if text else ():
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in (*needed, *optional):
            raise ValueError(f"{kind} has the keys {', '.join((*needed, *optional))}; got {key!r}")
        if key in values:
            raise ValueError(f"{key} must be given once, got it again")
        values[key] = math.nan
        with suppress(ValueError):
            values[key] = float(value)
        count, part = key in ("total", "warmup", "decay", "first"), key == "floor"
        least, most = int(count and key in needed), 1 if part else sys.float_info.max
        if not least <= values[key] <= most or (count and not values[key].is_integer()):
            expected = "a whole number of steps" if count else "a finite number"
            raise ValueError(f"{key} must be {expected} from {least}{' to 1' * part}, got {value!r}")
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"{kind} needs {', '.join(needed)}; missing: {', '.join(missing)}")
    values = optional | values
    total, warmup, decay = (values.get(key, 0.0) for key in ("total", "warmup", "decay"))
    if "total" in values and warmup + decay > total:
        both = "warmup and decay together" if decay else "warmup"
        raise ValueError(f"{both} must be at most total={total:.15g} steps, got {warmup + decay:.15g}")
    return values


def _from_table(name: str, rows: np.ndarray, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Straight between the rows of a table, ascending steps [N] and their rates [N]."""
    if len(rows) != len(values) or len(rows) == 0:
        raise ValueError(
            f"{name} must have one step and one rate in each row; got {len(rows)} and {len(values)}"
        )
    if falls := np.flatnonzero(~(np.diff(rows) > 0)).tolist():
        a, b = rows[falls[0] : falls[0] + 2]
        raise ValueError(f"the steps of {name} must ascend without repeats, got {b:.15g} after {a:.15g}")
    _require_rates(name, rows, values)
    _require_covered(f"the table {name}", rows[0], rows[-1], steps, "add rows for the others")
    return np.asarray(np.interp(steps, rows, values))


def _from_function(lr: Callable[..., Any], steps: np.ndarray) -> np.ndarray:
    def at(step: int) -> float:
        try:
            return _number(lr(step))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"lr must give a number for each step; at step {step}, {what}") from error

    # An array of one entry passes for a number in many functions, with warnings of numpy's.
    if steps.size > 1:
        # Whatever a function has against arrays; its true errors come back with their step.
        with suppress(Exception):
            found = lr(steps.copy())
            found = np.array(found.tolist() if isinstance(found, Tensor) else found, dtype=np.float64)
            if found.shape == steps.shape:
                return found
    each = [at(int(step)) for step in steps.ravel().tolist()]
    return np.array(each, dtype=np.float64).reshape(steps.shape)


def _numbers(name: str, column: Iterable[Any]) -> np.ndarray:
    """A column of a table, or any numbers, as float64 [N]."""
    try:
        values = column.tolist() if isinstance(column, (Tensor, np.ndarray)) else column
        return np.array([_number(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers only: {error}") from None


def _number(value: Any) -> float:
    # torch warns of float() where the tensor has a gradient.
    return float(value.detach() if isinstance(value, Tensor) else value)


def _columns(path: Path) -> dict[str, list[Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names, rows = reader.fieldnames or (), list(reader)
        return {name: [row[name] for row in rows] for name in names}
    import pyarrow.parquet as pq

    present = [name for name in ("step", "lr") if name in pq.read_schema(path).names]
    columns: dict[str, list[Any]] = pq.read_table(path, columns=present).to_pydict()
    return columns


def _require_covered(name: str, first: float, last: float, steps: np.ndarray, remedy: str) -> None:
    if steps.size and not (first <= steps.min() and steps.max() <= last):
        raise ValueError(
            f"{name} covers steps {first:.15g} to {last:.15g}, but steps {steps.min():.15g} to "
            f"{steps.max():.15g} are needed; {remedy}"
        )


def _require_rates(name: str, steps: np.ndarray, values: np.ndarray) -> None:
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(
            f"the rates of {name} must be finite and not negative, got {values[wrong][0]} "
            f"at step {steps[wrong][0]:.15g}"
        )
