"""Real text that every machine has: the source of Python's standard library, as bytes."""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VOCABULARY = 256


def library_source(limit: int = 8_000_000) -> Tensor:
    """The modules of the standard library one after another, uint8 [≤ limit].

    Packages that are installed on top and the library's own tests are left out, so that
    machines with the same Python have the same text.
    """
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    text = bytearray()
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if left_out.isdisjoint(path.relative_to(library).parts):
            text += path.read_bytes()
        if len(text) >= limit:
            break
    if not text:
        raise ValueError(
            f"no Python source under {library}: the demo trains on the standard library's own text"
        )
    return torch.from_numpy(np.frombuffer(bytes(text[:limit]), dtype=np.uint8).copy())


def random_windows(
    text: Tensor, batch: int, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and their next tokens, int64 [batch, context] each, from random places of the text."""
    starts = torch.randint(len(text) - context, (batch, 1), generator=generator)
    windows = text[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
