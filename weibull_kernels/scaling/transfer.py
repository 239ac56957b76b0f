"""Whether what was tuned on a proxy arrived on the target: their spectra, role by role."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from ..columns import Columns
from ..fused import Fused, whole
from ..names import Named, pairs
from ..roles import ROLES, in_order, role_of
from ..schedules import Schedule, rates
from ..spectra import Spectra, shape_distance, spectrum
from ..tables import new_table, plain_text, shown
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
        transferred: bool [R], whether `ratio` is within a factor 1 + tolerance of `expected`, single pairs
            scatter about it by no more than the square of that factor (root mean square of the
            logarithms), and the shapes are within `shape_tolerance`.
        expected: the ratio that the rule promises.
        tolerance: of the ratio, relative.
        shape_tolerance: of the distance of shapes.
        proxy_age, target_age: Σηω of the runs, in time constants; None where it was not told.
        proxy, target: the spectra of the pairs, in one order.
        pair_roles: the role of each pair, [N].
        pair_ratio: float64 [N], of each pair.
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
    pair_ratio: np.ndarray = field(repr=False)
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
        """One sentence: "transferred", "not transferred" and what is amiss, or "undecided" and why."""
        wanted = f"σ_top within a factor {1 + self.tolerance:.2f} of {self.expected:g}"
        alone = sum(why.startswith("only in") for why in self.left_out.values())
        rest = f"; {alone} matrix-like weights are in one of the two alone" if alone else ""
        if self.in_equilibrium is None:
            rest += "; whether the runs are in equilibrium is not known (no ages were given)"
        if self.in_equilibrium is False:
            ages = f"{_age(self.proxy_age)} (proxy) and {_age(self.target_age)} (target)"
            return f"undecided: ages of {ages} time constants, equilibrium takes {TIME_CONSTANTS:g}{rest}"
        if self.transferred.all():
            return f"transferred: every role has {wanted} and a shape within {self.shape_tolerance:g}{rest}"
        failed = [self._amiss(row) for row in np.flatnonzero(~self.transferred).tolist()]
        return f"not transferred: {'; '.join(failed)} ({wanted} asked){rest}"

    def _amiss(self, row: int) -> str:
        said = []
        if not _is_within(self.ratio[row], self.expected, self.tolerance):
            said.append(f"σ_top ratio {self.ratio[row]:.3f}")
        if self.shape_distance[row] > self.shape_tolerance:
            said.append(f"shape distance {self.shape_distance[row]:.3f}, over {self.shape_tolerance:g}")
        if not said:
            said.append(f"single ratios from {self.low[row]:.3f} to {self.high[row]:.3f}")
        return f"{self.names[row]}, {' and '.join(said)}"

    def draw(self, path: str | os.PathLike[str], called: str = "target / proxy") -> None:
        """Ratios by role and the shapes of the spectra, as a PNG; needs matplotlib."""
        from .picture import draw_transfer

        draw_transfer(self, Path(path), called)

    def to_dict(self) -> dict[str, Any]:
        """The columns [R] by name, as numpy arrays."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {"role": np.array(self.names)} | columns

    def __str__(self) -> str:
        table = new_table(
            "role", "matrices", "σ_top ratio", "smallest", "largest", "shape distance", "transferred"
        )
        for row, role in enumerate(self.names):
            numbers = (self.ratio[row], self.low[row], self.high[row], self.shape_distance[row])
            table.add_row(
                shown(role),
                str(self.matrices[row]),
                *(f"{number:.3f}" for number in numbers),
                "yes" if self.transferred[row] else "no",
            )
        return f"{plain_text(table)}\n\n{self.verdict}"


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
        role_overrides: patterns of names to roles; a role of one's own is compared too.

    Returns:
        A row for each role of matrix-like weights; the others are in `left_out`. Stacked experts are
        matrices of their own.

    Raises:
        ValueError: the two have no matrix-like weight of the same name, a pattern matches nothing, or a
            number makes no sense.
    """
    for name, value in (
        ("tolerance", tolerance),
        ("shape_tolerance", shape_tolerance),
        ("expected", expected),
    ):
        require_positive(name, value)
    for name, age in (("proxy_age", proxy_age), ("target_age", target_age)):
        if age is not None and not 0 <= age < math.inf:
            raise ValueError(f"{name} must be a number of time constants, 0 or more, or None, got {age}")
    tensors = [_by_name(given) for given in (proxy, target)]
    common, left_out = matrix_like(tensors[0], tensors[1], role_overrides)
    ours, theirs = (
        _spectra(given, found, common, split) for given, found in zip((proxy, target), tensors, strict=True)
    )
    parts = [name for name in ours if name in theirs]
    left_out |= {name: "only in the proxy" for name in ours if name not in theirs}
    left_out |= {name: "only in the target" for name in theirs if name not in ours}
    ratios = np.array([_ratio(ours[name], theirs[name], name) for name in parts])
    distances = np.array([shape_distance(ours[name], theirs[name]) for name in parts])
    roles = [role_of(whole(name), role_overrides) for name in parts]
    known = in_order(roles)
    rows = [np.flatnonzero(np.array(roles) == role) for role in known]
    mean = np.array([np.exp(np.log(ratios[row]).mean()) for row in rows])
    scatter = np.array([np.log(ratios[row]).std() for row in rows])
    shape = np.array([distances[row].mean() for row in rows])
    return TransferCheck(
        names=tuple(known),
        matrices=np.array([len(row) for row in rows]),
        ratio=mean,
        low=np.array([ratios[row].min() for row in rows]),
        high=np.array([ratios[row].max() for row in rows]),
        shape_distance=shape,
        transferred=_is_within(mean, expected, tolerance)
        & (scatter <= 2 * math.log1p(tolerance))
        & (shape <= shape_tolerance),
        expected=expected,
        tolerance=tolerance,
        shape_tolerance=shape_tolerance,
        proxy_age=proxy_age,
        target_age=target_age,
        proxy=Spectra(tuple(parts), tuple(ours[name] for name in parts)),
        target=Spectra(tuple(parts), tuple(theirs[name] for name in parts)),
        pair_roles=tuple(roles),
        pair_ratio=ratios,
        left_out=left_out,
    )


def matrix_like(
    proxy: Iterable[str], target: Iterable[str], role_overrides: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The names of matrix-like weights that both have, and of all others why they are left out.

    Raises:
        ValueError: there is none, or a pattern matches nothing.
    """
    ours, theirs = dict.fromkeys(map(whole, proxy)), dict.fromkeys(map(whole, target))
    every = ours | theirs
    for pattern in role_overrides or {}:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(
                f"no weight matches the pattern {pattern!r} of a role; names begin with "
                f"{', '.join(list(every)[:_SHOWN])}"
            )
    left_out = {}
    for name in every:
        role = role_of(name, role_overrides)
        if role in ROLES and role not in MATRIX_ROLES:
            left_out[name] = f"{role}: not matrix-like"
        elif name not in ours or name not in theirs:
            left_out[name] = f"only in the {'proxy' if name in ours else 'target'}"
    common = [name for name in ours if name not in left_out]
    if not common:
        first = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:_SHOWN])
        raise ValueError(
            f"proxy and target share no matrix-like weight; left out: {first or 'nothing'}. Their names must "
            "be the same; roles of names of one's own can be given by patterns"
        )
    return common, left_out


def training_age(lr: Schedule | Sequence[float], weight_decay: float, steps: int) -> float:
    """Σηω over a run, in time constants of ‖w‖: after 3 of them e⁻³ of the start is left.

    Both rates are those of the run's own matrices: of a target by the published rule η/m and ω·√m, so that
    it needs √m as many steps as its proxy.

    Args:
        lr: η of each step, [steps], or as `wk.recover` takes it: a number, a function of the step from 1,
            a table, a description.
        weight_decay: ω, coupled as in PyTorch.
        steps: of the run.

    Raises:
        ValueError: there are not as many rates as steps, or one is no rate.

    >>> round(training_age(lambda t: 0.01 * min(1, t / 100), 0.1, 1000), 4)
    0.9505
    """
    numbers = np.arange(1, steps + 1)
    if not isinstance(lr, (list, np.ndarray, Tensor)):
        return float(rates(cast(Schedule, lr), numbers).sum()) * weight_decay
    if len(lr) != steps:
        raise ValueError(f"lr must have a rate for each of the {steps} steps, got {len(lr)}")
    return float(rates((numbers, np.asarray(lr, dtype=np.float64)), numbers).sum()) * weight_decay


def _by_name(given: Named | Spectra) -> dict[str, Any]:
    """Tensors of two dimensions and more, or singular values, by name."""
    if isinstance(given, Spectra):
        return dict(zip(given.names, given.values, strict=True))
    return {name: tensor for name, tensor in pairs(given) if len(getattr(tensor, "shape", ())) > 1}


def _spectra(
    given: Named | Spectra, found: dict[str, Any], common: list[str], split: Mapping[str, Fused] | None
) -> dict[str, Tensor]:
    """Singular values by name, of the weights that are compared and no others."""
    wanted = set(common)
    chosen = {name: item for name, item in found.items() if whole(name) in wanted}
    if isinstance(given, Spectra):
        return chosen
    spectra = spectrum(chosen, split=split)
    return dict(zip(spectra.names, spectra.values, strict=True))


def _is_within(ratio: Any, expected: float, tolerance: float) -> Any:
    return np.abs(np.log(ratio / expected)) <= math.log1p(tolerance)


def _ratio(proxy: Tensor, target: Tensor, name: str) -> float:
    if not (proxy[0] > 0 and target[0] > 0):
        raise ValueError(
            f"'{name}' is zero in the proxy or the target: it has no ratio of top singular values"
        )
    return float(target[0] / proxy[0])


def _age(age: float | None) -> str:
    return "unknown" if age is None else f"{age:.4g}"
