"""What λ/σ should be for a given k: of normal weights some of which are spread wider than others.

Weights are nearly normal at first and get longer tails. The simplest such law has one parameter: a normal
distribution whose standard deviation is log-normal from weight to weight, w = e^(s·g)·z with g and z normal.
Its k by the usual fit of the middle 80 % falls as s rises, and its λ/σ falls faster, as the fit does not see
the tails that σ consists of. So k alone foretells λ/σ, with nothing fitted to it.
"""

from functools import cache

import numpy as np
import torch

import weibull_kernels as wk

SPREADS = np.linspace(0, 1.5, 31)
"""s, down to k = 0.65."""

NODES, POINTS, QUANTILES = 61, 4_000, 2_000


def mixture_quantiles(spread: float, count: int = QUANTILES) -> np.ndarray:
    """|w| at the probabilities (i − ½)/count, ascending, [count]."""
    node, weight = np.polynomial.hermite_e.hermegauss(NODES)
    weight = weight / weight.sum()
    log_w = np.linspace(-14, 4 + 6 * spread, POINTS)
    # P(|z| < x) = erf(x/√2), in the mean over g.
    scaled = torch.as_tensor(np.exp(log_w - spread * node[:, None]) / np.sqrt(2))
    below = weight @ torch.special.erf(scaled).numpy()
    wanted = (np.arange(count) + 0.5) / count
    quantiles: np.ndarray = np.exp(np.interp(wanted, below, log_w))
    return quantiles


@cache
def mixture_table() -> tuple[np.ndarray, np.ndarray]:
    """k, descending, and λ/σ at each of `SPREADS`."""
    fits = [wk.fit_weibull(torch.from_numpy(mixture_quantiles(spread))) for spread in SPREADS]
    # The mean of w² is that of e^(2s·g), e^(2s²).
    ratio = [fit.scale / np.exp(spread**2) for fit, spread in zip(fits, SPREADS, strict=True)]
    return np.array([fit.k for fit in fits]), np.array(ratio)


def mixture_ratio(k: np.ndarray) -> np.ndarray:
    """λ/σ for each k; that of normal weights above their 1.205, and NaN below what the table has."""
    shape, ratio = mixture_table()
    found: np.ndarray = np.interp(k, shape[::-1], ratio[::-1], left=np.nan)
    return found
