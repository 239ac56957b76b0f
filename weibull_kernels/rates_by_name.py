"""Learning rate and weight decay of every tensor of a run, by the names of the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .roles import role_of, roles_of
from .schedules import Schedule, rates

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rates:
    """η of each of T steps, [T], and ω, which some tensors have in common."""

    lr: Floats
    weight_decay: float

    @classmethod
    def of(cls, name: str, lr: Floats, weight_decay: Any) -> Rates:
        """Checked.

        Raises:
            ValueError: ω is negative or no number, or η·ω reaches 1.
        """
        try:
            value = float(weight_decay)
        except (TypeError, ValueError):
            value = np.nan
        if not 0 <= value < np.inf:
            raise ValueError(f"weight_decay must be 0 or a positive number, got {weight_decay} for {name}")
        if (lost := float(lr.max()) * value) >= 1:
            raise ValueError(f"lr·weight_decay must be under 1, it reaches {lost:.3g} for {name}; lower one")
        return cls(lr, value)

    @property
    def lost(self) -> Floats:
        """1 − c = ηω, what decay takes of the weights in each step, [T]."""
        return self.lr * self.weight_decay


def rates_by_name(
    names: Sequence[str],
    lr: Schedule | Mapping[str, Schedule],
    weight_decay: float | Mapping[str, float],
    roles: Mapping[str, str] | None,
    steps: NDArray[np.int64],
) -> dict[str, Rates]:
    """η and ω of every tensor; those of tensors that have both in common are one object.

    Args:
        names: of the tensors.
        lr: a schedule as `schedules.rates` takes it; or a mapping from name pattern (as in
            `fnmatch`) or role to such, of which the first that matches counts.
        weight_decay: a number, or such a mapping.
        roles: patterns to roles, as in `wk.forces`.
        steps: [T].

    Raises:
        ValueError: a tensor matches no pattern, or a pattern no tensor; a schedule or a decay is
            not one.
    """
    given: Any = lr
    by_name = isinstance(lr, Mapping) and bool(lr) and all(isinstance(key, str) for key in lr)
    schedules: Mapping[str, Any] = given if by_name else {"*": given}
    decays: Mapping[str, Any] = weight_decay if isinstance(weight_decay, Mapping) else {"*": weight_decay}
    of_pattern = {pattern: rates(schedule, steps) for pattern, schedule in schedules.items()}
    for what, patterns in (("lr", schedules), ("weight_decay", decays)):
        for pattern in patterns:
            if pattern != "*" and not any(_matches(name, pattern, roles) for name in names):
                known = ", ".join(sorted(set(roles_of(names, roles))))
                raise ValueError(
                    f"{what} has the pattern {pattern!r}, which no name matches, such as {names[0]}, and "
                    f"which is none of their roles, {known}"
                )
    shared: dict[tuple[str, str], Rates] = {}
    found = {}
    for name in names:
        one, other = _pattern("lr", name, schedules, roles), _pattern("weight_decay", name, decays, roles)
        if (one, other) not in shared:
            shared[one, other] = Rates.of(f"'{name}'", of_pattern[one], decays[other])
        found[name] = shared[one, other]
    return found


def together(names: Sequence[str], rates_of: Mapping[str, Rates]) -> Iterator[tuple[Rates, list[int]]]:
    """Rates, and the rows of the tensors that have them."""
    groups: dict[int, tuple[Rates, list[int]]] = {}
    for row, name in enumerate(names):
        groups.setdefault(id(rates_of[name]), (rates_of[name], []))[1].append(row)
    yield from groups.values()


def _matches(name: str, pattern: str, roles: Mapping[str, str] | None) -> bool:
    return fnmatchcase(name, pattern) or pattern == role_of(name, roles)


def _pattern(what: str, name: str, patterns: Mapping[str, Any], roles: Mapping[str, str] | None) -> str:
    """The first pattern that matches the name, or is its role."""
    for pattern in patterns:
        if _matches(name, pattern, roles):
            return pattern
    raise ValueError(f"{what} has no pattern for '{name}', only {', '.join(patterns)}; add '*' for the rest")
