"""Shards that cannot be measured as such: each is refused by name, and the error says what to do."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import weibull_kernels as wk
from weibull_kernels.shards import is_sharded, local_of, over_shards

pytestmark = pytest.mark.usefixtures("mesh")


def each_way(parameters):
    """What measures parameters, and what steps them."""
    yield lambda: wk.forces(torch.optim.AdamW(parameters))
    yield lambda: wk.attach(torch.optim.SGD(parameters))
    yield lambda: wk.AdamW(parameters)


@pytest.mark.filterwarnings("ignore")  # torch warns that it is deprecated, and what of
@pytest.mark.parametrize("original", [False, True])
def test_fsdp1(original):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(nn.Linear(3, 2), device_id=torch.device("cpu"), use_orig_params=original)
    for refused in each_way(list(model.parameters())):
        with pytest.raises(
            TypeError, match=r"'0\.0' is a shard of torch's Fully.*\(FSDP1\).*fully_shard.*forces_from"
        ):
            refused()


def test_deepspeed_zero_3():
    weight = nn.Parameter(torch.zeros(0))
    weight.ds_id, weight.ds_shape = 0, torch.Size([3, 2])
    for refused in each_way([weight]):
        with pytest.raises(TypeError, match=r"'0\.0' is a shard of DeepSpeed's ZeRO-3.*wk\.forces_from"):
            refused()


def test_sums_that_are_still_to_be_made(mesh):
    weight = nn.Parameter(DTensor.from_local(torch.ones(3, 2), mesh, [Partial()]))
    for refused in each_way([weight]):
        with pytest.raises(
            TypeError, match=r"'0\.0' is a DTensor with placements \(Partial.*redistribute it"
        ):
            refused()


class Subclass(torch.Tensor):
    pass


def test_shards_that_are_no_plain_tensors(mesh):
    weight = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))
    weight._local_tensor = torch.ones(3, 2).as_subclass(Subclass)
    for refused in each_way([weight]):
        with pytest.raises(TypeError, match=r"'0\.0' is a test_sharded_refusals\.Subclass"):
            refused()


def test_a_mesh_of_others(mesh, monkeypatch):
    weight = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))
    monkeypatch.setattr(type(mesh), "get_coordinate", lambda _: None)
    for refused in each_way([weight]):
        with pytest.raises(ValueError, match=r"'0\.0' is sharded over DeviceMesh.*not part of"):
            refused()


@pytest.mark.filterwarnings("ignore")
def test_torchs_zero_redundancy_optimizer():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer = ZeroRedundancyOptimizer([nn.Parameter(torch.ones(3))], optimizer_class=torch.optim.AdamW)
    with pytest.raises(
        TypeError, match=r"ZeroRedundancyOptimizer divides .* wk\.forces_from, or .*fully_shard"
    ):
        wk.forces(optimizer)


def test_the_optimizer_of_another_engine():
    kind = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})
    optimizer = kind()
    optimizer.optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    with pytest.raises(TypeError, match=r"DeepSpeedZeroOptimizer divides .* wk\.forces_from"):
        wk.forces(optimizer)


def test_a_gradient_on_another_mesh(mesh):
    weight = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))
    optimizer = wk.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.grad = distribute_tensor(
        torch.ones(3, 2), init_device_mesh("cpu", (1,), mesh_dim_names=("other",)), [Shard(0)]
    )
    with pytest.raises(ValueError, match=r"the gradient of '0\.0' must be sharded like its weight.*other"):
        optimizer.step()


def test_what_is_not_sharded_is_not_touched():
    weight, columns = torch.ones(3), torch.ones(1, 2).double()
    assert not is_sharded(weight)
    assert local_of(weight) is weight
    assert over_shards([weight], columns) is columns


def test_replicas_on_a_mesh_of_one(mesh):
    weight = distribute_tensor(torch.ones(3), mesh, [Replicate()])
    assert is_sharded(weight)
    assert local_of(weight).data_ptr() == weight.to_local().data_ptr()
    columns = torch.tensor([[3.0, 2.0]]).double()
    assert torch.equal(over_shards([weight], columns, maxima=[1]), columns)


def test_super_weights_are_of_whole_tensors(mesh):
    optimizer = torch.optim.AdamW([nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))])
    with pytest.raises(TypeError, match=r"'0\.0' is a .*DTensor; .* gather a sharded"):
        wk.without_super_weights(optimizer)
