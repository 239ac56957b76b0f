"""The Triton backend: one launch over the chunks of all tensors, one that combines them.

Tensors reach the kernel as a table of addresses, each row with its own hyperparameters and step.
Without a GPU the same kernels run on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .interface import BINS, LEDGER_COLUMNS, Rows, Step, SteppedTensors, Sums
from .memory import Gradients, current_stream, flat_columns, flat_to_read, flat_to_step
from .triton_tables import (
    Tables,
    measured,
    tables_to_measure,
    tables_to_step,
    tables_to_sum,
)

try:
    import triton

    from .triton_launch import combining_kernel, step_kernel, sum_kernel
except ImportError as error:
    triton = None
    _missing = str(error)

# Columns of partial sums; a step has the change of ‖w‖² too.
_COLUMNS, _STEP_COLUMNS = 8, 9


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
        flat = flat_columns(rows)  # holds copies alive until the launches are queued
        stream = current_stream(device) if device.type == "cuda" else None
        places = tuple(measured(*columns) for columns in flat)
        tables = tables_to_sum(_pass(with_histogram), places, device, stream)
        numbers = None, rows.bias_correction2, rows.eps
        partials, histogram = _sum_chunks(tables, numbers, with_histogram)
        totals = torch.empty(len(tables), _COLUMNS, dtype=torch.float64, device=device)
        if len(tables):
            combining_kernel("sums")(
                len(tables), tables.rows, rows.bias_correction1, rows.bias_correction2, partials, totals
            )
    return Sums.from_columns(totals[:, :6], totals[:, 6:].long(), histogram)


def forces(
    tensors: SteppedTensors, hyperparameters: Tensor, *, with_histogram: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The forces of the step that was just made: a launch for each combination of dtypes, and one to combine.

    Args:
        tensors: as they are after the step, with its count; `places` are not used.
        hyperparameters: float64 [G, 7] on the device, in the order of `HYPERPARAMETERS`.
        with_histogram: also count the weights.

    Returns:
        Rows in the order of `LEDGER_COLUMNS`, float64 [P, 14], and the histogram, int64 [P, BINS], or None.
    """
    device = hyperparameters.device
    with _current(device):
        flat = flat_to_read(tensors)  # holds copies alive until the launches are queued
        operation = _pass(with_histogram)
        tables = flat.prepared.get(f"triton {operation}")
        if tables is None:
            tables = flat.prepared[f"triton {operation}"] = tables_to_measure(operation, flat, device)
        partials, histogram = _sum_chunks(tables, (hyperparameters, None, None), with_histogram)
        found = torch.empty(len(tables), len(LEDGER_COLUMNS), dtype=torch.float64, device=device)
        if len(tables):
            combining_kernel("forces")(len(tables), tables.rows, hyperparameters, partials, found)
    return found, histogram


def adamw(tensors: SteppedTensors, step: Step) -> None:
    """One step of AdamW: a launch for each combination of dtypes, and one that counts and books it.

    Nothing waits for the device.
    """
    with (
        _current(step.hyperparameters.device),
        flat_to_step(tensors, step.grads, unscales=step.grad_scale is not None) as (flat, grads),
    ):
        if len(flat):
            _adamw(flat, grads, step)


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever device the tensors are on.

    Interpreted, it calls NumPy, which would warn of the infinities and NaN that a GPU passes on.
    """
    if device.type != "cuda":
        return np.errstate(all="ignore")
    if device.index in (None, torch.cuda.current_device()):
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _pass(with_histogram: bool) -> str:
    return "sums and histogram" if with_histogram else "sums"


def _sum_chunks(
    tables: Tables, numbers: tuple[Tensor | None, Tensor | None, Tensor | None], with_histogram: bool
) -> tuple[Tensor, Tensor | None]:
    """Launches the pass; partial sums [partials, 8], and the histogram [P, BINS] or None.

    `numbers` are the hyperparameters, or None and then bc₂ and ε of each row.
    """
    device = tables.rows.device
    partials = torch.empty(tables.partials, _COLUMNS, dtype=torch.float64, device=device)
    histogram = counts = None
    if with_histogram:
        histogram = torch.zeros(len(tables), BINS, dtype=torch.int64, device=device)
        if not tables.tuning.on_chip:
            counts = torch.zeros(tables.partials, tables.tuning.window, dtype=torch.int32, device=device)
    for launch in tables.launches:
        sum_kernel(launch.dtypes, tables.tuning)(
            launch.chunks.shape[0], launch.chunks, tables.rows, *numbers, partials, histogram, counts
        )
    return partials, histogram


def _adamw(tensors: SteppedTensors, grads: Sequence[Tensor], step: Step) -> None:
    device, partials = step.hyperparameters.device, None
    held = tensors.prepared.get("triton")
    if held is None:
        held = tensors.prepared["triton"] = Gradients(tensors.weights, device)
    tables, addresses = held.now(
        grads, lambda: tables_to_step(tensors, [grad.dtype for grad in grads], device)
    )
    if step.ledger is not None:
        partials = torch.empty(tables.partials, _STEP_COLUMNS, dtype=torch.float64, device=device)
    for launch in tables.launches:
        step_kernel(launch.dtypes, tables.tuning)(
            launch.chunks.shape[0],
            launch.chunks,
            tables.rows,
            addresses,
            step.hyperparameters,
            step.grad_scale,
            step.found_inf,
            partials,
        )
    combining_kernel("adamw")(
        len(tensors), tables.rows, step.hyperparameters, step.found_inf, partials, step.ledger
    )
