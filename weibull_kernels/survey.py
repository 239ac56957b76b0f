"""Weibull fits of whole checkpoints: a row for every tensor and every role, in little memory."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from .roles import ROLES, TRANSMISSION
from .statistics import WeightStatistics, readable, stored_statistics
from .stored_tensors import Checkpoint, StoredTensor
from .weibull import HALF_NORMAL_K, HISTOGRAM_ENTRIES, WeibullFit, fit_weibull, resolved

FEWEST_FOR_A_CLASS = 10_000
_SORTED = 1 << 20  # entries, at most, of a tensor that is read whole


def weight_class(method: str, k: float, r_squared: float, ks: float, count: int) -> str:
    """What a distribution of |w| looks like, from its fit: a label for tables and no test.

        Weibull       R² ≥ 0.9985 and KS ≤ 0.025
        half-normal   else, if k is within 4 % of what the method finds for Gaussian weights
                      (1.2054 by the probability plot), R² ≥ 0.996 and KS ≤ 0.035
        not Weibull   else
        too few       under 10,000 non-zero entries, of which chance moves R² across the bounds
        no fit        k is NaN

    Gaussian weights are not Weibull: their own R² is 0.9977 and KS 0.025, so the bounds lie between
    them and a Weibull distribution's, 1 and 0. Student's t with ν degrees of freedom is half-normal
    for ν ≥ 20, Weibull at 5 ≤ ν ≤ 10 and not at 2. The k of 1.18 to 1.21 that [W1] and [W2] give
    for attention output and FFN come with one class or the other: R² decides, and not k.

    Args:
        method: of the fit.
        k: from the fit.
        r_squared: likewise.
        ks: likewise.
        count: non-zero entries.

    >>> weight_class("probability_plot", 1.2054, 0.9977, 0.0246, 1_000_000)
    'half-normal'
    """
    if math.isnan(k):
        return "no fit"
    if count < FEWEST_FOR_A_CLASS:
        return "too few"
    if r_squared >= 0.9985 and ks <= 0.025:
        return "Weibull"
    if abs(k / HALF_NORMAL_K[method] - 1) <= 0.04 and r_squared >= 0.996 and ks <= 0.035:
        return "half-normal"
    return "not Weibull"


@dataclass(frozen=True)
class FittedRow:
    """One tensor, or the tensors of one role together.

    Attributes:
        path: of the checkpoint, as it was given.
        name: of the tensor; that of the role where there may be several.
        role: "transmission" is attention output and FFN together.
        tensors, entries: how many.
        zero_count, non_finite_count, max_abs: of the entries.
        rms: σ = √(‖w‖²/n).
        method, route, k, k_error, scale, scale_error, r_squared, ks, q90_q50, q99_q50, gini, reason:
            as in `WeibullFit`; NaN is None.
        scale_over_rms: λ/σ.
        weight_class: see `weight_class`.
    """

    path: str
    name: str
    role: str
    tensors: int
    entries: int
    zero_count: int
    non_finite_count: int
    max_abs: float
    rms: float | None
    method: str
    route: str
    k: float | None
    k_error: float | None
    scale: float | None
    scale_error: float | None
    scale_over_rms: float | None
    r_squared: float | None
    ks: float | None
    q90_q50: float | None
    q99_q50: float | None
    gini: float | None
    weight_class: str
    reason: str | None


@dataclass(frozen=True)
class Survey:
    """The fits of one checkpoint.

    Attributes:
        tensors: a row for each, in the order of their names, numbers in them as numbers; none where
            they were not asked for.
        roles: a row for each that occurs, in the order of `ROLES`, then transmission.
        skipped: tensors with fewer than `min_numel` entries, and how many entries they have.
        left_out: names of what holds no weights, and why.
        narrow: tensors and roles that are fitted from a histogram although its bins are too wide
            for them; see `survey_checkpoint`.
    """

    tensors: list[FittedRow]
    roles: list[FittedRow]
    skipped: tuple[int, int]
    left_out: Mapping[str, str]
    narrow: tuple[str, ...] = ()


def survey_checkpoint(
    checkpoint: Checkpoint,
    path: str,
    *,
    method: str = "probability_plot",
    by_tensor: bool = True,
    min_numel: int = 0,
    on_read: Callable[[int], object] = lambda count: None,
) -> Survey:
    """Reads a checkpoint once and fits every tensor and every role.

    No more than 8 MB of it are in memory at a time. Histograms are fitted, and added for the
    roles; tensors of fewer than 100,000 non-zero entries, and those that the histogram does not
    resolve (see `route` of `fit_weibull`), are read once more and sorted instead where they have no
    more than 1,048,576 entries, at some 100 bytes an entry. What is fitted from too
    wide bins after all is named in `narrow`.

    Args:
        checkpoint: from `open_checkpoint`.
        path: what the rows are to call it.
        method: of `fit_weibull`.
        by_tensor: fit each tensor too, not the roles alone.
        min_numel: skip tensors with fewer entries.
        on_read: called with how many bytes were read, each time some were.

    Raises:
        CheckpointError: a file has changed since it was opened.
        TypeError: a tensor has a dtype that is not read, such as float8.
        ValueError: nothing is left to fit.
    """
    weights, left_out = readable(checkpoint)
    kept = [tensor for tensor in weights if tensor.numel >= min_numel]
    skipped = [tensor.numel for tensor in weights if tensor.numel < min_numel]
    on_read(sum(tensor.nbytes for tensor in checkpoint) - sum(tensor.nbytes for tensor in kept))
    if not kept:
        raise ValueError(f"{path} holds no floating-point tensor of at least {min_numel} entries")
    rows: list[FittedRow] = []
    by_role: dict[str, WeightStatistics] = {}
    count_of: dict[str, int] = {}
    narrow: list[str] = []
    for part in stored_statistics(kept, on_read=on_read):
        if by_tensor:
            found = list(_rows(path, part, *_fits(checkpoint, part, method)))
            narrow += _narrow(part, found)
            rows += found
        for role in dict.fromkeys(part.roles):
            members = [row for row, its_role in enumerate(part.roles) if its_role == role]
            _add(by_role, count_of, role, part.select(members).summed(role, role), len(members))
    for role in [role for role in TRANSMISSION if role in by_role]:
        one = dataclasses.replace(by_role[role], names=("transmission",))
        _add(by_role, count_of, "transmission", one, count_of[role])
    order = [role for role in (*ROLES, "transmission") if role in by_role]
    roles: list[FittedRow] = []
    for role in order:
        fit = fit_weibull(by_role[role], method, on_degenerate="mark")
        of_role = list(_rows(path, by_role[role], fit, {}, role, count_of[role]))
        narrow += [f"{name} together" for name in _narrow(by_role[role], of_role)]
        roles += of_role
    rows.sort(key=lambda row: _natural(row.name))
    return Survey(
        rows, roles, (len(skipped), sum(skipped)), left_out | dict(checkpoint.left_out), tuple(narrow)
    )


def to_arrow(rows: list[FittedRow]) -> pa.Table:
    """The rows as a table; `weight_class` is the column `class`."""
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    fields = dataclasses.fields(FittedRow)
    schema = pa.schema([(_heading(field.name), kinds[str(field.type).split(" ")[0]]) for field in fields])
    columns = [[getattr(row, field.name) for row in rows] for field in fields]
    return pa.table(columns, schema=schema)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    parts = re.split(r"([0-9]+)", name)  # every second one is a number, of any length
    digits = [part.lstrip("0") for part in parts[1::2]]
    numbers = [(len(number), number) for number in digits]
    words = [(-1, part) for part in parts[::2]]
    return [key for pair in zip(words, [*numbers, (-1, "")], strict=True) for key in pair]


def _heading(field: str) -> str:
    return "class" if field == "weight_class" else field


def _add(
    by_role: dict[str, WeightStatistics],
    count_of: dict[str, int],
    role: str,
    statistics: WeightStatistics,
    tensors: int,
) -> None:
    by_role[role] = by_role[role] + statistics if role in by_role else statistics
    count_of[role] = count_of.get(role, 0) + tensors


def _fits(
    checkpoint: Checkpoint, part: WeightStatistics, method: str
) -> tuple[WeibullFit, dict[int, WeibullFit]]:
    """By the histograms, and of the rows that they do not resolve by sorting them, one at a time."""
    fit = fit_weibull(part, method, on_degenerate="mark")

    def sorted_fit(tensor: StoredTensor) -> WeibullFit:
        return fit_weibull({tensor.name: tensor.load()}, method, route="exact", on_degenerate="mark")

    numel = part.numel.tolist()
    coarse = (_too_narrow(part) | (_count(part) < HISTOGRAM_ENTRIES)).tolist()
    rows = [row for row in range(len(part.names)) if coarse[row] and 0 < numel[row] <= _SORTED]
    return fit, {row: sorted_fit(checkpoint.tensors[part.names[row]]) for row in rows}


def _narrow(part: WeightStatistics, rows: list[FittedRow]) -> list[str]:
    """Names of the rows, those of the statistics, that were fitted from a histogram that is too coarse."""
    coarse = _too_narrow(part).tolist()
    return [
        row.name
        for row, is_coarse in zip(rows, coarse, strict=True)
        if is_coarse and row.route == "histogram" and row.k is not None
    ]


def _count(part: WeightStatistics) -> Tensor:
    """Of entries that are finite and not zero."""
    return part.numel - part.zero_count - part.non_finite_count


def _too_narrow(part: WeightStatistics) -> Tensor:
    """Rows whose entries share bins too often: the criterion of `fit_weibull` for tensors."""
    assert part.histogram is not None
    fullest, lowest = part.histogram.amax(1), part.histogram[:, 0]
    found: Tensor = ~resolved(fullest, lowest, part.max_abs, _count(part))
    return found


def _rows(
    path: str,
    statistics: WeightStatistics,
    fit: WeibullFit,
    exact: Mapping[int, WeibullFit],
    role: str | None = None,
    tensors: int = 1,
) -> Iterator[FittedRow]:
    of_fit = fit.to_dict()
    of_exact = {row: one.to_dict() for row, one in exact.items()}
    columns = statistics.to_dict()
    for row, (name, its_role) in enumerate(zip(statistics.names, statistics.roles, strict=True)):
        found, at = (of_exact[row], 0) if row in of_exact else (of_fit, row)
        fitted: dict[str, Any] = {column: _cell(found[column][at]) for column in _OF_FIT}
        k, count = found["k"][at], int(found["count"][at])
        rms = fitted["rms"]
        yield FittedRow(
            path=path,
            name=name,
            role=role or its_role,
            tensors=tensors,
            entries=int(columns["numel"][row]),
            **{
                column: _cell(columns[column][row])
                for column in ("zero_count", "non_finite_count", "max_abs")
            },
            method=fit.method,
            **fitted,
            scale_over_rms=_cell(fitted["scale"] / rms) if fitted["scale"] is not None and rms else None,
            weight_class=weight_class(fit.method, k, found["r_squared"][at], found["ks"][at], count),
        )


_OF_FIT = (
    *("rms", "route", "k", "k_error", "scale", "scale_error", "r_squared", "ks"),
    *("q90_q50", "q99_q50", "gini", "reason"),
)


def _cell(value: Any) -> Any:
    """As Python has it, with None for NaN."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
