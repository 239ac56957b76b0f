"""The reconstruction offset: λ from the forces alone, the published rule beside ours, piece by piece.

[W2] adds up the forces of the records, crosses the bridge λ = r·σ, and finds λ 5–6 % off. Here one piece of
that rule is changed at a time: the sums, how the steps between two records are filled in, and the bridge.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from settings import Settings

from .claims import percent
from .course import Course
from .four_seeds import ARCHITECTURES, band, in_rise
from .jobs import Job
from .published_logs import PublishedLog, read_log
from .reconstruction_claims import claims as claims
from .reconstruction_errors import (
    BRIDGES,
    FORETOLD,
    Run,
    as_published,
    bridge_of,
    gamma_on_published,
    integration_of,
    of_trail,
    once_integration,
    ours,
    predicted,
    published_integration,
    told,
)
from .reconstruction_picture import draw as draw
from .reconstruction_trail import trail_of_course, trail_of_log

NAME = "reconstruction"
TITLE = "The reconstruction offset"
SEEDS = (0, 1)

RECORDED = 5_000
"""Steps of a run up to which every one is recorded, so that it can be read at any spacing."""

LOGS = "published-logs"
"""What stands in place of the preset in the name of the file with the figures of logs."""

LOGS_FROM = "logs in the format of [W2], read by path"
PUBLISHED_AT = (
    "[W2] publishes its logs at github.com/tiexinding/NPM-Weibull-public, in "
    "`Weibull_WeightScale_dynamics/derived_data`: a log `seed_3` in `revision`, and in `self_train` "
    "`v1b_spline_true_llama.jsonl` and `lambda_trajectory_llama.json`, to be put into a folder `llama`."
)


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every architecture and seed.

    Of a run of many steps the sums over `base.every` of them are recorded instead of every single one:
    20,000 steps of 78 tensors would be 1.5 million rows. Then nothing is filled in, by either rule.
    """
    dense = {"every": 1, "fit_every": base.every * base.fit_every} if base.steps <= RECORDED else {}
    return [
        Job(replace(base, architecture=architecture, seed=seed, **dense))
        for architecture in ARCHITECTURES
        for seed in seeds
    ]


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The errors of every run, by rule."""
    return {"logs": False, "runs": [of_trail(trail_of_course(*found)) for found in courses.items()]}


def findings_in_logs(paths: list[Path], weight_decay: float) -> dict[str, Any]:
    """The same of logs in the published format.

    Raises:
        ValueError: two have one name, or `read_log` does not take one.
    """
    logs = [read_log(path, weight_decay) for path in paths]
    names = [log.name for log in logs]
    if len(set(names)) < len(names):
        raise ValueError(f"logs must be told apart by the names of their folders, got {', '.join(names)}")
    return {"logs": True, "runs": [of_trail(trail_of_log(log)) | {"rise": rise_of(log)} for log in logs]}


def rise_of(log: PublishedLog) -> dict[str, Any] | None:
    """The least and greatest share of the alignment in the records of the rise; None where none is in it."""
    rise = in_rise(log.step, int(log.step[-1]))
    if not rise.any():
        return None
    budgets = {"exact": log.forces, "as_published": log.forces.as_published()}
    shares = {reading: band(budget.shares(), rise)["alignment"] for reading, budget in budgets.items()}
    return {"records": int(rise.sum())} | shares


def section(found: dict[str, Any]) -> str:
    """What came out, in words and tables."""
    runs, fitted = found["runs"], [run for run in found["runs"] if run["bridge"]]
    parts = [
        "Mean error of σ and λ past half of the run, in per cent: with its sign where that is the same at "
        "nearly every checkpoint, else the mean magnitude after ±. As published is the published sums by "
        "Euler's rule and one mean ratio r = λ/σ; ours is the exact sums by the last rule with a figure, and "
        "r from the other checkpoints around each, which are observed and no part of the budget.",
        integration_table(runs),
    ]
    if fitted:
        parts += ["The bridge λ = r·σ by itself:", bridge_table(fitted)]
    gamma = [bridge_of("gamma")(run, "signed") for run in fitted]
    if fitted and max(gamma) < 0 and min(gamma_on_published(run, "signed") for run in fitted) > min(gamma):
        parts.append(
            "The Γ bridge is too small and the published sums are too large: taken together they hide a part "
            "of each other."
        )
    parts += [rise_text(risen)] if (risen := [run for run in runs if run.get("rise")]) else []
    if without := [run["name"] for run in runs if not run["bridge"]]:
        parts.append(f"No λ was logged in {', '.join(without)}: there only σ is judged, at every record.")
    if found["logs"] and {run["name"] for run in runs} & {"seed_3", "llama"}:
        parts.append(PUBLISHED_AT)
    return "\n\n".join(parts)


def rise_text(runs: list[Run]) -> str:
    """The shares of the alignment in logs."""
    said = [
        f"{run['name']} {percent(*run['rise']['exact'])}, "
        f"as published {percent(*run['rise']['as_published'])} ({run['rise']['records']} records)"
        for run in runs
    ]
    return f"Share of the alignment in single steps of the rise: {'; '.join(said)}."


def integration_table(runs: list[Run]) -> str:
    """The integration component by sums and rule, and λ altogether."""
    rows = [
        "| | a record every | integration, published | without 2·injection | √(1 + 2ΣJ/‖w‖²) − 1 "
        "| exact sums, Euler | cubic | intervals added up | λ as published | λ, ours |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        exact = [
            signed(lambda run, key, rule=rule: integration_of(run, "exact", rule, key), run)
            if rule in run["rules"]
            else "–"
            for rule in ("euler", "cubic", "interval")
        ]
        figures = (published_integration, once_integration, predicted)
        cells = (
            run["name"],
            f"{run['spacing']} steps of {run['steps']:,}",
            *(signed(figure, run) for figure in figures),
            *exact,
            *(signed(figure, run) if run["bridge"] else "–" for figure in (as_published, ours)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def bridge_table(runs: list[Run]) -> str:
    """The bridge component by bridge, and what λ/σ and k were."""
    rows = [
        "| | one mean r, as in the 5–6 % | Γ, k = 1.2 | Γ, its own k | r of the first checkpoint "
        "| r of those around | Γ, its own k: foretold from k | Γ, k = 1.2, on published sums "
        "| λ/σ first → late | k first → late |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        seen = (run["bridge"][name] for name in ("ratio", "k"))
        cells = (
            run["name"],
            *(signed(bridge_of(bridge), run) for bridge in BRIDGES),
            signed(bridge_of(FORETOLD), run) if FORETOLD in run["bridge"] else "–",
            signed(gamma_on_published, run),
            *(f"{values['first']:.3f} → {values['late']:.3f}" for values in seen),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def signed(figure: Callable[..., float], run: Run) -> str:
    """An error of a run in per cent."""
    return told(figure(run, "late"), figure(run, "signed"))
