"""What only a GPU can show. Run by `make gpu`; `make test` does not come here.

python3 -m pytest --noconftest tests/gpu
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oracle import assert_agrees, assert_same_bits, make_rows, norms_sq, set_gradients

import weibull_kernels as wk
from weibull_kernels.kernels import triton
from weibull_kernels.kernels.interface import Rows

DEVICE = torch.device("cuda")
assert not triton._interpreted(), "these tests are for the compiled kernels; unset TRITON_INTERPRET"
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (511,),
    (512,),
    (513,),
    (32768,),
    (32769,),
    (300, 1000),
    (3, 5, 7, 11),
    (2_000_003,),
]
DTYPES = {
    "fp32": (torch.float32,) * 3,
    "bf16 with fp32 moments": (torch.bfloat16, torch.float32, torch.float32),
    "bf16": (torch.bfloat16,) * 3,
    "fp16": (torch.float16,) * 3,
    "fp64": (torch.float64,) * 3,
}


def on_gpu(rows: Rows) -> Rows:
    return Rows(**{name: to_gpu(value) for name, value in vars(rows).items()})


def to_gpu(value):
    return [v if v is None else v.to(DEVICE) for v in value] if isinstance(value, list) else value.to(DEVICE)


def columns(shape, weight, exp_avg, exp_avg_sq):
    """Random w, m, v of a shape, with every kind of special entry in w where there is room."""
    w = torch.randn(shape, dtype=torch.float64) * 0.02
    if w.numel() > 500:
        w.view(-1)[:9] = torch.tensor(
            [0.0, -0.0, 1e-24, -1e-40, 1e-45, 3e-8, 64.0, 1e4, -1.0], dtype=torch.float64
        )
    m, v = torch.randn(shape) * 0.01, torch.rand(shape) * 1e-3
    return w.to(weight), m.to(exp_avg), v.to(exp_avg_sq)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("histogram", [False, True])
def test_sums_agree_with_the_reference(dtypes, histogram):
    torch.manual_seed(0)
    rows = on_gpu(make_rows(*(columns(shape, *dtypes) for shape in SHAPES), eps=1e-4))
    found = triton.sums(rows, with_histogram=histogram)
    assert_agrees(found, rows, 1e-6)
    assert_same_bits(found, triton.sums(rows, with_histogram=histogram))


def test_non_finite_entries_are_counted_and_left_out():
    w = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 2.0])
    found = triton.sums(on_gpu(make_rows((w,))), with_histogram=True)
    assert found.non_finite_count.item() == 3
    assert found.max_abs.item() == 2
    assert found.histogram.sum().item() == 2


def test_unaligned_memory():
    w, m, v = columns((100_000,), *DTYPES["fp32"])
    views = [t.to(DEVICE)[1:] for t in (w, m, v)]
    rows = on_gpu(make_rows(tuple(views)))
    assert_agrees(triton.sums(rows, with_histogram=True), rows, 1e-6)


def test_more_than_2_to_the_31_entries():
    size = 2**31 + 5
    w = torch.ones(size, dtype=torch.bfloat16, device=DEVICE)
    w[-1] = 2
    column = torch.ones(1, dtype=torch.float64, device=DEVICE)
    found = triton.sums(Rows([w], [None], [None], column, column, column), with_histogram=True)
    assert found.weight_sq.item() == size + 3
    assert found.max_abs.item() == 2
    assert found.histogram.sum().item() == size


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
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=DEVICE) * 0.02) for shape in SHAPES[2:]]
    groups = [
        {"params": parameters[:4], "weight_decay": 0.3},
        {"params": parameters[4:], "weight_decay": 0.01, "betas": (0.8, 0.95)},
    ]
    optimizer = torch.optim.AdamW(groups, **{"lr": 1e-3, **form})
    for _ in range(20):
        set_gradients(parameters)
        before = norms_sq(parameters)
        fourth = torch.stack([p.detach().double().pow(4).sum() for p in parameters])
        optimizer.step()
        budget = wk.forces(optimizer)
        measured = norms_sq(parameters) - before
        allowed = 1e-6 * budget.absolute + 16 * 2.0**-24 * fourth.sqrt()
        assert ((budget.predicted_change - measured).abs() <= allowed).all()


def test_nothing_waits_and_nothing_changes():
    model = torch.nn.Linear(512, 512, device=DEVICE)
    optimizer = torch.optim.AdamW(model.named_parameters(), fused=True)
    set_gradients(list(model.parameters()))
    optimizer.step()
    wk.forces(optimizer)  # compiles
    tensors = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    copies = [t.detach().clone() for t in tensors]
    state = torch.cuda.get_rng_state()
    torch.cuda.set_sync_debug_mode("error")
    try:
        wk.forces(optimizer, histogram=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert torch.equal(state, torch.cuda.get_rng_state())


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
    "capturable foreach, tensor lr": {
        "capturable": True,
        "foreach": True,
        "lr": torch.tensor(0.1, device=DEVICE),
    },
}


@pytest.mark.parametrize("form", HALF_FORMS.values(), ids=HALF_FORMS)
def test_decay_of_bfloat16_is_that_of_the_optimizer(form):
    # Without a gradient nothing but the decay moves the weights: w⁺ = c·w, rounded to bfloat16.
    torch.manual_seed(0)
    weight = torch.nn.Parameter((torch.rand(20_000, device=DEVICE) + 0.5).bfloat16())
    before = weight.detach().double()
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
