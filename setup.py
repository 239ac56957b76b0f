"""Builds the compiled CPU kernels. All metadata is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

cpu = Pybind11Extension(
    "weibull_kernels._cpu",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    cxx_std=17,
    # Multiplications and additions fuse only where the code says so: the same bits everywhere.
    extra_compile_args=[
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
    ],
    extra_link_args=["-pthread"],
    # Without a compiler the package installs all the same and says at run time what is missing.
    optional=True,
)

setup(ext_modules=[cpu])
