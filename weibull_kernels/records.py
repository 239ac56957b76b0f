"""The record file of a run: one row per recorded step and tensor, in Parquet."""

from __future__ import annotations

import json
import os
import platform
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .budget import Array, ForceBudget
from .columns import on_host
from .roles import roles_of

_FORMAT = 2  # 1 had no column `rounding`
_KEY = b"weibull_kernels"
_ROWS_PER_GROUP = 100_000

_FORCES = ("alignment", "injection", "decay", "coupling")
_STATISTICS = ("log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count")
_WHOLE = ("step", "numel", "steps", "optimizer_step", "zero_count", "non_finite_count")
_TEXT = ("name", "role")
_COLUMNS = (
    *("step", "name", "role"),
    *_FORCES,
    *("rounding", "norm_sq", "norm_sq_after", "numel", "steps", "optimizer_step"),
    *_STATISTICS,
)


class ParquetSink:
    """Writes force budgets to one Parquet file, one row per call and tensor.

    Columns: `step` as given to `write`; `name` and `role` of the tensor; `alignment`,
    `injection`, `decay`, `coupling`, signed sums over the steps of the budget; `rounding`, the
    measured Δ‖w‖² minus those four; `norm_sq`, ‖w‖² before the first of the steps;
    `norm_sq_after`, ‖w‖² after the last; `numel`; `steps`, how many optimizer steps the row
    covers; `optimizer_step`, the optimizer's own count after them; `log_sum`, `log_sq_sum`,
    `max_abs`, `zero_count`, `non_finite_count` of the weights after the last step; then the
    scalars given to the first `write`, float64, or text. Null is what the budget does not have.

    No step is booked twice. A row whose optimizer step is the one written last (a gradient
    scaler skipped the step, the tensor had no gradient) is written with zero force and
    `steps` 0, so that sums over the file are sums over the steps it covers.

    Records therefore take `wk.forces` after every step, or what `optimizer.ledger.drain()`
    returns, one interval after the other. A `peek()` begins at the last drain every time: two of
    them in one interval would book its first steps twice. One drained budget may go to several
    sinks; a drain for each would leave every one of them a part of the steps.

    A Parquet file cannot be read before its end is written. So rows go first to
    `<path>.part`, an Arrow stream that `read_records(path)` reads as well, even where the run
    was killed. Leaving the `with` block (an exception and Ctrl-C included), `close()` or the
    end of the program turn it into the Parquet file.

    Args:
        path: of the file; its directory is made.
        run: settings of the run, anything that JSON holds. They stay in the file together
            with the versions, the machine and the time; see `run_metadata`.
        overwrite: replace the records of an earlier run.

    Raises:
        FileExistsError: `path` has records and `overwrite` is not set.
        TypeError: `run` holds something that JSON does not.

    >>> import tempfile
    >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ParquetSink(folder + "/run.parquet") as sink:
    ...         sink.write(1, budget, loss=2.5)
    ...     read_records(folder + "/run.parquet")["loss"].to_pylist()
    [2.5]
    """

    def __init__(
        self, path: str | os.PathLike[str], run: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        metadata = {_KEY: _described(run or {})}
        for present in (self.path, _part(self.path)):
            if present.exists() and not overwrite:
                raise FileExistsError(
                    f"{present} has the records of an earlier run; give another path or overwrite=True"
                )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._file = _part(self.path).open("wb")
        self._schema = _schema({}, metadata)
        self._writer: Any = None
        self._booked: dict[tuple[int, str], int] = {}
        self._last: Callable[[], ForceBudget | None] = lambda: None
        # Runs once: at close(), when nobody holds the sink any more, or when the program ends.
        self._finish = weakref.finalize(self, _to_parquet, self._file, self.path, self._schema, os.getpid())

    def write(self, step: int, budget: ForceBudget, **scalars: Array) -> None:
        """Add the rows of one budget and hand them to the operating system.

        All columns come from the device in one copy; this waits for it.

        Args:
            step: of the training loop.
            budget: of P tensors, over steps that none before it covers.
            scalars: such as `loss` or `lr`: a number, text or one-entry tensor for all rows, or
                [P], one per row. The first call decides which there are.

        Raises:
            ValueError: the sink is closed; a scalar has the name of a column or does not fit
                the rows; or the scalars are others than at the first call.
        """
        if not self._finish.alive:
            raise ValueError(f"the sink of {self.path} is closed; make another, with a path of its own")
        if self._writer is None:
            self._schema = _schema(scalars, self._schema.metadata)
            self._writer = pa.ipc.new_stream(self._file, self._schema)
        if expected := set(scalars) ^ set(self._schema.names[len(_COLUMNS) :]):
            raise ValueError(
                f"every write must have the scalars of the first; {sorted(expected)} are in only one of them"
            )
        columns = _columns_on_host(budget, scalars)
        rows = len(columns["alignment"])
        names = budget.names or tuple(str(row) for row in range(rows))
        if budget is self._last():  # a drained budget; another covers other steps, even after a rollback
            _take_out(columns, np.full(rows, True))
        elif budget.rounding is None and "optimizer_step" in columns:
            _take_out(columns, _booked_again(columns["optimizer_step"].tolist(), names, self._booked))
        self._last = weakref.ref(budget)
        columns |= {
            "step": np.full(rows, step),
            "name": names,
            "role": roles_of(names, budget.role_overrides),
        }
        arrays = [_arrow(columns.get(field.name), field.type, rows) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._file.flush()

    def close(self) -> None:
        """Turn what was written into the Parquet file; the second time, do nothing."""
        self._finish()

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_records(path: str | os.PathLike[str]) -> pa.Table:
    """The records that a `ParquetSink` wrote, as a pyarrow table; `.to_pandas()` makes a frame of it.

    Where the run still writes, or was killed, these are the rows written so far. In files of
    versions that did not know of it, `rounding` is null.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, or columns are missing.
    """
    path = Path(path)
    part = _part(path)
    # The part goes only once the Parquet file is whole, so while it is there it counts.
    found = part if part.exists() else path
    if not found.is_file():
        raise FileNotFoundError(
            f"no records at {path}: expected the file that ParquetSink({str(path)!r}) wrote"
        )
    try:
        table = pa.Table.from_batches(*_streamed(part)) if found == part else pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{found} is not a record file of ParquetSink: {error}") from None
    if _KEY not in (table.schema.metadata or {}):
        raise ValueError(
            f"{found} is not a record file of ParquetSink: its metadata has no 'weibull_kernels'"
        )
    if "rounding" not in table.column_names:  # format 1
        table = table.append_column("rounding", pa.nulls(table.num_rows, pa.float64()))
    if missing := [column for column in _COLUMNS if column not in table.column_names]:
        raise ValueError(f"{found} lacks the columns {missing}; read the file as ParquetSink wrote it")
    return table


def run_metadata(records: pa.Table) -> dict[str, Any]:
    """What a record file knows of its run: `run` as given to `ParquetSink`, versions, machine, time."""
    return cast("dict[str, Any]", json.loads(records.schema.metadata[_KEY]))


def force_series(records: pa.Table, *roles: str) -> tuple[np.ndarray, ForceBudget]:
    """The forces over a run, summed over the tensors of some roles.

    Args:
        records: from `read_records`.
        roles: which, such as `*TRANSMISSION`; every tensor if none is given.

    Returns:
        The recorded steps, int64 [T], ascending, and a budget whose rows are those records,
        numpy [T]: forces, `rounding`, `norm_sq` and `numel` are sums over the tensors, `steps` the
        most that one of them made. A record covers the steps since the one before: forces over
        `steps` are those of one step. `rounding` is None where no record has any, NaN in those
        that lack it for some tensor.

    Raises:
        ValueError: no tensor has one of the roles.
    """
    role = records["role"].to_numpy(zero_copy_only=False)
    chosen = np.isin(role, roles) if roles else np.full(len(role), True)
    if not chosen.any():
        raise ValueError(f"no record has the role {' or '.join(roles)}; there are {sorted(set(role))}")
    step, row = np.unique(records["step"].to_numpy()[chosen], return_inverse=True)

    def summed(name: str) -> Any:
        return np.bincount(row, records[name].to_numpy(zero_copy_only=False)[chosen])

    steps = np.zeros(len(step), dtype=np.int64)
    np.maximum.at(steps, row, records["steps"].to_numpy()[chosen])
    sums = {name: summed(name) for name in (*_FORCES, "rounding", "norm_sq", "numel")}
    if records["rounding"].null_count == records.num_rows:
        sums["rounding"] = None
    return step, ForceBudget(**sums, steps=steps)


def _described(run: Mapping[str, Any]) -> bytes:
    from . import __version__

    described = {
        "format": _FORMAT,
        "weibull_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": dict(run),
    }
    return json.dumps(described).encode()


def _schema(scalars: Mapping[str, Array], metadata: dict[bytes, bytes]) -> pa.Schema:
    if taken := sorted(set(scalars) & set(_COLUMNS)):
        raise ValueError(f"{taken} are columns of every record file; give the scalars other names")

    def kind(column: str) -> pa.DataType:
        return pa.string() if column in _TEXT else pa.int64() if column in _WHOLE else pa.float64()

    known = [(column, kind(column)) for column in _COLUMNS]
    own = [(name, pa.string() if _is_text(value) else pa.float64()) for name, value in scalars.items()]
    return pa.schema([*known, *own], metadata)


def _is_text(value: Array) -> bool:
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "U")


def _columns_on_host(budget: ForceBudget, scalars: Mapping[str, Array]) -> dict[str, Any]:
    """Every column that is known, [P] on the host."""
    fields = (*_FORCES, "rounding", "norm_sq", "numel", "steps")
    columns = {name: getattr(budget, name) for name in fields}
    columns["optimizer_step"] = budget.step
    if budget.weights is None:
        change = budget.predicted_change + (0 if budget.rounding is None else budget.rounding)
        columns["norm_sq_after"] = budget.norm_sq + change
    else:
        columns["norm_sq_after"] = budget.weights.norm_sq
        columns |= {name: getattr(budget.weights, name) for name in _STATISTICS}
    # A loss may be bfloat16, which numpy does not know, and a list may hold tensors.
    columns |= {
        name: np.array(value) if _is_text(value) else torch.as_tensor(value, dtype=torch.float64)
        for name, value in scalars.items()
    }
    known = on_host({name: column for name, column in columns.items() if column is not None})
    rows = max(column.size for column in known.values())
    if sizes := {name: column.shape for name, column in known.items() if column.size not in (1, rows)}:
        raise ValueError(f"columns must have one entry per tensor, {rows}, or a single one, got {sizes}")
    return {name: np.broadcast_to(column.reshape(-1), rows) for name, column in known.items()}


def _booked_again(
    counts: list[float], names: tuple[str, ...], booked: dict[tuple[int, str], int]
) -> np.ndarray:
    """Which rows have the optimizer step that was written last time already, [P]; these are, from now on."""
    rows = list(enumerate(names))  # two tensors may have the same name
    again = np.array([booked.get(row) == count for row, count in zip(rows, counts, strict=True)])
    booked.update(zip(rows, map(int, counts), strict=True))
    return again


def _take_out(columns: dict[str, Any], again: np.ndarray) -> None:
    """Take the force out of the rows that were written before."""
    for column in (*_FORCES, "rounding", "steps"):
        if column in columns:
            columns[column] = np.where(again, 0, columns[column])
    columns["norm_sq"] = np.where(again, columns["norm_sq_after"], columns["norm_sq"])


def _arrow(column: Any, kind: pa.DataType, rows: int) -> pa.Array:
    return pa.nulls(rows, kind) if column is None else pa.array(column, kind)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _streamed(part: Path) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """The whole batches of an Arrow stream, of which the end may be missing."""
    with pa.ipc.open_stream(part.read_bytes()) as stream:
        return list(_until_torn(stream)), stream.schema


def _until_torn(stream: Any) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield stream.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return


def _to_parquet(file: IO[bytes], path: Path, empty: pa.Schema, owner: int) -> None:
    if os.getpid() != owner:  # a forked child that ends must leave the parent's file alone
        return
    file.close()
    part = _part(path)
    batches, schema = _streamed(part) if part.stat().st_size else ([], empty)
    whole = path.with_name(path.name + ".whole")
    pq.write_table(pa.Table.from_batches(batches, schema), whole, row_group_size=_ROWS_PER_GROUP)
    whole.replace(path)  # at once: a reader sees the stream or the Parquet file, never half of it
    part.unlink()
