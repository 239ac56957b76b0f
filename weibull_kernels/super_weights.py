"""The alignment without the few entries that carry most of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from .budget import ForceBudget
from .kernels.reference import update
from .measure import forces
from .optimizers import LearningRate, Row, read_optimizer, with_columns
from .tensors import require_plain

# Entries looked at a time: the products are float64 and must not need the memory of a tensor.
_CHUNK = 1 << 22


@torch.no_grad()
def without_super_weights(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None = None,
    *,
    fraction: float = 1e-3,
    over: str = "tensor",
    lr: LearningRate | None = None,
) -> ForceBudget:
    """The budget of the last step, its alignment without the entries of largest |w·u|.

        alignment = −2η·Σ w·u over the entries that are left        ([W2], super-weights)

    The other forces are those of `wk.forces`; compare `shares()` of the two. An alignment that a
    handful of weights made would vanish; [W2] finds its share to move by less than half a point.
    Call it where `wk.forces` may be called. It looks at every product in float64, some hundred times
    slower than `wk.forces`: for now and then, not for every step.

    Args:
        optimizer: as for `wk.forces`.
        model: likewise, names the rows.
        lr: likewise, the rate that the step used.
        fraction: of the entries, from 0 to 1; round(fraction·n) of them are left out.
        over: "tensor": that many of each tensor; "all": of all tensors together.

    Returns:
        A `ForceBudget`, [P] float64; a tensor that made no step has zero force.

    Raises:
        ValueError: `fraction` or `over` is none of these, or as `wk.forces` says.

    >>> model = torch.nn.Linear(100, 20)
    >>> optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    >>> model(torch.randn(8, 100)).square().sum().backward()
    >>> optimizer.step()
    >>> left = without_super_weights(optimizer, fraction=0.01).alignment
    >>> bool(left[0] != forces(optimizer).alignment[0])
    True
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction!r}")
    if over not in ("tensor", "all"):
        raise ValueError(f"over must be 'tensor' or 'all', got {over!r}")
    rows = read_optimizer(optimizer, model, lr)
    for row in rows:
        require_plain(row.name, row.weight)  # of shards the largest products would have to be compared
    budget = forces(optimizer, model, lr=lr)
    sizes = [0 if row.exp_avg is None else row.weight.numel() for row in rows]
    if over == "tensor":
        largest = [_Largest(round(fraction * size)) for size in sizes]
    else:
        largest = [_Largest(round(fraction * sum(sizes)))] * len(rows)
    left = torch.zeros_like(budget.alignment)
    for place, row in enumerate(rows):
        for products in _contributions(row):
            here = products.to(left.device)
            left[place] += here.sum()
            largest[place].add(here, place)
    for found in dict.fromkeys(largest):
        left.index_add_(0, found.places, -found.values)
    # A tensor that the budget says did not move has no alignment to leave anything out of.
    return dataclasses.replace(budget, alignment=torch.where(budget.steps > 0, left, 0.0))


class _Largest:
    """The `count` largest numbers by magnitude of all that were added, and where each came from."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.values = torch.zeros(0, dtype=torch.float64)
        self.places = torch.zeros(0, dtype=torch.long)

    def add(self, values: Tensor, place: int) -> None:
        best = values[values.abs().topk(min(self._count, len(values))).indices]
        places = torch.full((len(best),), place, device=best.device)
        values = torch.cat([self.values.to(best.device), best])
        kept = values.abs().topk(min(self._count, len(values))).indices
        self.values, self.places = values[kept], torch.cat([self.places.to(best.device), places])[kept]


def _contributions(row: Row) -> Iterator[Tensor]:
    """−2η·w·u of each entry, in float64, some at a time; w is that before the step."""
    if row.exp_avg is None or row.exp_avg_sq is None:
        return
    stepped = with_columns([row])
    numbers = stepped.kernel_rows
    flat = [tensor.detach().reshape(-1) for tensor in (row.weight, row.exp_avg, row.exp_avg_sq)]
    for after, exp_avg, exp_avg_sq in zip(*(torch.split(tensor, _CHUNK) for tensor in flat), strict=True):
        u = update(
            exp_avg.double(),
            exp_avg_sq.double(),
            numbers.bias_correction1,
            numbers.bias_correction2,
            numbers.eps,
        )
        before = (after.double() + stepped.lr * u) / stepped.decay_factor
        yield -2 * stepped.lr * before * u
