"""The rows and the section of the coherence experiment."""

from itertools import pairwise
from typing import Any

import numpy as np

from .claims import Claim, spread
from .coherence_law import EXPONENT, NOISE, PAIRS, PAIRS_ERROR, PARTS, PROBED, Power

PUBLISHED_PEAK = 8
"""Times seen at which growth is largest in [W3]: 30M tokens in all, a network of 70M weights."""


def chosen(found: dict[str, Any], part: str, **wanted: Any) -> list[dict[str, Any]]:
    """The runs or differences with the given numbers; at the memory of the preset if none is given."""
    wanted = {"beta2": found["beta2"]} | wanted
    return [each for each in found[part] if all(each[name] == value for name, value in wanted.items())]


def lies_below(values: list[float]) -> bool:
    """Whether paired differences are under 0 by two standard errors; a single one by itself."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return bool(np.mean(values) < -2 * error)


def plus_minus(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds, to a tenth: of per cents."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def of_total(each: dict[str, Any], by: str, name: str) -> float:
    """A part of a difference, in per cent of the whole."""
    return 100 * each[by][name] / each["total"]


def claims(found: dict[str, Any]) -> list[Claim]:
    """What the papers say of the data, and which force carries it: the question that [W2] leaves open."""
    rows = [claim_of_coherence(found), *claims_of_law(found), claim_of_repetition(found)]
    return [row for row in [*rows, *claims_of_forces(found)] if row is not None]


def claim_of_coherence(found: dict[str, Any]) -> Claim | None:
    """The peak of λ falls as text is shuffled."""
    levels = sorted({each["shuffled"] for each in chosen(found, "differences", times=None)})
    if not levels:
        return None
    below = {
        rho: lies_below([each["scale"] for each in chosen(found, "differences", shuffled=rho, times=None)])
        for rho in levels
    }
    last = PROBED if PROBED in levels else levels[-1]
    whole, less = (
        [run["scale"]["peak"] for run in chosen(found, "runs", shuffled=rho, times=None)] for rho in (0, last)
    )
    fall = 100 * (1 - np.mean(less) / np.mean(whole))
    failing = ", ".join(f"{rho:g}" for rho, lower in below.items() if not lower)
    return Claim(
        "[W2] the peak of λ varies with the coherence of the data",
        "0.0352 (Pile), 0.0688–0.0763 (wikitext)",
        f"{spread(whole, '.4f')} at ρ = 0, {spread(less, '.4f')} at ρ = {last:g}",
        "–",
        "holds" if not failing else "holds in part" if below[last] else "does not hold",
        f"lower by {fall:.0f} % at ρ = {last:g}; at ρ = {failing} it is within two standard errors"
        if failing
        else "",
    )


def claims_of_law(found: dict[str, Any]) -> list[Claim]:
    """The exponent of the law, and those that it is made of."""
    law = found["law"]
    if law is None:
        return []
    growth, data, in_pairs = (
        Power(**law[name]) for name in ("growth_on_gap", "gap_on_retained", "growth_on_retained")
    )
    agrees = abs(growth.exponent - EXPONENT) <= 2 * growth.error
    same = abs(data.exponent - PAIRS) <= 2 * np.hypot(data.error, PAIRS_ERROR)
    straight = abs(in_pairs.exponent - 1) <= 2 * in_pairs.error
    tokens = found["pairs_of_bytes"]
    return [
        Claim(
            "[W3] λ² − λ₀² = C₀ + C₁·(H_r − D)^e on text shuffled by ρ",
            f"e = {EXPONENT}",
            f"e = {power(growth)}",
            "–",
            "holds" if agrees else "holds in part" if growth.r_squared_fixed >= 0.8 else "does not hold",
            "" if agrees else why_another_exponent(found, growth),
        ),
        Claim(
            "[W3] e = 1/p: H_r − D ∝ S^p, and growth is straight in S, the part of the pairs that is left",
            f"p = {PAIRS}, growth ∝ S¹",
            f"p = {power(data)}, growth ∝ S^({power(in_pairs)})",
            "–",
            "holds" if same and straight else "holds in part" if same or straight else "does not hold",
            ""
            if same or tokens is None
            else "p depends on what a token is: with pairs of bytes for bytes the same text has "
            f"{tokens['exponent']:.2f} ± {tokens['error']:.2f}",
        ),
    ]


def power(fit: Power) -> str:
    """An exponent with its standard error."""
    return f"{fit.exponent:.2f} ± {fit.error:.2f}"


def why_another_exponent(found: dict[str, Any], growth: Power) -> str:
    """What was measured about the reasons: the age of the run, and what the network learns."""
    law = found["law"]
    told = (
        f"{growth.exponent - EXPONENT:+.2f}; R² is {growth.r_squared_fixed:.2f} with {EXPONENT}, "
        f"{growth.r_squared:.2f} with ours"
    )
    if law["on_the_way"]:
        earlier = " and ".join(
            f"{each['exponent']:.2f} ± {each['error']:.2f} after {100 * each['part']:.0f} %"
            for each in law["on_the_way"]
        )
        told += f". By the part of the run it is {earlier}"
    if law["growth_on_learnt"] is not None and law["learnt_on_gap"] is not None:
        known, learnt = Power(**law["growth_on_learnt"]), Power(**law["learnt_on_gap"])
        whole = chosen(found, "runs", shuffled=0, times=None)
        loss, entropy = (np.mean([run[name] for run in whole]) for name in ("loss", "entropy"))
        told += (
            ". Growth goes with what is learnt, the bits by which the loss ends under that of fully shuffled "
            f"text, to the power {power(known)}; and what is learnt goes with H_r − D to the power "
            f"{power(learnt)}, as more than bigrams is learnt (at ρ = 0 the loss ends at {loss:.2f}, D "
            f"is {entropy:.2f}): {known.exponent:.2f}·{learnt.exponent:.2f} = "
            f"{known.exponent * learnt.exponent:.2f}"
        )
    return told


def claim_of_repetition(found: dict[str, Any]) -> Claim | None:
    """Growth over how often a text is seen: up, then down."""
    levels = sorted({run["times"] for run in found["runs"] if run["times"] is not None})
    whole = {run["seed"]: run["growth"] for run in chosen(found, "runs", shuffled=0, times=None)}
    if not levels or not whole:
        return None
    growth = {None: whole} | {
        times: {run["seed"]: run["growth"] for run in chosen(found, "runs", times=times)} for times in levels
    }
    mean = {times: float(np.mean(list(of.values()))) for times, of in growth.items()}
    peak = max(mean, key=mean.__getitem__)
    rises = peak is not None and lies_below(paired(growth[None], growth[peak]))
    falls = peak != levels[-1] and lies_below(paired(growth[levels[-1]], growth[peak]))
    near = peak is not None and PUBLISHED_PEAK / 2 <= peak <= 2 * PUBLISHED_PEAK
    told = [f"{1e4 * mean[None]:.1f} of new text"]
    told += [f"{1e4 * mean[times]:.1f} at {times:g}" for times in levels]
    return Claim(
        "[W3] text seen again and again: λ² − λ₀² rises, then falls",
        f"largest near {PUBLISHED_PEAK} times",
        ", ".join(told) + " (10⁻⁴)",
        "–",
        "holds" if rises and falls and near else "holds in part" if rises or falls else "does not hold",
        why_there(found, peak) if rises and falls else "",
    )


def why_there(found: dict[str, Any], peak: float) -> str:
    """Where growth is largest in the course of the run, and what the law says of repeated text."""
    levels = sorted({run["times"] for run in found["runs"] if run["times"] is not None})
    way = [
        {times: mean_on_the_way(found, place, times=times) for times in levels} for place in range(len(PARTS))
    ]
    largest = [max(each, key=each.__getitem__) for each in way]
    moves = all(first >= second for first, second in pairwise([*largest, peak])) and largest[0] > peak
    new = [mean_on_the_way(found, place, shuffled=0, times=None) for place in range(len(PARTS))]
    ahead = [1e4 * (each[levels[-1]] - other) for each, other in zip(way, new, strict=True)]
    ends = [
        np.mean([run["growth"] for run in chosen(found, "runs", **which)])
        for which in ({"times": levels[-1]}, {"times": None, "shuffled": 0})
    ]
    by_heart = []
    for times in levels:
        parts = [run["known"] for run in chosen(found, "runs", times=times)]
        when = "never" if None in parts else f"after {100 * np.mean(parts):.0f} %"
        by_heart.append(f"{when} at {times:g}")
    law = [
        f"{1e4 * level['predicted']:.1f} at {level['times']:g}"
        for level in found["repetition"]
        if level["predicted"] is not None
    ]
    after = [f"{100 * part:.0f} %" for part in PARTS]
    where = ", ".join(f"at {times:g} after {part}" for times, part in zip(largest, after, strict=True))
    against = ", ".join(f"{gap:+.1f} after {part}" for gap, part in zip(ahead, after, strict=True))
    return (
        f"the peak is at {peak:g} times at the end of the run"
        + (", and it moves to fewer as training goes on: " if moves else "; before, it is ")
        + f"{where}. Text that comes back makes weights grow faster at first and less later: seen "
        f"{levels[-1]:g} times it is {against} and {1e4 * (ends[0] - ends[1]):+.1f} at the end against new "
        f"text. It is known by heart (loss under a bit a byte) {', '.join(by_heart)} times. Bigrams do not "
        f"tell: the law for shuffled text gives {', '.join(law) or 'nothing'}"
    )


def mean_on_the_way(found: dict[str, Any], place: int, **wanted: Any) -> float:
    """Growth after one of `PARTS` of the run, mean over the seeds."""
    return float(np.mean([run["on_the_way"][place] for run in chosen(found, "runs", **wanted)]))


def paired(first: dict[int, float], second: dict[int, float]) -> list[float]:
    """Differences first − second by seed, of the seeds that both have."""
    return [value - second[seed] for seed, value in first.items() if seed in second]


def claims_of_forces(found: dict[str, Any]) -> list[Claim]:
    """The force that carries the difference, its cause, and what the memory of AdamW does to it."""
    mine = chosen(found, "differences", shuffled=PROBED, times=None)
    if not mine:
        return []
    alignment, injection, decay = (
        [of_total(each, "forces", force) for each in mine] for force in ("alignment", "injection", "decay")
    )
    norm, shape = ([each["bridge"][name] for each in mine] for name in ("norm", "shape"))
    scale = [a + b for a, b in zip(norm, shape, strict=True)]
    published = [a + 2 * j for a, j in zip(alignment, injection, strict=True)]
    angle, length = ([of_total(each, "drivers", name) for each in mine] for name in ("angle", "length"))
    share = np.mean(angle)
    return [
        Claim(
            f"[W2], left open: which force carries the difference that coherence makes, ρ = 0 to {PROBED}",
            "–",
            f"alignment {plus_minus(alignment)} %, injection {plus_minus(injection)} %, "
            f"decay {plus_minus(decay)} %",
            f"alignment {plus_minus(published)} %",
            "holds for alignment" if min(alignment) > 50 else "does not hold for one force",
            "the parts of ‖w‖² at the end, in per cent of its difference, which is their sum exactly. Decay "
            f"has the other sign, as less of a norm decays by less. λ² differs by {spread(scale)} λ₀²: "
            f"{spread(norm)} by ‖w‖² and {spread(shape)} by the shape, further from the normal where weights "
            "have grown more",
        ),
        Claim(
            "beyond the papers: the updates are shorter, more than they are turned away",
            "–",
            f"angle {plus_minus(angle)} %, length of the updates {plus_minus(length)} %",
            "–",
            "holds" if share < 50 else "does not hold",
            "alignment is 2·cosθ·‖w‖·η‖u‖, so ‖w‖² was worked out anew with the angles of one run and the "
            "lengths of the other, norm and decay following; the mean over all orders leaves nothing over",
        ),
        *claims_of_memory(found),
    ]


def left_of_growth(found: dict[str, Any]) -> dict[float, list[float]]:
    """λ² − λ₀² at ρ = 0.6 in per cent of that at ρ = 0, by β₂, of the seeds that all memories have."""
    growth = {
        (run["beta2"], run["shuffled"], run["seed"]): run["growth"]
        for run in found["runs"]
        if run["times"] is None
    }
    by_memory: dict[float, dict[int, float]] = {}
    for (beta2, rho, seed), value in growth.items():
        if rho == PROBED and (beta2, 0, seed) in growth:
            by_memory.setdefault(beta2, {})[seed] = 100 * value / growth[beta2, 0, seed]
    seeds = set.intersection(*(set(each) for each in by_memory.values())) if by_memory else set()
    longest_first = sorted(by_memory, reverse=True)
    return {beta2: [by_memory[beta2][seed] for seed in sorted(seeds)] for beta2 in longest_first if seeds}


def claims_of_memory(found: dict[str, Any]) -> list[Claim]:
    """What is left of the growth on shuffled text when AdamW remembers for a shorter time."""
    left = left_of_growth(found)
    if len(left) < 2:
        return []
    taken = {beta2: 100 - float(np.mean(each)) for beta2, each in left.items()}
    apart = {beta2: 1e4 * float(np.mean(difference_of_growth(found, beta2))) for beta2 in left}
    longest, *_, shortest = taken
    halved = [each[shortest] / each[longest] < 0.5 for each in (taken, apart)]
    told = [f"{plus_minus(each)} % at β₂ = {beta2:g}" for beta2, each in left.items()]
    horizon = {beta2: 100 / ((1 - beta2) * found["runs"][0]["steps"]) for beta2 in left}
    return [
        Claim(
            "beyond the papers: shuffling costs growth because AdamW remembers larger gradients",
            "–",
            f"λ² − λ₀² at ρ = {PROBED} over that at 0: {', '.join(told)}",
            "–",
            "holds" if all(halved) else "holds in part" if any(halved) else "does not hold",
            f"it costs {taken[longest]:.0f} % of the growth where squared gradients are remembered for "
            f"{horizon[longest]:.0f} % of the run, {taken[shortest]:.0f} % where for "
            f"{horizon[shortest]:.0f} % ([W2] has 5 %), the losses being the same. In λ² itself that is "
            + ", ".join(f"{each:.1f} at β₂ = {beta2:g}" for beta2, each in apart.items())
            + f" (10⁻⁴). {lengths_told(found)}",
        )
    ]


def difference_of_growth(found: dict[str, Any], beta2: float) -> list[float]:
    """λ² at ρ = 0.6 less that at ρ = 0, of every seed."""
    whole, less = (
        {run["seed"]: run["growth"] for run in chosen(found, "runs", shuffled=rho, times=None, beta2=beta2)}
        for rho in (0, PROBED)
    )
    return paired(less, whole)


def lengths_told(found: dict[str, Any]) -> str:
    """û in the mean of the run, of the whole and of shuffled text, by the memory."""
    told = []
    for beta2 in dict.fromkeys(curve["beta2"] for curve in found["curves"]):
        mine = [curve for curve in found["curves"] if curve["beta2"] == beta2]
        means = [f"{np.mean(curve['update']):.3f} at ρ = {curve['shuffled']:g}" for curve in mine]
        told.append(f"{' and '.join(means)} (β₂ = {beta2:g})")
    return (
        f"û, the root mean square of an update, is {', '.join(told)}; noise of one strength alone gives "
        f"{NOISE:.3f}, and less means that √v̂ still holds larger gradients than those of the day"
    )


def section(found: dict[str, Any]) -> str:
    """What came out, in words and two tables."""
    return "\n\n".join([table_of_texts(found), table_of_differences(found), words(found)])


def variants(found: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The kinds of text and memory, in the order of the runs."""
    names = ("shuffled", "times", "beta2")
    return [
        dict(zip(names, values, strict=True))
        for values in dict.fromkeys(tuple(each[name] for name in names) for each in found[part])
    ]


def called(variant: dict[str, Any], beta2: float) -> str:
    """A kind of text in a few words, and the memory where it is not that of the preset."""
    times, rho = variant["times"], variant["shuffled"]
    text = f"seen {times:g} times" if times is not None else f"ρ = {rho:g}"
    return text if variant["beta2"] == beta2 else f"{text}, β₂ = {variant['beta2']:g}"


def table_of_texts(found: dict[str, Any]) -> str:
    """Every kind of text with its entropies, and how far λ came on it."""
    rows = [
        "| text | D, bits a byte | H_r − D | H(byte) | S | loss at the end, bits a byte "
        "| peak λ | λ² − λ₀² at the end, 10⁻⁴ |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for variant in variants(found, "runs"):
        mine = chosen(found, "runs", **variant)

        def mean(name: str, mine: list[dict[str, Any]] = mine) -> float:
            return float(np.mean([run[name] for run in mine]))

        rows.append(
            f"| {called(variant, found['beta2'])} | {mean('entropy'):.3f} | {mean('gap'):.3f} "
            f"| {mean('unigram'):.3f} | {mean('retained'):.2f} | {mean('loss'):.2f} "
            f"| {spread([run['scale']['peak'] for run in mine], '.4f')} "
            f"| {plus_minus([1e4 * run['growth'] for run in mine])} |"
        )
    return "\n".join(rows)


def table_of_differences(found: dict[str, Any]) -> str:
    """Of every kind of text against the whole one: by force and by cause, in per cent of the difference."""
    rows = [
        "| ‖w‖² at the end against ρ = 0 | over ‖w₀‖² | alignment, % | injection | decay "
        "| from the angle, % | from the length of the updates |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for variant in variants(found, "differences"):
        mine = chosen(found, "differences", **variant)
        totals = [each["total"] for each in mine]
        clear = lies_below(totals) or lies_below([-total for total in totals])
        cells = [
            plus_minus([of_total(each, by, name) for each in mine]) if clear else "–"
            for by, names in (
                ("forces", ("alignment", "injection", "decay")),
                ("drivers", ("angle", "length")),
            )
            for name in names
        ]
        rows.append(f"| {called(variant, found['beta2'])} | {spread(totals)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def words(found: dict[str, Any]) -> str:
    """How the figures were got."""
    whole = chosen(found, "runs", shuffled=0, times=None)
    seen = f" The whole text is seen {whole[0]['seen']:.2g} times." if whole else ""
    mine = chosen(found, "differences", shuffled=PROBED, times=None)
    shares = {
        name: [100 * each["factors"][name] / each["forces"]["alignment"] for each in mine]
        for name in ("angle", "length", "norm")
    }
    split = " Record by record, the difference of the alignment from ρ = 0 to 0.6 is " + ", ".join(
        f"{np.mean(share):.0f} % by the {name}" for name, share in shares.items() if share
    )
    return (
        "Mean ± standard deviation over the seeds. Runs of a seed begin with the same weights, and those on "
        "shuffled text take their windows from the same places, so that they are compared in pairs. D is the "
        "conditional entropy of the text's bytes, H_r that of the same text fully shuffled, S the part of "
        f"the adjacent pairs that is left.{seen} “–”: within two standard errors of no difference."
        + (f"{split}; and the norm is what the other two have made of it." if mine else "")
    )
