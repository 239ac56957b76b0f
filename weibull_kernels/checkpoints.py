"""Checkpoints as they lie on disk: files, folders of shards, indices and pickles."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .safetensors_files import stored_in
from .stored_tensors import (
    Checkpoint,
    CheckpointError,
    PathLike,
    StoredTensor,
    checkpoint_of,
    require_dense,
)

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")

SUFFIXES = (".safetensors", *_PICKLES)
"""Of the files that are checkpoints."""

_KINDS = f"*.safetensors, *.index.json or {', '.join('*' + suffix for suffix in _PICKLES)}"

# What a folder calls the pickle of its model.
_MODEL_PICKLES = ("pytorch_model.bin", "model.pt", "model.pth")

# Where training scripts put the model, beside the optimizer and what else they save.
_MODEL_KEYS = ("state_dict", "model_state_dict", "model", "module")


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


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return Checkpoint(path, {tensor.name: tensor for tensor in stored_in(path)}, {})
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
    for tensor in (tensor for shard in shards for tensor in stored_in(shard)):
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


def _pickled(path: Path) -> Checkpoint:
    """What `torch.save` wrote."""
    named, left_out = _state_dict(path, load_pickle(path))
    for name, tensor in named.items():
        require_dense(path, name, tensor)
        stored = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
        if tensor.numel() > stored:  # of which a file of a few bytes may claim any number
            raise CheckpointError(
                f"{path}: '{name}' of shape {list(tensor.shape)} repeats its entries: it has "
                f"{tensor.numel():,}, of which {stored:,} are stored; save it after .contiguous()"
            )
    return checkpoint_of(path, named, left_out)


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
