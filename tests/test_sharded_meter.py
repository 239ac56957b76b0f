"""A meter on sharded models: whole budgets, one collective call a mesh and record, the first one writes."""

import functools

import pytest
import torch
import torch.distributed as dist
from loops import Kept
from ranks import end_of_ranks, kill_myself, run_ranks
from sharded_jobs import MODES, Model, collectives, groups_of, modes_of

import weibull_kernels as wk

EVERY, STEPS = 4, 10
MAKE = {
    "sgd": lambda groups: torch.optim.SGD(without_eps(groups), momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, foreach=False),
    "ledger": wk.AdamW,
}
COLUMNS = ("alignment", "injection", "decay", "coupling", "norm_sq", "numel", "steps", "step")


def without_eps(groups):
    return [{key: value for key, value in group.items() if key != "eps"} for group in groups]


def metered(model, kind, call=lambda step: (step(), 0)):
    """What a meter records of ten steps, and the collective calls of each step."""
    optimizer, kept, calls = MAKE[kind](groups_of(model)), Kept(), []
    meter = wk.attach(optimizer, every=EVERY, statistics="weibull", sinks=[kept])
    for step in range(STEPS):
        inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        calls.append(call(optimizer.step)[1])
    meter.detach()
    records = [
        (step, budget.names, [getattr(budget, name) for name in COLUMNS], scalars)
        for step, budget, scalars in kept.records
    ]
    statistics = wk.weight_statistics(model)
    return {
        "records": records,
        "calls": calls,
        "latest": meter.latest.alignment,
        "meshes": meshes(model),
        "statistics": {name: getattr(statistics, name) for name in ("names", "numel", "norm_sq", "max_abs")},
        "counted": statistics.histogram.sum(0),
    }


def meshes(model):
    """Those of more than one process."""
    found = {p.device_mesh for p in model.parameters() if hasattr(p, "device_mesh")}
    return sum(mesh.size() > 1 for mesh in found)


def meter_every_way():
    world = dist.get_world_size()
    return {
        (mode, kind): metered(MODES[mode](Model(), world), kind, collectives)
        for mode in modes_of(world)
        for kind in MAKE
    }


@pytest.fixture(scope="module")
def alone():
    return {kind: metered(Model(), kind) for kind in MAKE}


@pytest.fixture(scope="module")
def metered_by(tmp_path_factory):
    """What each of so many processes found; each number of them runs once."""

    @functools.cache
    def ranks(world):
        return run_ranks(meter_every_way, world, tmp_path_factory.mktemp("ranks"))

    return ranks


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_records_are_those_of_one_process(world, metered_by, alone):
    ranks = metered_by(world)
    for mode in modes_of(world):
        for kind in MAKE:
            first, *others = (rank[mode, kind] for rank in ranks)
            for other in others:
                assert other["records"] == []  # they have the numbers and write nothing
                assert torch.equal(other["latest"], first["latest"])
            assert_same_records(first["records"], alone[kind]["records"], (mode, kind))
            for rank in ranks:
                assert_same_statistics(rank[mode, kind], alone[kind])


def assert_same_records(found, expected, what):
    for (step, names, columns, scalars), wanted in zip(found, expected, strict=True):
        assert (step, names) == wanted[:2]
        largest = max(column.abs().max() for column in wanted[2][:4])
        for name, column, other in zip(COLUMNS, columns, wanted[2], strict=True):
            torch.testing.assert_close(
                column, other, rtol=1e-6, atol=1e-12 * largest.item(), msg=f"{what}, step {step}, {name}"
            )
        for name, column in scalars.items():
            torch.testing.assert_close(column, wanted[3][name], rtol=1e-6, atol=0, equal_nan=True)


def assert_same_statistics(found, expected):
    """`wk.weight_statistics` of the sharded model is that of the whole one."""
    for name, column in found["statistics"].items():
        wanted = expected["statistics"][name]
        if name == "names":
            assert column == wanted
        else:
            torch.testing.assert_close(column, wanted, rtol=1e-9, atol=0)
    assert torch.equal(found["counted"], expected["counted"])


@pytest.mark.parametrize("world", [2, 4])
def test_a_record_takes_one_collective_call_a_mesh_and_other_steps_none(world, metered_by):
    for rank in metered_by(world):
        for (mode, kind), found in rank.items():
            due = [found["meshes"] if step % EVERY == 0 else 0 for step in range(1, STEPS + 1)]
            assert found["calls"] == due, (mode, kind)


def one_dies():
    """The second process is killed between two steps; the first would measure with it."""
    model = MODES["fsdp"](Model(), dist.get_world_size())
    optimizer = torch.optim.SGD(without_eps(groups_of(model)))
    wk.attach(optimizer, sinks=[Kept()])
    for step in range(1000):
        if step == 3 and dist.get_rank() == 1:
            kill_myself()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # no collective call but the meter's
        optimizer.step()


def test_a_process_that_dies_makes_the_others_fail(tmp_path):
    first, second = end_of_ranks(one_dies, 2, tmp_path, timeout=30)
    assert second == "exit code -9"
    assert first is not None
    assert first != "still running"
    assert "all_reduce" in first


def write_on(rank, folder):
    """Every process makes its sinks as a script does, and attaches."""
    model = MODES["fsdp"](Model(), dist.get_world_size())
    optimizer = wk.AdamW(groups_of(model))
    name = f"{dist.get_rank()}.parquet" if rank is None else "run.parquet"
    with wk.attach(optimizer, every=2, rank=rank, sinks=[wk.ParquetSink(folder / name)]):
        for step in range(4):
            optimizer.zero_grad()
            inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            model(inputs).square().mean().backward()
            optimizer.step()
    dist.barrier()
    return sorted(file.name for file in folder.iterdir() if "parquet" in file.name)


@pytest.mark.parametrize("rank", [0, 1, None])
def test_the_process_that_was_asked_for_writes(rank, tmp_path):
    files = ["0.parquet", "1.parquet"] if rank is None else ["run.parquet"]
    assert run_ranks(write_on, 2, tmp_path, rank, tmp_path) == [files] * 2
    frames = [wk.read_run(tmp_path / file) for file in files]
    assert frames[0]["step"].unique().tolist() == [2, 4]
    assert all(frame.equals(frames[0]) for frame in frames)


def leave_with_an_error(fails):
    """Nobody waits for sums that another process never makes."""
    model = MODES["fsdp"](Model(), dist.get_world_size())
    optimizer, kept, said = wk.AdamW(groups_of(model)), Kept(), None
    try:
        with wk.attach(optimizer, every=100, sinks=[kept]) as meter:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            if fails == "loop" and dist.get_rank() == 1:
                raise MemoryError("mine")
            if fails == "measuring":
                (hooks,) = meter._hooks
                hooks._on_failure(ValueError("exp_avg does not fit"))
            if fails == "loop":
                meter._detach(rest=False, wait=False, raises=False)
    except (MemoryError, ValueError) as error:
        said = str(error)
    return said, kept.steps, meter.attached


def test_a_block_that_an_error_ends_asks_nothing_of_the_others(tmp_path):
    assert run_ranks(leave_with_an_error, 2, tmp_path, "loop") == [(None, [], False), ("mine", [], False)]


def test_measuring_that_fails_on_shards_is_raised(tmp_path):
    ended = run_ranks(leave_with_an_error, 2, tmp_path, "measuring")
    assert ended == [("exp_avg does not fit", [], False)] * 2
