"""What every result offers: its columns as a dict or a table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import pandas


class Columns:
    """For dataclasses whose fields are columns [P] and, under `names`, what the rows are called."""

    names: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, as numpy arrays on the host; this waits for the device."""
        labels = {} if self.names is None else {"name": np.array(self.names)}
        return labels | {
            field.name: _on_host(value)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if _is_column(value := getattr(self, field.name))
        }

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row per tensor; columns that hold more than a number a row are left to to_dict().

        Raises:
            ImportError: pandas is not installed.
            ValueError: the columns have more than one dimension.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: `pip install pandas`, or use to_dict()") from error
        columns = {name: np.atleast_1d(values) for name, values in self.to_dict().items()}
        rows = max(len(values) for values in columns.values())
        flat = {name: values for name, values in columns.items() if values.ndim == 1}
        if not flat:
            raise ValueError(
                f"to_pandas() takes columns [P], these have shape {next(iter(columns.values())).shape}; "
                "use to_dict()"
            )
        return pandas.DataFrame({name: np.broadcast_to(values, rows) for name, values in flat.items()})


def _is_column(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, int, float, np.number))


def _on_host(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
