"""The training runs of an experiment: each is made once, and read back from then on."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from corpus import Corpus
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings
from training import Run, train

from weibull_kernels.processor import processor_name
from weibull_kernels.sinks import ParquetSink

from .course import Course, read_course

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

    A run counts once it is whole: one that was cut off is made again from its beginning, which ends with
    the same numbers.

    Raises:
        KeyboardInterrupt: with the runs so far kept.
    """
    jobs = list(dict.fromkeys(jobs))
    missing = [job for job in jobs if not _summary(folder / job.name).exists()]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        runs = progress.add_task("runs", total=len(jobs), completed=len(jobs) - len(missing))
        for job in missing:
            steps = progress.add_task(job.name, total=job.settings.steps)
            make(job, folder / job.name, lambda step, _, task=steps: progress.update(task, completed=step))
            progress.remove_task(steps)
            progress.advance(runs)
    return {job: read_course(records_of(folder / job.name), _summary(folder / job.name)) for job in jobs}


def make(job: Job, folder: Path, report: Any = None) -> None:
    """Train, and leave the records and, when they are whole, a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    with ParquetSink(records_of(folder), job.described, overwrite=True) as sink:
        run = train(job.settings, job.corpus.load(), sink, report)
    if run.interrupted:
        raise KeyboardInterrupt
    unfinished = folder / "summary.json.part"
    unfinished.write_text(json.dumps(summary_of(job, run)))
    os.replace(unfinished, _summary(folder))


def summary_of(job: Job, run: Run) -> dict[str, Any]:
    """What a run found that is not in its records."""
    return {
        "closure_of_budget": run.closure.of_budget,
        "closure_of_bound": run.closure.of_bound,
        "super_weights": {"step": run.super_weights.steps, "shares": run.super_weights.shares},
        "training_seconds": run.training.seconds,
        "recording_seconds": run.recording.seconds,
        "machine": machine(job.settings.torch_device()),
    }


def machine(device: torch.device) -> str:
    """What a run ran on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return f"{processor_name()}, {threads} thread{plural}, torch {torch.__version__}"


def records_of(folder: Path) -> Path:
    """The Parquet file of a run."""
    return folder / "records.parquet"


def _summary(folder: Path) -> Path:
    return folder / "summary.json"
