"""What [W2] says of the relaxation beside what came out, from the numbers alone."""

from dataclasses import replace
from typing import Any

from .claims import Claim, percent, spread
from .growth import after_peak
from .presets import PYTHIA_70M

PUBLISHED = {
    0.11: (0.0763451, 0.0762857, 16_000),
    0.55: (0.0638102, 0.0616750, 11_000),
    1.1: (0.0544675, 0.0491075, 9_000),
    2.2: (0.0435318, 0.0338602, 7_000),
}
"""Peak of λ, λ at the end, and step of the peak by age: the checkpoints published with [W2], ω 0.01 to 0.2."""

TURNED = 0.99
"""A run has relaxed if it ends under this part of its peak."""

BALANCED = 0.1
"""Balance is a net force under this part of the budget."""

NEAR = 0.05
"""The part of the run that forces are averaged over, within which two events are one."""


def turned(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have relaxed."""
    return [run for run in found["runs"] if run["final_over_peak"] < TURNED]


def by_age(found: dict[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """The runs of each age, in ascending order."""
    ages = sorted({run["age"] for run in found["runs"]})
    return {age: [run for run in found["runs"] if run["age"] == age] for age in ages}


def mean(runs: list[dict[str, Any]], name: str) -> float:
    """Of one number over the seeds."""
    return sum(run[name] for run in runs) / len(runs)


def lags(runs: list[dict[str, Any]], crossing: str) -> list[float]:
    """From a crossing to the peak of λ, in parts of the run; positive where the peak is later."""
    known = [run for run in runs if run["crossing"][crossing] is not None]
    return [(run["peak_step"] - run["crossing"][crossing]) / run["steps"] for run in known]


def published_after(age: float) -> dict[str, float]:
    """What was left of the age at the published peak, and how much of the decay since was made good."""
    peak, final, step = PUBLISHED[age]
    settings = replace(PYTHIA_70M, weight_decay=PYTHIA_70M.weight_decay * age / 0.11)
    return after_peak(settings, step, final / peak)


def claims(found: dict[str, Any]) -> list[Claim]:
    """The turn, and what age does to it."""
    return [*of_turn(found), *of_fall(found)]


def of_turn(found: dict[str, Any]) -> list[Claim]:
    """Is it the balance of alignment and decay that turns λ?"""
    runs = turned(found)
    if not runs:
        return []
    net = max(abs(run["at_scale_peak"]["net_over_budget"]) for run in runs)
    aligned = [run["at_peak"]["alignment"] for run in runs]
    injected = [run["at_peak"]["injection"] for run in runs]
    published = [run["at_peak"]["alignment_as_published"] for run in runs]
    rows = [
        Claim(
            f"[W2] alignment and decay approach balance where λ turns, {len(runs)} runs",
            "balance",
            f"alignment {percent(*ends(aligned))} of decay at the peak of σ, injection {percent(*ends(injected))}",
            f"alignment {percent(*ends(published))} of decay",
            ("holds" if net <= BALANCED else "does not hold")
            + f": the net is at most {percent(net)} of the budget at the peak of λ; "
            "exactly, alignment and injection together balance decay",
        )
    ]
    exact, net_lags = lags(runs, "exact"), lags(runs, "net")
    if len(net_lags) == len(runs):
        near = max(map(abs, net_lags)) <= NEAR
        rows.append(
            Claim(
                "[W2] that balance explains the turn from growth to relaxation",
                "–",
                f"λ peaks {points(exact)} of the run after alignment = decay, "
                f"{points(net_lags)} after growth = decay",
                f"{points(lags(runs, 'as_published'))} after alignment = decay",
                ("holds" if near else "holds in part")
                + f": the peak is {'within' if near else 'not always within'} 5 % of the run of the crossing",
            )
        )
    return rows


def of_fall(found: dict[str, Any]) -> list[Claim]:
    """Does λ fall the more, the older a run is, and not at all at the age of the published base?"""
    rows = []
    ages = by_age(found)
    ratios = [mean(runs, "final_over_peak") for runs in ages.values()]
    said = ", ".join(f"{final / peak:.3f} at {age}" for age, (peak, final, _) in PUBLISHED.items())
    falls = all(later <= earlier + 0.002 for earlier, later in zip(ratios, ratios[1:], strict=False))
    shared = [age for age in ages if age in PUBLISHED and mean(ages[age], "final_over_peak") < TURNED]
    differ = [mean(ages[age], "final_over_peak") - ratio(age) for age in shared]
    rows.append(
        Claim(
            "[W2] λ relaxes; final over peak by age Ση·ω",
            said,
            ", ".join(f"{each:.3f} at {age:g}" for age, each in zip(ages, ratios, strict=True)),
            "–",
            ("holds" if falls and ratios[-1] < TURNED else "does not hold")
            + (f": the older, the more; {min(differ):+.3f} … {max(differ):+.3f} beside [W2]" if differ else ""),
        )
    )
    base = [run for run in found["runs"] if run["age"] == min(ages)]
    kept = min(run["final_over_peak"] for run in base)
    rows.append(
        Claim(
            f"[W2] at the age of the base, {min(ages):g}, λ does not relax yet",
            f"{ratio(0.11):.3f} of the peak at the end",
            f"{kept:.3f}",
            "–",
            "holds" if kept >= TURNED else "does not hold",
        )
    )
    places = [mean(runs, "peak_step") / runs[0]["steps"] for runs in ages.values()]
    earlier = all(b <= a + 0.01 for a, b in zip(places, places[1:], strict=False))
    rows.append(
        Claim(
            "[W2] the older the run at its end, the earlier the peak, in per cent of the run",
            ", ".join(f"{100 * step / PYTHIA_70M.steps:.0f} at {age}" for age, (_, _, step) in PUBLISHED.items()),
            ", ".join(f"{100 * place:.0f} at {age:g}" for age, place in zip(ages, places, strict=True)),
            "–",
            "holds" if earlier and places[-1] < places[0] else "does not hold",
        )
    )
    return rows


def ratio(age: float) -> float:
    """The published final over peak."""
    peak, final, _ = PUBLISHED[age]
    return final / peak


def ends(values: list[float]) -> tuple[float, float]:
    """Least and greatest."""
    return min(values), max(values)


def points(values: list[float]) -> str:
    """Parts of a run as signed per cent, from … to."""
    if not values:
        return "never"
    low, high = (f"{100 * value:+.1f}" for value in ends(values))
    return f"{low} %" if low == high else f"{low} … {high} %"


def section(found: dict[str, Any]) -> str:
    """What came out, in words and a table."""
    rows = [
        "| age Ση·ω | seeds | peak λ | at, % of the run | final / peak | age left at the peak "
        "| decay alone would leave | made good by growth | [W2]: final / peak | age left | made good "
        "| λ peak after alignment = decay | after growth = decay |",
        f"|{'--:|' * 13}",
    ]
    for age, runs in by_age(found).items():
        after = [run["after_peak"] for run in runs]
        good = [each["made_good"] for each in after if each["made_good"] is not None]
        theirs = published_after(age) if age in PUBLISHED else None
        told = (
            f"{ratio(age):.3f} | {theirs['age']:.2f} | {percent(theirs['made_good'], digits=0)}"
            if theirs
            else "– | – | –"
        )
        fell = mean(runs, "final_over_peak") < TURNED
        rows.append(
            f"| {age:g} | {len(runs)} | {spread([run['scale']['peak'] for run in runs])} "
            f"| {spread([100 * run['peak_step'] / run['steps'] for run in runs])} "
            f"| {spread([run['final_over_peak'] for run in runs])} "
            f"| {mean(after, 'age'):.2f} | {mean(after, 'decay_alone'):.3f} "
            f"| {percent(sum(good) / len(good), digits=0) if good and fell else '–'} | {told} "
            f"| {points(lags(runs, 'exact')) if fell else '–'} | {points(lags(runs, 'net')) if fell else '–'} |"
        )
    return "\n".join(rows)
