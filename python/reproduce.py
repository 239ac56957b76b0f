"""The experiments of the papers, one command each: `python python/reproduce.py relaxation`."""

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from experiments import EXPERIMENTS, reconstruction, recovery
from experiments import page as results_page
from experiments.course import Course
from experiments.jobs import trained
from experiments.presets import PRESETS, PYTHIA_70M
from experiments.presets import preset as sized
from experiments.results import results_file, write_results
from recovery_accuracy import Plan

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "papers"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "python" / "README.md"
PLACES = ("out", "results", "page")
"""The options that say where, which change no number."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Preset = Annotated[str, typer.Option(help=f"one of {', '.join(PRESETS)}")]
Seeds = Annotated[str | None, typer.Option(help="parted by commas, instead of the experiment's")]
Steps = Annotated[int | None, typer.Option(min=20, help="of every run, instead of the preset's")]
Width = Annotated[int | None, typer.Option(min=8, help="instead of the preset's")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto, instead of the preset's")]
Only = Annotated[
    str,
    typer.Option(help="only the runs whose name, model-optimizer-dtype-η-ω-seed-steps-…, has this in it"),
]
Out = Annotated[Path, typer.Option(help="folder of the runs; those that are there are not made again")]
Results = Annotated[
    Path | None,
    typer.Option(
        help="folder of the numbers and the picture: benchmarks/results, or a folder in --out where the "
        "experiment is not run as it is meant"
    ),
]
Page = Annotated[
    Path | None, typer.Option(help="the page of all that is in --results: python/README.md, or beside them")
]


@app.callback()
def main() -> None:
    """The experiments of the papers: each ends with its numbers, a picture and its rows on one page."""


def command_of(experiment: Any) -> Callable[..., None]:
    """The command of an experiment that consists of training runs."""

    def command(
        context: typer.Context,
        preset: Preset = "cpu",
        seeds: Seeds = None,
        steps: Steps = None,
        width: Width = None,
        device: Device = None,
        only: Only = "",
        out: Out = RUNS,
        results: Results = None,
        page: Page = None,
    ) -> None:
        changed = any(each is not None for each in (seeds, steps, width, device)) or bool(only)
        places = placed(results, page, out, changed)

        def make() -> None:
            base = sized(preset, steps, width=width, device=device)
            jobs = experiment.jobs(base, experiment.SEEDS if seeds is None else numbers(seeds))
            chosen = [job for job in jobs if only in job.name]
            if not chosen:
                names = ", ".join(job.name for job in jobs)
                raise ValueError(f"no run has {only!r} in its name; they are {names}")
            courses = trained(chosen, out)
            found = experiment.findings(courses)
            leave(experiment, preset, found, ran_on(courses.values()), as_typed(context), places)

        guarded(make)

    command.__doc__ = experiment.__doc__
    return command


def placed(results: Path | None, page: Path | None, out: Path, changed: bool) -> tuple[Path, Path]:
    """Where numbers and page go: a trial at another size leaves alone what is in the repository."""
    if results is None:
        results = out / "results" if changed else RESULTS
    if page is None:
        page = PAGE if results.resolve() == RESULTS else results / "README.md"
    return results, page


def leave(
    experiment: Any,
    preset: str,
    found: dict[str, Any],
    machines: list[str],
    command: str,
    places: tuple[Path, Path],
) -> None:
    """Write the numbers, the picture and the page, and print the section."""
    results, page = places
    path = results_file(results, experiment.NAME, preset)
    write_results(path, found, command=command, preset=preset, machines=machines)
    result = results_page.Result.load(path)
    result.draw()
    results_page.write(results, page)
    typer.echo(f"{results_page.table([result])}\n\n{result.section(page)}\n")
    typer.echo(f"numbers {path}\npicture {result.picture}\npage    {page}")


def ran_on(courses: Iterable[Course]) -> list[str]:
    """The machines of the runs, each once."""
    return list(dict.fromkeys(course.summary["machine"] for course in courses))


def guarded(make: Callable[[], None]) -> None:
    """Errors in a line, and Ctrl-C in order."""
    try:
        make()
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: whole runs are kept, and the same command goes on", err=True)
        raise typer.Exit(130) from None


def numbers(given: str) -> tuple[int, ...]:
    """Of an option, parted by commas."""
    try:
        return tuple(int(part) for part in given.split(","))
    except ValueError:
        raise ValueError(f"seeds must be whole numbers parted by commas, got {given!r}") from None


def as_typed(context: typer.Context) -> str:
    """The command that is running, for the files that it leaves, without the options that say where."""
    given = {name: value for name, value in context.params.items() if name not in PLACES}
    usual = {option.name: option.default for option in context.command.params}
    options = [f"--{name}={value}" for name, value in given.items() if value != usual[name]]
    return shlex.join(["python", "python/reproduce.py", str(context.info_name), *options])


for each in EXPERIMENTS:
    if each is recovery:  # which has runs of its own
        continue
    app.command(each.NAME)(command_of(each))


@app.command("logs")
def read_logs(
    logs: Annotated[list[Path], typer.Argument(help="folders or files in the format of [W2]")],
    weight_decay: Annotated[float, typer.Option(help="ω of the runs")] = PYTHIA_70M.weight_decay,
    results: Results = None,
    page: Page = None,
) -> None:
    """The reconstruction offset in logs that were published, or that are of the published format."""
    places = placed(results, page, RUNS, changed=True)

    def make() -> None:
        found = reconstruction.findings_in_logs(logs, weight_decay)
        # By their names, as where they lie differs from machine to machine.
        names = [run["name"] for run in found["runs"]]
        decay = [] if weight_decay == PYTHIA_70M.weight_decay else [f"--weight-decay={weight_decay:g}"]
        typed = shlex.join(["python", "python/reproduce.py", "logs", *decay, *names])
        leave(reconstruction, reconstruction.LOGS, found, [reconstruction.LOGS_FROM], typed, places)

    guarded(make)


@app.command(recovery.NAME, help=recovery.__doc__)
def recover(
    context: typer.Context,
    steps: Annotated[int, typer.Option(help="of every run")] = Plan.steps,
    runs: Annotated[int, typer.Option(help="how many of the runs")] = Plan.runs,
    width: Width = None,
    out: Out = ROOT / "runs" / "recovery",
    results: Results = None,
    page: Page = None,
) -> None:
    """Train, hide the optimizer, recover its forces by every method, and compare with the ledger."""

    def make() -> None:
        plan = Plan(steps, runs, width)
        places = placed(results, page, out, plan != Plan())
        found = recovery.findings(plan, out)
        recovery.write_tables(found, places[0])
        leave(recovery, "cpu", found, recovery.machines(found), as_typed(context), places)

    guarded(make)


@app.command("page")
def write_page(
    results: Results = None,
    page: Page = None,
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit code 1 if it would")] = False,
) -> None:
    """Write the page, and draw the pictures, from the numbers that are there."""
    results, page = placed(results, page, RUNS, changed=False)

    def make() -> None:
        found = results_page.results_in(results)
        if not found:
            raise ValueError(f"there are no files of numbers in {results}")
        if check:
            if not page.exists() or page.read_text() != results_page.whole(results, page):
                typer.echo(
                    f"{page} does not say what is in {results}: run python/reproduce.py page "
                    f"--results {results} --page {page}",
                    err=True,
                )
                raise typer.Exit(1)
            return
        for result in found:
            result.draw()
        results_page.write(results, page)

    guarded(make)


if __name__ == "__main__":
    app()
