"""The force budget: which force moved the squared norm of each tensor, and by how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .columns import Columns, picked
from .roles import matching_rows, roles_of
from .statistics import WeightStatistics

Array = Any
"""A torch tensor, a numpy array or a number: what comes in is what goes out."""


@dataclass(frozen=True, eq=False)
class Shares(Columns):
    """Each force as a part of |alignment| + |injection| + |decay|; signed, [P], NaN where all are zero."""

    alignment: Array
    injection: Array
    decay: Array
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class ForceBudget(Columns):
    """Signed contributions to Δ‖w‖² of P tensors; positive means growth.

        Δ‖w‖² = alignment + injection + decay + coupling        (exact, [W2] with its second order)
        alignment = −2η⟨w,u⟩              injection = η²‖u‖²
        decay     = −2(1−c)‖w‖²           coupling  = (1−c)·(2η⟨w,u⟩ + (1−c)‖w‖²)

    for AdamW's step w⁺ = c·w − η·u with c = 1 − ηω. All sums are those before the step.

    Attributes:
        alignment, injection, decay, coupling: [P] float64, in units of ‖w‖².
        norm_sq: [P] float64, ‖w‖² before the step or steps.
        rounding: [P] float64, measured Δ‖w‖² − `predicted_change`: what the rounding of single
            entries did, as the ledger of `wk.AdamW` books it; None where nothing was measured.
        numel: [P] int64, entries of each tensor; None where it was not told.
        steps: [P] int64, optimizer steps covered; 0 for a tensor that did not move, whose
            forces are zero and whose norm_sq is the present one.
        step: [P] int64, how many steps the optimizer had made on the tensor after the last of them.
        tensors: [P] int64 or a number, how many tensors a row sums; 1 but for `total`.
        names: of the tensors, or None.
        weights: statistics of the weights after the last step, or None.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    alignment: Array
    injection: Array
    decay: Array
    coupling: Array
    norm_sq: Array
    rounding: Array = None
    numel: Array = None
    steps: Array = 1
    step: Array = None
    tensors: Array = 1
    names: tuple[str, ...] | None = None
    weights: WeightStatistics | None = None
    role_overrides: Mapping[str, str] | None = None

    @classmethod
    def from_sums(
        cls,
        weight_update: Array,
        update_sq: Array,
        norm_sq: Array,
        *,
        lr: Array,
        weight_decay: Array = 0.0,
        at: str = "before",
        decay_factor: Array = None,
        **described: Any,
    ) -> ForceBudget:
        """The budget of one step from its three sums, of any shape that broadcasts.

        Taken after the step, with w⁺ in place of w, the sums before it follow by algebra:

            ⟨w,u⟩ = (⟨w⁺,u⟩ + η‖u‖²)/c        ‖w‖² = (‖w⁺‖² + 2η⟨w⁺,u⟩ + η²‖u‖²)/c²

        Args:
            weight_update: ⟨w,u⟩, or ⟨w⁺,u⟩ with at="after"; u = m̂/(√v̂+ε).
            update_sq: ‖u‖².
            norm_sq: ‖w‖², or ‖w⁺‖² with at="after".
            lr: η of the step.
            weight_decay: ω, decoupled.
            at: "before" or "after" the step.
            decay_factor: c as the optimizer rounded it; 1 − lr·weight_decay if None.
            described: `numel`, `steps`, `step`, `names`, `weights` of the budget.

        Raises:
            ValueError: `at` is neither; or c is 0, and the weights before the step are lost (with
                tensors, whose values are not looked at, the result is infinite instead).

        >>> budget = ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
        >>> round(budget.predicted_change, 6)  # w⁺ = 0.99·w − 0.1·u
        0.0294
        """
        if at not in ("before", "after"):
            raise ValueError(f"at must be 'before' or 'after' the step, got {at!r}")
        # Widened first: at ηω = 1e-5 a float32 c would be off by a thousandth of the decay.
        decay_given = weight_decay if decay_factor is None else decay_factor
        weight_update, update_sq, norm_sq, lr, given = _as_doubles(
            weight_update, update_sq, norm_sq, lr, decay_given
        )
        c = 1 - lr * given if decay_factor is None else given
        if at == "after":
            if not isinstance(c, Tensor) and np.any(c == 0):
                raise ValueError(
                    "lr·weight_decay is 1: the step erased the weights, so at='after' cannot look back"
                )
            norm_sq = (norm_sq + 2 * lr * weight_update + lr**2 * update_sq) / c**2
            weight_update = (weight_update + lr * update_sq) / c
        lost = 1 - c
        return cls(
            alignment=-2 * lr * weight_update,
            injection=lr**2 * update_sq,
            decay=-2 * lost * norm_sq,
            coupling=lost * (2 * lr * weight_update + lost * norm_sq),
            norm_sq=norm_sq,
            **described,
        )

    def __post_init__(self) -> None:
        if self.names is not None and self._shape != (len(self.names),):
            raise ValueError(
                f"names must be one for each row [P], got {len(self.names)} for shape {self._shape}"
            )

    @property
    def _shape(self) -> tuple[int, ...]:
        """That of the columns; a number is one row."""
        return tuple(np.shape(self.alignment)) or (1,)

    @property
    def predicted_change(self) -> Array:
        """Δ‖w‖² of the step in exact arithmetic: the sum of the four, [P]."""
        return self.alignment + self.injection + self.decay + self.coupling

    @property
    def absolute(self) -> Array:
        """|alignment| + |injection| + |decay|, [P]: what the shares are shares of."""
        return abs(self.alignment) + abs(self.injection) + abs(self.decay)

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The role of each tensor, as by `wk.role_of`; None where there are no names."""
        return None if self.names is None else roles_of(self.names, self.role_overrides)

    def shares(self) -> Shares:
        """Each force over the absolute budget, signed, [P]; NaN for a tensor that did not move."""
        with np.errstate(invalid="ignore"):
            whole = self.absolute
            whole = whole if isinstance(whole, (Tensor, np.ndarray)) else np.float64(whole)
            return Shares(self.alignment / whole, self.injection / whole, self.decay / whole, self.names)

    def total(self, pattern: str = "*", *, role: str | None = None) -> ForceBudget:
        """One row: the sum over the tensors whose name matches.

        Args:
            pattern: as in `fnmatch`, such as "*.mlp.*"; all tensors by default.
            role: only those of this role; "transmission" is attention output and FFN together.

        Raises:
            ValueError: no name matches, or the budget has no names to match.
        """
        chosen = self.select(self._matching(pattern, role))
        return chosen._summed(pattern if role is None else role, role)

    def select(self, rows: list[int]) -> ForceBudget:
        """The budget of the given rows alone."""

        def pick(value: Array) -> Array:
            return picked(value, rows) if isinstance(value, (Tensor, np.ndarray)) and value.ndim else value

        return dataclasses.replace(
            self,
            **{field: pick(getattr(self, field)) for field in _COLUMNS},
            names=None if self.names is None else tuple(self.names[row] for row in rows),
            weights=None if self.weights is None else self.weights.select(rows),
        )

    def as_published(self) -> ForceBudget:
        """The reading of the code published with [W2], for comparison with its figures only.

        It measures −2η⟨w⁺,u⟩ and −2ηω‖w⁺‖² after the step and still adds η²‖u‖², which counts
        the injection twice. Exact for one step of one tensor, first order in ηω over several of
        either, where alignment becomes alignment + 2·injection: take the total afterwards.
        """
        before = self.norm_sq
        one = (self.steps == 1) * (self.tensors == 1) * 1
        # c from decay = −2(1−c)‖w‖²; a tensor of zeros has no decay to read it from, nor any to show.
        lost = -self.decay / (2 * before + (before == 0))
        after = before + self.predicted_change
        return dataclasses.replace(
            self,
            alignment=self.alignment * (1 - lost * one) + 2 * self.injection,
            decay=self.decay * (1 - one) - 2 * lost * after * one,
            coupling=self.coupling * 0,
            rounding=None,
        )

    def _matching(self, pattern: str, role: str | None) -> list[int]:
        if len(self._shape) > 1:
            raise ValueError(
                f"total() and select() take a budget of [P] rows, this one has shape {self._shape}"
            )
        if self.names is None or self.roles is None:
            if pattern == "*" and role is None:
                return list(range(self._shape[0]))
            raise ValueError(
                f"this budget has no names to match {role or pattern!r} with; give names= to from_sums"
            )
        return matching_rows(self.names, self.roles, pattern, role)

    def _summed(self, name: str, role: str | None) -> ForceBudget:
        def reduced(field: str) -> Array:
            value = getattr(self, field)
            if not isinstance(value, (Tensor, np.ndarray)):
                return (
                    value * self._shape[0] if field in ("numel", "tensors") and value is not None else value
                )
            return (value.max() if field in ("steps", "step") else value.sum()).reshape(1)

        overrides = self.role_overrides if role is None else {name: role}
        columns = {field: reduced(field) for field in _COLUMNS}
        return ForceBudget(**columns, names=(name,), role_overrides=overrides)

    def __str__(self) -> str:
        from .report import budget_table  # the one call against the stream: print() must find the table

        return budget_table(self)


_COLUMNS = (
    *("alignment", "injection", "decay", "coupling", "norm_sq", "rounding"),
    *("numel", "steps", "step", "tensors"),
)


def _as_double_on(device: torch.device, value: Array) -> Tensor:
    if isinstance(value, (int, float)):  # a copy from the host would wait for the device
        return torch.full((), value, dtype=torch.float64, device=device)
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def _as_doubles(*values: Array) -> Sequence[Array]:
    """In float64 and of one shape: tensors if one is a tensor, numbers if all are, else numpy arrays."""
    tensor = next((value for value in values if isinstance(value, Tensor)), None)
    if tensor is not None:
        tensors = [_as_double_on(tensor.device, value) for value in values]
        return list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
    if all(isinstance(value, (int, float)) for value in values):
        return values
    arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
    return [array[()] for array in arrays]  # a 0-dim array becomes a number
