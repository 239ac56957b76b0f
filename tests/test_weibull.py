"""Weibull fits against sorted entries, closed forms, roots in brackets and simulations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weibull_kernels.statistics import weight_statistics
from weibull_kernels.weibull import FEWEST, HISTOGRAM_ENTRIES, WeibullFit, fit_weibull

METHODS = ["probability_plot", "log_moments", "mle"]
HALF_NORMAL = {  # k and λ/σ of the three methods, table of the contract
    "probability_plot": (1.205434, 0.887487),
    "log_moments": (1.1547, 0.8735),
    "mle": (1.26276, 0.85542),
}


def weibull(n, k, scale=1.0, seed=0):
    return torch.from_numpy(scale * np.random.default_rng(seed).weibull(k, n))


def quantiles(n, k, scale=1.0):
    """The entries whose plot is the line itself."""
    f = (np.arange(1, n + 1) - 0.5) / n
    return torch.from_numpy(scale * (-np.log1p(-f)) ** (1 / k))


def magnitudes(w):
    """Non-zero |w|, ascending, float64, and their F."""
    x = np.sort(w.double().abs().flatten().numpy())
    x = x[x > 0]
    return x, (np.arange(1, len(x) + 1) - 0.5) / len(x)


def sorted_plot(w):
    """k, λ and R² of the probability plot, by numpy."""
    x, f = magnitudes(w)
    kept = (f >= 0.1) & (f <= 0.9)
    x, y = np.log(x[kept]), np.log(-np.log1p(-f[kept]))
    k, b = np.polyfit(x - x.mean(), y, 1)
    return k, math.exp(x.mean() - b / k), np.corrcoef(x, y)[0, 1] ** 2


def closed_moments(w):
    x = np.log(magnitudes(w)[0])
    k = math.pi / math.sqrt(6) / x.std()
    return k, math.exp(x.mean() + np.euler_gamma / k)


def bisected_likelihood(w):
    """The root of the likelihood's derivative, halved into; powers are of |w|/max|w|."""
    x = magnitudes(w)[0]
    z = np.log(x / x[-1])

    def excess(k):
        power = np.exp(k * z)
        return (power * z).sum() / power.sum() - 1 / k - z.mean()

    low, high = 1e-3, 1e3
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low, x[-1] * np.exp(low * z).mean() ** (1 / low)


ORACLES = {
    "probability_plot": lambda w: sorted_plot(w)[:2],
    "log_moments": closed_moments,
    "mle": bisected_likelihood,
}


def samples(n, seed=0):
    """float32, of the shapes that weights have and some that they do not."""
    rng = np.random.default_rng(seed)
    several = {
        "normal": rng.standard_normal(n),
        "uniform": rng.random(n),
        "student": rng.standard_t(3, n),
        "bimodal": np.where(
            rng.random(n) < 0.5, 0.01 * rng.standard_normal(n), 1 + 0.05 * rng.standard_normal(n)
        ),
    }
    several |= {f"weibull {k}": rng.weibull(k, n) for k in (0.3, 0.5, 1.0, 1.2, 2.0, 3.0)}
    return {name: torch.from_numpy(values).float() for name, values in several.items()}


def assert_close(fit, expected, tolerance, what=""):
    found = np.array([fit.k, fit.scale])
    assert np.abs(found / np.array(expected) - 1).max() <= tolerance, (what, found, expected)


class TestHistogram:
    """From bins as from the entries."""

    @pytest.mark.parametrize(("n", "scale"), [(10**5, 1.0), (10**5, 1e-30), (10**5, 1e30), (10**6, 0.02)])
    @pytest.mark.parametrize("method", METHODS)
    def test_agrees_with_the_entries(self, n, scale, method):
        several = {name: (w.double() * scale).float() for name, w in samples(n).items()}
        fit = fit_weibull(weight_statistics(several), method)
        assert set(fit.route) == {"histogram"}
        for row, (name, w) in enumerate(several.items()):
            expected = np.array(ORACLES[method](w))
            found = np.array([fit.k[row], fit.scale[row]])
            tolerance = 1e-6 if method == "log_moments" else 3e-4
            assert np.abs(found / expected - 1).max() <= tolerance, (name, found, expected)

    def test_ten_million_half_normal(self):
        w = torch.randn(10**7)
        statistics = weight_statistics({"w": w})
        for method, limit in HALF_NORMAL.items():
            fit = fit_weibull(statistics, method)
            assert_close(replace(fit, scale=fit.scale / fit.rms), np.array(limit)[:, None], 1e-3, method)
        fit = fit_weibull(statistics)
        assert_close(fit, np.array(sorted_plot(w)[:2])[:, None], 3e-4)
        assert abs(fit.gini[0] - (math.sqrt(2) - 1)) < 1e-3
        assert abs(fit.q90_q50[0] - 1.6448536 / 0.6744898) < 2e-3
        assert abs(fit.q99_q50[0] - 2.5758293 / 0.6744898) < 5e-3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_entries_low_in_their_bins(self, dtype):
        """Two bfloat16 numbers share a bin: taken as spread over it, λ would be 0.3 % too large."""
        for name, w in samples(10**5).items():
            w = w.to(dtype)
            for method in METHODS:
                fit = fit_weibull(w, method, route="histogram")
                assert_close(fit, ORACLES[method](w), 3e-4, (name, method))

    @pytest.mark.parametrize("method", METHODS)
    def test_describes_as_the_entries_do(self, method):
        several = samples(10**6)
        by_bins, by_entries = (fit_weibull(several, method, route=r) for r in ("histogram", "exact"))
        for column, tolerance in {"r_squared": 3e-5, "ks": 3e-4, "gini": 3e-5}.items():
            difference = getattr(by_bins, column) - getattr(by_entries, column)
            assert np.abs(difference).max() <= tolerance, (column, difference)
        for column in ("q90_q50", "q99_q50"):
            np.testing.assert_allclose(getattr(by_bins, column), getattr(by_entries, column), rtol=3e-3)
        np.testing.assert_allclose(by_bins.rms, by_entries.rms, rtol=1e-6)
        assert (by_bins.count == by_entries.count).all()

    @pytest.mark.parametrize("method", METHODS)
    def test_gaps(self, method):
        """Nothing goes on from one island to the next."""
        w = torch.cat([2.0**i * (1 + torch.rand(9)) for i in range(0, 80, 2)])
        assert_close(fit_weibull(w, method, route="histogram"), ORACLES[method](w), 3e-4)

    def test_subnormal_numbers(self):
        """A tail that reaches into the lowest bins, whose lower edge is zero."""
        w = (torch.randn(10**5, dtype=torch.float64) * 1e-38).float()
        assert (w.abs() < 2.0**-133).any()
        assert_close(fit_weibull(w, route="histogram"), sorted_plot(w)[:2], 1e-3)
        assert fit_weibull(w).route == "exact"  # the quantile 0.1 is subnormal

    def test_rows_are_fitted_apart(self):
        several = {"wide": weibull(10**5, 0.5, 1e-9), "narrow": weibull(10**5, 3, 1e9), "few": weibull(50, 1)}
        several |= {"octave": 1 + torch.rand(500), "the next": 2 + 2 * torch.rand(500)}
        statistics = weight_statistics(several)
        together = fit_weibull(statistics, "mle")
        for row in range(len(several)):
            alone = fit_weibull(statistics.select([row]), "mle")
            for column, values in alone.to_dict().items():
                found = together.to_dict()[column]
                found = found if column == "method" else found[row : row + 1]
                np.testing.assert_array_equal(found, values) if values.dtype.kind not in "f" else (
                    np.testing.assert_allclose(found, values, rtol=1e-11)
                )


class TestExact:
    @pytest.mark.parametrize("k", [0.3, 1.2, 3.0, 8.0, 20.0])
    @pytest.mark.parametrize("n", [20, 25, 1000, 100_001])
    def test_is_the_oracle(self, k, n):
        w = weibull(n, k, 1e-3)
        for method in METHODS:
            fit = fit_weibull(w, method, route="exact")
            assert_close(fit, ORACLES[method](w), 1e-9, method)
        assert abs(fit.r_squared - sorted_plot(w)[2]) < 1e-9

    @given(st.floats(0.3, 20), st.floats(1e-30, 1e30), st.integers(20, 5000))
    def test_quantiles_give_back_the_parameters(self, k, scale, n):
        fit = fit_weibull(quantiles(n, k, scale))
        assert_close(fit, (k, scale), 1e-9)
        assert fit.r_squared > 1 - 1e-9
        assert abs(fit.ks - 0.5 / n) < 1e-9  # all that is left is the steps

    @pytest.mark.parametrize("method", METHODS)
    def test_many_quantiles_suit_every_method(self, method):
        assert_close(fit_weibull(quantiles(10**6, 1.7, 0.02), method, route="exact"), (1.7, 0.02), 1e-5)
        assert_close(fit_weibull(quantiles(10**6, 1.7, 0.02), method, route="histogram"), (1.7, 0.02), 3e-5)

    def test_by_hand(self):
        """20 entries e^i: mean ln|w| is 10.5 and its variance (20² − 1)/12."""
        fit = fit_weibull(torch.arange(1, 21, dtype=torch.float64).exp(), "log_moments")
        k = math.pi / math.sqrt(6 * 399 / 12)
        assert fit.k == pytest.approx(k, rel=1e-12)
        assert fit.scale == pytest.approx(math.exp(10.5 + 0.5772156649015329 / k), rel=1e-12)
        assert fit.k_error == pytest.approx(1.0488088 * k / math.sqrt(20), rel=1e-7)

    def test_an_outlier_does_not_throw_the_likelihood(self):
        """From the log moments a plain Newton step would go to k = −23 here."""
        w = torch.cat([1 + 0.01 * torch.rand(1000, dtype=torch.float64), torch.tensor([1e30])])
        assert_close(fit_weibull(w, "mle"), bisected_likelihood(w), 1e-9)

    def test_beyond_float32(self):
        w = weibull(HISTOGRAM_ENTRIES, 1.5, 1e200)
        assert fit_weibull(w).route == "exact"
        assert fit_weibull(torch.cat([w / 1e200, w[:1]])).route == "exact"
        assert_close(fit_weibull(w), sorted_plot(w)[:2], 1e-9)
        assert fit_weibull(w).rms / 1e200 == pytest.approx(w.div(1e200).square().mean().sqrt().item())

    @pytest.mark.parametrize("method", METHODS)
    def test_describes_by_definition(self, method):
        w = torch.cat([torch.randn(5000, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)])
        fit = fit_weibull(w, method)
        x, _ = magnitudes(w)
        n, rank = len(x), np.arange(1, len(x) + 1)
        cdf = -np.expm1(-((x / fit.scale) ** fit.k))
        assert fit.ks == pytest.approx(max((rank / n - cdf).max(), (cdf - (rank - 1) / n).max()), rel=1e-9)
        assert fit.gini == pytest.approx(((2 * rank - n - 1) * x).sum() / (n * x.sum()), rel=1e-9)
        for column, q in {"q90_q50": 0.9, "q99_q50": 0.99}.items():
            ratio = np.quantile(x, q, method="hazen") / np.quantile(x, 0.5, method="hazen")
            assert getattr(fit, column) == pytest.approx(ratio, rel=1e-9)
        assert (fit.count, fit.rms) == (5000, pytest.approx(w.square().mean().sqrt().item(), rel=1e-12))

    def test_batches_are_as_single_tensors(self):
        several = [(f"layer {n}", weibull(n, 1 + n / 1e4, seed=n).float()) for n in (20, 999, 5, 64, 20_000)]
        together = fit_weibull(several, "mle", on_degenerate="mark")
        assert together.names == tuple(name for name, _ in several)
        for row, (_, w) in enumerate(several):
            alone = fit_weibull(w, "mle", on_degenerate="mark")
            np.testing.assert_allclose([together.k[row], together.ks[row]], [alone.k, alone.ks], rtol=1e-11)


class TestLaws:
    @given(st.floats(1e-20, 1e20), st.sampled_from(METHODS), st.integers(0, 9))
    def test_scaling_scales_lambda_and_leaves_k(self, factor, method, seed):
        w = weibull(500, 1.3, seed=seed)
        before, after = fit_weibull(w, method), fit_weibull(-factor * w, method)
        assert_close(after, (before.k, factor * before.scale), 1e-9)
        np.testing.assert_allclose([after.ks, after.gini], [before.ks, before.gini], rtol=1e-7)

    @given(st.integers(-60, 60), st.sampled_from(METHODS))
    def test_octaves_shift_a_histogram(self, octaves, method):
        w = weibull(2000, 1.3).float()
        before, after = (fit_weibull(x, method, route="histogram") for x in (w, w * 2.0**octaves))
        assert_close(after, (before.k, 2.0**octaves * before.scale), 1e-6)

    @given(st.integers(1, 1999), st.integers(0, 99), st.sampled_from(METHODS))
    def test_permutation_and_splitting_change_nothing(self, cut, seed, method):
        w = torch.cat([weibull(1000, 1.3), 100 * weibull(1000, 2.0)]).float()
        whole = fit_weibull(weight_statistics({"w": w}), method)
        shuffled = w[torch.randperm(len(w), generator=torch.Generator().manual_seed(seed))]
        parts = weight_statistics({"w": shuffled[:cut]}) + weight_statistics({"w": shuffled[cut:]})
        assert_close(fit_weibull(parts, method), (whole.k, whole.scale), 1e-6)
        exact = fit_weibull(w, method, route="exact")
        assert_close(fit_weibull(shuffled, method, route="exact"), (exact.k, exact.scale), 1e-12)


class TestErrors:
    """Standard errors, of independent draws from a Weibull distribution."""

    @pytest.mark.parametrize("method", METHODS)
    def test_are_the_spread_of_many_fits(self, method):
        fit = fit_weibull([(str(i), weibull(1000, 1.7, 0.3, seed=i)) for i in range(1000)], method)
        # The spread of 1000 is known to 2.2 %.
        assert fit.k.std() / fit.k_error.mean() == pytest.approx(1, abs=0.07)
        assert fit.scale.std() / fit.scale_error.mean() == pytest.approx(1, abs=0.07)

    def test_of_the_plot_come_from_a_brownian_bridge(self):
        """δk/k = −∫(y−ȳ)·x′ / Syy and k·δln λ = mean x′ − ȳ·δ, with x′ = −B/f_y, over 0.1 ≤ F ≤ 0.9."""
        f = 0.1 + 0.8 * (np.arange(2000) + 0.5) / 2000
        y, density = np.log(-np.log1p(-f)), -(1 - f) * np.log1p(-f)
        slope = (y - y.mean()) / ((y - y.mean()) ** 2).sum() / density
        level = 1 / len(f) / density - y.mean() * slope
        bridge = np.minimum.outer(f, f) - np.outer(f, f)
        fit = fit_weibull(quantiles(400, 2.0, 3.0))
        assert fit.k_error == pytest.approx(2.0 / 20 * math.sqrt(slope @ bridge @ slope), rel=1e-4)
        assert fit.scale_error == pytest.approx(3.0 / 40 * math.sqrt(level @ bridge @ level), rel=1e-4)

    def test_of_log_moments_come_by_the_delta_method(self):
        """ln|w| has variance π²/6, third moment −2ζ(3) and fourth cumulant π⁴/15, all over powers of k."""
        variance, third, fourth = math.pi**2 / 6, -2 * 1.2020569031595942, math.pi**4 / 15
        of_sd = (2 + fourth / variance**2) / 4  # n·Var(sd)/variance
        fit = fit_weibull(quantiles(10**4, 2.0, 3.0), "log_moments")
        assert fit.k_error == pytest.approx(fit.k * math.sqrt(of_sd / 1e4), rel=1e-6)
        # ln λ = mean + γ·sd/√variance at k = 1
        level = variance + np.euler_gamma**2 * of_sd + np.euler_gamma * third / variance
        assert fit.scale_error == pytest.approx(fit.scale / fit.k * math.sqrt(level / 1e4), rel=1e-6)

    def test_of_the_likelihood_come_from_fishers_information(self):
        fit = fit_weibull(quantiles(10**4, 2.0, 3.0), "mle")
        spread = 6 / math.pi**2
        assert fit.k_error == pytest.approx(fit.k * math.sqrt(spread / 1e4), rel=1e-6)
        expected = math.sqrt((1 + spread * (1 - np.euler_gamma) ** 2) / 1e4) * fit.scale / fit.k
        assert fit.scale_error == pytest.approx(expected, rel=1e-6)


class TestRoute:
    def test_is_chosen_by_size_and_width(self):
        n = 100_000
        fit = fit_weibull(
            {
                "large": weibull(n, 1.2),
                "small": weibull(n - 1, 1.2),
                "narrow": weibull(n, 20),
                "sharp": torch.cat([0.01 * torch.randn(n), 1 + 0.05 * torch.rand(n)]),
                "sparse": torch.cat([weibull(n - 1, 1.2), torch.zeros(9)]),
            }
        )
        assert fit.route.tolist() == ["histogram", "exact", "exact", "exact", "exact"]

    def test_is_taken_as_told(self):
        large, small = weibull(100_000, 1.2), weibull(100, 1.2)
        assert fit_weibull({"a": large, "b": small}, route="exact").route.tolist() == ["exact"] * 2
        assert fit_weibull({"a": large, "b": small}, route="histogram").route.tolist() == ["histogram"] * 2

    @pytest.mark.parametrize("method", METHODS)
    def test_narrow_shapes_are_exact_unasked(self, method):
        w = weibull(HISTOGRAM_ENTRIES, 20).float()
        assert_close(fit_weibull(w, method), ORACLES[method](w), 1e-6)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_any_layout_and_dtype(self, dtype):
        w = weibull(4000, 1.2).to(dtype).reshape(40, 100).t().requires_grad_()
        assert_close(fit_weibull(w), sorted_plot(w.detach())[:2], 1e-6)

    def test_named_parameters(self):
        model = torch.nn.Linear(40, 30)
        fit = fit_weibull(model.named_parameters())
        assert fit.names == ("weight", "bias")
        assert fit.k[0] == pytest.approx(sorted_plot(model.weight.detach())[0], rel=1e-9)

    def test_nothing_gives_no_rows(self):
        fit = fit_weibull({})
        assert (fit.names, fit.k.shape, fit.reason.shape) == ((), (0,), (0,))

    def test_log_moments_need_no_histogram(self):
        w = weibull(5000, 1.2).float()
        fit = fit_weibull(weight_statistics({"w": w}, histogram=False), "log_moments")
        assert fit.route.tolist() == ["sums"]
        assert_close(fit, np.array(closed_moments(w))[:, None], 1e-6)
        assert np.isnan([fit.ks[0], fit.r_squared[0], fit.gini[0], fit.q90_q50[0], fit.q99_q50[0]]).all()


DEGENERATE = {
    "ones": (torch.full((64,), -0.3), "all non-zero entries are equal in magnitude"),
    "zeros": (torch.zeros(64), "0 non-zero entries, at least 20 are needed"),
    "empty": (torch.zeros(0), "0 non-zero entries, at least 20 are needed"),
    "few": (torch.cat([torch.rand(FEWEST - 1) + 1, torch.zeros(99)]), "19 non-zero entries"),
    "nan": (torch.cat([torch.rand(64), torch.tensor([math.nan])]), "1 non-finite entries"),
    "infinite": (torch.cat([torch.rand(64), torch.tensor([math.inf, -math.inf])]), "2 non-finite entries"),
    "steps": (torch.cat([torch.rand(2), torch.ones(96), 2 + torch.rand(2)]), "quantiles 0.1 and 0.9"),
}


class TestDegenerate:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("route", ["histogram", "exact", None])
    def test_is_marked_with_the_reason(self, method, route):
        tensors = {"good": weibull(100, 1.2).float()} | {name: w for name, (w, _) in DEGENERATE.items()}
        fit = fit_weibull(tensors, method, route=route, on_degenerate="mark")
        assert fit.reason[0] is None
        assert np.isfinite([fit.k[0], fit.scale[0], fit.ks[0]]).all()
        for row, (name, (w, why)) in enumerate(DEGENERATE.items(), start=1):
            assert why in fit.reason[row], name
            numbers = [getattr(fit, column)[row] for column in ("k", "scale", "k_error", "ks", "gini")]
            assert np.isnan(numbers).all(), name
            assert fit.count[row] == (w.isfinite() & (w != 0)).sum()
            rms = 0 if len(w) == 0 else w.square().mean().sqrt().item()
            np.testing.assert_allclose(fit.rms[row], rms if math.isfinite(rms) else math.nan, rtol=1e-6)

    def test_raises_by_name(self):
        tensors = {"good": weibull(100, 1.2)} | {name: w for name, (w, _) in DEGENERATE.items()}
        with pytest.raises(
            ValueError, match=r"7 of 8 tensors cannot be fitted: ones: all .*; few: .*; …\. on_deg"
        ):
            fit_weibull(tensors)
        with pytest.raises(ValueError, match="the tensor: 0 non-zero entries"):
            fit_weibull(torch.zeros(9))

    def test_without_a_histogram(self):
        statistics = weight_statistics({"ones": torch.full((64,), 0.3), "w": torch.rand(64)}, histogram=False)
        fit = fit_weibull(statistics, "log_moments", on_degenerate="mark")
        assert fit.reason.tolist() == ["all non-zero entries are equal in magnitude", None]

    def test_twenty_entries_are_enough(self):
        assert fit_weibull(torch.rand(FEWEST) + 1).count == FEWEST

    def test_a_bin_that_holds_all_but_the_tails(self):
        """The histogram cannot tell these apart, the entries can."""
        w = 1 + 1e-3 * torch.rand(2 * HISTOGRAM_ENTRIES)
        with pytest.raises(
            ValueError, match="share a bin of the histogram; the exact route needs the tensor"
        ):
            fit_weibull(w, route="histogram")
        assert fit_weibull(w).route == "exact"
        assert_close(fit_weibull(w), sorted_plot(w)[:2], 1e-6)


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"method": "moments"},
                "method must be one of 'probability_plot', 'log_moments', 'mle', got 'moments'",
            ),
            ({"route": "sorted"}, "route must be one of None, 'histogram', 'exact', got 'sorted'"),
            ({"on_degenerate": "skip"}, "on_degenerate must be one of 'raise', 'mark', got 'skip'"),
        ],
    )
    def test_none_of_the_choices(self, options, message):
        with pytest.raises(ValueError, match=message):
            fit_weibull(torch.rand(99), **options)

    @pytest.mark.parametrize("method", ["probability_plot", "mle"])
    def test_no_histogram_names_the_remedy(self, method):
        statistics = weight_statistics({"w": torch.rand(99)}, histogram=False)
        with pytest.raises(
            ValueError, match=rf"'{method}' needs a histogram.*histogram=True\), or .*log_moments"
        ):
            fit_weibull(statistics, method)

    def test_statistics_are_not_sorted(self):
        with pytest.raises(ValueError, match="pass the tensors"):
            fit_weibull(weight_statistics({"w": torch.rand(99)}), route="exact")

    @pytest.mark.parametrize("source", [3, [torch.rand(9)], {"w": np.ones(9)}, torch.nn.Linear(2, 2), ["ab"]])
    def test_source_of_another_kind(self, source):
        with pytest.raises(TypeError, match=r"fit_weibull takes WeightStatistics, a tensor, a mapping"):
            fit_weibull(source)

    def test_integers(self):
        with pytest.raises(TypeError, match=r"ids must be floating point to be fitted, got torch.int64"):
            fit_weibull({"ids": torch.arange(99)})


class TestResult:
    def test_of_a_tensor_is_numbers(self):
        fit = fit_weibull(torch.rand(99))
        assert isinstance(fit, WeibullFit)
        assert fit.names is None
        assert [type(x) for x in (fit.k, fit.count, fit.reason, fit.route)] == [float, int, type(None), str]
        assert len(fit.to_pandas()) == 1

    def test_columns(self):
        fit = fit_weibull({"a": torch.rand(99), "b": torch.zeros(9)}, "mle", on_degenerate="mark")
        columns = fit.to_dict()
        assert columns["name"].tolist() == ["a", "b"]
        assert columns["k"].dtype == columns["ks"].dtype == np.float64
        assert columns["count"].tolist() == [99, 0]
        assert (columns["method"].item(), columns["route"].tolist()) == ("mle", ["exact", "exact"])
        table = fit.to_pandas()
        assert table.method.tolist() == ["mle", "mle"]
        assert table.reason.isna().tolist() == [True, False]
        assert table.scale[0] == fit.scale[0]


@pytest.mark.parametrize("sigma", [2e-5, 1e-4, 4e-4, 1e-2])
def test_small_weights_of_float16_are_fitted_as_exactly_as_others(sigma):
    weight = (sigma * torch.randn(200_000)).half()
    found, exact = fit_weibull(weight), fit_weibull(weight, route="exact")
    assert found.k == pytest.approx(exact.k, rel=3e-4)
    assert found.scale == pytest.approx(exact.scale, rel=3e-4)
    assert found.route == ("histogram" if sigma > 2**-11 else "exact")
