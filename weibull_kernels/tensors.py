"""What a tensor must be for the kernels to read or write its memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .kernels.memory import sent

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (torch.nn.Parameter, Tensor)


def require_plain(name: str, tensor: Tensor) -> None:
    """Raises a TypeError that says why the kernels cannot read the memory of a tensor, if they cannot."""
    if not _is_plain(tensor):
        raise _not_plain(f"'{name}'", tensor)


def place_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """What tensors that are the very same entries of memory have in common; None where none can be told."""
    plain = type(tensor) in _PLAIN and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def fits(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a gradient or moment can go with this weight into a kernel."""
    return tensor.shape == weight.shape and tensor.device == weight.device and _is_plain(tensor)


def misfit(what: str, tensor: Tensor, weight: Tensor) -> Exception:
    """What is to be raised of a tensor that does not fit its weight."""
    if tensor.shape == weight.shape and tensor.device == weight.device:
        return _not_plain(what, tensor)
    return ValueError(
        f"{what} must have the weight's shape {tuple(weight.shape)} and device {weight.device}, got "
        f"{tuple(tensor.shape)} on {tensor.device}; was the model moved or the state loaded after the "
        "optimizer was made?"
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether its memory is entries of a dtype that the kernels read."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype in _DTYPES
        and tensor.layout is torch.strided
        and not tensor.is_meta
    )


def _not_plain(what: str, tensor: Tensor) -> TypeError:
    kind = type(tensor)
    if kind not in _PLAIN:
        return TypeError(
            f"{what} is a {kind.__module__}.{kind.__qualname__}; the kernels read plain torch tensors, "
            "so gather a sharded or wrapped parameter first"
        )
    if tensor.layout != torch.strided:
        return TypeError(
            f"{what} has layout {tensor.layout}; the kernels need a dense tensor: call .to_dense()"
        )
    if tensor.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        return TypeError(f"{what} has dtype {tensor.dtype}; the kernels take {known}")
    return TypeError(f"{what} is on the meta device and has no entries; materialise it first")


def column(values: Iterable[float | Tensor], device: torch.device) -> Tensor:
    """Numbers and 0-dim tensors as float64 [P] on `device`, without waiting for the device."""
    values = list(values)
    if not any(isinstance(value, Tensor) for value in values):
        return sent(torch.tensor(values, dtype=torch.float64, device="cpu"), device)
    cells = [
        v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device="cpu") for v in values
    ]
    if len({(cell.device, cell.dtype) for cell in cells}) > 1:
        cells = [cell.to(device, torch.float64, non_blocking=device.type != "cpu") for cell in cells]
    return torch.stack(cells).to(device, torch.float64, non_blocking=device.type != "cpu")
