"""The page of the width experiment."""

import math
from itertools import pairwise
from typing import Any

from width_synthetic_fits import HALVES, MATRICES, PUBLISHED_EXPONENT, Runs, coherent_part

SYMBOLS = {"up_proj": "W₁", "down_proj": "W₂"}
DECAYS = {"published": "ω ∝ √d", "constant": "ω constant", "proportional": "ω ∝ d"}


def level_cell(row: dict[str, Any]) -> str:
    """The noise of a row and the part of the gradients that it leaves coherent."""
    noise = float(row["noise"])
    return f"{'∞' if math.isinf(noise) else format(noise, 'g')} | {percent(coherent_part(noise))}"


def percent(part: float) -> str:
    """Two digits, and no exponent."""
    return f"{100 * part:.2g} %" if part < 0.995 else "100 %"


def number(value: float, digits: int = 3) -> str:
    """With a proper minus, and none before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def slope_cell(found: dict[str, Any]) -> str:
    """Value and half of its interval."""
    return f"{number(found['value'])} ± {number(found['half'])}"


def markdown(columns: list[str], rows: list[list[str]], left: int) -> str:
    """A table, the first `left` columns to the left."""
    rule = "|---" * left + "|--:" * (len(columns) - left) + "|"
    return "\n".join([f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def fixed_width_table(rows: Runs) -> str:
    """Exponents of η and ω, at small ηω and at large."""
    columns = ["noise", "coherent", "matrix", "of η", "of ω", "within 10 %", "κ", "κ of the limit"]
    columns += ["larger ηω: of η", "of ω", "κ", "κ of the limit"]
    cells = []
    for row in rows:
        small, large = row["small"], row["large"]
        cells.append(
            [
                level_cell(row),
                SYMBOLS[row["matrix"]],
                slope_cell(small["lr"]),
                slope_cell(small["weight_decay"]),
                yes(small["holds"]),
                number(small["step"]["value"]),
                number(small["limit"]),
                slope_cell(large["lr"]),
                slope_cell(large["weight_decay"]),
                number(large["step"]["value"]),
                number(large["limit"]),
            ]
        )
    return markdown(columns, cells, left=3)


def width_table(rows: Runs, widths: tuple[int, ...]) -> str:
    """Exponents of the width, over all of them and from each to the next."""
    steps = [f"{n}→{w}" for n, w in pairwise(widths)]
    columns = ["noise", "coherent", "matrix", "σ_top", "rms", "σ_top/(rms·√d)", *steps]
    cells = [
        [
            level_cell(row),
            SYMBOLS[row["matrix"]],
            *(slope_cell(row[key]) for key in ("sigma", "rms", "shape")),
            *(number(value, 2) for value in row["local"]),
        ]
        for row in rows
    ]
    return markdown(columns, cells, left=3)


def base_table(rows: Runs) -> str:
    """What the matrices look like at the base width."""
    columns = ["noise", "coherent", "matrix", "stable rank", "kept", "rms/√(η/2ω)", "rms/noise limit"]
    cells = [
        [
            level_cell(row),
            SYMBOLS[row["matrix"]],
            f"{row['stable_rank']:.1f}",
            percent(row["kept"]),
            f"{row['rms_of_first_order']:.3f}",
            f"{row['rms_of_limit']:.3f}",
        ]
        for row in rows
    ]
    return markdown(columns, cells, left=3)


def rules_table(rows: Runs) -> str:
    """Slopes under the three rules, beside the predicted."""
    columns = ["noise", "coherent", "matrix", "rule", "measured", "predicted", "agree", "with (ηω)^κ"]
    columns += ["agree", "σ_top, widest/narrowest"]
    cells = []
    for row in rows:
        sigma = list(row["sigma"].values())
        cells.append(
            [
                level_cell(row),
                SYMBOLS[row["matrix"]],
                f"{row['rule']}, {DECAYS[row['rule']]}",
                slope_cell(row["slope"]),
                slope_cell(row["predicted"]),
                yes(row["agrees"]),
                number(row["with_steps"]["value"]),
                yes(row["agrees_with_steps"]),
                f"{sigma[-1] / sigma[0]:.2f}",
            ]
        )
    return markdown(columns, cells, left=4)


def pinned_table(rows: Runs) -> str:
    """Exponents where the targets fix the size of the matrices."""
    columns = ["noise", "coherent", "matrix", "of η", "of ω", "within 10 %", "of the width"]
    cells = [
        [
            level_cell(row),
            SYMBOLS[row["matrix"]],
            slope_cell(row["lr"]),
            slope_cell(row["weight_decay"]),
            yes(row["holds"]),
            slope_cell(row["width"]),
        ]
        for row in rows
    ]
    return markdown(columns, cells, left=3)


def yes(whether: bool) -> str:
    """In a table."""
    return "yes" if whether else "**no**"


def count(rows: Runs, *keys: str) -> str:
    """In how many rows all of the keys hold."""
    return f"{sum(all(reach(row, key) for key in keys) for row in rows)} of {len(rows)}"


def reach(row: dict[str, Any], key: str) -> Any:
    """A value by a dotted key."""
    for part in key.split("."):
        row = row[part]
    return row


def crossing_sentence(found: dict[str, Any]) -> str:
    """Where the exponent is that of [F]."""
    parts = []
    for matrix in MATRICES:
        part = found["crossing"][matrix]
        where = "nowhere between the levels" if part is None else f"where about {percent(part)} is coherent"
        parts.append(f"{where} for {SYMBOLS[matrix]}")
    return f"It passes {PUBLISHED_EXPONENT}\n  {', '.join(parts)}"


def range_of(rows: Runs, key: str) -> str:
    """From the least to the largest."""
    values = [reach(row, key) for row in rows]
    return f"{number(min(values))} to {number(max(values))}"


def largest_miss(rows: Runs) -> float:
    """Of σ_top under a rule from √(η/ω) times that at fixed η and ω, in ln."""
    return max(
        abs(math.log(row["sigma"][width] / row["predicted_sigma"][width]))
        for row in rows
        for width in row["sigma"]
    )


def off(rows: Runs, prediction: str) -> float:
    """The largest difference of a measured slope from a predicted one."""
    return float(max(abs(row["slope"]["value"] - row[prediction]["value"]) for row in rows))


def findings(found: dict[str, Any], tested: Runs, span: dict[str, str]) -> str:
    """What the page says first; `span` says how far ηω went in either half."""
    sweeps, ends = found["fixed_width"], [row["sigma"]["value"] for row in found["width"]]
    return f"""- σ_top ∝ √(η/ω) at fixed width: both exponents are within 10 % of ±½ in
  {count(sweeps, "small.holds")} rows where ηω is {span["small"]}, in {count(sweeps, "large.holds")} where
  it is {span["large"]}, the base of what follows among it. At the smaller that of η is
  {range_of(sweeps, "small.lr.value")}, that of ω
  {range_of(sweeps, "small.weight_decay.value")}. What is off is an effect of ηω, on which σ_top
  depends as a power of {range_of(sweeps, "small.step.value")}, and more where ηω is larger.
- The exponent of the width falls from {ends[0]:.2f} and {ends[1]:.2f} (W₁ and W₂, no noise) to {ends[-2]:.2f}
  and {ends[-1]:.2f} (noise alone). {crossing_sentence(found)}.
- The rms has exponents of {range_of(found["width"], "rms.value")}: the width dependence is in
  σ_top/(rms·√d), the shape of the spectrum, and not in the size of the entries.
- Without the outer norm the law fails: both exponents are within 10 % in
  {count(found["pinned"], "holds")} rows.
- Under the published rule and under constant decay, the slope of log σ_top on log d is at most
  {off(tested, "predicted"):.2f} from what √(η/ω)·d^e predicts, and within the interval in
  {count(tested, "agrees")} rows; at most {off(tested, "with_steps"):.2f} and
  {count(tested, "agrees_with_steps")} by √(η/ω)·(ηω)^κ·d^e, with the κ of section 1: ηω is not
  small here. The published rule keeps σ_top where e is {PUBLISHED_EXPONENT}, and only there."""


def shrinkage_spans(experiment: dict[str, Any]) -> dict[str, str]:
    """ηω of the two halves of the sweeps."""
    values = [factor * experiment["lr"] * experiment["weight_decay"] for factor in experiment["factors"]]
    base = experiment["lr"] * experiment["weight_decay"]
    halves = {
        name: [value for value in values if low < value / base < high] for name, (low, high) in HALVES.items()
    }
    return {name: f"{min(part):.2g} to {max(part):.2g}" for name, part in halves.items()}


def page(found: dict[str, Any], experiment: dict[str, Any], runs: Runs) -> str:
    """The results page; `experiment` has the settings that it names."""
    rest = found["equilibrium"]
    # Equal ηω at every width is an identity where the branch is normed, and tests nothing.
    tested = [row for row in found["rules"] if row["rule"] != "proportional"]
    machines = ", ".join(sorted({run["machine"] for run in runs}))
    hours = sum(run["seconds"] for run in runs) / 3600
    base, span = experiment["base_width"], shrinkage_spans(experiment)
    window = experiment["age"] - experiment["burn_in"]
    miss = 100 * (math.exp(largest_miss(tested)) - 1)
    identity = 100 * largest_miss([row for row in found["rules"] if row not in tested])
    return f"""# What σ_top goes with: a residual FFN from gradients of noise to gradients of signal

Written by `python python/width_synthetic.py`; the means of every run and all numbers are in
`width-synthetic.json` (*kept* for the base width alone), the picture is
`width-synthetic.png`. {len(runs)} runs, {hours:.1f} hours beside other work on
{machines}.

**The FFN** is y = x + N(W₂·relu(W₁·N(x))), N(x) = x/rms(x), as wide inside as outside, d. Inputs and targets
live in 8 dimensions, lifted to d; every batch of {experiment["batch"]} is fresh, labels are noisy. AdamW
with β = (0.9, 0.99) and a constant lr runs to an effective age Σηω of {experiment["age"]:g}; what is
measured is the mean of {experiment["snapshots"]} snapshots after {experiment["burn_in"]:g}. At the base
width {base}, η = {experiment["lr"]:g} and ω = {experiment["weight_decay"]:g}. Seeds: {experiment["seeds"]}.
**Noise** is i.i.d. Gaussian, added to each matrix's gradient, as a multiple of the gradient's rms; ∞ is
noise alone. **Coherent** is the part of ‖g‖² that the task has, 1/(1+noise²). It includes the noise of small
batches and of labels: that moves a few directions together, and for σ_top it counts as signal.

Every exponent is the slope of a straight line through logarithms, by least squares over all runs (seeds
not averaged), with its 95 % interval by Student's t. Where the exponent itself changes with the
width, the interval knows of that only as scatter.

## Found

{findings(found, tested, span)}

## 1. σ_top against η and ω, at width {experiment["sweep_width"]}

{fixed_width_table(found["fixed_width"])}

η and ω were varied one at a time, ηω over {span["small"]}, then (larger ηω) over {span["large"]}.
With the outer N, scaling w and η by α and ω by 1/α changes nothing else, so that σ_top = √(η/ω)·F(ηω)
exactly: the two exponents are ½ + κ and −½ + κ, κ that of F, and their difference is 1 by
construction. Measured is κ: how little F depends on ηω. The limit is that of noise with an exact second
moment, rms² = η²·(1−β₁)/(1+β₁)·(1+cβ₁)/((1−c²)(1−cβ₁)), c = 1−ηω, which is η/(2ω) to first order and short of
it by the part 9.5·ηω at β₁ = 0.9: κ goes to 0 with ηω.

Between the ends there is more. An explanation: the mean gradient of the task is persistent. Of it a memory of
1/(ηω) steps gathers in proportion to 1/(ηω), of noise to the root of that. On its way out of the noise, a
direction that the task holds has a κ of its own, towards the −½ of w → −u/ω. Where κ at small ηω is
furthest from 0, the top direction should outlive that memory: see **kept** in section 2. Without noise that
direction is most of the update and its size is again the balance of all updates with decay, so that
κ is small once more.

**Where it fails: a size that the targets fix.** The same without the outer N, y = x + W₂·relu(W₁·N(x)):

{pinned_table(found["pinned"])}

Here the loss has curvature along the size of W₁ and W₂. The top direction, which the task uses, is held close
to where the targets want it, and the less so the weaker noise makes the task's hold. √(η/ω) is the law
of matrices whose size the loss does not see, as a norm after the branch or before the next layer makes it:
the task's gradient is then orthogonal to W₁ and W₂, and what it holds is their direction.

## 2. σ_top against the width, at fixed η and ω

{width_table(found["width"], experiment["widths"])}

At width {base}:

{base_table(found["width"])}

**Kept** is how much of the top direction is left after {window:g}/(ηω) steps. Decay leaves
{percent(math.exp(-window))} of it; the rest is what the task holds, or has found again.

What is coherent adds to σ_top in proportion to d, noise in proportion to √d, so that between the ends the
exponent grows with the width. Over a range of widths an exponent of {PUBLISHED_EXPONENT} is a mixture met on
the way from ½ to 1, no constant of AdamW.

## 3. The rules: η ∝ 1/d and ω ∝ √d, constant, ∝ d

{rules_table(found["rules"])}

**Predicted** is (lr exponent − decay exponent)/2 + e, with e and the interval of section 2; they agree where
the interval of the difference contains 0. **With (ηω)^κ** adds (lr exponent + decay exponent)·κ, with κ
over the larger ηω of section 1, as far as ηω goes under constant decay. F is no exact power, and κ is that
of one width. Width by width, σ_top is at most {miss:.0f} % away from √(η/ω) times its value at the η and ω
of the base.

Under the proportional decay ηω is the same at every width. Its rows then repeat section 2 by the identity of
section 1 (σ_top is within {identity:.1g} % of it width by width) and are no evidence of their own; they are
left out of the counts, and run with one seed.

## Whether they were in equilibrium

Over {rest["runs"]} runs, ln σ_top in the second half of the window less that in the first is
{number(rest["halves"], 4)} ± {number(2 * rest["halves_error"], 4)} on average, with a scatter of
{rest["scatter"]:.3f} from matrix to matrix. The norm is {100 * rest["distance_median"]:.1f} % from the
balance of its forces in the median, {100 * rest["distance_largest"]:.0f} % at most.
"""
