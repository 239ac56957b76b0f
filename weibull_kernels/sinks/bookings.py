"""No step is booked twice: in a session, and where a session goes on with the records of an earlier one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..budget import ForceBudget


class Bookings:
    """Which step of each tensor was written last.

    Args:
        earlier: the records that a session goes on with; the last of them is the one written last.
    """

    def __init__(self, earlier: pa.Table | None = None) -> None:
        self._counts: dict[tuple[int, str], float | None] = {}
        self._last: Callable[[], ForceBudget | None] = lambda: None
        if earlier is not None and earlier.num_rows:
            last = earlier.slice(int(_starts(earlier)[-1]))
            self._counts = _counts({name: last[name].to_pylist() for name in ("name", "optimizer_step")})

    def repeated(self, budget: ForceBudget, rows: Mapping[str, Any]) -> np.ndarray:
        """Which rows of a record were written before, [P]."""
        again = np.full(len(rows["name"]), budget is self._last())  # a drained budget, given twice
        if "optimizer_step" not in rows or again.all():
            return again
        # Only ledgers know rounding. What they have drained covers other steps, even after a rollback.
        instant: np.ndarray = np.isnan(rows["rounding"]) if "rounding" in rows else ~again
        if not instant.any():
            return instant
        written = [self._counts.get(row) == count for row, count in _counts(rows).items()]
        instant &= np.array(written, dtype=bool)
        return instant

    def enter(self, budget: ForceBudget, rows: Mapping[str, Any]) -> None:
        """The record is written."""
        self._last = weakref.ref(budget)
        if "optimizer_step" in rows:
            self._counts |= _counts(rows)


def _counts(rows: Mapping[str, Any]) -> dict[tuple[int, str], float | None]:
    """The optimizer's count by row and name: two tensors may have the same name."""
    return dict(zip(enumerate(rows["name"]), list(rows["optimizer_step"]), strict=True))


def rows_to_keep(earlier: pa.Table, rows: Mapping[str, Any]) -> int:
    """How many rows of an earlier session stay, from the first on, when a new one writes its first record.

    A run that was killed goes on from a checkpoint, which is older than the last records: it makes
    their steps again. A record of the earlier session goes if it was taken after the interval of
    the new one began, and so does all that was written after it.

    Which came first is told from the optimizer's count of steps. That of the tensors one by one does not
    tell it, since some may not move for long; the sum over the tensors that both records have does:

        Σ count  >  Σ (new count − new steps)

    Where several steps have passed a budget knows how many each tensor made, and those that made several
    are looked at. A budget of a single step may say 1 of a tensor that made none; there the record goes if
    Σ count ≥ Σ new count. Without counts, `step` stands in for them.

    Raises:
        ValueError: the records have none of the tensors.
    """
    if earlier.num_rows == 0:
        return 0
    starts, place = _starts(earlier), _places(earlier, rows)
    steps = np.asarray(rows["steps"])
    several = steps.max() > 1
    step = earlier["step"].to_numpy()[starts]
    after = np.logical_or.reduceat(place >= 0, starts) & (step > rows["step"][0] - steps.max())
    if "optimizer_step" in rows:
        begin = np.asarray(rows["optimizer_step"], dtype=float) - (steps if several else 0)
        ahead = earlier["optimizer_step"].to_numpy(zero_copy_only=False) - begin[place]
        told = (place >= 0) & ~np.isnan(ahead) & ((steps[place] > 1) | (not several))
        total = np.add.reduceat(np.where(told, ahead, 0), starts)
        after = np.where(
            np.logical_or.reduceat(told, starts), total > (0 if several else -steps.max()), after
        )
    return int(starts[after.argmax()]) if after.any() else earlier.num_rows


def _places(earlier: pa.Table, rows: Mapping[str, Any]) -> np.ndarray:
    """The row of the new record that each earlier row is of the same tensor as, -1 where there is none."""
    names = earlier["name"].combine_chunks()
    place = pc.index_in(names, value_set=pa.array(rows["name"], pa.string()))
    found: np.ndarray = place.fill_null(-1).to_numpy(zero_copy_only=False)
    if (found < 0).all():
        raise ValueError(
            f"the records to go on with are of {names[0]} and others, the tensors given now are "
            f"{rows['name'][0]} and others; give the records of another model a path of their own"
        )
    return found


def _starts(records: pa.Table) -> np.ndarray:
    """The first row of each record: a record's rows stand together and have the same step."""
    step = records["step"].to_numpy()
    return np.flatnonzero(np.diff(step, prepend=step[0] - 1))
