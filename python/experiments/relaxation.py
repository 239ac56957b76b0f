"""Overshoot and relaxation: how λ falls back from its peak as the training age Ση·ω grows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from settings import Settings

import weibull_kernels as wk

from .course import Course
from .growth import after_peak, start_scale
from .jobs import Job
from .presets import PYTHIA_70M, with_age
from .relaxation_claims import claims as claims
from .relaxation_claims import section as section
from .relaxation_picture import draw as draw

NAME = "relaxation"
TITLE = "Overshoot and relaxation against training age"
SEEDS = (0, 1)
AGES = (0.11, 0.2, 0.55, 1.1, 2.2, 4.0)
"""Ση·ω: the base of [W2], its three runs with more decay (0.55, 1.1, 2.2), and two more."""

WARMUP = 0.1
MEMORY = 0.05
"""1/(1 − β₂) of [W2], 1,000 of 20,000 steps, as a part of the run."""


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every age and seed."""
    drawn_out = as_long(base)
    return [Job(with_age(replace(drawn_out, seed=seed), age)) for age in AGES for seed in seeds]


def as_long(base: Settings) -> Settings:
    """The base such that its fewer steps lead as far as those of the published runs.

    An age over 1 in a twentieth of the steps takes twenty times the decay in each, which beats every growth
    from the first step on unless that is faster too. So three things are those of the published run, and the
    published run itself stays what it is:

        η       as much larger as there are fewer steps, up to twenty times: the same Ση
        β₂      1/(1 − β₂) is the same part of the run: else √v̂ never forgets the large first gradients
        warm-up as many steps, but at most a tenth of the run
    """
    shorter = min(PYTHIA_70M.steps / base.steps, 20)
    return replace(
        base,
        lr=float(f"{PYTHIA_70M.lr * shorter:.6g}"),
        beta2=float(f"{1 - 1 / max(MEMORY * base.steps, 2):.6g}"),
        warmup=min(PYTHIA_70M.warmup_steps, round(WARMUP * base.steps)),
    )


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """Peak, turn and fall of every run, and the curves of the picture."""
    runs = [of_run(job, course) for job, course in courses.items()]
    first = min(run["seed"] for run in runs)
    return {
        "runs": runs,
        "curves": [
            curves(job, course, forces=job.settings.seed == first) for job, course in courses.items()
        ],
    }


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: λ, the turn of its forces, and what was left of it after the peak."""
    settings, run, sigma = job.settings, course.run, course.rms
    top = int(np.argmax(sigma))
    return {
        "age": nominal(settings),
        "seed": settings.seed,
        "steps": settings.steps,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "scale": {"start": start_scale(course), "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "final_over_peak": run.final_over_peak,
        "rms": {"peak": float(sigma[top]), "final": float(sigma[-1]), "peak_step": int(course.step[top])},
        "crossing": crossings(course),
        "at_peak": balance(course, top),
        "at_scale_peak": balance(course, int(np.searchsorted(course.step, run.peak_step))),
        "after_peak": after_peak(settings, run.peak_step, run.final_over_peak),
        "loss": float(np.mean(course.loss[-20:])),
        "closure_of_bound": course.summary["closure_of_bound"],
    }


def nominal(settings: Settings) -> float:
    """The age that the run was made for."""
    return float(f"{settings.age:.6g}")


def crossings(course: Course) -> dict[str, int | None]:
    """From which record on decay is ahead for good: of the alignment, of its published reading, of all growth.

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
    """The forces at a record, in the mean of 5 % of the run, in units of the decay; and the net of the budget."""
    mean = course.mean
    pull = abs(mean.decay[place])
    return {
        "alignment": float(mean.alignment[place] / pull),
        "alignment_as_published": float(mean.as_published().alignment[place] / pull),
        "injection": float(mean.injection[place] / pull),
        "coupling": float(mean.coupling[place] / pull),
        "net_over_budget": float(mean.predicted_change[place] / mean.absolute[place]),
    }


def curves(job: Job, course: Course, forces: bool, most: int = 60) -> dict[str, Any]:
    """Of the picture: λ, and where asked the forces of one step relative to ‖w‖² at the beginning."""
    chosen = np.unique(np.linspace(0, len(course.step) - 1, most).round().astype(int))
    found: dict[str, Any] = {
        "age": nominal(job.settings),
        "seed": job.settings.seed,
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
    }
    if forces:
        mean: wk.ForceBudget = course.mean
        start = course.forces.norm_sq[0]
        for name in ("alignment", "injection", "decay"):
            found[name] = (abs(getattr(mean, name))[chosen] / start).tolist()
    return found
