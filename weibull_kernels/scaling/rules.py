"""How learning rate and weight decay go with the width: pure functions of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

SIGMA_EXPONENT = 0.75
"""Of the width in σ_top ∝ √(η/ω)·width^e as [F] finds it; entries that are all noise have 0.5."""

TIME_CONSTANTS = 3.0
"""After which a norm counts as in equilibrium: what is left of the start is e⁻³ of ‖w‖, e⁻⁶ of ‖w‖²."""


@dataclass(frozen=True)
class WidthRule:
    """Exponents of the width ratio m in the lr and the weight decay of matrix-like parameters.

        lr = η·m^lr_exponent        weight_decay = ω·m^weight_decay_exponent        m = width/base_width

    in PyTorch's coupled convention, w ← (1 − lr·weight_decay)·w − lr·u. The defaults are [F]'s.
    Vector-like parameters keep η and do not decay, whatever the rule.

    Attributes:
        lr_exponent: −1 keeps what a matrix does to its output the same at every width.
        weight_decay_exponent: +½ keeps the top singular value where σ_top ∝ √(lr/ω)·width^¾.
    """

    lr_exponent: float = -1.0
    weight_decay_exponent: float = 0.5

    def lr_ratio(self, m: float) -> float:
        """The lr of a matrix at width ratio m over that at 1.

        >>> WidthRule().lr_ratio(16)
        0.0625
        """
        return float(m**self.lr_exponent)

    def weight_decay_ratio(self, m: float) -> float:
        """The coupled weight decay of a matrix at width ratio m over that at 1.

        >>> WidthRule().weight_decay_ratio(16)
        4.0
        """
        return float(m**self.weight_decay_exponent)

    def sigma_exponent(self, width_exponent: float = SIGMA_EXPONENT) -> float:
        """The slope of log σ_top on log width that the rule leaves, where σ_top ∝ √(lr/ω)·width^e.

        `width_exponent` is e: an output of measurements, between 0.5 (gradients of noise) and 1 (of
        few directions).

        >>> [rule.sigma_exponent() for rule in RULES.values()]
        [0.0, 0.25, -0.25]
        """
        return (self.lr_exponent - self.weight_decay_exponent) / 2 + width_exponent

    def sigma_ratio(self, m: float, width_exponent: float = SIGMA_EXPONENT) -> float:
        """The top singular value at width ratio m over that at 1, both in equilibrium."""
        return float(m ** self.sigma_exponent(width_exponent))


RULES = {
    "published": WidthRule(),
    "constant": WidthRule(weight_decay_exponent=0.0),
    "proportional": WidthRule(weight_decay_exponent=1.0),
}
"""By name: [F]'s rule and its rivals, a constant decay and one ∝ width, which keeps 1/(lr·ω)."""


def width_ratio(width: float, base_width: float) -> float:
    """The m of the laws, width/base_width.

    Raises:
        ValueError: one of them is not a positive number.
    """
    for name, value in (("width", width), ("base_width", base_width)):
        require_positive(name, value)
    return width / base_width


def coupled_decay(weight_decay: float, lr: float) -> float:
    """ω of PyTorch's w ← (1 − lr·ω)·w from the part of w that an independent decay takes off in a step.

    The same ω then holds under a schedule that also multiplies the independent decay.

    Args:
        weight_decay: of w ← (1 − weight_decay)·w − lr·u, at the peak `lr`.
        lr: η at its peak.

    Raises:
        ValueError: `lr` is not positive; `weight_decay` is negative or not under 1.

    >>> coupled_decay(1e-4, lr=1e-3)
    0.1
    """
    require_positive("lr", lr)
    if not 0 <= weight_decay < 1:
        raise ValueError(
            f"an independent weight_decay is the part of w taken off in a step, from 0 to under 1, got "
            f"{weight_decay}; PyTorch's number belongs to decay='coupled'"
        )
    return weight_decay / lr


def equilibrium_steps(lr: float, weight_decay: float) -> float:
    """Steps after which a norm is in equilibrium, 3/(lr·ω); infinite without decay.

    >>> equilibrium_steps(lr=1e-3, weight_decay=0.1)
    30000.0
    """
    shrinkage = lr * weight_decay
    return TIME_CONSTANTS / shrinkage if shrinkage > 0 else math.inf


def initial_std(scaling_class: str, fan_in: int) -> float:
    """Standard deviation to start entries with, a choice of ours.

    A matrix gives outputs of the size of its inputs, 1/√fan_in. An embedding, whose rows are looked
    up and not multiplied, starts at 1, a size that does not depend on the width; so that the first logits
    do not either, a head starts at 0. A gain or a bias starts at its constant, with no spread.

    Args:
        scaling_class: "matrix", "embedding", "head" or "vector".
        fan_in: inputs of the matrix.

    Raises:
        ValueError: there is no such class.
    """
    if scaling_class == "matrix":
        require_positive("fan_in", fan_in)
        return 1 / math.sqrt(fan_in)
    stds = {"embedding": 1.0, "head": 0.0, "vector": 0.0}
    if scaling_class not in stds:
        raise ValueError(f"scaling_class must be matrix, {', '.join(stds)}, got {scaling_class!r}")
    return stds[scaling_class]


def attention_scale(head_dim: int, base_head_dim: int | None = None) -> float:
    """What to multiply ⟨q,k⟩ by before the softmax, a choice of ours: √base_head_dim/head_dim.

    Trained queries and keys are aligned, so that their product grows with the head's dimension and
    not with its root. At the base it is the usual 1/√head_dim, and so it is in models that
    grow by more heads of one size, which is what None stands for.

    >>> attention_scale(64), attention_scale(256, base_head_dim=64)
    (0.125, 0.03125)
    """
    require_positive("head_dim", head_dim)
    base = head_dim if base_head_dim is None else base_head_dim
    require_positive("base_head_dim", base)
    return math.sqrt(base) / head_dim


def output_scale(m: float) -> float:
    """What to multiply the logits by where the head is vector-like, a choice of ours: 1/m.

    A head with a constant lr adds to its logits in proportion to the width; a matrix-like head,
    whose lr is ∝ 1/m, needs no factor.
    """
    require_positive("m", m)
    return 1 / m


def require_positive(name: str, value: float) -> None:
    """Raises a TypeError or ValueError that names what is not a positive finite number."""
    require_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


def require_number(name: str, value: object) -> None:
    """Raises a TypeError that names what is no number, such as text from a file of settings."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def named_rule(rule: str | WidthRule) -> WidthRule:
    """A rule, or that of a name in `RULES`.

    Raises:
        ValueError: no rule has the name.
    """
    if isinstance(rule, WidthRule):
        return rule
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)} or a WidthRule, got {rule!r}")
    return RULES[rule]
