"""Rise, balance and relaxation in four seeds of two architectures: the shares of the three forces."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from settings import Settings

from . import looks
from .claims import Claim, percent
from .course import Course
from .jobs import Job

NAME = "four-seeds"
TITLE = "Rise, balance and relaxation in four seeds"
FORCES = ("alignment", "injection", "decay")
ARCHITECTURES = {"neox": "Pythia-like", "llama": "LLaMA-like"}
SEEDS = (0, 1, 2, 3)
RISE = (0.0125, 0.25)
"""The part of the run that [W2] calls the rise: steps 250 to 5,000 of 20,000."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every architecture and seed."""
    return [
        Job(replace(base, architecture=architecture, seed=seed))
        for architecture in ARCHITECTURES
        for seed in seeds
    ]


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The shares of the forces in every run, and what is left without the super-weights."""
    return {"runs": [of_run(job, course) for job, course in courses.items()]}


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: its shares over the rise, its peak, and its curves."""
    run, phases = course.run, course.phases
    rise = in_rise(course.step, job.settings.steps)
    exact, published = course.mean.shares(), course.mean.as_published().shares()
    return {
        "architecture": job.settings.architecture,
        "seed": job.settings.seed,
        "steps": job.settings.steps,
        "entries": int(course.forces.numel[0]),
        "age": run.effective_age,
        "rise": {
            "exact": band(exact, rise),
            "as_published": band(published, rise),
            "single_records": band(course.forces.shares(), rise),
        },
        "super_weights": super_weights(course, job.settings.steps),
        "phases": {phase: float(np.mean(phases == phase)) for phase in dict.fromkeys(phases.tolist())},
        "scale": {"start": float(course.scale[0]), "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "alignment_over_decay_at_end": run.alignment_over_decay_at_end,
        "loss": float(np.mean(course.loss[-20:])),
        "closure_of_bound": course.summary["closure_of_bound"],
        "curves": curves(course, exact, published),
    }


def in_rise(step: np.ndarray, steps: int) -> np.ndarray:
    """The records of what [W2] calls the rise, [T] bool."""
    first, last = RISE
    rise: np.ndarray = (step >= first * steps) & (step <= last * steps)
    return rise


def band(shares: Any, chosen: np.ndarray) -> dict[str, list[float]]:
    """Least and greatest magnitude of each share over the chosen records."""
    columns = {force: abs(getattr(shares, force))[chosen] for force in ("alignment", "injection", "decay")}
    return {force: [float(column.min()), float(column.max())] for force, column in columns.items()}


def super_weights(course: Course, steps: int) -> dict[str, float] | None:
    """Alignment shares of single steps in the rise, with and without the largest 0.1 % of |w·u|."""
    found = course.summary["super_weights"]
    rise = in_rise(np.array(found["step"]), steps)
    if not rise.any():
        return None
    whole, left = np.array(found["shares"]).T[:, rise]
    return {
        "with": float(whole.mean()),
        "without": float(left.mean()),
        "points": float((left - whole).mean()),
    }


def curves(course: Course, exact: Any, published: Any, most: int = 100) -> dict[str, list[float]]:
    """Of the picture: at most so many records."""
    chosen = np.unique(np.linspace(0, len(course.step) - 1, most).round().astype(int))
    return {
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
        **{
            force: abs(getattr(exact, force))[chosen].tolist()
            for force in ("alignment", "injection", "decay")
        },
        "alignment_as_published": abs(published.alignment)[chosen].tolist(),
    }


def bands(found: dict[str, Any], architecture: str, reading: str) -> tuple[float, float]:
    """Least and greatest alignment share over the rise of all seeds of an architecture."""
    mine = [run["rise"][reading]["alignment"] for run in found["runs"] if run["architecture"] == architecture]
    return min(low for low, _ in mine), max(high for _, high in mine)


def claims(found: dict[str, Any]) -> list[Claim]:
    """The share of the alignment, and what super-weights make of it."""
    rows = []
    present = [name for name in ARCHITECTURES if any(run["architecture"] == name for run in found["runs"])]
    for name in present:
        exact, published = bands(found, name, "exact"), bands(found, name, "as_published")
        seeds = sum(run["architecture"] == name for run in found["runs"])
        dominates = exact[0] > 0.5
        rows.append(
            Claim(
                f"[W2] alignment dominates the rise, {ARCHITECTURES[name]}, {seeds} seeds",
                "88–94 %",
                percent(*exact),
                percent(*published),
                ("holds" if dominates else "does not hold")
                + f": the published reading is up to {100 * (published[1] - exact[1]):.1f} points higher",
            )
        )
    points = [100 * run["super_weights"]["points"] for run in found["runs"] if run["super_weights"]]
    if points:
        rows.append(
            Claim(
                "[W2] the share stays without super-weights (0.1 % of entries)",
                "0.4 points",
                f"{min(points):+.1f} … {max(points):+.1f} points",
                "–",
                "holds" if max(map(abs, points)) < 2 else "does not hold",
            )
        )
    return rows


def draw(found: dict[str, Any], path: Path) -> None:
    """Shares of the first seed of each architecture with the band of all, and λ of every run."""
    present = [name for name in ARCHITECTURES if any(run["architecture"] == name for run in found["runs"])]
    with looks.figure(path, (4.2 * (len(present) + 1), 4.4)) as figure:
        panels = figure.subplots(1, len(present) + 1, squeeze=False)[0]
        for axes, name in zip(panels, present, strict=False):
            draw_shares(axes, [run for run in found["runs"] if run["architecture"] == name])
            axes.set_title(f"{ARCHITECTURES[name]}: shares of the budget")
        draw_scales(panels[-1], found["runs"])


def draw_shares(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Of one architecture: the mean over the seeds, and how far they lie apart."""
    step = runs[0]["curves"]["step"]
    for force in FORCES:
        columns = 100 * np.array([run["curves"][force] for run in runs])
        drawn = looks.line(looks.FORCE_LOOKS[force])
        axes.fill_between(step, columns.min(0), columns.max(0), color=drawn["color"], alpha=0.25, linewidth=0)
        axes.plot(step, columns.mean(0), linewidth=1.8, label=force, **drawn)
    published = 100 * np.mean([run["curves"]["alignment_as_published"] for run in runs], axis=0)
    axes.plot(step, published, color="black", linewidth=0.9, linestyle=":", label="alignment as published")
    rise = [part * runs[0]["steps"] for part in RISE]
    axes.axvspan(*rise, color="#EEEEEE", zorder=0)
    axes.text(np.mean(rise), 3, "rise [W2]", ha="center", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the absolute budget, %")
    axes.legend(loc="center right", fontsize=8)


def draw_scales(axes: Any, runs: list[dict[str, Any]]) -> None:
    """λ of every run."""
    for run in runs:
        place = list(ARCHITECTURES).index(run["architecture"])
        first = run["seed"] == min(each["seed"] for each in runs)
        label = ARCHITECTURES[run["architecture"]] if first else None
        drawn = looks.line(looks.look(place))
        axes.plot(run["curves"]["step"], run["curves"]["scale"], linewidth=1.2, label=label, **drawn)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|, transmission weights")
    axes.set_title("λ, a line for each seed")
    axes.legend(loc="lower right")


def section(found: dict[str, Any]) -> str:
    """What came out, in words and a table."""
    rows = [
        "| | seed | alignment in the rise | injection | decay | as published | without super-weights "
        "| λ start → peak → end | alignment / decay at the end |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in found["runs"]:
        exact = run["rise"]["exact"]
        scale = run["scale"]
        rows.append(
            f"| {ARCHITECTURES[run['architecture']]} | {run['seed']} | {percent(*exact['alignment'])} "
            f"| {percent(*exact['injection'])} | {percent(*exact['decay'])} "
            f"| {percent(*run['rise']['as_published']['alignment'])} "
            f"| {100 * run['super_weights']['points']:+.2f} points "
            f"| {scale['start']:.4f} → {scale['peak']:.4f} → {scale['final']:.4f} "
            f"| {run['alignment_over_decay_at_end']:.2f} |"
        )
    return "\n".join(rows)
