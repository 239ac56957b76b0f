"""The distribution of ln|w| of many tensors at once, as weighted nodes that estimators sum over.

Sorted entries are such nodes, and so is a histogram: its distribution function goes on inside each
bin as a monotone cubic in ln|w|, and the nodes are Gauss's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels.interface import BIN_BITS, BINS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

LOWEST_BIN = 3e-5
"""What part of the entries the histogram's lowest bin, of 17 octaves, may hold before their place in it,
which is not known, bears on the others by more than 1e-4."""


@dataclass(frozen=True)
class Nodes:
    """The distribution of ln|w| of some tensors as weighted nodes [N], tensor after tensor, ascending.

    `mass` sums to 1 in every tensor, `f` is the distribution function at the node, `kept` marks
    0.1 ≤ F ≤ 0.9, and `row` says which of the tensors, that begin at `starts`, a node is of.
    """

    x: Floats
    mass: Floats
    f: Floats
    kept: Flags
    row: Integers
    starts: Integers

    def sums(self, values: Floats) -> Floats:
        """Of `values` [N], over the nodes of each tensor."""
        totals: Floats = np.add.reduceat(values, self.starts)
        return totals

    def quantile(self, q: float) -> Floats:
        """Of |w|, linear between the nodes, as numpy's "hazen" is between entries."""
        last = np.append(self.starts[1:], len(self.x)) - 1
        right = np.searchsorted(self.row + self.f, np.arange(len(last)) + q).clip(self.starts + 1, last)
        part = ((q - self.f[right - 1]) / (self.f[right] - self.f[right - 1])).clip(0, 1)
        low, high = np.exp(self.x[right - 1]), np.exp(self.x[right])
        between: Floats = low + part * (high - low)
        return between


def kept_ranks(count: Any) -> tuple[Any, Any]:
    """How many entries come before F = (i−½)/n reaches 0.1, and how many before it is past 0.9."""
    return (count + 14) // 10 - 1, (9 * count + 5) // 10


def entry_nodes(logs: list[Floats]) -> Nodes:
    """One for each of the sorted entries."""
    counts = np.array([len(log) for log in logs])
    row = np.repeat(np.arange(len(logs)), counts)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(row)) - starts[row]
    low, high = kept_ranks(counts)
    return Nodes(
        x=np.concatenate(logs),
        mass=1 / counts[row],
        f=(rank + 0.5) / counts[row],
        kept=(rank >= low[row]) & (rank < high[row]),
        row=row,
        starts=starts,
    )


@cache
def _log_edges() -> Floats:
    """Natural logarithms of the edges of the histogram's bins, [BINS + 1]."""
    patterns = np.arange(BINS + 1, dtype=np.int32) << (23 - BIN_BITS)
    edges = patterns.view(np.float32).astype(np.float64)
    # Zero has no logarithm: from here the bin's middle is the mean logarithm of a uniform density.
    edges[0] = edges[1] * math.exp(-2)
    edges[-1] = 2.0**128  # which float32 takes for infinity
    return np.log(edges)


def cropped(histogram: Integers) -> tuple[Integers, int]:
    """The columns between the first and the last that are not empty, and which the first is."""
    used = np.flatnonzero(histogram.any(0))
    return (histogram[:, used[0] : used[-1] + 1], int(used[0])) if len(used) else (histogram[:, :1], 0)


def quantile_bins(histogram: Integers) -> tuple[Integers, Integers]:
    """Which bins hold the lowest and the highest rank of the probability plot, [P]."""
    below = np.cumsum(histogram, axis=1)
    low, high = kept_ranks(below[:, -1])
    return (below <= low[:, None]).sum(1), (below < high[:, None]).sum(1)


def histogram_nodes(histogram: Integers, first: int, mean: Floats) -> Nodes:
    """Two in every bin, from a monotone cubic of F over ln|w| in each, cut where F is 0.1 and 0.9.

    The slopes at the edges are Fritsch and Butland's harmonic means of the densities in the bins
    that are not empty on either side. `mean` is that of ln|w|, from the sums: it tells where in
    their bins the entries sit on the whole. Those of bfloat16, two of whose values share a bin, sit
    a quarter of a bin low.
    """
    row, bins = np.nonzero(histogram)
    counts = histogram[row, bins]
    starts = np.searchsorted(row, np.arange(len(histogram)))
    ends = np.cumsum(counts)  # over all rows, so that it ascends
    before = ends[starts] - counts[starts]
    n = np.add.reduceat(counts, starts)
    x, width = _log_edges()[first + bins], np.diff(_log_edges())[first + bins]

    # F = f + s·(c1 + s·(c2 + s·c3)) with s from 0 to 1 through the bin.
    rise = counts / n[row]
    f = (ends - before[row]) / n[row] - rise
    density = rise / width
    slope = np.zeros(len(bins) + 1)  # 0 at the ends of each row
    left, right = width[:-1], width[1:]
    mean_slope = 3 * (left + right) / ((2 * right + left) / density[:-1] + (right + 2 * left) / density[1:])
    slope[1:-1] = np.where(np.diff(row) == 0, mean_slope, 0)
    c1, end_slope = slope[:-1] * width, slope[1:] * width
    c2, c3 = 3 * rise - 2 * c1 - end_slope, c1 + end_slope - 2 * rise

    # The bins that hold F = 0.1 and 0.9 are cut in two (in three, if it is the same bin).
    low, high = kept_ranks(n)
    cut_bins = np.searchsorted(ends, before + low, side="right"), np.searchsorted(ends, before + high)
    cell = np.sort(np.concatenate([np.arange(len(bins)), *cut_bins]))
    begin, end = np.zeros(len(cell)), np.ones(len(cell))
    after = np.searchsorted(cell, cut_bins[0]) + 1, np.searchsorted(cell, cut_bins[1], side="right") - 1
    for cut, part, target in zip(cut_bins, after, (low / n, high / n), strict=True):
        at = _solved(c1[cut], c2[cut], c3[cut], target - f[cut])
        begin[part], end[part - 1] = at, at
    number = np.arange(len(cell))
    kept = (number >= after[0][row[cell]]) & (number < after[1][row[cell]])

    points = np.array([0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)])  # Gauss's, of weight ½
    s = begin[:, None] + (end - begin)[:, None] * points
    f0, k1, k2, k3, x0, dx = (column[cell][:, None] for column in (f, c1, c2, c3, x, width))
    mass = (k1 + s * (2 * k2 + 3 * s * k3)) * ((end - begin) / 2)[:, None]
    nodes = Nodes(
        x=(x0 + s * dx).ravel(),
        mass=mass.ravel(),
        f=(f0 + s * (k1 + s * (k2 + s * k3))).ravel(),
        kept=np.repeat(kept, 2),
        row=np.repeat(row[cell], 2),
        starts=2 * np.searchsorted(row[cell], np.arange(len(n))),
    )
    lag = (nodes.sums(nodes.mass * nodes.x) - mean) / np.add.reduceat(rise * width, starts)
    lag[(first + bins[starts] == 0) & (rise[starts] > LOWEST_BIN)] = 0
    shift = lag.clip(-0.5, 0.5)[nodes.row] * np.repeat(width[cell], 2)
    return replace(nodes, x=nodes.x - shift)


def _solved(c1: Floats, c2: Floats, c3: Floats, rise: Floats) -> Floats:
    """Where in [0, 1] the ascending cubic s·(c1 + s·(c2 + s·c3)) is `rise`, by bisection."""
    s = np.full(len(rise), 0.5)
    for half in 0.5 ** np.arange(2, 40):
        s += np.where(s * (c1 + s * (c2 + s * c3)) < rise, half, -half)
    return s
