"""Forces from checkpoints: against every weight's own spline, against real steps, and what can go wrong."""

import dataclasses
import re

import numpy as np
import pytest
import recovery_oracle as oracle
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import weibull_kernels as wk
from weibull_kernels.injection import by_diffusion, displacement_weights
from weibull_kernels.interpolation import END_CONDITIONS, VARIABLES

KNOTS = [3, 4, 6, 10, 18, 30, 50, 55, 80, 100]
STEPS = np.arange(KNOTS[0] + 1, KNOTS[-1] + 1)
LR = 1e-3 * (1 + 0.5 * np.sin(STEPS / 7.0)) * (0.2 + np.exp(-STEPS / 60))
DECAY = 0.3
TABLE = (STEPS, LR)


def walk(numel, size=1.0, seed=0):
    """Weights [K, n] that drift and diffuse, as float32 has them."""
    noise = np.random.default_rng(seed)
    start, drift = noise.normal(size=numel), noise.normal(size=numel)
    moved = np.cumsum(noise.normal(size=(KNOTS[-1] + 1, numel)) * 0.02, axis=0)
    path = start + size * (0.01 * drift * np.arange(KNOTS[-1] + 1)[:, None] + moved)
    return path[KNOTS].astype(np.float32)


def as_checkpoints(named):
    """{name: [K, n]} as K mappings of tensors."""
    return [{name: torch.tensor(w[i]) for name, w in named.items()} for i in range(len(KNOTS))]


def assert_forces(recovery, row, expected):
    """Within 1e-8 of the absolute budget, at every step."""
    absolute = abs(expected).sum(axis=0)
    for name, force in zip(("alignment", "injection", "decay"), expected, strict=True):
        off = abs(getattr(recovery, name)[row] - force) / absolute
        assert off.max() <= 1e-8, (name, off.max(), recovery.step[off.argmax()])


NAMED = {"a": walk(5000), "small.steps": walk(3000, size=1e-5, seed=1), "seven": walk(7, seed=2)}


@pytest.mark.parametrize("bc_type", END_CONDITIONS)
@pytest.mark.parametrize("variable", VARIABLES)
def test_spline_is_that_of_every_weight(variable, bc_type):
    recovery = wk.recover(
        as_checkpoints(NAMED),
        KNOTS,
        lr=TABLE,
        weight_decay=DECAY,
        method="spline",
        variable=variable,
        bc_type=bc_type,
    )
    assert recovery.names == tuple(NAMED)
    assert recovery.step.tolist() == STEPS.tolist()
    for row, weights in enumerate(NAMED.values()):
        assert_forces(
            recovery, row, oracle.spline(weights.astype(float), KNOTS, LR, DECAY, variable, bc_type)
        )


@pytest.mark.parametrize(("method", "share"), [("two_point", 0.0), ("midpoint", 0.5)])
def test_baselines_are_those_of_every_weight(method, share):
    recovery = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, method=method)
    for row, weights in enumerate(NAMED.values()):
        assert_forces(recovery, row, oracle.straight(weights.astype(float), KNOTS, LR, DECAY, share))


def test_two_point_by_hand():
    """From (3, 4) to (3, 5) in two steps at η = 0.1, ω = 1: d = (0, ½) a step, û = −d/η − w."""
    run = [{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])}]
    found = wk.recover(run, [0, 2], lr=0.1, weight_decay=1.0, method="two_point")
    # û = (−3, −9): ⟨w,û⟩ = −45, ‖û‖² = 90, ‖w‖² = 25.
    assert found.alignment[0] == pytest.approx([9.0, 9.0])
    assert found.injection[0] == pytest.approx([0.9, 0.9])
    assert found.decay[0] == pytest.approx([-5.0, -5.0])
    # Δ‖w‖² of the step from (3, 4) to (3, 4.5).
    assert found.series().predicted_change == pytest.approx([4.25, 4.25])


def test_default_spline_goes_along_the_steps_as_published():
    one, other = (
        wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, method="spline", **options)
        for options in ({}, {"variable": "step", "bc_type": "not-a-knot"})
    )
    assert np.array_equal(one.alignment, other.alignment)
    assert (one.variable, one.bc_type, one.method) == ("step", "not-a-knot", "spline")


@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_spline_is_exact_on_cubics(first, second):
    t = np.arange(KNOTS[-1] + 1) / KNOTS[-1]
    path = np.stack([np.polyval(first, t), np.polyval(second, t)], axis=1) + 1.0
    assume(np.ptp(path[KNOTS], axis=0).any())  # what never moves is left out
    run = [{"w": torch.tensor(path[step])} for step in KNOTS]
    found = wk.recover(run, KNOTS, lr=TABLE, weight_decay=DECAY, method="spline")
    before, after = path[KNOTS[0] : -1], path[KNOTS[0] + 1 :]
    expected = oracle.forces_of(before, after - before, LR, DECAY)
    absolute = abs(expected).sum(axis=0) + 1e-9 * (path**2).sum(axis=1).max()
    for name, force in zip(("alignment", "injection", "decay"), expected, strict=True):
        assert (abs(getattr(found, name)[0] - force) <= 1e-8 * absolute).all()


def adamw_run(steps, *, lr=1e-2, weight_decay=0.1, every=1):
    """Weights after every step of real AdamW, and the budget of each step as `wk.forces` has it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    saved, budgets = [{"weight": model.weight.detach().double().clone()}], []
    for _ in range(steps):
        x = torch.randn(16, 40)
        (model(x) - x[:, :30].tanh()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        budgets.append(wk.forces(optimizer, model))
        saved.append({"weight": model.weight.detach().double().clone()})
    truth = {
        name: np.array([getattr(budget, name).item() for budget in budgets])
        for name in ("alignment", "injection", "decay", "norm_sq")
    }
    return saved[::every], truth


def test_corrected_is_exact_where_every_step_is_seen():
    """û itself is then in the displacement, and nothing is left to estimate."""
    saved, truth = adamw_run(40)
    found = wk.recover(saved, range(41), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    absolute = sum(abs(truth[name]) for name in ("alignment", "injection", "decay"))
    for name in ("alignment", "injection", "decay"):
        assert (abs(getattr(found, name)[0] - truth[name]) <= 1e-5 * absolute).all(), name
    assert (found.impulses.injection_source == "diffusion").all()
    assert found.impulses.update_rms_error.max() <= 1e-15


def test_impulses_of_real_steps():
    saved, truth = adamw_run(200, every=10)
    true = truth["alignment"].reshape(20, 10).sum(axis=1)
    errors = {}
    for method in ("corrected", "two_point"):
        found = wk.recover(saved, range(0, 201, 10), lr=1e-2, weight_decay=0.1, method=method)
        errors[method] = np.abs(found.impulses.alignment[0] - true).sum() / np.abs(true).sum()
    assert errors["corrected"] < 0.02
    assert errors["two_point"] > 0.1


@pytest.mark.parametrize("method", ["corrected", "spline", "midpoint", "two_point"])
def test_impulses_are_the_sums_of_the_steps(method):
    found = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, method=method)
    starts = np.array(KNOTS[:-1]) - KNOTS[0]
    for name in ("alignment", "injection", "decay", "coupling"):
        sums = np.add.reduceat(getattr(found, name), starts, axis=1)
        assert getattr(found.impulses, name) == pytest.approx(sums, rel=1e-12, abs=1e-15)
    assert np.array_equal(found.impulses.norm_sq, found.norm_sq[:, starts])
    assert found.impulses.step.tolist() == KNOTS[1:]
    assert found.impulses.steps.tolist() == np.diff(KNOTS).tolist()


def test_corrected_closes_between_checkpoints():
    """The four forces of an interval are the measured change of ‖w‖², whatever the injection."""
    norms = np.stack([(w.astype(float) ** 2).sum(axis=1) for w in NAMED.values()])
    for injection in ("estimate", "noise_limit", 0.3):
        found = wk.recover(
            as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, injection=injection
        ).impulses
        change = found.alignment + found.injection + found.decay + found.coupling
        assert abs(change - np.diff(norms)).max() <= 1e-12 * norms.max()


def test_corrected_injection_is_the_given_one():
    found = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, injection=0.2)
    assert found.injection[0] == pytest.approx(LR**2 * 5000 * 0.04, rel=1e-12)
    assert (found.impulses.injection_source == "given").all()
    assert (found.impulses.injection_error == 0).all()
    assert found.impulses.update_rms == pytest.approx(0.2)
    limit = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, injection="noise_limit")
    assert limit.injection[0] == pytest.approx(LR**2 * 5000 * 0.1 / 1.9, rel=1e-12)


def test_decay_is_twice_the_rate_times_the_norm():
    found = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY)
    assert found.decay == pytest.approx(-2 * LR * DECAY * found.norm_sq, rel=1e-12)
    at_knots = found.norm_sq[0, np.array(KNOTS[:-1]) - KNOTS[0]]
    assert at_knots == pytest.approx((NAMED["a"][:-1].astype(float) ** 2).sum(axis=1), rel=1e-12)


def test_norms_alone_are_enough_for_the_noise_limit():
    norms = np.stack([(w.astype(float) ** 2).sum(axis=1) for w in NAMED.values()])
    numel = [w.shape[1] for w in NAMED.values()]
    options = {"lr": TABLE, "weight_decay": DECAY, "betas": (0.8, 0.9)}
    whole = wk.recover(as_checkpoints(NAMED), KNOTS, injection="noise_limit", **options)
    alone = wk.recover_from_norms(KNOTS, norms, numel=numel, names=list(NAMED), **options)
    for name in ("alignment", "injection", "decay", "coupling"):
        # The norms come from the Gram matrix there, summed in another order.
        assert abs(getattr(whole, name) - getattr(alone, name)).max() <= 1e-11 * norms.max()
    with pytest.raises(ValueError, match="names must be one for each of the 3 rows"):
        wk.recover_from_norms(KNOTS, norms, numel=numel, names=["a"], **options)
    one = wk.recover_from_norms(KNOTS, norms[0], numel=numel[0], **options)
    assert one.alignment.shape == STEPS.shape
    assert np.array_equal(one.alignment, alone.alignment[0])
    assert one.impulses.alignment_error.shape == (len(KNOTS) - 1,)
    assert one.series().predicted_change.shape == STEPS.shape


@given(st.integers(1, 4999))
def test_splitting_a_tensor_changes_nothing(cut):
    whole = wk.checkpoint_gram(as_checkpoints({"a": NAMED["a"]}), KNOTS)
    parts = [
        wk.checkpoint_gram(as_checkpoints({"a": piece}), KNOTS)
        for piece in (NAMED["a"][:, :cut], NAMED["a"][:, cut:])
    ]
    together = parts[0] + parts[1]
    assert together.numel.tolist() == [5000]
    assert together.products == pytest.approx(whole.products, rel=1e-12)


def test_forces_scale_with_the_weights():
    """Twice the weights at twice the rates and half the decay: the same û, four times the forces."""
    twice = {name: 2 * w for name, w in NAMED.items()}
    for method in ("corrected", "spline", "midpoint", "two_point"):
        one = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, method=method)
        other = wk.recover(
            as_checkpoints(twice), KNOTS, lr=(STEPS, 2 * LR), weight_decay=DECAY / 2, method=method
        )
        assert other.alignment == pytest.approx(4 * one.alignment, rel=1e-9)


def test_at_picks_steps_and_leaves_the_impulses():
    options = {"lr": TABLE, "weight_decay": DECAY}
    for method in ("corrected", "spline", "two_point"):
        whole = wk.recover(as_checkpoints(NAMED), KNOTS, method=method, **options)
        some = wk.recover(as_checkpoints(NAMED), KNOTS, method=method, at=[4, 30, 31, 100], **options)
        places = np.array([4, 30, 31, 100]) - 4
        assert some.step.tolist() == [4, 30, 31, 100]
        for name in ("alignment", "norm_sq", "lr"):
            assert np.array_equal(getattr(some, name), getattr(whole, name)[:, places])
        assert np.array_equal(some.impulses.alignment, whole.impulses.alignment)


def test_rates_by_name_or_role():
    named = {"mlp.weight": NAMED["a"], "mlp.bias": NAMED["seven"], "norm.weight": NAMED["seven"]}
    found = wk.recover(
        as_checkpoints(named),
        KNOTS,
        lr={"mlp.*": TABLE, "*": 1e-3},
        weight_decay={"norm": 0.0, "*.bias": 0.5, "*": DECAY},
    )
    assert found.weight_decay.tolist() == [DECAY, 0.5, 0.0]
    assert np.array_equal(found.lr[0], LR)
    assert np.array_equal(found.lr[2], np.full(len(LR), 1e-3))
    alone = wk.recover(as_checkpoints({"x": NAMED["seven"]}), KNOTS, lr=1e-3, weight_decay=0.0)
    assert np.array_equal(found.alignment[2], alone.alignment[0])


def test_every_tensor_needs_a_rate():
    named = {"mlp.weight": NAMED["a"], "x": NAMED["seven"]}
    with pytest.raises(ValueError, match="weight_decay has no pattern for 'x', only ffn; add '\\*'"):
        wk.recover(as_checkpoints(named), KNOTS, lr=TABLE, weight_decay={"ffn": 0.1})


def test_a_stretch_without_learning_rate_has_no_forces():
    lr = LR.copy()
    lr[6:14] = 0.0  # steps 10 to 17; between the checkpoints of 10 and 18 only the last step moves
    lr[14] = 0.0
    still = {name: w.copy() for name, w in NAMED.items()}
    for w in still.values():
        w[4] = w[3]
    for method in ("corrected", "midpoint", "two_point"):
        found = wk.recover(as_checkpoints(still), KNOTS, lr=(STEPS, lr), weight_decay=DECAY, method=method)
        for name in ("alignment", "injection", "decay"):
            assert (getattr(found.impulses, name)[:, 3] == 0).all(), (method, name)
            assert np.isfinite(getattr(found, name)).all()


def test_tables_and_roles():
    named = {"layers.0.mlp.weight": NAMED["a"], "layers.0.norm.weight": NAMED["seven"]}
    found = wk.recover(as_checkpoints(named), KNOTS, lr=TABLE, weight_decay=DECAY)
    frame = found.to_pandas()
    assert len(frame) == 2 * len(STEPS)
    assert set(frame["role"]) == {"ffn", "norm"}
    row = frame[(frame["name"] == "layers.0.mlp.weight") & (frame["step"] == 20)].iloc[0]
    assert row["alignment"] == found.alignment[0, 20 - 4]
    assert row["numel"] == 5000
    impulses = found.impulses.to_pandas()
    assert {"alignment_error", "update_rms", "injection_source"} <= set(impulses.columns)
    assert len(impulses) == 2 * (len(KNOTS) - 1)
    total = found.series(role="transmission")
    assert np.array_equal(total.alignment, found.alignment[0])
    assert np.array_equal(found.series().alignment, found.alignment.sum(axis=0))
    assert set(wk.find_phases(found.step, total)) <= {*wk.PHASES}
    with pytest.raises(ValueError, match="no tensor matches"):
        found.series(role="head")


def test_impulses_are_records_like_any_other(tmp_path):
    named = {"layers.0.mlp.weight": NAMED["a"], "layers.0.norm.weight": NAMED["seven"]}
    found = wk.recover(as_checkpoints(named), KNOTS, lr=TABLE, weight_decay=DECAY)
    found.impulses.write(tmp_path / "run.parquet", {"lr": "a table"})
    records = wk.read_records(tmp_path / "run.parquet")
    frame = records.to_pandas()
    mlp = frame[frame["name"] == "layers.0.mlp.weight"]
    assert mlp["alignment"].tolist() == found.impulses.alignment[0].tolist()
    assert mlp["steps"].tolist() == np.diff(KNOTS).tolist()
    assert mlp["alignment_error"].tolist() == found.impulses.alignment_error[0].tolist()
    assert mlp["injection_source"].tolist() == found.impulses.injection_source[0].tolist()
    after = (NAMED["a"][1:].astype(float) ** 2).sum(axis=1)
    assert mlp["norm_sq_after"].to_numpy() == pytest.approx(after, rel=1e-12)
    assert "ffn" in wk.phase_table(records)


def moving_average_run(steps, n=20_000, beta1=0.9, eta=1e-3, decay=1.0):
    """Weights after every step of updates that are a moving average of noise: û_rms is the noise limit."""
    noise = np.random.default_rng(0)
    momentum, path = noise.normal(size=n) * np.sqrt((1 - beta1) / (1 + beta1)), [noise.normal(size=n)]
    for _ in range(steps):
        momentum = beta1 * momentum + (1 - beta1) * noise.normal(size=n)
        path.append((1 - eta * decay) * path[-1] - eta * momentum)
    return path


@pytest.mark.parametrize("spacing", [1, 3, 10, 30])
def test_the_injection_of_a_random_walk_is_seen_in_its_diffusion(spacing):
    """Where nothing moves back the estimate is too large by 1/c(h), which its error allows for."""
    path = moving_average_run(60)
    run = [{"w": torch.tensor(w)} for w in path[::spacing]]
    found = wk.recover(
        run,
        range(0, 61, spacing),
        lr=1e-3,
        weight_decay=1.0,
        method="corrected" if spacing < 20 else "midpoint",
    )
    gram = wk.checkpoint_gram(run, range(0, 61, spacing))
    lr = [np.full(spacing, 1e-3)] * (60 // spacing)
    estimate = by_diffusion(gram, lr, 1.0, 0.9)
    off = np.log(estimate.update_sq[0] / (0.1 / 1.9))
    assert (abs(off) <= 2 * estimate.error[0] + 0.05).all()
    # Before the average with the noise limit, which is the truth here, and c(h).
    moved, expected = gram.moves[0, 1:], displacement_weights(lr[0], 1.0, 0.9)[1] * 20_000 * 0.1 / 1.9
    kept = displacement_weights(lr[0], 1.0, 0.9)[0]
    undecayed = [
        np.sum((b - kept * a) ** 2) for a, b in zip(path[::spacing], path[spacing::spacing], strict=False)
    ]
    assert np.mean(undecayed) == pytest.approx(expected, rel=0.05)
    assert len(moved) == 60 // spacing
    assert found.step[-1] == 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_of_a_checkpoint_is_no_diffusion(dtype):
    """Steps far under the rounding of the dtype: û_rms within its error, or the noise limit."""
    path = moving_average_run(40, eta=2e-5)
    for spacing in (1, 10):
        run = [{"w": torch.tensor(w).to(dtype)} for w in path[::spacing]]
        found = wk.recover(run, range(0, 41, spacing), lr=2e-5, weight_decay=1.0)
        off = np.log(found.impulses.update_rms[0] ** 2 / (0.1 / 1.9))
        assert (abs(off) <= 2 * (2 * found.impulses.update_rms_error[0]) + 0.05).all()
        assert found.impulses.update_rms_error.min() > 0


ERRORS = [
    ({"steps": [1, 2, 3]}, "each checkpoint must have a step, got 3 steps and 10"),
    ({"steps": [0, 1, 2, 3, 3, 5, 6, 7, 8, 9]}, "must ascend, got 3 after 3"),
    ({"steps": [0, 1, 2, 9, 3, 5, 6, 7, 8, 10]}, "must ascend, got 3 after 9"),
    ({"steps": [-1, *range(9)]}, "whole numbers from 0"),
    ({"lr": ([4, 50], [1e-3, 1e-3])}, "the table lr covers steps 4 to 50, but steps 4 to 100 are needed"),
    ({"lr": "cosine:peak=1e-3,total=90"}, "covers steps 1 to 90, but steps 4 to 100 are needed"),
    ({"lr": -1.0}, "the rates of lr must be finite and not negative, got -1.0 at step 4"),
    ({"weight_decay": -0.1}, "weight_decay must be 0 or a positive number, got -0.1 for 'a'"),
    ({"weight_decay": 1e4}, "lr·weight_decay must be under 1"),
    ({"weight_decay": {"b": 0.1, "*": 0.2}}, "weight_decay has the pattern 'b', which no name matches"),
    ({"lr": {"nrom": 0.1, "*": 0.2}}, "lr has the pattern 'nrom', .* none of their roles, other"),
    ({"weight_decay": {"a?": 0.1, "*": 0.2}}, r"the pattern 'a\?'"),
    ({"method": "cubic"}, "method must be one of"),
    ({"bc_type": "periodic"}, "bc_type must be one of"),
    ({"variable": "time"}, "variable must be one of"),
    ({"injection": "guess"}, "injection must be 'estimate'"),
    ({"injection": -0.2}, "must be positive; got -0.2"),
    ({"betas": (0.9, 1.0)}, "betas must be two numbers from 0 to under 1"),
    ({"at": [3, 50]}, "at must lie between the checkpoints, from 4 to 100"),
    ({"optimizer_states": {5: {}}}, "optimizer_states has step 5"),
    ({"weight_decay": None}, "weight_decay must be 0 or a positive number, got None"),
    ({"injection": None}, "injection must be 'estimate'"),
]


@pytest.mark.parametrize(("changed", "message"), ERRORS)
def test_errors_name_what_is_wrong(changed, message):
    arguments = {"steps": KNOTS, "lr": TABLE, "weight_decay": DECAY} | changed
    with pytest.raises(ValueError, match=message):
        wk.recover(as_checkpoints({"a": NAMED["a"]}), **arguments)


@pytest.mark.parametrize(("method", "least"), [("corrected", 4), ("spline", 4), ("midpoint", 2)])
def test_too_few_checkpoints(method, least):
    run = as_checkpoints({"a": NAMED["a"]})
    options = {"lr": TABLE, "weight_decay": DECAY, "method": method}
    assert np.isfinite(wk.recover(run[:least], KNOTS[:least], **options).alignment).all()
    with pytest.raises(ValueError, match=f"needs at least {least} checkpoints, got {least - 1}"):
        wk.recover(run[: least - 1], KNOTS[: least - 1], **options)
    norms = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="needs at least 4 checkpoints, got 3"):
        wk.recover_from_norms([1, 2, 3], norms, numel=3, lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_norms_must_be_positive(wrong):
    with pytest.raises(ValueError, match=r"norm_sq must be positive.*at step 2"):
        wk.recover_from_norms([0, 1, 2, 3], [1.0, 1.0, wrong, 1.0], numel=3, lr=0.1, weight_decay=0.0)


def broken(kind):
    """Checkpoints of which 'bad' is broken in the fifth."""
    run = as_checkpoints({"good": NAMED["a"], "bad": NAMED["seven"]})
    bad = run[4].pop("bad")
    if kind == "renamed":
        run[4]["other"] = bad
    elif kind == "reshaped":
        run[4]["bad"] = bad[:6].clone()
    elif kind in ("nan", "inf"):
        bad = bad.clone()
        bad[3] = float(kind)
        run[4]["bad"] = bad
    elif kind == "integers":
        run[4]["bad"] = torch.arange(7)
    return run


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("renamed", "not in the checkpoint of step 18"),
        ("missing", "not in the checkpoint of step 18"),
        ("reshaped", r"of shape \[7\] in step 3, of \[6\] in step 18"),
        ("nan", "not finite in the checkpoint of step 18"),
        ("inf", "not finite in the checkpoint of step 18"),
        ("integers", "not in the checkpoint of step 18"),
    ],
)
def test_a_tensor_that_cannot_be_followed_is_named_and_the_rest_recovered(kind, why):
    found = wk.recover(broken(kind), KNOTS, lr=TABLE, weight_decay=DECAY)
    alone = wk.recover(as_checkpoints({"good": NAMED["a"]}), KNOTS, lr=TABLE, weight_decay=DECAY)
    assert found.names == ("good",)
    assert np.array_equal(found.alignment, alone.alignment)
    assert re.search(why, found.left_out["bad"])
    if kind == "renamed":
        assert found.left_out["other"].startswith("not in the checkpoints of step 3, 4, 6 and")


def test_what_no_optimizer_moved_is_left_out():
    """Buffers, such as a mask of −1e9, have no forces; nor has what moved while the rate was 0."""
    named = {"a": NAMED["a"], "attention.masked_bias": np.full((len(KNOTS), 1), -1e9, np.float32)}
    named["empty"] = np.zeros((len(KNOTS), 0), np.float32)
    found = wk.recover(as_checkpoints(named), KNOTS, lr=TABLE, weight_decay=DECAY)
    assert found.names == ("a",)
    assert found.left_out["attention.masked_bias"] == "the same in every checkpoint: a buffer, or frozen"
    assert found.left_out["empty"] == "has no entries"
    frozen = wk.recover(
        as_checkpoints({"a": NAMED["a"], "b": NAMED["seven"]}),
        KNOTS,
        lr={"b": 0.0, "*": TABLE},
        weight_decay=DECAY,
    )
    assert frozen.names == ("a",)
    assert frozen.left_out["b"] == "moved from step 3 to 4, where lr is 0; is the schedule off by a step?"
    late = LR.copy()
    late[0] = 0.0
    with pytest.raises(ValueError, match="moved from step 3 to 4, where lr is 0"):
        wk.recover(as_checkpoints({"a": NAMED["a"]}), KNOTS, lr=(STEPS, late), weight_decay=DECAY)


def test_weights_that_begin_at_zero():
    """‖w‖² rises from nothing: the path between never goes below it."""
    norms = [1e-6, 1e-5, 1e-3, 0.5, 0.9, 1.0]
    found = wk.recover_from_norms(range(0, 60, 10), norms, numel=10, lr=1e-2, weight_decay=0.1)
    assert (found.norm_sq > 0).all()
    assert (found.decay < 0).all()
    zeros = as_checkpoints({"a": NAMED["a"], "bias": NAMED["seven"] * (np.arange(len(KNOTS)) > 2)[:, None]})
    for method in ("corrected", "spline", "midpoint"):
        found = wk.recover(zeros, KNOTS, lr=TABLE, weight_decay=DECAY, method=method)
        assert np.isfinite(found.alignment).all()
        assert np.isfinite(found.impulses.alignment).all()


def test_straight_paths_begin_at_the_checkpoints():
    """norm_sq is ‖w‖² before a step, wherever the forces are taken."""
    norms = (NAMED["a"].astype(float) ** 2).sum(axis=1)
    for method in ("midpoint", "two_point"):
        found = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY, method=method)
        assert found.impulses.norm_sq[0] == pytest.approx(norms[:-1], rel=1e-12)


def test_long_intervals_of_a_window():
    """More steps than are worked out at a time."""
    steps = [10_000 * i for i in range(7)]
    run = as_checkpoints({"a": NAMED["a"]})[:7]
    old = wk.checkpoint_gram(run[:5], steps[:5])
    local = wk.extend_gram(old, run[5:], steps[5:], reread=dict(zip(steps[2:5], run[2:5], strict=True)))
    found = wk.recover(local, lr=1e-4, weight_decay=0.1, method="spline", at=[50_000])
    assert np.isfinite(found.impulses.window_error).all()
    assert found.impulses.window_error.max() > 0


def test_a_table_of_rates_may_be_a_file(tmp_path):
    path = tmp_path / "lr.csv"
    path.write_text(
        "step,lr\n" + "".join(f"{t},{eta!r}\n" for t, eta in zip(STEPS, LR.tolist(), strict=True))
    )
    run = as_checkpoints({"a": NAMED["a"]})
    one, other = (wk.recover(run, KNOTS, lr=lr, weight_decay=DECAY) for lr in (str(path), TABLE))
    assert np.array_equal(one.alignment, other.alignment)
    assert np.array_equal(wk.recover(run, KNOTS, lr=path, weight_decay=DECAY).alignment, one.alignment)


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="no tensor is left; a: not finite"):
        wk.recover(
            as_checkpoints({"a": np.full((len(KNOTS), 3), np.nan, dtype=np.float32)}),
            KNOTS,
            lr=TABLE,
            weight_decay=DECAY,
        )
    names = [{f"{i}": torch.ones(3)} for i in range(4)]
    with pytest.raises(ValueError, match="no floating-point tensor is in all 4 checkpoints"):
        wk.recover(names, range(4), lr=0.1, weight_decay=0.0)


def test_windows_of_an_extended_gram():
    """Splines through what was read together; the corrected forces, which need neighbours, do not change."""
    run = as_checkpoints(NAMED)
    whole = wk.checkpoint_gram(run, KNOTS)
    old = wk.checkpoint_gram(run[:6], KNOTS[:6])
    options = {"lr": TABLE, "weight_decay": DECAY}
    for count in (4, 3, 1):
        reread = dict(list(zip(KNOTS[:6], run[:6], strict=True))[-count:])
        local = wk.extend_gram(old, run[6:], KNOTS[6:], reread=reread)
        assert local.steps == whole.steps
        known = ~np.isnan(local.products)
        assert known.sum() < known.size
        assert local.products[known] == pytest.approx(whole.products[known], rel=1e-11)
        full, windowed = (wk.recover(gram, **options) for gram in (whole, local))
        assert abs(full.alignment - windowed.alignment).max() <= 1e-10 * abs(full.alignment).max()
        assert windowed.impulses.window_error is None
        for method in ("midpoint", "two_point"):
            full, windowed = (wk.recover(gram, method=method, **options) for gram in (whole, local))
            assert abs(full.alignment - windowed.alignment).max() <= 1e-10 * abs(full.alignment).max()
    full = wk.recover(whole, method="spline", **options)
    local = wk.extend_gram(old, run[6:], KNOTS[6:], reread=dict(list(zip(KNOTS[:6], run, strict=False))[-4:]))
    windowed = wk.recover(local, method="spline", **options)
    error = windowed.impulses.window_error
    assert full.impulses.window_error is None
    assert error.shape == windowed.impulses.alignment.shape
    assert (error > 0).any()
    absolute = sum(abs(getattr(full.impulses, name)) for name in ("alignment", "injection", "decay"))
    off = sum(
        abs(getattr(full.impulses, name) - getattr(windowed.impulses, name)) / absolute
        for name in ("alignment", "injection", "decay")
    )
    assert off.max() <= 3 * error.max()
    assert np.isfinite(windowed.alignment).all()


def test_a_window_that_is_too_short_for_a_spline():
    run = as_checkpoints(NAMED)
    old = wk.checkpoint_gram(run[:8], KNOTS[:8])
    local = wk.extend_gram(old, run[8:9], KNOTS[8:9], reread={KNOTS[7]: run[7]})
    with pytest.raises(ValueError, match=r"a spline needs 4 checkpoints.*steps \[55, 80\]"):
        wk.recover(local, lr=TABLE, weight_decay=DECAY, method="spline")


def test_results_are_frozen():
    found = wk.recover(as_checkpoints(NAMED), KNOTS, lr=TABLE, weight_decay=DECAY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.method = "spline"
