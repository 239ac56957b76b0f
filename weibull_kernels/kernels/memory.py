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

    What is in another order than its weight, and a row whose weight has gaps, is copied, and what was
    written into a copy is put where it belongs at the end. Gradients are written only where a
    scaler `unscales` them.
    """
    copied: list[tuple[Tensor, Tensor]] = []
    flat = tensors
    if rows := _rows_out_of_order(tensors):
        columns = [list(column) for column in _columns(tensors)]
        for column in columns:
            for row in rows:
                if column[row] is not None:
                    copied.append((column[row], column[row].clone(memory_format=torch.contiguous_format)))
                    column[row] = copied[-1][1]
        order = tensors.counts, tensors.groups, tensors.places
        flat = SteppedTensors(columns[0], columns[1], columns[2], columns[3], *order)
    if rows := _grads_out_of_order(flat, grads):
        grads = list(grads)
        for row in rows:
            alike = torch.empty_like(flat.weights[row], dtype=grads[row].dtype).copy_(grads[row])
            if unscales:
                copied.append((grads[row], alike))
            grads[row] = alike
    _require_writable(original for original, _ in copied)
    yield flat, grads
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


def _rows_out_of_order(tensors: SteppedTensors) -> list[int]:
    """Rows whose weight has gaps, or moments in another order; worked out once."""
    if "out of order" not in tensors.prepared:
        in_order = map(_in_one_order, *_columns(tensors))
        tensors.prepared["out of order"] = [row for row, holds in enumerate(in_order) if not holds]
        tensors.prepared["contiguous"] = all(map(Tensor.is_contiguous, tensors.weights))
    rows: list[int] = tensors.prepared["out of order"]
    return rows


def _in_one_order(weight: Tensor, *others: Tensor | None) -> bool:
    if weight.is_contiguous():
        return all(other is None or other.is_contiguous() for other in others)
    return _is_dense(weight) and all(other is None or other.stride() == weight.stride() for other in others)


def _grads_out_of_order(tensors: SteppedTensors, grads: Sequence[Tensor]) -> list[int]:
    # A negative view has a sign that torch keeps beside the memory.
    negative = any(map(Tensor.is_neg, grads))
    if not negative and tensors.prepared.get("contiguous") and all(map(Tensor.is_contiguous, grads)):
        return []
    rows = enumerate(zip(tensors.weights, grads, strict=True))
    return [row for row, (weight, grad) in rows if grad.is_neg() or not _in_one_order(weight, grad)]


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on `device`; through pinned memory, so that nothing waits for a GPU."""
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=device.type != "cpu")


def index_on(places: Sequence[int], device: torch.device) -> Tensor:
    """Places as an index, int64, on `device`."""
    return sent(torch.tensor(places, dtype=torch.long, device="cpu"), device)


def numel_on(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """How many entries each tensor has, sharded ones as a whole; int64 [P] on `device`."""
    return index_on([tensor.numel() for tensor in tensors], device)


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
