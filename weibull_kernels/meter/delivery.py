"""From readings on their way to the host to records at the sinks, without waiting for a device."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from ..budget import ForceBudget
from ..sinks.outbox import Outbox
from .readings import Pending, Record, record_of

_log = logging.getLogger("weibull_kernels")


class Delivery:
    """Hands records to sinks in the order they were measured in, once they have arrived.

    Attributes:
        latest: the budget of the last record, on the host, or None.
        patient: whether the end waits for what has not arrived, if nothing else is said.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.latest: ForceBudget | None = None
        self.patient = True
        self._outbox = outbox
        self._pending: deque[tuple[int, Sequence[Pending]]] = deque()
        self._author, self._step, self._two_authors = 0, 0, False

    def add(self, readings: Sequence[Pending], author: int = 0) -> None:
        """Takes the readings of one record, of one meter or another; on a CPU they are delivered at once."""
        self._pending.append((author, readings))
        self.poll()

    def poll(self) -> None:
        """Delivers what has arrived."""
        while self._pending and all(reading.ready() for reading in self._pending[0][1]):
            self._deliver(*self._pending.popleft())

    def finish(self, *, wait: bool | None = None) -> None:
        """Delivers everything, and has sinks that failed try again.

        Args:
            wait: for the device; without, what has not arrived is lost, and the logger says how much.
        """
        wait = self.patient if wait is None else wait
        self.poll()
        while self._pending and wait:
            self._deliver(*self._pending.popleft())
        if self._pending:
            _log.warning("%d records had not arrived from the device and are lost", len(self._pending))
            self._pending.clear()
        self._outbox.flush()

    def ended(self) -> Delivery:
        """One without sinks, that knows the last record."""
        ended = Delivery(Outbox(()))
        ended.latest = self.latest
        return ended

    def _deliver(self, author: int, readings: Sequence[Pending]) -> None:
        record = record_of(readings)
        # A gradient scaler may have skipped the step.
        if record.moved and self._goes_on(author, record):
            self.latest = record.budget
            self._outbox.deliver(record.step, record.budget, record.scalars)

    def _goes_on(self, author: int, record: Record) -> bool:
        """Whether it is of the meter that wrote the last record, or of a copy that takes over from it."""
        if author != self._author and record.step <= self._step:
            if not self._two_authors:
                self._two_authors = True
                _log.warning(
                    "an optimizer and its copy are both trained: the record of step %d is left out, since "
                    "the sinks have one; attach a meter with sinks of its own to one of them",
                    record.step,
                )
            return False
        self._author, self._step = author, record.step
        return True
