"""Measures other sizes of the CUDA kernels than those of csrc/cuda/tuning.h, on the GPU that is here.

    python3 benchmarks/tune_cuda.py build FOLDER    # compile every candidate (needs nvcc, pybind11, no GPU)
    python3 benchmarks/tune_cuda.py run FOLDER      # check and time what was built

`build` compiles for WEIBULL_KERNELS_CUDA_ARCH, one architecture, 90 if it is not set. `run` prints a line a
candidate and writes benchmarks/results/tuning-cuda-<device>.json, with a copy in $OUT where that is set; what
wins is written into tuning.h by hand.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TUNING = Path("cuda/tuning.h")
ROUNDS = 7
CHECKED = [(1_000_003,), (300, 1000), (5, 13), (513,), (0,), ()]

Sizes = tuple[int, ...]

NAMES = ("kThreads", "kSumBlocks", "kCountBlocks", "kStepBlocks", "kSumPackBytes", "kStepPackBytes", "kChunk")
CANDIDATES: tuple[Sizes, ...] = (
    (128, 10, 7, 4, 16, 32, 32768),
    (128, 10, 7, 4, 16, 32, 16384),
    (128, 10, 7, 4, 16, 32, 65536),
    (128, 8, 6, 3, 16, 32, 32768),
    (256, 5, 3, 2, 16, 32, 32768),
)


def build(folder: Path) -> bool:
    """A module `_cuda` for every candidate; whether all were built."""
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda sizes: build_one(folder, sizes), CANDIDATES))
    return all(built)


def build_one(folder: Path, sizes: Sizes) -> bool:
    """Compiles one candidate from a copy of the sources, and prints what there is to say of it."""
    import pybind11

    source = folder / "source" / name_of(sizes)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", source)
    (source / TUNING).write_text(with_sizes((source / TUNING).read_text(), sizes))
    architecture = os.environ.get("WEIBULL_KERNELS_CUDA_ARCH", "90")
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    files = sorted(str(path) for path in (source / "cuda").glob("*.c*") if path.suffix in (".cu", ".cpp"))
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    flags += ["-Xcompiler", "-fPIC", "-shared", "-cudart", "static"]
    command = ["nvcc", *flags, *includes, *files, "-o", str(folder / f"{name_of(sizes)}.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    said = f"built, {spilled} bytes of spills" if done.returncode == 0 else done.stderr
    print(f"{name_of(sizes)}: {said}", flush=True)
    return done.returncode == 0


def with_sizes(text: str, sizes: Sizes) -> str:
    """tuning.h with these sizes, for every architecture that it tells apart.

    Raises:
        ValueError: one of `NAMES` is not there.
    """
    for name, size in zip(NAMES, sizes, strict=True):
        text, found = re.subn(rf"\b{name} = \d+", f"{name} = {size}", text)
        if not found:
            raise ValueError(f"{TUNING} has no {name}: NAMES of {Path(__file__).name} must be as there")
    return text


def name_of(sizes: Sizes) -> str:
    """Like 128-10-7-4-16-32-32768."""
    return "-".join(map(str, sizes))


def module_at(path: Path) -> ModuleType:
    """The extension built there. Each has a package of its own: pybind11 keeps one module of a name."""
    spec = importlib.util.spec_from_file_location(f"candidate_{path.stem}._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, lists: dict[str, tuple[list[tuple[int, ...]], Any]]) -> dict[str, Any]:
    """Each candidate on each list, in turns with the readers: the forces and the step, each in two forms."""
    import torch
    import workloads
    from device_clock import readers_of, spreads, timed_rounds

    modules = {name_of(sizes): module_at(folder / f"{name_of(sizes)}.so") for sizes in CANDIDATES}
    found: dict[str, Any] = {}
    for name, (shapes, dtypes) in lists.items():
        check(modules, dtypes)
        workload = workloads.make(name, shapes, "cuda", dtypes=dtypes, in_one_piece=True)
        assert workload.memory is not None
        grads = gradients(workload)
        found[name] = {"bytes": workload.bytes, "operations": {}}
        for operation, prepare in OPERATIONS.items():
            calls = {who: by_module(module, prepare(workload, grads)) for who, module in modules.items()}
            readers = readers_of(workload.memory, "cuda")
            ms = spreads(timed_rounds(calls | readers, "cuda", ROUNDS), "device_ms")
            found[name]["operations"][operation] = ms
            print_times(f"{name}, {operation}", ms, [*readers])
        del workload, grads, calls, readers
        torch.cuda.empty_cache()
    return found


Results = list[Any]
"""Tensors."""


def by_module(module: ModuleType, call: Callable[[], Results]) -> Callable[[], Results]:
    """The call by a candidate's module."""
    from weibull_kernels.kernels import cuda

    def swapped() -> Results:
        cuda._cuda = module
        return call()

    return swapped


def check(modules: dict[str, ModuleType], dtypes: Any) -> None:
    """That all candidates give the same on equal tensors; chunks of another size add up in another order.

    Raises:
        AssertionError: they do not.
    """
    import torch
    import workloads

    for operation, prepare in OPERATIONS.items():
        expected = None
        for who, module in modules.items():
            workload = workloads.make("checked", CHECKED, "cuda", dtypes=dtypes)
            found = by_module(module, prepare(workload, gradients(workload)))()
            expected = found if expected is None else expected
            for ours, others in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    ours,
                    others,
                    rtol=1e-6,
                    atol=1e-9,
                    msg=lambda said, w=who, o=operation: f"{o}, {w}: {said}",
                )


def print_times(title: str, ms: dict[str, dict[str, float]], readers: list[str]) -> None:
    """A line a contender, with what the fastest reader takes of the time of a candidate."""
    read = min(ms[reader]["median"] for reader in readers)
    print(title)
    for who, times in ms.items():
        share = "" if who in readers else f"  {100 * read / times['median']:5.1f} % of the fastest read"
        print(f"  {who:28s} {times['median']:8.4f} ms{share}", flush=True)


def gradients(workload: Any) -> Results:
    """Of every weight."""
    import torch

    return [torch.full_like(weight, 1e-4) for weight in workload.rows.weights]


def forces(workload: Any, grads: Results, with_histogram: bool = False) -> Callable[[], Results]:
    """Gives the rows of the forces, and the histogram where it counts one."""
    from weibull_kernels.kernels import cuda

    tensors, sets = workload.stepped()

    def call() -> Results:
        rows, histogram = cuda.forces(tensors, sets, with_histogram=with_histogram)
        return [rows] if histogram is None else [rows, histogram]

    return call


def step(workload: Any, grads: Results, booked: bool = True) -> Callable[[], Results]:
    """Gives the weights after a step, and the ledger where there is one."""
    import torch

    from weibull_kernels.kernels import cuda
    from weibull_kernels.kernels.interface import LEDGER_COLUMNS, Step

    tensors, sets = workload.stepped()
    rows = torch.zeros(len(tensors), len(LEDGER_COLUMNS), dtype=torch.float64, device=sets.device)

    def call() -> Results:
        cuda.adamw(tensors, Step(grads, sets, rows if booked else None))
        return [*workload.rows.weights, *([rows] if booked else [])]

    return call


OPERATIONS: dict[str, Callable[[Any, Results], Callable[[], Results]]] = {
    "forces": forces,
    "forces and histogram": partial(forces, with_histogram=True),
    "step": step,
    "step without ledger": partial(step, booked=False),
}


def main() -> int:
    """The program; returns its exit code."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("build", "run"):
        print(__doc__)
        return 2
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "build":
        return 0 if build(folder) else 1
    import results
    import torch
    import workloads

    lists = {
        "llama-1.4b": (workloads.llama_1_4b(), workloads.FP32),
        "llama-1.4b, bf16 w": (workloads.llama_1_4b(), workloads.BF16_FP32),
        "pythia-70m": (workloads.pythia_70m(), workloads.FP32),
    }
    found = run(folder, lists)
    device = torch.cuda.get_device_name()
    path = results.FOLDER / results.file_name("tuning-cuda", device)
    measured = {"machine": device, "torch": torch.__version__, "sizes": NAMES, "measured": found}
    path.write_text(json.dumps(measured, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        shutil.copy(path, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
