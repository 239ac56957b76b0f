"""Tensors as flat memory: what the compiled kernels need, whatever the strides."""

from __future__ import annotations

import torch
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
    weight with gaps (a slice of something larger) is copied, and so are tensors whose orders differ.
    """
    return [_flat(*columns) for columns in zip(rows.weights, rows.exp_avgs, rows.exp_avg_sqs, strict=True)]


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on `device`; through pinned memory, so that nothing waits for a GPU."""
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=device.type != "cpu")


def _flat(
    weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weight = weight.resolve_neg()  # a sign that torch keeps beside the memory
    if exp_avg is None or exp_avg_sq is None:
        return (weight if _is_dense(weight) else weight.contiguous()), None, None
    exp_avg, exp_avg_sq = exp_avg.resolve_neg(), exp_avg_sq.resolve_neg()
    if weight.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous():
        return weight, exp_avg, exp_avg_sq
    if _is_dense(weight) and exp_avg.stride() == weight.stride() == exp_avg_sq.stride():
        return weight, exp_avg, exp_avg_sq
    return weight.contiguous(), exp_avg.contiguous(), exp_avg_sq.contiguous()
