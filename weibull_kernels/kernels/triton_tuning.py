"""How the Triton kernels cut their work, chosen in this one place; `benchmarks/tune_triton.py` measures it.

They are those that an H100 was the fastest with, or within 1.1 % of it, of the candidates in
benchmarks/results/tuning-triton-nvidia-h100-80gb-hbm3.md, and that AMD's compiler has room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Dtypes = tuple[torch.dtype | None, ...]
"""Of the columns that a kernel reads, in its order; None for a column that is not there."""


@dataclass(frozen=True)
class Tuning:
    """The sizes that one launch is compiled for.

    Attributes:
        chunk: entries of a partial sum. It belongs to a chunk, so that scheduling changes nothing.
        num_warps: of a program.
        vector: entries of a block that a thread holds.
        stages: blocks on their way at once through shared memory; 1 reads straight into registers.
        window: bins that a chunk counts for itself, 64 an octave; the others it counts where all do.
        on_chip: whether it counts them on the chip, where Triton 3.6 takes the longer the more they are, and
            3.9 does not; or else by atomics on a table of its own in memory, which the cache takes.
        counted: entries that a thread counts before the window is added up.
    """

    chunk: int = 32768
    num_warps: int = 8
    vector: int = 4
    stages: int = 1
    window: int = 512
    on_chip: bool = True
    counted: int = 16


OPERATIONS = ("sums", "sums and histogram", "adamw")

WARP_SIZE = 64 if torch.version.hip else 32

_TUNED: dict[tuple[str, int], Tuning] = {
    # With warps of 64 threads what counts on the chip runs out of scalar registers.
    ("sums and histogram", 64): Tuning(window=512, on_chip=False),
}
"""By operation and threads of a warp, where the choice is not the default."""

_overriding: dict[str, Tuning] = {}


def tuning_of(operation: str, warp_size: int = WARP_SIZE) -> Tuning:
    """The sizes of a launch of one of `OPERATIONS`."""
    return _overriding.get(operation) or _TUNED.get((operation, warp_size), Tuning())


@contextmanager
def tuned_as(operation: str, tuning: Tuning) -> Iterator[None]:
    """Other sizes, for measuring them. Tables that tensors already have keep theirs."""
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    before = dict(_overriding)
    _overriding[operation] = tuning
    try:
        yield
    finally:
        _overriding.clear()
        _overriding.update(before)
