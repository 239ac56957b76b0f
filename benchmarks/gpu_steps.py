"""Steps of AdamW on a GPU: `wk.AdamW` by each backend against torch's fused step and against a plain copy.

All optimizers of a list step the same weights, gradients and moments in turns: so a list may fill most
of the memory, and none has better addresses than another.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import workloads
from device_clock import Copy, ratios, spreads, timed_rounds
from optimizers import SETTINGS
from torch import Tensor

import weibull_kernels as wk
from weibull_kernels.kernels import reference

ROUNDS = 9
_PIECE = 1 << 26

# Of max|w|, beside the rounding of half precision; and of the absolute budget of a tensor, to which the
# alignment of a few entries may contribute the little that many large products leave of each other.
WEIGHT_TOLERANCE, LEDGER_TOLERANCE = 1e-6, 5e-6


@dataclass(frozen=True)
class Case:
    """Tensors to step; where the moments are wider than weights and gradients torch's fused step refuses."""

    shapes: list[tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype = torch.float32

    @property
    def bytes_per_parameter(self) -> int:
        """Weight and both moments read and written, the gradient read."""
        return 3 * self.dtype.itemsize + 4 * self.state_dtype.itemsize


def device_cases() -> dict[str, Case]:
    """The cases of a GPU with some 78 GB."""
    pythia, llama = workloads.pythia_70m(), workloads.llama_1_4b()
    half = torch.bfloat16
    return {
        "pythia-70m": Case(pythia),
        "llama-1.4b": Case(llama),
        "llama-1.4b, bf16": Case(llama, half, half),
        "llama-1.4b, bf16 w, fp32 m and v": Case(llama, half),
        "2000-small": Case(workloads.small()),
    }


def tiny_cases() -> dict[str, Case]:
    """For a rehearsal."""
    shapes = [(100,), (7, 9), (0,), (40_000,), (1,)]
    return {"2000-small": Case(shapes), "bf16 w": Case(shapes, torch.bfloat16)}


class Shared:
    """One set of weights, gradients and moments, on which every optimizer is put."""

    def __init__(self, case: Case, device: str) -> None:
        dtypes = case.dtype, case.state_dtype, case.state_dtype
        workload = workloads.make("steps", case.shapes, device, dtypes=dtypes)
        generator = torch.Generator(device).manual_seed(1)
        gradients = 1e-3 * torch.randn(1 << 20, generator=generator, device=device)
        self.weights = [torch.nn.Parameter(weight) for weight in workload.rows.weights]
        for weight, grad in zip(
            self.weights, workloads.cut(gradients.to(case.dtype), case.shapes), strict=True
        ):
            weight.grad = grad
        self.states = [
            {"step": torch.full((), 1000.0, device=device), "exp_avg": m, "exp_avg_sq": v}
            for m, v in zip(workload.rows.exp_avgs, workload.rows.exp_avg_sqs, strict=True)
        ]
        self._held = [tensor.detach().clone() for tensor in self._written()]

    def put(self, optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
        """The optimizer with this state, as if it had made the steps before."""
        for weight, state in zip(self.weights, self.states, strict=True):
            optimizer.state[weight] = dict(state)
        return optimizer

    def restore(self) -> None:
        """Everything as it was at first."""
        with torch.no_grad():
            for tensor, held in zip(self._written(), self._held, strict=True):
                tensor.copy_(held)

    def forget(self) -> None:
        """Gives the memory of the copies back; nothing can be restored from then on."""
        self._held = []

    def errors(self, budget: wk.ForceBudget | None) -> dict[str, float]:
        """After one step from what was there at first: how far from AdamW in float64, by the reference.

        Of weights in half precision half of their spacing is allowed for, and not counted.
        """
        count, off, booked = len(self.weights), [], []
        for i, weight in enumerate(self.weights):
            w, m, v = (self._held[column * count + i].view(-1) for column in range(3))
            assert weight.grad is not None
            columns = (w, weight.grad.view(-1), m, v, weight.detach().view(-1))
            forces = torch.zeros(4, dtype=torch.float64, device=w.device)
            booked.append(forces)
            if not w.numel():
                continue
            for piece in zip(*(column.split(_PIECE) for column in columns), strict=True):
                distance, of_piece = _compared(*(part.double() for part in piece), weight.dtype)
                off.append(distance)
                forces += of_piece
        found = {"weights": torch.stack(off).max().item()}
        if budget is not None:
            exact = torch.stack(booked, dim=1)
            ours = torch.stack([budget.alignment, budget.injection, budget.decay, budget.coupling])
            apart = ((ours - exact).abs() / exact[:3].abs().sum(0)).nan_to_num(0.0)
            found["ledger"] = apart.max().item()
        return found

    def _written(self) -> list[Tensor]:
        columns = (
            [weight.detach() for weight in self.weights],
            *([state[name] for state in self.states] for name in ("exp_avg", "exp_avg_sq", "step")),
        )
        return [tensor for column in columns for tensor in column]


def _compared(
    w: Tensor, gradient: Tensor, m: Tensor, v: Tensor, after: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """How far weights are from the step of the reference, of max|w|, and the four forces of that step."""
    beta1, beta2 = (torch.tensor(beta, dtype=torch.float64, device=w.device) for beta in SETTINGS["betas"])
    lr, eps, lost = SETTINGS["lr"], SETTINGS["eps"], _lost(w.device)
    u = reference.update(
        reference.running_mean(m, gradient, beta1),
        reference.running_mean(v, gradient.square(), beta2),
        1 - beta1**1001,
        1 - beta2**1001,
        eps,
    )
    exact = (1 - lost) * w - lr * u
    spacing = torch.finfo(dtype).eps * exact.abs() / 2 if dtype != torch.float32 else 0.0
    beyond = ((after - exact).abs() - 1.01 * spacing).clamp(min=0) / exact.abs().max()
    wu, uu, ww = ((a * b).sum() for a, b in ((w, u), (u, u), (w, w)))
    forces = [-2 * lr * wu, lr**2 * uu, -2 * lost * ww, lost * (2 * lr * wu + lost * ww)]
    return beyond.max(), torch.stack(forces)


def _lost(device: torch.device) -> float:
    """1 − c of torch's fused step: exact on a GPU, of a c rounded to float32 on a CPU."""
    exact: float = SETTINGS["lr"] * SETTINGS["weight_decay"]
    return exact if device.type == "cuda" else 1 - torch.tensor(1 - exact, dtype=torch.float32).item()


def measure(case: Case, backends: list[str], device: str, deadline: float) -> dict[str, Any]:
    """Every optimizer checked against AdamW in float64, then timed in turns."""
    shared = Shared(case, device)
    made, left_out = _optimizers(shared, case, backends)
    errors, failed = {}, {}
    for name, optimizer in list(made.items()):
        try:
            errors[name] = _checked(name, optimizer, shared)
        except Exception as error:  # the other optimizers are measured all the same
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            del made[name]
    shared.restore()
    shared.forget()
    contenders: dict[str, Callable[[], object]] = {name: one.step for name, one in made.items()}
    if "torch fused" in made:
        contenders |= _with_norms(made["torch fused"], shared.weights)
    numel = sum(weight.numel() for weight in shared.weights)
    copy = Copy(case.bytes_per_parameter * numel, device)
    times = timed_rounds({**contenders, "copy": copy}, device, ROUNDS, deadline=deadline)
    for clocked in times["copy"].values():
        clocked[:] = [milliseconds * copy.scale for milliseconds in clocked]
    return {
        **_entry(case, times, numel, len(shared.weights)),
        "errors": errors,
        "left_out": left_out,
        "failed": failed,
    }


def _checked(name: str, optimizer: torch.optim.AdamW, shared: Shared) -> dict[str, float]:
    """The errors of one step.

    Raises:
        AssertionError: one is past its tolerance; what is wrong is not timed.
    """
    shared.restore()
    optimizer.step()
    booked = isinstance(optimizer, wk.AdamW) and "without" not in name
    found = shared.errors(optimizer.ledger.drain() if booked else None)  # type: ignore[attr-defined]
    assert found["weights"] <= WEIGHT_TOLERANCE, f"weights are off by {found}"
    assert found.get("ledger", 0) <= LEDGER_TOLERANCE, f"the ledger is off by {found}"
    return found


def _optimizers(
    shared: Shared, case: Case, backends: list[str]
) -> tuple[dict[str, torch.optim.AdamW], dict[str, str]]:
    """Those that can step the case, and why others cannot."""
    made: dict[str, torch.optim.AdamW] = {}
    left_out = {}
    if case.dtype == case.state_dtype:
        made["torch fused"] = torch.optim.AdamW(shared.weights, fused=True, **SETTINGS)
    else:
        left_out["torch fused"] = "takes moments of the dtype of the weights only"
    settings = {**SETTINGS, "state_dtype": None if case.dtype == case.state_dtype else case.state_dtype}
    for backend in backends:
        made[backend] = wk.AdamW(shared.weights, backend=backend, **settings)
        made[f"{backend} without ledger"] = wk.AdamW(
            shared.weights, backend=backend, ledger=False, **settings
        )
    return {name: shared.put(optimizer) for name, optimizer in made.items()}, left_out


def _with_norms(
    fused: torch.optim.AdamW, parameters: list[torch.nn.Parameter]
) -> dict[str, Callable[[], object]]:
    """Torch's step with what a user adds to see norms: of the weights, and of the update as well."""
    weights = [weight.detach() for weight in parameters if weight.numel()]

    def norms() -> Tensor:
        fused.step()
        return torch.stack(torch._foreach_norm(weights))

    def norms_and_update() -> tuple[Tensor, Tensor]:
        before = [weight.clone() for weight in weights]
        fused.step()
        torch._foreach_sub_(before, weights)
        return torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(before))

    return {
        "torch fused, _foreach_norm(w)": norms,
        "torch fused, _foreach_norm(w) and of the update": norms_and_update,
    }


def _entry(case: Case, times: dict[str, dict[str, list[float]]], numel: int, tensors: int) -> dict[str, Any]:
    device = {name: by_clock["device_ms"] for name, by_clock in times.items()}
    ms = spreads(times, "device_ms")
    size = case.bytes_per_parameter * numel
    return {
        "tensors": tensors,
        "parameters": numel,
        "bytes_per_parameter": case.bytes_per_parameter,
        "rounds": len(device["copy"]),
        "ms": ms,
        "gigabytes_per_second": {name: round(size / 1e6 / found["median"], 1) for name, found in ms.items()},
        "percent_of_copy": {
            name: {key: round(100 * value, 1) for key, value in ratios(device["copy"], values).items()}
            for name, values in device.items()
            if name != "copy"
        },
        "to_torch_fused": {
            name: ratios(values, device["torch fused"])
            for name, values in device.items()
            if "torch fused" in device and name not in ("torch fused", "copy")
        },
        "ledger_to_none": {
            name.removesuffix(" without ledger"): ratios(device[name.removesuffix(" without ledger")], values)
            for name, values in device.items()
            if name.endswith(" without ledger") and name.removesuffix(" without ledger") in device
        },
        "host_ms": spreads(times, "host_ms"),
        "wall_ms": spreads(times, "wall_ms"),
    }


def cases(
    given: dict[str, Case], backends: list[str], device: str, budget: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries by case; with the `budget` of seconds spent, a case is left out by its name."""
    begun = time.perf_counter()
    for place, (name, case) in enumerate(given.items()):
        now = time.perf_counter()
        if now - begun > budget:
            yield name, {"left_out": f"{now - begun:.0f} s of {budget:.0f} s were spent"}
            continue
        share = (budget - (now - begun)) / (len(given) - place)
        yield name, measure(case, backends, device, now + share)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
