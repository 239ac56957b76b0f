"""What `weibull-kernels fit` holds in memory while it reads a sharded checkpoint of 2 GB."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Record

SHARDS, SHAPE = 4, (8192, 16384)  # 512 MB each
LIMIT = 300 * 2**20

# The program's own peak: a child inherits the count of resource.getrusage from its parent.
CHILD = """
import runpy, sys
sys.argv = ["weibull-kernels", "fit", sys.argv[1]]
try:
    runpy.run_module("weibull_kernels.cli", run_name="__main__")
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


def write_checkpoint(folder: Path) -> None:
    """Shards of one tensor each, with their index, in the format of safetensors."""
    weight = 0.02 * torch.randn(SHAPE)
    index = {}
    for shard in range(SHARDS):
        name, file = f"layers.{shard}.mlp.weight", f"model-{shard}.safetensors"
        size = weight.numel() * weight.element_size()
        header = json.dumps({name: {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, size]}}).encode()
        with (folder / file).open("wb") as stored:
            stored.write(len(header).to_bytes(8, "little") + header)
            weight.numpy().tofile(stored)
        index[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_fit_of_2_gigabytes(tmp_path: Path, record: Record) -> None:
    """Peak resident memory, imports included, and the time it takes."""
    write_checkpoint(tmp_path)
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    assert all(f"layers.{shard}.mlp.weight" in done.stdout for shard in range(SHARDS))
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stderr)[1]) * 1024
    assert peak < LIMIT
    entry = {
        "gigabytes": SHARDS * 4 * SHAPE[0] * SHAPE[1] / 1e9,
        "peak_megabytes": round(peak / 2**20),
        "seconds": round(seconds, 1),
    }
    record("memory", "fit of a sharded checkpoint", entry)
