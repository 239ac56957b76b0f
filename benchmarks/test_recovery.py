"""Forces of all weights of Pythia-70M from 20 checkpoints: against a read of them and the literal spline."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workloads
from checkpoint_files import peak_memory, write_safetensors
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, ratio, spread
from scipy.interpolate import CubicSpline

import weibull_kernels as wk

STEPS = list(range(0, 20_000, 1000))
SUBSAMPLE = 200_000  # weights, as the code published with [W2] takes
EVALUATED = list(range(250, 19_001, 250))
LR, DECAY = "cosine:peak=1e-3,warmup=200,total=20000,floor=0.1", 0.01
ROUNDS = 7
LIMIT = 500 * 2**20

PROGRAM = """
import sys
import weibull_kernels as wk
found = wk.recover(sys.argv[1], lr=sys.argv[2], weight_decay=float(sys.argv[3]), method=sys.argv[4])
print(found.alignment.shape)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random walk of all tensors, in the page cache."""
    folder = tmp_path_factory.mktemp("run")
    shapes = {f"layers.{i}.weight": shape for i, shape in enumerate(workloads.pythia_70m())}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    generator = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(count, generator=generator)
    for step in STEPS:
        write_safetensors(folder / f"step{step}.safetensors", shapes, [weights])
        weights += 1e-3 * torch.randn(count, generator=generator)
    return folder


def plain_read(folder: Path) -> None:
    """Every byte into memory that is used again, by as many threads as torch has."""
    paths = sorted(folder.iterdir())
    threads = torch.get_num_threads()

    def read(mine: list[Path]) -> None:
        buffer = memoryview(bytearray(1 << 20))
        for path in mine:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    readers = [threading.Thread(target=read, args=(paths[i::threads],)) for i in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def literal(weights: np.ndarray) -> np.ndarray:
    """Alignment by a cubic spline through every weight, as published, at some steps; `weights` is [K, n]."""
    spline = CubicSpline(STEPS, weights, axis=0)
    rates = wk.schedules.rates(LR, np.array(EVALUATED))
    found = []
    for step, eta in zip(EVALUATED, rates, strict=True):
        before, after = spline(step - 1), spline(step)
        update = -(after - before) / eta - DECAY * before
        found.append(-2 * eta * float(before @ update))
    return np.array(found)


def subsample(folder: Path) -> np.ndarray:
    """The first weights of the largest tensor, float64 [K, n]."""
    rows = []
    for step in STEPS:
        opened = wk.checkpoints.open_checkpoint(folder / f"step{step}.safetensors")
        rows.append(max(opened, key=lambda tensor: tensor.numel).read(0, SUBSAMPLE).double().numpy())
    return np.stack(rows)


def options(method: str) -> dict[str, Any]:
    """Of `recover`."""
    return {"lr": LR, "weight_decay": DECAY, "method": method}


def check(weights: np.ndarray) -> float:
    """The worst difference of the Gram route from the literal one on the subsample, of the alignment."""
    run = [{"w": torch.from_numpy(row)} for row in weights]
    found = wk.recover(run, STEPS, at=EVALUATED, **options("spline"))
    absolute = abs(found.alignment) + abs(found.injection) + abs(found.decay)
    return float((abs(found.alignment[0] - literal(weights)) / absolute[0]).max())


@pytest.mark.parametrize("method", ["corrected", "spline"])
def test_recovery(benchmark: BenchmarkFixture, method: str, run: Path, record: Record) -> None:
    """Checked on a subsample first, then timed in turns; memory in a process of its own."""
    weights = subsample(run)
    error = check(weights)
    assert error <= 1e-8, error
    nbytes = sum(path.stat().st_size for path in run.iterdir())

    contenders = {
        "read": lambda: plain_read(run),
        "literal spline": lambda: literal(weights),
        "gram": lambda: wk.checkpoint_gram(run),
    }
    rounds = Rounds(contenders)
    benchmark.group = f"20 checkpoints of Pythia-70M, {method}"
    benchmark.pedantic(
        lambda: wk.recover(run, **options(method)), setup=rounds.run, rounds=ROUNDS, warmup_rounds=1
    )
    times = {who: by_clock["ms"][-ROUNDS:] for who, by_clock in rounds.times.items()}
    times["ours"] = [seconds * 1e3 for seconds in benchmark.stats.stats.data]
    count = sum(int(np.prod(shape)) for shape in workloads.pythia_70m())
    # For the same number of weights; ours is of every step, not of every 250th alone.
    per_weight = [ms * count / SUBSAMPLE for ms in times["literal spline"]]
    peak, printed = peak_memory(PROGRAM, str(run), LR, str(DECAY), method)
    assert printed.strip() == f"({len(workloads.pythia_70m())}, {STEPS[-1]})"
    assert peak < LIMIT, peak
    entry: dict[str, Any] = {
        "checkpoints": len(STEPS),
        "parameters": count,
        "gigabytes": round(nbytes / 1e9, 2),
        "rounds": ROUNDS,
        "ms": {who: spread(values) for who, values in times.items()},
        "gigabytes_per_second": {
            who: round(nbytes / 1e6 / spread(times[who])["median"], 2) for who in ("ours", "gram", "read")
        },
        "to_read": ratio(times["ours"], times["read"]),
        "literal_to_ours": ratio(per_weight, times["ours"]),
        "peak_megabytes": round(peak / 2**20),
        "errors": {"ours": float(f"{error:.2g}")},
    }
    benchmark.extra_info.update(entry)
    record("recovery", method, entry)
