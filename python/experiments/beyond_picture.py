"""The picture of the experiment beyond the papers."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from . import looks

NARROW = ", bfloat16 weights"
HATCHES = {"alignment": "", "injection": "///", "decay": "...", "rounding": "xxx"}
LOOKS = {force: looks.line(look) for force, look in looks.FORCE_LOOKS.items()}


def draw(found: dict[str, Any], path: Path) -> None:
    """λ and the work of the forces of every variant, and what rounding does to bfloat16 weights."""
    shown = [run for run in found["runs"] if "curves" in run]
    narrow = [run for run in shown if run["unmoved"] and run["weight_decay"]]
    with looks.figure(path, (12.5, 9)) as figure:
        (scales, works), (shares, parts) = figure.subplots(2, 2)
        draw_scales(scales, shown)
        draw_works(works, found["runs"])
        for axes, panel in ((shares, draw_shares), (parts, draw_decay)):
            if narrow:
                panel(axes, narrow)
            else:
                axes.set_axis_off()


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
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest * (lowest / highest) ** 0.35, highest)  # room for the legend
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|, transmission weights")
    axes.set_title(f"λ, seed {runs[0]['seed']}")
    axes.legend(fontsize=8, ncols=2, loc="lower right")


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
    lowest, highest = axes.get_ylim()
    axes.set_ylim(3 * lowest, 50 * highest)  # room for the legend
    axes.set_xticks(range(len(variants)), [short(variant, "\n") for variant in variants], fontsize=8)
    axes.set_ylabel("work over the run, parts of ‖w₀‖²")
    axes.set_title("What each force did to ‖w‖²")
    axes.legend(fontsize=8, ncols=4, loc="upper center")


def draw_shares(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Rounding beside the forces: of the first run thick, of the others thin."""
    for run, width in zip(runs, (2.2, 1.0), strict=False):
        curves = run["curves"]
        for force in ("alignment", "injection", "decay", "rounding"):
            label = f"{force}, {aged(run)}"
            axes.plot(
                curves["step"], 100 * np.array(curves[force]), linewidth=width, label=label, **LOOKS[force]
            )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(-125, 100)
    axes.set_yticks(range(-75, 101, 25))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("contribution to Δ‖w‖², % of the absolute budget")
    axes.set_title("Rounding as a fourth force, bf16 weights")
    axes.legend(fontsize=8, ncols=2, loc="lower center")


def draw_decay(axes: Any, runs: list[dict[str, Any]]) -> None:
    """What decay does, and how many entries move, by how far the updates reach beside a digit."""
    for run, marker in zip(runs, ("o", "s"), strict=False):
        parts = run["unmoved"]
        for key, colour, what in (
            ("decay_done", looks.RED, "decay done"),
            ("entries", "black", "entries left unmoved"),
        ):
            axes.scatter(
                parts["reach"],
                percents(parts[key]),
                marker=marker,
                s=26,
                facecolor=colour if key == "decay_done" else "none",
                edgecolor=colour,
                label=f"{what}, {aged(run)}",
            )
    axes.set_xscale("log")
    axes.set_ylim(0, 110)
    axes.set_xlabel("η·û over half of the last digit of an entry of size σ")
    axes.set_ylabel("of the decay, of the entries, %")
    axes.set_title("Decay acts while updates reach farther than a digit")
    axes.legend(fontsize=8)


def aged(run: dict[str, Any]) -> str:
    """A run by its age."""
    return f"age {run['age']:.2g}"


def percents(values: list[float | None]) -> np.ndarray:
    """In per cent; what there is none of is left out."""
    found: np.ndarray = 100 * np.array(values, dtype=float)
    return found


def short(variant: str, gap: str = " ") -> str:
    """A name that fits beside the others."""
    return (
        variant.replace("bfloat16 weights", "bf16")
        .replace(", ", f",{gap}")
        .replace(" without ", f"{gap}without{gap}")
    )
