"""The rise of λ in four seeds of two architectures: the shares of the forces, and how near balance comes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from settings import Settings

from . import looks
from .claims import Claim, judge, near, percent
from .course import Course
from .jobs import Job
from .presets import PYTHIA_70M
from .results import thinned

NAME = "four-seeds"
TITLE = "The rise, in four seeds of two architectures"
SEEDS = (0, 1, 2, 3)
FORCES = ("alignment", "injection", "decay")
ARCHITECTURES = {"neox": "Pythia-like", "llama": "LLaMA-like"}
RISE = (0.0125, 0.25)
"""The part of the run that [W2] calls the rise: steps 250 to 5,000 of 20,000."""
PUBLISHED = (0.88, 0.94)
"""The share of the alignment in single records of the rise, by the published reading."""


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
    run, settings = course.run, job.settings
    rise = in_rise(course.step, settings.steps)
    exact, published = course.forces.shares(), course.forces.as_published().shares()
    return {
        "architecture": settings.architecture,
        "seed": settings.seed,
        "steps": settings.steps,
        "steps_in_a_record": settings.every,
        "entries": int(course.forces.numel[0]),
        "weight_decay": settings.weight_decay,
        "age": run.effective_age,
        "bytes_seen": settings.tokens,
        "rise": {"exact": band(exact, rise), "as_published": band(published, rise)},
        "points_higher": mean_of(published.alignment - exact.alignment, rise),
        "points_by_injection": mean_of(with_more_injection(exact) - exact.alignment, rise),
        "super_weights": super_weights(course, settings.steps),
        "scale": {"first": float(course.scale[0]), "peak": run.peak, "final": run.final},
        "alignment_over_decay": [float(ratio) for ratio in over_decay(course)],
        "loss": float(np.mean(course.loss[-20:])),
        "closure": course.summary["closure_of_budget"],
        "curves": curves(course),
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


def with_more_injection(exact: Any) -> np.ndarray:
    """The share of an alignment of A + 2J in a budget that adds a third J, from the exact shares."""
    alignment, injection, decay = exact.alignment, exact.injection, abs(exact.decay)
    found: np.ndarray = (alignment + 2 * injection) / (abs(alignment + 2 * injection) + injection + decay)
    return found


def over_decay(course: Course) -> tuple[float, float]:
    """|alignment| over |decay| in the mean of the rise, and in that of the last twentieth of the run."""
    steps = course.step[-1]
    parts = in_rise(course.step, steps), course.step > 0.95 * steps
    alignment, decay = course.forces.alignment, course.forces.decay
    rise, end = (abs(alignment[part].sum() / decay[part].sum()) for part in parts)
    return rise, end


def super_weights(course: Course, steps: int) -> dict[str, float] | None:
    """Alignment shares of single steps in the rise, with and without the largest 0.1 % of |w·u|."""
    found = course.summary["super_weights"]
    rise = in_rise(np.array(found["step"]), steps)
    if not rise.any():
        return None
    whole, left = np.array(found["shares"]).T[:, rise]
    return {"with": whole.mean(), "without": left.mean(), "points": (left - whole).mean()}


def curves(course: Course, most: int = 100) -> dict[str, list[float]]:
    """Of the picture, averaged over 5 % of the run: at most so many records."""
    exact, published = course.mean.shares(), course.mean.as_published().shares()
    chosen = thinned(len(course.step), most)
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
    """The share of the alignment in the rise, what super-weights make of it, and whether balance comes."""
    rows = []
    for name, runs in of_architecture(found["runs"]).items():
        size = (
            f"{ARCHITECTURES[name]}, {runs[0]['entries']:,} weights, {len(runs)} seed{'s' * (len(runs) > 1)}"
        )
        rows += [of_rise(runs, size), of_balance(runs, size)]
    return rows + of_super_weights(found["runs"])


def of_rise(runs: list[dict[str, Any]], size: str) -> Claim:
    """Whether alignment dominates, and by as much as published."""
    low, high = widest(runs, "as_published")
    verdict = judge(near([low, high], *PUBLISHED), widest(runs, "exact")[0] > 0.5)
    higher = 100 * np.mean([run["points_higher"] for run in runs])
    return Claim(
        f"[W2] alignment dominates the rise: {size}",
        percent(*PUBLISHED, digits=0),
        percent(*widest(runs, "exact")),
        percent(low, high),
        f"{verdict}; the published reading is {higher:.1f} points higher",
    )


def of_balance(runs: list[dict[str, Any]], size: str) -> Claim:
    """Whether the two forces are of one size at the end."""
    start, end = ([run["alignment_over_decay"][place] for run in runs] for place in (0, 1))
    falls = all(later < earlier for earlier, later in (run["alignment_over_decay"] for run in runs))
    balanced = near(end, 1.0)
    verdict = judge(balanced, balanced or falls)
    if falls and not balanced:
        verdict += f": it falls from {ratios(start)}"
    return Claim(
        f"[W2] near saturation alignment and decay approach balance: {size}",
        "alignment / decay 0.81–0.89 at the end of its logs",
        ratios(end),
        "–",
        verdict,
        ""
        if balanced
        else f"in the rise it is {ratios(start)}; decay over alignment is ω·σ/(û·cosθ), so that at the same "
        f"Ση·ω, {runs[0]['age']:.2f}, weights that have grown less have less decay. Older runs, in the "
        "relaxation below, do reach balance",
    )


def of_super_weights(runs: list[dict[str, Any]]) -> list[Claim]:
    """Whether the share hangs on a few entries."""
    points = [100 * run["super_weights"]["points"] for run in runs if run["super_weights"]]
    moved = (
        "–"
        if not points
        else " … ".join(dict.fromkeys(f"{value:+.1f}" for value in (min(points), max(points))))
    )
    worst = max(map(abs, points), default=0.0)
    verdict = "holds" if worst <= 0.5 else "holds in part: it moves by more"
    return [
        Claim(
            f"[W2] the share stays without super-weights, the largest 0.1 % of \\|w·u\\|: {len(runs)} runs "
            f"of {runs[0]['entries']:,} weights",
            "moves by 0.4 points",
            f"{moved} points",
            "–",
            "not measured: no record in the rise"
            if not points
            else verdict
            if worst < 5
            else "does not hold",
        )
    ]


def ratios(values: list[float]) -> str:
    """From … to."""
    return "–".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))


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
        "| λ first → peak → end | loss, nats a byte |",
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
            f"| {scale['first']:.4f} → {scale['peak']:.4f} → {scale['final']:.4f} | {run['loss']:.2f} |"
        )
    return "\n\n".join([conditions(found["runs"]), "\n".join(rows), *explanation(found)])


def conditions(runs: list[dict[str, Any]]) -> str:
    """What the runs were, and what the bands are of."""
    run = runs[0]
    closure = max(each["closure"] for each in runs)
    return (
        f"{run['steps']:,} steps, {run['bytes_seen'] / 1e6:.3g} million bytes of a text of 8 million; Ση·ω = "
        f"{run['age']:.2f}. Bands are over the records of the rise, steps {RISE[0] * run['steps']:,.0f} to "
        f"{RISE[1] * run['steps']:,.0f}, each the sum of {run['steps_in_a_record']} steps; curves are means "
        "over 5 % of the run. Forces and rounding add up to the measured change of ‖w‖² within "
        f"{closure:.0e} of the budget."
    )


def explanation(found: dict[str, Any]) -> list[str]:
    """Why the readings differ, and why our shares differ from the published ones."""
    runs = found["runs"]
    higher, injection = (
        100 * np.mean([run[name] for run in runs]) for name in ("points_higher", "points_by_injection")
    )
    said = [
        f"The published reading is {higher:.2f} points higher than the exact one, in the mean over the rise "
        "and the runs: it takes ⟨w⁺,u⟩ after the step, which has the injection twice, and adds it a third "
        f"time, which by itself makes {injection:.2f} points."
    ]
    parts, others = of_architecture(runs), of_architecture(found["published_decay"])
    pairs = [
        (run, mine)
        for name, published in others.items()
        for mine in published
        for run in parts.get(name, [])
        if run["seed"] == mine["seed"]
    ]
    if pairs:
        said.append(
            "Decay over alignment is ω·σ/(û·cosθ), with û the rms of the update and θ its angle to the "
            "weights. So a short run, which needs a larger ω to be as old, has more decay in its budget. "
            f"With the published ω in its place: {'; '.join(compared(run, mine) for run, mine in pairs)}."
        )
    return said


def compared(run: dict[str, Any], published: dict[str, Any]) -> str:
    """A run, and the same with the published ω."""
    before, after = (
        {force: percent(*one["rise"]["exact"][force]) for force in FORCES} for one in (run, published)
    )
    return (
        f"{ARCHITECTURES[run['architecture']]}, seed {run['seed']}, ω = {published['weight_decay']:.3g} for "
        f"{run['weight_decay']:.3g}: decay {after['decay']} for {before['decay']}, alignment "
        f"{after['alignment']} for {before['alignment']}"
    )
