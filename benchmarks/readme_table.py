"""Writes the measured figures of README.md from the files in benchmarks/results.

python benchmarks/readme_table.py           # rewrites README.md between its markers
python benchmarks/readme_table.py --check   # exit code 1 if README.md says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import readme_gpu

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"

LISTS = {
    "pythia-70m": "Pythia-70M, 76 tensors",
    "llama-1.4b": "LLaMA 1.4B, 219 tensors",
    "2000-small": "2,000 small tensors",
    "large-and-2000-small": "one of 50M, 2,000 small",
    "shards-with-empty": "a shard, some tensors empty",
}
OPERATIONS = {"forces": "forces, log moments", "forces+histogram": "the same and the histogram"}
RIVALS = ("eager", "foreach", "torch.compile")


def table(result: dict[str, Any]) -> str:
    """One machine's table."""
    parts = [
        result["machine"],
        f"{result['threads']} threads" if "threads" in result else "",
        (result.get("instruction_set") or "").upper(),
        f"torch {result['torch']}",
    ]
    lines = [
        f"**{', '.join(part for part in parts if part)}**",
        "",
        "| tensors | computed | ms | GB/s | plain read = 1 | eager | foreach | torch.compile |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    keys = [f"{name}/{operation}" for name in LISTS for operation in OPERATIONS]
    for key in (key for key in keys if key in result["lists"]):
        entry = result["lists"][key]
        name, operation = key.rsplit("/", 1)
        rivals = [_times(entry["rival_to_ours"].get(rival)) for rival in RIVALS]
        cells = [
            LISTS[name],
            OPERATIONS[operation],
            f"{entry['ms']['ours']['median']:.3g}",
            f"{entry['gigabytes_per_second']['ours']:.3g}",
            f"{entry['to_read']['median']:.2f}",
            *rivals,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _times(ratio: dict[str, float] | None) -> str:
    return "–" if ratio is None else f"{ratio['median']:.1f} ×"


def steps_table(results: list[dict[str, Any]]) -> str:
    """A row for every machine and list on which steps were timed."""
    lines = [
        "| machine | tensors | `wk.AdamW`, ms | its ledger | torch fused = 1 | torch foreach |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in results:
        for key in (key for key in LISTS if key in result.get("adamw", {})):
            entry = result["adamw"][key]
            to_fused = entry["to_torch_fused"]
            cells = [
                result["machine"],
                LISTS[key],
                f"{entry['ms']['ours']['median']:.3g}",
                f"{100 * (entry['ledger_to_none']['median'] - 1):+.0f} %",
                f"**{to_fused['ours']['median']:.2f}**",
                _times(to_fused.get("torch foreach")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *readme_gpu.step_rows(results)])


def meter_table(results: list[dict[str, Any]]) -> str:
    """A row for every machine and way of attaching a meter to the demo's loop."""
    lines = [
        "| machine | with a meter, against without | a step, ms | more when due, ms | more, % | quartiles |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in results:
        for key, entry in result.get("meter", {}).items():
            more = entry["overhead_percent"]
            cells = [
                result["machine"],
                key,
                f"{entry['ms_a_step']['median']:.3g}",
                f"{entry['ms_more_when_due']:.2f}",
                f"**{more['median']:+.1f}**",
                f"{more['q1']:+.1f} … {more['q3']:+.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fits_table(results: list[dict[str, Any]]) -> str:
    """A row for every machine and list of weights that were fitted."""
    lines = [
        "| machine | 14.2M weights | ours, ms | npm-weibull-py | sort, least squares | off in k, λ |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in results:
        for key, entry in result.get("fits", {}).items():
            rivals = entry["rival_to_ours"]
            cells = [
                result["machine"],
                key,
                f"{entry['ms']['ours']['median']:.3g}",
                _times(rivals["npm-weibull-py"]),
                _times(rivals["sort"]),
                f"{entry['errors']['ours']:.0e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recovery_table(results: list[dict[str, Any]]) -> str:
    """A row for every spacing of checkpoints: the transmission weights in the rise, medians over runs."""
    runs = json.loads((FOLDER / "results" / "recovery.json").read_text())["findings"]["runs"]
    mine = [row for row in runs if row["role"] == "transmission"]
    lines = [
        "| steps between checkpoints | `corrected` | `spline`, published | `midpoint` "
        "| `two_point`, published | impulses, `corrected` |",
        "|---|--:|--:|--:|--:|--:|",
    ]

    def over(schedule: str, method: str, key: str) -> float:
        return median(
            row["rise"][key]
            for row in mine
            if (row["schedule"], row["method"]) == (schedule, method) and row["rise"][key] is not None
        )

    for schedule in dict.fromkeys(row["schedule"] for row in mine):
        cells = [
            f"{over(schedule, method, 'ratio'):.3f}, {over(schedule, method, 'error'):.1%}"
            for method in ("corrected", "spline", "midpoint", "two_point")
        ]
        impulses = f"{over(schedule, 'corrected', 'impulse_error'):.2%}"
        lines.append(f"| {schedule} | {' | '.join(cells)} | {impulses} |")
    return "\n".join(lines)


def recovery_speed(results: list[dict[str, Any]]) -> str:
    """A row for every machine and method on which a recovery was timed."""
    lines = [
        "| machine | method | seconds | GB/s of checkpoints | plain read = 1 | literal spline "
        "| peak memory |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        for method, entry in result.get("recovery", {}).items():
            cells = [
                f"{result['machine']}, {result['instruction_set'].upper()}",
                f"`{method}`",
                f"{entry['ms']['ours']['median'] / 1e3:.2f}",
                f"{entry['gigabytes_per_second']['ours']:.2g}",
                f"{entry['to_read']['median']:.2f}",
                _times(entry["literal_to_ours"]),
                f"{entry['peak_megabytes']} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def width_table(results: list[dict[str, Any]]) -> str:
    """A row for every level of noise: exponents of the width, and what each rule leaves of σ_top."""
    found = json.loads((FOLDER / "results" / "width-synthetic.json").read_text())
    lines = [
        "| noise / gradient | coherent | e of W₁ | e of W₂ | weight decay ∝ √width | constant | ∝ width |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]

    def number(slope: dict[str, float], sign: str = "") -> str:
        return f"{slope['value']:{sign}.2f} ± {slope['half']:.2f}".replace("-", "−")

    for noise in dict.fromkeys(row["noise"] for row in found["width"]):
        exponents = [row["sigma"] for row in found["width"] if row["noise"] == noise]
        slopes = [
            row["slope"] for row in found["rules"] if (row["noise"], row["matrix"]) == (noise, "up_proj")
        ]
        cells = [
            noise.replace("inf", "∞"),
            f"{1 / (1 + float(noise) ** 2):.2g}",
            *map(number, exponents),
            *(number(slope, "+") for slope in slopes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def transfer_table(results: list[dict[str, Any]]) -> str:
    """A row for every rule: the best lr by width, how it drifts, loss at the widest, slopes of σ_top."""
    found = json.loads((FOLDER / "results" / "width-transfer.json").read_text())
    optima = [row for row in found["optima"] if row["loss"] == "loss"]
    widths = sorted({row["width"] for row in optima})
    proxy = found["proxy"]
    best_at = " | ".join(f"{'best log₂ η at ' * (width == widths[0])}{width}" for width in widths)
    lines = [
        f"| weight decay | {best_at} | per doubling | loss, {widths[-1]} | slope of log σ_top | predicted |",
        f"|---|{'--:|' * len(widths)}--:|--:|--:|--:|",
    ]

    def signed(number: float) -> str:
        return f"{number:+.2f}".replace("-", "−")

    named = {"published": "∝ √width", "constant": "constant", "proportional": "∝ width"}
    for rule, decay in named.items():
        best = {row["width"]: row["log2_lr"] for row in optima if row["rule"] == rule}
        losses = [
            run["loss"]
            for run in found["runs"]
            if (run["width"], run["rule"]) == (widths[-1], rule)
            and (run["lr"], run["weight_decay"]) == (proxy["lr"], proxy["weight_decay"])
        ]
        slopes = [row for row in found["sigma_slopes"] if row["rule"] == rule]
        of_roles = sorted(row["slope"] for row in slopes)
        drift = found["drift"][rule]["loss"]
        cells = [
            decay,
            *(f"{best[width]:.2f}".replace("-", "−") for width in widths),
            f"{signed(drift['slope'])} ({signed(drift['low'])} … {signed(drift['high'])})",
            f"{mean(losses):.3f}",
            f"{signed(of_roles[0])} … {signed(of_roles[-1])}",
            signed(slopes[0]["predicted"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spectra_table(results: list[dict[str, Any]]) -> str:
    """A row for every machine on which top singular values were timed."""
    lines = [
        "| machine | one pass from the last, ms | plain read = 1 | off | from nothing, ms | off "
        "| `svd_lowrank` | off |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        if "top_singular_values" not in result:
            continue
        tracked, cold = (result["top_singular_values"][name] for name in ("tracked", "cold"))
        cells = [
            f"{result['machine']}, {result['instruction_set'].upper()}",
            f"{tracked['ms']['ours']['median']:.3g}",
            f"**{tracked['to_read']['median']:.2f}**",
            f"{tracked['errors']['ours']:.0e}",
            f"{cold['ms']['ours']['median']:.0f}",
            f"{cold['errors']['ours']:.0e}",
            _times(cold["rival_to_ours"]["svd_lowrank"]),
            f"{cold['errors']['svd_lowrank']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(results: list[dict[str, Any]]) -> str:
    """A sentence of the first processor that has the figures, and those of the first GPU."""
    result = next(result for result in results if "threads" in result and "lists" in result)
    entry = result["lists"]["pythia-70m/forces"]
    rivals = entry["rival_to_ours"]
    return (
        f"On {result['threads']} threads of an {result['machine']} all of this takes "
        f"{entry['ms']['ours']['median']:.0f} ms for the {entry['parameters'] / 1e6:.0f} million weights of "
        f"Pythia-70M: **{entry['to_read']['median']:.2f} × a plain read** of the same bytes, where "
        f"torch.compile of the same formulas takes {_times(rivals['torch.compile'])} as long and eager "
        f"torch {rivals['eager']['median']:.0f} ×.\n\n{readme_gpu.headline(results)}"
    )


def tables(results: list[dict[str, Any]]) -> str:
    """Every machine's table."""
    note = "The last three columns: how many times longer each takes for the same results."
    return "\n\n".join([note, *(table(result) for result in results if "lists" in result)])


SECTIONS = {
    "headline": headline,
    "recovery": recovery_table,
    "recovery-speed": recovery_speed,
    "widths": width_table,
    "transfer": transfer_table,
    "gpu": readme_gpu.forces,
    "steps": steps_table,
    "host": readme_gpu.host,
    "training": readme_gpu.training,
    "meter": meter_table,
    "fits": fits_table,
    "spectra": spectra_table,
    "benchmarks": tables,
}


def rewritten(readme: str) -> str:
    """The README with what stands between its markers generated anew."""
    files = sorted((FOLDER / "results").glob("*.json"))
    results = [result for path in files if "machine" in (result := json.loads(path.read_text()))]
    for section, generate in SECTIONS.items():
        begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
        if begin not in readme or end not in readme:
            raise SystemExit(f"README.md needs the lines {begin} and {end} around its {section}")
        before, rest = readme.split(begin, 1)
        readme = f"{before}{begin}\n\n{generate(results)}\n\n{end}{rest.split(end, 1)[1]}"
    return readme


def main() -> int:
    """Rewrites or checks README.md; 0 if it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if README.md differs")
    check = parser.parse_args().check
    readme = README.read_text()
    wanted = rewritten(readme)
    if check and wanted != readme:
        print("README.md differs from benchmarks/results: run benchmarks/readme_table.py", file=sys.stderr)
        return 1
    if not check:
        README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
