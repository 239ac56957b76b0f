"""The optimizers whose steps are timed against each other, each on tensors of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import workloads
from rounds import ratio, spread

import weibull_kernels as wk

SETTINGS: dict[str, Any] = {
    "lr": workloads.LR,
    "betas": workloads.BETAS,
    "eps": workloads.EPS,
    "weight_decay": workloads.WEIGHT_DECAY,
}

# "ours" books every step; "ours without ledger" only steps.
OPTIMIZERS: dict[str, Callable[..., torch.optim.AdamW]] = {
    "torch fused": lambda parameters: torch.optim.AdamW(parameters, fused=True, **SETTINGS),
    "torch foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True, **SETTINGS),
    "ours": lambda parameters: wk.AdamW(parameters, **SETTINGS),
    "ours without ledger": lambda parameters: wk.AdamW(parameters, ledger=False, **SETTINGS),
}

BYTES_PER_PARAMETER = 28
"""Of a step in float32: weight and both moments read and written, the gradient read."""

# Of max|w| after a few steps on the same gradients, and of the change of ‖w‖² in the ledger.
WEIGHT_TOLERANCE, LEDGER_TOLERANCE = 1e-6, 1e-9


def make(
    shapes: list[tuple[int, ...]], device: str = "cpu", names: Iterable[str] = OPTIMIZERS
) -> dict[str, torch.optim.AdamW]:
    """The named optimizers over a list of these shapes with gradients: the same numbers for all."""
    return {name: OPTIMIZERS[name](_parameters(shapes, device)) for name in names}


def ours(shapes: list[tuple[int, ...]], device: str, backend: str) -> wk.AdamW:
    """`wk.AdamW` with its ledger by a backend, over such a list too."""
    return wk.AdamW(_parameters(shapes, device), backend=backend, **SETTINGS)


def _parameters(shapes: list[tuple[int, ...]], device: str) -> list[torch.nn.Parameter]:
    """Weights with gradients: the same numbers every time."""
    generator = torch.Generator(device).manual_seed(0)
    gradients = 1e-3 * torch.randn(1 << 20, generator=generator, device=device)
    parameters = [torch.nn.Parameter(w) for w in workloads.make("steps", shapes, device).rows.weights]
    for parameter, gradient in zip(parameters, workloads.cut(gradients, shapes), strict=True):
        parameter.grad = gradient
    return parameters


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


def entry(
    made: dict[str, torch.optim.AdamW], times: dict[str, list[float]], errors: dict[str, float]
) -> dict[str, Any]:
    """What is kept of one list; `times` are ms by round, ours and torch's fused step among them."""
    weights = [w for group in made["ours"].param_groups for w in group["params"]]
    numel = sum(w.numel() for w in weights)
    ms = {key: spread(values) for key, values in times.items()}
    return {
        "tensors": len(weights),
        "parameters": numel,
        "bytes_per_parameter": BYTES_PER_PARAMETER,
        "rounds": len(times["ours"]),
        "ms": ms,
        "gigabytes_per_second": {
            key: round(BYTES_PER_PARAMETER * numel / 1e6 / found["median"], 2) for key, found in ms.items()
        },
        "nanoseconds_per_parameter": {
            key: float(f"{found['median'] * 1e6 / numel:.3g}") for key, found in ms.items()
        },
        "to_torch_fused": {
            key: ratio(values, times["torch fused"]) for key, values in times.items() if key != "torch fused"
        },
        "ledger_to_none": ratio(times["ours"], times["ours without ledger"]),
        "errors": {key: float(f"{error:.2g}") for key, error in errors.items()},
    }
