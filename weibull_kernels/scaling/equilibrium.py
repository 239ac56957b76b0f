"""Where the norm of each tensor comes to rest, told from its force budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..budget import ForceBudget
from ..columns import Columns
from ..names import unwrapped
from ..roles import roles_of
from ..tables import columns_table
from .rules import TIME_CONSTANTS


@dataclass(frozen=True, eq=False)
class Equilibrium(Columns):
    """The norm at which the forces of an interval balance, beside the one that is.

    Attributes:
        rms: float64 [P], σ = √(‖w‖²/n) after the last step of the interval.
        balance_rms: float64 [P], the σ at which decay takes off what the other forces of the interval
            add; 0 where they add nothing, infinite without decay, NaN of a tensor that made no step.
        noise_rms: float64 [P], √(η/2ω), that of updates which are noise; infinite without decay.
        steps_to_equilibrium: float64 [P], 3/(ηω).
        names: of the tensors, or None.
        role_overrides: as of the budget.
    """

    rms: Tensor
    balance_rms: Tensor
    noise_rms: Tensor
    steps_to_equilibrium: Tensor
    names: tuple[str, ...] | None = None
    role_overrides: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The role of each tensor; None where there are no names."""
        return None if self.names is None else roles_of(self.names, self.role_overrides)

    @property
    def distance(self) -> Tensor:
        """`rms`/`balance_rms` − 1, [P]: below 0 the norm has yet to grow, above to shrink."""
        return self.rms / self.balance_rms - 1

    @property
    def coherence(self) -> Tensor:
        """`balance_rms`/`noise_rms`, [P]: 1 for updates that are noise, more where steps go together.

        NaN without decay. Of updates that pull back what others moved it is less than 1.
        """
        return self.balance_rms / self.noise_rms

    def reached(self, tolerance: float = 0.1) -> Tensor:
        """Whether |distance| ≤ tolerance, bool [P]."""
        return self.distance.abs() <= tolerance

    def __str__(self) -> str:
        return columns_table(self.to_dict())


def equilibrium(
    budget: ForceBudget,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    lr: Any = None,
    weight_decay: Any = None,
) -> Equilibrium:
    """The norm that each tensor is on its way to, by the balance of its forces.

        ‖w‖²_balance = (alignment + injection + coupling + rounding)/(2ηω·steps)
        σ_noise      = √(η/(2ω))        for ηω ≪ 1 − β₁

    The first is where decay, −2ηω‖w‖² a step, takes off what the other forces add ([W2]'s balance) if
    they stay what they are. The second is its value for updates that are noise: what such an update adds,
    with what the moment remembers of it, is η²·û²·(1+β₁)/(1−β₁) an entry and step, where û² =
    (1−β₁)/(1+β₁), hence η² at any β₁. So the law √(η/ω) of [F] follows from the budget. (`wk.summarize_run`
    lets the alignment grow with ‖w‖, at a constant angle; while norms move the two lie on either side.)

    Args:
        budget: [P] rows with `numel`, such as `optimizer.ledger.drain()` over many steps: the forces of
            one step scatter.
        optimizer: that made the steps, for the weight decay of each row. Then η is the mean over the interval
            that the decay tells, with ‖w‖² halfway between its start and its end: right under a
            schedule, and where the interval is short beside 1/(ηω).
        lr: η, constant over the interval; a number or [P]. With weight_decay, instead of the optimizer.
        weight_decay: ω, coupled as in PyTorch; a number or [P]. A row whose `decay` is 0 does not decay,
            whatever is given.

    Returns:
        Float64 [P] in the order of the budget, on its device, without waiting for it; NaN in a row
        without a step.

    Raises:
        ValueError: the budget has no `numel`; neither an optimizer nor both rates are given, or all;
            rates are no numbers for its rows, or a name is not among the optimizer's.

    >>> budget = ForceBudget.from_sums(
    ...     torch.tensor([-0.5]), torch.tensor([1.0]), torch.tensor([4.0]), lr=0.1, weight_decay=0.1,
    ...     numel=torch.tensor([4]),
    ... )
    >>> found = equilibrium(budget, lr=0.1, weight_decay=0.1)
    >>> found.balance_rms, found.noise_rms
    (tensor([1.1694], dtype=torch.float64), tensor([0.7071], dtype=torch.float64))
    """
    if budget.numel is None:
        raise ValueError("the budget has no numel, so σ = √(‖w‖²/n) is not known; give numel= to from_sums")
    if (optimizer is None) == (lr is None or weight_decay is None) or (lr is None) != (weight_decay is None):
        raise ValueError("give the optimizer that made the steps, or lr= and weight_decay=; one of the two")
    first = torch.as_tensor(budget.norm_sq)

    def column(name: str, value: Any) -> Tensor:
        given = torch.as_tensor(value, dtype=torch.float64, device=first.device)
        if given.ndim and given.shape != first.shape:
            raise ValueError(
                f"{name} must be a number or one for each row {list(first.shape)}, got shape "
                f"{list(given.shape)}"
            )
        return given.expand(first.shape)

    numel, steps = column("numel", budget.numel), column("steps", budget.steps)
    norm_sq, decay = column("norm_sq", budget.norm_sq), column("decay", budget.decay)
    rounding = 0.0 if budget.rounding is None else column("rounding", budget.rounding)
    change = column("change", budget.predicted_change) + rounding
    if optimizer is not None:
        omega = column("weight_decay", _decays(budget.names, len(first), optimizer))
        eta = -decay / (2 * steps * (norm_sq + change / 2) * omega)
    else:
        eta, omega = column("lr", lr), column("weight_decay", weight_decay)
    decays = (decay != 0) & (eta * omega > 0)

    def where_it_decays(values: Tensor) -> Tensor:
        return torch.where(steps > 0, torch.where(decays, values, torch.inf), torch.nan)

    shrinkage = eta * omega
    added = (change - decay).clamp(min=0)
    return Equilibrium(
        rms=((norm_sq + change) / numel).sqrt(),
        balance_rms=where_it_decays((added / (2 * shrinkage * steps * numel)).sqrt()),
        noise_rms=where_it_decays((eta / (2 * omega)).sqrt()),
        steps_to_equilibrium=where_it_decays(TIME_CONSTANTS / shrinkage),
        names=budget.names,
        role_overrides=budget.role_overrides,
    )


def _decays(names: tuple[str, ...] | None, rows: int, optimizer: torch.optim.Optimizer) -> list[float]:
    """The `weight_decay` of the group of each row, by name, or by position without names."""
    decays = [float(group["weight_decay"]) for group in optimizer.param_groups for _ in group["params"]]
    known = [name for group in optimizer.param_groups for name in unwrapped(group.get("param_names", ()))]
    if not known and len(decays) == rows:
        return decays
    by_name = dict(zip(known, decays, strict=True)) if known else {}
    unknown = [name for name in names or ("(no name)",) if name not in by_name]
    if unknown:
        raise ValueError(
            f"'{unknown[0]}' of the budget is not among the {len(by_name)} names of the optimizer, which has "
            f"{len(decays)} parameters; give lr= and weight_decay="
        )
    return [by_name[name] for name in names or ()]
