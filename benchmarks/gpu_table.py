"""The table beside a result file of a GPU: everything that was measured, for people.

python3 benchmarks/gpu_table.py benchmarks/results/gpu-<device>.json  # writes the .md beside it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def markdown(result: dict[str, Any]) -> str:
    """All sections of a result file."""
    versions = ", ".join(f"{name} {result[name]}" for name in ("torch", "triton", "cuda") if result.get(name))
    parts = [
        f"# {result['machine']}",
        f"{versions}, Python {result['python']}, {result['date']}. " + _NOTE,
        result.get("note", ""),
    ]
    for section, (title, generate) in _SECTIONS.items():
        if section in result:
            about = result[section].get("about", {})
            entries = {name: one for name, one in result[section].items() if name != "about"}
            parts += [f"## {title}", *_said(about), *generate(entries)]
    return "\n\n".join(part for part in parts if part) + "\n"


_NOTE = (
    "Medians, and quartiles in brackets; the contenders of a list took turns in one process, caches cold. "
    "Times are the device's own unless they are called the host's; the device is held back for 10 ms "
    "before a call, and the time of a contender whose host takes longer has the host's in it (thousands of "
    "launches: the wall times in the .json tell both)."
)


def _said(about: Entry) -> list[str]:
    return [f"{about[key]}" for key in ("note", "left_out", "failed") if about.get(key)]


def _table(head: str, rows: Iterable[list[str]]) -> str:
    cells = head.split("|")
    lines = [f"| {' | '.join(cell.strip() for cell in cells)} |"]
    lines.append("|" + "|".join("---" if cell.startswith(" ") else "--:" for cell in cells) + "|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _number(found: Entry | None, form: str = "{:.3g}") -> str:
    return "–" if found is None else form.format(found["median"])


def _spread(found: Entry, form: str = "{:.3g}") -> str:
    low, high = form.format(found["q1"]), form.format(found["q3"])
    return f"{form.format(found['median'])} ({low} … {high})"


def _times(found: Entry | None) -> str:
    return "–" if found is None else f"{found['median']:.3g} ×"


def _left_out(entries: dict[str, Entry]) -> list[str]:
    """A line for what has no row, and why."""
    lines = []
    for name, entry in entries.items():
        lines += [f"- **{name}: {who} failed, {why}**" for who, why in (entry.get("failed") or {}).items()]
        if isinstance(entry.get("left_out"), str):
            lines.append(f"- {name}: left out, {entry['left_out']}.")
        elif entry.get("left_out"):
            lines += [f"- {name}: without {who}, {why}." for who, why in entry["left_out"].items()]
    return ["\n".join(lines)] if lines else []


def forces(entries: dict[str, Entry]) -> list[str]:
    """A row for every list, operation and backend."""
    rows = []
    for key, entry in entries.items():
        if "ms" not in entry:
            continue
        name, operation = key.rsplit("/", 1)
        for backend in entry["percent_of_read"]:
            against = entry["rival_to_ours"][backend]
            rows.append(
                [
                    name,
                    operation,
                    backend,
                    f"{entry['parameters'] / 1e6:.4g}M",
                    f"{entry['bytes_per_parameter']:.3g}",
                    _spread(entry["ms"][backend]),
                    f"{entry['gigabytes_per_second'][backend]:.4g}",
                    _spread(entry["percent_of_read"][backend], "{:.0f}"),
                    f"{entry['gigabytes_per_second']['read']:.4g}, {entry['reader']}",
                    f"{entry['gigabytes_per_second']['copy']:.4g}",
                    *(_times(against.get(rival)) for rival in ("eager", "foreach", "torch.compile")),
                    _number(entry["host_ms"][backend]),
                    f"{max(entry['errors'][backend].values()):.0e}",
                ]
            )
    head = (
        " list| operation| backend|parameters|bytes each|ms|GB/s|% of the read|read, GB/s|copy, GB/s"
        "|eager|foreach|torch.compile|host, ms|off by"
    )
    return [_table(head, rows), *_left_out(entries)]


def host(entries: dict[str, Entry]) -> list[str]:
    """A row for every call and number of tensors."""
    rows = []
    for entry in entries.values():
        for name, idle in entry["microseconds_idle"].items():
            seen = entry["launches"].get(name, {})
            rows.append(
                [
                    name,
                    str(entry["tensors"]),
                    _spread(idle, "{:.0f}"),
                    _spread(entry["microseconds_busy"][name], "{:.0f}"),
                    *(str(seen.get(kind, 0)) if seen else "–" for kind in ("kernels", "copies", "fills")),
                ]
            )
    head = " call|tensors|µs, device idle|µs, device busy|kernels|copies|fills"
    return [_table(head, rows)]


def steps(entries: dict[str, Entry]) -> list[str]:
    """A row for every case and optimizer."""
    rows = []
    for name, entry in entries.items():
        for who, found in entry.get("ms", {}).items():
            percent = entry["percent_of_copy"].get(who)
            beside = "**1**" if who == "torch fused" else _times(entry["to_torch_fused"].get(who))
            rows.append(
                [
                    name,
                    who,
                    f"{entry['parameters'] / 1e6:.4g}M",
                    str(entry["bytes_per_parameter"]),
                    _spread(found),
                    f"{entry['gigabytes_per_second'][who]:.4g}",
                    "100" if percent is None else _spread(percent, "{:.0f}"),
                    "–" if who == "copy" else beside,
                    _times(entry["ledger_to_none"].get(who)),
                    _number(entry["host_ms"].get(who)),
                ]
            )
    head = (
        " tensors| step|parameters|bytes each|ms|GB/s|% of a copy|torch fused = 1"
        "|without its ledger = 1|host, ms"
    )
    return [_table(head, rows), *_left_out(entries)]


def training(entries: dict[str, Entry]) -> list[str]:
    """A row for every way of metering."""
    parts = []
    for entry in entries.values():
        model = entry["model"]
        parts.append(
            f"{model['parameters'] / 1e6:.4g}M parameters, {model['batch']} × {model['context']} tokens, "
            f"bfloat16 autocast, {entry['steps']} steps of each."
        )
        rows = [
            [
                name,
                _spread(case["ms_a_step"], "{:.2f}"),
                f"{case['ms_more']:+.3f}",
                f"**{case['percent_more']:+.2f}**",
                f"{case['percent_more_of_a_turn']['q1']:+.2f} … {case['percent_more_of_a_turn']['q3']:+.2f}",
                f"{case['ms_more_when_due']['median']:+.3f}, {case['steps_due']}",
                _spread(case["host_ms_of_step"], "{:.2f}"),
            ]
            for name, case in entry["cases"].items()
        ]
        head = (
            " optimizer|ms a step|ms more|% more|quartiles|ms more when due, how often|step() on the host, ms"
        )
        parts.append(_table(head, rows))
    return parts


def checks(entries: dict[str, Entry]) -> list[str]:
    """A line for every check."""
    lines = []
    for name, value in entries.items():
        said = "; ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: " + " ".join(str(said).split())[:600])
    return ["\n".join(lines)]


_SECTIONS: dict[str, tuple[str, Callable[[dict[str, Entry]], list[str]]]] = {
    "forces": ("Forces and log moments", forces),
    "histogram": ("Weights that are hard for a histogram", forces),
    "steps": ("Steps of AdamW", steps),
    "training": ("Training Pythia-70M", training),
    "host": ("Calls on the host", host),
    "build": ("Build", checks),
    "tests": ("Device tests", checks),
    "sanitizer": ("compute-sanitizer", checks),
    "run": ("The run", checks),
}


def write(path: Path) -> Path:
    """The table of a result file, beside it."""
    beside = path.with_suffix(".md")
    beside.write_text(markdown(json.loads(path.read_text())))
    return beside


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(write(Path(argument)))
