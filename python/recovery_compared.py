"""A recovery beside the truth: how far it is off, and what it should see by the true forces."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from optimizers import BETA1
from settings import Settings

import weibull_kernels as wk
from weibull_kernels.gram import CheckpointGram
from weibull_kernels.injection import displacement_weights, surviving_part
from weibull_kernels.records import force_series
from weibull_kernels.roles import matching_rows

AVERAGED = 20  # steps that the truth is averaged over
FIRST = 20  # before which nothing is judged: the update is not yet what it will be


@dataclass(frozen=True)
class Truth:
    """What happened in one group of tensors at each of T steps, [T]."""

    forces: wk.ForceBudget
    averaged: np.ndarray
    published: np.ndarray
    rise: np.ndarray
    saturation: np.ndarray

    @classmethod
    def of(cls, records: pa.Table, *roles: str) -> "Truth":
        """From the records of every single step."""
        step, forces = force_series(records, *roles)
        phases = wk.find_phases(step, forces)
        decay = -forces.decay / (2 * forces.norm_sq)
        return cls(
            forces,
            averaged=moving_mean(forces.alignment),
            # −2η⟨w⁺,u⟩, what the code published with [W2] compares with.
            published=(1 - decay) * forces.alignment + 2 * forces.injection,
            rise=(phases == "rise") & (step > FIRST),
            saturation=np.isin(phases, ("balance", "overshoot", "relaxation")) & (step > FIRST),
        )


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Over `AVERAGED` steps around each, fewer at the ends."""
    running = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    low = np.maximum(places - AVERAGED // 2, 0)
    high = np.minimum(places + AVERAGED // 2, len(values))
    return (running[high] - running[low]) / (high - low)


def summed(recovery: wk.Recovery, values: np.ndarray) -> np.ndarray:
    """Over the steps of every interval between checkpoints, [I], from every step of the run, [T]."""
    done = np.concatenate(([0.0], np.cumsum(values)))
    ends = recovery.impulses.step
    found: np.ndarray = done[ends] - done[ends - recovery.impulses.steps]
    return found


def mostly(recovery: wk.Recovery, phase: np.ndarray) -> np.ndarray:
    """The intervals that lie in a phase by more than half, [I], from the steps that do, [T]."""
    found: np.ndarray = summed(recovery, phase.astype(float)) > recovery.impulses.steps / 2
    return found


def compared(recovery: wk.Recovery, truth: Truth, role: str) -> dict[str, Any]:
    """Medians over the steps, and over the intervals, of the rise and of saturation."""
    place = recovery.step - 1
    alignment = recovery.series(role=role).alignment
    impulses = recovery.impulses.series(role=role)
    true = summed(recovery, truth.forces.alignment)
    rows = matching_rows(recovery.names, recovery.roles, "*", role)
    found: dict[str, Any] = {}
    for phase in ("rise", "saturation"):
        steps = getattr(truth, phase)[place]
        intervals = mostly(recovery, getattr(truth, phase))
        ratio = (alignment / truth.averaged[place])[steps]
        impulse = (impulses.alignment / true)[intervals]
        found[phase] = {
            "steps": int(steps.sum()),
            "ratio": middle(ratio),
            "as_published": middle((alignment / truth.published[place])[steps]),
            "error": middle(abs(ratio - 1)),
            "intervals": int(intervals.sum()),
            "impulse_ratio": middle(impulse),
            "impulse_error": middle(abs(impulse - 1)),
        }
        if recovery.impulses.alignment_error is not None:
            sigma = recovery.impulses.alignment_error[rows].sum(axis=0)
            known = intervals & (sigma > 0)  # of a single step nothing is uncertain
            off = abs(impulses.alignment - true)[known] / sigma[known]
            found[phase]["within_one_sigma"] = float((off <= 1).mean()) if len(off) else None
            found[phase]["within_two_sigma"] = float((off <= 2).mean()) if len(off) else None
    return found


def explained(
    recovery: wk.Recovery, gram: CheckpointGram, truth: Truth, role: str, settings: Settings
) -> dict[str, Any]:
    """What a method without an estimate of the injection should see in the rise, from the true forces.

    Between two checkpoints ‖w‖² changes by A + J + D + C, the true forces, and on the path that the method
    lays through them by Â + D̂ + M, with M the squared moves of the path. So

        Â = A + J − M + (D + C − D̂)

    but for rounding, and Â is A + J only where M is 0.

    Returns:
        Medians over the steps or intervals of the rise, in parts of A: `sum`, A + J; `sum_as_published`, its
        part of A + 2J; each less from the ratio found is its `remainder`. Of the intervals: `impulse_sum`,
        A + J; `own_move`, M; `decay_difference`; `impulse_expected`, Â by the equation; `unexplained`, how
        far the one found is from it; `swing`, how far the ratio of single steps is from that of the
        intervals. `kept` is M in parts of J, and `kept_by_diffusion` what it would be on straight lines,
        c(h)·Σaₛaₜβ₁^|s−t|/(Ση)² by `injection.surviving_part`.
    """
    place = recovery.step - 1
    steps, intervals = truth.rise[place], mostly(recovery, truth.rise)
    impulses = recovery.impulses.series(role=role)
    true = {name: summed(recovery, getattr(truth.forces, name)) for name in ("alignment", "injection")}
    decay = summed(recovery, truth.forces.decay + truth.forces.coupling) - impulses.decay
    moved = own_moves(recovery, gram, role)
    expected = true["alignment"] + true["injection"] - moved + decay

    def part(values: np.ndarray, of: str = "alignment") -> float | None:
        return middle((values / true[of])[intervals])

    alignment, both = truth.averaged[place], (truth.averaged + moving_mean(truth.forces.injection))[place]
    published = moving_mean(truth.published)[place]
    found = recovery.series(role=role).alignment
    over_true, over_published = middle((both / alignment)[steps]), middle((both / published)[steps])
    ratio = middle((found / alignment)[steps])
    as_published = middle((found / truth.published[place])[steps])
    return {
        "sum": over_true,
        "sum_as_published": over_published,
        "remainder": less(ratio, over_true),
        "remainder_as_published": less(as_published, over_published),
        "impulse_sum": part(true["alignment"] + true["injection"]),
        "own_move": part(moved),
        "decay_difference": part(decay),
        "impulse_expected": part(expected),
        "unexplained": part(abs(impulses.alignment - expected)),
        "swing": less(ratio, part(impulses.alignment)),
        "kept": part(moved, "injection"),
        "kept_by_diffusion": middle(kept_on_lines(recovery, settings)[intervals]),
    }


def own_moves(recovery: wk.Recovery, gram: CheckpointGram, role: str) -> np.ndarray:
    """The squared moves of the path of a method, summed over each interval, [I].

    Of a spline Σ‖cs(t) − cs(t−1)‖²; of two points ‖wᵢ₊₁ − wᵢ‖², as they take an interval for one step;
    of the midpoint 0, as Δ‖w‖² is 2⟨(wᵢ + wᵢ₊₁)/2, wᵢ₊₁ − wᵢ⟩ to the last digit.
    """
    if recovery.method == "spline":
        impulses = recovery.impulses.series(role=role)
        smooth: np.ndarray = impulses.injection + impulses.coupling
        return smooth
    if recovery.method == "midpoint":
        return np.zeros(len(recovery.impulses.step))
    rows = matching_rows(recovery.names, recovery.roles, "*", role)
    places = [gram.names.index(recovery.names[row]) for row in rows]
    whole: np.ndarray = gram.moves[places, 1:].sum(axis=0)
    return whole


def kept_on_lines(recovery: wk.Recovery, settings: Settings) -> np.ndarray:
    """The part of the injection that straight lines between the checkpoints keep, [I], by diffusion.

    They go ‖x‖/h a step, and E‖x‖² = c(h)·n·û_rms²·Σaₛaₜβ₁^|s−t|, where the injection is Ση²·n·û_rms².
    """
    every = range(1, settings.steps + 1)
    lr = settings.lr * np.array([settings.lr_factor(step) for step in every])
    found = []
    for end, length in zip(recovery.impulses.step, recovery.impulses.steps, strict=True):
        rates = lr[end - length : end]
        _, variance = displacement_weights(rates, settings.weight_decay, BETA1)
        found.append(surviving_part(np.array([float(length)]), BETA1)[0] * variance / rates.sum() ** 2)
    return np.array(found)


def less(value: float | None, other: float | None) -> float | None:
    """The difference, to five digits after the point; None where one is not known."""
    return None if value is None or other is None else round(value - other, 5)


def middle(values: np.ndarray) -> float | None:
    """The median, to five digits; None of nothing."""
    return float(f"{np.median(values):.5g}") if len(values) else None
