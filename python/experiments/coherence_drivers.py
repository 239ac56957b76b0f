"""Which force, and which cause behind the forces, makes the difference of ‖w‖² between two runs.

Over a record of n steps the alignment is a product of three, and the whole change of W = ‖w‖² follows from
three drivers, exactly, by definition of the first and the last:

    alignment = 2·c·ℓ·√W        ℓ = √(n·injection), the way of the updates Ση‖u‖; c = −cosθ of w and u
    W⁺ = W + alignment + ℓ²/n + δ·W        δ·W = decay + coupling + rounding

The angle c and the length ℓ are what the data can change. The norm and the decay follow them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np

import weibull_kernels as wk

from .course import parts

DRIVERS = ("angle", "length", "rate")
FACTORS = ("angle", "length", "norm")


@dataclass(frozen=True, eq=False)
class Drivers:
    """Of one run, record by record, [T], in units of ‖w‖² at its beginning.

    Attributes:
        angle: c = −cosθ between the weights and their updates: positive lengthens the weights.
        length: ℓ, the sum of η‖u‖ over the steps of the record.
        rate: δ, the part of ‖w‖² that decay (and coupling and rounding) adds: negative.
        norm: ‖w‖ before the record.
        steps: of each record.
    """

    angle: np.ndarray
    length: np.ndarray
    rate: np.ndarray
    norm: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, forces: wk.ForceBudget) -> "Drivers":
        """From the sums over records that follow one another."""
        each, start = parts(forces), forces.norm_sq[0]
        steps = np.broadcast_to(forces.steps, np.shape(forces.norm_sq)).astype(float)
        norm = np.sqrt(forces.norm_sq / start)
        length = np.sqrt(steps * each["injection"])
        way = 2 * length * norm
        # Without an update there is no angle, and no alignment either.
        angle = np.divide(each["alignment"], way, out=np.zeros_like(way), where=way > 0)
        rate = (each["decay"] + each["coupling"] + each["rounding"]) / norm**2
        return cls(angle, length, rate, norm, steps)

    @property
    def alignment(self) -> np.ndarray:
        """Of each record, from its factors."""
        return 2 * self.angle * self.length * self.norm


def grown(angle: np.ndarray, length: np.ndarray, rate: np.ndarray, steps: np.ndarray) -> float:
    """‖w‖² at the end of a run with these drivers, over that at its beginning."""
    norm_sq = 1.0
    for c, way, delta, n in zip(angle, length, rate, steps, strict=True):
        # Drivers of two runs together could lead below zero, where no norm is.
        norm_sq = max(0.0, norm_sq + 2 * c * way * norm_sq**0.5 + way**2 / n + delta * norm_sq)
    return norm_sq


def shapley(names: tuple[str, ...], value: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """How much each of the names brings, from what all sets of them are worth: the parts sum to the whole.

        φᵢ = Σ over sets S without i of |S|!·(N−|S|−1)!/N! · (value(S ∪ i) − value(S))

    the mean, over all orders in which the names could join, of what i changes when it does.
    """
    found = {}
    for name in names:
        others = [each for each in names if each != name]
        found[name] = sum(
            factorial(size)
            * factorial(len(others) - size)
            / factorial(len(names))
            * (value(frozenset((*chosen, name))) - value(frozenset(chosen)))
            for size in range(len(names))
            for chosen in combinations(others, size)
        )
    return found


def by_driver(base: Drivers, other: Drivers) -> dict[str, float]:
    """The difference of ‖w‖² at the end, other − base, by what drives it.

    A run is worked out anew for every set of drivers that are the other's, the rest being the base's; norm
    and decay follow in each. So nothing is left for them to explain.
    """

    def value(others: frozenset[str]) -> float:
        chosen = {name: getattr(other if name in others else base, name) for name in DRIVERS}
        return grown(**chosen, steps=base.steps)

    _require_alike(base, other)
    return shapley(DRIVERS, value)


def by_factor(base: Drivers, other: Drivers) -> dict[str, float]:
    """The difference of the alignment's work, other − base, by the factor that differs, record by record."""

    def value(others: frozenset[str]) -> float:
        angle, length, norm = (getattr(other if name in others else base, name) for name in FACTORS)
        return float(np.sum(2 * angle * length * norm))

    _require_alike(base, other)
    return shapley(FACTORS, value)


def _require_alike(base: Drivers, other: Drivers) -> None:
    if not np.array_equal(base.steps, other.steps):
        raise ValueError(
            f"two runs are compared record by record: steps of the records must be the same, got "
            f"{len(base.steps)} records over {base.steps.sum():g} steps and {len(other.steps)} over "
            f"{other.steps.sum():g}; train both with the same steps and every"
        )
