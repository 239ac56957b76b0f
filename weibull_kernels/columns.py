"""What every result offers: its columns as a dict or a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas


class Columns:
    """For dataclasses whose fields are columns [P] and, under `names`, what the rows are called."""

    names: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, with the role of each tensor where there are roles, as numpy arrays on the host.

        This waits for the device.
        """
        labels = {} if self.names is None else {"name": np.array(self.names)}
        if (roles := getattr(self, "roles", None)) is not None:
            labels["role"] = np.array(roles)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return labels | on_host({name: value for name, value in fields.items() if _is_column(value)})

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row per tensor; columns that hold more than a number a row are left to to_dict().

        Raises:
            ImportError: pandas is not installed.
            ValueError: the columns have more than one dimension.
        """
        library = require_pandas()
        columns = {name: np.atleast_1d(values) for name, values in self.to_dict().items()}
        rows = max(len(values) for values in columns.values())
        flat = {name: values for name, values in columns.items() if values.ndim == 1}
        if not flat:
            raise ValueError(
                f"to_pandas() takes columns [P], these have shape {next(iter(columns.values())).shape}; "
                "use to_dict()"
            )
        frame: pandas.DataFrame = library.DataFrame(
            {name: np.broadcast_to(values, rows) for name, values in flat.items()}
        )
        return frame


def require_pandas() -> ModuleType:
    """pandas, or an ImportError that says how to do without."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: `pip install pandas`, or use to_dict()") from error
    return pandas


def _is_column(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, int, float, np.number))


def on_host(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Columns by name as numpy arrays of the dtypes and shapes they have; this waits for the device.

    What is at most [P] comes in one copy from each device: a copy costs the same few microseconds
    for one column as for all. A histogram comes by itself.
    """
    tensors = {name: column.detach() for name, column in columns.items() if isinstance(column, Tensor)}
    short = {name: column for name, column in tensors.items() if column.ndim <= 1}
    arrived = {name: column.cpu().numpy() for name, column in tensors.items() if name not in short}
    for device in {column.device for column in short.values()}:
        there = {name: column for name, column in short.items() if column.device == device}
        # As bytes, so that columns of any dtypes travel together.
        packed = [
            column.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
            for column in there.values()
        ]
        parts = torch.split(torch.cat(packed).cpu(), [len(part) for part in packed])
        for (name, column), part in zip(there.items(), parts, strict=True):
            # Cloned: a dtype wants its alignment, and no column should keep the others alive.
            arrived[name] = part.clone().view(column.dtype).view(column.shape).numpy()
    return {name: arrived[name] if name in arrived else np.asarray(c) for name, c in columns.items()}
