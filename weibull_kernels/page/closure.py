"""Whether the forces of the records add up to how the norms moved."""

from __future__ import annotations

import numpy as np

from .runs import Tensors


def closure_residual(tensors: Tensors) -> np.ndarray:
    """|forces + rounding − Δ‖w‖²| of each tensor and record over the absolute budget, [P, T].

    Δ‖w‖² is from the `norm_sq` of the record to that of the next, so it can be had only where the
    next record begins where this one ends. NaN elsewhere, at the last record, and where nothing moved.
    """
    sums, begin = tensors.sums, tensors.optimizer_step - np.asarray(tensors.sums.steps)
    residual = np.full(tensors.present.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rounding = 0 if sums.rounding is None else np.nan_to_num(sums.rounding)
        measured = np.diff(sums.norm_sq, axis=1)
        off = abs((sums.predicted_change + rounding)[:, :-1] - measured)
        joined = begin[:, 1:] == tensors.optimizer_step[:, :-1]
        residual[:, :-1] = np.where(joined, off / sums.absolute[:, :-1], np.nan)
    residual[~np.isfinite(residual)] = np.nan
    return residual


def rounding_share(tensors: Tensors) -> np.ndarray | None:
    """|rounding| of each tensor and record over the absolute budget, [P, T], NaN where nothing moved."""
    if tensors.sums.rounding is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = abs(tensors.sums.rounding) / tensors.sums.absolute
    return np.where(np.isfinite(share), share, np.nan)


def overall(share: np.ndarray, tensors: Tensors) -> np.ndarray:
    """The shares of all tensors together, [T]: the mean by their absolute budgets."""
    weight = np.where(np.isnan(share), 0, tensors.sums.absolute)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(share * weight, axis=0) / weight.sum(axis=0))


def worst(share: np.ndarray) -> np.ndarray:
    """The largest share of any tensor, [T], NaN where there is none."""
    return np.asarray(np.fmax.reduce(share, axis=0))
