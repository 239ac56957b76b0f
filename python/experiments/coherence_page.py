"""The rows and the section of the coherence experiment."""

from typing import Any

import numpy as np

from .claims import Claim, spread
from .coherence_law import EXPONENT, NOISE, PROBED, Power

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
    """The exponent of the law, and that of the data which it is made of."""
    if found["law"] is None:
        return []
    growth, data, straight_in = (
        Power(**found["law"][name]) for name in ("growth_on_gap", "gap_on_retained", "growth_on_retained")
    )
    agrees = abs(growth.exponent - EXPONENT) <= 2 * growth.error
    same = abs(data.exponent - PAIRS) <= max(2 * data.error, 0.1 * PAIRS)
    linear = abs(straight_in.exponent - 1) <= 2 * straight_in.error
    why = (
        f"{growth.exponent - EXPONENT:+.2f}; with 0.59 R² is {growth.r_squared_fixed:.2f}, with ours "
        f"{growth.r_squared:.2f}. The exponent is q/p, with growth ∝ S^q and H_r − D ∝ S^p: "
        f"{'p is that of [W3]' if same else 'p is another than in [W3]'}, {data.exponent:.2f} ± "
        f"{data.error:.2f}, {'and' if same == linear else 'but'} growth is "
        f"{'straight in S' if linear else 'not straight in S'}, q = {straight_in.exponent:.2f} ± "
        f"{straight_in.error:.2f}"
    )
    return [
        Claim(
            "[W3] λ² − λ₀² = C₀ + C₁·(H_r − D)^e on text shuffled by ρ",
            "e = 0.59",
            f"e = {growth.exponent:.2f} ± {growth.error:.2f}",
            "–",
            "holds" if agrees else "holds in part" if growth.r_squared_fixed >= 0.8 else "does not hold",
            "" if agrees else why,
        ),
        Claim(
            "[W3] e = 1/p: H_r − D ∝ S^p, and growth is straight in S, the part of the pairs that is left",
            "p = 1.69, q = 1",
            f"p = {data.exponent:.2f} ± {data.error:.2f}, q = {straight_in.exponent:.2f} ± "
            f"{straight_in.error:.2f}",
            "–",
            "holds" if same and linear else "holds in part" if same or linear else "does not hold",
        ),
    ]


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
    """Where growth is largest, by when the texts are known by heart; and what the law says of them."""
    known = {}
    for times in sorted({run["times"] for run in found["runs"] if run["times"] is not None}):
        parts = [run["learnt"] for run in chosen(found, "runs", times=times)]
        known[times] = None if None in parts else float(np.mean(parts))
    told = [
        f"seen {times:g} times {f'after {100 * part:.0f} % of the run' if part is not None else 'never'}"
        for times, part in known.items()
    ]
    levels = found["repetition"]["levels"]
    law = [
        f"{1e4 * level['predicted']:.1f} at {level['times']:g}"
        for level in levels
        if level["predicted"] is not None
    ]
    return (
        f"the peak is at {peak:g} times. A text is known by heart (loss under a bit a byte) "
        f"{', '.join(told)}: learning it takes growth, and once it is known there is none to come. Bigrams "
        f"do not tell: the law for shuffled text gives {', '.join(law) or 'nothing'}"
    )


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
    published = [a + 2 * j for a, j in zip(alignment, injection, strict=True)]
    angle, length = ([of_total(each, "drivers", name) for each in mine] for name in ("angle", "length"))
    share = np.mean(angle)
    return [
        Claim(
            f"[W2], left open: which force carries the difference that coherence makes, ρ = 0 to {PROBED}",
            "–",
            f"alignment {spread(alignment)} %, injection {spread(injection)} %, decay {spread(decay)} %",
            f"alignment {spread(published)} %",
            "holds for alignment" if min(alignment) > 50 else "does not hold for one force",
            "the parts of ‖w‖² at the end, in per cent of its difference, which is their sum exactly. Decay "
            "has the other sign, as less of a norm decays by less",
        ),
        Claim(
            "beyond the papers: it is the angle of the updates to the weights that differs",
            "–",
            f"angle {spread(angle)} %, length of the updates {spread(length)} %",
            "–",
            "holds" if share > 75 else "holds in part" if share > 25 else "does not hold",
            "alignment is 2·cosθ·‖w‖·η‖u‖, so the norm was worked out anew with the angles of one run and "
            "the lengths of the other, decay and norm following; mean over all orders, so nothing is left over",
        ),
        *claims_of_memory(found),
    ]


def totals(found: dict[str, Any]) -> dict[float, list[float]]:
    """The difference of ‖w‖² over ‖w₀‖² from ρ = 0 to 0.6, of every seed, by β₂: the longest memory first."""
    memories = sorted({each["beta2"] for each in found["differences"]}, reverse=True)
    by_memory = {
        beta2: chosen(found, "differences", shuffled=PROBED, times=None, beta2=beta2) for beta2 in memories
    }
    return {beta2: [each["total"] for each in mine] for beta2, mine in by_memory.items() if mine}


def claims_of_memory(found: dict[str, Any]) -> list[Claim]:
    """What is left of the difference when AdamW remembers for a shorter time."""
    values = totals(found)
    if len(values) < 2:
        return []
    means = [float(np.mean(each)) for each in values.values()]
    gone = 1 - means[-1] / means[0]
    told = [f"{spread(each)} at β₂ = {beta2:g}" for beta2, each in values.items()]
    return [
        Claim(
            "beyond the papers: it is there because AdamW remembers the larger gradients of the beginning",
            "–",
            ", ".join(told) + " (Δ‖w‖²/‖w₀‖²)",
            "–",
            "holds" if gone > 0.5 else "holds in part" if gone > 0.2 else "does not hold",
            f"{100 * gone:.0f} % of the difference goes when squared gradients are remembered for a shorter "
            f"time, with the loss as it was. {lengths_told(found)}",
        )
    ]


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
            f"| {spread([1e4 * run['growth'] for run in mine])} |"
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
            spread([of_total(each, by, name) for each in mine]) if clear else "–"
            for by, names in (
                ("forces", ("alignment", "injection", "decay")),
                ("drivers", ("angle", "length")),
            )
            for name in names
        ]
        rows.append(f"| {called(variant, found['beta2'])} | {spread(totals)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def words(found: dict[str, Any]) -> str:
    """What the figures mean, and where they come from."""
    return ""
