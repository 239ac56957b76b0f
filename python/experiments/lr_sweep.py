"""The learning-rate sweep: with which power of η the peak of λ grows, and what makes that power."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from settings import Settings

from .course import Course
from .four_seeds import band, in_rise
from .growth import before, cosine, moved, parts, path, start_scale
from .jobs import Job
from .long_path import as_long
from .lr_sweep_claims import claims as claims
from .lr_sweep_claims import section as section
from .lr_sweep_picture import draw as draw
from .powers import QUANTITIES, ladder, power
from .presets import PYTHIA_70M, with_age
from .results import thinned

NAME = "lr-sweep"
TITLE = "The peak of λ against the learning rate"
SEEDS = (0, 1)
RATES = (0.3, 0.55, 1.0, 1.8, 3.0)
"""η in units of the base: the tenfold range of [W2], 3e-4 to 3e-3, with two more in between."""

ENDS = (RATES[0], RATES[2], RATES[-1])
REST = 40.0
"""ω in units of the base, such that the runs pass from growth to decay: their age is 1.3 to 13."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every sweep, η and seed."""
    return [
        Job(replace(settings, lr=float(f"{rate * settings.lr:.6g}"), seed=seed))
        for settings, rates in sweeps(base).values()
        for rate in rates
        for seed in seeds
    ]


def sweeps(base: Settings) -> dict[str, tuple[Settings, tuple[float, ...]]]:
    """What each sweep starts from, and its η in units of that.

    base   the published ω and Ση
    none   without decay
    rest   with so much decay that the runs pass from growth to decay
    short  the preset as it is, if its Ση is less than the published: less growth from the same start
    """
    whole = with_age(as_long(base), base.age)
    found = {
        "base": (whole, RATES),
        "none": (replace(whole, weight_decay=0.0), ENDS),
        "rest": (replace(whole, weight_decay=REST * whole.weight_decay), ENDS),
    }
    return found if base.beta2 == whole.beta2 else found | {"short": (base, ENDS)}


def sweep_of(settings: Settings) -> str:
    """The sweep that a run is of."""
    whole = as_long(settings)
    if settings.beta2 != whole.beta2:
        return "short"
    times = settings.weight_decay * whole.lr * settings.lr_sum / PYTHIA_70M.age
    return "none" if times == 0 else "base" if times < math.sqrt(REST) else "rest"


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The peaks of all runs, and by sweep the powers of η that they and what makes them follow."""
    runs = [of_run(job, course) for job, course in courses.items()]
    present = list(dict.fromkeys(run["sweep"] for run in runs))
    first = min(run["seed"] for run in runs)
    return {
        "runs": runs,
        "powers": {name: powers([run for run in runs if run["sweep"] == name]) for name in present},
        "curves": [
            curve(job, course)
            for (job, course), run in zip(courses.items(), runs, strict=True)
            if (run["sweep"], run["seed"]) == (present[0], first)
        ],
    }


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: its peaks, and what made that of σ."""
    settings, run, sigma = job.settings, course.run, course.rms
    rise = in_rise(course.step, settings.steps)
    top = int(np.argmax(sigma))
    upto = slice(0, top + 1)
    made = {name: float(column[upto].sum()) for name, column in parts(course).items()}
    length = float(moved(course)[upto].sum())
    along = path(settings)
    until = float(along[course.step[top]])
    return {
        "sweep": sweep_of(settings),
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "steps": settings.steps,
        "age": settings.age,
        "scale": {"start": start_scale(course), "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "rms": {
            "start": float(before(course)[0]),
            "peak": float(sigma[top]),
            "peak_step": int(course.step[top]),
        },
        "made": made,
        "whole_path": float(along[-1]),
        "path": until,
        "update": length / until,
        "cosine": made["alignment"] / length,
        "rise": {
            "exact": band(course.mean.shares(), rise)["alignment"],
            "as_published": band(course.mean.as_published().shares(), rise)["alignment"],
        },
        "alignment_over_decay_at_peak": over_decay(course, top),
        "alignment_over_decay_at_end": finite(run.alignment_over_decay_at_end),
        "loss": float(np.mean(course.loss[-20:])),
        "closure_of_bound": course.summary["closure_of_bound"],
    }


def over_decay(course: Course, place: int) -> float | None:
    """Alignment in units of the decay at a record, in the mean of 5 % of the run; None without decay.

    That is cosθ·û/ω in units of σ.
    """
    mean = course.mean
    pull = abs(float(mean.decay[place]))
    return float(mean.alignment[place]) / pull if pull else None


def finite(value: float) -> float | None:
    """None for what has no end, as JSON has no word for it."""
    return value if math.isfinite(value) else None


def powers(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one sweep: the power of η that each quantity follows."""
    rates = [run["lr"] for run in runs]
    steps = [ladder(run["scale"], run["rms"], run["made"], run["path"]) for run in runs]
    columns = {name: [each[name] for each in steps] for name in steps[0]}
    columns |= {name: [run[name] for run in runs] for name in ("cosine", "update")}
    columns["aligned"] = [run["made"]["alignment"] for run in runs]
    columns["final"] = [run["scale"]["final"] for run in runs]
    return {name: power(rates, columns[name]) for name in QUANTITIES}


def curve(job: Job, course: Course, most: int = 60) -> dict[str, Any]:
    """Of the picture: cosθ of the forces in the mean of 5 % of the run."""
    chosen = thinned(len(course.step), most)
    smooth = cosine(replace(course, forces=course.mean))
    return {
        "lr": job.settings.lr,
        "step": course.step[chosen].tolist(),
        "cosine": smooth[chosen].tolist(),
    }
