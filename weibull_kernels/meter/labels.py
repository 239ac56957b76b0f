"""What the rows of a meter's records are called, and which of them are kept."""

from __future__ import annotations

import dataclasses
import logging
import warnings
import weakref
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..budget import ForceBudget
from ..dispatch import frames_to_the_caller
from ..names import Named, pairs
from ..optimizers import PlacedParameter, placed_parameters

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
        # A model may get parameters later. It is not kept: the meter may be there longer than it.
        self._model = weakref.ref(names) if isinstance(names, torch.nn.Module) else lambda: None
        self._names = WeakIdKeyDictionary({} if names is None else _by_tensor(names))
        self._given = names is not None
        self._several = len(optimizers) > 1
        self._patterns = (only,) if isinstance(only, str) else tuple(only)
        self._roles = roles
        self._complete = False  # as long as what is missing is an error of the caller's
        self._labels: dict[int, tuple[list[list[int]], _Labels]] = {}
        placed = [list(placed_parameters(one)) for one in optimizers]
        found = [name for place, rows in enumerate(placed) for name in self._names_of(place, rows)]
        unknown = [row for rows in placed for row in rows if row.tensor not in self._names]
        if self._given and unknown:
            raise ValueError(
                f"{len(unknown)} parameters of the optimizer are not in names=, the first at "
                f"{unknown[0].place}, of shape {tuple(unknown[0].tensor.shape)}; pass the model that owns "
                "all of them, or names=None"
            )
        self._complete = True
        self._warn_of_missing_roles(found, [row for rows in placed for row in rows])
        if not any(map(self._kept, found)):
            raise ValueError(
                f"no name matches only={only!r}; the {len(found)} names begin with {', '.join(found[:3])}"
            )

    def _warn_of_missing_roles(self, names: Sequence[str], placed: Sequence[PlacedParameter]) -> None:
        if not self._given and any(row.name is None for row in placed):
            warnings.warn(
                f"parameters are recorded by their place, such as '{placed[0].place}', of which no role can "
                "be told; give names=model, or named parameters to the optimizer",
                stacklevel=frames_to_the_caller(),
            )
        for pattern in self._roles or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                warnings.warn(
                    f"the pattern {pattern!r} of roles= matches none of the {len(names)} names, which begin "
                    f"with {', '.join(names[:3])}",
                    stacklevel=frames_to_the_caller(),
                )

    def on(
        self, place: int, optimizer: torch.optim.Optimizer, budget: ForceBudget
    ) -> tuple[ForceBudget, tuple[int, ...]]:
        """The budget of the optimizer at a place with its names, of the rows to keep, and their groups."""
        labels = self._labels_of(place, optimizer)
        weights = None if budget.weights is None else dataclasses.replace(budget.weights, names=labels.names)
        named = dataclasses.replace(budget, names=labels.names, weights=weights, role_overrides=self._roles)
        if len(labels.rows) == len(labels.names):
            return named, labels.groups
        return named.select(labels.rows), tuple(labels.groups[row] for row in labels.rows)

    def follow(self, place: int, optimizer: torch.optim.Optimizer, twin: torch.optim.Optimizer) -> None:
        """Gives the parameters of a copy of the optimizer at a place the names of the original's."""
        if self._given:
            names = self._names_of(place, list(placed_parameters(optimizer)))
            for name, copied in zip(names, placed_parameters(twin), strict=True):
                self._names[copied.tensor] = name

    def _kept(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def _labels_of(self, place: int, optimizer: torch.optim.Optimizer) -> _Labels:
        """They are worked out again when there are other parameters."""
        identities = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        known = self._labels.get(place)
        if known is None or known[0] != identities:
            placed = list(placed_parameters(optimizer))
            names = self._names_of(place, placed)
            rows = [row for row, name in enumerate(names) if self._kept(name)]
            known = identities, _Labels(names, rows, tuple(row.group_index for row in placed))
            self._labels[place] = known
        return known[1]

    def _names_of(self, place: int, placed: Sequence[PlacedParameter]) -> tuple[str, ...]:
        if self._given and any(row.tensor not in self._names for row in placed):
            self._look_again(placed)
        # Places in different optimizers are told apart.
        return tuple(
            self._names.get(row.tensor)  # type: ignore[no-untyped-call]
            or row.name
            or (f"{place}.{row.place}" if self._several else row.place)
            for row in placed
        )

    def _look_again(self, placed: Sequence[PlacedParameter]) -> None:
        """The names of parameters that were added since."""
        if (model := self._model()) is not None:
            self._names.update(_by_tensor(model))
        unknown = [row for row in placed if row.tensor not in self._names]
        if self._complete and unknown:
            _log.warning(
                "%d parameters that were added are not in names= and are recorded by their place or group's "
                "names, the first as '%s'; pass a model that owns them",
                *(len(unknown), unknown[0].name or unknown[0].place),
            )


class _Labels(NamedTuple):
    """Of the parameters of an optimizer: names and param groups, and the rows to keep."""

    names: tuple[str, ...]
    rows: list[int]
    groups: tuple[int, ...]


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
