"""A meter in the loops that people write: it changes nothing, and books what happened and nothing else."""

import copy
import io

import pytest
import torch
from loops import OPTIMIZERS, Kept, Net, assert_same_forces, backward, batch, states, train
from torch import nn
from torch.utils.checkpoint import checkpoint

import weibull_kernels as wk


@pytest.fixture
def kept():
    return Kept()


@pytest.mark.parametrize("kind", ["loop", "foreach", "fused", "wk", "sgd"])
def test_training_is_the_same_to_the_bit(kind):
    """1,000 steps with and without: weights, moments, random state; dropout draws from it."""
    ends = []
    for metered in (False, True):
        torch.manual_seed(1)
        model = Net()
        optimizer = OPTIMIZERS[kind](model)
        if metered:
            wk.attach(optimizer, every=1 if kind != "sgd" else 7, statistics="moments", sinks=[Kept()])

        def step(number, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            torch.nn.functional.dropout(model(batch(number)), 0.2).square().mean().backward()
            optimizer.step()

        for number in range(1000):
            step(number)
        ends.append(states(model, optimizer))
    assert all(torch.equal(with_meter, without) for without, with_meter in zip(*ends, strict=True))


def test_weibull_statistics_change_nothing_either():
    ends = []
    for sinks in (None, [Kept()]):
        torch.manual_seed(1)
        model = Net()
        optimizer = OPTIMIZERS["fused"](model)
        if sinks is not None:
            wk.attach(optimizer, every=2, statistics="weibull", sinks=sinks)
        train(model, optimizer, range(20))
        ends.append(states(model, optimizer))
    assert all(torch.equal(with_meter, without) for without, with_meter in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", ["loop", "fused", "wk"])
def test_a_step_that_a_scaler_skips_is_not_booked(kind, kept):
    """Fault 4: fused steps are skipped inside, and hooks run all the same."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    taken = []
    wk.attach(optimizer, sinks=[kept])
    for step in range(1, 6):
        optimizer.zero_grad()
        scaler.scale(model(batch(step)).square().mean()).backward()
        if step == 3:
            model.mlp.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        taken.append(wk.forces(optimizer))
    # The loop's own step is skipped, the fused ones are called and do nothing: there the number passes by.
    assert kept.steps == ([1, 2, 3, 4] if kind == "loop" else [1, 2, 4, 5])
    assert torch.stack([budget.step for budget in kept.budgets]).T.tolist() == [[1, 2, 3, 4]] * 6
    assert all((budget.steps == 1).all() for budget in kept.budgets)
    for found, expected in zip(kept.budgets, [taken[i] for i in (0, 1, 3, 4)], strict=True):
        assert_same_forces(found, expected, *((1e-6, 1e-9) if kind == "wk" else ()))


def test_gradient_accumulation_counts_the_optimizers_steps(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    wk.attach(optimizer, every=2, sinks=[kept])
    for micro in range(1, 17):
        backward(model, micro)
        if micro % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert kept.steps == [2, 4]
    assert_same_forces(kept.budgets[1], wk.forces(optimizer))


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_frozen_and_unused_tensors_have_no_force(kind, kept):
    """One is frozen, one gets a gradient in the first step alone."""
    model = Net()
    model.norm.weight.requires_grad_(False)
    optimizer = OPTIMIZERS[kind](model)
    wk.attach(optimizer, sinks=[kept])
    for step in range(1, 4):
        optimizer.zero_grad()
        backward(model, step)
        if step > 1:
            model.mlp.weight.grad = None
        optimizer.step()
    for step, budget in enumerate(kept.budgets, start=1):
        still = {"norm.weight"} | ({"mlp.weight"} if step > 1 else set())
        for row, name in enumerate(budget.names):
            assert budget.steps[row] == (name not in still), (step, name)
            assert (budget.absolute[row] > 0) == (name not in still), (step, name)


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_a_group_that_is_added_later_is_measured_from_then_on(kind, kept):
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 1)})
    optimizer = OPTIMIZERS[kind](model["first"])
    wk.attach(optimizer, names=model, sinks=[kept])

    def step():
        model["second"](model["first"](torch.ones(1, 3))).sum().backward()
        optimizer.step()

    step()
    optimizer.add_param_group({"params": list(model["second"].named_parameters()), "lr": 1e-3})
    step()
    assert [budget.names for budget in kept.budgets] == [
        ("first.weight", "first.bias"),
        ("first.weight", "first.bias", "second.weight", "second.bias"),
    ]
    assert kept.budgets[1].step.tolist()[2:] == ([1, 1] if kind != "sgd" else [2, 2])
    assert kept.records[1][2]["lr"].tolist()[2:] == [1e-3, 1e-3]


def test_tied_weights_are_one_tensor(kept):
    model = Net()
    model.lm_head = nn.Linear(8, 11, bias=False)
    model.lm_head.weight = model.embed_in.weight
    optimizer = OPTIMIZERS["loop"](model)
    wk.attach(optimizer, names=model, sinks=[kept])
    train(model, optimizer, range(1, 2))
    assert kept.budgets[0].names == ("embed_in.weight", "mlp.weight", "norm.weight", "norm.bias", "mlp.bias")
    assert_same_forces(kept.budgets[0], wk.forces(optimizer, model))


def test_activation_checkpointing(kept):
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    with wk.attach(optimizer, every=2, sinks=[kept]):
        for step in range(1, 5):
            optimizer.zero_grad()
            checkpoint(model, batch(step), use_reentrant=False).square().mean().backward()
            optimizer.step()
    torch.manual_seed(0)
    plain, expected = Net(), Kept()
    alike = OPTIMIZERS["wk"](plain)
    with wk.attach(alike, every=2, sinks=[expected]):
        train(plain, alike, range(1, 5))
    for found, wanted in zip(kept.budgets, expected.budgets, strict=True):
        assert_same_forces(found, wanted)


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_optimizers_that_step_in_the_backward_pass(kind, kept):
    """One for each parameter: their rows make one record, with the forces of one optimizer of all."""
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    make = {"loop": torch.optim.AdamW, "wk": wk.AdamW, "sgd": torch.optim.SGD}[kind]
    optimizers = {p: make([(name, p)], lr=1e-2) for name, p in model.named_parameters()}

    def step_now(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_now)
    with wk.attach(list(optimizers.values()), every=2, sinks=[kept]):
        for step in range(1, 5):
            backward(model, step)

    together, expected = make(list(twin.named_parameters()), lr=1e-2), Kept()
    with wk.attach(together, every=2, sinks=[expected]):
        train(twin, together, range(1, 5))
    assert kept.steps == expected.steps == [2, 4]
    for found, wanted in zip(kept.budgets, expected.budgets, strict=True):
        assert_same_forces(found, wanted)


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_a_copied_optimizer_is_measured_too(kind, kept):
    """Fault 8: `deepcopy` drops the hooks."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    meter = wk.attach(optimizer, names=model, sinks=[kept])
    train(model, optimizer, range(1, 3))
    model, twin = copy.deepcopy((model, optimizer))
    assert twin.state_dict().keys() == optimizer.state_dict().keys()
    train(model, twin, range(3, 5))
    assert kept.steps == [1, 2, 3, 4]
    assert kept.budgets[3].names == kept.budgets[0].names
    if kind == "loop":
        assert_same_forces(kept.budgets[3], wk.forces(twin))
    again = copy.deepcopy(twin)  # a copy of the copy
    assert again is not twin
    meter.detach()
    for left in (optimizer, twin):
        assert "__deepcopy__" not in vars(left)
    train(model, twin, range(5, 6))
    assert kept.steps == [1, 2, 3, 4]


def test_a_meter_is_copied_with_its_optimizers(kept):
    class Trainer:
        pass

    trainer = Trainer()
    trainer.model = Net()
    trainer.meter = None
    named = dict(trainer.model.named_parameters())
    trainer.optimizers = [
        torch.optim.SGD([named["mlp.weight"]], lr=0.1),
        torch.optim.AdamW([named[name] for name in named if name != "mlp.weight"]),
    ]
    trainer.meter = wk.attach(trainer.optimizers, names=trainer.model, sinks=[kept])
    twin = copy.deepcopy(trainer)
    assert twin.meter is not trainer.meter
    for one in (twin, trainer):
        one.meter.load_state_dict({"steps": [6, 6]})
    backward(twin.model, 1)
    for optimizer in twin.optimizers:
        optimizer.step()
    assert kept.steps == [7]
    assert kept.budgets[0].names[0] == "mlp.weight"
    assert twin.meter.latest is kept.budgets[0]
    twin.meter.detach()
    trainer.meter.detach()
    assert copy.deepcopy(trainer.meter) is trainer.meter


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_of_a_copy_and_its_original_the_sinks_get_every_step_once(kind, tmp_path, caplog):
    """Both are trained: what the file holds is one run, and the logger says what was left out."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    sink = wk.ParquetSink(tmp_path / "run.parquet")
    meter = wk.attach(optimizer, names=model, sinks=[sink])
    train(model, optimizer, range(1, 3))
    other, twin = copy.deepcopy((model, optimizer))
    for step in range(3, 6):
        train(model, optimizer, range(step, step + 1))
        train(other, twin, range(step, step + 1))
    train(other, twin, range(6, 8))  # goes on where the original stops
    meter.detach()
    frame = wk.read_run(tmp_path / "run.parquet")
    assert frame["step"].tolist() == [step for step in range(1, 8) for _ in range(6)]
    assert (frame["steps"] == 1).all()
    norms = frame.groupby("step")["norm_sq_after"].sum()
    assert norms[5] == pytest.approx(sum(p.double().square().sum().item() for p in model.parameters()))
    assert norms[7] == pytest.approx(sum(p.double().square().sum().item() for p in other.parameters()))
    (said,) = [record.message for record in caplog.records]
    assert "an optimizer and its copy are both trained: the record of step 3 is left out" in said


@pytest.mark.parametrize("kind", ["loop", "fused", "wk", "sgd"])
def test_a_resumed_run_goes_on_without_a_gap(kind):
    """Killed at 7, its checkpoint from 5: the records are those of a run that never stopped."""
    whole, first, second = Kept(), Kept(), Kept()
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    with wk.attach(optimizer, every=4, sinks=[whole]):
        train(model, optimizer, range(1, 13))

    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    meter = wk.attach(optimizer, every=4, sinks=[first])
    train(model, optimizer, range(1, 6))
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), meter.state_dict()], saved)
    train(model, optimizer, range(6, 8))

    saved.seek(0)
    weights, state, steps = torch.load(saved)
    model = Net()
    model.load_state_dict(weights)
    optimizer = OPTIMIZERS[kind](model)
    with wk.attach(optimizer, every=4, sinks=[second]) as meter:
        optimizer.load_state_dict(state)
        meter.load_state_dict(steps)
        train(model, optimizer, range(6, 13))
    assert first.steps + second.steps == whole.steps == [4, 8, 12]
    for found, expected in zip(first.budgets + second.budgets, whole.budgets, strict=True):
        assert_same_forces(found, expected)


def test_a_loaded_adam_state_says_how_many_steps_were_made(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    train(model, optimizer, range(1, 6))
    other = OPTIMIZERS["loop"](model)
    meter = wk.attach(other, every=4, sinks=[kept])
    other.load_state_dict(optimizer.state_dict())
    assert meter.steps == (5,)
    train(model, other, range(6, 10))
    assert kept.steps == [8]


def test_the_state_of_another_meter_is_refused(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    meter = wk.attach(optimizer, sinks=[kept])
    for wrong in ({"steps": [1, 2]}, {}, {"steps": 3}):
        with pytest.raises(ValueError, match="expected the state of a meter of 1 optimizers"):
            meter.load_state_dict(wrong)
    meter.detach()
    meter.load_state_dict({"steps": [7]})  # as a script does that resumes, whatever became of the meter
    assert meter.steps == (7,)
    assert optimizer is not None


def test_the_optimizer_can_still_be_pickled_and_the_meter_cannot(kept):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    meter = wk.attach(optimizer, sinks=[kept])
    train(model, optimizer, range(1, 2))
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    restored = torch.load(file, weights_only=False)
    assert "__deepcopy__" not in vars(restored)
    with pytest.raises(TypeError, match=r"save meter.state_dict\(\)"):
        torch.save(meter, io.BytesIO())


def test_a_failing_measurement_stops_measuring_and_not_the_training(kept, caplog):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    wk.attach(optimizer, sinks=[kept])
    train(model, optimizer, range(1, 2))
    optimizer.state[model.mlp.weight]["exp_avg"] = torch.zeros(3)  # does not fit: forces() refuses it
    model.mlp.weight.requires_grad_(False)
    model.mlp.weight.grad = None
    train(model, optimizer, range(2, 5))
    assert kept.steps == [1]
    (record,) = caplog.records
    assert "measuring failed and has stopped, the training goes on: exp_avg of 'mlp.weight'" in record.message
    assert "__deepcopy__" not in vars(optimizer)


def test_an_interrupt_passes(kept):
    class Interrupting(Kept):
        def write(self, step, budget, **scalars):
            super().write(step, budget, **scalars)
            if step == 1 and len(self.records) == 1:
                raise KeyboardInterrupt

    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    wk.attach(optimizer, sinks=[Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, range(1, 2))


def test_a_closure_is_called_once(kept):
    model, calls = Net(), []
    optimizer = OPTIMIZERS["wk"](model)
    wk.attach(optimizer, sinks=[kept])

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        return backward(model, 1)

    optimizer.step(closure)
    assert calls == [1]
    assert kept.steps == [1]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the compiler's own
@pytest.mark.parametrize("kind", ["foreach", "wk", "sgd"])
def test_a_compiled_step_is_measured_as_any_other(kind):
    """The hooks run uncompiled, and nothing is compiled anew at every step."""
    records = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, kept = Net(), Kept()
        optimizer = OPTIMIZERS[kind](model)
        with wk.attach(optimizer, every=2, sinks=[kept]):
            step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
            for number in range(1, 7):
                optimizer.zero_grad()
                backward(model, number)
                step()
        records.append(kept)
    assert records[0].steps == records[1].steps == [2, 4, 6]
    for found, expected in zip(records[1].budgets, records[0].budgets, strict=True):
        # A compiled step rounds the bias corrections to float32.
        assert_same_forces(found, expected, rtol=1e-3)


def test_numbers_that_nobody_counts_are_asked_for(kept, caplog):
    """SGD with momentum, resumed without the meter's state: its records would begin with step 1 again."""
    model = Net()
    first = OPTIMIZERS["sgd"](model)
    train(model, first, range(1, 6))
    resumed = OPTIMIZERS["sgd"](model)
    resumed.load_state_dict(first.state_dict())
    with wk.attach(resumed, sinks=[kept]):
        train(model, resumed, range(6, 8))
    assert kept.steps == [1, 2]
    assert [record.message[:60] for record in caplog.records] == [
        "the optimizer has made steps before and does not count them:"
    ]
    caplog.clear()
    with wk.attach(resumed, sinks=[kept]) as meter:
        resumed.load_state_dict(first.state_dict())
        meter.load_state_dict({"steps": [5]})
        train(model, resumed, range(6, 8))
    assert kept.steps == [1, 2, 6, 7]
    assert caplog.records == []


def test_a_meter_that_saw_no_step_says_so(kept, caplog):
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    with wk.attach(optimizer, sinks=[kept]) as meter:
        other = OPTIMIZERS["loop"](model)  # made anew after the meter
        train(model, other, range(1, 3))
        meter.detach()
    assert "has seen no step: was the optimizer made anew?" in caplog.text
