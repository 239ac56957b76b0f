"""The oracle: float64, plain torch, one equation a function.

Every other backend is tested against this one. It runs on any device that has float64. After
`torch.set_flush_denormal(True)` torch, and so this oracle, takes subnormal entries for zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .interface import BIN_BITS, BINS, LEDGER_COLUMNS, Rows, Step, SteppedTensors, Sums

DEVICES = ("any device with float64",)

_STATES_BLOCK = 2**16
"""Entries that `gram` and `moves` take at a time, so that K columns of them in float64 stay small."""


def unavailable() -> str | None:
    """The reference needs nothing but torch."""
    return None


def update(
    exp_avg: Tensor, exp_avg_sq: Tensor, bias_correction1: Tensor, bias_correction2: Tensor, eps: Tensor
) -> Tensor:
    """AdamW's update u = m̂/(√v̂+ε) with m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ), as in torch.optim."""
    return (exp_avg / bias_correction1) / ((exp_avg_sq / bias_correction2).sqrt() + eps)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product ⟨a,b⟩ = Σ aᵢ·bᵢ."""
    return (a * b).sum()


def log_magnitudes(weight: Tensor) -> Tensor:
    """ln|w| of the finite non-zero entries, as one column."""
    magnitude = weight.abs()
    return magnitude[(magnitude > 0) & (magnitude < torch.inf)].log()


def largest_magnitude(weight: Tensor) -> Tensor:
    """max|w| over the finite entries, 0 where there are none."""
    magnitude = weight.abs().flatten()
    finite = magnitude[magnitude < torch.inf]
    return finite.max() if finite.numel() else magnitude.new_zeros(())


def histogram(weight: Tensor) -> Tensor:
    """Counts [BINS] of the finite non-zero |w| on the grid of float32's leading bits.

    An octave 2^e ≤ |w| < 2^(e+1) is row e+127 of 64 equal bins; row 0 holds the subnormal
    numbers of float32, |w| < 2^−126, in 64 equal bins too. Magnitudes beyond float32's
    largest number count in the last bin.
    """
    magnitude = weight.abs().flatten()
    magnitude = magnitude[(magnitude > 0) & (magnitude < torch.inf)]
    per_octave = 1 << BIN_BITS
    mantissa, exponent = torch.frexp(magnitude)  # magnitude = mantissa · 2^exponent, ½ ≤ mantissa < 1
    bins = (exponent.long() + 126) * per_octave + ((2 * mantissa - 1) * per_octave).long()
    subnormal = magnitude < 2.0**-126
    bins = torch.where(subnormal, (magnitude * 2.0**126 * per_octave).long(), bins).clamp(max=BINS - 1)
    return torch.bincount(bins, minlength=BINS)


def sums(rows: Rows, *, with_histogram: bool = False) -> Sums:
    """Every sum of `interface.Sums`, tensor by tensor."""
    device = rows.eps.device
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    values: list[list[Tensor]] = []
    counts: list[list[Tensor]] = []
    histograms: list[Tensor] = []
    for i, (weight, exp_avg, exp_avg_sq) in enumerate(
        zip(rows.weights, rows.exp_avgs, rows.exp_avg_sqs, strict=True)
    ):
        w = weight.detach().double()
        weight_update = update_sq = nothing
        if exp_avg is not None and exp_avg_sq is not None:
            u = update(
                exp_avg.detach().double(),
                exp_avg_sq.detach().double(),
                rows.bias_correction1[i],
                rows.bias_correction2[i],
                rows.eps[i],
            )
            weight_update, update_sq = inner_product(w, u), inner_product(u, u)
        log = log_magnitudes(w)
        values.append(
            [
                weight_update,
                update_sq,
                inner_product(w, w),
                log.sum(),
                log.square().sum(),
                largest_magnitude(w),
            ]
        )
        counts.append([(w == 0).sum(), (~w.isfinite()).sum()])
        if with_histogram:
            histograms.append(histogram(w))
    bins = None
    if with_histogram:
        bins = (
            torch.stack(histograms) if histograms else torch.zeros(0, BINS, dtype=torch.int64, device=device)
        )
    return Sums.from_columns(
        _stacked(values, 6, torch.float64, device), _stacked(counts, 2, torch.int64, device), bins
    )


def adamw(tensors: SteppedTensors, step: Step) -> None:
    """One step of AdamW as in torch.optim, tensor by tensor; results are rounded as they are stored."""
    if step.found_inf is not None and step.found_inf.item() != 0:
        return
    for i, weight in enumerate(tensors.weights):
        lr, decay_factor, beta1, beta2, eps, sign, _ = step.hyperparameters[tensors.groups[i]].unbind()
        count = tensors.counts[i].add_(1).double()
        if step.grad_scale is not None:
            step.grads[i].copy_(step.grads[i].double() / step.grad_scale.double())
        gradient = sign * step.grads[i].double()
        first, second = tensors.exp_avgs[i], tensors.exp_avg_sqs[i]
        assert first is not None  # what is stepped has moments
        assert second is not None
        exp_avg = running_mean(first.double(), gradient, beta1)
        exp_avg_sq = running_mean(second.double(), gradient.square(), beta2)
        first.copy_(exp_avg)
        second.copy_(exp_avg_sq)
        max_exp_avg_sq = tensors.max_exp_avg_sqs[i]
        if max_exp_avg_sq is not None:
            exp_avg_sq = torch.maximum(max_exp_avg_sq.double(), exp_avg_sq)
            max_exp_avg_sq.copy_(exp_avg_sq)
        u = update(exp_avg, exp_avg_sq, 1 - beta1**count, 1 - beta2**count, eps)
        before = weight.double().clone()  # of float64 weights double() is the weight itself
        weight.copy_(decay_factor * before - lr * u)
        if step.ledger is not None:
            book(step.ledger[tensors.places[i]], before, u, weight.double(), lr, decay_factor, count)


def forces(
    tensors: SteppedTensors, hyperparameters: Tensor, *, with_histogram: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The forces of the AdamW step that was just made, tensor by tensor, as a ledger books it.

    Args:
        tensors: after their step. `places` are not looked at.
        hyperparameters: float64 [G, 7], those of the step.
        with_histogram: whether |w⁺| is counted too.

    Returns:
        float64 [P, 14] by `LEDGER_COLUMNS`, row i that of tensor i, with `change` 0 and `steps` 1; of a
        tensor whose count is 0 no force, `steps` 0, and its norm for that before. And histograms
        [P, BINS], or None.
    """
    rows: list[Tensor] = []
    histograms: list[Tensor] = []
    nothing = torch.zeros((), dtype=torch.float64, device=hyperparameters.device)
    for i, weight in enumerate(tensors.weights):
        lr, decay_factor, beta1, beta2, eps, _, in_float32 = hyperparameters[tensors.groups[i]].unbind()
        count = tensors.counts[i].detach().reshape(()).double()
        w = weight.detach().double()
        wu, uu, ww = nothing, nothing, inner_product(w, w)
        exp_avg, exp_avg_sq = tensors.exp_avgs[i], tensors.max_exp_avg_sqs[i]
        exp_avg_sq = tensors.exp_avg_sqs[i] if exp_avg_sq is None else exp_avg_sq
        if exp_avg is not None and exp_avg_sq is not None:
            bc1, bc2 = (bias_correction(beta, count, in_float32) for beta in (beta1, beta2))
            u = update(exp_avg.detach().double(), exp_avg_sq.detach().double(), bc1, bc2, eps)
            wu, uu = inner_product(w, u), inner_product(u, u)
        before_wu, before_ww = looked_back(wu, uu, ww, lr, decay_factor)
        booked = statistics(w) | {
            **forces_of_sums(before_wu, uu, before_ww, lr, decay_factor),
            "norm_sq_start": before_ww,
            "steps": torch.ones_like(nothing),
        }
        # What did not move has no update, no decay and, should it hold a NaN, no norm: no force.
        standing = dict.fromkeys(booked, nothing) | statistics(w) | {"norm_sq_start": ww}
        present = {"change": nothing, "norm_sq": ww, "step": count}
        rows.append(torch.where(count > 0, _row(booked | present), _row(standing | present)))
        if with_histogram:
            histograms.append(histogram(w))
    empty = hyperparameters.new_zeros(0, len(LEDGER_COLUMNS))
    found = torch.stack(rows) if rows else empty
    if not with_histogram:
        return found, None
    return found, torch.stack(histograms) if rows else empty.new_zeros(0, BINS, dtype=torch.int64)


def gram(columns: Sequence[Tensor]) -> Tensor:
    """The Gram matrix H[i,j] = Σ rᵢ·rⱼ, float64 [K, K], of a tensor's states and the steps between them.

    `columns` are K ≥ 1 flat tensors w of one length and device, of any floating dtype each; r₀ = w₀ and
    rᵢ = wᵢ − wᵢ₋₁, in float64. The matrix is exactly symmetric and on the device of the columns.
    """
    total = torch.zeros(len(columns), len(columns), dtype=torch.float64, device=columns[0].device)
    for states in _states(columns):
        basis = states.diff(dim=0, prepend=torch.zeros_like(states[:1]))
        total += basis @ basis.T
    lower = total.tril()
    return lower + lower.tril(-1).T


def moves(columns: Sequence[Tensor]) -> Tensor:
    """Rows (‖wᵢ‖², ‖wᵢ − wᵢ₋₁‖²), float64 [K, 2], of the columns of `gram`; ‖w₀ − w₋₁‖² is 0."""
    total = torch.zeros(len(columns), 2, dtype=torch.float64, device=columns[0].device)
    for states in _states(columns):
        total[:, 0] += states.square().sum(1)
        total[1:, 1] += states.diff(dim=0).square().sum(1)
    return total


def normal_product(matrices: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Z = V·AᵀA for each matrix A and its vectors, the rows of V: float64 [b, n] each.

    On a CPU, and for float64 matrices, in float64. Elsewhere the others are multiplied in float32 as
    torch is set to do it (so without TF32 unless it was asked for), one matrix at a time, so that no
    float64 copy of a model is made on a device that may be slow at it.

    Args:
        matrices: [m, n], or [heads, m, n] for rows in several pieces; any floating dtype and strides.
        vectors: float64 [b, n] for each.
    """
    found = []
    for matrix, rows in zip(matrices, vectors, strict=True):
        exact = matrix.dtype == torch.float64 or matrix.device.type == "cpu"
        work = torch.float64 if exact else torch.float32
        a = matrix.detach().flatten(0, -2).to(work)
        with torch.autocast(matrix.device.type, enabled=False):  # it would multiply in half precision
            found.append(((rows.to(work) @ a.T) @ a).double())
    return found


def _states(columns: Sequence[Tensor]) -> Iterator[Tensor]:
    """Blocks [K, entries] of columns of one length, in float64."""
    for blocks in zip(*(torch.split(column.detach(), _STATES_BLOCK) for column in columns), strict=True):
        yield torch.stack([block.double() for block in blocks])


def running_mean(mean: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """The exponential moving average β·mean + (1−β)·value."""
    return beta * mean + (1 - beta) * value


def bias_correction(beta: Tensor, count: Tensor, in_float32: Tensor) -> Tensor:
    """1 − βᵗ, rounded to float32 where `in_float32` is not 0."""
    return torch.where(in_float32 != 0, (1 - beta.float() ** count.float()).double(), 1 - beta**count)


def looked_back(
    weight_update: Tensor, update_sq: Tensor, weight_sq: Tensor, lr: Tensor, decay_factor: Tensor
) -> tuple[Tensor, Tensor]:
    """⟨w,u⟩ and ‖w‖² from ⟨w⁺,u⟩, ‖u‖² and ‖w⁺‖² after w⁺ = c·w − η·u."""
    return (
        (weight_update + lr * update_sq) / decay_factor,
        (weight_sq + 2 * lr * weight_update + lr**2 * update_sq) / decay_factor**2,
    )


def forces_of_sums(
    weight_update: Tensor, update_sq: Tensor, weight_sq: Tensor, lr: Tensor, decay_factor: Tensor
) -> dict[str, Tensor]:
    """The four forces of w⁺ = c·w − η·u, by name, from ⟨w,u⟩, ‖u‖² and ‖w‖²."""
    lost = 1 - decay_factor
    return {
        "alignment": -2 * lr * weight_update,
        "injection": lr**2 * update_sq,
        "decay": -2 * lost * weight_sq,
        "coupling": lost * (2 * lr * weight_update + lost * weight_sq),
    }


def statistics(weight: Tensor) -> dict[str, Tensor]:
    """What a row of the ledger holds of the weights as they are now, but for their norm."""
    log = log_magnitudes(weight)
    return {
        "log_sum": log.sum(),
        "log_sq_sum": log.square().sum(),
        "max_abs": largest_magnitude(weight),
        "zero_count": (weight == 0).sum(),
        "non_finite_count": (~weight.isfinite()).sum(),
    }


def book(
    row: Tensor,
    before: Tensor,
    update: Tensor,
    after: Tensor,
    lr: Tensor,
    decay_factor: Tensor,
    count: Tensor,
) -> None:
    """Adds the forces of w⁺ = c·w − η·u to a tensor's row of the ledger; see `LEDGER_COLUMNS`."""
    norm_sq = inner_product(before, before)
    change = inner_product(after - before, after + before)
    sums = inner_product(before, update), inner_product(update, update), norm_sq
    held = dict(zip(LEDGER_COLUMNS, row.unbind(), strict=True))
    added = forces_of_sums(*sums, lr, decay_factor) | {"change": change, "steps": torch.ones_like(change)}
    booked = {name: held[name] + value for name, value in added.items()}
    booked |= statistics(after) | {
        "norm_sq_start": torch.where(held["steps"] == 0, norm_sq, held["norm_sq_start"]),
        "norm_sq": norm_sq + change,
        "step": count,
    }
    row.copy_(_row(booked))


def _row(columns: Mapping[str, Tensor]) -> Tensor:
    """Numbers by name as a row of the ledger."""
    return torch.stack([columns[name].double() for name in LEDGER_COLUMNS])


def _stacked(cells: list[list[Tensor]], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of numbers as one tensor [P, width], also where there are no rows."""
    if not cells:
        return torch.zeros(0, width, dtype=dtype, device=device)
    return torch.stack([torch.stack(row) for row in cells])
