"""Top singular values of Pythia-70M's matrices: tracked against a read, cold against `svd_lowrank`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import rivals
import torch
import workloads
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, ratio, spread
from torch import Tensor
from workloads import Workload

from weibull_kernels.kernels.interface import Rows
from weibull_kernels.singular_values import TopSingularValues, top_singular_values

WARM_ROUNDS, COLD_ROUNDS = 25, 5
TOLERANCE = 1e-4
MOST_ITERATIONS = 2048
LR = 1e-4  # of the step between two calls, whose entries are as noise makes them
Q, ITERATIONS = 6, 2  # the defaults of svd_lowrank


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Matrices as after initialisation, which are the hard ones: their top values lie close together."""

    workload: Workload
    named: dict[str, Tensor]
    exact: Tensor


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """The matrices, and σ₁ in float64 by the eigenvalues of the smaller of AᵀA and AAᵀ."""
    shapes = [shape for shape in workloads.pythia_70m() if len(shape) == 2]
    made = workloads.make("pythia-70m", shapes)
    nothing = [None] * len(shapes)
    rows = made.rows
    weights = Rows(rows.weights, nothing, nothing, rows.bias_correction1, rows.bias_correction2, rows.eps)
    exact = []
    for weight in rows.weights:
        a = weight.double()
        exact.append(torch.linalg.eigvalsh(a.T @ a if len(a) > a.shape[1] else a @ a.T)[-1].sqrt())
    named = {f"layers.{i}.weight": weight for i, weight in enumerate(rows.weights)}
    return Prepared(Workload("pythia-70m", weights), named, torch.stack(exact))


def error(prepared: Prepared, found: Tensor) -> float:
    """The worst relative error of σ₁."""
    return float(((found.double() - prepared.exact) / prepared.exact).abs().max())


def low_rank(prepared: Prepared) -> Tensor:
    """σ₁ of every matrix by torch's randomised method as it comes."""
    return torch.stack([torch.svd_lowrank(w, q=Q, niter=ITERATIONS)[1][0] for w in prepared.named.values()])


def enough_iterations(prepared: Prepared) -> int | None:
    """The first of 2, 4, 8, … iterations that bring `svd_lowrank` within the tolerance on a square matrix.

    On the whole list so many would take minutes.
    """
    row, weight = next((i, w) for i, w in enumerate(prepared.named.values()) if len(w) == w.shape[1])
    count = ITERATIONS
    while count <= MOST_ITERATIONS:
        found = torch.svd_lowrank(weight, q=Q, niter=count)[1][0].double()
        if abs(found - prepared.exact[row]) <= TOLERANCE * prepared.exact[row]:
            return count
        count *= 2
    return None


def measured(
    benchmark: BenchmarkFixture,
    ours: Callable[[], TopSingularValues],
    others: dict[str, Callable[[], object]],
    count: int,
) -> dict[str, list[float]]:
    """Milliseconds by round, one of each contender to a round."""
    rounds = Rounds(others)
    benchmark.group = "top singular values of Pythia-70M's matrices"
    benchmark.pedantic(ours, setup=rounds.run, rounds=count, warmup_rounds=1)
    times = {who: by_clock["ms"][-count:] for who, by_clock in rounds.times.items()}
    return times | {"ours": [seconds * 1e3 for seconds in benchmark.stats.stats.data]}


def entry_of(prepared: Prepared, times: dict[str, list[float]]) -> dict[str, Any]:
    """What warm and cold have in common."""
    return {
        "matrices": len(prepared.named),
        "parameters": prepared.workload.numel,
        "rounds": len(times["ours"]),
        "ms": {who: spread(values) for who, values in times.items()},
        "to_read": ratio(times["ours"], times["read"]),
    }


def test_tracked(benchmark: BenchmarkFixture, prepared: Prepared, record: Record) -> None:
    """One pass from the result before a step, against a plain read of the same bytes."""
    torch.manual_seed(0)
    steps = [LR * torch.randn_like(weight) for weight in prepared.named.values()]
    moved = dict(zip(prepared.named, map(torch.sub, prepared.named.values(), steps), strict=True))
    start = top_singular_values(moved)

    def ours() -> TopSingularValues:
        return top_singular_values(prepared.named, start=start)

    found = ours()
    worst = error(prepared, found.values[:, 0])
    assert worst <= TOLERANCE, worst
    assert (found.passes == 1).all()
    times = measured(benchmark, ours, {"read": rivals.plain_read(prepared.workload)}, WARM_ROUNDS)
    entry = entry_of(prepared, times) | {"errors": {"ours": float(f"{worst:.2g}")}}
    benchmark.extra_info.update(entry)
    record("top_singular_values", "tracked", entry)


def test_cold(benchmark: BenchmarkFixture, prepared: Prepared, record: Record) -> None:
    """To the tolerance from nothing, against `svd_lowrank` as it comes, which is far from it."""
    torch.manual_seed(0)
    sigma = top_singular_values(prepared.named, tolerance=TOLERANCE)
    errors = {"ours": error(prepared, sigma.values[:, 0]), "svd_lowrank": error(prepared, low_rank(prepared))}
    assert sigma.converged.all()
    assert errors["ours"] <= TOLERANCE, errors
    times = measured(
        benchmark,
        lambda: top_singular_values(prepared.named, tolerance=TOLERANCE),
        {"read": rivals.plain_read(prepared.workload), "svd_lowrank": lambda: low_rank(prepared)},
        COLD_ROUNDS,
    )
    entry = entry_of(prepared, times) | {
        "passes": int(sigma.passes.max()),
        "rival_to_ours": {"svd_lowrank": ratio(times["svd_lowrank"], times["ours"])},
        "rival_iterations": {
            "timed": ITERATIONS,
            "for the tolerance, 512 × 512": enough_iterations(prepared),
        },
        "errors": {who: float(f"{worst:.2g}") for who, worst in errors.items()},
    }
    benchmark.extra_info.update(entry)
    record("top_singular_values", "cold", entry)
