"""The picture of the width experiment."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from width_synthetic_fits import MATRICES, PUBLISHED_EXPONENT, coherent_part
from width_synthetic_report import DECAYS, SYMBOLS, number, percent

from weibull_kernels.pictures import STYLE

# Okabe and Ito's colours; markers tell them apart in grey.
LOOKS: dict[str, dict[str, Any]] = {
    "up_proj": {"color": "#0072B2", "marker": "o"},
    "down_proj": {"color": "#D55E00", "marker": "s"},
    "published": {"color": "#0072B2", "marker": "o"},
    "constant": {"color": "#E69F00", "marker": "^"},
    "proportional": {"color": "#009E73", "marker": "v"},
}


def draw(found: dict[str, Any], path: Path) -> None:
    """Exponents by noise, and σ_top over the widths under three rules, as a PNG."""
    noises = list(dict.fromkeys(row["noise"] for row in found["width"]))
    shown = list(dict.fromkeys((noises[0], noises[len(noises) // 2], noises[-1])))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 8.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
        widths, sweeps = top.subplots(1, 2, width_ratios=(1.5, 1))
        draw_width_exponents(widths, found["width"], noises)
        draw_lr_exponents(sweeps, found, noises)
        panels = bottom.subplots(1, len(shown), sharey=True)
        for axes, noise in zip(np.atleast_1d(panels), shown, strict=True):
            draw_rules(axes, [row for row in found["rules"] if row["noise"] == noise], noise)
        np.atleast_1d(panels)[0].set_ylabel("σ_top of W₁ over that at the base width")
        figure.savefig(path)


def draw_width_exponents(axes: Any, rows: list[dict[str, Any]], noises: list[str]) -> None:
    """Of σ_top on the width at fixed η and ω, with intervals."""
    for level, label in {1.0: "few directions", PUBLISHED_EXPONENT: "¾, published", 0.5: "noise"}.items():
        axes.axhline(level, color="#999999", linewidth=1, linestyle="--", zorder=0)
        corner = ("axes fraction", "data")
        axes.annotate(label, (1, level), xycoords=corner, ha="right", va="bottom", color="#555555")
    points_with_intervals(axes, rows, noises, "sigma")
    axes.set_xlim(-0.5, len(noises) + 0.1)
    axes.set_ylim(0.4, 1.12)
    axes.set_ylabel(r"exponent $e$ of σ_top ∝ $d^{\,e}$")
    axes.set_title("The width's exponent at fixed η and ω")
    axes.legend(loc="lower left")


def draw_lr_exponents(axes: Any, found: dict[str, Any], noises: list[str]) -> None:
    """Of σ_top on η, with a normed branch and without."""
    axes.axhspan(0.45, 0.55, color="#EFEFEF", zorder=0)
    axes.axhline(0.5, color="#999999", linewidth=1, linestyle="--", zorder=0)
    axes.axhline(0, color="#999999", linewidth=1, linestyle="--", zorder=0)
    free = [row["small"] | {"matrix": row["matrix"]} for row in found["fixed_width"]]
    points_with_intervals(axes, free, noises, "lr")
    points_with_intervals(axes, found["pinned"], noises, "lr", ", size fixed by the targets", filled=False)
    axes.set_xlim(-0.5, len(noises) - 0.5)
    axes.set_ylim(-0.15, 0.95)
    axes.annotate("½ ± 10 %", (0.99, 0.56), xycoords=("axes fraction", "data"), ha="right", color="#555555")
    axes.set_ylabel("exponent of η in σ_top")
    axes.set_title("η's exponent at one width")
    axes.legend(loc="upper left", fontsize=9)


def points_with_intervals(
    axes: Any,
    rows: list[dict[str, Any]],
    noises: list[str],
    key: str,
    called: str = "",
    filled: bool = True,
) -> None:
    """A value for each level of noise, the two matrices a little apart."""
    for matrix, shift in zip(MATRICES, (-0.12, 0.12), strict=True):
        mine = [row for row in rows if row["matrix"] == matrix]
        axes.errorbar(
            np.arange(len(mine)) + shift,
            [row[key]["value"] for row in mine],
            yerr=[row[key]["half"] for row in mine],
            linestyle="none",
            capsize=3,
            label=f"{SYMBOLS[matrix]}{called}",
            markerfacecolor=LOOKS[matrix]["color"] if filled else "white",
            **LOOKS[matrix],
        )
    labels = [
        f"{'∞' if math.isinf(float(noise)) else noise}\n({percent(coherent_part(float(noise)))})"
        for noise in noises
    ]
    axes.set_xticks(range(len(noises)), labels)
    axes.set_xlabel("noise over the gradient's rms (coherent part of ‖g‖²)")


def draw_rules(axes: Any, rows: list[dict[str, Any]], noise: str) -> None:
    """σ_top of W₁ over the widths under each rule, and what √(η/ω) makes of section 2's."""
    for row in [row for row in rows if row["matrix"] == MATRICES[0]]:
        widths = np.array([int(width) for width in row["sigma"]])
        middle = list(row["sigma"])[len(widths) // 2]
        look = LOOKS[row["rule"]]
        measured = np.array(list(row["sigma"].values())) / row["sigma"][middle]
        for prediction, dashes in (("predicted", "--"), ("with_steps", ":")):
            line = (widths / int(middle)) ** row[prediction]["value"]
            axes.plot(widths, line, color=look["color"], linestyle=dashes, linewidth=1.2)
        slopes = (number(row[key]["value"], 2) for key in ("slope", "predicted", "with_steps"))
        label = "{}: {} ({}, {})".format(DECAYS[row["rule"]], *slopes)
        axes.plot(widths, measured, linewidth=0, markersize=7, label=label, **look)
    axes.axhline(1, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths], minor=False)
    axes.set_yticks([0.5, 1, 2, 4], ["½", "1", "2", "4"], minor=False)
    axes.set_ylim(0.3, 7)
    axes.minorticks_off()
    axes.set_xlabel("width d, η ∝ 1/d")
    titles = {"0": "No noise", "inf": "Noise alone"}
    axes.set_title(titles.get(noise, f"Noise {noise} times the gradient"))
    axes.legend(title="slope (predicted - -, with (ηω)^κ ··)", loc="upper left", fontsize=9)
