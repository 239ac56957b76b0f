"""Spectra of a proxy and a target side by side, in the library and on the command line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels import scaling
from weibull_kernels.cli import app

NAMES = {
    "layers.0.self_attn.q_proj.weight": (1, 1),
    "layers.0.self_attn.o_proj.weight": (1, 1),
    "layers.0.mlp.up_proj.weight": (4, 1),
    "layers.1.mlp.up_proj.weight": (4, 1),
}


def gaussian(width, sigma_top=1.0, seed=0, **factors):
    """Matrices of noise at a width whose top singular values are as given, times a factor by role."""
    generator = torch.Generator().manual_seed(seed)
    found = {"embed.weight": torch.randn(10, width, generator=generator), "norm.weight": torch.ones(width)}
    for name, (m, n) in NAMES.items():
        weight = torch.randn(m * width, n * width, generator=generator, dtype=torch.float64)
        factor = sigma_top * factors.get(wk.role_of(name), 1)
        found[name] = weight * factor / torch.linalg.matrix_norm(weight, 2)
    return found


def test_what_keeps_its_top_singular_value_has_transferred():
    check = scaling.check_transfer(gaussian(48), gaussian(96, seed=1), proxy_age=4, target_age=3.5)
    assert check.names == ("attention_output", "ffn", "qkv")
    assert check.matrices.tolist() == [1, 2, 1]
    assert check.ratio == pytest.approx(1, rel=1e-6)
    assert check.transferred.all()
    assert check.in_equilibrium is True
    assert (
        check.verdict == "transferred: every role has σ_top within a factor 1.15 of 1 and a shape within 0.1"
    )
    assert check.left_out == {"embed.weight": "embedding: not matrix-like"}


def test_the_role_that_has_not_is_named():
    target = gaussian(96, ffn=2**0.25)
    check = scaling.check_transfer(gaussian(48), target)
    assert check.ratio.tolist() == pytest.approx([1, 2**0.25, 1])
    assert check.transferred.tolist() == [True, False, True]
    assert check.in_equilibrium is None
    assert check.verdict == (
        "not transferred: ffn, σ_top ratio 1.189 (σ_top within a factor 1.15 of 1 asked); whether the runs "
        "are in equilibrium is not known (no ages were given)"
    )
    # It is what a constant decay promises.
    rule = scaling.RULES["constant"]
    table = scaling.check_transfer(
        gaussian(48), gaussian(96, sigma_top=2**0.25), expected=rule.sigma_ratio(2)
    )
    assert table.transferred.all()


def test_the_ratio_of_a_role_is_the_geometric_mean():
    target = gaussian(96)
    target["layers.0.mlp.up_proj.weight"] *= 3
    target["layers.1.mlp.up_proj.weight"] *= 0.5
    check = scaling.check_transfer(gaussian(48), target)
    row = check.names.index("ffn")
    assert check.ratio[row] == pytest.approx(1.5**0.5)
    assert (check.low[row], check.high[row]) == pytest.approx((0.5, 3))


def test_matrices_that_failed_both_ways_have_not_transferred():
    target = gaussian(96)
    target["layers.0.mlp.up_proj.weight"] *= 3
    target["layers.1.mlp.up_proj.weight"] /= 3
    check = scaling.check_transfer(gaussian(48), target, proxy_age=5, target_age=5)
    assert check.ratio == pytest.approx(1)
    assert check.transferred.tolist() == [True, False, True]
    assert "ffn, single ratios from 0.333 to 3.000" in check.verdict


def test_a_spectrum_of_another_shape_has_not_transferred():
    target = gaussian(96)
    for name in NAMES:
        top = torch.zeros_like(target[name])
        top[0, 0] = 1
        target[name] = top
    check = scaling.check_transfer(gaussian(48), target)
    assert check.ratio == pytest.approx(1)
    assert (check.shape_distance > 0.1).all()
    assert "ffn, shape distance" in check.verdict
    assert "σ_top ratio" not in check.verdict
    assert not check.transferred.any()


def test_young_runs_are_not_judged():
    check = scaling.check_transfer(gaussian(48), gaussian(96), proxy_age=5, target_age=0.7)
    assert check.in_equilibrium is False
    assert (
        check.verdict == "undecided: ages of 5 (proxy) and 0.7 (target) time constants, equilibrium takes 3"
    )
    unknown = scaling.check_transfer(gaussian(48), gaussian(96), target_age=0.7)
    assert unknown.in_equilibrium is False


def test_age_is_the_sum_of_lr_times_decay():
    lr = np.linspace(0.001, 0.01, 250)
    assert scaling.training_age(lambda t: lr[t - 1], 0.3, 250) == pytest.approx(0.3 * lr.sum())
    assert scaling.training_age(0.01, 0.3, 1000) == pytest.approx(3)
    for given in (lr, lr.tolist(), torch.from_numpy(lr)):
        assert scaling.training_age(given, 0.3, 250) == pytest.approx(0.3 * lr.sum())
    with pytest.raises(ValueError, match="lr must have a rate for each of the 300 steps, got 250"):
        scaling.training_age(lr, 0.3, 300)


def test_spectra_may_come_ready_made():
    proxy, target = gaussian(48), gaussian(96)
    made = scaling.check_transfer(wk.spectrum(proxy), wk.spectrum(target))
    assert made.ratio.tolist() == scaling.check_transfer(proxy, target).ratio.tolist()
    assert made.to_pandas()["role"].tolist() == ["attention_output", "ffn", "qkv"]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"share no matrix-like weight; left out: embed.weight \(embedding"):
        scaling.check_transfer({"embed.weight": torch.ones(4, 4)}, {"embed.weight": torch.ones(4, 4)})
    zero = gaussian(48) | {"layers.0.mlp.up_proj.weight": torch.zeros(192, 48)}
    with pytest.raises(ValueError, match=r"'layers.0.mlp.up_proj.weight' is zero in the proxy or the target"):
        scaling.check_transfer(zero, gaussian(96))
    with pytest.raises(ValueError, match="tolerance must be a positive number, got 0"):
        scaling.check_transfer(gaussian(48), gaussian(96), tolerance=0)


def test_it_prints_as_a_table_with_its_verdict():
    lines = str(scaling.check_transfer(gaussian(48), gaussian(96))).splitlines()
    assert lines[0].split() == [
        "role",
        "matrices",
        "σ_top",
        "ratio",
        "smallest",
        "largest",
        "shape",
        "distance",
        "transferred",
    ]
    assert lines[2].split()[:3] == ["attention_output", "1", "1.000"]
    assert lines[-1].startswith("transferred: ")


def test_the_picture(tmp_path):
    scaling.check_transfer(gaussian(48), gaussian(96)).draw(tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes()[1:4] == b"PNG"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["spectrum", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def checkpoints(tmp_path):
    for name, weights in (("narrow", gaussian(48)), ("wide", gaussian(96, ffn=1.3))):
        save_file(weights, tmp_path / f"{name}.safetensors")
    return tmp_path / "narrow.safetensors", tmp_path / "wide.safetensors"


def test_the_command_says_what_the_library_says(checkpoints, tmp_path):
    result = run(*checkpoints, "--json", tmp_path / "rows.json", "--picture", tmp_path / "transfer.png")
    assert "not transferred: ffn" in result.stdout
    rows = {row["role"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    check = scaling.check_transfer(gaussian(48), gaussian(96, ffn=1.3))
    assert rows["ffn"]["ratio"] == pytest.approx(check.ratio[1], rel=1e-12)
    assert rows["qkv"]["transferred"] is True
    assert (tmp_path / "transfer.png").exists()


def test_options_of_the_command(checkpoints):
    assert "\ntransferred: every role" in run(*checkpoints, "--tolerance", "0.5").stdout
    old = ("--proxy-age", "4", "--target-age", "1")
    assert "undecided: ages of 4 (proxy) and 1 (target)" in run(*checkpoints, *old).stdout
    assert len(json.loads(run(*checkpoints, "--json", "-").stdout)) == 3


def test_checkpoints_that_cannot_be_compared(checkpoints, tmp_path):
    save_file({"embed.weight": torch.ones(4, 4)}, tmp_path / "embedding.safetensors")
    said = run(checkpoints[0], tmp_path / "embedding.safetensors", code=2).stderr
    assert "share no matrix-like weight" in said
    assert "missing.safetensors" in run(checkpoints[0], tmp_path / "missing.safetensors", code=2).stderr


def test_names_of_ones_own_on_the_command_line(checkpoints, tmp_path):
    for name, width in (("a", 48), ("b", 96)):
        own = {"blocks.0.mixing.weight": torch.eye(width), "only." + name: torch.eye(3)}
        save_file(gaussian(width) | own, tmp_path / f"{name}.safetensors")
    pair = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    said = run(*pair, "--role", "*.mixing.weight=mixing", "--role", "only.*=ffn").stdout
    assert " mixing " in said
    assert "2 matrix-like weights are in one of the two alone" in said
    assert "only.a (only in the proxy)" in said
    assert "no weight matches the pattern 'nothing.*'" in run(*pair, "--role", "nothing.*=ffn", code=2).stderr
    assert "expected PATTERN=ROLE" in run(*pair, "--role", "ffn", code=2).stderr


def test_stacked_experts_are_matrices_of_their_own():
    """Each of σ_top 1 at either width: the norm of the stack grows, the top values do not."""

    def experts(width):
        return {"layers.0.mlp.experts.down_proj": torch.eye(width).repeat(8, 1, 1)}

    check = scaling.check_transfer(experts(32), experts(64))
    assert check.matrices.tolist() == [8]
    assert check.ratio == pytest.approx(1, rel=1e-12)
    sigma = wk.top_singular_values(experts(32))
    assert sigma.names[7] == "layers.0.mlp.experts.down_proj[7]"
    assert sigma.values.flatten().tolist() == pytest.approx([1] * 8, rel=1e-6)


def test_what_is_not_compared_is_not_decomposed():
    """An embedding with a NaN, and as large as it may be, does not matter."""
    proxy, target = gaussian(48), gaussian(96)
    proxy["embed.weight"][0, 0] = torch.nan
    assert scaling.check_transfer(proxy, target).transferred.all()


def test_ages_are_numbers():
    with pytest.raises(ValueError, match="proxy_age must be a number of time constants, 0 or more, or None"):
        scaling.check_transfer(gaussian(48), gaussian(96), proxy_age=float("nan"))
