"""Tables as plain text: the same in a terminal, a log and a test."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_WIDTH = 120
# Names are anyone's: brackets and colons in them are no markup.
PLAIN: dict[str, Any] = {
    **{"markup": False, "emoji": False, "highlight": False},
    **{"color_system": None, "force_terminal": False},
}
NOTHING = "–"
"""In a cell without a value."""


def columns_table(columns: Mapping[str, np.ndarray]) -> str:
    """Columns [P] by their headings, `name` first, as plain text; one of [P, c] is c columns."""
    flat: dict[str, np.ndarray] = {}
    for heading, values in columns.items():
        heading = "parameter" if heading == "name" else heading.replace("_", " ")
        if values.ndim == 1 or values.shape[1] == 1:
            flat[heading] = values.reshape(len(values))
        else:
            flat |= {f"{heading} {i + 1}": column for i, column in enumerate(values.T)}

    def cell(value: Any) -> str:
        return f"{value:,.4g}" if isinstance(value, (float, np.floating)) else shown(str(value))

    table = new_table(*flat)
    for row in zip(*flat.values(), strict=True):
        table.add_row(*map(cell, row))
    return plain_text(table)


def new_table(*headings: str) -> Table:
    """An empty table: words to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        # Numbers are never cut; the name of a tensor takes a second line where it must.
        name = heading in ("role", "parameter")
        words = name or heading in ("phase", "direction", "class")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not name, overflow="fold")
    return table


def plain_text(table: Table) -> str:
    """Without colours and at a fixed width: the same text in a terminal, a log and a test."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, **PLAIN).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def shown(name: str) -> str:
    r"""A name with what cannot be printed, such as control characters, escaped.

    >>> print(shown("a[bold]\n"))
    a[bold]\n
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name
    )
