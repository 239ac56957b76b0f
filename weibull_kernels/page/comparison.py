"""Figures of several runs on the same axes: a colour and a dash for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .bins import bin_ends, bin_starts
from .closure import overall, rounding_share
from .figures import POINTS, at_bins, known_points, record_middles, sigma_points
from .runs import Group, Run
from .theme import RUN_COLOURS, RUN_DASHES, line, log_axis, rows

Points = tuple[np.ndarray, np.ndarray] | None


def common_groups(runs: Iterable[Run]) -> list[str]:
    """The groups of tensors that more than one run has, by label, in the order of the first."""
    labels = [label for run in runs for label in run.groups]
    return [label for label in dict.fromkeys(labels) if labels.count(label) > 1]


def compare_forces(runs: list[Run], label: str) -> Any:
    """The share of each force, and of the net, in the absolute budget: moving averages of one group."""
    figure = rows([1, 1, 1, 1], 820)
    for row, force in enumerate(("alignment", "injection", "decay", "net"), 1):

        def share(group: Group, force: str = force) -> Points:
            mean, starts = group.mean, bin_starts(len(group.step), POINTS)
            values = mean.predicted_change if force == "net" else getattr(mean, force)
            with np.errstate(invalid="ignore", divide="ignore"):
                return record_middles(group, starts), at_bins(values / mean.absolute, starts)

        _draw(figure, row, runs, label, share, hover="%{y:+.1%}")
        figure.update_yaxes(title_text=f"{force} share", tickformat=".0%", row=row, col=1)
    return figure


def compare_sigma(runs: list[Run], label: str) -> Any:
    """σ of one group, λ and k where they are known, and ηω of a step."""
    parts: dict[str, tuple[Callable[[Group], Points], dict[str, Any] | None]] = {
        "σ": (sigma_points, None),
        "scale λ": (lambda group: known_points(group.step, group.scale), None),
        "shape k": (lambda group: known_points(group.step, group.k), {}),
        "decay rate ηω": (_decay_rate, {"rangemode": "tozero", "exponentformat": "power"}),
    }
    groups = [run.groups[label] for run in runs if label in run.groups]
    plots = [title for title, (points, _) in parts.items() if any(map(points, groups))]
    heights = [2.2 if title == "σ" else 1.2 for title in plots]
    figure = rows(heights, 180 + int(110 * sum(heights)))
    for row, title in enumerate(plots, 1):
        points, axis = parts[title]
        _draw(figure, row, runs, label, points, hover="%{y:.4g}")
        if axis is None:
            log_axis(figure, row, title)
        else:
            figure.update_yaxes(title_text=title, row=row, col=1, **axis)
    return figure


def _decay_rate(group: Group) -> Points:
    starts = bin_starts(len(group.step), POINTS)
    return bin_ends(group.step, starts), bin_ends(group.decay_rate, starts)


def compare_rounding(runs: list[Run]) -> Any:
    """|rounding| of all tensors over the absolute budget, of the runs that have it."""
    figure = rows([1], 320)
    for i, run in enumerate(runs):
        share = rounding_share(run.tensors)
        if share is not None:
            starts = bin_starts(len(run.tensors.step), POINTS)
            y = np.fmax.reduceat(overall(share, run.tensors), starts)
            y[y == 0] = np.nan  # has no place on a logarithmic axis
            style: dict[str, Any] = {"dash": _dash(i), "width": 1.6, "hovertemplate": "%{y:.2e}"}
            x = bin_ends(run.tensors.step, starts)
            figure.add_trace(line(x, y, run.name, _colour(i), **style), row=1, col=1)
    log_axis(figure, 1, "rounding / budget")
    return figure


def _draw(
    figure: Any,
    row: int,
    runs: list[Run],
    label: str,
    points: Callable[[Group], Points],
    *,
    hover: str,
) -> None:
    """A line for each run that has the group and points of it; in the legend once."""
    for i, run in enumerate(runs):
        if label in run.groups and (found := points(run.groups[label])):
            style: dict[str, Any] = {"dash": _dash(i), "showlegend": row == 1, "hovertemplate": hover}
            figure.add_trace(line(*found, run.name, _colour(i), **style), row=row, col=1)


def _colour(run: int) -> str:
    return RUN_COLOURS[run % len(RUN_COLOURS)]


def _dash(run: int) -> str:
    return RUN_DASHES[run % len(RUN_DASHES)]
