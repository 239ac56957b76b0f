"""What the papers say beside what came out here: the table of the results page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One row of the table, as text.

    Attributes:
        claim: what is said, and by whom: [W1], [W2] or [W3].
        published: the published figure.
        exact: ours, by the exact budget.
        as_published: ours, read as the published code does; "–" where that makes no difference.
        verdict: begins with "holds", "holds in part" or "does not hold", and is short.
        reason: where ours differs, by what and why, in a sentence for the text below the table; or "".
    """

    claim: str
    published: str
    exact: str
    as_published: str
    verdict: str
    reason: str = ""

    def row(self, command: str) -> str:
        """In Markdown."""
        cells = (self.claim, self.published, self.exact, self.as_published, self.verdict, f"`{command}`")
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| claim | published | ours, exact | ours, as published | verdict | command |\n|---|---|---|---|---|---|"
)


QUARTER = 0.25
"""A figure is the published one within this part of it."""


def near(values: list[float], least: float, most: float | None = None) -> bool:
    """Whether all lie within a quarter of a published figure, or of the ends of a published band."""
    low, high = ends(values)
    return (1 - QUARTER) * least <= low and high <= (1 + QUARTER) * (least if most is None else most)


def judge(figures: bool, direction: bool) -> str:
    """A verdict by the rule of the page: whether the figures are near, and the direction is theirs."""
    return "holds" if figures and direction else "holds in part" if direction else "does not hold"


def ends(values: list[float]) -> tuple[float, float]:
    """Least and greatest."""
    return min(values), max(values)


def percent(*values: float, digits: int = 1) -> str:
    """Fractions in per cent: one, or from … to."""
    numbers = [f"{100 * value:.{digits}f}" for value in values]
    return f"{'–'.join(dict.fromkeys(numbers))} %"


def spread(values: list[float], digits: str = ".3g") -> str:
    """Mean ± standard deviation over seeds."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return format(mean, digits)
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    shown = f"{deviation:.0f}" if deviation >= 10 else f"{deviation:.1g}"  # not 1e+01
    return f"{mean:{digits}} ± {shown}"
