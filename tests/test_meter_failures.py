"""What goes wrong in a meter stays in the meter."""

import logging

import pytest
import torch
from loops import OPTIMIZERS, Kept, Net, train
from torch import nn

import weibull_kernels as wk
from weibull_kernels.meter.readings import Pending


@pytest.fixture
def kept():
    return Kept()


def nothing_arrives(monkeypatch):
    """Readings are not there before they are waited for, and then they fail."""
    monkeypatch.setattr(Pending, "ready", lambda self: False)
    monkeypatch.setattr(Pending, "arrived", broken)


def broken(*_, **__):
    raise RuntimeError("the device is lost")


@pytest.mark.parametrize("kind", ["loop", "wk"])
def test_a_device_that_is_lost_does_not_reach_the_loop(kind, monkeypatch, caplog):
    """Readings that fail when they arrive, one after the other, and again when the meter is taken off."""
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    meter = wk.attach(optimizer, sinks=[Kept()])
    nothing_arrives(monkeypatch)
    train(model, optimizer, range(1, 4))
    monkeypatch.setattr(Pending, "ready", lambda self: True)
    train(model, optimizer, range(4, 6))
    assert not meter.attached
    meter.detach()
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert "measuring failed and has stopped, the training goes on: the device is lost" in said[0]
    assert said[1:] == ["the last records could not be taken: the device is lost"]


@pytest.mark.parametrize("kind", ["loop", "wk"])
def test_the_error_of_the_loop_is_the_one_that_is_raised(kind, monkeypatch):
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    nothing_arrives(monkeypatch)

    def fail(step):
        raise MemoryError("mine")

    with pytest.raises(MemoryError, match="mine"), wk.attach(optimizer, sinks=[Kept()]):
        train(model, optimizer, range(1, 3), fail)


def test_a_last_record_that_fails_is_logged(monkeypatch, caplog, kept):
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    meter = wk.attach(optimizer, every=4, sinks=[kept])
    train(model, optimizer, range(1, 7))
    monkeypatch.setattr(type(optimizer.ledger), "drain", broken)
    meter.detach()
    assert kept.steps == [4]
    assert "the last records could not be taken: the device is lost" in caplog.text
    assert "__deepcopy__" not in vars(optimizer)


def test_what_has_not_arrived_is_counted_where_nobody_waits(monkeypatch, caplog, kept):
    """As where other processes may be gone, whose part of the sums would be waited for."""
    model = Net()
    optimizer = OPTIMIZERS["loop"](model)
    meter = wk.attach(optimizer, sinks=[kept])
    nothing_arrives(monkeypatch)
    train(model, optimizer, range(1, 4))
    meter._detach(rest=False, wait=False, raises=False)
    assert kept.steps == []
    assert "3 records had not arrived from the device and are lost" in caplog.text


def test_an_attach_that_fails_leaves_no_hooks():
    model = Net()
    first = torch.optim.SGD([model.mlp.weight], lr=0.1)
    second = torch.optim.Adafactor([model.lm_head.weight], weight_decay=0.1)
    second.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="has lr None"):
        wk.attach([first, second], names=model)
    second.param_groups[0]["lr"] = 0.1
    wk.attach([first, second], names=model)


@pytest.mark.parametrize("statistics", ["moments", "weibull"])
def test_an_optimizer_without_a_tensor_to_record(statistics, kept, caplog):
    model = Net()
    matrices = torch.optim.SGD([model.mlp.weight, model.lm_head.weight], lr=0.1)
    rest = torch.optim.AdamW([model.embed_in.weight, model.mlp.bias, *model.norm.parameters()])
    wk.attach([matrices, rest], names=model, only="norm*", statistics=statistics, sinks=[kept])
    for step in range(1, 3):
        train(model, matrices, range(step, step + 1))
        rest.step()
    assert kept.steps == [1, 2]
    assert kept.budgets[0].names == ("norm.weight", "norm.bias")
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["loop", "wk", "sgd"])
def test_rates_may_be_tensors_of_one_entry(kind, kept, caplog):
    model = Net()
    optimizer = OPTIMIZERS[kind](model)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor([1e-2])
    wk.attach(optimizer, sinks=[kept])
    train(model, optimizer, range(1, 3))
    assert caplog.records == []
    assert kept.records[1][2]["lr"].shape == (6,)
    torch.testing.assert_close(kept.records[1][2]["lr"], torch.full((6,), 1e-2).double(), rtol=1e-7, atol=0)


def test_a_tensor_that_cannot_be_read_is_named_when_it_is_added(kept, caplog):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    wk.attach(optimizer, sinks=[kept])
    train(model, optimizer, range(1, 2))
    optimizer.add_param_group({"params": [("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))]})
    train(model, optimizer, range(2, 4))
    assert kept.steps == [1]
    assert "'phase' has dtype torch.complex64; the kernels take float32" in caplog.text


def test_a_parameter_that_names_does_not_know_is_said_when_it_is_added(kept, caplog):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    wk.attach(optimizer, names=model, sinks=[kept])
    optimizer.add_param_group({"params": [("extra", nn.Parameter(torch.ones(3)))]})
    train(model, optimizer, range(1, 3))
    assert kept.steps == [1, 2]
    assert kept.budgets[0].names[-1] == "extra"
    assert "1 parameters that were added are not in names=" in caplog.text


def test_a_step_that_raises_leaves_no_copy_of_the_weights():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model)
    meter = wk.attach(optimizer, every=2)
    train(model, optimizer, range(1, 2))

    def closure():
        raise MemoryError("too large")

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    (hooks,) = meter._hooks
    assert hooks.probe._copied != []
    hooks.every = 100  # so that the next step is not due
    train(model, optimizer, range(2, 3))
    assert hooks.probe._copied == []
