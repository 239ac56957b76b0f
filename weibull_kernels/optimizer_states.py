"""û_rms² from an AdamW state that was saved beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoints import PathLike
from .dispatch import find_kernel
from .gram import CheckpointGram
from .kernels.interface import Rows
from .tensors import require_plain
from .trajectory import Trajectory

OptimizerState = PathLike | Mapping[str, Any]
"""A `state_dict` of an optimizer, or the path of a pickle that holds one."""

# Where training scripts put it beside the model.
_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim")


@dataclass(frozen=True)
class _Moments:
    """Of one parameter."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: float
    betas: tuple[float, float]
    eps: float


def stored_update_sq(
    trajectory: Trajectory | None,
    given: Mapping[int, OptimizerState] | None,
    gram: CheckpointGram,
    used: bool,
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """û_rms² = ‖u‖²/n at the checkpoints whose optimizer state is known, [P, K], NaN elsewhere.

    Args:
        trajectory: checkpoints that may hold it beside the model, or None.
        given: states by step; they come before what is found.
        gram: whose tensors and steps are the rows and columns.
        used: whether anybody will look; if not, nothing is read.

    Returns:
        The table, and what is to be said of states that could not be used.

    Raises:
        ValueError: a given state is of no checkpoint, or cannot be told from what it holds.
    """
    table = np.full((len(gram.names), len(gram.steps)), np.nan)
    if strange := sorted(set(given or {}) - set(gram.steps)):
        raise ValueError(f"optimizer_states has step {strange[0]}, the checkpoints are of {list(gram.steps)}")
    if not used:
        return table, ("optimizer_states were given and not used",) if given else ()
    notes = []
    for step, state in (given or {}).items():
        table[:, gram.steps.index(step)] = _of_state(
            _loaded(state), gram, f"the optimizer state of step {step}"
        )
    for step, path in _beside_the_model(trajectory):
        if step in (given or {}):
            continue
        try:
            found = _of_state(_loaded(path), gram, f"the optimizer state in {path}")
        except ValueError as error:
            notes.append(f"not used: {error}")
        else:
            table[:, gram.steps.index(step)] = found
    return table, tuple(notes)


def _beside_the_model(trajectory: Trajectory | None) -> Iterator[tuple[int, Path]]:
    if trajectory is None:
        return
    for step, checkpoint in zip(trajectory.steps, trajectory.checkpoints, strict=True):
        if any(key in checkpoint.left_out for key in _KEYS) and checkpoint.path.is_file():
            yield step, checkpoint.path


def _loaded(source: OptimizerState) -> Mapping[str, Any]:
    """The `state_dict` itself."""
    state: Any = source
    if not isinstance(source, Mapping):
        path = Path(source)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except OSError:
            raise
        except Exception as error:  # of many kinds: what a broken pickle raises is not documented
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} cannot be loaded with weights_only=True: {reason}") from None
    for key in (None, *_KEYS) if isinstance(state, Mapping) else ():
        found: Any = state if key is None else state.get(key)
        if isinstance(found, Mapping) and {"state", "param_groups"} <= set(found):
            return found
    raise ValueError(
        "an optimizer's state_dict has 'state' and 'param_groups', this has "
        f"{', '.join(map(str, state))[:200]}"
    )


@torch.no_grad()
def _of_state(state: Mapping[str, Any], gram: CheckpointGram, what: str) -> NDArray[np.float64]:
    """‖u‖²/n of each tensor, [P]; NaN where the state has none of it."""
    if not state["state"]:  # of before the first step
        return np.full(len(gram.names), np.nan)
    by_name = _by_name(state, gram, what)
    rows = [row for row, name in enumerate(gram.names) if name in by_name]
    if not rows:
        raise ValueError(f"{what} has none of the tensors, such as {gram.names[0]}")
    moments = [by_name[gram.names[row]] for row in rows]
    for row, one in zip(rows, moments, strict=True):
        name = gram.names[row]
        require_plain(name, one.exp_avg)
        if one.exp_avg.numel() != gram.numel[row] or one.exp_avg_sq.shape != one.exp_avg.shape:
            raise ValueError(
                f"{what} has {one.exp_avg.numel()} moments of '{name}', the checkpoints "
                f"{gram.numel[row]} weights"
            )
    device = moments[0].exp_avg.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    sums = find_kernel("sums", None, device)(
        Rows(
            # ‖u‖² needs no weights: the moments stand in for them.
            [one.exp_avg for one in moments],
            [one.exp_avg for one in moments],
            [one.exp_avg_sq for one in moments],
            column([1 - one.betas[0] ** one.step for one in moments]),
            column([1 - one.betas[1] ** one.step for one in moments]),
            column([one.eps for one in moments]),
        )
    )
    found = np.full(len(gram.names), np.nan)
    found[rows] = sums.update_sq.cpu().numpy() / gram.numel[rows]
    return found


def _by_name(state: Mapping[str, Any], gram: CheckpointGram, what: str) -> dict[str, _Moments]:
    """The moments by the names of the tensors.

    Names are the keys themselves (as of FSDP), or in `param_names` of the groups, or, with a single
    group, those of the checkpoint in its order where every size agrees.
    """
    found = {}
    for group in state["param_groups"]:
        keys = group["params"]
        if all(isinstance(key, str) for key in keys):
            names = list(keys)
        elif "param_names" in group:
            names = list(group["param_names"])
        else:
            names = _in_order(state, keys, gram, what)
        for key, name in zip(keys, names, strict=True):
            one = state["state"].get(key, {})
            if {"exp_avg", "exp_avg_sq", "step"} <= set(one):
                second = one.get("max_exp_avg_sq", one["exp_avg_sq"])
                betas, step = tuple(map(float, group["betas"])), float(one["step"])
                found[name] = _Moments(one["exp_avg"], second, step, betas, float(group["eps"]))  # type: ignore[arg-type]
    return found


def _in_order(state: Mapping[str, Any], keys: list[Any], gram: CheckpointGram, what: str) -> list[str]:
    sizes = [state["state"][key]["exp_avg"].numel() for key in keys if key in state["state"]]
    if len(state["param_groups"]) == 1 and sizes == gram.numel.tolist() and len(sizes) == len(keys):
        return list(gram.names)
    raise ValueError(
        f"{what} has numbers for names, and its order is not that of the tensors; make the optimizer from "
        "model.named_parameters(), which keeps the names in its state"
    )
