"""The checkpoints of a run in the order of their steps, and the tensors that all of them have."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from .checkpoints import SUFFIXES, open_checkpoint
from .statistics import readable
from .stored_tensors import Checkpoint, PathLike, StoredTensor, checkpoint_in_memory

CheckpointSource = PathLike | Mapping[str, Tensor] | Checkpoint
"""A path that `open_checkpoint` takes, tensors by name, or an open checkpoint."""

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter(?:ation)?)[-_=]?0*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """K checkpoints of one run.

    Attributes:
        steps: [K], how many optimizer steps each was saved after; ascending.
        checkpoints: as they were opened, [K].
        tensors: by name, those of every checkpoint, [K] each; of one shape, floating point, in the
            order of the first checkpoint.
        left_out: names that are not among them, and why.
    """

    steps: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...]
    tensors: Mapping[str, tuple[StoredTensor, ...]]
    left_out: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Of all tensors in all checkpoints."""
        return sum(stored.nbytes for of_name in self.tensors.values() for stored in of_name)


def find_checkpoints(folder: PathLike) -> dict[int, Path]:
    """The checkpoints of a run in a folder, by step: `step1000`, `checkpoint-1000`, `iter_0001000.pt`, ….

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: nothing in it is called so, or two are of the same step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("step20.pt", "step3.safetensors", "step3.log"):
    ...         (Path(folder) / name).touch()
    ...     [path.name for path in find_checkpoints(folder).values()]
    ['step3.safetensors', 'step20.pt']
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a single checkpoint; give the folder of the run, or all of its checkpoints"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of checkpoints")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if (step := step_of(path)) is None or not (path.is_dir() or path.suffix in SUFFIXES):
            continue
        if other := found.get(step):
            raise ValueError(
                f"{folder} has two checkpoints of step {step}, {other.name} and {path.name}; "
                "move one away, or give the paths and steps yourself"
            )
        found[step] = path
    if not found:
        raise ValueError(
            f"{folder} holds no checkpoints by their names; expected files or folders such as step1000, "
            "checkpoint-1000 or iter_1000.pt"
        )
    return dict(sorted(found.items()))


def step_of(path: PathLike) -> int | None:
    """The step that the name of a checkpoint tells, or None.

    >>> step_of("runs/a/step1000/"), step_of("iter_0000200.pt"), step_of("model.pt")
    (1000, 200, None)
    """
    numbers = _STEP.findall(Path(path).name)
    return int(numbers[-1]) if numbers else None


def open_trajectory(
    checkpoints: PathLike | Sequence[CheckpointSource], steps: Sequence[int] | None = None
) -> Trajectory:
    """Opens the checkpoints of a run and finds what is in all of them; no tensor is read yet.

    Args:
        checkpoints: in the order of their steps, each with shards of its own; or a folder of
            them, see `find_checkpoints`.
        steps: [K] whole numbers, how many optimizer steps each was saved after; told from the
            names of the paths if None.

    Raises:
        ValueError: the steps do not ascend, are not one for each checkpoint or cannot be told, or
            no tensor is in all checkpoints.
        FileNotFoundError, CheckpointError: a path cannot be read.
        TypeError: a checkpoint is neither a path nor a mapping; or has a tensor of a dtype that
            cannot be read, such as float8.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        found = find_checkpoints(checkpoints)
        if steps is not None:
            raise ValueError(
                f"the steps of the folder {checkpoints} are told from its names; leave steps out"
            )
        checkpoints, steps = list(found.values()), list(found)
    numbers = steps_of(checkpoints, steps)
    opened = tuple(_open(source, step) for source, step in zip(checkpoints, numbers, strict=True))
    left_out: dict[str, str] = {}
    stored: list[dict[str, StoredTensor]] = []
    for checkpoint in opened:
        floating, others = readable(checkpoint)
        # What lies beside the model, the optimizer's state or a count of steps, is no tensor of it.
        beside = {name for name, why in checkpoint.left_out.items() if why.startswith("beside ")}
        left_out |= {n: why for n, why in {**checkpoint.left_out, **others}.items() if n not in beside}
        stored.append({tensor.name: tensor for tensor in floating})
    tensors = {}
    for name in dict.fromkeys(name for of_one in stored for name in of_one):
        if (why := _not_in_all(name, stored, numbers)) is None:
            tensors[name] = tuple(of_one[name] for of_one in stored)
        else:
            left_out[name] = why
    if not tensors:
        which = f"; {next(iter(left_out))}: {next(iter(left_out.values()))}" if left_out else ""
        raise ValueError(f"no floating-point tensor is in all {len(opened)} checkpoints{which}")
    return Trajectory(numbers, opened, tensors, {n: why for n, why in left_out.items() if n not in tensors})


def require_ascending(steps: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers from 0 on, each larger than the one before; a ValueError says which is not."""
    numbers = tuple(int(step) for step in steps)
    if (
        any(number != step for number, step in zip(numbers, steps, strict=True))
        or min(numbers, default=0) < 0
    ):
        raise ValueError(f"steps must be whole numbers from 0 on, got {list(steps)[:8]}")
    for a, b in pairwise(numbers):
        if b <= a:
            raise ValueError(
                f"steps must ascend, got {b} after {a}; put the checkpoints in the order of training and "
                "give each step once"
            )
    return numbers


def steps_of(checkpoints: Sequence[CheckpointSource], steps: Sequence[int] | None = None) -> tuple[int, ...]:
    """The steps as given, or told from the paths; a ValueError says why they cannot be."""
    if steps is None:
        told = [step_of(one) if isinstance(one, (str, os.PathLike)) else None for one in checkpoints]
        if None in told:
            which = checkpoints[told.index(None)]
            what = which if isinstance(which, (str, os.PathLike)) else f"a {type(which).__name__}"
            raise ValueError(f"the step of {what} cannot be told from its name; give steps=[…], one for each")
        steps = [step for step in told if step is not None]
    if len(steps) != len(checkpoints):
        raise ValueError(
            f"each checkpoint must have a step, got {len(steps)} steps and {len(checkpoints)} checkpoints"
        )
    return require_ascending(steps)


def _open(source: CheckpointSource, step: int) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, (str, os.PathLike)):
        return open_checkpoint(source)
    return checkpoint_in_memory(source, f"the checkpoint of step {step}")


def _not_in_all(name: str, stored: list[dict[str, StoredTensor]], steps: tuple[int, ...]) -> str | None:
    """Why a name cannot be followed through the run, or None."""
    missing = [step for step, of_one in zip(steps, stored, strict=True) if name not in of_one]
    if missing:
        return (
            f"not in the checkpoint{'s' * (len(missing) > 1)} of step {', '.join(map(str, missing[:3]))}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    shapes = [of_one[name].shape for of_one in stored]
    for step, shape in zip(steps, shapes, strict=True):
        if shape != shapes[0]:
            return f"of shape {list(shapes[0])} in step {steps[0]}, of {list(shape)} in step {step}"
    return None
