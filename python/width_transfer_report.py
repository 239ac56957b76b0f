"""The page of the transfer experiment."""

import math
from collections.abc import Iterable

from width_training import ROLES, WINDOWS, Settings
from width_transfer_findings import LOSSES, Curve, Findings, at_rest, drift_of, mean_losses

import weibull_kernels as wk
from weibull_kernels.scaling.rules import TIME_CONSTANTS

AT_REST = 0.05  # that σ may be off from the balance of its forces and still count as at rest
HELD = 0.5  # octaves that an optimum may move from the narrowest to the widest and still count as held
DECAYS = {"published": "∝ √width", "constant": "constant", "proportional": "∝ width"}


def page(findings: Findings, machine: str) -> str:
    """The results page, in Markdown."""
    settings = next(iter(findings.proxy))
    runs = len(findings.every)
    return f"""# Whether the lr and decay of a narrow model hold on a wide one

Written by `python python/width_transfer.py`; the numbers of every run are in `width-transfer.json`, the
curves in `width-transfer.png`. {runs} runs on {machine}.

{described(settings)}

## Found

{found(findings)}

## The proxy, width {settings.base_width}

Held-out loss over η and ω, mean of the seeds; in brackets where a run is shorter than three time
constants of the decay, Σηω < {TIME_CONSTANTS:g}, so that its norms are not at rest.

{sweep_table(findings)}

Carried over: **η\\* = {power(findings.lr)}, ω\\* = {findings.weight_decay:g}**, {why(findings)}

## Loss over lr

Held-out loss at ω\\*, mean of the seeds ± half their range, by η; the lr of the matrices is
η·{settings.base_width}/width.

{loss_table(findings)}

## The best lr

log₂ of the best η: the vertex of the parabola through the lowest point and its neighbours, of the mean over
the seeds; in brackets the least and the most of a single seed. "≤" and "≥": the lowest point is at an end of
the grid. **Drift** is the slope on log₂ width: 0 where the optimum holds. **Cost** is the mean loss at η\\*
over that at the best η of the grid, in nats, at the proxy and at the widest.

{optima_table(findings)}

## The best decay

Held-out loss at η\\* over the ω that the matrices had, from the sweep, the rules, and the smaller decays of
the grid held constant, as the mean of the seeds; and log₂ of the best ω, as above. Runs with less decay than
ω\\* do not come to rest. {decay_drift(findings)}

{decay_table(findings)}

## σ_top

At η\\*, ω\\*, at the end of the constant lr: σ_top relative to the proxy's, geometric mean of the tensors
and seeds; the slope of log σ_top on log width ± its standard error; what the rule leaves where
σ_top ∝ √(η/ω)·width^¾ [F]; the exponent of the width that was measured in place of that ¾; and, as an
indication, the slope of σ_top over the σ/σ_rest of the next section, which it would have at rest if it went
with σ.

{sigma_table(findings)}

## At rest?

At η\\*, ω\\*: Σηω up to the cooldown, and σ over the σ at which the forces of the last fifth of those
steps would balance: 1 at rest, more where the weights still shrink, less where they grow.

{rest_table(findings)}
"""


def described(settings: Settings) -> str:
    """What was trained, in a paragraph."""
    s = settings
    return f"""LLaMA-style models of {s.layers} layers on bytes of the standard library's source: heads of
{s.head} dimensions, so that wider models have more of them, and scores over √{s.head} at every width; untied
embeddings; a head that is vector-like, starts at zero and has its logits scaled by {s.base_width}/width.
Matrices start at 1/√fan_in, embeddings at 1. {s.steps} steps of {s.batch} windows of {s.context} bytes:
{s.warmup} of warm-up, a constant lr up to step {s.constant}, then {s.cooldown} of a linear cooldown. AdamW
with betas {s.beta1:g} and {s.beta2:g}, no clipping. All runs of a seed see the same windows in the same
order. What [F] says is of equilibrium, which needs a constant lr: σ_top and the forces are those before the
cooldown, the loss is that after it on {WINDOWS} held-out windows. The mean training loss of the last tenth
of the constant lr is given beside."""


def found(findings: Findings) -> str:
    """The answers, in sentences made from the numbers."""
    lines = [
        *(lr_sentence(findings, rule) for rule in findings.rules),
        verdict_sentence(findings),
        best_sentence(findings),
        sigma_sentence(findings),
        exponent_sentence(findings),
        rest_sentence(findings),
        paper_sentence(findings),
    ]
    return "\n".join(f"- {line}" for line in lines)


def moved(findings: Findings, rule: str) -> float:
    """Octaves by which the best η differs between the widest and the narrowest."""
    curves = findings.curves(rule)
    return curves[-1].optimum.log2 - curves[0].optimum.log2


def is_bounded(findings: Findings, rule: str) -> bool:
    """Whether the best η lies within the grid at every width."""
    return all(curve.optimum.inside for curve in findings.curves(rule))


def holds(findings: Findings, rule: str) -> bool:
    """Whether the best η stays within `HELD` octaves, as far as the grid can tell."""
    return is_bounded(findings, rule) and abs(moved(findings, rule)) <= HELD


def lr_sentence(findings: Findings, rule: str) -> str:
    """Whether the best lr held under a rule."""
    curves = findings.curves(rule)
    first, last = curves[0], curves[-1]
    if not is_bounded(findings, rule):
        verdict = "lies at an end of the grid for some width, so that how it moves is a bound: it moves"
    else:
        verdict = "holds: it moves" if holds(findings, rule) else "does not hold: it moves"
    by, low, high = findings.drift(rule)
    wide, narrow = last.above_best(findings.lr), first.above_best(findings.lr)
    octaves = signed(moved(findings, rule))
    return (
        f"**`{rule}`** (decay {DECAYS[rule]}): the best η {verdict} by {octaves} octaves "
        f"from width {first.width} to {last.width}; drift {signed(by)} octaves per doubling (single seeds "
        f"{signed(low)} to {signed(high)}). Keeping η\\* costs {wide:.3f} nats at width {last.width}, "
        f"{narrow:.3f} at the proxy."
    )


def verdict_sentence(findings: Findings) -> str:
    """What the best η says of the rules against each other."""
    held = [rule for rule in findings.rules if holds(findings, rule)]
    if len(held) == len(findings.rules):
        return (
            "So the best η holds under **every** rule and does not tell them apart: at these widths and this "
            "length the matrices' lr ∝ 1/width, which the rules have in common, is enough (no other "
            "was tried)."
        )
    if not held:
        return "So the best η holds under **none** of the rules."
    return f"So the best η holds under {named(held)} and not under the other rules."


def named(rules: list[str]) -> str:
    """In a sentence."""
    quoted = [f"`{rule}`" for rule in rules]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def best_sentence(findings: Findings) -> str:
    """Which rule has the lowest loss at the widest that all have."""
    width = common_width(findings)
    lowest = {rule: min(findings.curve(rule, width).mean) for rule in findings.rules}
    kept = {rule: losses_at(findings, rule, width) for rule in findings.rules}
    listed = ", ".join(
        f"`{rule}` {kept[rule]:.3f} ({lowest[rule]:.3f})"
        for rule in sorted(kept, key=lambda rule: kept[rule])
    )
    return f"Loss at width {width} with η\\*, ω\\* carried over (and at the best η of the grid): {listed}."


def losses_at(findings: Findings, rule: str, width: int) -> float:
    """Mean loss at η*, ω*."""
    curve = findings.curve(rule, width)
    return curve.mean[curve.grid.index(findings.lr)]


def common_width(findings: Findings) -> int:
    """The widest that every rule has."""
    return min(findings.widths(rule)[-1] for rule in findings.rules)


def sigma_sentence(findings: Findings) -> str:
    """How σ_top went with the width, beside the prediction."""
    parts = []
    for rule in findings.rules:
        slopes = [findings.sigma_slope(rule, role)[0] for role in ROLES]
        predicted = signed(wk.scaling.RULES[rule].sigma_exponent())
        parts.append(f"`{rule}` {signed(min(slopes))} to {signed(max(slopes))} (predicted {predicted})")
    return f"Slope of log σ_top on log width over the roles: {'; '.join(parts)}."


def exponent_sentence(findings: Findings) -> str:
    """The exponent that [F] measured as ¾, of all rules and of those that came to rest."""
    rested = [rule for rule in findings.rules if is_at_rest(findings, rule)]
    own = ""
    if rested and len(rested) < len(findings.rules):
        own = f"; under {named(rested)} alone, at rest at every width, {exponents(findings, rested)}"
    elif not rested:
        own = (
            ", with no rule at rest at every width, so that part of it is where the matrices started "
            f"(of σ_top over σ/σ_rest it is {exponents(findings, findings.rules, rested=True)})"
        )
    return (
        "The exponent e of the width that this makes of σ_top ∝ √(η/ω)·width^e is "
        f"{exponents(findings, findings.rules)}{own}; [F] has 0.75, entries that are all noise 0.5."
    )


def exponents(findings: Findings, rules: Iterable[str], *, rested: bool = False) -> str:
    """The least and the most over rules and roles."""
    values = [
        findings.sigma_slope(rule, role, rested=rested)[0] - wk.scaling.RULES[rule].sigma_exponent(0.0)
        for rule in rules
        for role in ROLES
    ]
    return f"{min(values):.2f} to {max(values):.2f}"


def is_at_rest(findings: Findings, rule: str) -> bool:
    """Whether the matrices of every role and width were at the balance of their forces at η*, ω*."""
    return all(
        abs(findings.over_rest(rule, width, role) - 1) <= AT_REST
        for width in findings.widths(rule)
        for role in ROLES
    )


def rest_sentence(findings: Findings) -> str:
    """Which runs were long enough for the law to be about them."""
    passed = {rule: findings.time_constants(rule, findings.widths(rule)[-1]) for rule in findings.rules}
    short = [rule for rule in findings.rules if not is_at_rest(findings, rule)]
    listed = ", ".join(f"`{rule}` {constants:.2g}" for rule, constants in passed.items())
    judged = (
        f"under {named(short)} σ was not within {AT_REST:.0%} of that at rest at every width, so "
        "that σ_top still has part of where it started in it"
        if short
        else "all had come to rest"
    )
    return f"Time constants of the decay that had passed at the widest, at η\\*, ω\\*: {listed}; {judged}."


def paper_sentence(findings: Findings) -> str:
    """Against [F], plainly."""
    losses, rested = mean_losses(findings.proxy), at_rest(findings.proxy)
    lr, decay = min(losses, key=lambda pair: losses[pair])
    carried = losses[findings.lr, findings.weight_decay]
    best = f"η = {power(lr)}, ω = {decay:g} with {losses[lr, decay]:.3f}"
    if (lr, decay) in rested:
        judged = "which is at rest and is what was carried over."
    else:
        judged = (
            f"which is not at rest; what was carried over, {carried:.3f}, is the best that is. "
            f"{decay_drift(findings)}"
        )
    return f"The best of all settings of the proxy is {best}, {judged}"


def why(findings: Findings) -> str:
    """The choice of what is carried over."""
    if (findings.lr, findings.weight_decay) in at_rest(findings.proxy):
        return "the lowest loss of those that come to rest."
    return "the lowest loss; no setting comes to rest in runs this short."


def sweep_table(findings: Findings) -> str:
    """Loss at the proxy by lr and decay."""
    losses, rested = mean_losses(findings.proxy), at_rest(findings.proxy)
    lrs, decays = sorted({lr for lr, _ in losses}), sorted({decay for _, decay in losses})
    lines = [
        f"| ω | {' | '.join(f'η = {power(lr)}' for lr in lrs)} |",
        f"|--:|{'--:|' * len(lrs)}",
    ]
    for decay in decays:
        cells = [losses.get((lr, decay), math.nan) for lr in lrs]
        shown = [
            f"{loss:.3f}" if (lr, decay) in rested else f"({loss:.3f})"
            for lr, loss in zip(lrs, cells, strict=True)
        ]
        lines.append(f"| {decay:g} | {' | '.join(shown)} |")
    return "\n".join(lines)


def loss_table(findings: Findings) -> str:
    """Loss by rule, width and lr."""
    lrs = sorted({settings.lr for settings in findings.rows})
    lines = [
        f"| rule | width | seeds | {' | '.join(f'η = {power(lr)}' for lr in lrs)} |",
        f"|---|--:|--:|{'--:|' * len(lrs)}",
    ]
    for rule, curve in shown_curves(findings):
        points = dict(zip(curve.grid, zip(curve.mean, curve.spread, strict=True), strict=True))
        cells = [f"{points[lr][0]:.3f} ± {points[lr][1]:.3f}" if lr in points else "–" for lr in lrs]
        lines.append(f"| {rule} | {curve.width} | {len(curve.by_seed)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_curves(findings: Findings) -> list[tuple[str, Curve]]:
    """Of the base width once, then of each rule."""
    base = next(iter(findings.proxy)).base_width
    first = findings.curve(findings.rules[0], base)
    wide = [
        (f"`{rule}`", curve)
        for rule in findings.rules
        for curve in findings.curves(rule)
        if curve.width > base
    ]
    return [("all", first), *wide]


def optima_table(findings: Findings) -> str:
    """The best lr by rule and width, of both losses."""
    widths = sorted({settings.width for settings in findings.rows})
    lines = [
        f"| loss | rule | {' | '.join(f'width {width}' for width in widths)} | drift | cost |",
        f"|---|---|{'--:|' * len(widths)}--:|--:|",
    ]
    for loss, called in LOSSES.items():
        for rule in findings.rules:
            curves = {curve.width: curve for curve in findings.curves(rule, loss)}
            by, low, high = findings.drift(rule, loss)
            ends = [curves[min(curves)], curves[max(curves)]]
            cost = ", ".join(f"{curve.above_best(findings.lr):.3f}" for curve in ends)
            cells = [optimum_cell(curves[width]) if width in curves else "–" for width in widths]
            drift = f"{signed(by)} ({signed(low)} … {signed(high)})"
            lines.append(f"| {called} | `{rule}` | {' | '.join(cells)} | {drift} | {cost} |")
    return "\n".join(lines)


def optimum_cell(curve: Curve) -> str:
    """The best lr, or its bound, and the seeds'."""
    at = curve.optimum
    bound = "" if at.inside else "≤ " if at.log2 == math.log2(curve.grid[0]) else "≥ "
    seeds = [optimum.log2 for optimum in curve.of_seeds.values()]
    return f"{bound}{at.log2:.2f} ({min(seeds):.2f} … {max(seeds):.2f})".replace("-", "−")


def decay_drift(findings: Findings) -> str:
    """How the best decay goes with the width."""
    curves = findings.decay_curves()
    if len(curves) < 2 or not all(curve.optimum.inside for curve in curves):
        return (
            "At some width the lowest loss is at an end of the ω that were tried, so how the best goes with "
            f"the width is open. Up to ω\\* the mean losses of a width differ by {flatness(findings)} nats."
        )
    by, low, high = drift_of(curves)
    return (
        f"The best ω goes as width^({signed(by)}) (single seeds {signed(low)} to {signed(high)}); [F] has "
        "+0.50 for runs at rest."
    )


def flatness(findings: Findings) -> str:
    """By how much losses differ among the decays up to ω*, the least and the most over the widths."""
    spreads = []
    for curve in findings.decay_curves():
        losses = [
            loss for decay, loss in zip(curve.grid, curve.mean, strict=True) if decay <= findings.weight_decay
        ]
        spreads.append(max(losses) - min(losses) if losses else 0.0)
    return f"{min(spreads, default=0.0):.3f} to {max(spreads, default=0.0):.3f}"


def decay_table(findings: Findings) -> str:
    """Loss over decay at each width."""
    lines = ["| width | seeds | loss by ω | best log₂ ω |", "|--:|--:|---|--:|"]
    for curve in findings.decay_curves():
        points = zip(curve.grid, curve.mean, strict=True)
        losses = ", ".join(f"{decay:.3g}: {loss:.3f}" for decay, loss in points)
        lines.append(f"| {curve.width} | {len(curve.by_seed)} | {losses} | {optimum_cell(curve)} |")
    return "\n".join(lines)


def sigma_table(findings: Findings) -> str:
    """σ_top by rule, role and width."""
    widths = sorted({settings.width for settings in findings.rows})
    ratios = " | ".join(f"{width}/{widths[0]}" for width in widths[1:])
    lines = [
        f"| rule | role | σ_top at {widths[0]} | {ratios} | slope | predicted | exponent of width "
        "| slope at rest |",
        f"|---|---|--:|{'--:|' * (len(widths) - 1)}--:|--:|--:|--:|",
    ]
    for rule in findings.rules:
        mine = findings.widths(rule)
        law = wk.scaling.RULES[rule]
        for role in ROLES:
            base = findings.sigma(rule, mine[0], role)
            cells = [
                f"{findings.sigma(rule, width, role) / base:.3f}" if width in mine else "–"
                for width in widths[1:]
            ]
            by, error = findings.sigma_slope(rule, role)
            cells += [
                f"{signed(by, 3)} ± {error:.3f}",
                signed(law.sigma_exponent()),
                f"{by - law.sigma_exponent(0.0):.2f}",
                signed(findings.sigma_slope(rule, role, rested=True)[0]),
            ]
            lines.append(f"| `{rule}` | {role.replace('_', ' ')} | {base:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rest_table(findings: Findings) -> str:
    """Time constants that passed, and how far the weights are from rest."""
    lines = [
        f"| rule | width | Σηω | {' | '.join(role.replace('_', ' ') for role in ROLES)} |",
        f"|---|--:|--:|{'--:|' * len(ROLES)}",
    ]
    for rule in findings.rules:
        for width in findings.widths(rule):
            cells = [f"{findings.over_rest(rule, width, role):.2f}" for role in ROLES]
            passed = findings.time_constants(rule, width)
            lines.append(f"| `{rule}` | {width} | {passed:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def signed(value: float, digits: int = 2) -> str:
    """With its sign, and a minus that is one."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def power(lr: float) -> str:
    """As a power of two, where it is one."""
    exponent = math.log2(lr)
    digits = f"{exponent:.0f}" if exponent == round(exponent) else f"{exponent:.2f}"
    return f"2^{digits.replace('-', '−')}"
