"""What `wk.AdamW` books: it closes over long runs, survives a stop, and is what `wk.forces` measures."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    BACKENDS,
    everything_about,
    language,
    losses,
    norms_sq,
    same_bits,
    set_gradients,
    terms,
)
from test_closure import groups_of, with_factor

import weibull_kernels as wk
from weibull_kernels.kernels.interface import LEDGER_COLUMNS

ROUNDING = 2.0**-24  # of a float32 entry

# Triton's interpreter works in numpy, which warns of what a GPU does in silence.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("invalid value", "overflow", "divide by zero")
]


def named_groups(model):
    """The groups of `groups_of`, their parameters with names."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [{**group, "params": [(name_of[id(p)], p) for p in group["params"]]} for group in groups_of(model)]


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def scheduled(optimizer, steps):
    """Sets the rates of each step: warm-up and cosine decay."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        rate = min(1, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        yield step


def train(model, optimizer, steps, start=0):
    """Yields after every step."""
    for loss in itertools.islice(losses(model), start, start + steps):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def begun(seed=1, kind=wk.AdamW, dtype=torch.float32, **options):
    model = language(seed, dtype)
    return model, kind(named_groups(model), **options)


def same_ledger(a, b):
    return same_bits(a.state_dict()["rows"], b.state_dict()["rows"])


def through_a_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def long_run(steps=1000, **options):
    """(budget of the whole run, Σ absolute budget of its steps, measured Δ‖w‖², largest √Σw⁴)."""
    model, optimizer = begun(**options)
    parameters = parameters_of(optimizer)
    start, before = norms_sq(parameters), optimizer.ledger.peek()
    absolute, fourth = torch.zeros_like(start), torch.zeros_like(start)
    loss = losses(model)
    for _ in scheduled(optimizer, steps):
        optimizer.zero_grad()
        next(loss).backward()
        optimizer.step()
        now = optimizer.ledger.peek()
        absolute += (terms(now) - terms(before))[:3].abs().sum(0)
        fourth = fourth.maximum(torch.stack([p.detach().double().pow(4).sum().sqrt() for p in parameters]))
        before = now
    return optimizer.ledger.drain(), absolute, norms_sq(parameters) - start, fourth


def allowed_rounding(absolute, steps, fourth):
    """What rounding of single float32 entries, as random as it is, leaves over a run."""
    return 1e-5 * absolute + 40 * ROUNDING * math.sqrt(steps) * fourth


@pytest.mark.parametrize(("amsgrad", "steps"), [(False, 1000), (True, 300)])
def test_a_long_run_closes(amsgrad, steps):
    budget, absolute, change, fourth = long_run(steps, amsgrad=amsgrad)
    assert budget.steps.tolist() == budget.step.tolist() == [steps] * len(budget.names)
    assert ((budget.predicted_change + budget.rounding - change).abs() <= 1e-10 * absolute).all()
    allowed = allowed_rounding(absolute, steps, fourth)
    assert (budget.rounding.abs() <= allowed).all()  # measured: 0.034 of it at worst, over 1000
    for wrong in (budget.decay, budget.alignment, 2 * budget.injection):  # left out, or counted twice
        moved = wrong != 0
        assert ((budget.rounding + wrong).abs() > allowed)[moved].all()
    # Second order and larger than that where decay is strong: in the embeddings and matrices.
    assert ((budget.rounding + budget.coupling).abs() > allowed).any()


def test_float64_closes_to_its_own_rounding():
    budget, absolute, change, _ = long_run(steps=200, dtype=torch.float64)
    assert ((budget.predicted_change + budget.rounding - change).abs() <= 1e-12 * absolute).all()
    assert (budget.rounding.abs() <= 1e-12 * absolute).all()


@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
def test_what_bfloat16_loses_is_booked_as_rounding(state_dtype):
    budget, absolute, change, fourth = long_run(steps=300, dtype=torch.bfloat16, state_dtype=state_dtype)
    assert ((budget.predicted_change + budget.rounding - change).abs() <= 1e-10 * absolute).all()
    assert (budget.rounding.abs() > allowed_rounding(absolute, 300, fourth)).float().mean() > 0.9
    assert (budget.rounding.abs() / absolute).median() > 1e-3  # 1e-6 in float32


def test_the_bound_of_rounding_rejects_wrong_predictions():
    """Each wrong reading of steady steps of a large tensor is further off than rounding may be."""
    lr, decay, steps = 1e-3, 0.1, 60
    weight = torch.nn.Parameter(torch.randn(400, 500))
    optimizer = wk.AdamW([weight], lr=lr, weight_decay=decay)
    wrong = dict.fromkeys(("right", "unrounded", "no coupling", "wrong sign", "published"), 0.0)
    absolute = 0.0
    for _ in range(steps):
        set_gradients([weight])
        optimizer.step()
        budget = optimizer.ledger.drain()
        absolute += budget.absolute
        readings = {
            "right": budget.predicted_change,
            "unrounded": with_factor(budget, lr * decay),
            "no coupling": budget.predicted_change - budget.coupling,
            "wrong sign": budget.predicted_change - 2 * budget.decay,
            "published": budget.as_published().predicted_change,
        }
        change = budget.predicted_change + budget.rounding
        for reading, predicted in readings.items():
            wrong[reading] += change - predicted
    fourth = weight.detach().double().pow(4).sum().sqrt()
    ratios = {k: (v.abs() / allowed_rounding(absolute, steps, fourth)).item() for k, v in wrong.items()}
    assert ratios.pop("right") <= 1
    assert all(ratio > 1.5 for ratio in ratios.values()), ratios


def test_the_ledger_is_what_forces_measures_of_torchs_own_steps():
    theirs, measured = begun(kind=lambda p: torch.optim.AdamW(p, fused=True))
    ours, optimizer = begun()
    whole = absolute = 0
    for loss in itertools.islice(losses(theirs), 300):
        measured.zero_grad()
        loss.backward()
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            q.grad = p.grad.clone()
        measured.step()
        optimizer.step()
        budget = wk.forces(measured)
        whole, absolute = whole + terms(budget), absolute + budget.absolute
    found = optimizer.ledger.peek()
    assert ((terms(found) - whole).abs() <= 1e-6 * absolute).all()
    assert found.names == budget.names
    assert torch.equal(found.step, budget.step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_is_what_forces_measures_of_it(backend):
    weights = [torch.nn.Parameter(torch.randn(n)) for n in (300, 17)]
    optimizer = wk.AdamW(weights, lr=1e-2, weight_decay=0.1, backend=backend)
    for _ in range(3):
        set_gradients(weights)
        optimizer.step()
        booked, measured = optimizer.ledger.drain(), wk.forces(optimizer)
        assert ((terms(booked) - terms(measured)).abs() <= 2e-6 * measured.absolute).all()
        assert torch.allclose(booked.norm_sq, measured.norm_sq, rtol=1e-6)
        assert torch.equal(booked.step, measured.step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_are_those_of_the_weights_now(backend):
    weights = [torch.nn.Parameter(torch.randn(n)) for n in (300, 17)]
    weights.append(torch.nn.Parameter(torch.zeros(5)))
    optimizer = wk.AdamW(weights, lr=1e-2, backend=backend)
    for frozen in (None, 2):  # the last has no gradient in the second step
        set_gradients(weights[:frozen])
        for p in weights[frozen:] if frozen else []:
            p.grad = None
        optimizer.step()
        booked, now = optimizer.ledger.peek().weights, wk.forces(optimizer).weights
        for exact in ("numel", "max_abs", "zero_count", "non_finite_count"):
            assert torch.equal(getattr(booked, exact), getattr(now, exact)), exact
        for summed in ("norm_sq", "log_sum", "log_sq_sum", "rms"):
            found, expected = getattr(booked, summed), getattr(now, summed)
            assert torch.allclose(found, expected, rtol=1e-6, atol=0), summed
        assert torch.allclose(booked.norm_sq, norms_sq(weights), rtol=1e-13)


def test_peek_looks_and_drain_begins_anew():
    model, optimizer = begun()
    drained, looked = [], []
    for step, _ in enumerate(train(model, optimizer, 12)):
        looked.append(optimizer.ledger.peek())
        assert same_bits(terms(optimizer.ledger.peek()), terms(looked[-1]))
        if step in (2, 3, 9, 11):
            drained.append(optimizer.ledger.drain())
            assert same_bits(terms(drained[-1]), terms(looked[-1]))
    assert [budget.steps[0].item() for budget in looked] == [1, 2, 3, 1, 1, 2, 3, 4, 5, 6, 1, 2]
    assert [budget.step[0].item() for budget in drained] == [3, 4, 10, 12]
    for budget, following in itertools.pairwise(drained):
        end = budget.norm_sq + budget.predicted_change + budget.rounding
        assert torch.allclose(following.norm_sq, end, rtol=1e-13)
        assert torch.allclose(following.norm_sq, budget.weights.norm_sq, rtol=1e-14)
    empty = optimizer.ledger.peek()
    assert (terms(empty) == 0).all()
    assert (empty.rounding == 0).all()
    assert empty.steps.tolist() == [0] * len(empty.names)
    assert empty.step.tolist() == [12] * len(empty.names)
    assert torch.allclose(empty.norm_sq, norms_sq(parameters_of(optimizer)), rtol=1e-13)


def test_a_budget_that_was_drained_does_not_change_any_more():
    model, optimizer = begun()
    list(train(model, optimizer, 2))
    budget = optimizer.ledger.drain()
    kept = {name: np.copy(column) for name, column in budget.to_dict().items()}
    list(train(model, optimizer, 2, start=2))
    assert all(np.array_equal(kept[name], column) for name, column in budget.to_dict().items())


def replay(gradients, drains, backend):
    """The budgets of a run that is drained after the steps in `drains` and at its end."""
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(40)), torch.nn.Parameter(torch.randn(3, 7).bfloat16())]
    optimizer = wk.AdamW(weights, lr=1e-2, weight_decay=0.1, backend=backend)
    budgets = []
    for step, grads in enumerate(gradients):
        for p, g in zip(weights, grads, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        if step in drains:
            budgets.append(optimizer.ledger.drain())
    return [*budgets, optimizer.ledger.drain()]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(max_examples=25)
@given(drains=st.sets(st.integers(0, 11)), missing=st.sets(st.integers(0, 11), max_size=6))
def test_division_into_intervals_changes_nothing(backend, drains, missing):
    generator = torch.Generator().manual_seed(4)
    gradients = [
        (
            torch.randn(40, generator=generator),
            None if step in missing else torch.randn(3, 7, generator=generator).bfloat16(),
        )
        for step in range(12)
    ]
    (whole,) = replay(gradients, (), backend)
    parts = replay(gradients, drains, backend)
    sizes = terms(whole).abs().sum(0) + whole.norm_sq
    assert ((sum(map(terms, parts)) - terms(whole)).abs() <= 1e-14 * 12 * sizes).all()
    assert ((sum(part.rounding for part in parts) - whole.rounding).abs() <= 1e-14 * 12 * sizes).all()
    assert torch.equal(sum(part.steps for part in parts), whole.steps)
    assert torch.equal(parts[-1].step, whole.step)
    assert torch.allclose(parts[0].norm_sq, whole.norm_sq, rtol=1e-14)
    for name in ("norm_sq", "log_sum", "log_sq_sum", "max_abs"):
        assert same_bits(getattr(parts[-1].weights, name), getattr(whole.weights, name))


def test_parameters_without_a_gradient_have_rows():
    always, sometimes, never = (torch.nn.Parameter(torch.randn(n)) for n in (5, 6, 7))
    optimizer = wk.AdamW([("always", always), ("never", never), ("sometimes", sometimes)])
    parameters = [always, never, sometimes]
    start = norms_sq(parameters)
    before_any = optimizer.ledger.peek()
    assert before_any.steps.tolist() == before_any.step.tolist() == [0, 0, 0]
    assert torch.allclose(before_any.norm_sq, start, rtol=1e-14)
    for step in range(6):
        set_gradients([always])
        sometimes.grad = torch.randn(6) if step % 3 == 0 else None
        optimizer.step()
    budget = optimizer.ledger.peek()
    assert budget.names == ("always", "never", "sometimes")
    assert budget.steps.tolist() == budget.step.tolist() == [6, 0, 2]
    assert torch.allclose(budget.norm_sq, start, rtol=1e-14)
    assert (terms(budget)[:, 1] == 0).all()
    assert budget.rounding[1] == 0
    change = norms_sq(parameters) - start
    assert torch.allclose(budget.predicted_change + budget.rounding, change, rtol=1e-12, atol=1e-14)
    assert torch.allclose(budget.weights.norm_sq, norms_sq(parameters), rtol=1e-13)
    assert budget.weights.max_abs[1] == never.abs().max()


def test_a_group_that_is_added_late_has_rows_at_the_end():
    first, late = (torch.nn.Parameter(torch.randn(n)) for n in (5, 6))
    optimizer = wk.AdamW([("first", first)])
    alone = wk.AdamW([torch.nn.Parameter(first.detach().clone())])
    for step in range(5):
        if step == 3:
            optimizer.add_param_group({"params": [("late", late)], "lr": 0.1, "weight_decay": 0.5})
        set_gradients([first, late])
        alone.param_groups[0]["params"][0].grad = first.grad.clone()
        optimizer.step()
        alone.step()
    budget = optimizer.ledger.peek()
    assert budget.names == ("first", "late")
    assert budget.steps.tolist() == budget.step.tolist() == [5, 2]
    assert same_bits(terms(budget)[:, 0], terms(alone.ledger.peek())[:, 0])
    assert budget.decay[1] < -0.09 * budget.norm_sq[1]  # −2·0.05‖w‖², twice


def test_a_drained_budget_has_names_roles_and_tables():
    model, optimizer = begun()
    list(train(model, optimizer, 3))
    budget = optimizer.ledger.drain()
    name_of = {id(p): name for name, p in model.named_parameters()}
    assert budget.names == tuple(name_of[id(p)] for p in parameters_of(optimizer))
    assert budget.roles == tuple(wk.role_of(name) for name in budget.names)
    assert budget.numel.tolist() == [p.numel() for p in parameters_of(optimizer)]
    rows = [i for i, role in enumerate(budget.roles) if role == "qkv"]
    total = budget.total(role="qkv")
    assert len(rows) == 4 - 2  # their biases are biases
    for column in ("alignment", "injection", "decay", "coupling", "rounding", "norm_sq"):
        assert torch.allclose(getattr(total, column), getattr(budget, column)[rows].sum(), rtol=1e-14)
    assert total.steps.item() == 3
    shares = budget.shares()
    absolute = budget.alignment.abs() + budget.injection + budget.decay.abs()
    assert torch.equal(shares.decay, budget.decay / absolute)
    printed = str(budget)
    assert all(role in printed for role in (*set(budget.roles), "transmission", "all"))
    columns, table = budget.to_dict(), budget.to_pandas()
    assert columns["rounding"].tolist() == budget.rounding.tolist()
    assert list(table["name"]) == list(budget.names)
    assert table["rounding"].tolist() == budget.rounding.tolist()
    assert table["steps"].tolist() == [3] * len(table)


@pytest.mark.parametrize("how", ["checkpoint", "pickle", "deepcopy", "pickle of torch"])
def test_a_run_that_is_stopped_within_an_interval_goes_on_with_the_same_ledger(how):
    model, optimizer = begun()
    whole = list(train(model, optimizer, 11))
    stopped, its_optimizer = begun()
    list(train(stopped, its_optimizer, 4))
    its_optimizer.ledger.peek()
    if how == "checkpoint":
        saved = through_a_file({"model": stopped.state_dict(), "optimizer": its_optimizer.state_dict()})
        resumed, its_optimizer = begun(seed=2)
        list(train(resumed, its_optimizer, 2))  # to be forgotten
        resumed.load_state_dict(saved["model"])
        its_optimizer.load_state_dict(saved["optimizer"])
    elif how == "pickle":
        resumed, its_optimizer = pickle.loads(pickle.dumps((stopped, its_optimizer)))
    elif how == "deepcopy":
        resumed, its_optimizer = copy.deepcopy((stopped, its_optimizer))
    else:
        file = io.BytesIO()
        torch.save((stopped, its_optimizer), file)
        file.seek(0)
        resumed, its_optimizer = torch.load(file, weights_only=False)
    list(train(resumed, its_optimizer, 7, start=4))
    assert len(whole) == 11
    assert all(map(same_bits, model.parameters(), resumed.parameters()))
    assert same_ledger(optimizer.ledger, its_optimizer.ledger)
    assert its_optimizer.ledger.drain().names == optimizer.ledger.drain().names


def test_a_copy_keeps_its_own_ledger():
    model, optimizer = begun()
    list(train(model, optimizer, 2))
    saved, twin = optimizer.state_dict(), copy.deepcopy((model, optimizer))
    rows = saved["ledger"]["rows"].clone()
    list(train(*twin, 3, start=2))
    assert same_bits(optimizer.ledger.state_dict()["rows"], rows)
    list(train(model, optimizer, 3, start=2))
    assert same_bits(saved["ledger"]["rows"], rows)  # a copy, as of then
    assert same_ledger(optimizer.ledger, twin[1].ledger)


def test_a_checkpoint_without_a_ledger_begins_a_new_interval():
    model, theirs = begun(kind=lambda p: torch.optim.AdamW(p, fused=True))
    list(train(model, theirs, 3))
    ours, optimizer = begun(seed=2)
    list(train(ours, optimizer, 2))
    ours.load_state_dict(model.state_dict())
    optimizer.load_state_dict(theirs.state_dict())
    empty, start = optimizer.ledger.peek(), norms_sq(parameters_of(optimizer))
    assert (terms(empty) == 0).all()
    assert torch.allclose(empty.norm_sq, start, rtol=1e-14)
    list(train(ours, optimizer, 4, start=3))
    budget = optimizer.ledger.drain()
    assert budget.steps.tolist() == [4] * len(budget.names)
    assert budget.step.tolist() == [7] * len(budget.names)
    assert torch.allclose(budget.norm_sq, start, rtol=1e-14)


REFUSED = {
    "fewer rows": lambda ledger: {**ledger, "rows": ledger["rows"][:-1]},
    "another column": lambda ledger: {**ledger, "columns": [*LEDGER_COLUMNS[:-1], "age"]},
    "other order": lambda ledger: {**ledger, "columns": list(LEDGER_COLUMNS[::-1])},
    "one column less": lambda ledger: {
        "columns": list(LEDGER_COLUMNS[:-1]),
        "rows": ledger["rows"][:, :-1],
    },
    "unknown format": lambda ledger: {"version": 2, "table": ledger["rows"]},
}


def test_a_checkpoint_in_memory_stays_as_it_was():
    model, optimizer = begun()
    list(train(model, optimizer, 3))
    saved = optimizer.state_dict()
    rows = saved["ledger"]["rows"].clone()
    optimizer.load_state_dict(saved)
    list(train(model, optimizer, 3, start=3))
    assert same_bits(saved["ledger"]["rows"], rows)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_ledger_that_does_not_fit_is_refused_and_nothing_is_lost(kind):
    model, optimizer = begun()
    list(train(model, optimizer, 3))
    saved = optimizer.state_dict()
    saved["ledger"] = REFUSED[kind](saved["ledger"])
    ours, optimizer = begun(seed=2)
    list(train(ours, optimizer, 2))
    twin, its_optimizer = copy.deepcopy((ours, optimizer))
    before, rates = everything_about(optimizer), [group["lr"] for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="the ledger of the checkpoint"):
        optimizer.load_state_dict(saved)
    assert all(map(same_bits, everything_about(optimizer), before))
    assert [group["lr"] for group in optimizer.param_groups] == rates
    list(train(ours, optimizer, 2, start=2))
    list(train(twin, its_optimizer, 2, start=2))
    assert same_ledger(optimizer.ledger, its_optimizer.ledger)


def test_without_a_ledger_there_is_none_and_training_is_the_same():
    model, optimizer = begun()
    plain, its_optimizer = begun(ledger=False)
    list(train(model, optimizer, 5))
    list(train(plain, its_optimizer, 5))
    assert all(map(same_bits, model.parameters(), plain.parameters()))
    with pytest.raises(AttributeError, match="ledger=True"):
        its_optimizer.ledger.peek()
    assert "ledger" not in its_optimizer.state_dict()
    with pytest.warns(UserWarning, match="ledger=True"):
        its_optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_step_that_a_scaler_skips_is_not_booked(backend):
    weights = [torch.nn.Parameter(torch.randn(n)) for n in (5, 6)]
    twins = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    optimizer, plain = wk.AdamW(weights, backend=backend), wk.AdamW(twins, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_gradients(twins)
        for w, twin in zip(weights, twins, strict=True):
            w.grad = scaler.scale(twin.grad)
        if step == 2:
            weights[1].grad[3] = math.inf
        before = [*everything_about(optimizer), optimizer.ledger.state_dict()["rows"]]
        scaler.step(optimizer)
        if step == 2:
            assert all(
                map(same_bits, before, [*everything_about(optimizer), optimizer.ledger.state_dict()["rows"]])
            )
        else:
            plain.step()
            assert all(map(same_bits, weights, twins))
        scaler.update()
    assert optimizer.ledger.peek().steps.tolist() == optimizer.ledger.peek().step.tolist() == [3, 3]
    assert same_ledger(optimizer.ledger, plain.ledger)


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf, 1e25])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_bad_gradient_without_a_scaler_spoils_what_torch_spoils_and_shows(backend, entry):
    """1e25 is finite but not its square: v is infinite from then on, and the entry stands still."""
    ours, theirs = ([torch.nn.Parameter(torch.ones(n)) for n in (40, 30)] for _ in range(2))
    optimizer = wk.AdamW(ours, lr=1e-2, backend=backend)
    fused = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for step in range(3):
        set_gradients(theirs)
        if step == 0:
            theirs[0].grad[[7, 37]] = entry
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad.clone()
        optimizer.step()
        fused.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.isnan(), q.isnan())
    budget = optimizer.ledger.drain()
    bad = 0 if math.isfinite(entry) else 2
    assert budget.weights.non_finite_count.tolist() == [bad, 0]
    assert terms(budget).isnan().any(0).tolist() == [bad > 0, False]
    assert budget.alignment.isnan().tolist() == budget.rounding.isnan().tolist() == [bad > 0, False]
    assert budget.weights.max_abs.isfinite().all()
    # What follows is as bad, and the other tensor as good.
    set_gradients(ours)
    optimizer.step()
    assert optimizer.ledger.drain().alignment.isnan().tolist() == [bad > 0, False]


def test_no_parameters_with_gradients_at_all():
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = wk.AdamW([weight])
    optimizer.step()
    budget = optimizer.ledger.drain()
    assert budget.steps.tolist() == [0]
    assert torch.allclose(budget.norm_sq, norms_sq([weight]))


def test_a_ledger_saved_in_another_order_of_memory_goes_on():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = wk.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["ledger"]["rows"] = saved["ledger"]["rows"].t().contiguous().t()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.ledger.drain().steps.tolist() == [2]


def test_a_hook_on_the_state_finds_the_ledger_in_it():
    optimizer = wk.AdamW([torch.nn.Parameter(torch.ones(3))])
    found = []
    optimizer.register_state_dict_post_hook(lambda _, state: found.append("ledger" in state))
    optimizer.state_dict()
    assert found == [True]
