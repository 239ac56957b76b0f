"""Records in JSON lines."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ..json_records import header_line, row_lines
from ..records import KEY
from .record_file import RecordFile


class JsonLinesSink(RecordFile):
    """Writes force budgets to one text file: a line about the run, then a JSON object per call and tensor.

    The first line is {"weibull_kernels": what `run_metadata` returns, "columns": names and types};
    it is in place from the first write on. The columns, the scalars, what is booked and how a run goes
    on with `append` are those of `ParquetSink`, and `read_records` gives the same table for both. null is
    what the budget does not have; numbers that are not finite, which JSON does not know, are the texts
    "NaN", "Infinity" and "-Infinity".

    Each record is in the file when `write` returns, so the file can be followed while the run writes.
    A last line that was cut off, with the machine, is left out on reading, and by `append`.
    It is several times as large as a Parquet file, and slower to read.

    In a distributed job every process may make one of the same path, as a script does: nothing is touched
    until the one that writes attaches its meter, opens it or writes to it.

    Args:
        path: of the file; its directory is made.
        run: settings of the run, anything that JSON holds.
        overwrite: replace the records of an earlier run.
        append: go on with the records of an earlier session; where there are none, begin.

    Raises:
        FileExistsError: `path` has records, and neither `overwrite` nor `append` is set.
        ValueError: both are set; or the file to go on with is not one of ours, or of a newer format.
        TypeError: `run` holds something that JSON does not.

    >>> import tempfile
    >>> from weibull_kernels import ForceBudget, read_records
    >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with JsonLinesSink(folder + "/run.jsonl") as sink:
    ...         sink.write(1, budget, loss=2.5)
    ...     read_records(folder + "/run.jsonl")["loss"].to_pylist()
    [2.5]
    """

    _kinds = ("json lines",)

    @staticmethod
    def _growing(path: Path) -> Path:
        return path

    @staticmethod
    def _header(schema: pa.Schema) -> bytes:
        return header_line(schema, KEY)

    @staticmethod
    def _encoded(batch: pa.RecordBatch) -> bytes:
        return row_lines(batch)

    @staticmethod
    def _complete(path: Path) -> None:
        """Every line is whole as it is written."""
