"""What [W2] says of the learning rate beside what came out, from the numbers alone."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .claims import QUARTER, Claim, ends, judge, near, percent
from .growth import path
from .long_path import told
from .powers import attribution, ladder, power
from .presets import PYTHIA_70M

PUBLISHED_POWER = 0.78
BANDS = {3e-4: (0.85, 0.94), 1e-3: (0.88, 0.94), 3e-3: (0.82, 0.94)}
"""The published alignment shares in the rise by η."""

MIDDLE = 1e-3
"""The published η that our middle one stands for."""

OTHER = 0.1
"""Above this a difference between powers is told of."""

REST_TIMES = 40
EQUILIBRIUM = 0.5
"""Of √(η/ω), which [W2] contrasts it with."""

START = {"scale": 0.0177623, "rms": 0.02}
PEAKS = {3e-4: 0.0313, 1e-3: 0.0763, 3e-3: 0.1874}
"""λ at its peak by η, at ω = 0.01."""

EVERY = 2_000
SIGMA = {
    3e-4: (0.0200, 0.0235, 0.0278, 0.0310, 0.0331, 0.0343, 0.0351, 0.0354, 0.0356, 0.0357, 0.0358),
    1e-3: (0.0200, 0.0397, 0.0588, 0.0714, 0.0791, 0.0836, 0.0859, 0.0868, 0.0871, 0.0872, 0.0872),
    3e-3: (0.0200, 0.0803, 0.1310, 0.1689, 0.1940, 0.2076, 0.2137, 0.2154, 0.2153, 0.2146, 0.2138),
}
"""σ every 2,000 steps by η, from the checkpoints published with [W2]."""

ENTRIES = 14_155_776
FORCES = {
    3e-4: (2.86895e-4, 1.6770373, 0.0703552, 0.0257307),
    1e-3: (9.56317e-4, 14.7682960, 0.7537972, 0.0499680),
    3e-3: (2.86895e-3, 89.5319876, 4.3671999, 0.1073533),
}
"""η, alignment as published, injection and σ at step 3,000 by the peak of η, from the logs of [W2]."""

NAMED = {
    "path": "Ση",
    "cosine": "cosθ",
    "update": "û",
    "drive": "cosθ·û",
    "injection": "injection",
    "decay": "decay",
    "start": "start λ₀",
    "bridge": "λ/σ",
}


def published_powers() -> dict[str, Any]:
    """The powers of the three published runs: of all that is known of them."""
    steps = []
    for lr, sigma in SIGMA.items():
        along = path(replace(PYTHIA_70M, lr=lr))[::EVERY]
        top = int(np.argmax(sigma))
        taken = PYTHIA_70M.weight_decay * float(np.trapezoid(sigma[: top + 1], along[: top + 1]))
        rms = {"start": START["rms"], "peak": sigma[top]}
        made = {"alignment": rms["peak"] - rms["start"] + taken, "injection": 0.0}
        scale = {"start": START["scale"], "peak": PEAKS[lr]}
        steps.append(ladder(scale, rms, made, float(along[top])))
    rates = list(SIGMA)
    found: dict[str, Any] = {name: power(rates, [each[name] for each in steps]) for name in steps[0]}
    angles = [published_angle(*forces) for forces in FORCES.values()]
    return found | {
        "cosine": power(rates, [cosine for cosine, _ in angles]),
        "update": power(rates, [update for _, update in angles]),
    }


def published_angle(lr: float, alignment: float, injection: float, sigma: float) -> tuple[float, float]:
    """cosθ and û of a published step: the alignment less twice the injection, which its reading holds."""
    length = injection**0.5
    cosine = (alignment - 2 * injection) / (2 * length * sigma * ENTRIES**0.5)
    return cosine, length / lr / ENTRIES**0.5


def claims(found: dict[str, Any]) -> list[Claim]:
    """The power, against the equilibrium's, and the alignment's share at every η."""
    base = found["powers"].get("base")
    if base is None:
        return []
    rows = []
    if base["peak"] is not None:
        rows += [of_power(found, base), of_equilibrium(found, base)]
    return [*rows, of_shares(found)]


def of_power(found: dict[str, Any], base: dict[str, Any]) -> Claim:
    """Whether the peak follows the published power."""
    differ = base["peak"]["power"] - PUBLISHED_POWER
    grows = base["peak"]["power"] - 2 * (base["peak"]["error"] or 0.0) > 0
    verdict = judge(near([base["peak"]["power"]], PUBLISHED_POWER), grows)
    return Claim(
        "[W2] the peak of λ grows with η, at fixed ω, as η^0.78",
        f"0.78 (from η to η {', '.join(f'{each:.2f}' for each in published_powers()['peak']['local'])})",
        f"{with_error(base['peak'])} ({', '.join(f'{each:.2f}' for each in base['peak']['local'])})",
        "–",
        f"{verdict}: {differ:+.2f}",
        why(found, base),
    )


def why(found: dict[str, Any], base: dict[str, Any]) -> str:
    """The parts of the power in which ours differs from the published, and what a shorter path does."""
    differences = sorted(compared(base).items(), key=lambda item: -abs(item[1]))
    if not differences:
        return ""
    made = ", ".join(f"{value:+.2f} by {NAMED[name]}" for name, value in differences)
    said = f"ours less the published is {made}"
    if abs(differences[0][1]) > OTHER:
        said = f"it is a sum of other parts than the published: {said}"
    local = base["peak"]["local"]
    if max(local) - min(local) > OTHER:
        said = (
            f"{base['peak']['power']:.2f} is the mean slope of a bent curve, "
            f"{', '.join(f'{each:.2f}' for each in local)} from η to η, and {said}"
        )
    short = attribution(found["powers"].get("short", {}))
    if short is None:
        return said
    theirs = [peak / START["scale"] for peak in PEAKS.values()]
    return (
        f"{said}; along a Ση of {over(found, 'short', 'whole_path')} the peaks are only "
        f"{over_start(found, 'short')} times the start and not {over_start(found, 'base')} as along "
        f"{over(found, 'base', 'whole_path')} ([W2]: {min(theirs):.1f}–{max(theirs):.1f}), and the power is "
        f"{sum(short.values()):.2f}, as the start takes {-short['start']:.2f}"
    )


def over(found: dict[str, Any], sweep: str, name: str) -> str:
    """Least and greatest of one number of the runs of a sweep."""
    values = [run[name] for run in found["runs"] if run["sweep"] == sweep]
    return f"{min(values):.2g}–{max(values):.2g}"


def over_start(found: dict[str, Any], sweep: str) -> str:
    """How many times λ₀ the lowest and the highest peak of a sweep are."""
    times = [run["scale"]["peak"] / run["scale"]["start"] for run in found["runs"] if run["sweep"] == sweep]
    return f"{min(times):.1f}–{max(times):.1f}"


def compared(base: dict[str, Any]) -> dict[str, float]:
    """Ours less the published, part by part; cosθ, û and injection together, as [W2]'s logs hold them."""
    ours, theirs = attribution(base), attribution(published_powers())
    if ours is None or theirs is None:
        return {}
    ours["drive"] = sum(ours.pop(name) for name in ("cosine", "update", "injection"))
    return {name: ours[name] - theirs[name] for name in theirs}


def of_equilibrium(found: dict[str, Any], base: dict[str, Any]) -> Claim:
    """Whether the peak grows faster than the equilibrium of injection and decay."""
    sure = base["peak"]["power"] - 2 * (base["peak"]["error"] or 0.0) > EQUILIBRIUM
    return Claim(
        "[W2] steeper than the equilibrium √(η/ω)",
        "0.78 > 0.5",
        with_error(base["peak"]),
        "–",
        "holds" if sure else "does not hold",
        at_rest(found),
    )


def at_rest(found: dict[str, Any]) -> str:
    """What the power is where decay has had its time."""
    rest = found["powers"].get("rest")
    if rest is None or rest["peak"] is None:
        return ""
    runs = [run for run in found["runs"] if run["sweep"] == "rest"]
    ages = sorted({float(f"{run['age']:.2g}") for run in runs})
    local = ", ".join(
        f"{power:.2f} from age {young:g} to {old:g}"
        for power, (young, old) in zip(rest["peak"]["local"], pairwise(ages), strict=True)
    )
    peak, end = (
        percent(*ends([run[f"alignment_over_decay_at_{place}"] for run in runs]), digits=0)
        for place in ("peak", "end")
    )
    return (
        f"with {REST_TIMES} times the decay the peak follows η^{with_error(rest['peak'])}, {local}: at the "
        f"peak of σ alignment is {peak} of decay, which is to say that cosθ·û/ω, in which η stands only "
        f"through cosθ and û, is {peak} of σ there; it is no rest, as at the end alignment is {end} of decay"
    )


def of_shares(found: dict[str, Any]) -> Claim:
    """Whether the alignment dominates the rise at every η, by the ends of the published bands."""
    runs = [run for run in found["runs"] if run["sweep"] == "base"]
    rates = sorted({run["lr"] for run in runs})
    bands = {
        reading: {rate: shares(runs, rate, reading) for rate in rates}
        for reading in ("exact", "as_published")
    }
    dominates = min(low for each in bands.values() for low, _ in each.values()) > 0.5
    far = 0.0
    for lr, band in BANDS.items():
        ours = bands["as_published"][beside(lr, rates)]
        far = max(far, *(abs(mine / theirs - 1) for mine, theirs in zip(ours, band, strict=True)))
    said = {
        reading: ", ".join(percent(*band, digits=0) for band in each.values())
        for reading, each in bands.items()
    }
    return Claim(
        f"[W2] alignment dominates the rise at every η (here {', '.join(f'{rate:.2g}' for rate in rates)})",
        ", ".join(f"{percent(*band, digits=0)} at {lr:.0e}" for lr, band in BANDS.items()).replace(
            "e-0", "e-"
        ),
        said["exact"],
        said["as_published"],
        judge(far <= QUARTER, dominates),
        f"the ends of the bands, as published, are at most {percent(far, digits=0)} from the published at "
        f"0.3, 1 and 3 times the middle η",
    )


def beside(lr: float, rates: list[float]) -> float:
    """Our η that is as many times the middle one as a published η is, or nearest to it."""
    wanted = rates[len(rates) // 2] * lr / MIDDLE
    return min(rates, key=lambda rate: abs(np.log(rate / wanted)))


def shares(runs: list[dict[str, Any]], rate: float, reading: str) -> tuple[float, float]:
    """Least and greatest alignment share in the rise of all seeds at one η."""
    bands = [run["rise"][reading] for run in runs if run["lr"] == rate]
    return min(low for low, _ in bands), max(high for _, high in bands)


def with_error(fit: dict[str, Any] | None) -> str:
    """A power and its standard error."""
    if fit is None:
        return "–"
    return f"{fit['power']:.2f}" + (f" ± {fit['error']:.2f}" if fit["error"] is not None else "")


def heading(found: dict[str, Any], sweep: str) -> str:
    """Of a sweep: what tells it from the others."""
    run = next(each for each in found["runs"] if each["sweep"] == sweep)
    decay = f"ω = {run['weight_decay']:.2g}"
    return f"{decay}, short path" if sweep == "short" else decay


def section(found: dict[str, Any]) -> str:
    """What came out, in words and tables."""
    columns = [*found["powers"].values(), published_powers()]
    heads = [heading(found, name) for name in found["powers"]] + ["[W2]"]
    rules = f"|---|{'--:|' * len(columns)}"
    rows = [f"| power of η | {' | '.join(heads)} |", rules]
    for name, called in TOLD.items():
        cells = [with_error(each.get(name)) for each in columns]
        cells[-1] += " (step 3,000)" if name in AT_A_STEP else ""
        rows.append(f"| {called} | {' | '.join(cells)} |")
    parts = [attribution(each) for each in columns]
    added = [f"| adds up from | {' | '.join(heads)} |", rules]
    for name, called in NAMED.items():
        values = ["–" if part is None or name not in part else f"{part[name]:+.2f}" for part in parts]
        added.append(f"| {called} | {' | '.join(values)} |")
    sums = ["–" if part is None else f"{sum(part.values()):.2f}" for part in parts]
    added.append(f"| peak of λ | {' | '.join(sums)} |")
    parts_told = (introduced(found), lowered(found), "\n".join(rows), ADDED_UP, "\n".join(added))
    return "\n\n".join(part for part in parts_told if part)


def introduced(found: dict[str, Any]) -> str:
    """Which runs these are."""
    base = sorted((run["lr"], run["steps"]) for run in found["runs"] if run["sweep"] == "base")
    if not base:
        return ""
    short = " The short path is that of the preset as it is." if "short" in found["powers"] else ""
    lr, steps = base[len(base) // 2]
    ends = f"{base[0][0]:g} to {base[-1][0]:g}"
    return f"{told(lr, steps)} That is the middle η; the others are from {ends}.{short}"


def lowered(found: dict[str, Any]) -> str:
    """What keeps the power under 1, for each guess the figures that judge it."""
    base = found["powers"].get("base", {})
    parts, theirs = attribution(base), attribution(published_powers())
    if parts is None or theirs is None:
        return ""
    published = published_powers()
    start, angle, update = (published[name] for name in ("from_start", "cosine", "update"))
    turned = base["aligned"]["power"] - base["path"]["power"]
    sure = abs(turned) > 2 * (base["aligned"]["error"] or 0.0)
    least = min(parts, key=lambda name: parts[name])
    return "\n".join(
        (
            "What keeps the power of the peak under 1? In brackets the figures of [W2]: of the start and of "
            "decay from its checkpoints, of cosθ and û from its logs of step 3,000. The largest negative "
            f"part is that of {NAMED[least]}, {parts[least]:+.2f}.",
            "",
            f"- **The start**, the same at every η, takes {-parts['start']:.2f} ({-theirs['start']:.2f}): "
            f"what σ grows by goes as η^{with_error(base['from_start'])} (η^{with_error(start)}).",
            f"- **Decay** takes {-parts['decay']:.2f} ({-theirs['decay']:.2f}).",
            f"- **The length of the updates** û takes {-parts['update']:.2f} ({-update['power']:.2f}): it "
            f"goes as η^{with_error(base['update'])}.",
            f"- **Saturation of the alignment** would be a cosθ that falls with η: it goes as "
            f"η^{with_error(base['cosine'])} (η^{with_error(angle)}). The product cosθ·û, which is what the "
            f"alignment has beside Ση, goes as η^{turned:+.2f}, "
            + ("more" if sure else "less")
            + " than two standard errors from none.",
        )
    )


ADDED_UP = (
    "The power of a product is the sum of the powers, so that these add up to that of the peak. For [W2] "
    "the cosθ and û above are those of step 3,000 alone, and cosθ·û below is what its checkpoints leave for "
    "the whole way to the peak, with the injection in it: not the same quantity, nor the sum of the two."
)
AT_A_STEP = ("cosine", "update")
"""Of [W2], known at step 3,000 alone."""

TOLD = {
    "peak": "peak of λ",
    "squares": "√(λ_peak² − λ₀²)",
    "from_start": "peak of σ, less σ₀",
    "pushed": "and without what decay took",
    "path": "Ση up to the peak",
    "cosine": "cosθ",
    "update": "û",
    "final": "λ at the end",
}
