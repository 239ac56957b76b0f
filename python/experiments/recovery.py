"""Forces recovered from checkpoints alone, beside the true ones that a ledger kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recovery_accuracy import Plan, experiment
from recovery_compared import AVERAGED
from recovery_pictures import draw_accuracy

from weibull_kernels.interpolation import END_CONDITIONS, VARIABLES
from weibull_kernels.recovery_methods import METHODS

from .claims import Claim, near, percent

NAME = "recovery"
TITLE = "Forces recovered from checkpoints"
TABLES = "recovery.md"
"""The file of all tables, beside the numbers."""

APART = (0.01, 0.05)
"""Parts of the run between the checkpoints that the claims are judged by: [W2] has 250, 500 and 1,000 steps
of 20,000, which are 0.0125, 0.025 and 0.05; ours are 10, 20 and 50 of 1,000."""

SPLINE, TWO_POINTS = (0.92, 0.97), (0.4, 0.5)
"""Published ratios in the rise."""

TWICE = 2.0
"""How many times the ratio of two points a spline has, as published: 0.92–0.94 over 0.4–0.5."""

NOT_MEASURED = "not measured"


def findings(plan: Plan, out: Path) -> dict[str, Any]:
    """Train the runs that are missing, recover their forces by every method, and compare."""
    return experiment(plan, out)


def machines(found: dict[str, Any]) -> list[str]:
    """What the runs were trained on, each once."""
    return list(dict.fromkeys(model["machine"] for model in found["models"]))


def spacings(found: dict[str, Any]) -> list[str]:
    """All even schedules, the closest first."""
    return [name for name in dict.fromkeys(row["schedule"] for row in found["runs"]) if name.isdigit()]


def judged_at(found: dict[str, Any]) -> list[str]:
    """The schedules whose checkpoints are as far apart, in parts of the run, as those of [W2]."""
    return [name for name in spacings(found) if APART[0] <= int(name) / found["steps"] <= APART[1]]


def middle(found: dict[str, Any], spacing: str, method: str, key: str) -> float | None:
    """The median over the runs, of the transmission weights in the rise."""
    values = [
        row["rise"][key]
        for row in found["runs"]
        if (row["schedule"], row["method"], row["role"]) == (spacing, method, "transmission")
        and row["rise"].get(key) is not None
    ]
    return float(np.median(values)) if values else None


def over_spacings(found: dict[str, Any], method: str, key: str) -> list[float]:
    """The medians at the schedules that are judged, and have a rise to judge."""
    values = (middle(found, spacing, method, key) for spacing in judged_at(found))
    return [value for value in values if value is not None]


def claims(found: dict[str, Any]) -> list[Claim]:
    """How close the spline comes, and how much closer than two points."""
    if not over_spacings(found, "spline", "ratio"):
        verdict = f"{NOT_MEASURED}: no checkpoints {percent(*APART, digits=0)} of the run apart in a rise"
        return [
            Claim(*claim, NOT_MEASURED, NOT_MEASURED, verdict) for claim in (_of_spline(), _of_two_points())
        ]
    return [spline_claim(found), two_points_claim(found)]


def _of_spline() -> tuple[str, str]:
    published = f"ratio {between(SPLINE, 2)}"
    return "[W2] a spline through checkpoints recovers the alignment in the rise", published


def _of_two_points() -> tuple[str, str]:
    published = f"ratio 0.92–0.94 beside {between(TWO_POINTS, 1)}: about {TWICE:g} times"
    return "[W2] about twice as good as two points", published


def closer(found: dict[str, Any]) -> bool:
    """Whether the spline has the smaller median error at every spacing."""
    errors = zip(*(over_spacings(found, each, "error") for each in ("spline", "two_point")), strict=True)
    return all(spline < two_points for spline, two_points in errors)


def spline_claim(found: dict[str, Any]) -> Claim:
    """The ratio of the spline, and what it is made of."""
    exact, published = (over_spacings(found, "spline", key) for key in ("ratio", "as_published"))
    if near(published, *SPLINE):
        verdict = "holds"
    else:
        verdict = "holds in part: closer than two points" if closer(found) else "does not hold"
    return Claim(*_of_spline(), between(exact), between(published), verdict, spline_reason(found))


def spline_reason(found: dict[str, Any]) -> str:
    """Why the ratio against the true alignment is what it is: measured, force by force."""
    rise = [
        row["rise"]
        for row in found["runs"]
        if (row["method"], row["role"], row["schedule"]) == ("spline", "transmission", judged_at(found)[0])
    ]
    sums, as_published = (
        [run[key] for run in rise if run[key] is not None] for key in ("sum", "sum_as_published")
    )
    remainder, published_remainder = (
        listed(found, "spline", key, signed) for key in ("remainder", "remainder_as_published")
    )
    return (
        "weights alone tell alignment + injection, A + J: by the true forces (A + J)/A is "
        f"{between(sums)} and (A + J)/(A + 2J), the published reading, {between(as_published)}, run by run. "
        f"At {in_words(judged_at(found))} steps the spline is off these by {remainder} and "
        f"{published_remainder}. Its own path takes steps too, and their squares, which it counts as "
        f"injection, are {listed(found, 'spline', 'own_move', percent)} of A. Less these, and with the decay "
        "of its path in place of the true one, A + J is what it sums up to between checkpoints, as it must "
        f"be: to {most(found, 'spline')} of A. Its median over single steps, between which it swings, is off "
        f"from that by {listed(found, 'spline', 'swing', signed)}. Its path keeps "
        f"{listed(found, 'spline', 'kept', percent)} of J; how far updates diffuse would leave "
        f"{listed(found, 'spline', 'kept_by_diffusion', percent)} on straight lines. The midpoint, which "
        f"takes no square off, sums up to {listed(found, 'midpoint', 'impulse_ratio', number)}. Less an "
        f"estimate of J (`corrected`) the ratio is {between(over_spacings(found, 'corrected', 'ratio'))}"
    )


def two_points_claim(found: dict[str, Any]) -> Claim:
    """How many times the ratio of two points the spline has, and how far off each is."""
    pairs = {
        key: [over_spacings(found, method, key) for method in ("spline", "two_point")]
        for key in ("ratio", "as_published", "error")
    }
    times = [spline / two for spline, two in zip(*pairs["as_published"], strict=True)]
    if near(times, TWICE, TWICE) and closer(found):
        verdict = "holds"
    elif closer(found):
        verdict = f"holds in part: closer at every spacing, the ratio {between(times, 1)} times"
    else:
        verdict = "does not hold"
    exact, published = (
        " beside ".join(between(each) for each in pairs[key]) for key in ("ratio", "as_published")
    )
    errors = " beside ".join(percent(min(each), max(each)) for each in pairs["error"])
    return Claim(
        *_of_two_points(),
        f"ratio {exact}, error {errors}",
        f"ratio {published}: {between(times, 2)} times",
        verdict,
        two_points_reason(found),
    )


def two_points_reason(found: dict[str, Any]) -> str:
    """Why their ratio is what it is: the move of an interval, which grows with it."""
    ratios = ", ".join(
        f"{middle(found, spacing, 'two_point', 'as_published'):.2f} at {spacing}"
        for spacing in spacings(found)
        if middle(found, spacing, "two_point", "as_published") is not None
    )
    return (
        "two points take an interval for one step, and its whole squared move for injection: "
        f"{listed(found, 'two_point', 'own_move', percent)} of A at {in_words(judged_at(found))} steps. "
        "Less that, and with the decay of the left end, A + J is what they sum up to, to "
        f"{most(found, 'two_point')} of A. The move grows with the interval, and so their ratio is one of "
        f"the spacing: as published it is {ratios} steps of {found['steps']:,}"
    )


def number(value: float) -> str:
    """A ratio."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def in_words(parts: list[str]) -> str:
    """One after another."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def listed(found: dict[str, Any], method: str, key: str, shown: Callable[[float], str]) -> str:
    """The medians at the schedules that are judged, in their order."""
    return in_words([shown(value) for value in over_spacings(found, method, key)])


def most(found: dict[str, Any], method: str) -> str:
    """The most that the true forces leave unexplained, in per cent."""
    return f"{100 * max(over_spacings(found, method, 'unexplained')):.0e} %"


def between(values: Any, places: int = 3) -> str:
    """A ratio, from … to."""
    return "–".join(dict.fromkeys(f"{value:.{places}f}" for value in (min(values), max(values))))


def draw(found: dict[str, Any], path: Path) -> None:
    """Recovered beside true over one run, and the errors of all by spacing."""
    shown = {
        name: np.asarray(column) if isinstance(column, list) else column
        for name, column in found["shown"].items()
    }
    draw_accuracy(found["runs"], shown, path)


def section(found: dict[str, Any]) -> str:
    """The tables of the transmission weights; all others are in a file of their own."""
    return (
        f"{models(found)} Attention output and FFN, medians over the runs. Ratio: recovered over true "
        "alignment in the rise; as published: over −2η⟨w⁺,u⟩; error: median of |ratio − 1|; impulse: the sum "
        f"between checkpoints. Other roles, and other ways to interpolate, are in `{TABLES}`, beside the "
        f"numbers.\n\n{table(found['runs'], 'transmission')}\n\n"
        "What each method should sum up to between checkpoints in the rise, by the true forces, in parts of "
        "the true alignment A, medians over the runs: A + J, less the squared moves of the method's own "
        "path, more the difference between the true decay and that of the path. Found is what it does sum up "
        "to. J kept is the squared moves of the spline in parts of the injection J, and by diffusion those "
        "of straight lines."
        f"\n\n{explained_table(found)}"
    )


def models(found: dict[str, Any]) -> str:
    """What the runs are, in words."""

    def these(name: str, form: str = "g") -> str:
        return ", ".join(f"{value:{form}}" for value in sorted({model[name] for model in found["models"]}))

    ages = [model["age"] for model in found["models"]]
    clips = ", ".join(dict.fromkeys(str(model["clip"]) for model in found["models"]))
    return (
        f"{len(ages)} runs of the demo's model, not of the preset of the other experiments: "
        f"{found['steps']:,} steps, width {these('width')}, η {these('lr')}, ω {these('weight_decay')}, "
        f"β₂ {these('beta2')}, gradients clipped at {clips}, age Ση·ω {between(ages, 2)}."
    )


def explained_table(found: dict[str, Any]) -> str:
    """What the sums of a method should be by the true forces, beside what they are, in Markdown."""
    keys = ("impulse_sum", "own_move", "decay_difference", "impulse_expected", "impulse_ratio")
    kept = ("kept", "kept_by_diffusion")
    lines = [
        "| spacing | method | A + J | own moves | decay | together | found | J kept | by diffusion |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for spacing in spacings(found):
        for method in ("spline", "midpoint", "two_point"):
            values = [middle(found, spacing, method, key) for key in keys]
            parts = [middle(found, spacing, method, key) if method == "spline" else None for key in kept]
            cells = [
                spacing,
                f"`{method}`",
                *("–" if value is None else f"{value:.3f}".replace("-", "−") for value in values),
                *("–" if value is None else percent(value, digits=0) for value in parts),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], role: str) -> str:
    """Medians over the runs, in Markdown."""
    lines = [
        "| spacing | method | ratio | as published | error | impulse error | within 1σ "
        "| saturation: error | impulse error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    mine = [row for row in rows if row["role"] == role]
    for schedule in dict.fromkeys(row["schedule"] for row in mine):
        for method in METHODS:
            runs = [row for row in mine if (row["schedule"], row["method"]) == (schedule, method)]

            def over(phase: str, key: str, digits: str, runs: list[dict[str, Any]] = runs) -> str:
                values = [run[phase][key] for run in runs if run[phase].get(key) is not None]
                return format(float(np.median(values)), digits) if values else "–"

            cells = [
                schedule,
                f"`{method}`",
                over("rise", "ratio", ".3f"),
                over("rise", "as_published", ".3f"),
                over("rise", "error", ".1%"),
                over("rise", "impulse_error", ".2%"),
                over("rise", "within_one_sigma", ".0%"),
                over("saturation", "error", ".1%"),
                over("saturation", "impulse_error", ".2%"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ways_table(rows: list[dict[str, Any]]) -> str:
    """Median errors in the rise and in saturation by spacing, in Markdown."""
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    lines = [
        f"| along | ends | {' | '.join(names)} |",
        f"|---|---|{'--:|' * len(names)}",
    ]
    for variable in VARIABLES:
        for bc_type in END_CONDITIONS:
            cells = []
            for schedule in names:
                mine = [
                    row
                    for row in rows
                    if (row["variable"], row["bc_type"], row["schedule"]) == (variable, bc_type, schedule)
                ]
                errors = [
                    [row[phase]["error"] for row in mine if row[phase]["error"] is not None]
                    for phase in ("rise", "saturation")
                ]
                cells.append(" / ".join(f"{np.median(part):.1%}" if part else "–" for part in errors))
            lines.append(f"| `{variable}` | {bc_type} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(found: dict[str, Any]) -> str:
    """All tables, as the text of a page of their own."""
    kinds = "\n".join(f"- `{model['folder']}`" for model in found["models"])
    return f"""# Forces recovered from checkpoints, against the true ones

Written by `python python/reproduce.py recovery`; the numbers of every run and role are in `recovery.json`.
Runs of {found["steps"]} steps of the demo's model, none of which was looked at while methods were chosen:

{kinds}

**Ratio** is recovered over true alignment, the truth averaged over {AVERAGED} steps; **as published** is
against −2η⟨w⁺,u⟩ at single steps, as in [W2]; **error** is the median of |ratio − 1| over the steps of
the rise, then of saturation (balance, overshoot and relaxation). **Impulse error** is that of the
alignment summed over the interval between two checkpoints, and **within 1σ** how many intervals are as
close as they say. Each number is the median over the runs that have such a phase.

## Transmission weights

{table(found["runs"], "transmission")}

## QKV

{table(found["runs"], "qkv")}

## Embedding

{table(found["runs"], "embedding")}

## Along what, and how it ends

The error of `corrected` on the transmission weights, in the rise / in saturation, by the variable that ‖w‖²
is interpolated along and the end condition of the spline. `lr_sum`, Ση, with not-a-knot ends is the default.

{ways_table(found["interpolation"])}
"""


def write_tables(found: dict[str, Any], results: Path) -> Path:
    """Write the page of all tables beside the numbers, and return where it is."""
    path = results / TABLES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tables(found))
    return path
