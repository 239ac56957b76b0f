"""What the figures look like, in a light and in a dark page."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..drawing import stretches

INK = "#808080"
"""Grey that stands out from a light and from a dark page."""

DASHES = {"alignment": "solid", "injection": "dot", "decay": "dashdot", "net": "dash"}
"""Forces are told apart without colour too."""

# Okabe and Ito's, in the order of runs; seven colours and five dashes go round 35 runs.
RUN_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", INK)
RUN_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

# See-through, so that they do for both pages.
PHASE_SHADES = {
    "plateau": "rgba(128,128,128,0.14)",
    "rise": "rgba(0,114,178,0.13)",
    "overshoot": "rgba(240,228,66,0.17)",
    "relaxation": "rgba(213,94,0,0.13)",
    "balance": "rgba(0,0,0,0)",
    "undefined": "rgba(128,128,128,0.34)",
}
_SHORT = 0.2  # of the run: a phase has no room for its name and goes into the legend


def templates() -> dict[str, Any]:
    """The layouts that every figure takes on, by theme."""
    return {
        "light": _template(text="#1f2328", grid="#e4e7eb", line="#9aa1a9", page="#ffffff", middle="#f4f4f2"),
        "dark": _template(text="#e3e6ea", grid="#30363d", line="#6e7681", page="#15181c", middle="#262a2f"),
    }


def _template(*, text: str, grid: str, line: str, page: str, middle: str) -> dict[str, Any]:
    axis = {
        "gridcolor": grid,
        "zerolinecolor": line,
        "linecolor": line,
        "tickcolor": line,
        "automargin": True,
        "title": {"standoff": 8},
    }
    diverging = [[0.0, "#D55E00"], [0.25, "#E08A47"], [0.5, middle], [0.75, "#4795C6"], [1.0, "#0072B2"]]
    return {
        "layout": {
            "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": page, "bordercolor": line, "font": {"color": text}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": line, "activecolor": text},
        },
        "data": {"heatmap": [{"colorscale": diverging, "autocolorscale": False}]},
    }


def rows(heights: list[float], pixels: int) -> Any:
    """An empty figure of several plots above one another, with one axis of steps."""
    gap = 34 / pixels
    figure = make_subplots(
        rows=len(heights), cols=1, shared_xaxes=True, vertical_spacing=gap, row_heights=heights
    )
    figure.update_layout(
        template=None,
        height=pixels,
        hovermode="x unified",
        margin={"l": 12, "r": 12, "t": 26, "b": 12},
        legend={"orientation": "h", "yanchor": "top", "y": -64 / pixels, "x": 0, "xanchor": "left"},
    )
    figure.update_xaxes(title_text="optimizer step", row=len(heights), col=1)
    return figure


def line(x: np.ndarray, y: np.ndarray, name: str, colour: str, **more: Any) -> Any:
    """A line with gaps where y is not finite."""
    style = {"color": colour, "width": more.pop("width", 2.2), "dash": more.pop("dash", "solid")}
    options = {"name": plain(name), "legendgroup": plain(name), "mode": "lines", "line": style}
    if len(x) == 1:  # a line of one point cannot be seen
        options |= {"mode": "markers", "marker": {"color": colour, "size": 7}}
        del options["line"]
    return go.Scatter(x=compact(x), y=compact(y), **options | more)


def shade_phases(figure: Any, edges: np.ndarray, phases: np.ndarray) -> None:
    """A background for each stretch of one phase over all plots; its name above where there is room."""
    run = float(edges[-1] - edges[0])
    found = list(stretches(edges, phases))
    named = {phase for phase, start, stop in found if stop - start > _SHORT * run}
    for phase in dict.fromkeys(phase for phase, _, _ in found if phase not in named | {"balance"}):
        square = {
            "symbol": "square",
            "size": 13,
            "color": PHASE_SHADES[phase],
            "line": {"width": 1, "color": INK},
        }
        figure.add_trace(
            go.Scatter(x=[None], y=[None], name=phase, mode="markers", marker=square), row=1, col=1
        )
    for phase, start, stop in found:
        figure.add_shape(
            type="rect",
            layer="below",
            line_width=0,
            fillcolor=PHASE_SHADES[phase],
            x0=float(start),
            x1=float(stop),
            y0=0,
            y1=1,
            xref="x",
            yref="paper",
        )
        if stop - start > _SHORT * run:
            figure.add_annotation(
                text=phase,
                x=float(start + stop) / 2,
                y=1,
                xref="x",
                yref="paper",
                yanchor="bottom",
                showarrow=False,
                font_size=11.5,
            )
    if run > 0:
        figure.update_xaxes(range=[float(edges[0]), float(edges[-1])])


def compact(values: np.ndarray) -> np.ndarray:
    """In four bytes, which is what a screen can show; what is not finite is NaN, which leaves a gap."""
    if np.issubdtype(values.dtype, np.integer) and (not values.size or abs(values).max() < 2**31):
        return values.astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        small = values.astype(np.float32)
    return np.where(np.isfinite(small), small, np.float32(np.nan))


def plain(text: str) -> str:
    """Text as it stands, in a figure that would read tags and entities."""
    return html.escape(text, quote=False)


def log_axis(figure: Any, row: int, title: str) -> None:
    """A logarithmic axis for what is drawn, with plain numbers where it spans one decade or two."""
    drawn = [np.asarray(trace.y, dtype=np.float64) for trace in figure.select_traces(row=row, col=1)]
    values = np.concatenate([*drawn, np.zeros(0)])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    axis: dict[str, Any] = {"exponentformat": "power"}
    if low >= 1e-4 and 8 < high / low < 200:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    elif high / low > 8:
        axis["dtick"] = math.ceil(math.log10(high / low) / 5)  # decades
    figure.update_yaxes(type="log", title_text=title, row=row, col=1, **axis)


def linear_below(largest: float) -> float:
    """Up to where an axis for numbers of both signs is linear: a tenth of the largest's decade."""
    return 10.0 ** (math.floor(math.log10(largest)) - 1) if largest > 0 else 1.0


def symlog(values: np.ndarray, linear: float) -> np.ndarray:
    """Logarithmic both ways from `linear` on, which lies at 1, and linear through zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.sign(values) * (1 + np.log10(abs(values) / linear))
    return np.where(abs(values) <= linear, values / linear, far)


def symlog_axis(linear: float, largest: float) -> dict[str, Any]:
    """Ticks at zero and the powers of ten up to the largest."""
    decades = max(1, math.ceil(math.log10(max(largest, linear) / linear)))
    powers = np.array([linear * 10.0**i for i in range(decades + 1)])
    ticks = np.concatenate((-powers[::-1], [0], powers))
    first = round(math.log10(linear))
    names = [f"10<sup>{str(first + i).replace('-', '−')}</sup>" for i in range(decades + 1)]
    return {
        "tickvals": symlog(ticks, linear).tolist(),
        "ticktext": [*(f"−{name}" for name in reversed(names)), "0", *names],
    }
