"""Which process of a distributed job this is."""

from __future__ import annotations

import torch


def this_process() -> tuple[int, int]:
    """Its rank and how many there are; (0, 1) where there is no job."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
