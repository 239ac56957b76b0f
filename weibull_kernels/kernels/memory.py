"""Tensors as flat memory: what the compiled kernels need, whatever the strides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .host import write_addresses
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
                    alike = column[row].resolve_neg().clone(memory_format=torch.contiguous_format)
                    copied.append((column[row], alike))
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


def flat_to_read(tensors: SteppedTensors) -> SteppedTensors:
    """The same with the entries of a row in one order in memory, to be read: itself, or with copies."""
    rows = _rows_out_of_order(tensors)
    if not rows:
        return tensors
    columns = [list(column) for column in _columns(tensors)]
    for column in columns:
        for row in rows:
            if column[row] is not None:
                column[row] = column[row].resolve_neg().contiguous()
    order = tensors.counts, tensors.groups, tensors.places
    flat = SteppedTensors(columns[0], columns[1], columns[2], columns[3], *order)
    flat.prepared["out of order"] = []
    return flat


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
    if rows and capturing(tensors.weights[rows[0]].device):
        raise RuntimeError(
            f"a weight of shape {tuple(tensors.weights[rows[0]].shape)} has gaps in memory, or moments in "
            "another order than its own, and would be copied at every call, which a CUDA graph cannot "
            "repeat; make weight and moments .contiguous() before capturing"
        )
    return rows


def _in_one_order(weight: Tensor, *others: Tensor | None) -> bool:
    # A negative view has a sign that torch keeps beside the memory.
    if weight.is_neg() or any(other is not None and other.is_neg() for other in others):
        return False
    if weight.is_contiguous():
        return all(other is None or other.is_contiguous() for other in others)
    return _is_dense(weight) and all(other is None or other.stride() == weight.stride() for other in others)


def _grads_out_of_order(tensors: SteppedTensors, grads: Sequence[Tensor]) -> list[int]:
    negative = any(map(Tensor.is_neg, grads))
    if not negative and tensors.prepared.get("contiguous") and all(map(Tensor.is_contiguous, grads)):
        return []
    rows = enumerate(zip(tensors.weights, grads, strict=True))
    return [row for row, (weight, grad) in rows if not _in_one_order(weight, grad)]


def capturing(device: torch.device) -> bool:
    """Whether what is asked of a device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> int:
    """The address of a GPU's current stream, without the object that `torch.cuda.current_stream` makes."""
    index = torch.cuda.current_device() if device.index is None else device.index
    stream: int = torch._C._cuda_getCurrentRawStream(index)
    return stream


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on `device`; through pinned memory, so that nothing waits for a GPU.

    Raises:
        RuntimeError: a CUDA graph is captured, whose memory cannot hold what others read later.
    """
    if device.type == "cuda":
        if capturing(device):
            raise RuntimeError(
                "a table would have to be made and sent to the GPU, which cannot be done while a CUDA graph "
                "is captured; make the same call once, on the same tensors, before capturing"
            )
        table = table.pin_memory()
    return table.to(device, non_blocking=device.type != "cpu")


class SentNumbers:
    """Numbers of the host on a device, sent again when they have changed or the stream has.

    While a CUDA graph is captured they are sent each time, by a copy that the graph makes again with every
    replay, and nothing is kept: what a graph holds nobody else may read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: tuple[Any, NDArray[Any], Tensor] | None = None

    def of(self, numbers: NDArray[Any]) -> Tensor:
        """The numbers on the device, in an array of the same dtype and shape; the array is free again."""
        if capturing(self.device):
            return _FOR_GRAPHS.keep(torch.from_numpy(numbers)).to(self.device, non_blocking=True)
        stream = current_stream(self.device) if self.device.type == "cuda" else None
        if self._sent is not None and self._sent[0] == stream and _equal(self._sent[1], numbers):
            return self._sent[2]
        # Two copies: on a CPU the table is the very memory, and callers may write into it.
        table = sent(torch.from_numpy(numbers.copy()), self.device)
        self._sent = stream, numbers.copy(), table
        return table


class Gradients:
    """Where the gradients of tensors lie from step to step, and a backend's tables for their dtypes.

    Args:
        weights: whose gradients they are; none is kept.
        device: of all of them.
    """

    def __init__(self, weights: Sequence[Tensor], device: torch.device) -> None:
        self._found = np.empty((len(weights), 2), dtype=np.int64)
        self._filled = np.array([weight.numel() > 0 for weight in weights])
        self._sent = SentNumbers(device)
        self._made: tuple[bytes, Any] | None = None

    def now(self, grads: Sequence[Tensor], make: Callable[[], Any]) -> tuple[Any, Tensor]:
        """The tables, made again by `make` when a dtype has changed, and the addresses, int64 [P], sent."""
        write_addresses(grads, self._found, 0, 1)
        addresses, dtypes = self._found[:, 0], self._found[:, 1].tobytes()
        if (self._filled & (addresses == 0)).any():
            raise ValueError("a gradient has no memory; was its storage freed?")
        if self._made is None or self._made[0] != dtypes:
            self._made = dtypes, make()
        return self._made[1], self._sent.of(addresses)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class _PinnedForGraphs:
    """Pinned memory from which CUDA graphs copy with every replay: taken once, then left as it is for ever.

    It is allocated before a capture, by calls outside of it. A table of 300 addresses takes 2.4 kB.
    """

    _BLOCK = 1 << 20

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._left = 0

    def refill(self) -> None:
        """Sees to it that half a block is free."""
        if self._left < self._BLOCK // 2:
            self._blocks.append(torch.empty(self._BLOCK, dtype=torch.uint8, device="cpu", pin_memory=True))
            self._left = self._BLOCK

    def keep(self, table: Tensor) -> Tensor:
        """A copy of the table that stays."""
        size = table.numel() * table.element_size()
        taken = -(-size // 64) * 64
        if taken > self._left:
            raise RuntimeError(
                "too much was captured into CUDA graphs at once: no pinned memory is left for a table of "
                f"{size} bytes; make the same call once outside of the graph, which sets new memory aside"
            )
        begin = self._BLOCK - self._left
        self._left -= taken
        copy = self._blocks[-1][begin : begin + size].view(table.dtype).view(table.shape)
        return copy.copy_(table)


_FOR_GRAPHS = _PinnedForGraphs()


def prepare_for_graphs() -> None:
    """Sees to it that tables can be sent while a CUDA graph is captured; to be called while none is."""
    _FOR_GRAPHS.refill()


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
