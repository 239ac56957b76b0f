"""wk.AdamW writes by address: memory that moves, views, autograd, and the global state of torch."""

import contextlib
from functools import partial

import pytest
import torch
from beside_torch import (
    LR,
    bucket_view,
    copied,
    everything,
    fused,
    loop,
    loss_of,
    net,
    same_as,
    train,
    weight,
    with_gaps,
)
from oracle import set_gradients
from torch import nn

import weibull_kernels as wk

# Memory that moves: a step writes by address, and must not go on where a tensor was


def flat_buffer(model, _):
    buffer = torch.cat([p.detach().flatten() for p in model.parameters()])
    nn.utils.vector_to_parameters(buffer, model.parameters())


def each_weight(move, model, _):
    for p in model.parameters():
        p.data = move(p.data)


def each_state(names, move, _, optimizer):
    for state in optimizer.state.values():
        for name in names:
            state[name] = move(state[name])


def each_state_in_place(names, move, _, optimizer):
    for state in optimizer.state.values():
        for name in names:
            state[name].data = move(state[name].data)


def load_itself(_, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def to_float32(model, optimizer):
    model.float()
    optimizer.load_state_dict(optimizer.state_dict())


ALL = ("step", "exp_avg", "exp_avg_sq")

MOVES = {
    "weights": partial(each_weight, torch.clone),
    "weights become views of a buffer": flat_buffer,
    "weights are shared": lambda model, _: model.share_memory(),
    "weights are swapped": lambda model, _: model.load_state_dict(net().state_dict(), assign=False),
    "weights and states in float32": to_float32,
    "counts": partial(each_state, ALL[:1], lambda t: t + 5),
    "first moments": partial(each_state, ALL[1:2], torch.clone),
    "second moments": partial(each_state, ALL[2:], lambda t: 2 * t),
    "states in place": partial(each_state_in_place, ALL, torch.clone),
    "states as other dicts": lambda _, o: o.state.update({p: dict(s) for p, s in o.state.items()}),
    "states lost": lambda _, o: o.state.clear(),
    "states loaded": load_itself,
}


@pytest.mark.parametrize("case", MOVES)
@same_as(fused)
def test_memory_that_moved_between_steps(make, case):
    model = net()
    optimizer = make(model.parameters(), lr=LR)
    losses = train(model, optimizer)
    held = [
        everything(optimizer),
        [p.data for p in model.parameters()],
        list(map(dict, optimizer.state.values())),
    ]
    MOVES[case](model, optimizer)
    losses += train(model, optimizer)
    del held  # so that no address was given out a second time
    return losses, everything(optimizer)


def transposed_weight(p, _):
    p.data = p.data.t()


def transposed_moment(p, state):
    state["exp_avg"] = state["exp_avg"].t()


def transposed_moment_in_place(p, state):
    state["exp_avg"].data = state["exp_avg"].data.t()


@pytest.mark.parametrize("turn", [transposed_weight, transposed_moment, transposed_moment_in_place])
@same_as(loop)
def test_tensors_turned_where_they_lie(make, turn):
    p = weight(4, 4)
    optimizer = make([p], lr=LR)
    for step in range(4):
        p.grad = torch.randn(4, 4, dtype=torch.float64)
        optimizer.step()
        if step == 1:
            turn(p, optimizer.state[p])
    return copied(p), {name: copied(value) for name, value in optimizer.state[p].items()}


LAYOUTS = {
    "transposed": lambda: torch.randn(4, 3, dtype=torch.float64).t(),
    "with gaps": lambda: with_gaps(torch.randn(3, 4, dtype=torch.float64)),
    "a slice of a buffer": lambda: bucket_view(torch.randn(3, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@same_as(loop)
def test_weights_that_are_views(make, layout):
    p = nn.Parameter(LAYOUTS[layout]())
    strides = p.stride()
    optimizer = make([p], lr=LR)
    for _ in range(3):
        p.grad = torch.randn(3, 4, dtype=torch.float64)
        optimizer.step()
    assert p.stride() == strides
    return copied(p), p.detach()._base, dict(optimizer.state[p])


@same_as(loop)
def test_channels_last(make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    model = model.to(memory_format=torch.channels_last)
    optimizer = make(model.parameters(), lr=LR)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
        losses.append(model(x).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    strides = [t.stride() for state in optimizer.state.values() for t in state.values()]
    return [copied(loss) for loss in losses], strides, list(optimizer.state.values())


VIEWS = {
    "slice of a bucket": bucket_view,
    "with gaps": with_gaps,
    "transposed": lambda grad: grad.t().contiguous().t(),
    "expanded": lambda grad: grad[:1].expand_as(grad),
    "negated": lambda grad: torch._neg_view(grad),
    "of a graph": lambda grad: grad * nn.Parameter(torch.ones_like(grad)),
}


@pytest.mark.parametrize("view", VIEWS)
@same_as(loop)
def test_gradients_that_are_views(make, view):
    params = [weight(4, 4), weight(4, 4), weight(4, 4)]
    optimizer = make(params, lr=LR)
    for _ in range(3):
        set_gradients(params)
        params[1].grad = VIEWS[view](params[1].grad)
        optimizer.step()
    return [copied(p) for p in params], [copied(p.grad) for p in params], list(optimizer.state.values())


# Beside autograd and the global state of torch


@pytest.mark.parametrize("settings", [{}, {"ledger": False}, {"backend": "reference"}], ids=str)
def test_a_backward_through_weights_since_stepped_is_refused(settings):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = wk.AdamW(model.parameters(), **settings)
    for _ in range(2):  # as they are gathered, and as they are found in place
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_backward_through_weights_that_were_not_stepped_goes_on():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = wk.AdamW(model.parameters())
    model[1].requires_grad_(False)
    x = torch.ones(2, 3, requires_grad=True)
    loss = model[1](x).square().sum()
    loss.backward(retain_graph=True)
    model[0](x).sum().backward()
    optimizer.step()
    loss.backward()
    assert x.grad is not None


def test_weights_stay_leaves_and_random_numbers_are_not_drawn():
    model = net()
    optimizer = wk.AdamW(model.parameters())
    grads = torch.autograd.grad(loss_of(model), list(model.parameters()), create_graph=True)
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)
    for p in model.parameters():
        assert p.requires_grad
        assert p.is_leaf
        assert p.grad_fn is None
        assert p.grad.requires_grad
        assert not any(t.requires_grad for t in optimizer.state[p].values())


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "cpu by default": lambda: default_device("cpu"),
    "another device by default": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", AROUND)
@same_as(fused)
def test_steps_inside_of(make, case, dtype):
    model = net(dtype)
    with AROUND[case]():
        optimizer = make(model.parameters(), lr=LR)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        with AROUND[case]():
            optimizer.step()
            if make is wk.AdamW:
                optimizer.ledger.drain()
    return everything(optimizer)


def two_weights(shapes=((4, 3), (2, 2)), **settings):
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = wk.AdamW(weights, lr=0.1, **settings)
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    return optimizer, weights


class Wrapper(torch.Tensor):
    pass


WITHOUT_MEMORY = {
    "gradient freed": (lambda w, _: w.grad.untyped_storage().resize_(0), "has no memory"),
    "gradient wrapped": (lambda w, _: setattr(w, "grad", torch.ones(4, 3).as_subclass(Wrapper)), "Wrapper"),
    "moment freed": (lambda _, state: state["exp_avg"].untyped_storage().resize_(0), "has no memory"),
    "count of no entry": (lambda _, state: state.update(step=torch.zeros(0)), "one entry"),
}


@pytest.mark.parametrize("case", WITHOUT_MEMORY)
def test_tensors_without_memory_are_refused_and_nothing_moves(case):
    spoil, expected = WITHOUT_MEMORY[case]
    optimizer, (w, other) = two_weights()
    spoil(w, optimizer.state[w])
    before = w.detach().clone(), other.detach().clone(), optimizer.ledger.peek().steps.tolist()
    with pytest.raises((ValueError, TypeError), match=expected):
        optimizer.step()
    assert torch.equal(w, before[0])
    assert torch.equal(other, before[1])
    assert optimizer.ledger.peek().steps.tolist() == before[2]


def test_groups_in_another_order_keep_their_numbers_and_rows():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = wk.AdamW([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 1e-3}], weight_decay=0.0)
    b.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups.reverse()
    optimizer.ledger.peek()
    optimizer.step()
    assert torch.allclose(b, torch.tensor(0.998))
    assert optimizer.ledger.drain().steps.tolist() == [2, 0]


@pytest.mark.parametrize("peeked", [False, True])
def test_parameters_in_another_order_are_booked_in_their_own_rows(peeked):
    optimizer, (a, b) = two_weights(weight_decay=0.0)
    a.grad = None
    optimizer.param_groups[0]["params"].reverse()
    if peeked:
        optimizer.ledger.peek()
    optimizer.step()
    budget = optimizer.ledger.drain()
    assert budget.steps.tolist() == [2, 1]
    assert budget.norm_sq.tolist() == [4.0, 12.0]
    assert torch.allclose(b, torch.tensor(0.8), atol=1e-3)


def test_gradients_that_come_and_go_find_their_plans_again():
    optimizer, (a, b) = two_weights(weight_decay=0.0)
    for step in range(6):
        for w, absent in ((a, step % 3 == 0), (b, step % 3 == 1)):
            w.grad = None if absent else torch.ones_like(w)
        optimizer.step()
    assert len(optimizer._plans) == 3
    assert optimizer.ledger.drain().steps.tolist() == [5, 5]
    assert torch.allclose(a, torch.tensor(0.5), atol=1e-3)


def test_one_gradient_in_another_order_copies_only_itself(monkeypatch):
    optimizer, (_a, b) = two_weights(shapes=((50, 40), (40, 50)))
    b.grad = torch.arange(2000.0).reshape(50, 40).t()
    copied = []
    clone, copy = torch.Tensor.clone, torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **k: copied.append(t.numel()) or clone(t, **k))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda t, *k: copied.append(t.numel()) or copy(t, *k))
    optimizer.step()
    assert sum(copied) == 2000


@pytest.mark.parametrize("size", [5, 16, 300])
@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_rate_that_is_none_is_counted_in_every_entry_and_no_other(size, lr, backend):
    w = torch.nn.Parameter(torch.ones(size))
    optimizer = wk.AdamW([w], backend=backend)
    optimizer.param_groups[0]["lr"] = lr
    w.grad = torch.ones(size)
    optimizer.step()
    weights = optimizer.ledger.drain().weights
    assert (weights.zero_count.item(), weights.non_finite_count.item()) == (0, size)
