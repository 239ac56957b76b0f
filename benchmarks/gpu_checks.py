"""Builds the extensions for the GPU that is here, tests on it, and has compute-sanitizer watch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = ("_cpu", "_tensors", "_cuda")
SANITIZED = ROOT / "tests" / "gpu" / "sanitized.py"

# How each tool is called. Of races only those in our kernels are looked for; but what initialises memory is
# any kernel, and which of its readers are ours the names in the report say.
TOOLS = {
    "memcheck": (),
    "racecheck": ("--kernel-regex", "kns=weibull"),
    "initcheck": ("--print-limit", "2000"),
}
_FAULTS = 77
_COMPILERS = 12
_TESTERS = 8
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected)")
_AT_OURS = re.compile(r"^=+ +at .*weibull", re.MULTILINE)
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def build(device: str) -> dict[str, Any]:
    """Builds all extensions in place, the CUDA one for this device's architecture, and imports them."""
    begun, said = time.perf_counter(), ""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        knobs = {"WEIBULL_KERNELS_CUDA": "1", "WEIBULL_KERNELS_CUDA_ARCH": f"{major}{minor}"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "-j", "8"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment(**knobs))
        said = "" if done.returncode == 0 else "\n".join(done.stderr.strip().splitlines()[-15:])
    imported = {name: _imports(f"weibull_kernels.{name}") for name in EXTENSIONS}
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "failed": said or None,
        "imported": imported,
        "passed": not said and (device != "cuda" or all(value == "yes" for value in imported.values())),
    }


def _imports(module: str) -> str:
    """Whether a module can be imported here, else the reason: a library may be missing only then."""
    command = [sys.executable, "-c", f"import torch, {module}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
    return "yes" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def device_tests(device: str, seconds: float) -> dict[str, Any]:
    """tests/gpu, shared out where pytest-xdist is installed; for a rehearsal its tests are only collected."""
    # conftest is for the interpreter of Triton.
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "--tb=short", "-rfE", "tests/gpu"]
    command += ["--durations=10", "-p", "no:cacheprovider"] if device == "cuda" else ["--collect-only"]
    if device == "cuda" and find_spec("xdist"):  # beside which pytest-benchmark would warn of itself
        command += ["-n", str(_TESTERS), "-p", "no:benchmark"]
    begun = time.perf_counter()
    if device == "cuda":
        _compile_triton()
    compiled = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else ""
        print(output[-6000:])
        return {"passed": False, "failed": f"not done after {seconds:.0f} s", "output": output[-2000:]}
    lines = done.stdout.strip().splitlines()
    print(done.stdout[-9000:], done.stderr[-2000:])
    counts = {kind: int(count) for count, kind in _COUNT.findall(lines[-1] if lines else "")}
    return {
        "seconds": round(time.perf_counter() - compiled, 1),
        "seconds_of_compiling_triton": round(compiled - begun, 1),
        "counts": counts,
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
        "summary": lines[-1] if lines else "",
        # pytest's 5 says that there were no tests: not a pass.
        "passed": done.returncode == 0,
    }


def sanitizer(device: str, seconds: float) -> dict[str, Any]:
    """What each tool says of a program that runs every kernel once; all at the same time, to save some.

    One more program reads past its memory on purpose: a memcheck that does not see that has seen nothing.
    """
    if device != "cuda":
        return {"program": _program_alone(seconds)}
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    if found is None:
        return {"ran": False, "reason": "compute-sanitizer is not installed"}
    # Without torch's cache of memory every tensor is an allocation that the tools know of.
    environment = _environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    runs = {
        tool: _started(
            [found, "--tool", tool, *options, "--error-exitcode", str(_FAULTS)], ["cuda"], environment
        )
        for tool, options in TOOLS.items()
    }
    planted = [found, "--tool", "memcheck", "--error-exitcode", str(_FAULTS)]
    runs["memcheck of a planted fault"] = _started(planted, ["planted"], environment)
    deadline = time.perf_counter() + seconds
    results = {tool: _ended(process, deadline) for tool, process in runs.items()}
    if any("Device not supported" in result["output"] for result in results.values()):
        return {"ran": False, "reason": "compute-sanitizer does not support this device", **results}
    seen = results["memcheck of a planted fault"]
    seen["passed"] = bool(seen["faults"])
    return {
        "ran": True,
        **results,
        "passed": all(result["passed"] for result in results.values()),
    }


def _program_alone(seconds: float) -> str:
    command = [sys.executable, str(SANITIZED), "cpu"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=_environment(), timeout=seconds
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _compile_triton() -> None:
    """Has every kernel compiled into Triton's cache, by several processes: one alone would take a minute."""
    environment = _environment()
    parts = [_started([], ["triton", str(part), str(_COMPILERS)], environment) for part in range(_COMPILERS)]
    for process in parts:
        output, _ = process.communicate()
        if process.returncode:  # the tests will say what is wrong
            print(output[-1500:])


def _started(tool: list[str], arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [*tool, sys.executable, str(SANITIZED), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that the program ends with its tool
    )


def _ended(process: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=max(deadline - time.perf_counter(), 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return {"passed": False, "faults": None, "failed": "not done in time", "output": output[-1500:]}
    summary = _SUMMARY.search(output)
    faults = int(summary[1]) if summary else None
    ours = len(_AT_OURS.findall(output))
    clean = process.returncode == 0 and faults == 0
    elsewhere = process.returncode == _FAULTS and bool(faults) and "initcheck" in process.args and not ours
    passed = (clean or elsewhere) and "every kernel ran" in output
    return {
        "passed": passed,
        "faults": faults,
        "in_our_kernels": ours,
        "output": "" if clean else output[-1500:],
    }
