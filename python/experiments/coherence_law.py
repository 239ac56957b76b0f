"""The law of [W3], growth against what the bigrams of a text tell, put to the test on runs."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

EXPONENT = 0.59
"""Of the law: λ² − λ₀² = C₀ + C₁·(H_r − D)^0.59, [W3]."""

PAIRS, PAIRS_ERROR = 1.69, 0.015
"""p of [W3]: H_r − D ∝ S^p, with S the part of the adjacent pairs that shuffling leaves.

Its standard error is that of `fit_power` on the eleven levels of ρ that were published with it.
"""

PARTS = (0.2, 0.5)
"""Parts of the run after which the growth is looked at too."""

PROBED = 0.6
"""The ρ that is looked at more closely: the largest of [W3]'s law."""

NOISE = (0.1 / 1.9) ** 0.5
"""û of gradients that are nothing but noise of one strength, √((1−β₁)/(1+β₁)) at β₁ = 0.9."""

RANGE = (0.05, 6.0)
"""Where exponents are looked for."""


@dataclass(frozen=True)
class Power:
    """y = constant + factor·x^exponent by least squares; `error` is the exponent's standard error.

    `r_squared` is that of the fit, `r_squared_fixed` that with the published exponent in its place.
    """

    constant: float
    factor: float
    exponent: float
    error: float
    r_squared: float
    r_squared_fixed: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The value at x."""
        y: np.ndarray = self.constant + self.factor * np.asarray(x, dtype=float) ** self.exponent
        return y


def fit_power(x: Any, y: Any, fixed: float = EXPONENT) -> Power | None:
    """The power law through points with x ≥ 0; None where there are under four different x.

    For every exponent the two others follow by linear least squares, so that only it is searched for. Its
    error is that of the linearised fit, √(s²·(JᵀJ)⁻¹) with s² = residues²/(n − 3).

    Raises:
        ValueError: an x is negative, or a point is not finite.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x >= 0).all()):
        raise ValueError(f"a power law needs finite points with x of 0 or more, got x = {x}, y = {y}")
    if len(np.unique(x)) < 4:
        return None
    # A coarse search first: the residues may have more than one valley.
    coarse = np.geomspace(*RANGE, 60)
    best = int(np.argmin([_residues(x, y, p) @ _residues(x, y, p) for p in coarse]))
    between = coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)]
    found = minimize_scalar(
        lambda p: _residues(x, y, p) @ _residues(x, y, p),
        bounds=between,
        method="bounded",
        options={"xatol": 1e-10},
    )
    exponent = float(found.x)
    constant, factor = _linear(x, y, exponent)
    return Power(
        constant,
        factor,
        exponent,
        _error(x, y, factor, exponent),
        r_squared(y, y - _residues(x, y, exponent)),
        r_squared(y, y - _residues(x, y, fixed)),
    )


def _linear(x: np.ndarray, y: np.ndarray, exponent: float) -> tuple[float, float]:
    """Constant and factor that fit best with an exponent."""
    columns = np.stack([np.ones_like(x), x**exponent], axis=1)
    constant, factor = np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(constant), float(factor)


def _residues(x: np.ndarray, y: np.ndarray, exponent: float) -> np.ndarray:
    constant, factor = _linear(x, y, exponent)
    left: np.ndarray = y - constant - factor * x**exponent
    return left


def _error(x: np.ndarray, y: np.ndarray, factor: float, exponent: float) -> float:
    """Standard error of the exponent."""
    slope = np.zeros_like(x)  # of x^p in p: x^p·ln x, which goes to 0 with x
    slope[x > 0] = factor * x[x > 0] ** exponent * np.log(x[x > 0])
    jacobian = np.stack([np.ones_like(x), x**exponent, slope], axis=1)
    left = _residues(x, y, exponent)
    variance = (left @ left) / max(1, len(x) - 3)
    return float(np.sqrt(variance * np.linalg.pinv(jacobian.T @ jacobian)[2, 2]))


def r_squared(y: np.ndarray, predicted: np.ndarray) -> float:
    """The part of the variance of y that is predicted; 1 where there is none."""
    whole = float(np.sum((y - np.mean(y)) ** 2))
    return 1.0 if whole == 0 else 1 - float(np.sum((y - predicted) ** 2)) / whole


def law(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Exponents over the runs on shuffled text; None where there are too few kinds of text.

    The published exponent is 1/p, with p from H_r − D = ΔH·S^p, where S is the part of the pairs that
    shuffling leaves; it is that of the growth if the growth is straight in S. So these are fitted:

        growth on the gap H_r − D (published 0.59), the gap on S (p, published 1.69), growth on S (1),
        growth on what is learnt, the bits by which the loss is under that on fully shuffled text, and what
        is learnt on the gap.
    """
    gap, retained, growth = ([run[name] for run in runs] for name in ("gap", "retained", "growth"))
    known = learnt(runs)
    fits = {
        "growth_on_gap": fit_power(gap, growth),
        "gap_on_retained": fit_power(retained, gap, fixed=PAIRS),
        "growth_on_retained": fit_power(retained, growth, fixed=1.0),
        "growth_on_learnt": None if known is None else fit_power(known, growth, fixed=1.0),
        "learnt_on_gap": None if known is None else fit_power(gap, known, fixed=1.0),
    }
    if any(fits[name] is None for name in ("growth_on_gap", "gap_on_retained", "growth_on_retained")):
        return None
    found: dict[str, Any] = {name: None if fit is None else asdict(fit) for name, fit in fits.items()}
    found["on_the_way"] = [
        {"part": part, "exponent": fit.exponent, "error": fit.error}
        for place, part in enumerate(PARTS)
        if (fit := fit_power(gap, [run["on_the_way"][place] for run in runs])) is not None
    ]
    found["exponent_by_seed"] = {}
    for seed in dict.fromkeys(run["seed"] for run in runs):
        mine = [run for run in runs if run["seed"] == seed]
        alone = fit_power([run["gap"] for run in mine], [run["growth"] for run in mine])
        found["exponent_by_seed"][str(seed)] = None if alone is None else alone.exponent
    return found


def learnt(runs: list[dict[str, Any]]) -> list[float] | None:
    """By how many bits a byte the loss is under that of the same seed on fully shuffled text, for each run.

    None where a seed has no such run.
    """
    full = {run["seed"]: run["loss"] for run in runs if run["shuffled"] == 1}
    if any(run["seed"] not in full for run in runs):
        return None
    return [max(0.0, full[run["seed"]] - run["loss"]) for run in runs]
