"""What a meter records, against `wk.forces` and the ledger called by hand."""

import copy
import gc
import weakref

import pytest
import torch
from loops import OPTIMIZERS, Kept, Net, assert_same_forces, backward, train, two_groups
from torch import nn

import weibull_kernels as wk


@pytest.fixture
def kept():
    return Kept()


@pytest.mark.parametrize("kind", ["loop", "foreach", "fused", "amsgrad", "adam"])
def test_records_are_what_forces_gives_by_hand(kind, kept):
    """Fault 9: the rate read is that of the step, although a scheduler steps right after."""
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
    by_hand, rates = {}, {}

    def measure(step):
        by_hand[step] = wk.forces(optimizer)
        rates[step] = [group["lr"] for group in optimizer.param_groups for _ in group["params"]]

    with wk.attach(optimizer, every=3, sinks=[kept]):
        train(model, optimizer, range(1, 11), measure, scheduler)
    assert kept.steps == [3, 6, 9]
    for step, budget, scalars in kept.records:
        assert_same_forces(budget, by_hand[step])
        assert scalars["lr"].tolist() == rates[step]
        assert scalars["weight_decay"].tolist() == [0.1] * 3 + [0.0] * 3
        torch.testing.assert_close(budget.weights.norm_sq, by_hand[step].weights.norm_sq, rtol=0, atol=0)


def test_a_scheduler_that_steps_first_would_have_given_another_rate(kept):
    """That the test above can fail: forces read after the scheduler differ."""
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with wk.attach(optimizer, sinks=[kept]):
        train(model, optimizer, range(1, 2), scheduler=scheduler)
    late = wk.forces(optimizer)
    assert late.injection[0] == pytest.approx(kept.budgets[0].injection[0].item() / 4)


def test_a_ledger_is_drained_and_its_rest_recorded(kept):
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    twin_model = copy.deepcopy(model)
    twin = OPTIMIZERS["wk"](twin_model)
    with wk.attach(optimizer, every=4, sinks=[kept]) as meter:
        train(model, optimizer, range(1, 11))
    assert kept.steps == [4, 8, 10]
    assert [budget.steps.tolist() for budget in kept.budgets] == [[4] * 6, [4] * 6, [2] * 6]
    drained = []
    train(
        twin_model,
        twin,
        range(1, 11),
        lambda step: step in (4, 8, 10) and drained.append(twin.ledger.drain()),
    )
    for found, expected in zip(kept.budgets, drained, strict=True):
        assert_same_forces(found, expected)
        assert torch.equal(found.rounding, expected.rounding)
    assert meter.latest is kept.budgets[-1]
    assert meter.state_dict() == {"steps": [10]}  # also once it is detached


def test_names_come_from_the_model_pairs_or_the_groups(kept):
    for names in (
        lambda model: model,
        lambda model: model.named_parameters(),
        lambda model: dict(model.named_parameters()),
    ):
        model, kept = Net(), Kept()
        optimizer = torch.optim.AdamW(model.parameters())
        with wk.attach(optimizer, names=names(model), sinks=[kept]):
            train(model, optimizer, range(1, 2))
        assert kept.budgets[0].names == tuple(name for name, _ in model.named_parameters())
        assert kept.budgets[0].weights.names == kept.budgets[0].names
    with pytest.warns(UserWarning, match=r"by their place, such as '0.0', .* give names=model"):
        meter = wk.attach(optimizer, sinks=[kept])
    with meter:
        train(model, optimizer, range(2, 3))
    assert kept.budgets[-1].names == tuple(f"0.{i}" for i in range(6))


def test_only_the_names_asked_for_are_recorded(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    with wk.attach(optimizer, only=["mlp.*", "lm_head*"], sinks=[kept]):
        train(model, optimizer, range(1, 2))
    assert kept.budgets[0].names == ("mlp.weight", "lm_head.weight", "mlp.bias")
    expected = wk.forces(optimizer)
    rows = [expected.names.index(name) for name in kept.budgets[0].names]
    assert_same_forces(kept.budgets[0], expected.select(rows))
    assert [len(column) for column in kept.records[0][2].values()] == [3, 3]


def test_roles_can_be_given(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    with wk.attach(optimizer, roles={"mlp.*": "adapter"}, sinks=[kept]):
        train(model, optimizer, range(1, 2))
    assert kept.budgets[0].roles == ("embedding", "adapter", "head", "norm", "norm", "adapter")
    with pytest.warns(UserWarning, match=r"the pattern '\*linear\*' of roles= matches none of the 6 names"):
        wk.attach(optimizer, roles={"*linear*": "ffn"})


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_weibull_statistics_are_those_of_the_roles(kind, kept):
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    with wk.attach(optimizer, statistics="weibull", sinks=[kept]):
        train(model, optimizer, range(1, 2))
    _, budget, scalars = kept.records[0]
    statistics = wk.weight_statistics((name, p) for g in two_groups(model) for name, p in g["params"])
    for role in ("embedding", "ffn", "head"):
        fit = wk.fit_weibull(statistics.total(role=role))
        rows = [row for row, its in enumerate(budget.roles) if its == role]
        assert scalars["k"][rows].tolist() == [fit.k[0]] * len(rows)
        assert scalars["scale"][rows].tolist() == [fit.scale[0]] * len(rows)
    norm = [row for row, role in enumerate(budget.roles) if role == "norm"]
    assert scalars["k"][norm].isnan().all()  # 16 numbers are too few to fit


def test_several_optimizers_make_one_record(kept):
    model = Net()
    matrices = torch.optim.SGD([model.mlp.weight, model.lm_head.weight], lr=0.1)
    rest = torch.optim.AdamW([model.embed_in.weight, model.mlp.bias, *model.norm.parameters()], lr=1e-2)
    with wk.attach([matrices, rest], every=2, names=model, sinks=[kept]):
        for step in range(1, 5):
            backward(model, step)
            matrices.step()
            rest.step()
            model.zero_grad()
    assert kept.steps == [2, 4]
    assert kept.budgets[0].names == (
        "mlp.weight",
        "lm_head.weight",
        "embed_in.weight",
        "mlp.bias",
        "norm.weight",
        "norm.bias",
    )
    assert_same_forces(kept.budgets[1].select([2, 3, 4, 5]), wk.forces(rest, model))
    assert kept.records[1][2]["lr"].tolist() == [0.1] * 2 + [1e-2] * 4


def test_optimizers_that_step_at_different_paces_are_all_recorded(kept):
    """Five steps of a critic for each of a generator: their rows come when they are due."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    critic, generator = (torch.optim.AdamW(module.named_parameters()) for module in (first, second))
    with wk.attach(
        [critic, generator],
        every=10,
        names={"critic": first.weight, "generator": second.weight} | {"c": first.bias, "g": second.bias},
        sinks=[kept],
    ):
        for step in range(1, 101):
            first(torch.ones(1, 3)).sum().backward()
            critic.step()
            if step % 5 == 0:
                second(torch.ones(1, 3)).sum().backward()
                generator.step()
    steps = {name: [] for name in ("critic", "generator")}
    for budget in kept.budgets:
        for row, name in enumerate(budget.names):
            if name in steps:
                steps[name].append(budget.step[row].item())
    assert steps == {"critic": list(range(10, 101, 10)), "generator": [10, 20]}


def test_unnamed_parameters_of_several_optimizers_are_told_apart(kept):
    modules = [nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)]
    optimizers = [torch.optim.AdamW(module.parameters()) for module in modules]
    with pytest.warns(UserWarning, match="by their place"):
        meter = wk.attach(optimizers, sinks=[kept])
    with meter:
        for module, optimizer in zip(modules, optimizers, strict=True):
            module(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert kept.budgets[0].names == ("0.0.0", "1.0.0")


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
@pytest.mark.parametrize("detached", [True, False])
def test_a_meter_lets_go_of_model_optimizer_and_sinks(kind, detached):
    """Nothing waits for the garbage collector, and a record file is completed once nobody holds its sink."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    sink = Kept()
    gone = {"sink": weakref.ref(sink), "optimizer": weakref.ref(optimizer), "model": weakref.ref(model)}
    gc.collect()
    gc.disable()
    try:
        meter = wk.attach(optimizer, names=model, sinks=[sink])
        train(model, optimizer, range(1, 3))
        del sink
        if detached:
            meter.detach()
            assert gone["sink"]() is None
            assert meter.latest is not None
        else:
            del meter
        del optimizer, model
        assert {name for name, ref in gone.items() if ref() is not None} == set()
    finally:
        gc.enable()


def test_a_meter_that_nobody_keeps_lives_with_the_optimizer(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    wk.attach(optimizer, sinks=[kept])
    gc.collect()
    train(model, optimizer, range(1, 3))
    assert kept.steps == [1, 2]


def test_detached_nothing_is_left_on_the_optimizer(kept):
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    before = {name: copy.copy(value) for name, value in vars(optimizer).items() if name.endswith("hooks")}
    meter = wk.attach(optimizer, sinks=[kept])
    meter.detach()
    meter.detach()
    assert {name: value for name, value in vars(optimizer).items() if name.endswith("hooks")} == before
    assert "__deepcopy__" not in vars(optimizer)
    train(model, optimizer, range(1, 3))
    assert kept.records == []
    assert copy.deepcopy(meter) is meter  # it does nothing any more
    with wk.attach(optimizer, sinks=[kept]):  # and it can be attached again
        train(model, optimizer, range(3, 4))
    assert kept.steps == [3]
    assert kept.budgets[0].steps.tolist() == [3] * 6


def test_an_error_in_the_loop_passes_and_what_was_measured_is_kept(kept):
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)

    def fail(step):
        if step == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), wk.attach(optimizer, every=2, sinks=[kept]):
        train(model, optimizer, range(1, 5), fail)
    assert kept.steps == [2, 3]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"every": 0}, ValueError, "every must be a whole number of steps from 1, got 0"),
        ({"every": 2.5}, ValueError, "every"),
        ({"statistics": "all"}, ValueError, "statistics must be one of moments, weibull, got 'all'"),
        ({"only": "*.attention.*"}, ValueError, "no name matches only='\\*.attention.\\*'"),
        ({"names": nn.Linear(2, 2)}, ValueError, "6 parameters of the optimizer are not in names="),
        ({"names": 3}, TypeError, "expected a model"),
        ({"sinks": [3]}, TypeError, "3 cannot take records"),
        ({"backend": "cubic"}, ValueError, "backend"),
    ],
)
def test_bad_arguments_are_named(change, error, says):
    with pytest.raises(error, match=says):
        wk.attach(OPTIMIZERS["loop"](Net()), **change)


def test_what_is_no_optimizer_is_refused_by_name():
    with pytest.raises(TypeError, match=r"expected a torch.optim.Optimizer .* got builtins.int"):
        wk.attach(3)
    with pytest.raises(ValueError, match="empty list"):
        wk.attach([])
    scheduler = torch.optim.lr_scheduler.StepLR(OPTIMIZERS["loop"](Net()), 1)
    with pytest.raises(TypeError, match="got a scheduler, StepLR; pass its optimizer"):
        wk.attach(scheduler)
    optimizer = OPTIMIZERS["loop"](Net())
    with wk.attach(optimizer), pytest.raises(ValueError, match="can have one meter"):
        wk.attach(optimizer)
    with pytest.raises(ValueError, match="can have one meter"):
        wk.attach([optimizer, optimizer])


def test_parameters_that_cannot_be_read_are_refused_at_once():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"'w' has dtype torch.complex64"):
        wk.attach(torch.optim.AdamW([("w", weight)]))


def test_a_wrapped_optimizer_is_looked_through(kept):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = Net()
    inner = OPTIMIZERS["loop"](model)
    with wk.attach(Wrapper(inner), sinks=[kept]):
        train(model, inner, range(1, 2))
    assert kept.steps == [1]
