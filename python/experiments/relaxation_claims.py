"""What [W2] says of the relaxation beside what came out, from the numbers alone."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .claims import Claim, ends, near, percent
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

BALANCED = 0.1
"""Balance is a net force under this part of the budget."""

NEAR = 0.05
"""The part of the run that forces are averaged over, within which two events are one."""


def turned(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have relaxed, or ought to: in which decay is ahead of all growth at the end."""
    return [
        run for run in found["runs"] if run["final_over_peak"] < TURNED or run["crossing"]["net"] is not None
    ]


def by_age(found: dict[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """The runs of each age, in ascending order."""
    ages = sorted({run["age"] for run in found["runs"]})
    return {age: [run for run in found["runs"] if run["age"] == age] for age in ages}


def mean(runs: list[dict[str, Any]], name: str) -> float:
    """Of one number over the seeds."""
    return float(np.mean([run[name] for run in runs]))


def lags(runs: list[dict[str, Any]], crossing: str) -> list[float]:
    """From a crossing to the peak of λ, in parts of the run; positive where the peak is later.

    Without the runs in which there is no such crossing.
    """
    return [
        (run["peak_step"] - run["crossing"][crossing]) / run["steps"]
        for run in runs
        if run["crossing"][crossing] is not None
    ]


def published_after(age: float) -> dict[str, Any]:
    """What was left of the age at the published peak, and how much of the decay since growth offset."""
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
    return [of_balance(runs), of_cause(runs)] if runs else []


def of_balance(runs: list[dict[str, Any]]) -> Claim:
    """Whether the forces balance at the turn."""
    net = max(abs(run["at_scale_peak"]["net_over_budget"]) for run in runs)
    aligned, injected, published = (
        [run["at_peak"][name] for run in runs]
        for name in ("alignment", "injection", "alignment_as_published")
    )
    alike = all(near([part], 1.0) for part in published)
    return Claim(
        f"[W2] alignment and decay approach balance where λ turns ({len(runs)} runs)",
        "balance",
        f"at the peak of σ alignment is {percent(*ends(aligned))} of decay",
        f"{percent(*ends(published))} of decay",
        "holds" if net <= BALANCED and alike else "does not hold",
        f"at the peak of λ the net is at most {percent(net)} of the budget; exactly, alignment balances "
        f"decay together with the injection, {percent(*ends(injected))} of it",
    )


def of_cause(runs: list[dict[str, Any]]) -> Claim:
    """Whether λ turns when decay passes the alignment, as published: within 5 % of the run, in every run."""
    within = sum(abs(lag) <= NEAR for lag in lags(runs, "as_published"))
    verdict = (
        "holds"
        if within == len(runs)
        else f"holds in part: within {percent(NEAR, digits=0)} of the run in {within} of {len(runs)} runs"
        if within > len(runs) / 2
        else "does not hold"
    )
    return Claim(
        "[W2] that balance explains the turn from growth to relaxation",
        "the turn is where alignment and decay balance",
        f"λ peaks {points(lags(runs, 'exact'))} of the run after decay passes alignment, "
        f"{points(lags(runs, 'net'))} after it passes all growth",
        f"{points(lags(runs, 'as_published'))} after it passes alignment",
        verdict,
        turn_of_sigma(runs),
    )


def turn_of_sigma(runs: list[dict[str, Any]]) -> str:
    """Why λ turns later than the forces: σ does not, but λ/σ still rises."""
    crossed = [run for run in runs if run["crossing"]["net"] is not None]
    if not crossed:
        return ""
    after = [(run["rms"]["peak_step"] - run["crossing"]["net"]) / run["steps"] for run in crossed]
    flat = [1 - run["rms"]["at_net"] / run["rms"]["peak"] for run in crossed]
    rising = [run["bridge"]["at_scale_peak"] / run["bridge"]["at_peak"] - 1 for run in runs]
    said = (
        f"σ peaks {points(after)} of the run after the net changes sign for good, and is within "
        f"{percent(max(flat), digits=2)} of its peak there; λ turns later, as λ/σ still rises by "
        f"{percent(*ends(rising))} in between"
    )
    rest = [run for run in crossed if run["final_over_peak"] >= TURNED]
    for run in rest:
        said += (
            f"; at age {run['age']:g}, seed {run['seed']}, σ turns at step {run['rms']['peak_step']:,} and λ "
            f"is highest at {run['peak_step']:,} of {run['steps']:,}, so that its lag may be longer"
        )
    return said


def of_fall(ages: dict[float, list[dict[str, Any]]]) -> Claim:
    """Whether λ falls the more, the older a run is."""
    ratios = [mean(runs, "final_over_peak") for runs in ages.values()]
    falls = all(b <= a + 0.002 for a, b in pairwise(ratios)) and ratios[-1] < TURNED
    shared = [age for age in ages if age in PUBLISHED and age != YOUNGEST]
    # A quarter of the fall, 1 − ratio: within a quarter of ratios near 1 all would lie.
    parts = [(1 - mean(ages[age], "final_over_peak")) / (1 - ratio(age)) for age in shared]
    alike = all(near([part], 1.0) for part in parts)
    depth = "less deep" if max(parts, default=0.0) <= 1 else "to another depth"
    beside = ", ".join(
        f"{percent(part, digits=0)} at {age:g}" for age, part in zip(shared, parts, strict=True)
    )
    return Claim(
        "[W2] λ relaxes: final over peak by age Ση·ω",
        ", ".join(f"{ratio(age):.3f} at {age}" for age in PUBLISHED),
        ", ".join(f"{each:.3f} at {age:g}" for age, each in zip(ages, ratios, strict=True)),
        "–",
        ("holds" if alike else f"holds in part: the older, the deeper, but {depth} than published")
        if falls
        else "does not hold",
        ""
        if alike
        else f"the fall, 1 − final/peak, is {beside} of the published, where a quarter less or more would "
        "hold: " + "; ".join(fall_beside(age, ages[age]) for age in shared),
    )


def fall_beside(age: float, runs: list[dict[str, Any]]) -> str:
    """Why a fall is not the published one: the age left at the peak, and how much of it growth offsets."""
    theirs = published_after(age)
    beside = f"([W2]: {theirs['age']:.2f} and {percent(theirs['offset'], digits=0)})"
    after = [run["after_peak"] for run in runs]
    good = [each["offset"] for each in after if each["offset"] is not None]
    if not good:
        return f"at {age:g} λ is highest at the end, and no age is left for a fall {beside}"
    return (
        f"at {age:g} an age of {mean(after, 'age'):.2f} is left after the peak, and growth offsets "
        f"{percent(sum(good) / len(good), digits=0)} of that decay {beside}"
    )


def of_place(found: dict[str, Any], ages: dict[float, list[dict[str, Any]]]) -> Claim:
    """Whether the peak is the earlier, the older a run is at its end.

    Where λ is highest at the end no peak has been reached: between two such ages nothing is earlier.
    """
    places = {age: mean(runs, "peak_step") / runs[0]["steps"] for age, runs in ages.items()}
    open_end = [age for age, place in places.items() if place == 1]
    theirs = {age: step / PYTHIA_70M.steps for age, (*_, step, _) in PUBLISHED.items()}
    steps = list(pairwise(places.values()))
    earlier = all(b < a or a == b == 1 for a, b in steps) and any(b < a for a, b in steps)
    alike = all(near([places[age]], theirs[age]) for age in ages if age in theirs)
    verdict = "does not hold"
    if earlier:
        verdict = (
            "holds"
            if alike and len(open_end) < 2
            else "holds in part: earlier, but at other places than published"
        )
        if len(open_end) > 1:
            verdict += f", and at the end at {len(open_end)} ages"
    return Claim(
        "[W2] the older the run at its end, the earlier the peak, in % of the run",
        ", ".join(f"{100 * place:.0f} at {age}" for age, place in theirs.items()),
        ", ".join(f"{100 * place:.0f} at {age:g}" for age, place in places.items()),
        "–",
        verdict,
        when_grown(found, ages),
    )


def when_grown(found: dict[str, Any], ages: dict[float, list[dict[str, Any]]]) -> str:
    """Why the peaks are later than the published: growth is, and less so in a longer run."""
    halves = [mean(runs, "half_step") / runs[0]["steps"] for runs in ages.values()]
    theirs = [half / PYTHIA_70M.steps for *_, half in PUBLISHED.values()]
    reason = (
        f"half of the growth is done at {percent(*ends(halves), digits=0)} of the run, in [W2] at "
        f"{percent(*ends(theirs), digits=0)}"
    )
    first = next(iter(ages.values()))[0]
    for run in found["longer"]:
        reason += (
            f"; with {run['steps'] / first['steps']:.0f} times the steps to the same Ση, so at "
            f"η = {run['lr']:g} for {first['lr']:g}, in one seed, at age {run['age']:g}, half is done at "
            f"{percent(run['half_step'] / run['steps'], digits=0)}, the peak is at "
            f"{percent(run['peak_step'] / run['steps'], digits=0)}, and λ falls to "
            f"{run['final_over_peak']:.3f} of it"
        )
    return reason


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
        "| of that decay growth offsets | [W2]: at, % | final / peak | age left | growth offsets "
        "| peak after decay passes alignment | all growth |",
        f"|{'--:|' * 12}",
    ]
    for runs in [*by_age(found).values(), *([run] for run in found["longer"])]:
        rows.append(row(runs))
    first = found["runs"][0]
    return "\n".join([told(first["lr"], first["steps"]), "", *rows, "", KEY])


def row(runs: list[dict[str, Any]]) -> str:
    """Of the table: the runs of one age and number of steps."""
    age, steps = runs[0]["age"], runs[0]["steps"]
    after = [run["after_peak"] for run in runs]
    good = [each["offset"] for each in after if each["offset"] is not None]
    fell = turned({"runs": runs})
    some = f" ({len(fell)} of {len(runs)})" if 0 < len(fell) < len(runs) else ""
    theirs = ["–"] * 4
    if age in PUBLISHED:
        after_theirs = published_after(age)
        theirs = [
            f"{100 * PUBLISHED[age][2] / PYTHIA_70M.steps:.0f}",
            f"{ratio(age):.3f}",
            f"{after_theirs['age']:.2f}",
            percent(after_theirs["offset"], digits=0),
        ]
    cells = [
        f"{age:g} ({steps:,} steps, {seeds_of(runs)})",
        fixed([run["scale"]["peak"] for run in runs], 4),
        fixed([100 * run["peak_step"] / steps for run in runs], 1),
        fixed([run["final_over_peak"] for run in runs], 3),
        f"{mean(after, 'age'):.2f}",
        percent(sum(good) / len(good), digits=0) if good and fell else "–",
        *theirs,
        points(lags(fell, "exact")) + some,
        points(lags(fell, "net")) + some,
    ]
    return f"| {' | '.join(cells)} |"


def seeds_of(runs: list[dict[str, Any]]) -> str:
    """How many seeds, and at which η."""
    return f"η = {runs[0]['lr']:g}, {len(runs)} seed{'s' * (len(runs) > 1)}"


def fixed(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over seeds, both with as many digits."""
    mid = f"{np.mean(values):.{digits}f}"
    return mid if len(values) == 1 else f"{mid} ± {np.std(values, ddof=1):.{digits}f}"


KEY = (
    "The age left at the peak is what decay alone would take from ln λ; the part of it that growth offsets "
    "is 1 − ln(peak/final)/age left. Decay passes a force where it gets ahead for good, in the mean of 5 % "
    "of the run; the last two columns are from there to the peak of λ."
)
