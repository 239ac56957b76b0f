"""What `wk.forces(optimizer)` and `wk.AdamW.step()` cost on the host, apart from the work on the entries."""

from __future__ import annotations

import pytest
import torch
from conftest import Record
from pytest_benchmark.fixture import BenchmarkFixture
from rounds import Rounds, spread

import weibull_kernels as wk
from weibull_kernels.dispatch import find_kernel
from weibull_kernels.forces_plan import ForcesPlan


def stepped(kind: type[torch.optim.AdamW], tensors: int, device: str = "cpu") -> torch.optim.AdamW:
    """AdamW after a step, over tensors of one entry each: there is next to nothing to read."""
    parameters = [torch.nn.Parameter(torch.ones(1, device=device)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = kind([(f"tensor.{i}", p) for i, p in enumerate(parameters)], lr=1e-3, fused=True)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("tensors", [300, 2000])
def test_host_cost(benchmark: BenchmarkFixture, tensors: int, record: Record) -> None:
    """Where the kernel has nothing to do: all of `wk.forces`, what of it finds the plan, the kernel's share.

    And all of a step of `wk.AdamW`, beside torch's fused one.
    """
    optimizer, ours = stepped(torch.optim.AdamW, tensors), stepped(wk.AdamW, tensors)
    plan, found = ForcesPlan.of(optimizer)
    (measured,) = plan.measured(optimizer, found, [None])
    kernel = find_kernel("forces", None, torch.device("cpu"))
    rounds = Rounds(
        {
            "plan": lambda: ForcesPlan.of(optimizer),
            "kernel": lambda: kernel(measured.tensors, measured.hyperparameters),
            "step": ours.step,
            "torch_step": optimizer.step,
        }
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
