"""Statistics and Weibull fits of a model's transmission weights, against what one would run instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import workloads
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, ratio, spread

import weibull_kernels as wk

# Attention output and FFN matrices of Pythia-70M: 14.2M weights, tensor by tensor or pooled.
LISTS = {
    "18 tensors": [(512, 512), (2048, 512), (512, 2048)] * 6,
    "pooled": [(14_155_776,)],
}
ROUNDS = 7

Fits = Callable[[], list[tuple[float, float]]]


def ours(named: list[tuple[str, torch.Tensor]]) -> Fits:
    """Statistics of all tensors in one pass, then every fit."""

    def run() -> list[tuple[float, float]]:
        fit = wk.fit_weibull(wk.weight_statistics(named))
        return list(zip(fit.k.tolist(), fit.scale.tolist(), strict=True))

    return run


def sort_and_least_squares(named: list[tuple[str, torch.Tensor]]) -> Fits:
    """The definition: (i−½)/n of the sorted magnitudes, a straight line through the middle 80 %."""

    def one(weight: torch.Tensor) -> tuple[float, float]:
        ordered = np.sort(np.abs(weight.numpy().ravel()).astype(np.float64))
        below = (np.arange(len(ordered)) + 0.5) / len(ordered)
        kept = (below >= 0.1) & (below <= 0.9)
        x, y = np.log(ordered[kept]), np.log(-np.log1p(-below[kept]))
        slope = np.cov(x, y, bias=True)[0, 1] / x.var()
        return float(slope), float(np.exp(x.mean() - y.mean() / slope))

    return lambda: [one(weight) for _, weight in named]


def npm_weibull(named: list[tuple[str, torch.Tensor]]) -> Fits:
    """`npm-weibull-py`: a histogram of log10|w| in 1024 bins, then its fit."""
    package = pytest.importorskip("npm_weibull")
    from npm_weibull.utils.histogram import extract_to_histogram

    def one(weight: torch.Tensor) -> tuple[float, float]:
        fit = package.weibull_fit(extract_to_histogram(weight))
        return fit["k"], fit["lambda"]

    return lambda: [one(weight) for _, weight in named]


# Relative, in k and λ; the coarse bins of npm-weibull-py are what they are.
TOLERANCES = {"ours": 3e-4, "npm-weibull-py": 2e-2}


@pytest.mark.parametrize("name", LISTS)
def test_fit(benchmark: BenchmarkFixture, name: str, record: Record) -> None:
    """All answers compared with the definition first, then timed in turns."""
    weights = workloads.make("fits", LISTS[name]).rows.weights
    named = [(f"layers.{i}.weight", weight) for i, weight in enumerate(weights)]
    contenders = {"sort": sort_and_least_squares(named), "npm-weibull-py": npm_weibull(named)}
    mine = ours(named)
    exact = np.array(contenders["sort"]())
    errors: dict[str, float] = {}
    for who, run in (("ours", mine), ("npm-weibull-py", contenders["npm-weibull-py"])):
        errors[who] = float(np.abs(np.array(run()) / exact - 1).max())
        assert errors[who] <= TOLERANCES[who], f"{who} is {errors[who]} off"

    rounds = Rounds(contenders)
    benchmark.group = f"Weibull fits, {name}"
    benchmark.pedantic(mine, setup=rounds.run, rounds=ROUNDS, warmup_rounds=1)
    times = {who: by_clock["ms"][-ROUNDS:] for who, by_clock in rounds.times.items()}
    times["ours"] = [seconds * 1e3 for seconds in benchmark.stats.stats.data]
    entry: dict[str, Any] = {
        "tensors": len(named),
        "parameters": sum(weight.numel() for weight in weights),
        "rounds": ROUNDS,
        "ms": {who: spread(values) for who, values in times.items()},
        "rival_to_ours": {who: ratio(times[who], times["ours"]) for who in contenders},
        "errors": {who: float(f"{error:.2g}") for who, error in errors.items()},
    }
    benchmark.extra_info.update(entry)
    record("fits", name, entry)
