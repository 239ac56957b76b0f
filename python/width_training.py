"""Training of a LLaMA-style model whose lr and decay come from those of a narrower one."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from llama import LlamaForCausalLM
from text import VOCABULARY, random_windows
from torch import Tensor

import weibull_kernels as wk
from weibull_kernels.roles import matching_rows

ROLES = ("qkv", "attention_output", "ffn")  # of the matrices
FORCES = ("alignment", "injection", "decay", "coupling", "rounding", "norm_sq")
BLOCK = 4096  # bytes of text that are held out together
HELD_OUT = 20  # one block in so many
WINDOWS = 256  # of the held-out text that a model is judged on
TAIL = 0.1  # of the steps up to the cooldown, at their end, that `constant_loss` is the mean of
BALANCED = 0.2  # of them, that the forces are summed over


@dataclass(frozen=True)
class Settings:
    """Of one run. `lr` and `weight_decay` are those of the base width; `rule` carries them to `width`."""

    width: int
    lr: float
    weight_decay: float
    rule: str = "published"
    seed: int = 0
    base_width: int = 32
    steps: int = 600
    layers: int = 2
    head: int = 16
    context: int = 64
    batch: int = 8
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: int = 25
    cooldown: int = 100

    def __post_init__(self) -> None:
        for name in ("width", "base_width", "steps", "layers", "head", "context", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rule not in wk.scaling.RULES:
            raise ValueError(f"rule must be one of {', '.join(wk.scaling.RULES)}, got {self.rule!r}")
        if self.lr * self.weight_decay >= 1:
            raise ValueError(f"lr·weight_decay must be under 1, got {self.lr * self.weight_decay}; lower one")
        if self.warmup < 0 or self.cooldown < 0 or self.warmup >= self.constant:
            raise ValueError(
                f"warmup and cooldown must leave some of the {self.steps} steps, got {self.warmup} and "
                f"{self.cooldown}"
            )

    @property
    def m(self) -> float:
        """The width over the base's."""
        return self.width / self.base_width

    @property
    def constant(self) -> int:
        """The last step at the peak of lr."""
        return self.steps - self.cooldown

    def lr_factor(self, step: int) -> float:
        """Part of the peak at a step, from 1: a linear warm-up, constant, linear towards 0."""
        left = (self.steps - step + 1) / (self.cooldown + 1)
        return min(1.0, step / max(1, self.warmup), left)


def split(text: Tensor) -> tuple[Tensor, Tensor]:
    """Text to train on, and every `HELD_OUT`-th block of it to judge by."""
    blocks = text[: len(text) // BLOCK * BLOCK].view(-1, BLOCK)
    held = torch.arange(len(blocks)) % HELD_OUT == HELD_OUT - 1
    return blocks[~held].flatten(), blocks[held].flatten()


def train(settings: Settings, text: Tensor, device: torch.device) -> dict[str, Any]:
    """One run; what it found, as plain numbers."""
    started = time.perf_counter()
    known, held_out = split(text)
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        VOCABULARY, settings.width, settings.layers, settings.head, wk.scaling.output_scale(settings.m)
    ).to(device)
    optimizer = make_optimizer(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: settings.lr_factor(done + 1))
    # The same windows in the same order for all runs of a seed, so that their losses compare.
    places = torch.Generator().manual_seed(settings.seed)
    losses: list[Tensor] = []
    found: dict[str, Any] = {}
    for step in range(1, settings.steps + 1):
        tokens, following = random_windows(known, settings.batch, settings.context, places)
        loss = F.cross_entropy(model(tokens.to(device)).flatten(0, 1), following.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step == settings.constant - math.ceil(BALANCED * settings.constant):
            optimizer.ledger.drain()  # forces are looked at from here
        if step == settings.constant:
            tail = torch.stack(losses[-math.ceil(TAIL * step) :])
            found["constant_loss"] = tail.double().mean().item()
            found["matrices"] = by_role(optimizer)
        scheduler.step()
    return found | {
        "loss": held_out_loss(model, held_out, settings.context, device),
        "time_constants": time_constants(settings),
        "seconds": time.perf_counter() - started,
    }


def make_optimizer(model: torch.nn.Module, settings: Settings) -> wk.AdamW:
    """AdamW with the groups that the rule makes; the head is vector-like, its logits are scaled by 1/m."""
    groups = wk.scaling.param_groups(
        model,
        width=settings.width,
        base_width=settings.base_width,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        rule=settings.rule,
        head="vector",
    )
    return wk.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2))


def time_constants(settings: Settings) -> float:
    """Σηω of the matrices up to the cooldown: how often 1/(ηω) has passed."""
    rule, m = wk.scaling.RULES[settings.rule], settings.m
    shrinkage = settings.lr * rule.lr_ratio(m) * settings.weight_decay * rule.weight_decay_ratio(m)
    return shrinkage * sum(settings.lr_factor(step) for step in range(1, settings.constant + 1))


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, text: Tensor, context: int, device: torch.device) -> float:
    """Mean loss on `WINDOWS` windows, the same ones for every run."""
    places = torch.Generator().manual_seed(0)
    tokens, following = random_windows(text, WINDOWS, context, places)
    logits = model(tokens.to(device)).flatten(0, 1)
    return F.cross_entropy(logits.double(), following.to(device).flatten()).item()


def by_role(optimizer: wk.AdamW) -> dict[str, dict[str, Any]]:
    """Of the matrices of each role: geometric means of σ_top and σ, and the forces since the last drain."""
    group = next(group for group in optimizer.param_groups if group["scaling_class"] == "matrix")
    named = list(zip(group["param_names"], group["params"], strict=True))
    top = wk.top_singular_values(named)
    rms = torch.stack([weight.detach().double().square().mean().sqrt() for _, weight in named])
    budget = optimizer.ledger.drain()
    found: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        forces = budget.total(role=role)
        rows = matching_rows(top.names, top.roles, "*", role)
        found[role] = {
            "sigma_top": top.values[rows, 0].log().mean().exp().item(),
            "rms": rms[rows].log().mean().exp().item(),
            "forces": {force: getattr(forces, force).item() for force in FORCES},
        }
    return found
