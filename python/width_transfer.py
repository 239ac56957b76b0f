"""Whether the lr and weight decay of a narrow model hold on a wide one, by the rules of [F].

LLaMA-style models are trained on bytes of real text. A sweep of lr and decay at the smallest width finds
η* and ω*; at the other widths a grid of lrs at ω* is carried over by three rules of how the decay goes
with the width. All matrices have lr ∝ 1/width, all vectors a constant lr and no decay.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings as TrainingSettings
from text import library_source
from torch import Tensor
from width_training import Settings, train
from width_transfer_findings import Findings, proxy_optimum
from width_transfer_pictures import draw_transfer
from width_transfer_report import page

import weibull_kernels as wk
from weibull_kernels.processor import processor_name

VARIED = ("width", "rule", "lr", "weight_decay", "seed")  # from run to run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Records:
    """Finished runs, a line each in a file that is only appended to."""

    path: Path
    rows: dict[Settings, dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> "Records":
        """Those of the file, if it is there. A last line that was cut off is forgotten."""
        rows = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                if number < len(lines) - 1:
                    raise ValueError(
                        f"{path}, line {number + 1}: not JSON; take the line out, its run is then repeated"
                    ) from None
                break
            rows[Settings(**row.pop("settings"))] = row
        if lines:
            path.write_text("".join(_line(settings, row) for settings, row in rows.items()))
        return cls(path, rows)

    def add(self, settings: Settings, row: dict[str, Any]) -> None:
        """Keep a run."""
        self.rows[settings] = row
        with self.path.open("a") as file:
            file.write(_line(settings, row))


def _line(settings: Settings, row: dict[str, Any]) -> str:
    return json.dumps({"settings": asdict(settings)} | row) + "\n"


@dataclass(frozen=True)
class Plan:
    """Which runs there are: widths with their numbers of seeds, smallest first, lrs and decays."""

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    widest_lrs: int
    steps: int
    batch: int

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths must be two or more, smallest first, got {self.widths}")
        if len(self.seeds) != len(self.widths) or min(self.seeds) < 1:
            raise ValueError(f"seeds must be a number for each of the widths {self.widths}, got {self.seeds}")
        if len(self.lrs) < 3 or list(self.lrs) != sorted(set(self.lrs)):
            raise ValueError(f"lrs must be three or more, smallest first, got {self.lrs}")
        if not 3 <= self.widest_lrs <= len(self.lrs):
            raise ValueError(f"widest_lrs must be from 3 to the {len(self.lrs)} lrs, got {self.widest_lrs}")

    def sweep(self) -> Iterator[Settings]:
        """Every lr and decay at the smallest width."""
        for seed in range(self.seeds[0]):
            for weight_decay in self.decays:
                for lr in self.lrs:
                    yield self.of(width=self.widths[0], lr=lr, weight_decay=weight_decay, seed=seed)

    def carried(self, lr: float, weight_decay: float) -> Iterator[Settings]:
        """The lrs at the wider widths by each rule, at the widest only those nearest; seed after seed."""
        near = sorted(self.lrs, key=lambda other: abs(math.log(other / lr)))[: self.widest_lrs]
        for seed in range(max(self.seeds)):
            for width, seeds in zip(self.widths[1:], self.seeds[1:], strict=True):
                if seed < seeds:
                    for each in sorted(near) if width == self.widths[-1] else self.lrs:
                        for rule in wk.scaling.RULES:
                            yield self.of(
                                width=width, lr=each, weight_decay=weight_decay, rule=rule, seed=seed
                            )

    def decays_below(self, lr: float, weight_decay: float) -> Iterator[Settings]:
        """Less decay than ω* at η* and the wider widths, held constant; the rules have that and more."""
        for seed in range(max(self.seeds)):
            for width, seeds in zip(self.widths[1:], self.seeds[1:], strict=True):
                for each in self.decays if seed < seeds else ():
                    if each < weight_decay:
                        yield self.of(width=width, lr=lr, weight_decay=each, rule="constant", seed=seed)

    def of(self, **settings: Any) -> Settings:
        """One run of it."""
        return Settings(
            **settings,
            base_width=self.widths[0],
            steps=self.steps,
            batch=self.batch,
            warmup=self.steps // 24,
            cooldown=self.steps // 6,
        )


def run_all(
    runs: Iterable[Settings], records: Records, text: Tensor, device: torch.device, called: str
) -> None:
    """Train those that are not there."""
    missing = [settings for settings in runs if settings not in records.rows]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(called, total=len(missing))
        for settings in missing:
            records.add(settings, train(settings, text, device))
            progress.advance(task)


def machine(device: torch.device) -> str:
    """What the runs ran on, for the page."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def numbers(given: str, kind: type = float) -> tuple[Any, ...]:
    """Of an option, parted by commas."""
    try:
        return tuple(kind(part) for part in given.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers parted by commas, got {given!r}") from None


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of the runs; those that are there are not repeated")] = (
        Path("runs/width-transfer")
    ),
    results: Annotated[Path, typer.Option(help="folder of the table, the numbers and the picture")] = Path(
        "benchmarks/results"
    ),
    widths: Annotated[str, typer.Option(help="multiples of 16; the first is the proxy's")] = "32,64,128,256",
    seeds: Annotated[str, typer.Option(help="how many for each width")] = "3,3,2,2",
    log2_lrs: Annotated[str, typer.Option(help="the grid of η, its logarithms")] = "-9,-8,-7,-6,-5",
    decays: Annotated[str, typer.Option(help="the grid of ω at the first width")] = "0.05,0.2,0.8,3.2",
    widest_lrs: Annotated[int, typer.Option(help="how many lrs at the widest, around η*")] = 4,
    steps: Annotated[int, typer.Option(min=20, help="of every run")] = 600,
    batch: Annotated[int, typer.Option(min=1, help="windows of 64 bytes in a step")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
) -> None:
    """Tune a narrow model, carry over by each rule, and see whether the optimum stays."""
    try:
        plan = Plan(
            widths=numbers(widths, int),
            seeds=numbers(seeds, int),
            lrs=tuple(2.0**exponent for exponent in numbers(log2_lrs)),
            decays=numbers(decays),
            widest_lrs=widest_lrs,
            steps=steps,
            batch=batch,
        )
        experiment(plan, out, results, TrainingSettings(device=device).torch_device())
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def experiment(plan: Plan, out: Path, results: Path, device: torch.device) -> None:
    """Run what is missing, and write what all of it says."""
    text = library_source()
    out.mkdir(parents=True, exist_ok=True)
    records = Records.load(out / "runs.jsonl")
    sweep = list(plan.sweep())
    run_all(sweep, records, text, device, "tuning the proxy")
    lr, weight_decay = proxy_optimum({settings: records.rows[settings] for settings in sweep})
    carried = [*plan.carried(lr, weight_decay), *plan.decays_below(lr, weight_decay)]
    try:
        run_all(carried, records, text, device, "carrying over")
    except KeyboardInterrupt:
        typer.echo("interrupted: the results are of the runs that are there", err=True)
    planned = [settings for settings in sweep + carried if settings in records.rows]
    write(results, {settings: records.rows[settings] for settings in planned}, machine(device))


def write(results: Path, rows: dict[Settings, dict[str, Any]], ran_on: str) -> None:
    """The page, the numbers and the picture."""
    findings = Findings.of(rows)
    if not findings.rules:
        typer.echo("no wider model has the runs around η* yet; the same command goes on", err=True)
        raise typer.Exit(1)
    results.mkdir(parents=True, exist_ok=True)
    text = page(findings, ran_on)
    (results / "width-transfer.md").write_text(text)
    common = {name: value for name, value in asdict(next(iter(rows))).items() if name not in VARIED}
    runs = [
        {name: getattr(settings, name) for name in VARIED} | rounded(row) for settings, row in rows.items()
    ]
    summary = {"machine": ran_on, "settings": common} | rounded(findings.to_dict())
    # A line for each run: there are hundreds.
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    (results / "width-transfer.json").write_text(
        f'{json.dumps(summary, indent=1)[:-2]},\n "runs": [\n  {lines}\n ]\n}}\n'
    )
    draw_transfer(findings, results / "width-transfer.png")
    typer.echo(text)


def rounded(value: Any) -> Any:
    """Numbers to six digits, all the way down."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    app()
