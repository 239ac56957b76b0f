"""The training loop with other optimizers, dtypes and schedules; AdamW on float32 is in test_demo."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from lion import Lion
from llama import LlamaForCausalLM
from measured import Unmoved
from models import logits_of, make_model
from neox import INITIAL_RMS
from optimizers import budgets_of, make_optimizers, named_weights
from settings import Settings
from text import VOCABULARY
from training import train

import weibull_kernels as wk
from weibull_kernels.records import read_records
from weibull_kernels.sinks import ParquetSink

TINY = Settings(
    steps=6,
    width=16,
    layers=1,
    heads=2,
    context=16,
    batch=2,
    lr=4e-3,
    weight_decay=5.0,
    every=1,
    device="cpu",
)
HIDDEN = {
    "gpt_neox.layers.0.attention.query_key_value.weight",
    "gpt_neox.layers.0.attention.dense.weight",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
    "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
}
FORCES = ["alignment", "injection", "decay", "coupling"]


@pytest.fixture(scope="module")
def source():
    return torch.randint(97, 123, (20_000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def recorded(settings, source, path):
    """The run and its records, as a frame."""
    with ParquetSink(path, overwrite=True) as sink:
        run = train(settings, source, sink)
    return run, read_records(path).to_pandas()


def norm_sq(weight):
    """In float64, by numpy."""
    return float(np.square(weight.detach().double().numpy()).sum())


def states(settings, source):
    return train(settings, source).model.state_dict()


# Lion


def test_lion_by_hand():
    """η = 0.1, ω = 0.5, both betas a half; in the third step the first entry has no sign to move by."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    other = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))  # gets no gradient
    optimizer = Lion([weight, other], lr=0.1, betas=(0.5, 0.5), weight_decay=0.5)
    expected = [
        ([1.0, -3.0], [0.95 - 0.1, -1.9 + 0.1], [0.5, -1.5]),
        ([-1.0, 1.0], [0.8075 + 0.1, -1.71 + 0.1], [-0.25, -0.25]),
        ([0.25, 1.0], [0.862125, -1.5295 - 0.1], [0.0, 0.375]),
    ]
    for gradient, after, momentum in expected:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        assert optimizer.step() is None
        assert weight.tolist() == pytest.approx(after, rel=1e-15)
        assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx(momentum, rel=1e-15)
    assert other.item() == 1
    assert not optimizer.state[other]


def test_lion_evaluates_a_closure_with_gradients_on():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = Lion([weight], lr=0.5)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert weight.item() == 1.5


def test_the_update_of_lion_has_rms_1(source, tmp_path):
    """Of every entry, so that the injection is η²·n, up to what float32 rounds of c and the weights."""
    settings = replace(TINY, optimizer="lion")
    _, records = recorded(settings, source, tmp_path / "run.parquet")
    matrices = records[records["role"].isin(wk.TRANSMISSION)]
    assert len(matrices) == 3 * settings.steps
    expected = matrices["lr"] ** 2 * matrices["numel"]
    assert matrices["injection"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5)


# Muon beside AdamW


def by_name(settings):
    """A model, its optimizers, and name to (weight, optimizer)."""
    model = make_model(settings)
    optimizers = make_optimizers(model, settings)
    owners = [(name, optimizer) for optimizer in optimizers for name, _ in named_weights([optimizer])]
    assert len({name for name, _ in owners}) == len(owners)
    weights = dict(model.named_parameters())
    assert weights.keys() == {name for name, _ in owners}
    return model, optimizers, {name: (weights[name], optimizer) for name, optimizer in owners}


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    _, optimizers, owned = by_name(replace(TINY, optimizer="muon"))
    kinds = {name: type(optimizer) for name, (_, optimizer) in owned.items()}
    assert {name for name, kind in kinds.items() if kind is torch.optim.Muon} == HIDDEN
    assert {kind for name, kind in kinds.items() if name not in HIDDEN} == {wk.AdamW}
    decays = {
        name: group["weight_decay"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert all((decays[name] == 5.0) == (weight.ndim > 1) for name, (weight, _) in owned.items())


def test_each_parameter_is_stepped_once_by_its_optimizer():
    """AdamW's first step is the sign of the gradient, Muon's its polar factor times 0.2·√max(A, B)."""
    settings = replace(TINY, optimizer="muon", weight_decay=0.5)
    lr = settings.lr
    _, optimizers, owned = by_name(settings)
    before = {name: weight.detach().clone() for name, (weight, _) in owned.items()}
    for weight, _ in owned.values():
        weight.grad = torch.randn_like(weight)
    for optimizer in optimizers:
        optimizer.step()
    for name, (weight, _) in owned.items():
        kept = 1 - lr * (0.5 if weight.ndim > 1 else 0.0)
        update = (kept * before[name].double() - weight.detach().double()) / lr
        if name not in HIDDEN:
            torch.testing.assert_close(update, weight.grad.sign().double(), rtol=1e-4, atol=1e-4)
            continue
        left, _, right = torch.linalg.svd(weight.grad.double(), full_matrices=False)
        polar = 0.2 * math.sqrt(max(weight.shape)) * left @ right
        # Newton and Schulz' five steps leave singular values from 0.7 to 1.2 in place of 1.
        assert torch.linalg.norm(update - polar) < 0.35 * torch.linalg.norm(polar)
        assert torch.linalg.norm(update) == pytest.approx(torch.linalg.norm(polar).item(), rel=0.3)


# Budgets


def moved_by(kind, settings):
    """Names of the parameters of the first optimizer."""
    first = make_optimizers(make_model(settings), settings)[0]
    assert type(first).__name__.lower() == kind
    return [name for name, _ in named_weights([first])]


@pytest.mark.parametrize("architecture", ["neox", "llama"])
@pytest.mark.parametrize("optimizer", ["lion", "muon"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_displacements_sum_to_the_change_over_the_run(source, tmp_path, optimizer, architecture, weights):
    settings = replace(TINY, optimizer=optimizer, architecture=architecture, weights=weights)
    start = dict(make_model(settings).named_parameters())
    run, records = recorded(settings, source, tmp_path / "run.parquet")
    assert set(records["name"]) == set(start)
    # Of a displacement rounding is a part of the update; what AdamW steps beside Muon has a ledger.
    displaced = records["name"].isin(moved_by(optimizer, settings))
    assert (records["rounding"].isna() == displaced).all()
    change = records.groupby("name")[[*FORCES, "rounding"]].sum().sum(axis=1)
    for name, weight in run.model.named_parameters():
        after = norm_sq(weight)
        assert change[name] == pytest.approx(after - norm_sq(start[name]), rel=0, abs=1e-12 * max(1, after))
    assert run.closure.of_budget <= 1e-9
    assert not run.super_weights.steps  # which reads AdamW's state


@pytest.mark.parametrize("every", [1, 4])
def test_with_bfloat16_weights_rounding_is_what_the_forces_do_not_explain(source, tmp_path, every):
    settings = replace(TINY, weights="bfloat16", every=every)
    start = dict(make_model(settings).named_parameters())
    run, records = recorded(settings, source, tmp_path / "run.parquet")
    sums = records.groupby("name")[[*FORCES, "rounding"]].sum()
    for name, weight in run.model.named_parameters():
        assert weight.dtype == torch.bfloat16
        after = norm_sq(weight)
        assert sums.loc[name].sum() == pytest.approx(after - norm_sq(start[name]), rel=0, abs=1e-12 * after)
    matrices = sums.loc[sorted(HIDDEN)]
    assert (matrices["rounding"].abs() > 1e-4 * matrices[FORCES].abs().sum(axis=1)).all()
    assert run.closure.of_budget <= 1e-12
    assert run.closure.of_bound == 0  # judges float32 alone


@pytest.mark.parametrize(
    ("optimizer", "weights"),
    [
        ("adamw", "bfloat16"),
        *((name, dtype) for name in ("lion", "muon") for dtype in ("float32", "bfloat16")),
    ],
)
def test_measuring_leaves_the_same_bits(source, optimizer, weights):
    settings = replace(TINY, optimizer=optimizer, weights=weights)
    measured, alone = (states(replace(settings, forces=forces), source) for forces in (True, False))
    assert all(torch.equal(measured[name], alone[name]) for name in measured)


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_a_displacement_sees_one_step(source, optimizer):
    settings = replace(TINY, optimizer=optimizer, every=2)
    message = f"{optimizer} is measured by displacement, which sees one step: every must be 1, got 2"
    with pytest.raises(ValueError, match=message):
        train(settings, source)
    assert train(replace(settings, forces=False), source).step == settings.steps


def test_a_displacement_that_saw_no_step_says_so():
    settings = replace(TINY, optimizer="lion")
    model = make_model(settings)
    with pytest.raises(RuntimeError, match="no step was measured"):
        budgets_of(make_optimizers(model, settings), model, settings).drain()


def test_without_decay_its_share_is_0(source, tmp_path):
    _, records = recorded(replace(TINY, weight_decay=0.0), source, tmp_path / "run.parquet")
    assert (records["decay"] == 0).all()
    assert (records["coupling"] == 0).all()
    assert (records["injection"] > 0).all()


# What rounding takes back


def one_matrix(weight, lr, weight_decay):
    named = [("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", torch.nn.Parameter(weight))]
    return named[0][1], wk.AdamW(named, lr=lr, weight_decay=weight_decay, state_dtype=torch.float32)


def test_unmoved_by_hand():
    """A first step of ±1: w = 1 stays, since bfloat16 has 1/256 under it and 1/128 over it; w = 0 moves.

    And would have stayed without decay, of which nothing is done.
    """
    weight, optimizer = one_matrix(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), 2.0**-10, 0.25)
    weight.grad = torch.tensor([[-1.0, 1.0]], dtype=torch.bfloat16)
    found = Unmoved()
    found.remember(optimizer)
    optimizer.step()
    found.add(7, optimizer)
    assert weight.tolist() == [[1.0, -(2.0**-10)]]
    eta, lost = 2.0**-10, 2.0**-12
    assert found.steps == [7]
    assert found.fraction == [0.5]
    (forces,), (unmoved,) = found.forces, found.of_unmoved
    assert unmoved["alignment"] == forces["alignment"] == pytest.approx(2 * eta, rel=1e-6)
    assert unmoved["injection"] == pytest.approx(eta**2, rel=1e-6)
    assert forces["injection"] == pytest.approx(2 * eta**2, rel=1e-6)
    assert unmoved["decay"] == forces["decay"] == pytest.approx(-2 * lost)
    assert unmoved["coupling"] == pytest.approx(lost * (lost - 2 * eta), rel=1e-6)
    assert unmoved["decay_done"] == forces["decay_done"] == 0
    assert unmoved["rounding"] == pytest.approx(-sum(unmoved[force] for force in FORCES), rel=1e-12)
    assert found.summary == {
        "step": [7],
        "fraction": [0.5],
        "forces": [forces],
        "of_unmoved": [unmoved],
    }


def test_decay_that_tips_the_scales_is_done():
    """w = 1 less 3/2048 of update stays, as half a digit is 4/2048; with 2/2048 of decay it moves by 8."""
    weight, optimizer = one_matrix(torch.tensor([[1.0]], dtype=torch.bfloat16), 3 * 2.0**-11, 2 / 3)
    weight.grad = torch.tensor([[1.0]], dtype=torch.bfloat16)
    found = Unmoved()
    found.remember(optimizer)
    optimizer.step()
    found.add(1, optimizer)
    assert weight.item() == 1 - 2.0**-8
    assert found.fraction == [0.0]
    assert found.forces[0]["decay"] == pytest.approx(-2 * 2.0**-10)
    assert found.forces[0]["decay_done"] == (1 - 2.0**-8) ** 2 - 1


def test_unmoved_sees_the_forces_and_the_rounding_of_the_ledger():
    """Of one step each, on the same weights."""
    weight, optimizer = one_matrix((0.02 * torch.randn(32, 16)).bfloat16(), 2e-4, 5.0)
    found = Unmoved()
    for step in range(1, 4):
        weight.grad = torch.randn_like(weight)
        found.remember(optimizer)
        optimizer.step()
        found.add(step, optimizer)
        budget = optimizer.ledger.drain()
        for force in (*FORCES, "rounding"):
            booked = getattr(budget, force).item()
            assert found.forces[-1][force] == pytest.approx(booked, rel=0, abs=1e-4 * budget.absolute.item())
    assert all(0 < fraction < 1 for fraction in found.fraction)


def test_only_half_precision_is_looked_at_for_unmoved_entries(source):
    settings = replace(TINY, steps=25)
    assert not train(settings, source).unmoved.steps
    run = train(replace(settings, weights="bfloat16"), source)
    assert run.unmoved.steps == run.super_weights.steps == [10, 20]
    assert not train(replace(settings, weights="bfloat16", forces=False), source).unmoved.steps


# Models


def test_activations_are_float32_whatever_the_weights(source):
    model = make_model(replace(TINY, weights="bfloat16"))
    tokens = source[:16].long().unsqueeze(0)
    found = logits_of(model, tokens)
    assert found.dtype == torch.float32
    widened = make_model(TINY)
    widened.load_state_dict(model.state_dict())
    assert torch.equal(found, widened(tokens))
    found.sum().backward()
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_moments_are_float32_whatever_the_weights():
    settings = replace(TINY, weights="bfloat16")
    (optimizer,) = make_optimizers(make_model(settings), settings)
    assert optimizer.state_dtype == torch.float32


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_all_matrices_start_at_the_published_rms(architecture):
    model = make_model(replace(TINY, width=128, architecture=architecture))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(INITIAL_RMS, rel=0.03), name
        elif "norm" in name and name.endswith("weight"):
            assert (weight == 1).all(), name


def test_llama_starts_where_it_is_told():
    model = LlamaForCausalLM(VOCABULARY, 64, 1, initial_rms=0.5)
    rms = {name: weight.square().mean().sqrt().item() for name, weight in model.named_parameters()}
    assert {round(value, 1) for name, value in rms.items() if "norm" not in name} == {0.5}


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_the_seed_fixes_the_weights(source, architecture):
    settings = replace(TINY, architecture=architecture)
    first, second, other = (states(replace(settings, seed=seed), source) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


# Schedule


def test_the_schedule_by_hand():
    """Two steps up, four down to a tenth: 0.1 + 0.9·(1 + cos)/2 at angles π/4, π/2, 3π/4, π."""
    settings = replace(TINY, warmup=2, final_lr=0.1, lr=0.01, weight_decay=2.0)
    half = 0.45 * math.sqrt(0.5)
    expected = [0.5, 1, 0.55 + half, 0.55, 0.55 - half, 0.1]
    assert [settings.lr_factor(step) for step in range(1, 7)] == pytest.approx(expected, rel=1e-12)
    assert settings.lr_sum == pytest.approx(3.25, rel=1e-12)
    assert settings.age == pytest.approx(0.065, rel=1e-12)
    assert replace(settings, weight_decay=0.0).age == 0


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (20, None, {1: 0.5, 2: 1.0, 20: 0.05}),  # a tenth of the steps
        (9, None, {9: 0.05}),  # of which a tenth is none
        (4, 4, {1: 0.25, 4: 1.0}),  # all of it
        (2, 0, {1: 0.525, 2: 0.05}),
    ],
)
def test_warm_up(steps, warmup, expected):
    settings = replace(TINY, steps=steps, warmup=warmup)
    for step, factor in expected.items():
        assert settings.lr_factor(step) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_records_have_the_rate_that_the_step_used(source, tmp_path, optimizer):
    settings = replace(TINY, optimizer=optimizer, warmup=2)
    _, records = recorded(settings, source, tmp_path / "run.parquet")
    expected = records["step"].map(lambda step: settings.lr * settings.lr_factor(step))
    assert records["lr"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)
    # And used it: 1−c of the decay is the rate times ω.
    decays = records[records["weight_decay"] > 0]
    lost = -decays["decay"] / (2 * decays["norm_sq"])
    assert lost.to_numpy() == pytest.approx((decays["lr"] * decays["weight_decay"]).to_numpy(), rel=2e-5)


# What else a run does


def test_fits_are_of_a_role_and_as_far_apart_as_told(source, tmp_path):
    run, records = recorded(replace(TINY, steps=7, fit_every=3), source, tmp_path / "run.parquet")
    fitted = records.dropna(subset=["transmission_scale"])
    assert sorted(set(fitted["step"])) == [3, 6, 7]
    last = fitted[fitted["step"] == 7]
    weights = dict(run.model.named_parameters())
    for column, roles in {"scale": ["ffn"], "transmission_scale": list(wk.TRANSMISSION)}.items():
        mine = last[last["role"].isin(roles)]
        fit = wk.fit_weibull(torch.cat([weights[name].detach().flatten() for name in mine["name"]]))
        assert mine[column].to_numpy() == pytest.approx(fit.scale, rel=1e-3)
        assert mine[column.replace("scale", "k")].to_numpy() == pytest.approx(fit.k, rel=1e-3)


def test_clipping_changes_only_gradients_that_are_longer(source):
    none, wide, tight = (states(replace(TINY, clip=clip), source) for clip in (None, 1e9, 1e-3))
    assert all(torch.equal(none[name], wide[name]) for name in none)
    assert not all(torch.equal(none[name], tight[name]) for name in none)


def test_autocast_is_of_activations_alone(source):
    whole, narrow = (states(replace(TINY, autocast=autocast), source) for autocast in (False, True))
    assert {weight.dtype for weight in narrow.values()} == {torch.float32}
    assert not all(torch.equal(whole[name], narrow[name]) for name in whole)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("width", "layers", "heads", "context", "batch", "every", "fit_every")
        ),
        ({"architecture": "gpt2"}, "architecture must be one of neox, llama, got 'gpt2'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, lion, muon, got 'sgd'"),
        ({"weights": "float16"}, "weights must be one of float32, bfloat16, got 'float16'"),
        ({"lr": math.inf}, "lr must be a positive number, got inf"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
        ({"weight_decay": math.nan}, "weight_decay must be 0 or a positive number, got nan"),
        ({"beta2": 1.0}, "beta2 must be from 0 to under 1, got 1.0"),
        ({"final_lr": 1.5}, "final_lr must be a part of the peak, from 0 to 1, got 1.5"),
        ({"clip": 0.0}, "clip must be a positive norm, or None, got 0.0"),
        ({"warmup": -1}, "warmup must be from 0 to steps (6), got -1"),
    ],
)
def test_wrong_settings_are_refused_with_what_came(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        replace(TINY, **wrong)
