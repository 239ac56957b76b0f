"""What stands on the results page beyond the papers: rows of the table, and a table of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .claims import Claim, percent, spread

Run = dict[str, Any]
SHARED = ("alignment", "injection", "decay")
NARROW = ", bfloat16 weights"
SEEN = 0.01
"""A force of less than this part of the budget is not one to reckon with."""
STAYS = 0.99
"""λ has not fallen back while it is at least this part of its peak."""
DONE, SOME = 0.9, 0.5
"""Decay acts where it does the first part of what it would without rounding, in part down to the second."""
HALF_DIGIT = 2.0**-9
"""Half of the last digit of a bfloat16 is at least this part of it, and at most twice that."""


def claims(found: dict[str, Any]) -> list[Claim]:
    """What no decay does, what rounding does, and which force makes the weights grow under Lion and Muon."""
    parts = by_variant(found)
    rows = []
    if {"AdamW", "Adam without decay"} <= parts.keys():
        rows.append(no_decay(parts["Adam without decay"], parts["AdamW"]))
    narrow = {name: runs for name, runs in parts.items() if runs[0]["unmoved"] and runs[0]["weight_decay"]}
    for name, runs in narrow.items():
        wide = name.removesuffix(NARROW)
        twins = [twin for twin in found["twins"] if twin["variant"] == wide]
        rows.append(rounding(runs, apart(twins, parts[wide]) if twins else ""))
        if decay_of_step(runs) < HALF_DIGIT:
            rows.append(decay_acts(runs))
    adamw = parts.get("AdamW", [])
    return rows + [rise_and_fall(name, parts[name], adamw) for name in ("Lion", "Muon") if name in parts]


def by_variant(found: dict[str, Any]) -> dict[str, list[Run]]:
    """The runs of each variant, a seed each."""
    names = dict.fromkeys(run["variant"] for run in found["runs"])
    return {name: [run for run in found["runs"] if run["variant"] == name] for name in names}


def mean(runs: list[Run], value: Callable[[Run], float]) -> float:
    """Over the seeds."""
    return float(np.mean([value(run) for run in runs]))


def seeds(runs: list[Run]) -> str:
    """How many there are."""
    return f"{len(runs)} seeds" if len(runs) > 1 else "one seed"


def fell_to(run: Run) -> float:
    """λ at the end over its peak."""
    return float(run["scale"]["final"] / run["scale"]["peak"])


def no_decay(runs: list[Run], with_decay: list[Run]) -> Claim:
    """Without decay nothing but the angle can pull λ back."""
    stays = min(map(fell_to, runs)) >= STAYS
    falls = max(map(fell_to, with_decay)) < STAYS
    ends = [spread(list(map(fell_to, each)), ".3f") for each in (runs, with_decay)]
    share = mean(with_decay, lambda run: abs(run["shares"]["end"]["decay"]))
    return Claim(
        f"beyond the papers: Adam without decay has no relaxation, {seeds(runs)}",
        "–",
        f"λ ends at {ends[0]} of its peak; with decay, at the end {percent(share)} of the budget, {ends[1]}",
        "–",
        "holds" if stays and falls else "holds in part" if stays else "does not hold",
    )


def rounding(runs: list[Run], beside: str) -> Claim:
    """Whether rounding is a force to reckon with, and when."""
    whole, end = (mean(runs, lambda run, at=at: run["rounding"][at]["of_budget"]) for at in ("whole", "end"))
    net = mean(runs, lambda run: run["rounding"]["end"]["of_net"])
    in_part = "holds in part: at the end alone" if end >= SEEN else "does not hold"
    first, last = (
        percent(mean(runs, lambda run, at=at: run["unmoved"]["entries"][at]), digits=0) for at in (0, -1)
    )
    reason = (
        f"the end is where η is small: of all entries a step leaves {first} as they were at the first look "
        f"and {last} at the last, and on these rounding undoes what the forces did"
    )
    return Claim(
        f"beyond the papers: rounding of bfloat16 weights is a force of its own, {age(runs)}, {seeds(runs)}",
        "–",
        f"{percent(whole)} of the budget over the run, {percent(end)} at its end, where it is "
        f"{net:+.2f} of the net of the others",
        "–",
        "holds" if whole >= SEEN else in_part,
        reason + beside,
    )


def apart(twins: list[dict[str, Any]], wide: list[Run]) -> str:
    """How far ‖w‖² ends from that with float32 weights, and what of it rounding itself makes."""
    whole = [100 * twin["norm_sq"] for twin in twins]
    alone = [100 * twin["work"]["rounding"] for twin in twins]
    other = [of_all - of_it for of_all, of_it in zip(whole, alone, strict=True)]
    return (
        f". ‖w‖² ends {several(whole)} % from that of the same seeds with float32 weights; rounding itself "
        f"makes {several(alone)} points of that, another course of the other forces {several(other)}"
        f"{among(wide)}"
    )


def among(runs: list[Run]) -> str:
    """How far seeds end from each other."""
    if len(runs) == 1:
        return ""
    grown = [1 + sum(run["work"]["whole"].values()) for run in runs]
    return f", where seeds lie up to {percent(max(grown) / min(grown) - 1, digits=0)} apart"


def several(values: list[float]) -> str:
    """Of each seed, with signs."""
    return " and ".join(f"{value:+.1f}" for value in values)


def decay_acts(runs: list[Run]) -> Claim:
    """Whether a decay that is less than half of a last digit moves anything."""
    done, last = (
        mean(runs, lambda run, at=at: run["unmoved"][f"decay_done_{at}"]) for at in ("of_all", "at_end")
    )
    reach = [mean(runs, lambda run, of=of: of(run["unmoved"]["reach"])) for of in (max, min)]
    still = mean(runs, lambda run: run["unmoved"]["decay"][-1])
    in_part = "holds in part: not to the end" if done >= SOME else "does not hold"
    return Claim(
        f"beyond the papers: decay acts on bfloat16 weights, though a step's is at most "
        f"{100 * decay_of_step(runs):.2g} % of an entry and half of its last digit 0.2–0.4 %, {age(runs)}, "
        f"{seeds(runs)}",
        "–",
        f"{percent(done, digits=0)} of what it does without rounding, {percent(last, digits=0)} in the last "
        "tenth",
        "–",
        "holds" if min(done, last) >= DONE else in_part,
        "told by the same step rounded with ω = 0. Of entries that decay alone does not move some move by a "
        "whole digit because of it, as long as the updates reach further than half of a digit: η·û is "
        f"{reach[0]:.2g} times that of an entry of size σ at most, and {reach[1]:.2g} times at least. At the "
        f"last look {percent(still, digits=0)} of the decay falls on entries that do not move",
    )


def decay_of_step(runs: list[Run]) -> float:
    """ηω at the peak of η: the part of an entry that it takes."""
    return float(max(run["lr"] * run["weight_decay"] for run in runs))


def age(runs: list[Run]) -> str:
    """Of a variant."""
    return f"age {runs[0]['age']:.2g}"


def rise_and_fall(name: str, runs: list[Run], adamw: list[Run]) -> Claim:
    """Whether an optimizer's weights rise by alignment and come to rest against decay, as AdamW's do."""
    rise = {force: mean(runs, lambda run, force=force: abs(run["shares"]["rise"][force])) for force in SHARED}
    published = mean(runs, lambda run: run["shares"]["rise_as_published"]["alignment"])
    dominates = all(map(alignment_leads, runs))
    follows = all(in_order(list(run["phases"])) for run in runs)
    in_part = "holds in part" if dominates or follows else "does not hold"
    return Claim(
        f"beyond the papers: alignment dominates the rise, balance or relaxation follows: {name}, "
        f"{seeds(runs)}",
        "–",
        ", ".join(f"{force} {percent(share)}" for force, share in rise.items()),
        f"alignment {percent(published)}",
        "holds" if dominates and follows else in_part,
        compared(runs, adamw) if adamw else "",
    )


def alignment_leads(run: Run) -> bool:
    """Whether it does more than half of what is done up to the peak."""
    return bool(run["shares"]["rise"]["alignment"] > 0.5)


def in_order(phases: list[str]) -> bool:
    """Whether the first phase after the plateau is a rise, and balance or relaxation comes after it."""
    told = [phase for phase in phases if phase != "plateau"]
    return told[:1] == ["rise"] and not {"balance", "relaxation"}.isdisjoint(told)


def compared(runs: list[Run], adamw: list[Run]) -> str:
    """How long and how well aimed steps are beside AdamW's in the rise, and what makes λ another."""
    lengths, angles, peaks, shares = (
        [mean(each, value) for each in (runs, adamw)]
        for value in (
            lambda run: run["lr"] * run["update_rms"]["rise"],
            lambda run: run["cosine"]["rise"],
            lambda run: run["scale"]["peak"],
            lambda run: run["shares"]["rise"]["alignment"],
        )
    )
    return (
        f"alignment has {percent(shares[1])} under AdamW. λ peaks at {peaks[0]:.3g}, AdamW's at "
        f"{peaks[1]:.3g}: in the median over the rise η·û is {lengths[0] / lengths[1]:.2f} times AdamW's, "
        f"and cosθ {angles[0]:.2f} in place of {angles[1]:.2f}, {angles[0] / angles[1]:.2f} times"
    )


def section(found: dict[str, Any]) -> str:
    """What came out, in a table."""
    rows = [
        "| | η | ω | λ start → peak → end | peak at, % | k at the end | alignment | injection | decay "
        "| rounding | û rise → end | cosθ rise → end | loss |",
        f"|---|{'--:|' * 12}",
        *(row(name, runs) for name, runs in by_variant(found).items()),
    ]
    return "\n".join([*rows, "", WORK, *of_decay(found)])


WORK = (
    "Works of the forces over the whole run, in parts of ‖w₀‖²: with the coupling they add up to "
    "(σ_end/σ₀)² − 1. Means over the seeds; the rise is up to the peak of σ, and η is that of the peak; Ση·ω "
    "is 2.2 but where another age is named or there is no decay. The rounding of a displacement is in its "
    "update (Lion, Muon). û = √(injection/n)/η is 1 for Lion, whose update is a sign, and for Muon 0.2, but "
    "for what its five Newton–Schulz steps leave of an orthogonal matrix. With bfloat16 weights activations "
    "and moments are float32: only gradients are rounded besides."
)


def row(name: str, runs: list[Run]) -> str:
    """Of the table: the mean of the seeds of a variant."""

    def pair(key: str) -> str:
        return " → ".join(f"{mean(runs, lambda run, at=at: run[key][at]):.3f}" for at in ("rise", "end"))

    works = [mean(runs, lambda run, force=force: run["work"]["whole"][force]) for force in SHARED]
    scales = [mean(runs, lambda run, at=at: run["scale"][at]) for at in ("start", "peak", "final")]
    rounded = mean(runs, lambda run: run["work"]["whole"]["rounding"])
    cells = [
        name,
        f"{runs[0]['lr']:.3g}",
        f"{runs[0]['weight_decay']:.3g}",
        " → ".join(f"{scale:.3g}" for scale in scales),
        f"{100 * mean(runs, lambda run: run['peak_at']):.0f}",
        f"{mean(runs, lambda run: run['k']['final']):.3f}",
        *(f"{each:+.3g}" for each in works),
        "–" if runs[0]["rounding"] is None else f"{rounded:+.2g}",
        pair("update_rms"),
        pair("cosine"),
        f"{mean(runs, lambda run: run['loss']):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def of_decay(found: dict[str, Any]) -> list[str]:
    """What decay makes of the final norm with bfloat16 weights beside float32 ones, where both were run."""
    known = [twin["decay_acts"] for twin in found["twins"] if twin["decay_acts"] is not None]
    if not known:
        return []
    return [
        "The whole difference that decay makes to the final ‖w‖², all forces following, is with bfloat16 "
        f"weights {spread(known, '.2f')} times that with float32 ones."
    ]
