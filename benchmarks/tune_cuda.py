"""Measures other sizes of the CUDA kernels than those of csrc/cuda/tuning.h, on the GPU that is here.

    python3 benchmarks/tune_cuda.py build FOLDER    # compile every candidate (needs nvcc, no GPU)
    python3 benchmarks/tune_cuda.py run FOLDER      # check and time what was built

`run` writes benchmarks/results/tuning-cuda-<device>.json, and a copy into $OUT where that is set.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TUNING = Path("cuda/tuning.h")

NAMES = ("kThreads", "kSumBlocks", "kCountBlocks", "kStepBlocks", "kPackBytes", "kChunk")
CANDIDATES = (
    (128, 10, 7, 4, 16, 8192),
    (128, 10, 7, 4, 16, 16384),
    (128, 8, 6, 3, 16, 8192),
    (128, 5, 5, 3, 32, 8192),
    (256, 5, 3, 2, 16, 16384),
)


def build(folder: Path) -> None:
    """A module `_cuda` for every candidate, each from a copy of the sources with sizes of its own."""
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(lambda sizes: build_one(folder, sizes), CANDIDATES):
            print(line, flush=True)


def build_one(folder: Path, sizes: tuple[int, ...]) -> str:
    """Compiles one candidate, for WEIBULL_KERNELS_CUDA_ARCH; returns what there is to say."""
    import pybind11

    source = folder / "source" / name_of(sizes)
    shutil.copytree(ROOT / "csrc", source, dirs_exist_ok=True)
    text = (source / TUNING).read_text()
    for name, size in zip(NAMES, sizes, strict=True):
        text = re.sub(rf"{name} = \d+", f"{name} = {size}", text)
    (source / TUNING).write_text(text)
    architecture = os.environ.get("WEIBULL_KERNELS_CUDA_ARCH", "90")
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    files = [str(source / "cuda" / name) for name in ("sums.cu", "adamw.cu", "bindings.cpp")]
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch=sm_{architecture}", "-Xcompiler", "-fPIC", "-shared"]
    command = ["nvcc", *flags, *includes, *files, "-cudart", "static", "-o", f"{folder / name_of(sizes)}.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{name_of(sizes)}: {'built' if done.returncode == 0 else done.stderr}"


def name_of(sizes: tuple[int, ...]) -> str:
    """Like 128-10-7-4-16-8192."""
    return "-".join(map(str, sizes))


def module_at(path: Path) -> ModuleType:
    """The extension built there. Each has a package of its own: pybind11 keeps one module of a name."""
    spec = importlib.util.spec_from_file_location(f"candidate_{path.stem}._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, lists: dict[str, tuple[str, Any]]) -> list[dict[str, Any]]:
    """Times each candidate on each list: the forces with and without the histogram, and the step."""
    import torch
    import workloads

    from weibull_kernels.kernels import cuda

    modules = {sizes: module_at(folder / f"{name_of(sizes)}.so") for sizes in CANDIDATES}
    found: list[dict[str, Any]] = []
    for name, (shapes, dtypes) in lists.items():
        workload = workloads.make(name, workloads.SHAPES[shapes](), "cuda", dtypes=dtypes)
        floor = read_time(workload.bytes)
        for operation, prepare in OPERATIONS.items():
            expected = None
            for sizes, module in modules.items():
                cuda._cuda = module
                call = prepare(workload)
                result = call().clone()
                # Chunks of another size add up in another order. A step moves what the next one begins with.
                expected = result if expected is None or "step" in operation else expected
                assert ((result - expected).abs() <= 1e-6 * expected.abs() + 1e-9).all(), operation
                ms = median_time(call)
                found.append(
                    {
                        "list": name,
                        "operation": operation,
                        "sizes": dict(zip(NAMES, sizes, strict=True)),
                        "ms": ms,
                        "read_ms": floor,
                    }
                )
                reads = f"{100 * floor / ms:.1f} % of a read"
                print(f"{name:16s} {operation:22s} {name_of(sizes):26s} {ms:8.4f} ms  {reads}", flush=True)
        del workload, call
        torch.cuda.empty_cache()
    return found


def forces(workload: Any, with_histogram: bool = False) -> Any:
    """The rows of the forces."""
    from weibull_kernels.kernels import cuda

    tensors, sets = workload.stepped()
    return lambda: cuda.forces(tensors, sets, with_histogram=with_histogram)[0]


def step(workload: Any, booked: bool = True) -> Any:
    """The ledger after a step; the weights where there is none."""
    import torch

    from weibull_kernels.kernels import cuda
    from weibull_kernels.kernels.interface import LEDGER_COLUMNS, Step

    tensors, sets = workload.stepped()
    grads = [torch.full_like(weight, 1e-4) for weight in workload.rows.weights]
    rows = torch.zeros(len(tensors), len(LEDGER_COLUMNS), dtype=torch.float64, device=sets.device)

    def call() -> Any:
        cuda.adamw(tensors, Step(grads, sets, rows if booked else None))
        return rows

    return call


OPERATIONS = {
    "forces": forces,
    "forces and histogram": lambda workload: forces(workload, with_histogram=True),
    "step": step,
    "step without ledger": lambda workload: step(workload, booked=False),
}


def read_time(size: int) -> float:
    """Milliseconds that the fastest of torch's reductions takes for `size` bytes."""
    import torch

    flat = torch.ones(size // 4, device="cuda")
    readers = (flat.sum, flat.amax, flat.view(torch.int32).amax)
    return min(map(median_time, readers))


def median_time(call: Any, rounds: int = 9) -> float:
    """Milliseconds on the device."""
    from statistics import median

    import torch

    times = []
    for _ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(median(times[2:]), 4)


def main() -> None:
    """The program."""
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "build":
        build(folder)
        return
    import results
    import torch
    import workloads

    lists = {
        "llama-1.4b fp32": ("llama-1.4b", workloads.FP32),
        "llama-1.4b bf16": ("llama-1.4b", workloads.BF16_FP32),
        "pythia-70m fp32": ("pythia-70m", workloads.FP32),
    }
    found = run(folder, lists)
    device = torch.cuda.get_device_name()
    path = results.FOLDER / results.file_name("tuning-cuda", device)
    path.write_text(json.dumps({"machine": device, "measured": found}, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        shutil.copy(path, out)


if __name__ == "__main__":
    main()
