"""How much of a displacement is injection: û_rms² told from weights alone, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gram import CheckpointGram

Floats = NDArray[np.float64]

SOURCES = ("given", "stored", "diffusion", "noise_limit")
"""Where an estimate of the injection may come from; see `estimate_update_sq`."""

NOISE_LIMIT_ERROR = 0.7
"""Of ln û_rms² by the noise limit: the spread over roles, phases and runs that were looked at."""

ROUNDED = 0.045
"""Of eps²·‖w‖²: the mean square error of rounding to the nearest, (eps·2^e)²/12 with |w| = m·2^e, and the
mantissa m as logarithms have it: ∫m⁻²d(ln m)/ln 2/12 from 1 to 2."""

STORED_ERROR = 0.1
"""Of ln û_rms² over an interval by the optimizer's state at its ends: single steps scatter so much."""


# The curve of `surviving_part`, fitted to benchmarks/results/recovery-calibration.md.
_LEFT = 0.57
_UNDONE_WITHIN = 1.35  # in memories of the momentum, 1/(1−β₁) steps


@dataclass(frozen=True, eq=False)
class UpdateEstimate:
    """û_rms², the mean square of an entry of the update u over each interval, [P, I].

    `error` is the standard error of its logarithm, [P, I]; `source` is one of `SOURCES`, [P, I].
    """

    update_sq: Floats
    error: Floats
    source: NDArray[np.str_]


def noise_limit(beta1: float) -> float:
    """û_rms² where gradients are noise: (1−β₁)/(1+β₁), the variance of their moving average.

    >>> round(noise_limit(0.9) ** 0.5, 3)
    0.229
    """
    return (1 - beta1) / (1 + beta1)


def surviving_part(steps: Floats, beta1: float) -> Floats:
    """The part of the updates' diffusion that is still there after an interval of `steps` steps.

        c(h) = κ + (1 − κ)/(1 + ((h−1)/τ)^1.5),   κ = 0.57,   τ = 1.35/(1−β₁)

    Where a step has moved the weights uphill, the gradients after it move them back: two fifths of
    the diffusion are undone within a few memories of the momentum, and c is 1 where every step is
    seen. That is why checkpoints far apart show only a part of the injection. Measured and not
    derived, by `python/recovery_calibration.py`: one curve does for every role, β₂ and decay that were
    tried, in the rise and after it, all at β₁ = 0.9; that τ goes with the momentum's memory is assumed.
    """
    undone: Floats = (np.maximum(steps - 1, 0) / (_UNDONE_WITHIN / (1 - beta1))) ** 1.5
    return _LEFT + (1 - _LEFT) / (1 + undone)


def diffusion_error(steps: Floats) -> Floats:
    """The standard error of ln û_rms² by diffusion: 0.14 over 10 steps, 0.28 over 100, 0.56 over 1000.

    The spread of c(h) where it was measured, up to 400 steps; farther out it is a guess.
    """
    error: Floats = 0.07 * np.maximum(steps - 1, 0) ** 0.3
    return error


def displacement_weights(lr: Floats, weight_decay: float, beta1: float) -> tuple[float, float]:
    """What the decay leaves of the weights over some steps, and Var Σ of unit updates, from their rates [h].

        w⁺ = Πc·w − x,   x = Σₜ aₜ·uₜ,   aₜ = ηₜ·Π_{r>t} c_r,   E‖x‖² = n·û_rms²·Σₛₜ aₛ·aₜ·β₁^|s−t|

    for updates that are a moving average of independent gradients, c = 1 − ηω.
    """
    kept, variance, carried = 1.0, 0.0, 0.0
    for eta in lr.tolist():
        c = 1 - eta * weight_decay
        carried *= c * beta1
        variance = c * c * variance + eta * eta + 2 * eta * carried
        carried += eta
        kept *= c
    return kept, variance


def by_noise_limit(shape: tuple[int, ...], beta1: float) -> UpdateEstimate:
    """The same for every interval."""
    return UpdateEstimate(
        np.full(shape, noise_limit(beta1)),
        np.full(shape, NOISE_LIMIT_ERROR),
        np.full(shape, "noise_limit"),
    )


def by_diffusion(gram: CheckpointGram, lr: list[Floats], weight_decay: float, beta1: float) -> UpdateEstimate:
    """From how far the weights went between neighbouring checkpoints, beyond what decay did.

        û_rms² = (‖w⁺ − Πc·w‖² − r)/(n·Σₛₜ aₛ·aₜ·β₁^|s−t|·c(h))

    with the sums of `displacement_weights` and c(h) of `surviving_part`, r what the rounding of both
    checkpoints to their dtype adds; then averaged in the logarithm with the noise limit, each by
    the inverse of its variance: over long intervals, and where rounding is all there is to see,
    the displacement says less. What drifts counts as if it diffused; c(h) was measured so.

    The error is the spread of c(h) where it was measured, widened by half of ln c(h): in a run where
    nothing moves back c is 1, and û_rms² is overestimated by as much.

    Args:
        gram: of the P tensors; neighbouring checkpoints are enough.
        lr: η of the steps of each interval, I = K−1 arrays.
        weight_decay: ω.
        beta1: β₁.

    Returns:
        An `UpdateEstimate` [P, I]. An interval in which nothing moved, or whose rates are all 0,
        has the noise limit.
    """
    weights = [displacement_weights(rates, weight_decay, beta1) for rates in lr]
    kept, variance = (np.array(column) for column in zip(*weights, strict=True))
    steps = np.array([len(rates) for rates in lr], dtype=np.float64)
    survives = surviving_part(steps, beta1)
    numel = np.maximum(gram.numel[:, None], 1)
    rounded = ROUNDED * gram.eps**2 * gram.norm_sq
    rounding = rounded[:, 1:] + kept**2 * rounded[:, :-1]
    moved = _undecayed_sq(gram, kept) - rounding
    limit = by_noise_limit(moved.shape, beta1)
    seen = (moved > 0) & (variance > 0)
    moved = np.where(seen, moved, 1)
    log = np.log(moved / (numel * np.where(variance > 0, variance, 1) * survives))
    # The mean square of few entries is itself uncertain, but for a single step, which shows u itself.
    sampled = np.where(steps > 1, 2 / numel, 0)
    spread = np.sqrt(diffusion_error(steps) ** 2 + sampled + (rounding / moved) ** 2)
    weight = np.where(seen, limit.error**2 / (limit.error**2 + spread**2), 0)
    return UpdateEstimate(
        update_sq=np.exp(weight * log + (1 - weight) * np.log(limit.update_sq)),
        error=np.where(seen, np.hypot(np.sqrt(weight) * spread, weight * np.log(survives) / 2), limit.error),
        source=np.where(weight > 0.5, "diffusion", "noise_limit"),
    )


def _undecayed_sq(gram: CheckpointGram, kept: Floats) -> Floats:
    """‖w⁺ − κw‖² of neighbouring checkpoints, [P, I], from ‖w⁺ − w‖², in which no digits are lost."""
    before, after, moves = gram.norm_sq[:, :-1], gram.norm_sq[:, 1:], gram.moves[:, 1:]
    lost = 1 - kept
    along = (after - before - moves) / 2  # ⟨w, w⁺ − w⟩
    found: Floats = moves + 2 * lost * along + lost**2 * before
    return found


def with_stored(estimate: UpdateEstimate, stored: Floats, lengths: NDArray[np.int64]) -> UpdateEstimate:
    """Replaced where the optimizer's state is known at an end of the interval.

    Args:
        estimate: [P, I].
        stored: û_rms² at the checkpoints, [P, K]; NaN where it is not known.
        lengths: steps in each interval, [I].
    """
    known = ~np.isnan(stored)
    log = np.log(np.where(known, np.where(stored > 0, stored, np.finfo(float).tiny), 1))
    left, right = known[:, :-1], known[:, 1:]
    ends = left.astype(int) + right
    mean = (log[:, :-1] * left + log[:, 1:] * right) / np.maximum(ends, 1)
    # One end stands for the whole interval less well, the longer that is.
    one_sided = np.sqrt(STORED_ERROR**2 + diffusion_error(lengths.astype(np.float64)) ** 2 / 4)
    return UpdateEstimate(
        update_sq=np.where(ends > 0, np.exp(mean), estimate.update_sq),
        error=np.where(ends == 2, STORED_ERROR, np.where(ends == 1, one_sided, estimate.error)),
        source=np.where(ends > 0, "stored", estimate.source),
    )


def given(update_rms: float, shape: tuple[int, ...]) -> UpdateEstimate:
    """û_rms as the user knows it, taken as exact."""
    return UpdateEstimate(np.full(shape, update_rms**2), np.zeros(shape), np.full(shape, "given"))


def along(update_sq: Floats, knots: NDArray[np.int64], steps: NDArray[np.int64]) -> Floats:
    """û_rms² at single steps, [P, I] to [P, T]: its logarithm is straight between the intervals' middles."""
    middles = (knots[:-1] + knots[1:] + 1) / 2
    log = np.log(update_sq)
    found: Floats = np.exp(np.stack([np.interp(steps, middles, of_tensor) for of_tensor in log]))
    return found
