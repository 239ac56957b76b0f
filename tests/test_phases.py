import numpy as np
import pytest

from weibull_kernels import ForceBudget
from weibull_kernels.phases import PHASES, find_phases, moving_average


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


def test_no_force_at_all_is_balance():
    assert phases([0.0, 0.0], [0.0, 0.0]) == ["balance", "balance"]


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


def test_scale_of_the_forces_does_not_matter():
    random = np.random.default_rng(0)
    alignment, decay = random.normal(size=100), -random.random(100)
    assert phases(alignment, decay) == phases(alignment * 2.0**40, decay * 2.0**40)
    assert set(phases(alignment, decay)) <= set(PHASES)


def test_the_average_is_over_steps_and_is_cut_off_at_the_ends():
    step = np.array([0, 1, 2, 10, 100])
    forces = series([1.0, 2, 3, 10, 100], 0.0)
    assert moving_average(step, forces, window=0.02).alignment.tolist() == [1.5, 2, 2.5, 10, 100]
    assert moving_average(step, forces, window=0).alignment.tolist() == [1, 2, 3, 10, 100]


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
