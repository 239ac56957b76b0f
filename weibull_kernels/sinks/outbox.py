"""What stands between the training loop and its sinks: a sink that fails must not stop the training."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ..budget import Array, ForceBudget
from .adapt import as_sinks
from .protocol import Sink
from .record_file import RecordFile

_LOG = logging.getLogger("weibull_kernels")
_LONGEST_PAUSE = 32
_Record = tuple[int, ForceBudget, Mapping[str, Array]]


class Outbox:
    """Delivers records to sinks, each for itself.

    What a sink raises is reported through `logging.getLogger("weibull_kernels")`, once, and the record
    is kept for that sink: it is tried again before the next one, so that all arrive in order. Of
    more than `kept` records the oldest are given up, which is said as well. Ctrl-C passes through.

    Args:
        sinks: or what `as_sink` makes one of.
        kept: how many records wait for a sink that fails.

    Raises:
        TypeError: one of them is no sink, or they are not in a list.
        ValueError: `kept` is less than 1.
    """

    def __init__(self, sinks: Iterable[Any], kept: int = 100) -> None:
        if kept < 1:
            raise ValueError(f"kept must be at least 1 record, got {kept}")
        found = as_sinks(sinks)
        for sink in found:
            if isinstance(sink, RecordFile):
                sink.open()  # a file that cannot be written says so now
        self._queues = [_Queue(sink, kept) for sink in found]

    def deliver(self, step: int, budget: ForceBudget, scalars: Mapping[str, Array]) -> None:
        """Write a record to every sink, after those that still wait for it."""
        for queue in self._queues:
            queue.put((step, budget, scalars))

    def flush(self) -> None:
        """Try what still waits once more, and report what is not written."""
        for queue in self._queues:
            queue.flush()


class _Queue:
    """The records that one sink has yet to take."""

    def __init__(self, sink: Sink, kept: int) -> None:
        self._sink, self._kept = sink, kept
        self._waiting: deque[_Record] = deque()
        self._failures = 0  # one after the other
        self._passed_over = 0
        self._lost = 0
        self._said = (0, 0)

    def put(self, record: _Record) -> None:
        late = len(self._waiting)
        self._waiting.append(record)
        # A sink that is down may take long to say so: it is tried again after 1, 2, 4, … records.
        self._passed_over += 1
        if self._failures == 0 or self._passed_over >= min(1 << (self._failures - 1), _LONGEST_PAUSE):
            self._passed_over = 0
            self._send(late)
        if len(self._waiting) > self._kept:
            step, *_ = self._waiting.popleft()
            self._lost += 1
            if self._lost == 1:
                _LOG.warning(
                    "%r still fails and %d records wait for it: from step %d on the oldest are lost",
                    *(self._sink, self._kept, step),
                )

    def flush(self) -> None:
        self._send(len(self._waiting))
        missing = len(self._waiting), self._lost
        if self._waiting and missing != self._said:
            first, last = self._waiting[0][0], self._waiting[-1][0]
            _LOG.warning(
                "%r has not taken %d records, of steps %d to %d", self._sink, missing[0], first, last
            )
        if self._lost != self._said[1]:
            _LOG.warning("%r has lost %d records", self._sink, self._lost)
        self._said = missing

    def _send(self, late: int) -> None:
        """Writes what waits, as far as it goes; so many of them were there before."""
        while self._waiting:
            step, budget, scalars = self._waiting[0]
            try:
                self._sink.write(step, budget, **scalars)
            except Exception as error:
                self._report(step, error)
                return
            self._waiting.popleft()
        if self._failures:
            self._failures = 0
            _LOG.warning("%r works again: %d records were written late", self._sink, late)

    def _report(self, step: int, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            _LOG.warning(
                "%r failed at step %d (%s: %s); the training goes on, and up to %d records are kept and "
                "tried again later",
                *(self._sink, step, type(error).__name__, error, self._kept),
            )
