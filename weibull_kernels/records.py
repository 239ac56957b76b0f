"""The record of a run: one row per recorded step and tensor, in Parquet or in JSON lines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .budget import Array, ForceBudget
from .columns import require_pandas
from .json_records import table_of
from .roles import TRANSMISSION, in_order

if TYPE_CHECKING:
    import pandas

FORMAT = 2  # of the columns, whatever file they are in; 1 had no column `rounding`
KEY = b"weibull_kernels"

FORCES = ("alignment", "injection", "decay", "coupling")
STATISTICS = ("log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count")
_WHOLE = ("step", "numel", "steps", "optimizer_step", "zero_count", "non_finite_count")
_TEXT = ("name", "role")
COLUMNS = (
    *("step", "name", "role"),
    *FORCES,
    *("rounding", "norm_sq", "norm_sq_after", "numel", "steps", "optimizer_step"),
    *STATISTICS,
)
_LARGEST = ("steps", "optimizer_step", "max_abs")  # what a role has as its largest, not as a sum


def read_records(path: str | os.PathLike[str]) -> pa.Table:
    """The records that a `ParquetSink` or a `JsonLinesSink` wrote, as a pyarrow table.

    Which of them it was is told from the content, and makes no difference to the table; `.to_pandas()`
    makes a frame of it. Where the run still writes, or was killed, these are the rows written so
    far. In files of versions that did not know of it, `rounding` is null.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is of a newer format, or columns are missing.
    """
    found, kind = found_at(path)
    if kind is None:
        raise FileNotFoundError(
            f"no records at {path}: expected what ParquetSink({str(path)!r}) or JsonLinesSink wrote"
        )
    try:
        table = _READERS[kind](found)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{found} is not a record file of ParquetSink or JsonLinesSink: {error}") from None
    if KEY not in (table.schema.metadata or {}):
        raise ValueError(
            f"{found} is not a record file of ParquetSink: its metadata has no 'weibull_kernels'"
        )
    if (newer := run_metadata(table).get("format", FORMAT)) > FORMAT:
        raise ValueError(
            f"{found} has format {newer}, this version of weibull_kernels reads formats up to {FORMAT}; "
            "install a newer one"
        )
    if "rounding" not in table.column_names:  # format 1
        table = table.append_column("rounding", pa.nulls(table.num_rows, pa.float64()))
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise ValueError(f"{found} lacks the columns {missing}; read the file as its sink wrote it")
    return table


def run_metadata(records: pa.Table) -> dict[str, Any]:
    """What a record file knows of its run: `run` as given to the sink, versions, machine, time.

    Of a run that went on with an earlier file (`append=True`), `resumed` has an entry for each time:
    `step` of its first record, `replaced_rows` that the steps made again took the place of, and
    what else the first session has.
    """
    return cast("dict[str, Any]", json.loads(records.schema.metadata[KEY]))


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
    sums = {name: summed(name) for name in (*FORCES, "rounding", "norm_sq", "numel")}
    if records["rounding"].null_count == records.num_rows:
        sums["rounding"] = None
    return step, ForceBudget(**sums, steps=steps)


def read_run(path: str | os.PathLike[str], by: str = "tensor") -> pandas.DataFrame:
    """The records of a run as a pandas frame, a row for each step and tensor, or each step and role.

    By role, forces, `rounding`, norms, `numel`, logarithms and counts are sums over the tensors,
    NaN where one of them has none; `steps`, `optimizer_step` and `max_abs` are the largest; `tensors`
    is how many there are. Of all other columns, such as `lr`, `k` and `scale`, the role has what all
    of its tensors agree on, and nothing where they do not. After the roles that occur, in the
    order of `wk.ROLES`, come "transmission" (attention output and FFN) and "all".

    Args:
        path: of a file that a `ParquetSink` or a `JsonLinesSink` wrote, is writing or was killed at.
        by: "tensor" or "role".

    Raises:
        ImportError: pandas is not installed.
        FileNotFoundError, ValueError: as by `read_records`; or `by` is neither.
    """
    if by not in ("tensor", "role"):
        raise ValueError(f"by must be 'tensor' or 'role', got {by!r}")
    library = require_pandas()
    frame: pandas.DataFrame = read_records(path).to_pandas()
    if by == "tensor":
        return frame
    roles = in_order(frame["role"])
    groups = [(role, frame["role"] == role) for role in roles]
    if set(roles) & set(TRANSMISSION):
        groups.append(("transmission", frame["role"].isin(TRANSMISSION)))
    parts = [_by_step(frame[chosen], role) for role, chosen in [*groups, ("all", frame["step"].notna())]]
    # Stable: within a step the roles stay in their order.
    whole: pandas.DataFrame = library.concat(parts).sort_values("step", kind="stable", ignore_index=True)
    return whole


def _by_step(rows: pandas.DataFrame, role: str) -> pandas.DataFrame:
    """The tensors of a role taken together, a row for each step."""
    groups = rows.groupby("step", sort=False)
    tensors = groups.size()
    columns: dict[str, Any] = {"role": role, "tensors": tensors}
    for name in rows.columns.drop(["step", *_TEXT]):
        group = groups[name]
        if name not in COLUMNS:
            columns[name] = group.first().where(group.nunique(dropna=False) == 1)
        else:  # what pandas leaves out of a sum must be missing in it
            whole = group.max() if name in _LARGEST else group.sum()
            columns[name] = whole.where(group.count() == tensors)
    return tensors.to_frame("tensors").assign(**columns)[list(columns)].reset_index()


def described(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a session writes about itself beside its rows.

    Raises:
        TypeError: `run` holds something that JSON does not.
    """
    from . import __version__

    about = {
        "format": FORMAT,
        "weibull_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": dict(run),
    }
    json.dumps(about)
    return about


def schema_of(scalars: Mapping[str, pa.DataType], about: Mapping[str, Any]) -> pa.Schema:
    """The columns of a record file, those of its scalars last, with what it says about its run."""

    def kind(column: str) -> pa.DataType:
        return pa.string() if column in _TEXT else pa.int64() if column in _WHOLE else pa.float64()

    known = [(column, kind(column)) for column in COLUMNS]
    return pa.schema([*known, *scalars.items()], {KEY: json.dumps(about).encode()})


def scalar_types(scalars: Mapping[str, Array]) -> dict[str, pa.DataType]:
    """The types of the columns that come after the known ones: text, or else float64.

    Raises:
        ValueError: a scalar has the name of a known column.
    """
    if taken := sorted(set(scalars) & set(COLUMNS)):
        raise ValueError(f"{taken} are columns of every record file; give the scalars other names")
    return {name: pa.string() if is_text(value) else pa.float64() for name, value in scalars.items()}


def is_text(value: Array) -> bool:
    """Whether a scalar is a text, or one for each row."""
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "U")


def part_of(path: Path) -> Path:
    """Where the rows of a Parquet file are while it cannot be read yet: an Arrow stream."""
    return path.with_name(path.name + ".part")


def found_at(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The file that has the records of a path, and of what kind it is: None where there is none.

    "stream" (of a Parquet file that is not finished), "parquet" or "json lines".
    """
    path = Path(path)
    if path.suffix == ".part" and not part_of(path).exists():
        path = path.with_suffix("")  # what a killed run has left, by its own name
    # The part goes only once the Parquet file is whole, so while it is there it counts.
    if part_of(path).is_file():
        return part_of(path), "stream"
    if not path.is_file():
        return path, None
    with path.open("rb") as file:
        return path, "json lines" if file.read(1) == b"{" else "parquet"


def _streamed(part: Path) -> pa.Table:
    """The whole batches of an Arrow stream, of which the end may be missing."""
    with pa.ipc.open_stream(part.read_bytes()) as stream:
        return pa.Table.from_batches(list(_until_torn(stream)), stream.schema)


def _until_torn(stream: Any) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield stream.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return


_READERS = {
    "stream": _streamed,
    "parquet": pq.read_table,
    "json lines": lambda path: table_of(path.read_bytes(), KEY),
}
