"""The error of a reconstructed scale by piece: the sums, how steps are filled in, and the bridge."""

from collections.abc import Callable
from typing import Any

import numpy as np

import weibull_kernels as wk

from .reconstruction_shapes import mixture_ratio
from .reconstruction_trail import SUMS, Trail
from .results import thinned

GAMMA_K = 1.2
"""k of the published bridge σ/√Γ(1 + 2/k)."""

BRIDGES = ("mean", "gamma", "gamma of its k", "anchored", "measured")
"""Those of `wk.reconstruction_error`; the Γ bridge with k = 1.2, and with k as it is at each checkpoint."""

ONE_SIGN = 0.9
"""An error has a sign where its mean is no less of its mean magnitude."""

FORETOLD = "gamma of its k, foretold"

Run = dict[str, Any]
"""What `of_trail` found."""


def of_trail(trail: Trail) -> Run:
    """One run: its errors by piece, what the offset is made of, and its curves."""
    ways = [(rule, spacing) for rule in trail.rules if rule != "interval" for spacing in trail.spacings]
    ways += [("interval", int(np.median(np.diff(trail.step))))] * trail.gapless
    integration = [
        {"sums": sums, "rule": rule, "spacing": spacing}
        | judged(trail, integration_error(trail, trail.change(sums), rule, spacing))
        for sums in SUMS
        for rule, spacing in ways
    ]
    return {
        "name": trail.name,
        "steps": int(trail.step[-1]),
        "entries": int(trail.numel),
        "records": len(trail.step),
        "spacing": trail.dense,
        "rules": list(trail.rules),
        "checkpoints": len(trail.at),
        "integration": in_columns(integration),
        "bridge": None if trail.scale is None else bridges(trail),
        "total": None if trail.scale is None else in_columns(totals(trail)),
        "injection": injection(trail),
        "curves": curves(trail),
    }


def integration_error(trail: Trail, change: np.ndarray, rule: str, spacing: int) -> np.ndarray:
    """(σ_pred − σ_obs)/σ_obs at the checkpoints, [C]; NaN at those that no record of the spacing is at."""
    if rule == "interval":
        step, start = trail.step, trail.forces.norm_sq[0]
        norm_sq = wk.integrate_forces(step, change, start, recorded="interval")
    else:
        taken = np.full(len(trail.step), True) if len(trail.spacings) == 1 else trail.step % spacing == 0
        step, start = trail.step[taken], trail.norm_sq[taken][0]
        norm_sq = wk.integrate_forces(step, change[taken], start, rule=rule)
    seen, here = np.isin(trail.at, step), np.isin(step, trail.at)
    error = np.full(len(trail.at), np.nan)
    # λ has no part in the integration; σ in its place serves for what has none.
    sigma = np.sqrt(trail.observed[seen] / trail.numel)
    error[seen] = wk.reconstruction_error(
        norm_sq[here], trail.observed[seen], sigma, trail.numel, bridge="mean"
    ).integration
    return error


def bridge_error(trail: Trail, bridge: str) -> Any:
    """That of σ as observed, at all checkpoints; `.bridge` and `.ratio`, [C]."""
    return wk.reconstruction_error(
        trail.observed,
        trail.observed,
        trail.scale,
        trail.numel,
        bridge=bridge.split()[0],
        step=trail.at,
        k=trail.k if bridge == "gamma of its k" else GAMMA_K,
    )


def judged(trail: Trail, error: np.ndarray) -> dict[str, float]:
    """Mean magnitude past half of the run and over all of it, and the mean with its sign past half."""
    late = error[trail.late & np.isfinite(error)]
    return {
        "late": float(abs(late).mean()),
        "signed": float(late.mean()),
        "all": float(abs(error[np.isfinite(error)]).mean()),
    }


def bridges(trail: Trail) -> dict[str, dict[str, float]]:
    """The error of each bridge, its r past half of the run, and what λ/σ and k are there.

    "gamma of its k, foretold" is the error that the Γ bridge with its own k would have if the weights were
    normal, some spread wider than others, as k tells (`mixture_ratio`).
    """
    seen = trail.scale / np.sqrt(trail.observed / trail.numel)
    errors = {bridge: bridge_error(trail, bridge) for bridge in BRIDGES}
    found = {
        bridge: judged(trail, error.bridge) | {"ratio": float(error.ratio[trail.late].mean())}
        for bridge, error in errors.items()
    }
    mixture = mixture_ratio(trail.k)
    if np.isfinite(mixture[trail.late]).all():
        found[FORETOLD] = judged(trail, errors["gamma of its k"].ratio / mixture - 1)
    observed = {"ratio": seen, "k": trail.k}
    return found | {
        name: {"first": float(values[0]), "late": float(values[trail.late].mean())}
        for name, values in observed.items()
    }


def totals(trail: Trail) -> list[dict[str, Any]]:
    """The error of λ for each choice of the three pieces, at the spacing of the published runs."""
    found = []
    for sums in ("published", "exact"):
        for rule in trail.rules:
            integration = integration_error(trail, trail.change(sums), rule, trail.dense)
            for bridge in BRIDGES:
                error = (1 + integration) * (1 + bridge_error(trail, bridge).bridge) - 1
                found.append({"sums": sums, "rule": rule, "bridge": bridge} | judged(trail, error))
    return found


def injection(trail: Trail) -> dict[str, float]:
    """What 2·injection too much does to σ, √(1 + 2ΣJ/‖w‖²) − 1, with nothing else in it."""
    # On top of the exact path.
    best = trail.rules[-1]
    without, with_it = (
        1 + integration_error(trail, change, best, trail.dense)
        for change in (0 * trail.published, 2 * trail.forces.injection)
    )
    return {"predicted": judged(trail, np.sqrt(1 + with_it**2 - without**2) - 1)["late"]}


def curves(trail: Trail) -> dict[str, Any]:
    """At the checkpoints: what was observed, as published, and ours; λ, or σ where there is no λ."""
    published = 1 + integration_error(trail, trail.change("published"), trail.rules[0], trail.dense)
    ours = 1 + integration_error(trail, trail.change("exact"), trail.rules[-1], trail.dense)
    seen = np.sqrt(trail.observed / trail.numel)
    lines = {"observed": seen, "as_published": seen * published, "ours": seen * ours}
    if trail.scale is not None:
        lines["observed"] = trail.scale
        lines["as_published"] = trail.scale * published * (1 + bridge_error(trail, "mean").bridge)
        lines["ours"] = trail.scale * ours * (1 + bridge_error(trail, "measured").bridge)
    chosen = thinned(len(trail.at), 60)
    columns = {
        name: [float(value) if np.isfinite(value) else None for value in line[chosen]]
        for name, line in lines.items()
    }
    return {
        "of": "rms" if trail.scale is None else "scale",
        "step": trail.at[chosen].astype(int).tolist(),
    } | columns


def in_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A table as a list for each of its columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def figure_of(run: Run, table: str, key: str = "late", **piece: Any) -> float:
    """The one number of a table of a run whose pieces are these."""
    columns = run[table]
    rows = zip(*(columns[name] for name in piece), strict=True)
    found = [place for place, row in enumerate(rows) if row == tuple(piece.values())]
    if len(found) != 1:
        raise ValueError(f"{table} of {run['name']} must have one row with {piece}, it has {len(found)}")
    value: float = columns[key][found[0]]
    return value


def integration_of(run: Run, sums: str, rule: str, key: str = "late") -> float:
    """At the spacing of the published runs; that of intervals does not depend on it."""
    where = {} if rule == "interval" else {"spacing": run["spacing"]}
    return figure_of(run, "integration", key, sums=sums, rule=rule, **where)


def ours(run: Run, key: str = "late") -> float:
    """The error of λ by the exact sums, the best rule there is and the measured bridge."""
    return figure_of(run, "total", key, sums="exact", rule=run["rules"][-1], bridge="measured")


def as_published(run: Run, key: str = "late") -> float:
    """The error of λ by the published sums, rule and bridge."""
    return figure_of(run, "total", key, sums="published", rule=run["rules"][0], bridge="mean")


def exact_sums(run: Run, key: str = "late") -> float:
    """The error of λ by the exact sums and the best rule there is, but the published bridge."""
    return figure_of(run, "total", key, sums="exact", rule=run["rules"][-1], bridge="mean")


def published_integration(run: Run, key: str = "late") -> float:
    """The integration component of the published sums by the published rule."""
    return integration_of(run, "published", run["rules"][0], key)


def exact_integration(run: Run, key: str = "late") -> float:
    """That of the exact sums by the best rule there is."""
    return integration_of(run, "exact", run["rules"][-1], key)


def rule_integration(run: Run, key: str = "late") -> float:
    """That of the exact sums by the published rule: the error of the rule alone."""
    return integration_of(run, "exact", run["rules"][0], key)


def once_integration(run: Run, key: str = "late") -> float:
    """That of the published sums without the two injections too many, by the published rule."""
    return integration_of(run, "injection once", run["rules"][0], key)


def bridge_of(bridge: str) -> Callable[[Run, str], float]:
    """The bridge component of a run."""

    def found(run: Run, key: str = "late") -> float:
        value: float = run["bridge"][bridge][key]
        return value

    return found


def gamma_on_published(run: Run, key: str = "late") -> float:
    """The error of λ by the published sums and the Γ bridge."""
    return figure_of(run, "total", key, sums="published", rule=run["rules"][0], bridge="gamma")


def predicted(run: Run, key: str = "late") -> float:
    """What 2·injection too much makes of σ: never less than 0."""
    value: float = run["injection"]["predicted"]
    return value


def told(late: float, signed: float) -> str:
    """An error in per cent, with its sign where nearly all of it has the same, else with ±."""
    text = cell(late)
    if text == "0.00":
        return text
    return f"{'±' if abs(signed) < ONE_SIGN * late else '-' if signed < 0 else '+'}{text}"


def cell(value: float) -> str:
    """A fraction in per cent: two decimals, or where they are 0 its first digit, down to float64's own."""
    return f"{100 * value:.1g}" if 1e-10 <= value < 1e-4 else f"{100 * value:.2f}"


def spacings_of(run: Run) -> list[int]:
    """At which Euler's rule was tried, the narrowest first."""
    table = run["integration"]
    tried = zip(table["rule"], table["spacing"], strict=True)
    return sorted({spacing for rule, spacing in tried if rule == "euler"})
