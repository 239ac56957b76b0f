"""The picture of the learning-rate sweep, from the numbers alone."""

from pathlib import Path
from typing import Any

import numpy as np

from . import looks
from .lr_sweep_claims import EQUILIBRIUM, PEAKS, heading, published_powers

SHOWN = {
    "peak": "peak of λ",
    "from_start": "less the start:\npeak σ − σ₀",
    "pushed": "and without\nwhat decay took",
    "cosine": "cosθ",
    "update": "û",
    "final": "λ at the end",
}


def draw(found: dict[str, Any], path: Path) -> None:
    """Peaks against η, the powers by ω, and cosθ over the run."""
    with looks.figure(path, (13.5, 4.8)) as figure:
        peaks, powers, angles = figure.subplots(1, 3)
        draw_peaks(peaks, found)
        draw_powers(powers, found)
        draw_angles(angles, found["curves"])


def draw_peaks(axes: Any, found: dict[str, Any]) -> None:
    """Every peak on its η, with the power that fits those of an ω."""
    for place, (sweep, powers) in enumerate(found["powers"].items()):
        runs = [run for run in found["runs"] if run["sweep"] == sweep]
        drawn = looks.look(place)
        rates, values = [run["lr"] for run in runs], [run["scale"]["peak"] for run in runs]
        told = heading(found, sweep)
        if powers["peak"] is not None:
            told += f": η^{powers['peak']['power']:.2f}"
            axes.plot(*line_of(rates, values, powers["peak"]["power"]), linewidth=1.2, **looks.line(drawn))
        points = {"color": drawn["color"], "marker": drawn["marker"]}
        axes.plot(rates, values, linestyle="none", markersize=5, label=told, **points)
    rates, values = list(PEAKS), list(PEAKS.values())
    axes.plot(*line_of(rates, values, published_powers()["peak"]["power"]), ":", color="black", linewidth=1)
    axes.plot(
        rates,
        values,
        linestyle="none",
        marker="D",
        markerfacecolor="none",
        color="black",
        label="[W2], ω = 0.01: η^0.78",
    )
    start = np.mean([run["scale"]["start"] for run in found["runs"]])
    axes.axhline(start, color=looks.GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(
        0.985, start * 0.97, "λ₀", transform=axes.get_yaxis_transform(), ha="right", va="top", fontsize=9
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if low < tick < high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    low, high = axes.get_xlim()
    ticks = [tick for tick in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3) if low < tick < high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("learning rate η, per step")
    axes.set_ylabel("peak of the Weibull scale λ")
    axes.set_title("Peak of λ")
    axes.legend(fontsize=8, loc="upper left")


def line_of(rates: list[float], values: list[float], power: float) -> tuple[np.ndarray, np.ndarray]:
    """The line of a power through the middle of the points."""
    x, y = np.log(rates), np.log(values)
    ends = np.array([x.min(), x.max()])
    return np.exp(ends), np.exp(y.mean() + power * (ends - x.mean()))


def draw_powers(axes: Any, found: dict[str, Any]) -> None:
    """The powers, with twice their standard errors."""
    columns = [*found["powers"].values(), published_powers()]
    for place, powers in enumerate(columns):
        ours = place < len(found["powers"])
        known = [(row, powers[name]) for row, name in enumerate(SHOWN) if powers.get(name) is not None]
        drawn = looks.look(place)
        axes.errorbar(
            [fit["power"] for _, fit in known],
            [row + 0.18 * (place - (len(columns) - 1) / 2) for row, _ in known],
            xerr=[2 * (fit["error"] or 0) for _, fit in known],
            linestyle="none",
            marker=drawn["marker"] if ours else "D",
            markerfacecolor=drawn["color"] if ours else "none",
            color=drawn["color"] if ours else "black",
            markersize=5,
            capsize=2,
        )
    axes.axvline(EQUILIBRIUM, color=looks.GREY, linewidth=0.9, linestyle="--", label="½: √(η/ω)")
    axes.axvline(1, color=looks.GREY, linewidth=0.9, linestyle=":", label="1: straight in η")
    axes.axvline(0, color=looks.GREY, linewidth=0.6)
    axes.set_yticks(range(len(SHOWN)), list(SHOWN.values()), fontsize=9)
    axes.set_ylim(len(SHOWN) - 0.4, -0.6)
    axes.set_xticks([-0.5, 0, 0.5, 1, 1.5], ["−½", "0", "½", "1", "1½"])
    axes.set_xlim(-0.5, 1.5)
    axes.legend(
        fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.2), frameon=True, framealpha=1, edgecolor="none"
    )
    axes.set_xlabel("power of η (bars: two standard errors)")
    axes.set_title("What it is made of (markers as left)")


def draw_angles(axes: Any, curves: list[dict[str, Any]]) -> None:
    """cosθ over the run for each η."""
    for place, curve in enumerate(curves):
        drawn = looks.look(place)
        axes.plot(
            curve["step"],
            curve["cosine"],
            linewidth=1.4,
            markersize=4,
            markevery=(2 + 2 * place, 12),
            label=f"{curve['lr']:.2g}",
            **drawn,
        )
    axes.axhline(0, color=looks.GREY, linewidth=0.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cosθ of weights and −u")
    axes.set_title("Angle of the update")
    axes.legend(title="η", fontsize=8, title_fontsize=8, loc="upper right")
