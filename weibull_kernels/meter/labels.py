"""What the rows of a meter's records are called, and which of them are kept."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..budget import ForceBudget
from ..names import Named, pairs
from .probes import PlacedParameter, placed_parameters

_log = logging.getLogger("weibull_kernels")


class Labels:
    """Names for the parameters of several optimizers.

    Args:
        optimizers: whose parameters are to be named; they are not kept.
        names: where names are taken from; None for those that the optimizers know themselves.
        only: patterns, as in `fnmatch`, of the names to keep.
        roles: patterns to roles, as in `wk.role_of`.

    Raises:
        TypeError: `names` is none of the kinds of `Named`.
        ValueError: a parameter is not among `names`, or no name matches `only`.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        names: Named | None,
        only: str | Sequence[str],
        roles: Mapping[str, str] | None,
    ) -> None:
        # A model or mapping may name parameters later that it has not now; pairs may be read only once.
        self._source = names if isinstance(names, (torch.nn.Module, Mapping)) else None
        self._names = WeakIdKeyDictionary({} if names is None else _by_tensor(names))
        self._given = names is not None
        self._several = len(optimizers) > 1
        self._patterns = (only,) if isinstance(only, str) else tuple(only)
        self._roles = roles
        self._latest: tuple[tuple[int, list[int]], tuple[str, ...], list[int]] | None = None
        placed = [list(placed_parameters(one)) for one in optimizers]
        found = [name for place, rows in enumerate(placed) for name in self._names_of(place, rows)]
        unknown = [row for rows in placed for row in rows if row.tensor not in self._names]
        if self._given and unknown:
            raise ValueError(
                f"{len(unknown)} parameters of the optimizer are not in names=, the first at "
                f"{unknown[0].place}, of shape {tuple(unknown[0].tensor.shape)}; pass the model that owns "
                "all of them, or names=None"
            )
        if not any(map(self._kept, found)):
            raise ValueError(
                f"no name matches only={only!r}; the {len(found)} names begin with {', '.join(found[:3])}"
            )

    def on(
        self, place: int, optimizer: torch.optim.Optimizer, budget: ForceBudget
    ) -> tuple[ForceBudget, list[PlacedParameter]]:
        """The budget of the optimizer at a place with its names, of the rows to keep, and whose they are."""
        placed = list(placed_parameters(optimizer))
        names, rows = self._labelled(place, placed)
        weights = None if budget.weights is None else dataclasses.replace(budget.weights, names=names)
        named = dataclasses.replace(budget, names=names, weights=weights, role_overrides=self._roles)
        if len(rows) == len(names):
            return named, placed
        return named.select(rows), [placed[row] for row in rows]

    def follow(self, place: int, optimizer: torch.optim.Optimizer, twin: torch.optim.Optimizer) -> None:
        """Gives the parameters of a copy of the optimizer at a place the names of the original's."""
        if self._given:
            names = self._names_of(place, list(placed_parameters(optimizer)))
            for name, copied in zip(names, placed_parameters(twin), strict=True):
                self._names[copied.tensor] = name

    def _kept(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def _labelled(self, place: int, placed: Sequence[PlacedParameter]) -> tuple[tuple[str, ...], list[int]]:
        """The names, and the rows to keep; worked out again when there are other parameters."""
        identities = [id(row.tensor) for row in placed]
        if self._latest is None or self._latest[0] != (place, identities):
            names = self._names_of(place, placed)
            kept = [row for row, name in enumerate(names) if self._kept(name)]
            self._latest = (place, identities), names, kept
        return self._latest[1:]

    def _names_of(self, place: int, placed: Sequence[PlacedParameter]) -> tuple[str, ...]:
        if self._given and any(row.tensor not in self._names for row in placed):
            self._look_again()
        # Places in different optimizers are told apart.
        return tuple(
            self._names.get(row.tensor)  # type: ignore[no-untyped-call]
            or row.name
            or (f"{place}.{row.place}" if self._several else row.place)
            for row in placed
        )

    def _look_again(self) -> None:
        if self._source is not None:
            self._names.update(_by_tensor(self._source))


def _by_tensor(names: Named) -> WeakIdKeyDictionary:
    """The first name of each tensor."""
    found = WeakIdKeyDictionary()
    for name, tensor in pairs(names):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected a parameter under each name, got {type(tensor).__name__} under {name!r}"
            )
        found.setdefault(tensor, name)  # type: ignore[no-untyped-call]
    return found
