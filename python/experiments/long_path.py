"""Short runs that lead as far as the published ones."""

from dataclasses import replace

from settings import Settings

from .presets import PYTHIA_70M

MEMORY = 1 / (1 - PYTHIA_70M.beta2) / PYTHIA_70M.steps
"""1/(1 − β₂) of [W2], 1,000 of 20,000 steps, as a part of the run."""

WARMUP = 0.1
"""The most of a run that may be warm-up."""

FASTER = 20
"""The most by which η is larger: as much as 1,000 steps take, and shorter ones are for tests."""


def as_long(base: Settings) -> Settings:
    """The base such that its fewer steps lead as far as those of the published runs, at the same ω.

    An age over 1 in a twentieth of the steps takes twenty times the decay in each, which beats every growth
    from the first step on unless that is faster too. So these are as in the published run, which itself
    stays what it is:

        η        as much larger as there are fewer steps: the same Ση
        β₂       1/(1 − β₂) is the same part of the run: else √v̂ never forgets the large first gradients
        warm-up  as many steps, but at most a tenth of the run
    """
    shorter = min(PYTHIA_70M.steps / base.steps, FASTER)
    return replace(
        base,
        lr=float(f"{PYTHIA_70M.lr * shorter:.6g}"),
        beta2=float(f"{1 - 1 / max(MEMORY * base.steps, 2):.6g}"),
        warmup=min(PYTHIA_70M.warmup_steps, round(WARMUP * base.steps)),
    )


def told(lr: float, steps: int) -> str:
    """How such runs differ from their preset, in a sentence for the page."""
    return (
        f"The runs have the Ση of [W2]: η = {lr:g} over {steps:,} steps, with 1/(1 − β₂) a twentieth of the "
        "run, as there, and warm-up at most a tenth."
    )
