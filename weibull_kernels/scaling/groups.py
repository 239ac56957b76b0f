"""Param groups that carry lr and weight decay from a narrow model to a wide one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..names import Named, pairs
from .classes import Classification, classes_or
from .rules import WidthRule, coupled_decay, named_rule, require_number, require_positive, width_ratio

_TOLERANCE = 1e-6  # of a ratio, above what a schedule in float32 leaves


def param_groups(
    named: Named,
    *,
    width: float,
    base_width: float,
    lr: float,
    weight_decay: float,
    rule: str | WidthRule = "published",
    decay: str = "coupled",
    head: str = "vector",
    overrides: Mapping[str, str] | None = None,
    classes: Classification | None = None,
) -> list[dict[str, Any]]:
    """Two param groups, with which what was tuned at `base_width` holds at `width` [F].

        matrix-like: lr = η·m⁻¹, weight_decay = ω·m^½        m = width/base_width
        vector-like: lr = η,     weight_decay = 0

    in PyTorch's coupled convention, for `torch.optim.AdamW` and `wk.AdamW`. Embeddings, norms and
    biases are vector-like, the head by choice. A schedule that multiplies each group's lr, as
    `LambdaLR` does, keeps the ratio; one that sets an lr, as `OneCycleLR` from one `max_lr`, does not:
    hand it `peak_lrs(optimizer, lr)`, and let `require_ratios` see.

    Args:
        named: a model, or pairs (name, parameter). Of a model tied parameters are found.
        width: of the model at hand.
        base_width: of the proxy, at which `lr` and `weight_decay` are those of its matrices.
        lr: η at its peak.
        weight_decay: ω.
        rule: a name in `RULES`, or exponents of one's own.
        decay: what `weight_decay` means: "coupled", PyTorch's, multiplied by lr in a step;
            "independent", the part of w that a step takes off (see `coupled_decay`).
        head: "vector" or "matrix"; a vector-like head wants its logits times `output_scale(m)`. One that is
            tied to an embedding stays vector-like.
        overrides: as for `classify`.
        classes: from `classify`, before the model was wrapped or sharded; instead of overrides.

    Returns:
        The groups that are not empty. Each has, beside the parameters as pairs with their names, `lr` and
        `weight_decay`, the number `lr_ratio` = lr/η that `require_ratios` goes by, and its
        `scaling_class`. A state_dict keeps them.

    Raises:
        ValueError: a number, rule or choice that makes no sense; a parameter without a class, as
            in `classify`, or not in `classes`.
        TypeError: there is no parameter under a name.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64))
    >>> groups = param_groups(
    ...     [("mlp.up_proj.weight", weight)], width=1024, base_width=64, lr=0.01, weight_decay=0.1
    ... )
    >>> groups[0]["lr"], groups[0]["weight_decay"]
    (0.000625, 0.4)
    """
    m = width_ratio(width, base_width)
    settings = laws(m, lr=lr, weight_decay=weight_decay, rule=rule, decay=decay, head=head)
    found = pairs(named)
    classes = classes_or(classes, found, overrides)

    groups: dict[str, dict[str, Any]] = {
        law: {"params": [], **numbers, "scaling_class": law} for law, numbers in settings.items()
    }
    placed = set()
    for name, parameter in found:
        if not isinstance(parameter, torch.Tensor):
            raise TypeError(
                f"expected a parameter under '{name}', got {parameter!r}; describe() takes shapes"
            )
        if id(parameter) not in placed:
            groups[law_of(classes.of(name), head)]["params"].append((name, parameter))
        placed.add(id(parameter))
    return [group for group in groups.values() if group["params"]]


def laws(
    m: float, *, lr: float, weight_decay: float, rule: str | WidthRule, decay: str, head: str
) -> dict[str, dict[str, float]]:
    """`lr`, coupled `weight_decay` and `lr_ratio` of "matrix" and "vector", as `param_groups` takes them."""
    require_positive("lr", lr)
    require_number("weight_decay", weight_decay)
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be 0 or a positive number, got {weight_decay}")
    if decay not in ("coupled", "independent"):
        raise ValueError(f"decay must be 'coupled' or 'independent', got {decay!r}")
    if head not in ("vector", "matrix"):
        raise ValueError(f"head must be 'vector' or 'matrix', got {head!r}")
    rule = named_rule(rule)
    if decay == "independent":
        weight_decay = coupled_decay(weight_decay, lr)
    ratio = rule.lr_ratio(m)
    scaled = weight_decay * rule.weight_decay_ratio(m)
    return {
        "matrix": {"lr": lr * ratio, "weight_decay": scaled, "lr_ratio": ratio},
        "vector": {"lr": lr, "weight_decay": 0.0, "lr_ratio": 1.0},
    }


def law_of(scaling_class: str, head: str) -> str:
    """The law that a class follows, "matrix" or "vector"; a head's is a choice."""
    if scaling_class == "head":
        return head
    return "matrix" if scaling_class == "matrix" else "vector"


def peak_lrs(optimizer: torch.optim.Optimizer, lr: float) -> list[float]:
    """The lr of each param group for a peak of η = `lr`, as schedules take them that set one.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(64, 64))
    >>> groups = param_groups({"mlp.up_proj.weight": weight}, width=128, base_width=64, lr=1, weight_decay=0)
    >>> peak_lrs(torch.optim.AdamW(groups), lr=0.01)
    [0.005]

    Raises:
        ValueError: a group is not from `param_groups`.
    """
    return [lr * ratio for ratio in _ratios(optimizer)]


def require_ratios(optimizer: torch.optim.Optimizer) -> None:
    """Checks that the groups of `param_groups` still have the lrs they had to each other.

    Where a schedule sets one lr for all groups, or a common floor, the scaling is lost without a word.

    Raises:
        ValueError: they have not; the groups are named. Or a group is not from `param_groups`.
    """
    ratios = _ratios(optimizer)
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    etas = [lr / ratio for lr, ratio in zip(lrs, ratios, strict=True)]
    for row, eta in enumerate(etas):
        if abs(eta - etas[0]) > _TOLERANCE * max(abs(eta), abs(etas[0])):
            raise ValueError(
                f"the lr of group {row} ({optimizer.param_groups[row]['scaling_class']}) is {lrs[row]:.9g} "
                f"and should be {etas[0] * ratios[row]:.9g}, {ratios[row] / ratios[0]:g} times that of group "
                "0: something set it instead of multiplying it. Give a schedule that sets an lr one for each "
                "group, peak_lrs(optimizer, lr), and no floor but 0"
            )


def _ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    for row, group in enumerate(optimizer.param_groups):
        if "lr_ratio" not in group:
            raise ValueError(f"param group {row} has no lr_ratio; make the groups with scaling.param_groups")
    return [float(group["lr_ratio"]) for group in optimizer.param_groups]
