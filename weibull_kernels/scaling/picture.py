"""A picture of how the spectra of a target lie beside those of its proxy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..drawing import MATRICES
from ..pictures import STYLE
from .transfer import TransferCheck


def draw_transfer(check: TransferCheck, path: Path, called: str = "target / proxy") -> None:
    """Ratios of top singular values by role, and the shapes of the spectra, as a PNG.

    Above a point for each pair of matrices and a bar for the mean of their role, the tolerance shaded;
    below σ_i over the root mean square of the spectrum, which is what `wk.shape_distance` compares, along
    i/min(m, n): the mean over the matrices of a role, solid for the target and dashed for the proxy.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 7.5), layout="constrained")
        ratios, shapes = figure.subplots(2)
        _draw_ratios(ratios, check)
        ratios.set_title(f"Top singular values, {called}", pad=10)
        for role in check.names:
            colour = MATRICES.get(role, "#444444")
            for spectra, line in ((check.proxy, "--"), (check.target, "-")):
                values = [v for r, v in zip(check.pair_roles, spectra.values, strict=True) if r == role]
                label = role.replace("_", " ") if line == "-" else None
                shapes.plot(_POSITIONS, _mean_shape(values), line, color=colour, linewidth=1.8, label=label)
        shapes.plot([], [], "--", color="#444444", label="proxy")
        shapes.set_title("Shape of the spectra")
        shapes.set_xlabel("position in the spectrum, i / min(m, n)")
        shapes.set_ylabel("σ_i / root mean square of all")
        shapes.legend(loc="upper right")
        figure.savefig(path)


_POSITIONS = np.linspace(0, 1, 200)


def _draw_ratios(axes: Axes, check: TransferCheck) -> None:
    factor = 1 + check.tolerance
    axes.axhspan(check.expected / factor, check.expected * factor, color="#EFEFEF", zorder=-1)
    axes.axhline(check.expected, color="black", linewidth=0.8)
    for place, role in enumerate(check.names):
        colour = MATRICES.get(role, "#444444")
        of_role = check.pair_ratio[np.array(check.pair_roles) == role]
        spread = np.linspace(-0.2, 0.2, len(of_role)) if len(of_role) > 1 else np.zeros(1)
        axes.plot(place + spread, of_role, "o", color=colour, alpha=0.6)
        axes.hlines(check.ratio[place], place - 0.3, place + 0.3, color=colour, linewidth=2.5)
    axes.set_xticks(range(len(check.names)), [role.replace("_", " ") for role in check.names])
    axes.set_ylabel("ratio of σ_top (grey: the tolerance)")


def _mean_shape(values: Iterable[Tensor]) -> np.ndarray:
    """σ_i over its root mean square at `_POSITIONS`, the mean over matrices of any sizes."""
    curves = [
        np.interp(
            _POSITIONS, np.arange(len(v)) / max(len(v) - 1, 1), (v / v.square().mean().sqrt()).cpu().numpy()
        )
        for v in values
    ]
    mean: np.ndarray = np.mean(curves, axis=0)
    return mean
