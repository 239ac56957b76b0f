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
from .presets import PYTHIA_70M

NAME = "four-seeds"
TITLE = "Rise, balance and relaxation in four seeds"
SEEDS = (0, 1, 2, 3)
FORCES = ("alignment", "injection", "decay")
ARCHITECTURES = {"neox": "Pythia-like", "llama": "LLaMA-like"}
RISE = (0.0125, 0.25)
"""The part of the run that [W2] calls the rise: steps 250 to 5,000 of 20,000."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every architecture and seed; and one with the published ω, where that is another."""
    runs = [
        Job(replace(base, architecture=architecture, seed=seed))
        for architecture in ARCHITECTURES
        for seed in seeds
    ]
    published = [
        job.with_(weight_decay=PYTHIA_70M.weight_decay) for job in runs if job.settings.seed == seeds[0]
    ]
    return list(dict.fromkeys(runs + published))


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The shares of the forces in every run, and what is left without the super-weights."""
    decays = [job.settings.weight_decay for job in courses]
    usual = max(decays, key=decays.count)
    runs = {job: of_run(job, course) for job, course in courses.items()}
    return {
        "runs": [run for job, run in runs.items() if job.settings.weight_decay == usual],
        "published_decay": [run for job, run in runs.items() if job.settings.weight_decay != usual],
    }


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
        "weight_decay": job.settings.weight_decay,
        "age": run.effective_age,
        "rise": {"exact": band(exact, rise), "as_published": band(published, rise)},
        "points_higher": mean_of(published.alignment - exact.alignment, rise),
        "twice_the_injection": mean_of(counted_twice(exact) - exact.alignment, rise),
        "super_weights": super_weights(course, job.settings.steps),
        "phases": {phase: float(np.mean(phases == phase)) for phase in dict.fromkeys(phases.tolist())},
        "scale": {"start": float(course.scale[0]), "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "alignment_over_decay_at_end": run.alignment_over_decay_at_end,
        "loss": float(np.mean(course.loss[-20:])),
        "closure": course.summary["closure_of_budget"],
        "curves": curves(course, exact, published),
    }


def in_rise(step: np.ndarray, steps: int) -> np.ndarray:
    """The records of what [W2] calls the rise, [T] bool."""
    first, last = RISE
    rise: np.ndarray = (step >= first * steps) & (step <= last * steps)
    return rise


def band(shares: Any, chosen: np.ndarray) -> dict[str, list[float]]:
    """Least and greatest magnitude of each share over the chosen records."""
    columns = {force: abs(getattr(shares, force))[chosen] for force in FORCES}
    return {force: [float(column.min()), float(column.max())] for force, column in columns.items()}


def mean_of(values: np.ndarray, chosen: np.ndarray) -> float:
    """Over the chosen records."""
    return float(values[chosen].mean())


def counted_twice(exact: Any) -> np.ndarray:
    """The share that an alignment of A + 2J has in a budget that still adds J, from the exact shares."""
    alignment, injection, decay = exact.alignment, exact.injection, abs(exact.decay)
    found: np.ndarray = (alignment + 2 * injection) / (abs(alignment + 2 * injection) + injection + decay)
    return found


def super_weights(course: Course, steps: int) -> dict[str, float] | None:
    """Alignment shares of single steps in the rise, with and without the largest 0.1 % of |w·u|."""
    found = course.summary["super_weights"]
    rise = in_rise(np.array(found["step"]), steps)
    if not rise.any():
        return None
    whole, left = np.array(found["shares"]).T[:, rise]
    return {"with": whole.mean(), "without": left.mean(), "points": (left - whole).mean()}


def curves(course: Course, exact: Any, published: Any, most: int = 100) -> dict[str, list[float]]:
    """Of the picture: at most so many records."""
    chosen = np.unique(np.linspace(0, len(course.step) - 1, most).round().astype(int))
    return {
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
        **{force: abs(getattr(exact, force))[chosen].tolist() for force in FORCES},
        "alignment_as_published": abs(published.alignment)[chosen].tolist(),
    }


def of_architecture(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each architecture that there is."""
    parts = {name: [run for run in runs if run["architecture"] == name] for name in ARCHITECTURES}
    return {name: part for name, part in parts.items() if part}


def widest(runs: list[dict[str, Any]], reading: str, force: str = "alignment") -> tuple[float, float]:
    """Least and greatest share over the rise of several runs."""
    bands = [run["rise"][reading][force] for run in runs]
    return min(low for low, _ in bands), max(high for _, high in bands)


def claims(found: dict[str, Any]) -> list[Claim]:
    """The share of the alignment, and what super-weights make of it."""
    rows = []
    for name, runs in of_architecture(found["runs"]).items():
        exact = widest(runs, "exact")
        dominates = "holds" if exact[0] > 0.5 else "does not hold"
        higher = 100 * np.mean([run["points_higher"] for run in runs])
        plural = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
        rows.append(
            Claim(
                f"[W2] alignment dominates the rise: {ARCHITECTURES[name]}, {plural}, "
                f"{runs[0]['entries']:,} weights",
                "88–94 %",
                percent(*exact),
                percent(*widest(runs, "as_published")),
                f"{dominates}; the published reading is {higher:.1f} points higher",
            )
        )
    points = [100 * run["super_weights"]["points"] for run in found["runs"] if run["super_weights"]]
    if points:
        moved = dict.fromkeys(f"{value:+.1f}" for value in (min(points), max(points)))
        rows.append(
            Claim(
                "[W2] the share stays without super-weights (the largest 0.1 % of \\|w·u\\|)",
                "moves by 0.4 points",
                f"{' … '.join(moved)} points",
                "–",
                "holds" if max(map(abs, points)) < 2 else "does not hold",
            )
        )
    return rows


def draw(found: dict[str, Any], path: Path) -> None:
    """Shares of each architecture with the band of its seeds, and λ of every run."""
    parts = of_architecture(found["runs"])
    with looks.figure(path, (4.6 * (len(parts) + 1), 4.4)) as figure:
        panels = figure.subplots(1, len(parts) + 1, squeeze=False)[0]
        for axes, (name, runs) in zip(panels, parts.items(), strict=False):
            draw_shares(axes, runs)
            axes.set_title(f"{ARCHITECTURES[name]}: shares")
        draw_scales(panels[-1], parts)


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
    axes.text(np.mean(rise), 98, "rise [W2]", ha="center", va="top", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the absolute budget, %")
    axes.legend(loc="center right", fontsize=8)


def draw_scales(axes: Any, parts: dict[str, list[dict[str, Any]]]) -> None:
    """λ of every run."""
    for place, (name, runs) in enumerate(parts.items()):
        drawn = looks.line(looks.look(place))
        for run in runs:
            label = ARCHITECTURES[name] if run is runs[0] else None
            axes.plot(run["curves"]["step"], run["curves"]["scale"], linewidth=1.2, label=label, **drawn)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|, transmission weights")
    axes.set_title("λ, a line for each seed")
    axes.legend(loc="lower right")


def section(found: dict[str, Any]) -> str:
    """What came out, in a table and in words."""
    rows = [
        "| | seed | ω | alignment in the rise | injection | decay | as published | without super-weights "
        "| λ start → peak → end | alignment / decay, end |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in found["runs"] + found["published_decay"]:
        exact, scale = run["rise"]["exact"], run["scale"]
        left = run["super_weights"] and run["super_weights"]["points"]
        rows.append(
            f"| {ARCHITECTURES[run['architecture']]} | {run['seed']} | {run['weight_decay']:.3g} "
            f"| {percent(*exact['alignment'])} | {percent(*exact['injection'])} | {percent(*exact['decay'])} "
            f"| {percent(*run['rise']['as_published']['alignment'])} "
            f"| {f'{100 * left:+.2f} points' if left is not None else '–'} "
            f"| {scale['start']:.4f} → {scale['peak']:.4f} → {scale['final']:.4f} "
            f"| {run['alignment_over_decay_at_end']:.2f} |"
        )
    return "\n\n".join(["\n".join(rows), *explanation(found)])


def explanation(found: dict[str, Any]) -> list[str]:
    """Why the readings differ, and why our shares differ from the published ones."""
    runs = found["runs"]
    higher, twice = (
        100 * np.mean([run[name] for run in runs]) for name in ("points_higher", "twice_the_injection")
    )
    said = [
        f"The published reading is {higher:.2f} points higher than the exact one, in the mean over the rise "
        "and the runs. It takes ⟨w⁺,u⟩ after the step, which holds the injection already, and adds the "
        f"injection again: that alone makes {twice:.2f} points."
    ]
    parts, others = of_architecture(runs), of_architecture(found["published_decay"])
    for name, mine in others.items():
        ours = [run for run in parts.get(name, []) if run["seed"] == mine[0]["seed"]]
        if not ours:
            continue
        said.append(
            "Decay over alignment is ω·σ/(û·cosθ): at the same Ση·ω a short run has a larger ω, and decay a "
            f"larger share. {ARCHITECTURES[name]}, seed {mine[0]['seed']}: with the published "
            f"ω = {mine[0]['weight_decay']:.3g} in place of {ours[0]['weight_decay']:.3g} decay has "
            f"{percent(*widest(mine, 'exact', 'decay'))} in place of "
            f"{percent(*widest(ours, 'exact', 'decay'))}, and the alignment "
            f"{percent(*widest(mine, 'exact'))} in place of {percent(*widest(ours, 'exact'))}."
        )
    return said
