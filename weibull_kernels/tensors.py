"""What a tensor must be for the kernels to read or write its memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .kernels.memory import sent
from .shards import is_sharded, local_of

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


def require_readable(name: str, tensor: Tensor) -> None:
    """Raises an error if the kernels cannot read the entries of a parameter that lie here.

    It may be plain, or a DTensor that is sharded or replicated. Engines that keep flat shards of their own
    hide them in tensors that look plain; what they mark them with is known.

    Raises:
        TypeError: it is of another kind, a shard of another engine, or a sum still to be made (Partial).
        ValueError: this process is not part of the mesh that it is sharded over.
    """
    marks = [mark for mark in _SHARDED_BY if hasattr(tensor, mark)] if tensor.__dict__ else []
    if marks:
        raise TypeError(
            f"'{name}' is a shard of {_SHARDED_BY[marks[0]]}, whose shape is not that of the parameter; "
            "shard with torch.distributed.fsdp.fully_shard, or give the shards to wk.forces_from"
        )
    if not is_sharded(tensor):
        require_plain(name, tensor)
        return
    if any(placement.is_partial() for placement in tensor.placements):
        raise TypeError(
            f"'{name}' is a DTensor with placements {tensor.placements}: a sum that has not been made yet; "
            "redistribute it to Replicate or Shard placements first"
        )
    if tensor.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"'{name}' is sharded over {tensor.device_mesh}, which this process is not part of; measure it "
            "on the processes that are"
        )
    require_plain(name, local_of(tensor))


# What a parameter is marked with, by the engine that has sharded it. The first two are of FSDP1.
_SHARDED_BY = {
    "_is_flat_param": "torch's FullyShardedDataParallel (FSDP1)",
    "_fsdp_flattened": "torch's FullyShardedDataParallel (FSDP1)",
    "ds_id": "DeepSpeed's ZeRO-3",
}


def fits(tensor: Tensor, weight: Tensor, *, placed_alike: bool = True) -> bool:
    """Whether a gradient or moment can go with this weight into a kernel.

    Args:
        tensor: the gradient or moment.
        weight: plain or sharded.
        placed_alike: whether that of a sharded weight must have its placements; the mesh is the same in
            any case.
    """
    if tensor.shape != weight.shape or tensor.device != weight.device:
        return False
    if not is_sharded(weight):
        return _is_plain(tensor)
    return (
        is_sharded(tensor)
        and tensor.device_mesh == weight.device_mesh
        and (not placed_alike or tensor.placements == weight.placements)
        and _is_plain(local_of(tensor))
    )


def misfit(what: str, tensor: Tensor, weight: Tensor) -> Exception:
    """What is to be raised of a tensor that does not fit its weight."""
    if tensor.shape != weight.shape or tensor.device != weight.device:
        return ValueError(
            f"{what} must have the weight's shape {tuple(weight.shape)} and device {weight.device}, got "
            f"{tuple(tensor.shape)} on {tensor.device}; was the model moved or the state loaded after the "
            "optimizer was made?"
        )
    if not is_sharded(weight) or (is_sharded(tensor) and not _is_plain(local_of(tensor))):
        return _not_plain(what, local_of(tensor) if is_sharded(weight) else tensor)
    got = (
        f"{tensor.placements} over {tensor.device_mesh}"
        if is_sharded(tensor)
        else "a tensor that is not sharded"
    )
    return ValueError(
        f"{what} must be sharded like its weight, {weight.placements} over {weight.device_mesh}, got {got}; "
        "load state with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, which shards it"
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
