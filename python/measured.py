"""What a training loop finds out about itself beside its forces: closure, super-weights, Weibull fits."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import weibull_kernels as wk
from weibull_kernels.records import FORCES

ROUNDING = 2.0**-24  # of one fp32 operation, relative


@dataclass
class Closure:
    """How well the budget closes, by the squared norms in float64 before and after each interval.

    The largest residue so far, with rounding and without.
    """

    of_budget: float = 0.0
    """|forces + rounding − measured Δ‖w‖²| over the tensors, relative to the absolute budget.

    Both sides are float64, so that nothing but its own rounding is left.
    """
    of_bound: float = 0.0
    """|forces − measured Δ‖w‖²| of the worst tensor, relative to what the rounding of single
    float32 entries may leave, 1e-5·(|alignment|+|injection|+|decay|) + 40·r·√steps·√Σw⁴: at most 1.
    Half-precision tensors are not judged: what rounding does to them is a force like the others.
    """

    def add(self, budget: wk.ForceBudget, measured: Tensor, weights: list[Tensor]) -> None:
        """Judge one interval by the measured change of ‖w‖², [P], and the weights after it."""
        measured = measured.to(budget.alignment.device)  # displacements are on the host
        residue = (budget.predicted_change - measured).abs()
        fourth = torch.stack([weight.detach().double().pow(4).sum() for weight in weights]).to(
            measured.device
        )
        bound = 1e-5 * budget.absolute + 40 * ROUNDING * (budget.steps * fourth).sqrt()
        bound[[place for place, weight in enumerate(weights) if weight.dtype.itemsize < 4]] = math.inf
        # A tensor of zeros that stays so has a bound of 0 and nothing to judge.
        of_bound = torch.where((residue == 0) & (bound == 0), 0.0, residue / bound).max()
        # A displacement holds what rounding did.
        rounding = 0 if budget.rounding is None else budget.rounding.nan_to_num(0.0)
        unexplained = (budget.predicted_change + rounding - measured).abs().sum()
        self.of_budget = _worse(self.of_budget, (unexplained / budget.absolute.sum()).item())
        self.of_bound = _worse(self.of_bound, of_bound.item())


def _worse(so_far: float, now: float) -> float:
    """The larger; what is not a number is the worst of all."""
    return math.inf if math.isnan(now) else max(so_far, now)


def norms_sq(weights: list[Tensor]) -> Tensor:
    """‖w‖² of each tensor, float64 [P]."""
    return torch.stack([weight.detach().double().square().sum() for weight in weights])


@dataclass
class SuperWeights:
    """Alignment shares of the transmission weights, with all entries and without the largest |w·u|."""

    fraction: float = 1e-3
    steps: list[int] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)

    def add(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Look at the last step; slow, so now and then."""
        budgets = wk.forces(optimizer), wk.without_super_weights(optimizer, fraction=self.fraction)
        whole, left = (budget.total(role="transmission").shares().alignment.item() for budget in budgets)
        self.steps.append(step)
        self.shares.append((whole, left))


@dataclass
class Unmoved:
    """Entries of half-precision transmission weights that a step of AdamW left as they were, and its decay.

    On these entries rounding undoes whatever the forces did, to the last bit. It may give that back on
    others, which move by a whole digit: so what decay really did is told by the same step without it.
    """

    steps: list[int] = field(default_factory=list)
    fraction: list[float] = field(default_factory=list)
    """Of all entries."""
    forces: list[dict[str, float]] = field(default_factory=list)
    """Of all entries; "rounding" is what rounding did to ‖w‖², and "decay_done" what decay did.

    That is ‖w⁺‖² less what it would be had the step been made, and rounded, with ω = 0.
    """
    of_unmoved: list[dict[str, float]] = field(default_factory=list)
    """The forces of those entries alone."""
    _before: list[Tensor] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, list[Any]]:
        """As JSON holds it; a column for each of the above."""
        return {
            "step": self.steps,
            "fraction": self.fraction,
            "forces": self.forces,
            "of_unmoved": self.of_unmoved,
        }

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the weights; right before a step."""
        self._before = [weight.detach().double() for weight, _ in _transmission(optimizer)]

    def add(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Look at the step that was made since; slow, so now and then."""
        forces, of_unmoved = (dict.fromkeys((*FORCES, "rounding", "decay_done"), 0.0) for _ in range(2))
        unmoved = entries = 0
        for before, (weight, group) in zip(self._before, _transmission(optimizer), strict=True):
            after = weight.detach().double()
            still = after == before
            moved = _moved(group, optimizer.state[weight])
            terms = _forces_of_entries(before, moved, group["lr"] * group["weight_decay"])
            terms["rounding"] = after.square() - before.square() - sum(terms.values())
            without = (before - moved).to(weight.dtype).double()
            terms["decay_done"] = after.square() - without.square()
            for force, term in terms.items():
                forces[force] += term.sum().item()
                of_unmoved[force] += term[still].sum().item()
            unmoved += int(still.sum())
            entries += still.numel()
        self.steps.append(step)
        self.fraction.append(unmoved / entries)
        self.forces.append(forces)
        self.of_unmoved.append(of_unmoved)


def _transmission(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    """The transmission weights with the group of each."""
    return [
        (weight, group)
        for group in optimizer.param_groups
        for name, weight in zip(group["param_names"], group["params"], strict=True)
        if wk.role_of(name) in wk.TRANSMISSION
    ]


def _moved(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """η·u of every entry, float64, from the state of AdamW after the step."""
    beta1, beta2 = group["betas"]
    count = state["step"].item()
    denominator = (state["exp_avg_sq"].double() / (1 - beta2**count)).sqrt() + group["eps"]
    moved: Tensor = group["lr"] * state["exp_avg"].double() / (1 - beta1**count) / denominator
    return moved


def _forces_of_entries(before: Tensor, moved: Tensor, lost: float) -> dict[str, Tensor]:
    """The contribution of every entry to Δ‖w‖² by w, η·u and ηω."""
    return {
        "alignment": -2 * before * moved,
        "injection": moved.square(),
        "decay": -2 * lost * before.square(),
        "coupling": lost * (2 * before * moved + lost * before.square()),
    }


Named = list[tuple[str, Tensor]]


def fits_by_role(named: Named) -> dict[str, list[float] | float]:
    """Shape `k` and `scale` λ of the role of each parameter, [P]: one fit to all tensors of a role.

    `transmission_k` and `transmission_scale` are those of attention output and FFN together, as in [W2].
    """
    statistics = wk.weight_statistics(named)
    roles = (*dict.fromkeys(statistics.roles), "transmission")
    fits = {role: wk.fit_weibull(statistics.total(role=role), on_degenerate="mark") for role in roles}

    def values(name: str) -> dict[str, list[float] | float]:
        of_role = {role: float(getattr(fit, name)[0]) for role, fit in fits.items()}
        return {
            name: [of_role[role] for role in statistics.roles],
            f"transmission_{name}": of_role["transmission"],
        }

    return values("k") | values("scale")


def unfitted(named: Named) -> dict[str, list[float] | float]:
    """What stands where nothing was fitted."""
    columns = dict.fromkeys(("k", "scale"), [math.nan] * len(named))
    return columns | dict.fromkeys(("transmission_k", "transmission_scale"), math.nan)
