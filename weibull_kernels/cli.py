"""The command `weibull-kernels`: fits of checkpoints, and what runs on this machine."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from .checkpoints import Checkpoint
    from .survey import FittedRow, Survey

app = typer.Typer(
    name="weibull-kernels",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Weibull fits of the weights in checkpoints.",
)

_FAILED = 2
_NOTHING = "–"
_NAMED = 3  # of a longer list
_UNBOUNDED = 10_000  # columns of text
_FOLDED = 20  # that a name keeps in a narrow terminal


class Method(str, Enum):
    """The estimators of `fit_weibull`."""

    probability_plot = "probability_plot"
    log_moments = "log_moments"
    mle = "mle"


class By(str, Enum):
    """What has a row."""

    tensor = "tensor"
    role = "role"


def main() -> None:
    """The entry point."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"weibull-kernels {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    paths: Annotated[
        list[Path],
        typer.Argument(help="safetensors files, folders of shards, .pt state_dicts", show_default=False),
    ],
    method: Annotated[Method, typer.Option(help="those of different methods cannot be compared")] = (
        Method.probability_plot
    ),
    by: Annotated[
        By, typer.Option(help="a row for each tensor, or the tensors of a role together")
    ] = By.tensor,
    min_numel: Annotated[int, typer.Option(min=0, help="skip tensors with fewer entries")] = 0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="write the rows; - is stdout, without the table"),
    ] = None,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="write the rows; - is stdout, without the table"),
    ] = None,
    parquet_file: Annotated[
        str | None, typer.Option("--parquet", metavar="FILE", help="write the rows")
    ] = None,
) -> None:
    """Fit Weibull distributions to the weights of checkpoints, tensor by tensor and role by role.

    Exits with 0, or with 2 where a path could not be read; the others are read all the same.
    """
    files = {"json": json_file, "csv": csv_file, "parquet": parquet_file}
    _check_files(files)
    from .checkpoints import open_checkpoint
    from .survey import survey_checkpoint

    failed = 0
    opened: list[tuple[str, Checkpoint]] = []
    surveys: dict[str, Survey] = {}
    for path in dict.fromkeys(map(str, paths)):
        with _one_line_if_it_fails(path) as outcome:
            opened.append((path, open_checkpoint(path)))
        failed += outcome.failed
    with _progress(sum(checkpoint.nbytes for _, checkpoint in opened)) as advance:
        for path, checkpoint in opened:
            with _one_line_if_it_fails(path) as outcome:
                surveys[path] = survey_checkpoint(
                    checkpoint,
                    path,
                    method=method.value,
                    by_tensor=by is By.tensor,
                    min_numel=min_numel,
                    on_read=advance,
                )
            failed += outcome.failed
    rows = [
        row for survey in surveys.values() for row in (survey.tensors if by is By.tensor else survey.roles)
    ]
    if surveys and "-" not in files.values():
        _print_surveys(surveys, method, min_numel, with_path=len(paths) > 1)
    for kind, file in files.items():
        if file is not None and surveys:  # else what is there may be better than nothing
            with _one_line_if_it_fails(file) as outcome:
                _WRITERS[kind](rows, file)
            failed += outcome.failed
    if failed:
        raise typer.Exit(_FAILED)


@app.command()
def doctor() -> None:
    """What runs on this machine, and why something does not."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from . import __version__
    from .dispatch import backends
    from .kernels import cpu

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    sets = cpu.instruction_sets() if cpu.unavailable() is None else []
    lines = [
        ("weibull-kernels", __version__),
        ("python", platform.python_version()),
        ("torch", str(torch.__version__)),
        ("triton", installed("triton") or "not installed"),
        ("processor", _processor()),
        ("instruction sets", f"{', '.join(sets)} (the first is used)" if sets else "no compiled extension"),
        ("threads", f"{torch.get_num_threads()}, as torch is set"),
        *[(f"gpu {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())],
    ]
    lines += [(f"backend {b.name}", str(b).removeprefix(b.name).strip()) for b in backends()]
    for package, purpose in _OPTIONAL.items():
        found = installed(package)
        lines.append((package, f"{found}, for {purpose}" if found else f"not installed; it is for {purpose}"))
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        typer.echo(f"{label:<{width}}  {value}")


_OPTIONAL = {
    "pandas": "to_pandas() of every result",
    "matplotlib": "the pictures of make demo",
    "pytest": "make test",
}


def _processor() -> str:
    import os
    import platform

    cpuinfo = Path("/proc/cpuinfo")  # on Linux alone; platform.processor() is empty there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


class _Outcome:
    failed = False


@contextmanager
def _one_line_if_it_fails(path: str) -> Iterator[_Outcome]:
    """Says on stderr, in one line, why a file could not be read or written, and goes on."""
    outcome = _Outcome()
    try:
        yield outcome
    except BrokenPipeError:  # the reader has what it wanted: click ends the program, quietly
        raise
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:  # of any library
        from .report import shown

        outcome.failed = True
        said = str(error) or type(error).__name__
        if isinstance(error, RuntimeError):
            said = " ".join(said.split())  # torch's are of many lines
        told, path = shown(said), shown(path)
        typer.echo(f"weibull-kernels: {told if path in told else f'{path}: {told}'}", err=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on stderr while it is a terminal; nothing in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _check_files(files: dict[str, str | None]) -> None:
    """Before anything is read: a model takes minutes."""
    if files["parquet"] == "-":
        raise typer.BadParameter("Parquet is not text; name a file", param_hint="--parquet")
    if files["json"] == files["csv"] == "-":
        raise typer.BadParameter("only one of --json and --csv can go to stdout")
    for kind, file in files.items():
        if file not in (None, "-") and not Path(str(file)).absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {Path(str(file)).parent}", param_hint=f"--{kind}")
        if file not in (None, "-") and Path(str(file)).is_dir():
            raise typer.BadParameter(f"{file} is a folder; name a file", param_hint=f"--{kind}")


def _write_json(rows: list[FittedRow], file: str) -> None:
    from .survey import to_arrow

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    found = [{name: finite(value) for name, value in row.items()} for row in to_arrow(rows).to_pylist()]
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if file == "-":
        typer.echo(text, nl=False)
    else:
        Path(file).write_bytes(text.encode())


def _write_csv(rows: list[FittedRow], file: str) -> None:
    import csv
    import dataclasses
    import io

    from .survey import to_arrow

    text = io.StringIO()
    table = to_arrow(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(map(dataclasses.astuple, rows))
    if file == "-":
        typer.echo(text.getvalue(), nl=False)
    else:
        Path(file).write_bytes(text.getvalue().encode())


def _write_parquet(rows: list[FittedRow], file: str) -> None:
    import pyarrow.parquet as pq

    from .survey import to_arrow

    pq.write_table(to_arrow(rows), file)


_WRITERS: dict[str, Callable[[list[FittedRow], str], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}


def _print_surveys(surveys: dict[str, Survey], method: Method, min_numel: int, *, with_path: bool) -> None:
    """The table of all of them, then what is not in it and why."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .report import shown

    headings = ["name", "role", "entries", "k", "λ", "σ", "λ/σ", "R²", "KS", "class"]
    headings = ["path", *headings] if with_path else headings
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        words = heading in ("path", "name", "role", "class")
        folds = heading in ("path", "name")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not folds, overflow="fold")
    for path, survey in surveys.items():
        of = [shown(path)] if with_path else []
        for row in survey.tensors:
            table.add_row(*of, *_cells(row, shown(row.name)))
        table.add_section()
        for row in survey.roles:
            many = f"{row.tensors:,} tensor{'s' * (row.tensors != 1)}"
            table.add_row(*of, *_cells(row, many))
        table.add_section()
    _print(table)
    typer.echo(f"\nby {method.value}; σ = √(‖w‖²/n); tensors of a role are taken together")
    for path, survey in surveys.items():
        _print_rest(f"{shown(path)}: " if with_path else "", survey, min_numel)


def _print_rest(label: str, survey: Survey, min_numel: int) -> None:
    if survey.tensors:
        exact = sum(row.route == "exact" for row in survey.tensors)
        rest = len(survey.tensors) - exact
        typer.echo(
            f"{label}fitted from all entries {exact:,} tensors, from histograms {rest:,} and the roles"
        )
    if survey.narrow:
        typer.echo(f"{label}too narrow for the histogram they are fitted from: {_some([*survey.narrow])}")
    count, entries = survey.skipped
    if count:
        typer.echo(
            f"{label}skipped {count:,} tensors of fewer than {min_numel:,} entries, {entries:,} in all"
        )
    if survey.left_out:
        typer.echo(f"{label}left out {_some([f'{name} ({why})' for name, why in survey.left_out.items()])}")
    if unfitted := [f"{row.name}: {row.reason}" for row in survey.tensors or survey.roles if row.reason]:
        typer.echo(f"{label}no fit of {_some(unfitted)}")


def _some(items: list[str]) -> str:
    """The first few, and how many more there are."""
    from .report import shown

    rest = f"; and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
    return "; ".join(map(shown, items[:_NAMED])) + rest


def _cells(row: FittedRow, name: str) -> Iterator[str]:
    yield from (name, row.role, f"{row.entries:,}")
    numbers: list[tuple[Any, str]] = [
        (row.k, ".4f"),
        (row.scale, "#.5g"),
        (row.rms, "#.5g"),
        (row.scale_over_rms, ".4f"),
        (row.r_squared, ".5f"),
        (row.ks, ".4f"),
    ]
    yield from (_NOTHING if number is None else format(number, digits) for number, digits in numbers)
    yield row.weight_class


def _print(table: Table) -> None:
    """As wide as the table needs; in a narrower terminal names fold, and numbers are still not cut."""
    import io
    import shutil

    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement

    from .report import PLAIN

    text = io.StringIO()
    console = Console(file=text, width=_UNBOUNDED, **PLAIN)
    width = Measurement.get(console, console.options, table).maximum
    if sys.stdout.isatty():
        names = [column for column in table.columns if not column.no_wrap]
        longest = [max(cell_len(str(cell)) for cell in column.cells) for column in names]
        least = width - sum(max(0, length - _FOLDED) for length in longest)
        width = min(width, max(least, shutil.get_terminal_size().columns))
    Console(file=text, width=width, **PLAIN).print(table)
    typer.echo("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n"))


if __name__ == "__main__":
    main()
