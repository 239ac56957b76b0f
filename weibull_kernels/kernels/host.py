"""Facts of many torch tensors at once: compiled where `_tensors` could be built, else in Python.

What comes out is the same, sooner. The compiled way reads plain tensors through torch's own table of C
functions (DLPack, offered since torch 2.10); of what is not plain (subclasses, sparse, meta, quantised) it
asks `described`. What neither sees is a sign that torch keeps beside the memory (a negative view) where a
tensor is given one and stays at its address.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

try:
    from weibull_kernels import _tensors
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""As in csrc/columns.h."""

_PLAIN = (Tensor, torch.nn.Parameter)


def uncompiled() -> str | None:
    """Why all is done in Python, or None if it is not."""
    return _missing


class Found(NamedTuple):
    """The tensors of an optimizer, each parameter once, in the order of its groups."""

    sizes: list[int]  # parameters of each group
    parameters: list[Tensor]
    gradients: list[Tensor | None]  # of each parameter, where they were asked for
    states: list[list[Any]]  # a list for each name, of what the states hold; None where one has nothing


def walk(optimizer: torch.optim.Optimizer, names: tuple[str, ...], *, gradients: bool = False) -> Found:
    """What an optimizer holds now; nothing is added to its state."""
    groups, state = optimizer.param_groups, optimizer.state
    usual = isinstance(state, dict) and isinstance(groups, list)
    if usual and _missing is None and all(isinstance(group["params"], list) for group in groups):
        return Found(*_tensors.walk(groups, state, names, gradients))
    return _walk(groups, state, names, gradients)


def _walk(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], names: tuple[str, ...], gradients: bool
) -> Found:
    everyone = (parameter for group in groups for parameter in group["params"])
    parameters = list({id(parameter): parameter for parameter in everyone}.values())
    held = [state.get(parameter, {}) for parameter in parameters]
    return Found(
        [len(group["params"]) for group in groups],
        parameters,
        [parameter.grad for parameter in parameters] if gradients else [],
        [[entries.get(name) for entries in held] for name in names],
    )


class Facts:
    """What tensors were when it was made: where they lie and how, and which of them there were none of.

    It keeps no tensor. Other tensors of which all this is the same hold as well: to a kernel they are the
    same. A bare number counts as a number, whatever its value.

    Args:
        columns: lists of tensors, sharded ones too, of numbers and of None.
        addresses: whether it matters where they lie, and with which strides; else dtype, device and shape.
    """

    def __init__(self, columns: list[list[Any]], *, addresses: bool = True) -> None:
        self._addresses = addresses
        if _missing is None:
            self._compiled: Any = _tensors.Facts(columns, described, _sharded(), addresses)
        else:
            self._compiled = None
            self._described = self._all(columns)

    def hold_for(self, columns: list[list[Any]]) -> bool:
        """Whether these are all that the first ones were."""
        if self._compiled is not None:
            held: bool = self._compiled.hold_for(columns, _sharded())
            return held
        return self._described == self._all(columns)

    def _all(self, columns: list[list[Any]]) -> list[list[Any]]:
        return [[described(tensor, self._addresses) for tensor in column] for column in columns]


def described(tensor: Any, addresses: bool) -> Any:
    """The facts of one tensor, to be compared."""
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor):
        return "a number"
    if type(tensor) is _sharded():
        spec = tensor._spec  # type: ignore[attr-defined]
        return spec.mesh, spec.placements, described(tensor._local_tensor, addresses)  # type: ignore[attr-defined]
    kind = type(tensor) if type(tensor) not in _PLAIN else Tensor
    if torch.nn.parameter.is_lazy(tensor):  # has no shape yet
        return kind
    facts = kind, tensor.dtype, tensor.layout, tensor.device, tensor.shape
    if not addresses or tensor.layout is not torch.strided or tensor.is_meta:
        return facts
    return *facts, tensor.data_ptr(), tensor.stride()


def write_addresses(tensors: Sequence[Tensor], table: NDArray[np.int64], address: int, dtype: int) -> None:
    """Addresses and `DTYPES` of tensors into two columns of a table of a row each."""
    if _missing is None and _tensors.write_addresses(list(tensors), table, address, dtype):
        return
    table[:, address] = [tensor.data_ptr() for tensor in tensors]
    table[:, dtype] = [DTYPES[tensor.dtype] for tensor in tensors]


def read_numbers(values: Sequence[Any], into: NDArray[np.float32]) -> list[int]:
    """Numbers, None (0) and tensors of one entry on the CPU, as float32.

    Returns:
        The places of those on another device, which are left as they were.
    """
    unread = range(len(values)) if _missing is not None else _tensors.read_numbers(list(values), into)
    elsewhere = []
    for place in unread:
        value = values[place]
        if isinstance(value, Tensor) and value.device.type != "cpu":
            elsewhere.append(place)
        else:
            number = value.item() if isinstance(value, Tensor) else value
            into[place] = 0 if number is None else float(number)
    return elsewhere


def _sharded() -> type | None:
    """The class of DTensors, which takes half a second to load; where nobody has loaded it there is none."""
    found: type | None = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return found
