"""Data coherence: text with a part of its positions shuffled, or seen again and again; which force tells."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from corpus import Corpus, conditional_entropy, in_pairs, retained_pairs, shuffle_windows, unigram_entropy
from settings import Settings
from text import library_source

from . import coherence_page, coherence_picture
from .coherence_drivers import Drivers, by_driver, by_factor
from .coherence_law import PARTS, PROBED, Power, fit_power, law
from .course import Course, work
from .growth import HALF_NORMAL, start_scale
from .jobs import Job

NAME = "coherence"
TITLE = "Coherence of the data, and the force that carries it"
SEEDS = (0, 1, 2)
SHUFFLED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
"""ρ of [W3], and full corruption, where D is H_r."""

TIMES = (4, 8, 16, 64, 256, 1024)
"""How often a smaller corpus is seen in the mean."""

HORIZONS = (20, 50)
"""So-manieth parts of the run that AdamW remembers squared gradients for; in [W2] it is the first."""

LEARNT = 1.0
"""Bits a byte: a text whose loss is under it has been learnt by heart; its bigrams alone leave three."""

BITS = 1 / np.log(2)

draw, claims, section = coherence_picture.draw, coherence_page.claims, coherence_page.section


def jobs(base: Settings, seeds: tuple[int, ...]) -> list[Job]:
    """A run for every text and seed, and with the first two seeds some with another memory of AdamW.

    Runs of one seed begin with the same weights; those on shuffled text take their windows from the same
    places too.
    """
    window = base.context
    found = []
    for seed in seeds:
        settings = replace(base, seed=seed)
        found += [Job(settings)]
        found += [Job(settings, Corpus(shuffled=rho, window=window)) for rho in SHUFFLED]
        found += [
            Job(settings, Corpus(window=window, length=length, seed=seed))
            for length in lengths(base).values()
        ]
    for beta2 in memories(base):
        for seed in seeds[:2]:
            settings = replace(base, seed=seed, beta2=beta2)
            found += [Job(settings), Job(settings, Corpus(shuffled=PROBED, window=window))]
    return list(dict.fromkeys(found))


def lengths(base: Settings) -> dict[int, int]:
    """Bytes of the smaller corpora by how often they are seen; only of those that are a part of the text."""
    seen = base.tokens
    return {times: seen // times for times in TIMES if 2 * base.context <= seen // times < text_length()}


def kind(job: Job) -> dict[str, Any]:
    """What tells a run from others in the numbers; `times` is how often a smaller corpus is seen."""
    length = job.corpus.length
    return {
        "shuffled": job.corpus.shuffled,
        "times": None if length is None else round(job.settings.tokens / length),
        "seed": job.settings.seed,
        "beta2": job.settings.beta2,
    }


@lru_cache
def text_length() -> int:
    """Bytes of text that there are."""
    return len(library_source())


def memories(base: Settings) -> list[float]:
    """β₂ of a shorter memory: with horizons 1/(1−β₂) that are parts of the run, and of two steps at least."""
    given = [max(0.5, round(1 - part / base.steps, 12)) for part in HORIZONS]
    return [beta2 for beta2 in given if beta2 < base.beta2]


def findings(courses: dict[Job, Course]) -> dict[str, Any]:
    """Of every run its text and its growth; of every pair of runs which force makes the difference."""
    about = {text: described(*text) for text in dict.fromkeys(text_of(job) for job in courses)}
    runs = [of_run(job, course) | about[text_of(job)] for job, course in courses.items()]
    # Memory as in the preset: the longest of all runs.
    beta2 = max(run["beta2"] for run in runs)
    main = [run for run in runs if run["beta2"] == beta2]
    shuffled = [run for run in main if run["times"] is None]
    fitted = law(shuffled)
    return {
        "beta2": beta2,
        "runs": runs,
        "differences": differences(courses),
        "law": fitted,
        "pairs_of_bytes": pairs_of_bytes(next(iter(courses)).settings.context),
        "repetition": repetition(main, fitted),
        "curves": curves(courses),
    }


def text_of(job: Job) -> tuple[Corpus, int]:
    """The text of a run, and the window that full corruption would shuffle."""
    return job.corpus, job.settings.context


def described(corpus: Corpus, window: int) -> dict[str, float]:
    """What is known of a text before training.

    D is that of its own bigrams, H_r that of the same bytes, fully shuffled in each window: so what a small
    text's bigrams seem to tell for their small number is in both.
    """
    whole = replace(corpus, shuffled=0.0, window=window).load()
    text = corpus.load()
    entropy = conditional_entropy(text)
    baseline = conditional_entropy(replace(corpus, shuffled=1.0, window=window).load())
    return {
        "bytes": len(text),
        "entropy": entropy,
        "baseline": baseline,
        "gap": max(0.0, baseline - entropy),
        "unigram": unigram_entropy(text),
        "retained": retained_pairs(whole, text, window),
    }


def of_run(job: Job, course: Course) -> dict[str, Any]:
    """One run: how far λ came, and what each force did for it."""
    run, start = course.run, start_scale(course)
    return kind(job) | {
        "steps": job.settings.steps,
        "seen": job.settings.tokens / (job.corpus.length or text_length()),
        "loss": float(np.mean(course.loss[-20:]) * BITS),
        "known": known(course),
        "scale": {"start": start, "peak": run.peak, "final": run.final},
        "peak_step": run.peak_step,
        "growth": run.final**2 - start**2,
        "on_the_way": [growth_at(course, part) for part in PARTS],
        "k": float(course.k[-1]),
        "work": work(course.forces),
        "work_to_peak": course.work,
    }


def growth_at(course: Course, part: float) -> float:
    """λ² − λ₀² after a part of the run."""
    place = int(np.searchsorted(course.step, part * course.step[-1]))
    return float(course.scale[place] ** 2 - start_scale(course) ** 2)


def known(course: Course) -> float | None:
    """The part of the run after which the text is known by heart; None if it never is."""
    under = np.flatnonzero(course.loss * BITS < LEARNT)
    return float(course.step[under[0]] / course.step[-1]) if len(under) else None


def differences(courses: dict[Job, Course]) -> list[dict[str, Any]]:
    """Of every run against its fellow on the whole text: what makes ‖w‖² differ, over its first value."""
    found = []
    drivers = {job: Drivers.of(course.forces) for job, course in courses.items()}
    for job, course in courses.items():
        base = Job(job.settings)
        if job == base or base not in courses:
            continue
        forces, whole = work(course.forces), work(courses[base].forces)
        parts = {force: value - whole[force] for force, value in forces.items()}
        to_peak = {force: value - courses[base].work[force] for force, value in course.work.items()}
        found.append(
            kind(job)
            | {
                "scale": courses[job].run.peak - courses[base].run.peak,
                "total": sum(parts.values()),
                "forces": parts,
                "to_peak": to_peak,
                "factors": by_factor(drivers[base], drivers[job]),
                "drivers": by_driver(drivers[base], drivers[job]),
                "bridge": by_bridge(courses[base], course),
            }
        )
    return found


def by_bridge(base: Course, other: Course) -> dict[str, float]:
    """The difference of λ² at the end, over λ₀², by ‖w‖² and by the shape, which is in λ/σ.

    λ²/λ₀² = r²·s with s = σ²/σ₀², so other − base = ½(r² + r₀²)·Δs + ½(s + s₀)·Δr².
    """
    scale_sq, norm_sq = (
        np.array([column[-1] ** 2 / start**2 for column, start in pairs])
        for pairs in (
            [(course.scale, start_scale(course)) for course in (base, other)],
            [(course.rms, start_scale(course) / HALF_NORMAL) for course in (base, other)],
        )
    )
    ratio = scale_sq / norm_sq
    return {
        "norm": float(ratio.mean() * np.diff(norm_sq)[0]),
        "shape": float(norm_sq.mean() * np.diff(ratio)[0]),
    }


def repetition(runs: list[dict[str, Any]], fitted: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The mean growth by how often a text is seen, and what the law for shuffled text says of it."""
    predict = None if fitted is None else Power(**fitted["growth_on_gap"])
    levels = []
    for times in dict.fromkeys(run["times"] for run in runs if run["times"] is not None):
        mine = [run for run in runs if run["times"] == times]
        told = None if predict is None else float(predict([run["gap"] for run in mine]).mean())
        growth = float(np.mean([run["growth"] for run in mine]))
        levels.append({"times": times, "growth": growth, "predicted": told})
    return levels


def pairs_of_bytes(window: int, most: int = 4_000_000) -> dict[str, float] | None:
    """The p of H_r − D ∝ S^p with two bytes to a token: whether it depends on what a token is.

    Of the first `most` bytes of the text; the window is in tokens.
    """
    tokens = in_pairs(library_source()[:most])
    shuffled = {rho: shuffle_windows(tokens, rho, window, seed=0) for rho in SHUFFLED} | {0.0: tokens}
    baseline = conditional_entropy(shuffled[1.0])
    gap = [max(0.0, baseline - conditional_entropy(each)) for each in shuffled.values()]
    fit = fit_power([retained_pairs(tokens, each, window) for each in shuffled.values()], gap)
    return None if fit is None else {"exponent": fit.exponent, "error": fit.error}


def curves(courses: dict[Job, Course], most: int = 50) -> list[dict[str, Any]]:
    """Angle and length of the updates over the run, mean over the seeds, of the texts that the picture shows.

    `cosine` is that of the angle between w and −u; `update` is û, the root mean square of u.
    """
    found: dict[tuple[float, float], list[Course]] = {}
    for job, course in courses.items():
        if job.corpus.length is None and job.corpus.shuffled in (0, PROBED):
            found.setdefault((job.settings.beta2, job.corpus.shuffled), []).append(course)
    return [
        {
            "beta2": beta2,
            "shuffled": rho,
            "step": blocks(runs[0].step, most),
            "cosine": np.mean([blocks(Drivers.of(run.forces).angle, most) for run in runs], axis=0).tolist(),
            "update": np.mean([blocks(run.update_rms, most) for run in runs], axis=0).tolist(),
        }
        for (beta2, rho), runs in found.items()
    ]


def blocks(column: np.ndarray, most: int) -> list[float]:
    """Means over that many stretches of a run, or fewer where it has fewer records."""
    return [float(part.mean()) for part in np.array_split(column, min(most, len(column)))]
