"""Where the records of a training loop go: files, the console, trackers of experiments.

A sink has `write(step, budget, **scalars)` and `close()`; `as_sink` makes one of what is none.
"""

from .adapt import as_sink
from .console import ConsoleSink
from .json_lines import JsonLinesSink
from .live import LiveSink, role_metrics
from .outbox import Outbox
from .parquet import ParquetSink
from .protocol import Sink

__all__ = [
    "ConsoleSink",
    "JsonLinesSink",
    "LiveSink",
    "Outbox",
    "ParquetSink",
    "Sink",
    "as_sink",
    "role_metrics",
]
