"""From the forces of a run to the path of its norm, and across the bridge to the Weibull scale λ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .budget import Array
from .columns import Columns
from .weibull import HALF_NORMAL_K

BRIDGES = ("measured", "anchored", "mean", "gamma")
"""How λ = r·σ may be crossed; see `reconstruction_error`."""

_RULES = ("cubic", "trapezoid", "euler")


@dataclass(frozen=True, eq=False)
class ReconstructionErrors(Columns):
    """How far a reconstructed scale lies from the observed one, by cause; relative and signed, [T].

        integration = (σ_pred − σ_obs)/σ_obs         bridge = (r·σ_obs − λ_obs)/λ_obs
        total       = (r·σ_pred − λ_obs)/λ_obs       1 + total = (1 + integration)·(1 + bridge)

    `ratio` is r, by which the bridge λ = r·σ was crossed. Positive is too large. Source: [W2],
    the split of the reconstruction error.
    """

    integration: Array
    bridge: Array
    total: Array
    ratio: Array
    names: tuple[str, ...] | None = None


def integrate_forces(
    step: Array,
    predicted_change: Array,
    norm_sq_start: Array,
    *,
    recorded: str = "instant",
    rule: str | None = None,
) -> Array:
    """‖w‖² at every record, from the forces alone.

    The force of step t takes ‖w‖² from step t−1 to step t, so with d(t) = `predicted_change`

        ‖w(b)‖² = ‖w(a)‖² + d(a+1) + … + d(b)

    "interval": each row is that sum over the steps since the row before, as a drained ledger
    has it. Adding the rows up is exact.

    "instant": each row is d of its one step, and the steps between are not known. `rule` says
    how they are filled in between two records a and b, h = b − a steps apart:

        cubic       (h−1)/2·d(a) + (h+1)/2·d(b) + (h²−1)/12·(d′(a) − d′(b))
        trapezoid   (h−1)/2·d(a) + (h+1)/2·d(b)
        euler       h·d(a), as published with [W2]

    The first is the sum, at every single step and not the integral, of the monotone cubic of
    Fritsch and Butland through the records; the second that of straight lines. Both are exact
    where every step is recorded. The cubic is the default: its error falls with the third or
    fourth power of the spacing, and as its slopes vanish where forces flip, it takes their noise
    no worse than straight lines do.

    Args:
        step: of the records, [T] whole numbers, ascending.
        predicted_change: Δ‖w‖² of the records, [T] or [T, P], such as `budget.predicted_change`.
        norm_sq_start: ‖w‖², a number or [P]. "instant": after the first record's step, as that is
            where the sum begins. "interval": before the first record, `budget.norm_sq` of it.
        recorded: "instant" or "interval".
        rule: "cubic" (default), "trapezoid" or "euler"; for "instant" records only.

    Returns:
        ‖w‖² after the step of each record, float64, of the shape of `predicted_change`; a tensor
        where one came in, else numpy.

    Raises:
        ValueError: `step` does not ascend in whole numbers; the lengths differ; a value is not
            finite, which is then named; `recorded` or `rule` is unknown, or a rule is given for
            intervals.

    >>> integrate_forces([1, 2, 5], [1.0, 2.0, 6.0], 10.0, recorded="interval").tolist()
    [11.0, 13.0, 19.0]
    >>> integrate_forces([1, 2, 5], [1.0, 2.0, 5.0], 11.0).tolist()  # d(t) = t: 2, then 3 + 4 + 5
    [11.0, 13.0, 25.0]
    """
    if recorded not in ("instant", "interval"):
        raise ValueError(f"recorded must be 'instant' or 'interval', got {recorded!r}")
    if rule is not None and recorded == "interval":
        raise ValueError(
            f"intervals are added up, there is no rule to choose; got rule={rule!r}, leave it out"
        )
    rule = rule or "cubic"
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {_RULES}, got {rule!r}")
    steps, change, start = _host(step), _host(predicted_change), _host(norm_sq_start)
    _require_rows("predicted_change", change, steps, dims=(1, 2))
    if start.shape not in ((), change.shape[1:]):
        raise ValueError(
            f"norm_sq_start must be a number or one for each column {change.shape[1:]}, got {start.shape}"
        )
    _require_finite("predicted_change", change, steps)
    if not np.isfinite(start).all():
        raise ValueError(f"norm_sq_start must be finite, got {start.tolist()}")
    if recorded == "interval":
        added = change
    elif len(steps) < 2:
        added = 0 * change
    else:
        between = _between(steps, change, rule)
        added = np.concatenate((0 * change[:1], between))
    return _like(start + np.cumsum(added, axis=0), step, predicted_change, norm_sq_start)


def reconstruction_error(
    norm_sq_pred: Array,
    norm_sq_obs: Array,
    scale_obs: Array,
    numel: Array,
    bridge: str = "measured",
    step: Array = None,
    k: Array = HALF_NORMAL_K["probability_plot"],
    anchor: int = 0,
) -> ReconstructionErrors:
    """The error of λ = r·σ from an integrated budget, split into integration and bridge.

        integration = (σ_pred − σ_obs)/σ_obs     bridge = (r·σ_obs − λ_obs)/λ_obs     σ = √(‖w‖²/n)
        total       = (r·σ_pred − λ_obs)/λ_obs

    The bridges, r at each of the T checkpoints:

        measured   λ_obs/σ_obs at the *other* checkpoints, at most two on either side, through
                   which a cubic in √step is laid; beyond the outermost, the value of the nearest.
                   So its error is that of a prediction, and not zero by construction.
        anchored   λ_obs/σ_obs at the one checkpoint `anchor`
        mean       the mean of λ_obs/σ_obs over all of them, as in the published figures of [W2]
        gamma      1/√Γ(1 + 2/k), the ratio of Weibull weights, [W2]; 8 % off at initialisation,
                   where |w| is half-normal and not Weibull

    Args:
        norm_sq_pred: ‖w‖² as `integrate_forces` gives it, at T checkpoints: [T], or [T, P].
        norm_sq_obs: ‖w‖² as observed there, of the same shape.
        scale_obs: λ as observed there, of the same shape.
        numel: n, a number or [P].
        bridge: one of `BRIDGES`.
        step: of the checkpoints, [T], ascending; for "measured" only, which otherwise takes them
            to be equally spaced.
        k: the Weibull shape, for "gamma" only: a number or of the shape of `scale_obs`.
        anchor: a checkpoint from 0 to T−1, or from the end if negative; for "anchored" only.

    Returns:
        `ReconstructionErrors` [T] or [T, P], relative: 0.01 is one per cent too large. Tensors
        where one came in, else numpy.

    Raises:
        ValueError: the shapes differ, a value is not finite or not positive, which is then named,
            `bridge` is unknown, there is no checkpoint `anchor`, or "measured" has a single one.

    >>> error = reconstruction_error([1.21, 1.44], [1.0, 1.44], [0.8, 1.2], 1, bridge="anchored")
    >>> [np.round(part, 3).tolist() for part in (error.integration, error.bridge, error.total)]
    [[0.1, 0.0], [0.0, -0.2], [0.1, -0.2]]
    """
    if bridge not in BRIDGES:
        raise ValueError(f"bridge must be one of {BRIDGES}, got {bridge!r}")
    given = (norm_sq_pred, norm_sq_obs, scale_obs)
    pred, seen, scale = (_host(column) for column in given)
    steps = np.arange(len(np.atleast_1d(scale)), dtype=np.float64) if step is None else _host(step)
    for name, column in (("norm_sq_pred", pred), ("norm_sq_obs", seen), ("scale_obs", scale)):
        _require_rows(name, column, steps, dims=(1, 2))
        if column.shape != scale.shape:
            raise ValueError(f"{name} must have the shape of scale_obs, {scale.shape}; got {column.shape}")
        _require_finite(name, column, steps, above=-math.inf if name == "norm_sq_pred" else 0.0)
    if (pred < 0).any():
        first = steps[(pred < 0).reshape(len(pred), -1).any(axis=1)][0]
        raise ValueError(
            f"norm_sq_pred is negative at step {first:.15g}: the integrated decay took more than there was; "
            "record more often, or check norm_sq_start"
        )
    entries, shape = _host(numel), _host(k)
    for name, column in (("numel", entries), ("k", shape)):
        if not (np.isfinite(column) & (column > 0)).all():
            raise ValueError(f"{name} must be positive, got {column.tolist()}")
    sigma_pred, sigma = np.sqrt(pred / entries), np.sqrt(seen / entries)
    ratio = _ratio(bridge, scale / sigma, steps, shape, anchor)
    parts = (sigma_pred / sigma - 1, ratio * sigma / scale - 1, ratio * sigma_pred / scale - 1, ratio)
    return ReconstructionErrors(*(_like(part, *given, step, numel, k) for part in parts))


def _ratio(bridge: str, seen: np.ndarray, step: np.ndarray, k: np.ndarray, anchor: int) -> np.ndarray:
    """The ratio r at each checkpoint, of the shape of `seen`, the observed λ/σ."""
    if bridge == "gamma":
        gamma = np.vectorize(math.gamma, otypes=[np.float64])(1 + 2 / k)
        found = 1 / np.sqrt(gamma)
    elif bridge == "mean":
        found = seen.mean(axis=0)
    elif bridge == "anchored":
        if not -len(seen) <= anchor < len(seen):
            raise ValueError(f"anchor must be one of the {len(seen)} checkpoints, from 0; got {anchor}")
        found = seen[anchor]
    else:
        if len(seen) == 1:
            raise ValueError(
                "bridge='measured' takes r from other checkpoints, and there is only one; take 'gamma'"
            )
        found = np.stack([_from_the_others(step, seen, i) for i in range(len(seen))]) if len(seen) else seen
    return np.broadcast_to(found, seen.shape)


def _from_the_others(step: np.ndarray, seen: np.ndarray, i: int) -> np.ndarray:
    """λ/σ at checkpoint i as its neighbours predict it."""
    if i in (0, len(seen) - 1):
        return np.asarray(seen[1 if i == 0 else -2])
    # The ratio moves fast in the rise and then ever slower: in √step it bends about evenly.
    x = np.sqrt(step - min(step[0], 0))
    others = [j for j in range(i - 2, i + 3) if j != i and 0 <= j < len(seen)]
    weights = [math.prod((x[i] - x[b]) / (x[a] - x[b]) for b in others if b != a) for a in others]
    near = seen[others]
    low, high = near.min(axis=0), near.max(axis=0)
    # Through two checkpoints that nearly coincide a cubic may go anywhere.
    margin = (high - low) / 2
    return np.clip(np.tensordot(weights, near, axes=1), low - margin, high + margin)


def _between(step: np.ndarray, change: np.ndarray, rule: str) -> np.ndarray:
    """Σ d over the steps after each record up to the next, [T−1, …]."""
    h = np.diff(step).reshape(-1, *[1] * (change.ndim - 1))
    before, after = change[:-1], change[1:]
    weight_before, weight_after = (h, 0) if rule == "euler" else ((h - 1) / 2, (h + 1) / 2)
    sums: np.ndarray = weight_before * before + weight_after * after
    if rule == "cubic":
        from scipy.interpolate import PchipInterpolator

        with np.errstate(over="ignore"):  # of the quotient of subnormal slopes, which are then 0
            slope = PchipInterpolator(step, change, axis=0).derivative()(step)
        sums += (h**2 - 1) / 12 * (slope[:-1] - slope[1:])
    return sums


def _host(value: Array) -> np.ndarray:
    """In float64 on the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64).numpy()
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        value = [float(part) for part in value]
    return np.asarray(value, dtype=np.float64)


def _like(result: np.ndarray, *given: Any) -> Array:
    """A tensor on the device of the first tensor that was given, or numpy as it is."""
    tensor = next((value for value in given if isinstance(value, Tensor)), None)
    return result if tensor is None else torch.from_numpy(np.array(result)).to(tensor.device)


def _require_rows(name: str, column: np.ndarray, step: np.ndarray, dims: tuple[int, ...]) -> None:
    if step.ndim != 1 or column.ndim not in dims or len(column) != len(step):
        raise ValueError(
            f"{name} must have a row for each of the steps [T]; got {column.shape} and step {step.shape}"
        )
    if not np.isfinite(step).all() or (step != np.floor(step)).any():
        raise ValueError(f"step must be whole numbers, got {step.tolist()[:8]}")
    if falls := np.flatnonzero(np.diff(step) <= 0).tolist():
        a, b = step[falls[0] : falls[0] + 2]
        raise ValueError(
            f"step must ascend, got {b:.15g} after {a:.15g}; sort the records and drop double ones"
        )


def _require_finite(name: str, column: np.ndarray, step: np.ndarray, above: float = -math.inf) -> None:
    """Names the first row that is not a finite number above a bound."""
    wrong = ~(np.isfinite(column) & (column > above))
    if wrong.any():
        row = np.argwhere(wrong)[0]
        where = f"step {step[row[0]]:.15g}" + (f", column {row[1]}" if len(row) > 1 else "")
        more = int(wrong.sum()) - 1
        raise ValueError(
            f"{name} must be {'finite' if above == -math.inf else 'positive'}, got {column[tuple(row)]} "
            f"at {where}{f' and {more} more' if more else ''}; drop such records, or begin after them"
        )
