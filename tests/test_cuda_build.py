"""What nvcc made of the CUDA kernels, and how setup.py goes about it. None of it needs a GPU."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import triton
from compilers import find_nvcc, needs_nvcc

from weibull_kernels.kernels import cuda
from weibull_kernels.kernels.interface import BINS, HYPERPARAMETERS, LEDGER_COLUMNS

ROOT = Path(__file__).parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100")
# Kernels that go through all entries: loads and stores of 16 bytes in the path of aligned packs, one for each
# column of sums, two for those of a step, whose packs are of 32 bytes. Each is compiled for float and double,
# without and with a histogram or a ledger.
STREAMING = {"sum_chunks": (3, 0), "step_chunks": (2 * 5, 2 * 5)}
KINDS, OPTIONS = ("float", "double"), ("false", "true")
REGISTERS = 65536  # of a multiprocessor of any of them
# Bytes of shared memory of a multiprocessor, of which each block takes 1 KiB for itself.
SHARED_MEMORY = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}

pytestmark = needs_nvcc


@dataclass
class Kernel:
    """A kernel as it is compiled for one architecture."""

    usage: dict[str, int]  # REG, STACK, SHARED and LOCAL; registers of a thread, and bytes
    code: Counter[str] = field(default_factory=Counter)  # how often each instruction stands in it


@dataclass
class Library:
    """What a fat binary holds, by architecture and by the name of the kernel with its template arguments."""

    kernels: dict[str, dict[str, Kernel]]
    ptx: set[str]
    threads: dict[str, int]  # of a block, at most


def cuobjdump(*arguments) -> str:
    """Triton brings it along, with the disassembler that it calls."""
    program = Path(triton.knobs.nvidia.cuobjdump.path)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    ).stdout


@functools.cache
def short_name(mangled: str) -> str:
    """`sum_chunks<float, true>`, without namespaces and parameters."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    (found,) = re.findall(
        r"(\w+(?:<[^>]*>)?)\(", name.replace("(anonymous namespace)::", "").replace("(bool)", "")
    )
    return found


def library_of(path) -> Library:
    kernels: dict[str, dict[str, Kernel]] = {}
    text = cuobjdump("--dump-resource-usage", path)
    for part in re.split(r"^Fatbin elf code:$", text, flags=re.MULTILINE)[1:]:
        (target,) = re.findall(r"^arch = (\w+)", part.split("Fatbin ptx code:")[0], re.MULTILINE)
        for name, usage in re.findall(r"Function (\S+):\s*\n(.*)", part):
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
            assert len(numbers) == 4, f"cuobjdump speaks otherwise now: {usage}"
            kernels.setdefault(target, {})[short_name(name)] = Kernel(numbers)
    target = kernel = None
    for line in cuobjdump("--dump-sass", path).splitlines():
        if found := re.match(r"arch = (\w+)", line):
            target = found[1]
        elif found := re.match(r"\s+Function : (\S+)", line):
            kernel = kernels[target][short_name(found[1])]
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            kernel.code[found[1]] += 1
    ptx = cuobjdump("--dump-ptx", path)
    entries = re.findall(r"^\.(?:visible )?\.?entry (\S+)\(.*?\)(.*?)^\{", ptx, re.MULTILINE | re.DOTALL)
    said = {short_name(name): dict(re.findall(r"\.(\w+) (\d+)", text)) for name, text in entries}
    return Library(
        kernels,
        set(re.findall(r"\.(sm_\w+)\.ptx$", cuobjdump("--list-ptx", path), re.MULTILINE)),
        {name: int(bounds["maxntid"]) for name, bounds in said.items() if "maxntid" in bounds},
    )


def blocks_of(target: str, kernel: str) -> int:
    """How many blocks tuning.h says must fit on a multiprocessor together."""
    text = (ROOT / "csrc" / "cuda" / "tuning.h").read_text()
    branches = re.findall(r"kSumBlocks = (\d+), kCountBlocks = (\d+), kStepBlocks = (\d+);", text)
    sums, counts, steps = map(int, dict(zip(("sm_100", "sm_80", "sm_90"), branches, strict=True))[target])
    fast = {"sum_chunks<float, false>": sums, "sum_chunks<float, true>": counts}
    return fast.get(kernel, steps if kernel.startswith("step_chunks<float") else 1)


@pytest.fixture(scope="module")
def library() -> Library:
    """The extension as it was built for this environment."""
    spec = importlib.util.find_spec("weibull_kernels._cuda")
    assert spec, "nvcc is here and built no _cuda; WEIBULL_KERNELS_CUDA=1 pip install --editable . tells why"
    return library_of(spec.origin)


def test_every_architecture_is_in_it(library):
    assert set(library.kernels) == set(TARGETS), "was WEIBULL_KERNELS_CUDA_ARCH set for this build?"
    assert library.ptx == {TARGETS[-1]}  # which GPUs that come later compile from
    names = library.kernels[TARGETS[0]].keys()
    assert all(library.kernels[target].keys() == names for target in TARGETS)
    streaming = {f"{name}<{kind}, {option}>" for name in STREAMING for kind in KINDS for option in OPTIONS}
    assert names >= streaming
    # All others have a block or a warp to a tensor and are not in a hurry.
    assert names - streaming == {"combine_sums", "combine_forces", "finish_steps"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(library, target):
    for name, kernel in library.kernels[target].items():
        assert (kernel.usage["STACK"], kernel.usage["LOCAL"]) == (0, 0), (name, kernel.usage)
        local = {code: count for code, count in kernel.code.items() if code.startswith(("LDL", "STL"))}
        assert not local, (name, local)


@pytest.mark.parametrize("target", TARGETS)
def test_as_many_blocks_fit_as_tuning_h_says(library, target):
    for name, kernel in library.kernels[target].items():
        blocks, threads = blocks_of(target, name), library.threads[name]
        registers = -(-kernel.usage["REG"] // 8) * 8  # given out eight at a time
        assert blocks * threads * registers <= REGISTERS, (name, blocks, threads, registers)
        assert kernel.usage["SHARED"] <= 48 * 1024, name
        assert blocks * (kernel.usage["SHARED"] + 1024) <= SHARED_MEMORY[target], name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "loads", "stores"), [(name, *wide) for name, wide in STREAMING.items()])
def test_entries_are_moved_16_bytes_at_a_time(library, target, kind, name, loads, stores):
    for option in OPTIONS:
        code = library.kernels[target][f"{name}<{kind}, {option}>"].code
        assert of_width_16(code, "LDG") >= loads, code
        assert of_width_16(code, "STG") >= stores, code
        # A generic access asks first what kind of memory it is; a row's count of steps may.
        assert sum(count for found, count in code.items() if found.split(".")[0] in ("LD", "ST")) <= 1, code


def of_width_16(code, instruction):
    """How many accesses of 16 bytes there are, however they are cached."""
    return sum(count for name, count in code.items() if {instruction, "128"} <= set(name.split(".")))


# What setup.py does, with kernels that are quickly compiled.

# Without pybind11's headers, which take most of the time.
MODULE = """
#include <Python.h>
{before}
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{name}"}};
PyMODINIT_FUNC PyInit_{name}() {{ {then} return PyModule_Create(&definition); }}
"""
CPU = MODULE.format(name="_cpu", before="", then="")
BINDINGS = MODULE.format(name="_cuda", before="void launch();", then="if (!Py_IsInitialized()) launch();")
HEADER = "__global__ void nothing() {}\n"
KERNEL = """
#include "nothing.cuh"
void launch() { nothing<<<1, 1>>>(); }
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """Where the build requirements lie."""
    folder = tmp_path_factory.mktemp("tools")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(folder),
        "setuptools",
        "pybind11",
    )
    subprocess.run(pip, check=True)
    return folder


class Project:
    """A checkout that setup.py builds in place."""

    def __init__(self, folder, tools):
        self.folder, self.tools = folder, tools
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        self.write("weibull_kernels/__init__.py", "")
        self.write("csrc/cpu/bindings.cpp", CPU)
        self.write("csrc/cuda/bindings.cpp", BINDINGS)
        self.write("csrc/cuda/nothing.cuh", HEADER)
        self.write("csrc/cuda/launch.cu", KERNEL)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(self, cuda="", architectures="90", **environment):
        """The exit status and everything that was said."""
        asked = {"WEIBULL_KERNELS_CUDA": cuda, "WEIBULL_KERNELS_CUDA_ARCH": architectures}
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.tools)} | asked | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def built(self):
        """The extensions that are there to be imported."""
        return {path.name.split(".")[0] for path in (self.folder / "weibull_kernels").glob("*.so")}


@pytest.fixture
def project(tmp_path, tools):
    return Project(tmp_path, tools)


def compiles(said):
    """How often nvcc was asked to compile."""
    return said.count("-c csrc/cuda/launch.cu")


def test_only_what_changed_is_compiled_again(project):
    status, said = project.build()
    assert (status, compiles(said)) == (0, 1), said
    assert project.built() == {"_cpu", "_cuda"}
    assert compiles(project.build()[1]) == 0
    project.write("csrc/cuda/nothing.cuh", HEADER.replace("{}", "{ __syncthreads(); }"))
    assert compiles(project.build()[1]) == 1
    library = next((project.folder / "weibull_kernels").glob("_cuda.*"))
    assert "sm_80" not in cuobjdump("--list-elf", library)
    # Other architectures are another command.
    assert compiles(project.build(architectures="80;90")[1]) == 1
    assert re.findall(r"sm_\d+", cuobjdump("--list-elf", library)) == ["sm_80", "sm_90"]
    assert re.findall(r"sm_\d+", cuobjdump("--list-ptx", library)) == ["sm_90"]


def test_a_library_that_does_not_import_is_not_left_there(project):
    assert project.build()[0] == 0
    # It links: whoever is asked for `missing` may be loaded by then.
    project.write("csrc/cuda/launch.cu", KERNEL.replace("{", "{ void missing(); missing();"))
    status, said = project.build()
    assert status == 0, said
    assert re.search(r'warning: .*"weibull_kernels\._cuda" failed: .* does not import', said)
    assert "undefined symbol" in said
    assert project.built() == {"_cpu"}  # nor is the one from before
    status, said = project.build(cuda="1")
    assert status != 0
    assert "does not import" in said


def test_what_nvcc_refuses_is_a_warning_or_an_error(project):
    project.write("csrc/cuda/launch.cu", "this is no program\n")
    status, said = project.build()
    assert status == 0, said
    assert re.search(
        r'warning: .*"weibull_kernels\._cuda" failed: nvcc could not compile csrc/cuda/launch\.cu', said
    )
    assert project.built() == {"_cpu"}
    status, said = project.build(cuda="1")
    assert status != 0
    assert "error: nvcc could not compile csrc/cuda/launch.cu" in said


def test_it_is_left_out_if_asked(project):
    assert project.build()[0] == 0
    status, said = project.build(cuda="0")
    assert (status, compiles(said)) == (0, 0)
    assert project.built() == {"_cpu"}


@pytest.mark.parametrize("cuda", ["", "1"])
@pytest.mark.parametrize("architectures", ["90,100", "sm_90", "90;", "12", "75"])
def test_architectures_that_are_none_are_refused(project, cuda, architectures):
    status, said = project.build(cuda, architectures)
    assert status != 0
    assert "WEIBULL_KERNELS_CUDA_ARCH must be compute capabilities as in '80;90;100'" in said
    assert said.rstrip().endswith(f"got '{architectures}'")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 3), True), ((12, 0), True)],
)
def test_which_gpus_there_is_code_for(capability, runs):
    assert cuda.has_code_for(*capability) == runs


def test_only_later_gpus_compile_from_ptx(monkeypatch):
    monkeypatch.setattr(cuda._cuda, "ARCHITECTURES", [90])
    assert [cuda.has_code_for(*one) for one in ((8, 0), (8, 9), (9, 0), (10, 0))] == [
        False,
        False,
        True,
        True,
    ]


def test_it_lays_its_tables_out_as_python_does():
    found = (cuda._cuda.BINS, cuda._cuda.HYPERPARAMETERS, cuda._cuda.LEDGER_COLUMNS)
    assert found == (BINS, len(HYPERPARAMETERS), len(LEDGER_COLUMNS))


def test_anything_but_0_and_1_is_refused(project):
    status, said = project.build(cuda="yes")
    assert status != 0
    assert "WEIBULL_KERNELS_CUDA must be 0, 1 or not set, got 'yes'" in said


def test_without_nvcc_it_is_left_out_unless_it_must_be_there(project, tmp_path):
    folders = [path for path in os.environ["PATH"].split(os.pathsep) if not Path(path, "nvcc").exists()]
    nowhere = {"PATH": os.pathsep.join(folders), "CUDA_HOME": str(tmp_path / "none"), "CUDA_PATH": ""}
    status, said = project.build(**nowhere)
    assert status == 0, said
    assert project.built() == {"_cpu"}
    status, said = project.build(cuda="1", **nowhere)
    assert status != 0
    assert "no nvcc was found in $CUDA_HOME/bin, on PATH or in /usr/local/cuda/bin: install the CUDA" in said


def test_nvcc_is_taken_from_cuda_home_first(project, tmp_path):
    # A script that is not where the toolkit is, as some systems have it.
    script = tmp_path / "home" / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {find_nvcc()} "$@"\n')
    script.chmod(0o755)
    status, said = project.build(cuda="1", CUDA_HOME=str(tmp_path / "home"))
    assert status == 0, said
    assert f"{script} -std=c++17" in said
    assert project.built() == {"_cpu", "_cuda"}
