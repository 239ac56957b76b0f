"""How σ grows: what each force does to it, along how much learning rate, and at which angle."""

import math

import numpy as np
from settings import Settings

from .course import FORCES, Course

HALF_NORMAL = 0.887487
"""λ/σ of normal weights, as they are before the first step, by the probability plot."""


def before(course: Course) -> np.ndarray:
    """σ before each record, [T]."""
    sigma: np.ndarray = np.sqrt(course.forces.norm_sq / course.forces.numel)
    return sigma


def start_scale(course: Course) -> float:
    """λ₀, of the normal weights before the first step."""
    return HALF_NORMAL * float(before(course)[0])


def parts(course: Course) -> dict[str, np.ndarray]:
    """What each force did to σ in every record, [T]; their sum is the change of σ.

    Exactly: σ⁺ − σ = (σ⁺² − σ²)/(σ⁺ + σ), and the forces add up to n·(σ⁺² − σ²).
    """
    columns = {force: getattr(course.forces, force) for force in FORCES}
    whole = course.forces.numel * (course.rms + before(course))
    return {
        force: np.zeros(len(whole)) if column is None else np.nan_to_num(column) / whole
        for force, column in columns.items()
    }


def cosine(course: Course) -> np.ndarray:
    """Of the angle between w and −u in each record, [T].

    alignment = 2η‖w‖‖u‖·cosθ and injection = η²‖u‖² in each step; a record of several steps gives their mean.
    """
    forces = course.forces
    length = np.sqrt(forces.injection * forces.steps)  # Σ η‖u‖
    angle: np.ndarray = forces.alignment / (2 * np.sqrt(forces.norm_sq) * length)
    return angle


def moved(course: Course) -> np.ndarray:
    """Σ η·û of each record, [T], with û the root mean square of u: how far its steps would lead in a row."""
    length: np.ndarray = np.sqrt(course.forces.injection * course.forces.steps / course.forces.numel)
    return length


def path(settings: Settings) -> np.ndarray:
    """Ση of all steps so far, [steps + 1]; the last is that of the whole run."""
    factors = [settings.lr_factor(step) for step in range(1, settings.steps + 1)]
    return settings.lr * np.concatenate(([0.0], np.cumsum(factors)))


def half_step(step: np.ndarray, scale: np.ndarray, start: float) -> float:
    """When half of the way of λ from its start to its peak is done, straight between two records.

    `scale` are the values at `step`, up to the peak at least; that of step 0 is `start`.
    """
    step, scale = np.concatenate(([0], step)), np.concatenate(([start], scale))
    half = (start + float(scale.max())) / 2
    after = int(np.argmax(scale >= half))
    if after == 0:
        return 0.0
    part = (half - scale[after - 1]) / (scale[after] - scale[after - 1])
    return float(step[after - 1] + part * (step[after] - step[after - 1]))


def after_peak(settings: Settings, peak_step: int, final_over_peak: float) -> dict[str, float | None]:
    """How much of the age is left at the peak of λ, and how much of the decay since then growth offset.

    Decay alone would leave e^(−age) of λ. The part offset is 1 − ln(peak/final)/age; None without an age.
    """
    along = path(settings)
    left = settings.weight_decay * float(along[-1] - along[peak_step])
    fall = -math.log(final_over_peak)
    return {"age": left, "decay_alone": math.exp(-left), "offset": 1 - fall / left if left > 0 else None}
