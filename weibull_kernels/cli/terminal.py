"""What the commands share: errors in one line, progress, and tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

FAILED = 2
"""The exit code where something could not be read or written."""

_NAMED = 3  # of a longer list
_UNBOUNDED = 10_000  # columns of text
_FOLDED = 20  # that a name keeps in a narrow terminal


class Outcome:
    """Of one path: whether it failed."""

    failed = False


@contextmanager
def one_line_if_it_fails(path: str) -> Iterator[Outcome]:
    """Says on stderr, in one line, why a file could not be read or written, and goes on."""
    outcome = Outcome()
    try:
        yield outcome
    except BrokenPipeError:  # the reader has what it wanted: click ends the program, quietly
        raise
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:  # of any library
        from ..tables import shown

        outcome.failed = True
        said = str(error) or type(error).__name__
        if isinstance(error, RuntimeError):
            said = " ".join(said.split())  # torch's are of many lines
        told, path = shown(said), shown(path)
        typer.echo(f"weibull-kernels: {told if path in told else f'{path}: {told}'}", err=True)


@contextmanager
def progress_of_bytes(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while it is a terminal, nothing in a log; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def named_patterns(given: list[str] | None, option: str) -> dict[str, str]:
    """What an option says of patterns, PATTERN=VALUE each."""
    found = {}
    for one in given or ():
        pattern, equals, value = one.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"expected PATTERN={option[2:].upper()}, got {one!r}", param_hint=option)
        found[pattern] = value
    return found


def first_few(items: list[str]) -> str:
    """The first few, and how many more there are."""
    from ..tables import shown

    rest = f"; and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
    return "; ".join(map(shown, items[:_NAMED])) + rest


def print_table(table: Table) -> None:
    """As wide as the table needs; in a narrower terminal names fold, and numbers are still not cut.

    Names are the columns that may wrap (`no_wrap=False`).
    """
    import io
    import shutil

    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement

    from ..tables import PLAIN

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
