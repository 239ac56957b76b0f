"""The groups of a model that PyTorch's own engine has sharded."""

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trees import groups_of, llama


def test_sharded_parameters_have_the_groups_of_the_whole(mesh):
    torch.manual_seed(0)
    whole, sharded = llama(), llama()
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    groups = groups_of(sharded)
    for plain, other in zip(groups_of(whole), groups, strict=True):
        assert [name for name, _ in plain.pop("params")] == [name for name, _ in other["params"]]
        assert plain == {key: value for key, value in other.items() if key != "params"}
    optimizer = torch.optim.AdamW(groups)
    for parameter in sharded.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
