"""Everything that needs a GPU: builds for it, tests on it, measures, and writes a file and a table.

    python3 benchmarks/gpu.py                       # what `make gpu` runs, with that python's own torch
    python3 benchmarks/gpu.py --only forces,steps   # some of its sections
    python3 benchmarks/gpu.py --rehearse            # all sections on a CPU with tiny lists; keeps nothing

Sections, in order: build, tests, sanitizer, forces, histogram, host, steps, training. What each does to the
device the next one does not see, since it has processes of its own, and its results are in the file at once.

Exit codes: 0 done; 1 a test failed, a result was wrong, a section broke or was left out; 3 there is no CUDA
device, or no torch (`make gpu` names it and exits with make's own 2).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout is measured, installed or not

NO_DEVICE = 3

try:
    import torch
except ImportError:
    print(f"{sys.executable} has no torch: nothing to run (exit code {NO_DEVICE})")
    sys.exit(NO_DEVICE)

Entries = Iterator[tuple[str, Any]]

# Seconds that each section may take. Those that measure make fewer rounds and leave lists out before
# they take longer; none is given less than `_LEAST`.
SECONDS = {
    "build": 150,
    "tests": 120,
    "sanitizer": 60,
    "forces": 90,
    "histogram": 12,
    "host": 12,
    "steps": 40,
    "training": 40,
}
_CHECKS = ("build", "tests", "sanitizer")
_LEAST = 8
_REHEARSAL = 60


def _build(device: str, seconds: float) -> Entries:
    import gpu_checks

    yield from gpu_checks.build(device).items()


def _tests(device: str, seconds: float) -> Entries:
    import gpu_checks

    yield from gpu_checks.device_tests(device, seconds).items()


def _sanitizer(device: str, seconds: float) -> Entries:
    import gpu_checks

    yield from gpu_checks.sanitizer(device, seconds).items()


def _forces(device: str, seconds: float) -> Entries:
    import gpu_forces

    given = gpu_forces.device_lists() if device == "cuda" else gpu_forces.tiny_lists()
    yield from gpu_forces.lists(given, _backends(device), device, seconds)


def _histogram(device: str, seconds: float) -> Entries:
    import gpu_forces
    import workloads

    shapes = workloads.pythia_70m() if device == "cuda" else [(5000,)]
    given = gpu_forces.histogram_inputs(shapes)
    yield from gpu_forces.lists(given, _backends(device), device, seconds)


def _host(device: str, seconds: float) -> Entries:
    import gpu_host

    for tensors in (300, 2000) if device == "cuda" else (10,):
        yield f"{tensors}-tensors", gpu_host.measure(tensors, _backends(device), device)


def _steps(device: str, seconds: float) -> Entries:
    import gpu_steps

    given = gpu_steps.device_cases() if device == "cuda" else gpu_steps.tiny_cases()
    yield from gpu_steps.cases(given, _backends(device), device, seconds)


def _training(device: str, seconds: float) -> Entries:
    import gpu_training

    shape = gpu_training.Shape() if device == "cuda" else gpu_training.TINY
    yield "pythia-70m", gpu_training.measure(device, seconds, shape)


SECTIONS: dict[str, Callable[[str, float], Entries]] = {
    "build": _build,
    "tests": _tests,
    "sanitizer": _sanitizer,
    "forces": _forces,
    "histogram": _histogram,
    "host": _host,
    "steps": _steps,
    "training": _training,
}


def _backends(device: str) -> list[str]:
    """The fast ones that run on the device."""
    from weibull_kernels import backends

    return [
        backend.name
        for backend in backends()
        if backend.available
        and (device in backend.devices or (device == "cpu" and backend.name == "reference"))
    ]


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else "a rehearsal",
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


class File:
    """The result file, its table, and the copies of both in $OUT where that is set."""

    def __init__(self, device: str, folder: Path) -> None:
        import results

        self._machine = machine(device)
        self._path = folder / results.file_name("gpu", self._machine["machine"])

    def begin(self, section: str) -> None:
        """Forgets what an earlier run wrote of a section."""
        import results

        results.drop(self._path, section)

    def keep(self, section: str, entries: dict[str, Any]) -> None:
        """Writes entries of a section at once."""
        import gpu_table
        import results

        results.save(self._path, self._machine, section, entries)
        table = gpu_table.write(self._path)
        if out := os.environ.get("OUT"):
            for path in (self._path, table):
                shutil.copy(path, out)

    def table(self) -> str:
        """The table as it is now."""
        return self._path.with_suffix(".md").read_text()


def run_section(section: str, device: str, seconds: float, folder: Path) -> bool:
    """One section in this process; False if it broke or what it checks is not so."""
    file = File(device, folder)
    file.begin(section)
    begun, passed, failed = time.perf_counter(), True, None
    try:
        for name, entry in SECTIONS[section](device, seconds):
            file.keep(section, {name: entry})
            wrong = (name, entry) == ("passed", False)
            if isinstance(entry, dict):  # a list that was left out says why in one line
                wrong = wrong or bool(entry.get("failed")) or isinstance(entry.get("left_out"), str)
            passed = passed and not wrong
            print(f"{time.perf_counter() - begun:6.1f} s  {section}: {name}", flush=True)
    except Exception as error:  # the other sections go on
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"[:1500]
    versions = {key: value for key, value in machine(device).items() if key != "machine"}
    about = {"seconds": round(time.perf_counter() - begun, 1), "failed": failed, **versions}
    file.keep(section, {"about": about})
    return passed and failed is None


def run_sections(sections: list[str], budget: float) -> bool:
    """Sections one after the other; those that the budget does not allow are left out by name."""
    import results

    begun, all_passed = time.perf_counter(), True
    whole = File("cuda", results.FOLDER)
    whole.begin("run")
    for place, section in enumerate(sections):
        left = budget - (time.perf_counter() - begun)
        wanted = sum(SECONDS[name] for name in sections[place:])
        seconds = max(SECONDS[section] * min(1.0, left / wanted), _LEAST)
        if left < _LEAST:
            file = File("cuda", results.FOLDER)
            file.begin(section)
            file.keep(section, {"about": {"left_out": f"{left:.0f} s of the budget were left"}})
            print(f"{section} is left out: {left:.0f} s of {budget:.0f} s are left", flush=True)
            all_passed = False
            continue
        # The checks need the time that they need; what is left is known afterwards.
        if section in _CHECKS:  # in processes that they start themselves
            passed = run_section(section, "cuda", SECONDS[section], results.FOLDER)
            print(
                f"{time.perf_counter() - begun:6.1f} s  {section} {'done' if passed else 'FAILED'}",
                flush=True,
            )
            all_passed = all_passed and passed
            continue
        command = [sys.executable, __file__, "--section", section, "--seconds", f"{seconds:.0f}"]
        longest = 1.5 * seconds + 40
        try:
            passed = subprocess.run(command, timeout=longest).returncode == 0
        except subprocess.TimeoutExpired:
            passed = False
            File("cuda", results.FOLDER).keep(
                section, {"about": {"failed": f"not done after {longest:.0f} s"}}
            )
        print(f"{time.perf_counter() - begun:6.1f} s  {section} {'done' if passed else 'FAILED'}", flush=True)
        all_passed = all_passed and passed
    seconds = round(time.perf_counter() - begun, 1)
    whole.keep("run", {"seconds": seconds, "budget": budget, "sections": ", ".join(sections)})
    return all_passed


def main() -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny lists, nothing is kept")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--budget", type=float, default=360, help="seconds for all of it (default: 360)")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sections = given.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if given.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            done = [run_section(section, "cpu", _REHEARSAL, Path(folder)) for section in sections]
            print(File("cpu", Path(folder)).table())
        return 0 if all(done) else 1
    if not torch.cuda.is_available():
        print(f"no CUDA device here: nothing to run (exit code {NO_DEVICE})")
        return NO_DEVICE
    import results

    if given.section:
        return 0 if run_section(given.section, "cuda", given.seconds, results.FOLDER) else 1
    passed = run_sections(sections, given.budget)
    print(File("cuda", results.FOLDER).table())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
