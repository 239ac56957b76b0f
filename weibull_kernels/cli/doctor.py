"""`weibull-kernels doctor`: what runs on this machine, and why something does not."""

from __future__ import annotations

import typer

_OPTIONAL = {
    "pandas": "to_pandas() of every result",
    "matplotlib": "pictures",
    "plotly": "weibull-kernels report",
    "pytest": "make test",
}


def doctor() -> None:
    """What runs on this machine, and why something does not."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .. import __version__
    from ..dispatch import backends
    from ..kernels import cpu, host
    from ..processor import processor_name

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
        ("processor", f"{processor_name()}, {os.cpu_count()} logical cores"),
        ("instruction sets", f"{', '.join(sets)} (the first is used)" if sets else "no compiled extension"),
        ("threads", f"{torch.get_num_threads()}, as torch is set"),
        ("host path", f"in Python, {reason}" if (reason := host.uncompiled()) else "compiled"),
        *[(f"gpu {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())],
    ]
    lines += [(f"backend {b.name}", str(b).removeprefix(b.name).strip()) for b in backends()]
    for package, purpose in _OPTIONAL.items():
        found = installed(package)
        lines.append((package, f"{found}, for {purpose}" if found else f"not installed; it is for {purpose}"))
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        typer.echo(f"{label:<{width}}  {value}")
