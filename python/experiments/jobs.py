"""The training runs of an experiment: each is made once, and read back from then on."""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from corpus import Corpus
from machine import machine, on_one_thread
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings
from text import library_source
from training import Run, train

from weibull_kernels.sinks import ParquetSink

from .course import RECORDS, SUMMARY, Course, read_course

WHOLE = Corpus()

SHOWN = ("architecture", "optimizer", "weights", "lr", "weight_decay", "seed", "steps")
"""The settings that the name of a run tells; all of them go into the digits at its end."""


@dataclass(frozen=True)
class Job:
    """One training run: its settings, and the text it is trained on."""

    settings: Settings
    corpus: Corpus = WHOLE

    @property
    def described(self) -> dict[str, Any]:
        """All that fixes its result, as JSON holds it."""
        return {"settings": asdict(self.settings), "corpus": asdict(self.corpus)}

    @property
    def name(self) -> str:
        """Of its folder: no two jobs share one."""
        digits = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()[:8]
        values = (getattr(self.settings, name) for name in SHOWN)
        shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
        return "-".join([*shown, digits])

    def with_(self, **changed: Any) -> "Job":
        """The same with other settings."""
        return replace(self, settings=replace(self.settings, **changed))


def trained(jobs: Iterable[Job], folder: Path) -> dict[Job, Course]:
    """What the runs did, after those that are not there have been made, under a progress bar.

    A run has a folder once it is whole: one that was cut off is made again from its beginning, which ends
    with the same numbers.

    Raises:
        KeyboardInterrupt: with the runs so far kept.
        ValueError: the runs were made on different texts.
    """
    jobs = list(dict.fromkeys(jobs))
    missing = [job for job in jobs if not (folder / job.name).exists()]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        runs = progress.add_task("runs", total=len(jobs), completed=len(jobs) - len(missing))
        for job in missing:
            if not (folder / job.name).exists():  # another process may have made it meanwhile
                steps = progress.add_task(job.name, total=job.settings.steps)
                make(job, folder, lambda step, _, task=steps: progress.update(task, completed=step))
                progress.remove_task(steps)
            progress.advance(runs)
    courses = {job: read_course(folder / job.name) for job in jobs}
    texts = {course.summary["text"]: job for job, course in courses.items()}
    if len(texts) > 1:
        names = " and ".join(job.name for job in texts.values())
        raise ValueError(
            f"runs in {folder} were made on different texts, of different versions of Python: {names}; "
            "remove those of one, or take another --out"
        )
    return courses


def make(job: Job, folder: Path, report: Any = None) -> None:
    """Train, and put the records and a summary into the folder of the run, all at once when they are whole.

    Two processes may make the same run; that of the first to end is kept. What a process leaves behind that
    was killed is called NAME.part-… and is never read.
    """
    job.settings.torch_device()  # that it is there, before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{job.name}.part-", dir=folder) as place, on_one_thread():
        part = Path(place) / "run"
        with ParquetSink(part / RECORDS, job.described, overwrite=True) as sink:
            run = train(job.settings, job.corpus.load(), sink, report)
        if run.interrupted:
            raise KeyboardInterrupt
        (part / SUMMARY).write_text(json.dumps(summary_of(job, run)))
        with suppress(OSError):  # another process was first
            part.rename(folder / job.name)


@cache
def text_digest() -> str:
    """Of the text that all corpora are cut from, which is that of the running Python."""
    return hashlib.sha256(library_source().numpy().tobytes()).hexdigest()[:16]


def summary_of(job: Job, run: Run) -> dict[str, Any]:
    """What a run found that is not in its records."""
    return {
        "closure_of_budget": run.closure.of_budget,
        "closure_of_bound": run.closure.of_bound,
        "super_weights": {"step": run.super_weights.steps, "shares": run.super_weights.shares},
        "unmoved": run.unmoved.summary,
        "training_seconds": run.training.seconds,
        "recording_seconds": run.recording.seconds,
        "machine": machine(job.settings.torch_device()),
        "text": text_digest(),
    }
