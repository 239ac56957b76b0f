"""How well forces are recovered from checkpoints alone: the demo's model, its true budget beside.

Every run is trained with the ledger drained at each step and its checkpoints kept, then recovered from
the weights of some of them. Runs of seeds under 20 were looked at while methods and constants were
chosen; only the others, held out, are in the table.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from machine import machine, on_one_thread
from optimizers import BETA1
from recovery_compared import Truth, compared, explained, moving_mean
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings
from text import library_source
from torch import Tensor
from training import train

import weibull_kernels as wk
from weibull_kernels.gram import CheckpointGram
from weibull_kernels.gram_pass import checkpoint_gram
from weibull_kernels.interpolation import END_CONDITIONS, VARIABLES
from weibull_kernels.records import force_series, read_records, run_metadata
from weibull_kernels.recovery_methods import METHODS
from weibull_kernels.sinks import ParquetSink

DEFAULT = Settings(every=1, device="cpu")
RUNS = (
    replace(DEFAULT, seed=20),
    replace(DEFAULT, seed=21, weight_decay=0.1),
    replace(DEFAULT, seed=22, beta2=0.999),
    replace(DEFAULT, seed=23, weight_decay=0.4, width=64),
    replace(DEFAULT, seed=24, weight_decay=0.2, beta2=0.99, width=192),
    replace(DEFAULT, seed=25, lr=2e-3, weight_decay=0.8),
)
SPACINGS = (10, 20, 50, 100, 200, 400)
LOG_LINEAR = "log, then 50"
SHOWN = 150  # points of a curve that are kept
ROLES = ("attention_output", "ffn", "qkv", "embedding", "head", "transmission")


@dataclass(frozen=True)
class Plan:
    """How much of the experiment is run: all of it, unless said otherwise."""

    steps: int = DEFAULT.steps
    runs: int = len(RUNS)
    width: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 60:
            raise ValueError(f"steps must be at least 60, to have checkpoints to leave out, got {self.steps}")
        if not 1 <= self.runs <= len(RUNS):
            raise ValueError(f"runs must be from 1 to {len(RUNS)}, got {self.runs}")

    @property
    def settings(self) -> list[Settings]:
        """Of each run."""
        changed: dict[str, Any] = {"steps": self.steps} | (
            {} if self.width is None else {"width": self.width}
        )
        return [replace(settings, **changed) for settings in RUNS[: self.runs]]


def schedules(steps: int) -> dict[str, list[int]]:
    """The steps of the checkpoints that are used, by what the schedule is called."""
    spaced = {str(h): sorted({*range(0, steps + 1, h), steps}) for h in SPACINGS}
    spaced = {name: knots for name, knots in spaced.items() if len(knots) >= 4}
    doubled = [0, *(2**i for i in range(12) if 2**i <= 64)]
    return spaced | {LOG_LINEAR: doubled + list(range(100, steps + 1, 50))}


def name_of(settings: Settings) -> str:
    """Of a run's folder."""
    return (
        f"seed{settings.seed}-width{settings.width}-lr{settings.lr:g}"
        f"-decay{settings.weight_decay:g}-beta{settings.beta2:g}-steps{settings.steps}"
    )


def label(settings: Settings) -> str:
    """Of a run in the rows."""
    return f"seed{settings.seed}"


def trained(
    settings: Settings, source: Tensor, folder: Path, progress: Progress
) -> tuple[pa.Table, CheckpointGram]:
    """The records of every step, and the Gram matrices of the checkpoints, which are then deleted.

    Raises:
        ValueError: the folder holds a run of other settings.
        KeyboardInterrupt: the run was cut off; it is made again from its beginning.
    """
    # Not at the top: the experiments import this module.

    records_path, gram_path, weights = folder / "records.parquet", folder / "gram.parquet", folder / "weights"
    if not gram_path.exists():
        wanted = {step for steps in schedules(settings.steps).values() for step in steps}
        wanted |= set(range(0, settings.steps + 1, 5))
        shutil.rmtree(folder, ignore_errors=True)
        weights.mkdir(parents=True)
        task = progress.add_task(f"training {name_of(settings)}", total=settings.steps)

        def keep(step: int, model: torch.nn.Module) -> None:
            progress.update(task, completed=step)
            if step in wanted:
                torch.save(model.state_dict(), weights / f"step{step}.pt")

        with ParquetSink(records_path, asdict(settings), overwrite=True) as sink, on_one_thread():
            if train(settings, source, sink, visit=keep).interrupted:
                raise KeyboardInterrupt
            on = machine(settings.torch_device())
        machine_of(folder).write_text(json.dumps({"machine": on}))
        checkpoint_gram(weights).save(gram_path)  # which marks the run as whole
        shutil.rmtree(weights)
        progress.remove_task(task)
    records = read_records(records_path)
    require_same(settings, run_metadata(records)["run"], folder)
    return records, CheckpointGram.load(gram_path)


def machine_of(folder: Path) -> Path:
    """The file that says what a run was trained on."""
    return folder / "machine.json"


def require_same(settings: Settings, found: dict[str, Any], folder: Path) -> None:
    """That a run which is there is the one that is asked for: the name of its folder tells only a part."""
    wanted = asdict(settings)
    differ = [
        f"{name} {found.get(name, 'not named')!r} in place of {wanted.get(name, 'not named')!r}"
        for name in sorted(wanted.keys() | found.keys())
        if name not in found or name not in wanted or wanted[name] != found[name]
    ]
    if differ:
        raise ValueError(
            f"{folder} holds a run with {', '.join(differ)}; remove the folder, or name another one by --out"
        )


def described(settings: Settings, folder: Path) -> dict[str, Any]:
    """What there is to say about a run: what it was made of, and where."""
    if not machine_of(folder).exists():
        raise ValueError(
            f"{folder} has no {machine_of(folder).name}, which names what the run was trained on; "
            "remove the folder, or name another one by --out"
        )
    names = ("seed", "width", "steps", "lr", "weight_decay", "beta2", "clip", "age")
    return {
        "run": label(settings),
        "folder": folder.name,
        **{name: getattr(settings, name) for name in names},
        **json.loads(machine_of(folder).read_text()),
    }


def judged(settings: Settings, records: pa.Table, gram: CheckpointGram) -> Iterator[dict[str, Any]]:
    """A row for every schedule, method and role."""
    present = set(records["role"].to_pylist())
    truths = {
        role: Truth.of(records, *(wk.TRANSMISSION if role == "transmission" else (role,)))
        for role in ROLES
        if role in present or role == "transmission"
    }
    for schedule, steps in schedules(settings.steps).items():
        for method in METHODS:
            chosen = gram.at(steps)
            recovery = recovered(settings, chosen, method=method)
            for role, truth in truths.items():
                found = compared(recovery, truth, role)
                if method == "spline" or (method != "corrected" and role == "transmission"):
                    found["rise"] |= explained(recovery, chosen, truth, role, settings)
                names = {"schedule": schedule, "method": method, "role": role}
                yield {"run": label(settings), **names, **found}


def variants(settings: Settings, records: pa.Table, gram: CheckpointGram) -> Iterator[dict[str, Any]]:
    """A row for every way to interpolate, of the corrected forces of the transmission weights."""
    truth = Truth.of(records, *wk.TRANSMISSION)
    for schedule, steps in schedules(settings.steps).items():
        for variable in VARIABLES:
            for bc_type in END_CONDITIONS:
                recovery = recovered(settings, gram.at(steps), variable=variable, bc_type=bc_type)
                found = compared(recovery, truth, "transmission")
                yield {
                    "run": label(settings),
                    "schedule": schedule,
                    "variable": variable,
                    "bc_type": bc_type,
                    **{phase: {"error": part["error"]} for phase, part in found.items()},
                }


def recovered(settings: Settings, gram: CheckpointGram, **options: Any) -> wk.Recovery:
    """From the checkpoints, the schedule and the decay of the run alone."""
    every = np.arange(1, settings.steps + 1)
    return wk.recover(
        gram,
        lr=(every, [settings.lr * settings.lr_factor(step) for step in every]),
        weight_decay={"norm": 0.0, "bias": 0.0, "*": settings.weight_decay},
        betas=(BETA1, settings.beta2),
        **options,
    )


def experiment(plan: Plan, out: Path) -> dict[str, Any]:
    """Train, hide the optimizer, recover, and compare with what the ledger says; the numbers of it."""
    source = library_source()
    models: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        all_runs = progress.add_task("runs", total=plan.runs)
        for settings in plan.settings:
            folder = out / name_of(settings)
            records, gram = trained(settings, source, folder, progress)
            models.append(described(settings, folder))
            rows += judged(settings, records, gram)
            ways += variants(settings, records, gram)
            shown = shown or shown_run(settings, records, gram)
            progress.advance(all_runs)
    return {"steps": plan.steps, "models": models, "runs": rows, "interpolation": ways, "shown": shown}


def shown_run(settings: Settings, records: pa.Table, gram: CheckpointGram) -> dict[str, Any]:
    """The alignment of one run, true and recovered from checkpoints 50 steps apart, at some of the steps."""
    step, truth = force_series(records, *wk.TRANSMISSION)
    chosen = np.unique(np.linspace(0, len(step) - 1, SHOWN).round().astype(int))
    curves = {"step": step, "true": truth.alignment, "averaged": moving_mean(truth.alignment)}
    spacing = 50 if settings.steps >= 200 else 10
    knots = gram.at(schedules(settings.steps)[str(spacing)])
    for method in ("corrected", "spline", "two_point"):
        recovery = recovered(settings, knots, method=method)
        curves[method] = recovery.series(role="transmission").alignment
    return {name: curve[chosen].tolist() for name, curve in curves.items()} | {"spacing": spacing}
