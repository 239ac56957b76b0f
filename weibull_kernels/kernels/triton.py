"""The Triton backend: one launch over the chunks of all tensors, one that combines them.

Tensors reach the kernel as a table of addresses, each row with its own betas, ε and step.
Without a GPU the same kernels run on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .interface import BINS, Rows, Sums
from .memory import flat_columns, sent

try:
    import triton
except ImportError as error:
    triton = None
    _missing = str(error)

CHUNK = 32768
"""Entries of a partial sum. It belongs to a chunk, so that scheduling changes nothing."""

COUNT_BLOCK = 2048
"""Entries counted at a time: the on-chip window of the histogram is emptied after each."""

COMBINED = 64
"""Partial sums added at a time."""

# Fusion is pinned: its default changes between releases of Triton, and with it the last bits.
LAUNCH = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}

_COLUMNS = 8
_ALIGNMENT = 16


def unavailable() -> str | None:
    """Why Triton cannot run, or None if it can."""
    if triton is None:
        return f"triton cannot be imported ({_missing}); install it with `pip install triton`"
    if not torch.cuda.is_available() and not _interpreted():
        return "torch sees no GPU; set TRITON_INTERPRET=1 to run the kernels on the CPU, slowly, for tests"
    return None


def _interpreted() -> bool:
    return triton is not None and bool(triton.knobs.runtime.interpret)


DEVICES = ("cuda", "cpu, interpreted") if _interpreted() else ("cuda",)


def sums(rows: Rows, *, with_histogram: bool = False) -> Sums:
    """Every sum of `interface.Sums`: a launch for each combination of dtypes, and one to combine."""
    device = rows.eps.device
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return _sums(rows, device, with_histogram)


def _sums(rows: Rows, device: torch.device, with_histogram: bool) -> Sums:
    from . import triton_language as kernels

    flat = flat_columns(rows)  # holds copies alive until the launches are queued
    plan = _plan(tuple(_address(*columns) for columns in flat), device)
    partials = torch.empty(plan.partials, _COLUMNS, dtype=torch.float64, device=device)
    totals = torch.empty(len(flat), _COLUMNS, dtype=torch.float64, device=device)
    shape = (len(flat), BINS) if with_histogram else (1, 1)
    histogram = torch.zeros(shape, dtype=torch.int64, device=device)
    for launch in plan.launches:
        kernels.sum_chunks[(launch.chunks.shape[0],)](
            launch.chunks,
            plan.rows,
            rows.bias_correction2,
            rows.eps,
            partials,
            histogram,
            **constants(*launch.dtypes, warp_size=64 if torch.version.hip else 32),
            HAS_HISTOGRAM=with_histogram,
            **LAUNCH,
        )
    if flat:
        kernels.combine_chunks[(len(flat),)](
            plan.rows,
            rows.bias_correction1,
            rows.bias_correction2,
            partials,
            totals,
            CHUNK=CHUNK,
            BLOCK=COMBINED,
            **LAUNCH,
        )
    return Sums.from_columns(totals[:, :6], totals[:, 6:].long(), histogram if with_histogram else None)


def constants(
    weight: torch.dtype, exp_avg: torch.dtype | None, exp_avg_sq: torch.dtype | None, *, warp_size: int
) -> dict[str, Any]:
    """What `sum_chunks` is compiled for, given the dtypes it reads (None: no moments).

    A block gives every thread 16 bytes of the narrowest column.
    """
    import triton.language as tl

    def of(dtype: torch.dtype | None) -> Any:
        return getattr(tl, str(dtype or weight).removeprefix("torch."))

    dtypes = [dtype for dtype in (weight, exp_avg, exp_avg_sq) if dtype is not None]
    vector = _ALIGNMENT // min(dtype.itemsize for dtype in dtypes)
    return {
        "WEIGHT": of(weight),
        "EXP_AVG": of(exp_avg),
        "EXP_AVG_SQ": of(exp_avg_sq),
        "ARITHMETIC": tl.float64 if torch.float64 in dtypes else tl.float32,
        "HAS_MOMENTS": exp_avg is not None,
        "CHUNK": CHUNK,
        "BLOCK": LAUNCH["num_warps"] * warp_size * vector,
        "VECTOR": vector,
        "COUNT_BLOCK": COUNT_BLOCK,
    }


Dtypes = tuple[torch.dtype, torch.dtype | None, torch.dtype | None]

# Where a tensor lies: the addresses of weight and moments, entries, dtypes.
Address = tuple[int, int, int, int, Dtypes]


def _address(weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> Address:
    if exp_avg is None or exp_avg_sq is None:
        return weight.data_ptr(), 0, 0, weight.numel(), (weight.dtype, None, None)
    return (
        weight.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        weight.numel(),
        (weight.dtype, exp_avg.dtype, exp_avg_sq.dtype),
    )


@dataclass(frozen=True)
class Launch:
    """The chunks of all tensors with the same dtypes: [C, 3] int64 of row, first entry, alignment."""

    dtypes: Dtypes
    chunks: Tensor


@dataclass(frozen=True)
class Plan:
    """The tables on the device; `rows` is [P, 5] int64 of three addresses, entries, first partial sum."""

    rows: Tensor
    launches: tuple[Launch, ...]
    partials: int


@functools.lru_cache(maxsize=8)
def _plan(addresses: tuple[Address, ...], device: torch.device) -> Plan:
    """The tables of these tensors, made and sent once for as long as they stay where they are."""
    table: list[tuple[int, ...]] = []
    by_dtypes: dict[Dtypes, list[Tensor]] = {}
    partials = 0
    for row, (weight, exp_avg, exp_avg_sq, numel, dtypes) in enumerate(addresses):
        table.append((weight, exp_avg, exp_avg_sq, numel, partials))
        begins = torch.arange(0, numel, CHUNK, device="cpu")
        aligned = not any(pointer % _ALIGNMENT for pointer in (weight, exp_avg, exp_avg_sq))
        chunks = torch.stack((torch.full_like(begins, row), begins, torch.full_like(begins, aligned)), dim=1)
        by_dtypes.setdefault(dtypes, []).append(chunks)
        partials += len(begins)
    return Plan(
        rows=sent(torch.tensor(table, dtype=torch.int64, device="cpu").reshape(-1, 5), device),
        launches=tuple(
            Launch(dtypes, sent(chunks, device))
            for dtypes, parts in by_dtypes.items()
            if len(chunks := torch.cat(parts))
        ),
        partials=partials,
    )
