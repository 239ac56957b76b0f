"""The picture of the experiment beyond the papers."""

from pathlib import Path
from typing import Any

import numpy as np

from . import looks

NARROW = ", bfloat16 weights"
HATCHES = {"alignment": "", "injection": "///", "decay": "...", "rounding": "xxx"}
LOOKS = {force: looks.line(look) for force, look in looks.FORCE_LOOKS.items()}


def draw(found: dict[str, Any], path: Path) -> None:
    """λ and the work of the forces of every variant, and rounding among the forces of bfloat16 weights."""
    shown = [run for run in found["runs"] if "curves" in run]
    with looks.figure(path, (12.5, 9)) as figure:
        (scales, works), (shares, parts) = figure.subplots(2, 2)
        draw_scales(scales, shown)
        draw_works(works, found["runs"])
        narrow = next((run for run in shown if run["rounding"] and "bfloat16" in run["variant"]), None)
        if narrow is None:
            for axes in (shares, parts):
                axes.set_axis_off()
            return
        draw_shares(shares, narrow)
        draw_unmoved(parts, narrow)


def draw_scales(axes: Any, runs: list[dict[str, Any]]) -> None:
    """λ of the first seed of each variant: bfloat16 ones in thin lines with hollow markers."""
    places = {name: place for place, name in enumerate(dict.fromkeys(map(twin_of, runs)))}
    for run in runs:
        place, curves = places[twin_of(run)], run["curves"]
        narrow = run["variant"] != twin_of(run)
        every = max(1, len(curves["step"]) // 8)
        axes.plot(
            curves["step"],
            curves["scale"],
            label=short(run["variant"]),
            markevery=((2 * place + narrow) % every, every),
            markersize=5,
            markerfacecolor="white" if narrow else None,
            linewidth=0.8 if narrow else 1.6,
            **looks.look(place),
        )
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|, transmission weights")
    axes.set_title(f"λ, seed {runs[0]['seed']}")
    axes.legend(fontsize=8)


def twin_of(run: dict[str, Any]) -> str:
    """The variant, whatever its weights are kept in."""
    return str(run["variant"]).removesuffix(NARROW)


def draw_works(axes: Any, runs: list[dict[str, Any]]) -> None:
    """What each force did over the run: the mean of the seeds of each variant, and how far they lie apart."""
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    width = 0.84 / len(HATCHES)
    for place, (force, hatch) in enumerate(HATCHES.items()):
        values = [
            [run["work"]["whole"][force] for run in runs if run["variant"] == variant] for variant in variants
        ]
        means = np.array([np.mean(mine) for mine in values])
        spans = np.array(
            [[mean - min(mine), max(mine) - mean] for mean, mine in zip(means, values, strict=True)]
        )
        axes.bar(
            np.arange(len(variants)) + (place - 1.5) * width,
            means,
            width,
            yerr=abs(spans.T),
            label=force,
            hatch=hatch,
            color=LOOKS[force]["color"],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"linewidth": 0.8},
        )
    axes.axhline(0, color="black", linewidth=0.6)
    # Logarithmic both ways, linear through zero.
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xticks(range(len(variants)), [short(variant, "\n") for variant in variants], fontsize=8)
    axes.set_ylabel("work over the run, parts of ‖w₀‖²")
    axes.set_title("What each force did to ‖w‖²")
    axes.legend(fontsize=8)


def draw_shares(axes: Any, run: dict[str, Any]) -> None:
    """Rounding beside the forces."""
    curves = run["curves"]
    for force in ("alignment", "injection", "decay", "rounding"):
        axes.plot(
            curves["step"],
            100 * np.array(curves[force]),
            label=force,
            linewidth=2.2 if force == "rounding" else 1.5,
            **LOOKS[force],
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("contribution to Δ‖w‖², % of the absolute budget")
    axes.set_title(f"Rounding as a fourth force: {short(run['variant'])}")
    axes.legend(fontsize=8)


def draw_unmoved(axes: Any, run: dict[str, Any]) -> None:
    """Which part of the entries, and of the decay, falls on entries that a step left alone."""
    parts = run["unmoved"]
    axes.set_title("Entries that a step leaves as they were")
    if parts is None:
        axes.text(0.5, 0.5, "not looked at in these runs", ha="center", transform=axes.transAxes)
        return
    axes.plot(
        parts["step"],
        100 * np.array(parts["entries"]),
        color="black",
        marker="o",
        markersize=4,
        label="of all entries",
    )
    for force in ("decay", "injection"):
        look = looks.FORCE_LOOKS[force]
        axes.plot(parts["step"], percents(parts[force]), markersize=4, label=f"of the {force}", **look)
    axes.set_ylim(0, 100)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("part that falls on unmoved entries, %")
    axes.legend(fontsize=8)


def percents(values: list[float | None]) -> np.ndarray:
    """In per cent; what there is none of is left out of the line."""
    found: np.ndarray = 100 * np.array(values, dtype=float)
    return found


def short(variant: str, gap: str = " ") -> str:
    """A name that fits beside the others."""
    return (
        variant.replace("bfloat16 weights", "bf16")
        .replace(", ", f",{gap}")
        .replace(" without", f"{gap}without")
    )
