"""Tensors as flat memory: what the compiled kernels need, whatever the strides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .interface import Rows, SteppedTensors


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


@contextmanager
def flat_to_step(
    tensors: SteppedTensors, grads: Sequence[Tensor], *, unscales: bool
) -> Iterator[tuple[SteppedTensors, Sequence[Tensor]]]:
    """The same with the entries of a row in one order in memory, to be stepped in place.

    Where the orders differ, or a weight has gaps, these are copies, and what was written into them
    is put where it belongs at the end. Gradients are written only where a scaler `unscales` them.
    """
    if "in_one_order" not in tensors.prepared:
        tensors.prepared["in_one_order"] = all(map(_in_one_order, *_columns(tensors)))
        tensors.prepared["contiguous"] = all(weight.is_contiguous() for weight in tensors.weights)
    if tensors.prepared["in_one_order"] and _grads_in_order(tensors, grads):
        yield tensors, grads
        return

    copied: list[tuple[Tensor, Tensor]] = []

    def copy(tensor: Tensor | None, *, written: bool = True) -> Any:
        if tensor is None:
            return None
        alike = tensor.resolve_neg().clone(memory_format=torch.contiguous_format)
        if written:
            copied.append((tensor, alike))
        return alike

    flat_grads = [copy(grad, written=unscales) for grad in grads]
    flat = [[copy(tensor) for tensor in column] for column in _columns(tensors)]
    _require_writable(original for original, _ in copied)
    rows = tensors.counts, tensors.groups, tensors.places
    yield SteppedTensors(flat[0], flat[1], flat[2], flat[3], *rows), flat_grads
    for original, alike in copied:
        original.copy_(alike)


def _require_writable(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} is expanded: its entries share memory, so it "
                "cannot be written in place; make it .contiguous()"
            )


def _columns(tensors: SteppedTensors) -> tuple[Sequence[Any], ...]:
    return tensors.weights, tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs


def _in_one_order(weight: Tensor, *others: Tensor | None) -> bool:
    if weight.is_contiguous():
        return all(other is None or other.is_contiguous() for other in others)
    return _is_dense(weight) and all(other is None or other.stride() == weight.stride() for other in others)


def _grads_in_order(tensors: SteppedTensors, grads: Sequence[Tensor]) -> bool:
    if any(map(Tensor.is_neg, grads)):  # a sign that torch keeps beside the memory
        return False
    if tensors.prepared["contiguous"]:
        return all(map(Tensor.is_contiguous, grads))
    return all(map(_in_one_order, tensors.weights, grads))


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
