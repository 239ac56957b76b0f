"""The result files: one JSON a machine, in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from rounds import Rounds, ratio, spread
from workloads import Workload

from weibull_kernels.processor import processor_name

FOLDER = Path(__file__).with_name("results")


def file_name(kind: str, name: str) -> str:
    """Like cpu-intel-xeon-2core-avx512.json."""
    plain = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", name, flags=re.IGNORECASE)
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', plain.lower()).strip('-')}.json"


def cpu_machine() -> dict[str, Any]:
    """What the times of this process depend on."""
    from weibull_kernels.kernels import cpu

    return {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": None if cpu.unavailable() else cpu.instruction_sets()[0],
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def entry(
    workload: Workload, rounds: Rounds, clock: str, errors: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What is kept of one workload and operation. Contenders: "ours", "read", and rivals."""
    times = {name: by_clock[clock] for name, by_clock in rounds.times.items()}
    ours = times["ours"]
    gigabytes = workload.bytes / 1e9
    return {
        "tensors": len(workload.rows),
        "parameters": workload.numel,
        "bytes_per_parameter": workload.bytes / workload.numel,
        "rounds": len(ours),
        "ms": {name: spread(values) for name, values in times.items()},
        "gigabytes_per_second": {
            name: round(gigabytes / spread(times[name])["median"] * 1e3, 2) for name in ("ours", "read")
        },
        "to_read": ratio(ours, times["read"]),
        "rival_to_ours": {
            name: ratio(values, ours) for name, values in times.items() if name not in ("ours", "read")
        },
        "errors": {
            name: {key: float(f"{e:.2g}") for key, e in found.items()} for name, found in errors.items()
        },
    }


def save(path: Path, machine: dict[str, Any], section: str, entries: dict[str, Any]) -> None:
    """Writes `machine` and replaces `entries` of `section`; what else the file holds stays."""
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in content.items() if isinstance(value, dict)}
    kept.setdefault(section, {}).update(entries)
    path.write_text(json.dumps({**machine, **kept}, indent=1) + "\n")


def drop(path: Path, section: str) -> None:
    """Takes a section out of the file, where there is one."""
    if path.exists():
        content = json.loads(path.read_text())
        if content.pop(section, None) is not None:
            path.write_text(json.dumps(content, indent=1) + "\n")
