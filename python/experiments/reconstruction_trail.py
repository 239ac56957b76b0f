"""What a scale can be reconstructed from: the records of our runs, and of logs in the published format."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

import weibull_kernels as wk

from .course import Course
from .four_seeds import ARCHITECTURES
from .jobs import Job
from .published_logs import PublishedLog

PARTS = 20
"""Checkpoints lie at every twentieth of the run, and before the first at the powers of two, as in [W2]."""

DENSE = 400
"""Records of a published run: 20,000 steps, one in 50."""

SUMS = ("published", "injection once", "exact")
"""How the change of ‖w‖² is summed up; see `Trail.change`."""


@dataclass(frozen=True, eq=False)
class Trail:
    """What λ is reconstructed from, and what it should come to.

    Attributes:
        name: of the run.
        step: of the records, [T].
        forces: of each record, [T]; over one step, or over all since the record before.
        published: Δ‖w‖² of each record, as the code published with [W2] adds its terms up, [T].
        norm_sq: ‖w‖² observed after each record, [T].
        numel: n.
        at, observed: the checkpoints and ‖w‖² there, [C].
        k, scale: of the Weibull fit there, [C]; None where nothing was fitted.
    """

    name: str
    step: np.ndarray
    forces: wk.ForceBudget
    published: np.ndarray
    norm_sq: np.ndarray
    numel: float
    at: np.ndarray
    observed: np.ndarray
    k: np.ndarray | None
    scale: np.ndarray | None

    @cached_property
    def gapless(self) -> bool:
        """Whether the records are sums that leave no step out."""
        return bool((np.diff(self.step, prepend=0) == self.forces.steps).all())

    @cached_property
    def instants(self) -> bool:
        """Whether the records are those of single steps."""
        return bool(np.all(np.asarray(self.forces.steps) == 1))

    @property
    def rules(self) -> tuple[str, ...]:
        """How the steps may be filled in, the published way first and the best last."""
        return ("euler", "cubic") * self.instants + ("interval",) * self.gapless

    @cached_property
    def spacings(self) -> list[int]:
        """How far apart records may be taken: what divides a twentieth of the run, so none misses the end."""
        own = int(np.median(np.diff(self.step)))
        part = max(1, int(self.step[-1]) // PARTS)
        if (np.diff(self.step, prepend=0) != own).any() or part % own:
            return [own]
        judged = np.intersect1d(self.at[self.late], self.step)
        times = [times for times in range(1, part // own + 1) if (part // own) % times == 0]
        return [own * each for each in times if (judged % (own * each) == 0).all()]

    @property
    def dense(self) -> int:
        """The spacing most like that of the published runs, and no wider where there is one."""
        wanted = max(1, int(self.step[-1]) // DENSE)
        return max((spacing for spacing in self.spacings if spacing <= wanted), default=self.spacings[0])

    @property
    def late(self) -> np.ndarray:
        """The checkpoints past half of the run, [C] bool."""
        half: np.ndarray = self.at >= self.at[-1] / 2
        return half

    def change(self, sums: str) -> np.ndarray:
        """Δ‖w‖² of each record by one of `SUMS`.

        −2η⟨w⁺,u⟩ is alignment + 2·injection, as w⁺ = c·w − η·u; the published sums add the injection to it
        all the same. "injection once" takes those two away again and leaves all else as it was published.
        """
        if sums == "exact":
            exact: np.ndarray = self.forces.predicted_change
            return exact
        return self.published - (2 * self.forces.injection if sums == "injection once" else 0)


def trail_of_course(job: Job, course: Course) -> Trail:
    """Of one of our runs."""
    settings, fitted = job.settings, np.isfinite(course.scale)
    part = max(1, settings.steps // PARTS)
    wanted = {2**power for power in range(part.bit_length()) if 2**power < part}
    wanted |= set(range(part, settings.steps + 1, part))
    # At the step itself where a fit was made there, else at the next that has one.
    place = np.searchsorted(course.step[fitted], sorted(wanted))
    chosen = np.flatnonzero(fitted)[np.unique(place[place < fitted.sum()])]
    numel = float(course.forces.numel[0])
    norm_sq = course.rms**2 * numel
    return Trail(
        name=f"{ARCHITECTURES[settings.architecture]}, seed {settings.seed}",
        step=course.step,
        forces=course.forces,
        published=course.forces.as_published().predicted_change,
        norm_sq=norm_sq,
        numel=numel,
        at=course.step[chosen],
        observed=norm_sq[chosen],
        k=course.k[chosen],
        scale=course.scale[chosen],
    )


def trail_of_log(log: PublishedLog) -> Trail:
    """Of a log; where it has no λ, σ is judged at every record."""
    norm_sq, fits = log.rms**2 * log.numel, log.checkpoints
    return Trail(
        name=log.name,
        step=log.step,
        forces=log.forces,
        published=log.published,
        norm_sq=norm_sq,
        numel=log.numel,
        at=log.step if fits is None else fits["step"],
        observed=norm_sq if fits is None else fits["sigma"] ** 2 * log.numel,
        k=None if fits is None else fits["k"],
        scale=None if fits is None else fits["lambda"],
    )
