"""The cost of `wk.forces(optimizer)` on the host, apart from the kernel's work on the entries."""

from __future__ import annotations

import pytest
import torch
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, spread

import weibull_kernels as wk
from weibull_kernels.dispatch import find_kernel
from weibull_kernels.optimizers import read_optimizer, with_columns


def stepped_optimizer(tensors: int, device: str = "cpu") -> torch.optim.AdamW:
    """AdamW after a step, over tensors of one entry each: there is next to nothing to read."""
    parameters = [torch.nn.Parameter(torch.ones(1, device=device)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([(f"tensor.{i}", p) for i, p in enumerate(parameters)], lr=1e-3)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("tensors", [300, 2000])
def test_host_cost(benchmark: BenchmarkFixture, tensors: int, record: Record) -> None:
    """All of `wk.forces` where the kernel has nothing to do; and the kernel's own share of that."""
    optimizer = stepped_optimizer(tensors)
    rows = with_columns(read_optimizer(optimizer)).kernel_rows
    kernel = find_kernel("sums", None, torch.device("cpu"))
    rounds = Rounds(
        {"kernel": lambda: kernel(rows), "read_optimizer": lambda: with_columns(read_optimizer(optimizer))}
    )
    benchmark.group = "host"
    benchmark.pedantic(wk.forces, args=(optimizer,), setup=rounds.run, rounds=50, warmup_rounds=3)
    ms = {"forces": spread([seconds * 1e3 for seconds in benchmark.stats.stats.data])}
    ms |= {name: spread(by_clock["ms"][-50:]) for name, by_clock in rounds.times.items()}
    entry = {
        "tensors": tensors,
        "ms": ms,
        "microseconds_per_tensor": round(ms["forces"]["median"] * 1e3 / tensors, 2),
    }
    benchmark.extra_info.update(entry)
    record("host", f"{tensors}-tensors", entry)
