"""Forces recovered from checkpoints alone, beside the true ones that a ledger kept."""

from pathlib import Path
from typing import Any

import numpy as np
from recovery_accuracy import Plan, experiment, table
from recovery_pictures import draw_accuracy

from .claims import Claim, percent

NAME = "recovery"
TITLE = "Forces recovered from checkpoints"
SPACINGS = ("10", "20", "50")
"""Steps of 1,000 between checkpoints; [W2] has 250, 500 and 1,000 of 20,000, which are 12.5, 25 and 50."""


def findings(plan: Plan, out: Path) -> dict[str, Any]:
    """Train the runs that are missing, recover their forces by every method, and compare."""
    return experiment(plan, out)


def over_spacings(found: dict[str, Any], method: str, key: str) -> tuple[float, float] | None:
    """Least and greatest of the medians over the runs, of the transmission weights in the rise."""
    medians = []
    for spacing in SPACINGS:
        values = [
            row["rise"][key]
            for row in found["runs"]
            if (row["schedule"], row["method"], row["role"]) == (spacing, method, "transmission")
            and row["rise"][key] is not None
        ]
        medians += [float(np.median(values))] if values else []
    return (min(medians), max(medians)) if medians else None


def claims(found: dict[str, Any]) -> list[Claim]:
    """How close the spline comes, and how much closer than two points."""
    exact, published = (over_spacings(found, "spline", key) for key in ("ratio", "as_published"))
    two, corrected = (over_spacings(found, method, "ratio") for method in ("two_point", "corrected"))
    if exact is None or published is None or two is None or corrected is None:
        return []
    near = 0.9 <= published[0] <= published[1] <= 0.98
    closer = max(abs(1 - ratio) for ratio in exact) < min(abs(1 - ratio) for ratio in two)
    verdict = "holds" if closer else "does not hold"
    return [
        Claim(
            "[W2] a spline through checkpoints recovers the alignment in the rise",
            "ratio 0.92–0.97",
            between(exact),
            between(published),
            f"{'holds' if near else 'does not hold'}: it sees alignment + injection, and the published ratio "
            "divides by alignment + 2·injection; less an estimate of the injection (`corrected`) it is "
            f"{between(corrected)}",
        ),
        Claim(
            "[W2] about twice as good as two points",
            "two points 0.4–0.5",
            between(two),
            "–",
            f"{verdict}: off by {percent(*sorted(1 - ratio for ratio in two))}, "
            f"the spline by {percent(*sorted(abs(1 - ratio) for ratio in exact))}",
        ),
    ]


def between(band: tuple[float, float]) -> str:
    """A ratio, from … to."""
    return "–".join(dict.fromkeys(f"{value:.3f}" for value in band))


def draw(found: dict[str, Any], path: Path) -> None:
    """Recovered beside true over one run, and the errors of all by spacing."""
    shown = {
        name: np.asarray(column) if isinstance(column, list) else column
        for name, column in found["shown"].items()
    }
    draw_accuracy(found["runs"], shown, path)


def section(found: dict[str, Any]) -> str:
    """The table of the transmission weights; all others are on a page of their own."""
    return (
        "Attention output and FFN, medians over the runs. Ratio: recovered over true alignment in the rise; "
        "as published: over −2η⟨w⁺,u⟩; error: median of |ratio − 1|; impulse: the sum between checkpoints. "
        "Other roles, and other ways to interpolate: [recovery.md](../benchmarks/results/recovery.md).\n\n"
        f"{table(found['runs'], 'transmission')}"
    )
