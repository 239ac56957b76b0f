"""Checkpoints as they lie on disk: which tensors there are, and any stretch of one at a time."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensors import require_plain

PathLike = str | os.PathLike[str]

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

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")

SUFFIXES = (".safetensors", *_PICKLES)
"""Of the files that are checkpoints."""

_KINDS = f"*.safetensors, *.index.json or {', '.join('*' + suffix for suffix in _PICKLES)}"

_LONGEST_HEADER = 100_000_000  # the format's own limit

# What a folder calls the pickle of its model.
_MODEL_PICKLES = ("pytorch_model.bin", "model.pt", "model.pth")

# Where training scripts put the model, beside the optimizer and what else they save.
_MODEL_KEYS = ("state_dict", "model_state_dict", "model", "module")


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
            found = self._views[dtype, count] = _entries(self._bytes, dtype, count)
        return found


def _entries(memory: Tensor, dtype: torch.dtype, count: int) -> tuple[Tensor, memoryview]:
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


def open_checkpoint(path: PathLike) -> Checkpoint:
    """What a checkpoint holds, checked against the sizes of its files; no tensor is read yet.

    Args:
        path: a `.safetensors` file; a folder of shards, with its index or without, or of a
            `pytorch_model.bin` or `model.pt`; the index itself; or `.pt`, `.pth`, `.bin`, `.ckpt` as
            `torch.save` wrote it, a state_dict or a dict that holds one under "state_dict",
            "model_state_dict", "model" or "module", what is beside it being left out. Such a file
            is a pickle: it is loaded with `weights_only=True`, never otherwise, and its entries stay on
            disk, but for files of before torch 1.6, which are read whole.

    Raises:
        FileNotFoundError: there is nothing at the path.
        CheckpointError: the file is not a checkpoint, is cut off, has a header or an index that
            does not agree with what is there, has a tensor that repeats stored entries, or needs
            more than `weights_only=True` allows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"weight": torch.tensor([[3.0, 4.0]])}, folder + "/model.pt")
    ...     [weight] = open_checkpoint(folder + "/model.pt")
    ...     weight.name, weight.shape, weight.load().tolist()
    ('weight', (1, 2), [[3.0, 4.0]])
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.name.endswith(".index.json"):
        return _indexed(path)
    return _file(path)


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
        _require_dense(Path(called), name, tensor)
        if tensor.is_floating_point():
            require_plain(name, tensor)
    return _of_tensors(Path(called), named, left_out)


def load_pickle(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; its tensors are mapped, and read when they are looked at.

    Raises:
        OSError: the file is not there or cannot be read.
        CheckpointError: it is broken, or needs more than `weights_only=True` allows.
    """
    path.open("rb").close()  # what the system has against it is not torch's to say
    try:
        # The format before 1.6 was no zip, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of many kinds: what a broken pickle raises is not documented
        raise CheckpointError(f"{path} cannot be loaded with weights_only=True: {_reason(error)}") from None


def tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the very memory of an earlier one, and the earlier one's names."""
    first: dict[tuple[Any, ...], str] = {}
    again = {}
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.is_meta or tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (earlier := first.setdefault(place, name)) != name:
            again[name] = earlier
    return again


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return Checkpoint(path, {tensor.name: tensor for tensor in _safetensors(path)}, {})
    if path.suffix in _PICKLES:
        return _pickled(path)
    raise CheckpointError(f"{path} is not a checkpoint by its name; expected a folder, {_KINDS}")


def _folder(folder: Path) -> Checkpoint:
    indices = sorted(folder.glob("*.index.json"))
    # Where there are several, such as one for each format: safetensors first, the plain name first.
    for pattern in ("model.safetensors.index.json", "*.safetensors.index.json", "*.index.json"):
        if found := [index for index in indices if index.match(pattern)]:
            if len(found) > 1:
                names = ", ".join(index.name for index in found)
                raise CheckpointError(f"{folder} has several indices, {names}; give one of them")
            return _indexed(found[0])
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        # Beside a model's pickle there may be others, the optimizer's among them: only these names are its.
        for name in _MODEL_PICKLES:
            if (folder / name).is_file():
                return _pickled(folder / name)
        raise CheckpointError(
            f"{folder} holds neither an index nor *.safetensors nor {', '.join(_MODEL_PICKLES)}; "
            "expected one of them"
        )
    tensors: dict[str, StoredTensor] = {}
    for tensor in (tensor for shard in shards for tensor in _safetensors(shard)):
        if (other := tensors.setdefault(tensor.name, tensor)) is not tensor:
            raise CheckpointError(
                f"'{tensor.name}' is in {other.file} and in {tensor.file.name}, and no index says which "
                "counts; give one of the files"
            )
    return Checkpoint(folder, tensors, {})


def _indexed(index: Path) -> Checkpoint:
    """The shards that an index names, `{"weight_map": {tensor: shard}}`."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{index} is not an index of shards, which is {{"weight_map": {{tensor: shard}}}}: {error!r}'
        ) from None
    shards = {}
    for shard in dict.fromkeys(shard_of.values()):
        # Beside the index, as everyone writes them: an index must not lead elsewhere.
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names the shard '{shard}', which is not beside it")
        shards[shard] = _file(index.parent / shard)
    for name, shard in shard_of.items():
        if name not in shards[shard].tensors and name not in shards[shard].left_out:
            raise CheckpointError(f"{index} says that '{name}' is in {shard}, but it is not")
    every = [(shard, tensor) for shard, opened in shards.items() for tensor in opened]
    left_out = {name: why for opened in shards.values() for name, why in opened.left_out.items()}
    left_out |= {
        tensor.name: f"{shard} has it, the index does not name it"
        for shard, tensor in every
        if tensor.name not in shard_of
    }
    tensors = {tensor.name: tensor for shard, tensor in every if shard_of.get(tensor.name) == shard}
    return Checkpoint(index.parent, tensors, left_out)


def _safetensors(path: Path) -> Iterable[StoredTensor]:
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
            entries, view = _entries(out, dtype, count)
        descriptor, position = _opened(file), begin + start * dtype.itemsize
        while view:  # a read gives at most 2 GiB
            got = os.preadv(descriptor.number, (view,), position)
            if not got:
                raise CheckpointError(f"{file.path} has become shorter while it was read")
            view, position = view[got:], position + got
        return entries

    return read


def _pickled(path: Path) -> Checkpoint:
    """What `torch.save` wrote."""
    named, left_out = _state_dict(path, load_pickle(path))
    for name, tensor in named.items():
        _require_dense(path, name, tensor)
        stored = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
        if tensor.numel() > stored:  # of which a file of a few bytes may claim any number
            raise CheckpointError(
                f"{path}: '{name}' of shape {list(tensor.shape)} repeats its entries: it has "
                f"{tensor.numel():,}, of which {stored:,} are stored; save it after .contiguous()"
            )
    return _of_tensors(path, named, left_out)


def _require_dense(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else tensor.device if tensor.is_meta else tensor.layout
        raise CheckpointError(f"{path}: '{name}' is {kind}; dense tensors can be read")


def _of_tensors(path: Path, named: Mapping[str, Tensor], left_out: Mapping[str, str]) -> Checkpoint:
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


def _state_dict(path: Path, saved: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and why the rest is left out."""
    # The keys first: beside a model there may be tensors, such as the loss.
    keys = [key for key in _MODEL_KEYS if key in saved] if isinstance(saved, Mapping) else []
    for key in [*keys, None]:
        found = saved if key is None else saved[key]
        if isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values()):
            named = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
            rest = {
                str(name): f"not a tensor but a {type(value).__name__}"
                for name, value in found.items()
                if not isinstance(value, Tensor)
            }
            beside = {} if key is None else {str(name): f"beside '{key}'" for name in saved if name != key}
            return named, {name: why for name, why in beside.items() if name not in named} | rest
    what = f"a dict of {', '.join(map(str, saved))}" if isinstance(saved, Mapping) else type(saved).__name__
    raise CheckpointError(
        f"{path} holds no tensors by name but {what[:200]}; expected a state_dict, or one under "
        f"{', '.join(map(repr, _MODEL_KEYS))}"
    )


def _reason(error: Exception) -> str:
    """The line of torch's many that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return (told or lines or [type(error).__name__])[0].split(". ")[0]
