"""The runs of a page: the forces of groups of tensors and of every tensor, from their records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..budget import ForceBudget
from ..drawing import rms
from ..phases import RunSummary, find_phases, moving_average, summarize_run
from ..records import FORCES, force_series, run_metadata
from ..report import role_series
from ..roles import TRANSMISSION, in_order


@dataclass(frozen=True, eq=False)
class Group:
    """The tensors of one role, or of several, summed, over a run.

    Attributes:
        label: what they are called on the page.
        tensors: how many there are.
        step: of the records, int64 [T], ascending.
        sums: as from `force_series`, numpy [T].
        decay_rate: ηω of a step at each record, [T]; of tensors that differ the mean by ‖w‖², as
            their decay adds up.
        rates_recorded: whether that is of the columns `lr` and `weight_decay`; else it is read
            off the decay.
        k, scale: of the Weibull fit, [T], NaN where there is none; None without any.
    """

    label: str
    tensors: int
    step: np.ndarray
    sums: ForceBudget
    decay_rate: np.ndarray
    rates_recorded: bool
    k: np.ndarray | None = None
    scale: np.ndarray | None = None

    @cached_property
    def known(self) -> np.ndarray:
        """The records whose forces and norm are finite, as positions."""
        columns = (*(getattr(self.sums, force) for force in FORCES), self.sums.norm_sq)
        return np.flatnonzero(np.isfinite(columns).all(axis=0))

    @cached_property
    def mean(self) -> ForceBudget:
        """The moving average of the forces of one step, [T], NaN where a record is not finite."""
        average = moving_average(*self._finite[:2]) if len(self.known) else self.sums
        columns: dict[str, Any] = {
            name: self._in_place(getattr(average, name)) for name in (*FORCES, "norm_sq")
        }
        return ForceBudget(**columns)

    @cached_property
    def phases(self) -> np.ndarray:
        """The phase at each record, [T]; "undefined" where it is not finite."""
        found = np.full(len(self.step), "undefined", dtype="U16")
        found[self.known] = find_phases(*self._finite)
        return found

    @cached_property
    def sigma(self) -> np.ndarray:
        """σ after each record, [T]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return finite(rms(self.sums))

    @cached_property
    def edges(self) -> np.ndarray:
        """Where the records begin and end along the steps, [T + 1]: one is of the steps up to its own."""
        return np.append(self.step - self.sums.steps, self.step[-1])

    @cached_property
    def summary(self) -> RunSummary | None:
        """`summarize_run` over the finite records; None where there is none."""
        step, sums, scale = self._finite
        rate = self.decay_rate[self.known]
        if not len(step) or not np.isfinite(rate).all():
            return None
        return summarize_run(step, sums, scale, lr=rate, weight_decay=1.0)

    @cached_property
    def tau(self) -> float:
        """1/(ηω) at the highest rate, in steps; infinite where nothing decays."""
        rate = np.nanmax(self.decay_rate, initial=0.0)
        return float(1 / rate) if rate > 0 else math.inf

    @cached_property
    def whole(self) -> ForceBudget:
        """The forces summed over the finite records: numbers."""
        return ForceBudget(
            **{name: getattr(self.sums, name)[self.known].sum() for name in FORCES},
            norm_sq=self.sums.norm_sq[0],
            rounding=None if self.sums.rounding is None else np.nansum(self.sums.rounding[self.known]),
        )

    @cached_property
    def _finite(self) -> tuple[np.ndarray, ForceBudget, np.ndarray | None]:
        """Steps, forces and λ of the finite records."""
        sums = self.sums.select(self.known.tolist())
        if np.isnan(sums.numel).any():
            sums = replace(sums, numel=None)
        return self.step[self.known], sums, None if self.scale is None else self.scale[self.known]

    def _in_place(self, values: np.ndarray) -> np.ndarray:
        placed = np.full(len(self.step), np.nan)
        placed[self.known] = values[: len(self.known)]
        return placed


@dataclass(frozen=True, eq=False)
class Tensors:
    """Every tensor of a run over its records.

    Attributes:
        names, roles: of the P tensors, in the order of the records.
        step: of the records, int64 [T], ascending.
        sums: forces, `steps` and `rounding` [P, T], 0 where a tensor has no record; `norm_sq` and
            `numel` NaN there.
        after: ‖w‖² after the record, [P, T].
        optimizer_step: the optimizer's count after the record, [P, T]; where there is none, the
            step of the record.
        non_finite: entries that are not finite after the last record that counts them, [P], NaN
            where none does.
        k, scale: the last ones known, [P]; None without any.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]
    step: np.ndarray
    sums: ForceBudget
    after: np.ndarray
    optimizer_step: np.ndarray
    non_finite: np.ndarray
    k: np.ndarray | None
    scale: np.ndarray | None

    @cached_property
    def present(self) -> np.ndarray:
        """Where a tensor has a record, [P, T]."""
        found: np.ndarray = ~np.isnan(self.optimizer_step)
        return found

    @cached_property
    def whole(self) -> ForceBudget:
        """The forces over the run, [P], of the records in which all of them are finite."""
        known = np.isfinite([getattr(self.sums, name) for name in FORCES]).all(axis=0)

        def total(values: np.ndarray) -> np.ndarray:
            return np.asarray(np.sum(values, axis=1, where=known & np.isfinite(values)))

        forces: dict[str, Any] = {name: total(getattr(self.sums, name)) for name in FORCES}
        rounding = self.sums.rounding
        return ForceBudget(
            **forces,
            norm_sq=first_known(self.sums.norm_sq),
            rounding=None if rounding is None else total(rounding),
            numel=last_known(np.asarray(self.sums.numel)),
        )


@dataclass(frozen=True, eq=False)
class Run:
    """One record file.

    Attributes:
        name: on the page.
        records: from `read_records`.
        groups: by label; transmission, where there is any, first, then all, then each role.
        tensors: one by one.
        lrs: η over the run of the tensors that have the same, by what they are called, [T] each.
    """

    name: str
    records: pa.Table
    groups: Mapping[str, Group]
    tensors: Tensors
    lrs: Mapping[str, np.ndarray]

    @property
    def main(self) -> Group:
        """The transmission weights, or all where there are none."""
        return next(iter(self.groups.values()))

    @property
    def metadata(self) -> dict[str, Any]:
        """Versions, machine, time and settings."""
        return run_metadata(self.records)

    @cached_property
    def gaps(self) -> int:
        """How many rows have a force or norm that is not finite."""
        columns = [_numbers(self.records, name) for name in (*FORCES, "norm_sq", "norm_sq_after")]
        return int((~np.isfinite(columns).all(axis=0)).sum())


def make_run(name: str, records: pa.Table) -> Run:
    """The run of a table of records.

    Raises:
        ValueError: there are none.
    """
    if records.num_rows == 0:
        raise ValueError(f"{name} has no records to show; was the sink ever written to?")
    tensors = _tensors(records)
    groups = {group.label: group for group in _groups(records)}
    return Run(name, records, groups, tensors, _lrs(records, tensors))


def _groups(records: pa.Table) -> Iterator[Group]:
    present = in_order(pc.unique(records["role"]).to_pylist())
    if transmission := [role for role in present if role in TRANSMISSION]:
        yield _group("transmission weights", _of_roles(records, transmission))
    yield _group("all weights", records)
    for role in present:
        yield _group(role.replace("_", " "), _of_roles(records, [role]), role)


def _of_roles(records: pa.Table, roles: list[str]) -> pa.Table:
    return records.filter(pc.is_in(records["role"], pa.array(roles)))


def _group(label: str, records: pa.Table, role: str | None = None) -> Group:
    step, sums = force_series(records)
    rate, recorded = _decay_rate(records, step, sums)
    fit: dict[str, np.ndarray] = {}
    for column in ("k", "scale"):
        if role is not None and column in records.column_names:
            values = finite(role_series(records, role, column))
            if (values > 0).any():
                fit[column] = np.where(values > 0, values, np.nan)
    return Group(label, len(pc.unique(records["name"])), step, sums, rate, recorded, **fit)


def _decay_rate(records: pa.Table, step: np.ndarray, sums: ForceBudget) -> tuple[np.ndarray, bool]:
    with np.errstate(invalid="ignore", divide="ignore"):
        if {"lr", "weight_decay"} <= set(records.column_names):
            row = np.searchsorted(step, records["step"].to_numpy())
            # Tensors of zeros have a rate too.
            weight = np.maximum(_numbers(records, "norm_sq"), 1e-200)
            # Decay that acts through the gradient is no force, and its rate no rate of decay.
            decays = _numbers(records, "decay") != 0
            rate = np.where(decays, _numbers(records, "lr") * _numbers(records, "weight_decay"), 0)
            return np.bincount(row, rate * weight) / np.bincount(row, weight), True
        steps = np.maximum(sums.steps, 1)
        inside = sums.norm_sq + np.where(steps > 1, sums.predicted_change / 2, 0)
        return np.where(sums.decay == 0, 0, -sums.decay / (2 * steps * inside)), False


def _tensors(records: pa.Table) -> Tensors:
    names = records["name"].combine_chunks().dictionary_encode()
    tensor = names.indices.to_numpy()
    step, column = np.unique(records["step"].to_numpy(), return_inverse=True)
    shape = len(names.dictionary), len(step)
    place = tensor * len(step) + column
    absent = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape) == 0

    def summed(name: str) -> np.ndarray:
        return np.bincount(place, _numbers(records, name), shape[0] * shape[1]).reshape(shape)

    def known(name: str) -> np.ndarray:
        return np.where(absent, np.nan, summed(name))

    def last(name: str) -> np.ndarray | None:
        return last_known(known(name)) if name in records.column_names else None

    count = np.full(shape, np.nan)
    own = _numbers(records, "optimizer_step")
    count[tensor, column] = np.where(np.isnan(own), records["step"].to_numpy(), own)
    steps = np.zeros(shape)
    steps[tensor, column] = records["steps"].to_numpy()
    has_rounding = records["rounding"].null_count < records.num_rows
    forces: dict[str, Any] = {name: summed(name) for name in FORCES}
    sums = ForceBudget(
        **forces,
        norm_sq=known("norm_sq"),
        rounding=summed("rounding") if has_rounding else None,
        numel=known("numel"),
        steps=steps,
    )
    _, first = np.unique(tensor, return_index=True)
    roles = tuple(records["role"].take(pa.array(first)).to_pylist())
    return Tensors(
        names=tuple(names.dictionary.to_pylist()),
        roles=roles,
        step=step,
        sums=sums,
        after=known("norm_sq_after"),
        optimizer_step=count,
        non_finite=last_known(known("non_finite_count")),
        k=last("k"),
        scale=last("scale"),
    )


def _lrs(records: pa.Table, tensors: Tensors) -> dict[str, np.ndarray]:
    if "lr" not in records.column_names:
        return {}
    tensor = pc.index_in(records["name"], pa.array(tensors.names)).to_numpy()
    lr = np.full(tensors.present.shape, np.nan)
    lr[tensor, np.searchsorted(tensors.step, records["step"].to_numpy())] = _numbers(records, "lr")
    curves, which = np.unique(np.nan_to_num(lr, nan=-1.0), axis=0, return_inverse=True)
    which = which.ravel()  # numpy 2.0 gives it another shape
    roles = np.array([role.replace("_", " ") for role in tensors.roles])
    found: dict[str, np.ndarray] = {}
    for i, curve in enumerate(curves):
        of = ", ".join(dict.fromkeys(roles[which == i].tolist()))
        label = "lr" if len(curves) == 1 else f"lr of {of}"
        while label in found:
            label += "′"
        found[label] = np.where(curve < 0, np.nan, curve)
    return found


def _numbers(records: pa.Table, column: str) -> np.ndarray:
    """As float64, null as NaN."""
    values: np.ndarray = records[column].to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def finite(values: np.ndarray) -> np.ndarray:
    """With NaN in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def first_known(values: np.ndarray) -> np.ndarray:
    """The first of each row that is not NaN, [P] of [P, T]."""
    place = np.argmax(~np.isnan(values), axis=1)
    return np.asarray(values[np.arange(len(values)), place])


def last_known(values: np.ndarray) -> np.ndarray:
    """The last of each row that is not NaN, [P] of [P, T]."""
    return first_known(values[:, ::-1])
