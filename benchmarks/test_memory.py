"""What `weibull-kernels fit` holds in memory while it reads a sharded checkpoint of 2 GB."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from checkpoint_files import peak_memory, write_safetensors
from conftest import Record

SHARDS, SHAPE = 4, (8192, 16384)  # 512 MB each
LIMIT = 300 * 2**20

PROGRAM = """
import runpy, sys
sys.argv = ["weibull-kernels", "fit", sys.argv[1]]
try:
    runpy.run_module("weibull_kernels.cli", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""


def write_checkpoint(folder: Path) -> None:
    """Shards of one tensor each, with their index, in the format of safetensors."""
    weight = 0.02 * torch.randn(SHAPE)
    index = {}
    for shard in range(SHARDS):
        name, file = f"layers.{shard}.mlp.weight", f"model-{shard}.safetensors"
        write_safetensors(folder / file, {name: SHAPE}, [weight])
        index[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_fit_of_2_gigabytes(tmp_path: Path, record: Record) -> None:
    """Peak resident memory, imports included, and the time it takes."""
    write_checkpoint(tmp_path)
    begun = time.perf_counter()
    peak, printed = peak_memory(PROGRAM, str(tmp_path))
    seconds = time.perf_counter() - begun
    assert all(f"layers.{shard}.mlp.weight" in printed for shard in range(SHARDS))
    assert peak < LIMIT
    entry = {
        "gigabytes": SHARDS * 4 * SHAPE[0] * SHAPE[1] / 1e9,
        "peak_megabytes": round(peak / 2**20),
        "seconds": round(seconds, 1),
    }
    record("memory", "fit of a sharded checkpoint", entry)
