"""Records in Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..records import part_of, read_records
from .record_file import RecordFile

_ROWS_PER_GROUP = 100_000


class ParquetSink(RecordFile):
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

    With `append` a run that was killed goes on with its records where it goes on with its training.
    Between its checkpoint and its end it had written records of steps that it now makes again: the first
    write replaces those whose optimizer steps come after the beginning of its own interval, and all
    that was written after them. How many rows, and when, is said by `run_metadata(records)["resumed"]`
    and in the log. Until the new file is whole, the earlier one stays as it is.

    In a distributed job every process may make one of the same path, as a script does: nothing is touched
    until the one that writes attaches its meter, opens it or writes to it.

    Args:
        path: of the file; its directory is made.
        run: settings of the run, anything that JSON holds. They stay in the file together
            with the versions, the machine and the time; see `run_metadata`.
        overwrite: replace the records of an earlier run.
        append: go on with the records of an earlier session, finished or killed; where there are
            none, begin.

    Raises:
        FileExistsError: `path` has records, and neither `overwrite` nor `append` is set.
        ValueError: both are set; or the file to go on with is not one of ours, or of a newer format.
        TypeError: `run` holds something that JSON does not.

    >>> import tempfile
    >>> from weibull_kernels import ForceBudget
    >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ParquetSink(folder + "/run.parquet") as sink:
    ...         sink.write(1, budget, loss=2.5)
    ...     read_records(folder + "/run.parquet")["loss"].to_pylist()
    [2.5]
    """

    _kinds = ("stream", "parquet")

    @staticmethod
    def _growing(path: Path) -> Path:
        return part_of(path)

    @staticmethod
    def _header(schema: pa.Schema) -> bytes:
        return bytes(schema.serialize())

    @staticmethod
    def _encoded(batch: pa.RecordBatch) -> bytes:
        return bytes(batch.serialize())

    @staticmethod
    def _complete(path: Path) -> None:
        whole = path.with_name(path.name + ".whole")
        try:
            with whole.open("wb") as file:
                pq.write_table(read_records(path), file, row_group_size=_ROWS_PER_GROUP)
                file.flush()
                os.fsync(file.fileno())
            whole.replace(path)  # at once: a reader sees the stream or the Parquet file, never half of it
        except BaseException:
            whole.unlink(missing_ok=True)  # the stream has all rows
            raise
        part_of(path).unlink()
