"""A meter does not grow with the run."""

import gc
import os
import tracemalloc

import torch
from loops import OPTIMIZERS, Net, train

import weibull_kernels as wk

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def test_memory_grows_by_less_than_a_kilobyte_a_step(tmp_path):
    """10,000 steps, each recorded in a file: what the process holds, and what Python allocated."""
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    with wk.attach(optimizer, sinks=[wk.ParquetSink(tmp_path / "run.parquet")]):
        train(model, optimizer, range(1, 1001))
        gc.collect()
        before = resident()
        train(model, optimizer, range(1001, 10_001))
        gc.collect()
        grown = (resident() - before) / 9000
        tracemalloc.start()
        train(model, optimizer, range(10_001, 10_101))
        gc.collect()
        start, _ = tracemalloc.get_traced_memory()
        train(model, optimizer, range(10_101, 10_301))
        gc.collect()
        allocated = (tracemalloc.get_traced_memory()[0] - start) / 200
        tracemalloc.stop()
    assert grown < 1024
    assert allocated < 1024
    assert wk.read_records(tmp_path / "run.parquet").num_rows == 10_300 * 6
