"""Pictures of the recovery experiment."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from weibull_kernels.pictures import STYLE

# Okabe and Ito's colours; markers and dashes tell them apart in grey.
LOOKS: dict[str, dict[str, Any]] = {
    "corrected": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "spline": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "midpoint": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "two_point": {"color": "#D55E00", "marker": "v", "linestyle": ":"},
}


def draw_accuracy(rows: list[dict[str, Any]], run: dict[str, Any], path: Path) -> None:
    """Recovered beside true over one run, and the median errors of all runs by spacing, as a PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8), layout="constrained")
        panels = figure.subplot_mosaic([["run", "run"], ["steps", "impulses"]], height_ratios=(1.2, 1))
        draw_run(panels["run"], run)
        draw_errors(panels["steps"], rows, "error", "of the alignment at single steps")
        draw_errors(panels["impulses"], rows, "impulse_error", "of its sum between checkpoints")
        # Below both, as the curves leave no room in either.
        figure.legend(*panels["steps"].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})


def draw_run(axes: Any, run: dict[str, Any]) -> None:
    """The alignment of the transmission weights, step by step."""
    axes.plot(run["step"], run["true"], color="#BBBBBB", linewidth=0.7, label="true, single steps")
    axes.plot(run["step"], run["averaged"], color="black", linewidth=1.8, label="true, mean of 20 steps")
    for method in ("two_point", "spline", "corrected"):
        look = {key: value for key, value in LOOKS[method].items() if key != "marker"}
        axes.plot(run["step"], run[method], linewidth=1.6, label=method.replace("_", "-"), **look)
    # The first steps are many times larger than the rest.
    axes.set_ylim(*np.array([-0.1, 1.25]) * np.quantile(run["true"][run["step"] > 20], 0.99))
    axes.set_xlim(0, run["step"][-1])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("alignment, contribution to Δ‖w‖² of a step")
    axes.set_title(f"Transmission weights, a checkpoint every {run['spacing']} steps, no optimizer state")
    axes.legend(ncols=2)


def draw_errors(axes: Any, rows: list[dict[str, Any]], key: str, what: str) -> None:
    """Median error in the rise over spacing, of the transmission weights; a faint line for each run."""
    mine = [row for row in rows if row["role"] == "transmission" and row["schedule"].isdigit()]
    for method, look in LOOKS.items():
        of_method = [row for row in mine if row["method"] == method and row["rise"][key] is not None]
        spacings = sorted({int(row["schedule"]) for row in of_method})
        medians = [
            np.median([row["rise"][key] for row in of_method if int(row["schedule"]) == spacing])
            for spacing in spacings
        ]
        axes.plot(spacings, medians, linewidth=1.8, label=method.replace("_", "-"), **look)
        for run in dict.fromkeys(row["run"] for row in of_method):
            points = [(int(row["schedule"]), row["rise"][key]) for row in of_method if row["run"] == run]
            axes.plot(*zip(*points, strict=True), color=look["color"], linewidth=0.5, alpha=0.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([10, 20, 50, 100, 200, 400], ["10", "20", "50", "100", "200", "400"], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("steps between checkpoints")
    axes.set_ylabel("median error in the rise")
    axes.set_title(f"Error {what}")
