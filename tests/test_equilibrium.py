"""The norm at which forces balance: of noise by theory, of a model by training on."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weibull_kernels as wk
from weibull_kernels import scaling


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.95])
def test_updates_of_noise_come_to_rest_at_the_predicted_norm(beta1):
    """σ = √(η/2ω) whatever β₁ is; told from the forces long before it is reached."""
    lr, omega = 0.01, 0.5
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = wk.AdamW([("weight", weight)], lr=lr, weight_decay=omega, betas=(beta1, 0.999))
    found = []
    for _ in range(16):
        for _ in range(50):
            weight.grad = torch.randn(20_000)
            optimizer.step()
        found.append(scaling.equilibrium(optimizer.ledger.drain(), optimizer))
    early, late = found[1], found[-1]
    assert early.distance.item() < -0.1
    assert not early.reached().item()
    assert late.reached().item()
    assert late.noise_rms.item() == pytest.approx(math.sqrt(lr / 2 / omega), rel=5e-3)
    for equilibrium in (early, late):
        assert equilibrium.coherence.item() == pytest.approx(1, abs=0.06)
        assert equilibrium.balance_rms.item() == pytest.approx(late.rms.item(), rel=0.06)
    assert late.rms.item() == pytest.approx(weight.detach().double().square().mean().sqrt().item(), rel=1e-6)
    assert late.steps_to_equilibrium.item() == pytest.approx(600, rel=0.01)


def test_equilibrium_where_nothing_decays_or_moves():
    budget = wk.ForceBudget.from_sums(
        torch.tensor([-0.5, 0.5, 0.0]),
        torch.tensor([1.0, 0.0, 0.0]),
        torch.tensor([4.0, 4.0, 4.0]),
        lr=0.1,
        weight_decay=torch.tensor([0.0, 0.1, 0.1]),
        numel=torch.tensor([4, 4, 4]),
        steps=torch.tensor([1, 1, 0]),
        names=("a.mlp.up_proj.weight", "b", "c"),
    )
    found = scaling.equilibrium(budget, lr=0.1, weight_decay=torch.tensor([0.0, 0.1, 0.1]))
    assert found.balance_rms[:2].tolist() == [math.inf, 0]
    assert found.balance_rms[2].isnan()
    assert found.noise_rms[0] == math.inf
    assert found.roles == ("ffn", "other", "other")
    assert found.to_pandas()["rms"].tolist()[2] == pytest.approx(0.99)
    with pytest.raises(ValueError, match=r"lr must be a number or one for each row \[3\], got shape \[2\]"):
        scaling.equilibrium(budget, lr=[0.1, 0.1], weight_decay=0.1)
    with pytest.raises(ValueError, match="the budget has no numel"):
        scaling.equilibrium(wk.ForceBudget.from_sums(0.1, 1.0, 1.0, lr=0.1), lr=0.1, weight_decay=0.1)


def test_where_trained_matrices_come_to_rest():
    """Told by each interval of a regression, against the norms that training on led to."""
    lr, omega = 0.01, 1.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Tanh(), nn.Linear(32, 8, bias=False))
    teacher = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Tanh(), nn.Linear(32, 8, bias=False))
    optimizer = wk.AdamW(model.named_parameters(), lr=lr, weight_decay=omega)
    found = []
    for _ in range(10):
        for _ in range(100):
            x = torch.randn(8, 16)
            with torch.no_grad():
                y = teacher(x) + 0.3 * torch.randn(8, 8)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        found.append(scaling.equilibrium(optimizer.ledger.drain(), lr=lr, weight_decay=omega))
    at_rest = torch.stack([equilibrium.rms for equilibrium in found[5:]]).mean(0)
    assert found[0].distance.abs().min() > 0.3  # they begin far from it
    assert not found[0].reached().any()
    for equilibrium in found[1:]:
        torch.testing.assert_close(equilibrium.balance_rms, at_rest, rtol=0.1, atol=0)
    assert torch.stack([equilibrium.reached() for equilibrium in found[5:]]).all()


def test_each_row_has_the_rates_of_its_group():
    model = nn.Linear(8, 8)
    groups = scaling.param_groups(
        model, width=8, base_width=2, lr=0.01, weight_decay=0.5, overrides={"weight": "matrix"}
    )
    optimizer = wk.AdamW(groups)
    for _ in range(5):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    found = scaling.equilibrium(optimizer.ledger.drain(), optimizer)
    rows = dict(zip(found.names, range(2), strict=True))
    assert found.noise_rms[rows["weight"]].item() == pytest.approx(math.sqrt(0.0025 / 2 / 1.0), rel=0.01)
    for column in (found.balance_rms, found.noise_rms, found.steps_to_equilibrium):
        assert column[rows["bias"]] == math.inf
    # Also where one decay is given for all: what did not decay has no equilibrium.
    for _ in range(5):
        optimizer.step()
    given = scaling.equilibrium(optimizer.ledger.drain(), lr=0.01, weight_decay=0.5)
    assert given.balance_rms[rows["bias"]] == math.inf


def test_a_schedule_is_told_by_the_decay_itself():
    """The lr of the optimizer is that of the next step; the interval's mean is in its decay."""
    torch.manual_seed(0)
    weight = nn.Parameter(0.05 * torch.randn(20_000))
    optimizer = wk.AdamW([weight], lr=0.01, weight_decay=1.0)  # without a name: by position
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for _ in range(50):
        weight.grad = torch.randn(20_000)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0
    found = scaling.equilibrium(optimizer.ledger.drain(), optimizer)
    mean = sum(0.005 * (1 + math.cos(math.pi * t / 50)) for t in range(50)) / 50
    assert found.noise_rms.item() == pytest.approx(math.sqrt(mean / 2), rel=0.05)
    assert found.steps_to_equilibrium.item() == pytest.approx(3 / mean, rel=0.1)


def test_an_interval_without_steps_tells_nothing():
    weight = nn.Parameter(torch.ones(4))
    optimizer = wk.AdamW([("weight", weight)], lr=0.01, weight_decay=1.0)
    found = scaling.equilibrium(optimizer.ledger.drain(), optimizer)
    assert found.rms.item() == 1
    for column in (found.balance_rms, found.noise_rms, found.steps_to_equilibrium):
        assert column.isnan().all()


def test_rounding_is_one_of_the_forces_that_balance():
    """Bfloat16 weights that no step is large enough to move are at rest where they are."""
    torch.manual_seed(0)
    weight = nn.Parameter((0.1 * torch.randn(20_000)).bfloat16())
    optimizer = wk.AdamW([("weight", weight)], lr=1e-5, weight_decay=0.1)
    before = weight.detach().clone()
    for _ in range(100):
        weight.grad = torch.randn(20_000).bfloat16()
        optimizer.step()
    found = scaling.equilibrium(optimizer.ledger.drain(), optimizer)
    assert weight.detach().double().norm() == pytest.approx(before.double().norm().item(), rel=1e-3)
    assert found.balance_rms.item() == pytest.approx(found.rms.item(), rel=0.25)


def test_rates_must_be_said_once():
    model = nn.Linear(2, 2)
    optimizer = wk.AdamW(model.named_parameters(), lr=0.1)
    budget = optimizer.ledger.drain()
    for given in ({}, {"lr": 0.1}, {"optimizer": optimizer, "lr": 0.1, "weight_decay": 0.1}):
        with pytest.raises(
            ValueError, match="give the optimizer that made the steps, or lr= and weight_decay="
        ):
            scaling.equilibrium(budget, **given)
    other = wk.AdamW([("other", nn.Parameter(torch.zeros(2)))], lr=0.1)
    with pytest.raises(ValueError, match="'weight' of the budget is not among the 1 names of the optimizer"):
        scaling.equilibrium(budget, other)
