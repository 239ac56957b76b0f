"""Times contenders in turns, so that their ratios hold whatever the machine does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles

Contender = Callable[[], object]
Timer = Callable[[Contender], dict[str, float]]


def wall_clock(contender: Contender) -> dict[str, float]:
    """Milliseconds that the call takes, for work that is done when the call returns."""
    # Threads of the contender before, torch's among them, spin a little while after their work.
    time.sleep(0.005)
    start = time.perf_counter()
    contender()
    return {"ms": (time.perf_counter() - start) * 1e3}


@dataclass
class Rounds:
    """The times of some contenders, one of each to a round; `times[name][clock]` by round."""

    contenders: Mapping[str, Contender]
    timer: Timer = wall_clock
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def run(self) -> None:
        """One round. A contender that takes long may be left out of `contenders` by the caller."""
        for name, contender in self.contenders.items():
            for clock, milliseconds in self.timer(contender).items():
                self.times.setdefault(name, {}).setdefault(clock, []).append(milliseconds)


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": _round(median(values)), "q1": _round(low), "q3": _round(high)}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios by round: what drifts between rounds drops out."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def _round(value: float) -> float:
    return float(f"{value:.4g}")
