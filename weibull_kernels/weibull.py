"""Weibull fits of |w|: three estimators, from histograms or from sorted entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .columns import Columns, on_host
from .nodes import (
    LOWEST_BIN,
    Flags,
    Floats,
    Integers,
    Nodes,
    cropped,
    entry_nodes,
    histogram_nodes,
    kept_ranks,
    quantile_bins,
)
from .statistics import STATISTICS, WeightStatistics, weight_statistics

Source = WeightStatistics | Tensor | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]

HALF_NORMAL_K = {"probability_plot": 1.205434, "log_moments": 1.1547, "mle": 1.26276}
"""The k that each method finds for Gaussian weights, n → ∞: the shape at initialisation."""
FEWEST = 20
"""Non-zero entries that a fit takes at least."""
HISTOGRAM_ENTRIES = 100_000
FULLEST_BIN = 1 / 32
"""From how many entries on a tensor's histogram will do, and what part of them a bin of it may hold."""
SPARSE_FLOAT16 = 2.0**-11
"""σ under which the tenth of smallest float16 weights reaches its subnormal numbers."""
BATCH_ENTRIES = 1 << 20
"""Of tensors that are sorted and then fitted together."""

_ERRORS = {  # √n times the standard errors of k, over k, and of λ, over λ/k, for Weibull entries
    # Of Syy⁻¹·∫(y−ȳ)·B/f_y dF and of λ's like, with B a Brownian bridge, over 0.1 ≤ F ≤ 0.9.
    "probability_plot": (1.0206886, 1.1065102),
    # By the delta method from the variance, skewness −2ζ(3) and kurtosis of ln|w|.
    "log_moments": (1.0488088, 1.0806545),
    # √6/π and √(1 + 6(1−γ)²/π²), from Fisher's information.
    "mle": (0.7796968, 1.0529316),
}


@dataclass(frozen=True, eq=False)
class WeibullFit(Columns):
    """Weibull distributions F(x) = 1 − exp(−(x/λ)^k) fitted to |w| of P tensors.

    Columns are numpy arrays [P], float64 where nothing else is said; of the fit of a bare tensor
    they are numbers, and `names` is None. All but `rms` are about the non-zero entries.

    Attributes:
        names: what the tensors are called.
        k, scale: shape k and scale λ.
        k_error, scale_error: asymptotic standard errors, were the entries independent draws from a
            Weibull distribution. Trained weights are not: read them as the least error there is.
        r_squared: R² of the probability plot, ln(−ln(1−F)) against ln|w| over 0.1 ≤ F ≤ 0.9: how
            straight it is, whichever method drew the line.
        ks: Kolmogorov–Smirnov distance between the entries and the fit, over all of them.
        count: non-zero entries, int64.
        rms: σ = √(‖w‖²/n), with the zeros.
        q90_q50, q99_q50: quantiles of |w| over their median.
        gini: Gini coefficient of |w|; 0 where all are equal, √2 − 1 for a normal distribution.
        reason: why the row could not be fitted and is NaN, else None.
        route: "histogram", "exact", or "sums" for log moments of statistics without a histogram,
            which leave `r_squared`, `ks`, the quantiles and `gini` NaN.
        method: the estimator. Those of different methods cannot be compared.
    """

    names: tuple[str, ...] | None
    k: Any
    scale: Any
    k_error: Any
    scale_error: Any
    r_squared: Any
    ks: Any
    count: Any
    rms: Any
    q90_q50: Any
    q99_q50: Any
    gini: Any
    reason: Any
    route: Any
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, as numpy arrays, with `reason`, `route` and `method`."""
        told = {name: np.asarray(getattr(self, name)) for name in ("reason", "route", "method")}
        return super().to_dict() | told


def fit_weibull(
    source: Source,
    method: str = "probability_plot",
    *,
    route: str | None = None,
    on_degenerate: str = "raise",
) -> WeibullFit:
    """Fits a Weibull distribution, location 0, to the magnitudes |w| > 0 of each tensor.

        probability_plot  ln(−ln(1−F)) = k·ln|w| − k·ln λ by least squares over 0.1 ≤ F ≤ 0.9,
                          with F = (i−½)/n of the sorted entries            ([W1], [W2])
        log_moments       k = π/(√6·sd ln|w|),  λ = exp(mean ln|w| + γ/k)
        mle               Σ|w|^k·ln|w| / Σ|w|^k − 1/k = mean ln|w|,  λ^k = mean |w|^k

    Gaussian weights are not Weibull, so the three differ: k is 1.2054, 1.1547 and 1.2628 for a
    normal distribution, λ/σ 0.8875, 0.8735 and 0.8554.

    Args:
        source: `WeightStatistics`, with a histogram [P, BINS] unless the method is "log_moments"; a
            tensor; or named tensors, as a mapping or as (name, tensor) such as
            `model.named_parameters()`. Floating point, any shape and device.
        method: "probability_plot", "log_moments" or "mle".
        route: "histogram"; "exact", sorted in float64, which needs the tensors; or None: the histogram
            for statistics, and for tensors of at least 100,000 non-zero entries, no 1/32 of which share
            a bin (so k up to 5), all below 2^128 and all but 3e-5 of them above 2^−132, and not of
            float16 with σ under 2^−11; else exact. The result says which. The two agree to 3e-4 in
            k and λ there, to 7e-4 where the density has steps or gaps (integers that were
            de-quantised); from statistics the histogram is 1e-3 off at k = 20, 1e-2 at k = 40.
        on_degenerate: "raise", or "mark" for NaN and a `reason` in the rows of tensors that are all
            equal, have fewer than 20 non-zero entries or one that is not finite.

    Returns:
        `WeibullFit`, a row for each tensor.

    Raises:
        ValueError: an argument is none of these; a tensor cannot be fitted; the statistics have no
            histogram, or are to be fitted exactly.
        TypeError: the source is none of these.

    >>> fit = fit_weibull(torch.arange(0.0005, 1, 0.001).log().neg() ** 0.5)  # quantiles of k = 2, λ = 1
    >>> round(fit.k, 4), round(fit.scale, 4), fit.route
    (2.0, 1.0, 'exact')
    """
    _check("method", method, tuple(_METHODS))
    _check("route", route, (None, "histogram", "exact"))
    _check("on_degenerate", on_degenerate, ("raise", "mark"))
    if isinstance(source, WeightStatistics):
        if route == "exact":
            raise ValueError("route='exact' sorts the entries: pass the tensors, not their statistics")
        if source.histogram is None and (method != "log_moments" or route == "histogram"):
            raise ValueError(
                f"method={method!r} needs a histogram and these statistics have none: "
                "weight_statistics(..., histogram=True), or method='log_moments' without a route"
            )
        names = source.names
        parts: Iterable[tuple[Integers, _Sample]] = [(np.arange(len(names)), _from_statistics(source))]
    else:
        named = _named(source)
        names, parts = tuple(name for name, _ in named), _from_tensors(named, route)
    columns = _empty_columns(len(names))
    for rows, sample in parts:  # a row that comes again comes by the better route
        for name, values in _fitted(sample, method).items():
            columns[name][rows] = values
    _refuse(names, columns["reason"], on_degenerate)
    if isinstance(source, Tensor):
        return WeibullFit(
            names=None, method=method, **{name: column.tolist()[0] for name, column in columns.items()}
        )
    return WeibullFit(names=names, method=method, **columns)


def _check(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _refuse(names: tuple[str, ...], reasons: NDArray[np.object_], on_degenerate: str) -> None:
    failed = [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason]
    if failed and on_degenerate == "raise":
        told = "; ".join(failed[:5]) + ("; …" if len(failed) > 5 else "")
        raise ValueError(
            f"{len(failed)} of {len(names)} tensors cannot be fitted: {told}. "
            "on_degenerate='mark' gives NaN in their rows"
        )


def _named(source: Any) -> list[tuple[str, Tensor]]:
    pairs = source
    if isinstance(source, Tensor):
        pairs = [("the tensor", source)]
    elif isinstance(source, Mapping):
        pairs = source.items()
    pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise TypeError(
                "fit_weibull takes WeightStatistics, a tensor, a mapping from name to tensor, or pairs "
                f"(name, tensor) such as model.named_parameters(); among them came {type(pair).__name__}"
            )
        if not pair[1].is_floating_point():
            raise TypeError(
                f"{pair[0]} must be floating point to be fitted, got {pair[1].dtype}; weight_statistics "
                "leaves out what is not"
            )
    return [(str(name), tensor.detach()) for name, tensor in pairs]


def _empty_columns(size: int) -> dict[str, NDArray[Any]]:
    kinds: dict[str, Any] = {"count": np.int64, "reason": object, "route": "<U9"}
    names = [field.name for field in fields(WeibullFit) if field.name not in ("names", "method")]
    return {name: np.zeros(size, kinds[name]) if name in kinds else np.full(size, np.nan) for name in names}


@dataclass(frozen=True)
class _Sample:
    """What is known of the tensors of one route, [P]; the nodes are of those without a reason alone.

    `mean` and `variance` are those of ln|w|; `fine` marks rows that the histogram resolves.
    """

    route: str
    count: Integers
    rms: Floats
    mean: Floats
    variance: Floats
    reason: NDArray[np.object_]
    fine: Flags
    nodes: Nodes | None


def _none(reasons: NDArray[np.object_]) -> Flags:
    return np.array([reason is None for reason in reasons], dtype=bool)


def _fitted(sample: _Sample, method: str) -> dict[str, Any]:
    """The columns of a `WeibullFit`, [P]."""
    columns = _empty_columns(len(sample.count))
    for name in ("count", "rms", "reason"):
        columns[name] = getattr(sample, name)
    columns["route"][:] = sample.route
    good = _none(sample.reason)
    if not good.any():
        return columns
    k, ln_scale = _METHODS[method](sample.nodes, sample.mean[good], sample.variance[good])
    root = np.sqrt(sample.count[good])
    shape_error, scale_error = _ERRORS[method]
    found = {
        "k": k,
        "scale": np.exp(ln_scale),
        "k_error": shape_error * k / root,
        "scale_error": scale_error * np.exp(ln_scale) / (k * root),
    }
    if sample.nodes is not None:
        found |= _described(sample.nodes, k, ln_scale, 0.5 / sample.count[good])
    for name, values in found.items():
        columns[name][good] = values
    return columns


def _described(nodes: Nodes, k: Floats, ln_scale: Floats, half_step: Floats) -> dict[str, Floats]:
    """How well the fits suit the nodes, and what the nodes say of distributions that are not Weibull."""
    fit = -np.expm1(-np.exp(np.minimum(k[nodes.row] * (nodes.x - ln_scale[nodes.row]), 50)))
    size = np.exp(nodes.x) * nodes.mass
    median = nodes.quantile(0.5)
    return {
        "r_squared": _plot_line(nodes)[2],
        # At each entry the distribution function steps from half a step below F to as much above.
        "ks": np.maximum.reduceat(np.abs(nodes.f - fit), nodes.starts) + half_step,
        "q90_q50": nodes.quantile(0.9) / median,
        "q99_q50": nodes.quantile(0.99) / median,
        "gini": nodes.sums((2 * nodes.f - 1) * size) / nodes.sums(size),
    }


def _plot_line(nodes: Nodes) -> tuple[Floats, Floats, Floats]:
    """Slope, ln λ and R² of the least squares line of ln(−ln(1−F)) on ln|w| over 0.1 ≤ F ≤ 0.9."""
    row, mass, x = nodes.row[nodes.kept], nodes.mass[nodes.kept], nodes.x[nodes.kept]
    y = np.log(-np.log1p(-nodes.f[nodes.kept]))
    starts = np.searchsorted(row, np.arange(len(nodes.starts)))
    whole = np.add.reduceat(mass, starts)
    x_mean, y_mean = np.add.reduceat(mass * x, starts) / whole, np.add.reduceat(mass * y, starts) / whole
    x, y = x - x_mean[row], y - y_mean[row]
    xx, xy, yy = (np.add.reduceat(mass * product, starts) for product in (x * x, x * y, y * y))
    return xy / xx, x_mean - y_mean * xx / xy, xy * xy / (xx * yy)


def _probability_plot(nodes: Any, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    k, ln_scale, _ = _plot_line(nodes)
    return k, ln_scale


def _log_moments(nodes: Any, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """From ln|w| = ln λ + G/k, where G has mean −γ and variance π²/6."""
    k = math.pi / np.sqrt(6 * variance)
    return k, mean + np.euler_gamma / k


def _likelihood(nodes: Any, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Newton's iteration on Σ|w|^k·ln|w| / Σ|w|^k − 1/k − mean ln|w|, which grows with k, in a bracket."""
    last = np.append(nodes.starts[1:], len(nodes.x)) - 1
    largest = nodes.x[last]  # |w|/max|w| has powers that do not overflow
    z, mean = nodes.x - largest[nodes.row], mean - largest
    k = _log_moments(nodes, mean, variance)[0]
    low, high = np.zeros_like(k), np.full_like(k, np.inf)
    for _ in range(100):
        power = nodes.mass * np.exp(k[nodes.row] * z)
        s0, s1, s2 = nodes.sums(power), nodes.sums(power * z), nodes.sums(power * z * z)
        excess = s1 / s0 - 1 / k - mean
        low, high = np.where(excess < 0, k, low), np.where(excess > 0, k, high)
        new = k - excess / (s2 / s0 - (s1 / s0) ** 2 + 1 / k**2)
        new = np.where((new >= low) & (new <= high), new, (low + high) / 2)
        done = np.abs(new - k) <= 1e-12 * k
        k = new
        if done.all():
            break
    return k, np.log(nodes.sums(nodes.mass * np.exp(k[nodes.row] * z))) / k + largest


_METHODS: dict[str, Callable[[Any, Floats, Floats], tuple[Floats, Floats]]] = {
    "probability_plot": _probability_plot,
    "log_moments": _log_moments,
    "mle": _likelihood,
}


def _from_statistics(statistics: WeightStatistics) -> _Sample:
    """By the histograms, or by the sums alone where there are none."""
    columns = {name: getattr(statistics, name) for name in STATISTICS}
    host = on_host({name: column for name, column in columns.items() if column is not None})
    broken = host["non_finite_count"]
    count = host["numel"] - host["zero_count"] - broken
    mean = host["log_sum"] / np.maximum(count, 1)
    variance = host["log_sq_sum"] / np.maximum(count, 1) - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        rms = np.where(broken, np.nan, np.sqrt(host["norm_sq"] / np.maximum(host["numel"], 1)))
        # No logarithm is above that of the largest: only where all are equal does their mean reach it.
        equal = (np.log(host["max_abs"]) - mean <= 2e-6 * (1 + np.abs(mean))) | (variance <= 0)
    if statistics.histogram is None:
        none = np.zeros(len(count), bool)
        return _Sample(
            "sums", count, rms, mean, variance, _reasons(count, broken, equal, none, ""), none, None
        )
    histogram, first = cropped(host["histogram"])
    low, high = quantile_bins(histogram)
    stuck = "the quantiles 0.1 and 0.9 share a bin of the histogram; the exact route needs the tensor"
    reason = _reasons(count, broken, equal, low == high, stuck)
    good = _none(reason)
    lowest = histogram[:, 0] if first == 0 else np.zeros_like(count)
    fine = good & (count >= HISTOGRAM_ENTRIES) & resolved(histogram.max(1), lowest, host["max_abs"], count)
    nodes = histogram_nodes(histogram[good], first, mean[good]) if good.any() else None
    return _Sample("histogram", count, rms, mean, variance, reason, fine, nodes)


def resolved(fullest: Any, lowest: Any, max_abs: Any, count: Any) -> Any:
    """Whether a histogram tells its entries apart: no bin is crowded, few lie outside float32's range.

    `fullest` and `lowest` are the counts of the fullest bin and of the first; arrays or tensors, [P].
    """
    return (fullest <= FULLEST_BIN * count) & (lowest <= LOWEST_BIN * count) & (max_abs < 2.0**128)


def _reasons(
    count: Integers, broken: Integers, equal: Flags, stuck: Flags, why_stuck: str
) -> NDArray[np.object_]:
    """Why a row cannot be fitted, or None."""
    reasons = np.full(len(count), None, object)
    reasons[stuck] = why_stuck
    reasons[equal] = "all non-zero entries are equal in magnitude"
    for row in np.flatnonzero(count < FEWEST):
        reasons[row] = f"{count[row]} non-zero entries, at least {FEWEST} are needed"
    for row in np.flatnonzero(broken):
        reasons[row] = f"{broken[row]} non-finite entries"
    return reasons


def _from_tensors(named: list[tuple[str, Tensor]], route: str | None) -> Iterator[tuple[Integers, _Sample]]:
    """Samples and the rows that they are of; those that a histogram does not resolve come again, exact."""
    sizes = np.array([tensor.numel() for _, tensor in named], dtype=np.int64)
    exact = np.full(len(named), route == "exact") | ((sizes < HISTOGRAM_ENTRIES) & (route is None))
    counted = np.flatnonzero(~exact)
    if len(counted):
        sample = _from_statistics(weight_statistics([named[row] for row in counted]))
        yield counted, sample
        # Where float16 is subnormal a bin holds a few of its values only, or none.
        half = np.array([named[row][1].dtype == torch.float16 for row in counted])
        sparse = half & (sample.rms < SPARSE_FLOAT16)
        exact[counted] = (~sample.fine | sparse) & (route is None)
    rows = np.flatnonzero(exact)
    # Small tensors go together, for speed; a large one by itself, for memory.
    for batch in np.split(rows, np.flatnonzero(np.diff(np.cumsum(sizes[rows]) // BATCH_ENTRIES)) + 1):
        if len(batch):
            yield batch, _from_entries([named[row][1] for row in batch])


def _from_entries(tensors: list[Tensor]) -> _Sample:
    """By every entry, sorted, in float64."""
    sizes, broken, rms, stuck = [], [], [], []
    for tensor in tensors:
        native = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        entries = np.sort(native.abs().flatten().cpu().numpy()).astype(np.float64)  # NaN comes last
        finite = int(np.searchsorted(entries, np.inf))
        size = entries[np.searchsorted(entries, 0, side="right") : finite]
        top = size[-1] if len(size) else 1.0  # whose square might overflow
        sizes.append(size)
        broken.append(len(entries) - finite)
        rms.append(top * math.sqrt(np.square(size / top).sum() / max(len(entries), 1)))
        inner = size[slice(*kept_ranks(len(size)))]
        stuck.append(len(inner) == 0 or inner[0] == inner[-1])
    count = np.array([len(size) for size in sizes])
    equal = np.array([len(size) > 0 and size[0] == size[-1] for size in sizes])
    why_stuck = "all entries between the quantiles 0.1 and 0.9 are equal"
    reason = _reasons(count, np.array(broken), equal, np.array(stuck), why_stuck)
    logs = [np.log(size) if why is None else np.zeros(0) for size, why in zip(sizes, reason, strict=True)]
    good = _none(reason)
    mean, variance = (
        np.array([moment(log) if len(log) else np.nan for log in logs]) for moment in (np.mean, np.var)
    )
    return _Sample(
        "exact",
        count,
        np.where(broken, np.nan, rms),
        mean,
        variance,
        reason,
        good,
        entry_nodes([log for log in logs if len(log)]) if good.any() else None,
    )
