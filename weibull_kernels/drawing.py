"""What the pictures and the report page have in common: colours, and what they draw of a record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .budget import ForceBudget

# Okabe and Ito's colours, told apart with any colour vision.
FORCES = {"alignment": "#0072B2", "injection": "#E69F00", "decay": "#D55E00"}
MATRICES = {
    "attention_output": "#0072B2",
    "ffn": "#56B4E9",
    "qkv": "#009E73",
    "embedding": "#E69F00",
    "head": "#D55E00",
}
VECTORS = {"norm": "#CC79A7", "bias": "#666666"}


def per_step(sums: ForceBudget) -> ForceBudget:
    """The forces of one step in the mean of each record, [T], whatever lies between two records."""
    steps = np.maximum(sums.steps, 1)  # where nothing moved the forces are 0
    forces = ("alignment", "injection", "decay", "coupling")
    return replace(sums, **{force: getattr(sums, force) / steps for force in forces})


def rms(series: ForceBudget) -> np.ndarray:
    """σ after the last step of each record, [T]."""
    rounding = 0 if series.rounding is None else series.rounding
    after = series.norm_sq + series.predicted_change + rounding
    sigma: np.ndarray = np.sqrt(after / series.numel)
    return sigma


def stretches(edges: np.ndarray, phases: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Each stretch of one phase, [T], as (phase, its first edge, its last); the edges are [T + 1]."""
    changes = np.flatnonzero(phases[1:] != phases[:-1]) + 1
    starts = np.concatenate(([0], changes))
    stops = np.concatenate((changes, [len(phases)]))
    for start, stop in zip(starts, stops, strict=True):
        yield str(phases[start]), edges[start], edges[stop]
