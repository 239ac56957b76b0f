"""In a CUDA graph: `wk.forces`, `wk.AdamW.step` and its ledger. Replays equal eager steps to the bit.

python3 -m pytest --noconftest tests/gpu
"""

import gc
import warnings

import pytest
import torch
from device import BACKENDS, DEVICE
from oracle import same_bits

import weibull_kernels as wk

each_backend = pytest.mark.parametrize("backend", BACKENDS)
SHAPES = [(), (7,), (1025,), (300, 100), (40_001,)]
WARM_UP, REPLAYS = 3, 4
FIELDS = ("alignment", "injection", "decay", "coupling", "rounding", "norm_sq", "steps", "step")
STATISTICS = ("norm_sq", "log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count", "histogram")


def columns_of(budget):
    """Copies of everything in a budget that is a tensor: a graph writes the same memory again."""
    found = {name: getattr(budget, name) for name in FIELDS}
    found |= {f"weights.{name}": getattr(budget.weights, name) for name in STATISTICS}
    return {name: value.clone() for name, value in found.items() if isinstance(value, torch.Tensor)}


def assert_same_budget(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert same_bits(found[name].double(), expected[name].double()), name


def inputs(step):
    """What the gradients of a step are made of, the same for all twins."""
    generator = torch.Generator(DEVICE).manual_seed(step)
    return [torch.randn(shape, device=DEVICE, generator=generator) for shape in SHAPES]


class Twin:
    """Weights, an optimizer, and `once`: a step from gradients that the inputs make, then a reading of it.

    The gradients are made anew each time, so that in a graph they lie in memory of the graph.
    """

    def __init__(self, make, read=lambda optimizer: None):
        torch.manual_seed(0)
        self.weights = [torch.nn.Parameter(torch.randn(shape, device=DEVICE) * 0.02) for shape in SHAPES]
        self.inputs = inputs(0)
        self.optimizer = make([(f"w.{i}", weight) for i, weight in enumerate(self.weights)])
        self._read = read

    def give(self, step):
        for held, new in zip(self.inputs, inputs(step), strict=True):
            held.copy_(new)

    def once(self):
        self.optimizer.zero_grad(set_to_none=True)
        pairs = zip(self.weights, self.inputs, strict=True)
        sum((weight * x).sum() + weight.square().sum() for weight, x in pairs).backward()
        self.optimizer.step()
        return self._read(self.optimizer)

    def state(self):
        states = [self.optimizer.state[weight] for weight in self.weights]
        return [t.detach().clone() for t in (*self.weights, *(v for s in states for v in s.values()))]


def warmed_up(twin, stream=None):
    """Steps on a side stream, as torch asks for before a capture."""
    stream = torch.cuda.Stream() if stream is None else stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(1, WARM_UP + 1):
            twin.give(step)
            twin.once()
    torch.cuda.current_stream().wait_stream(stream)
    return twin


def captured(twin, stream=None):
    """The graph of one more step, which has not been made yet, and what was read in it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = twin.once()
    return graph, found


def assert_replays_as_eager(make, read=lambda optimizer: None, between=lambda twin, step: None, after=None):
    """Two twins, one of them in a graph: the same weights, states and budgets after every step.

    `between` changes what lies on the device before a step, and `after` reads after it, outside of the graph.
    """
    eager, twin = warmed_up(Twin(make, read)), warmed_up(Twin(make, read))
    graph, found = captured(twin)
    for step in range(WARM_UP + 1, WARM_UP + 1 + REPLAYS):
        for one in (eager, twin):
            one.give(step)
            between(one, step)
        expected = eager.once()
        graph.replay()
        assert all(map(same_bits, twin.state(), eager.state()))
        if expected is not None:
            assert_same_budget(columns_of(found), columns_of(expected))
        if after is not None:
            assert_same_budget(columns_of(after(twin.optimizer)), columns_of(after(eager.optimizer)))


TORCH_FORMS = {
    "fused": {"fused": True},
    "capturable": {"foreach": False},
    "capturable foreach": {"foreach": True},
    "fused, amsgrad": {"fused": True, "amsgrad": True},
}


@pytest.mark.parametrize("histogram", [False, True])
@pytest.mark.parametrize("form", TORCH_FORMS.values(), ids=TORCH_FORMS)
@each_backend
def test_forces_in_a_graph(backend, form, histogram):
    def make(named):
        return torch.optim.AdamW(named, lr=torch.tensor(1e-2, device=DEVICE), capturable=True, **form)

    def read(optimizer):
        return wk.forces(optimizer, backend=backend, histogram=histogram)

    def between(twin, step):
        twin.optimizer.param_groups[0]["lr"].fill_(1e-2 / step)

    assert_replays_as_eager(make, read, between)


@each_backend
def test_forces_around_a_graph_of_the_step(backend):
    """The graph steps, `wk.forces` is called outside of it after every replay."""

    def make(named):
        return torch.optim.AdamW(named, lr=1e-2, fused=True, capturable=True)

    assert_replays_as_eager(make, after=lambda optimizer: wk.forces(optimizer, backend=backend))


def ours(backend, **settings):
    """Makes `wk.AdamW` with a rate on the device, so that it may change between replays."""

    def make(named):
        rate = torch.tensor(1e-2, device=DEVICE)
        return wk.AdamW(named, **{"lr": rate, "capturable": True, "backend": backend, **settings})

    return make


def slower(twin, step):
    twin.optimizer.param_groups[0]["lr"].fill_(1e-2 / step)


OUR_FORMS = {
    "default": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "float lr": {"lr": 1e-2},
    "no ledger": {"ledger": False},
}


@pytest.mark.parametrize("form", OUR_FORMS.values(), ids=OUR_FORMS)
@each_backend
def test_a_step_in_a_graph(backend, form):
    booked = form.get("ledger", True)
    assert_replays_as_eager(
        ours(backend, **form),
        between=slower if "lr" not in form else lambda twin, step: None,
        after=(lambda optimizer: optimizer.ledger.peek()) if booked else None,
    )


@pytest.mark.parametrize("reading", ["drain", "peek"])
@each_backend
def test_the_ledger_in_a_graph(backend, reading):
    assert_replays_as_eager(
        ours(backend),
        lambda optimizer: getattr(optimizer.ledger, reading)(),
        slower,
        after=lambda optimizer: optimizer.ledger.peek(),
    )


@each_backend
def test_the_ledger_around_a_graph(backend):
    assert_replays_as_eager(ours(backend), between=slower, after=lambda optimizer: optimizer.ledger.drain())


@each_backend
def test_forces_of_our_step_in_a_graph(backend):
    assert_replays_as_eager(ours(backend), lambda optimizer: wk.forces(optimizer, backend=backend), slower)


@each_backend
def test_a_scalers_numbers_in_a_graph(backend):
    """An infinity that was found before one replay and not before the next."""

    def make(named):
        optimizer = ours(backend)(named)
        optimizer.grad_scale = torch.ones((), device=DEVICE)
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        return optimizer

    def between(twin, step):
        twin.optimizer.grad_scale.fill_(step)
        twin.optimizer.found_inf.fill_(step % 2)

    assert_replays_as_eager(make, between=between, after=lambda optimizer: optimizer.ledger.drain())


@each_backend
def test_a_step_between_replays(backend):
    """Eager steps and replays of one optimizer, in any order; what they use is not each other's."""
    eager, twin = warmed_up(Twin(ours(backend))), warmed_up(Twin(ours(backend)))
    graph, _ = captured(twin)
    grads = [weight.grad for weight in twin.weights]
    for step in range(WARM_UP + 1, WARM_UP + 7):
        for one in (eager, twin):
            one.give(step)
        eager.once()
        if step % 3 == 2:
            twin.once()
        else:
            graph.replay()
        assert all(map(same_bits, twin.state(), eager.state()))
    assert_same_budget(columns_of(twin.optimizer.ledger.drain()), columns_of(eager.optimizer.ledger.drain()))
    del grads


@each_backend
def test_a_graph_of_a_side_stream(backend):
    """Captured on one side stream and replayed on another."""
    make = ours(backend)
    eager, twin = warmed_up(Twin(make)), Twin(make)
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    warmed_up(twin, stream)
    graph, _ = captured(twin, stream)
    for step in range(WARM_UP + 1, WARM_UP + 1 + REPLAYS):
        for one in (eager, twin):
            one.give(step)
        eager.once()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            graph.replay()
        torch.cuda.current_stream().wait_stream(other)
        assert all(map(same_bits, twin.state(), eager.state()))
    assert_same_budget(columns_of(twin.optimizer.ledger.drain()), columns_of(eager.optimizer.ledger.drain()))


@each_backend
def test_a_graph_is_right_after_much_else_has_happened(backend):
    """What a graph reads of the host's memory stays as it was, whatever else is made and dropped."""
    eager, twin = warmed_up(Twin(ours(backend))), warmed_up(Twin(ours(backend)))
    graph, _ = captured(twin)
    for _ in range(5):
        other = Twin(ours(backend))
        other.once()
        wk.forces(other.optimizer, backend=backend)
        del other
        gc.collect()
    held = [torch.full((4096,), 255, dtype=torch.uint8).pin_memory() for _ in range(64)]
    for step in range(WARM_UP + 1, WARM_UP + 1 + REPLAYS):
        for one in (eager, twin):
            one.give(step)
        eager.once()
        graph.replay()
    assert all(map(same_bits, twin.state(), eager.state()))
    del held


def refused(call):
    """That capturing this raises an error which speaks of capturing, and that nothing of it is done."""
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(1, device=DEVICE)

    def capture():
        with torch.cuda.graph(graph):
            x.add_(1)  # an empty graph would be another error
            call()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about a graph that was not finished
        with pytest.raises(RuntimeError, match="captur"):
            capture()
    torch.cuda.synchronize()


@each_backend
def test_a_step_that_is_not_capturable_is_refused(backend):
    twin = warmed_up(Twin(ours(backend, capturable=False)))
    before = twin.state()
    refused(twin.once)
    assert all(map(same_bits, twin.state(), before))


@each_backend
def test_a_first_step_is_refused(backend):
    """Tables are made outside of the capture; after a warm-up it is captured."""
    twin = Twin(ours(backend))
    refused(twin.once)
    assert not any(twin.optimizer.state.values())
    graph, _ = captured(warmed_up(twin))
    graph.replay()
    assert twin.optimizer.ledger.drain().steps.tolist() == [WARM_UP + 1] * len(SHAPES)


@each_backend
def test_first_forces_are_refused(backend):
    weight = torch.nn.Parameter(torch.randn(300, device=DEVICE))
    optimizer = torch.optim.AdamW([weight], fused=True, capturable=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    refused(lambda: wk.forces(optimizer, backend=backend))
    assert wk.forces(optimizer, backend=backend).alignment.isfinite().all()


@each_backend
def test_forces_of_counts_on_the_host_are_refused(backend):
    """A replay would measure every step with the count of the one that was captured."""
    weight = torch.nn.Parameter(torch.randn(300, device=DEVICE))
    optimizer = torch.optim.AdamW([weight], foreach=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    wk.forces(optimizer, backend=backend)
    refused(lambda: wk.forces(optimizer, backend=backend))
