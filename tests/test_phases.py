import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weibull_kernels import ForceBudget
from weibull_kernels.phases import PHASES, find_phases, moving_average, summarize_run


def series(alignment, decay, injection=0.0):
    alignment, decay, injection = np.broadcast_arrays(
        *(np.asarray(force, float) for force in (alignment, decay, injection))
    )
    zero = np.zeros(alignment.shape)
    return ForceBudget(alignment, injection, decay, zero, norm_sq=zero + 1)


def phases(alignment, decay, injection=0.0, window=0.0):
    forces = series(alignment, decay, injection)
    return find_phases(np.arange(len(forces.alignment)), forces, window=window).tolist()


def test_each_phase_by_hand():
    assert phases([3, 1, 1, 1], [-1, -3, -1, -1.2]) == ["rise", "relaxation", "balance", "balance"]


def test_balance_takes_precedence_up_to_a_tenth_of_the_absolute_budget():
    assert phases([0.549, 0.551], [-0.451, -0.449]) == ["balance", "rise"]
    assert phases([0.451, 0.449], [-0.549, -0.551]) == ["balance", "relaxation"]


def test_the_coupling_counts_as_force():
    forces = ForceBudget(*(np.array([x]) for x in (1.0, 0.0, -1.0, 0.5)), norm_sq=np.array([1.0]))
    assert find_phases(np.array([7]), forces).tolist() == ["rise"]


def test_no_force_at_all_is_a_plateau_that_is_never_left():
    assert phases([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == ["plateau"] * 3


def test_no_force_later_on_is_balance():
    assert phases([3.0, 0.0], [-1.0, 0.0]) == ["rise", "balance"]


def test_forces_that_are_not_finite_have_no_phase():
    assert phases([3, np.nan, 3], [-1, -1, -1]) == ["rise", "undefined", "undefined"]


def test_averaging_stops_raw_forces_from_flipping_the_phase():
    flips = np.where(np.arange(200) % 2, 6.0, -2.0)
    assert set(phases(flips, -1.0)) == {"rise", "relaxation"}
    assert set(phases(flips, -1.0, window=0.05)) <= {"rise", "balance"}


def test_a_run_that_grows_holds_and_shrinks_goes_through_all_phases_in_order():
    along = np.linspace(0, 1, 400)
    found = phases(3.0 - 2.6 * along, -1.0 - along, window=0.05)
    assert list(dict.fromkeys(found)) == ["rise", "balance", "relaxation"]


def run_of(step, net, absolute, norm_sq=100.0, steps=None, numel=None):
    """A run whose norm follows from its net force: records of as many steps as lie between them."""
    step, net, absolute = np.asarray(step), np.asarray(net, float), np.asarray(absolute, float)
    steps = np.diff(step, prepend=0) if steps is None else steps
    change = net * steps
    before = norm_sq + np.concatenate(([0.0], np.cumsum(change[:-1])))
    alignment, decay = (absolute + net) / 2 * steps, -(absolute - net) / 2 * steps
    return ForceBudget(alignment, 0 * net, decay, 0 * net, before, steps=steps, numel=numel)


def five_phases(scale=1.0, noise=0.0, every=1):
    """‖w‖² from 100: hardly moved for 100 steps, up by 400, a slow loss of 5, down by 100, held."""
    pieces = [
        # steps, net and absolute budget a step
        (100, 0.001, 0.01),
        (400, 1.0, 2.0),
        (100, -0.05, 0.2),
        (200, -0.5, 1.0),
        (200, 0.0, 1.0),
    ]
    net, absolute = (
        np.repeat([piece[i] for piece in pieces], [piece[0] for piece in pieces]) for i in (1, 2)
    )
    flips = noise * (-1.0) ** np.arange(len(net)) * (np.arange(len(net)) >= 100)
    net, absolute = net + flips, absolute + abs(flips)
    kept = np.arange(every - 1, len(net), every)
    net, absolute = (np.add.reduceat(force, kept - every + 1) / every for force in (net, absolute))
    return kept + 1, run_of(kept + 1, scale * net, scale * absolute, norm_sq=scale * 100)


def bounds(step, found):
    """Where each phase begins."""
    first = np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1])))
    return [(str(found[row]), int(step[row])) for row in first]


@pytest.mark.parametrize("every", [1, 5])
def test_all_five_phases_in_order(every):
    """To within half a window, 25 steps, and the rows of a record. Plateaus are not averaged."""
    step, series = five_phases(every=every)
    found = bounds(step, find_phases(step, series))
    assert [phase for phase, _ in found] == list(PHASES)
    starts = [1, 200, 500, 600, 800]
    assert found[0] == ("plateau", every)
    assert 100 < found[1][1] <= 105
    for (_, start), expected in zip(found[2:], starts[2:], strict=True):
        assert abs(start - expected) <= 25 + every


def test_forces_that_flip_make_no_more_phases():
    step, series = five_phases(noise=0.8)  # the slow loss is now in balance
    flips = np.diff(np.sign(series.predicted_change[100:]))
    assert np.count_nonzero(flips) > 100
    found = [phase for phase, _ in bounds(step, find_phases(step, series))]
    assert [phase for phase in found if phase != "plateau"] == ["rise", "balance", "relaxation", "balance"]


def test_without_a_window_each_record_has_its_own_phase():
    flips = np.where(np.arange(200) % 2, 6.0, -2.0)
    assert len(bounds(np.arange(200), np.array(phases(flips, -1.0)))) == 200


def test_a_stretch_shorter_than_the_window_goes_to_the_longer_neighbour():
    net = np.repeat([1.0, 0.0, -1.0], [60, 4, 136])
    series = run_of(np.arange(1, 201), net, np.full(200, 2.0), norm_sq=400)
    found = bounds(np.arange(1, 201), find_phases(np.arange(1, 201), series, window=0.06))
    assert [phase for phase, _ in found][-2:] == ["rise", "relaxation"]
    assert 60 <= found[-1][1] <= 66


def test_a_plateau_shorter_than_the_window_stays():
    step = np.arange(1, 101)
    found = find_phases(step, run_of(step, np.full(100, 0.9), np.ones(100)))
    assert bounds(step, found) == [("plateau", 1), ("rise", 3)]


def test_overshoot_needs_a_peak_that_was_risen_to():
    falls = run_of(np.arange(1, 101), np.full(100, -0.01), np.full(100, 1.0) * 0.02, norm_sq=1.0)
    found = find_phases(np.arange(1, 101), falls, window=0)
    assert "overshoot" not in found
    assert found[-1] == "relaxation"


def test_the_peak_is_that_of_the_scale_where_it_is_known():
    """σ has peaked at step 20 of 40; λ, known at four records, only at the last: no overshoot then."""
    step = np.arange(1, 41)
    series = run_of(step, np.repeat([1.0, -0.05], 20), np.repeat([2.0, 0.1], 20))
    scale = np.full(40, np.nan)
    scale[[0, 10, 20, 39]] = [1, 2, 3, 4]
    assert find_phases(step, series, window=0)[20:].tolist() == ["overshoot"] * 20
    assert find_phases(step, series, scale, window=0)[20:].tolist() == ["relaxation"] * 20
    unknown = find_phases(step, series, np.full(40, np.nan), window=0)
    assert unknown.tolist() == find_phases(step, series, window=0).tolist()


def test_a_plateau_is_as_long_as_the_steps_that_records_stand_for():
    """An absolute budget of 0.01 a step comes to 2 % of 100 after 200 steps, however recorded."""
    step = np.arange(10, 1001, 10)
    forces = np.full(100, 0.00999)
    drained = run_of(step, forces, forces)
    single = run_of(step, forces, forces, steps=np.ones(100, int))
    assert np.count_nonzero(find_phases(step, drained) == "plateau") == 20
    assert np.count_nonzero(find_phases(step, single) == "plateau") == 20


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0.01, 9)), min_size=1, max_size=40), st.integers(-40, 40)
)
def test_scale_of_the_forces_does_not_matter(forces, power):
    net, rest = np.array(forces).T
    step = np.arange(1, len(net) + 1)
    series = run_of(step, net, abs(net) + rest, norm_sq=1e3)
    columns = ("alignment", "injection", "decay", "coupling", "norm_sq")
    scaled = dataclasses.replace(series, **{name: getattr(series, name) * 2.0**power for name in columns})
    found = find_phases(step, series).tolist()
    assert find_phases(step, scaled).tolist() == found
    assert set(found) <= set(PHASES)


def test_the_average_is_over_steps_and_is_cut_off_at_the_ends():
    step = np.array([0, 1, 2, 10, 100])
    forces = series([1.0, 2, 3, 10, 100], 0.0)
    assert moving_average(step, forces, window=0.1).alignment.tolist() == [2, 2, 2, 10, 100]
    # Narrower than the records are apart as a rule, 4.5: it reaches that far.
    assert moving_average(step, forces, window=0.02).alignment.tolist() == [2, 2, 2, 10, 100]
    close = np.array([0, 1, 2, 3, 40])
    assert moving_average(close, forces, window=0.01).alignment.tolist() == [1.5, 2, 5, 6.5, 100]
    assert moving_average(step, forces, window=0).alignment.tolist() == [1, 2, 3, 10, 100]


def test_the_average_is_that_of_a_step_however_many_a_record_has():
    series_of_sums = dataclasses.replace(series([2.0, 9, 0], -1.0), steps=np.array([1, 3, 0]))
    mean = moving_average(np.array([1, 4, 7]), series_of_sums, window=1)
    assert mean.alignment.tolist() == [11 / 4, 11 / 4, 9 / 3]  # three steps either side
    assert moving_average(np.array([1, 4, 7]), series_of_sums, window=0).alignment.tolist() == [2, 3, 0]


def test_one_record_and_none():
    assert phases([2.0], [-1.0], window=0.05) == ["rise"]
    assert phases([], []) == []


@pytest.mark.parametrize(
    ("step", "window", "message"),
    [
        ([1, 2, 3], 0.05, r"step must be \[T\].*\(2,\).*\(3,\)"),
        ([2, 1], 0.05, "step must ascend"),
        ([1, 1], 0.05, "step must ascend"),
        ([1, 2], 5, "window must be .* from 0 to 1, got 5"),
    ],
)
def test_errors(step, window, message):
    with pytest.raises(ValueError, match=message):
        find_phases(np.array(step), series([1.0, 2.0], -1.0), window=window)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([1.0], r"scale must have one λ for each record \(2,\), got \(1,\)"),
        ([1.0, 0.0], "scale must be positive, or NaN .* not so at step 9"),
        ([np.inf, 1.0], "scale must be positive, or NaN .* not so at step 5"),
    ],
)
def test_scales_that_cannot_be(scale, message):
    with pytest.raises(ValueError, match=message):
        find_phases(np.array([5, 9]), series([1.0, 2.0], -1.0), scale)


# summarize_run


def test_a_summary_by_hand():
    """‖w‖² 84 → 100 → 96 → 81 of 4 entries; the last record has alignment 3, injection 2, decay −20."""
    step = np.array([10, 20, 30])
    alignment, injection, decay = np.array([20.0, 6, 3]), np.array([1.0, 1, 2]), np.array([-5.0, -11, -20])
    norm_sq, steps = np.array([84.0, 100, 96]), np.array([10, 10, 10])
    forces = ForceBudget(alignment, injection, decay, 0 * decay, norm_sq, steps=steps, numel=np.full(3, 4))
    rates = {"lr": np.array([1e-3, 3e-3, 2e-3]), "weight_decay": 0.1}
    run = summarize_run(step, forces, **rates, window=0)
    assert (run.target, run.peak, run.peak_step, run.final) == ("rms", 5.0, 10, 4.5)
    assert run.final_over_peak == 0.9
    assert run.tau == pytest.approx(5000)
    # 10 steps at 1e-4; 4.5·1e-4 + 5.5·3e-4 and 4.5·3e-4 + 5.5·2e-4 over the next twice ten.
    assert run.effective_age == pytest.approx(10e-4 + 21e-4 + 24.5e-4)
    assert run.net_at_peak == pytest.approx(16 / 26)
    assert run.net_at_end == pytest.approx(15 / 25)
    assert (run.alignment_over_decay_at_peak, run.alignment_over_decay_at_end) == pytest.approx((4, 3 / 20))
    scaled = summarize_run(step, forces, np.array([1.0, 2.0, 1.5]), **rates, window=0)
    assert (scaled.target, scaled.peak, scaled.peak_step, scaled.final) == ("scale", 2.0, 20, 1.5)
    bare = summarize_run(step, dataclasses.replace(forces, numel=None), **rates, window=0)
    assert (bare.target, bare.peak) == ("norm", 10.0)
    assert run.to_dict()["peak_step"] == 10
    assert run.to_pandas()["tau"].tolist() == [run.tau]


@given(
    st.floats(-1, 1).filter(lambda cosine: abs(cosine) > 1e-3),
    st.floats(0.01, 1),
    st.floats(0.1, 10),
    st.floats(1e-3, 0.1),
    st.floats(1e-3, 1),
)
def test_at_the_equilibrium_norm_the_net_vanishes(cosine, update, norm, lr, weight_decay):
    """With the coupling: a weight of that length, the same angle and update, is as long after the step."""

    def step_at(norm):
        sums = (cosine * norm * update, update**2, norm**2)
        return ForceBudget.from_sums(*(np.array([part]) for part in sums), lr=lr, weight_decay=weight_decay)

    run = summarize_run(np.array([1]), step_at(norm), lr=lr, weight_decay=weight_decay)
    there = step_at(run.equilibrium_norm)
    assert abs(there.predicted_change[0]) <= 1e-9 * there.absolute[0]
    at_once = summarize_run(np.array([1]), there, lr=lr, weight_decay=weight_decay)
    assert at_once.equilibrium_over_final == pytest.approx(1, rel=1e-6)
    assert at_once.net_at_end <= 1e-9


@pytest.mark.parametrize(
    ("forces", "norm_sq", "equilibrium"),
    [
        ((1.0, 1.0, 0.0), 4.0, math.inf),  # nothing pulls back
        ((0.0, 1.0, 0.0), 4.0, math.inf),
        ((-2.0, 1.0, 0.0), 4.0, 1.0),  # the angle does: −2·x + 1 = 0
        ((0.0, 0.0, 0.0), 4.0, 2.0),
        ((0.0, 0.0, -1.0), 4.0, 0.0),
        ((0.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 1.0, 0.0), 0.0, math.inf),
    ],
)
def test_equilibria_at_the_limits(forces, norm_sq, equilibrium):
    columns = [np.array([force]) for force in (*forces, 0.0)]
    run = summarize_run(np.array([1]), ForceBudget(*columns, np.array([norm_sq])), lr=1.0, weight_decay=0.0)
    assert run.equilibrium_norm == equilibrium
    assert run.tau == math.inf
    assert not any(math.isnan(value) for value in run.to_dict().values())


def test_a_run_that_holds_points_to_where_it_is():
    """Noise of the single forces is averaged, over records of unequal length too."""
    random = np.random.default_rng(0)
    step = np.cumsum(random.integers(1, 5, 2000))
    series = run_of(step, random.normal(size=2000), np.full(2000, 6.0), norm_sq=1e6)
    run = summarize_run(step, series, lr=1e-3, weight_decay=0.1)
    assert run.net_at_end < 0.1 < np.median(np.abs(series.predicted_change) / series.absolute)
    assert run.equilibrium_over_final == pytest.approx(1, abs=0.1)
    assert run.effective_age == pytest.approx(step[-1] * 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": [1.0, 1.0, 1.0]}, r"lr must be a number or one for each record \(2,\), got \(3,\)"),
        ({"weight_decay": [[1.0]]}, r"weight_decay must be a number .*\(1, 1\)"),
        ({"lr": [1.0, np.nan]}, "lr·weight_decay must be finite, it is not at step 2"),
        ({"alignment": [np.inf, 1.0]}, "alignment must be finite, it is not at step 1"),
        ({"scale": [1.0, 0.0]}, "scale must be positive"),
        ({"step": [2, 1]}, "step must ascend"),
        ({"window": -1}, "window must be"),
        ({"step": [], "alignment": []}, "there are no records to summarize"),
    ],
)
def test_what_cannot_be_summarized(change, message):
    given = {"step": [1, 2], "alignment": [1.0, 1.0], "lr": 1.0, "weight_decay": 0.1} | change
    step, forces = np.array(given.pop("step")), series(given.pop("alignment"), -1.0)
    with pytest.raises(ValueError, match=message):
        summarize_run(step, forces, given.pop("scale", None), **given)
