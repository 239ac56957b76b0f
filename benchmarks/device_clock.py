"""Times on a device: its own clock, the host's, and the plain read and copy that are the floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import plain_device_read
import torch
from rounds import Contender, ratio, spread
from torch import Tensor

# For so many clock cycles the device waits before a measured call, so that the host has enqueued all of it
# before the first kernel starts: 10 ms, longer than any of our calls takes.
HOLD = 20_000_000
# Written before a measured call, so that the caches hold nothing of what it reads.
FLUSHED = 256 << 20
# Of a copy whose bandwidth is taken for all sizes beyond it.
SCRATCH = 2 << 30
SLOW_ROUNDS, TOO_SLOW = 3, 200.0
READS = 5

Times = dict[str, list[float]]


class DeviceClock:
    """Device time of a call, host time until it returns and wall time until the device is done, in ms.

    Device time has the host's launches out of the way as far as the launch queue is deep: thousands of
    small launches still starve the device, and that time is theirs.
    """

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def __call__(self, contender: Contender) -> dict[str, float]:
        """One call with the device held back, then one without."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(HOLD)
        self._flush.zero_()
        start.record()
        begun = time.perf_counter()
        contender()
        host = time.perf_counter() - begun
        end.record()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        contender()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begun
        return {"device_ms": start.elapsed_time(end), "host_ms": host * 1e3, "wall_ms": wall * 1e3}


def stand_in_clock(contender: Contender) -> dict[str, float]:
    """`DeviceClock` for a rehearsal on a CPU: one time under its three names."""
    begun = time.perf_counter()
    contender()
    return dict.fromkeys(("device_ms", "host_ms", "wall_ms"), (time.perf_counter() - begun) * 1e3)


def clock_of(device: str) -> Callable[[Contender], dict[str, float]]:
    """The clock of a device."""
    return DeviceClock() if device == "cuda" else stand_in_clock


def readers_of(memory: Tensor, device: str) -> dict[str, Contender]:
    """Ways to read `memory`, uint8, once: torch's reductions, and a plain read with loads of 16 bytes."""
    words, floats = memory.view(torch.int32), memory.view(torch.float32)
    readers: dict[str, Contender] = {
        "torch float sum": floats.sum,
        "torch float amax": floats.amax,
        "torch int amax": words.amax,
    }
    if device == "cuda" and plain_device_read.available():
        readers["16-byte loads"] = lambda: plain_device_read.plain_device_read(memory)
    return readers


def fastest_read(memory: Tensor, device: str) -> tuple[str, Contender]:
    """The name and the call of the fastest way known here to read `memory`, by the medians of whole reads.

    All of it is read: which of them is the fastest depends on how much there is to read.
    """
    clock, readers = clock_of(device), readers_of(memory, device)
    for reader in readers.values():
        reader()
    rounds = [{name: clock(reader)["device_ms"] for name, reader in readers.items()} for _ in range(READS)]
    name = min(readers, key=lambda name: median(times[name] for times in rounds))
    return name, readers[name]


class Copy:
    """A plain copy that moves `bytes_moved`, half of them read, or `SCRATCH` of each where that is less.

    `scale` is what its time is to be multiplied by.
    """

    def __init__(self, bytes_moved: int, device: str) -> None:
        size = max(min(bytes_moved // 2, SCRATCH), 1)
        self._source = torch.zeros(size, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self.scale = bytes_moved / 2 / size

    def __call__(self) -> None:
        """Copies."""
        self._target.copy_(self._source)


def timed_rounds(
    contenders: Mapping[str, Contender],
    device: str,
    rounds: int,
    *,
    slow: Sequence[str] = (),
    deadline: float = float("inf"),
) -> dict[str, dict[str, list[float]]]:
    """Times by contender and clock, one of each to a round; the first round warms up and is not kept.

    Those of `slow` have been called before, so that they need no warming up. They take part in the next
    `SLOW_ROUNDS` alone, or in one if they take longer than `TOO_SLOW` milliseconds. At least three rounds are
    made, others only before the `deadline`, of `time.perf_counter`.
    """
    clock = clock_of(device)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() > deadline:
            break
        for name, contender in contenders.items():
            if name in slow:
                too_slow = times[name].get("wall_ms", [0.0])[0] > TOO_SLOW
                if not 1 <= turn <= (1 if too_slow else SLOW_ROUNDS):
                    continue
            for key, milliseconds in clock(contender).items():
                if turn:
                    times[name].setdefault(key, []).append(milliseconds)
    return times


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of the rounds that both took part in."""
    both = min(len(numerator), len(denominator))
    return ratio(list(numerator[:both]), list(denominator[:both]))


def spreads(times: Mapping[str, dict[str, list[float]]], clock: str) -> dict[str, Any]:
    """Median and quartiles by contender."""
    return {name: spread(by_clock[clock]) for name, by_clock in times.items()}
