"""The numbers of a page as cells of tables, and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..budget import ForceBudget
from ..phases import BALANCED, RunSummary
from ..tables import NOTHING
from .runs import Group, Run, last_known

_SYMBOLS = {"scale": "λ", "rms": "σ", "norm": "‖w‖"}
_TARGETS = {
    "scale": "λ, the scale of the Weibull fit of |w|",
    "rms": "σ = √(‖w‖²/n), the typical size of a weight",
    "norm": "‖w‖, the norm",
}


@dataclass(frozen=True)
class Fact:
    """A number of a run and, in a line, what it means."""

    label: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Headings, each with what it means, and rows of cells; the first column is of names."""

    headings: list[tuple[str, str]]
    rows: list[list[Cell]]

    @property
    def words(self) -> list[bool]:
        """Which columns are of words; the others are of numbers."""
        columns = zip(*self.rows, strict=True)
        return [any(cell.value is None and cell.text != NOTHING for cell in column) for column in columns]


def facts(run: Run) -> list[Fact]:
    """The run in a few numbers, of its main group."""
    group, found = run.main, [_size(run), _coverage(run)]
    if run.gaps:
        found.append(
            Fact(
                "Not finite",
                f"{run.gaps:,} of {run.records.num_rows:,} rows",
                "Rows (a tensor at a record) with a force or norm that is infinite or not a number. They are "
                "gaps in the figures and left out of sums.",
            )
        )
    found += _summary_facts(group)
    whole = run.groups["all weights"].whole
    if whole.rounding is not None and whole.absolute > 0:
        found.append(
            Fact(
                "Rounding",
                f"{signed(whole.rounding / whole.absolute, '.1e')} of the budget",
                "Measured change of ‖w‖² minus the forces: what storing weights in few bits did. About 1e−7 "
                "or less for float32; where the rate comes near 0 the budget does too, and the part grows.",
            )
        )
    return found


def _size(run: Run) -> Fact:
    numel = np.nan_to_num(run.tensors.whole.numel).sum()
    tensors = f"{len(run.tensors.names):,} tensor{'s' * (len(run.tensors.names) != 1)}"
    main = "attention output and FFN, the transmission weights"
    of = f"{run.main.tensors:,} of them are {main}." if run.main.label != "all weights" else ""
    unknown = [
        name for name, role in zip(run.tensors.names, run.tensors.roles, strict=True) if role == "other"
    ]
    if unknown:
        of += f" Of {len(unknown):,} the role is not known ({', '.join(unknown[:3])}"
        of += f"{', …' * (len(unknown) > 3)}): wk.attach takes roles={{pattern: role}}."
    return Fact("Weights", f"{numel:,.0f} in {tensors}", of)


def steps_of_records(run: Run) -> np.ndarray:
    """How many optimizer steps each record covers, [T]."""
    return np.asarray(np.max(run.tensors.sums.steps, axis=0))


def _coverage(run: Run) -> Fact:
    step, steps = run.tensors.step, steps_of_records(run)
    records = f"{len(step):,} record{'s' * (len(step) != 1)} to step {step[-1]:,}"
    spanned, covered = step[-1] - step[0] + steps[0], steps.sum()
    if covered < spanned:
        return Fact(
            "Recorded",
            records,
            f"They measure {covered:,.0f} of {spanned:,.0f} steps, {covered / spanned:.1%}, from the first "
            "on; averages stand for the rest.",
        )
    usual = "one a step" if steps.max() <= 1 else f"each the exact sum over {np.median(steps):,.0f} steps"
    usual += " as a rule" if steps.min() < steps.max() else ""
    return Fact("Recorded", records, f"{usual}: no step is left out.".capitalize())


def _summary_facts(group: Group) -> list[Fact]:
    run = group.summary
    if run is None:
        return []
    symbol, (of, end) = _SYMBOLS[run.target], (group.label, group.known[-1])
    net = group.mean.predicted_change[end] / group.mean.absolute[end] if group.mean.absolute[end] else 0.0
    ends = "at the peak to the end" if run.final_over_peak >= 0.995 else "past the peak and smaller"
    rate = "" if group.rates_recorded else " (read off the decay: the records have no rates)"
    return [
        Fact(
            f"Peak of {symbol}",
            f"{run.peak:.4g} at step {run.peak_step:,}",
            f"Of {'the ' * (of != 'all weights')}{of}: {_TARGETS[run.target]}.",
        ),
        Fact(
            f"Final {symbol} over peak",
            f"{run.final_over_peak:.1%}",
            f"{ends.capitalize()}: under 100% the weights have relaxed.",
        ),
        Fact(
            "At the end",
            f"{group.phases[end]}, net {signed(net, '.0%')}",
            f"Net force over the budget |alignment| + |injection| + |decay|. Within ±{BALANCED:.0%} growth "
            "and decay balance.",
        ),
        Fact(
            "Alignment over decay",
            f"{ratio(run.alignment_over_decay_at_end)} at the end, "
            f"{ratio(run.alignment_over_decay_at_peak)} at the peak",
            "Over 1 updates along the weights grow them faster than weight decay takes.",
        ),
        Fact(
            "Time constant τ",
            steps_in_words(group.tau),
            f"1/(ηω) at the highest learning rate: the steps over which weight decay forgets{rate}.",
        ),
        Fact(
            "Age Ση·ω",
            f"{run.effective_age:.3g} τ",
            "Length of the run in time constants; it takes about 3 to reach equilibrium.",
        ),
        Fact(
            "The forces point to",
            f"{ratio(run.equilibrium_over_final)} the present ‖w‖",
            "Where the last forces would balance, if rate and gradients stayed as they are.",
        ),
    ]


def groups_table(run: Run) -> Table:
    """Every group of tensors in a row."""
    fitted = any(group.k is not None for group in run.groups.values())
    headings = [
        ("group", "tensors of one role, or of several together"),
        ("tensors", "how many"),
        *_SHARES,
        ("phase at end", "plateau, rise, overshoot, relaxation or balance"),
        *_SIGMAS,
        *([("k end", "of the Weibull fit, the last one"), ("λ end", "as k")] if fitted else []),
        ("peak", "of λ where it is fitted, else of σ"),
        ("at step", "of the peak"),
        ("final/peak", "1 where it rises to the end"),
        ("age", "Ση·ω over the run; about 3 is equilibrium"),
    ]
    rows = []
    for label, group in run.groups.items():
        summary, sigma = group.summary, group.sigma
        with np.errstate(invalid="ignore"):
            start = float(np.sqrt(group.sums.norm_sq[0] / group.sums.numel[0]))
        known = sigma[~np.isnan(sigma)]
        row = [Cell(label), number(group.tensors, ",.0f"), *_share_cells(group.whole)]
        row += [Cell(str(group.phases[-1])), *_sigma_cells(start, known[-1] if len(known) else math.nan)]
        if fitted:
            row += [number(_last_fit(fit), ".4g") for fit in (group.k, group.scale)]
        row += [_summary_cell(summary, *column) for column in _OF_GROUP]
        rows.append(row)
    return Table(headings, rows)


def runs_table(runs: list[Run], label: str) -> Table:
    """The summaries of several runs, each in a row, of one group of tensors."""
    columns = [
        ("peak", "peak", ".4g", "of λ where it is fitted, else of σ"),
        ("at step", "peak_step", ",.0f", "of the peak"),
        ("final", "final", ".4g", "after the last record"),
        ("final/peak", "final_over_peak", ".3f", "1 where it rises to the end"),
        ("|net| at end", "net_at_end", ".1%", "over the absolute budget; under 10% is balance"),
        ("alignment/decay", "alignment_over_decay_at_end", ".3f", "at the end; over 1 grows"),
        ("age", "effective_age", ".3g", "Ση·ω over the run; about 3 is equilibrium"),
        (
            "equilibrium",
            "equilibrium_over_final",
            ".3f",
            "‖w‖ that the last forces point to, over the present one",
        ),
    ]
    headings = [
        ("run", "record file"),
        ("steps", "the last one recorded"),
        ("phase at end", "as in the figures"),
    ]
    headings += [(heading, meaning) for heading, _, _, meaning in columns]
    headings.append(("τ", "1/(ηω) at the highest rate, steps"))
    rows = []
    for run in runs:
        group = run.groups.get(label)
        summary = None if group is None else group.summary
        row = [Cell(run.name), number(float(run.tensors.step[-1]), ",.0f")]
        row.append(Cell(NOTHING if group is None else str(group.phases[-1])))
        row += [_summary_cell(summary, name, digits) for _, name, digits, _ in columns]
        row.append(Cell(NOTHING) if group is None else number(group.tau, ",.0f"))
        rows.append(row)
    return Table(headings, rows)


def tensors_table(run: Run) -> Table:
    """Every tensor in a row."""
    tensors, whole = run.tensors, run.tensors.whole
    with np.errstate(invalid="ignore", divide="ignore"):
        start = np.sqrt(whole.norm_sq / whole.numel)
        after = np.sqrt(last_known(tensors.after) / whole.numel)
    headings = [
        ("tensor", "its name"),
        ("role", "told from the name"),
        ("entries", "how many weights"),
        *_SHARES,
        *([("rounding", "measured Δ‖w‖² − forces, of the budget")] if whole.rounding is not None else []),
        *_SIGMAS,
    ]
    named = {"k of role": tensors.k, "λ of role": tensors.scale}
    headings += [
        (name, "of the Weibull fit of the role, the last one")
        for name, column in named.items()
        if column is not None
    ]
    fits = [column for column in named.values() if column is not None]
    headings.append(("not finite", "entries that are infinite or not a number, after the last record"))
    rows = []
    for p, name in enumerate(tensors.names):
        one = whole.select([p])
        row = [Cell(name), Cell(tensors.roles[p].replace("_", " ")), number(one.numel[0], ",.0f")]
        row += _share_cells(one)
        if one.rounding is not None:
            row.append(_part(one.rounding[0], one.absolute[0], ".1e"))
        row += _sigma_cells(float(start[p]), float(after[p]))
        row += [number(column[p], ".4g") for column in fits]
        row.append(number(tensors.non_finite[p], ",.0f"))
        rows.append(row)
    return Table(headings, rows)


_SHARES = [
    ("alignment", "share of the absolute budget of the whole run"),
    ("injection", "share of the absolute budget of the whole run"),
    ("decay", "share of the absolute budget of the whole run"),
    ("net", "alignment + injection + decay + coupling, over the absolute budget of the whole run"),
]
_SIGMAS = [
    ("σ start", "before the first recorded step"),
    ("σ end", "after the last record"),
    ("end/start", "of σ"),
]


_OF_GROUP = (
    ("peak", ".4g"),
    ("peak_step", ",.0f"),
    ("final_over_peak", ".3f"),
    ("effective_age", ".3g"),
)


def _summary_cell(summary: RunSummary | None, name: str, digits: str) -> Cell:
    """A number of the summary; a peak with the symbol of what it is one of."""
    if summary is None:
        return Cell(NOTHING)
    cell = number(getattr(summary, name), digits)
    symbol = f"{_SYMBOLS[summary.target]} " if name in ("peak", "final") else ""
    return Cell(symbol + cell.text, cell.value)


def _last_fit(values: np.ndarray | None) -> float | None:
    return None if values is None else float(last_known(values[None, :])[0])


def _share_cells(total: ForceBudget) -> list[Cell]:
    parts = (total.alignment, total.injection, total.decay, total.predicted_change)
    whole = float(np.sum(total.absolute))
    return [_part(float(np.sum(part)), whole, ".1%") for part in parts]


def _part(part: float, whole: float, digits: str) -> Cell:
    if not whole > 0 or not math.isfinite(part):
        return Cell(NOTHING)
    return Cell(signed(part / whole, digits), part / whole)


def _sigma_cells(start: float, end: float) -> list[Cell]:
    over = end / start if start > 0 else math.nan
    return [number(start, ".4g"), number(end, ".4g"), number(over, ".3f")]


def number(value: Any, digits: str) -> Cell:
    """A cell of a number; a dash where it is not known."""
    if value is None or math.isnan(value):
        return Cell(NOTHING)
    return Cell("∞" if value == math.inf else format(value, digits), float(value))


def signed(value: float, digits: str) -> str:
    """With its sign, a true minus."""
    return format(value, f"+{digits}").replace("-", "−")


def ratio(value: float) -> str:
    """How many times."""
    return "∞ ×" if value == math.inf else f"{value:.3g} ×"


def steps_in_words(value: float) -> str:
    """A number of steps, which may be without end."""
    return "∞: no weight decay" if value == math.inf else f"{value:,.0f} steps"
