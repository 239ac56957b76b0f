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


class Recorder:
    """Writes the forces of a run, and what else is found out at its steps; changes nothing of them."""

    def __init__(
        self,
        settings: Settings,
        model: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        run: Run,
        sink: ParquetSink | None,
    ) -> None:
        self._settings, self._optimizers, self._run, self._sink = settings, optimizers, run, sink
        self._budgets = budgets_of(optimizers, model, settings)
        self._named = named_weights(optimizers)
        self._weights = [weight for _, weight in self._named]
        self._norms_sq = norms_sq(self._weights)

    def before(self, step: int) -> None:
        """To be called before the optimizers step."""
        if self._looks_at(step) and self._settings.weights != "float32":
            self._run.unmoved.remember(*self._optimizers)

    def after(self, step: int, loss: Tensor) -> None:
        """To be called after they have, with the loss before, and before the schedulers step."""
        if self._settings.records(step):
            with self._run.recording:
                self._run.last_budget = self._budgets.drain()
                if self._sink is not None:
                    self._write(self._sink, step, self._run.last_budget, loss)
            after = norms_sq(self._weights)
            self._run.closure.add(self._run.last_budget, after - self._norms_sq, self._weights)
            self._norms_sq = after
        if self._looks_at(step):
            self._run.super_weights.add(step, *self._optimizers)
            if self._settings.weights != "float32":
                self._run.unmoved.add(step, *self._optimizers)

    def _looks_at(self, step: int) -> bool:
        """Whether single entries are looked at, which is slow, and for AdamW alone."""
        return self._settings.optimizer == "adamw" and step % (10 * self._settings.every) == 0

    def _write(self, sink: ParquetSink, step: int, budget: wk.ForceBudget, loss: Tensor) -> None:
        settings = self._settings
        fitted = step % (settings.fit_every * settings.every) == 0 or step == settings.steps
        described = rates(self._optimizers) | (fits_by_role if fitted else unfitted)(self._named)
        sink.write(step, budget, loss=loss, tokens=step * settings.batch * settings.context, **described)


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
    places = torch.Generator().manual_seed(settings.seed)
    run = Run(model, training=Stopwatch(device), recording=Stopwatch(device))
    recorder = Recorder(settings, model, optimizers, run, sink) if settings.forces else None
    if visit is not None:
        visit(0, model)
    try:
        for step in range(1, settings.steps + 1):
            with run.training:
                tokens, following = random_windows(text, settings.batch, settings.context, places)
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
                    logits = logits_of(model, tokens.to(device))
                loss = F.cross_entropy(logits.float().flatten(0, 1), following.to(device).flatten())
                model.zero_grad()
                loss.backward()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            if recorder is not None:
                recorder.before(step)
            with run.training:
                for optimizer in optimizers:
                    optimizer.step()
            if recorder is not None:
                recorder.after(step, loss)
            for scheduler in schedulers:
                scheduler.step()
            run.step = step
            if visit is not None:
                visit(step, model)
            if report is not None and settings.records(step):
                report(step, loss.item())
    except KeyboardInterrupt:
        run.interrupted = True
    return run
