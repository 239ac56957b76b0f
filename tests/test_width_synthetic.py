"""The width experiment: its model and noise against independent answers, and a few seconds of it whole."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import residual_ffn
import torch
import width_synthetic as experiment
import width_synthetic_fits as fits
import width_synthetic_report as report
from residual_ffn import ResidualFFN, Task, add_noise, noise_limit
from scipy.linalg import solve_discrete_lyapunov
from typer.testing import CliRunner

import weibull_kernels as wk


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("width")
    arguments = ["--quick", f"--out={out / 'runs'}", f"--results={out / 'results'}"]
    result = CliRunner().invoke(experiment.app, arguments)
    assert result.exit_code == 0, result.output
    return out, arguments


@pytest.mark.parametrize(
    ("lr", "weight_decay", "beta1"), [(8e-3, 1.0, 0.9), (0.1, 2.0, 0.9), (3e-3, 0.5, 0.0)]
)
def test_the_noise_limit_is_the_stationary_variance_of_weight_and_moment(lr, weight_decay, beta1):
    c = 1 - lr * weight_decay
    # (w, m) ← A·(w, m) + b·g with m ← β₁m + (1−β₁)g and w ← c·w − η·m.
    a = np.array([[c, -lr * beta1], [0, beta1]])
    b = np.array([[-lr * (1 - beta1)], [1 - beta1]])
    variance = solve_discrete_lyapunov(a, b @ b.T)[0, 0]
    assert noise_limit(lr, weight_decay, beta1) == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.99])
def test_the_noise_limit_is_the_root_of_half_lr_over_decay_whatever_beta1(beta1):
    assert noise_limit(1e-6, 0.5, beta1) == pytest.approx(math.sqrt(1e-6 / (2 * 0.5)), rel=1e-4)


def test_the_ffn_is_what_its_equation_says():
    model = ResidualFFN(16, 0.3, generator()).double()
    x = torch.randn(5, 16, generator=generator(1), dtype=torch.float64)

    def norm(values):
        return values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + np.finfo(np.float64).eps)

    up, down = model.up_proj.detach().numpy(), model.down_proj.detach().numpy()
    branch = np.maximum(norm(x.numpy()) @ up.T, 0) @ down.T
    np.testing.assert_allclose(model(x).detach(), x.numpy() + norm(branch), rtol=1e-10)
    model.branch_norm = False
    np.testing.assert_allclose(model(x).detach(), x.numpy() + branch, rtol=1e-10)


def test_the_branch_norm_frees_the_size_of_both_matrices():
    """The gradient is orthogonal to a matrix whose size changes nothing."""
    model = ResidualFFN(16, 0.3, generator()).double()
    x = torch.randn(5, 16, generator=generator(1), dtype=torch.float64)
    for branch_norm, orthogonal in ((True, True), (False, False)):
        model.branch_norm = branch_norm
        model.zero_grad()
        model(x).sin().sum().backward()
        for weight in model.parameters():
            cosine = (weight.grad * weight).sum() / (weight.grad.norm() * weight.norm())
            assert (abs(cosine.item()) < 1e-9) is orthogonal


def test_a_task_is_the_same_function_at_every_width():
    narrow, wide = Task.of(32, seed=3), Task.of(128, seed=3)
    torch.testing.assert_close(narrow.inner, wide.inner)
    torch.testing.assert_close(narrow.outer, wide.outer)
    x, wanted = wide.batch(512, generator())
    assert x.square().mean().item() == pytest.approx(1, rel=0.1)
    for values in (x, wanted - x):  # of few dimensions
        assert torch.linalg.matrix_rank(values, rtol=1e-4).item() == residual_ffn.LATENT
    with pytest.raises(ValueError, match="width must be at least 8"):
        Task.of(4, seed=0)


def test_noise_has_the_ratio_it_is_asked_for_and_repeats():
    gradient = torch.randn(64, 64, generator=generator(1)) * 1e-3
    noisy, again, alone = gradient.clone(), gradient.clone(), gradient.clone()
    scratch = torch.empty_like(gradient)
    add_noise(noisy, 3.0, scratch, generator(2))
    add_noise(again, 3.0, scratch, generator(2))
    add_noise(alone, math.inf, scratch, generator(2))
    assert torch.equal(noisy, again)
    assert ((noisy - gradient).norm() / gradient.norm()).item() == pytest.approx(3, rel=0.03)
    torch.testing.assert_close((noisy - gradient) / gradient.square().mean().sqrt(), 3 * alone)
    assert fits.coherent_part(3.0) == pytest.approx(0.1)


def test_the_rules_of_the_plan_are_those_of_the_library():
    plan = experiment.DEFAULT
    for name in wk.scaling.RULES:
        for run in plan.runs()[name]:
            (group,) = wk.scaling.param_groups(
                [("mlp.up_proj.weight", torch.nn.Parameter(torch.zeros(2, 2)))],
                width=run.width,
                base_width=plan.base_width,
                lr=plan.lr,
                weight_decay=plan.weight_decay,
                rule=name,
            )
            assert (run.lr, run.weight_decay) == pytest.approx((group["lr"], group["weight_decay"]))


def test_every_run_has_a_file_of_its_own():
    runs = {run for runs in experiment.DEFAULT.runs().values() for run in runs}
    assert len({run.name for run in runs}) == len(runs)
    one = experiment.Settings(64, 0.01, 0.5, math.inf, 2)
    assert one.name == "noiseinf-width64-lr0.01-decay0.5-seed2"
    assert one.steps(3) == wk.scaling.equilibrium_steps(0.01, 0.5) == 600


def test_equal_steps_are_an_identity_where_the_branch_is_normed():
    """w and η times 4, ω over 4: every σ is 4 times what it was."""
    one = experiment.Settings(16, 0.05, 1.0, 1.0, 0)
    first = experiment.measured(one)["matrices"]
    second = experiment.measured(replace(one, lr=0.2, weight_decay=0.25))["matrices"]
    for name in fits.MATRICES:
        assert np.array(second[name]["sigma"]) / 4 == pytest.approx(first[name]["sigma"], rel=1e-2)


def test_a_snapshot_has_the_top_direction_the_size_and_the_stable_rank():
    weight = torch.diag(torch.tensor([1.0, 3.0, -2.0, 0.0]))
    left, value, right = experiment.top_triple(weight)
    assert value.item() == pytest.approx(3)
    assert (left @ weight @ right).item() == pytest.approx(3)
    found = {"sigma": [], "rms": [], "stable_rank": []}
    experiment.add_spectrum(found, weight)
    assert found["sigma"] == pytest.approx([3])
    assert found["rms"] == pytest.approx([math.sqrt(14 / 16)])
    assert found["stable_rank"] == pytest.approx([14 / 9])


def test_a_slope_has_the_interval_of_least_squares():
    x, y = [0.0, 1.0, 2.0, 3.0], [0.1, 0.4, 1.1, 1.4]
    found = fits.Slope.of(x, y)
    # By hand: Sxx = 5, Sxy = 2.3, residues 0.04, −0.12, 0.12, −0.04, s² = 0.032/2, t₀.₉₇₅(2) = 4.302653.
    assert found.value == pytest.approx(0.46)
    assert found.half == pytest.approx(4.302653 * math.sqrt(0.016 / 5), rel=1e-6)
    assert found.agrees(fits.Slope(0.46 + found.half, 0.01))
    assert not found.agrees(fits.Slope(0.47 + found.half, 0.01))


def test_where_the_exponent_passes_that_of_the_paper():
    rows = [
        {"noise": noise, "matrix": "up_proj", "sigma": {"value": value}}
        for noise, value in (("0", 1.0), ("1", 0.8), ("3", 0.7), ("inf", 0.5))
    ]
    # Between parts ½ and 1/10, half-way in their logarithms.
    assert fits.crossing(rows, "up_proj") == pytest.approx(math.sqrt(0.5 * 0.1))
    assert fits.crossing(rows, "up_proj", exponent=0.6) is None


def test_it_leaves_tables_numbers_and_a_picture(quick):
    out, _ = quick
    page = (out / "results" / "width-synthetic.md").read_text()
    found = json.loads((out / "results" / "width-synthetic.json").read_text())
    assert (out / "results" / "width-synthetic.png").read_bytes().startswith(b"\x89PNG\r\n")
    for name in wk.scaling.RULES:
        assert f"{name}, {report.DECAYS[name]}" in page
    assert len(found["rules"]) == 2 * 2 * len(wk.scaling.RULES)
    assert len(found["runs"]) == len(list((out / "runs").glob("*.json")))


def test_noise_grows_as_the_root_of_the_width_and_signal_faster(quick):
    out, _ = quick
    rows = json.loads((out / "results" / "width-synthetic.json").read_text())["width"]
    exponents = {(row["noise"], row["matrix"]): row["sigma"]["value"] for row in rows}
    for matrix in fits.MATRICES:
        assert exponents["inf", matrix] == pytest.approx(0.5, abs=0.1)
        assert exponents["0", matrix] > 0.75
    assert all(row["rms_of_limit"] == pytest.approx(1, abs=0.12) for row in rows)


def test_a_size_that_the_targets_fix_does_not_follow_the_lr(quick):
    out, _ = quick
    found = json.loads((out / "results" / "width-synthetic.json").read_text())
    assert all(abs(row["lr"]["value"]) < 0.1 for row in found["pinned"])
    for row in found["fixed_width"]:
        small = row["small"]
        assert small["lr"]["value"] > 0.25  # ½, less what an ηω of 0.1 takes
        # The difference of the two is an identity.
        assert small["lr"]["value"] - small["weight_decay"]["value"] == pytest.approx(1, abs=0.02)


def test_runs_that_are_there_are_not_trained_again(quick, monkeypatch):
    out, arguments = quick
    before = (out / "results" / "width-synthetic.json").read_text()
    monkeypatch.setattr(experiment, "measured", None)
    assert CliRunner().invoke(experiment.app, arguments).exit_code == 0
    assert (out / "results" / "width-synthetic.json").read_text() == before
