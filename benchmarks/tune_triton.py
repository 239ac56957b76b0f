"""Which sizes the Triton kernels run fastest with on this GPU: every candidate checked, then timed.

    python3 benchmarks/tune_triton.py             # on the 1.4B LLaMA's list; under a minute
    python3 benchmarks/tune_triton.py --rehearse  # in Triton's interpreter, on a tiny list

Prints a line a candidate, then the candidates of each operation from the fastest on. Writes
benchmarks/results/tuning-triton-<device>.json, with a copy in $OUT where that is set. Exit codes: 0 done;
1 a result was wrong; 3 there is no CUDA device.

A candidate runs whatever `weibull_kernels.kernels.triton_tuning` says; what wins is written there by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout is measured, installed or not
os.environ["TRITON_INTERPRET"] = str(int("--rehearse" in sys.argv))  # before anything imports Triton

import torch
from torch import Tensor

from weibull_kernels.kernels import reference
from weibull_kernels.kernels import triton as backend
from weibull_kernels.kernels.interface import LEDGER_COLUMNS, Step, SteppedTensors
from weibull_kernels.kernels.triton_tuning import Tuning, tuned_as

NO_DEVICE = 3
ROUNDS = 10
HOLD = 2_000_000
"""Clock cycles that the device waits, so that the host has enqueued a call before it starts."""

COLUMNS = {"fp32": (torch.float32, torch.float32), "bf16, fp32 moments": (torch.bfloat16, torch.float32)}
# As HYPERPARAMETERS names them; the step of a late stage of training.
SETTINGS = (1e-4, 1 - 1e-5, 0.9, 0.95, 1e-8, 1.0, 0.0)
TOLERANCE = 1e-6
POOL = 1 << 24
"""Entries that are drawn; the tensors repeat them."""

CHECKED = [(1_000_003,), (300, 1000), (5, 13), (513,), (0,), ()]
REHEARSED = [(3000,), (7, 9), (0,), ()]


@dataclass(frozen=True)
class Candidate:
    """Sizes for one operation on one combination of dtypes."""

    operation: str
    dtypes: str
    tuning: Tuning

    def __str__(self) -> str:
        default = asdict(Tuning())
        sizes = asdict(self.tuning).items()
        changed = ", ".join(f"{name} {size}" for name, size in sizes if size != default[name])
        return f"{self.operation:19s} {self.dtypes:19s} {changed or 'as the default'}"


SUMS = [
    Tuning(),
    *(Tuning(chunk=chunk) for chunk in (16384, 65536, 131072)),
    *(Tuning(num_warps=4, vector=vector) for vector in (4, 8)),
    Tuning(num_warps=4, chunk=65536),
    Tuning(vector=8),
    Tuning(vector=8, chunk=65536),
    Tuning(num_warps=16),
    *(Tuning(stages=stages, chunk=65536) for stages in (2, 3, 4)),
    Tuning(num_warps=4, stages=3, chunk=65536),
]
COUNTING = [
    Tuning(),
    *(Tuning(window=window) for window in (128, 512, 2048)),
    *(Tuning(counted=counted) for counted in (4, 8, 32)),
    Tuning(num_warps=4),
    Tuning(num_warps=4, counted=8),
    Tuning(chunk=65536),
    *(Tuning(on_chip=False, window=window) for window in (256, 512, 1024)),
    *(Tuning(on_chip=False, window=512, counted=counted) for counted in (4, 8)),
    *(Tuning(on_chip=False, window=512, chunk=chunk) for chunk in (8192, 65536, 131072)),
    Tuning(on_chip=False, window=512, num_warps=4),
]
STEPS = [
    Tuning(),
    *(Tuning(chunk=chunk) for chunk in (8192, 16384, 65536)),
    *(Tuning(num_warps=4, vector=vector) for vector in (4, 8)),
    Tuning(num_warps=4, chunk=16384),
    Tuning(vector=8),
    Tuning(num_warps=16),
    *(Tuning(stages=stages) for stages in (2, 3)),
]
OPERATIONS = {"sums": SUMS, "sums and histogram": COUNTING, "adamw": STEPS}


def candidates() -> list[Candidate]:
    """All of them, those on the same tensors together."""
    return [
        Candidate(operation, dtypes, tuning)
        for dtypes in COLUMNS
        for operation, tunings in OPERATIONS.items()
        for tuning in tunings
    ]


def compile_one(candidate: Candidate) -> None:
    """Compiles a candidate's kernel as its launch will, into Triton's cache on the disk."""
    from triton.runtime.jit import MockTensor

    from weibull_kernels.kernels.triton_launch import step_kernel, sum_kernel

    weight, moment = COLUMNS[candidate.dtypes]
    if candidate.operation == "adamw":
        kernel = step_kernel((weight, weight, moment, moment, None), candidate.tuning)
        pointers = [*[torch.int64] * 3, torch.float64, None, None, torch.float64]
    else:
        kernel = sum_kernel((weight, moment, moment), candidate.tuning)
        counting = candidate.operation == "sums and histogram"
        counts = torch.int32 if counting and not candidate.tuning.on_chip else None
        histogram = torch.int64 if counting else None
        pointers = [torch.int64, torch.int64, *[torch.float64, None, None, torch.float64], histogram, counts]
    tensors = [None if dtype is None else MockTensor(dtype) for dtype in pointers]
    kernel.function.warmup(*tensors, grid=(1,), **kernel.constants, **kernel.options)


def compile_all(chosen: list[Candidate]) -> None:
    """In processes of their own, since most of it is Python."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, chosen))


class Lists:
    """The tensors of one combination of dtypes, as late in training: rms of u about 0.2."""

    def __init__(self, shapes: list[tuple[int, ...]], dtypes: str, device: str) -> None:
        weight, moment = COLUMNS[dtypes]
        generator = torch.Generator(device).manual_seed(0)
        numel = sum(torch.Size(shape).numel() for shape in shapes)
        size = min(POOL, max(numel, 1))

        def normal() -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        uniform = torch.rand(size, generator=generator, device=device).clamp(min=1e-7)
        v = 1e-8 * (0.1 + torch.rand(size, generator=generator, device=device))
        weights = 0.02 * normal().sign() * (-uniform.log()) ** (1 / 1.2)
        pools = (weights.to(weight), 0.2 * v.sqrt() * normal(), v, (1e-4 * normal()).to(weight))
        columns = [cut(pool, shapes) for pool in pools]
        self.weights, self.exp_avgs, self.exp_avg_sqs, self.grads = columns
        assert self.exp_avgs[0].dtype == moment
        self.numel = numel
        self.counts = [torch.full((), 1000.0, device=device) for _ in shapes]
        self.hyperparameters = torch.tensor([SETTINGS], dtype=torch.float64, device=device)
        self.bytes = numel * (weight.itemsize + 2 * moment.itemsize)
        self.step_bytes = 2 * self.bytes + numel * weight.itemsize

    def tensors(self) -> SteppedTensors:
        """As a kernel gets them, with nothing prepared."""
        count = len(self.weights)
        moments = self.exp_avgs, self.exp_avg_sqs, [None] * count
        return SteppedTensors(self.weights, *moments, self.counts, [0] * count, list(range(count)))

    def step(self) -> Step:
        """A step of them, booked in a ledger of its own."""
        rows = len(self.weights), len(LEDGER_COLUMNS)
        ledger = torch.zeros(rows, dtype=torch.float64, device=self.hyperparameters.device)
        return Step(self.grads, self.hyperparameters, ledger)

    def call(self, operation: str) -> Callable[[], object]:
        """The operation on these tensors, whose tables are made at the first call."""
        tensors = self.tensors()
        if operation == "adamw":
            step = self.step()
            return lambda: backend.adamw(tensors, step)
        with_histogram = operation == "sums and histogram"
        return lambda: backend.forces(tensors, self.hyperparameters, with_histogram=with_histogram)


def cut(pool: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Tensors of these shapes, each memory of its own, filled from the start of `pool` over and over."""
    tensors = []
    for shape in shapes:
        tensor = torch.empty(shape, dtype=pool.dtype, device=pool.device)
        for part in tensor.view(-1).split(pool.numel()):
            part.copy_(pool[: part.numel()])
        tensors.append(tensor)
    return tensors


def check(candidate: Candidate, shapes: list[tuple[int, ...]], device: str) -> None:
    """Holds a candidate against the float64 reference.

    Raises:
        AssertionError: a result is wrong.
    """
    ours, exact = (Lists(shapes, candidate.dtypes, device) for _ in range(2))
    histogram = expected_histogram = None
    if candidate.operation == "adamw":
        tensors, step = ours.tensors(), ours.step()
        backend.adamw(tensors, step)
        exact_step = exact.step()
        reference.adamw(exact.tensors(), exact_step)
        found, expected = step.ledger, exact_step.ledger
        for weight, other in zip(ours.weights, exact.weights, strict=True):
            eps = torch.finfo(weight.dtype).eps
            torch.testing.assert_close(weight.float(), other.float(), rtol=2 * eps, atol=1e-9)
    else:
        counting = candidate.operation == "sums and histogram"
        found, histogram = backend.forces(ours.tensors(), ours.hyperparameters, with_histogram=counting)
        expected, expected_histogram = reference.forces(
            exact.tensors(), exact.hyperparameters, with_histogram=counting
        )
    seen, true = (dict(zip(LEDGER_COLUMNS, rows.unbind(1), strict=True)) for rows in (found, expected))
    # ⟨w,u⟩ is a sum of both signs: its error is relative to ‖w‖·‖u‖.
    scale = 2 * (true["norm_sq_start"] * true["injection"]).sqrt() + true["injection"] - true["decay"]
    for name in ("alignment", "injection", "decay", "coupling"):
        assert ((seen[name] - true[name]).abs() <= TOLERANCE * scale).all(), name
    for name in ("norm_sq_start", "norm_sq", "max_abs", "log_sum", "log_sq_sum"):
        assert ((seen[name] - true[name]).abs() <= TOLERANCE * (1 + true[name].abs())).all(), name
    for name in ("zero_count", "non_finite_count", "steps", "step"):
        assert torch.equal(seen[name], true[name]), name
    if histogram is not None:
        assert torch.equal(histogram, expected_histogram), "histogram"


def cuda_ms(call: Callable[[], object]) -> float:
    """Device time of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HOLD)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def host_ms(call: Callable[[], object]) -> float:
    """Its stand-in for a rehearsal."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def median_ms(call: Callable[[], object], device: str, rounds: int) -> float:
    """Of `rounds` calls, after two that warm up."""
    clock = cuda_ms if device == "cuda" else host_ms
    times = [clock(call) for _ in range(rounds + 2)][2:]
    return statistics.median(times)


def floors(lists: Lists, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of reading the bytes of a pass, of copying those of a step, and of torch's fused step."""

    def read() -> float:
        flat = torch.zeros(lists.bytes // 4, device=device)
        return min(
            median_ms(reader, device, rounds) for reader in (flat.sum, flat.amax, flat.view(torch.int32).amax)
        )

    def copy() -> float:
        one, other = (torch.zeros(lists.step_bytes // 8, device=device) for _ in range(2))
        return median_ms(lambda: one.copy_(other), device, rounds)

    found = {"read": read(), "copy": copy()}
    if lists.weights[0].dtype == torch.float32:  # of bf16 weights torch keeps bf16 moments
        parameters = [torch.nn.Parameter(weight) for weight in lists.weights]
        for parameter, grad in zip(parameters, lists.grads, strict=True):
            parameter.grad = grad
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.1, fused=True)
        found["torch fused AdamW"] = median_ms(optimizer.step, device, rounds)
    return found


def run(
    shapes: list[tuple[int, ...]], checked: list[tuple[int, ...]], device: str, rounds: int
) -> list[dict[str, Any]]:
    """Checks and times every candidate and prints a line each, then all in order."""
    entries: list[dict[str, Any]] = []
    chosen = candidates()
    for dtypes in COLUMNS:
        lists = Lists(shapes, dtypes, device)
        floor = floors(lists, device, rounds)
        print(
            f"{dtypes}: {lists.numel / 1e9:.3f}e9 entries; "
            + ", ".join(f"{k} {v:.3f} ms" for k, v in floor.items())
        )
        for candidate in (one for one in chosen if one.dtypes == dtypes):
            with tuned_as(candidate.operation, candidate.tuning):
                check(candidate, checked, device)
                ms = median_ms(lists.call(candidate.operation), device, rounds)
            beside = floor["copy" if candidate.operation == "adamw" else "read"]
            entry = {"operation": candidate.operation, "dtypes": dtypes, **asdict(candidate.tuning)}
            entries.append({**entry, "ms": ms, "percent_of_bandwidth": 100 * beside / ms, "floors_ms": floor})
            print(f"{candidate!s:90s} {ms:8.3f} ms {100 * beside / ms:6.1f} %", flush=True)
            entries[-1]["candidate"] = str(candidate)
        del lists
    print("\nfrom the fastest on:")
    for entry in sorted(entries, key=lambda entry: (entry["operation"], entry["dtypes"], entry["ms"])):
        print(f"{entry['candidate']:90s} {entry['ms']:8.3f} ms {entry['percent_of_bandwidth']:6.1f} %")
    return entries


def main() -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, a tiny list")
    begun = time.perf_counter()
    if parser.parse_args().rehearse:
        run(REHEARSED, REHEARSED, "cpu", rounds=1)
        return 0
    if not torch.cuda.is_available():
        print(f"no CUDA device here: nothing to tune (exit code {NO_DEVICE})")
        return NO_DEVICE
    import results
    from workloads import llama_1_4b

    compile_all(candidates())
    print(f"compiled after {time.perf_counter() - begun:.1f} s")
    try:
        entries = run(llama_1_4b(), CHECKED, "cuda", ROUNDS)
    except AssertionError as error:
        print(f"a result is wrong, so nothing was timed further: {error}")
        return 1
    import triton

    measured = {
        "machine": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    path = results.FOLDER / results.file_name("tuning-triton", measured["machine"])
    path.write_text(json.dumps({**measured, "candidates": entries}, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        shutil.copy(path, out)
    print(f"{measured}; {time.perf_counter() - begun:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
