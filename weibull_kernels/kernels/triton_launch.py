"""Launching Triton kernels at the cost of a few microseconds. Imported only where Triton is installed."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from . import triton_adamw, triton_sums
from .triton_tuning import WARP_SIZE, Dtypes, Tuning

COMBINED = 256
"""Partial sums added at a time: the combination is a chain of such reads, 100 of them for 8e8 entries."""

_COMBINING_WARPS = 8

INTERPRETED = bool(triton.knobs.runtime.interpret)

# Fusion is pinned: its default changes between releases of Triton, and with it the last bits.
OPTIONS = {"enable_fp_fusion": True}


class Kernel:
    """A kernel with its constants. Called with the number of programs and its tensors (None: without).

    `function[grid](...)` binds and specialises its arguments anew at every launch, which takes the host
    longer than all else. So it is asked once for each device and choice of None, and what it
    compiled is called from then on. The kernels take pointers alone and no alignment of them for
    granted (see `aligned`), so what was compiled is right for any others.
    """

    def __init__(self, function: Any, constants: dict[str, Any], num_warps: int) -> None:
        pointers = len(function.arg_names) - len(constants)
        if list(constants) != function.arg_names[pointers:]:
            raise TypeError(f"constants must be {function.arg_names[pointers:]}, got {list(constants)}")
        self.function = function
        self.constants = constants
        self.options = {"num_warps": num_warps, **OPTIONS}
        self._values = tuple(constants.values())
        self._compiled: dict[tuple[object, ...], Any] = {}

    def __call__(self, programs: int, *tensors: Tensor | None) -> None:
        """Launches it on the current device and stream."""
        if INTERPRETED:
            self.function[(programs,)](*tensors, **self.constants)
            return
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        device = torch.cuda.current_device()
        key = (device, *[address is None for address in addresses])
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = self.function[(programs,)](*tensors, **self.constants, **self.options)
            return
        stream = driver.active.get_current_stream(device)
        if _is_watched():
            compiled[programs, 1, 1](*addresses, *self._values, stream=stream)
            return
        # What that comes to where no profiler is told of launches; None: what it would be told, and who.
        about = stream, compiled.function, compiled.packed_metadata, None, None, None
        compiled.run(programs, 1, 1, *about, *addresses, *self._values)


def _is_watched() -> bool:
    """Whether somebody, such as Triton's profiler, wants to be told of launches."""
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)


@functools.cache
def sum_kernel(dtypes: Dtypes, tuning: Tuning, warp_size: int = WARP_SIZE) -> Kernel:
    """`sum_chunks` for these dtypes of weight and moments (None: no moments)."""
    weight, exp_avg, exp_avg_sq = map(_named, dtypes)
    constants = {
        "WEIGHT": weight,
        "EXP_AVG": exp_avg,
        "EXP_AVG_SQ": exp_avg_sq,
        **_sizes(dtypes, tuning, warp_size),
        "STAGES": tuning.stages,
        "WINDOW": tuning.window,
        "COUNT_BLOCK": min(tuning.num_warps * warp_size * tuning.counted, tuning.chunk),
    }
    return Kernel(triton_sums.sum_chunks, constants, tuning.num_warps)


@functools.cache
def step_kernel(dtypes: Dtypes, tuning: Tuning, warp_size: int = WARP_SIZE) -> Kernel:
    """`step_chunks` for these dtypes of weight, gradient, moments and largest second moment (or None)."""
    names = ("WEIGHT", "GRAD", "EXP_AVG", "EXP_AVG_SQ", "MAX_EXP_AVG_SQ")
    constants = {
        **dict(zip(names, map(_named, dtypes), strict=True)),
        **_sizes(dtypes, tuning, warp_size),
        "STAGES": tuning.stages,
    }
    return Kernel(triton_adamw.step_chunks, constants, tuning.num_warps)


def _sizes(dtypes: Dtypes, tuning: Tuning, warp_size: int) -> dict[str, Any]:
    wide = torch.float64 in dtypes
    vector = tuning.vector // 2 if wide else tuning.vector  # the same bytes of a thread
    return {
        "ARITHMETIC": _named(torch.float64 if wide else torch.float32),
        "CHUNK": tuning.chunk,
        "BLOCK": tuning.num_warps * warp_size * vector,
        "VECTOR": vector,
    }


@functools.cache
def combining_kernel(name: str) -> Kernel:
    """One of the kernels that add partial sums, a program a tensor."""
    functions: dict[str, Any] = {
        "sums": triton_sums.combine_chunks,
        "forces": triton_sums.combine_forces,
        "adamw": triton_adamw.finish_steps,
    }
    return Kernel(functions[name], {"BLOCK": COMBINED}, _COMBINING_WARPS)


def _named(dtype: torch.dtype | None) -> Any:
    """The dtype of Triton that has the same name."""
    return dtype and getattr(tl, str(dtype).removeprefix("torch."))
