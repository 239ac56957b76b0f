"""The compiled CPU kernels: hands addresses and sizes to the extension built from `csrc/`."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .host import DTYPES, write_addresses
from .interface import BINS, Rows, Step, SteppedTensors, Sums
from .memory import flat_columns, flat_to_read, flat_to_step

try:
    from weibull_kernels import _cpu
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

DEVICES = ("cpu",)


def unavailable() -> str | None:
    """Why the extension cannot run, or None if it can."""
    if _missing is not None:
        return (
            f"the compiled extension is missing ({_missing}); install a C++17 compiler and the Python "
            "headers, then, in the checkout, `pip install --force-reinstall --no-deps .`"
        )
    return None


def instruction_sets() -> list[str]:
    """The instruction sets this processor runs, the widest first: the first is the one in use."""
    return _cpu.instruction_sets()


def sums(rows: Rows, *, with_histogram: bool = False, instruction_set: str | None = None) -> Sums:
    """Every sum of `interface.Sums` in one pass, by as many threads as torch is set to."""
    flat = flat_columns(rows)  # holds copies alive until the pass is over
    cells = [cell for columns in flat for cell in _addresses(*columns)]
    tensors = np.array(cells, dtype=np.int64).reshape(-1, 7)
    root = rows.bias_correction2.sqrt()
    scales = torch.stack((rows.eps * root, root / rows.bias_correction1), dim=1).numpy()
    histograms = _zeroed(len(flat)) if with_histogram else None
    values, counts = _cpu.sums(
        tensors,
        scales,
        histograms,
        instruction_set=instruction_set or _cpu.instruction_sets()[0],
        threads=torch.get_num_threads(),
    )
    return Sums.from_columns(
        torch.from_numpy(values),
        torch.from_numpy(counts),
        None if histograms is None else torch.from_numpy(histograms),
    )


def adamw(tensors: SteppedTensors, step: Step, *, instruction_set: str | None = None) -> None:
    """One step of AdamW on all tensors, booked in the ledger, by as many threads as torch is set to."""
    with flat_to_step(tensors, step.grads, unscales=step.grad_scale is not None) as (flat, grads):
        table = _table_of(flat)
        write_addresses(grads, table, _GRAD, _GRAD_DTYPE)
        _cpu.adamw(
            table,
            step.hyperparameters.numpy(),
            None if step.ledger is None else step.ledger.numpy(),
            grad_scale=0 if step.grad_scale is None else step.grad_scale.data_ptr(),
            found_inf=0 if step.found_inf is None else step.found_inf.data_ptr(),
            instruction_set=instruction_set or _cpu.instruction_sets()[0],
            threads=torch.get_num_threads(),
        )


def forces(
    tensors: SteppedTensors,
    hyperparameters: Tensor,
    *,
    with_histogram: bool = False,
    instruction_set: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The rows of `reference.forces` in one pass, by as many threads as torch is set to."""
    flat = flat_to_read(tensors)  # holds copies alive until the pass is over
    histograms = _zeroed(len(flat)) if with_histogram else None
    rows = _cpu.forces(
        _table_of(flat),
        hyperparameters.numpy(),
        histograms,
        instruction_set=instruction_set or _cpu.instruction_sets()[0],
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(rows), None if histograms is None else torch.from_numpy(histograms)


def gram(columns: Sequence[Tensor], *, instruction_set: str | None = None) -> Tensor:
    """The matrix of `reference.gram`, on the calling thread alone: callers share out the entries.

    The order of the additions depends neither on K nor on the width of a register.
    """
    cells, count = _states(columns)
    matrix = _cpu.gram(cells, count, instruction_set=instruction_set or _cpu.instruction_sets()[0])
    return torch.from_numpy(matrix)


def moves(columns: Sequence[Tensor], *, instruction_set: str | None = None) -> Tensor:
    """The table of `reference.moves` in one pass, on the calling thread alone like `gram`."""
    cells, count = _states(columns)
    table = _cpu.moves(cells, count, instruction_set=instruction_set or _cpu.instruction_sets()[0])
    return torch.from_numpy(table)


def normal_product(
    matrices: Sequence[Tensor], vectors: Sequence[Tensor], *, instruction_set: str | None = None
) -> list[Tensor]:
    """The products of `reference.normal_product`, by as many threads as torch is set to.

    In one read of the matrices, in float32 for all that are not float64. Those whose entries do not lie
    side by side in a row are copied, one at a time. The vectors must be contiguous.
    """
    if not all(rows.dtype == torch.float64 and rows.is_contiguous() for rows in vectors):
        raise ValueError("the vectors must be contiguous and float64")
    found: dict[int, Tensor] = {}
    together: dict[int, list[int]] = {}  # by how many vectors
    for i, matrix in enumerate(matrices):
        if matrix.stride(-1) == 1 or matrix.shape[-1] == 1:
            together.setdefault(len(vectors[i]), []).append(i)
        else:
            found[i] = normal_product([matrix.contiguous()], [vectors[i]], instruction_set=instruction_set)[0]
    for count, rows in together.items():
        cells = [_matrix(matrices[i], vectors[i]) for i in rows]
        products = _cpu.normal_product(
            np.array(cells, dtype=np.int64),
            count,
            instruction_set=instruction_set or _cpu.instruction_sets()[0],
            threads=torch.get_num_threads(),
        )
        parts = torch.split(torch.from_numpy(products), [vectors[i].numel() for i in rows])
        found |= {i: part.view(count, -1) for i, part in zip(rows, parts, strict=True)}
    return [found[i] for i in range(len(matrices))]


def _matrix(matrix: Tensor, vectors: Tensor) -> tuple[int, ...]:
    """A row of the table of matrices, as in csrc/cpu/bindings.cpp."""
    pieces = matrix if matrix.ndim == 3 else matrix[None]
    return (
        matrix.data_ptr(),
        DTYPES[matrix.dtype],
        *pieces.shape,
        *pieces.stride()[:2],
        vectors.data_ptr(),
    )


def _states(columns: Sequence[Tensor]) -> tuple[NDArray[np.int64], int]:
    """Addresses and dtypes [K, 2] of a tensor's states, and their length."""
    count = columns[0].numel()
    if not all(column.numel() == count and column.is_contiguous() for column in columns):
        raise ValueError("the states of a tensor must be contiguous and of one length")
    cells = [(column.data_ptr(), DTYPES[column.dtype]) for column in columns]
    return np.array(cells, dtype=np.int64), count


# Columns of the table of tensors to step, as in csrc/cpu/bindings.cpp.
_GRAD, _GRAD_DTYPE, _STEPPED_COLUMNS = 12, 13, 14


def _table_of(tensors: SteppedTensors) -> NDArray[np.int64]:
    """A row a tensor, made once for as long as they stay; columns of the gradient are left to each step."""
    table: NDArray[np.int64] | None = tensors.prepared.get("cpu")
    if table is not None:
        return table
    table = tensors.prepared["cpu"] = np.zeros((len(tensors), _STEPPED_COLUMNS), dtype=np.int64)
    columns = tensors.weights, tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs
    for place, column in enumerate(columns):
        table[:, place] = [0 if tensor is None else tensor.data_ptr() for tensor in column]
        table[:, 4 + place] = [0 if tensor is None else DTYPES[tensor.dtype] for tensor in column]
    table[:, 8] = [weight.numel() for weight in tensors.weights]
    table[:, 9] = [count.data_ptr() for count in tensors.counts]
    table[:, 10], table[:, 11] = tensors.groups, tensors.places
    return table


def _zeroed(rows: int) -> NDArray[np.int64]:
    """Empty histograms [rows, BINS], from pages that cost nothing until a bin of theirs is written.

    Most never are. `np.zeros` asks for huge pages, and touching one zeroes 2 MB.
    """
    pages = mmap.mmap(-1, max(rows, 1) * BINS * 8)
    return np.frombuffer(pages, dtype=np.int64, count=rows * BINS).reshape(rows, BINS)


def _addresses(weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> tuple[int, ...]:
    if exp_avg is None or exp_avg_sq is None:
        return weight.data_ptr(), 0, 0, weight.numel(), DTYPES[weight.dtype], 0, 0
    return (
        weight.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        weight.numel(),
        DTYPES[weight.dtype],
        DTYPES[exp_avg.dtype],
        DTYPES[exp_avg_sq.dtype],
    )
