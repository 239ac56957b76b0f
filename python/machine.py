"""What a run ran on, and on how much of it."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from weibull_kernels.processor import processor_name


def machine(device: torch.device) -> str:
    """What a run ran on."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        hardware = f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
    python = ".".join(platform.python_version_tuple()[:2])
    return f"{hardware}, Python {python}, torch {torch.__version__}"


@contextmanager
def on_one_thread() -> Iterator[None]:
    """So that the number of cores changes nothing: over two threads sums are rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
