"""wk.AdamW on shards: torch's steps, torch's checkpoints, and a ledger that survives them."""

import pytest
import sharded_jobs
import torch
from ranks import end_of_ranks, run_ranks
from sharded_jobs import Model, Training
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import weibull_kernels as wk

FORCES = ("alignment", "injection", "decay", "coupling", "norm_sq")


def columns(budget):
    return torch.stack([getattr(budget, name) for name in FORCES], dim=1)


@pytest.mark.parametrize(
    ("world", "mode", "dtype", "settings"),
    [
        (3, "fsdp", torch.float32, {}),
        (2, "hsdp", torch.float32, {"amsgrad": True}),
        (2, "tp_columns", torch.float32, {"maximize": True}),
        (4, "fsdp_tp", torch.float64, {}),
    ],
)
def test_steps_are_those_of_torch(tmp_path, world, mode, dtype, settings):
    allowed = 1e-12 if dtype == torch.float64 else 2e-6
    for found in run_ranks(sharded_jobs.steps_beside_torch, world, tmp_path, mode, dtype, settings):
        for p, q in zip(*found["weights"], strict=True):
            assert (p - q).abs().max() <= allowed * p.abs().max()
        for theirs, ours in zip(*found["states"], strict=True):
            assert list(theirs) == list(ours)
            for key, kind in theirs.items():
                if key.endswith("whole"):
                    assert (kind - ours[key]).abs().max() <= allowed * kind.abs().max()
                else:
                    assert kind == ours[key]


def test_gradients_that_are_placed_otherwise_go_where_torch_sends_them(tmp_path):
    for found in run_ranks(sharded_jobs.gradients_placed_otherwise, 2, tmp_path):
        for placement, (*theirs, first, second) in found.items():
            for (weight, exp_avg, _), (its, moment, _) in zip(theirs, (first, second), strict=True):
                assert torch.allclose(weight, its, rtol=1e-6)
                assert torch.allclose(exp_avg, moment, rtol=1e-6)
            assert (first[2] > 0) == (placement in ("P(sum)", "S(1)"))
            assert second[2] == 0


def test_an_infinity_in_one_shard_stops_the_step_everywhere(tmp_path):
    results = run_ranks(sharded_jobs.infinity_in_one_shard, 2, tmp_path)
    for skipped, taken in results:
        assert (set(skipped[0]), skipped[1], skipped[2]) == ({0}, False, 8.0)
        assert (set(taken[0]), taken[1], taken[2]) == ({1}, True, 8.0)
        assert (skipped[3] == 0).all()
        assert torch.equal(taken[3], results[0][1][3])


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints by two processes, and what their run came to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_ranks(sharded_jobs.save, 2, folder / "ranks", str(folder))[0]


def test_a_run_goes_on_from_the_files_of_its_processes(saved, tmp_path):
    folder, (weights, budget) = saved
    for found, (held, drained) in run_ranks(sharded_jobs.resume_from_own_file, 2, tmp_path, str(folder)):
        assert held.steps.tolist() == [5] * len(weights)
        assert drained.steps.tolist() == [10] * len(weights)
        assert all(map(torch.equal, found, weights))
        assert torch.equal(columns(drained), columns(budget))
        assert torch.equal(drained.rounding, budget.rounding)


@pytest.mark.parametrize(
    ("world", "mode"), [(2, "fsdp"), (3, "fsdp"), (1, "ddp"), (4, "fsdp_tp"), (2, "ddp")]
)
def test_a_run_goes_on_from_a_distributed_checkpoint_in_any_number_of_processes(saved, tmp_path, world, mode):
    folder, (weights, budget) = saved
    for found, (held, drained) in run_ranks(
        sharded_jobs.resume_distributed, world, tmp_path, str(folder), mode
    ):
        assert held.steps.tolist() == [5] * len(weights)
        assert drained.steps.tolist() == [10] * len(weights)
        assert drained.step.tolist() == [10] * len(weights)
        for p, q in zip(found, weights, strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-12 * q.abs().max())
        scale = columns(budget).abs().amax(1, keepdim=True)
        assert ((columns(drained) - columns(budget)).abs() <= 1e-12 * scale).all()
        assert torch.allclose(drained.weights.norm_sq, budget.weights.norm_sq, rtol=1e-12)


def test_torch_takes_over_a_distributed_checkpoint_and_gives_it_back(saved, tmp_path):
    folder, (weights, _) = saved
    for found, _ in run_ranks(
        sharded_jobs.resume_distributed, 2, tmp_path / "torch", str(folder), "fsdp", "torch"
    ):
        for p, q in zip(found, weights, strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-12 * q.abs().max())
    run_ranks(sharded_jobs.take_over_from_torch, 2, tmp_path / "wk", str(folder))


def test_the_ledger_of_another_process_is_refused(tmp_path):
    for rank, said in enumerate(run_ranks(sharded_jobs.file_of_another, 2, tmp_path)):
        assert f"the part of process {1 - rank} of 2, and this is process {rank} of 2" in said
        assert "optimizer.ledger.state_dict()" in said


def test_the_ledger_of_shards_is_refused_where_nothing_is_sharded():
    optimizer = Training(Model(), wk.AdamW).optimizer
    rows = optimizer.ledger.state_dict()
    with pytest.raises(ValueError, match="the part of process 1 of 2, and this is process 0 of 1"):
        optimizer.ledger.load_state_dict({**rows, "part": [1, 2]})


# Autograd and layout, on one process


def test_autograd_learns_that_a_shard_has_changed(mesh):
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))
    optimizer = wk.AdamW([weight])
    product = (weight * weight).sum()
    weight.grad = torch.ones_like(weight)
    version = weight._version
    optimizer.step()
    assert weight._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_state_in_float32_is_sharded_like_bfloat16_weights(mesh):
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(3, 2, dtype=torch.bfloat16), mesh, [Shard(1)]))
    optimizer = wk.AdamW([weight], state_dtype=torch.float32)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    twin = wk.AdamW([weight], state_dtype=torch.float32)
    twin.load_state_dict(optimizer.state_dict())
    for moment in ("exp_avg", "exp_avg_sq"):
        for state in (optimizer.state[weight], twin.state[weight]):
            assert (state[moment].dtype, state[moment].placements) == (torch.float32, (Shard(1),))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda weight, mesh: torch.zeros(3, 2),
            "got a tensor that is not sharded; load state with .*set_opt",
        ),
        (lambda weight, mesh: distribute_tensor(torch.zeros(3, 2), mesh, [Replicate()]), r"got \(Replicate"),
    ],
    ids=["plain", "replicated"],
)
def test_state_that_is_not_sharded_like_its_weight(mesh, state, message):
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)]))
    for optimizer in (wk.AdamW([weight]), torch.optim.AdamW([weight])):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.state[weight]["exp_avg"] = state(weight, mesh)
        with pytest.raises(
            ValueError, match=rf"exp_avg of '0\.0' must be sharded like its weight.*{message}"
        ):
            wk.forces(optimizer)
    with pytest.raises(ValueError, match=r"exp_avg of '0\.0' must be sharded like its weight"):
        wk.AdamW.step(_with_state_of(optimizer, weight))


def _with_state_of(optimizer, weight):
    other = wk.AdamW([weight])
    other.state[weight] = optimizer.state[weight]
    return other


# A process that is gone


@pytest.mark.parametrize("how", ["is killed", "raises"])
def test_where_a_process_is_gone_the_others_end_with_an_error(tmp_path, how):
    *others, gone = end_of_ranks(sharded_jobs.lose_a_process, 3, tmp_path, how, timeout=30)
    assert ("exit code -9" if how == "is killed" else "of its own") in gone
    for error in others:
        assert error is not None
        assert "still running" not in error
        assert "Traceback" in error
