"""Whether what was tuned on a proxy arrived on the target: their spectra, role by role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..columns import Columns
from ..fused import Fused
from ..names import Named
from ..roles import ROLES, role_of
from ..schedules import Schedule, rates
from ..spectra import Spectra, shape_distance, spectrum
from .classes import MATRIX_ROLES
from .rules import TIME_CONSTANTS, require_positive

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class TransferCheck(Columns):
    """Singular values of a target beside those of its proxy, a row for each role; prints as a table.

    Attributes:
        names: the roles, [R].
        matrices: int64 [R], pairs of matrices compared.
        ratio: float64 [R], geometric mean of σ_top(target)/σ_top(proxy) over the pairs.
        low, high: float64 [R], the smallest ratio of a pair and the largest.
        shape_distance: float64 [R], mean of `wk.shape_distance` over the pairs.
        transferred: bool [R], whether `ratio` is within a factor 1 + tolerance of `expected` and the
            shapes within `shape_tolerance`.
        expected: the ratio that the rule promises.
        tolerance: of the ratio, relative.
        shape_tolerance: of the distance of shapes.
        proxy_age, target_age: Σηω of the runs, in time constants; None where it was not told.
        proxy, target: the spectra of the pairs, in one order.
        pair_roles: the role of each pair.
        left_out: names that were not compared, and why.
    """

    names: tuple[str, ...]
    matrices: np.ndarray
    ratio: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shape_distance: np.ndarray
    transferred: np.ndarray
    expected: float
    tolerance: float
    shape_tolerance: float
    proxy_age: float | None
    target_age: float | None
    proxy: Spectra = field(repr=False)
    target: Spectra = field(repr=False)
    pair_roles: tuple[str, ...] = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def in_equilibrium(self) -> bool | None:
        """Whether both runs are older than 3 time constants; None where an age is not known."""
        ages = (self.proxy_age, self.target_age)
        if any(age is not None and age < TIME_CONSTANTS for age in ages):
            return False
        return None if None in ages else True

    @property
    def verdict(self) -> str:
        """One sentence: "transferred", "not transferred" and where, or "undecided" and why."""
        tolerance = f"σ_top within a factor {1 + self.tolerance:.2f} of {self.expected:g}"
        if self.in_equilibrium is False:
            ages = f"{_age(self.proxy_age)} (proxy) and {_age(self.target_age)} (target)"
            return f"undecided: ages of {ages} time constants, equilibrium takes {TIME_CONSTANTS:g}"
        unknown = "; whether the runs are in equilibrium is not known" if self.in_equilibrium is None else ""
        failed = [name for name, ok in zip(self.names, self.transferred, strict=True) if not ok]
        if failed:
            return f"not transferred: {', '.join(failed)} ({tolerance} asked){unknown}"
        return f"transferred: every role has {tolerance}{unknown}"

    def to_dict(self) -> dict[str, Any]:
        """The columns [R] by name, as numpy arrays."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {"role": np.array(self.names)} | columns

    def __str__(self) -> str:
        from ..report import transfer_table

        return transfer_table(self)


_COLUMNS = ("matrices", "ratio", "low", "high", "shape_distance", "transferred")


def check_transfer(
    proxy: Named | Spectra,
    target: Named | Spectra,
    *,
    tolerance: float = 0.15,
    shape_tolerance: float = 0.1,
    expected: float = 1.0,
    proxy_age: float | None = None,
    target_age: float | None = None,
    split: Mapping[str, Fused] | None = None,
    role_overrides: Mapping[str, str] | None = None,
) -> TransferCheck:
    """Compares the singular values of a target with those of its proxy, matrix by matrix.

    Under the published rule σ_top(target)/σ_top(proxy) is near 1 in each role once both are in
    equilibrium; constant decay lets it grow as m^¼, decay ∝ width fall as m^−¼ [F]. A narrow
    tolerance cannot tell a rule from its rivals at m = 2, where they are 19 % apart.

    Args:
        proxy: a trained model, pairs (name, tensor), a mapping, or what `wk.spectrum` made of one.
        target: likewise, of other width. Matrices are compared with those of the same name.
        tolerance: of the ratio, relative.
        shape_tolerance: of the distance of the shapes of the spectra.
        expected: what the ratio should be, such as `rule.sigma_ratio(m)`.
        proxy_age: Σηω of the proxy's run (`training_age`); None if it is not known.
        target_age: of the target's.
        split: what parameters fuse, as for `wk.top_singular_values`.
        role_overrides: patterns of names to roles.

    Returns:
        A row for each role of matrix-like weights; the others are in `left_out`.

    Raises:
        ValueError: the two have no matrix-like weight of the same name, or a number makes no sense.
    """
    for name, value in (
        ("tolerance", tolerance),
        ("shape_tolerance", shape_tolerance),
        ("expected", expected),
    ):
        require_positive(name, value)
    spectra = [
        given if isinstance(given, Spectra) else spectrum(given, split=split) for given in (proxy, target)
    ]
    names, left_out = _common(spectra[0], spectra[1], role_overrides)
    ours, theirs = (_chosen(found, names) for found in spectra)
    roles = np.array([_role(name, role_overrides) for name in names])
    pairs = list(zip(ours.values, theirs.values, strict=True))
    ratios = np.array([_ratio(*pair, name) for name, pair in zip(names, pairs, strict=True)])
    distances = np.array([shape_distance(*pair) for pair in pairs])
    known = [role for role in ROLES if role in roles] + sorted(set(roles) - set(ROLES))
    rows = [np.flatnonzero(roles == role) for role in known]
    mean = np.array([np.exp(np.log(ratios[row]).mean()) for row in rows])
    shape = np.array([distances[row].mean() for row in rows])
    within = np.abs(np.log(mean / expected)) <= math.log1p(tolerance)
    return TransferCheck(
        names=tuple(known),
        matrices=np.array([len(row) for row in rows]),
        ratio=mean,
        low=np.array([ratios[row].min() for row in rows]),
        high=np.array([ratios[row].max() for row in rows]),
        shape_distance=shape,
        transferred=within & (shape <= shape_tolerance),
        expected=expected,
        tolerance=tolerance,
        shape_tolerance=shape_tolerance,
        proxy_age=proxy_age,
        target_age=target_age,
        proxy=ours,
        target=theirs,
        pair_roles=tuple(roles.tolist()),
        left_out=left_out,
    )


def training_age(lr: Schedule, weight_decay: float, steps: int) -> float:
    """Σηω over a run, in time constants of ‖w‖: after 3 of them e⁻³ of the start is left.

    Args:
        lr: η, as `wk.recover` takes it: a number, a function of the step from 1, an array, a table.
        weight_decay: ω, coupled as in PyTorch.
        steps: of the run.

    >>> round(training_age(lambda t: 0.01 * min(1, t / 100), 0.1, 1000), 4)
    0.9505
    """
    return float(rates(lr, np.arange(1, steps + 1)).sum()) * weight_decay


def _common(
    proxy: Spectra, target: Spectra, overrides: Mapping[str, str] | None
) -> tuple[list[str], dict[str, str]]:
    """The names to compare, and of the rest why not."""
    left_out = {}
    for name in dict.fromkeys((*proxy.names, *target.names)):
        if name not in target.names or name not in proxy.names:
            left_out[name] = f"only in the {'proxy' if name in proxy.names else 'target'}"
        elif _role(name, overrides) not in (*MATRIX_ROLES, *set((overrides or {}).values())):
            left_out[name] = f"{_role(name, overrides)}: not matrix-like"
    names = [name for name in proxy.names if name not in left_out]
    if not names:
        first = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:_SHOWN])
        raise ValueError(
            f"proxy and target share no matrix-like weight; left out: {first or 'nothing'}. Names must be "
            "the same, and role_overrides says what a name of one's own is"
        )
    return names, left_out


def _role(name: str, overrides: Mapping[str, str] | None) -> str:
    """That of the parameter; of a part such as w[q] that of the whole."""
    return role_of(name.partition("[")[0], overrides)


def _chosen(spectra: Spectra, names: list[str]) -> Spectra:
    found = dict(zip(spectra.names, spectra.values, strict=True))
    return Spectra(tuple(names), tuple(found[name] for name in names))


def _ratio(proxy: Any, target: Any, name: str) -> float:
    if not (proxy[0] > 0 and target[0] > 0):
        raise ValueError(
            f"'{name}' is zero in the proxy or the target: it has no ratio of top singular values"
        )
    return float(target[0] / proxy[0])


def _age(age: float | None) -> str:
    return "unknown" if age is None else f"{age:.2g}"
