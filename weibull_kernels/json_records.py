"""Records as JSON lines: a line that describes the file, then an object for each row.

JSON has no NaN and no infinities. They are the texts "NaN", "Infinity" and "-Infinity" in columns of
numbers, so that every reader of JSON takes the file and null keeps its meaning: not known.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa


def header_line(schema: pa.Schema, key: bytes) -> bytes:
    """What the metadata has under a key, as the object it is, and the type of each column."""
    name = key.decode()
    types = {field.name: str(field.type) for field in schema}
    return _line({name: json.loads(schema.metadata[key]), "columns": types})


def row_lines(rows: pa.Table | pa.RecordBatch) -> bytes:
    """A line for each row, the columns in their order; numbers come back as the same bits."""
    return b"".join(_line(row) for row in rows.to_pylist())


def table_of(text: bytes, key: bytes) -> pa.Table:
    """The rows of such a file; a last line that was cut off is left out.

    Raises:
        ValueError: a line before the last is no JSON object, or the first does not describe the columns.
    """
    *lines, _torn = text.split(b"\n")  # whole lines end with one: the last part is empty or cut off
    if not lines:
        raise ValueError("its first line is cut off")
    header = _object(lines[0], 1)
    if key.decode() not in header or not isinstance(header.get("columns"), dict):
        raise ValueError(f"its first line does not have {key.decode()!r} and 'columns'")
    metadata = {key: json.dumps(header[key.decode()]).encode()}
    schema = pa.schema([(name, _type(kind)) for name, kind in header["columns"].items()], metadata)
    rows = [_object(line, number) for number, line in enumerate(lines[1:], 2)]
    columns = [
        pa.array([_read(row.get(field.name), field.type) for row in rows], field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(_spelled(content), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spelled(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(part) for part in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _read(value: Any, kind: pa.DataType) -> Any:
    return float(value) if value is not None and pa.types.is_float64(kind) else value


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"line {number} is no JSON object")
    return content


def _type(kind: str) -> pa.DataType:
    types = {str(known): known for known in (pa.int64(), pa.float64(), pa.string())}
    if kind not in types:
        raise ValueError(f"columns have the types {', '.join(types)}, its first line has {kind!r}")
    return types[kind]
