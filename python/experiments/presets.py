"""The sizes at which the experiments run."""

from dataclasses import replace
from typing import Any

from settings import Settings

PYTHIA_70M = Settings(
    steps=20_000,
    width=512,
    layers=6,
    heads=8,
    context=512,
    batch=24,
    lr=1e-3,
    weight_decay=0.01,
    beta2=0.999,
    warmup=200,
    final_lr=0.1,
    clip=None,
    every=50,
    fit_every=1,
    device="cuda",
    autocast=True,
)
"""The published runs: architecture, schedule, steps and batch of [W2].

Activations are bfloat16, and text is bytes, so that embedding and head are smaller; the transmission weights
are the same 14,155,776.
"""


def with_age(settings: Settings, age: float) -> Settings:
    """The settings with the weight decay that makes Ση·ω this large."""
    return replace(settings, weight_decay=age / (settings.lr * settings.lr_sum))


def with_steps(settings: Settings, steps: int) -> Settings:
    """The same schedule over another number of steps, and the decay that leaves Ση·ω what it was."""
    warmup = round(settings.warmup_steps * steps / settings.steps)
    every = min(settings.every, max(1, steps // 40))
    return with_age(replace(settings, steps=steps, warmup=warmup, every=every), settings.age)


CPU = with_age(
    replace(
        with_steps(PYTHIA_70M, 1000),
        lr=4e-3,
        width=64,
        layers=4,
        heads=4,
        context=64,
        batch=16,
        every=5,
        device="cpu",
        autocast=False,
    ),
    PYTHIA_70M.age,
)
"""The same schedule in a twentieth of the steps, half a minute on two cores.

lr is four times as large, so that λ grows as much; Ση·ω is that of the published runs, 0.11.
"""

PRESETS = {"cpu": CPU, "pythia-70m": PYTHIA_70M}


def preset(name: str, steps: int | None = None, **changed: Any) -> Settings:
    """A preset, at another size where that is said.

    Raises:
        ValueError: there is no such preset, or `Settings` does not take what is changed.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    settings = PRESETS[name] if steps is None else with_steps(PRESETS[name], steps)
    return replace(settings, **{key: value for key, value in changed.items() if value is not None})
