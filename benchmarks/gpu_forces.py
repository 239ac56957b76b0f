"""Forces and log moments, with and without the histogram, on a GPU: each backend, rivals and the floor."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import rivals
import torch
import workloads
from device_clock import Copy, fastest_read, ratios, spreads, timed_rounds
from torch import Tensor
from workloads import Workload

from weibull_kernels.dispatch import find_kernel
from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import LEDGER_COLUMNS, Rows, Sums

OPERATIONS = {"forces": False, "forces+histogram": True}
ROUNDS = 9

# Entries that the float64 reference is given at a time: its temporaries are many times as large.
_PIECE = 1 << 26


@dataclass(frozen=True)
class List:
    """A tensor list to measure; `rivals` are those that are given a turn, `why` is why others are not."""

    shapes: list[tuple[int, ...]]
    dtypes: workloads.Dtypes = workloads.FP32
    kind: str = "weibull"
    rivals: tuple[str, ...] = tuple(rivals.RIVALS)
    why: str | None = None
    histogram_rivals: bool = True


_WITHOUT_FOREACH: dict[str, Any] = {
    "rivals": ("eager", "torch.compile"),
    "why": "it would need the list in temporaries several times over",
}
# Torch counts with atomic additions to memory: seconds a call, which would tell the same again.
_WITHOUT_COUNTS: dict[str, Any] = {**_WITHOUT_FOREACH, "histogram_rivals": False}


def device_lists() -> dict[str, List]:
    """The lists of a GPU with some 78 GB."""
    shapes = {name: make() for name, make in workloads.SHAPES.items() if name != "llama-8b"}
    # 8e9 parameters of 10 bytes and what the measurement needs do not fit: half of the layers do.
    half = workloads.llama_8b(layers=16)
    return {
        "pythia-70m": List(shapes["pythia-70m"]),
        "llama-1.4b": List(shapes["llama-1.4b"], **_WITHOUT_FOREACH),
        "llama-1.4b, bf16 w": List(shapes["llama-1.4b"], workloads.BF16_FP32, **_WITHOUT_COUNTS),
        "llama-8b, 16 of 32 layers, bf16 w": List(half, workloads.BF16_FP32, **_WITHOUT_COUNTS),
        "shards-with-empty": List(shapes["shards-with-empty"]),
        "2000-small": List(shapes["2000-small"]),
        "large-and-2000-small": List(
            shapes["large-and-2000-small"], rivals=("torch.compile",), why="it launches as for 2000-small"
        ),
    }


def histogram_inputs(shapes: list[tuple[int, ...]]) -> dict[str, List]:
    """The weights that a histogram may meet, against the floor alone."""
    return {kind: List(shapes, kind=kind, rivals=()) for kind in workloads.HISTOGRAM_INPUTS}


def tiny_lists() -> dict[str, List]:
    """For a rehearsal."""
    shapes = [(100,), (7, 9), (0,), (40_000,), (1,)]
    return {
        "2000-small": List(shapes * 3),
        "bf16 w": List(shapes, workloads.BF16_FP32, **_WITHOUT_FOREACH),
    }


def exact_sums(workload: Workload) -> Sums:
    """The sums by the float64 reference, from pieces of the tensors that add up."""
    rows = workload.rows
    wholes = []
    for i, columns in enumerate(zip(rows.weights, rows.exp_avgs, rows.exp_avg_sqs, strict=True)):
        pieces = [column.view(-1).split(_PIECE) for column in columns]
        one = slice(i, i + 1)
        settings = rows.bias_correction1[one], rows.bias_correction2[one], rows.eps[one]
        parts = [
            reference.sums(Rows([w], [m], [v], *settings), with_histogram=True)
            for w, m, v in zip(*pieces, strict=True)
        ]
        wholes.append(_added(parts))
    return _joined(wholes, lambda column: torch.cat(column))


def _added(parts: list[Sums]) -> Sums:
    whole = _joined(parts, lambda column: torch.stack(column).sum(0))
    return replace(whole, max_abs=torch.stack([part.max_abs for part in parts]).amax(0))


def _joined(parts: list[Sums], join: Callable[[list[Tensor]], Tensor]) -> Sums:
    return Sums(**{field.name: join([getattr(part, field.name) for part in parts]) for field in fields(Sums)})


def errors_of_forces(
    rows: Tensor, histogram: Tensor | None, oracle: rivals.Result, workload: Workload
) -> dict[str, float]:
    """The errors of rows of `forces`, in the units of `rivals.errors`.

    Their ⟨w,u⟩ is that before the step, and its error is a fraction of ‖w‖‖u‖ before the step: where the
    weights after it are next to nothing, what they were is what the step took.
    """
    filled = torch.tensor([w.numel() > 0 for w in workload.rows.weights], device=rows.device)
    columns = dict(zip(LEDGER_COLUMNS, rows[filled].unbind(1), strict=True))
    lr, decay_factor = workloads.LR, 1 - workloads.LR * workloads.WEIGHT_DECAY
    exact, counts, _ = oracle
    wu, uu, ww = exact[:, :3].unbind(1)
    before = (wu + lr * uu) / decay_factor
    norm_sq = (ww + 2 * lr * wu + lr**2 * uu) / decay_factor**2
    values = {"update_sq": columns["injection"] / lr**2, "weight_sq": columns["norm_sq"]}
    values |= {name: columns[name] for name in ("log_sum", "log_sq_sum", "max_abs")}
    found_counts = torch.stack([columns["zero_count"], columns["non_finite_count"]], dim=1).to(counts.dtype)
    result = (
        torch.stack([wu, *values.values()], dim=1),
        found_counts,
        None if histogram is None else histogram[filled],
    )
    of_product = rivals.largest_error(columns["alignment"] / (-2 * lr), before, (uu * norm_sq).sqrt())
    return {**rivals.errors(result, oracle, workload), "weight_update": of_product}


def measure(
    name: str,
    given: List,
    backends: list[str],
    device: str,
    deadline: float,
    operations: dict[str, bool] = OPERATIONS,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """An entry an operation: every contender checked against the float64 reference, then timed in turns."""
    workload = workloads.make(name, given.shapes, device, given.kind, given.dtypes, in_one_piece=True)
    assert workload.memory is not None
    oracle = rivals.as_result(exact_sums(workload), workload)
    reader, read = fastest_read(workload.memory, device)
    copy = Copy(workload.bytes, device)
    for operation, with_histogram in operations.items():
        contenders, found, left_out, failed = _checked(workload, given, backends, with_histogram, oracle)
        times = timed_rounds(
            {**contenders, "read": read, "copy": copy},
            device,
            ROUNDS,
            slow=given.rivals,
            deadline=deadline,
        )
        for clocked in times["copy"].values():
            clocked[:] = [milliseconds * copy.scale for milliseconds in clocked]
        yield (
            operation,
            {
                **_entry(workload, times, [backend for backend in backends if backend not in failed]),
                "reader": reader,
                "errors": {
                    who: {key: float(f"{e:.2g}") for key, e in one.items()} for who, one in found.items()
                },
                "left_out": left_out,
                "failed": failed,
            },
        )
        del contenders, times


def _checked(
    workload: Workload, given: List, backends: list[str], with_histogram: bool, oracle: rivals.Result
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, float]], dict[str, str], dict[str, str]]:
    """What may be timed, and its errors; what may not, rivals and backends, each with its reason."""
    contenders: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[str, float]] = {}
    failed = {}
    left_out = {rival: given.why for rival in rivals.RIVALS if given.why and rival not in given.rivals}
    for backend in backends:
        try:
            call = _ours(workload, backend, with_histogram)
            found[backend] = errors_of_forces(*call(), oracle, workload)
            rivals.check(found[backend], rivals.TOLERANCES, backend)
            contenders[backend] = call
        except Exception as error:  # the other backends are measured all the same
            failed[backend] = _reason(error)
    if with_histogram and not given.histogram_rivals:
        left_out |= dict.fromkeys(given.rivals, "it counts a histogram as for the first lists, in seconds")
    for rival in given.rivals if given.histogram_rivals or not with_histogram else ():
        try:
            contender = rivals.RIVALS[rival](workload, with_histogram)
            found[rival] = rivals.errors(contender(), oracle, workload)  # type: ignore[arg-type]
            rivals.check(found[rival], rivals.ROUGH, rival)
            contenders[rival] = contender
        except Exception as error:  # of what is not ours, whatever it is; it is told with the result
            left_out[rival] = _reason(error)
    gc.collect()
    return contenders, found, left_out, failed


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _ours(workload: Workload, backend: str, with_histogram: bool) -> Callable[[], Any]:
    tensors, hyperparameters = workload.stepped()
    kernel = find_kernel("forces", backend, hyperparameters.device)
    return lambda: kernel(tensors, hyperparameters, with_histogram=with_histogram)


def _entry(
    workload: Workload, times: dict[str, dict[str, list[float]]], backends: list[str]
) -> dict[str, Any]:
    device = {name: by_clock["device_ms"] for name, by_clock in times.items()}
    ms = spreads(times, "device_ms")
    others = [name for name in device if name not in (*backends, "read", "copy")]
    assert workload.memory is not None
    return {
        "tensors": len(workload.rows),
        "parameters": workload.numel,
        "bytes_per_parameter": workload.bytes / workload.numel,
        "bytes_of_the_read": workload.memory.numel(),
        "rounds": {name: len(values) for name, values in device.items()},
        "ms": ms,
        "gigabytes_per_second": {
            name: round(workload.bytes / 1e6 / ms[name]["median"], 1) for name in (*backends, "read", "copy")
        },
        "percent_of_read": {
            backend: {
                key: round(100 * value, 1) for key, value in ratios(device["read"], device[backend]).items()
            }
            for backend in backends
        },
        "rival_to_ours": {
            backend: {other: ratios(device[other], device[backend]) for other in others}
            for backend in backends
        },
        "host_ms": spreads(times, "host_ms"),
        "wall_ms": spreads(times, "wall_ms"),
    }


def lists(
    given: dict[str, List], backends: list[str], device: str, budget: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries by "list/operation"; with the `budget` of seconds spent, a list is left out by its name."""
    begun = time.perf_counter()
    for place, (name, one) in enumerate(given.items()):
        now = time.perf_counter()
        if now - begun > budget:
            yield name, {"left_out": f"{now - begun:.0f} s of {budget:.0f} s were spent"}
            continue
        # What is left is shared by the lists that are left, and what one does not need is the others'.
        share = (budget - (now - begun)) / (len(given) - place)
        operations = OPERATIONS
        for operation, entry in measure(name, one, backends, device, now + share, operations):
            yield f"{name}/{operation}", entry
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
