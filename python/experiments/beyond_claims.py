"""What stands on the results page beyond the papers: rows of the table, and a table of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .claims import Claim, percent, spread

Run = dict[str, Any]
NARROW = ", bfloat16 weights"
SEEN = 0.01
"""A force of less than this part of the budget is not one to reckon with."""
STAYS = 0.99
"""λ has not fallen back while it is at least this part of its peak."""
DONE, SOME = 0.9, 0.5
"""Decay acts where it does the first part of what it would without rounding, in part down to the second."""
FALLEN = ("balance", "relaxation")


def claims(found: dict[str, Any]) -> list[Claim]:
    """What no decay does, what rounding does, and which force makes the weights grow under Lion and Muon."""
    parts = by_variant(found)
    rows = []
    if {"AdamW", "Adam without decay"} <= parts.keys():
        rows.append(no_decay(parts["Adam without decay"], parts["AdamW"]))
    narrow = {name: runs for name, runs in parts.items() if runs[0]["unmoved"] and runs[0]["weight_decay"]}
    for name, runs in narrow.items():
        twins = [twin for twin in found["twins"] if twin["variant"] == name.removesuffix(NARROW)]
        rows.append(rounding(name, runs, twins))
    rows += [decay_acts(name, runs) for name, runs in narrow.items()]
    rows += [
        rise_and_balance(name, parts[name], parts.get("AdamW", []))
        for name in ("Lion", "Muon")
        if name in parts
    ]
    return rows


def by_variant(found: dict[str, Any]) -> dict[str, list[Run]]:
    """The runs of each variant, a seed each."""
    names = dict.fromkeys(run["variant"] for run in found["runs"])
    return {name: [run for run in found["runs"] if run["variant"] == name] for name in names}


def mean(runs: list[Run], value: Callable[[Run], float]) -> float:
    """Over the seeds."""
    return float(np.mean([value(run) for run in runs]))


def fell_to(run: Run) -> float:
    """λ at the end over its peak."""
    return float(run["scale"]["final"] / run["scale"]["peak"])


def no_decay(runs: list[Run], with_decay: list[Run]) -> Claim:
    """Without decay nothing but the angle can pull λ back."""
    none = all(run["work"]["whole"]["decay"] == 0 for run in runs)
    stays = min(map(fell_to, runs)) >= STAYS
    falls = max(map(fell_to, with_decay)) < STAYS
    return Claim(
        f"beyond the papers: Adam without decay has no relaxation, {seeds(runs)}",
        "–",
        f"decay {percent(mean(runs, lambda run: abs(run['shares']['end']['decay'])))} of the budget, "
        f"λ ends at {spread(list(map(fell_to, runs)), '.3f')} of its peak; with decay at "
        f"{spread(list(map(fell_to, with_decay)), '.3f')}",
        "–",
        "holds" if none and stays and falls else "holds in part" if none and stays else "does not hold",
    )


def rounding(name: str, runs: list[Run], twins: list[dict[str, Any]]) -> Claim:
    """Whether rounding is a force to reckon with, and when."""
    whole, end = (mean(runs, lambda run, at=at: run["rounding"][at]["of_budget"]) for at in ("whole", "end"))
    taken = mean(runs, lambda run: -run["rounding"]["end"]["of_decay"])
    verdict = (
        "holds" if whole >= SEEN else "holds in part: at the end alone" if end >= SEEN else "does not hold"
    )
    entries = [np.mean([run["unmoved"]["entries"][at] for run in runs]) for at in (0, -1)]
    reason = (
        f"a step leaves {percent(entries[0], digits=0)} of the entries as they were at the first look and "
        f"{percent(entries[1], digits=0)} at the last, where η is a tenth of its peak and η·û less than half of "
        f"their last digit"
    )
    if twins:
        apart = float(np.mean([twin["norm_sq"] for twin in twins]))
        works = {force: float(np.mean([twin["work"][force] for twin in twins])) for force in twins[0]["work"]}
        reason += (
            f". ‖w‖² ends {100 * apart:+.1f} % from that of the same seeds with float32 weights: rounding itself "
            f"makes {100 * works['rounding']:+.1f} points of it, another alignment "
            f"{100 * works['alignment']:+.1f}, injection {100 * works['injection']:+.1f}, and decay, which follows "
            f"the norm, {100 * works['decay']:+.1f}"
        )
    return Claim(
        f"beyond the papers: rounding is a force of its own, {label(name, runs)}, {seeds(runs)}",
        "–",
        f"{percent(whole, digits=2)} of the budget over the run, {percent(end)} at its end, where it takes back "
        f"{percent(taken, digits=0)} of the decay",
        "–",
        verdict,
        reason,
    )


def decay_acts(name: str, runs: list[Run]) -> Claim:
    """Whether a decay that is less than half of a last digit moves anything."""
    done, last = (
        mean(runs, lambda run, at=at: run["unmoved"][f"decay_done_{at}"]) for at in ("of_all", "at_end")
    )
    still = float(np.mean([run["unmoved"]["decay"][-1] for run in runs]))
    worst = min(done, last)
    step = max(run["lr"] * run["weight_decay"] for run in runs)
    return Claim(
        f"beyond the papers: decay acts on bfloat16 weights, though it takes at most {100 * step:.2g} % of an entry "
        f"in a step and half of its last digit is 0.2–0.4 %, {label(name, runs)}, {seeds(runs)}",
        "–",
        f"{percent(done)} of what it does without rounding, {percent(last)} in the last tenth",
        "–",
        "holds" if worst >= DONE else "holds in part" if worst >= SOME else "does not hold",
        f"the same step rounded with ω = 0 tells what decay did. At the last look {percent(still, digits=0)} of the "
        "decay falls on entries that do not move, and others move by a whole digit because of it: which, is up to "
        "the update, as long as that is of the size of a digit",
    )


def rise_and_balance(name: str, runs: list[Run], adamw: list[Run]) -> Claim:
    """Whether an optimizer's weights rise by alignment and come to rest against decay, as AdamW's do."""
    rise = {force: mean(runs, lambda run, force=force: abs(run["shares"]["rise"][force])) for force in SHARED}
    published = mean(runs, lambda run: run["shares"]["rise_as_published"]["alignment"])
    dominates = all(leading(run) == "alignment" for run in runs)
    follows = all(in_order(list(run["phases"])) for run in runs)
    verdict = (
        "holds" if dominates and follows else "holds in part" if dominates or follows else "does not hold"
    )
    return Claim(
        f"beyond the papers: alignment dominates the rise, then balance and relaxation: {name}, {seeds(runs)}",
        "–",
        ", ".join(f"{force} {percent(share)}" for force, share in rise.items()),
        f"alignment {percent(published)}",
        verdict,
        compared(name, runs, adamw) if adamw else "",
    )


SHARED = ("alignment", "injection", "decay")


def leading(run: Run) -> str:
    """The force that does most up to the peak."""
    shares = run["shares"]["rise"]
    return max(SHARED, key=lambda force: abs(shares[force]))


def in_order(phases: list[str]) -> bool:
    """Whether the first phase after the plateau is a rise, and balance or relaxation comes after it."""
    told = [phase for phase in phases if phase != "plateau"]
    return bool(told) and told[0] == "rise" and any(phase in FALLEN for phase in told[1:])


def compared(name: str, runs: list[Run], adamw: list[Run]) -> str:
    """How long and how well aimed its steps are beside AdamW's in the rise, and how much λ grew."""

    def of(which: list[Run], key: str) -> float:
        return mean(which, lambda run: run[key]["rise"])

    length = mean(runs, lambda run: run["lr"] * run["update_rms"]["rise"])
    usual = mean(adamw, lambda run: run["lr"] * run["update_rms"]["rise"])
    return (
        f"in the rise η·û is {length:.2g} ({usual:.2g} under AdamW) and cosθ {of(runs, 'cosine'):.2f} "
        f"({of(adamw, 'cosine'):.2f}); {name}'s û is {of(runs, 'update_rms'):.3f} in the rise and "
        f"{mean(runs, lambda run: run['update_rms']['end']):.3f} at the end, AdamW's {of(adamw, 'update_rms'):.3f} "
        f"and {mean(adamw, lambda run: run['update_rms']['end']):.3f}. λ peaks at "
        f"{mean(runs, lambda run: run['scale']['peak']):.3g} "
        f"({mean(adamw, lambda run: run['scale']['peak']):.3g})"
    )


def seeds(runs: list[Run]) -> str:
    """How many there are."""
    return f"{len(runs)} seeds" if len(runs) > 1 else "one seed"


def label(name: str, runs: list[Run]) -> str:
    """A variant by its age."""
    return f"age {runs[0]['age']:.2g}"


def section(found: dict[str, Any]) -> str:
    """What came out, in a table."""
    rows = [
        "| | η | ω | λ start → peak → end | peak at, % | k at the end | alignment | injection | decay | rounding "
        "| û rise → end | cosθ rise → end | loss |",
        f"|---|{'--:|' * 12}",
        *(row(name, runs) for name, runs in by_variant(found).items()),
    ]
    return "\n".join([*rows, "", WORK, *acts(found)])


WORK = (
    "Works of the forces over the whole run, in parts of ‖w₀‖²: with the coupling they add up to (σ_end/σ₀)² − 1. "
    "The rounding of a displacement is in its update (Lion, Muon). û = √(injection/n)/η: 1 for Lion, whose update "
    "is a sign; for Muon 0.2 times that of an orthogonal matrix, up to its five Newton–Schulz steps. η is the "
    "peak's, the losses are nats a byte over the last 5 % of the run."
)


def row(name: str, runs: list[Run]) -> str:
    """Of the table: the mean of the seeds of a variant."""
    work = {
        force: mean(runs, lambda run, force=force: run["work"]["whole"][force])
        for force in (*SHARED, "rounding")
    }
    scales = [mean(runs, lambda run, at=at: run["scale"][at]) for at in ("start", "peak", "final")]
    displaced = runs[0]["rounding"] is None
    both = {
        key: " → ".join(f"{mean(runs, lambda run, at=at: run[key][at]):.3f}" for at in ("rise", "end"))
        for key in ("update_rms", "cosine")
    }
    cells = [
        name,
        f"{runs[0]['lr']:.3g}",
        f"{runs[0]['weight_decay']:.3g}",
        " → ".join(f"{scale:.3g}" for scale in scales),
        f"{100 * mean(runs, lambda run: run['peak_at']):.0f}",
        f"{mean(runs, lambda run: run['k']['final']):.3f}",
        *(f"{work[force]:+.3g}" for force in SHARED),
        "–" if displaced else f"{work['rounding']:+.1g}",
        both["update_rms"],
        both["cosine"],
        f"{mean(runs, lambda run: run['loss']):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def acts(found: dict[str, Any]) -> list[str]:
    """What decay makes of the final norm with bfloat16 weights beside float32 ones, where both were run."""
    known = [twin["decay_acts"] for twin in found["twins"] if twin["decay_acts"] is not None]
    if not known:
        return []
    return [
        f"Decay makes a difference to the final ‖w‖² that with bfloat16 weights is {spread(known, '.2f')} times that "
        "with float32 ones, all forces following."
    ]
