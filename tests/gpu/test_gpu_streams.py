"""On side streams: all work is on the current stream of torch, and what one sent the others wait for.

python3 -m pytest --noconftest tests/gpu
"""

import pytest
import torch
from device import BACKENDS, DEVICE, nothing_waits
from oracle import same_bits, set_gradients, terms

import weibull_kernels as wk

each_backend = pytest.mark.parametrize("backend", BACKENDS)
SHAPES = [(7,), (1025,), (300, 100), (400_001,)]
HOLD = 200_000_000  # clock cycles, some 100 ms: far longer than any call here


def stepped(make):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, device=DEVICE) * 0.02) for shape in SHAPES]
    optimizer = make(weights)
    set_gradients(weights)
    optimizer.step()
    torch.cuda.synchronize()
    return weights, optimizer


def fused(weights):
    return torch.optim.AdamW(weights, lr=1e-2, fused=True)


@each_backend
def test_forces_are_read_on_the_current_stream(backend):
    """On a stream that is held back the forces wait for their step, which the default stream does not."""
    _, optimizer = stepped(fused)
    wk.forces(optimizer, backend=backend)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(HOLD)
        optimizer.step()
        found = wk.forces(optimizer, backend=backend)
    assert not stream.query()  # it was held back all the while
    stream.synchronize()
    assert same_bits(terms(found), terms(wk.forces(optimizer, backend=backend)))
    assert (found.step == 2).all()


@each_backend
def test_steps_are_made_on_the_current_stream(backend):
    def make(parameters):
        return wk.AdamW(parameters, lr=1e-2, backend=backend)

    results = []
    for side in (False, True):
        weights, optimizer = stepped(make)
        gradients = [weight.grad.clone() for weight in weights]
        torch.cuda.synchronize()
        stream = torch.cuda.Stream() if side else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(HOLD)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad.copy_(2 * gradient)
            optimizer.step()
            budget = optimizer.ledger.drain()
        assert not stream.query()
        stream.synchronize()
        results.append([*weights, terms(budget), budget.rounding])
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("kind", ["forces", "step"])
@each_backend
def test_tables_that_one_stream_sent_serve_another(backend, kind):
    """The first call sends its tables behind what holds its stream; one on another stream waits for them."""

    def make(parameters):
        return wk.AdamW(parameters, lr=1e-2, backend=backend) if kind == "step" else fused(parameters)

    def call(optimizer):
        if kind == "step":
            optimizer.step()
            return None
        return terms(wk.forces(optimizer, backend=backend))

    expected = stepped(make)
    given = stepped(make)
    # Elsewhere, so that tables are made anew.
    for weights, _ in (expected, given):
        for weight in weights:
            weight.data = weight.detach().clone()
            weight.grad = torch.ones_like(weight)
        torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        torch.cuda._sleep(HOLD)
        held = call(given[1])
    if kind == "step":  # the second step needs the weights of the first, and its user says so
        second.wait_stream(first)
    with torch.cuda.stream(second):
        found = call(given[1])
    torch.cuda.synchronize()
    exact = [call(expected[1]), call(expected[1])]
    if kind == "forces":
        assert same_bits(held, exact[0])
        assert same_bits(found, exact[1])
    assert all(map(same_bits, given[0], expected[0]))


@each_backend
def test_a_rate_that_changes_at_every_step_waits_for_nothing(backend):
    """Steps and forces are queued behind a device that is busy; each uses the numbers of its own call."""
    rates = [1e-2 / (1 + i) for i in range(6)]

    def run(held):
        weights, optimizer = stepped(lambda p: wk.AdamW(p, lr=1e-2, backend=backend))
        measured = []
        if held:
            torch.cuda._sleep(HOLD)
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            with nothing_waits():
                optimizer.step()
                measured.append(terms(wk.forces(optimizer, backend=backend)))
            if not held:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return [*weights, *measured, terms(optimizer.ledger.drain())]

    assert all(map(same_bits, run(held=False), run(held=True)))


@each_backend
def test_temporary_memory_is_not_given_away_too_soon(backend):
    """Other work on the same stream gets the memory of the partial sums only after them."""
    _, optimizer = stepped(fused)
    expected = terms(wk.forces(optimizer, backend=backend))
    torch.cuda._sleep(HOLD)
    found = []
    for _ in range(20):
        found.append(terms(wk.forces(optimizer, backend=backend)))
        for size in (1000, 100_000, 1_000_000):
            torch.full((size,), float("nan"), dtype=torch.float64, device=DEVICE)
    torch.cuda.synchronize()
    assert all(same_bits(one, expected) for one in found)
