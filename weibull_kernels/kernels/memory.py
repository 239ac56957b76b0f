"""Tensors as flat memory: what the compiled kernels need, whatever the strides."""

from __future__ import annotations

from torch import Tensor

from .interface import Rows


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill one stretch of memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def flat_columns(rows: Rows) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Weight and moments of each row with their entries in the same order in memory.

    Sums do not depend on the order of the entries, so channels-last tensors go as they are. A
    weight with gaps (a slice of something larger) is copied, and so is a moment whose order differs.
    """
    flat = []
    for weight, exp_avg, exp_avg_sq in zip(rows.weights, rows.exp_avgs, rows.exp_avg_sqs, strict=True):
        moments = [tensor for tensor in (exp_avg, exp_avg_sq) if tensor is not None]
        if weight.is_contiguous():
            if not all(moment.is_contiguous() for moment in moments):
                exp_avg, exp_avg_sq = (None if t is None else t.contiguous() for t in (exp_avg, exp_avg_sq))
        elif not _is_dense(weight) or any(moment.stride() != weight.stride() for moment in moments):
            weight, exp_avg, exp_avg_sq = (
                None if t is None else t.contiguous() for t in (weight, exp_avg, exp_avg_sq)
            )
        flat.append((weight, exp_avg, exp_avg_sq))
    return flat
