"""Facts of many tensors at once, compiled and in Python, against what torch says."""

import copy
import gc
import tracemalloc

import numpy as np
import pytest
import torch
from oracle import set_gradients

import weibull_kernels as wk
from weibull_kernels import adamw, device_tables, forces_plan, ledger_rows, plan
from weibull_kernels.forces_plan import ForcesPlan
from weibull_kernels.kernels import host, memory
from weibull_kernels.kernels.host import Facts, read_numbers, walk, write_addresses
from weibull_kernels.meter import hooks

STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")


@pytest.fixture(params=["compiled", "python"])
def way(request, monkeypatch):
    """Both ways of doing it."""
    if request.param == "python":
        monkeypatch.setattr(host, "_missing", "taken away by a test")
    else:
        assert host.uncompiled() is None, host.uncompiled()


class Subclass(torch.Tensor):
    """A tensor that is not plain."""


KINDS = {
    "float32": lambda: torch.randn(3, 4),
    "float64": lambda: torch.randn(3).double(),
    "bfloat16": lambda: torch.zeros(3).bfloat16(),
    "float16": lambda: torch.zeros(3).half(),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "int64": lambda: torch.arange(3),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "of one entry": lambda: torch.tensor(1.0),
    "empty": lambda: torch.zeros(0, 3),
    "slice": lambda: torch.randn(10)[3:7],
    "transposed": lambda: torch.randn(3, 4).t(),
    "expanded": lambda: torch.zeros(1).expand(5),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "negative view": lambda: torch._neg_view(torch.randn(3)),
    "requires grad": lambda: torch.randn(3, requires_grad=True) * 2,
    "parameter": lambda: torch.nn.Parameter(torch.randn(3)),
    "lazy": lambda: torch.nn.UninitializedParameter(),
    "subclass": lambda: torch.zeros(3).as_subclass(Subclass),
    "meta": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch._empty_affine_quantized([3], scale=1.0, zero_point=0, dtype=torch.qint8),
    "number": lambda: 3.0,
    "nothing": lambda: None,
}


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize("addresses", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_facts_hold_for_the_same_tensor_and_for_no_other_kind(way, kind, addresses):
    tensor = KINDS[kind]()
    facts = Facts([[tensor]], addresses=addresses)
    assert facts.hold_for([[tensor]])
    assert not facts.hold_for([[]])
    assert not facts.hold_for([[tensor, tensor]])
    for other, make in KINDS.items():
        made = make()
        alike = (
            not addresses
            and isinstance(tensor, torch.Tensor)
            and isinstance(made, torch.Tensor)
            and other not in ("lazy", "subclass", "meta", "sparse", "quantised")
            and kind not in ("lazy", "subclass", "meta", "sparse", "quantised")
            and (made.dtype, made.shape) == (tensor.dtype, tensor.shape)
        )
        assert facts.hold_for([[made]]) == (alike or (other == kind and not has_memory(made, addresses))), (
            other
        )


def has_memory(tensor, addresses) -> bool:
    """Whether two tensors made alike are told apart by where they lie."""
    if not addresses or not isinstance(tensor, torch.Tensor) or torch.nn.parameter.is_lazy(tensor):
        return False
    return not tensor.is_meta and tensor.layout == torch.strided and tensor.numel() > 0


CHANGES = {
    "other memory": lambda t: setattr(t, "data", t.data.clone()),
    "other dtype": lambda t: setattr(t, "data", t.data.double()),
    "other strides": lambda t: setattr(t, "data", t.data.t().contiguous().t()),
    "other shape": lambda t: setattr(t, "data", t.data.view(-1)),
    "fewer entries": lambda t: setattr(t, "data", t.data[:2]),
    "freed": lambda t: t.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_facts_notice_what_happens_to_a_tensor(way, change):
    tensors = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    facts = Facts([tensors])
    assert facts.hold_for([list(tensors)])
    CHANGES[change](tensors[1])
    assert not facts.hold_for([tensors])


def test_both_ways_agree_on_a_walk(monkeypatch):
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(6)]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.AdamW(
            [{"params": parameters[3:]}, {"params": [*parameters[:3], parameters[0]]}]
        )
    set_gradients([parameters[i] for i in (1, 4, 5)])
    optimizer.step()
    # Loaded keys are not the strings of the code.
    optimizer.state[parameters[1]] = {
        "".join(list(name)): value for name, value in optimizer.state[parameters[1]].items()
    }
    optimizer.state[parameters[0]] = {}
    optimizer.state["of somebody else"] = 1
    found = walk(optimizer, STATE, gradients=True)
    monkeypatch.setattr(host, "_missing", "taken away by a test")
    again = walk(optimizer, STATE, gradients=True)
    assert found.sizes == again.sizes == [3, 4]
    order = [*parameters[3:], *parameters[:3]]
    for one in (found, again):
        assert all(map(lambda a, b: a is b, one.parameters, order))
        assert [g is not None for g in one.gradients] == [False, True, True, False, True, False]
    for a, b in zip([found.gradients, *found.states], [again.gradients, *again.states], strict=True):
        assert len(a) == len(b) == 6
        assert all(map(lambda x, y: x is y, a, b))
    assert found.states[0][4] is optimizer.state[parameters[1]]["exp_avg"]
    assert len(optimizer.state) == 5


def test_addresses_and_dtypes(way):
    tensors = [torch.randn(3), torch.randn(2, 2).double(), torch.zeros(3).bfloat16(), torch.zeros(0).half()]
    for others in ([], [torch.randn(4, 4).t()], [torch.zeros(3).as_subclass(Subclass)]):
        both = tensors + others
        table = np.full((len(both), 3), 7, dtype=np.int64)
        write_addresses(both, table, 2, 0)
        assert table[:, 2].tolist() == [tensor.data_ptr() for tensor in both]
        assert table[:, 0].tolist() == [0, 1, 2, 3, *([0] * len(others))]
        assert (table[:, 1] == 7).all()


def test_numbers(way):
    values = [1, 2.5, None, torch.tensor(4.0), torch.tensor([5.0]).double(), torch.tensor(6), np.float64(7)]
    values.append(torch.nn.Parameter(torch.tensor(8.0)))
    into = np.full(len(values), np.nan, dtype=np.float32)
    assert read_numbers(values, into) == []
    assert into.tolist() == [1, 2.5, 0, 4, 5, 6, 7, 8]
    assert read_numbers([1.0, torch.zeros((), device="meta")], into) == [1]


def test_a_table_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="a row for each tensor"):
        write_addresses([torch.ones(1)] * 3, np.zeros((2, 2), dtype=np.int64), 0, 1)
    with pytest.raises(ValueError, match="a place for each number"):
        read_numbers([1.0, 2.0], np.zeros(1, dtype=np.float32))
    with pytest.raises(TypeError, match="the params of a group must be a list"):
        host._tensors.walk([{"params": ()}], {}, (), False)
    with pytest.raises(TypeError, match="a param group must be a dict"):
        host._tensors.walk([3], {}, (), False)
    weight = torch.ones(1)
    with pytest.raises(TypeError, match="the state of a parameter must be a dict"):
        host._tensors.walk([{"params": [weight]}], {weight: 3}, ("step",), False)


# What is done with them


def stepped(kind=torch.optim.AdamW, **settings):
    parameters = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(4)]
    names = [(f"layer.{i}", parameter) for i, parameter in enumerate(parameters)]
    optimizer = kind(names, **({"lr": 0.1, "weight_decay": 0.1} | settings))
    for _ in range(2):
        set_gradients(parameters)
        optimizer.step()
    return optimizer


def first(optimizer):
    return optimizer.param_groups[0]["params"][0]


def changed(name, value):
    return lambda optimizer: optimizer.param_groups[0].__setitem__(name, value)


def replace(name):
    def change(optimizer):
        state = optimizer.state[first(optimizer)]
        state[name] = 2 * state[name]

    return change


def scale(name):
    """Gives other memory to the very tensor."""

    def change(optimizer):
        tensor = optimizer.state[first(optimizer)][name]
        tensor.data = 2 * tensor.data

    return change


def reload(optimizer):
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["exp_avg"] *= 3
    optimizer.load_state_dict(saved)


def add_group(optimizer):
    optimizer.add_param_group({"params": [("added", torch.nn.Parameter(torch.ones(5)))]})


def other_weight(optimizer):
    old = first(optimizer)
    new = torch.nn.Parameter(2 * old.detach())
    optimizer.state[new] = optimizer.state.pop(old)
    optimizer.param_groups[0]["params"][0] = new


def other_data(optimizer):
    first(optimizer).data = 2 * first(optimizer).detach()


NOTICED = {
    "lr": changed("lr", 0.2),
    "tensor lr": changed("lr", torch.tensor(0.2)),
    "weight decay": changed("weight_decay", 0.2),
    "betas": changed("betas", (0.5, 0.6)),
    "eps": changed("eps", 1.0),
    "decoupled": changed("decoupled_weight_decay", False),
    "differentiable": changed("differentiable", True),
    "capturable": changed("capturable", True),
    "names": changed("param_names", list("abcd")),
    "exp_avg": replace("exp_avg"),
    "exp_avg_sq": replace("exp_avg_sq"),
    "step": replace("step"),
    "data of exp_avg": scale("exp_avg"),
    "data of exp_avg_sq": scale("exp_avg_sq"),
    "data of step": scale("step"),
    "a number for step": lambda o: o.state[first(o)].__setitem__("step", 9),
    "state gone": lambda o: o.state.pop(first(o)),
    "loaded state": reload,
    "group added": add_group,
    "weight replaced": other_weight,
    "data of weight": other_data,
    "entries of weight": lambda o: first(o).data.mul_(2),
    "parameter removed": lambda o: (
        o.param_groups[0]["params"].pop(),
        o.param_groups[0]["param_names"].pop(),
    ),
}


@pytest.mark.parametrize("change", NOTICED)
def test_forces_of_an_optimizer_that_was_changed_are_those_of_one_that_never_was_seen(way, change):
    optimizer = stepped()
    before = wk.forces(optimizer)
    NOTICED[change](optimizer)
    found = wk.forces(optimizer, histogram=True)
    _forget(optimizer)
    expected = wk.forces(optimizer, histogram=True)
    assert found.names == expected.names
    assert found.to_dict().keys() == expected.to_dict().keys()
    for name, column in expected.to_dict().items():
        assert np.array_equal(found.to_dict()[name], column), name
    assert torch.equal(found.weights.histogram, expected.weights.histogram)
    same = before.names == found.names and torch.equal(before.predicted_change, found.predicted_change)
    assert not same or change == "capturable"  # rounds the corrections, which at step 2 may not show


def _forget(optimizer):
    del forces_plan._PLANS[optimizer]


def test_amsgrad_that_is_turned_on(way):
    optimizer = stepped(amsgrad=True)
    wk.forces(optimizer)
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.state[first(optimizer)]["exp_avg_sq"].mul_(0.25)
    found = wk.forces(optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    assert found.injection[0].item() == pytest.approx(4 * wk.forces(optimizer).injection[0].item(), rel=0.5)
    assert found.injection[0] > 2 * wk.forces(optimizer).injection[0]


def test_a_plan_is_used_again_and_keeps_nothing_alive(way):
    optimizer = stepped()
    wk.forces(optimizer)
    known = ForcesPlan.of(optimizer)[0]
    set_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.3
    wk.forces(optimizer, lr=0.2)
    assert ForcesPlan.of(optimizer)[0] is known
    gone = torch.utils.weak.weakref.ref(optimizer.state[first(optimizer)]["exp_avg"])
    optimizer.state[first(optimizer)]["exp_avg"] = torch.zeros(4, 3)
    assert gone() is None
    twin = copy.deepcopy(optimizer)
    assert ForcesPlan.of(twin)[0] is not known
    all_gone = [torch.utils.weak.weakref.ref(one) for one in (optimizer, known)]
    gc.disable()
    try:
        del optimizer, known
        assert [one() for one in all_gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, wk.AdamW])
def test_many_calls_leave_nothing_behind(kind):
    optimizer = stepped(kind)
    measure = optimizer.step if kind is wk.AdamW else lambda: wk.forces(optimizer)
    for _ in range(10):
        measure()
    tracemalloc.start()
    try:
        for _ in range(10):
            measure()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            measure()
        # A list that stays behind at every call would be 28 kB.
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def test_the_step_of_wk_adamw_keeps_no_moments_that_were_replaced(way):
    optimizer = stepped(wk.AdamW)
    gone = torch.utils.weak.weakref.ref(optimizer.state[first(optimizer)]["exp_avg"])
    optimizer.state[first(optimizer)]["exp_avg"] = torch.zeros(4, 3)
    assert gone() is None
    optimizer.step()
    assert optimizer.state[first(optimizer)]["exp_avg"].count_nonzero() == 12


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor(3.0).double(), torch.tensor([3.0])])
def test_counts_of_every_kind(way, step):
    optimizer = stepped()
    for state in optimizer.state.values():
        state["step"] = torch.tensor(3.0)
    expected = wk.forces(optimizer)
    optimizer.state[first(optimizer)]["step"] = step
    found = wk.forces(optimizer)
    assert found.step.tolist() == [3, 3, 3, 3]
    assert torch.equal(found.alignment, expected.alignment)
    optimizer.state[first(optimizer)]["step"] = step + 1
    assert wk.forces(optimizer).step.tolist() == [4, 3, 3, 3]


# While a CUDA graph is captured, which no CPU does: what is refused, before anything is done


@pytest.fixture
def capturing(monkeypatch):
    """Switches it on."""

    def on():
        for module in (adamw, device_tables, forces_plan, hooks, ledger_rows, memory, plan):
            monkeypatch.setattr(module, "capturing", lambda device: True)

    return on


def test_what_was_not_seen_before_is_not_captured(capturing):
    optimizer, ours = stepped(), stepped(wk.AdamW, capturable=True)
    seen = stepped()
    wk.forces(seen)
    ours.step()
    seen.state[first(seen)]["exp_avg"] = torch.zeros(4, 3)
    first(ours).grad = None
    before = [p.detach().clone() for p in ours.param_groups[0]["params"]]
    capturing()
    for one in (optimizer, seen):
        with pytest.raises(RuntimeError, match="call it once after a step, outside of the graph"):
            wk.forces(one)
    with pytest.raises(RuntimeError, match="step once or more outside of the graph"):
        ours.step()
    assert all(map(torch.equal, before, ours.param_groups[0]["params"]))


def test_a_step_is_captured_only_if_the_optimizer_was_made_for_it(capturing):
    optimizer = stepped(wk.AdamW)
    capturing()
    with pytest.raises(RuntimeError, match=r"group 0 of wk\.AdamW has capturable=False"):
        optimizer.step()


def test_a_table_is_not_sent_while_capturing(capturing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="make the same call once, on the same tensors, before"):
        memory.sent(torch.zeros(3), torch.device("cuda"))


def test_sums_over_shards_are_not_captured(capturing):
    capturing()
    with pytest.raises(RuntimeError, match="cannot be captured into a CUDA graph"):
        ledger_rows.rows_over_shards([], torch.zeros(0, 14), None)


def test_a_meter_says_once_that_it_does_not_record_what_is_captured(capturing, caplog):
    optimizer = stepped(wk.AdamW)
    with wk.attach(optimizer) as meter:
        optimizer.step()
        recorded = meter.latest.step.tolist()
        hooked = optimizer._optimizer_step_pre_hooks.copy()
        capturing()
        for _ in range(2):
            for hook in hooked.values():
                hook(optimizer, (), {})
        assert meter.latest.step.tolist() == recorded
        assert caplog.text.count("does not record the steps of a CUDA graph") == 1
