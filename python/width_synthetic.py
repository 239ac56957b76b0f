"""How the top singular value goes with η, ω and the width, from gradients of noise to gradients of signal.

A residual FFN learns a task of few dimensions, with noise added to its gradients, until its matrices
are in equilibrium. Every run is kept in a file of its own, so that an interrupted experiment goes on
where it stopped.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from residual_ffn import BETA1, ResidualFFN, Task, add_noise, noise_limit
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from width_synthetic_fits import HALVES, summary
from width_synthetic_pictures import draw
from width_synthetic_report import page

import weibull_kernels as wk
from weibull_kernels.processor import processor_name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BETAS = (BETA1, 0.99)
EPS = 1e-20  # of AdamW: far under every gradient here, so that their size does not matter
BURN_IN = 3.0  # time constants 1/(ηω) before anything is measured
WINDOW = 2.0  # time constants that are measured
SNAPSHOTS = 8  # of the spectrum, in the window
BATCH = 32


@dataclass(frozen=True)
class Settings:
    """Of one run; `noise` is that added to a gradient over the gradient's rms, infinite for noise alone."""

    width: int
    lr: float
    weight_decay: float
    noise: float
    seed: int
    branch_norm: bool = True

    @property
    def name(self) -> str:
        """Of the run's file."""
        return (
            f"noise{self.noise:g}-width{self.width}-lr{self.lr:.4g}-decay{self.weight_decay:.4g}"
            f"-seed{self.seed}{'' if self.branch_norm else '-pinned'}"
        )

    def steps(self, age: float) -> int:
        """That an effective age Σηω takes."""
        return max(1, round(age / (self.lr * self.weight_decay)))


@dataclass(frozen=True)
class Plan:
    """Which runs there are. `lr` and `weight_decay` are those of the base width."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    base_width: int = 256
    lr: float = 8e-3
    weight_decay: float = 1.0
    noises: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0, math.inf)
    seeds: int = 3
    sweep_width: int = 128
    factors: tuple[float, ...] = tuple(2 ** (half / 2) for half in range(-6, 5))  # of η or ω, at one width
    pinned_widths: tuple[int, ...] = (64, 128, 256)

    def runs(self) -> dict[str, list[Settings]]:
        """By experiment; a run may belong to several. The first seed of everything comes first."""
        found: dict[str, list[Settings]] = {}
        for seed in range(self.seeds):
            for noise in self.noises:
                one = Settings(self.base_width, self.lr, self.weight_decay, noise, seed)
                for name, runs in self.of(one).items():
                    found.setdefault(name, []).extend(runs)
        return found

    def of(self, one: Settings) -> dict[str, list[Settings]]:
        """The runs of one noise and seed, from that at the base."""
        narrow = replace(one, width=self.sweep_width)
        sweeps = {
            "lr": [replace(narrow, lr=self.lr * f) for f in self.factors],
            "weight_decay": [replace(narrow, weight_decay=self.weight_decay * f) for f in self.factors],
        }
        pinned = {
            f"{name} pinned": [run for run in runs if self.is_large(run)] for name, runs in sweeps.items()
        }
        pinned["width pinned"] = [replace(one, width=width) for width in self.pinned_widths]
        # Noise alone knows no targets that could pin a size.
        pinned = {
            name: [replace(run, branch_norm=False) for run in runs if not math.isinf(one.noise)]
            for name, runs in pinned.items()
        }
        rules = {
            name: [
                replace(
                    one,
                    width=width,
                    lr=self.lr * rule.lr_ratio(width / self.base_width),
                    weight_decay=self.weight_decay * rule.weight_decay_ratio(width / self.base_width),
                )
                for width in self.widths
            ]
            for name, rule in wk.scaling.RULES.items()
            # With ηω the same at every width this repeats the width's own runs but for rounding.
            if name != "proportional" or one.seed == 0
        }
        return sweeps | pinned | {"width": [replace(one, width=width) for width in self.widths]} | rules

    def is_large(self, run: Settings) -> bool:
        """Whether it is in the half of larger ηω."""
        low, high = HALVES["large"]
        return low < run.lr * run.weight_decay / (self.lr * self.weight_decay) < high


DEFAULT = Plan()
QUICK = Plan(
    widths=(16, 32, 64),
    base_width=32,
    lr=0.1,
    noises=(0.0, math.inf),
    seeds=1,
    sweep_width=32,
    factors=(0.25, 0.5**1.5, 0.5, 1.0),
    pinned_widths=(16, 32, 64),
)


def measured(settings: Settings) -> dict[str, Any]:
    """Train one FFN into equilibrium and measure its matrices there.

    Returns:
        For each matrix, over the window: `sigma`, `rms` and `stable_rank` ‖w‖²/σ_top² of every snapshot,
        the `distance` of its norm from the balance of its forces and their `coherence`, as
        `wk.scaling.equilibrium` has them, the rms of its updates, and how much of its top direction
        is `kept` from the window's start to its end, ⟨u₁, W·v₁⟩/σ₁ with u₁, σ₁, v₁ of the start.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(settings.seed)
    # The entries start at the size of the noise limit; all that is left to grow is coherence.
    std = noise_limit(settings.lr, settings.weight_decay)
    model = ResidualFFN(settings.width, std, generator, settings.branch_norm)
    task = Task.of(settings.width, settings.seed)
    optimizer = wk.AdamW(
        model.named_parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=BETAS,
        eps=EPS,
    )
    scratch = torch.empty(settings.width, settings.width)
    first, last = settings.steps(BURN_IN), settings.steps(BURN_IN + WINDOW)
    wanted = set(np.linspace(first, last, SNAPSHOTS + 1).round().astype(int).tolist()[1:])
    found: dict[str, Any] = {
        name: {"sigma": [], "rms": [], "stable_rank": []} for name, _ in model.named_parameters()
    }
    losses = []
    for step in range(1, last + 1):
        losses.append(compute_gradients(model, task, settings.noise, scratch, generator))
        optimizer.step()
        if step == first:
            optimizer.ledger.drain()
            starts = {name: top_triple(weight.detach()) for name, weight in model.named_parameters()}
        if step in wanted:
            for name, weight in model.named_parameters():
                add_spectrum(found[name], weight.detach())
    budget = optimizer.ledger.drain()
    balance = wk.scaling.equilibrium(budget, lr=settings.lr, weight_decay=settings.weight_decay)
    for row, (name, weight) in enumerate(model.named_parameters()):
        left, value, right = starts[name]
        found[name]["kept"] = (left @ weight.detach() @ right / value).item()
        found[name]["distance"] = balance.distance[row].item()
        found[name]["coherence"] = balance.coherence[row].item()
        injected = budget.injection[row] / (settings.lr**2 * budget.numel[row] * budget.steps[row])
        found[name]["update_rms"] = injected.sqrt().item()
    return {
        "settings": asdict(settings) | {"noise": f"{settings.noise:g}"},  # JSON has no infinity
        "steps": last,
        "loss": None if math.isinf(settings.noise) else sum(losses[first:]) / (last - first),
        "matrices": found,
        "seconds": time.perf_counter() - started,
        "machine": machine(),
    }


def compute_gradients(
    model: ResidualFFN, task: Task, noise: float, scratch: torch.Tensor, generator: torch.Generator
) -> float:
    """Of a fresh batch, with noise added; returns the loss, NaN where there is no task but noise."""
    loss = math.nan
    if math.isinf(noise):
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.grad is None else weight.grad
    else:
        x, wanted = task.batch(BATCH, generator)
        error = F.mse_loss(model(x), wanted)
        model.zero_grad()
        error.backward()
        loss = error.item()
    if noise > 0:
        for weight in model.parameters():
            add_noise(weight.grad, noise, scratch, generator)
    return loss


def top_triple(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u₁, σ₁ and v₁."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, 0].clone(), values[0], right[0].clone()


def add_spectrum(found: dict[str, Any], weight: torch.Tensor) -> None:
    """One snapshot of a matrix."""
    values = torch.linalg.svdvals(weight)
    squares = values.double().square().sum().item()
    found["sigma"].append(values[0].item())
    found["rms"].append(math.sqrt(squares / weight.numel()))
    found["stable_rank"].append(squares / values[0].item() ** 2)


def machine() -> str:
    """What the experiment ran on."""
    return (
        f"{processor_name()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )


def kept(settings: Settings, folder: Path) -> dict[str, Any]:
    """What a run measured, now or before."""
    path = folder / f"{settings.name}.json"
    if not path.exists():
        found = measured(settings)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(path)
    return json.loads(path.read_text())


def as_json(found: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The numbers of the page, and a line for each run with its means over the window, to six digits."""

    def short(value: Any) -> Any:
        return float(f"{np.mean(value):.6g}")

    lines = [
        json.dumps(
            run
            | {"seconds": short(run["seconds"]), "loss": run["loss"] and short(run["loss"])}
            | {
                "matrices": {
                    name: {key: short(value) for key, value in matrix.items()}
                    for name, matrix in run["matrices"].items()
                }
            }
        )
        for run in runs
    ]
    return json.dumps(found, indent=1)[:-2] + ',\n "runs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


@app.command()
def main(
    out: Annotated[
        Path, typer.Option(help="folder of the runs; those that are there are not trained again")
    ] = Path("runs/width-synthetic"),
    results: Annotated[Path, typer.Option(help="folder of the tables, the numbers and the picture")] = Path(
        "benchmarks/results"
    ),
    quick: Annotated[bool, typer.Option(help="a few seconds of it, at small widths")] = False,
    threads: Annotated[int, typer.Option(min=1, help="that torch may use")] = 1,
) -> None:
    """Train to equilibrium at every width, and say how σ_top goes with η, ω and the width."""
    torch.set_num_threads(threads)
    plan = QUICK if quick else DEFAULT
    experiments = plan.runs()
    # So that an interrupted experiment has said most of what it can.
    wanted = list(dict.fromkeys(run for runs in experiments.values() for run in runs))
    wanted.sort(key=lambda run: (not run.branch_norm, run.seed, run.width))
    out.mkdir(parents=True, exist_ok=True)
    done: dict[Settings, dict[str, Any]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("runs", total=len(wanted))
        for run in wanted:
            done[run] = kept(run, out)
            progress.advance(task)
    by_experiment = {name: [done[run] for run in runs] for name, runs in experiments.items()}
    results.mkdir(parents=True, exist_ok=True)
    found = summary(by_experiment, plan.noises, plan.base_width, plan.lr * plan.weight_decay)
    target = results / "width-synthetic"
    target.with_suffix(".json").write_text(as_json(found, list(done.values())))
    experiment = asdict(plan) | {
        "batch": BATCH,
        "burn_in": BURN_IN,
        "age": BURN_IN + WINDOW,
        "snapshots": SNAPSHOTS,
    }
    target.with_suffix(".md").write_text(page(found, experiment, list(done.values())))
    draw(found, target.with_suffix(".png"))
    print(f"written: {', '.join(str(target.with_suffix(end)) for end in ('.md', '.json', '.png'))}")


if __name__ == "__main__":
    app()
