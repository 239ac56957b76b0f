"""Small models, optimizers and training loops that meters are attached to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import weibull_kernels as wk

DIM = 8


class Net(nn.Module):
    """Embedding, a matrix, a norm, a head: names whose roles are known."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(11, DIM, dtype=dtype)
        self.norm = nn.LayerNorm(DIM, dtype=dtype)
        self.mlp = nn.Linear(DIM, DIM, dtype=dtype)
        self.lm_head = nn.Linear(DIM, 5, bias=False, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed_in(tokens)
        return self.lm_head(hidden + torch.tanh(self.mlp(self.norm(hidden))))


def two_groups(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Matrices that decay, and the rest, by name."""
    named = list(model.named_parameters())
    return [
        {"params": [item for item in named if item[1].ndim > 1], "weight_decay": weight_decay},
        {"params": [item for item in named if item[1].ndim == 1], "weight_decay": 0.0, "lr": 3e-3},
    ]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "loop": lambda model: torch.optim.AdamW(two_groups(model), lr=1e-2, foreach=False),
    "foreach": lambda model: torch.optim.AdamW(two_groups(model), lr=1e-2, foreach=True),
    "fused": lambda model: torch.optim.AdamW(two_groups(model), lr=1e-2, fused=True),
    "amsgrad": lambda model: torch.optim.AdamW(two_groups(model), lr=1e-2, amsgrad=True),
    "adam": lambda model: torch.optim.Adam(two_groups(model), lr=1e-2),
    "wk": lambda model: wk.AdamW(two_groups(model), lr=1e-2),
    "sgd": lambda model: torch.optim.SGD(two_groups(model), lr=1e-1, momentum=0.9),
}


def batch(step: int) -> Tensor:
    """The tokens of a step, the same however often they are asked for; no random state is touched."""
    return (torch.arange(12).view(3, 4) * 7 + 5 * step) % 11


def backward(model: nn.Module, step: int) -> Tensor:
    loss = model(batch(step)).square().mean()
    loss.backward()
    return loss


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    after: Callable[[int], Any] = lambda step: None,
    scheduler: Any = None,
) -> None:
    """A loop as people write it; `after` is called right after each step."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        after(step)
        if scheduler is not None:
            scheduler.step()


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[int, wk.ForceBudget, dict[str, Tensor]]] = []

    def write(self, step: int, budget: wk.ForceBudget, **scalars: Any) -> None:
        self.records.append((step, budget, scalars))

    def close(self) -> None:
        pass

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.records]

    @property
    def budgets(self) -> list[wk.ForceBudget]:
        return [budget for _, budget, _ in self.records]


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All weights, moments and random state, as bits."""
    found = [parameter.detach() for parameter in model.parameters()]
    for state in optimizer.state.values():
        found += [value for value in state.values() if isinstance(value, Tensor)]
    return [*found, torch.get_rng_state()]


def assert_same_forces(
    found: wk.ForceBudget, expected: wk.ForceBudget, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Row for row, by name; to the bit unless a tolerance is given."""
    assert found.names == expected.names
    for column in ("alignment", "injection", "decay", "coupling", "norm_sq", "steps", "step", "numel"):
        torch.testing.assert_close(getattr(found, column), getattr(expected, column), rtol=rtol, atol=atol)
