"""What metering costs the training of Pythia-70M on a GPU: twins of the model step in turns on one batch.

Bfloat16 autocast, batches of random tokens that lie on the device, no clipping, nothing read: the host runs
ahead of the device as it does in a real loop, and the device's own clock says how long a step took.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rounds import spread

import weibull_kernels as wk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from neox import GPTNeoXForCausalLM

WARM_UP, FEWEST, MOST = 5, 50, 150
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass(frozen=True)
class Shape:
    """Of the model and its batch."""

    vocabulary: int = 50304
    width: int = 512
    layers: int = 6
    heads: int = 8
    batch: int = 16
    context: int = 2048


TINY = Shape(vocabulary=97, width=32, layers=2, heads=2, batch=2, context=8)


@dataclass(frozen=True)
class Case:
    """An optimizer, what is done after each step, and how often a meter records (None: no meter)."""

    ours: bool
    every: int | None = None
    drained: bool = False


ALONE = "torch fused"
CASES = {
    ALONE: Case(ours=False),
    "wk.AdamW, ledger drained every step": Case(ours=True, drained=True),
    **{f"wk.AdamW, meter every {n}": Case(ours=True, every=n) for n in (1, 10, 50)},
    **{f"torch fused, meter every {n}": Case(ours=False, every=n) for n in (1, 10, 50)},
}


@dataclass
class Loop:
    """One of the twins, and its steps: milliseconds of the device for all of it, of the host for `step()`."""

    case: Case
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    meter: Any
    device_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)

    def step(self, tokens: torch.Tensor) -> None:
        """Forward, backward, step; the host's time of the last."""
        self.optimizer.zero_grad()
        with torch.autocast(tokens.device.type, torch.bfloat16):
            logits = self.model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        begun = time.perf_counter()
        self.optimizer.step()
        if self.case.drained:
            self.optimizer.ledger.drain()  # type: ignore[attr-defined]
        self.host_ms.append((time.perf_counter() - begun) * 1e3)


def measure(device: str, seconds: float, shape: Shape) -> dict[str, Any]:
    """The entries of `CASES`: medians of a step, and of what it takes more than the step without a meter.

    The batch is halved until it fits the memory.
    """
    while True:
        try:
            return _measure(device, seconds, shape)
        except torch.OutOfMemoryError:
            if shape.batch == 1:
                raise
        gc.collect()
        torch.cuda.empty_cache()
        shape = Shape(**{**vars(shape), "batch": shape.batch // 2})


def _measure(device: str, seconds: float, shape: Shape) -> dict[str, Any]:
    begun = time.perf_counter()
    generator = torch.Generator(device).manual_seed(0)
    size = shape.batch, shape.context + 1

    def batch() -> torch.Tensor:
        return torch.randint(shape.vocabulary, size, device=device, generator=generator)

    with tempfile.TemporaryDirectory() as folder:
        loops = {
            name: _loop(case, shape, device, Path(folder) / f"{place}.parquet")
            for place, (name, case) in enumerate(CASES.items())
        }
        _turns(loops, batch, range(WARM_UP), device)
        for loop in loops.values():
            loop.device_ms.clear()
            loop.host_ms.clear()
        timed = time.perf_counter()
        _turns(loops, batch, range(3), device)
        a_turn = (time.perf_counter() - timed) / 3
        steps = int(min(max((seconds - (time.perf_counter() - begun)) / a_turn, FEWEST), MOST))
        _turns(loops, batch, range(steps), device)
        for loop in loops.values():
            if loop.meter is not None:
                loop.meter.detach()
        records = {
            name: _recorded(Path(folder) / f"{place}.parquet")
            for place, (name, case) in enumerate(CASES.items())
            if case.every is not None
        }
    for name, steps_recorded in records.items():
        made, every = WARM_UP + len(loops[name].device_ms), CASES[name].every
        assert every is not None
        # A ledger's last record, of the steps since the one before, is written when its meter is detached.
        due = [step for step in steps_recorded if step % every == 0]
        assert due == list(range(every, made + 1, every)), f"{name}: records of {steps_recorded}"
    alone = loops[ALONE]
    return {
        "model": {**vars(shape), "parameters": sum(p.numel() for p in alone.model.parameters())},
        "steps": len(alone.device_ms),
        "cases": {name: _entry(loop, alone) for name, loop in loops.items()},
    }


def _loop(case: Case, shape: Shape, device: str, path: Path) -> Loop:
    torch.manual_seed(0)
    with torch.device(device):
        model = GPTNeoXForCausalLM(shape.vocabulary, shape.width, shape.layers, shape.heads)
    named = list(model.named_parameters())
    optimizer = wk.AdamW(named, **SETTINGS) if case.ours else torch.optim.AdamW(named, fused=True, **SETTINGS)
    meter = None
    if case.every is not None:
        meter = wk.attach(optimizer, every=case.every, sinks=[wk.ParquetSink(path)])
    return Loop(case, model, optimizer, meter)


def _turns(loops: dict[str, Loop], batch: Callable[[], torch.Tensor], turns: range, device: str) -> None:
    """A step of each to a turn; in every other turn in the opposite order."""
    marks: list[tuple[Loop, Any, Any]] = []
    for turn in turns:
        tokens = batch()
        for loop in list(loops.values())[:: -1 if turn % 2 else 1]:
            before, after = _mark(device), None
            loop.step(tokens)
            after = _mark(device)
            marks.append((loop, before, after))
    if device == "cuda":
        torch.cuda.synchronize()
    for loop, before, after in marks:
        loop.device_ms.append(before.elapsed_time(after) if device == "cuda" else (after - before) * 1e3)


def _mark(device: str) -> Any:
    """The present, on the device's own clock; for a rehearsal the host's."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _recorded(path: Path) -> list[int]:
    return sorted(set(wk.read_records(path)["step"].to_pylist()))


def _entry(loop: Loop, alone: Loop) -> dict[str, Any]:
    """A step, and what it takes more than the one without a meter in the same turn.

    Of a meter that records every n-th step the median of the differences when one was due and of the others
    are weighted by how many steps there are of them.
    """
    more = [a - b for a, b in zip(loop.device_ms, alone.device_ms, strict=True)]
    host = [a - b for a, b in zip(loop.host_ms, alone.host_ms, strict=True)]
    every = loop.case.every or 1
    due = [(WARM_UP + place) % every == 0 for place in range(1, len(more) + 1)]
    base = median(alone.device_ms)

    def weighted(values: list[float]) -> float:
        at_due = median(value for value, is_due in zip(values, due, strict=True) if is_due)
        if every == 1:
            return at_due
        others = median(value for value, is_due in zip(values, due, strict=True) if not is_due)
        return (at_due + (every - 1) * others) / every

    return {
        "ms_a_step": spread(loop.device_ms),
        "ms_more": float(f"{weighted(more):.3g}"),
        "percent_more": float(f"{100 * weighted(more) / base:.3g}"),
        "percent_more_of_a_turn": spread([100 * value / base for value in more]),
        "steps_due": sum(due),
        "ms_more_when_due": spread([value for value, is_due in zip(more, due, strict=True) if is_due]),
        "host_ms_of_step": spread(loop.host_ms),
        "host_ms_more": float(f"{weighted(host):.3g}"),
    }
