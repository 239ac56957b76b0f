"""Train a small GPT-NeoX on the source of Python's standard library with the force budget on."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Settings
from text import library_source
from torch import Tensor
from training import Run, train

import weibull_kernels as wk
from weibull_kernels.page import write_report
from weibull_kernels.pictures import draw_forces, draw_sigma
from weibull_kernels.records import force_series, read_records
from weibull_kernels.report import budget_table, phase_table
from weibull_kernels.sinks import ParquetSink

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEFAULT = Settings()


@app.command()
def main(
    steps: Annotated[int, typer.Option(help="optimizer steps")] = DEFAULT.steps,
    width: Annotated[int, typer.Option(help="of the residual stream")] = DEFAULT.width,
    layers: Annotated[int, typer.Option(help="transformer layers")] = DEFAULT.layers,
    heads: Annotated[
        int, typer.Option(help="attention heads; width must divide into even parts")
    ] = DEFAULT.heads,
    context: Annotated[int, typer.Option(help="bytes in a sequence")] = DEFAULT.context,
    batch: Annotated[int, typer.Option(help="sequences in a step")] = DEFAULT.batch,
    lr: Annotated[float, typer.Option(help="η at its peak")] = DEFAULT.lr,
    weight_decay: Annotated[float, typer.Option(help="ω, of matrices")] = DEFAULT.weight_decay,
    warmup: Annotated[
        int | None, typer.Option(help="steps of linear warm-up; a tenth of all by default")
    ] = DEFAULT.warmup,
    seed: Annotated[
        int, typer.Option(help="of the initial weights and the order of the text")
    ] = DEFAULT.seed,
    every: Annotated[int, typer.Option(help="steps from one record to the next")] = DEFAULT.every,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = DEFAULT.device,
    forces: Annotated[bool, typer.Option(help="measure the forces; without, only train")] = DEFAULT.forces,
    out: Annotated[Path, typer.Option(help="folder of the records and pictures")] = Path("runs/demo"),
) -> None:
    """Train a small language model and show which force moved its weights, and when.

    Leaves records.parquet, report.html, forces.png and sigma.png in --out; Ctrl-C keeps what there is.
    """
    try:
        settings = Settings(
            steps=steps,
            width=width,
            layers=layers,
            heads=heads,
            context=context,
            batch=batch,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            seed=seed,
            every=every,
            device=device,
            forces=forces,
        )
        demonstrate(settings, out)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def demonstrate(settings: Settings, out: Path) -> None:
    """Train under a progress bar, then print the tables, draw the pictures and write the report."""
    device = settings.torch_device()
    source = library_source()
    if not settings.forces:
        say_timing(train_with_bar(settings, source, None))
        return
    records_path = out / "records.parquet"
    with ParquetSink(records_path, asdict(settings) | {"device": str(device)}, overwrite=True) as sink:
        run = train_with_bar(settings, source, sink)
    records = read_records(records_path)
    if run.last_budget is None or records.num_rows == 0:
        print("stopped before the first record")
        return
    print(f"\nThe budget of the last record\n\n{budget_table(run.last_budget)}\n")
    print(f"The budget of the run by role and phase\n\n{phase_table(records)}\n")
    say_timing(run)
    say_closure(run, records)
    say_super_weights(run, records)
    draw_forces(records, out / "forces.png")
    draw_sigma(records, out / "sigma.png")
    write_report(records_path, out / "report.html")
    print(f"written: {records_path}, {out / 'forces.png'}, {out / 'sigma.png'}")
    print(f"open     {out / 'report.html'} in a browser: all of it as one page")


def train_with_bar(settings: Settings, source: Tensor, sink: ParquetSink | None) -> Run:
    """`train`, its progress shown."""
    words = TextColumn("training"), TextColumn("loss {task.fields[loss]:.3f} nats a byte")
    with Progress(words[0], BarColumn(), MofNCompleteColumn(), words[1], TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=settings.steps, loss=math.nan)
        run = train(
            settings, source, sink, lambda step, loss: progress.update(task, completed=step, loss=loss)
        )
    if run.interrupted:
        print(f"interrupted after step {run.step}; the records so far are kept")
    return run


def say_timing(run: Run) -> None:
    """What training costs, and draining and writing the ledger."""
    training, recording = (1e3 * clock.seconds / max(run.step, 1) for clock in (run.training, run.recording))
    print(f"training    {training:.1f} ms a step")
    if run.last_budget is not None:
        print(f"recording   {recording:.2f} ms a step, {100 * recording / training:.2f} % of the training")


def say_closure(run: Run, records: pa.Table) -> None:
    """What rounding did to ‖w‖² over the run, and what forces and rounding together leave open."""
    _, whole = force_series(records)
    rounding, closure = whole.rounding.sum() / whole.absolute.sum(), run.closure
    print(f"rounding    measured Δ‖w‖² − forces: {rounding:+.1e} of the absolute budget of the run")
    print(f"            and in a record at most {closure.of_bound:.2f} of what float32 entries may lose")
    print(f"closure     |forces + rounding − Δ‖w‖²| at most {closure.of_budget:.1e} of the absolute budget")


def say_super_weights(run: Run, records: pa.Table) -> None:
    """How much of the alignment in the rise hangs on a thousandth of the entries."""
    phases = dict(zip(*phases_of_transmission(records), strict=True))
    found = run.super_weights
    rise = [shares for step, shares in zip(found.steps, found.shares, strict=True) if phases[step] == "rise"]
    if not rise:
        return
    whole, left = (100 * sum(shares) / len(rise) for shares in zip(*rise, strict=True))
    print(f"alignment   {whole:+.1f} % of the transmission budget in the rise, {left:+.1f} % without the")
    print(f"            largest {100 * found.fraction:g} % of |w·u|: {left - whole:+.2f} points")


def phases_of_transmission(records: pa.Table) -> tuple[list[int], list[str]]:
    """The recorded steps and the phase of each."""
    step, series = force_series(records, *wk.TRANSMISSION)
    return step.tolist(), wk.find_phases(step, series).tolist()


if __name__ == "__main__":
    app()
