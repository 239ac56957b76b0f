"""What the sinks that keep a record file have in common; how its bytes look is for each of them to say."""

from __future__ import annotations

import logging
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ..budget import Array, ForceBudget
from ..processes import in_a_job
from ..records import (
    COLUMNS,
    described,
    found_at,
    part_of,
    read_records,
    run_metadata,
    scalar_types,
    schema_of,
)
from .bookings import Bookings, rows_to_keep
from .journal import Journal
from .rows import as_batch, fields_of, record_rows, take_out

_LOG = logging.getLogger("weibull_kernels")


class RecordFile(ABC):
    """Writes force budgets to one file, one row per call and tensor, and reads as `read_records` says."""

    _kinds: ClassVar[tuple[str, ...]]
    """What `found_at` calls the files that this sink can go on with."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        append: bool = False,
    ) -> None:
        if overwrite and append:
            raise ValueError("overwrite=True drops the earlier records and append=True keeps them; give one")
        self.path = Path(path)
        self._about = described(run or {})
        self._overwrite, self._append, self._opened = overwrite, append, False
        self._earlier: pa.Table | None = None
        self._schema: pa.Schema = None
        self._fields: list[tuple[str, pa.DataType]] = []
        self._bookings = Bookings()
        self._journal = Journal(self._growing(self.path))
        # A script makes its sink on every process of a job, and one of them writes: there it is opened then.
        if not in_a_job():
            self.open()
        # Runs once: at close(), when nobody holds the sink any more, or when the program ends.
        self._finish = weakref.finalize(self, _finish, self._journal, type(self), self.path, os.getpid())

    def write(self, step: int, budget: ForceBudget, **scalars: Array) -> None:
        """Add the rows of one budget and hand them to the operating system, all of them or none.

        All columns come from the device in one copy; this waits for it. Where the write fails, because
        the disk is full for instance, the file is as it was before, and so is what counts as booked:
        the same write can be made again.

        Args:
            step: of the training loop.
            budget: of P tensors, over steps that none before it covers.
            scalars: such as `loss` or `lr`: a number, text or one-entry tensor for all rows, or
                [P], one per row. The first call, or the file to go on with, decides which there are.

        Raises:
            ValueError: the sink is closed; a scalar has the name of a column or does not fit
                the rows; the scalars are others than before; or the file to go on with has records
                of other tensors.
            OSError: the file cannot be written.
        """
        if not self._finish.alive:
            raise ValueError(f"the sink of {self.path} is closed; make another, with a path of its own")
        self.open()
        types = self._fitting(scalar_types(scalars))
        rows = record_rows(step, budget, scalars)
        if self._schema is None:
            self._begin(budget, rows, types)
        else:
            take_out(rows, self._bookings.repeated(budget, rows))
            self._journal.append(self._encoded(as_batch(rows, self._schema, self._fields)))
        self._bookings.enter(budget, rows)

    def close(self) -> None:
        """Finish the file; the second time, do nothing."""
        self._finish()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @staticmethod
    @abstractmethod
    def _growing(path: Path) -> Path:
        """The file that rows are written to."""

    @staticmethod
    @abstractmethod
    def _header(schema: pa.Schema) -> bytes:
        """What it begins with."""

    @staticmethod
    @abstractmethod
    def _encoded(batch: pa.RecordBatch) -> bytes:
        """Rows, as they stand in it."""

    @staticmethod
    @abstractmethod
    def _complete(path: Path) -> None:
        """Make the file whole once nothing more will be written."""

    def open(self) -> None:
        """Find what is there already, and have the file there if it begins anew; the second time, do nothing.

        Raises:
            FileExistsError: there are records, and neither `overwrite` nor `append` is set.
            OSError: the file cannot be made.
            ValueError: `append` is set, and the file is none to go on with.
        """
        if self._opened:
            return
        self._earlier = self._find_earlier()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._earlier is None:
            # There from now on, empty: a path that cannot be written to says so before the training.
            self._journal.begin([self._header(schema_of({}, self._about))])
            for place in {self.path, part_of(self.path)} - {self._journal.path}:
                place.unlink(missing_ok=True)  # of a run that is overwritten
        self._opened = True

    def _find_earlier(self) -> pa.Table | None:
        """The records to go on with; None where the file begins anew."""
        found, kind = found_at(self.path)
        if kind is None or self._overwrite:
            return None
        if not self._append:
            raise FileExistsError(
                f"{found} has the records of an earlier run; give another path or overwrite=True, "
                "or append=True to go on with them"
            )
        records = read_records(self.path)
        if kind not in self._kinds:
            raise ValueError(
                f"{found} is a {kind} file, which {type(self).__name__} cannot go on with; use the sink that "
                "wrote it, or another path"
            )
        return records

    def _fitting(self, types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """The types of the scalars, in the order of those before, if they are the same."""
        if self._schema is not None:
            before, whose = self._fields, "first"
        elif self._earlier is not None and self._earlier.num_rows:
            before, whose = fields_of(self._earlier.schema), "earlier records"
        else:
            return types
        known = {name: kind for name, kind in before if name not in COLUMNS}
        if known == types:
            return known
        if strange := set(types) ^ set(known):
            raise ValueError(
                f"every write must have the scalars of the {whose}; {sorted(strange)} are in only one of them"
            )
        if changed := sorted(name for name, kind in known.items() if types[name] != kind):
            raise ValueError(
                f"{changed} are text in one of this write and the {whose}, and numbers in the other"
            )
        return known

    def _begin(self, budget: ForceBudget, rows: dict[str, Any], types: dict[str, pa.DataType]) -> None:
        """Put the file in place whose columns are known now: the earlier rows that stay, and the first."""
        earlier, kept, about = self._earlier, None, self._about
        if earlier is not None:
            kept = earlier.slice(0, rows_to_keep(earlier, rows))
            about = _resumed(earlier, self._about, rows["step"][0], earlier.num_rows - kept.num_rows)
        bookings, schema = Bookings(kept), schema_of(types, about)
        fields = fields_of(schema)
        take_out(rows, bookings.repeated(budget, rows))
        content = [self._header(schema)]
        if kept is not None and kept.num_rows:
            kept = kept.select(schema.names).cast(schema)
            content += [self._encoded(batch) for batch in kept.to_batches()]
        self._journal.begin([*content, self._encoded(as_batch(rows, schema, fields))])
        if earlier is not None and (gone := earlier["step"][0 if kept is None else kept.num_rows :]):
            _LOG.warning(
                "%r goes on at step %d: %d rows of steps %d to %d, which the run makes again, are replaced",
                *(self, rows["step"][0], len(gone), gone[0].as_py(), gone[-1].as_py()),
            )
        self._bookings, self._schema, self._fields, self._earlier = bookings, schema, fields, None


def _resumed(earlier: pa.Table, session: dict[str, Any], step: int, replaced: int) -> dict[str, Any]:
    """What a file says of itself that a session goes on with: the first session stays, this one is added."""
    about = run_metadata(earlier)
    entry = {name: value for name, value in session.items() if name != "format"}
    entry = {"step": int(step), "replaced_rows": replaced, **entry}
    return about | {"format": session["format"], "resumed": [*about.get("resumed", []), entry]}


def _finish(journal: Journal, sink: type[RecordFile], path: Path, owner: int) -> None:
    # A forked child that ends must leave the parent's file alone, and a sink that of its successor.
    if os.getpid() == owner and journal.close():
        sink._complete(path)
