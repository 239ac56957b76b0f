"""Everything that needs a GPU: builds what it can, tests on the device, measures, writes a file.

    python3 benchmarks/gpu.py             # what `make gpu` runs, with that python's own torch
    python3 benchmarks/gpu.py --rehearse  # the measurements on a CPU with tiny lists; writes nothing

Exit codes: 0 done; 1 a test failed or a result was wrong; 3 there is no CUDA device, or no torch
(`make gpu` names it and exits with make's own 2).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout is measured, installed or not

NO_DEVICE = 3

try:
    import torch
except ImportError:
    print(f"{sys.executable} has no torch: nothing to run (exit code {NO_DEVICE})")
    sys.exit(NO_DEVICE)

ROUNDS = 15
# For so many clock cycles the device waits before each measured call, so that the host has
# enqueued it all before the first kernel starts: 10 ms, longer than any of our calls takes.
HOLD = 20_000_000


def build_extension() -> None:
    """Builds the CPU extension in place; says so and goes on where that is not possible."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    built = done.returncode == 0 and any((ROOT / "weibull_kernels").glob("_cpu*.so"))
    reason = (done.stderr.strip().splitlines() or ["setup.py built nothing"])[-1]
    print("built the CPU extension" if built else f"going on without the CPU extension: {reason}")


def run_device_tests() -> bool:
    """Whether tests/gpu passes."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "tests/gpu",
    ]  # conftest is for the interpreter
    # pytest's 5 says that there were no tests: not a pass.
    return subprocess.run(command, cwd=ROOT).returncode == 0


def cuda_clock(contender: Callable[[], object]) -> dict[str, float]:
    """Device time, host time until the call returns, and wall time until the device is done, in ms.

    Device time has the host's launches out of the way as far as the launch queue is deep:
    thousands of small launches still starve the device, and that time is theirs.
    """
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(HOLD)
    start.record()
    begun = time.perf_counter()
    contender()
    host = time.perf_counter() - begun
    end.record()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    contender()
    torch.cuda.synchronize()
    wall = time.perf_counter() - begun
    return {"device_ms": start.elapsed_time(end), "host_ms": host * 1e3, "wall_ms": wall * 1e3}


def stand_in_clock(contender: Callable[[], object]) -> dict[str, float]:
    """`cuda_clock` for a rehearsal: one time under its three names."""
    begun = time.perf_counter()
    contender()
    return dict.fromkeys(("device_ms", "host_ms", "wall_ms"), (time.perf_counter() - begun) * 1e3)


def device_read(size: int, device: str) -> Callable[[], object]:
    """The floor: `size` bytes of one flat buffer read by the fastest of torch's reductions here."""
    flat = torch.zeros(size // 4, device=device)
    readers: list[Callable[[], object]] = [flat.sum, flat.amax, flat.view(torch.int32).amax]
    clock = cuda_clock if device == "cuda" else stand_in_clock
    for reader in readers:
        reader()
    return min(readers, key=lambda reader: min(clock(reader)["device_ms"] for _ in range(5)))


def measure(workload: Any, with_histogram: bool, device: str, rounds: int) -> dict[str, Any]:
    """Checks every contender against the float64 reference, then times them in turns."""
    import results
    import rivals
    from rounds import Rounds, ratio, spread

    from weibull_kernels.dispatch import find_kernel
    from weibull_kernels.kernels import reference

    kernel = find_kernel("sums", "triton" if device == "cuda" else None, torch.device(device))
    oracle = rivals.as_result(reference.sums(workload.rows, with_histogram=True), workload)
    contenders: dict[str, Callable[[], Any]] = {
        name: make(workload, with_histogram) for name, make in rivals.RIVALS.items()
    }
    contenders["ours"] = lambda: kernel(workload.rows, with_histogram=with_histogram)
    found = {}
    for name, contender in contenders.items():
        result = contender()
        result = rivals.as_result(result, workload) if name == "ours" else result
        found[name] = rivals.errors(result, oracle, workload)
        rivals.check(found[name], rivals.TOLERANCES if name == "ours" else rivals.ROUGH, name)
        del result
    contenders["read"] = device_read(workload.bytes, device)

    turns = Rounds(contenders, cuda_clock if device == "cuda" else stand_in_clock)
    for _ in range(rounds + 2):
        turns.run()
    for by_clock in turns.times.values():
        for clock in by_clock:
            by_clock[clock] = by_clock[clock][2:]  # the first two warm up
    entry = results.entry(workload, turns, "device_ms", found)
    ours, read = turns.times["ours"]["device_ms"], turns.times["read"]["device_ms"]
    entry["read_bandwidth_percent"] = {k: round(100 * v, 1) for k, v in ratio(read, ours).items()}
    for clock in ("host_ms", "wall_ms"):
        entry[clock] = {name: spread(by_clock[clock]) for name, by_clock in turns.times.items()}
    return entry


def host_cost(tensors: int, device: str) -> dict[str, Any]:
    """Host time of `wk.forces` until it returns, on tensors of one entry."""
    from rounds import spread
    from test_host import stepped_optimizer

    import weibull_kernels as wk

    optimizer = stepped_optimizer(tensors, device)
    clock = cuda_clock if device == "cuda" else stand_in_clock
    times = [clock(lambda: wk.forces(optimizer)) for _ in range(30)][5:]
    return {"tensors": tensors, "ms": {"forces": spread([t["host_ms"] for t in times])}}


def measure_steps(shapes: list[tuple[int, ...]], device: str, rounds: int) -> dict[str, Any]:
    """`wk.AdamW` with its ledger and without against torch's fused step: checked, then timed in turns."""
    import optimizers
    from rounds import Rounds, spread

    # Nobody runs the foreach step on a GPU, and the memory is needed.
    made = optimizers.make(shapes, device, [name for name in optimizers.OPTIMIZERS if "foreach" not in name])
    errors = optimizers.check(made)
    turns = Rounds(
        {key: optimizer.step for key, optimizer in made.items()},
        cuda_clock if device == "cuda" else stand_in_clock,
    )
    for _ in range(rounds + 2):
        turns.run()
    # The first two rounds warm up.
    clocks = ("device_ms", "host_ms", "wall_ms")
    times = {clock: {key: turns.times[key][clock][2:] for key in made} for clock in clocks}
    entry = optimizers.entry(made, times["device_ms"], errors)
    for clock in clocks[1:]:
        entry[clock] = {key: spread(values) for key, values in times[clock].items()}
    return entry


def run_benchmarks(device: str, lists: dict[str, list[tuple[int, ...]]], rounds: int) -> dict[str, Any]:
    """Every list with and without the histogram, the host's share, then the steps of the optimizers."""
    import workloads

    entries = {}
    for name, shapes in lists.items():
        workload = workloads.make(name, shapes, device)
        for operation, with_histogram in (("forces", False), ("forces+histogram", True)):
            entry = entries[f"{name}/{operation}"] = measure(workload, with_histogram, device, rounds)
            percent, rivals = entry["read_bandwidth_percent"]["median"], entry["rival_to_ours"]
            others = ", ".join(f"{rival} {r['median']:.1f} ×" for rival, r in rivals.items())
            ours = entry["ms"]["ours"]["median"]
            print(f"{name:22s} {operation:18s} {ours:8.3f} ms, {percent:.0f} % of a read; {others}")
        del workload
    host = {f"{tensors}-tensors": host_cost(tensors, device) for tensors in (300, 2000)}
    for name, entry in host.items():
        print(f"{name:22s} wk.forces on the host: {entry['ms']['forces']['median']:.3f} ms")
    steps = {}
    for name, shapes in lists.items():
        steps[name] = measure_steps(shapes, device, rounds)
        print_steps(name, steps[name])
    return {"lists": entries, "host": host, "adamw": steps}


def print_steps(name: str, entry: dict[str, Any]) -> None:
    """A line an optimizer."""
    for key, found in entry["ms"].items():
        beside = f", {entry['to_torch_fused'][key]['median']:.3f} ×" if key in entry["to_torch_fused"] else ""
        host, wall = (entry[clock][key]["median"] for clock in ("host_ms", "wall_ms"))
        median = found["median"]
        print(f"{name:22s} {key:20s} {median:8.3f} ms{beside}; host {host:.3f} ms, wall {wall:.3f} ms")


def save(measured: dict[str, Any]) -> None:
    """Writes benchmarks/results/gpu-<name>.json, and a copy into $OUT where that is set."""
    import results

    name = torch.cuda.get_device_name()
    path = results.FOLDER / results.file_name("gpu", name)
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    machine = {
        "machine": name,
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    for section, entries in measured.items():
        results.save(path, machine, section, entries)
    print(f"written: {path}")
    if out := os.environ.get("OUT"):
        shutil.copy(path, out)


def main() -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny lists, nothing written")
    if parser.parse_args().rehearse:
        run_benchmarks("cpu", {"2000-small": [(100,), (7, 9), (0,), (40_000,)] * 3}, rounds=3)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to run (exit code 3)")
        return NO_DEVICE
    build_extension()
    passed = run_device_tests()
    import workloads

    names = ("pythia-70m", "llama-1.4b", "2000-small")
    try:
        save(run_benchmarks("cuda", {name: workloads.SHAPES[name]() for name in names}, ROUNDS))
    except AssertionError as error:
        print(f"a result is wrong, so nothing was timed further: {error}")
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
