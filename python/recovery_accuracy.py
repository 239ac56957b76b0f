"""How well forces are recovered from checkpoints alone: the demo's model, its true budget beside.

Every run is trained with the ledger drained at each step and its checkpoints kept, then recovered from
the weights of some of them. Runs of seeds under 20 were looked at while methods and constants were
chosen; only the others, held out, are in the table.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from optimizers import BETA1
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings
from text import library_source
from torch import Tensor
from training import train

import weibull_kernels as wk
from weibull_kernels.gram import CheckpointGram
from weibull_kernels.gram_pass import checkpoint_gram
from weibull_kernels.interpolation import END_CONDITIONS, VARIABLES
from weibull_kernels.records import force_series, read_records
from weibull_kernels.recovery_methods import METHODS
from weibull_kernels.roles import matching_rows
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
AVERAGED = 20  # steps that the truth is averaged over
FIRST = 20  # before which nothing is judged: the update is not yet what it will be
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


@dataclass(frozen=True)
class Truth:
    """What happened in one group of tensors at each of T steps, [T]."""

    forces: wk.ForceBudget
    averaged: np.ndarray
    published: np.ndarray
    rise: np.ndarray
    saturation: np.ndarray

    @classmethod
    def of(cls, records: pa.Table, *roles: str) -> "Truth":
        """From the records of every single step."""
        step, forces = force_series(records, *roles)
        phases = wk.find_phases(step, forces)
        decay = -forces.decay / (2 * forces.norm_sq)
        return cls(
            forces,
            averaged=moving_mean(forces.alignment),
            # −2η⟨w⁺,u⟩, what the code published with [W2] compares with.
            published=(1 - decay) * forces.alignment + 2 * forces.injection,
            rise=(phases == "rise") & (step > FIRST),
            saturation=np.isin(phases, ("balance", "overshoot", "relaxation")) & (step > FIRST),
        )


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Over `AVERAGED` steps around each, fewer at the ends."""
    running = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    low = np.maximum(places - AVERAGED // 2, 0)
    high = np.minimum(places + AVERAGED // 2, len(values))
    return (running[high] - running[low]) / (high - low)


def schedules(steps: int) -> dict[str, list[int]]:
    """The steps of the checkpoints that are used, by what the schedule is called."""
    spaced = {str(h): sorted({*range(0, steps + 1, h), steps}) for h in SPACINGS}
    spaced = {name: knots for name, knots in spaced.items() if len(knots) >= 4}
    doubled = [0, *(2**i for i in range(12) if 2**i <= 64)]
    return spaced | {LOG_LINEAR: doubled + list(range(100, steps + 1, 50))}


def name_of(settings: Settings) -> str:
    """Of a run's folder and rows."""
    return (
        f"seed{settings.seed}-width{settings.width}-lr{settings.lr:g}"
        f"-decay{settings.weight_decay:g}-beta{settings.beta2:g}-steps{settings.steps}"
    )


def trained(
    settings: Settings, source: Tensor, folder: Path, progress: Progress
) -> tuple[pa.Table, CheckpointGram]:
    """The records of every step, and the Gram matrices of the checkpoints, which are then deleted."""
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

        with ParquetSink(records_path, asdict(settings), overwrite=True) as sink:
            if train(settings, source, sink, visit=keep).interrupted:
                raise KeyboardInterrupt
        checkpoint_gram(weights).save(gram_path)
        shutil.rmtree(weights)
        progress.remove_task(task)
    return read_records(records_path), CheckpointGram.load(gram_path)


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
            recovery = recovered(settings, gram.at(steps), method=method)
            for role, truth in truths.items():
                yield {
                    "run": name_of(settings),
                    "schedule": schedule,
                    "method": method,
                    "role": role,
                    **compared(recovery, truth, role),
                }


def variants(settings: Settings, records: pa.Table, gram: CheckpointGram) -> Iterator[dict[str, Any]]:
    """A row for every way to interpolate, of the corrected forces of the transmission weights."""
    truth = Truth.of(records, *wk.TRANSMISSION)
    for schedule, steps in schedules(settings.steps).items():
        for variable in VARIABLES:
            for bc_type in END_CONDITIONS:
                recovery = recovered(settings, gram.at(steps), variable=variable, bc_type=bc_type)
                yield {
                    "run": name_of(settings),
                    "schedule": schedule,
                    "variable": variable,
                    "bc_type": bc_type,
                    **compared(recovery, truth, "transmission"),
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


def compared(recovery: wk.Recovery, truth: Truth, role: str) -> dict[str, Any]:
    """Medians over the steps, and over the intervals, of the rise and of saturation."""
    place = recovery.step - 1
    alignment = recovery.series(role=role).alignment
    impulses = recovery.impulses.series(role=role)
    start = recovery.impulses.step - recovery.impulses.steps
    done = np.concatenate(([0.0], np.cumsum(truth.forces.alignment)))
    true = done[recovery.impulses.step] - done[start]
    rows = matching_rows(recovery.names, recovery.roles, "*", role)
    found: dict[str, Any] = {}
    for phase in ("rise", "saturation"):
        steps = getattr(truth, phase)[place]
        part = np.add.reduceat(getattr(truth, phase)[place].astype(float), start - start[0])
        intervals = part > recovery.impulses.steps / 2
        ratio = (alignment / truth.averaged[place])[steps]
        impulse = (impulses.alignment / true)[intervals]
        found[phase] = {
            "steps": int(steps.sum()),
            "ratio": middle(ratio),
            "as_published": middle((alignment / truth.published[place])[steps]),
            "error": middle(abs(ratio - 1)),
            "intervals": int(intervals.sum()),
            "impulse_ratio": middle(impulse),
            "impulse_error": middle(abs(impulse - 1)),
        }
        if recovery.impulses.alignment_error is not None:
            sigma = recovery.impulses.alignment_error[rows].sum(axis=0)
            known = intervals & (sigma > 0)  # of a single step nothing is uncertain
            off = abs(impulses.alignment - true)[known] / sigma[known]
            found[phase]["within_one_sigma"] = float((off <= 1).mean()) if len(off) else None
            found[phase]["within_two_sigma"] = float((off <= 2).mean()) if len(off) else None
    return found


def middle(values: np.ndarray) -> float | None:
    """The median, to five digits; None of nothing."""
    return float(f"{np.median(values):.5g}") if len(values) else None


def table(rows: list[dict[str, Any]], role: str) -> str:
    """Medians over the runs, in Markdown."""
    lines = [
        "| spacing | method | ratio | as published | error | impulse error | within 1σ "
        "| saturation: error | impulse error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    mine = [row for row in rows if row["role"] == role]
    for schedule in dict.fromkeys(row["schedule"] for row in mine):
        for method in METHODS:
            runs = [row for row in mine if (row["schedule"], row["method"]) == (schedule, method)]

            def over(phase: str, key: str, digits: str, runs: list[dict[str, Any]] = runs) -> str:
                values = [run[phase][key] for run in runs if run[phase].get(key) is not None]
                return format(float(np.median(values)), digits) if values else "–"

            cells = [
                schedule,
                f"`{method}`",
                over("rise", "ratio", ".3f"),
                over("rise", "as_published", ".3f"),
                over("rise", "error", ".1%"),
                over("rise", "impulse_error", ".2%"),
                over("rise", "within_one_sigma", ".0%"),
                over("saturation", "error", ".1%"),
                over("saturation", "impulse_error", ".2%"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variants_table(rows: list[dict[str, Any]]) -> str:
    """Median errors in the rise and in saturation by spacing, in Markdown."""
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    lines = [
        f"| along | ends | {' | '.join(names)} |",
        f"|---|---|{'--:|' * len(names)}",
    ]
    for variable in VARIABLES:
        for bc_type in END_CONDITIONS:
            cells = []
            for schedule in names:
                mine = [
                    row
                    for row in rows
                    if (row["variable"], row["bc_type"], row["schedule"]) == (variable, bc_type, schedule)
                ]
                errors = [
                    [row[phase]["error"] for row in mine if row[phase]["error"] is not None]
                    for phase in ("rise", "saturation")
                ]
                cells.append(" / ".join(f"{np.median(part):.1%}" if part else "–" for part in errors))
            lines.append(f"| `{variable}` | {bc_type} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: dict[str, Any], plan: Plan) -> str:
    """All tables, for a page of their own."""
    rows, ways, runs = found["runs"], found["interpolation"], plan.settings
    kinds = "\n".join(f"- `{name_of(run)}`" for run in runs)
    return f"""# Forces recovered from checkpoints, against the true ones

Written by `python python/reproduce.py recovery`; the numbers of every run and role are in `recovery.json`.
Runs of {runs[0].steps} steps of the demo's model, none of which was looked at while methods were chosen:

{kinds}

**Ratio** is recovered over true alignment, the truth averaged over {AVERAGED} steps; **as published** is
against −2η⟨w⁺,u⟩ at single steps, as in [W2]; **error** is the median of |ratio − 1| over the steps of
the rise, then of saturation (balance, overshoot and relaxation). **Impulse error** is that of the
alignment summed over the interval between two checkpoints, and **within 1σ** how many intervals are as
close as they say. Each number is the median over the runs that have such a phase.

## Transmission weights

{table(rows, "transmission")}

## QKV

{table(rows, "qkv")}

## Embedding

{table(rows, "embedding")}

## Along what, and how it ends

The error of `corrected` on the transmission weights, in the rise / in saturation, by the variable that ‖w‖²
is interpolated along and the end condition of the spline. `lr_sum`, Ση, with not-a-knot ends is the default.

{variants_table(ways)}
"""


def experiment(plan: Plan, out: Path) -> dict[str, Any]:
    """Train, hide the optimizer, recover, and compare with what the ledger says; the numbers of it."""
    source = library_source()
    rows: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        all_runs = progress.add_task("runs", total=plan.runs)
        for settings in plan.settings:
            records, gram = trained(settings, source, out / name_of(settings), progress)
            rows += judged(settings, records, gram)
            ways += variants(settings, records, gram)
            progress.advance(all_runs)
    first = plan.settings[0]
    records, gram = trained(first, source, out / name_of(first), Progress(disable=True))
    return {"runs": rows, "interpolation": ways, "shown": shown_run(first, records, gram)}


def shown_run(settings: Settings, records: pa.Table, gram: CheckpointGram) -> dict[str, Any]:
    """The alignment of one run, true and recovered from checkpoints 50 steps apart, [T] each."""
    step, truth = force_series(records, *wk.TRANSMISSION)
    averaged = moving_mean(truth.alignment)
    found = {"step": step.tolist(), "true": truth.alignment.tolist(), "averaged": averaged.tolist()}
    spacing = 50 if settings.steps >= 200 else 10
    for method in ("corrected", "spline", "two_point"):
        recovery = recovered(settings, gram.at(range(0, settings.steps + 1, spacing)), method=method)
        found[method] = recovery.series(role="transmission").alignment.tolist()
    return found | {"spacing": spacing}
