"""The alignment without the entries that carry most of it."""

import numpy as np
import pytest
import torch
from oracle import Language, set_gradients
from torch.optim import AdamW

import weibull_kernels as wk
from weibull_kernels import super_weights
from weibull_kernels.super_weights import without_super_weights


def stepped(sizes=(40, 1000, 7), steps=3, **settings):
    """An optimizer after some steps, and −2η·w·u of every entry of the last, from both sides of it."""
    weights = [torch.nn.Parameter(torch.randn(size).double()) for size in sizes]
    optimizer = AdamW(weights, lr=0.01, **settings)
    for _ in range(steps):
        set_gradients(weights)
        before = [w.detach().clone() for w in weights]
        optimizer.step()
    c = 1 - 0.01 * optimizer.defaults["weight_decay"]
    products = [
        (2 * b * (w.detach() - c * b)).flatten().numpy() for b, w in zip(before, weights, strict=True)
    ]
    return optimizer, products


def left_of(products, count):
    """The sum without the `count` largest, by sorting all."""
    return products[np.argsort(np.abs(products))[: len(products) - count]].sum()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 1.0])
@pytest.mark.parametrize("chunk", [64, 1 << 22])
def test_of_each_tensor_the_largest_are_left_out(fraction, chunk, monkeypatch):
    monkeypatch.setattr(super_weights, "_CHUNK", chunk)
    optimizer, products = stepped(weight_decay=0.1)
    found = without_super_weights(optimizer, fraction=fraction).alignment.numpy()
    expected = [left_of(p, round(fraction * len(p))) for p in products]
    assert np.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_over_all_tensors_the_largest_are_left_out_wherever_they_are(monkeypatch):
    monkeypatch.setattr(super_weights, "_CHUNK", 100)
    optimizer, products = stepped()
    everything = np.concatenate(products)
    place = np.repeat(range(3), [len(p) for p in products])
    kept = np.argsort(np.abs(everything))[: len(everything) - 52]
    expected = np.bincount(place[kept], everything[kept], minlength=3)
    found = without_super_weights(optimizer, fraction=0.05, over="all").alignment.numpy()
    assert np.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_only_the_alignment_changes_and_without_a_fraction_nothing():
    optimizer, _ = stepped()
    budget, trimmed = wk.forces(optimizer), without_super_weights(optimizer, fraction=0.1)
    for force in ("injection", "decay", "coupling", "norm_sq", "steps"):
        assert torch.equal(getattr(trimmed, force), getattr(budget, force))
    assert (trimmed.alignment != budget.alignment).all()
    assert torch.allclose(without_super_weights(optimizer, fraction=0).alignment, budget.alignment, rtol=1e-6)


def test_one_weight_that_makes_the_alignment_takes_it_along():
    weight = torch.nn.Parameter(torch.full((1000,), 1e-3))
    with torch.no_grad():
        weight[17] = 100.0
    optimizer = AdamW([weight], lr=0.01, weight_decay=0.0)
    weight.grad = -torch.ones(1000)
    optimizer.step()
    full, left = wk.forces(optimizer).alignment.item(), without_super_weights(optimizer).alignment.item()
    assert full == pytest.approx(2 * 0.01 * (100 + 0.999), rel=1e-5)
    assert left == pytest.approx(2 * 0.01 * 0.999, rel=1e-5)


def test_a_model_with_names_and_a_parameter_without_state():
    model = Language()
    optimizer = wk.AdamW(model.named_parameters(), lr=1e-3)
    model(torch.randint(0, 17, (2, 8))).square().mean().backward()
    model.embed_out.weight.grad = None
    optimizer.step()
    budget = without_super_weights(optimizer)
    place = budget.names.index("embed_out.weight")
    assert budget.alignment[place] == budget.steps[place] == 0
    assert abs(budget.total(role="ffn").alignment) > 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [({"fraction": -0.1}, "fraction must be from 0 to 1"), ({"over": "role"}, "over must be")],
)
def test_settings_that_are_none(setting, expected):
    optimizer, _ = stepped()
    with pytest.raises(ValueError, match=expected):
        without_super_weights(optimizer, **setting)
