"""The files that an experiment leaves: its numbers, and the picture and the rows that are made of them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def results_file(folder: Path, name: str, preset: str) -> Path:
    """Where the numbers are; the picture lies beside them."""
    return folder / (f"{name}.json" if preset == "cpu" else f"{name}-{preset}.json")


def write_results(path: Path, findings: dict[str, Any], **about: Any) -> None:
    """The numbers to six digits, with what there is to say about them: command, preset, machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _lines(about | {"findings": rounded(findings)}) + "\n"
    # All at once, so that a page is never made of half a file.
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def thinned(count: int, most: int) -> np.ndarray:
    """Which of so many points a curve is drawn through: the first, the last, and others evenly between."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def rounded(value: Any) -> Any:
    """Numbers to six digits, all the way down."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, (float, np.floating)) else value


def _lines(value: Any, indent: int = 0) -> str:
    """JSON with a line for whatever fits in one."""
    whole = json.dumps(value, allow_nan=False)
    if len(whole) + indent <= 110 or not isinstance(value, (dict, list)):
        return whole
    inside = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {_lines(part, indent + 1)}" for name, part in value.items()]
        return "{\n" + ",\n".join(inside + part for part in parts) + "\n" + " " * indent + "}"
    if all(isinstance(part, (int, float, str)) or part is None for part in value):
        return whole  # a column of numbers
    return "[\n" + ",\n".join(inside + _lines(part, indent + 1) for part in value) + "\n" + " " * indent + "]"
