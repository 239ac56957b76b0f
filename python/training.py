"""A training loop as people write it, with the force budget on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from measured import Closure, SuperWeights, Unmoved, fits_by_role, norms_sq, unfitted
from models import logits_of, make_model
from optimizers import budgets_of, make_optimizers, named_weights, rates
from settings import Settings
from text import random_windows
from torch import Tensor

import weibull_kernels as wk
from weibull_kernels.sinks import ParquetSink


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
class Run:
    """What a training run leaves behind, next to its records."""

    model: torch.nn.Module
    training: Stopwatch
    recording: Stopwatch
    closure: Closure = field(default_factory=Closure)
    super_weights: SuperWeights = field(default_factory=SuperWeights)
    unmoved: Unmoved = field(default_factory=Unmoved)
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
    """Train on the bytes of `text`; write the forces every `settings.every` steps and after the last.

    Each record is the exact sum over the steps since the one before. `report` is called with the
    step and its loss as often as that, `visit` with the model after every step and before the first,
    as step 0. Ctrl-C ends the run early and in order. Measuring changes
    nothing: without `settings.forces` the weights are the same bits.
    """
    device = settings.torch_device()
    model = make_model(settings)
    optimizers = make_optimizers(model, settings)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: settings.lr_factor(done + 1))
        for optimizer in optimizers
    ]
    budgets = budgets_of(optimizers, model, settings) if settings.forces else None
    places = torch.Generator().manual_seed(settings.seed)
    named = named_weights(optimizers)
    weights = [weight for _, weight in named]
    run = Run(model, training=Stopwatch(device), recording=Stopwatch(device))
    if visit is not None:
        visit(0, model)
    before = norms_sq(weights)
    try:
        for step in range(1, settings.steps + 1):
            recorded = step % settings.every == 0 or step == settings.steps
            with run.training:
                tokens, following = random_windows(text, settings.batch, settings.context, places)
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
                    logits = logits_of(model, tokens.to(device))
                loss = F.cross_entropy(logits.float().flatten(0, 1), following.to(device).flatten())
                model.zero_grad()
                loss.backward()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            looked_at = (
                budgets is not None and settings.optimizer == "adamw" and step % (10 * settings.every) == 0
            )
            if looked_at and settings.weights != "float32":
                run.unmoved.remember(*optimizers)
            with run.training:
                for optimizer in optimizers:
                    optimizer.step()
            if recorded and budgets is not None:
                with run.recording:
                    run.last_budget = budgets.drain()
                    if sink is not None:
                        tokens_seen = step * settings.batch * settings.context
                        fitted = step % (settings.fit_every * settings.every) == 0 or step == settings.steps
                        described = rates(optimizers) | (fits_by_role(named) if fitted else unfitted(named))
                        sink.write(step, run.last_budget, loss=loss, tokens=tokens_seen, **described)
                after = norms_sq(weights)
                run.closure.add(run.last_budget, after - before, weights)
                before = after
            if looked_at:
                run.super_weights.add(step, *optimizers)
                if settings.weights != "float32":
                    run.unmoved.add(step, *optimizers)
            for scheduler in schedulers:
                scheduler.step()
            run.step = step
            if visit is not None:
                visit(step, model)
            if report is not None and recorded:
                report(step, loss.item())
    except KeyboardInterrupt:
        run.interrupted = True
    return run
