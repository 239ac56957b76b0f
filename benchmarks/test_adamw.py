"""`wk.AdamW` with its ledger and without, against torch's fused and foreach steps."""

from __future__ import annotations

import gc

import optimizers
import pytest
import workloads
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, ratio, spread

ROUNDS = {"pythia-70m": 15, "2000-small": 40, "large-and-2000-small": 15}

# Read and written: weight, both moments; read: the gradient.
BYTES_PER_PARAMETER = 28


@pytest.mark.parametrize("name", ROUNDS)
def test_step(benchmark: BenchmarkFixture, name: str, record: Record) -> None:
    """Whole lists, all optimizers in turns."""
    shapes = workloads.SHAPES[name]()
    made = optimizers.make(shapes)
    errors = optimizers.check(made)
    numel = sum(w.numel() for group in made["ours"].param_groups for w in group["params"])
    others = {key: optimizer.step for key, optimizer in made.items() if key != "ours"}
    rounds = Rounds(others)
    benchmark.group = f"AdamW, {name}"
    benchmark.pedantic(made["ours"].step, setup=rounds.run, rounds=ROUNDS[name], warmup_rounds=2)
    times = {key: by_clock["ms"][-ROUNDS[name] :] for key, by_clock in rounds.times.items()}
    times["ours"] = [seconds * 1e3 for seconds in benchmark.stats.stats.data]
    ms = {key: spread(values) for key, values in times.items()}
    entry = {
        "tensors": len(shapes),
        "parameters": numel,
        "bytes_per_parameter": BYTES_PER_PARAMETER,
        "rounds": ROUNDS[name],
        "ms": ms,
        "gigabytes_per_second": {
            key: round(BYTES_PER_PARAMETER * numel / 1e6 / found["median"], 2) for key, found in ms.items()
        },
        "nanoseconds_per_parameter": {
            key: float(f"{found['median'] * 1e6 / numel:.3g}") for key, found in ms.items()
        },
        "to_torch_fused": {
            key: ratio(values, times["torch fused"]) for key, values in times.items() if key != "torch fused"
        },
        "ledger_to_none": ratio(times["ours"], times["ours without ledger"]),
        "errors": {key: float(f"{error:.2g}") for key, error in errors.items()},
    }
    benchmark.extra_info.update(entry)
    record("adamw", name, entry)
    del made, others, rounds
    gc.collect()
