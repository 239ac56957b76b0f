"""û_rms² from an AdamW state that was saved beside the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoints import load_pickle
from .dispatch import find_kernel
from .kernels.interface import Rows
from .stored_tensors import Checkpoint, PathLike
from .tensors import column, require_plain
from .trajectory import Trajectory, step_of

OptimizerState = PathLike | Mapping[str, Any]
"""A `state_dict` of an optimizer, or the path of a pickle that holds one."""

# Where training scripts put it: beside the model in its pickle, or in the folder of the step.
_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim")
_FILE, _MODELS = "optimizer.pt", ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")


@dataclass(frozen=True)
class _Moments:
    """Of one tensor."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: float
    betas: tuple[float, float]
    eps: float


def require_steps(given: Mapping[int, OptimizerState] | None, steps: Sequence[int]) -> None:
    """Raises a ValueError that says which of the given states is of no checkpoint, if one is."""
    for step in given or ():
        if step not in steps:
            raise ValueError(f"optimizer_states has step {step}, the checkpoints are of {list(steps)}")


def stored_update_sq(
    trajectory: Trajectory | None,
    given: Mapping[int, OptimizerState] | None,
    steps: Sequence[int],
    names: Sequence[str],
    numel: Sequence[int],
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """û_rms² = ‖u‖²/n at the checkpoints whose optimizer state is known, [P, K], NaN elsewhere.

    Args:
        trajectory: checkpoints that may hold states beside the model, or None.
        given: states by step; they come before what is found.
        steps: [K], the columns.
        names: of the tensors, [P], the rows.
        numel: how many entries each has, [P].

    Returns:
        The table, without a unit, and what is to be said of found states that could not be used
        and of moments that are not finite.

    Raises:
        ValueError: a given state is of no checkpoint, lacks something of AdamW's, has moments of
            another size or numbers for names; CheckpointError where its file cannot be loaded.
        TypeError: its moments are of a dtype that the kernels do not read, or wrapped.
        OSError: its file cannot be read.
    """
    given = given or {}
    require_steps(given, steps)
    sources = dict(given)
    for step, path in _beside_the_models(trajectory):
        sources.setdefault(step, path)
    table = np.full((len(names), len(steps)), np.nan)
    notes: list[str] = []
    unused: dict[str, list[int]] = {}
    for step, source in sources.items():
        try:
            moments = _moments(_state_dict(source), names, numel)
        except (OSError, TypeError, ValueError) as error:
            if step in given:
                raise type(error)(f"the optimizer state of step {step}: {error}") from error
            unused.setdefault(str(error), []).append(step)
            continue
        measured = _update_sq(moments)
        for row, update_sq in measured.items():
            if math.isfinite(update_sq):
                table[row, steps.index(step)] = update_sq / numel[row]
        if strange := [repr(names[row]) for row, value in measured.items() if not math.isfinite(value)]:
            notes.append(f"the optimizer state of step {step} is not finite for {_first(strange)}")
    for why, of in unused.items():
        notes.append(f"not used: the optimizer state of step {_first(list(map(str, of)))}: {why}")
    return table, tuple(notes)


def _first(words: list[str]) -> str:
    """Three of them, and how many more there are."""
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _beside_the_models(trajectory: Trajectory | None) -> Iterator[tuple[int, Path]]:
    """Files that should hold the state, by step."""
    if trajectory is not None:
        for step, checkpoint in zip(trajectory.steps, trajectory.checkpoints, strict=True):
            if (path := _beside_the_model(checkpoint)) is not None:
                yield step, path


def _beside_the_model(checkpoint: Checkpoint) -> Path | None:
    path = checkpoint.path
    if path.is_file() and any(key in checkpoint.left_out for key in _KEYS):
        return path
    # A file that is not the only model of its folder says nothing of what else lies there.
    whole = path.is_dir() or (path.name in _MODELS and step_of(path.parent) is not None)
    beside = (path if path.is_dir() else path.parent) / _FILE
    return beside if whole and beside.is_file() else None


def _state_dict(source: OptimizerState) -> Mapping[str, Any]:
    """The `state_dict` itself."""
    saved: Any = source if isinstance(source, Mapping) else load_pickle(Path(source))
    if not isinstance(saved, Mapping):
        raise ValueError(f"a state_dict is expected, this is a {type(saved).__name__}")
    for key in (None, *_KEYS):
        found: Any = saved if key is None else saved.get(key)
        if _is_state_dict(found):
            return dict(found)
    raise ValueError(
        "an optimizer's state_dict has 'state' and 'param_groups', this has "
        f"{', '.join(map(str, saved))[:200]}"
    )


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and isinstance(found.get("state"), Mapping)
        and isinstance(found.get("param_groups"), (list, tuple))
        and all(isinstance(group, Mapping) and "params" in group for group in found["param_groups"])
        and all(isinstance(one, Mapping) for one in found["state"].values())
    )


def _moments(state: Mapping[str, Any], names: Sequence[str], numel: Sequence[int]) -> dict[int, _Moments]:
    """By row, of the tensors that have any; of none before the first step."""
    rows = {name: row for row, name in enumerate(names)}
    strangers = False
    found = {}
    for group in state["param_groups"]:
        # Others, such as Muon's matrices beside AdamW's vectors, or what had no gradient, are unknown.
        keys = [key for key in group["params"] if {"exp_avg", "exp_avg_sq"} <= set(_of(state, key))]
        called = _names_by_key(state, group, names, numel) if keys else {}
        for key in keys:
            if (row := rows.get(called[key])) is None:
                strangers = True
            else:
                found[row] = _checked(_of(state, key), group, names[row], numel[row])
    if state["state"] and not found:
        raise ValueError(
            f"it has none of the tensors, such as '{names[0]}'"
            if strangers
            else "it has exp_avg and exp_avg_sq, which AdamW has, of no tensor"
        )
    return found


def _of(state: Mapping[str, Any], key: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = state["state"].get(key, {})
    return found


def _names_by_key(
    state: Mapping[str, Any], group: Mapping[str, Any], names: Sequence[str], numel: Sequence[int]
) -> dict[Any, str]:
    """What the tensors of a group are called: by the keys themselves (as of FSDP) or its `param_names`."""
    keys = group["params"]
    if all(isinstance(key, str) for key in keys):
        return {key: key for key in keys}
    if len(called := group.get("param_names") or ()) == len(keys):
        return dict(zip(keys, called, strict=True))
    # Files often have their tensors sorted by name, layer 10 before layer 2. So the place tells the
    # name only where no two tensors could be taken for one another.
    first = [_of(state, key).get("exp_avg") for key in keys]
    sizes = [moment.numel() if isinstance(moment, Tensor) else None for moment in first]
    if len(state["param_groups"]) == 1 and sizes == list(numel) and len(set(sizes)) == len(sizes):
        return dict(zip(keys, names, strict=True))
    raise ValueError(
        "it has numbers for names, which do not tell surely which tensor is which; make the optimizer from "
        "model.named_parameters(), which keeps the names in its state"
    )


def _checked(one: Mapping[str, Any], group: Mapping[str, Any], name: str, numel: int) -> _Moments:
    """The moments of a tensor, if the kernels can read them and nothing is missing."""
    # With amsgrad the largest v so far is what divides.
    second = "max_exp_avg_sq" if "max_exp_avg_sq" in one else "exp_avg_sq"
    for moment in ("exp_avg", second):
        try:
            require_plain(name, one[moment])
        except TypeError as error:
            raise TypeError(f"{moment} of {error}") from None
        shape = one[moment].shape
        if shape.numel() != numel or shape != one["exp_avg"].shape:
            raise ValueError(
                f"it has {moment} of shape {list(shape)} for '{name}', the checkpoints {numel} weights"
            )
    told = {**group, **one}  # some fused optimizers count the steps in the group
    if missing := [key for key in ("betas", "eps", "step") if key not in told]:
        raise ValueError(f"it has no {' and no '.join(map(repr, missing))} for '{name}'")
    try:
        beta1, beta2 = map(float, told["betas"])
        return _Moments(one["exp_avg"], one[second], float(told["step"]), (beta1, beta2), float(told["eps"]))
    except (TypeError, ValueError, RuntimeError) as error:  # the last of tensors of several entries
        raise ValueError(f"its betas, eps or step for '{name}' are not AdamW's: {error}") from None


@torch.no_grad()
def _update_sq(moments: Mapping[int, _Moments]) -> dict[int, float]:
    """‖u‖² by row, of the tensors that have entries and made a step. One launch for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for row, one in moments.items():
        if one.exp_avg.numel() and one.step:
            by_device.setdefault(one.exp_avg.device, []).append(row)
    found: dict[int, float] = {}
    for device, rows in by_device.items():
        its = [moments[row] for row in rows]
        first = [one.exp_avg for one in its]
        sums = find_kernel("sums", None, device)(
            Rows(
                first,  # ‖u‖² needs no weights: the moments stand in for them
                first,
                [one.exp_avg_sq.to(device) for one in its],
                column((1 - one.betas[0] ** one.step for one in its), device),
                column((1 - one.betas[1] ** one.step for one in its), device),
                column((one.eps for one in its), device),
            )
        )
        found.update(zip(rows, sums.update_sq.tolist(), strict=True))
    return found
