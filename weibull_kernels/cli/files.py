"""The files that commands write: checked before anything is read, and tables in three formats."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pyarrow as pa


JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="write the rows; - is stdout, without the table")
]
CsvFile = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="write the rows; - is stdout, without the table")
]
"""Options of the commands that write rows."""


def check_files(files: Mapping[str, str | None], *, text: Collection[str]) -> None:
    """The files to write by their options, before anything is read: a model takes minutes.

    Those of `text` may be -, stdout, but only one of them at a time.
    """
    on_stdout = [kind for kind, file in files.items() if file == "-"]
    for kind in on_stdout:
        if kind not in text:
            raise typer.BadParameter(f"{kind.capitalize()} is not text; name a file", param_hint=f"--{kind}")
    if len(on_stdout) > 1:
        options = " and ".join(f"--{kind}" for kind in on_stdout)
        raise typer.BadParameter(f"only one of {options} can go to stdout")
    for kind, file in files.items():
        if file is None or file == "-":
            continue
        path = Path(file)
        if not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=f"--{kind}")
        if path.is_dir():
            raise typer.BadParameter(f"{file} is a folder; name a file", param_hint=f"--{kind}")


def _write_json(table: pa.Table, file: str) -> None:
    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    found = [{name: finite(value) for name, value in row.items()} for row in table.to_pylist()]
    _write(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", file)


def _write_csv(table: pa.Table, file: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(row.values() for row in table.to_pylist())
    _write(text.getvalue(), file)


def _write_parquet(table: pa.Table, file: str) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file)


def _write(text: str, file: str) -> None:
    if file == "-":
        typer.echo(text, nl=False)
    else:
        Path(file).write_bytes(text.encode())


WRITERS: dict[str, Callable[[pa.Table, str], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
"""Of a table, by format; - is stdout where that is text. What is not finite is null in JSON."""
