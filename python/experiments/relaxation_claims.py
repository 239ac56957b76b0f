"""What [W2] says of the relaxation beside what came out, from the numbers alone."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .claims import Claim, percent, spread
from .growth import after_peak
from .long_path import told
from .presets import PYTHIA_70M

PUBLISHED = {
    0.11: (0.0763451, 0.0762857, 16_000, 3_509),
    0.55: (0.0638102, 0.0616750, 11_000, 3_007),
    1.1: (0.0544675, 0.0491075, 9_000, 2_717),
    2.2: (0.0435318, 0.0338602, 7_000, 2_489),
}
"""By age, from the checkpoints published with [W2]: peak of λ, λ at the end, and the steps of the peak and of
half of the way to it."""

YOUNGEST = 0.11
TURNED = 0.995
"""A run has relaxed if it ends under this part of its peak."""

ALIKE = 0.05
"""How far final over peak may be from the published."""

BALANCED = 0.1
"""Balance is a net force under this part of the budget."""

NEAR = 0.05
"""The part of the run that forces are averaged over, within which two events are one."""


def turned(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have relaxed, with decay ahead at the end."""
    return [
        run
        for run in found["runs"]
        if run["final_over_peak"] < TURNED and None not in run["crossing"].values()
    ]


def by_age(found: dict[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """The runs of each age, in ascending order."""
    ages = sorted({run["age"] for run in found["runs"]})
    return {age: [run for run in found["runs"] if run["age"] == age] for age in ages}


def mean(runs: list[dict[str, Any]], name: str) -> float:
    """Of one number over the seeds."""
    return float(np.mean([run[name] for run in runs]))


def lags(runs: list[dict[str, Any]], crossing: str) -> list[float]:
    """From a crossing to the peak of λ, in parts of the run; positive where the peak is later."""
    return [(run["peak_step"] - run["crossing"][crossing]) / run["steps"] for run in runs]


def published_after(age: float) -> dict[str, Any]:
    """What was left of the age at the published peak, and how much of the decay since was made good."""
    peak, final, step, _ = PUBLISHED[age]
    settings = replace(PYTHIA_70M, weight_decay=PYTHIA_70M.weight_decay * age / YOUNGEST)
    return after_peak(settings, step, final / peak)


def claims(found: dict[str, Any]) -> list[Claim]:
    """The turn, and what age does to it."""
    ages = by_age(found)
    rows = of_turn(turned(found))
    if len(ages) > 1:
        rows += [of_fall(ages), of_place(found, ages)]
    return [*rows, of_base(ages)] if YOUNGEST in ages else rows


def of_turn(runs: list[dict[str, Any]]) -> list[Claim]:
    """Whether it is the balance of alignment and decay that turns λ."""
    if not runs:
        return []
    net = max(abs(run["at_scale_peak"]["net_over_budget"]) for run in runs)
    aligned, injected, published = (
        [run["at_peak"][name] for run in runs]
        for name in ("alignment", "injection", "alignment_as_published")
    )
    ahead = [a - b for a, b in zip(lags(runs, "exact"), lags(runs, "net"), strict=True)]
    near = max(map(abs, lags(runs, "net"))) <= NEAR
    rising = [run["bridge"]["at_scale_peak"] / run["bridge"]["at_peak"] - 1 for run in runs]
    return [
        Claim(
            f"[W2] alignment and decay approach balance where λ turns ({len(runs)} runs)",
            "balance",
            f"at the peak of σ alignment is {percent(*ends(aligned))} of decay",
            f"{percent(*ends(published))} of decay",
            "holds" if net <= BALANCED else "does not hold",
            f"at the peak of λ the net is at most {percent(net)} of the budget; exactly, alignment balances "
            f"decay together with the injection, {percent(*ends(injected))} of it, and alone falls behind "
            f"{percent(*ends(ahead))} of the run earlier",
        ),
        Claim(
            "[W2] that balance explains the turn from growth to relaxation",
            "–",
            f"λ peaks {points(lags(runs, 'net'))} of the run after decay passes all growth",
            f"{points(lags(runs, 'as_published'))} after it passes alignment",
            "holds" if near else "holds in part",
            "σ turns where the net changes sign, and λ later, as λ/σ still rises by "
            f"{percent(*ends(rising))} in between",
        ),
    ]


def of_fall(ages: dict[float, list[dict[str, Any]]]) -> Claim:
    """Whether λ falls the more, the older a run is."""
    ratios = [mean(runs, "final_over_peak") for runs in ages.values()]
    falls = all(b <= a + 0.002 for a, b in pairwise(ratios)) and ratios[-1] < TURNED
    shared = [age for age in ages if age in PUBLISHED and age != YOUNGEST]
    differ = [mean(ages[age], "final_over_peak") - ratio(age) for age in shared]
    alike = all(abs(each) <= ALIKE for each in differ)
    return Claim(
        "[W2] λ relaxes: final over peak by age Ση·ω",
        ", ".join(f"{ratio(age):.3f} at {age}" for age in PUBLISHED),
        ", ".join(f"{each:.3f} at {age:g}" for age, each in zip(ages, ratios, strict=True)),
        "–",
        ("holds" if alike else "holds in part: the older, the deeper, but less deep than published")
        if falls
        else "does not hold",
        "" if alike else "; ".join(fall_beside(age, ages[age]) for age in shared),
    )


def fall_beside(age: float, runs: list[dict[str, Any]]) -> str:
    """Why a fall is not the published one: how much age the peak leaves, and how much of it growth undoes."""
    theirs = published_after(age)
    after = [run["after_peak"] for run in runs]
    good = [each["made_good"] for each in after if each["made_good"] is not None]
    undone = f", of which growth makes good {percent(sum(good) / len(good), digits=0)}" if good else ""
    return (
        f"at {age:g} the peak leaves an age of {mean(after, 'age'):.2f}{undone} "
        f"([W2]: {theirs['age']:.2f} and {percent(theirs['made_good'], digits=0)})"
    )


def of_place(found: dict[str, Any], ages: dict[float, list[dict[str, Any]]]) -> Claim:
    """Whether the peak is the earlier, the older a run is at its end."""
    places = [mean(runs, "peak_step") / runs[0]["steps"] for runs in ages.values()]
    earlier = all(b <= a + 0.01 for a, b in pairwise(places)) and places[-1] < places[0]
    halves = [mean(runs, "half_step") / runs[0]["steps"] for runs in ages.values()]
    theirs = [half / PYTHIA_70M.steps for *_, half in PUBLISHED.values()]
    reason = (
        f"half of the growth is done at {percent(*ends(halves), digits=0)} of the run, in [W2] at "
        f"{percent(*ends(theirs), digits=0)}"
    )
    for run in found["longer"]:
        times = run["steps"] / next(iter(ages.values()))[0]["steps"]
        reason += (
            f"; with {times:.0f} times the steps to the same Ση, at age {run['age']:g}, half is done at "
            f"{percent(run['half_step'] / run['steps'], digits=0)}, the peak is at "
            f"{percent(run['peak_step'] / run['steps'], digits=0)}, and λ falls to "
            f"{run['final_over_peak']:.3f} of it"
        )
    return Claim(
        "[W2] the older the run at its end, the earlier the peak, in % of the run",
        ", ".join(
            f"{100 * step / PYTHIA_70M.steps:.0f} at {age}" for age, (*_, step, _) in PUBLISHED.items()
        ),
        ", ".join(f"{100 * place:.0f} at {age:g}" for age, place in zip(ages, places, strict=True)),
        "–",
        "holds" if earlier else "does not hold",
        reason,
    )


def of_base(ages: dict[float, list[dict[str, Any]]]) -> Claim:
    """Whether a run of the published age does not relax yet."""
    kept = min(run["final_over_peak"] for run in ages[YOUNGEST])
    return Claim(
        f"[W2] at the age of its base, {YOUNGEST}, λ does not relax yet",
        f"{ratio(YOUNGEST):.3f} of the peak at the end",
        f"{kept:.3f}",
        "–",
        "holds" if kept >= TURNED else "does not hold",
    )


def ratio(age: float) -> float:
    """The published final over peak."""
    peak, final, *_ = PUBLISHED[age]
    return final / peak


def ends(values: list[float]) -> tuple[float, float]:
    """Least and greatest."""
    return min(values), max(values)


def points(values: list[float]) -> str:
    """Parts of a run as signed per cent, from … to."""
    if not values:
        return "–"
    low, high = (f"{100 * value:+.1f}" for value in ends(values))
    return f"{low} %" if low == high else f"{low} … {high} %"


def section(found: dict[str, Any]) -> str:
    """What came out, in words and a table."""
    rows = [
        "| age Ση·ω | peak of λ | at, % of the run | final / peak | age left at the peak "
        "| made good by growth | [W2]: at, % | final / peak | age left | made good "
        "| peak after decay passes alignment | all growth |",
        f"|{'--:|' * 12}",
    ]
    for runs in [*by_age(found).values(), *([run] for run in found["longer"])]:
        rows.append(row(runs))
    first = found["runs"][0]
    return "\n".join([told(first["lr"], first["steps"]), "", *rows, "", MADE_GOOD])


def row(runs: list[dict[str, Any]]) -> str:
    """Of the table: the runs of one age and number of steps."""
    age, steps = runs[0]["age"], runs[0]["steps"]
    after = [run["after_peak"] for run in runs]
    good = [each["made_good"] for each in after if each["made_good"] is not None]
    fell = turned({"runs": runs})
    theirs = ["–"] * 4
    if age in PUBLISHED:
        after_theirs = published_after(age)
        theirs = [
            f"{100 * PUBLISHED[age][2] / PYTHIA_70M.steps:.0f}",
            f"{ratio(age):.3f}",
            f"{after_theirs['age']:.2f}",
            percent(after_theirs["made_good"], digits=0),
        ]
    cells = [
        f"{age:g} ({steps:,} steps)",
        spread([run["scale"]["peak"] for run in runs]),
        spread([100 * run["peak_step"] / steps for run in runs]),
        spread([run["final_over_peak"] for run in runs]),
        f"{mean(after, 'age'):.2f}",
        percent(sum(good) / len(good), digits=0) if good and fell else "–",
        *theirs,
        points(lags(fell, "exact")),
        points(lags(fell, "net")),
    ]
    return f"| {' | '.join(cells)} |"


MADE_GOOD = (
    "The age left at the peak is what decay alone would take from ln λ; what growth makes good of it is "
    "1 − ln(peak/final)/age left. Decay passes a force where it gets ahead for good, in the mean of 5 % "
    "of the run."
)
