"""What a rule makes of the parameters of a model, as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..columns import Columns
from ..names import Named
from ..tables import NOTHING, new_table, plain_text, shown
from .classes import Classification, classes_or, labels
from .groups import law_of, laws
from .rules import SIGMA_EXPONENT, WidthRule, equilibrium_steps, named_rule, width_ratio


@dataclass(frozen=True, eq=False)
class ScalingTable(Columns):
    """A row for each parameter, or for the parameters of a kind; prints as a table.

    Attributes:
        names: [P]; of a kind, with * for the numbers of the layers.
        classes: [P], one of `SCALING_CLASSES`.
        shapes: [P], as given.
        lr, weight_decay: float64 [P], those of the parameter's group, the latter coupled.
        shrinkage: float64 [P], lr·weight_decay, the part of w that a step takes off.
        sigma_ratio: float64 [P], predicted σ_top at `width` over that at `base_width`, both in
            equilibrium, of matrices both of whose sides grow with the width; NaN for what does not decay,
            and for a head, whose one side is the vocabulary.
        steps_to_equilibrium: float64 [P], 3/(lr·weight_decay); infinite without decay.
        tensors: int64 [P], how many parameters a row stands for.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    lr: np.ndarray
    weight_decay: np.ndarray
    shrinkage: np.ndarray
    sigma_ratio: np.ndarray
    steps_to_equilibrium: np.ndarray
    tensors: np.ndarray

    def by_kind(self) -> ScalingTable:
        """A row for the parameters that differ in the number of their layer only."""
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for row, name in enumerate(self.names):
            kind = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)
            kinds.setdefault((kind, self.classes[row], self.shapes[row]), []).append(row)
        first = [rows[0] for rows in kinds.values()]
        return ScalingTable(
            names=tuple(kind for kind, _, _ in kinds),
            classes=tuple(self.classes[row] for row in first),
            shapes=tuple(self.shapes[row] for row in first),
            tensors=np.array([self.tensors[rows].sum() for rows in kinds.values()]),
            **{name: getattr(self, name)[first] for name in _NUMBERS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, as numpy arrays; a shape is text such as 64x256."""
        columns = super().to_dict()
        return {"name": columns.pop("name")} | labels(self.classes, self.shapes) | columns

    def __str__(self) -> str:
        def number(value: float, digits: str) -> str:
            return format(value, digits) if np.isfinite(value) else NOTHING

        table = new_table(
            *("parameter", "class", "shape", "tensors", "lr", "weight\ndecay"),
            *("σ_top\nratio", "steps to\nequilibrium"),
        )
        for row, name in enumerate(self.names):
            table.add_row(
                shown(name),
                self.classes[row],
                "×".join(map(str, self.shapes[row])) or "scalar",
                str(self.tensors[row]),
                number(self.lr[row], ".3g"),
                number(self.weight_decay[row], ".3g"),
                number(self.sigma_ratio[row], ".3f"),
                number(self.steps_to_equilibrium[row], ",.0f"),
            )
        return plain_text(table)


_NUMBERS = ("lr", "weight_decay", "shrinkage", "sigma_ratio", "steps_to_equilibrium")


def describe(
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
    width_exponent: float = SIGMA_EXPONENT,
) -> ScalingTable:
    """What `param_groups` would give each parameter, and what it is to come to.

        σ_top(width)/σ_top(base_width) = m^((a−b)/2 + e)        steps to equilibrium = 3/(lr·ω)

    for lr ∝ m^a, ω ∝ m^b and σ_top ∝ √(lr/ω)·width^e. Under the published rule equilibrium takes √m
    longer at width ratio m.

    Args:
        named: a model, pairs of name and tensor, or a mapping from name to tensor or shape.
        width: of the model to train.
        base_width: of the proxy.
        lr: η of the proxy's matrices, at its peak.
        weight_decay: ω of the proxy's matrices.
        rule: as for `param_groups`, like those that follow.
        decay: what `weight_decay` means.
        head: the law of the head.
        overrides: patterns of names to classes.
        classes: from `classify`, instead of overrides; the names and shapes are then its.
        width_exponent: e; ¾ in [F], to be measured.

    Returns:
        A table with a row for each parameter.

    Raises:
        ValueError: as `param_groups` and `classify`.

    >>> table = describe(
    ...     {"mlp.up_proj.weight": (4096, 1024)}, width=1024, base_width=256, lr=0.01, weight_decay=0.1
    ... )
    >>> table.lr, table.weight_decay, table.sigma_ratio, table.steps_to_equilibrium
    (array([0.0025]), array([0.2]), array([1.]), array([6000.]))
    """
    m, rule = width_ratio(width, base_width), named_rule(rule)
    settings = laws(m, lr=lr, weight_decay=weight_decay, rule=rule, decay=decay, head=head)
    classes = classes_or(classes, named, overrides)
    chosen = [settings[law_of(scaling_class, head)] for scaling_class in classes.classes]
    lrs, decays = (np.array([numbers[name] for numbers in chosen]) for name in ("lr", "weight_decay"))
    decaying_matrix = (decays > 0) & (np.array(classes.classes) == "matrix")
    return ScalingTable(
        names=classes.names,
        classes=classes.classes,
        shapes=classes.shapes,
        lr=lrs,
        weight_decay=decays,
        shrinkage=lrs * decays,
        sigma_ratio=np.where(decaying_matrix, rule.sigma_ratio(m, width_exponent), np.nan),
        steps_to_equilibrium=np.array([equilibrium_steps(*pair) for pair in zip(lrs, decays, strict=True)]),
        tensors=np.ones(len(chosen), dtype=np.int64),
    )
