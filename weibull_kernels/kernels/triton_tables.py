"""Where tensors lie and how they are cut into chunks: the tables that Triton kernels read on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .interface import SteppedTensors
from .memory import sent
from .triton_tuning import Dtypes, Tuning, tuning_of


@dataclass(frozen=True)
class Launch:
    """The chunks of all tensors with the same dtypes: [C, 2] int64 of row and first entry."""

    dtypes: Dtypes
    chunks: Tensor


@dataclass(frozen=True)
class Tables:
    """What one operation launches over P tensors.

    `rows` is [P, 10] int64: the addresses of weight, two moments, largest second moment and count (0
    where there is none), entries, first partial sum and their number, row of the hyperparameters
    and row of the ledger.
    """

    rows: Tensor
    launches: tuple[Launch, ...]
    tuning: Tuning
    partials: int

    def __len__(self) -> int:
        return self.rows.shape[0]


# Where a tensor lies: the addresses of a row, entries, row of the hyperparameters and of the ledger.
Place = tuple[tuple[int, int, int, int, int], int, int, int]


def tables_of(
    operation: str, places: Sequence[Place], dtypes: Sequence[Dtypes], device: torch.device
) -> Tables:
    """The tables of these tensors, sent to the device."""
    tuning = tuning_of(operation)
    counts = [-(-place[1] // tuning.chunk) for place in places]
    *firsts, partials = [0, *accumulate(counts)]
    rows = [
        (*addresses, numel, first, count, group, place)
        for (addresses, numel, group, place), first, count in zip(places, firsts, counts, strict=True)
    ]
    by_dtypes: dict[Dtypes, list[int]] = {}
    for row, kind in enumerate(dtypes):
        if counts[row]:
            by_dtypes.setdefault(kind, []).append(row)
    return Tables(
        sent(torch.tensor(rows, dtype=torch.int64, device="cpu"), device),
        tuple(
            Launch(kind, sent(_chunks(members, [counts[row] for row in members], tuning.chunk), device))
            for kind, members in by_dtypes.items()
        ),
        tuning,
        partials,
    )


def _chunks(rows: list[int], counts: list[int], chunk: int) -> Tensor:
    """Row and first entry [C, 2] of every chunk of these rows."""
    count = torch.tensor(counts, device="cpu")
    row = torch.tensor(rows, device="cpu").repeat_interleave(count)
    first = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.stack((row, chunk * (torch.arange(len(row), device="cpu") - first)), dim=1)


# What `sums` measures: the addresses of weight and moments, entries, dtypes.
Measured = tuple[int, int, int, int, Dtypes]


def measured(weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> Measured:
    """Where one row of `sums` lies; without both moments it has none."""
    if exp_avg is None or exp_avg_sq is None:
        return weight.data_ptr(), 0, 0, weight.numel(), (weight.dtype, None, None)
    dtypes = weight.dtype, exp_avg.dtype, exp_avg_sq.dtype
    return weight.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(), weight.numel(), dtypes


@functools.lru_cache(maxsize=8)
def tables_to_sum(
    operation: str, rows: tuple[Measured, ...], device: torch.device, stream: int | None
) -> Tables:
    """The tables of `sums` for a stream, made and sent once for as long as tensors stay where they are."""
    places: list[Place] = [((*row[:3], 0, 0), row[3], i, i) for i, row in enumerate(rows)]
    return tables_of(operation, places, [row[4] for row in rows], device)


def tables_to_measure(operation: str, tensors: SteppedTensors, device: torch.device) -> Tables:
    """The tables of `forces`; where there is a largest second moment, it is v."""
    places: list[Place] = []
    dtypes: list[Dtypes] = []
    moments = zip(tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs, strict=True)
    rows = zip(tensors.weights, moments, tensors.counts, tensors.groups, strict=True)
    for i, (weight, (exp_avg, exp_avg_sq, largest), count, group) in enumerate(rows):
        w, m, v, numel, kind = measured(weight, exp_avg, exp_avg_sq if largest is None else largest)
        places.append(((w, m, v, 0, count.data_ptr()), numel, group, i))
        dtypes.append(kind)
    return tables_of(operation, places, dtypes, device)


def tables_to_step(
    tensors: SteppedTensors, grad_dtypes: Sequence[torch.dtype], device: torch.device
) -> Tables:
    """The tables of `adamw`; dtypes are those of weight, gradient, moments and largest second moment."""
    places: list[Place] = []
    dtypes: list[Dtypes] = []
    moments = zip(tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs, strict=True)
    rows = zip(tensors.weights, grad_dtypes, moments, tensors.counts, strict=True)
    where = zip(tensors.groups, tensors.places, strict=True)
    for (weight, grad_dtype, state, count), (group, place) in zip(rows, where, strict=True):
        exp_avg, exp_avg_sq, largest = (0 if moment is None else moment.data_ptr() for moment in state)
        addresses = (weight.data_ptr(), exp_avg, exp_avg_sq, largest, count.data_ptr())
        places.append((addresses, weight.numel(), group, place))
        kinds = (None if moment is None else moment.dtype for moment in state)
        dtypes.append((weight.dtype, grad_dtype, *kinds))
    return tables_of("adamw", places, dtypes, device)
