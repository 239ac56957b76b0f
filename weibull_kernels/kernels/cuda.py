"""The CUDA kernels: hands addresses to the extension built from `csrc/cuda`.

Each call is two launches on the current stream, one over the chunks of all tensors whatever their
dtypes (a third for float64 ones among others) and one that combines them. Nothing waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .host import DTYPES
from .interface import BINS, LEDGER_COLUMNS, Rows, Step, SteppedTensors, Sums
from .memory import Gradients, current_stream, flat_columns, flat_to_read, flat_to_step, sent

try:
    from weibull_kernels import _cuda
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

DEVICES = ("cuda",)


def unavailable() -> str | None:
    """Why the extension cannot run, or None if it can."""
    if _missing is not None:
        return (
            f"the compiled extension is missing ({_missing}); install the CUDA toolkit, whose compiler is "
            "nvcc, then, in the checkout, `WEIBULL_KERNELS_CUDA=1 pip install --force-reinstall --no-deps .`"
        )
    if torch.version.hip:
        return "it is for NVIDIA GPUs, and this torch is for AMD's; use backend='triton'"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return _unfit()


@functools.cache
def _unfit() -> str | None:
    """Why a GPU here or its driver cannot run what was compiled; asked once, not at every named call."""
    if _cuda.driver_version() // 1000 < _cuda.RUNTIME_VERSION // 1000:
        return (
            f"it was compiled with CUDA {_cuda.RUNTIME_VERSION / 1000:.1f}, and the driver is for "
            f"{_cuda.driver_version() / 1000:.1f}; install a newer driver, or compile with an older toolkit"
        )
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not has_code_for(major, minor):
            held = ", ".join(f"{one / 10:.1f}" for one in _cuda.ARCHITECTURES)
            return (
                f"it was compiled for compute capabilities {held}, and GPU {index} has {major}.{minor}; name "
                "that in WEIBULL_KERNELS_CUDA_ARCH when it is compiled (8.0 is the least), or use "
                "backend='triton'"
            )
    return None


def has_code_for(major: int, minor: int) -> bool:
    """Whether a GPU of this compute capability runs what was compiled: of its kind, or a later one by PTX."""
    asked, held = 10 * major + minor, _cuda.ARCHITECTURES
    return asked >= held[-1] or any(one // 10 == major and one <= asked for one in held)


class Table(NamedTuple):
    """Rows of tensors on the device, and the tuple by which the extension knows them."""

    rows: Tensor
    row_of_chunk: Tensor
    call: tuple[int, int, int, int, bool, bool]

    @property
    def chunks(self) -> int:
        """Of all rows."""
        return self.call[3]


def sums(rows: Rows, *, with_histogram: bool = False, blocks: int = 0) -> Sums:
    """Every sum of `interface.Sums`, in one pass shared by `blocks` blocks (0: one for each chunk)."""
    device = rows.eps.device
    flat = flat_columns(rows)  # holds copies alive until the launches are queued
    table = _table_of_sums(tuple(_cells(*columns) for columns in flat), device, current_stream(device))
    root = rows.bias_correction2.sqrt()
    scaled_eps, scales = rows.eps * root, root / rows.bias_correction1
    totals = torch.empty(len(flat), _cuda.SUM_COLUMNS, dtype=torch.float64, device=device)
    histogram = _counts(len(flat), device) if with_histogram else None
    partials = _partials(table, _cuda.SUMS_BYTES, device)
    _cuda.sums(
        table.call,
        scaled_eps.data_ptr(),
        scales.data_ptr(),
        partials.data_ptr(),
        totals.data_ptr(),
        0 if histogram is None else histogram.data_ptr(),
        *_place(device),
        blocks,
    )
    return Sums.from_columns(totals[:, :6], totals[:, 6:].long(), histogram)


def forces(
    tensors: SteppedTensors, hyperparameters: Tensor, *, with_histogram: bool = False, blocks: int = 0
) -> tuple[Tensor, Tensor | None]:
    """What the step that tensors have just made did, float64 [P, 14], and their histogram if asked for."""
    device = hyperparameters.device
    flat = flat_to_read(tensors)
    table = flat.prepared.get("cuda forces")
    if table is None:
        table = flat.prepared["cuda forces"] = _table_of_stepped(flat, [None] * len(flat), device)
    ledger = torch.empty(len(flat), len(LEDGER_COLUMNS), dtype=torch.float64, device=device)
    histogram = _counts(len(flat), device) if with_histogram else None
    partials = _partials(table, _cuda.SUMS_BYTES, device)
    _cuda.forces(
        table.call,
        hyperparameters.data_ptr(),
        partials.data_ptr(),
        ledger.data_ptr(),
        0 if histogram is None else histogram.data_ptr(),
        *_place(device),
        blocks,
    )
    return ledger, histogram


def adamw(tensors: SteppedTensors, step: Step, *, blocks: int = 0) -> None:
    """One step of AdamW on all tensors, booked in the ledger."""
    device = step.hyperparameters.device
    with flat_to_step(tensors, step.grads, unscales=step.grad_scale is not None) as (flat, grads):
        held = flat.prepared.get("cuda")
        if held is None:
            held = flat.prepared["cuda"] = Gradients(flat.weights, device)
        table, addresses = held.now(grads, lambda: _table_of_stepped(flat, grads, device))
        partials = _partials(table, 0 if step.ledger is None else _cuda.STEP_SUMS_BYTES, device)
        _cuda.adamw(
            table.call,
            addresses.data_ptr(),
            step.hyperparameters.data_ptr(),
            0 if step.grad_scale is None else step.grad_scale.data_ptr(),
            0 if step.found_inf is None else step.found_inf.data_ptr(),
            partials.data_ptr(),
            0 if step.ledger is None else step.ledger.data_ptr(),
            *_place(device),
            blocks,
        )


def _place(device: torch.device) -> tuple[int, int]:
    """The number of a device, and its current stream."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, current_stream(device)


def _counts(rows: int, device: torch.device) -> Tensor:
    return torch.zeros(rows, BINS, dtype=torch.int64, device=device)


def _partials(table: Table, size: int, device: torch.device) -> Tensor:
    return torch.empty(table.chunks * size, dtype=torch.uint8, device=device)


# What the extension needs of a tensor, in the order of `Row` in csrc/cuda/table.h: the addresses of weight,
# moments, largest second moment and count of steps, the number of entries, the place of its first chunk,
# the rows of hyperparameters and ledger, the dtypes of its columns.
_NUMEL, _FIRST_CHUNK, _DTYPES_OF = 5, 6, 9
_Cells = tuple[int, ...]


def _dtypes(*columns: Tensor | None) -> int:
    """A byte a column, the first the lowest."""
    return sum(
        DTYPES[column.dtype] << 8 * place for place, column in enumerate(columns) if column is not None
    )


def _cells(weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> _Cells:
    """The row of a tensor whose numbers come beside it."""
    moments = (0 if moment is None else moment.data_ptr() for moment in (exp_avg, exp_avg_sq))
    dtypes = _dtypes(weight, exp_avg, exp_avg_sq)
    return weight.data_ptr(), *moments, 0, 0, weight.numel(), 0, 0, 0, dtypes


@functools.lru_cache(maxsize=8)
def _table_of_sums(cells: tuple[_Cells, ...], device: torch.device, stream: int | None) -> Table:
    """The table of these tensors for a stream, made and sent once for as long as they stay where they are."""
    return _table(cells, device)


def _table_of_stepped(tensors: SteppedTensors, grads: Sequence[Tensor | None], device: torch.device) -> Table:
    rows = []
    for place, weight in enumerate(tensors.weights):
        moments = tensors.exp_avgs[place], tensors.exp_avg_sqs[place], tensors.max_exp_avg_sqs[place]
        rows.append(
            (
                weight.data_ptr(),
                *(0 if moment is None else moment.data_ptr() for moment in moments),
                tensors.counts[place].data_ptr(),
                weight.numel(),
                0,
                tensors.groups[place],
                tensors.places[place],
                _dtypes(weight, *moments, grads[place]),
            )
        )
    return _table(rows, device)


def _table(cells: Sequence[_Cells], device: torch.device) -> Table:
    """Rows on the device, with the place of their first chunk."""
    rows = np.array(cells, dtype=np.int64).reshape(-1, _cuda.ROW_COLUMNS)
    chunks = -(-rows[:, _NUMEL] // _cuda.CHUNK)
    rows[:, _FIRST_CHUNK] = chunks.cumsum() - chunks
    columns = rows[:, _DTYPES_OF, None] >> np.arange(0, 40, 8) & 0xFF
    wide = (columns == DTYPES[torch.float64]).any(axis=1) & (chunks > 0)
    narrow = ~wide & (chunks > 0)
    there = sent(torch.from_numpy(rows), device)
    row_of_chunk = sent(torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int32), chunks)), device)
    sizes = len(rows), len(row_of_chunk), bool(wide.any()), bool(narrow.any())
    return Table(there, row_of_chunk, (there.data_ptr(), row_of_chunk.data_ptr(), *sizes))
