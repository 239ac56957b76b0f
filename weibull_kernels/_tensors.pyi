"""The extension built from csrc/host."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

class Facts:
    def __init__(
        self,
        columns: list[list[Any]],
        describe: Callable[[Any, bool], Any],
        sharded: type | None,
        addresses: bool,
    ) -> None: ...
    def hold_for(self, columns: list[list[Any]], sharded: type | None) -> bool: ...

def walk(
    param_groups: list[dict[str, Any]], state: dict[Any, Any], names: tuple[str, ...], gradients: bool
) -> tuple[list[int], list[Tensor], list[Tensor | None], list[list[Any]]]: ...
def write_addresses(tensors: list[Tensor], table: NDArray[np.int64], address: int, dtype: int) -> bool: ...
def read_numbers(values: list[Any], into: NDArray[np.float32]) -> list[int]: ...
