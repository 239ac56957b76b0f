"""What calls cost the host, and how many kernels they launch, where the device has next to nothing to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import optimizers
import torch
import workloads
from device_clock import HOLD
from rounds import spread
from torch.profiler import ProfilerActivity, profile

import weibull_kernels as wk
from weibull_kernels.dispatch import find_kernel

CALLS = 40


def measure(tensors: int, backends: list[str], device: str) -> dict[str, Any]:
    """Microseconds of the host and launches of each call, on tensors of one entry each."""
    calls = _calls(tensors, backends, device)
    for call in calls.values():
        for _ in range(3):
            call()
    return {
        "tensors": tensors,
        "microseconds_idle": {name: _host_time(call, device, busy=False) for name, call in calls.items()},
        "microseconds_busy": {name: _host_time(call, device, busy=True) for name, call in calls.items()},
        "launches": {name: launches(call) for name, call in calls.items()} if device == "cuda" else {},
    }


def _calls(tensors: int, backends: list[str], device: str) -> dict[str, Callable[[], object]]:
    """`wk.forces` after torch's fused step, its kernel alone, the step of `wk.AdamW`, and torch's own."""
    shapes = [(1,)] * tensors
    made = optimizers.make(shapes, device, ["torch fused"])
    fused = made["torch fused"]
    fused.step()
    calls: dict[str, Callable[[], object]] = {"torch fused step": fused.step}
    workload = workloads.make("host", shapes, device)
    stepped = workload.stepped()
    for backend in backends:
        kernel = find_kernel("forces", backend, torch.device(device))
        calls[f"wk.forces, {backend}"] = lambda backend=backend: wk.forces(fused, backend=backend)
        calls[f"kernel of forces, {backend}"] = lambda kernel=kernel: kernel(*stepped)
        calls[f"wk.AdamW.step, {backend}"] = optimizers.ours(shapes, device, backend).step
    return calls


def _host_time(call: Callable[[], object], device: str, busy: bool) -> dict[str, float]:
    """Microseconds until the call returns. While the device is busy, a call that waits for it shows 10 ms."""
    found = []
    for _ in range(CALLS):
        if device == "cuda":
            torch.cuda.synchronize()
            if busy:
                torch.cuda._sleep(HOLD)
        begun = time.perf_counter()
        call()
        found.append((time.perf_counter() - begun) * 1e6)
    return spread(found)


def launches(call: Callable[[], object]) -> dict[str, int]:
    """How often the device did what, by name, in one call: kernels, copies and fills."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    on_device = [
        event.name
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)  # a name for a stretch of time, no work
        and not event.name.startswith("Optimizer.")
    ]
    assert on_device, "the profiler saw nothing on the device"
    kinds = Counter(
        "copies" if "Memcpy" in name else "fills" if "Memset" in name else "kernels" for name in on_device
    )
    return {**kinds, **Counter(name[:120] for name in on_device)}
