"""Records as lines on the console."""

from __future__ import annotations

import math

import rich
from rich.console import Console

from ..budget import Array, ForceBudget
from ..tables import NOTHING
from .live import RoleTotals


class ConsoleSink:
    """Prints one line per record: the forces on the transmission weights, on all where there are none.

    The forces are signed shares of the absolute budget in per cent, and so is their net; σ = √(‖w‖²/n) is
    that after the step. It fits 80 columns and needs no colour:

        step 1200  alignment +58.1 injection +3.2 decay -38.7 net +22.6 %  σ 0.04551

    Weights that are not finite, and tensors with forces that are not, are counted behind it.

    Args:
        console: a `rich.console.Console` to print through. Lines that go through the console of
            a progress bar, such as `progress.console`, stand above the bar. Where none is given it is
            rich's own, which its progress bars use too where they are given none.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = rich.get_console() if console is None else console

    def write(self, step: int, budget: ForceBudget, **scalars: Array) -> None:
        """Print the line of one record; the scalars are not on it."""
        line = console_line(step, RoleTotals(budget, scalars))
        # One line stays one, for whoever reads it with other programs; names and numbers are no markup.
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left to do."""

    def __repr__(self) -> str:
        return "ConsoleSink()"


def console_line(step: int, totals: RoleTotals) -> str:
    """What is printed of a record."""
    about = totals.metrics("transmission" if "transmission" in totals.rows else "all")
    words = [f"{force} {_percent(about[f'{force}_share'])}" for force in ("alignment", "injection", "decay")]
    net = _percent(about["net"] / about["absolute"] if about["absolute"] else math.nan)
    line = f"step {step}  {' '.join(words)} net {net} %  σ {_number(about['rms'])}"
    weights, tensors = totals.non_finite_weights, totals.non_finite_tensors
    parts = [f"{count:,} {what}" for count, what in ((weights, "weights"), (tensors, "forces")) if count]
    return f"{line}  not finite: {', '.join(parts)}" if parts else line


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:+.1f}"


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.4g}"
