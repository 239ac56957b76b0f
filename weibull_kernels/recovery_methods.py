"""The forces of a run by each method of recovery, from the Gram matrices of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import injection as estimates
from .budget import ForceBudget
from .gram import CheckpointGram
from .injection import UpdateEstimate
from .interpolation import (
    Grid,
    Path,
    norm_paths,
    shortened,
    spline_paths,
    straight_paths,
    stretches,
    windows,
)
from .rates_by_name import Rates
from .series import FORCES, Floats, Impulses, Integers, Recovery

METHODS = ("corrected", "spline", "midpoint", "two_point")
"""How forces may be recovered; see `wk.recover`."""

FEWEST = {"corrected": 4, "spline": 4, "midpoint": 2, "two_point": 2}
"""Checkpoints that a method needs."""

_TOGETHER = 1 << 18  # steps of all tensors that are worked out together

_PLACES = {"midpoint": (0.5, 0.5), "two_point": (1.0, 0.0)}


class Collected:
    """What is to become a `Recovery`, filled in tensor by tensor and stretch by stretch."""

    def __init__(self, grid: Grid, chosen: Integers, rows: int) -> None:
        self.grid = grid
        self.chosen = chosen  # places in grid.steps, ascending
        self.of_steps = {name: np.zeros((rows, len(chosen))) for name in (*FORCES, "norm_sq")}
        self.of_intervals = {name: np.zeros((rows, len(grid.lengths))) for name in (*FORCES, "norm_sq")}
        self.lr, self.weight_decay = np.zeros((rows, len(chosen))), np.zeros(rows)
        self.known: dict[str, NDArray[Any]] = {}

    def rates(self, rows: list[int], its: Rates) -> None:
        """η and ω of some tensors."""
        self.lr[rows], self.weight_decay[rows] = its.lr[self.chosen], its.weight_decay

    def put(self, rows: Sequence[int], stretch: slice, forces: ForceBudget) -> None:
        """The forces of some tensors at a stretch of all steps, [p, t]."""
        low, high = np.searchsorted(self.chosen, (stretch.start, stretch.stop))
        picked = self.chosen[low:high] - stretch.start
        first, last = self.grid.interval[[stretch.start, stretch.stop - 1]]
        edges = np.maximum(self.grid.bounds[first : last + 1], stretch.start) - stretch.start
        for name in FORCES:
            column = getattr(forces, name)
            self.of_steps[name][rows, low:high] = column[:, picked]
            self.of_intervals[name][rows, first : last + 1] += np.add.reduceat(column, edges, axis=1)
        self.of_steps["norm_sq"][rows, low:high] = forces.norm_sq[:, picked]
        begun = np.flatnonzero((self.grid.bounds >= stretch.start) & (self.grid.bounds < stretch.stop))
        places = self.grid.bounds[begun] - stretch.start
        self.of_intervals["norm_sq"][np.ix_(np.asarray(rows), begun)] = forces.norm_sq[:, places]

    def describe(self, rows: Sequence[int], **columns: NDArray[Any]) -> None:
        """What is known of the intervals of some tensors, [p, I] each."""
        for name, column in columns.items():
            empty = np.zeros(self.of_intervals["norm_sq"].shape, column.dtype)
            self.known.setdefault(name, empty)[rows] = column

    def compare(self, row: int, interval: int, forces: list[ForceBudget]) -> None:
        """The forces of the stretches of an interval by a shorter window, beside those that were put."""
        mine = [self.of_intervals[name][row, interval] for name in FORCES[:3]]
        other = [sum(getattr(part, name).sum() for part in forces) for name in FORCES[:3]]
        apart, whole = sum(abs(a - b) for a, b in zip(mine, other, strict=True)), sum(map(abs, mine))
        empty = np.zeros(self.of_intervals["norm_sq"].shape)
        self.known.setdefault("window_error", empty)[row, interval] = apart / whole if whole > 0 else 0.0

    def result(self, numel: Integers, names: tuple[str, ...] | None, **described: Any) -> Recovery:
        """All of it; `described` are the other fields of a `Recovery`."""
        roles = described.get("role_overrides")
        of_intervals: dict[str, Any] = {**self.of_intervals, **self.known}
        of_steps: dict[str, Any] = {**self.of_steps}
        impulses = Impulses(
            step=self.grid.knots[1:],
            steps=self.grid.lengths,
            **of_intervals,
            numel=numel,
            names=names,
            role_overrides=roles,
        )
        return Recovery(
            step=self.grid.steps[self.chosen],
            steps=np.ones(len(self.chosen), dtype=np.int64),
            **of_steps,
            numel=numel,
            names=names,
            lr=self.lr,
            weight_decay=self.weight_decay,
            impulses=impulses,
            **described,
        )


def correct(
    collected: Collected,
    rows: list[int],
    norm_sq: Floats,
    numel: Integers,
    its: Rates,
    estimate: UpdateEstimate,
    variable: str,
    bc_type: str,
) -> None:
    """The path of ‖w‖² and an estimate of the injection; the alignment is what they leave."""
    grid, eta, lost = collected.grid, its.lr, its.lost
    positions = grid.positions(variable, eta)
    together = max(1, _TOGETHER // len(eta))

    def correct_some(start: int) -> None:
        some = slice(start, start + together)
        path, other = norm_paths(grid, positions, norm_sq[some], bc_type)
        before = path[:, :-1]
        update_sq = estimates.along(estimate.update_sq[some], grid.knots, grid.steps)
        injection = eta**2 * numel[some, None] * update_sq
        decay = -2 * lost * before
        # Of Δ‖w‖² = alignment + injection + decay + coupling, the last of which has the alignment in it.
        alignment = (np.diff(path) - injection - decay - lost**2 * before) / (1 - lost)
        coupling = lost * (lost * before - alignment)
        forces = ForceBudget(alignment, injection, decay, coupling, before)
        collected.put(rows[some], slice(0, len(eta)), forces)
        of_injection = estimate.error[some] * grid.summed(injection)
        of_decay = abs(grid.summed(2 * lost * (other[:, :-1] - before)))
        collected.describe(
            rows[some],
            injection_error=of_injection,
            decay_error=of_decay,
            alignment_error=np.hypot(of_injection, of_decay),
            update_rms=np.sqrt(estimate.update_sq[some]),
            update_rms_error=estimate.error[some] / 2,
            injection_source=estimate.source[some],
        )

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(correct_some, range(0, len(rows), together)):
            pass


def displace(
    collected: Collected,
    rows: list[int],
    gram: CheckpointGram,
    its: Rates,
    method: str,
    variable: str,
    bc_type: str,
) -> None:
    """The forces of a path of the weights that is linear in the checkpoints."""
    grid = collected.grid
    if method in _PLACES:
        for path in straight_paths(grid, its.lr, _PLACES[method]):
            first = int(grid.interval[path.stretch.start])
            for row, products in zip(
                rows, gram.products[:, first : first + 2, first : first + 2], strict=True
            ):
                collected.put([row], path.stretch, _path_forces(products, path, its))
        return
    positions = grid.positions(variable, its.lr)
    known = np.asarray(~np.isnan(gram.products).any(axis=0))
    for window, intervals in stretches(windows(known)):
        if window.stop - window.start < FEWEST[method]:
            raise ValueError(
                f"a spline needs {FEWEST[method]} checkpoints that were read together, and only those of "
                f"steps {list(gram.steps[window])} were; read all products, or reread more of the old ones"
            )
        for path in spline_paths(grid, positions, bc_type, window, intervals):
            for row, products in zip(rows, gram.products[:, window, window], strict=True):
                collected.put([row], path.stretch, _path_forces(products, path, its))
        if window != slice(0, len(known)):
            for interval in range(intervals.start, intervals.stop):
                shorter = shortened(window, interval, len(known))
                paths = list(spline_paths(grid, positions, bc_type, shorter, slice(interval, interval + 1)))
                for row, products in zip(rows, gram.products[:, shorter, shorter], strict=True):
                    collected.compare(row, interval, [_path_forces(products, path, its) for path in paths])


def _path_forces(products: Floats, path: Path, its: Rates) -> ForceBudget:
    """The forces [1, t] of the update that moves the weights of a tensor on their path.

    With way = −ηu − ηω·w: alignment = 2⟨w,way⟩ + 2ηω‖w‖², injection = ‖way + ηω·w‖².
    """
    lost = its.lost[path.stretch]
    at, along = path.place @ products, path.way @ products
    pairs = ((at, path.place), (at, path.way), (along, path.way), (path.before @ products, path.before))
    norm_sq, both, way_sq, before = (np.einsum("tk,tk->t", left, right)[None] for left, right in pairs)
    alignment = 2 * (both + lost * norm_sq)
    return ForceBudget(
        alignment=alignment,
        injection=way_sq + 2 * lost * both + lost**2 * norm_sq,
        decay=-2 * lost * norm_sq,
        coupling=lost * (lost * norm_sq - alignment),
        norm_sq=before,
    )
