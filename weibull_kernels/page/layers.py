"""Which layer a tensor is of, and heat maps of layers over the run and over the kinds of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..budget import ForceBudget
from ..phases import WINDOW
from .bins import bin_edges, bin_ends, bin_starts, binned
from .runs import Tensors, finite, first_known
from .theme import compact, plain

CELLS = 60_000
"""Of the maps of one quantity, at most: what a page can hold."""

BINS = 200
"""Of a map along the run, at most."""

NO_LAYER = "tensors outside the layers"

QUANTITIES = {
    "net": "net force, share of the budget",
    "alignment": "alignment, share of the budget",
    "sigma": "σ over σ at the start",
}

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


def layer_of(name: str) -> tuple[str, int | None]:
    """The kind of a tensor, its name with * for the layer, and the layer: the first integer in the name.

    >>> layer_of("model.layers.3.mlp.experts.7.w1.weight")
    ('model.layers.*.mlp.experts.7.w1.weight', 3)
    >>> layer_of("embed_out.weight")
    ('embed_out.weight', None)
    """
    found = _NUMBER.search(name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}*{name[found.end() :]}", int(found[0])


def by_kind(names: tuple[str, ...]) -> dict[str, dict[int, int]]:
    """The row of each layer, by the kind of tensor, both in order; kinds without what they all begin with."""
    kinds: dict[str, dict[int, int]] = {}
    for row, name in enumerate(names):
        kind, layer = layer_of(name)
        if layer is not None:
            kinds.setdefault(kind, {})[layer] = row
    if len({kind.partition("*")[0] for kind in kinds}) > 1:  # such as an encoder and a decoder
        return {kind: dict(sorted(rows.items())) for kind, rows in kinds.items()}
    short = {kind: kind.partition("*")[2].removeprefix(".") or kind for kind in kinds}
    return {short[kind]: dict(sorted(rows.items())) for kind, rows in kinds.items()}


def quantities(sums: ForceBudget, after: np.ndarray, start: np.ndarray) -> dict[str, np.ndarray]:
    """What the maps show, by the keys of `QUANTITIES`, [P, B]; σ as the binary logarithm of the ratio."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {
            "net": finite(sums.predicted_change / sums.absolute),
            "alignment": finite(sums.shares().alignment),
            "sigma": finite(np.log2(after / start[:, None]) / 2),
        }


def over_run(tensors: Tensors) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The edges of the bins along the run, [B + 1], and the quantities in them, [P, B] each."""
    records = len(tensors.step)
    starts = bin_starts(records, max(1, min(BINS, CELLS // len(tensors.names))))
    first = tensors.step - np.asarray(tensors.sums.steps).max(axis=0)
    edges = bin_edges(np.append(first, tensors.step[-1]), starts)
    start = first_known(tensors.sums.norm_sq)
    return edges, quantities(binned(tensors.sums, starts), bin_ends(tensors.after, starts), start)


def at_end(tensors: Tensors) -> dict[str, np.ndarray]:
    """The quantities over the last records, within `WINDOW` of the run, [P] each."""
    step = tensors.step
    first = int(np.searchsorted(step, step[-1] - WINDOW * (step[-1] - step[0])))
    start = first_known(tensors.sums.norm_sq)
    last = binned(tensors.sums, np.array([first]))
    found = quantities(last, tensors.after[:, -1:], start)
    return {name: values[:, 0] for name, values in found.items()}


def run_maps(tensors: Tensors) -> dict[tuple[str, ...], Any]:
    """A map of layers over the run for each quantity and kind of tensor."""
    edges, found = over_run(tensors)
    kinds = by_kind(tensors.names)
    figures: dict[tuple[str, ...], Any] = {}
    for quantity, values in found.items():
        limit = _limit(quantity, values)
        for kind, rows in kinds.items():
            part = values[list(rows.values())]
            figures[quantity, kind] = _map(quantity, edges, _numbered(rows), part, limit)
        outside = [row for row, name in enumerate(tensors.names) if layer_of(name)[1] is None]
        if outside:
            names = [tensors.names[row] for row in outside]
            figures[quantity, NO_LAYER] = _map(quantity, edges, names, values[outside], limit)
    return figures


def end_maps(tensors: Tensors) -> dict[tuple[str, ...], Any]:
    """A map of layers over kinds of tensors at the end of the run for each quantity; none without layers."""
    kinds = by_kind(tensors.names)
    if not kinds:
        return {}
    layers = sorted({layer for rows in kinds.values() for layer in rows})
    figures: dict[tuple[str, ...], Any] = {}
    for quantity, values in at_end(tensors).items():
        table = np.full((len(layers), len(kinds)), np.nan)
        for column, rows in enumerate(kinds.values()):
            table[np.searchsorted(layers, list(rows)), column] = values[list(rows.values())]
        figure = _map(
            quantity, [plain(kind) for kind in kinds], _numbered(layers), table, _limit(quantity, values)
        )
        figure.update_xaxes(title_text="", tickangle=-40, type="category")
        figure.update_layout(height=figure.layout.height + 120)
        figures[(quantity,)] = figure
    return figures


def _numbered(layers: Mapping[int, int] | list[int]) -> list[str]:
    return [str(layer) for layer in layers]


def _map(quantity: str, x: Any, labels: list[str], values: np.ndarray, limit: float) -> Any:
    """Rows from top to bottom; x is the edges of the columns, or their names."""
    numbers = labels[0].isdigit()
    bar: dict[str, Any] = {
        **{"orientation": "h", "thickness": 10, "outlinewidth": 0, "len": 0.5},
        **{"x": 1, "xanchor": "right", "xpad": 0, "y": 1, "yanchor": "bottom", "ypad": 6},
        "tickvals": [-limit, 0, limit],
    }
    hover = (
        f"<extra></extra>{'' if isinstance(x, list) else 'step '}%{{x}}<br>"
        + ("layer %{y}" if numbers else "%{y}")
        + "<br>"
    )
    trace: dict[str, Any] = {"z": compact(values), "y": [plain(label) for label in labels]}
    if quantity == "sigma":
        bar["ticktext"] = [f"×{2.0**tick:.3g}" for tick in (-limit, 0, limit)]
        trace["customdata"] = compact(2.0**values)
        hover += "σ × %{customdata:.4g}"
    else:
        bar["tickformat"] = ".0%"
        hover += "%{z:+.1%}"
    heat = go.Heatmap(
        **trace,
        x=x if isinstance(x, list) else compact(x),
        zmin=-limit,
        zmax=limit,
        colorbar=bar,
        hovertemplate=hover,
        hoverongaps=False,
    )
    figure = go.Figure(heat)
    figure.update_layout(
        template=None,
        height=140 + int(np.clip(len(labels) * 22, 90, 480)),
        margin={"l": 12, "r": 20, "t": 40, "b": 12},
        plot_bgcolor="rgba(128,128,128,0.35)",  # shows through where there is no number
    )
    figure.update_xaxes(title_text="optimizer step", showgrid=False, zeroline=False)
    figure.update_yaxes(
        title_text="layer" if numbers else "", type="category", autorange="reversed", showgrid=False
    )
    return figure


def _limit(quantity: str, values: np.ndarray) -> float:
    """The end of the colours, both ways, the same for every kind: a round number that nothing is beyond."""
    largest = float(np.nanmax(abs(values), initial=0.0))
    steps = (0.25, 0.5, 1.0) if quantity != "sigma" else (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    return next((step for step in steps if largest <= step), max(largest, steps[-1]))
