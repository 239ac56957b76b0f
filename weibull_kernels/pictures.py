"""Pictures of a run, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from .budget import ForceBudget
from .drawing import FORCES, MATRICES, VECTORS, per_step, rms, stretches
from .phases import find_phases, moving_average
from .records import force_series
from .report import role_series
from .roles import TRANSMISSION

# Backgrounds that differ in lightness too.
PHASES = {
    "plateau": "#EFEFEF",
    "rise": "#DCE9F5",
    "overshoot": "#FBF1CF",
    "relaxation": "#F6E3D3",
    "balance": "#FFFFFF",
    "undefined": "#DDDDDD",
}

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def draw_forces(records: pa.Table, path: Path, called: str = "Forces") -> None:
    """The three forces over the run and their shares, as a PNG.

    Of the transmission weights; of all where none of the tensors is one of them. A record stands at
    the middle of the steps that it covers. `called` begins the title.
    """
    roles, what = _shown_roles(records)
    step, sums = force_series(records, *roles)
    series = per_step(sums)
    middle = step - (np.broadcast_to(sums.steps, step.shape) - 1) / 2
    mean = moving_average(step, sums)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 7.5), layout="constrained")
        forces, shares = figure.subplots(2, sharex=True)
        for force, colour in FORCES.items():
            forces.plot(middle, getattr(series, force), color=colour, linewidth=0.6, alpha=0.35)
            forces.plot(middle, getattr(mean, force), color=colour, linewidth=2, label=force)
            shares.plot(middle, getattr(series.shares(), force), color=colour, linewidth=0.6, alpha=0.35)
            shares.plot(middle, getattr(mean.shares(), force), color=colour, linewidth=2)
        net = mean.predicted_change
        forces.plot(middle, net, color="black", linewidth=1.5, linestyle="--", label="net")
        shares.plot(middle, net / mean.absolute, color="black", linewidth=1.5, linestyle="--")

        # Logarithmic both ways from a tenth of the largest budget on, linear through zero.
        decade = np.floor(np.log10(max(float(np.nanmax(mean.absolute)), 1e-300)))
        forces.set_yscale("symlog", linthresh=10.0 ** (decade - 1))
        forces.set_ylabel("contribution to Δ‖w‖², mean per step")
        forces.set_title(f"{called} on {what}", pad=22)
        shares.set_ylim(-1, 1)
        shares.yaxis.set_major_formatter(PercentFormatter(1))
        shares.set_ylabel("share of the absolute budget")
        shares.set_xlabel(
            "optimizer step   (thin: mean of the steps of a record; thick: over 5 % of the run)"
        )
        figure.legend(loc="outside lower center", ncols=4)
        for axes in (forces, shares):
            axes.axhline(0, color="black", linewidth=0.6)
            shade_phases(axes, step, sums, named=axes is forces)
        figure.savefig(path)


def _shown_roles(records: pa.Table) -> tuple[tuple[str, ...], str]:
    if set(TRANSMISSION) & set(records["role"].to_pylist()):
        return TRANSMISSION, "the transmission weights (attention output, FFN)"
    return (), "all weights"


def draw_sigma(records: pa.Table, path: Path) -> None:
    """σ of each role over the run, and λ where the records have it, as a PNG.

    The phases of the transmission weights are shaded.
    """
    step, transmission = force_series(records, *TRANSMISSION)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 8), layout="constrained")
        matrices, vectors, rate = figure.subplots(3, sharex=True, height_ratios=(5, 2.2, 1.3))
        draw_roles(matrices, records, MATRICES)
        matrices.plot(
            step, rms(transmission), color="black", linewidth=1.2, linestyle=":", label="transmission"
        )
        fitted = "scale" in records.column_names
        lines = "σ and Weibull scale λ" if fitted else "Root mean square"
        matrices.set_title(f"{lines} of the weights; phases of the transmission weights", pad=22)
        matrices.set_ylabel("σ = √(‖w‖²/n), and λ, of matrices" if fitted else "σ = √(‖w‖²/n) of matrices")
        draw_roles(vectors, records, VECTORS)
        vectors.set_ylabel("σ of vectors")
        first = records["name"].to_numpy(zero_copy_only=False) == records["name"][0].as_py()
        rate.plot(step, records["lr"].to_numpy()[first], color="black")
        rate.set_ylim(bottom=0)
        rate.set_ylabel("learning rate")
        rate.set_xlabel("optimizer step")
        for axes in (matrices, vectors):
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in (matrices, vectors, rate):
            shade_phases(axes, step, transmission, named=axes is matrices)
        figure.savefig(path)


def draw_roles(axes: Axes, records: pa.Table, colours: dict[str, str]) -> None:
    """A line of σ for each role that occurs, on a logarithmic axis with plain numbers.

    And a dashed one of λ in the same colour through the records that have it.
    """
    present = set(records["role"].to_pylist())
    dashed = False
    for role, colour in colours.items():
        if role in present:
            step, series = force_series(records, role)
            axes.plot(step, rms(series), color=colour, linewidth=2, label=role.replace("_", " "))
            if "scale" in records.column_names:
                scale = role_series(records, role, "scale")
                known = ~np.isnan(scale)
                axes.plot(step[known], scale[known], color=colour, linewidth=1.5, linestyle="--")
                dashed |= bool(known.any())
    if dashed:
        axes.plot([], [], color="#444444", linewidth=1.5, linestyle="--", label="λ")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def shade_phases(axes: Axes, step: np.ndarray, series: ForceBudget, *, named: bool) -> None:
    """A background for each stretch of one phase; its name above where there is room."""
    # A record is of the steps up to its own.
    edges = np.append(step - series.steps, step[-1])
    run = edges[-1] - edges[0]
    for phase, start, stop in stretches(edges, find_phases(step, series)):
        axes.axvspan(start, stop, color=PHASES[phase], linewidth=0, zorder=-1)
        if named and stop - start > 0.1 * run:
            place: dict[str, Any] = {
                "x": (start + stop) / 2,
                "y": 1.01,
                "transform": axes.get_xaxis_transform(),
            }
            axes.text(s=phase, ha="center", va="bottom", color="#444444", **place)
    if run:
        axes.set_xlim(edges[0], edges[-1])
