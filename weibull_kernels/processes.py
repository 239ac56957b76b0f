"""Which process of a distributed job this is."""

from __future__ import annotations

import os

import torch

# By torchrun, by Lightning for the processes it starts, and by Slurm.
_SAID_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def this_process() -> tuple[int, int]:
    """Its rank and how many there are; (0, 1) where there is no job."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def launched_as_another() -> bool:
    """Whether a launcher says that it is not the first; it knows before the processes have been joined."""
    return any(os.environ.get(name, "0") != "0" for name in _SAID_BY_LAUNCHERS)
