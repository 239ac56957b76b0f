"""What a sink is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..budget import Array, ForceBudget


@runtime_checkable
class Sink(Protocol):
    """Takes the records of a training loop, one after the other."""

    def write(self, step: int, budget: ForceBudget, **scalars: Array) -> None:
        """Take one record: the budget, and numbers or [P] of them beside it, such as `lr`."""

    def close(self) -> None:
        """Take no more; what was written is kept."""
