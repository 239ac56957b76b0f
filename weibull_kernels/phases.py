"""The phases of training, told from the balance of the forces, and a run in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .budget import Array, ForceBudget
from .columns import Columns

PHASES = ("plateau", "rise", "overshoot", "relaxation", "balance")
"""In the order in which a run goes through them; none has to occur."""

WINDOW = 0.05
"""The part of the run that forces are averaged over: those of single steps flip at every record."""

BALANCED = 0.1
"""In balance the net force is under this part of the absolute budget."""

STILL = 0.01
"""A σ or λ that has moved by less than this part of itself stands where it was."""


def find_phases(
    step: np.ndarray, series: ForceBudget, scale: Array = None, *, window: float = WINDOW
) -> np.ndarray:
    """The phase at each record of one tensor or group of tensors, one of `PHASES`.

        net = alignment + injection + decay + coupling
        budget = |alignment| + |injection| + |decay|

        plateau     from the first record on, while all forces together, Σ budget over the steps
                    so far, come to at most 2 % of the first ‖w‖²: σ cannot have moved by 1 %,
                    as in the first steps of a warm-up
        balance     |net| ≤ 0.1·budget
        rise        net > 0 otherwise: ‖w‖² grows, as a rule because alignment dominates
        overshoot   net < 0 otherwise, past the peak that the target rose to (by more than 1 %)
                    but still within 1 % of it: the forces have turned, the target has not followed
        relaxation  net < 0 otherwise: ‖w‖² shrinks, decay dominates

    The first that holds, from top to bottom. The target is λ where `scale` is given, else σ
    after each record. Source: [W2]; the thresholds are this library's.

    All forces but the plateau's are averaged first, each over `window` of the run around the
    record (the window is cut off at both ends of the run), and a stretch of one phase that is
    shorter than the window is given to the longer of its neighbours: so a force that flips
    makes no phases, and one that crosses zero in passing is no balance. Plateaus, which cannot
    come back, and stretches without a phase stay as they are.

    Args:
        step: of the records, [T], ascending.
        series: whose rows are the records, numpy [T], as from `force_series`; a row of n
            `steps` is their sum, and counts n times as much in an average as one of a single step.
        scale: λ after each record, [T]; NaN where it is not known, which is filled in linearly.
        window: part of the run, from step[0] to step[-1], that an average spans; 0 for none.

    Returns:
        [T] strings; "undefined" where a force in the window, or before, is not finite.

    Raises:
        ValueError: `step` does not ascend, it or `scale` does not fit the series, λ is not
            positive, or `window` is not in [0, 1].

    >>> grows_then_shrinks = ForceBudget.from_sums(
    ...     np.array([-9.0, -1.0]), np.array([0.1, 0.1]), np.array([40.0, 40.0]), lr=0.1, weight_decay=0.1
    ... )
    >>> find_phases(np.array([1, 2]), grows_then_shrinks).tolist()
    ['rise', 'relaxation']
    """
    step = _steps(step, series, window)
    _, start, target = _target(step, series, scale)
    if len(step) == 0:
        return np.array([], dtype=str)
    mean = moving_average(step, series, window)
    net = mean.predicted_change
    peak = int(np.argmax(np.where(np.isnan(target), -math.inf, target)))
    past = (np.arange(len(step)) > peak) & (target >= (1 - STILL) * target[peak])
    past &= target[peak] > (1 + STILL) * start
    labels: np.ndarray = np.select(
        [abs(net) <= BALANCED * mean.absolute, net > 0, (net < 0) & past, net < 0],
        ["balance", "rise", "overshoot", "relaxation"],
        "undefined",
    )
    labels[_untouched(step, series)] = "plateau"
    return _merged(step, labels, window * float(step[-1] - step[0]))


def moving_average(step: np.ndarray, series: ForceBudget, window: float = WINDOW) -> ForceBudget:
    """The forces of one step in the mean of the records within `window` of the run around each, [T].

    And within one record of it: where they are farther apart than that, of it and its neighbours.

    Sums over the records over the sum of their `steps`. `norm_sq` is left as it is. Arguments as
    in `find_phases`.
    """
    # At least the neighbours, where records are far apart; one of a rate near 0 has hardly any force.
    apart = float(np.median(np.diff(step))) if window > 0 and len(step) > 1 else 0.0
    reach = max(window * (step[-1] - step[0]) / 2, apart)
    first = np.searchsorted(step, step - reach)
    last = np.searchsorted(step, step + reach, side="right")

    def total(column: Array) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # what is not finite has no mean, nor what comes after it
            running = np.concatenate(([0.0], np.cumsum(column)))
            sums: np.ndarray = running[last] - running[first]
        return sums

    steps = np.maximum(total(np.broadcast_to(series.steps, step.shape)), 1)  # no steps, no force
    return replace(
        series,
        alignment=total(series.alignment) / steps,
        injection=total(series.injection) / steps,
        decay=total(series.decay) / steps,
        coupling=total(series.coupling) / steps,
        steps=1,
    )


@dataclass(frozen=True, eq=False)
class RunSummary(Columns):
    """A run in a few numbers; see `summarize_run`.

    Attributes:
        target: what rises and falls: "scale" is λ, "rms" is σ, and "norm" is ‖w‖ where the series
            does not know the number of entries.
        peak, final: its largest value and that after the last record.
        peak_step: the step of the peak.
        final_over_peak: 1 where it rises to the end.
        tau: τ = 1/(ηω) at the last record, in steps; infinite without decay.
        effective_age: Ση·ω over the steps that the records span, in units of τ.
        equilibrium_norm: ‖w‖ at which the net of the last forces would vanish.
        equilibrium_over_final: that over ‖w‖ after the last record; over 1 is still growing.
        net_at_peak, net_at_end: |net| over the absolute budget; under 0.1 is balance.
        alignment_over_decay_at_peak, alignment_over_decay_at_end: |alignment|/|decay|.
    """

    target: str
    peak: float
    peak_step: int
    final: float
    final_over_peak: float
    tau: float
    effective_age: float
    equilibrium_norm: float
    equilibrium_over_final: float
    net_at_peak: float
    net_at_end: float
    alignment_over_decay_at_peak: float
    alignment_over_decay_at_end: float
    names: tuple[str, ...] | None = None


def summarize_run(
    step: np.ndarray,
    series: ForceBudget,
    scale: Array = None,
    *,
    lr: Array,
    weight_decay: Array,
    window: float = WINDOW,
) -> RunSummary:
    """Peak, time constants and balance of a run of one tensor or group of tensors.

    The forces are averaged over `window` of the run, as in `find_phases`, at the peak and at the
    end. The equilibrium norm is that at which the net of the last of them vanishes if

        alignment ∝ ‖w‖      as ⟨w,u⟩ = cosθ·‖w‖·‖u‖, with the angle and the update's length kept
        injection            stays, as it is η²‖u‖²
        decay ∝ ‖w‖²

    and the coupling follows its two parts: the positive root x of a·x + j − d·x² = 0, times the
    present ‖w‖. Where nothing pulls back it is infinite, where there is no force the present norm.

    Args:
        step: of the records, [T], ascending.
        series: whose rows are the records, numpy [T], as from `force_series`.
        scale: λ after each record, [T], NaN where it is not known; σ takes its place if None.
        lr: η at the records, a number or [T].
        weight_decay: ω, a number or [T]. Between two records η·ω is taken to be straight, and
            over the steps of the first record to be constant.
        window: part of the run that forces are averaged over.

    Returns:
        A `RunSummary` of numbers.

    Raises:
        ValueError: as `find_phases`; there are no records; a force, norm or rate is not finite or
            has another length.

    >>> forces = dict(injection=np.zeros(2), decay=np.array([-1.0, -2.0]), coupling=np.zeros(2))
    >>> series = ForceBudget(np.array([4.0, 1.0]), **forces, norm_sq=np.array([97.0, 100.0]))
    >>> run = summarize_run(np.array([1, 2]), series, lr=0.1, weight_decay=0.1, window=0)
    >>> run.peak, run.peak_step, round(run.tau, 9), round(run.effective_age, 9)
    (10.0, 1, 100.0, 0.02)
    """
    step = _steps(step, series, window)
    if len(step) == 0:
        raise ValueError("there are no records to summarize")
    name, _, target = _target(step, series, scale)
    rates = [_at_records(rate, given, step) for rate, given in (("lr", lr), ("weight_decay", weight_decay))]
    rate = rates[0] * rates[1]
    _require_finite(step, series, rate)
    mean = moving_average(step, series, window)
    net = mean.predicted_change
    peak, last = int(np.argmax(target)), len(step) - 1
    h = np.diff(step)
    age = np.broadcast_to(series.steps, step.shape)[0] * rate[0]
    age += np.sum((h - 1) / 2 * rate[:-1] + (h + 1) / 2 * rate[1:])
    norm = math.sqrt(norm_sq_after(series)[last])
    toward = _equilibrium_norm(step, mean, window)
    return RunSummary(
        target=name,
        peak=float(target[peak]),
        peak_step=int(step[peak]),
        final=float(target[last]),
        final_over_peak=_over(target[last], target[peak], nothing=1.0),
        tau=_over(1.0, rate[last]),
        effective_age=float(age),
        equilibrium_norm=toward,
        equilibrium_over_final=_over(toward, norm, nothing=1.0),
        net_at_peak=_over(abs(net[peak]), mean.absolute[peak]),
        net_at_end=_over(abs(net[last]), mean.absolute[last]),
        alignment_over_decay_at_peak=_over(abs(mean.alignment[peak]), abs(mean.decay[peak])),
        alignment_over_decay_at_end=_over(abs(mean.alignment[last]), abs(mean.decay[last])),
    )


def _steps(step: np.ndarray, series: ForceBudget, window: float) -> np.ndarray:
    step = np.asarray(step)
    if step.ndim != 1 or step.shape != np.shape(series.alignment):
        raise ValueError(
            f"step must be [T] with a row of the series each, {np.shape(series.alignment)}; got {step.shape}"
        )
    if (np.diff(step) <= 0).any():
        raise ValueError("step must ascend; sort the records and drop double ones")
    if not 0 <= window <= 1:
        raise ValueError(f"window must be a part of the run, from 0 to 1, got {window}")
    return step


def _at_records(name: str, given: Array, step: np.ndarray) -> np.ndarray:
    """A number or [T] as float64 [T]."""
    column = np.asarray(given, dtype=np.float64)
    if column.shape not in ((), step.shape):
        raise ValueError(f"{name} must be a number or one for each record {step.shape}, got {column.shape}")
    return np.broadcast_to(column, step.shape)


def _require_finite(step: np.ndarray, series: ForceBudget, rate: np.ndarray) -> None:
    names = ("alignment", "injection", "decay", "coupling", "norm_sq")
    columns = {name: np.broadcast_to(getattr(series, name), step.shape) for name in names}
    for name, column in (columns | {"lr·weight_decay": rate}).items():
        if len(wrong := step[~np.isfinite(column)]):
            raise ValueError(f"{name} must be finite, it is not at step {wrong[0]}; leave such records out")


def _target(step: np.ndarray, series: ForceBudget, scale: Array) -> tuple[str, float, np.ndarray]:
    """What rises and falls, where it begins, and its values after each record: λ, σ, or ‖w‖ without n."""
    if scale is not None:
        column = np.asarray(scale, dtype=np.float64)
        known = ~np.isnan(column)
        if column.shape != step.shape:
            raise ValueError(f"scale must have one λ for each record {step.shape}, got {column.shape}")
        if len(wrong := step[known & ~((column > 0) & np.isfinite(column))]):
            raise ValueError(
                f"scale must be positive, or NaN where it is not known; not so at step {wrong[0]}"
            )
        if known.any():
            filled = np.interp(step, step[known], column[known])
            return "scale", float(filled[0]), filled
    numel = 1 if series.numel is None else series.numel
    before = np.broadcast_to(series.norm_sq, step.shape)
    norm, start = (np.sqrt(np.maximum(part, 0) / numel) for part in (norm_sq_after(series), before))
    return "norm" if series.numel is None else "rms", float(start[0]) if len(start) else 0.0, norm


def norm_sq_after(series: ForceBudget) -> np.ndarray:
    """‖w‖² after each record, [T]: by the measured change where there is one."""
    rounding = 0 if series.rounding is None else np.nan_to_num(series.rounding)
    after: np.ndarray = series.norm_sq + series.predicted_change + rounding
    return after


def _untouched(step: np.ndarray, series: ForceBudget) -> np.ndarray:
    """Where all forces so far could not have moved ‖w‖² by twice `STILL`, [T] bool."""
    steps = np.broadcast_to(series.steps, step.shape)
    of_one = np.asarray(series.absolute / np.maximum(steps, 1), dtype=np.float64)
    # A record of a single step stands for those since the one before; the first for as many, if there were.
    gaps = np.diff(step)
    first = np.maximum(steps[:1], np.minimum(gaps[:1], step[:1])) if len(gaps) else steps[:1]
    so_far = np.cumsum(of_one * np.concatenate((first, gaps)))
    untouched: np.ndarray = so_far <= 2 * STILL * np.broadcast_to(series.norm_sq, step.shape)[0]
    return untouched


def _merged(step: np.ndarray, labels: np.ndarray, least: float) -> np.ndarray:
    """The phases with stretches of fewer than `least` steps given to the longer neighbour, shortest first."""
    bounds = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist(), len(labels)]
    before = np.concatenate((2 * step[:1] - step[1:2], step)) if len(step) > 1 else np.append(step - 1, step)
    found = [(str(labels[a]), a, b) for a, b in pairwise(bounds)]

    def length(i: int) -> float:
        """In steps; infinite for what is neither given away nor added to."""
        phase, a, b = found[i]
        return math.inf if phase in ("plateau", "undefined") else float(before[b] - before[a])

    while True:
        short = [i for i in range(len(found)) if length(i) < least]
        taking = {
            i: [j for j in (i - 1, i + 1) if 0 <= j < len(found) and length(j) < math.inf] for i in short
        }
        short = [i for i in short if taking[i]]
        if not short:
            break
        i = min(short, key=length)
        found[i] = (found[max(taking[i], key=length)][0], *found[i][1:])
        joined = found[:1]
        for phase, a, b in found[1:]:
            if phase == joined[-1][0]:
                joined[-1] = (phase, joined[-1][1], b)
            else:
                joined.append((phase, a, b))
        found = joined
    return np.repeat([phase for phase, _, _ in found], [b - a for _, a, b in found])


def _equilibrium_norm(step: np.ndarray, mean: ForceBudget, window: float) -> float:
    """The positive root of a·x + j − d·x² = 0 for the last of the averaged forces, times ‖w‖."""
    # At least the neighbours, where records are far apart; one of a rate near 0 has hardly any force.
    apart = float(np.median(np.diff(step))) if window > 0 and len(step) > 1 else 0.0
    reach = max(window * (step[-1] - step[0]) / 2, apart)
    norm_sq = float(np.broadcast_to(mean.norm_sq, step.shape)[step >= step[-1] - reach].mean())
    alignment, injection, decay, coupling = (
        float(force[-1]) for force in (mean.alignment, mean.injection, mean.decay, mean.coupling)
    )
    if norm_sq == 0:
        return 0.0 if injection == 0 else math.inf  # zeros have no angle and no decay to tell from
    # The coupling's own square, (1−c)²‖w‖² with 1−c = −decay/2‖w‖²; what is left goes with the alignment.
    square = decay**2 / (4 * norm_sq)
    a, d = alignment + coupling - square, -(decay + square)
    if d <= 0 and (a > 0 or (a == 0 and injection > 0)):
        return math.inf
    if a == injection == d == 0:
        return math.sqrt(norm_sq)
    root = math.sqrt(a**2 + 4 * max(d, 0.0) * injection)
    x = (a + root) / (2 * d) if a > 0 else 2 * injection / (root - a)
    return x * math.sqrt(norm_sq)


def _over(part: float, whole: float, nothing: float = 0.0) -> float:
    """A quotient of numbers that are not negative; of two zeros `nothing`."""
    if whole == 0:
        return nothing if part == 0 else math.inf
    return float(part / whole)
