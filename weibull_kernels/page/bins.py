"""Fewer points in time: consecutive records become one, their forces summed, so that none is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..budget import ForceBudget


def bin_starts(records: int, most: int) -> np.ndarray:
    """Where bins of about as many consecutive records begin, int64, at most `most` of them.

    >>> bin_starts(7, 3).tolist()
    [0, 3, 5]
    """
    bins = min(records, most)
    return -(-np.arange(bins, dtype=np.int64) * records // max(bins, 1))


def binned(sums: ForceBudget, starts: np.ndarray) -> ForceBudget:
    """The budget of each bin, [..., B] of [..., T]: sums of forces and steps, ‖w‖² before the first."""
    forces = ("alignment", "injection", "decay", "coupling", "steps")
    columns: dict[str, Any] = {name: np.add.reduceat(getattr(sums, name), starts, axis=-1) for name in forces}
    if sums.rounding is not None:
        columns["rounding"] = np.add.reduceat(sums.rounding, starts, axis=-1)
    columns |= {name: np.asarray(getattr(sums, name))[..., starts] for name in ("norm_sq", "numel")}
    return replace(sums, **columns)


def bin_edges(edges: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where the bins begin and the last one ends, [B + 1], from the edges of the records, [T + 1]."""
    return np.append(edges[starts], edges[-1])


def bin_ends(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The value of the last record of each bin, [..., B] of [..., T]."""
    return np.asarray(values[..., np.append(starts[1:], values.shape[-1]) - 1])


def said_of_bins(records: int, starts: np.ndarray) -> str:
    """A sentence for the caption where a point is more than one record; empty where it is one."""
    if len(starts) == records:
        return ""
    most = int(np.diff(np.append(starts, records)).max())
    return (
        f"Each point stands for up to {most:,} consecutive records ({records:,} in all): forces are summed "
        "over them, what is not a force is that after the last of them."
    )
