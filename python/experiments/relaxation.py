"""Overshoot and relaxation: how λ falls back from its peak as the training age Ση·ω grows."""

from dataclasses import replace
from typing import Any

import numpy as np
from settings import Settings

import weibull_kernels as wk

from .course import Course
from .growth import after_peak, half_step, start_scale
from .jobs import Job
from .long_path import as_long
from .presets import PYTHIA_70M, with_age, with_steps
from .relaxation_claims import claims as claims
from .relaxation_claims import section as section
from .relaxation_picture import draw as draw
from .results import thinned

NAME = "relaxation"
TITLE = "Overshoot and relaxation against training age"
SEEDS = (0, 1)
AGES = (0.11, 0.2, 0.55, 1.1, 2.2, 4.0)
"""Ση·ω: the base of [W2], its three runs with more decay (0.55, 1.1, 2.2), and two more."""

LONGER = 4
"""How many times the steps the longer run has, over the same Ση: it tells what the number of steps does."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every age and seed, and one longer than those where they are shorter than the published."""
    found = [Job(with_age(replace(as_long(base), seed=seed), age)) for age in AGES for seed in seeds]
    if base.steps >= PYTHIA_70M.steps:
        return found
    longer = as_long(with_steps(base, LONGER * base.steps))
    return [*found, Job(with_age(replace(longer, seed=seeds[0]), AGES[-2]))]


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """Peak, turn and fall of every run, and the curves of the picture, of the first seed."""
    steps = min(job.settings.steps for job in courses)
    usual = {job: course for job, course in courses.items() if job.settings.steps == steps}
    first = min(job.settings.seed for job in usual)
    return {
        "runs": [of_run(job, course) for job, course in usual.items()],
        "longer": [of_run(job, course) for job, course in courses.items() if job not in usual],
        "curves": [curves(job, course) for job, course in usual.items() if job.settings.seed == first],
    }


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: λ, the turn of its forces, and what was left of it after the peak."""
    settings, run, sigma = job.settings, course.run, course.rms
    top, scale_top = int(np.argmax(sigma)), int(np.searchsorted(course.step, run.peak_step))
    passed = crossings(course)
    return {
        "age": nominal(settings),
        "seed": settings.seed,
        "steps": settings.steps,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "scale": {"start": start_scale(course), "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "half_step": half_step(course.step, course.scale, start_scale(course)),
        "final_over_peak": run.final_over_peak,
        "rms": {
            "peak": float(sigma[top]),
            "final": float(sigma[-1]),
            "peak_step": int(course.step[top]),
            "at_net": None if passed["net"] is None else float(np.interp(passed["net"], course.step, sigma)),
        },
        "crossing": passed,
        "at_peak": balance(course, top),
        "at_scale_peak": balance(course, scale_top),
        "bridge": {
            "at_peak": float(course.scale[top] / sigma[top]),
            "at_scale_peak": float(course.scale[scale_top] / sigma[scale_top]),
        },
        "after_peak": after_peak(settings, run.peak_step, run.final_over_peak),
        "loss": float(np.mean(course.loss[-20:])),
        "closure_of_bound": course.summary["closure_of_bound"],
    }


def nominal(settings: Settings) -> float:
    """The age that the run was made for."""
    return float(f"{settings.age:.6g}")


def crossings(course: Course) -> dict[str, int | None]:
    """From which record on decay is ahead for good: of the alignment, as published too, and of all growth.

    By the forces in the mean of 5 % of the run; None where it is not ahead at the end.
    """
    mean = course.mean
    pull = abs(mean.decay)
    return {
        "exact": for_good(course.step, pull > mean.alignment),
        "as_published": for_good(course.step, pull > mean.as_published().alignment),
        "net": for_good(course.step, mean.predicted_change < 0),
    }


def for_good(step: np.ndarray, ahead: np.ndarray) -> int | None:
    """The step of the first record from which on something holds to the end."""
    if not ahead[-1]:
        return None
    behind = np.flatnonzero(~ahead)
    return int(step[behind[-1] + 1] if len(behind) else step[0])


def balance(course: Course, place: int) -> dict[str, float]:
    """The forces at a record, in the mean of 5 % of the run, in units of the decay, and the net."""
    mean = course.mean
    pull = abs(mean.decay[place])
    return {
        "alignment": float(mean.alignment[place] / pull),
        "alignment_as_published": float(mean.as_published().alignment[place] / pull),
        "injection": float(mean.injection[place] / pull),
        "coupling": float(mean.coupling[place] / pull),
        "net_over_budget": float(mean.predicted_change[place] / mean.absolute[place]),
    }


def curves(job: Job, course: Course, most: int = 60) -> dict[str, Any]:
    """Of the picture: λ, and the forces of one step relative to ‖w‖² at the beginning."""
    chosen = thinned(len(course.step), most)
    found: dict[str, Any] = {
        "age": nominal(job.settings),
        "seed": job.settings.seed,
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
    }
    mean: wk.ForceBudget = course.mean
    start = course.forces.norm_sq[0]
    for name in ("alignment", "injection", "decay"):
        found[name] = (abs(getattr(mean, name))[chosen] / start).tolist()
    return found
