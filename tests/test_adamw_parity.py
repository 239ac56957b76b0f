"""wk.AdamW trains as torch.optim.AdamW does, no less exactly, and takes over from it and back."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from oracle import language, losses, same_bits
from test_closure import groups_of
from test_kernels import dtype_id

import weibull_kernels as wk

STEPS = 500


def fused(params, **settings):
    return torch.optim.AdamW(params, fused=True, **settings)


def give(gradients_of, *models):
    """The gradients of one model to copies of it."""
    for model in models:
        for p, q in zip(gradients_of.parameters(), model.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.to(q.dtype, copy=True)


def distance(a, b):
    """The largest difference of entries, relative to the largest entry of the tensor; the worst tensor."""
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in zip(a, b, strict=True))


def test_weights_after_500_steps_on_the_gradients_of_torch():
    model = language()
    ours = copy.deepcopy(model)
    theirs, optimizer, loss = fused(groups_of(model)), wk.AdamW(groups_of(ours)), losses(model)
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(STEPS):
        theirs.zero_grad()
        next(loss).backward()
        give(model, ours)
        theirs.step()
        optimizer.step()
    assert distance(model.parameters(), ours.parameters()) < 1e-6  # measured: 3.4e-7, and 2.2e-7 of foreach
    assert distance(model.parameters(), start) > 0.3


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float64, 1e-12), (torch.bfloat16, 2.0**-7)], ids=["float64", "bfloat16"]
)
def test_weights_of_other_dtypes_after_100_steps_on_the_gradients_of_torch(dtype, allowed):
    model = language(dtype=dtype)
    ours = copy.deepcopy(model)
    theirs, optimizer = fused(groups_of(model)), wk.AdamW(groups_of(ours))
    for loss in itertools.islice(losses(model), 100):
        theirs.zero_grad()
        loss.backward()
        give(model, ours)
        theirs.step()
        optimizer.step()
    assert distance(model.parameters(), ours.parameters()) <= allowed


def losses_of(make):
    model = language()
    optimizer, found = make(model.parameters(), lr=1e-3, weight_decay=0.1), []
    for loss in itertools.islice(losses(model), STEPS):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


def test_losses_over_500_steps_on_their_own_gradients():
    theirs, ours = losses_of(fused), losses_of(wk.AdamW)
    assert ((ours - theirs) / theirs).abs().max() < 1e-5  # measured: 2.4e-7, and 2.0e-7 of foreach
    assert theirs[-1] < 0.7 * theirs[0]
    # Another decay is told apart: 1 % less is further off than the bound.
    other = losses_of(lambda params, **settings: fused(params, **{**settings, "weight_decay": 0.099}))
    assert ((other - theirs) / theirs).abs().max() > 1e-5


def exact_adamw(weights, gradients, lr, betas, eps, weight_decay, amsgrad, maximize):
    """AdamW with 64 bits of mantissa, from its definition."""
    wide = np.longdouble
    w = weights.double().numpy().astype(wide)
    m, v, largest = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    eta, (beta1, beta2) = wide(float(lr)), map(wide, betas)
    for t, gradient in enumerate(gradients, start=1):
        g = (-gradient if maximize else gradient).double().numpy().astype(wide)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        largest = np.maximum(largest, v) if amsgrad else v
        u = m / (1 - beta1**t) / (np.sqrt(largest / (1 - beta2**t)) + wide(eps))
        w = (1 - eta * wide(weight_decay)) * w - eta * u
    return w


OPTIONS = {
    "amsgrad": [False, True],
    "maximize": [False, True],
    "weight_decay": [0.0, 0.125],  # powers of two: c = 1 − ηω is the same number in every dtype
    "betas": [(0.9, 0.999), (0.0, 0.99), (0.4, 0.95)],
    "eps": [1e-8, 1e-3],
    "lr": [2.0**-7, torch.tensor(2.0**-7)],
}
COMBINATIONS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


def named(settings):
    return " ".join(f"{name}={value}" for name, value in settings.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("settings", COMBINATIONS, ids=named)
def test_no_less_exact_than_torch(dtype, settings):
    start = [torch.randn(30, 50).to(dtype), 0.02 * torch.randn(1500).to(dtype)]
    half = {"lr": settings["lr"] / 4, "weight_decay": settings["weight_decay"] / 2}
    groups = [settings, {**settings, **half}]
    gradients = [[1e-2 * torch.randn_like(w) for w in start] for _ in range(50)]
    exact = [
        exact_adamw(w, g, **group)
        for w, g, group in zip(start, zip(*gradients, strict=True), groups, strict=True)
    ]
    theirs, ours = (errors_of(make, start, groups, gradients, exact) for make in (fused, wk.AdamW))
    assert rms(ours) <= 1.02 * rms(theirs)  # measured: 1.013 at worst, in float64
    # A single entry, that was rounded the other way once more: 1.13 at worst, in float64.
    assert ours.max() <= 1.25 * theirs.max()


def rms(errors):
    return np.sqrt(np.square(errors).mean())


def errors_of(make, start, groups, gradients, exact):
    """w − exact w in steps of η, of every entry; all positive."""
    weights = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = make([{"params": [w], **group} for w, group in zip(weights, groups, strict=True)])
    for grads in gradients:
        for w, g in zip(weights, grads, strict=True):
            w.grad = g.clone()
        optimizer.step()
    return np.concatenate(
        [
            np.abs(w.detach().double().numpy() - e).ravel() / float(group["lr"])
            for w, e, group in zip(weights, exact, groups, strict=True)
        ]
    )


def through_a_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train(optimizer, loss, steps, then=lambda: None):
    for loss_now in itertools.islice(loss, steps):
        optimizer.zero_grad()
        loss_now.backward()
        then()
        optimizer.step()


FORMS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for loop": {"foreach": False}}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["torch", "wk"])
def test_a_checkpoint_of_one_loads_in_the_other(first, form, amsgrad):
    kinds = {"torch": lambda p: torch.optim.AdamW(p, **FORMS[form]), "wk": wk.AdamW}
    model = language()
    loss, one = losses(model), kinds.pop(first)(groups_of(model))
    for group in one.param_groups:
        group["amsgrad"] = amsgrad
    train(one, loss, 20)

    saved = through_a_file({"model": model.state_dict(), "optimizer": one.state_dict()})
    resumed = language(seed=2)
    resumed.load_state_dict(saved["model"])
    (make,) = kinds.values()
    other = make(groups_of(resumed))
    other.load_state_dict(saved["optimizer"])
    for state, loaded in zip(one.state.values(), other.state.values(), strict=True):
        assert state.keys() == loaded.keys()
        assert all(same_bits(state[key], loaded[key]) for key in state)
    for group, loaded in zip(one.param_groups, other.param_groups, strict=True):
        assert group.keys() == loaded.keys()
        how = ("params", "fused", "foreach")
        assert {k: v for k, v in group.items() if k not in how} == {
            k: v for k, v in loaded.items() if k not in how
        }

    def step_the_other():
        give(model, resumed)
        other.step()

    train(one, loss, 20, step_the_other)
    assert distance(model.parameters(), resumed.parameters()) < 1e-6
    assert {state["step"].item() for state in other.state.values()} == {40}


def test_a_checkpoint_has_what_torchs_has_and_the_ledger():
    checkpoints = []
    for make in (fused, wk.AdamW):
        model = language()
        optimizer = make(model.parameters())
        train(optimizer, losses(model), 1)
        checkpoints.append(optimizer.state_dict())
    theirs, ours = checkpoints
    assert ours.keys() - theirs.keys() == {"ledger"}
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()


@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
def test_training_resumed_from_a_checkpoint_is_the_same_to_the_bit(dtype, state_dtype):
    def begun(seed=1):
        model = language(seed, dtype)
        return model, wk.AdamW(groups_of(model), state_dtype=state_dtype)

    model, optimizer = begun()
    train(optimizer, losses(model), 20)
    stopped, its_optimizer = begun()
    train(its_optimizer, losses(stopped), 8)
    saved = through_a_file({"model": stopped.state_dict(), "optimizer": its_optimizer.state_dict()})
    resumed, its_optimizer = begun(seed=2)
    resumed.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    train(its_optimizer, itertools.islice(losses(resumed), 8, None), 12)
    assert all(map(same_bits, model.parameters(), resumed.parameters()))
    for state, other in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert all(same_bits(state[key], other[key]) for key in state)
        assert state["exp_avg"].dtype == (state_dtype or dtype)
