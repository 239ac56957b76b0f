"""The optimizers whose steps are timed against each other, each on tensors of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import workloads

import weibull_kernels as wk

SETTINGS = {"lr": 1e-4, "betas": workloads.BETAS, "eps": workloads.EPS, "weight_decay": 0.1}

# "ours" books every step; "ours without ledger" only steps.
OPTIMIZERS: dict[str, Callable[..., torch.optim.AdamW]] = {
    "torch fused": lambda parameters: torch.optim.AdamW(parameters, fused=True, **SETTINGS),
    "torch foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True, **SETTINGS),
    "ours": lambda parameters: wk.AdamW(parameters, **SETTINGS),
    "ours without ledger": lambda parameters: wk.AdamW(parameters, ledger=False, **SETTINGS),
}

# Of max|w| after a few steps on the same gradients, and of the change of ‖w‖² in the ledger.
WEIGHT_TOLERANCE, LEDGER_TOLERANCE = 1e-6, 1e-9


def make(shapes: list[tuple[int, ...]], device: str = "cpu") -> dict[str, torch.optim.AdamW]:
    """Each optimizer over a list of these shapes with gradients: the same numbers for all."""
    generator = torch.Generator(device).manual_seed(0)
    gradients = 1e-3 * torch.randn(1 << 20, generator=generator, device=device)
    made = {}
    for name, optimizer in OPTIMIZERS.items():
        parameters = [torch.nn.Parameter(w) for w in workloads.make("steps", shapes, device).rows.weights]
        for parameter, gradient in zip(parameters, workloads.cut(gradients, shapes), strict=True):
            parameter.grad = gradient
        made[name] = optimizer(parameters)
    return made


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [w.detach() for group in optimizer.param_groups for w in group["params"] if w.numel()]


def _norms_sq(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    return torch.stack([w.double().square().sum() for w in _weights(optimizer)])


def check(optimizers: dict[str, torch.optim.AdamW], steps: int = 5) -> dict[str, float]:
    """Steps each a few times; the largest distance of ours from torch's fused step, and of the ledger.

    Raises:
        AssertionError: one is past its tolerance; what is wrong is not timed.
    """
    ours = optimizers["ours"]
    assert isinstance(ours, wk.AdamW)
    before = _norms_sq(ours)
    for optimizer in optimizers.values():
        for _ in range(steps):
            optimizer.step()
    fused, found = _weights(optimizers["torch fused"]), {}
    for name in ("ours", "ours without ledger"):
        distances = [
            (w - t).abs().max() / t.abs().max()
            for w, t in zip(_weights(optimizers[name]), fused, strict=True)
        ]
        found[name] = torch.stack(distances).max().item()
        assert found[name] <= WEIGHT_TOLERANCE, f"{name} is {found[name]} of max|w| from torch's weights"
    budget = ours.ledger.drain()
    filled = (budget.numel > 0).nonzero().flatten()
    booked = (budget.predicted_change + budget.rounding)[filled]
    apart = ((booked - (_norms_sq(ours) - before)).abs() / budget.absolute[filled]).max().item()
    assert apart <= LEDGER_TOLERANCE, f"the ledger is {apart} of the absolute budget from Δ‖w‖²"
    return {**found, "ledger": apart}
