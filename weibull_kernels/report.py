"""Force budgets as printed tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from .budget import ForceBudget
from .phases import BALANCED, find_phases
from .records import force_series
from .roles import TRANSMISSION, in_order
from .tables import NOTHING, new_table, plain_text, shown


def budget_table(budget: ForceBudget) -> str:
    """The budget of the last step or steps by role, as plain text.

    A row for each role that occurs, in the order of `ROLES`, one for transmission (attention
    output and FFN matrices) and one for all; a single row where there is one tensor or no
    names. The forces are signed shares of the absolute budget in per cent, and so is `rounding`
    where the budget has it; Δ‖w‖² is the change that all of them make; σ = √(‖w‖²/n) is that
    before the first step; the direction is "holds" where the change is within a tenth of the
    absolute budget. Where the budget covers several steps, a line below says how many. Waits for
    the device.
    """
    budget = _flat(budget)
    shares = _SHARES[: 3 if budget.rounding is None else 4]
    table = new_table("role", "tensors", "entries", *shares, "Δ‖w‖²/‖w‖²", "σ", "direction")
    for label, rows in _groups(budget):
        if label == "transmission":
            table.add_section()
        part = _summed(budget, rows)
        relative = f"{_change(part) / part.norm_sq:+.2e}" if part.norm_sq > 0 else NOTHING
        entries = NOTHING if part.numel is None else f"{part.numel:,.0f}"
        sigma = _rms(part.norm_sq, part.numel)
        table.add_row(
            shown(label), str(len(rows)), entries, *_shares(part), relative, sigma, _direction(part)
        )
    return plain_text(table) + _covered(budget.steps)


def phase_table(records: pa.Table) -> str:
    """The budget of a run by role and by phase of training, as plain text.

    The phases are those of `find_phases` (plateau, rise, overshoot, relaxation, balance) along λ
    where the records have it and σ where not, for each role its own, in the order they first
    occur. The forces are those of the records in the phase, summed, as signed shares in per
    cent of their absolute budget, and so are their net and, where the records have it, `rounding`.
    `from` is the step of the first record in the phase, `of run` the part of the records in it (a
    phase that comes back is still one row), σ that after its last record. Where the records have
    columns `k` and `scale`, the Weibull shape and λ of the row's role, the last ones known in the
    phase stand beside σ; there are none of several roles together.

    Args:
        records: from `read_records`.

    Raises:
        ValueError: there are no records.
    """
    if records.num_rows == 0:
        raise ValueError("there are no records to make a table of; was the sink ever written to?")
    shares = _SHARES[: 3 if records["rounding"].null_count == records.num_rows else 4]
    fitted = {"k", "scale"} <= set(records.column_names)
    headings = (
        "from",
        "of run %",
        *shares,
        "net %",
        *(("k at end", "λ at end") if fitted else ()),
        "σ at end",
    )
    # On two lines each, so that all of them fit.
    folded = (heading.replace(" %", "\n%").replace(" at", "\nat") for heading in headings)
    table = new_table("role", "phase", *folded)
    present = in_order(records["role"].to_pylist())
    groups: list[tuple[str, tuple[str, ...]]] = [(role, (role,)) for role in present]
    if set(present) & set(TRANSMISSION):
        groups.append(("transmission", TRANSMISSION))
    for label, roles in [*groups, ("all", ())]:
        table.add_section()
        step, series = force_series(records, *roles)
        shape, scale = (role_series(records, label, column) if fitted else None for column in ("k", "scale"))
        phases = find_phases(step, series, scale)
        for phase in dict.fromkeys(phases.tolist()):
            rows = np.flatnonzero(phases == phase)
            part = _summed(series, rows)
            net = _percent(part.predicted_change, part.absolute)
            last = _summed(series, rows[-1:])
            sigma = _rms(last.norm_sq + _change(last), last.numel)
            fit = (
                []
                if shape is None or scale is None
                else [_last_known(shape, rows, 4), _last_known(scale, rows, 5)]
            )
            of_run = f"{100 * len(rows) / len(step):.0f}"
            table.add_row(shown(label), phase, str(step[rows[0]]), of_run, *_shares(part), net, *fit, sigma)
            label = ""  # said once
    return plain_text(table)


def role_series(records: pa.Table, role: str, column: str) -> np.ndarray:
    """A number that is the same for all tensors of a role, such as its `k` or `scale`, over the run.

    Args:
        records: from `read_records`.
        role: the rows of which to take; of one that no tensor has, nothing is known.
        column: of the records.

    Returns:
        float64 [T], a value for each step that `force_series(records, role)` has (each step of the
        records where no tensor has the role), NaN where none is known.

    Raises:
        KeyError: the records have no such column.
    """
    values = records[column].to_numpy(zero_copy_only=False).astype(np.float64)
    chosen = records["role"].to_numpy(zero_copy_only=False) == role
    step = records["step"].to_numpy()
    steps = np.unique(step[chosen] if chosen.any() else step)
    found = np.full(len(steps), np.nan)
    known = chosen & ~np.isnan(values)
    found[np.searchsorted(steps, step[known])] = values[known]
    return found


def _last_known(column: np.ndarray, rows: np.ndarray, digits: int) -> str:
    known = column[rows][~np.isnan(column[rows])]
    return f"{known[-1]:.{digits}f}" if len(known) else NOTHING


def _groups(budget: ForceBudget) -> list[tuple[str, np.ndarray]]:
    """Labels and the rows that belong to them."""
    every = np.arange(len(budget.alignment))
    if budget.names is None:
        return [("all", every)]
    if len(budget.names) == 1:
        return [(budget.names[0], every)]
    role = np.array(budget.roles)
    groups = [(label, np.flatnonzero(role == label)) for label in in_order(role)]
    transmission = np.flatnonzero(np.isin(role, TRANSMISSION))
    if len(transmission):
        groups.append(("transmission", transmission))
    return [*groups, ("all", every)]


_COLUMNS = ("alignment", "injection", "decay", "coupling", "rounding", "norm_sq", "numel")
_SHARES = ("alignment %", "injection %", "decay %", "rounding %")


def _flat(budget: ForceBudget) -> ForceBudget:
    """The columns that a table needs, numpy [P] whatever shapes they had."""
    columns = {name: value for name, value in budget.to_dict().items() if name in (*_COLUMNS, "steps")}
    broadcast = np.broadcast_arrays(*columns.values())
    flat: dict[str, Any] = {name: np.ravel(b) for name, b in zip(columns, broadcast, strict=True)}
    return ForceBudget(**flat, names=budget.names, role_overrides=budget.role_overrides)


def _summed(budget: ForceBudget, rows: np.ndarray) -> ForceBudget:
    """One budget of numbers: the sums over some rows."""
    columns = {name: getattr(budget, name) for name in _COLUMNS}
    return ForceBudget(**{n: None if column is None else column[rows].sum() for n, column in columns.items()})


def _shares(total: ForceBudget) -> list[str]:
    """Cells under `_SHARES`, three where there is no rounding."""
    shares = [_percent(force, total.absolute) for force in (total.alignment, total.injection, total.decay)]
    if total.rounding is None:
        return shares
    # Of bfloat16 weights a third of the budget, of float32 a billionth.
    small = 0 < abs(total.rounding) < 1e-3 * total.absolute
    return [*shares, _percent(total.rounding, total.absolute, "+.1e" if small else "+.1f")]


def _percent(part: float, whole: float, digits: str = "+.1f") -> str:
    return NOTHING if whole == 0 else format(100 * part / whole, digits)


def _rms(norm_sq: float, numel: float | None) -> str:
    return NOTHING if numel is None else f"{np.sqrt(norm_sq / numel):.5f}"


def _covered(steps: np.ndarray) -> str:
    """A line that says over how many steps the forces are summed; none where it is one."""
    least, most = (steps.min(), steps.max()) if len(steps) else (0, 0)
    if most <= 1:
        return ""
    return f"\n\nsums over {most if least == most else f'{least} to {most}'} steps of each tensor"


def _change(total: ForceBudget) -> float:
    """Δ‖w‖²: the measured one where there is one."""
    return float(total.predicted_change + (0 if total.rounding is None else total.rounding))


def _direction(total: ForceBudget) -> str:
    change = _change(total)
    if not np.isfinite(change):
        return "undefined"
    if total.absolute == 0:
        return "at rest"
    if abs(change) <= BALANCED * total.absolute:
        return "holds"
    return "grows" if change > 0 else "shrinks"
