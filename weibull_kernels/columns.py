"""What every result offers: its columns as a dict or a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .kernels.memory import index_on

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


def picked(column: Any, rows: Sequence[int]) -> Any:
    """The entries of a tensor or array at the given rows; nothing waits for a device."""
    if isinstance(column, Tensor):
        return column[index_on(rows, column.device)]
    return column[rows]


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
    tensors = {name: column for name, column in columns.items() if isinstance(column, Tensor)}
    short = {name: column for name, column in tensors.items() if column.ndim <= 1}
    arrived = Transfer(short).wait()
    arrived |= {name: column.detach().cpu().numpy() for name, column in tensors.items() if name not in short}
    return {name: arrived[name] if name in arrived else np.asarray(c) for name, c in columns.items()}


class Transfer:
    """Columns by name on their way to the host, in one copy from each device that nothing waits for.

    What is on the host already is not copied.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self._here: dict[str, Tensor] = {}
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, column in columns.items():
            if column.device.type == "cpu":
                self._here[name] = column
            else:
                by_device.setdefault(column.device, {})[name] = column.detach()
        self._parcels = [_Parcel(there) for there in by_device.values()]
        self._names = tuple(columns)

    @property
    def nothing(self) -> bool:
        """Whether all of them were on the host already."""
        return not self._parcels

    def ready(self) -> bool:
        """Whether all of them have arrived."""
        return all(parcel.ready() for parcel in self._parcels)

    def wait(self) -> dict[str, np.ndarray]:
        """The columns as numpy arrays of the dtypes and shapes they have."""
        found = dict(self._here)
        for parcel in self._parcels:
            found |= parcel.opened()
        return {name: found[name].detach().numpy() for name in self._names}


class _Parcel:
    """Columns of one device, packed as bytes so that those of any dtypes travel together."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self._columns = {name: (column.dtype, column.shape) for name, column in columns.items()}
        packed = [
            column.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
            for column in columns.values()
        ]
        self._sizes = [len(part) for part in packed]
        self._bytes, self._left = _begin_copy(torch.cat(packed))

    def ready(self) -> bool:
        """Whether it is here."""
        return self._left.query()

    def opened(self) -> dict[str, Tensor]:
        """The columns, once they are here."""
        self._left.synchronize()
        parts = torch.split(self._bytes, self._sizes)
        # Cloned: a dtype wants its alignment, and no column should keep the others alive.
        return {
            name: part.clone().view(dtype).view(shape)
            for (name, (dtype, shape)), part in zip(self._columns.items(), parts, strict=True)
        }


def _begin_copy(packed: Tensor) -> tuple[Tensor, torch.Event]:
    """Bytes that come to the host, into pinned memory without which the copy would wait; and when they do."""
    here = torch.empty(len(packed), dtype=torch.uint8, device="cpu", pin_memory=True)
    here.copy_(packed, non_blocking=True)
    left = torch.Event(packed.device)
    # Named, since the device of the columns need not be the current one.
    left.record(torch.accelerator.current_stream(packed.device))
    return here, left
