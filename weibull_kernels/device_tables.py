"""What a plan keeps on a device from one call to the next, for each stream that it is used on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .kernels.host import read_numbers
from .kernels.interface import HYPERPARAMETERS
from .kernels.memory import SentNumbers, capturing, current_stream, index_on, prepare_for_graphs, sent

_STREAMS = 4

_IN_GRAPHS: Any = WeakIdKeyDictionary()
"""Of an optimizer, the tables that CUDA graphs read: they stay as long as it does."""


class DeviceTables:
    """The tables of one stream: made on it and freed on it, so that nothing need be said to other streams.

    Attributes:
        prepared: what the kernels work out for the tensors once.
        numel: entries of each tensor, int64 [P].
    """

    def __init__(self, device: torch.device, numel: Sequence[int]) -> None:
        self._device = device
        self._hyperparameters = SentNumbers(device)
        self.prepared: dict[str, Any] = {}
        self.numel = index_on(numel, device)
        self._counts = torch.zeros(len(numel), dtype=torch.float32, device=device)
        self._on_host = np.zeros(len(numel), dtype=np.float32)
        self._numbers: tuple[Sequence[float | Tensor], Tensor] | None = None

    @functools.cached_property
    def count_of(self) -> tuple[Tensor, ...]:
        """Float32 tensors of one entry, for step counts that do not lie on the device as such; 0 at first."""
        return self._counts.unbind()

    def send_counts(self, counts: Sequence[Any], places: Sequence[int]) -> None:
        """Writes the counts of these places, numbers and tensors of any kind and device."""
        elsewhere = read_numbers(counts, self._on_host)
        self._counts.copy_(sent(torch.from_numpy(self._on_host), self._device), non_blocking=True)
        for place in set(elsewhere).intersection(places):
            self.count_of[place].copy_(counts[place].detach().reshape(()), non_blocking=True)

    def hyperparameters(self, numbers: Sequence[float | Tensor]) -> Tensor:
        """`HYPERPARAMETERS` [G, 7]; numbers are sent when they have changed, tensors copied on the device."""
        if self._numbers is not None and self._numbers[0] is numbers and not capturing(self._device):
            return self._numbers[1]
        # NaN for tensors, whose cells are written below: no number that comes later is taken for theirs.
        known = [math.nan if isinstance(number, Tensor) else number for number in numbers]
        moved = [(i, number) for i, number in enumerate(numbers) if isinstance(number, Tensor)]
        if moved and capturing(self._device) and any(number.device.type == "cpu" for _, number in moved):
            raise RuntimeError(
                "a learning rate or beta is a tensor on the CPU, which a CUDA graph cannot follow; put it on "
                f"{self._device}, or use a number, which stays what it is while capturing"
            )
        table = self._hyperparameters.of(np.array(known, dtype=np.float64).reshape(-1, len(HYPERPARAMETERS)))
        for cell, number in moved:
            table.view(-1)[cell].copy_(number, non_blocking=self._device.type != "cpu")
        if not moved and not capturing(self._device):
            self._numbers = numbers, table  # callers hand over the same list while the numbers are the same
        return table


def keep_for_graphs(optimizer: torch.optim.Optimizer, read: Any) -> None:
    """Keeps what a CUDA graph reads or writes for as long as there is the optimizer."""
    kept = _IN_GRAPHS.setdefault(optimizer, [])
    if not any(one is read for one in kept):
        kept.append(read)


class ByStream:
    """The tables of a device by the stream that is current.

    Args:
        device: a device.
        numel: entries of each tensor.
    """

    def __init__(self, device: torch.device, numel: Sequence[int]) -> None:
        self.device = device
        self._make: Callable[[], DeviceTables] = lambda: DeviceTables(device, numel)
        self._by_stream: dict[Any, DeviceTables] = {}

    def now(self, optimizer: torch.optim.Optimizer) -> DeviceTables:
        """Those of the current stream; while a CUDA graph is captured the latest, which then stay.

        Raises:
            RuntimeError: a CUDA graph is captured and there are none.
        """
        if self.device.type != "cuda":
            stream: Any = None
        elif capturing(self.device):
            if not self._by_stream:
                raise RuntimeError(
                    "nothing is prepared for what is captured into a CUDA graph; make the same call once, on "
                    "the same tensors, before capturing"
                )
            # Capturing waited for all that was sent before it.
            tables = next(reversed(self._by_stream.values()))
            keep_for_graphs(optimizer, tables)
            return tables
        else:
            stream = current_stream(self.device)
            prepare_for_graphs()
        found = self._by_stream.pop(stream, None)
        if found is None:
            found = self._make()
        self._by_stream[stream] = found  # the latest is the last
        while len(self._by_stream) > _STREAMS:
            self._by_stream.pop(next(iter(self._by_stream)))
        return found


def picker(places: Sequence[int], total: int) -> Callable[[list[Any]], list[Any]]:
    """A function that picks the entries at these places out of a list of so many; all are not copied."""
    if len(places) == total:
        return lambda column: column
    return lambda column: [column[place] for place in places]


def user(flags: Sequence[bool]) -> Callable[[list[Any]], list[Any]]:
    """A function that puts None in place of the entries whose flag is not set."""
    if not any(flags):
        nothing = [None] * len(flags)
        return lambda column: nothing
    return lambda column: [entry if flag else None for entry, flag in zip(column, flags, strict=True)]
