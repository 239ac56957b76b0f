"""Times on a device: its own clock, the host's, and the plain read and copy that are the floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
# Of a read or copy whose bandwidth is taken for all sizes beyond it.
SCRATCH = 2 << 30
SLOW_ROUNDS, TOO_SLOW = 3, 200.0

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


def fastest_read(memory: Tensor, device: str) -> tuple[str, Contender]:
    """The name and the call of the fastest way known here to read `memory`, uint8, once.

    torch's reductions do not reach the bandwidth of every device: a plain read with loads of 16 bytes
    competes with them. They are compared on the first `SCRATCH` bytes.
    """

    def readers(piece: Tensor) -> dict[str, Contender]:
        words = piece.view(torch.int32)
        found: dict[str, Contender] = {
            "torch float sum": piece.view(torch.float32).sum,
            "torch float amax": piece.view(torch.float32).amax,
            "torch int amax": words.amax,
        }
        if device == "cuda" and plain_device_read.available():
            found["16-byte loads"] = lambda: plain_device_read.plain_device_read(piece)
        return found

    clock, part = clock_of(device), readers(memory[: min(memory.numel(), SCRATCH) // 16 * 16])
    best = {}
    for name, reader in part.items():
        reader()
        best[name] = min(clock(reader)["device_ms"] for _ in range(3))
    name = min(best, key=best.__getitem__)
    return name, readers(memory)[name]


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

    Those of `slow` take part in the first `SLOW_ROUNDS` alone, or in one if they take longer than `TOO_SLOW`
    milliseconds. At least three rounds are made, others only before the `deadline`, of `time.perf_counter`.
    """
    clock = clock_of(device)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() > deadline:
            break
        for name, contender in contenders.items():
            if name in slow and turn > (
                1 if times[name].get("wall_ms", [0.0])[0] > TOO_SLOW else SLOW_ROUNDS
            ):
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
