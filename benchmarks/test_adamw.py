"""`wk.AdamW` with its ledger and without, against torch's fused and foreach steps."""

from __future__ import annotations

import gc

import optimizers
import pytest
import workloads
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds

ROUNDS = {"pythia-70m": 15, "2000-small": 40, "large-and-2000-small": 15}


@pytest.mark.parametrize("name", ROUNDS)
def test_step(benchmark: BenchmarkFixture, name: str, record: Record) -> None:
    """Whole lists, all optimizers in turns."""
    made = optimizers.make(workloads.SHAPES[name]())
    errors = optimizers.check(made)
    rounds = Rounds({key: optimizer.step for key, optimizer in made.items() if key != "ours"})
    benchmark.group = f"AdamW, {name}"
    benchmark.pedantic(made["ours"].step, setup=rounds.run, rounds=ROUNDS[name], warmup_rounds=2)
    times = {key: by_clock["ms"][-ROUNDS[name] :] for key, by_clock in rounds.times.items()}
    times["ours"] = [seconds * 1e3 for seconds in benchmark.stats.stats.data]
    entry = optimizers.entry(made, times, errors)
    benchmark.extra_info.update(entry)
    record("adamw", name, entry)
    del made, rounds
    gc.collect()
