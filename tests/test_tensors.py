"""Facts of many tensors at once, compiled and in Python, against what torch says."""

import numpy as np
import pytest
import torch
from oracle import set_gradients

from weibull_kernels.kernels import host
from weibull_kernels.kernels.host import Facts, read_numbers, walk, write_addresses

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
