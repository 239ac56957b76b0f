"""A meter in a training loop: attach → hooks → probes → readings → delivery → sinks."""

from .attach import Meter, attach

__all__ = ["Meter", "attach"]
