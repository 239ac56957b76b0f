"""Forces and log moments, with and without the histogram, against rivals and the memory floor."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import results
import rivals
import torch
import workloads
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds
from workloads import Workload

from weibull_kernels.dispatch import find_kernel
from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import Sums

# The compiler's own warnings are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

# As many rounds as fit into so many seconds, for each list and operation.
SECONDS, FEWEST, MOST = 12.0, 3, 15
OPERATIONS = {"forces": False, "forces+histogram": True}
LISTS = ("pythia-70m", "2000-small", "large-and-2000-small", "shards-with-empty")
Prepared = tuple[Workload, Sums]


def _prepare(workload: Workload) -> Iterator[Prepared]:
    yield workload, reference.sums(workload.rows, with_histogram=True)
    gc.collect()


@pytest.fixture(scope="module", params=LISTS)
def tensor_list(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """A list of tensors and its exact sums."""
    yield from _prepare(workloads.make(request.param, workloads.SHAPES[request.param]()))


@pytest.fixture(scope="module", params=workloads.HISTOGRAM_INPUTS)
def histogram_input(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """A tensor of 16M entries, large against the caches, and its exact sums."""
    yield from _prepare(workloads.make(request.param, [(1 << 24,)], kind=request.param))


def _measure(
    benchmark: BenchmarkFixture, prepared: Prepared, with_histogram: bool, others: dict[str, rivals.Rival]
) -> dict[str, object]:
    """Checks ours and the others against the oracle, times them in turns, returns the entry to keep."""
    workload, exact = prepared
    kernel = find_kernel("sums", None, torch.device("cpu"))
    oracle = rivals.as_result(exact, workload)

    def ours() -> Sums:
        return kernel(workload.rows, with_histogram=with_histogram)

    found = {"ours": rivals.errors(rivals.as_result(ours(), workload), oracle, workload)}
    rivals.check(found["ours"], rivals.TOLERANCES, "weibull_kernels")
    for name, rival in others.items():
        found[name] = rivals.errors(rival(), oracle, workload)  # type: ignore[arg-type]
        rivals.check(found[name], rivals.ROUGH, name)

    rounds = Rounds({**others, "read": rivals.plain_read(workload)})
    begun = time.perf_counter()
    rounds.run()
    count = int(min(max(SECONDS / (time.perf_counter() - begun), FEWEST), MOST))
    # The others run in the set-up of each of the harness's rounds: one of each, in turns.
    benchmark.pedantic(ours, setup=rounds.run, rounds=count, warmup_rounds=1)
    for by_clock in rounds.times.values():
        by_clock["ms"] = by_clock["ms"][-count:]
    rounds.times["ours"] = {"ms": [seconds * 1e3 for seconds in benchmark.stats.stats.data]}
    return results.entry(workload, rounds, "ms", found)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_forces(benchmark: BenchmarkFixture, tensor_list: Prepared, operation: str, record: Record) -> None:
    """Whole lists, against everything."""
    workload, _ = tensor_list
    benchmark.group = workload.name
    others = {name: make(workload, OPERATIONS[operation]) for name, make in rivals.RIVALS.items()}
    entry = _measure(benchmark, tensor_list, OPERATIONS[operation], others)
    benchmark.extra_info.update(entry)
    record("lists", f"{workload.name}/{operation}", entry)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_histogram_inputs(
    benchmark: BenchmarkFixture, histogram_input: Prepared, operation: str, record: Record
) -> None:
    """The weights that are hard for a histogram, against the memory floor."""
    workload, _ = histogram_input
    benchmark.group = f"histogram of {workload.name}"
    entry = _measure(benchmark, histogram_input, OPERATIONS[operation], {})
    benchmark.extra_info.update(entry)
    record("histogram_inputs", f"{workload.name}/{operation}", entry)
