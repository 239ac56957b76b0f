"""Tensors that torch's own engine has sharded (DTensor): what lies here, and sums over all of it.

FSDP2, HSDP, tensor parallelism and any of them together shard by DTensor; a plain tensor, as under DDP,
is whole on every process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from .kernels.interface import Sums
from .kernels.memory import index_on, sent

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, replicated or sharded."""
    # Its module takes half a second to load, and where nobody has loaded it there is none.
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def local_of(tensor: Tensor) -> Tensor:
    """The entries that this process holds, the very memory; of a plain tensor itself."""
    # to_local() makes a view of a parameter each time, which costs more than all the rest of a step.
    return tensor._local_tensor if is_sharded(tensor) else tensor


def holds_the_rest(weight: Tensor) -> bool:
    """Whether this process is the first of those that share a tensor, and so has what is not of any shard."""
    return not is_sharded(weight) or not any(weight.device_mesh.get_coordinate() or ())


def over_shards(weights: Sequence[Tensor], columns: Tensor, *, maxima: Sequence[int] = ()) -> Tensor:
    """Columns of the local shards of P tensors, added up over all shards: those of the whole tensors.

    A collective call where tensors are sharded: every process of their mesh must make it, with the tensors in
    the same order. Nothing waits for a GPU, but for shards offloaded to the host, whose sums go there
    and back. Each mesh takes one all-reduce, or one for each dimension of a mesh of several that is only a
    part of the job; the result is the same bits on every rank. Replicas are counted once, and counts are
    exact up to 2⁵³. Plain tensors take none and stay as they are.

    Args:
        weights: P tensors, sharded or plain; see `require_readable`.
        columns: [P, K] float64 of their local entries (`local_of`), on one device; 0 of an empty shard.
        maxima: columns whose largest value is wanted, not the sum; 0 or more.

    Returns:
        [P, K] float64, on the device of the columns.

    >>> over_shards([torch.ones(3)], torch.tensor([[3.0]]).double())
    tensor([[3.]], dtype=torch.float64)
    """
    by_mesh: dict[DeviceMesh, list[int]] = {}
    for row, weight in enumerate(weights):
        if is_sharded(weight):
            by_mesh.setdefault(weight.device_mesh, []).append(row)
    whole = columns
    for mesh, rows in by_mesh.items():
        index = index_on(rows, columns.device)
        counted = sent(
            torch.tensor([_counted_here(weights[row]) for row in rows], device="cpu"), columns.device
        )
        here = columns[index]
        kept = torch.where(counted[:, None], here, 0.0)
        total = all_reduced(kept, maxima, _groups(mesh), _place(mesh), mesh.size(), _device(mesh, columns))
        whole = whole.index_copy(0, index, total)
    return whole


def sums_over_shards(weights: Sequence[Tensor], sums: Sums) -> Sums:
    """What a kernel summed over local shards as the sums over the whole tensors; see `over_shards`."""
    if not any(map(is_sharded, weights)):
        return sums
    return unpacked(over_shards(weights, packed(sums), maxima=[MAX_ABS]))


_NAMES = [field.name for field in fields(Sums) if field.name != "histogram"]
SUMS = len(_NAMES)
"""How many columns they are `packed` in, without a histogram."""
MAX_ABS = _NAMES.index("max_abs")
"""The one among them that is no sum."""


def packed(sums: Sums) -> Tensor:
    """All of them as columns [P, K] float64, counts too: they are exact up to 2⁵³."""
    columns = torch.stack([getattr(sums, name).double() for name in _NAMES], dim=1)
    return columns if sums.histogram is None else torch.cat([columns, sums.histogram.double()], dim=1)


def unpacked(columns: Tensor) -> Sums:
    """The sums that were `packed`."""
    values = dict(zip(_NAMES, columns[:, : len(_NAMES)].unbind(1), strict=True))
    for count in ("zero_count", "non_finite_count"):
        values[count] = values[count].long()
    histogram = columns[:, len(_NAMES) :].long() if columns.shape[1] > len(_NAMES) else None
    return Sums(**values, histogram=histogram)


def all_reduced(
    columns: Tensor,
    maxima: Sequence[int],
    groups: Sequence[ProcessGroup],
    place: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """Columns [P, K] float64 of every process, added up in one all-reduce for each of the groups.

    The largest values travel along: each process has a slot of its own for them, where zeros are added.

    Args:
        columns: those of this process; the shape is the same on all.
        maxima: columns whose largest value is wanted, 0 or more.
        groups: one, or those of the dimensions of a mesh, one after the other; none is this process alone.
        place: of this process among all.
        size: how many those are.
        device: where the groups communicate.
    """
    if not groups:
        return columns
    slots = columns.new_zeros(size, len(maxima), len(columns))
    for slot, column in enumerate(maxima):
        slots[place, slot] = columns[:, column]
    message = torch.cat([columns.flatten(), slots.flatten()]).to(device)
    for group in groups:
        torch.distributed.all_reduce(message, group=group)
    added, filled = torch.split(message.to(columns.device), [columns.numel(), slots.numel()])
    total, largest = added.view(columns.shape), filled.view(slots.shape).amax(0)
    for slot, column in enumerate(maxima):
        total[:, column] = largest[slot]
    return total


def _counted_here(weight: Tensor) -> bool:
    """Whether this process is the one of its replicas whose entries count."""
    assert is_sharded(weight)
    coordinate = weight.device_mesh.get_coordinate()
    assert coordinate is not None
    placed = zip(weight.placements, coordinate, strict=True)
    return all(at == 0 for placement, at in placed if placement.is_replicate())


def _groups(mesh: DeviceMesh) -> list[ProcessGroup]:
    """The groups that add over all of a mesh: one where it is the whole job or has one dimension.

    Else one for each dimension. A group of the whole would be a new one, and making it is an affair of
    processes that have no part in this mesh, such as those of other pipeline stages.
    """
    dims = [dim for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    if len(dims) > 1 and mesh.size() == torch.distributed.get_world_size():
        world = torch.distributed.group.WORLD
        assert world is not None
        return [world]
    return [mesh.get_group(dim) for dim in dims]


def _place(mesh: DeviceMesh) -> int:
    """Where this process stands among all of a mesh."""
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    place = 0
    for at, size in zip(coordinate, mesh.shape, strict=True):
        place = place * size + at
    return place


def _device(mesh: DeviceMesh, columns: Tensor) -> torch.device:
    """Where the groups of a mesh communicate: with parameters offloaded to the host still the accelerator."""
    if mesh.device_type == columns.device.type:
        return columns.device
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.accelerator.current_device_index())
