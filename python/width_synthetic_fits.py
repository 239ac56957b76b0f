"""What the runs of the width experiment say: exponents with their intervals, laws beside them."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from residual_ffn import noise_limit
from scipy import stats

import weibull_kernels as wk

Runs = list[dict[str, Any]]

MATRICES = ("up_proj", "down_proj")
PUBLISHED_EXPONENT = 0.75  # of the width, as [F] finds it
TOLERANCE = 0.05  # 10 % of the ½ that √(η/ω) means
HALVES = {"small": (0.0, 0.51), "large": (0.24, math.inf)}  # of a sweep, by its ηω over the base's


@dataclass(frozen=True)
class Slope:
    """Of y on x by least squares over all runs, with half of its 95 % interval (t quantile)."""

    value: float
    half: float

    @classmethod
    def of(cls, x: list[float], y: list[float]) -> "Slope":
        """The exponent, where both are logarithms. At least three points."""
        fit = stats.linregress(x, y)
        return cls(float(fit.slope), float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr))

    def agrees(self, other: "Slope") -> bool:
        """Whether the interval of the difference contains 0, the two taken as independent."""
        return abs(self.value - other.value) <= math.hypot(self.half, other.half)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half:.3f}"


def level(run: dict[str, Any]) -> float:
    """The noise over the rms of the task's gradient."""
    return float(run["settings"]["noise"])


def coherent_part(noise: float) -> float:
    """Of the squared norm of the gradients, what the task has."""
    return 1 / (1 + noise * noise)


def mean(run: dict[str, Any], matrix: str, key: str) -> float:
    """Over the snapshots of a run's window."""
    return float(np.mean(run["matrices"][matrix][key]))


def slope(runs: Runs, matrix: str, along: str, key: str = "sigma") -> Slope:
    """Of the logarithm of σ_top, rms or shape = σ_top/(rms·√width) on that of a setting."""
    x = [math.log(run["settings"][along]) for run in runs]
    if key == "shape":
        y = [
            math.log(
                mean(run, matrix, "sigma") / mean(run, matrix, "rms") / math.sqrt(run["settings"]["width"])
            )
            for run in runs
        ]
    else:
        y = [math.log(mean(run, matrix, key)) for run in runs]
    return Slope.of(x, y)


def limit_slope(runs: Runs, along: str) -> float:
    """The same of `noise_limit`."""
    x = [math.log(run["settings"][along]) for run in runs]
    y = [math.log(noise_limit(run["settings"]["lr"], run["settings"]["weight_decay"])) for run in runs]
    return Slope.of(x, y).value


def sigma_by_width(runs: Runs, matrix: str) -> dict[int, float]:
    """Geometric mean over the seeds of σ_top at each width."""
    widths = sorted({run["settings"]["width"] for run in runs})
    return {
        width: math.exp(
            np.mean(
                [math.log(mean(run, matrix, "sigma")) for run in runs if run["settings"]["width"] == width]
            )
        )
        for width in widths
    }


def summary(
    experiments: dict[str, Runs], noises: tuple[float, ...], base_width: int, shrinkage: float
) -> dict[str, Any]:
    """Every number of the page, a row for each noise and matrix; `shrinkage` is ηω at the base."""
    found: dict[str, Any] = {"fixed_width": [], "width": [], "rules": [], "pinned": []}
    for noise in noises:
        at = {name: [run for run in runs if level(run) == noise] for name, runs in experiments.items()}
        for matrix in MATRICES:
            key = {"noise": f"{noise:g}", "matrix": matrix}
            sweeps = both_halves(at["lr"], at["weight_decay"], matrix, shrinkage)
            found["fixed_width"].append(key | sweeps)
            found["width"].append(key | across_widths(at["width"], matrix, base_width))
            e = slope(at["width"], matrix, "width")
            steps = Slope(**sweeps["large"]["step"])
            found["rules"] += [
                key | {"rule": name} | under_rule(at[name], at["width"], matrix, rule, e, steps)
                for name, rule in wk.scaling.RULES.items()
            ]
            if at.get("lr pinned"):
                row = fixed_width(at["lr pinned"], at["weight_decay pinned"], matrix)
                row["width"] = asdict(slope(at["width pinned"], matrix, "width"))
                found["pinned"].append(key | row)
    found["crossing"] = {matrix: crossing(found["width"], matrix) for matrix in MATRICES}
    found["equilibrium"] = equilibrium(experiments)
    return found


def both_halves(by_lr: Runs, by_decay: Runs, matrix: str, shrinkage: float) -> dict[str, Any]:
    """`fixed_width` of ηω up to half of the base's, and of ηω from a quarter of it."""
    return {
        name: fixed_width(
            *(
                [
                    run
                    for run in runs
                    if low < run["settings"]["lr"] * run["settings"]["weight_decay"] / shrinkage < high
                ]
                for runs in (by_lr, by_decay)
            ),
            matrix,
        )
        for name, (low, high) in HALVES.items()
    }


def fixed_width(by_lr: Runs, by_decay: Runs, matrix: str) -> dict[str, Any]:
    """Exponents of η and ω at one width, in σ_top ∝ √(η/ω)·(ηω)^step that of the step, and the limit's.

    `holds`: both are within 10 % of ±½. `limit`: the exponent of ηω that `noise_limit` has.
    """
    eta, omega = slope(by_lr, matrix, "lr"), slope(by_decay, matrix, "weight_decay")
    return {
        "lr": asdict(eta),
        "weight_decay": asdict(omega),
        "step": asdict(Slope((eta.value + omega.value) / 2, (eta.half + omega.half) / 2)),
        "limit": limit_slope(by_lr, "lr") - 0.5,
        "holds": abs(eta.value - 0.5) <= TOLERANCE and abs(omega.value + 0.5) <= TOLERANCE,
    }


def across_widths(runs: Runs, matrix: str, base_width: int) -> dict[str, Any]:
    """Exponents of the width at fixed η and ω, and what the matrix looks like at the base."""
    sigma = list(sigma_by_width(runs, matrix).items())
    base = [run for run in runs if run["settings"]["width"] == base_width]
    settings = base[0]["settings"]
    limit = noise_limit(settings["lr"], settings["weight_decay"])
    rms = float(np.mean([mean(run, matrix, "rms") for run in base]))
    return {
        **{key: asdict(slope(runs, matrix, "width", key)) for key in ("sigma", "rms", "shape")},
        "local": [math.log(wide / narrow) / math.log(w / n) for (n, narrow), (w, wide) in pairwise(sigma)],
        "stable_rank": float(np.mean([mean(run, matrix, "stable_rank") for run in base])),
        "kept": float(np.mean([mean(run, matrix, "kept") for run in base])),
        "rms_of_limit": rms / limit,
        "rms_of_first_order": rms / math.sqrt(settings["lr"] / (2 * settings["weight_decay"])),
    }


def under_rule(
    runs: Runs, fixed: Runs, matrix: str, rule: wk.scaling.WidthRule, exponent: Slope, step: Slope
) -> dict[str, Any]:
    """The slope of log σ_top on log width that a rule leaves, beside what the exponents predict.

    `predicted` is by σ_top ∝ √(η/ω)·width^exponent, `with_steps` by that times (ηω)^step.
    """
    measured = slope(runs, matrix, "width")
    predicted = Slope(rule.sigma_exponent(exponent.value), exponent.half)
    of_shrinkage = rule.lr_exponent + rule.weight_decay_exponent
    with_steps = Slope(
        predicted.value + of_shrinkage * step.value,
        math.hypot(exponent.half, of_shrinkage * step.half),
    )
    return {
        "slope": asdict(measured),
        "predicted": asdict(predicted),
        "with_steps": asdict(with_steps),
        "agrees": measured.agrees(predicted),
        "agrees_with_steps": measured.agrees(with_steps),
        "sigma": {str(width): value for width, value in sigma_by_width(runs, matrix).items()},
        "predicted_sigma": predicted_sigma(runs, fixed, matrix),
    }


def predicted_sigma(runs: Runs, fixed: Runs, matrix: str) -> dict[str, float]:
    """σ_top at each width by σ_top ∝ √(η/ω) from that of the same width and seeds at the base's η and ω."""
    seeds = {run["settings"]["seed"] for run in runs}
    fixed = [run for run in fixed if run["settings"]["seed"] in seeds]
    ratio = {run["settings"]["width"]: lr_over_decay(run) / lr_over_decay(fixed[0]) for run in runs}
    return {
        str(width): value * math.sqrt(ratio[width]) for width, value in sigma_by_width(fixed, matrix).items()
    }


def lr_over_decay(run: dict[str, Any]) -> float:
    """η/ω of a run."""
    return float(run["settings"]["lr"] / run["settings"]["weight_decay"])


def crossing(rows: Runs, matrix: str, exponent: float = PUBLISHED_EXPONENT) -> float | None:
    """The coherent part of the gradient at which the width's exponent passes `exponent`, or None.

    Between two levels the exponent is taken as linear in the logarithm of the part; the levels at the
    ends, with a part of 0, have none.
    """
    mine = [row for row in rows if row["matrix"] == matrix]
    for above, below in pairwise(mine):
        high, low = above["sigma"]["value"], below["sigma"]["value"]
        part = coherent_part(float(below["noise"]))
        if high >= exponent > low and part > 0:
            along = (high - exponent) / (high - low)
            first = math.log(coherent_part(float(above["noise"])))
            return math.exp(first + along * (math.log(part) - first))
    return None


def equilibrium(experiments: dict[str, Runs]) -> dict[str, float]:
    """How far the runs with a normed branch were from rest.

    `halves`: the mean over all of ln σ_top in the second half of the window less that in the first;
    `scatter`: its standard deviation; `distance`: the median and the largest |distance| of a norm from
    the balance of its forces.
    """
    runs = {id(run): run for name, runs in experiments.items() if "pinned" not in name for run in runs}
    halves, distances = [], []
    for run in runs.values():
        for found in run["matrices"].values():
            middle = len(found["sigma"]) // 2
            halves.append(math.log(np.mean(found["sigma"][middle:]) / np.mean(found["sigma"][:middle])))
            distances.append(abs(found["distance"]))
    return {
        "runs": len(runs),
        "halves": float(np.mean(halves)),
        "halves_error": float(np.std(halves, ddof=1) / math.sqrt(len(halves))),
        "scatter": float(np.std(halves, ddof=1)),
        "distance_median": float(np.median(distances)),
        "distance_largest": float(np.max(distances)),
    }
