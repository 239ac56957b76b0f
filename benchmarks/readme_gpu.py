"""The figures of README.md that a GPU gave: what `readme_table.py` writes of results/gpu-*.json."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]

BACKEND = "cuda"
"""The default on an NVIDIA GPU, of which the figures are unless they say otherwise."""

LISTS = {
    "pythia-70m": "Pythia-70M, 76 tensors",
    "llama-1.4b": "LLaMA 1.4B, 219 tensors",
    "llama-1.4b, bf16 w": "the same, bfloat16 weights",
    "llama-8b, 16 of 32 layers, bf16 w": "half of a LLaMA 8B, bfloat16 weights",
    "2000-small": "2,000 small tensors",
    "large-and-2000-small": "one of 50M, 2,000 small",
    "shards-with-empty": "a shard, some tensors empty",
}
# By the name in a gpu-*.json: here, and in a tuning-cuda-*.json.
OPERATIONS = {
    "forces": ("forces, log moments", "forces"),
    "forces+histogram": ("the same and the histogram", "forces and histogram"),
}
CASES = {
    "pythia-70m": "Pythia-70M, 76 tensors",
    "llama-1.4b": "LLaMA 1.4B, 219 tensors",
    "llama-1.4b, bf16": "the same, all in bfloat16",
    "llama-1.4b, bf16 w, fp32 m and v": "the same, bfloat16 weights, float32 moments",
    "2000-small": "2,000 small tensors",
}
PLAIN_READ = "16-byte loads"

HELD = 10.0
"""So many ms the device was held back before a call: beyond them its time has the host's in it."""


def measured(results: list[Result], section: str) -> list[Result]:
    """The results of GPUs that have a section."""
    return [result for result in results if section in result and "cuda" in result]


def to_read(result: Result, results: list[Result], key: str) -> float | None:
    """The time of ours over that of a plain read with loads of 16 bytes; None where none was made.

    A list on which the program had chosen one of torch's reductions is compared with the read of as many
    bytes in the run that chose the sizes of the kernels, where there was one.
    """
    entry = result["forces"][key]
    if entry["reader"] == PLAIN_READ:
        return 100 / float(entry["percent_of_read"][BACKEND]["median"])
    name, operation = key.rsplit("/", 1)
    for other in results:
        if other["machine"] == result["machine"] and name in other.get("measured", {}):
            read = other["measured"][name]["operations"][OPERATIONS[operation][1]][PLAIN_READ]
            return float(entry["ms"][BACKEND]["median"] / read["median"])
    return None


def beside(entry: Result, name: str) -> float | None:
    """How many times as long as ours it takes: on the device; in all where the host outlasts the hold."""
    if name not in entry["ms"]:
        return None
    clocks = ["ms", "wall_ms"] if entry["host_ms"][name]["median"] > HELD else ["ms"]
    return min(float(entry[clock][name]["median"] / entry[clock][BACKEND]["median"]) for clock in clocks)


def _note(result: Result, section: str) -> list[str]:
    """What the measurement of a section said of itself, as a paragraph."""
    note = result[section].get("about", {}).get("note")
    return [f"({result['machine']}: {note[0].lower()}{note[1:].removesuffix('.')}.)"] if note else []


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:,.0f} ×" if ratio >= 100 else f"{ratio:.1f} ×"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def forces(results: list[Result]) -> str:
    """A table for every GPU."""
    parts = []
    for result in measured(results, "forces"):
        lines = [
            f"**{result['machine']}, torch {result['torch']}**",
            "",
            f"| tensors | computed | `{BACKEND}`, ms | GB/s | plain read = 1 | `triton`, ms | eager "
            "| foreach | torch.compile |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        keys = [f"{name}/{operation}" for name in LISTS for operation in OPERATIONS]
        for key in (key for key in keys if key in result["forces"]):
            entry = result["forces"][key]
            name, operation = key.rsplit("/", 1)
            cells = [
                LISTS[name],
                OPERATIONS[operation][0],
                f"{entry['ms'][BACKEND]['median']:.3g}",
                f"{entry['gigabytes_per_second'][BACKEND]:,.0f}",
                _number(to_read(result, results, key), ".2f"),
                f"{entry['ms']['triton']['median']:.3g}",
                *(_times(beside(entry, rival)) for rival in ("eager", "foreach", "torch.compile")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts += ["\n".join(lines), *([f"({result['note']})"] if "note" in result else [])]
    return "\n\n".join(parts)


def step_rows(results: list[Result]) -> list[str]:
    """Rows of the table of steps: ours, what the ledger adds, and torch's fused step."""
    rows = []
    for result in measured(results, "steps"):
        for case, name in CASES.items():
            entry = result["steps"].get(case, {})
            if "ms" not in entry:
                continue
            fused = beside(entry, "torch fused")
            cells = [
                result["machine"],
                name,
                f"{entry['ms'][BACKEND]['median']:.3g}",
                f"{100 * (entry['ledger_to_none'][BACKEND]['median'] - 1):+.0f} %",
                "–" if fused is None else f"**{1 / fused:.2f}**",
                "–",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def training(results: list[Result]) -> str:
    """A row for every way of metering the training of Pythia-70M, and the note of the measurement."""
    lines = [
        "| machine | with a meter or a ledger, against torch fused | a step, ms | more, % | quartiles |",
        "|---|---|--:|--:|--:|",
    ]
    notes: list[str] = []
    for result in measured(results, "training"):
        for name, case in result["training"]["pythia-70m"]["cases"].items():
            more = case["percent_more_of_a_turn"]
            if name == "torch fused":
                continue
            cells = [
                result["machine"],
                name,
                f"{case['ms_a_step']['median']:.2f}",
                f"**{case['percent_more']:+.2f}**",
                f"{more['q1']:+.2f} … {more['q3']:+.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        notes += _note(result, "training")
    return "\n\n".join(["\n".join(lines), *notes])


def host(results: list[Result]) -> str:
    """A sentence for every GPU on what calls cost its host."""
    sentences = []
    for result in measured(results, "host"):
        idle = result["host"]["300-tensors"]["microseconds_idle"]
        ours, kernel, step, torchs = (
            f"{idle[name]['median']:.0f}"
            for name in (
                f"wk.forces, {BACKEND}",
                f"kernel of forces, {BACKEND}",
                f"wk.AdamW.step, {BACKEND}",
                "torch fused step",
            )
        )
        sentences.append(
            f"For 300 tensors on the host of an {result['machine']} `wk.forces` takes {ours} µs, the launch "
            f"of its kernels alone {kernel} µs, and `wk.AdamW.step` {step} µs, where torch's fused step "
            f"takes {torchs} µs. Neither waits for the device."
        )
        sentences += _note(result, "host")
    return "\n\n".join(sentences)


def headline(results: list[Result]) -> str:
    """The first figures of the first GPU."""
    result = measured(results, "forces")[0]
    plain, counted = (result["forces"][f"llama-1.4b/{operation}"] for operation in OPERATIONS)
    reads = [to_read(result, results, f"llama-1.4b/{operation}") for operation in OPERATIONS]
    fused = beside(result["steps"]["llama-1.4b"], "torch fused")
    assert fused is not None
    training = result["training"]["pythia-70m"]["cases"]["wk.AdamW, ledger drained every step"]
    quartiles = training["percent_more_of_a_turn"]
    of_read, of_read_counted = (f"{100 / read:.0f} %" for read in reads if read is not None)
    return (
        f"On an {result['machine']} it takes {plain['ms'][BACKEND]['median']:.2f} ms for the "
        f"{plain['parameters'] / 1e9:.1f} billion weights of a LLaMA: **{of_read} of the speed of a plain "
        f"read** with loads of 16 bytes, {plain['percent_of_read'][BACKEND]['median']:.0f} % of that of "
        "torch's fastest reduction over as many bytes. torch.compile takes "
        f"{beside(plain, 'torch.compile'):.0f} × as long, eager torch {beside(plain, 'eager'):.0f} ×. "
        f"With the exact histogram of the weights it takes {counted['ms'][BACKEND]['median']:.2f} ms "
        f"({of_read_counted} of the plain read). A step of `wk.AdamW` with its ledger takes "
        f"**{1 / fused:.2f} ×** torch's fused step on the same weights; by backend `triton`, of which the "
        "measurement was, it makes "
        f"a step of training Pythia-70M longer by {training['percent_more']:.2f} % "
        f"(quartiles {quartiles['q1']:+.2f} … {quartiles['q3']:+.2f}). [How this was measured](#how-fast)"
    )
