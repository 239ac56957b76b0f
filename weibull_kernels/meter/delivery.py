"""From readings on their way to the host to records at the sinks, without waiting for a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..budget import ForceBudget
from ..sinks.outbox import Outbox
from .readings import Pending, record_of


class Delivery:
    """Hands records to sinks in the order they were measured in, once they have arrived.

    Attributes:
        latest: the budget of the last record, on the host, or None.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.latest: ForceBudget | None = None
        self._outbox = outbox
        self._pending: deque[Sequence[Pending]] = deque()

    def add(self, readings: Sequence[Pending]) -> None:
        """Takes the readings of one record; on a CPU they are delivered at once."""
        self._pending.append(readings)
        self.poll()

    def poll(self) -> None:
        """Delivers what has arrived."""
        while self._pending and all(reading.ready() for reading in self._pending[0]):
            self._deliver(self._pending.popleft())

    def finish(self) -> None:
        """Waits for the device, delivers everything, and has sinks that failed try again."""
        while self._pending:
            self._deliver(self._pending.popleft())
        self._outbox.flush()

    def ended(self) -> Delivery:
        """One without sinks, that knows the last record."""
        ended = Delivery(Outbox(()))
        ended.latest = self.latest
        return ended

    def _deliver(self, readings: Sequence[Pending]) -> None:
        record = record_of(readings)
        if record.moved:  # a gradient scaler may have skipped the step
            self.latest = record.budget
            self._outbox.deliver(record.step, record.budget, record.scalars)
