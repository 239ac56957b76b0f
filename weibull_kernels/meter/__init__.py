"""A meter in a training loop: attach → meter → hooks → probes → readings → delivery → sinks."""

from .attach import attach
from .meter import Meter

__all__ = ["Meter", "attach"]
