"""What each process does in the tests of `wk.forces_from`; `run_ranks` runs these functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from sharded_jobs import Model, Training, collectives

import weibull_kernels as wk


def pieces(training: Training) -> Iterator[tuple[Any, ...]]:
    """The entries of all parameters in one row, in as many equal pieces as there are processes, as ZeRO does.

    So a parameter may lie with several processes, and a process may have none of it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    total = sum(p.numel() for p in training.parameters)
    begin, end = (total * r // world for r in (rank, rank + 1))
    offset = 0
    for group in training.optimizer.param_groups:
        for name, weight in zip(group["param_names"], group["params"], strict=True):
            state = training.optimizer.state[weight]
            cut = slice(max(0, begin - offset), max(0, end - offset))
            offset += weight.numel()
            tensors = [
                tensor.detach().flatten()[cut] for tensor in (weight, state["exp_avg"], state["exp_avg_sq"])
            ]
            if tensors[0].numel() or name == "head.bias":  # of that one also the empty pieces
                yield name, *tensors, {**group, "step": state["step"]}


def forces_of_pieces() -> list[tuple[wk.ForceBudget, wk.ForceBudget, int]]:
    """By `forces_from` of flat pieces, and by `forces` of the same training where it is whole."""
    training, found = Training(Model(), torch.optim.AdamW), []
    for _ in training.steps(5):
        pieced, calls = collectives(lambda: wk.forces_from(pieces(training), process_group=dist.group.WORLD))
        found.append((pieced, wk.forces(training.optimizer), calls))
    binned = wk.forces_from(pieces(training), process_group=dist.group.WORLD, histogram=True)
    return [*found, (binned, wk.forces(training.optimizer, histogram=True), calls)]


def one_piece(name: str, value: float = 2.0, **settings: Any) -> tuple[Any, ...]:
    group = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.99), "eps": 0.0, "step": 1}
    weight = torch.full((2,), value, dtype=torch.float64)
    return name, weight, 0.1 * torch.ones_like(weight), 0.01 * torch.ones_like(weight), group | settings


def _broken() -> Iterator[tuple[Any, ...]]:
    yield one_piece("a")
    raise LookupError("the engine has no such shard")


def trouble(what: str) -> str:
    """What each process is told where something is wrong with one of them, or between them."""
    second = dist.get_rank() == 1
    shards: Any = [one_piece("a"), one_piece("b")]
    settings: dict[str, Any] = {}
    if second:
        shards = {
            "numbers": [one_piece("b", weight_decay=0.25, step=2)],
            "iterable": _broken(),
            "group": [("a", *one_piece("a")[1:4], {"lr": 0.1})],
            "histogram": shards,
            "nothing": [],
        }[what]
        settings = {"histogram": what == "histogram"}
    elif what == "nothing":
        shards = []
    try:
        wk.forces_from(shards, process_group=dist.group.WORLD, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def different_names() -> wk.ForceBudget:
    """Each process has a shard that the other has not; the third has none at all."""
    shards = [[one_piece("a"), one_piece("b", 3.0)], [one_piece("c"), one_piece("b", 4.0)], []]
    return wk.forces_from(shards[dist.get_rank()], process_group=dist.group.WORLD, roles={"*": "ffn"})
