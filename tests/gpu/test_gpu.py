"""`wk.forces` and what else is public, on a GPU.

python3 -m pytest --noconftest tests/gpu
"""

import pytest
import torch
from device import BACKENDS, DEVICE, SHAPES, nothing_waits
from oracle import norms_sq, set_gradients

import weibull_kernels as wk

FORMS = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True, "foreach": False},
    "capturable foreach": {"capturable": True, "foreach": True},
    "fused, tensor lr": {"fused": True, "lr": torch.tensor(1e-3)},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_balance_closes(form):
    """By every backend, on the same steps."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=DEVICE) * 0.02) for shape in SHAPES[2:]]
    groups = [
        {"params": parameters[:4], "weight_decay": 0.3},
        {"params": parameters[4:], "weight_decay": 0.01, "betas": (0.8, 0.95)},
    ]
    optimizer = torch.optim.AdamW(groups, **{"lr": 1e-3, **form})
    for _ in range(10):
        set_gradients(parameters)
        before = norms_sq(parameters)
        fourth = torch.stack([p.detach().double().pow(4).sum() for p in parameters])
        optimizer.step()
        measured = norms_sq(parameters) - before
        for backend in BACKENDS:
            budget = wk.forces(optimizer, backend=backend)
            allowed = 1e-6 * budget.absolute + 16 * 2.0**-24 * fourth.sqrt()
            assert ((budget.predicted_change - measured).abs() <= allowed).all()


@pytest.mark.parametrize("histogram", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_waits_and_nothing_changes(backend, form, histogram):
    model = torch.nn.Linear(512, 512, device=DEVICE)
    optimizer = torch.optim.AdamW(model.named_parameters(), **form)
    set_gradients(list(model.parameters()))
    optimizer.step()
    tensors = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    copies = [t.detach().clone() for t in tensors]
    states = torch.cuda.get_rng_state(), torch.get_rng_state()
    found = []
    for _ in range(2):  # the first compiles and makes the tables
        with nothing_waits():
            found.append(wk.forces(optimizer, backend=backend, histogram=histogram))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert all(map(torch.equal, states, (torch.cuda.get_rng_state(), torch.get_rng_state())))
    assert all(torch.equal(found[0].alignment, other.alignment) for other in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_change_are_noticed(backend):
    """Rates, betas, weights elsewhere, another group: a call sees the optimizer as it is."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(300, 7, device=DEVICE)) for _ in range(4)]
    optimizer = torch.optim.AdamW(weights[:3], fused=True)

    def assert_as_by_the_reference():
        set_gradients(weights)
        optimizer.step()
        found, exact = (wk.forces(optimizer, backend=name) for name in (backend, "reference"))
        for name in ("alignment", "injection", "decay", "coupling"):
            apart = (getattr(found, name) - getattr(exact, name)).abs()
            assert (apart <= 1e-6 * exact.absolute).all()
        assert torch.equal(found.step, exact.step)

    assert_as_by_the_reference()
    optimizer.param_groups[0]["lr"] = 0.01
    assert_as_by_the_reference()
    optimizer.param_groups[0]["betas"] = (0.7, 0.8)
    assert_as_by_the_reference()
    weights[0].data = weights[0].detach().clone() + 1
    assert_as_by_the_reference()
    optimizer.add_param_group({"params": weights[3:], "lr": 0.1, "amsgrad": True})
    assert_as_by_the_reference()
    optimizer.load_state_dict(optimizer.state_dict())
    assert_as_by_the_reference()


def test_a_step_that_the_scaler_skips_is_not_booked():
    model = torch.nn.Linear(64, 64, device=DEVICE)
    optimizer = torch.optim.AdamW(model.named_parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda")
    budgets = []
    for spoilt in (False, True):
        scaler.scale(model(torch.ones(1, 64, device=DEVICE)).sum()).backward()
        if spoilt:
            model.bias.grad[0] = float("inf")
        scaler.step(optimizer)
        budgets.append(wk.forces(optimizer, since=budgets[-1] if budgets else None))
        scaler.update()
        optimizer.zero_grad()
    assert budgets[0].steps.tolist() == [1, 1]
    assert budgets[1].steps.tolist() == [0, 0]
    assert not budgets[1].predicted_change.any()


def test_a_model_on_two_devices():
    parameters = [torch.nn.Parameter(torch.randn(300, device=device)) for device in ("cpu", DEVICE, "cpu")]
    optimizer = torch.optim.AdamW([(name, p) for name, p in zip("abc", parameters, strict=True)], lr=1e-2)
    set_gradients(parameters)
    optimizer.step()
    budget = wk.forces(optimizer)
    expected = [p.detach().double().square().sum().item() for p in parameters]
    found = (budget.norm_sq + budget.predicted_change).tolist()
    assert budget.names == ("a", "b", "c")
    assert budget.alignment.device.type == "cuda"
    assert found == pytest.approx(expected, rel=1e-6)


HALF_FORMS = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "by default": {},
    "by default, tensor lr": {"lr": torch.tensor(0.1)},
    "fused": {"fused": True},
    "capturable foreach, tensor lr": {"capturable": True, "foreach": True, "lr": torch.tensor(0.1)},
}


@pytest.mark.parametrize("form", HALF_FORMS.values(), ids=HALF_FORMS)
def test_decay_of_bfloat16_is_that_of_the_optimizer(form):
    # Without a gradient nothing but the decay moves the weights: w⁺ = c·w, rounded to bfloat16.
    torch.manual_seed(0)
    weight = torch.nn.Parameter((torch.rand(20_000, device=DEVICE) + 0.5).bfloat16())
    before = weight.detach().double()
    if form.get("capturable"):
        form = {**form, "lr": form["lr"].to(DEVICE)}
    optimizer = torch.optim.AdamW([weight], **{"lr": 0.1, "weight_decay": 0.1234, **form})
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    budget = wk.forces(optimizer)
    c = 1 + (budget.decay / (2 * budget.norm_sq)).item()
    assert torch.equal((c * before).float().bfloat16(), weight.detach())


def test_a_default_device_changes_nothing():
    weight = torch.nn.Parameter(torch.randn(300, device=DEVICE))
    optimizer = torch.optim.AdamW([("w", weight)], weight_decay=0.1)
    set_gradients([weight])
    optimizer.step()
    expected = wk.forces(optimizer)
    with torch.device(DEVICE):
        assert torch.equal(wk.forces(optimizer).alignment, expected.alignment)


def test_checkpoints_on_the_device():
    """Their Gram matrices are those of the same tensors on the host, and so are the forces."""
    run, weight = [], torch.randn(300_001)
    for _ in range(5):
        weight = weight + 0.01 * torch.randn(300_001)
        run.append({"w": weight, "half": weight.bfloat16()})
    steps = [0, 10, 20, 30, 40]
    host, device = (
        wk.checkpoint_gram([{name: w.to(place) for name, w in one.items()} for one in run], steps)
        for place in ("cpu", DEVICE)
    )
    assert abs(host.products - device.products).max() <= 1e-12 * host.products.max()
    forces = [wk.recover(gram, lr=1e-3, weight_decay=0.1).alignment for gram in (host, device)]
    assert abs(forces[0] - forces[1]).max() <= 1e-9 * abs(forces[0]).max()
