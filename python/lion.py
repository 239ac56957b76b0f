"""Lion, which torch does not have."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Every entry moves by the same amount, with the sign of a momentum.

        u = sign(β₁·m + (1−β₁)·g)        w⁺ = (1−ηω)·w − η·u        m⁺ = β₂·m + (1−β₂)·g

    Chen et al., arXiv:2302.06675, algorithm 2; the decay is decoupled as in PyTorch's AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Tensor | None:
        """One step with the gradients that there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                exp_avg = state["exp_avg"]
                update = exp_avg.lerp(weight.grad, 1 - beta1).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                exp_avg.lerp_(weight.grad, 1 - beta2)
        return loss
