"""The figures of one run: forces, σ and λ, rounding and closure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..drawing import FORCES, MATRICES, VECTORS, per_step
from .bins import bin_edges, bin_ends, bin_starts, binned
from .closure import closure_residual, overall, rounding_share, worst
from .runs import Group, Tensors, finite
from .theme import (
    DASHES,
    INK,
    compact,
    line,
    linear_below,
    log_axis,
    rows,
    shade_phases,
    symlog,
    symlog_axis,
)

POINTS = 500
"""Of a line, at most."""

_OWN_ROLES = ("#8C564B", "#999933", "#44AA99", "#882255")  # of roles that are not the library's
_COLOURS = {role.replace("_", " "): colour for role, colour in (MATRICES | VECTORS).items()}
_COLOURS |= {"other": "#8C8C8C", "transmission weights": INK}
_VECTORS = {role.replace("_", " ") for role in VECTORS}


def forces_figure(group: Group) -> Any:
    """The forces of a step, and below their shares of the absolute budget, over the run.

    Thin the mean of each record, thick the moving average; the net dashed; phases shaded.
    """
    starts = bin_starts(len(group.step), POINTS)
    series = per_step(binned(group.sums, starts))
    raw = {force: finite(getattr(series, force)) for force in FORCES}
    mean = {force: at_bins(getattr(group.mean, force), starts) for force in FORCES}
    whole: np.ndarray = np.sum([abs(force) for force in mean.values()], axis=0)
    mean["net"] = at_bins(group.mean.predicted_change, starts)
    x = record_middles(group, starts)
    linear = linear_below(float(np.nanmax(whole, initial=0.0)))

    figure = rows([1.25, 1], 620)
    for force, values in mean.items():
        colour = FORCES.get(force, INK)
        style = {"dash": DASHES[force], "legendgroup": force}
        if force in raw:
            faint = {"width": 1, "opacity": 0.4, "showlegend": False, "hoverinfo": "skip", **style}
            faint["dash"] = "solid"
            with np.errstate(invalid="ignore", divide="ignore"):
                share = raw[force] / series.absolute
            figure.add_trace(line(x, symlog(raw[force], linear), force, colour, **faint), row=1, col=1)
            figure.add_trace(line(x, share, force, colour, **faint), row=2, col=1)
        hover = {"customdata": compact(values), "hovertemplate": "%{customdata:.3e}"}
        figure.add_trace(line(x, symlog(values, linear), force, colour, **style, **hover), row=1, col=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = values / whole
        shown = {"showlegend": False, "hovertemplate": "%{y:+.1%}"}
        figure.add_trace(line(x, share, force, colour, **style, **shown), row=2, col=1)
    largest = max(float(np.nanmax(abs(values), initial=linear)) for values in (*raw.values(), whole))
    figure.update_yaxes(
        title_text="Δ‖w‖² of a step", zeroline=True, **symlog_axis(linear, largest), row=1, col=1
    )
    figure.update_yaxes(
        title_text="share of the budget", tickformat=".0%", range=[-1.02, 1.02], zeroline=True, row=2, col=1
    )
    shade_phases(figure, group.edges, group.phases)
    return figure


def sigma_figure(groups: Iterable[Group], lrs: Mapping[str, np.ndarray], phases_of: Group) -> Any:
    """σ of each group over the run and λ where it is known, dashed; k; and the learning rate.

    Args:
        groups: which.
        lrs: η at each record of `phases_of`, [T], by what its line is called.
        phases_of: whose phases are shaded.
    """
    groups = list(groups)
    matrices = [group for group in groups if group.label not in _VECTORS]
    vectors = [group for group in groups if group.label in _VECTORS]
    fitted = [group for group in groups if known_points(group.step, group.k)]
    plots = [("σ of matrices", 2.6, matrices), ("σ of vectors", 1.3, vectors), ("shape k", 1.3, fitted)]
    plots = [plot for plot in plots if plot[2]]
    heights = [height for _, height, _ in plots] + [0.9] * bool(lrs)
    figure = rows(heights, 200 + int(95 * sum(heights)))
    for row, (title, _, part) in enumerate(plots, 1):
        for group in part:
            (_draw_k if part is fitted else _draw_sigma)(figure, row, group)
        if part is fitted:
            figure.update_yaxes(title_text=title, row=row, col=1)
        else:
            log_axis(figure, row, title)
    if lrs:
        _draw_lrs(figure, len(heights), lrs, phases_of.step)
        rate = {"rangemode": "tozero", "exponentformat": "power"}
        figure.update_yaxes(title_text="lr η", **rate, row=len(heights), col=1)
    shade_phases(figure, phases_of.edges, phases_of.phases)
    return figure


def _draw_sigma(figure: Any, row: int, group: Group) -> None:
    colour = colour_of(group.label)
    dash = "dot" if group.label.endswith("weights") else "solid"
    style: dict[str, Any] = {"dash": dash, "hovertemplate": "σ = %{y:.5f}"}
    figure.add_trace(line(*sigma_points(group), group.label, colour, **style), row=row, col=1)
    if points := known_points(group.step, group.scale):
        style |= {"dash": "dash", "width": 1.6, "showlegend": False, "hovertemplate": "λ = %{y:.5f}"}
        figure.add_trace(line(*points, group.label, colour, **style), row=row, col=1)


def _draw_k(figure: Any, row: int, group: Group) -> None:
    if points := known_points(group.step, group.k):
        style: dict[str, Any] = {"dash": "dash", "width": 1.6, "showlegend": False}
        style["hovertemplate"] = "k = %{y:.4f}"
        figure.add_trace(line(*points, group.label, colour_of(group.label), **style), row=row, col=1)


def _draw_lrs(figure: Any, row: int, lrs: Mapping[str, np.ndarray], step: np.ndarray) -> None:
    starts = bin_starts(len(step), POINTS)
    for i, (label, lr) in enumerate(lrs.items()):
        dash = tuple(DASHES.values())[i % len(DASHES)]
        style = {"dash": dash, "width": 1.6, "hovertemplate": "%{y:.3e}"}
        x, y = bin_ends(step, starts), bin_ends(lr, starts)
        figure.add_trace(line(x, y, label, INK, **style), row=row, col=1)


def rounding_figure(tensors: Tensors) -> Any:
    """|rounding| over the absolute budget, and what forces and rounding together leave open.

    Of all tensors together, and of the worst of them.
    """
    starts = bin_starts(len(tensors.step), POINTS)
    x = bin_ends(tensors.step, starts)
    parts = {"closure": closure_residual(tensors)}
    if (rounding := rounding_share(tensors)) is not None:
        parts = {"rounding": rounding} | parts
    parts = {name: share for name, share in parts.items() if not np.isnan(share).all()}
    figure = rows([1.0] * max(len(parts), 1), 140 + 190 * max(len(parts), 1))
    for row, (name, share) in enumerate(parts.items(), 1):
        for label, values, dash in (
            ("all tensors", overall(share, tensors), "solid"),
            ("worst tensor", worst(share), "dot"),
        ):
            colour = "#0072B2" if label == "all tensors" else "#D55E00"
            y = np.fmax.reduceat(values, starts)
            y[y == 0] = np.nan  # has no place on a logarithmic axis
            style = {"dash": dash, "width": 1.6, "showlegend": row == 1, "hovertemplate": "%{y:.2e}"}
            figure.add_trace(line(x, y, label, colour, **style), row=row, col=1)
        log_axis(figure, row, f"{name} / budget")
    return figure


def record_middles(group: Group, starts: np.ndarray) -> np.ndarray:
    """The middle of the steps of each bin of records, [B]: where its mean stands."""
    first, last = bin_edges(group.edges, starts)[:-1] + 1, bin_ends(group.step, starts)
    return np.asarray((first + last) / 2)


def at_bins(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The values at the middle record of each bin: for what is smooth over it."""
    middles = (starts + np.append(starts[1:], len(values)) - 1) // 2
    return np.asarray(values[middles])


def colour_of(label: str) -> str:
    """That of a group of tensors; a role of the user's own has one by its name."""
    return _COLOURS.get(label) or _OWN_ROLES[sum(label.encode()) % len(_OWN_ROLES)]


def known_points(step: np.ndarray, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Where there is a fit, as one is made now and then, and its values; None where there is none."""
    if values is None or np.isnan(values).all():
        return None
    known = np.flatnonzero(~np.isnan(values))
    known = bin_ends(known, bin_starts(len(known), POINTS))
    return step[known], values[known]


def sigma_points(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and σ after them."""
    starts = bin_starts(len(group.step), POINTS)
    return bin_ends(group.step, starts), bin_ends(group.sigma, starts)
