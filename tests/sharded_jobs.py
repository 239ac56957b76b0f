"""A model to shard in every way that torch has, its training, and what each process does in the tests.

The functions that `run_ranks` runs are named for what they do; a twin of the model on one process is
trained by the same `Training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import weibull_kernels as wk

STEPS, READ_EVERY = 50, 10


class Block(nn.Module):
    """An MLP with a residual branch; 12 hidden units divide by 2, 3 and 4, 7 inputs by none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(7)
        self.up = nn.Linear(7, 12)
        self.down = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """Weights of 35 and 84 entries, biases of 7, and a head of 1 row, which leaves most shards empty."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.read = nn.Linear(5, 7)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(7, 1)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def ddp(model: Model, world: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: Model, world: int) -> nn.Module:
    return _fully_sharded(model, init_device_mesh("cpu", (world,)))


def hsdp(model: Model, world: int) -> nn.Module:
    """Two replicas, so of an even number of processes; of 2 each replica is whole."""
    return _fully_sharded(model, init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copy", "shard")))


def tp_rows(model: Model, world: int) -> nn.Module:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    rows = RowwiseParallel(input_layouts=Replicate())
    plan = {"blocks.*.down": rows, "blocks.*.up": rows, "head": rows}  # of 12, 7 and 7 columns
    return parallelize_module(model, init_device_mesh("cpu", (world,)), plan)


def tp_columns(model: Model, world: int) -> nn.Module:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    columns = ColwiseParallel(output_layouts=Replicate())
    plan = {"read": columns, "blocks.*.up": columns, "blocks.*.down": columns}  # of 7, 12 and 7 rows
    return parallelize_module(model, init_device_mesh("cpu", (world,)), plan)


def fsdp_tp(model: Model, world: int) -> nn.Module:
    """Both on one mesh: 2 × 2 of 4 processes, else all of them for tensor parallelism."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    parallel = 2 if world == 4 else world
    mesh = init_device_mesh("cpu", (world // parallel, parallel), mesh_dim_names=("data", "tensor"))
    plan = {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    return _fully_sharded(model, mesh["data"])


def _fully_sharded(model: Model, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


MODES = {mode.__name__: mode for mode in (ddp, fsdp, hsdp, tp_rows, tp_columns, fsdp_tp)}


def modes_of(world: int) -> list[str]:
    return [name for name in MODES if name != "hsdp" or world % 2 == 0]


def groups_of(model: nn.Module, lr: float = 1e-2) -> list[dict[str, Any]]:
    """Vectors first, so that the head's bias of one entry has rows behind it."""
    named = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
    return [
        {"params": [(n, p) for n, p in named if p.ndim == 1], "lr": lr / 3, "weight_decay": 0.0},
        {"params": [(n, p) for n, p in named if p.ndim > 1], "lr": lr, "weight_decay": 0.1, "eps": 1e-7},
    ]


class Training:
    """Of a model, sharded or not, on the same batches wherever it runs."""

    def __init__(self, model: nn.Module, make: Any, lr: float = 1e-2, **settings: Any) -> None:
        self.model = model
        self.optimizer = make(groups_of(model, lr), betas=(0.9, 0.95), **settings)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step / 20))
        self.batches = 0

    def loss(self) -> Tensor:
        """Of the next batch."""
        data, self.batches = torch.Generator().manual_seed(self.batches), self.batches + 1
        inputs = torch.randn(16, 5, generator=data, dtype=torch.float64).to(self.parameters[0].dtype)
        return (self.model(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()

    def go_on(self, count: int) -> None:
        """Steps at a constant rate."""
        for _ in range(count):
            self.backward()
            self.optimizer.step()

    def steps(self, count: int) -> Iterator[int]:
        """Yields the number of each step after the optimizer made it, before the scheduler does."""
        for step in range(1, count + 1):
            self.backward()
            self.optimizer.step()
            yield step
            self._scheduler.step()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, wherever its shards are; a collective call."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def light(budget: wk.ForceBudget) -> wk.ForceBudget:
    """It with a sparse histogram, which takes a hundredth of the memory."""
    weights = budget.weights
    return dataclasses.replace(
        budget, weights=dataclasses.replace(weights, histogram=weights.histogram.to_sparse())
    )


def collectives(call: Any) -> tuple[Any, int]:
    """What a call returns, and how many collective operations it made."""
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as counted:
        found = call()
    return found, counted.get_total_counts()


def train_every_way() -> dict[str, dict[str, Any]]:
    """Trains in all modes; by mode what was measured of it and what it takes to judge that."""
    return {mode: _trained(mode) for mode in modes_of(dist.get_world_size())}


def _trained(mode: str) -> dict[str, Any]:
    model = MODES[mode](Model(), dist.get_world_size())
    training = Training(model, wk.AdamW)
    optimizer = training.optimizer
    found: dict[str, Any] = {key: [] for key in ("budgets", "drained", "measured", "calls", "whole")}
    for step in training.steps(STEPS):
        found["budgets"].append(wk.forces(optimizer))
        if step % READ_EVERY == 0:
            drained, of_drain = collectives(lambda: optimizer.ledger.drain(histogram=True))
            measured, of_forces = collectives(lambda: wk.forces(optimizer, histogram=True))
            found["drained"].append(light(drained))
            found["measured"].append(light(measured))
            found["calls"] += [of_drain, of_forces]
            found["whole"].append([whole(p) for p in training.parameters])
    training.backward()
    found["calls in a step"] = collectives(optimizer.step)[1]
    found["local"] = [
        p.to_local().detach().clone() if hasattr(p, "to_local") else p for p in training.parameters
    ]
    found["placements"] = [str(getattr(p, "placements", "plain")) for p in training.parameters]
    return found


def stages() -> list[tuple[wk.ForceBudget, int]]:
    """Two stages of a pipeline, each on 2 × 2 processes; the second reports once more than the first."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("stage", "data", "tensor"))
    stage, inner = mesh.get_local_rank("stage"), mesh["data", "tensor"]
    values = torch.arange(1, 6).double()[:, None] * (stage + 1) ** 0.5
    placed = [(Shard(0), Shard(1)), (Shard(0), Replicate()), (Replicate(), Replicate())]
    parameters = [nn.Parameter(distribute_tensor(values, inner, placements)) for placements in placed]
    optimizer = torch.optim.AdamW(parameters)
    return [collectives(lambda: wk.forces(optimizer)) for _ in range(1 + stage)]


def steps_beside_torch(mode: str, dtype: torch.dtype, settings: dict[str, Any]) -> dict[str, Any]:
    """30 steps of wk.AdamW and of torch's on the same gradients: weights and states of both."""
    world = dist.get_world_size()
    # Torch's fused step does not take plain and sharded parameters together.
    form = {"foreach": False} if mode.startswith("tp") else {"fused": True}
    theirs = Training(MODES[mode](Model(dtype), world), torch.optim.AdamW, **form, **settings)
    ours = Training(MODES[mode](Model(dtype), world), wk.AdamW, **settings)
    for _ in theirs.steps(30):
        for p, q in zip(theirs.parameters, ours.parameters, strict=True):
            q.grad = p.grad.clone()
        for group, its in zip(theirs.optimizer.param_groups, ours.optimizer.param_groups, strict=True):
            its["lr"] = group["lr"]
        ours.optimizer.step()
    return {
        "weights": [[*map(whole, of.parameters)] for of in (theirs, ours)],
        "states": [*map(states, (theirs, ours))],
    }


def states(training: Training) -> list[dict[str, Any]]:
    """What the state of each parameter is like, and its values gathered."""
    kinds = []
    for parameter in training.parameters:
        state = training.optimizer.state[parameter]
        kinds.append(
            {k: (type(t), t.dtype, t.shape, str(getattr(t, "placements", ""))) for k, t in state.items()}
        )
        kinds[-1] |= {f"{k}, whole": whole(t) for k, t in state.items()}
    return kinds


def gradients_placed_otherwise() -> dict[str, list[Any]]:
    """By placements of the gradient: weights after two steps of torch and of ours, and our calls in one."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for placement in (Partial(), Replicate(), Shard(1), Shard(0)):
        found[str(placement)] = []
        for make in (lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), lambda p: wk.AdamW(p, lr=0.1)):
            torch.manual_seed(3)
            weight = nn.Parameter(distribute_tensor(torch.randn(5, 4), mesh, [Shard(0)]))
            values = torch.randn(5, 4)
            optimizer = make([weight])
            for placed in (placement, Shard(0)):
                if placed.is_partial():
                    weight.grad = DTensor.from_local(values * (1 + dist.get_rank()), mesh, [placed])
                else:
                    weight.grad = distribute_tensor(values, mesh, [placed])
                _, calls = collectives(optimizer.step)
                found[str(placement)].append(
                    (whole(weight), whole(optimizer.state[weight]["exp_avg"]), calls)
                )
    return found


def infinity_in_one_shard() -> list[tuple[Any, ...]]:
    """A gradient scaler before and after a step in which one process found an infinity."""
    training = Training(fsdp(Model(torch.float32), dist.get_world_size()), wk.AdamW)
    scaler, found = torch.amp.GradScaler("cpu", init_scale=16.0), []
    for poisoned in (True, False):
        training.optimizer.zero_grad()
        scaler.scale(training.loss()).backward()
        if poisoned and dist.get_rank() == 1:
            training.parameters[0].grad.to_local()[0] = torch.inf
        before = [*map(whole, training.parameters)]
        scaler.step(training.optimizer)
        scaler.update()
        budget = training.optimizer.ledger.drain()
        moved = [not torch.equal(whole(p), b) for p, b in zip(training.parameters, before, strict=True)]
        found.append((budget.steps.tolist(), any(moved), scaler.get_scale(), budget.alignment))
    return found


def save(folder: str) -> tuple[list[Tensor], wk.ForceBudget]:
    """Trains 5 steps, saves in the usual ways, and goes on for 5: weights and budget of all 10."""
    import torch.distributed.checkpoint as dcp

    training = Training(fsdp(Model(), dist.get_world_size()), wk.AdamW)
    training.go_on(5)
    state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    torch.save(state, f"{folder}/{dist.get_rank()}.checkpoint")
    dcp.save(distributed_state(training), checkpoint_id=f"{folder}/distributed")
    training.go_on(5)
    return [*map(whole, training.parameters)], training.optimizer.ledger.drain()


def distributed_state(training: Training) -> dict[str, Any]:
    """As torch.distributed.checkpoint wants it, with the ledger beside it where there is one."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    model, optimizer = training.model, training.optimizer
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    return state | ({"ledger": optimizer.ledger.state_dict()} if isinstance(optimizer, wk.AdamW) else {})


def resume_from_own_file(folder: str) -> tuple[list[Tensor], wk.ForceBudget]:
    training = Training(fsdp(Model(), dist.get_world_size()), wk.AdamW, lr=1.0)
    state = torch.load(f"{folder}/{dist.get_rank()}.checkpoint", weights_only=False)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    return _resumed(training)


def resume_distributed(folder: str, mode: str, by: str = "wk") -> tuple[list[Tensor], Any]:
    """In any number of processes, and sharded in any way."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    make = wk.AdamW if by == "wk" else torch.optim.AdamW
    training = Training(MODES[mode](Model(), dist.get_world_size()), make, lr=1.0)
    state = distributed_state(training)
    dcp.load(state, checkpoint_id=f"{folder}/distributed")
    set_model_state_dict(training.model, state["model"])
    set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"])
    if "ledger" in state:
        training.optimizer.ledger.load_state_dict(state["ledger"])
    found = _resumed(training)
    if by != "wk":  # goes back to the folder, for ours to take over
        dcp.save(distributed_state(training), checkpoint_id=f"{folder}/by torch")
    return found


def _resumed(training: Training) -> tuple[list[Tensor], Any]:
    training.batches = 5
    ledger = getattr(training.optimizer, "ledger", None)
    held = None if ledger is None else ledger.peek()
    training.go_on(5)
    return [*map(whole, training.parameters)], None if ledger is None else (held, ledger.drain())


def file_of_another() -> str:
    """What is said to a process that loads the ledger of its neighbour."""
    optimizer = Training(fsdp(Model(), dist.get_world_size()), wk.AdamW).optimizer
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, optimizer.state_dict()["ledger"])
    try:
        optimizer.ledger.load_state_dict(said[1 - dist.get_rank()])
    except ValueError as error:
        return str(error)
    return "nothing"


def lose_a_process(how: str) -> None:
    """The last process is gone, or raises, between two steps; the others go on with their training."""
    from ranks import kill_myself

    training = Training(fsdp(Model(), dist.get_world_size()), wk.AdamW)
    for step in training.steps(1000):
        if step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            if how == "raises":
                raise RuntimeError("of its own")
            kill_myself()
        wk.forces(training.optimizer)


def take_over_from_torch(folder: str) -> None:
    """Loads what torch's AdamW saved after 10 steps, and has its state and its next step."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    after = []
    for make in (wk.AdamW, torch.optim.AdamW):
        training = Training(fsdp(Model(), dist.get_world_size()), make, lr=1.0)
        state = distributed_state(training)
        state.pop("ledger", None)
        dcp.load(state, checkpoint_id=f"{folder}/by torch")
        set_model_state_dict(training.model, state["model"])
        set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"])
        training.batches = 10
        training.go_on(2)
        assert all(training.optimizer.state[p]["step"] == 12 for p in training.parameters)
        after.append([*map(whole, training.parameters)])
    for p, q in zip(*after, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12 * float(q.abs().max()))
