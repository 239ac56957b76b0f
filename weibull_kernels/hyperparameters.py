"""The numbers that the tensors of an optimizer are stepped with, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .optimizers import Settings, require_look_back, settings_of

Numbers = list[float | Tensor]
"""Rows of `HYPERPARAMETERS`, one after the other."""


class Kinds:
    """The rows of one device that share their numbers: those of one group and dtype.

    Args:
        device: of the tensors.
        rows: of each, its group, the dtype of its weight, and whether it was stepped.

    Attributes:
        of_rows: the kind of each row.
    """

    def __init__(self, device: torch.device, rows: Sequence[tuple[int, torch.dtype, bool]]) -> None:
        place = {kind: i for i, kind in enumerate(dict.fromkeys(rows))}
        self.of_rows = [place[row] for row in rows]
        # How the decay is rounded depends on dtype and device, of which an empty tensor tells.
        self._kinds = [
            (group, torch.empty(0, dtype=dtype, device=device), stepped) for group, dtype, stepped in place
        ]

    def numbers(
        self, groups: Sequence[dict[str, Any]], settings: Sequence[Settings], *, looking_back: bool
    ) -> Numbers:
        """The numbers of each kind; `looking_back` raises a ValueError where a step cannot be undone."""
        numbers: Numbers = []
        for group, like, stepped in self._kinds:
            one = settings[group]
            factor = one.decay_factor(like) if stepped else 1.0
            if looking_back:
                require_look_back(one, factor)
            sign = -1.0 if groups[group]["maximize"] else 1.0
            rounded = float(one.bias_correction_in_float32(like))
            numbers += [one.lr, factor, one.beta1, one.beta2, one.eps, sign, rounded]
        return numbers


class PresentNumbers:
    """The numbers of the kinds of each device, the same lists as long as no group has another number.

    Args:
        kinds: of each device.
        by_torch: whether the step is torch's own, see `Settings`.
        looking_back: see `Kinds.numbers`.
    """

    def __init__(self, kinds: Sequence[Kinds], *, by_torch: bool, looking_back: bool) -> None:
        self._kinds, self._by_torch, self._looking_back = kinds, by_torch, looking_back
        self._known: tuple[list[Any], list[Numbers]] | None = None

    def of(self, groups: Sequence[dict[str, Any]], rates: Sequence[float | Tensor | None]) -> list[Numbers]:
        """Of each device, with these rates in place of the groups' own where given."""
        key: list[Any] = [*rates]
        for group in groups:
            key += group["lr"], group["weight_decay"], *group["betas"], group["eps"], group["maximize"]
        # Not compared, which would wait for the device.
        tensors = any(isinstance(number, Tensor) for number in key)
        if not tensors and self._known is not None and self._known[0] == key:
            return self._known[1]
        settings = [
            settings_of(group, rate, by_torch=self._by_torch)
            for group, rate in zip(groups, rates, strict=True)
        ]
        found = [kinds.numbers(groups, settings, looking_back=self._looking_back) for kinds in self._kinds]
        self._known = None if tensors else (key, found)
        return found
