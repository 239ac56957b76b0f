"""forces() on every form of AdamW and Adam, at its border, and beside compiled code."""

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
from oracle import (
    FAST,
    Language,
    everything_about,
    norms_sq,
    set_gradients,
    terms,
    terms_from_definition,
)
from torch.optim import Adam, AdamW

import weibull_kernels as wk

LR, DECAY = 1e-2, 0.1

# Each with the settings that single it out.
FORMS = {
    "for loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "amsgrad": {"amsgrad": True},
    "amsgrad, foreach": {"amsgrad": True, "foreach": True},
    "amsgrad, fused": {"amsgrad": True, "fused": True},
    "maximize": {"maximize": True},
    "maximize, foreach": {"maximize": True, "foreach": True},
    "maximize, fused": {"maximize": True, "fused": True},
    "tensor lr": {"lr": torch.tensor(LR, dtype=torch.float64), "foreach": False},
    "tensor lr, fused": {"lr": torch.tensor(LR, dtype=torch.float64), "fused": True},
    "no decay": {"weight_decay": 0.0},
    "betas and eps": {"betas": (0.8, 0.7), "eps": 1e-3},
}


def parameters(dtype=torch.float32):
    """0-dim, empty, a vector, a matrix, channels-last."""
    shapes = [(), (0,), (7,), (5, 9), (2, 3, 4, 5)]
    made = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    made[-1].data = made[-1].data.to(memory_format=torch.channels_last)
    return made


def stepped(optimizer, steps=3):
    """The optimizer after some steps with random gradients, and ‖w‖² before the last, [P]."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        set_gradients(params)
        before = norms_sq(params)
        optimizer.step()
    return optimizer, before


def assert_is_the_definition(budget, optimizer, rounded_to, lr=None):
    expected = terms_from_definition(optimizer, lr, rounded_to)
    # Sums within 5e-7 of ‖w‖‖u‖ and ‖u‖², of which the alignment's is the larger part.
    allowed = 1e-6 * expected.abs().sum(0) + 1e-6 * (expected[1] * budget.norm_sq).sqrt()
    assert ((terms(budget) - expected).abs() <= allowed).all()


@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_float64_closes_to_the_last_digits(kind, form):
    settings = {"lr": LR, "weight_decay": DECAY} | FORMS[form]
    params = parameters(torch.float64)
    optimizer, before = stepped(kind(params, **settings))
    budget = wk.forces(optimizer)
    assert_is_the_definition(budget, optimizer, torch.float64)
    change = norms_sq(params) - before
    assert torch.allclose(budget.predicted_change, change, rtol=0, atol=1e-12)
    assert torch.allclose(budget.norm_sq, before, rtol=1e-12, atol=0)
    if kind is Adam:  # L2 decay acts through the gradient
        assert (budget.decay == 0).all()
        assert (budget.coupling == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["for loop", "foreach", "fused", "amsgrad", "tensor lr"])
def test_dtypes(dtype, form):
    # eps = 1e-8 is zero in float16.
    settings = {"lr": LR, "weight_decay": DECAY, "eps": 1e-4} | FORMS[form]
    optimizer, _ = stepped(AdamW(parameters(dtype), **settings))
    # foreach multiplies by c in the dtype of the weight, the others in float32.
    assert_is_the_definition(wk.forces(optimizer), optimizer, dtype if form == "foreach" else torch.float32)


def test_rows_of_different_dtypes():
    params = [p for dtype in (torch.float32, torch.float16, torch.float32) for p in parameters(dtype)]
    optimizer, _ = stepped(AdamW(params, lr=LR, eps=1e-4))
    assert_is_the_definition(wk.forces(optimizer), optimizer, torch.float32)


def test_decoupled_decay_of_adam_is_that_of_adamw():
    optimizer, _ = stepped(Adam(parameters(), lr=LR, weight_decay=DECAY, decoupled_weight_decay=True))
    budget = wk.forces(optimizer)
    assert_is_the_definition(budget, optimizer, torch.float32)
    assert (budget.decay[2:] < 0).all()


def test_differentiable():
    # Torch then computes 1 − βᵗ in float32, which is 3e-5 off at β₂ = 0.999.
    weights = [torch.randn(300, dtype=torch.float64) for _ in range(2)]
    optimizer = AdamW(weights, lr=LR, differentiable=True)
    for _ in range(3):
        set_gradients(weights)
        before = norms_sq(weights)
        optimizer.step()
        budget = wk.forces(optimizer)
        residue = norms_sq(weights) - before - budget.predicted_change
        assert (residue.abs() <= 3e-7 * budget.absolute).all()


@pytest.mark.parametrize("backend", FAST)
def test_backends_agree(backend):
    optimizer, _ = stepped(AdamW(parameters(), lr=LR, weight_decay=DECAY))
    budget = wk.forces(optimizer, backend=backend, histogram=True)
    assert_is_the_definition(budget, optimizer, torch.float32)
    assert torch.equal(budget.weights.histogram, wk.forces(optimizer, histogram=True).weights.histogram)
    assert wk.forces(optimizer).weights.histogram is None


def test_one_step_by_hand():
    # First step: m̂ = g, v̂ = g², so with ε = 0 every entry moves by η·sign g.
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    weight.grad = torch.tensor([2.0, -5.0], dtype=torch.float64)
    optimizer = AdamW([weight], lr=0.5, weight_decay=0.5, eps=0.0)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.75 * 3 - 0.5, 0.75 * 4 + 0.5])
    budget = wk.forces(optimizer)
    # ⟨w,u⟩ = 3 − 4, ‖u‖² = 2, ‖w‖² = 25, 1 − c = 1/4.
    assert terms(budget).flatten().tolist() == pytest.approx([1.0, 0.5, -12.5, 0.25 * (-1 + 25 / 4)])
    assert budget.predicted_change.item() == pytest.approx(1.75**2 + 3.5**2 - 25)
    assert (budget.norm_sq.item(), budget.numel.item()) == (pytest.approx(25.0), 2)
    assert (budget.steps.item(), budget.step.item(), budget.names) == (1, 1, ("0.0",))


def test_each_group_has_its_own_settings():
    # With the settings of the first group the second's decay would be 200 times too small, and
    # with the wrong sign it would be positive.
    first, second = (torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64)) for _ in range(2))
    optimizer = AdamW(
        [
            {"params": [first], "lr": 1e-3, "weight_decay": 0.1, "eps": 0.0},
            {"params": [second], "lr": 1e-2, "weight_decay": 2.0, "eps": 1.0, "betas": (0.5, 0.25)},
        ]
    )
    for p in (first, second):
        p.grad = torch.tensor([1.0, -3.0], dtype=torch.float64)
    optimizer.step()
    # u = sign g in the first group, g/(|g|+1) in the second.
    alignment = [-2e-3 * (3 - 4), -2e-2 * (3 * 0.5 - 4 * 0.75)]
    injection = [1e-6 * 2, 1e-4 * (0.25 + 0.5625)]
    decay = [-2 * 1e-4 * 25, -2 * 2e-2 * 25]
    budget = wk.forces(optimizer)
    assert budget.alignment.tolist() == pytest.approx(alignment)
    assert budget.injection.tolist() == pytest.approx(injection)
    assert budget.decay.tolist() == pytest.approx(decay)
    assert_is_the_definition(budget, optimizer, torch.float64)


def test_a_tensor_lr_beside_a_number_costs_no_digits():
    params = [torch.nn.Parameter(torch.randn(50, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": params[:1], "lr": torch.tensor(0.5**7)}, {"params": params[1:], "lr": 1e-3}]
    optimizer, before = stepped(AdamW(groups, weight_decay=0.5, fused=True))
    budget = wk.forces(optimizer)
    assert torch.allclose(budget.predicted_change, norms_sq(params) - before, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["for loop", "fused"])
def test_a_float32_lr_of_float64_weights(form):
    params = [torch.nn.Parameter(torch.randn(50, dtype=torch.float64))]
    settings = FORMS[form] | {"lr": torch.tensor(1e-2)}
    optimizer, before = stepped(AdamW(params, weight_decay=0.1, **settings))
    budget = wk.forces(optimizer)
    # The for loop divides the rate by its bias correction in float32.
    allowed = 1.2e-7 * budget.absolute if form == "for loop" else 1e-12
    assert ((budget.predicted_change - norms_sq(params) + before).abs() <= allowed).all()


def test_a_scheduler_that_stepped_first():
    optimizer, _ = stepped(AdamW(parameters(torch.float64), lr=LR, weight_decay=DECAY))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    used = scheduler.get_last_lr()
    set_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    expected = wk.forces(optimizer)
    scheduler.step()
    for lr in (used, used[0], np.float64(used[0]), torch.tensor(used[0], dtype=torch.float64), tuple(used)):
        assert torch.equal(terms(wk.forces(optimizer, lr=lr)), terms(expected))
    late = wk.forces(optimizer)
    assert (late.injection[2:] < 0.3 * expected.injection[2:]).all()  # (½)² of it


def test_lr_of_each_group():
    params = parameters(torch.float64)
    optimizer, _ = stepped(AdamW([{"params": params[2:3], "lr": 1e-3}, {"params": params[3:], "lr": 1e-2}]))
    expected = terms(wk.forces(optimizer))
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    for lr in ([1e-3, 1e-2], np.array([1e-3, 1e-2]), torch.tensor([1e-3, 1e-2], dtype=torch.float64)):
        assert torch.equal(terms(wk.forces(optimizer, lr=lr)), expected)
    # A float32 rate is taken at its value, 5e-8 from 1e-3.
    single = wk.forces(optimizer, lr=np.float32(1e-3))
    assert single.injection[0].item() == pytest.approx(expected[1, 0].item(), rel=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_a_gradient_scaler_skipped(fused):
    params = parameters()[2:]
    optimizer = AdamW(params, lr=LR, weight_decay=DECAY, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(spoil):
        optimizer.zero_grad()
        scaler.scale(sum(p.square().sum() for p in params)).backward()
        if spoil:
            params[0].grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()

    step(spoil=False)
    first = wk.forces(optimizer)
    assert first.steps.tolist() == [1, 1, 1]
    step(spoil=True)
    skipped = wk.forces(optimizer, since=first)
    assert skipped.steps.tolist() == [0, 0, 0]
    assert skipped.step.tolist() == first.step.tolist() == [1, 1, 1]
    assert (terms(skipped) == 0).all()
    assert torch.allclose(skipped.norm_sq, norms_sq(params), rtol=1e-12)
    assert torch.equal(terms(wk.forces(optimizer)), terms(first))
    step(spoil=False)
    after = wk.forces(optimizer, since=skipped)
    assert after.step.tolist() == [2, 2, 2]
    assert_is_the_definition(after, optimizer, torch.float32)


def test_since_covers_only_tensors_that_moved():
    params = parameters()[2:]
    optimizer, _ = stepped(AdamW(params, lr=LR))
    before = wk.forces(optimizer)
    params[1].grad = None
    optimizer.step()
    budget = wk.forces(optimizer, since=before)
    assert budget.steps.tolist() == [1, 0, 1]
    assert budget.step.tolist() == [4, 3, 4]
    assert (terms(budget)[:, 1] == 0).all()
    assert (terms(budget)[1, [0, 2]] != 0).all()


def test_parameters_without_a_gradient_or_a_step():
    params = parameters()[2:]
    params[1].requires_grad_(False)
    optimizer = AdamW(params, lr=LR, weight_decay=DECAY)
    fresh = wk.forces(optimizer)
    assert fresh.steps.tolist() == fresh.step.tolist() == [0, 0, 0]
    assert (terms(fresh) == 0).all()
    assert torch.allclose(fresh.norm_sq, norms_sq(params), rtol=1e-12)
    assert fresh.shares().alignment.isnan().all()
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert wk.forces(optimizer).steps.tolist() == [1, 0, 0]
    assert wk.forces(optimizer).numel.tolist() == [7, 45, 120]


@pytest.mark.parametrize("form", ["for loop", "foreach", "fused", "amsgrad"])
def test_forces_changes_nothing(form):
    optimizer, _ = stepped(AdamW(parameters(), lr=LR, **FORMS[form]))
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.randn(3)))  # without state

    def state():
        return [*everything_about(optimizer), torch.get_rng_state()]

    before, groups = state(), [dict(group) for group in optimizer.param_groups]
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for backend in FAST:
        budget = wk.forces(optimizer, histogram=True, backend=backend)
        budget.to_pandas()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert len(optimizer.state) == len(optimizer.param_groups[0]["params"]) - 1
    assert groups == [dict(group) for group in optimizer.param_groups]
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert random.getstate() == python_state
    assert not budget.alignment.requires_grad


def test_a_nan_shows_in_its_own_row_only():
    optimizer, _ = stepped(AdamW(parameters()[2:], lr=LR))
    with torch.no_grad():
        optimizer.param_groups[0]["params"][1][0, 0] = torch.nan
    budget = wk.forces(optimizer)
    assert budget.alignment.isnan().tolist() == [False, True, False]
    assert budget.weights.non_finite_count.tolist() == [0, 1, 0]


# Names


def names_of(optimizer, model=None):
    return wk.forces(optimizer, model).names


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the compiler's own
def test_names():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
    names = ("0.weight", "0.bias", "1.weight")
    assert names_of(AdamW(model.named_parameters())) == names
    plain = AdamW([{"params": list(model[0].parameters())}, {"params": list(model[1].parameters())}])
    assert names_of(plain) == ("0.0", "0.1", "1.0")
    wrapped = [
        model,
        torch.nn.DataParallel(model),
        torch.compile(model),
        torch.compile(torch.nn.DataParallel(model)),
        torch.nn.DataParallel(torch.compile(model)),
    ]
    for wrapper in wrapped:
        assert names_of(plain, wrapper) == names
    # The order of the param groups, not of the model.
    assert names_of(AdamW(reversed(list(model.parameters()))), model) == names[::-1]


def test_a_tied_weight_is_one_row():
    model = Language(tied=True)
    names = names_of(AdamW(model.parameters()), model)
    assert names.count("gpt_neox.embed_in.weight") == 1
    assert "embed_out.weight" not in names


def test_a_parameter_listed_twice_is_one_row():
    weight = torch.nn.Parameter(torch.randn(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = AdamW([weight, weight])
    assert names_of(optimizer) == ("0.0",)


# Errors


class Subclass(torch.Tensor):
    """A tensor that is not plain."""


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state


class OwnStep(AdamW):
    """Steps in its own way."""

    def step(self, closure=None):
        return super().step(closure)


WRONG_TENSORS = {
    "has layout torch.sparse_coo": lambda: torch.eye(3).to_sparse(),
    "has dtype torch.complex64": lambda: torch.zeros(3, dtype=torch.complex64),
    "has dtype torch.qint8": lambda: torch._empty_affine_quantized(
        [3], scale=1.0, zero_point=0, dtype=torch.qint8
    ),
    "has dtype torch.int64": lambda: torch.zeros(3, dtype=torch.int64),
    "is a test_forces.Subclass": lambda: torch.zeros(3).as_subclass(Subclass),
    "is on the meta device": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize("message", WRONG_TENSORS)
def test_parameters_that_are_no_plain_tensors(message):
    optimizer = AdamW([torch.nn.Parameter(torch.randn(3))])
    optimizer.param_groups[0]["params"][0] = WRONG_TENSORS[message]()
    with pytest.raises(TypeError, match=f"'0.0' {message}"):
        wk.forces(optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.SGD, "got torch.optim.sgd.SGD; use torch.optim.AdamW or Adam"),
        (torch.optim.NAdam, "NAdam"),
        (OwnStep, "OwnStep"),
        (lambda params: Wrapper(AdamW(params)), r"Wrapper; pass the optimizer it wraps, `\.optimizer`"),
    ],
)
def test_optimizers_whose_update_is_not_known(make, message):
    with pytest.raises(TypeError, match=message):
        wk.forces(make(parameters()))


def test_arguments_that_do_not_fit():
    optimizer, _ = stepped(AdamW(parameters()))
    with pytest.raises(ValueError, match=r"one per param group \(1\), got 2"):
        wk.forces(optimizer, lr=[1e-3, 1e-3])
    with pytest.raises(ValueError, match=r"parameter at 0\.0 .* is not among"):
        wk.forces(optimizer, torch.nn.Linear(2, 2))
    other = wk.forces(AdamW([("elsewhere", torch.nn.Parameter(torch.randn(3)))]))
    with pytest.raises(ValueError, match="since= must be an earlier budget of the same optimizer"):
        wk.forces(optimizer, since=other)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'abacus'"):
        wk.forces(optimizer, backend="abacus")
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="no parameters to measure"):
        wk.forces(optimizer)


def test_moments_that_do_not_fit_the_weight():
    optimizer, _ = stepped(AdamW([torch.nn.Parameter(torch.randn(4))]))
    state = next(iter(optimizer.state.values()))
    state["exp_avg"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"exp_avg of '0\.0' must have the weight's shape \(4,\)"):
        wk.forces(optimizer)


# Beside compiled code


def train(measure, compiled):
    """Losses, weights and budgets of a few steps of a regression."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    optimizer = AdamW(model.parameters(), lr=LR)
    x, y = torch.randn(32, 8), torch.randn(32, 4)
    forward = torch.compile(model, backend="aot_eager") if compiled == "model" else model

    def step():
        optimizer.zero_grad()
        loss = (forward(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach(), wk.forces(optimizer) if measure == "inside" else None

    if compiled == "step":
        step = torch.compile(step, backend="aot_eager")
    losses, budgets = [], []
    for _ in range(4):
        loss, budget = step()
        losses.append(loss)
        budgets.append(wk.forces(optimizer) if measure == "after" else budget)
    torch._dynamo.reset()
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()], budgets


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(
    ("measure", "compiled"), [("after", "model"), ("inside", "model"), ("after", "step"), ("inside", "step")]
)
def test_compiled_training_is_not_disturbed(measure, compiled):
    losses, weights, _ = train(None, compiled)
    same_losses, same_weights, budgets = train(measure, compiled)
    assert torch.equal(losses, same_losses)
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))
    assert [budget.step.unique().item() for budget in budgets] == [1, 2, 3, 4]
    assert all(budget.predicted_change.isfinite().all() for budget in budgets)


def test_no_warnings():
    optimizer, _ = stepped(AdamW(parameters(), lr=LR))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wk.forces(optimizer)
    assert not caught


def test_roles_of_the_users_own():
    parameters = [
        ("a.adapter.weight", torch.nn.Parameter(torch.randn(3))),
        ("a.mlp.up_proj.weight", torch.nn.Parameter(torch.randn(4))),
    ]
    optimizer = AdamW(parameters)
    set_gradients([p for _, p in parameters])
    optimizer.step()
    budget = wk.forces(optimizer, roles={"*.adapter.*": "attention_output"})
    assert budget.roles == ("attention_output", "ffn")
    assert budget.total(role="transmission").numel.item() == 7
    assert budget.total(role="attention_output").alignment.item() == budget.alignment[0].item()
    assert "attention_output" in str(budget)
    assert wk.forces(optimizer).roles == ("other", "ffn")


def test_selected_rows_keep_everything_else():
    parameters = [(name, torch.nn.Parameter(torch.randn(3))) for name in "abc"]
    budget = wk.forces(AdamW(parameters), histogram=True).select([2, 0])
    assert budget.names == budget.weights.names == ("c", "a")
    assert budget.weights.histogram.shape[0] == 2
    expected = torch.stack([parameters[row][1].detach().double().square().sum() for row in (2, 0)])
    assert torch.allclose(budget.norm_sq, expected, rtol=1e-12)


def test_a_default_device_changes_nothing():
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = AdamW([("w", weight)], weight_decay=0.1)
    set_gradients([weight])
    optimizer.step()
    expected = wk.forces(optimizer)
    with torch.device("meta"):
        budget = wk.forces(optimizer)
    assert torch.equal(budget.alignment, expected.alignment)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_negative_view_has_the_sign_that_torch_gives_it(backend):
    weight = torch.nn.Parameter(torch._neg_view(torch.randn(5)))
    plain = torch.nn.Parameter(weight.detach().clone())
    optimizer = AdamW([("view", weight), ("plain", plain)], lr=0.0)
    for parameter in (weight, plain):
        parameter.grad = torch.arange(5.0)
    optimizer.step()
    budget = wk.forces(optimizer, lr=0.1, backend=backend)
    assert budget.alignment[0].item() == pytest.approx(budget.alignment[1].item(), rel=1e-6)


def test_a_rollback_is_a_step_too():
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = AdamW([("w", weight)])
    states = []
    for _ in range(3):
        set_gradients([weight])
        optimizer.step()
        states.append(copy.deepcopy(optimizer.state_dict()))
    late = wk.forces(optimizer)
    optimizer.load_state_dict(states[0])
    set_gradients([weight])
    optimizer.step()
    assert wk.forces(optimizer, since=late).steps.tolist() == [1]
    with pytest.raises(ValueError, match="since= must be an earlier budget"):
        wk.forces(optimizer, since=wk.ForceBudget.from_sums(*torch.ones(3, 1), lr=0.1, names=("w",)))


def test_a_tensor_that_did_not_move_has_no_force_whatever_it_holds():
    weight = torch.nn.Parameter(torch.tensor([1.0, torch.inf]))
    budget = wk.forces(AdamW([weight], lr=1.0, weight_decay=1.0))
    assert budget.predicted_change.item() == 0
    assert budget.norm_sq.item() == torch.inf


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf, "0.1", ["0.1"]])
def test_rates_that_are_none(lr):
    optimizer = AdamW([torch.nn.Parameter(torch.randn(2))])
    with pytest.raises(ValueError, match="lr must be a finite rate"):
        wk.forces(optimizer, lr=lr)
