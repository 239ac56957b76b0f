"""Powers of η: what follows which, and how they add up."""

import math
from typing import Any

import numpy as np

QUANTITIES = (
    "peak",
    "peak_rms",
    "from_start",
    "squares",
    "pushed",
    "aligned",
    "path",
    "cosine",
    "update",
    "final",
)
"""In the order of the ladder:

peak         λ at its peak
peak_rms     σ at its peak
from_start   that less σ₀
squares      √(λ_peak² − λ₀²)
pushed       what alignment and injection did to σ up to its peak: `from_start` without what decay took
aligned      what alignment did
path         Ση up to the peak of σ
cosine       cosθ of w and −u, in the mean over what the updates moved
update       û, the root mean square of u, in the mean over Ση: aligned = path · cosine · update
final        λ at the end
"""


def ladder(
    scale: dict[str, float], rms: dict[str, float], made: dict[str, float], path: float
) -> dict[str, float]:
    """Of one run, what can be said of a published one too: from the peak of λ down to Ση."""
    return {
        "peak": scale["peak"],
        "peak_rms": rms["peak"],
        "from_start": rms["peak"] - rms["start"],
        "squares": math.sqrt(max(scale["peak"] ** 2 - scale["start"] ** 2, 0.0)),
        "pushed": made["alignment"] + made["injection"],
        "path": path,
    }


def power(rates: list[float], values: list[float]) -> dict[str, Any] | None:
    """The power of η by least squares of ln value on ln η, with its standard error, and from η to η.

    None where a value is not positive, or there is only one η. Without more points than two the error is
    None.
    """
    if min(values) <= 0 or len(set(rates)) < 2:
        return None
    x, y = np.log(rates), np.log(values)
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    left = y - y.mean() - slope * away
    free = len(x) - 2
    error = math.sqrt(float(left @ left) / free / float(away @ away)) if free else None
    places = sorted(set(rates))
    means = [float(np.mean([v for r, v in zip(rates, y, strict=True) if r == rate])) for rate in places]
    local = np.diff(means) / np.diff(np.log(places))
    return {"power": slope, "error": error, "local": local.tolist()}


def attribution(powers: dict[str, Any]) -> dict[str, float] | None:
    """What adds up to the power of the peak of λ; None where a part is unknown.

    Least squares are linear, so that powers of products are sums: exactly

        peak = path + cosθ·û + injection + decay + start + bridge

    with injection = pushed − aligned, decay = from_start − pushed, start = peak σ − from_start and
    bridge = λ − σ. Where the alignment alone is not known, its cosθ·û includes the injection.
    """
    needed = ("peak", "peak_rms", "from_start", "pushed", "path")
    if any(powers.get(name) is None for name in needed):
        return None
    value = {name: each["power"] for name, each in powers.items() if isinstance(each, dict)}
    parts = {"path": value["path"]}
    if "aligned" in value:
        parts |= {name: value[name] for name in ("cosine", "update")}
        parts["injection"] = value["pushed"] - value["aligned"]
    else:
        parts["drive"] = value["pushed"] - value["path"]
    return parts | {
        "decay": value["from_start"] - value["pushed"],
        "start": value["peak_rms"] - value["from_start"],
        "bridge": value["peak"] - value["peak_rms"],
    }
