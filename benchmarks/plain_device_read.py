"""`plain_read.cu`, compiled where it is needed."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def _function() -> ctypes._CFuncPtr | None:
    """The compiled function; None where there is no nvcc."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/plain_read.so"
        command = [nvcc, "-O3", "-std=c++17", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC", "-shared"]
        source = Path(__file__).with_name("plain_read.cu")
        subprocess.run([*command, str(source), "-o", library], check=True)
        function = ctypes.CDLL(library).plain_read
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return function


def available() -> bool:
    """Whether it can be compiled here."""
    return _function() is not None


def plain_device_read(memory: Tensor) -> None:
    """Every byte of `memory`, uint8 on the device, read once; its last 15 may be left out.

    Raises:
        RuntimeError: CUDA refused the launch.
    """
    function = _function()
    assert function is not None
    if error := function(memory.data_ptr(), memory.numel(), torch.cuda.current_stream().cuda_stream):
        raise RuntimeError(f"the plain read cannot be launched: CUDA error {error}")
