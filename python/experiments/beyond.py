"""Beyond the papers: the budget of Adam without decay, of bfloat16 weights, of Lion and of Muon."""

from dataclasses import replace
from typing import Any

import numpy as np
from settings import Settings

from weibull_kernels.phases import moving_average

from .beyond_claims import claims as claims
from .beyond_claims import section as section
from .beyond_picture import draw as draw
from .course import FORCES, Course, work
from .growth import cosine, start_scale
from .jobs import Job
from .long_path import as_long
from .presets import with_age
from .results import thinned

NAME = "beyond"
TITLE = "Beyond the papers: no decay, bfloat16 weights, Lion and Muon"
SEEDS = (0, 1)
THREE = FORCES[:3]
AGE = 2.2
"""Ση·ω: one at which λ rises, peaks and falls; of the runs of [W2] the one with the most decay."""
LION = 4.0
"""An entry of Lion's update is ±1, one of AdamW's about a quarter: η/4 and 4ω move and decay alike."""
TAIL = 0.05
"""The part of the run that is its end."""
NARROW = ", bfloat16 weights"


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run of every variant for every seed; AdamW's own are those of other experiments too."""
    adamw = with_age(as_long(base), AGE)
    # A displacement is that of one step; Weibull fits are as far apart as the others'.
    single = replace(adamw, every=1, fit_every=base.every * base.fit_every)
    of_adam = [adamw, replace(adamw, weight_decay=0.0), base]
    variants = [
        *of_adam,
        *(replace(variant, weights="bfloat16") for variant in of_adam),
        replace(single, optimizer="lion", lr=adamw.lr / LION, weight_decay=LION * adamw.weight_decay),
        replace(single, optimizer="muon"),
    ]
    return [Job(replace(variant, seed=seed)) for variant in variants for seed in seeds]


def variant_of(settings: Settings) -> str:
    """What is different about a run, in words."""
    name = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon"}[settings.optimizer]
    if settings.weight_decay == 0:
        name = f"{name.removesuffix('W')} without decay"
    elif settings.age < AGE / 2:
        name += f", age {settings.age:.2f}"
    return name + NARROW * (settings.weights == "bfloat16")


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """The budget of every run, and of those with bfloat16 weights beside their twins in float32."""
    runs = [of_run(job, course) for job, course in courses.items()]
    first = min(run["seed"] for run in runs)
    for run in runs:
        if run["seed"] != first:
            del run["curves"]
    return {"runs": runs, "twins": twins(courses)}


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: what each force did, how long and how well aimed its updates were, and its curves."""
    settings, run, phases = job.settings, course.run, course.phases
    rise, tail = (
        np.arange(len(course.step)) <= np.argmax(course.rms),
        course.step > (1 - TAIL) * settings.steps,
    )
    fitted = np.flatnonzero(~np.isnan(course.scale))
    return {
        "variant": variant_of(settings),
        "seed": settings.seed,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "age": settings.age,
        "steps": settings.steps,
        "scale": {"start": start_scale(course), "peak": run.peak, "final": run.final},
        "peak_at": run.peak_step / settings.steps,
        "k": {"start": float(course.k[fitted[0]]), "final": float(course.k[fitted[-1]])},
        "loss": float(np.mean(course.loss[tail])),
        "work": {"to_peak": course.work, "whole": work(course.forces)},
        "shares": {
            "rise": shares(course.forces, rise),
            "rise_as_published": shares(course.forces.as_published(), rise),
            "end": shares(course.forces, tail),
        },
        "update_rms": at_both(course.update_rms, rise, tail),
        "cosine": at_both(cosine(course), rise, tail),
        "phases": {phase: float(np.mean(phases == phase)) for phase in dict.fromkeys(phases.tolist())},
        "closure": course.summary["closure_of_budget"],
        "rounding": rounding(course, tail),
        "unmoved": unmoved(course),
        "curves": curves(course, fitted),
    }


def shares(forces: Any, chosen: np.ndarray) -> dict[str, float]:
    """Of what the three forces did over the chosen records, each taken as a whole; decay is negative."""
    sums = {force: float(getattr(forces, force)[chosen].sum()) for force in THREE}
    whole = sum(map(abs, sums.values()))
    return {force: value / whole for force, value in sums.items()}


def column(course: Course, force: str) -> np.ndarray | None:
    """What a force did in each record, [T]; None for the rounding of displacements, a part of the update."""
    values = getattr(course.forces, force)
    return None if values is None or np.isnan(values).all() else np.asarray(values)


def at_both(values: np.ndarray, rise: np.ndarray, tail: np.ndarray) -> dict[str, float]:
    """The median over the rise, which is up to the peak of σ, and over the end."""
    return {"rise": float(np.median(values[rise])), "end": float(np.median(values[tail]))}


def rounding(course: Course, tail: np.ndarray) -> dict[str, dict[str, float | None]] | None:
    """What rounding is among the forces, over the whole run and at its end.

    `of_budget` is Σ|rounding| relative to the absolute budget, `of_net` Σ rounding relative to the net of the
    forces: −1 where it takes all of that back.
    """
    values = column(course, "rounding")
    if values is None:
        return None
    net, whole = course.forces.predicted_change, course.forces.absolute
    return {
        name: {
            "of_budget": ratio(abs(values[chosen]).sum(), whole[chosen].sum()),
            "of_net": ratio(values[chosen].sum(), net[chosen].sum()),
        }
        for name, chosen in {"whole": np.full(len(tail), True), "end": tail}.items()
    }


def unmoved(course: Course) -> dict[str, Any] | None:
    """Which part of the entries, and of the forces on all, falls on entries that a step left as they were.

    `decay_done` is what decay really did to ‖w‖² in a step, relative to decay + coupling, which it would do
    without rounding: at every look, over all of them and over the last tenth. `reach` is η·û beside half of
    the last digit of an entry of size σ: how far an update goes beside the least that can move one.
    """
    found = course.summary.get("unmoved")
    if not found or not found["step"]:
        return None
    pairs = list(zip(found["forces"], found["of_unmoved"], strict=True))
    done = np.array([whole["decay_done"] for whole, _ in pairs])
    due = np.array([whole["decay"] + whole["coupling"] for whole, _ in pairs])
    last = np.array(found["step"]) > 0.9 * course.step[-1]
    at = np.searchsorted(course.step, found["step"])
    return {
        "step": found["step"],
        "entries": found["fraction"],
        "reach": ((course.update_rms * course.lr)[at] / half_digit(course.rms[at])).tolist(),
        **{force: [ratio(part[force], whole[force]) for whole, part in pairs] for force in THREE},
        "decay_done": [ratio(*each) for each in zip(done, due, strict=True)],
        "decay_done_of_all": ratio(done.sum(), due.sum()),
        "decay_done_at_end": ratio(done[last].sum(), due[last].sum()),
    }


def half_digit(size: np.ndarray) -> np.ndarray:
    """Half of the last digit of a bfloat16 of some size: what is less does not move it."""
    half: np.ndarray = 2.0 ** (np.floor(np.log2(size)) - 8)
    return half


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to be a part of."""
    return float(part / whole) if whole else None


def twins(courses: dict[Job, Course]) -> list[dict[str, Any]]:
    """How far the weights of each run end from those of the same run with bfloat16 weights, and why.

    `norm_sq` is ‖w‖² with bfloat16 weights relative to that with float32 ones, less 1; `work` are the parts
    of that difference that the works of the forces make. `decay_acts` is the difference that decay makes to
    ‖w‖² with bfloat16 weights, relative to the one with float32 weights.
    """
    runs = {(variant_of(job.settings), job.settings.seed): course for job, course in courses.items()}
    ends = {key: course.rms[-1] ** 2 for key, course in runs.items()}
    found = []
    for (name, seed), course in runs.items():
        if (name + NARROW, seed) not in runs:
            continue
        narrow, grown = runs[name + NARROW, seed], ends[name, seed] * course.forces.numel[0] / start(course)
        works = [work(each.forces) for each in (narrow, course)]
        row = {
            "variant": name,
            "seed": seed,
            "norm_sq": float(ends[name + NARROW, seed] / ends[name, seed] - 1),
            "work": {force: float((works[0][force] - works[1][force]) / grown) for force in FORCES},
            "decay_acts": None,
        }
        without = [ends.get((f"Adam without decay{suffix}", seed)) for suffix in ("", NARROW)]
        if name == "AdamW" and None not in without:
            row["decay_acts"] = ratio(ends[name + NARROW, seed] - without[1], ends[name, seed] - without[0])
        found.append(row)
    return found


def start(course: Course) -> float:
    """‖w‖² before the first step."""
    return float(course.forces.norm_sq[0])


def curves(course: Course, fitted: np.ndarray, most: int = 60) -> dict[str, list[float]]:
    """Of the picture: λ at most so many times, and the forces of a step relative to the budget."""
    chosen = fitted[thinned(len(fitted), most)]
    mean = course.mean
    rounded = column(course, "rounding")
    forces = {force: getattr(mean, force) for force in THREE}
    if rounded is not None:
        # Averaged as the others are.
        forces["rounding"] = moving_average(course.step, replace(course.forces, alignment=rounded)).alignment
    return {
        "step": course.step[chosen].tolist(),
        "scale": course.scale[chosen].tolist(),
        **{force: (values / mean.absolute)[chosen].tolist() for force, values in forces.items()},
    }
