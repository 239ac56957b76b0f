"""The picture of the coherence experiment."""

from pathlib import Path
from typing import Any

import numpy as np

from . import looks
from .coherence_law import EXPONENT, NOISE, Power

GROWTH = "λ² − λ₀² at the end, 10⁻⁴"
CAUSE_LOOKS = {
    "angle": {"color": looks.GREEN, "hatch": "xx"},
    "length": {"color": looks.PURPLE, "hatch": ".."},
}
FORCE_HATCHES = {"alignment": "//", "injection": "++", "decay": "\\\\"}


def draw(found: dict[str, Any], path: Path) -> None:
    """Growth against the bigrams, the forces of the difference, repetition; angle, update, and the loss."""
    main = [run for run in found["runs"] if run["beta2"] == found["beta2"]]
    with looks.figure(path, (14, 8.2)) as figure:
        panels = figure.subplots(2, 3)
        draw_law(panels[0, 0], main, found["law"])
        draw_differences(panels[0, 1], found)
        draw_repetition(panels[0, 2], main, found["repetition"])
        draw_curves(panels[1, 0], found, "cosine", "cosine of the angle between w and −u")
        draw_curves(panels[1, 1], found, "update", "û, root mean square of the update u")
        draw_loss(panels[1, 2], main)


def families(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs on shuffled and on repeated text; those on the whole text are the first of the shuffled."""
    return {
        "shuffled": [run for run in runs if run["times"] is None],
        "repeated": [run for run in runs if run["times"] is not None],
    }


def points(axes: Any, runs: list[dict[str, Any]], x: str) -> None:
    """The growth of every run against one of its numbers."""
    for place, (family, mine) in enumerate(families(runs).items()):
        if mine:
            drawn = looks.look(place) | {"linestyle": "none", "fillstyle": "none" if place else "full"}
            across, up = [run[x] for run in mine], [1e4 * run["growth"] for run in mine]
            axes.plot(across, up, markersize=5, label=f"{family}, a point for each seed", **drawn)


def draw_law(axes: Any, runs: list[dict[str, Any]], law: dict[str, Any] | None) -> None:
    """Growth against what the bigrams tell, with the fitted law and the published exponent."""
    points(axes, runs, "gap")
    shuffled = families(runs)["shuffled"]
    if law is not None:
        x = np.linspace(0, max(run["gap"] for run in shuffled), 200)
        fit = Power(**law["growth_on_gap"])
        axes.plot(x, 1e4 * fit(x), color="black", linewidth=1.2, label=f"fit, exponent {fit.exponent:.2f}")
        gap, growth = (np.array([run[name] for run in shuffled]) for name in ("gap", "growth"))
        factor, constant = np.polyfit(gap**EXPONENT, growth, 1)
        published = 1e4 * (constant + factor * x**EXPONENT)
        axes.plot(x, published, color="black", linewidth=1, linestyle=":", label="fit, exponent 0.59 [W3]")
    for rho in dict.fromkeys(run["shuffled"] for run in shuffled):
        gap = next(run["gap"] for run in shuffled if run["shuffled"] == rho)
        bare = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(gap, 0.3, f"ρ = {rho:g}", rotation=90, ha="center", va="bottom", fontsize=7, bbox=bare)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("$H_r - D$, bits a byte")
    axes.set_ylabel(GROWTH)
    axes.set_title("What bigrams tell, and growth")
    axes.legend(fontsize=8, loc="upper left")


def draw_differences(axes: Any, found: dict[str, Any]) -> None:
    """‖w‖² at the end against that on the whole text: by force, and by what drives the forces."""
    mine = [
        each for each in found["differences"] if each["times"] is None and each["beta2"] == found["beta2"]
    ]
    levels = list(dict.fromkeys(each["shuffled"] for each in mine))
    for place, rho in enumerate(levels):
        same = [each for each in mine if each["shuffled"] == rho]
        forces = {name: np.mean([each["forces"][name] for each in same]) for name in FORCE_HATCHES}
        drivers = {name: np.mean([each["drivers"][name] for each in same]) for name in CAUSE_LOOKS}
        force_looks = {
            name: {"color": looks.FORCE_LOOKS[name]["color"], "hatch": hatch}
            for name, hatch in FORCE_HATCHES.items()
        }
        stack(axes, place - 0.2, forces, force_looks, labelled=place == 0)
        stack(axes, place + 0.2, drivers, CAUSE_LOOKS, labelled=place == 0)
        totals = [each["total"] for each in same]
        axes.errorbar(
            place - 0.2,
            np.mean(totals),
            np.std(totals, ddof=1) if len(totals) > 1 else None,
            color="black",
            marker="_",
            markersize=12,
            capsize=3,
            label="sum, ± s.d. of the seeds" if place == 0 else None,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(levels)), [f"{rho:g}" for rho in levels])
    axes.set_xlabel("ρ, part of the positions shuffled")
    axes.set_ylabel("‖w‖² at the end less that at ρ = 0, over ‖w₀‖²")
    axes.set_title("Which force, and which cause")
    if levels:
        axes.set_ylim(bottom=1.3 * axes.get_ylim()[0])  # room for what the looks mean
        axes.legend(fontsize=7, loc="lower left", ncols=2)


def stack(
    axes: Any, x: float, parts: dict[str, Any], drawn: dict[str, dict[str, Any]], labelled: bool
) -> None:
    """Bars on one another, those below zero apart from those above."""
    ends = {True: 0.0, False: 0.0}
    for name, value in parts.items():
        below = bool(value < 0)
        axes.bar(
            x,
            value,
            0.36,
            bottom=ends[below],
            facecolor=drawn[name]["color"],
            edgecolor="black",
            linewidth=0.5,
            hatch=drawn[name]["hatch"],
            label=name if labelled else None,
        )
        ends[below] += value


def draw_repetition(axes: Any, runs: list[dict[str, Any]], repetition: list[dict[str, Any]]) -> None:
    """Growth against how often the text is seen."""
    whole = [run for run in runs if run["times"] is None and run["shuffled"] == 0]
    shown = whole + families(runs)["repeated"]
    seen, growth = (np.array([run[name] for run in shown]) for name in ("seen", "growth"))
    levels = np.unique(seen.round(3)).tolist()
    means = [1e4 * growth[seen.round(3) == level].mean() for level in levels]
    axes.plot(seen, 1e4 * growth, **looks.look(1) | {"linestyle": "none", "fillstyle": "none"})
    axes.plot(levels, means, **looks.line(looks.look(1)), label="measured, mean and each seed")
    predicted = [
        (level["times"], 1e4 * level["predicted"]) for level in repetition if level["predicted"] is not None
    ]
    if predicted:
        axes.plot(*zip(*predicted, strict=True), color="black", linestyle=":", marker="x", label="by the law")
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:.2g}" if level < 1 else f"{level:.0f}" for level in levels])
    axes.set_ylim(0, 1.25 * max(1e4 * growth, default=1))  # room for the legend
    axes.set_xlabel("times that the text is seen")
    axes.set_ylabel(GROWTH)
    axes.set_title("The same text again and again")
    axes.legend(fontsize=8, loc="upper left")


def draw_curves(axes: Any, found: dict[str, Any], key: str, label: str) -> None:
    """Of the whole and of shuffled text, at both memories."""
    memories = list(dict.fromkeys(curve["beta2"] for curve in found["curves"]))
    for curve in found["curves"]:
        shuffled = curve["shuffled"] > 0
        axes.plot(
            curve["step"],
            curve[key],
            color=looks.RED if shuffled else looks.BLUE,
            linestyle=looks.DASHES[memories.index(curve["beta2"])],
            linewidth=1.4,
            marker="o" if shuffled else None,
            markersize=3.5,
            markevery=6,
            label=f"ρ = {curve['shuffled']:g}, β₂ = {curve['beta2']:g}",
        )
    if key == "update":
        axes.axhline(NOISE, color=looks.GREY, linewidth=0.8)
        axes.annotate(
            "of noise alone", (0.2, NOISE), (0, 2), axes.get_yaxis_transform(), "offset points", fontsize=7
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.set_title("Angle" if key == "cosine" else "Length of the update")
    axes.legend(fontsize=8)


def draw_loss(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Growth against the loss at the end, of both kinds of text."""
    points(axes, runs, "loss")
    axes.set_xlabel("loss at the end, bits a byte")
    axes.set_ylabel(GROWTH)
    axes.set_title("What was learnt, and growth")
    axes.legend(fontsize=8)
