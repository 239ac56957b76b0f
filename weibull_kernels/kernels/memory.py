"""Tensors as flat memory: what the compiled kernels need, whatever the strides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .interface import Rows, SteppedRows


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


Stepped = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Weight, gradient, exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq of one tensor."""


@contextmanager
def flat_to_step(rows: SteppedRows) -> Iterator[list[Stepped]]:
    """The columns of each row with their entries in the same order in memory, to be written.

    Where the orders differ, or the weight has gaps, the kernel works on copies, and what it wrote
    into them is put where it belongs at the end.
    """
    columns = zip(
        rows.weights, rows.grads, rows.exp_avgs, rows.exp_avg_sqs, rows.max_exp_avg_sqs, strict=True
    )
    copied: list[tuple[Tensor, Tensor]] = []
    yield [row if _in_one_order(row) else _copies(row, copied) for row in columns]
    for original, copy in copied:
        original.copy_(copy)


def _in_one_order(row: Stepped) -> bool:
    weight, grad, *moments = row
    if grad.is_neg():  # a sign that torch keeps beside the memory
        return False
    others = [grad, *(moment for moment in moments if moment is not None)]
    if weight.is_contiguous():
        return all(other.is_contiguous() for other in others)
    return _is_dense(weight) and all(other.stride() == weight.stride() for other in others)


def _copies(row: Stepped, copied: list[tuple[Tensor, Tensor]]) -> Stepped:
    def copy(tensor: Tensor) -> Tensor:
        copied.append((tensor, tensor.resolve_neg().clone(memory_format=torch.contiguous_format)))
        return copied[-1][1]

    weight, grad, exp_avg, exp_avg_sq, max_exp_avg_sq = row
    largest = None if max_exp_avg_sq is None else copy(max_exp_avg_sq)
    return copy(weight), copy(grad), copy(exp_avg), copy(exp_avg_sq), largest


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
