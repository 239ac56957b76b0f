"""The picture of the relaxation, from the numbers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import looks
from .presets import PYTHIA_70M
from .relaxation_claims import PUBLISHED, TURNED, by_age, mean


def draw(found: dict[str, Any], path: Path) -> None:
    """λ by age, the forces of two ages, and how deep and how early by age."""
    with looks.figure(path, (13.5, 4.8)) as figure:
        panels = figure.subplot_mosaic(
            [["scale", "young", "fall"], ["scale", "old", "place"]], width_ratios=(1.25, 1, 1)
        )
        draw_scales(panels["scale"], found)
        young, old = chosen_ages(found)
        draw_forces(panels["young"], found, young)
        draw_forces(panels["old"], found, old)
        panels["young"].tick_params(labelbottom=False)
        for panel, shown in (("young", slice(0, 3)), ("old", slice(3, None))):
            handles, labels = panels[panel].get_legend_handles_labels()
            panels[panel].legend(
                handles[shown],
                labels[shown],
                loc="lower center",
                fontsize=8,
                ncols=3 if panel == "young" else 2,
                columnspacing=1,
            )
        panels["old"].set_xlabel("optimizer step")
        draw_fall(panels["fall"], found)
        draw_place(panels["place"], found)


def chosen_ages(found: dict[str, Any]) -> tuple[float, float]:
    """The youngest that relaxes, and the oldest; where none does, the two oldest."""
    ages = list(by_age(found))
    relaxed = [age for age, runs in by_age(found).items() if mean(runs, "final_over_peak") < TURNED]
    return (relaxed[0] if relaxed else ages[-2:][0]), ages[-1]


def draw_scales(axes: Any, found: dict[str, Any]) -> None:
    """λ of the first seed, a look for each age, and the peaks of the other seeds."""
    curves = found["curves"]
    ages = sorted({curve["age"] for curve in curves})
    first = min(curve["seed"] for curve in curves)
    for curve in curves:
        place = ages.index(curve["age"])
        drawn = looks.look(place)
        axes.plot(
            curve["step"],
            curve["scale"],
            linewidth=1.7,
            label=f"{curve['age']:g}",
            markevery=(3 + 2 * place, 12),
            markersize=5,
            **drawn,
        )
    for run in found["runs"]:
        if run["seed"] != first:
            drawn = looks.look(ages.index(run["age"]))
            axes.plot(
                run["peak_step"],
                run["scale"]["peak"],
                linestyle="none",
                marker=drawn["marker"],
                color=drawn["color"],
                markerfacecolor="white",
                markersize=7,
                clip_on=False,
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("Weibull scale λ of |w|, transmission weights")
    axes.set_title("λ by age Ση·ω")
    axes.legend(title="age (open: peak in other seed)", fontsize=8, title_fontsize=8, loc="upper left")


def draw_forces(axes: Any, found: dict[str, Any], age: float) -> None:
    """The forces of one age, and where decay passes alignment and all growth."""
    curve = next(each for each in found["curves"] if each["age"] == age)
    run = next(each for each in by_age(found)[age] if each["seed"] == curve["seed"])
    step = np.array(curve["step"])
    for force in ("alignment", "decay", "injection"):
        drawn = looks.line(looks.FORCE_LOOKS[force])
        axes.plot(step, 100 * np.array(curve[force]), linewidth=1.6, label=force, **drawn)
    for crossing, (marker, told) in CROSSINGS.items():
        place = run["crossing"][crossing]
        if place is not None:
            axes.plot(
                place,
                np.interp(place, step, 100 * np.array(curve["decay"])),
                linestyle="none",
                marker=marker,
                color="black",
                markerfacecolor="none",
                markersize=6,
                label=told,
            )
    axes.axvline(run["peak_step"], ymin=0.26, color="black", linewidth=0.9, linestyle=":", label="peak of λ")
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(curve["injection"]) * 3)  # room for the legend
    axes.set_ylabel("% of first ‖w‖²\nin a step", fontsize=9)
    axes.set_title(f"Forces at age {age:g}", fontsize=11)


def draw_fall(axes: Any, found: dict[str, Any]) -> None:
    """Final over peak by age: ours, the published, and what decay alone would leave."""
    ages = by_age(found)
    draw_by_age(axes, found, lambda run: run["final_over_peak"])
    alone = [mean([run["after_peak"] for run in runs], "decay_alone") for runs in ages.values()]
    axes.plot(list(ages), alone, linestyle=":", color=looks.GREY, label="decay alone since the peak")
    theirs = [final / peak for peak, final, *_ in PUBLISHED.values()]
    axes.plot(list(PUBLISHED), theirs, label="[W2]", **THEIRS)
    axes.tick_params(labelbottom=False)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("final λ / peak λ")
    axes.set_title("How deep, how early", fontsize=11)
    axes.legend(fontsize=8, loc="lower left")


def draw_place(axes: Any, found: dict[str, Any]) -> None:
    """The step of the peak by age."""
    draw_by_age(axes, found, lambda run: 100 * run["peak_step"] / run["steps"])
    theirs = [100 * step / PYTHIA_70M.steps for *_, step, _ in PUBLISHED.values()]
    axes.plot(list(PUBLISHED), theirs, **THEIRS)
    axes.set_ylim(0, 105)
    axes.set_xlabel("training age Ση·ω")
    axes.set_ylabel("peak of λ at, % of run")


def draw_by_age(axes: Any, found: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> None:
    """Every run, a line through the means, and the longer runs."""
    ages = by_age(found)
    points = {"linestyle": "none", "color": looks.BLUE}
    runs, longer = found["runs"], found["longer"]
    axes.plot(
        [run["age"] for run in runs],
        [value(run) for run in runs],
        marker="o",
        label=f"here, {runs[0]['steps']:,} steps",
        **points,
    )
    axes.plot(list(ages), [np.mean([value(run) for run in runs]) for runs in ages.values()], color=looks.BLUE)
    for run in longer:
        axes.plot(
            run["age"],
            value(run),
            marker="*",
            markersize=11,
            label=f"here, {run['steps']:,} steps, one seed",
            **points,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(ages), [f"{age:g}" for age in ages])
    axes.minorticks_off()


THEIRS = {"linestyle": "--", "marker": "s", "markerfacecolor": "none", "color": looks.RED}
CROSSINGS = {
    "exact": ("o", "decay passes alignment"),
    "net": ("x", "all growth"),
    "as_published": ("s", "alignment as published"),
}
