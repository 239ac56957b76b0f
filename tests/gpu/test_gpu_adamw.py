"""What only a GPU can show of `wk.AdamW`. Run by `make gpu`, beside test_gpu.py."""

import pytest
import torch
from device import BACKENDS, DEVICE, nothing_waits, unaligned
from oracle import LOG_TOLERANCE, norms_sq, same_bits, set_gradients, terms

import weibull_kernels as wk
from weibull_kernels.kernels import reference

each_backend = pytest.mark.parametrize("backend", BACKENDS)
STEPS = 30
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (511,),
    (1024,),
    (1025,),
    (2049,),
    (32768,),
    (32769,),
    (300, 1000),
    (2_000_003,),
]
FORMS = {
    "default": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "betas and eps": {"betas": (0.8, 0.95), "eps": 1e-4},
    "no betas": {"betas": (0.0, 0.0)},
    "tensor lr": {"lr": torch.tensor(1e-3)},
}
KINDS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "bf16 with fp32 moments": (torch.bfloat16, torch.float32),
    "fp16 with fp32 moments": (torch.float16, torch.float32),
    "fp64": (torch.float64, None),
}


def weights(dtype=torch.float32, shapes=SHAPES):
    """The same numbers for the same shapes, rounded to a dtype."""
    torch.manual_seed(0)
    return [torch.nn.Parameter((0.02 * torch.randn(shape, device=DEVICE)).to(dtype)) for shape in shapes]


def optimizer_of(kind, parameters, **settings):
    """Two groups that are stepped differently."""
    half = len(parameters) // 2
    groups = [{"params": parameters[:half], "weight_decay": 0.3}, {"params": parameters[half:]}]
    if "weight_decay" in settings:
        del groups[0]["weight_decay"]
    return kind(groups, **{"lr": 1e-3, **settings})


def give(gradients_of, *others):
    for parameters in others:
        for p, q in zip(gradients_of, parameters, strict=True):
            q.grad = p.grad.to(q.dtype, copy=True)


def entries(tensors):
    """All entries as one column of float64."""
    return torch.cat([t.detach().double().flatten() for t in tensors])


def after_steps(dtype, **form):
    """Weights of each backend, of torch's fused step, and of float64, after the same gradients."""
    ours, theirs = [weights(dtype) for _ in BACKENDS], weights(dtype)
    exact = [torch.nn.Parameter(p.detach().double()) for p in theirs]
    in_float64 = {name: v.item() if isinstance(v, torch.Tensor) else v for name, v in form.items()}
    optimizers = [
        *(optimizer_of(wk.AdamW, p, backend=name, **form) for p, name in zip(ours, BACKENDS, strict=True)),
        optimizer_of(torch.optim.AdamW, theirs, fused=True, **form),
        optimizer_of(torch.optim.AdamW, exact, foreach=True, **in_float64),
    ]
    for _ in range(STEPS):
        set_gradients(theirs)
        give(theirs, *ours, exact)
        for optimizer in optimizers:
            optimizer.step()
    return [entries(p) for p in ours], entries(theirs), entries(exact)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_steps_are_as_exact_as_torchs(form):
    ours, theirs, exact = after_steps(torch.float32, **form)
    allowed = 2 * (theirs - exact).abs().max() + 2.0**-24 * exact.abs().max()
    for found in ours:
        assert (found - exact).abs().max() <= allowed
        assert (found - theirs).abs().max() <= 1e-5 * exact.abs().max()


def test_steps_in_bfloat16_are_as_exact_as_torchs():
    ours, theirs, exact = after_steps(torch.bfloat16)
    for found in ours:
        errors = [(one - exact).square().mean().sqrt() for one in (found, theirs)]
        assert errors[0] <= 1.1 * errors[1]


@pytest.mark.parametrize(("dtype", "state_dtype"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "form", [{}, {"amsgrad": True, "maximize": True}], ids=["default", "amsgrad, maximize"]
)
def test_steps_and_ledger_agree_with_the_reference(dtype, state_dtype, form):
    found = []
    for backend in (*BACKENDS, "reference"):
        parameters = weights(dtype)
        optimizer = optimizer_of(
            wk.AdamW, parameters, state_dtype=state_dtype, backend=backend, eps=1e-4, **form
        )
        for _ in range(3):
            set_gradients(parameters)
            optimizer.step()
        found.append((parameters, optimizer.ledger.drain()))
    *of_backends, (expected, exact) = found
    precision = torch.finfo(dtype).eps
    # A half that is rounded the other way has other forces.
    tolerance = max(precision / 4, 5e-6)
    for ours, booked in of_backends:
        for p, q in zip(ours, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=2 * precision, atol=precision / 10)
        assert ((terms(booked) - terms(exact)).abs() <= tolerance * exact.absolute).all()
        assert torch.equal(booked.steps, exact.steps)
        assert_statistics(booked.weights, ours)


def assert_statistics(found, parameters):
    """That these are the statistics of the weights."""
    held = [p.detach().double() for p in parameters]
    logs = [reference.log_magnitudes(w) for w in held]
    allowed = LOG_TOLERANCE * torch.stack([(1 + log.abs()).sum() for log in logs])
    torch.testing.assert_close(found.norm_sq, norms_sq(parameters), rtol=1e-12, atol=0)
    assert ((found.log_sum - torch.stack([log.sum() for log in logs])).abs() <= allowed).all()
    assert found.max_abs.tolist() == [reference.largest_magnitude(w).item() for w in held]
    assert found.zero_count.tolist() == [(w == 0).sum().item() for w in held]
    assert not found.non_finite_count.any()


@pytest.mark.parametrize(("dtype", "state_dtype"), KINDS.values(), ids=KINDS)
@each_backend
def test_the_ledger_closes(backend, dtype, state_dtype):
    parameters = weights(dtype)
    optimizer = optimizer_of(wk.AdamW, parameters, state_dtype=state_dtype, eps=1e-4, backend=backend)
    before = norms_sq(parameters)
    for _ in range(20):
        set_gradients(parameters)
        optimizer.step()
    budget = optimizer.ledger.drain()
    change = norms_sq(parameters) - before
    assert budget.steps.tolist() == [20] * len(SHAPES)
    assert ((budget.predicted_change + budget.rounding - change).abs() <= 1e-12 * before).all()
    if dtype == torch.float32:
        fourth = torch.stack([p.detach().double().pow(4).sum() for p in parameters]).sqrt()
        assert (budget.rounding.abs() <= 1e-5 * budget.absolute + 40 * 2.0**-24 * 20**0.5 * fourth).all()


@each_backend
def test_the_ledger_is_the_sum_of_what_forces_measures(backend):
    parameters, total, absolute = weights(), 0, 0
    optimizer = optimizer_of(wk.AdamW, parameters, backend=backend)
    for _ in range(20):
        set_gradients(parameters)
        optimizer.step()
        budget = wk.forces(optimizer, backend=backend)
        total, absolute = total + terms(budget), absolute + budget.absolute
    assert ((terms(optimizer.ledger.drain()) - total).abs() <= 1e-5 * absolute).all()


@pytest.mark.parametrize(("dtype", "state_dtype"), KINDS.values(), ids=KINDS)
@each_backend
def test_every_run_gives_the_same_bits_with_the_ledger_and_without(backend, dtype, state_dtype):
    runs, ledgers = [], []
    for booked in (True, True, False):
        parameters = weights(dtype)
        optimizer = optimizer_of(
            wk.AdamW, parameters, state_dtype=state_dtype, ledger=booked, backend=backend
        )
        for _ in range(3):
            set_gradients(parameters)
            optimizer.step()
        runs.append(parameters)
        if booked:
            ledgers.append(optimizer.ledger.state_dict()["rows"])
    assert all(same_bits(p, q) for other in runs[1:] for p, q in zip(runs[0], other, strict=True))
    assert same_bits(*ledgers)


@each_backend
def test_gradients_that_move_and_memory_that_is_not_aligned(backend):
    plain = weights(shapes=[(100_003,), (64, 3, 5, 5), (33, 40)])
    odd = [
        torch.nn.Parameter(unaligned(plain[0])),
        torch.nn.Parameter(plain[1].detach().clone(memory_format=torch.channels_last)),
        torch.nn.Parameter(plain[2].detach().repeat_interleave(2, dim=1)[:, ::2]),
    ]
    optimizers = [wk.AdamW(parameters, backend=backend) for parameters in (plain, odd)]
    for i in range(3):
        set_gradients(plain)
        give(plain, odd)
        if i % 2:
            for p in odd:
                p.grad = unaligned(p.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert all(same_bits(p, q) for p, q in zip(plain, odd, strict=True))
    ledgers = [optimizer.ledger.state_dict()["rows"] for optimizer in optimizers]
    torch.testing.assert_close(*ledgers, rtol=1e-9, atol=1e-12)


@each_backend
def test_nothing_waits_for_the_device(backend):
    parameters = weights()
    optimizer = optimizer_of(wk.AdamW, parameters, backend=backend)
    number = torch.ones((), device=DEVICE)
    for settings in ({}, {"grad_scale": number, "found_inf": 0 * number}, {"lr": number / 1000}):
        for name in ("grad_scale", "found_inf"):
            setattr(optimizer, name, settings.get(name))
        for group in optimizer.param_groups:
            group["lr"] = settings.get("lr", 1e-3)
        set_gradients(parameters)
        optimizer.step()  # compiles
        held = [p.grad for p in parameters]
        set_gradients(parameters)  # elsewhere, because the memory of the old ones is held
        assert all(
            p.grad.data_ptr() != g.data_ptr() for p, g in zip(parameters, held, strict=True) if g.numel()
        )
        with nothing_waits():
            optimizer.step()
            optimizer.ledger.peek(histogram=True)
            optimizer.ledger.drain()


@each_backend
def test_a_step_that_the_scaler_skips_is_not_booked(backend):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, device=DEVICE)
    optimizer = wk.AdamW(model.named_parameters(), backend=backend)
    scaler = torch.amp.GradScaler("cuda")
    for spoilt in (False, True):
        scaler.scale(model(torch.ones(1, 64, device=DEVICE)).square().sum()).backward()
        if spoilt:
            model.bias.grad[0] = float("inf")
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        budget = optimizer.ledger.drain()
        assert budget.steps.tolist() == [0 if spoilt else 1] * 2
        assert bool(budget.predicted_change.any()) != spoilt
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)) == spoilt
        assert [optimizer.state[p]["step"].item() for p in model.parameters()] == [1, 1]


@each_backend
def test_scaled_gradients_are_divided_as_torch_divides_them(backend):
    parameters = weights(), weights()
    kinds = (wk.AdamW, {"backend": backend}), (torch.optim.AdamW, {"fused": True})
    optimizers = [kind(p, **more) for p, (kind, more) in zip(parameters, kinds, strict=True)]
    set_gradients(parameters[0], scale=3.0)
    give(*parameters)
    for optimizer in optimizers:
        optimizer.grad_scale = torch.full((), 3.0, device=DEVICE)
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        optimizer.step()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(*parameters, strict=True))
    torch.testing.assert_close(*map(entries, parameters), rtol=0, atol=2e-7)


def test_a_model_on_two_devices():
    parameters = [torch.nn.Parameter(torch.randn(300, device=device)) for device in ("cpu", DEVICE, "cpu")]
    optimizer = wk.AdamW([(name, p) for name, p in zip("abc", parameters, strict=True)], lr=1e-2)
    before = [p.detach().double().square().sum().item() for p in parameters]
    set_gradients(parameters)
    optimizer.step()
    budget = optimizer.ledger.drain()
    change = [p.detach().double().square().sum().item() - b for p, b in zip(parameters, before, strict=True)]
    assert budget.names == ("a", "b", "c")
    assert budget.alignment.device.type == "cuda"
    assert (budget.predicted_change + budget.rounding).tolist() == pytest.approx(change, rel=1e-9)
