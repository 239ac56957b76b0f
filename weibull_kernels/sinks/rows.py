"""One record as columns on the host: what every sink makes its own form of."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..budget import Array, ForceBudget
from ..columns import on_host
from ..records import FORCES, STATISTICS, is_text
from ..roles import roles_of


def record_rows(step: int, budget: ForceBudget, scalars: Mapping[str, Array]) -> dict[str, Any]:
    """The columns of a record file that the budget has, and the scalars, [P] each; waits for the device.

    Raises:
        ValueError: a column is neither [P] nor a single value.
    """
    columns = {name: getattr(budget, name) for name in (*FORCES, "rounding", "norm_sq", "numel", "steps")}
    columns["optimizer_step"] = budget.step
    if budget.weights is None:
        change = budget.predicted_change + (0 if budget.rounding is None else budget.rounding)
        columns["norm_sq_after"] = budget.norm_sq + change
    else:
        columns["norm_sq_after"] = budget.weights.norm_sq
        columns |= {name: getattr(budget.weights, name) for name in STATISTICS}
    # A loss may be bfloat16, which numpy does not know, and a list may hold tensors.
    columns |= {
        name: np.array(value) if is_text(value) else torch.as_tensor(value, dtype=torch.float64)
        for name, value in scalars.items()
    }
    known = on_host({name: column for name, column in columns.items() if column is not None})
    rows = max(column.size for column in known.values())
    if sizes := {name: column.shape for name, column in known.items() if column.size not in (1, rows)}:
        raise ValueError(f"columns must have one entry per tensor, {rows}, or a single one, got {sizes}")
    names = budget.names or tuple(str(row) for row in range(rows))
    return {
        "step": np.full(rows, step),
        "name": names,
        "role": roles_of(names, budget.role_overrides),
        **{name: _for_each(column, rows) for name, column in known.items()},
    }


def _for_each(column: np.ndarray, rows: int) -> np.ndarray:
    # broadcast_to costs more than all the rest that is done with a column.
    return column.reshape(-1) if column.size == rows else np.broadcast_to(column.reshape(-1), rows)


def take_out(rows: dict[str, Any], again: np.ndarray) -> None:
    """Take the force out of the rows that were written before."""
    if not again.any():
        return
    for column in (*FORCES, "rounding", "steps"):
        if column in rows:
            rows[column] = np.where(again, 0, rows[column])
    rows["norm_sq"] = np.where(again, rows["norm_sq_after"], rows["norm_sq"])


def fields_of(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Names and types of a schema, which takes its time to say them."""
    return [(field.name, field.type) for field in schema]


def as_batch(
    rows: Mapping[str, Any], schema: pa.Schema, fields: list[tuple[str, pa.DataType]]
) -> pa.RecordBatch:
    """The rows as the schema, of these fields, has them; null is what they do not have."""
    count = len(rows["name"])

    def array(column: Any, kind: pa.DataType) -> pa.Array:
        if column is None:
            return pa.nulls(count, kind)
        if isinstance(column, tuple):
            return _texts(column)
        if _ENTRIES.get(kind) != column.dtype:
            return pa.array(column, kind)
        # As it lies in memory; to have pyarrow look at it takes eight times as long.
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(np.ascontiguousarray(column))])

    return pa.RecordBatch.from_arrays([array(rows.get(name), kind) for name, kind in fields], schema=schema)


_ENTRIES = {pa.float64(): np.dtype(np.float64), pa.int64(): np.dtype(np.int64)}


@functools.lru_cache(maxsize=64)
def _texts(column: tuple[str, ...]) -> pa.Array:
    """Names and roles, the same in every record of a run."""
    return pa.array(column, pa.string())
