"""Files in the format of safetensors: what is in them, and any stretch of a tensor without the rest."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stored_tensors import CheckpointError, Memory, Out, StoredTensor, entries_in

# The format's names for dtypes. Those of less than a byte, which torch has no such tensors of, are refused.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}

_LONGEST_HEADER = 100_000_000  # the format's own limit


def stored_in(path: Path) -> Iterable[StoredTensor]:
    """The tensors of a safetensors file in the order of their bytes.

    The format is read here and not with its package, which maps files into memory: every page that
    was looked at then counts as resident until the file is closed, and slices go by rows.
    https://huggingface.co/docs/safetensors/index#format
    """
    stored_file = _File.of(path)
    size = stored_file.size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(
                f"{path} is not a safetensors file, or is cut off: its header would be {length:,} bytes "
                f"long, the file has {size:,}"
            )
        written = file.read(length)
    try:
        header = json.loads(written)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        stored = [_entry(stored_file, 8 + length, name, entry) for name, entry in entries.items()]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be read ({error!r})"
        ) from None
    stored.sort(key=lambda entry: entry[:2])
    position = 8 + length
    for begin, end, tensor in stored:
        if begin != position:
            raise CheckpointError(
                f"{path}: '{tensor.name}' begins at byte {begin:,} of the file, not where the tensor before "
                f"it ends, {position:,}; its header is wrong"
            )
        position = end
    if position != size:
        raise CheckpointError(
            f"{path}: its tensors end at byte {position:,}, the file has {size:,}; its header is wrong"
        )
    return [tensor for _, _, tensor in stored]


def _entry(file: _File, data: int, name: str, entry: Any) -> tuple[int, int, StoredTensor]:
    """First byte in the file, byte after the last, and the tensor that an entry of the header describes."""
    path, size = file.path, file.size
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise CheckpointError(f"{path}: '{name}' has shape {list(shape)} at bytes {begin} to {end}")
    if entry["dtype"] not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise CheckpointError(f"{path}: '{name}' has dtype {entry['dtype']}; {known} can be read")
    dtype = _DTYPES[entry["dtype"]]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: '{name}' of shape {list(shape)} and dtype {entry['dtype']} has "
            f"{math.prod(shape) * dtype.itemsize:,} bytes, its header gives it {end - begin:,}"
        )
    if data + end > size:
        raise CheckpointError(
            f"{path}: '{name}' ends at byte {data + end:,}, the file has {size:,}; it is cut off, or its "
            "header is wrong"
        )
    return data + begin, data + end, StoredTensor(name, shape, dtype, path, _at(file, data + begin, dtype))


@dataclass(frozen=True)
class _File:
    """One that was there when the checkpoint was opened; another at its path is another file."""

    path: Path
    size: int
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> _File:
        found = path.stat()
        return cls(path, found.st_size, (found.st_dev, found.st_ino, found.st_mtime_ns))


class _Descriptor:
    """Of an open file, which is closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=256)
def _opened(file: _File) -> _Descriptor:
    """Kept open for the next read: opening a file costs as much as reading a block of it."""
    return _Descriptor(file.path)


def close_files() -> None:
    """Closes what was kept open for the next read, as soon as nobody reads it."""
    _opened.cache_clear()


def _at(file: _File, begin: int, dtype: torch.dtype) -> Callable[[int, int, Out], Tensor]:
    """Reads entries of the flat tensor that begins at a byte of a file."""

    def read(start: int, stop: int, out: Out) -> Tensor:
        count = stop - start
        if isinstance(out, Memory):
            entries, view = out.entries(dtype, count)
        else:
            out = torch.empty(count * dtype.itemsize, dtype=torch.uint8) if out is None else out
            entries, view = entries_in(out, dtype, count)
        descriptor, position = _opened(file), begin + start * dtype.itemsize
        while view:  # a read gives at most 2 GiB
            got = os.preadv(descriptor.number, (view,), position)
            if not got:
                raise CheckpointError(f"{file.path} has become shorter while it was read")
            view, position = view[got:], position + got
        return entries

    return read
