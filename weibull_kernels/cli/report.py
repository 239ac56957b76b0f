"""`weibull-kernels report`: the records of one run or several as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .files import check_files
from .terminal import FAILED, one_line_if_it_fails


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="record files, such as ParquetSink writes", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the page; replaced where it is")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="of the page", show_default="the runs")] = None,
) -> None:
    """Show the records of a run, or of several side by side, as one HTML page that opens anywhere.

    The forces, σ and λ over the run, maps of the layers, rounding and closure, and a table of the tensors.
    Everything is in the one file. Exits with 0, or with 2 where a run could not be read.
    """
    check_files({"output": str(output)}, text=())
    with one_line_if_it_fails(", ".join(map(str, runs))) as outcome:
        try:
            from ..page import write_report

            write_report(runs, output, title=title)
        except ImportError as error:
            raise RuntimeError(str(error)) from None
        from ..tables import shown

        typer.echo(f"written: {shown(str(output))}")
    if outcome.failed:
        raise typer.Exit(FAILED)
