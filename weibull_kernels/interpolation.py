"""Paths through the checkpoints of a run: of a norm, and of weights as combinations of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

VARIABLES = ("lr_sum", "step", "log_step")
"""Along what is interpolated: Ση, the step, or ln(1 + step)."""

END_CONDITIONS = ("not-a-knot", "natural", "clamped")
"""What a cubic spline does at its ends: third derivative continuous across the second knot, second
derivative zero, first derivative zero."""

_BLOCK = 1 << 13  # steps whose coefficients are worked out together


@dataclass(frozen=True, eq=False)
class Grid:
    """The T steps of a run between its first and last of K checkpoints, which lie at `knots`."""

    knots: Integers

    @cached_property
    def steps(self) -> Integers:
        """Each step, by the number of it; the force of step t takes the weights from t−1 to t, [T]."""
        steps: Integers = np.arange(self.knots[0] + 1, self.knots[-1] + 1)
        return steps

    @cached_property
    def bounds(self) -> Integers:
        """Where in `steps` each interval begins, and where the last one ends, [K]."""
        bounds: Integers = self.knots - self.knots[0]
        return bounds

    @cached_property
    def lengths(self) -> Integers:
        """Steps in each interval, [I]."""
        lengths: Integers = np.diff(self.knots)
        return lengths

    @cached_property
    def interval(self) -> Integers:
        """Which interval each step is in, [T]."""
        found: Integers = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return found

    def summed(self, of_steps: Floats) -> Floats:
        """Over the steps of each interval, [..., T] to [..., I]."""
        totals: Floats = np.add.reduceat(of_steps, self.bounds[:-1], axis=-1)
        return totals

    def positions(self, variable: str, lr: Floats) -> Floats:
        """The variable at the steps from the first checkpoint on, [T + 1]; η is that of `steps`."""
        if variable == "lr_sum":
            return np.concatenate(([0.0], np.cumsum(lr)))
        counted = np.arange(self.knots[0], self.knots[-1] + 1, dtype=np.float64)
        return np.log1p(counted) if variable == "log_step" else counted


def norm_paths(grid: Grid, positions: Floats, norm_sq: Floats, bc_type: str) -> tuple[Floats, Floats]:
    """‖w‖² at every step from its values at the checkpoints, [P, K] to [P, T + 1], in two ways.

    A cubic spline, and the monotone cubic of Fritsch and Butland; how far they are apart tells how
    well the path between the checkpoints is known.
    """
    from scipy.interpolate import CubicSpline, PchipInterpolator

    places = positions[grid.bounds]
    kept = _distinct(places)
    spline = CubicSpline(places[kept], norm_sq[:, kept], axis=1, bc_type=bc_type)(positions)
    monotone = PchipInterpolator(places[kept], norm_sq[:, kept], axis=1)(positions)
    # From nearly nothing, as of weights that begin at zero, a spline may go below it.
    below = (spline < 0).any(axis=1)
    spline[below] = monotone[below]
    return spline, monotone


@dataclass(frozen=True, eq=False)
class Path:
    """A stretch of a path of the weights as combinations of checkpoints; coefficients are [t, k].

    `before` is where the weights are before each step, `way` how they go in it, and `place` where w
    stands in the forces. `stretch` are the places of the t steps in `Grid.steps`.
    """

    stretch: slice
    before: Floats
    way: Floats
    place: Floats


def spline_paths(
    grid: Grid, positions: Floats, bc_type: str, window: slice, intervals: slice
) -> Iterator[Path]:
    """The spline cs(t) = Σᵢ bᵢ(t)·wᵢ through the checkpoints of a window, over some of its intervals."""
    from scipy.interpolate import CubicSpline

    places = positions[grid.bounds[window]]
    kept = _distinct(places)
    spline = CubicSpline(places[kept], np.eye(len(places))[kept], bc_type=bc_type)
    first, last = grid.bounds[intervals.start], grid.bounds[intervals.stop]
    for begin in range(first, last, _BLOCK):
        end = min(begin + _BLOCK, last)
        values = spline(positions[begin : end + 1])
        yield Path(slice(begin, end), values[:-1], np.diff(values, axis=0), values[:-1])


def straight_paths(grid: Grid, lr: Floats, place: tuple[float, float]) -> Iterator[Path]:
    """Straight from checkpoint to checkpoint, in proportion to η; an interval and two checkpoints each.

    `place` are the weights of the two in the point where w is taken for the forces.
    """
    whole = grid.summed(lr)
    for start, length, total in zip(grid.bounds[:-1], grid.lengths, whole, strict=True):
        part = lr[start : start + length] / total if total > 0 else np.zeros(length)
        done = np.cumsum(part) - part
        yield Path(
            slice(start, start + length),
            before=np.stack((1 - done, done), axis=1),
            way=np.outer(part, (-1.0, 1.0)),
            place=np.tile(place, (length, 1)),
        )


def windows(known: NDArray[np.bool_]) -> list[slice]:
    """For each interval, the checkpoints through which its spline goes, [I]: all that are known together.

    Of several stretches of checkpoints, all of whose products are `known` [K, K], that in which the
    interval lies deepest.
    """
    count = len(known)
    reach = [_reach(known, first) for first in range(count)]
    longest = [(a, b) for a, b in enumerate(reach) if a == 0 or reach[a - 1] < b]

    def depth(ends: tuple[int, int], interval: int) -> tuple[int, int]:
        a, b = ends
        return min(interval - a, b - interval - 2), b - a

    found = []
    for interval in range(count - 1):
        holding = [(a, b) for a, b in longest if a <= interval and interval + 2 <= b]
        a, b = max(holding, key=lambda ends: depth(ends, interval))
        found.append(slice(a, b))
    return found


def stretches(of_intervals: list[slice]) -> Iterator[tuple[slice, slice]]:
    """Neighbouring intervals with the same window together: the window and the intervals."""
    first = 0
    for last in range(1, len(of_intervals) + 1):
        if last == len(of_intervals) or of_intervals[last] != of_intervals[first]:
            yield of_intervals[first], slice(first, last)
            first = last


def shortened(window: slice, interval: int, count: int) -> slice:
    """The window without its outermost checkpoint where others, of `count`, lie beyond it.

    The two checkpoints of the interval stay: with nothing else the path is straight.
    """
    start = window.start + (window.start > 0)
    stop = window.stop - (window.stop < count)
    if start > interval or stop < interval + 2:
        return slice(interval, interval + 2)
    return slice(start, stop)


def _reach(known: NDArray[np.bool_], first: int) -> int:
    """The checkpoint after the last of the longest stretch from `first` on that is known together."""
    last = first + 1
    while last < len(known) and known[first : last + 1, first : last + 1].all():
        last += 1
    return last


def _distinct(places: Floats) -> Integers:
    """Which checkpoints are past the ones before; of those at one place the first.

    With η = 0 all through an interval Ση stands still, and so do the weights.
    """
    kept = np.flatnonzero(np.diff(places, prepend=-np.inf) > 0)
    if len(kept) < 2:
        raise ValueError("lr is 0 at every step between the checkpoints, so nothing moved the weights")
    return kept
