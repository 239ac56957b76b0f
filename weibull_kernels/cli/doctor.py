"""`weibull-kernels doctor`: what runs on this machine, and why something does not."""

from __future__ import annotations

from pathlib import Path

import typer

_OPTIONAL = {
    "pandas": "to_pandas() of every result",
    "matplotlib": "pictures",
    "pytest": "make test",
}


def doctor() -> None:
    """What runs on this machine, and why something does not."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .. import __version__
    from ..dispatch import backends
    from ..kernels import cpu

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    sets = cpu.instruction_sets() if cpu.unavailable() is None else []
    lines = [
        ("weibull-kernels", __version__),
        ("python", platform.python_version()),
        ("torch", str(torch.__version__)),
        ("triton", installed("triton") or "not installed"),
        ("processor", _processor()),
        ("instruction sets", f"{', '.join(sets)} (the first is used)" if sets else "no compiled extension"),
        ("threads", f"{torch.get_num_threads()}, as torch is set"),
        *[(f"gpu {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())],
    ]
    lines += [(f"backend {b.name}", str(b).removeprefix(b.name).strip()) for b in backends()]
    for package, purpose in _OPTIONAL.items():
        found = installed(package)
        lines.append((package, f"{found}, for {purpose}" if found else f"not installed; it is for {purpose}"))
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        typer.echo(f"{label:<{width}}  {value}")


def _processor() -> str:
    import os
    import platform

    cpuinfo = Path("/proc/cpuinfo")  # on Linux alone; platform.processor() is empty there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"
