"""Training loops as users write them, with wk.AdamW in the place of torch.optim.AdamW(fused=True)."""

import contextlib

import pytest
import torch
from beside_torch import (
    LR,
    SETTINGS,
    assert_bits,
    booked,
    copied,
    everything,
    fused,
    language_losses,
    loss_of,
    net,
    same_as,
    train,
    weight,
)
from oracle import Language, set_gradients
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import weibull_kernels as wk

# Loops


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS)
@same_as(fused)
def test_a_loop_with(make, settings, dtype):
    model = net(dtype)
    # eps = 1e-8 is zero in float16.
    optimizer = make(model.parameters(), **({"lr": LR, "eps": 1e-4} | SETTINGS[settings]))
    return train(model, optimizer, 5), everything(optimizer)


@same_as(fused)
def test_groups_with_their_own_settings(make):
    model = net()
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    others = [(name, p) for name, p in model.named_parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "lr": 0.1, "weight_decay": 0.5, "betas": (0.5, 0.6), "mine": "matrices"},
        {"params": others, "maximize": True, "eps": 0.1, "amsgrad": True},
    ]
    optimizer = make(groups, lr=LR)
    return train(model, optimizer), everything(optimizer)


@same_as(fused)
def test_a_group_added_between_steps(make):
    model = net()
    optimizer = make(model[3].parameters(), lr=LR)
    losses = train(model, optimizer)
    optimizer.add_param_group({"params": model[0].weight, "lr": 0.2})
    return losses + train(model, optimizer), everything(optimizer)


@same_as(fused)
def test_a_group_taken_away_between_steps(make):
    model = net()
    optimizer = make([{"params": model[0].parameters()}, {"params": model[3].parameters()}], lr=LR)
    train(model, optimizer)
    optimizer.param_groups.pop()
    return train(model, optimizer), everything(optimizer)


@same_as(fused)
def test_parameters_of_a_group_exchanged_between_steps(make):
    model = net()
    optimizer = make(model[0].parameters(), lr=LR)
    train(model, optimizer)
    optimizer.param_groups[0]["params"] = list(model[3].parameters())
    return train(model, optimizer), everything(optimizer)


def test_the_ledger_of_exchanged_parameters_begins_with_them():
    first, second = weight(50), weight(50)
    optimizer = wk.AdamW([first], lr=LR)
    set_gradients([first, second])
    optimizer.step()
    optimizer.param_groups[0]["params"] = [second]
    norm_sq = second.detach().square().sum()
    optimizer.step()
    budget = optimizer.ledger.drain()
    torch.testing.assert_close(budget.norm_sq, norm_sq[None])
    assert (budget.steps.tolist(), budget.step.tolist()) == ([1], [1])


@same_as(fused)
def test_closures(make):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    grad_enabled = []

    def closure():
        grad_enabled.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).detach()]
    with torch.no_grad():
        losses.append(optimizer.step(closure=closure).detach())
        grad_enabled.append(torch.is_grad_enabled())
    assert grad_enabled == [True, True, False]
    assert optimizer.step() is None
    return losses, everything(optimizer)


@same_as(fused)
def test_frozen_parameters_and_parameters_without_a_gradient(make):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    optimizer.step()
    assert not optimizer.state
    model[0].requires_grad_(False)
    losses = train(model, optimizer)
    model[0].requires_grad_(True)  # unfrozen: its first step while others made three
    losses += train(model, optimizer)
    model[3].bias.requires_grad_(False)  # frozen with its last gradient: torch goes on with that
    model[3].bias.grad = torch.ones(3, dtype=torch.float64)
    loss_of(model).backward()
    optimizer.step()
    return losses, everything(optimizer)


@same_as(fused)
def test_gradients_that_come_and_go(make):
    params = [weight(3), weight(2, 2), weight(), weight(0)]
    optimizer = make(params, lr=LR)
    for present in (0b0101, 0b0010, 0b1111, 0b0000, 0b1001):
        optimizer.zero_grad()
        set_gradients([p for i, p in enumerate(params) if present >> i & 1])
        optimizer.step()
    return everything(optimizer)


@pytest.mark.parametrize("set_to_none", [True, False])
@same_as(fused)
def test_zero_grad(make, set_to_none):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none)
        optimizer.step()  # with zeros the moments relax, with None nothing happens
    return everything(optimizer)


@same_as(fused)
def test_gradients_accumulated_in_place_and_replaced(make):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    for _ in range(3):
        loss_of(model).backward()  # adds to what is there
        optimizer.step()
        for p in model.parameters():
            p.grad.mul_(0.5)
        optimizer.step()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    return everything(optimizer)


# Settings that move

IN_FLIGHT = {
    "lr": lambda group: group.update(lr=0.5),
    "betas": lambda group: group.update(betas=(0.5, 0.6)),
    "eps": lambda group: group.update(eps=0.1),
    "weight_decay": lambda group: group.update(weight_decay=1.0),
    "maximize": lambda group: group.update(maximize=True),
    "a number becomes a tensor": lambda group: group.update(lr=torch.tensor(0.25)),
    "amsgrad off": lambda group: group.update(amsgrad=False),
}


@pytest.mark.parametrize("case", IN_FLIGHT)
@same_as(fused)
def test_settings_changed_in_flight(make, case):
    model = net()
    optimizer = make(
        [{"params": model[0].parameters()}, {"params": model[3].parameters()}], lr=LR, amsgrad=True
    )
    losses = train(model, optimizer)
    IN_FLIGHT[case](optimizer.param_groups[1])
    return losses + train(model, optimizer), everything(optimizer)


@same_as(fused)
def test_a_tensor_lr_changed_in_place(make):
    model, lr = net(), torch.tensor(LR)
    optimizer = make(model.parameters(), lr=lr)
    losses = train(model, optimizer)
    lr.fill_(0.5)
    return losses + train(model, optimizer), everything(optimizer)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.7**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=9, cycle_momentum=True),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
}


@pytest.mark.parametrize("lr", [float, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("case", SCHEDULERS)
@same_as(fused)
def test_schedulers(make, case, lr):
    model = net()
    optimizer = make(model.parameters(), lr=lr(LR))
    scheduler = SCHEDULERS[case](optimizer)
    rates = []
    for _ in range(8):
        (loss,) = train(model, optimizer, 1)
        scheduler.step(*([loss] if case == "ReduceLROnPlateau" else []))
        rates.append(float(optimizer.param_groups[0]["lr"]))
    assert len(set(rates)) > 1
    return torch.tensor(rates), everything(optimizer)


# Hooks


@same_as(fused)
def test_step_hooks(make):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    seen = []

    def hook(name):
        def note(which, args, kwargs):
            assert which is optimizer
            seen.append((name, len(args), list(kwargs), copied(model[0].weight)))

        return note

    with contextlib.ExitStack() as handles:
        for handle in (
            register_optimizer_step_post_hook(hook("global after")),
            register_optimizer_step_pre_hook(hook("global before")),
            optimizer.register_step_post_hook(hook("after")),
            optimizer.register_step_pre_hook(hook("before")),
            optimizer.register_step_pre_hook(hook("before, too")),
        ):
            handles.callback(handle.remove)
        train(model, optimizer)
        optimizer.step(lambda: None)
        optimizer.step(closure=None)
    train(model, optimizer)
    assert len(seen) == 5 * 5
    return seen, everything(optimizer)


@same_as(fused)
def test_a_step_hook_may_change_the_arguments(make):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((self, lambda: "its loss"), {}))
    loss_of(model).backward()
    assert optimizer.step() == "its loss"
    return everything(optimizer)


def test_a_step_hook_finds_the_step_booked():
    model = net()
    optimizer = wk.AdamW(model.parameters())
    drained = []
    optimizer.register_step_post_hook(lambda self, *_: drained.append(self.ledger.drain()))
    train(model, optimizer)
    assert [budget.step.tolist() for budget in drained] == [[step] * 6 for step in (1, 2, 3)]
    assert all((budget.steps == 1).all() for budget in drained)


# Gradient scalers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
@same_as(fused)
def test_a_gradient_scaler(make, unscale, dtype):
    model = net(dtype)
    optimizer = make(model.parameters(), lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    found = []
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if step in (0, 3):
            model[3].bias.grad[1] = -torch.inf if step else torch.nan
        before = everything(optimizer)
        rows = booked(optimizer) if make is wk.AdamW else None
        if unscale:
            scaler.unscale_(optimizer)
            found.append(nn.utils.clip_grad_norm_(model.parameters(), 0.3))
        scaler.step(optimizer)
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
        scaler.update()
        if step in (0, 3):
            assert_bits(*([row["weight"] for row in rows_[:-1]] for rows_ in (everything(optimizer), before)))
            if rows is not None:
                assert torch.equal(booked(optimizer), rows)
        found.append((scaler.get_scale(), everything(optimizer)))
    assert [entry[1][0]["step"].item() for entry in found if isinstance(entry, tuple)] == [0, 1, 2, 2, 3, 4]
    return found


def test_a_skipped_step_leaves_moments_and_counts_to_the_bit():
    model = net(torch.float32)
    optimizer = wk.AdamW(model.parameters(), lr=LR, amsgrad=True)
    scaler = torch.amp.GradScaler("cpu")
    train(model, optimizer)
    scaler.scale(loss_of(model)).backward()
    model[0].weight.grad[0, 0] = torch.inf
    before = [state | {"weight": p} for p, state in optimizer.state.items()]
    before = [{name: copied(value) for name, value in state.items()} for state in before]
    scaler.step(optimizer)
    assert_bits([state | {"weight": p} for p, state in optimizer.state.items()], before)


@same_as(fused)
def test_a_scale_of_the_users_own(make):
    # As trainers do that divide by the number of tokens: it multiplies the scaler's.
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        optimizer.grad_scale = torch.tensor(4.0)
        scaler.step(optimizer)
        scaler.update()
    return everything(optimizer)


# Beside the rest of torch


@pytest.mark.parametrize(
    "average",
    [{}, {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}, {"avg_fn": swa_utils.get_ema_avg_fn(0.9)}],
    ids=["swa", "ema", "ema, one by one"],
)
@same_as(fused)
def test_averaged_weights(make, average):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    averaged = swa_utils.AveragedModel(model, **average)
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
    for _ in range(5):
        train(model, optimizer, 1)
        averaged.update_parameters(model)
        scheduler.step()
    return everything(optimizer), dict(averaged.state_dict())


@same_as(fused)
def test_parametrized_weights(make):
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[3])
    optimizer = make(model.named_parameters(), lr=LR)
    return train(model, optimizer, 5), everything(optimizer)


@same_as(fused)
def test_tied_weights(make):
    model = Language(tied=True).double()
    optimizer = make(model.named_parameters(), lr=1e-3)
    losses = language_losses(model, optimizer)
    assert model.embed_out.weight is model.gpt_neox.embed_in.weight
    return losses, everything(optimizer)


@same_as(fused)
def test_a_training_as_users_write_it(make):
    model = Language().double()
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    others = [(name, p) for name, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = make(groups, lr=3e-3, betas=(0.9, 0.95))
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    scheduler = lr_scheduler.SequentialLR(
        optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, 15)], milestones=[5]
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=6)
    tokens = torch.randint(17, (64, 9))
    losses = []
    for batch in tokens.repeat(3, 1).split(16):
        for half in batch.split(8):  # gradients accumulate over two
            found = model(half[:, :-1]).flatten(0, 1)
            loss = nn.functional.cross_entropy(found, half[:, 1:].flatten())
            scaler.scale(loss / 2).backward()
            losses.append(loss.detach())
        scaler.unscale_(optimizer)
        losses.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses[-2] < losses[0]
    return losses
