"""The panels of a page: figures to choose from, what they are called and what they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..phases import WINDOW
from .bins import bin_starts, said_of_bins
from .closure import closure_residual
from .comparison import common_groups, compare_forces, compare_rounding, compare_sigma
from .facts import steps_of_records
from .figures import POINTS, forces_figure, rounding_figure, sigma_figure
from .layers import QUANTITIES, end_maps, over_run, run_maps
from .runs import Run

_COLOURS = "Blue grows, orange shrinks."
_OF_KIND = f"{_COLOURS} The colours have the same meaning for every kind of tensor."


@dataclass(frozen=True)
class Panel:
    """Figures of which one is shown.

    Attributes:
        title: the heading.
        shows: what a figure shows, for who cannot see it.
        caption: sentences below it.
        choices: what is chosen by, each with its options as (value, text).
        figures: by the values chosen.
    """

    title: str
    shows: str
    caption: str
    choices: Mapping[str, list[tuple[str, str]]]
    figures: Mapping[tuple[str, ...], Any]


def run_panels(run: Run) -> list[Panel]:
    """Those of one run."""
    panels = [_forces(run), _sigma(run), *_layers(run), _rounding(run)]
    return [panel for panel in panels if panel.figures]


def comparison_panels(runs: list[Run]) -> list[Panel]:
    """Those of several runs side by side."""
    labels = common_groups(runs)
    thinned = f"Moving averages over {WINDOW:.0%} of each run. Each run has a colour and a dash of its own."
    panels = [
        Panel(
            "Forces, run beside run",
            "Line charts of the share of each force and of the net over the steps, a line a run.",
            "Shares of the absolute budget |alignment| + |injection| + |decay|, positive is growth. "
            f"{thinned}",
            {"tensors": _options(labels)},
            {(label,): compare_forces(runs, label) for label in labels},
        ),
        Panel(
            "Size of the weights, run beside run",
            "Line charts of σ, of λ and k where they are known, and of ηω over the steps, a line a run.",
            "σ = √(‖w‖²/n); λ and k are scale and shape of the Weibull fit of |w|; ηω is the part of the "
            "weights that a step decays.",
            {"tensors": _options(labels)},
            {(label,): compare_sigma(runs, label) for label in labels},
        ),
    ]
    if any(run.tensors.sums.rounding is not None for run in runs):
        panels.append(
            Panel(
                "Rounding, run beside run",
                "Line chart of rounding over the absolute budget over the steps, a line a run.",
                "|measured Δ‖w‖² − forces| of all tensors over their absolute budget, where it was recorded.",
                {},
                {(): compare_rounding(runs)},
            )
        )
    return [panel for panel in panels if panel.figures]


def _options(labels: Any) -> list[tuple[str, str]]:
    return [(label, label) for label in labels]


def _forces(run: Run) -> Panel:
    records = len(run.main.step)
    return Panel(
        "Forces",
        "Line charts over the optimizer steps. Above alignment, injection, decay and net force of a step, "
        "below their shares of the absolute budget; the phases of training are shaded.",
        "Contributions to Δ‖w‖², positive is growth: alignment −2η⟨w,u⟩ (updates along the weights), "
        "injection η²‖u‖² (their own length), decay −2ηω‖w‖² (weight decay), net their sum. "
        f"Thin: the records; thick: moving average over {WINDOW:.0%} of the run. The upper axis is "
        f"logarithmic both ways and linear between its innermost ticks. {_thinned(records, POINTS)}",
        {"tensors": _options(run.groups)},
        {(label,): forces_figure(group) for label, group in run.groups.items()},
    )


def _thinned(records: int, most: int) -> str:
    return said_of_bins(records, bin_starts(records, most))


def _sigma(run: Run) -> Panel:
    fitted = [group for group in run.groups.values() if group.scale is not None]
    roles = [group for label, group in run.groups.items() if label != "all weights"]
    same = len(run.main.step) == len(run.tensors.step)  # else the records of others lie between
    lrs = run.lrs if same else {}
    texts = ["Solid: σ = √(‖w‖²/n), the root mean square of the weights of a role."]
    if fitted:
        texts.append(
            "Dashed: λ, the scale of the Weibull fit of |w|, and its shape k; lines join the fits there are."
        )
    else:
        texts.append("The records have no Weibull fits (columns k and scale).")
    texts.append(f"Shaded are the phases of the {run.main.label}.")
    if not lrs:
        texts.append("The records have no learning rate for each step (column lr).")
    return Panel(
        "Size of the weights",
        "Line charts of σ of each role, of λ and k where they are known, and of the learning rate, over the "
        "optimizer steps.",
        " ".join([*texts, _thinned(len(run.main.step), POINTS)]),
        {},
        {(): sigma_figure(roles, lrs, run.main)},
    )


def _layers(run: Run) -> list[Panel]:
    along, ends = run_maps(run.tensors), end_maps(run.tensors)
    edges, found = over_run(run.tensors)
    gaps = {name: int(np.isnan(found[name]).sum()) for name in ("net", "sigma")}
    missing = (
        f"Grey is no number: of {found['net'].size:,} cells {gaps['net']:,} of forces (not finite, at rest) "
        f"and {gaps['sigma']:,} of σ (not finite, or zero at the start)."
        if any(gaps.values())
        else ""
    )
    records = len(run.tensors.step)
    starts = bin_starts(records, len(edges) - 1)
    quantities = list(QUANTITIES.items())
    return [
        Panel(
            "Layers at the end of the run",
            "Heat map, layers down, kinds of tensors across.",
            f"{_COLOURS} Over the last {WINDOW:.0%} of the run; the layer is the first "
            "number in the name of a tensor, the kind is the rest of it.",
            {"show": quantities},
            ends,
        ),
        Panel(
            "Layers over the run",
            "Heat map, layers down, optimizer steps across.",
            " ".join(filter(None, (_OF_KIND, said_of_bins(records, starts), missing))),
            {"show": quantities, "tensors": _options(dict.fromkeys(kind for _, kind in along))},
            along,
        ),
    ]


def _rounding(run: Run) -> Panel:
    residual = closure_residual(run.tensors)
    judged, all_joints = int((~np.isnan(residual)).sum()), int(run.tensors.present[:, 1:].sum())
    texts = []
    if run.tensors.sums.rounding is None:
        texts.append("The records have no rounding; the ledger of wk.AdamW measures it.")
    else:
        texts.append("Rounding: |measured Δ‖w‖² − forces| over the absolute budget, of a record.")
    if judged:
        open_ = " and rounding" if run.tensors.sums.rounding is not None else ""
        texts.append(
            f"Closure: |forces{open_} − Δ‖w‖²|, where ‖w‖² before the next record tells Δ‖w‖²: "
            f"{judged:,} of {all_joints:,} intervals. The largest is {np.nanmax(residual):.1e}."
        )
    elif len(run.tensors.step) == 1:
        texts.append("Closure cannot be judged from one record.")
    elif steps_of_records(run).max() <= 1:
        texts.append(
            "Closure between records cannot be judged: they are instants, single steps with unrecorded ones "
            "between."
        )
    else:
        texts.append("Closure cannot be judged: no record begins where the one before ends.")
    drawable = judged or run.tensors.sums.rounding is not None
    if drawable:
        texts.append("Exact zeros leave gaps on a logarithmic axis.")
    return Panel(
        "Rounding and closure",
        "Line charts on logarithmic axes, over the optimizer steps.",
        " ".join([*texts, _worst_of_bin(len(run.tensors.step))]),
        {},
        {(): rounding_figure(run.tensors)} if drawable else {(): None},
    )


def _worst_of_bin(records: int) -> str:
    starts = bin_starts(records, POINTS)
    return "" if len(starts) == records else "Each point is the largest of several records."
