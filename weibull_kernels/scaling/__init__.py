"""Learning rates and weight decays that transfer across widths, and the check that they did [F]."""

from .classes import SCALING_CLASSES, Classification, classify
from .description import ScalingTable, describe
from .equilibrium import Equilibrium, equilibrium
from .groups import param_groups, peak_lrs, require_ratios
from .rules import (
    RULES,
    WidthRule,
    attention_scale,
    coupled_decay,
    equilibrium_steps,
    initial_std,
    output_scale,
    width_ratio,
)
from .transfer import TransferCheck, check_transfer, training_age

__all__ = [
    "RULES",
    "SCALING_CLASSES",
    "Classification",
    "Equilibrium",
    "ScalingTable",
    "TransferCheck",
    "WidthRule",
    "attention_scale",
    "check_transfer",
    "classify",
    "coupled_decay",
    "describe",
    "equilibrium",
    "equilibrium_steps",
    "initial_std",
    "output_scale",
    "param_groups",
    "peak_lrs",
    "require_ratios",
    "training_age",
    "width_ratio",
]
