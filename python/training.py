"""A training loop as people write it, with the force budget on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from neox import GPTNeoXForCausalLM
from text import VOCABULARY, random_windows
from torch import Tensor

import weibull_kernels as wk
from weibull_kernels.sinks import ParquetSink

BETA1 = 0.9
CLIP = 1.0
FINAL_LR = 0.05  # of the peak, at the end of the cosine
FITTED = 5  # records from one Weibull fit of the weights to the next
ROUNDING = 2.0**-24  # of one fp32 operation, relative


@dataclass(frozen=True)
class Settings:
    """Of one run. `lr` is the peak; `every` is how many steps lie between two records."""

    steps: int = 1000
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 64
    batch: int = 16
    lr: float = 6e-3
    weight_decay: float = 0.8
    beta2: float = 0.95
    warmup: int | None = None  # a tenth of the steps
    seed: int = 0
    every: int = 5
    device: str = "auto"
    forces: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "width", "layers", "heads", "context", "batch", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or a positive number, got {self.weight_decay}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be from 0 to under 1, got {self.beta2}")
        if self.lr * self.weight_decay >= 1:
            raise ValueError(f"lr·weight_decay must be under 1, got {self.lr * self.weight_decay}; lower one")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be an even number for each head; {self.width} over {self.heads} heads is not"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup must be from 0 to steps ({self.steps}), got {self.warmup}")

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return self.steps // 10 if self.warmup is None else self.warmup

    def torch_device(self) -> torch.device:
        """The GPU where there is one, unless told otherwise."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device '{self.device}' cannot be used here: {reason}") from None
        return device

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `FINAL_LR`; part of the peak at a step, from 1."""
        warmup = self.warmup_steps
        if step <= warmup:
            return step / warmup
        along = (step - warmup) / max(1, self.steps - warmup)
        return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * along)) / 2


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
    betas = (BETA1, settings.beta2)
    return wk.AdamW(param_groups(model, settings), lr=settings.lr, betas=betas, ledger=settings.forces)


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
    """

    def add(self, budget: wk.ForceBudget, measured: Tensor, weights: list[Tensor]) -> None:
        """Judge one interval by the measured change of ‖w‖², [P], and the weights after it."""
        residue = (budget.predicted_change - measured).abs()
        fourth = torch.stack([weight.detach().double().pow(4).sum() for weight in weights])
        bound = 1e-5 * budget.absolute + 40 * ROUNDING * (budget.steps * fourth).sqrt()
        # A tensor of zeros that stays so has a bound of 0 and nothing to judge.
        of_bound = torch.where((residue == 0) & (bound == 0), 0.0, residue / bound).max()
        unexplained = (budget.predicted_change + budget.rounding - measured).abs().sum()
        self.of_budget = _worse(self.of_budget, (unexplained / budget.absolute.sum()).item())
        self.of_bound = _worse(self.of_bound, of_bound.item())


def _worse(so_far: float, now: float) -> float:
    """The larger; what is not a number is the worst of all."""
    return math.inf if math.isnan(now) else max(so_far, now)


def norms_sq(weights: list[Tensor]) -> Tensor:
    """‖w‖² of each tensor, float64 [P]."""
    return torch.stack([weight.detach().double().square().sum() for weight in weights])


class Stopwatch:
    """Seconds spent in `with stopwatch:` blocks, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *exception: object) -> None:
        self.seconds += self._now() - self._started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


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


def fits_by_role(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """Shape `k` and `scale` λ of the role of each parameter, [P]: one fit to all tensors of a role."""
    named = [
        item
        for group in optimizer.param_groups
        for item in zip(group["param_names"], group["params"], strict=True)
    ]
    statistics = wk.weight_statistics(named)
    totals = {role: statistics.total(role=role) for role in dict.fromkeys(statistics.roles)}
    fits = {role: wk.fit_weibull(total, on_degenerate="mark") for role, total in totals.items()}
    return {
        name: [float(getattr(fits[role], name)[0]) for role in statistics.roles] for name in ("k", "scale")
    }


@dataclass
class Run:
    """What a training run leaves behind, next to its records."""

    model: torch.nn.Module
    training: Stopwatch
    recording: Stopwatch
    closure: Closure = field(default_factory=Closure)
    super_weights: SuperWeights = field(default_factory=SuperWeights)
    last_budget: wk.ForceBudget | None = None
    step: int = 0
    interrupted: bool = False


def train(
    settings: Settings,
    text: Tensor,
    sink: ParquetSink | None = None,
    report: Callable[[int, float], None] | None = None,
    visit: Callable[[int, torch.nn.Module], None] | None = None,
) -> Run:
    """Train on the bytes of `text`; drain the ledger every `settings.every` steps and after the last.

    Each record is the exact sum over the steps since the one before. `report` is called with the
    step and its loss as often as that, `visit` with the model after every step and before the first,
    as step 0. Ctrl-C ends the run early and in order. Measuring changes
    nothing: without `settings.forces` the weights are the same bits.
    """
    device = settings.torch_device()
    torch.manual_seed(settings.seed)
    model = GPTNeoXForCausalLM(VOCABULARY, settings.width, settings.layers, settings.heads).to(device)
    optimizer = make_optimizer(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: settings.lr_factor(done + 1))
    places = torch.Generator().manual_seed(settings.seed)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    run = Run(model, training=Stopwatch(device), recording=Stopwatch(device))
    if visit is not None:
        visit(0, model)
    before = norms_sq(weights)
    unfitted = dict.fromkeys(("k", "scale"), [math.nan] * len(weights))
    try:
        for step in range(1, settings.steps + 1):
            recorded = step % settings.every == 0 or step == settings.steps
            with run.training:
                tokens, following = random_windows(text, settings.batch, settings.context, places)
                logits = model(tokens.to(device))
                loss = F.cross_entropy(logits.flatten(0, 1), following.to(device).flatten())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
            if recorded and settings.forces:
                with run.recording:
                    run.last_budget = optimizer.ledger.drain()
                    if sink is not None:
                        tokens_seen = step * settings.batch * settings.context
                        fitted = step % (FITTED * settings.every) == 0 or step == settings.steps
                        described = rates(optimizer) | (fits_by_role(optimizer) if fitted else unfitted)
                        sink.write(step, run.last_budget, loss=loss, tokens=tokens_seen, **described)
                after = norms_sq(weights)
                run.closure.add(run.last_budget, after - before, weights)
                before = after
                if step % (10 * settings.every) == 0:
                    run.super_weights.add(step, optimizer)
            scheduler.step()
            run.step = step
            if visit is not None:
                visit(step, model)
            if report is not None and recorded:
                report(step, loss.item())
    except KeyboardInterrupt:
        run.interrupted = True
    return run


def rates(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """`lr` and `weight_decay` of each parameter, [P]."""
    return {
        rate: [group[rate] for group in optimizer.param_groups for _ in group["params"]]
        for rate in ("lr", "weight_decay")
    }
