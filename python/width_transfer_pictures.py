"""The picture of the transfer experiment."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from width_training import ROLES
from width_transfer_findings import Findings
from width_transfer_report import DECAYS

import weibull_kernels as wk
from weibull_kernels.pictures import MATRICES, STYLE

# Of the widths, from the narrowest: from light to dark, and told apart by their markers in grey.
WIDTHS = (
    ("#E69F00", "v"),
    ("#56B4E9", "s"),
    ("#0072B2", "^"),
    ("#000000", "o"),
    ("#009E73", "D"),
    ("#CC79A7", "P"),
)
SIGMA_TICKS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4)
MARKERS = {"qkv": "s", "attention_output": "o", "ffn": "^"}


def draw_transfer(findings: Findings, path: Path) -> None:
    """Loss over η for each width, and σ_top over the width, a column for each rule, as a PNG."""
    rules = findings.rules
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(rules), 8), layout="constrained")
        panels = figure.subplots(2, len(rules), sharey="row", squeeze=False, height_ratios=(1.2, 1))
        for column, rule in enumerate(rules):
            draw_losses(panels[0, column], findings, rule)
            draw_sigma(panels[1, column], findings, rule)
        low, high = panels[1, 0].get_ylim()
        ticks = [tick for tick in SIGMA_TICKS if low <= tick <= high]
        panels[1, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panels[0, 0].set_ylabel("held-out loss, nats per byte")
        panels[1, 0].set_ylabel("σ_top over the proxy's, at η*, ω*")
        for row in panels:
            row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path)


def draw_losses(axes: Any, findings: Findings, rule: str) -> None:
    """A curve for each width with the range of its seeds, its best η marked."""
    for curve, (colour, marker) in zip(findings.curves(rule), WIDTHS, strict=False):
        x = np.log2(curve.grid)
        losses = np.asarray(list(curve.by_seed.values()))
        axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, curve.mean, color=colour, marker=marker, markersize=4, label=f"width {curve.width}")
        axes.plot(
            *(curve.optimum.log2, curve.optimum.loss),
            color=colour,
            marker="*",
            markersize=15,
            markeredgecolor="white",
            linestyle="",
            zorder=3,
        )
    axes.axvline(math.log2(findings.lr), color="#888888", linewidth=1, linestyle=":", zorder=0)
    axes.plot([], [], color="#444444", marker="*", markersize=12, linestyle="", label="best η")
    axes.plot([], [], color="#888888", linewidth=1, linestyle=":", label="η*, carried over")
    ticks = sorted({math.log2(settings.lr) for settings in findings.rows})
    axes.set_xticks(ticks, [f"$2^{{{tick:g}}}$" for tick in ticks])
    axes.set_xlabel("η; the matrices' lr is η/m")
    axes.set_title(f"{rule}: decay {DECAYS[rule]}")


def draw_sigma(axes: Any, findings: Findings, rule: str) -> None:
    """σ_top relative to the base width's, with the prediction dashed."""
    widths = findings.widths(rule)
    for role in ROLES:
        sigma = np.asarray([findings.sigma(rule, width, role) for width in widths])
        axes.plot(
            widths,
            sigma / sigma[0],
            color=MATRICES[role],
            marker=MARKERS[role],
            linewidth=1.8,
            label=role.replace("_", " "),
        )
    predicted = [wk.scaling.RULES[rule].sigma_ratio(width / widths[0]) for width in widths]
    axes.plot(widths, predicted, color="#444444", linewidth=1.5, linestyle="--", label="predicted [F]")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width")
