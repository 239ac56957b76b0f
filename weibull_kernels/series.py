"""Forces over the steps of a run, tensor by tensor: what a recovery returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .budget import ForceBudget
from .columns import Columns, require_pandas
from .roles import matching_rows, roles_of
from .sinks.parquet import ParquetSink
from .stored_tensors import PathLike

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FORCES = ("alignment", "injection", "decay", "coupling")


@dataclass(frozen=True, eq=False)
class ForceSeries(Columns):
    """Signed contributions to Δ‖w‖² of P tensors over T records of a run; positive means growth.

    Attributes:
        step: [T] int64, the last step that a record covers.
        steps: [T] int64, how many steps it covers.
        alignment, injection, decay, coupling: [P, T] float64, as in `ForceBudget`; [T] where the
            series is of one set of norms without a name.
        norm_sq: [P, T] float64, ‖w‖² before the first step of a record.
        numel: [P] int64, or a number.
        names: of the tensors, [P], or None.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    step: Integers
    steps: Integers
    alignment: Floats
    injection: Floats
    decay: Floats
    coupling: Floats
    norm_sq: Floats
    numel: Any
    names: tuple[str, ...] | None = None
    role_overrides: Mapping[str, str] | None = None

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The role of each tensor, as by `wk.role_of`; None where there are no names."""
        return None if self.names is None else roles_of(self.names, self.role_overrides)

    def series(self, pattern: str = "*", *, role: str | None = None) -> ForceBudget:
        """The tensors that match, summed: a `ForceBudget` whose rows are the records, numpy [T].

        As `wk.find_phases` and `wk.summarize_run` take it, with `step`.

        Args:
            pattern: as in `fnmatch`, such as "*.mlp.*"; all tensors by default.
            role: only those of this role; "transmission" is attention output and FFN together.

        Raises:
            ValueError: no name matches, or there are no names to match.
        """
        rows = self._matching(pattern, role)

        def summed(column: Floats) -> Floats:
            total: Floats = np.atleast_2d(column)[rows].sum(axis=0)
            return total

        columns: dict[str, Any] = {name: summed(getattr(self, name)) for name in (*FORCES, "norm_sq")}
        numel = np.broadcast_to(np.atleast_1d(self.numel)[rows].sum(), self.step.shape)
        return ForceBudget(**columns, numel=numel, steps=self.steps, step=self.step, tensors=len(rows))

    def _matching(self, pattern: str, role: str | None) -> list[int]:
        if self.names is None or self.roles is None:
            if pattern == "*" and role is None:
                return list(range(len(np.atleast_2d(self.alignment))))
            raise ValueError(f"this series has no names to match {role or pattern!r} with")
        return matching_rows(self.names, self.roles, pattern, role)

    def record(self, place: int) -> ForceBudget:
        """The budget of all tensors in one record, [P], as `ParquetSink` writes it."""
        columns: dict[str, Any] = {
            name: np.atleast_2d(getattr(self, name))[:, place] for name in (*FORCES, "norm_sq")
        }
        count = len(columns["alignment"])
        return ForceBudget(
            **columns,
            numel=np.broadcast_to(self.numel, count),
            steps=np.full(count, self.steps[place]),
            step=np.full(count, self.step[place]),
            names=self.names,
            role_overrides=self.role_overrides,
        )

    def to_arrow(self) -> pa.Table:
        """A pyarrow table with a row for each tensor and record."""
        shape = np.atleast_2d(self.alignment).shape
        per_tensor = {"name", "role", "numel", "weight_decay"}
        columns = {
            # [P] is of each tensor, [T] of each record.
            name: np.broadcast_to(
                values[:, None] if name in per_tensor and values.ndim == 1 else values, shape
            ).ravel()
            for name, values in self.to_dict().items()
        }
        return pa.table(columns)

    def to_pandas(self) -> pandas.DataFrame:
        """A frame with a row for each tensor and record.

        Raises:
            ImportError: pandas is not installed.
        """
        require_pandas()
        frame: pandas.DataFrame = self.to_arrow().to_pandas()
        return frame


@dataclass(frozen=True, eq=False)
class Impulses(ForceSeries):
    """The forces summed over each of the I = K−1 intervals between checkpoints, [P, I].

    `step` is the later checkpoint's, `steps` how many the interval has, `norm_sq` ‖w‖² at the
    earlier one. An impulse is known better than any single step: Δ‖w‖² over the interval is exact.

    Attributes:
        alignment_error, injection_error, decay_error: [P, I], one standard error, in units of ‖w‖²:
            that of the injection as estimated, that of the decay as the difference between two
            ways to interpolate ‖w‖², and both together for the alignment. None where the method
            makes no estimate. They go up and down together in all tensors: add them up.
        update_rms: û_rms, [P, I], or None.
        update_rms_error: relative, [P, I], or None.
        injection_source: "given", "stored", "diffusion" or "noise_limit", [P, I]; None where the
            injection is that of the interpolated path itself.
        window_error: [P, I], how much the forces of the interval change, relative to the absolute
            budget, if a spline's window is one checkpoint shorter; 0 where it was laid through all.
    """

    alignment_error: Floats | None = None
    injection_error: Floats | None = None
    decay_error: Floats | None = None
    update_rms: Floats | None = None
    update_rms_error: Floats | None = None
    injection_source: NDArray[np.str_] | None = None
    window_error: Floats | None = None

    def write(self, path: PathLike, run: Mapping[str, Any] | None = None) -> None:
        """As a record file like that of a training run, which `read_records` and `phase_table` take.

        A row for each tensor and interval; what the impulses know beside the forces is in columns of
        its own. A file that is there is replaced.

        Args:
            path: of the Parquet file.
            run: settings of the run, anything that JSON holds.
        """
        described = {name: column for name in _OF_IMPULSES if (column := getattr(self, name)) is not None}
        with ParquetSink(path, run, overwrite=True) as sink:
            for place, step in enumerate(self.step.tolist()):
                columns = {name: np.atleast_2d(column)[:, place] for name, column in described.items()}
                sink.write(step, self.record(place), **columns)


_OF_IMPULSES = (
    *("alignment_error", "injection_error", "decay_error"),
    *("update_rms", "update_rms_error", "injection_source", "window_error"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Recovery(ForceSeries):
    """The forces at single steps, [P, T], and over the intervals between checkpoints.

    The force of step t takes ‖w‖² from step t−1 to step t. Columns as in `ForceSeries`.

    Attributes:
        lr, weight_decay: η of each step and ω, [P, T] and [P].
        impulses: see `Impulses`.
        method, bc_type, variable: how it was recovered.
        left_out: names of tensors that were not, and why.
        notes: what else is to be known, such as an optimizer state that was not used.
    """

    lr: Floats
    weight_decay: Floats
    impulses: Impulses
    method: str
    bc_type: str
    variable: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was recovered, how, and how sure the injection is."""
        impulses, tensors = self.impulses, np.atleast_2d(self.alignment).shape[0]
        lines = [
            f"{len(impulses.step) + 1} checkpoints, steps {impulses.step[0] - impulses.steps[0]} to "
            f"{impulses.step[-1]}; {tensors} tensors, {np.sum(self.numel):,} weights; method {self.method}"
        ]
        if impulses.injection_source is not None and impulses.alignment_error is not None:
            sources, counts = np.unique(impulses.injection_source, return_counts=True)
            parts = ", ".join(
                f"{source.replace('_', ' ')} {100 * count / counts.sum():.0f} %"
                for source, count in zip(sources, counts, strict=True)
            )
            work, error = np.abs(np.atleast_2d(impulses.alignment)), np.atleast_2d(impulses.alignment_error)
            of_all = error.sum(axis=0) / np.maximum(work.sum(axis=0), np.finfo(float).tiny)
            of_each = error.sum(axis=1) / np.maximum(work.sum(axis=1), np.finfo(float).tiny)
            worst = int(of_each.argmax())
            name = "" if self.names is None else f", up to {of_each[worst]:.1%} for {self.names[worst]}"
            lines.append(
                f"injection from {parts} of the intervals, which leaves the alignment of an interval "
                f"uncertain by {np.median(of_all):.1%} over all tensors{name}"
            )
        if impulses.window_error is not None:
            lines.append(
                f"splines through windows of checkpoints; off by {impulses.window_error.max():.1e} at most"
            )
        return "\n".join([*lines, *self.notes])
