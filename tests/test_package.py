"""What is installed: built from the sdist, into a clean place, with and without compilers."""

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from compilers import find_nvcc, needs_nvcc

import weibull_kernels as wk
from weibull_kernels import _cpu, _tensors

ROOT = Path(wk.__file__).parents[1]

# Prints where it runs from, its backends, one force, and how many warnings came with what.
PROGRAM = """
import warnings
import torch, weibull_kernels as wk
weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.5, eps=0.0)
weight.grad = torch.tensor([2.0, -5.0])
optimizer.step()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    budgets = [wk.forces(optimizer) for _ in range(3)]
print(wk.__file__)
print([backend.name for backend in wk.backends() if backend.available])
print(budgets[-1].alignment.item())
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def run(*command, cwd, **environment):
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def run_installed(wheel, folder, program=PROGRAM):
    """The lines that a program prints with the wheel installed and the checkout out of sight."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site")
    run(*pip, str(wheel), cwd=folder)
    # Without `site` no .pth file is read, so an editable install does not lend its modules.
    path = os.pathsep.join([str(folder / "site"), sysconfig.get_path("purelib")])
    file, *lines = run(sys.executable, "-S", "-c", program, cwd=folder, PYTHONPATH=path).splitlines()
    assert Path(file) == folder / "site" / "weibull_kernels" / "__init__.py"
    return lines


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it and not from the checkout."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "weibull_kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = (sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source))
    # With the CUDA kernels where they can be built, for one architecture.
    cuda = str(int(find_nvcc() is not None))
    run(*build, cwd=folder, WEIBULL_KERNELS_CUDA=cuda, WEIBULL_KERNELS_CUDA_ARCH="90")
    (sdist,), (wheel,) = ((folder / "dist").glob(end) for end in ("*.tar.gz", "*.whl"))
    return sdist, wheel


def test_the_sdist_holds_what_the_build_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert any(name.endswith(".cu") for name in needed)
    needed |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "weibull_kernels/py.typed"}
    assert needed <= names


def test_the_wheel_runs_in_a_clean_place(built, tmp_path):
    backends, alignment, *warnings = run_installed(built[1], tmp_path)
    assert "'cpu'" in backends
    assert float(alignment) == pytest.approx(1.0)  # −2η⟨w,u⟩ = −2·½·(3−4)
    assert warnings == []


def test_without_compilers_it_installs_and_warns_once(built, tmp_path):
    # A C++ compiler and an nvcc that fail, as one does beside a host compiler it does not know.
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.symlink_to("/bin/false")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", str(built[0]))
    run(*pip, cwd=tmp_path, CC="/bin/false", CXX="/bin/false", CUDA_HOME=str(tmp_path / "toolkit"))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert not extensions_in(wheel)
    backends, alignment, *warnings = run_installed(wheel, tmp_path)
    assert "'cpu'" not in backends
    assert float(alignment) == pytest.approx(1.0)
    (warning,) = warnings
    assert warning.startswith("RuntimeWarning")
    assert "install a C++17 compiler" in warning
    assert "pip install --force-reinstall" in warning


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def extensions_in(wheel):
    """The compiled modules of a wheel, without the ends of their names."""
    return {Path(name).name.partition(".")[0] for name in names_in(wheel) if name.endswith(".so")}


def test_the_wheel_holds_what_it_says(built):
    assert extensions_in(built[1]) == {"_cpu", "_tensors"} | ({"_cuda"} if find_nvcc() else set())
    names = names_in(built[1])
    assert {f"weibull_kernels/{name}.pyi" for name in ("_cpu", "_tensors", "_cuda")} <= set(names)
    assert not [name for name in names if name.startswith(("csrc", "tests"))]


# Prints where it runs from, where the kernels lie, and what is said of each backend.
CUDA_PROGRAM = """
import weibull_kernels as wk
from weibull_kernels import _cuda
print(wk.__file__)
print(_cuda.__file__)
print(wk.backends())
"""


@needs_nvcc
def test_a_wheel_with_cuda_runs_where_no_gpu_is(built, tmp_path):
    library, *backends = run_installed(built[1], tmp_path, CUDA_PROGRAM)
    assert Path(library).parent == tmp_path / "site" / "weibull_kernels"
    (line,) = (line for line in backends if line.startswith("cuda "))
    if torch.cuda.is_available():
        assert "runs on cuda" in line
    else:
        assert "cannot run: torch sees no GPU" in line
    # The driver's library is looked for when it is used, and the runtime is inside.
    assert_needs_no_torch(Path(library))


def needed_libraries(path):
    """The DT_NEEDED entries of a 64-bit ELF file, by its section headers."""
    data = path.read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    # type, file offset, length and linked section of each
    sections = [
        (
            struct.unpack_from("<I", data, at + 4)[0],
            *struct.unpack_from("<QQI", data, at + 0x18),
        )
        for at in range(table, table + size * count, size)
    ]
    (dynamic,) = (section for section in sections if section[0] == 6)
    strings = sections[dynamic[3]][1]
    entries = struct.iter_unpack("<QQ", data[dynamic[1] : dynamic[1] + dynamic[2]])
    starts = [strings + value for tag, value in entries if tag == 1]
    return [data[start : data.index(b"\0", start)].decode() for start in starts]


def assert_needs_no_torch(library):
    needed = needed_libraries(library)
    assert any(name.startswith("libc.so") for name in needed)
    absent = ("torch", "c10", "omp", "cuda")
    assert not [name for name in needed if any(part in name for part in absent)], needed


@pytest.mark.parametrize("module", [_cpu, _tensors], ids=["cpu", "tensors"])
def test_the_extensions_need_no_torch(module):
    assert_needs_no_torch(Path(module.__file__))


def test_backends_print_one_to_a_line():
    lines = str(wk.backends()).splitlines()
    assert len(lines) == len(wk.backends())
    for line, backend in zip(lines, wk.backends(), strict=True):
        assert line.startswith(backend.name)
        assert (f"cannot run: {backend.reason}" in line) or ("runs on" in line and backend.available)


def test_the_public_names_are_there():
    assert all(hasattr(wk, name) for name in wk.__all__)
    assert wk.__version__
