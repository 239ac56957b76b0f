"""The phases of training, told from the balance of the forces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .budget import ForceBudget

PHASES = ("balance", "rise", "relaxation")
"""In the order of precedence."""

WINDOW = 0.05
"""The part of the run that forces are averaged over: those of single steps flip at every record."""

BALANCED = 0.1
"""In balance the net force is under this part of the absolute budget."""


def find_phases(step: np.ndarray, series: ForceBudget, *, window: float = WINDOW) -> np.ndarray:
    """The phase at each record of one tensor or group of tensors, one of `PHASES`.

        net = alignment + injection + decay + coupling
        balance     |net| ≤ 0.1·(|alignment| + |injection| + |decay|)
        rise        net > 0 otherwise: ‖w‖² grows, as a rule because alignment dominates
        relaxation  net < 0 otherwise: ‖w‖² shrinks, decay dominates

    All forces are averaged first, each over `window` of the run around the record (the window
    is cut off at both ends of the run). Balance takes precedence, so a force that is zero
    throughout is in balance.

    Args:
        step: of the records, [T], ascending.
        series: whose rows are the records, numpy [T], as from `force_series`.
        window: part of the run, from step[0] to step[-1], that an average spans; 0 for none.

    Returns:
        [T] strings; "undefined" where a force in the window, or before, is not finite.

    Raises:
        ValueError: `step` does not ascend or does not fit the series, or `window` is not in [0, 1].

    >>> grows_then_shrinks = ForceBudget.from_sums(
    ...     np.array([-9.0, -1.0]), np.array([0.1, 0.1]), np.array([40.0, 40.0]), lr=0.1, weight_decay=0.1
    ... )
    >>> find_phases(np.array([1, 2]), grows_then_shrinks).tolist()
    ['rise', 'relaxation']
    """
    step = np.asarray(step)
    if step.ndim != 1 or step.shape != np.shape(series.alignment):
        raise ValueError(
            f"step must be [T] with a row of the series each, {np.shape(series.alignment)}; got {step.shape}"
        )
    if (np.diff(step) <= 0).any():
        raise ValueError("step must ascend; sort the records and drop double ones")
    if not 0 <= window <= 1:
        raise ValueError(f"window must be a part of the run, from 0 to 1, got {window}")
    if len(step) == 0:
        return np.array([], dtype=str)
    mean = moving_average(step, series, window)
    net = mean.predicted_change
    labels: np.ndarray = np.select(
        [abs(net) <= BALANCED * mean.absolute, net > 0, net < 0], PHASES, "undefined"
    )
    return labels


def moving_average(step: np.ndarray, series: ForceBudget, window: float = WINDOW) -> ForceBudget:
    """The series with each force averaged over the records within `window` of the run around each.

    `norm_sq` is left as it is. Arguments as in `find_phases`.
    """
    reach = window * (step[-1] - step[0]) / 2
    first = np.searchsorted(step, step - reach)
    last = np.searchsorted(step, step + reach, side="right")

    def mean(force: np.ndarray) -> np.ndarray:
        running = np.concatenate(([0.0], np.cumsum(force)))
        averages: np.ndarray = (running[last] - running[first]) / (last - first)
        return averages

    return replace(
        series,
        alignment=mean(series.alignment),
        injection=mean(series.injection),
        decay=mean(series.decay),
        coupling=mean(series.coupling),
    )
