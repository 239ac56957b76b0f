"""What a meter costs a training loop: two twins of the demo's model step in turns, one with a meter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Record
from neox import GPTNeoXForCausalLM
from optimizers import BETA1, make_optimizer, param_groups
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import spread
from settings import Settings
from text import VOCABULARY, library_source, random_windows

import weibull_kernels as wk

WINDOW = 50  # steps that are compared as a whole, so that each has its share of the records
WINDOWS = 16


def fused(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Torch's AdamW."""
    settings = Settings()
    betas = (BETA1, settings.beta2)
    return torch.optim.AdamW(param_groups(model, settings), lr=settings.lr, betas=betas, fused=True)


@dataclass(frozen=True)
class Case:
    """An optimizer that is metered, and the one without a meter that it is compared with."""

    metered: Callable[[torch.nn.Module], torch.optim.Optimizer]
    alone: Callable[[torch.nn.Module], torch.optim.Optimizer]
    every: int


def ours(model: torch.nn.Module) -> torch.optim.Optimizer:
    """`wk.AdamW` with its ledger."""
    return make_optimizer(model, Settings())


CASES = {
    "torch fused, every 50": Case(fused, fused, 50),
    "wk.AdamW, every 50, against torch fused": Case(ours, fused, 50),
    "wk.AdamW, every 1, against torch fused": Case(ours, fused, 1),
    "wk.AdamW, every 1, against itself": Case(ours, ours, 1),
}


def overhead(seconds: np.ndarray, every: int) -> dict[str, Any]:
    """What the meter adds, from pairs of steps [windows, WINDOW, with and without].

    Steps of one length differ by several per cent for reasons of their own, and the median of the differences
    does not: that of the steps that were due and that of the others, each by its share of the steps.
    """
    more = seconds[..., 0] - seconds[..., 1]
    due = np.arange(1, WINDOW + 1) % every == 0
    at_due = np.median(more[:, due])
    others = np.median(more[:, ~due], axis=1) if every > 1 else np.median(more, axis=1)
    added = others if every == 1 else (at_due + (every - 1) * others) / every
    alone = np.median(seconds[..., 1], axis=1)
    return {
        "steps": WINDOW * WINDOWS,
        "ms_a_step": spread((1e3 * alone).tolist()),
        "ms_more_when_due": float(f"{1e3 * at_due:.3g}"),
        "overhead_percent": spread((100 * added / alone).tolist()),
    }


@pytest.mark.parametrize("name", CASES)
def test_overhead(benchmark: BenchmarkFixture, name: str, record: Record, tmp_path: Path) -> None:
    """Pairs of steps on the same batch, window after window."""
    case, source = CASES[name], library_source()
    places = torch.Generator().manual_seed(0)
    loops = []
    for make in (case.metered, case.alone):
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(VOCABULARY, 128, 4, 4)
        loops.append((model, make(model)))
    sink = wk.ParquetSink(tmp_path / "run.parquet")
    meter = wk.attach(loops[0][1], every=case.every, sinks=[sink])

    def step(loop: tuple[torch.nn.Module, torch.optim.Optimizer], tokens: Any, following: Any) -> float:
        model, optimizer = loop
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    def window() -> None:
        pairs = np.zeros((WINDOW, 2))
        for count in range(WINDOW):
            batch = random_windows(source, 16, 64, places)
            for which in (0, 1) if count % 2 else (1, 0):
                pairs[count, which] = step(loops[which], *batch)
        windows.append(pairs)

    windows: list[np.ndarray] = []
    benchmark.group = "a meter in the demo's loop"
    benchmark.pedantic(window, rounds=WINDOWS, warmup_rounds=1)
    meter.detach()
    records = wk.read_records(sink.path)
    steps = sorted(set(records["step"].to_pylist()))
    assert len(steps) == WINDOW * (WINDOWS + 1) // case.every  # nothing was left out
    assert all(after - before == case.every for before, after in pairwise(steps))
    entry = overhead(np.array(windows[-WINDOWS:]), case.every)
    benchmark.extra_info.update(entry)
    record("meter", name, entry)
