"""Tensors as they are stored, in a file or in memory: any stretch of one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensors import place_of, require_plain

PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A file that is no checkpoint, is cut off, or says of itself what is not so; names the file."""


class Memory:
    """Bytes that one read after another may go to; to look at them is worked out once for each size."""

    def __init__(self, nbytes: int) -> None:
        self._bytes = torch.empty(nbytes, dtype=torch.uint8)
        self._views: dict[tuple[torch.dtype, int], tuple[Tensor, memoryview]] = {}

    def entries(self, dtype: torch.dtype, count: int) -> tuple[Tensor, memoryview]:
        """The first `count` entries, flat, and their bytes."""
        found = self._views.get((dtype, count))
        if found is None:
            found = self._views[dtype, count] = entries_in(self._bytes, dtype, count)
        return found


def entries_in(memory: Tensor, dtype: torch.dtype, count: int) -> tuple[Tensor, memoryview]:
    """The first `count` entries of uint8 memory, flat, and their bytes."""
    nbytes = count * dtype.itemsize
    if len(memory) < nbytes:
        raise ValueError(f"out has {len(memory):,} bytes, {count:,} entries need {nbytes:,}")
    piece = memory[:nbytes]
    return piece.view(dtype), memoryview(piece.numpy().data)


Out = Tensor | Memory | None
"""Where the bytes of a read may go: uint8, memory for many reads, or new memory."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a checkpoint: what is known of it without reading it, and how to read it.

    Attributes:
        name: under which it was saved.
        shape: of the tensor.
        dtype: as stored; it is read as it is.
        file: that holds it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    _read: Callable[[int, int, Out], Tensor] = field(repr=False)

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all entries."""
        return self.numel * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None, *, out: Out = None) -> Tensor:
        """Entries `start` to `stop` (the end) in row-major order, as a flat tensor on the CPU.

        The order is that of the indices, whatever the strides with which a pickle has the tensor, so
        that the same stretch of two checkpoints is of the same entries. Where the strides are others,
        the stretch is copied; the rest is not.

        Args:
            start: the first entry, as of a slice of the flattened tensor.
            stop: the one after the last.
            out: uint8, or `Memory`, where the bytes may go instead of into new memory. Its start
                must be aligned to the dtype. What comes from a mapped file does not need it.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
            ValueError: `out` is too small.
        """
        start, stop, _ = slice(start, stop).indices(self.numel)
        return self._read(start, max(start, stop), out)

    def load(self) -> Tensor:
        """The whole tensor in its shape, on the CPU."""
        return self.read().view(self.shape)

    def pieces(self, size: int) -> Iterator[Tensor]:
        """The entries in order, flat, in pieces of at most `size` bytes."""
        step = max(1, size // self.dtype.itemsize)
        for start in range(0, self.numel, step):
            yield self.read(start, start + step)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a file or of a folder of shards, by name, in the order they are stored.

    `left_out` says of names that are not among the tensors why they are not. Nothing need be
    closed: of the files that were read last 256 stay open, until others take their place.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    left_out: Mapping[str, str]

    def __iter__(self) -> Iterator[StoredTensor]:
        return iter(self.tensors.values())

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self)


def checkpoint_in_memory(tensors: Mapping[str, Tensor], called: str) -> Checkpoint:
    """Tensors by name, such as a `state_dict`, as a checkpoint; they are read where they are.

    Args:
        tensors: dense, on any device. What is no tensor is left out.
        called: the path that the checkpoint is to have in messages.

    Raises:
        CheckpointError: a tensor is sparse, quantised or on the meta device.
        TypeError: the tensors are not in a mapping by name; or one is sharded, or float8.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"{called}: expected a path or a mapping from name to tensor, got a {type(tensors).__name__}"
        )
    named = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    left_out = {
        str(name): f"not a tensor but a {type(value).__name__}"
        for name, value in tensors.items()
        if not isinstance(value, Tensor)
    }
    for name, tensor in named.items():
        require_dense(Path(called), name, tensor)
        if tensor.is_floating_point():
            require_plain(name, tensor)
    return checkpoint_of(Path(called), named, left_out)


def tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the very memory of an earlier one, and the earlier one's names."""
    first: dict[tuple[Any, ...], str] = {}
    again = {}
    for name, tensor in tensors.items():
        place = place_of(tensor)
        if place is not None and (earlier := first.setdefault(place, name)) != name:
            again[name] = earlier
    return again


def require_dense(path: Path, name: str, tensor: Tensor) -> None:
    """Raises a CheckpointError if the tensor's entries are not all in memory, one after another."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else tensor.device if tensor.is_meta else tensor.layout
        raise CheckpointError(f"{path}: '{name}' is {kind}; dense tensors can be read")


def checkpoint_of(path: Path, named: Mapping[str, Tensor], left_out: Mapping[str, str]) -> Checkpoint:
    """Tensors that are in memory, or mapped into it; each memory once."""
    again = tied(named)

    def reader(tensor: Tensor) -> Callable[[int, int, Out], Tensor]:
        return lambda start, stop, out: _stretch(tensor.detach(), start, stop)

    tensors = {
        name: StoredTensor(name, tuple(tensor.shape), tensor.dtype, path, reader(tensor))
        for name, tensor in named.items()
        if name not in again
    }
    return Checkpoint(
        path, tensors, {**left_out, **{name: f"tied to '{earlier}'" for name, earlier in again.items()}}
    )


def _stretch(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Entries of the flattened tensor, in row-major order, without a copy of the others."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    if start == stop:
        return tensor.new_empty(0)
    size = tensor.numel() // len(tensor)
    first, last = start // size, (stop - 1) // size
    if first == last:
        return _stretch(tensor[first], start - first * size, stop - first * size)
    # Rows that are whole, and what there is of the ones before and after.
    begin, end = -(-start // size), stop // size
    parts = [tensor[begin:end].reshape(-1)]
    if first < begin:
        parts.insert(0, _stretch(tensor[first], start - first * size, size))
    if end <= last:
        parts.append(_stretch(tensor[last], 0, stop - last * size))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
