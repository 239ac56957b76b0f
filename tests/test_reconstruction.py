import json
import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weibull_kernels as wk
from weibull_kernels.reconstruction import BRIDGES, integrate_forces, reconstruction_error


def polynomial(degree):
    """‖w‖² after step t, and the force of step t that leads there, exactly."""

    def norm_sq(t):
        return 7.0 + np.asarray(t, float) ** (degree + 1)

    return norm_sq, lambda t: norm_sq(t) - norm_sq(np.asarray(t) - 1)


def a_run(steps=20_000, lr=1e-3, numel=1e6):
    """‖w‖² [steps + 1] and the force of every step under a warm-up, a cosine and fading alignment."""
    norm_sq, change = np.empty(steps + 1), np.zeros(steps + 1)
    norm_sq[0] = 4e-4 * numel
    for t in range(1, steps + 1):
        eta = lr * min(t / 200, 0.55 + 0.45 * math.cos(math.pi * t / steps))
        update = numel * 0.2**2
        cosine = 0.03 * math.exp(-t / 3000) + 0.002
        change[t] = eta**2 * update + 2 * eta * cosine * math.sqrt(norm_sq[t - 1] * update)
        change[t] -= 2 * eta * 0.01 * norm_sq[t - 1]
        norm_sq[t] = norm_sq[t - 1] + change[t]
    return norm_sq, change


# integrate_forces


def test_intervals_by_hand():
    assert integrate_forces([3, 6, 7], [2.0, -1.0, 0.5], 10, recorded="interval").tolist() == [12, 11, 11.5]


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        # d = 1, 4, 4 at steps 1, 4, 10.
        ("euler", [5.0, 5 + 3 * 1, 8 + 6 * 4]),
        ("trapezoid", [5.0, 5 + 2 + 3 + 4, 14 + 6 * 4]),
        # Slopes: 0 at steps 4 and 10, where d turns flat; at step 1 (12·1 − 3·0)/9 = 4/3.
        ("cubic", [5.0, 14 + 8 / 12 * (4 / 3), 14 + 8 / 9 + 24]),
    ],
)
def test_single_steps_by_hand(rule, by_hand):
    assert integrate_forces([1, 4, 10], [1.0, 4.0, 4.0], 5.0, rule=rule).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("rule", ["cubic", "trapezoid"])
@pytest.mark.parametrize("degree", [0, 1])
def test_straight_forces_are_summed_exactly_and_step_by_step(rule, degree):
    """The sum over steps, not the integral, which would miss half of each rise."""
    norm_sq, force = polynomial(degree)
    step = np.array([3, 4, 9, 100, 1000])
    assert integrate_forces(step, force(step), norm_sq(3), rule=rule) == pytest.approx(
        norm_sq(step), rel=1e-14
    )


def test_the_cubic_sums_its_own_interpolant_step_by_step():
    """Between two records that have others around them; Hermite's form, evaluated at every step."""
    step, force = np.array([0, 10, 30, 45]), np.array([1.0, 2.0, 5.0, 6.0])
    h, secant = np.diff(step), np.diff(force) / np.diff(step)
    slope = [
        (w1 + w2) / (w1 / left + w2 / right)
        for w1, w2, left, right in (
            (2 * h[1] + h[0], h[1] + 2 * h[0], secant[0], secant[1]),
            (2 * h[2] + h[1], h[2] + 2 * h[1], secant[1], secant[2]),
        )
    ]
    s = (np.arange(11, 31) - 10) / 20
    hermite = (
        (2 * s**3 - 3 * s**2 + 1) * force[1]
        + (3 * s**2 - 2 * s**3) * force[2]
        + 20 * ((s**3 - 2 * s**2 + s) * slope[0] + (s**3 - s**2) * slope[1])
    )
    norm_sq = integrate_forces(step, force, 0.0)
    assert norm_sq[2] - norm_sq[1] == pytest.approx(hermite.sum(), rel=1e-13)


forces = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30)


@given(forces, st.floats(1.0, 1e6), st.sampled_from(["cubic", "trapezoid"]))
def test_every_step_recorded_gives_the_norms_back(change, start, rule):
    path = start + np.cumsum(change)
    step = np.arange(5, 5 + len(change))
    tolerance = {"rel": 1e-12, "abs": 1e-12 * (start + np.abs(change).sum())}
    assert integrate_forces(step, change, start, recorded="interval") == pytest.approx(path, **tolerance)
    assert integrate_forces(step, change, path[0], rule=rule) == pytest.approx(path, **tolerance)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-1e3, 1e3)), min_size=2, max_size=20))
def test_the_cubic_strays_no_further_than_monotone_cubics_may(records):
    """The sum over h steps lies between h times the smaller and the larger force, even where they flip."""
    step, change = np.cumsum([gap for gap, _ in records]), np.array([force for _, force in records])
    summed = np.diff(integrate_forces(step, change, 0.0))
    low, high = np.minimum(change[1:], change[:-1]), np.maximum(change[1:], change[:-1])
    slack = 1e-9 * (1 + np.abs(change).sum() * step[-1])
    assert (summed >= np.diff(step) * low - slack).all()
    assert (summed <= np.diff(step) * high + slack).all()


def test_the_error_of_a_whole_run_by_rule_and_spacing():
    """‖w‖² grows fiftyfold. The cubic is a thousandth of Euler's error, and a tenth of straight lines'."""
    norm_sq, change = a_run()
    worst = {}
    for spacing in (250, 1000):
        step = np.arange(spacing, len(norm_sq), spacing)
        for rule in ("cubic", "trapezoid", "euler"):
            found = integrate_forces(step, change[step], norm_sq[spacing], rule=rule)
            worst[rule, spacing] = np.abs(np.sqrt(found / norm_sq[step]) - 1).max()
    assert worst["cubic", 250] <= 3e-5
    assert worst["cubic", 1000] <= 5e-4
    assert worst["cubic", 250] <= worst["trapezoid", 250] / 4
    assert worst["euler", 250] >= 300 * worst["cubic", 250]
    assert worst["euler", 1000] >= 0.01


def test_logarithmic_spacing():
    norm_sq, change = a_run()
    step = np.unique(np.geomspace(1, 20_000, 40).round().astype(int))
    found = integrate_forces(step, change[step], norm_sq[1])
    assert np.abs(np.sqrt(found / norm_sq[step]) - 1).max() <= 1e-3


def test_columns_are_integrated_each_by_itself():
    step, change = [1, 5, 20, 21], np.array([[1.0, -3], [2, 4], [9, 4], [1, 5]])
    both = integrate_forces(step, change, np.array([10.0, 20.0]))
    for column, start in ((0, 10.0), (1, 20.0)):
        assert both[:, column].tolist() == integrate_forces(step, change[:, column], start).tolist()


@pytest.mark.parametrize("recorded", ["instant", "interval"])
def test_tensors_come_back_as_tensors(recorded):
    change = torch.tensor([1.0, 2.0, 4.0])
    found = integrate_forces(torch.tensor([1, 3, 8]), change, torch.tensor(10.0), recorded=recorded)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64
    assert found.tolist() == integrate_forces([1, 3, 8], [1.0, 2.0, 4.0], 10.0, recorded=recorded).tolist()


@pytest.mark.parametrize("recorded", ["instant", "interval"])
def test_no_record_and_one(recorded):
    assert integrate_forces([], [], 3.0, recorded=recorded).tolist() == []
    expected = 5.0 if recorded == "interval" else 3.0
    assert integrate_forces([4], [2.0], 3.0, recorded=recorded).tolist() == [expected]


def test_forces_of_any_size_and_zeros():
    """Neither the smallest nor the largest doubles, nor flat stretches, raise a warning (an error here)."""
    for size in (1e-300, 1e300):
        found = integrate_forces([1, 5, 9, 20], np.array([1.0, 2.0, 2.0, 3.0]) * size, 0.0)
        assert found / size == pytest.approx(integrate_forces([1, 5, 9, 20], [1.0, 2, 2, 3], 0.0))
    assert integrate_forces([1, 5, 9], np.zeros(3), 2.0).tolist() == [2, 2, 2]
    assert np.isfinite(integrate_forces([1, 5, 9], [0.0, 5e-324, 1.0], 2.0)).all()


@pytest.mark.parametrize(
    ("step", "change", "start", "options", "message"),
    [
        ([2, 1], [1.0, 1.0], 1.0, {}, "step must ascend, got 1 after 2"),
        ([1, 1], [1.0, 1.0], 1.0, {"recorded": "interval"}, "step must ascend, got 1 after 1"),
        ([1, 2.5], [1.0, 1.0], 1.0, {}, "step must be whole numbers"),
        ([1, np.nan], [1.0, 1.0], 1.0, {}, "step must be whole numbers"),
        ([1, 2, 3], [1.0, 1.0], 1.0, {}, r"predicted_change must have a row .* got \(2,\) and step \(3,\)"),
        ([1, 2], [[[1.0]], [[1.0]]], 1.0, {}, "predicted_change must have a row"),
        ([50, 100], [1.0, np.nan], 1.0, {}, "predicted_change must be finite, got nan at step 100; drop"),
        ([5, 9], [[1.0, np.inf], [1.0, np.inf]], 1.0, {}, "got inf at step 5, column 1 and 1 more;"),
        ([1, 2], [[1.0, 2.0], [1.0, 2.0]], [1.0, 2.0, 3.0], {}, r"one for each column \(2,\), got \(3,\)"),
        ([1, 2], [1.0, 1.0], np.nan, {}, "norm_sq_start must be finite, got nan"),
        (
            [1, 2],
            [1.0, 1.0],
            1.0,
            {"recorded": "sums"},
            "recorded must be 'instant' or 'interval', got 'sums'",
        ),
        ([1, 2], [1.0, 1.0], 1.0, {"rule": "simpson"}, "rule must be one of .*'cubic'.* got 'simpson'"),
        ([1, 2], [1.0, 1.0], 1.0, {"recorded": "interval", "rule": "euler"}, "there is no rule to choose"),
    ],
)
def test_what_cannot_be_integrated(step, change, start, options, message):
    with pytest.raises(ValueError, match=message):
        integrate_forces(step, change, start, **options)


# reconstruction_error

SIGMA = np.array([1.0, 2.0, 4.0, 3.0])
SCALE = np.array([0.9, 1.6, 3.6, 2.4])  # r = 0.9, 0.8, 0.9, 0.8


@pytest.mark.parametrize(
    ("bridge", "options", "ratio"),
    [
        ("gamma", {"k": 2.0}, [1.0] * 4),  # Γ(2) = 1
        ("gamma", {"k": 1.0}, [1 / math.sqrt(2)] * 4),  # Γ(3) = 2
        ("gamma", {"k": [2.0, 1.0, 2.0, 2.0]}, [1, 1 / math.sqrt(2), 1, 1]),
        ("mean", {}, [0.85] * 4),
        ("anchored", {}, [0.9] * 4),
        ("anchored", {"anchor": -1}, [0.8] * 4),
        # Inside, parabolas in √step through the three others: at x = 0, 1, 2, 3
        # r(1) = 0.9/3 + 0.9 − 0.8/3 and r(2) = −0.9/3 + 0.8 + 0.8/3. At the ends the neighbour's.
        ("measured", {"step": [0, 1, 4, 9]}, [0.8, 0.9 + 0.1 / 3, 0.8 - 0.1 / 3, 0.9]),
    ],
)
def test_bridges_by_hand(bridge, options, ratio):
    predicted = 1.1 * SIGMA
    error = reconstruction_error(7 * predicted**2, 7 * SIGMA**2, SCALE, 7, bridge=bridge, **options)
    assert error.ratio == pytest.approx(np.array(ratio))
    assert error.integration == pytest.approx(np.full(4, 0.1))
    assert error.bridge == pytest.approx(np.array(ratio) * SIGMA / SCALE - 1)
    assert error.total == pytest.approx(np.array(ratio) * predicted / SCALE - 1)


def test_the_default_shape_is_that_of_half_normal_weights():
    error = reconstruction_error([1.0], [1.0], [0.887487], 1, bridge="gamma")
    assert error.ratio[0] == pytest.approx(0.8176, abs=5e-5)
    assert error.bridge[0] == pytest.approx(-0.0787, abs=5e-5)


def test_measured_does_not_look_at_the_checkpoint_itself():
    moved = SCALE.copy()
    moved[2] *= 1.5
    before, after = (reconstruction_error(SIGMA**2, SIGMA**2, scale, 1) for scale in (SCALE, moved))
    assert after.ratio[2] == before.ratio[2]
    assert after.ratio[1] != before.ratio[1]
    assert after.bridge[2] == pytest.approx((1 + before.bridge[2]) / 1.5 - 1)


def test_measured_meets_a_ratio_that_is_cubic_in_the_root_of_the_step():
    step = np.arange(1, 9) ** 2
    ratio = 0.9 - 0.01 * np.sqrt(step) + 0.001 * step - 0.0001 * step**1.5
    error = reconstruction_error(step * 1.0, step * 1.0, ratio * np.sqrt(step), 1, step=step)
    assert error.bridge[2:-2] == pytest.approx(np.zeros(4), abs=1e-14)
    assert np.abs(error.bridge[[0, -1]]).min() > 1e-4  # the ends are held


def test_measured_stays_near_where_two_checkpoints_nearly_coincide():
    step = np.array([0, 1000, 1001, 5000, 9000, 9001, 20_000])
    noise = np.array([0, 1e-3, -1e-3, 0, 1e-3, -1e-3, 0])
    error = reconstruction_error(np.ones(7), np.ones(7), 0.87 + noise, 1, step=step)
    assert np.abs(error.bridge).max() <= 4e-3


positive = st.floats(1e-3, 1e3)
checkpoints = st.lists(st.tuples(positive, positive, positive), min_size=2, max_size=12)


@given(checkpoints, st.sampled_from(BRIDGES), st.integers(-20, 20))
def test_scaling_forces_and_weights_changes_no_error(rows, bridge, power):
    predicted, seen, scale = np.array(rows).T
    error = reconstruction_error(predicted, seen, scale, 3, bridge=bridge)
    s = 2.0**power
    scaled = reconstruction_error(s**2 * predicted, s**2 * seen, s * scale, 3, bridge=bridge)
    for part in ("integration", "bridge", "total", "ratio"):
        assert getattr(scaled, part).tolist() == getattr(error, part).tolist()


@given(checkpoints, st.sampled_from(BRIDGES))
def test_the_parts_make_the_total(rows, bridge):
    """To second order they add up, exactly they multiply."""
    error = reconstruction_error(*np.array(rows).T, 3, bridge=bridge)
    second = error.integration * error.bridge
    tolerance = {"rel": 1e-9, "abs": 1e-9 * (1 + np.abs(second).max())}
    assert error.total - error.integration - error.bridge == pytest.approx(second, **tolerance)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_columns_and_tensors(bridge):
    norms, scale = np.stack([SIGMA**2, 4 * SIGMA**2], 1), np.stack([SCALE, SCALE[::-1]], 1)
    numel = torch.tensor([1, 2])
    both = reconstruction_error(torch.tensor(1.1 * norms), torch.tensor(norms), scale, numel, bridge=bridge)
    assert both.total.dtype == torch.float64
    for column in (0, 1):
        one = reconstruction_error(
            1.1 * norms[:, column], norms[:, column], scale[:, column], numel[column].item(), bridge=bridge
        )
        assert isinstance(one.total, np.ndarray)
        assert both.total[:, column].tolist() == pytest.approx(one.total.tolist(), rel=1e-12)
        assert both.ratio[:, column].tolist() == pytest.approx(one.ratio.tolist(), rel=1e-12)
    assert list(one.to_pandas()) == ["integration", "bridge", "total", "ratio"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bridge": "gama"}, "bridge must be one of .*'measured'.* got 'gama'"),
        ({"norm_sq_pred": [1.0]}, r"norm_sq_pred must have a row for each of the steps \[T\]; got \(1,\)"),
        ({"scale_obs": [[1.0], [1.0], [1.0]]}, r"norm_sq_pred must have the shape of scale_obs, \(3, 1\)"),
        ({"norm_sq_pred": [1.0, np.nan, 1.0]}, "norm_sq_pred must be finite, got nan at step 20"),
        ({"norm_sq_pred": [1.0, 1.0, -1e-9]}, "norm_sq_pred is negative at step 30: .* check norm_sq_start"),
        ({"norm_sq_obs": [1.0, 1.0, 0.0]}, "norm_sq_obs must be positive, got 0.0 at step 30"),
        ({"scale_obs": [-1.0, np.nan, 1.0]}, "scale_obs must be positive, got -1.0 at step 10 and 1 more"),
        ({"numel": 0}, "numel must be positive, got 0"),
        ({"k": -1.0, "bridge": "gamma"}, "k must be positive, got -1"),
        ({"step": [10, 30, 20]}, "step must ascend, got 20 after 30"),
        ({"anchor": 3, "bridge": "anchored"}, "anchor must be one of the 3 checkpoints, from 0; got 3"),
    ],
)
def test_what_cannot_be_compared(change, message):
    arguments = {"norm_sq_pred": np.ones(3), "norm_sq_obs": np.ones(3), "scale_obs": np.ones(3)}
    arguments |= {"numel": 1, "step": [10, 20, 30]} | change
    with pytest.raises(ValueError, match=message):
        reconstruction_error(**arguments)


def test_one_checkpoint_has_no_others():
    with pytest.raises(ValueError, match="there is only one; take 'gamma'"):
        reconstruction_error([1.0], [1.0], [0.9], 1)
    assert reconstruction_error([1.0], [1.0], [0.9], 1, bridge="mean").total[0] == pytest.approx(0)


# Whole runs


def published_log(path, spacing=50, numel=1_000_000):
    """A run in the format of the logs published with [W2]: sums that are measured after the step."""
    norm_sq, _ = a_run(numel=numel)
    with path.open("w") as file:
        for t in range(spacing, len(norm_sq), spacing):
            eta = 1e-3 * min(t / 200, 0.55 + 0.45 * math.cos(math.pi * t / 20_000))
            injection = eta**2 * numel * 0.2**2
            before, after = norm_sq[t - 1], norm_sq[t]
            # Δ‖w‖² = −2η⟨w,u⟩c + η²‖u‖² − (1−c²)‖w‖² at c = 1 − ηω, solved for ⟨w,u⟩; then ⟨w⁺,u⟩.
            c = 1 - eta * 0.01
            wu = (injection - (after - before) - (1 - c**2) * before) / (2 * eta * c)
            row = {
                "step": t,
                "eta": eta,
                "true_align_full": 2 * eta * (c * wu - injection / eta),
                "inj_full": injection,
                "dec_full": 2 * eta * 0.01 * after,
                "rms": math.sqrt(after / numel),
            }
            file.write(json.dumps(row) + "\n")


def test_a_published_log(tmp_path):
    """The exact identity follows it to 0.01 %; the published reading and rule are 2 % off, all one way."""
    numel = 1_000_000
    published_log(tmp_path / "log.jsonl", numel=numel)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    step, lr, wu, inj, rms = (
        np.array([row[name] for row in rows])
        for name in ("step", "eta", "true_align_full", "inj_full", "rms")
    )
    seen = rms**2 * numel
    sums = (wu / (2 * lr), inj / lr**2, seen)
    budget = wk.ForceBudget.from_sums(*sums, lr=lr, weight_decay=0.01, at="after")
    at = step % 1000 == 0
    ratio = 0.8755 + 0.012 * np.exp(-step[at] / 2000)
    scale = ratio * rms[at]

    def errors(budget, rule, bridge):
        found = integrate_forces(step, budget.predicted_change, seen[0], rule=rule)
        return reconstruction_error(found[at], seen[at], scale, numel, bridge=bridge, step=step[at])

    exact = errors(budget, "cubic", "measured")
    assert np.abs(exact.integration).max() <= 5e-4
    assert np.abs(exact.total[step[at] >= 10_000]).max() <= 1e-3
    published = errors(budget.as_published(), "euler", "mean")
    assert published.integration[-1] >= 0.02
    assert np.abs(published.bridge).max() >= 20 * np.abs(exact.bridge[10:]).max()


def test_a_ledger_run_is_integrated_to_its_rounding():
    """σ of every tensor after 60 steps, drained now and then, and no norm in between is looked at."""
    model = oracle.language()
    optimizer = wk.AdamW(model.named_parameters(), lr=3e-3, weight_decay=0.1)
    start = oracle.norms_sq(model.parameters())
    steps, changes, rounding = [], [], []
    for step, loss in zip(range(1, 61), oracle.losses(model), strict=False):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 7 == 0 or step == 60:
            budget = optimizer.ledger.drain()
            steps.append(step)
            changes.append(budget.predicted_change)
            rounding.append(budget.rounding)
    end = oracle.norms_sq(model.parameters())
    assert end.sum() / start.sum() > 1.01  # there was something to follow
    found = integrate_forces(torch.tensor(steps), torch.stack(changes), start, recorded="interval")
    assert ((found[-1] / end).sqrt() - 1).abs().max() <= 1e-4
    total = integrate_forces(steps, torch.stack(changes) + torch.stack(rounding), start, recorded="interval")
    assert ((total[-1] / end).sqrt() - 1).abs().max() <= 1e-12
