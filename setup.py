"""Builds the compiled kernels. All metadata is in pyproject.toml.

Those for NVIDIA GPUs are built where nvcc is found; neither torch nor a GPU is needed for that.

    WEIBULL_KERNELS_CUDA       1: they must be built; 0: they are left out; not set: a failure is a warning
    WEIBULL_KERNELS_CUDA_ARCH  compute capabilities, "80;90;100" if not set; the last one also as PTX
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError
from setuptools.modified import newer_group

# Multiplications and additions fuse only where the code says so: the same bits everywhere.
CXX_FLAGS = "-O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
NVCC_FLAGS = (
    "-std=c++17 -O3 -fmad=false -prec-div=true -prec-sqrt=true -ftz=false --threads 0 "
    "-Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off"
)
ARCHITECTURES = ("80", "90", "100")
LEAST = 80  # whose warps add integers in one instruction
NAMES = ("weibull_kernels._cpu", "weibull_kernels._tensors", "weibull_kernels._cuda")


def extension(name, folder, **options):
    """A module from the C++ of a folder. The package installs without, and says so when it is used."""
    headers = [*glob("csrc/*.h"), *glob(f"{folder}/*.h"), *glob(f"{folder}/*.cuh")]
    options = {"cxx_std": 17, "extra_compile_args": CXX_FLAGS.split(), "optional": True} | options
    return Pybind11Extension(
        f"weibull_kernels.{name}", sorted(glob(f"{folder}/*.cpp")), depends=sorted(headers), **options
    )


def find_nvcc():
    """The nvcc of $CUDA_HOME or $CUDA_PATH, else of PATH; where neither is set, also of the usual place."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    usual = [] if homes else ["/usr/local/cuda/bin/nvcc"]
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", *usual]
    return next(filter(None, map(shutil.which, places)), None)


def extensions():
    """Those that are to be built here; first the one that is the quickest to say what it lacks."""
    wanted = os.environ.get("WEIBULL_KERNELS_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"WEIBULL_KERNELS_CUDA must be 0, 1 or not set, got {wanted!r}")
    if wanted == "1" and not find_nvcc():
        raise ValueError(
            "WEIBULL_KERNELS_CUDA=1 asks for the CUDA kernels, but no nvcc was found in $CUDA_HOME/bin, on "
            "PATH or in /usr/local/cuda/bin: install the CUDA toolkit, or set CUDA_HOME to where it is, or "
            "leave WEIBULL_KERNELS_CUDA unset to do without them"
        )
    found = [extension("_cpu", "csrc/cpu", extra_link_args=["-pthread"])]
    if glob("csrc/host/*.cpp"):
        found.append(extension("_tensors", "csrc/host"))
    if wanted == "1" or (wanted == "" and find_nvcc()):
        # The runtime comes along, its names hidden from torch's own.
        libraries, hidden = ["cudart_static", "dl", "rt", "pthread"], ["-Wl,--exclude-libs,ALL"]
        options = {"libraries": libraries, "extra_link_args": hidden, "optional": wanted != "1"}
        found.insert(0, extension("_cuda", "csrc/cuda", **options))
    return found


def printed_by(*command):
    """What a program says, on either stream."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def code_flags(nvcc):
    """-gencode for every architecture, and for the PTX from which later GPUs compile."""
    known = sorted(re.findall(r"compute_(\d+)", printed_by(nvcc, "--list-gpu-arch")), key=int)
    asked = os.environ.get("WEIBULL_KERNELS_CUDA_ARCH", "")
    found = asked.split(";") if asked else [name for name in ARCHITECTURES if name in known]
    if not set(found) <= {name for name in known if int(name) >= LEAST}:
        raise ValueError(
            "WEIBULL_KERNELS_CUDA_ARCH must be compute capabilities as in '80;90;100', each of at least "
            f"{LEAST} and one that {nvcc} knows ({', '.join(known)}), got {asked!r}"
        )
    codes = [(name, f"sm_{name}") for name in found] + [(found[-1], f"compute_{found[-1]}")]
    return [flag for name, code in codes for flag in ("-gencode", f"arch=compute_{name},code={code}")]


class BuildExtensions(build_ext):
    """Also hands .cu files to nvcc, and lets nothing of an earlier build pass for what is missing now."""

    def run(self):
        """Builds every extension."""
        for name in set(NAMES) - {ext.name for ext in self.extensions}:
            Path(self.build_lib, self.get_ext_filename(name)).unlink(missing_ok=True)
        super().run()

    def copy_extensions_to_source(self):
        """Puts them into the checkout, for an editable installation."""
        for name in map(self.get_ext_filename, NAMES):
            if not Path(self.build_lib, name).exists():
                Path(name).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext):
        """Builds one extension."""
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            if ext.name.endswith("._cuda"):
                self.compile_cuda(ext)
            super().build_extension(ext)
            if ext.name.endswith("._cuda"):
                self.import_alone(ext.name, target)
        except Exception:
            target.unlink(missing_ok=True)
            raise

    def compile_cuda(self, ext):
        """Compiles the .cu files, and asks nvcc where its headers and libraries are."""
        nvcc = find_nvcc()
        command = [nvcc, *NVCC_FLAGS.split(), *code_flags(nvcc)]
        ext.extra_objects = [
            self.nvcc_object(command, source, ext.depends) for source in sorted(glob("csrc/cuda/*.cu"))
        ]
        ext.depends = [*ext.depends, *ext.extra_objects]
        # nvcc may be a script that stands far from its toolkit: its folders are what it says they are.
        said = printed_by(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
        folders = shlex.split(" ".join(re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", said, re.MULTILINE)))
        ext.include_dirs += [folder[2:] for folder in folders if folder.startswith("-I")]
        ext.library_dirs += [folder[2:] for folder in folders if folder.startswith("-L")]

    def nvcc_object(self, command, source, headers):
        """The object file of a .cu file, compiled if the file, a header or the command is not what it was."""
        target = Path(self.build_temp, source).with_suffix(".cu.o")
        record = target.with_suffix(".txt")
        command = [*command, "-c", source, "-o", str(target)]
        as_before = record.exists() and record.read_text() == shlex.join(command)
        if self.force or not as_before or newer_group([source, *headers], str(target), "newer"):
            target.parent.mkdir(parents=True, exist_ok=True)
            record.unlink(missing_ok=True)
            print(shlex.join(command), flush=True)
            if subprocess.run(command, check=False).returncode:
                raise CompileError(f"nvcc could not compile {source}; what it said stands above")
            record.write_text(shlex.join(command))
        return str(target)

    def import_alone(self, name, target):
        """Imports what was built: a library that is missing links cleanly."""
        spec = f"spec = util.spec_from_file_location({name!r}, {str(target)!r})"
        program = f"from importlib import util; {spec}; spec.loader.exec_module(util.module_from_spec(spec))"
        try:
            printed_by(sys.executable, "-c", program)
        except CompileError as error:
            raise LinkError(f"{target} was built but does not import: {error}") from error


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
