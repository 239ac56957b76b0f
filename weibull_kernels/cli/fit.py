"""`weibull-kernels fit`: a row for each tensor and each role, as a table and in files."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tables import NOTHING
from .files import WRITERS, CsvFile, JsonFile, check_files
from .terminal import (
    FAILED,
    first_few,
    one_line_if_it_fails,
    print_table,
    progress_of_bytes,
)

if TYPE_CHECKING:
    from ..stored_tensors import Checkpoint
    from ..survey import FittedRow, Survey


class Method(str, Enum):
    """The estimators of `fit_weibull`."""

    probability_plot = "probability_plot"
    log_moments = "log_moments"
    mle = "mle"


class By(str, Enum):
    """What has a row."""

    tensor = "tensor"
    role = "role"


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
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    parquet_file: Annotated[
        str | None, typer.Option("--parquet", metavar="FILE", help="write the rows")
    ] = None,
) -> None:
    """Fit Weibull distributions to the weights of checkpoints, tensor by tensor and role by role.

    Exits with 0, or with 2 where a path could not be read; the others are read all the same.
    """
    files = {"json": json_file, "csv": csv_file, "parquet": parquet_file}
    check_files(files, text=("json", "csv"))
    from ..checkpoints import open_checkpoint
    from ..survey import survey_checkpoint, to_arrow

    failed = 0
    opened: list[tuple[str, Checkpoint]] = []
    surveys: dict[str, Survey] = {}
    for path in dict.fromkeys(map(str, paths)):
        with one_line_if_it_fails(path) as outcome:
            opened.append((path, open_checkpoint(path)))
        failed += outcome.failed
    with progress_of_bytes(sum(checkpoint.nbytes for _, checkpoint in opened)) as advance:
        for path, checkpoint in opened:
            with one_line_if_it_fails(path) as outcome:
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
            with one_line_if_it_fails(file) as outcome:
                WRITERS[kind](to_arrow(rows), file)
            failed += outcome.failed
    if failed:
        raise typer.Exit(FAILED)


def _print_surveys(surveys: dict[str, Survey], method: Method, min_numel: int, *, with_path: bool) -> None:
    """The table of all of them, then what is not in it and why."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..tables import shown

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
    print_table(table)
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
        typer.echo(f"{label}too narrow for the histogram they are fitted from: {first_few([*survey.narrow])}")
    count, entries = survey.skipped
    if count:
        typer.echo(
            f"{label}skipped {count:,} tensors of fewer than {min_numel:,} entries, {entries:,} in all"
        )
    if left_out := [f"{name} ({why})" for name, why in survey.left_out.items()]:
        typer.echo(f"{label}left out {first_few(left_out)}")
    if unfitted := [f"{row.name}: {row.reason}" for row in survey.tensors or survey.roles if row.reason]:
        typer.echo(f"{label}no fit of {first_few(unfitted)}")


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
    yield from (NOTHING if number is None else format(number, digits) for number, digits in numbers)
    yield row.weight_class
