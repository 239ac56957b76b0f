"""Checkpoints on disk that benchmarks read."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

# The program's own peak: a child inherits the count of resource.getrusage from its parent.
_MEASURED = """
{program}
import sys
print(open("/proc/self/status").read(), file=sys.stderr)
"""


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], weights: Iterable[torch.Tensor]
) -> None:
    """Float32 tensors one after another; `weights` are their entries in pieces of any size."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in weights:
            piece.numpy().tofile(file)


def peak_memory(program: str, *arguments: str) -> tuple[int, str]:
    """Bytes that a Python program held at most, imports included, and what it printed."""
    child = [sys.executable, "-c", _MEASURED.format(program=program), *arguments]
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stderr)[1]) * 1024, done.stdout
