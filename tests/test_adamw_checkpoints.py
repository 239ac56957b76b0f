"""wk.AdamW saved, loaded, copied and pickled: as torch's, and to and from torch's."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler to send tensors
from beside_torch import LR, assert_same, booked, everything, fused, loop, net, same_as, train
from oracle import norms_sq
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import weibull_kernels as wk


def through_a_file(state_dict):
    """As it comes back from disk, without running code."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trained(make, steps=3, dtype=torch.float64, **settings):
    model = net(dtype)
    optimizer = make(model.named_parameters(), **({"lr": LR} | settings))
    train(model, optimizer, steps)
    return model, optimizer


def goes_on(make, model, checkpoint):
    """What three more steps of a copy of the model come to with a new optimizer, but for its settings."""
    model = copy.deepcopy(model)
    optimizer = make(model.named_parameters(), lr=1.0)
    optimizer.load_state_dict(checkpoint)
    torch.manual_seed(7)
    losses = train(model, optimizer)
    # Without `fused` torch leaves the dtype of the count as it came.
    return losses, [{**found, "step": float(found["step"])} for found in everything(optimizer)[:-1]]


def foreach(params, **settings):
    return torch.optim.AdamW(params, **({"foreach": True} | settings))


# The layout


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"lr": torch.tensor(LR)}], ids=str)
@same_as(fused)
def test_layout_of_a_checkpoint(make, settings):
    _, optimizer = trained(make, **settings)
    found = optimizer.state_dict()
    if make is wk.AdamW:
        assert list(found) == ["state", "param_groups", "ledger"]
        del found["ledger"]
    return found


def test_layout_before_the_first_step_and_without_a_ledger():
    assert wk.AdamW(net().parameters()).state_dict()["state"] == {}
    assert list(trained(wk.AdamW, ledger=False)[1].state_dict()) == ["state", "param_groups"]


# From torch and to torch


def python_steps(checkpoint):
    for state in checkpoint["state"].values():
        state["step"] = state["step"].item()


def double_steps(checkpoint):
    for state in checkpoint["state"].values():
        state["step"] = state["step"].double()


def before_torch_1_12(checkpoint):
    python_steps(checkpoint)
    for group in checkpoint["param_groups"]:
        for name in ("maximize", "foreach", "capturable", "differentiable", "fused", "param_names"):
            del group[name]
        del group["decoupled_weight_decay"]


FORMS = {
    "fused": (fused, {}, None),
    "foreach": (foreach, {}, None),
    "for loop": (loop, {}, None),
    "amsgrad": (fused, {"amsgrad": True}, None),
    "maximize": (loop, {"maximize": True}, None),
    "differentiable": (loop, {"foreach": None}, None),
    "tensor lr": (loop, {"lr": torch.tensor(LR, dtype=torch.float64)}, None),
    "python steps": (loop, {}, python_steps),
    "float64 steps": (loop, {}, double_steps),
    "without later keys": (loop, {}, before_torch_1_12),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_torch_goes_on_as_in_torch(form):
    make, settings, edit = FORMS[form]
    model, optimizer = trained(make, **settings)
    checkpoint = through_a_file(optimizer.state_dict())
    if edit:
        edit(checkpoint)
    expected = goes_on(make, model, copy.deepcopy(checkpoint))
    kept = copy.deepcopy(checkpoint["param_groups"])
    assert_same(goes_on(wk.AdamW, model, checkpoint), expected)
    assert checkpoint["param_groups"] == kept


@pytest.mark.parametrize("make", [fused, foreach, loop])
@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"maximize": True}], ids=str)
def test_our_checkpoint_goes_on_in_torch(make, settings):
    model, optimizer = trained(wk.AdamW, **settings)
    checkpoint = through_a_file(optimizer.state_dict())
    expected = goes_on(wk.AdamW, model, copy.deepcopy(checkpoint))
    assert_same(goes_on(make, model, checkpoint), expected)


@same_as(fused)
def test_a_checkpoint_of_adam_keeps_the_decoupled_decay(make):
    model, optimizer = trained(torch.optim.Adam, weight_decay=0.5)
    return goes_on(make, model, through_a_file(optimizer.state_dict()))


def test_from_torch_the_ledger_begins_anew():
    model, optimizer = trained(fused)
    ours = wk.AdamW(model.named_parameters())
    train(model, ours)
    ours.load_state_dict(optimizer.state_dict())
    assert ours.ledger.peek().steps.tolist() == [0] * 6
    before = norms_sq(model.parameters())
    train(model, ours, 1)
    budget = ours.ledger.drain()
    assert budget.steps.tolist() == [1] * 6
    assert budget.step.tolist() == [4] * 6
    torch.testing.assert_close(budget.norm_sq, before)


def test_our_own_checkpoint_goes_on_with_the_ledger():
    model, optimizer = trained(wk.AdamW)
    checkpoint, resumed = through_a_file(optimizer.state_dict()), copy.deepcopy(model)
    loaded = wk.AdamW(resumed.named_parameters(), lr=1.0)
    loaded.load_state_dict(checkpoint)
    assert torch.equal(booked(loaded), booked(optimizer))
    for twin in ((model, optimizer), (resumed, loaded)):
        torch.manual_seed(7)
        train(*twin)
    assert torch.equal(booked(loaded), booked(optimizer))
    assert loaded.ledger.peek().steps.tolist() == [6] * 6
    assert torch.equal(checkpoint["ledger"]["rows"][:, 5], torch.full((6,), 3.0, dtype=torch.float64))


def test_a_ledger_is_left_out_with_a_warning_where_none_is_kept():
    _, optimizer = trained(wk.AdamW)
    other = wk.AdamW(net().named_parameters(), ledger=False)
    with pytest.warns(UserWarning, match="ledger=True") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert caught[0].filename == __file__
    assert_same(
        [state["exp_avg"] for state in other.state.values()],
        [state["exp_avg"] for state in optimizer.state.values()],
    )


@pytest.mark.parametrize("flat", [False, True])
@same_as(fused)
def test_torchs_own_distributed_checkpoint_functions(make, flat):
    # They make a step with zero gradients and lr to have states to load into.
    options = torch.distributed.checkpoint.state_dict.StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(make)
    checkpoint = get_optimizer_state_dict(model, optimizer, options=options)
    resumed = copy.deepcopy(model)
    loaded = make(resumed.named_parameters(), lr=1.0)
    set_optimizer_state_dict(resumed, loaded, checkpoint, options=options)
    torch.manual_seed(7)
    if make is wk.AdamW:
        assert loaded.ledger.peek().steps.tolist() == [0] * 6
    return train(resumed, loaded), everything(loaded)


# Refused


def wrong_sizes(checkpoint):
    checkpoint["param_groups"][0]["params"].pop()


def wrong_groups(checkpoint):
    checkpoint["param_groups"].append(checkpoint["param_groups"][0])


@pytest.mark.parametrize("edit", [wrong_sizes, wrong_groups])
def test_a_checkpoint_of_other_groups_is_refused_as_by_torch(edit):
    raised = []
    for make in (fused, wk.AdamW):
        _, optimizer = trained(make)
        checkpoint = copy.deepcopy(optimizer.state_dict())
        checkpoint.pop("ledger", None)
        edit(checkpoint)
        before = everything(optimizer)
        with pytest.raises(ValueError, match="loaded state dict") as caught:
            optimizer.load_state_dict(checkpoint)
        assert_same(everything(optimizer), before)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]


def other_columns(checkpoint):
    checkpoint["ledger"]["columns"][0] = "of_a_later_version"


def fewer_rows(checkpoint):
    checkpoint["ledger"]["rows"] = checkpoint["ledger"]["rows"][:-1]


@pytest.mark.parametrize("edit", [wrong_sizes, wrong_groups, other_columns, fewer_rows])
def test_after_a_refused_checkpoint_nothing_has_changed(edit):
    model, optimizer = trained(wk.AdamW)
    _, other = trained(wk.AdamW, steps=2, lr=0.5)
    checkpoint = through_a_file(other.state_dict())
    edit(checkpoint)
    before = everything(optimizer), booked(optimizer)
    with pytest.raises(ValueError, match=r"loaded state dict|ledger of the checkpoint"):
        optimizer.load_state_dict(checkpoint)
    assert_same((everything(optimizer), booked(optimizer)), before)
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    train(model, optimizer, 1)
    assert optimizer.ledger.peek().steps.tolist() == [4] * 6


# Moments in float32 beside weights in half precision

HALF = [torch.bfloat16, torch.float16]


def moments(optimizer):
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def in_float32(params, **settings):
    # eps = 1e-8 is zero in float16.
    return wk.AdamW(params, **({"state_dtype": torch.float32, "eps": 1e-4} | settings))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_moments_in_float32_are_kept_exactly_by_our_checkpoint(dtype):
    model, optimizer = trained(in_float32, dtype=dtype)
    assert {moment.dtype for moment in moments(optimizer)} == {torch.float32}
    assert any((m != m.to(dtype)).any() for m in moments(optimizer))
    resumed = copy.deepcopy(model)
    loaded = in_float32(resumed.named_parameters())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    for twin in ((model, optimizer), (resumed, loaded)):
        torch.manual_seed(7)
        train(*twin)
    assert all(map(torch.equal, moments(loaded), moments(optimizer)))
    assert all(map(torch.equal, resumed.parameters(), model.parameters()))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_moments_in_float32_are_rounded_by_torch(dtype):
    model, optimizer = trained(in_float32, dtype=dtype)
    loaded = fused(model.named_parameters())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(map(torch.equal, moments(loaded), [m.to(dtype) for m in moments(optimizer)]))
    train(model, loaded, 1)


@pytest.mark.parametrize("make", [fused, wk.AdamW])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_moments_in_half_precision_are_widened(make, dtype):
    model, optimizer = trained(make, dtype=dtype, eps=1e-4, amsgrad=True)
    expected = [m.float() for m in moments(optimizer)]
    loaded = in_float32(model.named_parameters())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(map(torch.equal, moments(loaded), expected))
    assert all(state["max_exp_avg_sq"].dtype == torch.float32 for state in loaded.state.values())
    train(model, loaded, 1)
    assert [state["step"].item() for state in loaded.state.values()] == [4.0] * 6
    assert {moment.dtype for moment in moments(loaded)} == {torch.float32}


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_model_cast_between_steps_goes_on_with_the_moments_it_has(dtype):
    # torch's fused step refuses them; ours is made for moments wider than the weights.
    model, optimizer = trained(wk.AdamW, dtype=torch.float32, eps=1e-4)
    model.to(dtype)
    resumed = copy.deepcopy(model)
    loaded = in_float32(resumed.named_parameters())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    for twin in ((model, optimizer), (resumed, loaded)):
        torch.manual_seed(7)
        train(*twin)
    assert {moment.dtype for moment in moments(optimizer)} == {torch.float32}
    assert all(map(torch.equal, moments(loaded), moments(optimizer)))
    assert all(map(torch.equal, resumed.parameters(), model.parameters()))


# Copies


def deepcopied(model, optimizer):
    return copy.deepcopy((model, optimizer))


def pickled(model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


def saved_whole(model, optimizer):
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [deepcopied, pickled, saved_whole]


@pytest.mark.parametrize("how", COPIES)
@same_as(fused)
def test_a_copy_steps_as_the_original(make, how):
    model, optimizer = trained(make, amsgrad=True)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # leaves its mark on optimizer.step
    twins = (model, optimizer), how(model, optimizer)
    found = []
    for twin in twins:
        torch.manual_seed(7)
        found.append((train(*twin), everything(twin[1])))
    assert_same(found[1], found[0])
    assert twins[1][0][0].weight is not model[0].weight
    return found


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_settings_and_a_ledger_of_its_own(how):
    model, optimizer = trained(wk.AdamW, dtype=torch.float32, backend="reference")
    copied_model, twin = how(model, optimizer)
    assert twin.backend == "reference"
    assert torch.equal(booked(twin), booked(optimizer))
    train(copied_model, twin)
    assert twin.ledger.peek().steps.tolist() == [6] * 6
    assert optimizer.ledger.peek().steps.tolist() == [3] * 6
    budget = twin.ledger.drain()
    after = budget.norm_sq + budget.predicted_change + budget.rounding
    torch.testing.assert_close(after, norms_sq(copied_model.parameters()))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_the_moments_in_float32(how):
    model, twin = how(*trained(in_float32, steps=0, dtype=torch.bfloat16, ledger=False))
    train(model, twin)
    assert {moment.dtype for moment in moments(twin)} == {torch.float32}
    with pytest.raises(AttributeError, match="keeps no ledger"):
        twin.ledger  # noqa: B018


@same_as(fused)
def test_what_is_sent_to_another_process_shares_its_memory(make):
    # Sending moves the tensors into shared memory, under the feet of who has stepped them before.
    model, optimizer = trained(make)
    other, twin = pickle.loads(ForkingPickler.dumps((model, optimizer)))
    losses = train(model, optimizer) + train(other, twin)
    assert torch.equal(other[0].weight, model[0].weight)
    return losses, everything(twin)


@same_as(fused)
def test_an_optimizer_copied_alone_has_weights_of_its_own(make):
    model, optimizer = trained(make)
    twin = copy.deepcopy(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert all(map(torch.equal, model.parameters(), before))
    return everything(twin)


@pytest.mark.parametrize("how", COPIES)
@same_as(fused)
def test_a_copy_loses_its_hooks(make, how):
    model, optimizer = trained(make)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(*how(model, optimizer))
    assert calls == []


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_still_takes_a_gradient_scalers_infinities(how):
    model, optimizer = how(*trained(wk.AdamW))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 4, dtype=torch.float64)).sum()).backward()
    model[0].weight.grad[0, 0] = torch.inf
    before, calls = everything(optimizer), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scaler.step(optimizer)
    # It is the optimizer that skips: torch's scaler would not have called it.
    assert calls == [1]
    for now, then in zip(everything(optimizer)[:-1], before[:-1], strict=True):
        assert all(torch.equal(now[name], then[name]) for name in now if name != "grad")


# Hooks


@same_as(fused)
def test_hooks_of_state_dict(make):
    _, optimizer = trained(make)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda which: seen.append(("before", which is optimizer)))
    optimizer.register_state_dict_post_hook(lambda which, found: seen.append(list(found["state"])))
    optimizer.register_state_dict_post_hook(lambda which, found: {**found, "mine": 1})
    found = optimizer.state_dict()
    found.pop("ledger", None)
    return seen, found


@same_as(fused)
def test_hooks_of_load_state_dict(make):
    model, optimizer = trained(make)
    loaded = make(model.named_parameters(), lr=1.0)
    seen = []

    def halved(which, checkpoint):
        seen.append((which is loaded, sorted(set(checkpoint) - {"ledger"})))
        groups = [{**group, "lr": group["lr"] / 2} for group in checkpoint["param_groups"]]
        return {**checkpoint, "param_groups": groups}

    loaded.register_load_state_dict_pre_hook(halved)
    loaded.register_load_state_dict_pre_hook(halved)
    loaded.register_load_state_dict_post_hook(lambda which: seen.append(which.param_groups[0]["lr"]))
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["lr"] == LR / 4
    return seen, train(model, loaded), everything(loaded)


def test_a_load_hook_may_take_the_ledger_out():
    model, optimizer = trained(wk.AdamW)
    loaded = wk.AdamW(model.named_parameters())
    loaded.register_load_state_dict_pre_hook(lambda _, checkpoint: checkpoint.pop("ledger") and None)
    checkpoint = optimizer.state_dict()
    loaded.load_state_dict(checkpoint)
    assert "ledger" in checkpoint
    assert loaded.ledger.peek().steps.tolist() == [0] * 6


def test_a_hook_after_loading_finds_all_of_it_loaded():
    model, optimizer = trained(in_float32, dtype=torch.bfloat16)
    loaded = in_float32(model.named_parameters())
    seen = []

    def after(which):
        seen.append((which.ledger.peek().steps.tolist(), {m.dtype for m in moments(which)}))
        for state in which.state.values():
            state["exp_avg"].zero_()

    loaded.register_load_state_dict_post_hook(after)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert seen == [([3] * 6, {torch.float32})]
    assert not any(state["exp_avg"].any() for state in loaded.state.values())
