"""The optimizers of the training loop, and where the budgets of their steps come from."""

from typing import Any, Protocol

import torch
from lion import Lion
from settings import Settings
from torch import Tensor

import weibull_kernels as wk

BETA1 = 0.9


def param_groups(model: torch.nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Matrices decay, norms and biases do not."""
    matrices = [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1]
    vectors = [(name, weight) for name, weight in model.named_parameters() if weight.ndim == 1]
    return [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def make_optimizer(model: torch.nn.Module, settings: Settings) -> wk.AdamW:
    """AdamW, with a ledger where forces are wanted."""
    return _adamw(param_groups(model, settings), settings, ledger=settings.forces)


def make_optimizers(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Those that train the model together: Muon takes the matrices between the embeddings, AdamW the rest."""
    if settings.optimizer == "adamw":
        return [make_optimizer(model, settings)]
    groups = param_groups(model, settings)
    if settings.optimizer == "lion":
        return [Lion(groups, lr=settings.lr)]
    hidden = [item for item in groups[0]["params"] if wk.role_of(item[0]) not in ("embedding", "head")]
    taken = {name for name, _ in hidden}
    for group in groups:
        group["params"] = [item for item in group["params"] if item[0] not in taken]
    muon = torch.optim.Muon(
        hidden,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # so that lr and decay of AdamW do
    )
    return [muon, _adamw(groups, settings, ledger=settings.forces)]


def _adamw(groups: list[dict[str, Any]], settings: Settings, ledger: bool) -> wk.AdamW:
    # At β₂ = 0.999 an exp_avg_sq in bfloat16 would stand still: (1−β₂) is under half of its last digit.
    betas = (BETA1, settings.beta2)
    return wk.AdamW(groups, lr=settings.lr, betas=betas, state_dtype=torch.float32, ledger=ledger)


def named_weights(optimizers: list[torch.optim.Optimizer]) -> list[tuple[str, Tensor]]:
    """Names and parameters in the order of the rows of their budgets."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [item for group in groups for item in zip(group["param_names"], group["params"], strict=True)]


def rates(optimizers: list[torch.optim.Optimizer]) -> dict[str, list[float]]:
    """`lr` and `weight_decay` of each parameter, [P]."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {
        rate: [group[rate] for group in groups for _ in group["params"]] for rate in ("lr", "weight_decay")
    }


class Budgets(Protocol):
    """Where the forces since the last record come from."""

    def drain(self) -> wk.ForceBudget:
        """The sum over the steps since the last call."""


class Displacements:
    """The budget of every single step of optimizers that keep no ledger, from how they move the weights."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], model: torch.nn.Module) -> None:
        self._meter = wk.attach(optimizers, names=model, every=1, decoupled=True)

    def drain(self) -> wk.ForceBudget:
        """The budget of the last step; must be called after each."""
        self._meter.flush()
        if self._meter.latest is None:
            raise RuntimeError("no step was measured; see what the logger 'weibull_kernels' said")
        return self._meter.latest


def budgets_of(
    optimizers: list[torch.optim.Optimizer], model: torch.nn.Module, settings: Settings
) -> Budgets:
    """The ledger of `wk.AdamW`, exact over any number of steps; else displacements, step by step.

    Raises:
        ValueError: displacements, and not every step is recorded.
    """
    if settings.optimizer == "adamw":
        return optimizers[0].ledger
    if settings.every != 1:
        raise ValueError(
            f"{settings.optimizer} is measured by displacement, which sees one step: every must be 1, "
            f"got {settings.every}"
        )
    return Displacements(optimizers, model)
