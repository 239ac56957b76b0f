"""What a user would run instead, and the memory floor: callables that return the same results.

Each rival returns (values [P, 6], counts [P, 2], histogram [P, BINS] or None) in the order of
`Sums`. The formulas are the short fp32 ones anybody would write: their errors are reported
beside their times.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from workloads import BETAS, EPS, STEP, Workload

from weibull_kernels.kernels.interface import BIN_BITS, BINS, Rows, Sums

Result = tuple[Tensor, Tensor, Tensor | None]
Rival = Callable[[], object]

BC1, BC2 = (1 - beta**STEP for beta in BETAS)


def formulas(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of one tensor, [6] and [2], in plain torch."""
    weight = weight.float()  # or its sums would be rounded to half precision
    update = (exp_avg / BC1) / ((exp_avg_sq / BC2).sqrt() + EPS)
    magnitude = weight.abs()
    zero, finite = magnitude == 0, magnitude < torch.inf
    log = torch.where(finite & ~zero, magnitude, 1.0).log()
    values = [
        (weight * update).sum(),
        (update * update).sum(),
        (weight * weight).sum(),
        log.sum(),
        log.square().sum(),
        torch.where(finite, magnitude, 0.0).amax(),
    ]
    return torch.stack(values), torch.stack([zero.sum(), (~finite).sum()])


def histogram(weight: Tensor) -> Tensor:
    """Counts by the leading bits of |w|: one bincount, then the zeros are taken out again."""
    bins = (weight.flatten().float().view(torch.int32) & 0x7FFFFFFF) >> (23 - BIN_BITS)
    counts = torch.bincount(bins, minlength=256 << BIN_BITS)[:BINS]
    counts[0] -= (weight == 0).sum()
    return counts


def _columns(rows: Rows) -> list[tuple[Tensor, Tensor, Tensor]]:
    # torch reduces no maximum over nothing: the rivals may leave empty tensors out.
    columns = zip(rows.weights, rows.exp_avgs, rows.exp_avg_sqs, strict=True)
    return [(w, m, v) for w, m, v in columns if w.numel()]


def _gather(sums: list[tuple[Tensor, Tensor]], weights: list[Tensor], with_histogram: bool) -> Result:
    values, counts = (torch.stack(column) for column in zip(*sums, strict=True))
    return values, counts, torch.stack([histogram(w) for w in weights]) if with_histogram else None


def eager(workload: Workload, with_histogram: bool) -> Rival:
    """A loop over the tensors."""
    columns = _columns(workload.rows)
    return lambda: _gather([formulas(*c) for c in columns], [c[0] for c in columns], with_histogram)


def foreach(workload: Workload, with_histogram: bool) -> Rival:
    """The same through `torch._foreach_*` wherever there is such a function."""
    columns = _columns(workload.rows)
    weights, exp_avgs, exp_avg_sqs = (list(column) for column in zip(*columns, strict=True))

    def run() -> Result:
        floats = [w.float() for w in weights]
        denominators = torch._foreach_div(exp_avg_sqs, BC2)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, EPS)
        updates = torch._foreach_div(exp_avgs, BC1)
        torch._foreach_div_(updates, denominators)
        # Not _foreach_norm: on a CPU its square is 3e-3 off for 26M entries.
        weight_update, update_sq, weight_sq = (
            torch.stack([product.sum() for product in torch._foreach_mul(a, b)])
            for a, b in ((floats, updates), (updates, updates), (floats, floats))
        )
        magnitudes = torch._foreach_abs(floats)
        counts = torch.stack(
            [torch.stack([(a == 0).sum(), (a.isinf() | a.isnan()).sum()]) for a in magnitudes]
        )
        finite = [torch.where(a < torch.inf, a, 0.0) for a in magnitudes]
        largest = torch.stack(torch._foreach_max(finite))
        logs = torch._foreach_log([torch.where(a > 0, a, 1.0) for a in finite])
        log_sum = torch.stack([log.sum() for log in logs])
        log_sq_sum = torch.stack([product.sum() for product in torch._foreach_mul(logs, logs)])
        values = torch.stack([weight_update, update_sq, weight_sq, log_sum, log_sq_sum, largest], dim=1)
        return values, counts, torch.stack([histogram(w) for w in weights]) if with_histogram else None

    return run


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    # One function of dynamic shape per tensor. One function over the list takes 54 s to compile
    # for 76 tensors and then runs 15 times slower, static shapes alone no faster.
    return torch.compile(formulas, dynamic=True)


def compiled(workload: Workload, with_histogram: bool) -> Rival:
    """`torch.compile` of the formulas, compiled before the clock starts.

    The histogram stays eager: the compiler leaves bincount to torch.
    """
    run = _compiled()
    columns = [tuple(tensor.view(-1) for tensor in column) for column in _columns(workload.rows)]
    return lambda: _gather([run(*c) for c in columns], [c[0] for c in columns], with_histogram)


@functools.cache
def _plain_read() -> ctypes._CFuncPtr:
    source = Path(__file__).with_name("plain_read.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/plain_read.so"
        command = ["g++", "-shared", "-fPIC", "-O3", "-std=c++17", "-march=native", source, "-o", library]
        subprocess.run([*command, "-pthread"], check=True)
        return ctypes.CDLL(library).plain_read


def plain_read(workload: Workload) -> Rival:
    """The memory floor on a CPU: every byte of the list read once, by as many threads.

    Measured to be faster than torch's own reductions over one flat buffer of the same size.
    """
    function = _plain_read()
    columns = workload.columns
    buffers = (ctypes.c_void_p * len(columns))(*(t.data_ptr() for t in columns))
    sizes = (ctypes.c_int64 * len(columns))(*(t.numel() * t.element_size() for t in columns))
    count, threads = ctypes.c_int64(len(columns)), torch.get_num_threads()
    return lambda: function(buffers, sizes, count, threads)


RIVALS = {"eager": eager, "foreach": foreach, "torch.compile": compiled}


def as_result(sums: Sums, workload: Workload) -> Result:
    """`Sums` in the form that the rivals return: without the rows of empty tensors."""
    device = sums.weight_sq.device
    filled = torch.tensor([w.numel() > 0 for w in workload.rows.weights], device=device)
    names = ("weight_update", "update_sq", "weight_sq", "log_sum", "log_sq_sum", "max_abs")
    values = torch.stack([getattr(sums, name) for name in names], dim=1)[filled]
    counts = torch.stack([sums.zero_count, sums.non_finite_count], dim=1)[filled]
    return values, counts, None if sums.histogram is None else sums.histogram[filled]


def errors(result: Result, oracle: Result, workload: Workload) -> dict[str, float]:
    """The largest error of each sum over the tensors, in the units that tolerances are given in.

    ‖u‖² and ‖w‖² relative; ⟨w,u⟩ as a fraction of ‖w‖‖u‖; Σln|w| and Σln²|w| as fractions of
    Σ(1+|ln|w||) and Σ(1+ln²|w|). Sums that are NaN or infinite in the oracle must be so here.

    Raises:
        AssertionError: a count, a bin or a largest magnitude differs.
    """
    values, counts, bins = result
    exact, exact_counts, exact_bins = oracle
    values = values.double()
    # max|w| is one of the entries: it cannot be off.
    assert torch.equal(values[:, 5], exact[:, 5]), "max|w| differs"
    assert torch.equal(counts, exact_counts), "counts differ"
    assert bins is None or (exact_bins is not None and torch.equal(bins, exact_bins)), "histogram differs"
    numel = torch.tensor([c[0].numel() for c in _columns(workload.rows)], device=exact.device)
    # Σ|ln|w|| is at least |Σln|w||, and equal to it where no weight passes 1.
    scales = {
        "weight_update": (exact[:, 1] * exact[:, 2]).sqrt(),
        "update_sq": exact[:, 1],
        "weight_sq": exact[:, 2],
        "log_sum": numel + exact[:, 3].abs(),
        "log_sq_sum": numel + exact[:, 4],
    }
    found = {}
    for i, (name, scale) in enumerate(scales.items()):
        found[name] = largest_error(values[:, i], exact[:, i], scale)
    return found


def largest_error(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    """The largest distance in units of `scale`; what is NaN or infinite in both is no distance."""
    difference = (found - exact).abs()
    same = (difference == 0) | (found.isnan() & exact.isnan()) | (found == exact)
    return torch.where(same, 0.0, difference / scale).max().item()


TOLERANCES = {
    "weight_update": 5e-7,
    "update_sq": 5e-7,
    "weight_sq": 5e-7,
    "log_sum": 1e-6,
    "log_sq_sum": 1e-6,
}
"""What this library promises."""

ROUGH = dict.fromkeys(TOLERANCES, 1e-3)
"""What a rival must hold to count as the same computation: fp32 accumulators lose digits."""


def check(found: dict[str, float], tolerances: dict[str, float], who: str) -> None:
    """Refuses to time what is wrong.

    Raises:
        AssertionError: an error is past its tolerance.
    """
    past = {name: error for name, error in found.items() if not error <= tolerances[name]}
    assert not past, f"{who} is wrong by {past}, allowed {tolerances}"
