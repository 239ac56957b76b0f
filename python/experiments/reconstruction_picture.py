"""The picture of the reconstruction offset: λ by both rules, the errors by piece and by spacing."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from . import looks
from .reconstruction_errors import Run, bridge_of, figure_of, integration_of, spacings_of, told

LADDER = (
    ("published", 0, "mean"),
    ("published", -1, "mean"),
    ("exact", 0, "mean"),
    ("exact", -1, "gamma"),
    ("exact", -1, "mean"),
    ("exact", -1, "measured"),
)
"""Sums, rule (the published one is the first of a run, the best its last) and bridge, from theirs to ours."""

RULES = {"euler": "Euler's rule", "cubic": "cubic", "interval": "intervals"}
BRIDGES = {"mean": "mean bridge", "gamma": "Γ bridge, k = 1.2", "measured": "measured bridge"}


def draw(found: dict[str, Any], path: Path) -> None:
    """Curves of two runs, errors of all of them by piece, and against the spacing of the records."""
    runs = found["runs"]
    fitted = [run for run in runs if run["bridge"]]
    spaced = [run for run in runs if len(spacings_of(run)) > 1]
    shown = (fitted or runs)[:: max(1, len(fitted or runs) // 2)][:2]
    panels = len(shown) + bool(fitted) + bool(spaced)
    with looks.figure(path, (5.6 * min(panels, 2), 4.2 * -(-panels // 2))) as figure:
        axes = list(figure.subplots(-(-panels // 2), min(panels, 2), squeeze=False).flat)
        for each in axes[panels:]:
            each.remove()
        for run in shown:
            draw_curves(axes.pop(0), run)
        if fitted:
            draw_pieces(axes.pop(0), fitted)
        if spaced:
            draw_spacings(axes.pop(0), spaced)


def draw_curves(axes: Any, run: Run) -> None:
    """What was observed at the checkpoints, and what the forces give."""
    curves = run["curves"]
    step = np.array(curves["step"])
    name = "λ" if curves["of"] == "scale" else "σ"
    lines = {key: np.array(curves[key], dtype=float) for key in ("observed", "as_published", "ours")}
    looked = {
        "ours": {"color": looks.BLUE, "linestyle": "-", "label": "from the forces, ours"},
        "as_published": {"color": looks.RED, "linestyle": "--", "label": "as published"},
    }
    for key, look in looked.items():
        there = np.isfinite(lines[key])  # not every checkpoint is at a record
        axes.plot(step[there], lines[key][there], linewidth=1.6, **look)
    axes.plot(step, lines["observed"], "o", color="black", markersize=4, fillstyle="none", label="observed")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|" if name == "λ" else "root mean square σ of w")
    axes.set_title(f"{run['name']}: {name} at the checkpoints")
    axes.legend(loc="lower right", fontsize=8)


def draw_pieces(axes: Any, runs: list[Run]) -> None:
    """Both components and the whole, mean of the runs, with a piece changed from bar to bar."""
    # Where there is but one rule, some of them are the same.
    alone = all(len(run["rules"]) == 1 for run in runs)
    ladder = list(dict.fromkeys((sums, 0 if alone else which, bridge) for sums, which, bridge in LADDER))
    place = np.arange(len(ladder))
    integration, bridge, total = (
        np.array([mean_of(runs, part, row, "signed") for row in ladder])
        for part in ("integration", "bridge", "total")
    )
    looked: dict[str, Any] = {"height": 0.36, "edgecolor": "black", "linewidth": 0.8}
    axes.barh(place - 0.2, integration, color="#9ECAE1", hatch="//", label="integration of σ", **looked)
    axes.barh(place + 0.2, bridge, color="#FDD0A2", hatch="..", label="bridge from σ to λ", **looked)
    axes.plot(total, place, "D", color="black", markersize=5, label="λ altogether")
    axes.axvline(0, color="black", linewidth=0.8)
    right = np.maximum.reduce([integration, bridge, total, 0 * total])
    left = min(0.0, *integration, *bridge, *total)
    for row, value in enumerate(total):
        size = mean_of(runs, "total", ladder[row], "late")
        text = f"  {told(size / 100, value / 100)} %"
        axes.text(right[row] + 0.02 * (right.max() - left), row, text, va="center", fontsize=8)
    labels = [f"{sums} sums, {rules_of(runs, which)},\n{BRIDGES[bridge]}" for sums, which, bridge in ladder]
    labels[0] += " [W2]"
    axes.set_yticks(place, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(1.08 * left, right.max() + 0.25 * (right.max() - left))
    axes.set_xlabel("mean error past half of the run, with its sign, %")
    axes.set_title(f"What the offset is made of, mean of {len(runs)}")
    axes.legend(loc="lower right", fontsize=8)


def rules_of(runs: list[Run], which: int) -> str:
    """The first or the last rule of each run, by name."""
    return " or ".join(dict.fromkeys(RULES[run["rules"][which]] for run in runs))


def mean_of(runs: list[Run], part: str, row: tuple[str, int, str], key: str) -> float:
    """One bar, in per cent."""
    return float(np.mean([100 * piece_of(run, part, *row, key) for run in runs]))


def piece_of(run: Run, part: str, sums: str, which: int, bridge: str, key: str) -> float:
    """What one run has to a bar, as a fraction."""
    rule = run["rules"][which]
    if part == "integration":
        return integration_of(run, sums, rule, key)
    if part == "bridge":
        return bridge_of(bridge)(run, key)
    return figure_of(run, "total", key, sums=sums, rule=rule, bridge=bridge)


def draw_spacings(axes: Any, runs: list[Run]) -> None:
    """The integration component of every run against the spacing, by sums and rule."""
    looked = {
        ("published", "euler"): ("published sums, Euler's rule", looks.RED, "--", "s"),
        ("exact", "euler"): ("exact sums, Euler's rule", looks.ORANGE, "-.", "^"),
        ("exact", "cubic"): ("exact sums, cubic between records", looks.BLUE, "-", "o"),
    }
    for (sums, rule), (label, colour, dashes, marker) in looked.items():
        for place, run in enumerate(runs):
            spacing = np.array(spacings_of(run))
            values = [figure_of(run, "integration", sums=sums, rule=rule, spacing=each) for each in spacing]
            axes.plot(
                100 * spacing / run["steps"],
                100 * np.array(values),
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=4,
                fillstyle="full" if place == 0 else "none",
                linewidth=1.2,
                label=label if place == 0 else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Where every step is recorded the cubic has no error but rounding, far below; the rest is for the legend.
    axes.set_ylim(bottom=max(axes.get_ylim()[0] / 10, 1e-3))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low, high)
    axes.set_xlabel("steps from one record to the next, % of the run")
    axes.set_ylabel("integration component, magnitude past half, %")
    axes.set_title(f"By spacing; filled: {runs[0]['name']}" if len(runs) > 1 else runs[0]["name"])
    axes.legend(loc="lower right", fontsize=8)
