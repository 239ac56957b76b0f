"""Beyond the papers: the budget of Adam without decay, of bfloat16 weights, of Lion and of Muon."""

from dataclasses import replace
from typing import Any

import numpy as np
from settings import Settings

from weibull_kernels.phases import moving_average

from .beyond_picture import draw
from .claims import Claim, percent, spread
from .course import Course
from .four_seeds import band, in_rise
from .jobs import Job
from .presets import PYTHIA_70M, with_age

NAME = "beyond"
TITLE = "Beyond the papers: no decay, bfloat16 weights, Lion and Muon"
SEEDS = (0, 1)
FORCES = ("alignment", "injection", "decay", "coupling", "rounding")
THREE = FORCES[:3]
AGE = 1.0
"""Ση·ω: at that of the published runs, 0.11, decay has hardly begun."""
LION = 4.0
"""Every entry of Lion's update is ±1, those of AdamW's are about a quarter: η/4 and 4ω move and decay alike."""
TAIL = 0.05
"""The part of the run that is its end."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run of every variant for every seed."""
    adamw = with_age(replace(base, lr=base.lr * further(base)), AGE)
    # A displacement is that of one step; Weibull fits are as far apart as the others'.
    single = replace(adamw, every=1, fit_every=base.every * base.fit_every)
    variants = (
        adamw,
        replace(adamw, weight_decay=0.0),
        replace(adamw, weights="bfloat16"),
        replace(adamw, weights="bfloat16", weight_decay=0.0),
        replace(single, optimizer="lion", lr=adamw.lr / LION, weight_decay=LION * adamw.weight_decay),
        replace(single, optimizer="muon"),
    )
    return [Job(replace(variant, seed=seed)) for variant in variants for seed in seeds]


def further(base: Settings, most: float = 3.0) -> float:
    """How many times η is larger, so that a short run rises before an age of 1 has worn it down.

    Growth goes with Ση and decay with Ση·ω. In a twentieth of the steps a run of the same age decays twenty
    times as fast, at an η that is four times as large; three times more and λ has a peak. At the published
    number of steps this is 1.
    """
    return min(most, max(1.0, PYTHIA_70M.lr * PYTHIA_70M.steps / (base.lr * base.steps)))


def variant_of(settings: Settings) -> str:
    """What is different about a run, in words."""
    decays = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon"}[settings.optimizer]
    name = decays if settings.weight_decay else f"{decays.removesuffix('W')} without decay"
    return name if settings.weights == "float32" else f"{name}, {settings.weights} weights"


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The budget of every run, and of those with bfloat16 weights beside their twins in float32."""
    runs = [of_run(job, course) for job, course in courses.items()]
    first = {run["variant"]: run["seed"] for run in reversed(runs)}
    for run in runs:
        if run["seed"] != first[run["variant"]]:
            del run["curves"]
    return {"runs": runs, "twins": twins(courses)}


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: what each force did, how long and how well aimed its updates were, and its curves."""
    settings, run, phases = job.settings, course.run, course.phases
    rise, tail = in_rise(course.step, settings.steps), course.step > (1 - TAIL) * settings.steps
    fitted = np.flatnonzero(~np.isnan(course.scale))
    mean = course.mean
    return {
        "variant": variant_of(settings),
        "seed": settings.seed,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "age": run.effective_age,
        "steps": settings.steps,
        "scale": {"start": float(course.scale[fitted[0]]), "peak": run.peak, "final": run.final},
        "peak_at": run.peak_step / settings.steps,
        "k": {"start": float(course.k[fitted[0]]), "final": float(course.k[fitted[-1]])},
        "loss": float(np.mean(course.loss[tail])),
        "work": {"to_peak": course.work, "whole": work(course)},
        "rise": {
            "exact": band(mean.shares(), rise),
            "as_published": band(mean.as_published().shares(), rise),
        },
        "end": {force: float(np.mean(getattr(mean.shares(), force)[tail])) for force in THREE},
        "update_rms": at_both(update_rms(course), rise, tail),
        "cosine": at_both(cosine(mean), rise, tail),
        "phases": {phase: float(np.mean(phases == phase)) for phase in dict.fromkeys(phases.tolist())},
        "closure": course.summary["closure_of_budget"],
        "rounding": rounding(course, tail),
        "unmoved": unmoved(course),
        "curves": curves(course, fitted),
    }


def column(course: Course, force: str) -> np.ndarray | None:
    """What a force did in each record, [T]; None for the rounding of displacements, which is in the update."""
    values = getattr(course.forces, force)
    return None if values is None or np.isnan(values).all() else np.asarray(values)


def work(course: Course) -> dict[str, float]:
    """What each force did to ‖w‖² over the whole run, relative to ‖w‖² at its beginning.

    Their sum is (σ_end/σ₀)² − 1.
    """
    columns = {force: column(course, force) for force in FORCES}
    return {
        force: 0.0 if values is None else float(values.sum() / course.forces.norm_sq[0])
        for force, values in columns.items()
    }


def update_rms(course: Course) -> np.ndarray:
    """û = √(injection/n)/η of each record, [T]."""
    forces = course.forces
    found: np.ndarray = np.sqrt(forces.injection / forces.steps / forces.numel) / course.lr
    return found


def cosine(forces: Any) -> np.ndarray:
    """Of the angle between w and −u: alignment = 2η‖w‖‖u‖·cosθ and injection = η²‖u‖² in a step."""
    found: np.ndarray = forces.alignment / (2 * np.sqrt(forces.norm_sq * forces.injection))
    return found


def at_both(values: np.ndarray, rise: np.ndarray, tail: np.ndarray) -> dict[str, float]:
    """The median over the rise of [W2] and over the end."""
    return {"rise": float(np.median(values[rise])), "end": float(np.median(values[tail]))}


def rounding(course: Course, tail: np.ndarray) -> dict[str, float] | None:
    """What rounding is among the forces, over the whole run and at its end.

    `of_budget` is Σ|rounding| relative to the absolute budget, `of_decay` Σ rounding relative to Σ decay:
    −1 where it takes back all of the decay.
    """
    values = column(course, "rounding")
    if values is None:
        return None
    decay = course.forces.decay
    return {
        name: {
            "of_budget": float(abs(values[chosen]).sum() / course.forces.absolute[chosen].sum()),
            "of_decay": float(values[chosen].sum() / decay[chosen].sum()) if decay.any() else None,
        }
        for name, chosen in {"whole": np.full(len(tail), True), "end": tail}.items()
    }


def unmoved(course: Course) -> dict[str, list[Any]] | None:
    """Which part of the entries, and of each force on all of them, falls on entries that a step left alone."""
    found = course.summary.get("unmoved")
    if not found or not found["step"]:
        return None
    pairs = list(zip(found["forces"], found["of_unmoved"], strict=True))
    return {
        "step": found["step"],
        "entries": found["fraction"],
        **{
            force: [part[force] / whole[force] if whole[force] else None for whole, part in pairs]
            for force in THREE
        },
    }


def twins(courses: dict[Job, Course]) -> list[dict[str, Any]]:
    """How far bfloat16 weights end from float32 ones of the same seed, and how much decay is left to them.

    `decay_acts` is the difference that decay makes to the final ‖w‖² with bfloat16 weights, relative to the
    difference that it makes with float32 ones.
    """
    runs = {(variant_of(job.settings), job.settings.seed): course for job, course in courses.items()}
    suffix = ", bfloat16 weights"
    found = []
    for seed in dict.fromkeys(job.settings.seed for job in courses):
        names = ("AdamW", "Adam without decay", f"AdamW{suffix}", f"Adam without decay{suffix}")
        if any((name, seed) not in runs for name in names):
            continue
        adamw, adam, adamw16, adam16 = (runs[name, seed].rms[-1] for name in names)
        found.append(
            {
                "seed": seed,
                "rms": float(adamw16 / adamw - 1),
                "rms_without_decay": float(adam16 / adam - 1),
                "decay_acts": float((adamw16**2 - adam16**2) / (adamw**2 - adam**2)),
            }
        )
    return found


def curves(course: Course, fitted: np.ndarray, most: int = 60) -> dict[str, list[float]]:
    """Of the picture: λ at most so many times, and the forces of a step relative to the budget."""
    chosen = fitted[np.unique(np.linspace(0, len(fitted) - 1, most).round().astype(int))]
    mean = course.mean
    rounded = column(course, "rounding")
    shares = {force: getattr(mean, force) for force in THREE}
    if rounded is not None:
        # Averaged as the others are.
        shares["rounding"] = moving_average(course.step, replace(course.forces, alignment=rounded)).alignment
    return {
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
        **{force: (values / mean.absolute)[chosen].tolist() for force, values in shares.items()},
    }
