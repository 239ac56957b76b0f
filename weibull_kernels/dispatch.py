"""The one table from (operation, backend) to the function that does it."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

KERNELS = {
    ("sums", "reference"): "weibull_kernels.kernels.reference:sums",
    ("sums", "cpu"): "weibull_kernels.kernels.cpu:sums",
    ("sums", "triton"): "weibull_kernels.kernels.triton:sums",
    ("forces", "reference"): "weibull_kernels.kernels.reference:forces",
    ("forces", "cpu"): "weibull_kernels.kernels.cpu:forces",
    ("forces", "triton"): "weibull_kernels.kernels.triton:forces",
    ("adamw", "reference"): "weibull_kernels.kernels.reference:adamw",
    ("adamw", "cpu"): "weibull_kernels.kernels.cpu:adamw",
    ("adamw", "triton"): "weibull_kernels.kernels.triton:adamw",
    ("sums", "cuda"): "weibull_kernels.kernels.cuda:sums",
    ("forces", "cuda"): "weibull_kernels.kernels.cuda:forces",
    ("adamw", "cuda"): "weibull_kernels.kernels.cuda:adamw",
    ("gram", "reference"): "weibull_kernels.kernels.reference:gram",
    ("gram", "cpu"): "weibull_kernels.kernels.cpu:gram",
    ("moves", "reference"): "weibull_kernels.kernels.reference:moves",
    ("moves", "cpu"): "weibull_kernels.kernels.cpu:moves",
    ("normal_product", "reference"): "weibull_kernels.kernels.reference:normal_product",
    ("normal_product", "cpu"): "weibull_kernels.kernels.cpu:normal_product",
    # Float64 products of matrices are what cuBLAS is best at; the moves are plain sums.
    ("gram", "triton"): "weibull_kernels.kernels.reference:gram",
    ("moves", "triton"): "weibull_kernels.kernels.reference:moves",
    ("gram", "cuda"): "weibull_kernels.kernels.reference:gram",
    ("moves", "cuda"): "weibull_kernels.kernels.reference:moves",
    # So are two products of a matrix with a few vectors; what a GPU's caches hold, the second finds there.
    ("normal_product", "triton"): "weibull_kernels.kernels.reference:normal_product",
    ("normal_product", "cuda"): "weibull_kernels.kernels.reference:normal_product",
}
"""Named, not imported: Triton takes a while to load and need not be installed."""

# The backends that are meant for a device, the fastest first; `reference` takes their place, with a warning,
# where none can run. On an H200 `cuda` and `triton` read and step the tensors of a model about as fast,
# `triton` those of a small one faster, but `cuda` counts the histogram in a third of the time
# (benchmarks/results/gpu-nvidia-h200.md).
_BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


@dataclass(frozen=True)
class Backend:
    """One implementation of the kernels, and why it cannot run here if it cannot."""

    name: str
    devices: tuple[str, ...]
    reason: str | None

    @property
    def available(self) -> bool:
        """Whether it runs on this machine."""
        return self.reason is None

    def __str__(self) -> str:
        state = f"runs on {', '.join(self.devices)}" if self.available else f"cannot run: {self.reason}"
        return f"{self.name:10s} {state}"


class Backends(tuple[Backend, ...]):
    """All backends; prints one to a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(str(backend) for backend in self)

    __str__ = __repr__


def _names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(backend for _, backend in KERNELS))


def _backend(name: str) -> Backend:
    module = importlib.import_module(f"weibull_kernels.kernels.{name}")
    return Backend(name, module.DEVICES, module.unavailable())


def backends() -> Backends:
    """Every backend of the library, with the reason where it cannot run on this machine.

    >>> import weibull_kernels as wk
    >>> [backend.name for backend in wk.backends()]
    ['reference', 'cpu', 'triton', 'cuda']
    """
    return Backends(_backend(name) for name in _names())


@functools.cache
def _kernel(operation: str, backend: str) -> Callable[..., Any]:
    module, function = KERNELS[operation, backend].split(":")
    kernel: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return kernel


@functools.cache
def _default_backend(device_type: str) -> str:
    meant = _BY_DEVICE.get(device_type)
    if meant is None:
        raise ValueError(
            f"no backend is meant for device '{device_type}'; move the tensors to one of "
            f"{', '.join(sorted(_BY_DEVICE))}, or pass backend='reference' if the device has float64"
        )
    found = [_backend(name) for name in meant]
    if fastest := next((backend for backend in found if backend.available), None):
        return fastest.name
    # Cached with the choice, so that it is said once and not at every step.
    warnings.warn(
        f"weibull_kernels uses the slow reference backend on '{device_type}': "
        + "; ".join(f"backend '{backend.name}' cannot run because {backend.reason}" for backend in found),
        RuntimeWarning,
        stacklevel=frames_to_the_caller(),
    )
    return "reference"


def frames_to_the_caller() -> int:
    """The `stacklevel` of a warning that is to point at the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "weibull_kernels",
        "torch",
    ):
        level, frame = level + 1, frame.f_back
    return level


def require_backend(name: str) -> None:
    """Raises a ValueError if there is no backend of this name."""
    if name not in _names():
        raise ValueError(f"backend must be one of {', '.join(_names())} or None, got {name!r}")


def find_kernel(operation: str, backend: str | None, device: torch.device) -> Callable[..., Any]:
    """The function that does `operation` on tensors of `device`.

    With `backend=None` the device chooses. A backend that is named is the one that runs.

    Raises:
        ValueError: the name is not a backend, or no backend is meant for the device.
        RuntimeError: the named backend cannot run here, or not on this device.
    """
    if backend is None:
        return _kernel(operation, _default_backend(device.type))
    require_backend(backend)
    found = _backend(backend)
    if not found.available:
        raise RuntimeError(f"backend '{backend}' cannot run: {found.reason}")
    if backend != "reference" and not any(name.startswith(device.type) for name in found.devices):
        raise RuntimeError(
            f"backend '{backend}' runs on {', '.join(found.devices)}, "
            f"but the tensors are on '{device.type}'; pass backend=None to let the device choose"
        )
    return _kernel(operation, backend)
