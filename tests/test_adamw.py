"""What wk.AdamW is beside torch.optim.AdamW, what it refuses, and what its ledger books."""

import gc
import inspect
import weakref
from functools import partial

import pytest
import torch
from beside_torch import (
    LR,
    SETTINGS,
    assert_bits,
    assert_same,
    booked,
    copied,
    everything,
    fused,
    language_losses,
    net,
    train,
    weight,
)
from oracle import FAST, Language, norms_sq, terms
from torch import nn

import weibull_kernels as wk

# What it is


def test_signature_is_that_of_torch_and_three_settings_more():
    theirs, ours = (inspect.signature(kind).parameters for kind in (torch.optim.AdamW, wk.AdamW))
    more = {name: ours[name].default for name in ours if name not in theirs}
    assert more == {"state_dtype": None, "ledger": True, "backend": None}
    described = [[(p.name, p.kind, p.default) for p in found.values()] for found in (ours, theirs)]
    assert described[0][: len(theirs)] == described[1]
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in more)


def test_it_is_an_adamw_and_prints_as_one():
    theirs, ours = fused(net().parameters()), wk.AdamW(net().parameters())
    assert isinstance(ours, torch.optim.AdamW)
    assert ours.defaults == theirs.defaults
    assert repr(ours) == repr(theirs)


# What it refuses

BAD_SETTINGS = {
    "lr": {"lr": -1.0},
    "lr nan": {"lr": float("nan")},
    "lr of two entries": {"lr": torch.ones(2)},
    "beta1": {"betas": (1.0, 0.9)},
    "beta2": {"betas": (0.9, -0.1)},
    "one beta a tensor": {"betas": (0.9, torch.tensor(0.9))},
    "eps": {"eps": -1e-8},
    "weight_decay": {"weight_decay": -0.1},
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_out_of_range_raise_what_torch_raises(case):
    raised = []
    for make in (fused, wk.AdamW):
        with pytest.raises(ValueError, match=r"Invalid|Tensor") as caught:
            make([weight(3)], **BAD_SETTINGS[case])
        raised.append(str(caught.value))
    assert raised[0] == raised[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("foreach", True), ("fused", False), ("differentiable", True), ("state_dtype", torch.float16)],
)
def test_another_implementation_is_refused_with_the_setting_that_asked_for_it(setting, value):
    with pytest.raises(ValueError, match=rf"{setting}.*{value}"):
        wk.AdamW([weight(3)], **{setting: value})


@pytest.mark.parametrize("setting", [{"foreach": False}, {"foreach": None}, {"fused": True}, {"fused": None}])
def test_settings_that_ask_for_what_it_does_are_taken(setting):
    assert wk.AdamW([weight(3)], **setting).param_groups[0]["fused"] is True


NOT_PARAMETERS = {
    "none": lambda: [],
    "a tensor": lambda: weight(3),
    "a number": lambda: [weight(3), 3.0],
    "not a leaf": lambda: [weight(3) * 2],
    "in two groups": lambda: [{"params": [shared := weight(3)]}, {"params": [shared]}],
    "half named": lambda: [("a", weight(3)), weight(2)],
}


@pytest.mark.parametrize("case", NOT_PARAMETERS)
def test_parameter_lists_that_torch_refuses(case):
    raised = []
    for make in (fused, wk.AdamW):
        with pytest.raises((TypeError, ValueError)) as caught:
            make(NOT_PARAMETERS[case]())
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


UNREADABLE = {
    "complex": (lambda: weight(3, dtype=torch.complex64), "complex64"),
    "integers": (lambda: torch.zeros(3, dtype=torch.int32), "int32"),
    "sparse": (lambda: torch.eye(3).to_sparse().requires_grad_(), r"to_dense\(\)"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_parameters_without_entries_to_step_are_refused_by_name(case):
    make, remedy = UNREADABLE[case]
    with pytest.raises(TypeError, match=rf"'encoder\.weight'.*{remedy}"):
        wk.AdamW([("bias", weight(3)), ("encoder.weight", make())])


def test_groups_of_torchs_optimizers_are_taken_as_fused():
    p = weight(3, dtype=torch.bfloat16)
    groups = torch.optim.AdamW([p], foreach=False).param_groups
    assert wk.AdamW(groups).param_groups[0]["fused"] is True
    with pytest.raises(ValueError, match="decoupled_weight_decay=False"):
        wk.AdamW(torch.optim.Adam([weight(3)]).param_groups)


def test_parameters_that_get_their_entries_later_are_stepped_then():
    lazy = nn.LazyLinear(2)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = wk.AdamW([*model.parameters(), *lazy.parameters()], lr=0.1)
    for layer in model:
        for p in layer.parameters():
            torch.utils.swap_tensors(p, nn.Parameter(torch.ones_like(p, device="cpu")))
    lazy(torch.ones(1, 5))
    for p in (*model.parameters(), *lazy.parameters()):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(model[0].weight, torch.tensor(0.9), atol=2e-3)
    assert optimizer.ledger.drain().steps.tolist() == [1] * 6


def test_it_goes_when_nobody_holds_it_without_the_garbage_collector():
    p = weight(3)
    optimizer = wk.AdamW([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.ledger.drain()
    gone = weakref.ref(optimizer), weakref.ref(optimizer.state[p]["exp_avg"])
    gc.disable()
    try:
        del optimizer
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_a_parameter_twice_in_a_group_is_refused():
    twice = weight(3)
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match=r"group 0 .*twice"):
        wk.AdamW([twice, twice])


REFUSED_GROUPS = {
    "known": lambda known: [("again", known)],
    "twice": lambda _: [("a", shared := weight(3)), ("b", shared)],
    "complex": lambda _: [("a", weight(3)), ("b", weight(3, dtype=torch.complex64))],
    "L2 decay": lambda _: {"params": [("a", weight(3))], "decoupled_weight_decay": False},
    "foreach": lambda _: {"params": [("a", weight(3))], "foreach": True},
    "not a leaf": lambda _: [("a", weight(3) * 2)],
    "no name": lambda _: [weight(3)],
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("case", REFUSED_GROUPS)
def test_after_a_refused_group_the_optimizer_is_as_before(case):
    model = net()
    optimizer = wk.AdamW(model.named_parameters())
    train(model, optimizer)
    before = everything(optimizer), booked(optimizer), repr(optimizer)
    group = REFUSED_GROUPS[case](model[0].weight)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group(group if isinstance(group, dict) else {"params": group})
    assert_same((everything(optimizer), booked(optimizer), repr(optimizer)), before)
    train(model, optimizer, steps=1)
    assert optimizer.ledger.peek().steps.tolist() == [4] * 6


def sparse(p, _):
    p.grad = p.grad.to_sparse()


def replace_state(name, change, p, state):
    state[name] = change(state[name])


def resize(p, _, stale=False, elsewhere=False):
    p.data = p.data[:2].clone() if elsewhere else p.data[:2]
    if not stale:
        p.grad = p.grad[:2].clone()


def remove(name, _, state):
    del state[name]


BREAKS = {
    "sparse gradient": (sparse, r"gradient .*to_dense\(\)"),
    "moment of another shape": (partial(replace_state, "exp_avg", lambda m: m[:2]), "exp_avg .*shape"),
    "moment on meta": (partial(replace_state, "exp_avg_sq", lambda m: m.to("meta")), "exp_avg_sq .*meta"),
    "moment of integers": (partial(replace_state, "exp_avg", lambda m: m.int()), "exp_avg .*int32"),
    "moment lost": (partial(remove, "exp_avg"), "no exp_avg"),
    "count a number": (partial(replace_state, "step", lambda t: t.item()), "step .*load_state_dict"),
    "count in float64": (partial(replace_state, "step", lambda t: t.double()), "step .*load_state_dict"),
    "weight of another shape": (partial(resize, elsewhere=True), "shape"),
    "weight of another shape, stale gradient": (partial(resize, elsewhere=True, stale=True), "shape"),
    "weight cut where it lies": (resize, "shape"),
    "weight cut where it lies, stale gradient": (partial(resize, stale=True), "shape"),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("gathered", [False, True], ids=["gathers", "has gathered"])
def test_a_refused_step_names_the_tensor_and_moves_nothing(case, gathered):
    # The broken one is neither the first nor the last to be stepped.
    breaks, says = BREAKS[case]
    model = net()
    optimizer = wk.AdamW(model.named_parameters(), lr=LR)
    train(model, optimizer, 2)
    if not gathered:
        fresh = wk.AdamW(model.named_parameters(), lr=LR)
        fresh.load_state_dict(optimizer.state_dict())
        optimizer = fresh
    whole = model[0].bias.data
    breaks(model[0].bias, optimizer.state[model[0].bias])
    before = everything(optimizer), booked(optimizer), whole.clone()
    with pytest.raises((TypeError, ValueError), match=rf"(?s)(?=.*'0\.bias')(?=.*{says})"):
        optimizer.step()
    assert_bits((everything(optimizer), booked(optimizer), whole), before)


def test_a_sparse_gradient_in_the_first_step():
    model = nn.ModuleDict({"linear": nn.Linear(3, 1), "embedding": nn.Embedding(5, 3, sparse=True)})
    optimizer = wk.AdamW(model.named_parameters())
    model["linear"](model["embedding"](torch.tensor([1, 2]))).sum().backward()
    before = [copied(p) for p in model.parameters()]
    with pytest.raises(TypeError, match=r"'embedding\.weight'.*to_dense"):
        optimizer.step()
    assert_bits(list(model.parameters()), before)
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert optimizer.ledger.peek().steps.tolist() == [0, 0, 0]


def test_amsgrad_turned_on_after_steps_is_refused_by_name():
    model = net()
    optimizer = wk.AdamW(model.named_parameters())
    train(model, optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"'0\.weight' has no max_exp_avg_sq.*amsgrad"):
        optimizer.step()
    assert_bits(everything(optimizer), before)


# The ledger


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("settings", [name for name in SETTINGS if name != "lr 0"])
def test_forces_after_a_step_are_what_the_ledger_booked_of_it(settings, backend, dtype):
    model = Language().to(dtype)
    settings = {"lr": 1e-2, "weight_decay": 0.1} | SETTINGS[settings]
    optimizer = wk.AdamW(model.named_parameters(), **settings, backend=backend)
    language_losses(model, optimizer, steps=3)
    optimizer.ledger.drain()
    before = norms_sq(model.parameters())
    language_losses(model, optimizer, steps=1)
    measured, found = wk.forces(optimizer), optimizer.ledger.drain()
    assert ((terms(measured) - terms(found)).abs() <= 1e-6 * measured.absolute).all()
    assert (found.absolute > 0).all()
    assert found.names == measured.names
    assert found.steps.tolist() == [1] * len(found.names)
    assert found.step.tolist() == [4] * len(found.names)
    torch.testing.assert_close(found.norm_sq, before, rtol=1e-12, atol=0)
    change = norms_sq(model.parameters()) - before
    torch.testing.assert_close(found.predicted_change + found.rounding, change, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.weights.rms, measured.weights.rms, rtol=1e-6, atol=0)


def test_without_a_ledger_the_weights_are_the_same_bits():
    found = []
    for ledger in (True, False):
        torch.manual_seed(0)
        model = net(torch.float32)
        optimizer = wk.AdamW(model.parameters(), lr=LR, amsgrad=True, ledger=ledger)
        found.append((train(model, optimizer, 20), everything(optimizer)))
    assert_bits(*found)
    with pytest.raises(AttributeError, match=r"keeps no ledger.*ledger=True"):
        optimizer.ledger  # noqa: B018
    assert wk.forces(optimizer).step.tolist() == [20] * 6
