"""Which process of a distributed job this is."""

from __future__ import annotations

import os

import torch

# As said by torchrun, by Lightning to the processes it starts, and by Slurm.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def this_process() -> tuple[int, int]:
    """Its rank and how many there are; (0, 1) where there is no job."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def in_a_job() -> bool:
    """Whether there are others; a launcher says so before the processes have been joined."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return several or this_process()[1] > 1 or any(os.environ.get(name, "0") != "0" for name in _RANKS)
