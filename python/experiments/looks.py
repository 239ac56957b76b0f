"""How the pictures of the experiments look: told apart in grey by dashes, markers and hatches too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from weibull_kernels.drawing import FORCES
from weibull_kernels.pictures import STYLE

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY, "black")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORCE_LOOKS: dict[str, dict[str, Any]] = {
    "alignment": {"color": FORCES["alignment"], "linestyle": "-", "marker": "o"},
    "injection": {"color": FORCES["injection"], "linestyle": "-.", "marker": "^"},
    "decay": {"color": FORCES["decay"], "linestyle": "--", "marker": "s"},
    "coupling": {"color": PURPLE, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "P"},
    "rounding": {"color": GREY, "linestyle": ":", "marker": "D"},
}


def look(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of the so-manieth curve."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def line(looks: dict[str, Any]) -> dict[str, Any]:
    """A look without its marker."""
    return {name: value for name, value in looks.items() if name != "marker"}


@contextmanager
def figure(path: Path, size: tuple[float, float] = (10, 4.2)) -> Iterator[Figure]:
    """A figure in the style of the library's pictures, saved at the end as a PNG."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Software": None})
