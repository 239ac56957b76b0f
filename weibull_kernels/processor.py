"""What the processor of this machine is called."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor_name() -> str:
    """As the system gives it; the kind of machine where it gives none."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # on Linux alone; platform.processor() is empty there
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
