"""Singular values and gains on a GPU. Run by `make gpu`."""

import pytest
import torch
from device import DEVICE, nothing_waits
from torch import nn

import weibull_kernels as wk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_top_singular_values(dtype):
    torch.manual_seed(0)
    weights = {
        f"layers.{i}.weight": torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)
        for i, shape in enumerate([(256, 256), (512, 128), (96, 700), (1, 9)])
    }
    found = wk.top_singular_values(weights)
    exact = torch.stack([torch.linalg.svdvals(weight.double())[0] for weight in weights.values()])
    assert found.values.device.type == "cuda"
    assert found.converged.all()
    torch.testing.assert_close(found.values[:, 0], exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        wk.top_singular_values(weights, start=found).values[:, 0], exact, rtol=1e-4, atol=0
    )
    torch.testing.assert_close(wk.spectrum(weights).top, exact.cpu(), rtol=1e-10, atol=0)


def test_gain_does_not_wait_for_the_device():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(DEVICE)
    x = torch.randn(32, 64, device=DEVICE)
    with nothing_waits(), wk.gain(model) as meter:
        y = model(x)
    assert y.shape == (32, 8)
    assert meter.result().values.device.type == "cuda"
    assert (meter.result().values > 0).all()


def test_equilibrium_stays_on_the_device():
    weight = nn.Parameter(torch.randn(1000, device=DEVICE))
    optimizer = wk.AdamW([("weight", weight)], lr=0.01, weight_decay=0.5)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    found = wk.scaling.equilibrium(optimizer.ledger.drain(), optimizer)
    assert found.balance_rms.device.type == "cuda"
    assert found.noise_rms.item() == pytest.approx((0.01 / 2 / 0.5) ** 0.5, rel=0.01)
