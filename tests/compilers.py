"""Which compilers are here, for the tests of what they make."""

import os
import shutil

import pytest


def find_nvcc() -> str | None:
    """As setup.py looks for it."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [
        *(f"{home}/bin/nvcc" for home in homes),
        "nvcc",
        *([] if homes else ["/usr/local/cuda/bin/nvcc"]),
    ]
    return next(filter(None, map(shutil.which, places)), None)


needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not here to build the CUDA kernels")
