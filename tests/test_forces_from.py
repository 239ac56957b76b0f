"""Budgets from the flat shards of other engines, against those of whole parameters."""

import copy
import re

import piece_jobs
import pytest
import torch
from piece_jobs import one_piece
from ranks import run_ranks
from sharded_jobs import Model, Training

import weibull_kernels as wk

COLUMNS = ("alignment", "injection", "decay", "coupling", "norm_sq", "numel", "steps", "step")


def columns(budget):
    return torch.stack([getattr(budget, name).double() for name in COLUMNS], dim=1)


def shards_of(optimizer, **more):
    """All parameters, each as one shard."""
    for group in optimizer.param_groups:
        for name, weight in zip(group["param_names"], group["params"], strict=True):
            state = optimizer.state[weight]
            second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
            yield name, weight, state["exp_avg"], state[second], {**group, "step": state["step"], **more}


def assert_alike(found, expected):
    assert found.names == expected.names
    scale = columns(expected).abs().amax(1, keepdim=True)
    assert ((columns(found) - columns(expected)).abs() <= 1e-13 * scale).all()
    assert torch.equal(found.weights.max_abs, expected.weights.max_abs)
    assert torch.allclose(found.weights.log_sum, expected.weights.log_sum, rtol=1e-6)
    if expected.weights.histogram is not None:
        assert torch.equal(found.weights.histogram, expected.weights.histogram)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_pieces_over_processes_have_the_forces_of_the_whole(tmp_path, world):
    results = run_ranks(piece_jobs.forces_of_pieces, world, tmp_path)
    for rank in results:
        for (found, expected, calls), (first, _, _) in zip(rank, results[0], strict=True):
            order = [found.names.index(name) for name in expected.names]
            assert_alike(found.select(order), expected)
            assert torch.equal(columns(found), columns(first))
            assert calls == 3  # one all-reduce of sums, and two gathers of names and numbers


def test_two_weights_by_hand():
    # m̂ = 1, v̂ = 1, so u = 1; c = 0.95 and the two weights before were (2 + 0.1)/0.95.
    budget = wk.forces_from([one_piece("w")])
    before = 2.1 / 0.95
    assert budget.names == ("w",)
    assert budget.numel.tolist() == [2]
    assert budget.norm_sq.item() == pytest.approx(2 * before**2)
    assert budget.alignment.item() == pytest.approx(-2 * 0.1 * 2 * before)
    assert budget.injection.item() == pytest.approx(0.01 * 2)
    assert budget.decay.item() == pytest.approx(-2 * 0.05 * 2 * before**2)
    assert (budget.norm_sq + budget.predicted_change).item() == pytest.approx(8.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amsgrad": True},
        {"maximize": True},
        {"foreach": True},
        {"fused": True},
        {"lr": torch.tensor(0.1)},
    ],
    ids=str,
)
def test_a_group_of_torch_is_rounded_as_torch_rounds_it(dtype, settings):
    training = Training(Model(dtype), lambda groups, **kw: torch.optim.AdamW(_set(groups, settings), **kw))
    training.go_on(3)
    expected = wk.forces(training.optimizer, histogram=True)
    assert_alike(wk.forces_from(shards_of(training.optimizer), histogram=True), expected)


def _set(groups, settings):
    return [{**group, **settings} for group in groups]


def test_decay_through_the_gradient_is_no_force():
    training = Training(Model(), torch.optim.Adam)
    training.go_on(3)
    expected = wk.forces(training.optimizer)
    assert (expected.decay == 0).all()
    assert_alike(wk.forces_from(shards_of(training.optimizer)), expected)
    bare = [
        (*shard[:4], _bare(shard[4], decoupled_weight_decay=False)) for shard in shards_of(training.optimizer)
    ]
    assert_alike(wk.forces_from(bare), expected)


def _bare(group, **more):
    return {key: group[key] for key in ("lr", "weight_decay", "betas", "eps", "step")} | more


def test_numbers_of_another_engine_are_not_rounded():
    name, weight, exp_avg, exp_avg_sq, group = one_piece("w")
    tensors = [tensor.float() for tensor in (weight, exp_avg, exp_avg_sq)]
    budget = wk.forces_from([(name, *tensors, group)])
    before = (2 + 0.1 * (0.1 / 0.1)) / 0.95
    assert budget.decay.item() == pytest.approx(-2 * 0.05 * 2 * before**2, rel=1e-6)
    uncorrected = wk.forces_from([(name, *tensors, {**group, "bias_correction": False})])
    assert uncorrected.injection.item() == pytest.approx(0.01 * 2, rel=1e-6)  # u = 0.1/0.1 without it too
    lower = wk.forces_from(
        [(name, tensors[0], tensors[1], 4 * tensors[2], {**group, "bias_correction": False})]
    )
    assert lower.injection.item() == pytest.approx(0.01 * 2 / 4, rel=1e-6)


def test_shards_of_one_name_add_up_and_empty_ones_add_nothing():
    training = Training(Model(), torch.optim.AdamW)
    training.go_on(2)
    cut = []
    for name, *tensors, group in shards_of(training.optimizer):
        flat = [tensor.detach().flatten() for tensor in tensors]
        cut += [
            (name, *(t[part] for t in flat), group) for part in (slice(0, 2), slice(0, 0), slice(2, None))
        ]
    expected = wk.forces(training.optimizer, histogram=True)
    assert_alike(
        wk.forces_from(cut[::-1], histogram=True).select([*range(len(expected.names))][::-1]), expected
    )


def test_before_the_first_step_there_are_no_moments():
    name, weight, _, _, group = one_piece("w")
    budget = wk.forces_from([(name, weight, None, None, {**group, "step": 0}), one_piece("v")])
    assert budget.steps.tolist() == [0, 1]
    assert budget.alignment[0] == budget.decay[0] == 0
    assert budget.norm_sq[0] == 8


def test_nothing_is_changed():
    training = Training(Model(), torch.optim.AdamW)
    training.go_on(2)
    shards = [*shards_of(training.optimizer)]
    before, state = copy.deepcopy([shard[1:4] for shard in shards]), torch.get_rng_state()
    wk.forces_from(shards, histogram=True)
    for shard, then in zip(shards, before, strict=True):
        assert all(map(torch.equal, shard[1:4], then))
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_may_hold_different_names(tmp_path):
    first, *others = run_ranks(piece_jobs.different_names, 3, tmp_path)
    assert first.names == ("a", "b", "c")
    assert first.numel.tolist() == [2, 4, 2]
    assert first.weights.norm_sq.tolist() == [8, 50, 8]
    assert first.weights.max_abs.tolist() == [2, 4, 2]
    assert first.roles == ("ffn",) * 3
    for other in others:
        assert other.names == first.names
        assert torch.equal(columns(other), columns(first))


# What is wrong is said on every process


@pytest.mark.parametrize(
    ("what", "here", "there"),
    [
        ("numbers", "'b' were stepped with different numbers: weight_decay 0.5 and 0.25, decay_factor", None),
        ("iterable", "LookupError: the engine has no such shard", "process 1 .* no such shard"),
        (
            "group",
            "ValueError: the group of 'a' has no weight_decay, betas, eps, step",
            "process 1 .* 'a' has no",
        ),
        ("histogram", "ValueError: histogram= must be the same", None),
        ("nothing", "ValueError: there are no shards to measure", None),
    ],
)
def test_trouble_with_one_process_is_told_to_all(tmp_path, what, here, there):
    first, second = run_ranks(piece_jobs.trouble, 2, tmp_path, what, timeout=60)
    assert here in second
    if there is None:
        assert first == second
    else:
        assert first.startswith("RuntimeError: the shards of process 1")
        assert re.search(there, first)


NAME, WEIGHT, EXP_AVG, EXP_AVG_SQ, GROUP = one_piece("w")


@pytest.mark.parametrize(
    ("shard", "error", "message"),
    [
        ((NAME, WEIGHT), TypeError, r"expected shards .*, got \(str, Tensor\)"),
        ({"w": WEIGHT}, TypeError, "expected shards .*, got a dict"),
        ((3, WEIGHT, EXP_AVG, EXP_AVG_SQ, GROUP), TypeError, r"expected shards .*, got \(int"),
        ((NAME, 2.0, EXP_AVG, EXP_AVG_SQ, GROUP), TypeError, "weight of 'w' must be a tensor .* got float"),
        ((NAME, WEIGHT, EXP_AVG, EXP_AVG_SQ, 0.1), TypeError, "its group a mapping, got Tensor and float"),
        ((NAME, WEIGHT.long(), EXP_AVG, EXP_AVG_SQ, GROUP), TypeError, "'w' has dtype torch.int64"),
        (
            (NAME, WEIGHT, EXP_AVG, None, GROUP),
            TypeError,
            "exp_avg_sq of 'w' must be a tensor like its weight",
        ),
        ((NAME, WEIGHT, None, None, GROUP), ValueError, "'w' has no moments, but its group has step 1"),
        (
            (NAME, WEIGHT, EXP_AVG[:1], EXP_AVG_SQ, GROUP),
            ValueError,
            r"exp_avg of 'w' must have .* shape \(2,\)",
        ),
        (
            (NAME, WEIGHT, EXP_AVG, EXP_AVG_SQ, {**GROUP, "weight_decay": 10.0}),
            ValueError,
            "of 'w' is 1: the step",
        ),
    ],
    ids=str,
)
def test_what_is_no_shard(shard, error, message):
    with pytest.raises(error, match=message):
        wk.forces_from([shard])


def test_no_shards_at_all():
    with pytest.raises(ValueError, match="there are no shards to measure"):
        wk.forces_from([])
