"""The recovery of forces written out weight by weight, in float64: what the Gram route must equal."""

import numpy as np
from scipy.interpolate import CubicSpline


def places(variable, knots, lr):
    """The variable at each step from the first checkpoint to the last; η is that of the steps between."""
    steps = np.arange(knots[0], knots[-1] + 1.0)
    return {"step": steps, "log_step": np.log(1 + steps), "lr_sum": np.append(0.0, np.cumsum(lr))}[variable]


def forces_of(before, way, lr, weight_decay):
    """Alignment, injection and decay of the update û = −way/η − ω·w, from every weight."""
    found = []
    for w, d, eta in zip(before, way, lr, strict=True):
        update = -d / eta - weight_decay * w
        found.append((-2 * eta * (w @ update), eta**2 * (update @ update), -2 * eta * weight_decay * (w @ w)))
    return np.array(found).T


def spline(weights, knots, lr, weight_decay, variable, bc_type):
    """Of a cubic spline through every weight; `weights` is [K, n]."""
    x = places(variable, knots, lr)
    path = CubicSpline(x[np.array(knots) - knots[0]], weights, bc_type=bc_type)(x)
    return forces_of(path[:-1], np.diff(path, axis=0), lr, weight_decay)


def straight(weights, knots, lr, weight_decay, share):
    """Of the way from checkpoint to checkpoint in proportion to η, at `share` of the way."""
    before, way = [], []
    for left, right, w, after in zip(knots[:-1], knots[1:], weights[:-1], weights[1:], strict=True):
        eta = lr[left - knots[0] : right - knots[0]]
        before += [w + share * (after - w)] * (right - left)
        way += [(after - w) * part / eta.sum() for part in eta]
    return forces_of(before, way, lr, weight_decay)
