"""What the runs of the transfer experiment say: optimal lrs by width and rule, and how σ_top went."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from width_training import ROLES, Settings

import weibull_kernels as wk
from weibull_kernels.scaling.rules import TIME_CONSTANTS

LOSSES = {"loss": "held-out after the cooldown", "constant_loss": "training at the constant lr"}

Rows = Mapping[Settings, dict[str, Any]]


@dataclass(frozen=True)
class Optimum:
    """Of one curve: where, as log₂. If the lowest point is at an end of the grid, `inside` is False."""

    log2: float
    loss: float
    inside: bool


@dataclass(frozen=True)
class Curve:
    """Losses at one width over a grid of η or ω, smallest first, for each seed."""

    width: int
    grid: tuple[float, ...]
    by_seed: Mapping[int, tuple[float, ...]]

    @property
    def mean(self) -> tuple[float, ...]:
        """Over the seeds, for each value of the grid."""
        return tuple(np.mean(list(self.by_seed.values()), axis=0).tolist())

    @property
    def spread(self) -> tuple[float, ...]:
        """Half of the largest minus the smallest over the seeds, for each value."""
        return tuple((np.ptp(list(self.by_seed.values()), axis=0) / 2).tolist())

    @property
    def optimum(self) -> Optimum:
        """Of the mean."""
        return lowest(np.log2(self.grid), self.mean)

    @property
    def of_seeds(self) -> dict[int, Optimum]:
        """Of each seed by itself."""
        return {seed: lowest(np.log2(self.grid), losses) for seed, losses in self.by_seed.items()}

    def above_best(self, value: float) -> float:
        """Mean loss at a value of the grid minus that at the best one."""
        return self.mean[self.grid.index(value)] - min(self.mean)


def lowest(x: Iterable[float], y: Iterable[float]) -> Optimum:
    """The vertex of the parabola through the lowest point and its two neighbours; an end as it is.

    >>> lowest([0, 1, 2, 3], [4, 1, 0, 1])
    Optimum(log2=2.0, loss=0.0, inside=True)
    """
    x, y = np.asarray(list(x), dtype=float), np.asarray(list(y), dtype=float)
    at = int(np.argmin(np.where(np.isnan(y), np.inf, y)))
    if at in (0, len(y) - 1):
        return Optimum(float(x[at]), float(y[at]), inside=False)
    near = slice(at - 1, at + 2)
    if not np.isfinite(y[near]).all() or np.ptp(y[near]) == 0:
        return Optimum(float(x[at]), float(y[at]), inside=True)
    a, b, c = np.polyfit(x[near] - x[at], y[near], 2)
    return Optimum(float(x[at] - b / (2 * a)), float(c - b**2 / (4 * a)), inside=True)


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Of the least-squares line."""
    return float(np.polyfit(list(x), list(y), 1)[0])


def drift_of(curves: list[Curve]) -> tuple[float, float, float]:
    """Slope of the optimum on log₂ width, of the means; the least and the most of a seed that all have."""
    x = [math.log2(curve.width) for curve in curves]
    common = set.intersection(*(set(curve.by_seed) for curve in curves))
    of_seeds = [slope(x, [curve.of_seeds[seed].log2 for curve in curves]) for seed in sorted(common)]
    return slope(x, [curve.optimum.log2 for curve in curves]), min(of_seeds), max(of_seeds)


def proxy_optimum(rows: Rows) -> tuple[float, float]:
    """The η and ω of the lowest mean loss among those that come to rest within a run, Σηω ≥ 3.

    Among all where none does.
    """
    losses, rested = mean_losses(rows), at_rest(rows)
    return min(rested or losses, key=lambda pair: losses[pair])


def mean_losses(rows: Rows) -> dict[tuple[float, float], float]:
    """Over the seeds, for each η and ω."""
    by_pair: dict[tuple[float, float], list[float]] = {}
    for settings, row in rows.items():
        by_pair.setdefault((settings.lr, settings.weight_decay), []).append(row["loss"])
    return {pair: float(np.mean(losses)) for pair, losses in by_pair.items()}


def at_rest(rows: Rows) -> set[tuple[float, float]]:
    """The η and ω for which the decay had three time constants."""
    return {(s.lr, s.weight_decay) for s, row in rows.items() if row["time_constants"] >= TIME_CONSTANTS}


@dataclass(frozen=True)
class Findings:
    """All there is to say of the runs at hand.

    `lr` and `weight_decay` are η* and ω*, `every` all runs, `proxy` those at the base width, `rows` those
    at ω*.
    """

    lr: float
    weight_decay: float
    every: Rows
    proxy: Rows
    rows: Rows

    @classmethod
    def of(cls, rows: Rows) -> "Findings":
        """From all finished runs of an experiment."""
        proxy = {settings: row for settings, row in rows.items() if settings.width == settings.base_width}
        lr, weight_decay = proxy_optimum(proxy)
        kept = {settings: row for settings, row in rows.items() if settings.weight_decay == weight_decay}
        return cls(lr, weight_decay, rows, proxy, kept)

    @property
    def rules(self) -> tuple[str, ...]:
        """Those that wide runs have."""
        return tuple(rule for rule in wk.scaling.RULES if len(self.widths(rule)) > 1)

    def widths(self, rule: str) -> list[int]:
        """With a run at η* and one to each side of it, from the base on."""
        found = []
        for width in sorted({settings.width for settings in self.rows}):
            lrs = self.of_seed(rule, width, seed=0)
            if len(lrs) >= 3 and self.lr in lrs:
                found.append(width)
        return found

    def of_seed(self, rule: str, width: int, seed: int) -> dict[float, dict[str, Any]]:
        """Runs by lr; at the base width, where all rules are one, whichever there are."""
        return {
            settings.lr: row
            for settings, row in sorted(self.rows.items(), key=lambda item: item[0].lr)
            if settings.width == width
            and settings.seed == seed
            and (settings.rule == rule or width == settings.base_width)
        }

    def seeds(self, rule: str, width: int) -> list[int]:
        """Those that have every lr that the first has, so that all points are means of the same seeds."""
        whole = set(self.of_seed(rule, width, seed=0))
        seeds = sorted({settings.seed for settings in self.rows})
        return [seed for seed in seeds if whole and whole <= set(self.of_seed(rule, width, seed))]

    def curve(self, rule: str, width: int, loss: str = "loss") -> Curve:
        """Loss over lr."""
        by_seed = {seed: self.of_seed(rule, width, seed) for seed in self.seeds(rule, width)}
        lrs = tuple(by_seed[0])
        return Curve(
            width, lrs, {seed: tuple(runs[lr][loss] for lr in lrs) for seed, runs in by_seed.items()}
        )

    def curves(self, rule: str, loss: str = "loss") -> list[Curve]:
        """Of every width."""
        return [self.curve(rule, width, loss) for width in self.widths(rule)]

    def drift(self, rule: str, loss: str = "loss") -> tuple[float, float, float]:
        """Slope of log₂ of the best η on log₂ width, of the means; the least and the most of a seed's."""
        return drift_of(self.curves(rule, loss))

    def decay_curve(self, width: int) -> Curve:
        """Loss at η* over the ω that the matrices had, whichever rule it came from."""
        by_seed: dict[int, dict[float, float]] = {}
        for settings, row in self.every.items():
            if settings.width == width and settings.lr == self.lr:
                law = wk.scaling.RULES[settings.rule]
                decay = settings.weight_decay * law.weight_decay_ratio(settings.m)
                by_seed.setdefault(settings.seed, {})[decay] = row["loss"]
        grid = tuple(sorted(by_seed[0]))
        return Curve(
            width,
            grid,
            {
                seed: tuple(losses[decay] for decay in grid)
                for seed, losses in sorted(by_seed.items())
                if set(grid) <= set(losses)
            },
        )

    def decay_curves(self) -> list[Curve]:
        """Of every width that has three decays."""
        widths = sorted({settings.width for settings in self.every if settings.lr == self.lr})
        curves = [self.decay_curve(width) for width in widths]
        return [curve for curve in curves if len(curve.grid) >= 3]

    def at_setting(self, rule: str, width: int, number: Callable[[dict[str, Any]], float]) -> list[float]:
        """Of the runs at η*, ω*, a number for each seed."""
        return [number(self.of_seed(rule, width, seed)[self.lr]) for seed in self.seeds(rule, width)]

    def sigma(self, rule: str, width: int, role: str) -> float:
        """σ_top at η*, ω* before the cooldown, the geometric mean over tensors and seeds."""
        logs = self.at_setting(rule, width, lambda row: math.log(row["matrices"][role]["sigma_top"]))
        return math.exp(float(np.mean(logs)))

    def sigma_slope(self, rule: str, role: str, *, rested: bool = False) -> tuple[float, float]:
        """Slope of log σ_top on log width at η*, ω*, and its standard error by the scatter of the runs.

        If `rested`, of σ_top over `over_rest`: what it would be at rest if it went with σ.
        """
        x, y = [], []
        for width in self.widths(rule):
            for value in self.at_setting(rule, width, lambda row: row["matrices"][role]["sigma_top"]):
                x.append(math.log(width))
                y.append(math.log(value / (self.over_rest(rule, width, role) if rested else 1)))
        found = np.polyfit(x, y, 1)
        off = np.asarray(y) - np.polyval(found, x)
        freedom = max(1, len(x) - 2)
        error = math.sqrt(float(off @ off) / freedom / float(np.var(x) * len(x)))
        return float(found[0]), error

    def over_rest(self, rule: str, width: int, role: str) -> float:
        """σ at η*, ω* over that at which the forces of the last steps before the cooldown would balance.

        σ²_rest/σ² = 1 + net/|decay|; infinite where the other forces take off weight themselves.
        """

        def squared(row: dict[str, Any]) -> float:
            forces = row["matrices"][role]["forces"]
            added = forces["alignment"] + forces["injection"] + forces["coupling"]
            return max(added, 0.0) / -forces["decay"] if forces["decay"] else math.inf

        ratio = float(np.mean(self.at_setting(rule, width, squared)))
        return 1 / math.sqrt(ratio) if ratio > 0 else math.inf

    def time_constants(self, rule: str, width: int) -> float:
        """Σηω up to the cooldown at η*, ω*."""
        return self.at_setting(rule, width, lambda row: row["time_constants"])[0]

    def to_dict(self) -> dict[str, Any]:
        """Everything above, as plain numbers."""
        return {
            "proxy": {"lr": self.lr, "weight_decay": self.weight_decay},
            "drift": {
                rule: {
                    loss: dict(zip(("slope", "low", "high"), self.drift(rule, loss), strict=True))
                    for loss in LOSSES
                }
                for rule in self.rules
            },
            "optima": [
                {
                    "rule": rule,
                    "width": curve.width,
                    "loss": loss,
                    "log2_lr": curve.optimum.log2,
                    "lowest": curve.optimum.loss,
                    "inside": curve.optimum.inside,
                    "of_seeds": [optimum.log2 for optimum in curve.of_seeds.values()],
                    "above_best_at_setting": curve.above_best(self.lr),
                }
                for rule in self.rules
                for loss in LOSSES
                for curve in self.curves(rule, loss)
            ],
            "best_decays": [
                {
                    "width": curve.width,
                    "log2_decay": curve.optimum.log2,
                    "inside": curve.optimum.inside,
                    "of_seeds": [optimum.log2 for optimum in curve.of_seeds.values()],
                }
                for curve in self.decay_curves()
            ],
            "sigma_slopes": [
                {
                    "rule": rule,
                    "role": role,
                    "slope": self.sigma_slope(rule, role)[0],
                    "standard_error": self.sigma_slope(rule, role)[1],
                    "predicted": wk.scaling.RULES[rule].sigma_exponent(),
                }
                for rule in self.rules
                for role in ROLES
            ],
        }
