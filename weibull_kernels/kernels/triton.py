"""The Triton backend: one launch over the chunks of all tensors, one that combines them.

Tensors reach the kernel as a table of addresses, each row with its own betas, ε and step.
Without a GPU the same kernels run on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .interface import BINS, Rows, Step, SteppedTensors, Sums
from .memory import flat_columns, flat_to_step, sent

try:
    import triton
except ImportError as error:
    triton = None
    _missing = str(error)

CHUNK = 32768
"""Entries of a partial sum. It belongs to a chunk, so that scheduling changes nothing."""

COUNT_BLOCK = 2048
"""Entries counted at a time: the on-chip window of the histogram is emptied after each."""

COMBINED = 256
"""Partial sums added at a time: the combination is a chain of such reads, 100 of them for 8e8 entries."""

# Fusion is pinned: its default changes between releases of Triton, and with it the last bits.
LAUNCH = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}

Dtypes = tuple[torch.dtype | None, ...]
"""Of the columns that a kernel reads, in its order; None for a column that is not there."""

# Columns of partial sums; a step has the change of ‖w‖² too.
_COLUMNS, _STEP_COLUMNS = 8, 9
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
    with _current(device):
        return _sums(rows, device, with_histogram)


def adamw(tensors: SteppedTensors, step: Step) -> None:
    """One step of AdamW: a launch for each combination of dtypes, and one that counts and books it.

    Nothing waits for the device.
    """
    with (
        _current(step.hyperparameters.device),
        flat_to_step(tensors, step.grads, unscales=step.grad_scale is not None) as (flat, grads),
    ):
        _adamw(flat, grads, step)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever device the tensors are on.

    Interpreted, it calls NumPy, which would warn of the infinities and NaN that a GPU passes on.
    """
    return torch.cuda.device(device) if device.type == "cuda" else np.errstate(all="ignore")


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
            **constants(launch.dtypes, _warp_size()),
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


def _adamw(tensors: SteppedTensors, grads: Sequence[Tensor], step: Step) -> None:
    from . import triton_adamw as kernels

    if not len(tensors):
        return
    tables = tensors.prepared.get("triton")
    if tables is None:
        tables = tensors.prepared["triton"] = StepTables(tensors, step.hyperparameters.device)
    device, partials = tables.device, None
    if step.ledger is not None:
        partials = torch.empty(tables.partials, _STEP_COLUMNS, dtype=torch.float64, device=device)
    addresses = tables.addresses(grads)
    for launch in tables.launches(grads):
        kernels.step_chunks[(launch.chunks.shape[0],)](
            launch.chunks,
            tables.rows,
            addresses,
            step.hyperparameters,
            step.grad_scale,
            step.found_inf,
            partials,
            **step_constants(launch.dtypes, _warp_size()),
            **LAUNCH,
        )
    kernels.finish_steps[(len(tensors),)](
        tables.rows,
        step.hyperparameters,
        step.found_inf,
        partials,
        step.ledger,
        CHUNK=CHUNK,
        BLOCK=COMBINED,
        **LAUNCH,
    )


def _warp_size() -> int:
    return 64 if torch.version.hip else 32


def constants(dtypes: Dtypes, warp_size: int) -> dict[str, Any]:
    """What `sum_chunks` is compiled for, given the dtypes of weight and moments (None: no moments).

    A block gives every thread 16 bytes of the narrowest column.
    """
    weight, exp_avg, exp_avg_sq = dtypes
    return {
        "WEIGHT": _named(weight),
        "EXP_AVG": _named(exp_avg or weight),
        "EXP_AVG_SQ": _named(exp_avg_sq or weight),
        "HAS_MOMENTS": exp_avg is not None,
        "COUNT_BLOCK": COUNT_BLOCK,
        **_sizes(dtypes, _ALIGNMENT // min(_itemsizes(dtypes)), warp_size),
    }


def step_constants(dtypes: Dtypes, warp_size: int) -> dict[str, Any]:
    """What `step_chunks` is compiled for, given the dtypes of weight, gradient and moments.

    The last, of the largest second moment, is None without amsgrad. A block gives every thread 16
    bytes of the widest column: with more, what is stored there would be rearranged in shared memory.
    """
    names = ("WEIGHT", "GRAD", "EXP_AVG", "EXP_AVG_SQ", "MAX_EXP_AVG_SQ")
    vector = _ALIGNMENT // max(_itemsizes(dtypes))
    return {**dict(zip(names, map(_named, dtypes), strict=True)), **_sizes(dtypes, vector, warp_size)}


def _named(dtype: torch.dtype | None) -> Any:
    """The dtype of Triton that has the same name."""
    import triton.language as tl

    return dtype and getattr(tl, str(dtype).removeprefix("torch."))


def _sizes(dtypes: Dtypes, vector: int, warp_size: int) -> dict[str, Any]:
    """What both kernels are compiled for besides their dtypes; a thread takes `vector` entries of a block."""
    return {
        "ARITHMETIC": _named(torch.float64 if torch.float64 in dtypes else torch.float32),
        "CHUNK": CHUNK,
        "BLOCK": LAUNCH["num_warps"] * warp_size * vector,
        "VECTOR": vector,
    }


def _itemsizes(dtypes: Dtypes) -> list[int]:
    return [dtype.itemsize for dtype in dtypes if dtype is not None]


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
    """The chunks of all tensors with the same dtypes: [C, 2] int64 of row and first entry."""

    dtypes: Dtypes
    chunks: Tensor


def _launches(numels: Sequence[int], dtypes: Sequence[Dtypes], device: torch.device) -> tuple[Launch, ...]:
    by_dtypes: dict[Dtypes, list[int]] = {}
    for row, kind in enumerate(dtypes):
        by_dtypes.setdefault(kind, []).append(row)
    return tuple(
        Launch(kind, sent(chunks, device))
        for kind, rows in by_dtypes.items()
        if len(chunks := _chunks(rows, [numels[row] for row in rows]))
    )


def _chunks(rows: list[int], numels: list[int]) -> Tensor:
    """Row and first entry [C, 2] of every chunk of these rows."""
    counts = torch.tensor([_chunk_count(numel) for numel in numels], device="cpu")
    row = torch.tensor(rows, device="cpu").repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack((row, CHUNK * (torch.arange(len(row), device="cpu") - first)), dim=1)


def _chunk_count(numel: int) -> int:
    return -(-numel // CHUNK)


def _firsts(numels: Sequence[int]) -> list[int]:
    """The place of each tensor's first partial sum, then the number of them all."""
    return [0, *accumulate(map(_chunk_count, numels))]


def _table(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    return sent(torch.tensor(rows, dtype=torch.int64, device="cpu"), device)


@dataclass(frozen=True)
class Plan:
    """The tables on the device; `rows` is [P, 5] int64 of three addresses, entries, first partial sum."""

    rows: Tensor
    launches: tuple[Launch, ...]
    partials: int


@functools.lru_cache(maxsize=8)
def _plan(addresses: tuple[Address, ...], device: torch.device) -> Plan:
    """The tables of these tensors, made and sent once for as long as they stay where they are."""
    numels = [address[3] for address in addresses]
    *firsts, partials = _firsts(numels)
    return Plan(
        rows=_table(
            [(*address[:4], first) for address, first in zip(addresses, firsts, strict=True)], device
        ),
        launches=_launches(numels, [address[4] for address in addresses], device),
        partials=partials,
    )


class StepTables:
    """The tables of stepped tensors on their device, and what follows their gradients from step to step.

    `rows` is [P, 9] int64: the addresses of weight, moments, largest moment (0 without amsgrad) and
    count, entries, first partial sum, row of the hyperparameters and row of the ledger.
    """

    def __init__(self, tensors: SteppedTensors, device: torch.device) -> None:
        self.device = device
        self._numels = [weight.numel() for weight in tensors.weights]
        *firsts, self.partials = _firsts(self._numels)
        states = tuple(zip(tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs, strict=True))
        self._dtypes = [
            (weight.dtype, *(None if moment is None else moment.dtype for moment in state))
            for weight, state in zip(tensors.weights, states, strict=True)
        ]
        places = zip(self._numels, firsts, tensors.groups, tensors.places, strict=True)
        self.rows = _table(
            [
                (
                    weight.data_ptr(),
                    *(0 if moment is None else moment.data_ptr() for moment in state),
                    count.data_ptr(),
                    *place,
                )
                for weight, state, count, place in zip(
                    tensors.weights, states, tensors.counts, places, strict=True
                )
            ],
            device,
        )
        self._grads: tuple[list[int], Tensor] | None = None
        self._launches: tuple[list[torch.dtype], tuple[Launch, ...]] | None = None

    def addresses(self, grads: Sequence[Tensor]) -> Tensor:
        """Where the gradients lie, [P] int64; sent again only when one has moved."""
        found = [grad.data_ptr() for grad in grads]
        if any(not address and grad.numel() for address, grad in zip(found, grads, strict=True)):
            raise ValueError("a gradient has no memory; was its storage freed?")
        if self._grads is None or self._grads[0] != found:
            self._grads = found, sent(torch.tensor(found, dtype=torch.int64, device="cpu"), self.device)
        return self._grads[1]

    def launches(self, grads: Sequence[Tensor]) -> tuple[Launch, ...]:
        """The chunks by the dtypes of all columns; made again only when a gradient's has changed."""
        found = [grad.dtype for grad in grads]
        if self._launches is None or self._launches[0] != found:
            dtypes = [(kind[0], grad, *kind[1:]) for kind, grad in zip(self._dtypes, found, strict=True)]
            self._launches = found, _launches(self._numels, dtypes, self.device)
        return self._launches[1]
