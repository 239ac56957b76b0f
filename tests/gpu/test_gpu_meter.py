"""A meter on a GPU: it waits for nothing, changes nothing, and records what `wk.forces` gives by hand.

python3 -m pytest --noconftest tests/gpu
"""

from contextlib import nullcontext

import pytest
import torch
from device import DEVICE, nothing_waits
from loops import OPTIMIZERS, Kept, Net, batch

import weibull_kernels as wk


def trained(kind, steps, sinks=None, after=lambda step, optimizer: None, **settings):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    optimizer = OPTIMIZERS[kind](model)
    meter = None if sinks is None else wk.attach(optimizer, sinks=sinks, **settings)
    batches = [batch(step).to(DEVICE) for step in range(steps)]
    for step, tokens in enumerate(batches, start=1):
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        with nothing_waits() if step == 3 else nullcontext():
            optimizer.step()
        after(step, optimizer)
    if meter is not None:
        meter.detach()
    return [
        *model.parameters(),
        *(state["exp_avg"] for state in optimizer.state.values() if "exp_avg" in state),
    ]


@pytest.mark.parametrize("statistics", ["moments", "weibull"])
@pytest.mark.parametrize("kind", ["foreach", "fused", "wk", "sgd"])
def test_nothing_waits_and_nothing_changes(kind, statistics):
    kept, alone = Kept(), trained(kind, 10)
    metered = trained(kind, 10, [kept], statistics=statistics)
    assert all(map(torch.equal, alone, metered))
    assert kept.steps == list(range(1, 11))
    assert all(budget.alignment.device.type == "cpu" for budget in kept.budgets)


def test_records_are_those_of_forces():
    kept, by_hand = Kept(), []
    trained("fused", 5, [kept], lambda step, optimizer: by_hand.append(wk.forces(optimizer)))
    for found, expected in zip(kept.budgets, by_hand, strict=True):
        on_host = expected.select(list(range(len(expected.names))))
        for column in ("alignment", "injection", "decay", "coupling", "norm_sq"):
            assert torch.equal(getattr(found, column), getattr(on_host, column).cpu())


def test_a_scaler_that_skips_books_nothing():
    kept = Kept()
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    optimizer = OPTIMIZERS["fused"](model)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    with wk.attach(optimizer, sinks=[kept]):
        for step in range(1, 6):
            optimizer.zero_grad()
            scaler.scale(model(batch(step).to(DEVICE)).square().mean()).backward()
            if step == 3:
                model.mlp.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    assert [budget.step.max().item() for budget in kept.budgets] == [1, 2, 3, 4]
