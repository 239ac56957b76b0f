"""Force budgets as printed tables."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .budget import ForceBudget
from .phases import BALANCED, find_phases
from .records import force_series
from .roles import ROLES, TRANSMISSION

_WIDTH = 120
_NOTHING = "–"


def budget_table(budget: ForceBudget) -> str:
    """The budget of the last step or steps by role, as plain text.

    A row for each role that occurs, in the order of `ROLES`, one for transmission (attention
    output and FFN matrices) and one for all; a single row where there is one tensor or no
    names. The forces are signed shares of the absolute budget in per cent; Δ‖w‖² is the net
    change; σ = √(‖w‖²/n) is that before the step; the direction is "holds" where the net force
    is within a tenth of the absolute budget. Waits for the device.
    """
    table = _table(
        "role", "tensors", "entries", "alignment %", "injection %", "decay %", "Δ‖w‖²/‖w‖²", "σ", "direction"
    )
    budget = _flat(budget)
    for label, rows in _groups(budget):
        if label == "transmission":
            table.add_section()
        part = _summed(budget, rows)
        relative = f"{part.predicted_change / part.norm_sq:+.2e}" if part.norm_sq > 0 else _NOTHING
        entries = _NOTHING if part.numel is None else f"{part.numel:,.0f}"
        table.add_row(label, str(len(rows)), entries, *_shares(part), relative, _rms(part), _direction(part))
    return _plain(table)


def phase_table(records: pa.Table) -> str:
    """The budget of a run by role and by phase of training, as plain text.

    The phases are those of `find_phases`, for each role its own, in the order they first
    occur. The forces are those of the records in the phase, summed, as signed shares in per
    cent of their absolute budget. `from` is the first step in the phase, `of run` the part of
    the records in it (a phase that comes back is still one row), σ that of its last record.

    Args:
        records: from `read_records`.

    Raises:
        ValueError: there are no records.
    """
    if records.num_rows == 0:
        raise ValueError("there are no records to make a table of; was the sink ever written to?")
    table = _table(
        "role", "phase", "from", "of run %", "alignment %", "injection %", "decay %", "net %", "σ at end"
    )
    present = _in_order(records["role"].to_pylist())
    groups: list[tuple[str, tuple[str, ...]]] = [(role, (role,)) for role in present]
    if set(present) & set(TRANSMISSION):
        groups.append(("transmission", TRANSMISSION))
    for label, roles in [*groups, ("all", ())]:
        table.add_section()
        step, series = force_series(records, *roles)
        phases = find_phases(step, series)
        for phase in dict.fromkeys(phases.tolist()):
            rows = np.flatnonzero(phases == phase)
            part = _summed(series, rows)
            net = _percent(part.predicted_change, part.absolute)
            sigma = _rms(_summed(series, rows[-1:]))
            of_run = f"{100 * len(rows) / len(step):.0f}"
            table.add_row(label, phase, str(step[rows[0]]), of_run, *_shares(part), net, sigma)
            label = ""  # said once
    return _plain(table)


def _groups(budget: ForceBudget) -> list[tuple[str, np.ndarray]]:
    """Labels and the rows that belong to them."""
    every = np.arange(len(budget.alignment))
    if budget.names is None:
        return [("all", every)]
    if len(budget.names) == 1:
        return [(budget.names[0], every)]
    role = np.array(budget.roles)
    groups = [(label, np.flatnonzero(role == label)) for label in _in_order(role)]
    transmission = np.flatnonzero(np.isin(role, TRANSMISSION))
    if len(transmission):
        groups.append(("transmission", transmission))
    return [*groups, ("all", every)]


def _in_order(roles: Iterable[str]) -> list[str]:
    """The roles that occur, each once, in the order of `ROLES`; a user's own after them."""
    present = set(roles)
    return [role for role in ROLES if role in present] + sorted(present - set(ROLES))


_COLUMNS = ("alignment", "injection", "decay", "coupling", "norm_sq", "numel")


def _flat(budget: ForceBudget) -> ForceBudget:
    """The columns that a table needs, numpy [P] whatever shapes they had."""
    columns = {name: value for name, value in budget.to_dict().items() if name in _COLUMNS}
    broadcast = np.broadcast_arrays(*columns.values())
    flat: dict[str, Any] = {name: np.ravel(b) for name, b in zip(columns, broadcast, strict=True)}
    return ForceBudget(**flat, names=budget.names, role_overrides=budget.role_overrides)


def _summed(budget: ForceBudget, rows: np.ndarray) -> ForceBudget:
    """One budget of numbers: the sums over some rows."""
    columns = {name: getattr(budget, name) for name in _COLUMNS}
    return ForceBudget(**{n: None if column is None else column[rows].sum() for n, column in columns.items()})


def _shares(total: ForceBudget) -> list[str]:
    return [_percent(force, total.absolute) for force in (total.alignment, total.injection, total.decay)]


def _percent(part: float, whole: float) -> str:
    return _NOTHING if whole == 0 else f"{100 * part / whole:+.1f}"


def _rms(total: ForceBudget) -> str:
    return _NOTHING if total.numel is None else f"{np.sqrt(total.norm_sq / total.numel):.5f}"


def _direction(total: ForceBudget) -> str:
    if not np.isfinite(total.predicted_change):
        return "undefined"
    if total.absolute == 0:
        return "at rest"
    if abs(total.predicted_change) <= BALANCED * total.absolute:
        return "holds"
    return "grows" if total.predicted_change > 0 else "shrinks"


def _table(*headings: str) -> Table:
    """An empty table: words to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("role", "phase", "direction") else "right", no_wrap=True
        )
    return table


def _plain(table: Table) -> str:
    """Without colours and at a fixed width: the same text in a terminal, a log and a test."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
