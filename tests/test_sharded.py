"""Models in shards, in every way that torch has, against a twin of each on one process."""

import pytest
import sharded_jobs
import torch
from oracle import LOG_TOLERANCE
from ranks import run_ranks
from sharded_jobs import READ_EVERY, STEPS, Model, Training, modes_of

from weibull_kernels.kernels import reference
from weibull_kernels.kernels.interface import Rows

WORLDS = (1, 2, 3, 4)
EVERY_WAY = [(world, mode) for world in WORLDS for mode in modes_of(world)]
FORCES = ("alignment", "injection", "decay", "coupling", "norm_sq")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """What each process found in each mode, for a number of processes; each number runs once."""
    known = {}

    def found(world):
        if world not in known:
            folder = tmp_path_factory.mktemp("ranks")
            known[world] = run_ranks(sharded_jobs.train_every_way, world, folder)
        return known[world]

    return found


@pytest.fixture(scope="session")
def twin():
    """Budgets of every step, from copies of the weights before it: u = (c·w − w⁺)/η."""
    torch.manual_seed(0)
    training = Training(Model(), torch.optim.AdamW, foreach=False)
    names = [name for group in training.optimizer.param_groups for name in group["param_names"]]
    found = {"names": names, "numel": [p.numel() for p in training.parameters], "budgets": [], "weights": []}
    before = [p.detach().clone() for p in training.parameters]
    for _ in training.steps(STEPS):
        after = [p.detach().clone() for p in training.parameters]
        groups = [group for group in training.optimizer.param_groups for _ in group["params"]]
        found["budgets"].append(torch.stack([*map(by_hand, before, after, groups)]))
        found["weights"].append(after)
        before = after
    return found


def by_hand(before, after, group):
    """alignment, injection, decay, coupling and ‖w‖² of one step."""
    lr, lost = group["lr"], group["lr"] * group["weight_decay"]
    update = ((1 - lost) * before - after) / lr
    wu, uu, ww = ((a * b).sum() for a, b in ((before, update), (update, update), (before, before)))
    return torch.stack([-2 * lr * wu, lr**2 * uu, -2 * lost * ww, lost * (2 * lr * wu + lost * ww), ww])


def columns(budget):
    return torch.stack([getattr(budget, name) for name in FORCES], dim=1)


def assert_close(found, expected, what):
    """To 1e-6, and where alignments cancel to 1e-6 of a millionth of what was summed."""
    apart = (found - expected).abs() / (1e-6 * expected.abs() + 1e-12 * expected.abs().amax(1, keepdim=True))
    assert (apart <= 1).all(), f"{what}: {apart.max():.1e} times what is allowed"


@pytest.mark.parametrize(("world", "mode"), EVERY_WAY)
def test_budgets_are_those_of_a_twin_on_one_process(trained, twin, world, mode):
    for rank, found in enumerate(trained(world)):
        for step, (budget, expected) in enumerate(
            zip(found[mode]["budgets"], twin["budgets"], strict=True), 1
        ):
            assert_close(columns(budget), expected, f"rank {rank}, step {step}")
            assert budget.names == tuple(twin["names"])
            assert budget.numel.tolist() == twin["numel"]
            assert budget.steps.tolist() == [1] * len(twin["names"])
            assert budget.step.tolist() == [step] * len(twin["names"])


@pytest.mark.parametrize(("world", "mode"), EVERY_WAY)
def test_a_ledger_of_shards_books_what_happened_to_the_twin(trained, twin, world, mode):
    for rank, found in enumerate(trained(world)):
        for part, budget in enumerate(found[mode]["drained"]):
            steps = torch.stack(twin["budgets"][part * READ_EVERY : (part + 1) * READ_EVERY])
            expected = torch.cat([steps[..., :4].sum(0), steps[0, :, 4:]], dim=1)
            assert_close(columns(budget), expected, f"rank {rank}, interval {part}")
            assert (budget.rounding.abs() <= 1e-12 * (budget.norm_sq + budget.weights.norm_sq)).all()
            assert budget.names == tuple(twin["names"])
            assert budget.numel.tolist() == twin["numel"]
            assert budget.steps.tolist() == [READ_EVERY] * len(twin["names"])
            assert budget.step.tolist() == [(part + 1) * READ_EVERY] * len(twin["names"])


@pytest.mark.parametrize(("world", "mode"), EVERY_WAY)
def test_statistics_are_those_of_the_gathered_weights(trained, twin, world, mode):
    for found in trained(world):
        of_mode = found[mode]
        reads = zip(of_mode["drained"], of_mode["measured"], of_mode["whole"], strict=True)
        for part, (drained, measured, weights) in enumerate(reads):
            expected = sums_of(weights)
            for statistics in (drained.weights, measured.weights):
                for exact in ("zero_count", "non_finite_count", "max_abs"):
                    assert torch.equal(getattr(statistics, exact).double(), getattr(expected, exact).double())
                assert torch.allclose(statistics.norm_sq, expected.weight_sq, rtol=1e-12, atol=0)
                allowed = LOG_TOLERANCE * torch.tensor(
                    [(1 + reference.log_magnitudes(w).abs()).sum() for w in weights], dtype=torch.float64
                )
                assert ((statistics.log_sum - expected.log_sum).abs() <= allowed).all()
                assert ((statistics.log_sq_sum - expected.log_sq_sum).abs() <= allowed).all()
                assert torch.equal(statistics.histogram.to_dense(), expected.histogram)
            of_twin = sums_of(twin["weights"][(part + 1) * READ_EVERY - 1])
            assert torch.equal(expected.histogram, of_twin.histogram)


def sums_of(weights):
    nothing, one = [None] * len(weights), torch.ones(len(weights), dtype=torch.float64)
    return reference.sums(Rows(weights, nothing, nothing, one, one, one), with_histogram=True)


@pytest.mark.parametrize(("world", "mode"), EVERY_WAY)
def test_every_process_gets_the_same_bits(trained, world, mode):
    first, *others = (found[mode] for found in trained(world))
    for other in others:
        for kind in ("budgets", "drained", "measured"):
            for mine, its in zip(first[kind], other[kind], strict=True):
                assert torch.equal(columns(mine), columns(its))
                assert torch.equal(mine.weights.log_sum, its.weights.log_sum)


@pytest.mark.parametrize(("world", "mode"), EVERY_WAY)
def test_a_report_takes_one_all_reduce_for_each_mesh_and_a_step_none(trained, world, mode):
    # Of fsdp_tp on 2 × 2 the norms are on the mesh of the data alone; of a mesh of 1 nothing is to be added.
    meshes = 0 if world == 1 or mode == "ddp" else 2 if (world, mode) == (4, "fsdp_tp") else 1
    for found in trained(world):
        assert found[mode]["calls"] == [meshes] * len(found[mode]["calls"])
        assert found[mode]["calls in a step"] == 0


# Faults of other tools.


@pytest.mark.parametrize(
    ("world", "mode"), [(w, m) for w, m in EVERY_WAY if w > 1 and m not in ("ddp", "hsdp")]
)
def test_a_norm_is_not_that_of_the_local_shard(trained, world, mode):
    for found in trained(world):
        norms = found[mode]["drained"][-1].weights.norm_sq
        local = torch.stack([p.double().square().sum() for p in found[mode]["local"]])
        sharded = [row for row, placed in enumerate(found[mode]["placements"]) if "Shard" in placed]
        assert (local[sharded] < 0.99 * norms[sharded]).any()  # so that the fault would show
        expected = torch.stack([p.square().sum() for p in found[mode]["whole"][-1]])
        assert torch.allclose(norms, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("world", "mode"), [(w, m) for w, m in EVERY_WAY if w > 1 and m in ("ddp", "hsdp", "tp_rows", "fsdp_tp")]
)
def test_replicas_are_counted_once(trained, twin, world, mode):
    for found in trained(world):
        replicated = [row for row, placed in enumerate(found[mode]["placements"]) if "Shard(" not in placed]
        assert replicated or mode == "hsdp" or mode == "fsdp_tp"
        weights = found[mode]["drained"][-1].weights
        assert weights.numel.tolist() == twin["numel"]
        counted = weights.histogram.to_dense().sum(1) + weights.zero_count + weights.non_finite_count
        assert counted.tolist() == twin["numel"]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_empty_shards_shift_no_row(trained, twin, world):
    found = trained(world)
    place = twin["names"].index("head.bias")
    assert place < len(twin["names"]) - 5  # rows that could shift stand behind it
    assert [len(of["fsdp"]["local"][place]) for of in found] == [1] + [0] * (world - 1)
    for of in found:
        norms = of["fsdp"]["drained"][-1].weights.norm_sq
        assert torch.allclose(norms, torch.stack([w.square().sum() for w in twin["weights"][-1]]), rtol=1e-9)


def test_the_stages_of_a_pipeline_do_not_wait_for_each_other(tmp_path):
    """Each is 2 × 2 of the processes, whose dimensions take an all-reduce each."""
    for rank, found in enumerate(run_ranks(sharded_jobs.stages, 8, tmp_path)):
        stage = rank // 4
        (budget, calls), *more = found
        assert len(more) == stage  # the second reports twice
        assert calls == 2
        assert budget.norm_sq.tolist() == pytest.approx([55 * (stage + 1)] * 3)
        assert budget.weights.max_abs.tolist() == pytest.approx([5 * (stage + 1) ** 0.5] * 3)
