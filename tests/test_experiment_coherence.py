"""The coherence experiment: differences of runs taken apart exactly, laws given back, the whole command."""

import json
from dataclasses import replace
from itertools import permutations

import corpus
import numpy as np
import pytest
import reproduce
import torch
from corpus import Corpus, conditional_entropy
from experiments import coherence, four_seeds
from experiments.coherence_drivers import (
    DRIVERS,
    Drivers,
    by_driver,
    by_factor,
    grown,
    shapley,
)
from experiments.coherence_law import PAIRS, PAIRS_ERROR, Power, fit_power, law, r_squared
from experiments.course import FORCES, Course, work
from experiments.jobs import WHOLE, Job
from experiments.presets import CPU, PYTHIA_70M, preset
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from text import library_source
from typer.testing import CliRunner

import weibull_kernels as wk

STEPS = 5
"""Of a record."""


def made(angle, length, rate, start=3.0, numel=100, lr=0.01):
    """The course of a run with these drivers, record by record, whose ‖w‖² begins at `start`."""
    angle, length, rate = (np.asarray(column, dtype=float) for column in (angle, length, rate))
    norm_sq, alignment, injection, decay = [start], [], [], []
    for c, way, delta in zip(angle, length * start**0.5, rate, strict=True):
        alignment.append(2 * c * way * norm_sq[-1] ** 0.5)
        injection.append(way**2 / STEPS)
        decay.append(delta * norm_sq[-1])
        norm_sq.append(norm_sq[-1] + alignment[-1] + injection[-1] + decay[-1])
    records = len(angle)
    forces = wk.ForceBudget(
        alignment=np.array(alignment),
        injection=np.array(injection),
        decay=np.array(decay),
        coupling=np.zeros(records),
        rounding=np.zeros(records),
        norm_sq=np.array(norm_sq[:-1]),
        numel=np.full(records, numel),
        steps=np.full(records, STEPS),
    )
    step = STEPS * np.arange(1, records + 1)
    scale = 0.887487 * np.sqrt(np.array(norm_sq[1:]) / numel)
    column = np.ones(records)
    return Course(
        step, lr * column, 0.1 * column, np.linspace(5, 1, records), forces, 1.2 * column, scale, summary={}
    )


RECORDS = 12
columns = st.tuples(
    *(
        st.lists(st.floats(low, high), min_size=RECORDS, max_size=RECORDS)
        for low, high in ((-0.5, 0.5), (0.01, 0.3), (-0.1, 0))
    )
)


@given(columns, columns)
def test_the_parts_of_a_difference_sum_to_it(one, other):
    courses = [made(*drivers) for drivers in (one, other)]
    base, changed = (Drivers.of(course.forces) for course in courses)
    ends = [course.forces.norm_sq[-1] + course.forces.predicted_change[-1] for course in courses]
    total = (ends[1] - ends[0]) / 3.0
    works = [work(course.forces) for course in courses]
    assert sum(works[1].values()) - sum(works[0].values()) == pytest.approx(total, abs=1e-12)
    assert sum(by_driver(base, changed).values()) == pytest.approx(total, abs=1e-12)
    alignment = works[1]["alignment"] - works[0]["alignment"]
    assert sum(by_factor(base, changed).values()) == pytest.approx(alignment, abs=1e-12)


@given(columns)
def test_drivers_give_back_what_a_run_was_made_of(drivers):
    course = made(*drivers)
    found = Drivers.of(course.forces)
    for name, column in zip(DRIVERS, drivers, strict=True):
        assert getattr(found, name) == pytest.approx(np.array(column), abs=1e-12)
    end = (course.forces.norm_sq[-1] + course.forces.predicted_change[-1]) / 3.0
    assert grown(found.angle, found.length, found.rate, found.steps) == pytest.approx(end)
    assert found.alignment == pytest.approx(course.forces.alignment / 3.0)


@pytest.mark.parametrize("differs", DRIVERS)
def test_what_alone_differs_makes_the_whole_difference(differs):
    drivers = {"angle": np.full(20, 0.1), "length": np.full(20, 0.1), "rate": np.full(20, -0.01)}
    base = Drivers.of(made(**drivers).forces)
    other = Drivers.of(made(**drivers | {differs: 1.5 * drivers[differs]}).forces)
    parts = by_driver(base, other)
    assert abs(parts.pop(differs)) > 1e-3
    assert all(abs(part) < 1e-12 for part in parts.values())


def test_two_records_by_hand():
    # ‖w‖² = 1; 2·0.5·0.2·1 + 0.2²/5 = 0.208; in the other run 2·0.5·0.4·1 + 0.4²/5 = 0.432.
    base, other = (Drivers.of(made([0.5], [way], [0], start=1).forces) for way in (0.2, 0.4))
    assert by_driver(base, other) == pytest.approx({"angle": 0, "length": 0.432 - 0.208, "rate": 0})
    assert by_factor(base, other) == pytest.approx({"angle": 0, "length": 0.2, "norm": 0})
    # Twice the angle and twice the length: the alignment goes from 0.2 to 0.8, half of it by each.
    twice = Drivers.of(made([1.0], [0.4], [0], start=1).forces)
    assert by_factor(base, twice) == pytest.approx({"angle": 0.3, "length": 0.3, "norm": 0})


@given(st.lists(st.floats(-10, 10), min_size=8, max_size=8))
def test_shapley_is_the_mean_over_all_orders(worth):
    names = ("a", "b", "c")

    def value(chosen):
        return worth[sum(2 ** names.index(name) for name in chosen)]

    orders = list(permutations(names))
    expected = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            gain = value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
            expected[name] += gain / len(orders)
    found = shapley(names, value)
    assert found == pytest.approx(expected, abs=1e-9)
    assert sum(found.values()) == pytest.approx(worth[7] - worth[0], abs=1e-9)


def test_a_run_that_stands_still_has_no_angle():
    found = Drivers.of(made([0, 0], [0, 0], [-0.1, -0.1]).forces)
    assert found.angle.tolist() == [0, 0]
    assert grown(found.angle, found.length, found.rate, found.steps) == pytest.approx(0.81)


def test_a_norm_does_not_fall_below_zero():
    assert grown(np.array([-1.0, 0.0]), np.array([5.0, 0.0]), np.zeros(2), np.full(2, 100.0)) == 0


def test_runs_of_other_steps_are_not_compared():
    one, other = (Drivers.of(made(*np.full((3, n), 0.01)).forces) for n in (3, 4))
    for split in (by_driver, by_factor):
        with pytest.raises(ValueError, match="3 records over 15 steps and 4 over 20"):
            split(one, other)


def test_work_without_rounding_measured():
    course = made([0.1] * 3, [0.1] * 3, [-0.01] * 3)
    assert work(replace(course.forces, rounding=None)) == work(course.forces)
    assert work(course.forces, records=2)["decay"] == pytest.approx(course.forces.decay[:2].sum() / 3)
    assert set(work(course.forces)) == set(FORCES)


X = np.array([0, 0.06, 0.1, 0.2, 0.34, 0.5, 0.8, 1.1])


@pytest.mark.parametrize("exponent", [0.3, 0.59, 1.0, 1.69, 3.0])
@pytest.mark.parametrize("factor", [3.0, -2e-4])
def test_a_power_law_gives_back_its_exponent(exponent, factor):
    found = fit_power(X, 2 + factor * X**exponent)
    assert found.exponent == pytest.approx(exponent, abs=1e-5)
    assert (found.constant, found.factor) == pytest.approx((2, factor), rel=1e-4)
    assert found.r_squared == pytest.approx(1)
    assert found.error < 1e-4
    assert found(X) == pytest.approx(2 + factor * X**exponent)


def test_the_standard_error_is_that_of_nonlinear_least_squares():
    y = 2 + 3 * X**0.59 + 0.05 * np.random.default_rng(0).normal(size=len(X))
    values, covariance = curve_fit(
        lambda x, a, b, p: a + b * x**p, X, y, p0=[2, 3, 0.6], bounds=([-9, -9, 0.01], [99, 99, 9])
    )
    found = fit_power(X, y)
    assert found.exponent == pytest.approx(values[2], rel=1e-4)
    assert found.error == pytest.approx(covariance[2, 2] ** 0.5, rel=1e-3)
    assert found.r_squared_fixed <= found.r_squared < 1


def test_the_published_relation_of_entropy_and_pairs():
    """D and S at ρ = 0 … 1 by [W3] (its companion data, CC BY 4.0), from which it reads p = 1.69."""
    retained = [1, 0.8159, 0.6475, 0.4957, 0.3665, 0.2568, 0.1666, 0.0958, 0.0437, 0.0122, 0.0002]
    entropy = [6.1807, 6.7329, 7.1412, 7.4486, 7.6655, 7.8206, 7.9189, 7.9753, 8.0023, 8.0072, 8.0096]
    found = fit_power(retained, entropy)
    assert found.exponent == pytest.approx(PAIRS, abs=0.005)
    assert 1 / found.exponent == pytest.approx(0.59, abs=0.005)
    assert found.constant == pytest.approx(8.0, abs=0.01)
    assert found.error == pytest.approx(PAIRS_ERROR, abs=5e-4)


def test_a_fit_needs_four_places_and_finite_points():
    assert fit_power([0, 1, 2, 2, 2], [1, 2, 3, 3, 3]) is None
    for x, y in (([0, 1, 2, -1], [1] * 4), ([0, 1, 2, np.nan], [1] * 4), ([0, 1, 2, 3], [1, 2, 3, np.inf])):
        with pytest.raises(ValueError, match="finite points with x of 0 or more"):
            fit_power(x, y)


def test_goodness_by_hand():
    assert r_squared(np.array([1, 2, 3]), np.array([1, 2, 3])) == 1
    assert r_squared(np.array([1, 2, 3]), np.array([2, 2, 2])) == 0
    assert r_squared(np.array([2, 2]), np.array([1, 2])) == 1


def run(shuffled=0.0, times=None, seed=0, beta2=0.999, growth=1e-3, **more):
    """One run as the findings have it."""
    peak = (growth + 0.01775**2) ** 0.5
    return {
        "shuffled": shuffled,
        "times": times,
        "seed": seed,
        "beta2": beta2,
        "seen": 0.128 if times is None else times,
        "steps": 1000,
        "growth": growth,
        "on_the_way": [growth / 4, growth / 2],
        "scale": {"start": 0.01775, "peak": peak, "final": peak},
        "loss": 4.0,
        "entropy": 3.5,
        "gap": 1.1,
        "unigram": 4.75,
        "retained": 1.0,
        "known": None,
    } | more


def shuffled_runs(exponent=0.59, seeds=(0, 1, 2), pairs=1.69, noise=2e-5):
    """Runs that follow a law, with the same deviations of the seeds at every ρ and a little of each run's."""
    random = np.random.default_rng(0)
    runs = []
    for rho in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0):
        retained = (1 - rho) ** 2
        gap = 1.1 * retained**pairs
        for seed in seeds:
            growth = 4e-4 + 1e-3 * gap**exponent + 1e-5 * seed + noise * random.normal()
            # 2 bits are learnt on the whole text, and as the square root of the gap on the others.
            loss = 4.5 - 2 * (gap / 1.1) ** 0.5 + 0.1 * seed if rho < 1 else 4.5 + 0.1 * seed
            runs.append(run(rho, seed=seed, growth=growth, gap=gap, retained=retained, loss=loss))
    return runs


def test_the_law_has_its_three_exponents():
    found = law(shuffled_runs(exponent=0.8, pairs=1.5, noise=0))
    assert found["growth_on_gap"]["exponent"] == pytest.approx(0.8, rel=1e-3)
    assert found["gap_on_retained"]["exponent"] == pytest.approx(1.5, rel=1e-4)
    assert found["growth_on_retained"]["exponent"] == pytest.approx(1.2, rel=1e-3)
    assert found["learnt_on_gap"]["exponent"] == pytest.approx(0.5, rel=1e-4)
    assert found["growth_on_learnt"]["exponent"] == pytest.approx(1.6, rel=1e-3)
    assert [each["part"] for each in found["on_the_way"]] == [0.2, 0.5]
    assert [each["exponent"] for each in found["on_the_way"]] == pytest.approx([0.8, 0.8], rel=1e-3)
    assert list(found["exponent_by_seed"].values()) == pytest.approx([0.8] * 3, rel=1e-4)
    assert law(shuffled_runs()[:6]) is None
    without = law([each for each in shuffled_runs() if each["shuffled"] < 1])
    assert without["growth_on_learnt"] is None  # nothing to learn more than
    assert without["growth_on_gap"]["exponent"] > 0


def test_repetition_is_held_against_the_law():
    runs = shuffled_runs(noise=0, seeds=(0,))
    fitted = law(runs)
    again = [run(times=64, growth=2e-3, gap=1.1), run(times=16, growth=1e-3, gap=0.5)]
    found = coherence.repetition([*runs, *again], fitted)
    assert [level["times"] for level in found] == [64, 16]
    assert found[1]["predicted"] == pytest.approx(4e-4 + 1e-3 * 0.5**0.59, rel=1e-4)
    assert coherence.repetition(again, None)[0]["predicted"] is None


def findings_of(runs, differences=(), **more):
    return {
        "beta2": 0.999,
        "runs": runs,
        "differences": list(differences),
        "law": law([each for each in runs if each["times"] is None and each["beta2"] == 0.999]),
        "pairs_of_bytes": {"exponent": 1.71, "error": 0.04},
        "repetition": [],
        "curves": [],
    } | more


def difference(shuffled, seed=0, times=None, beta2=0.999, total=-5.0, angle=0.3, scale=-0.01):
    """One difference as the findings have it: alignment 104 %, injection 5 % and decay −9 % of it."""
    forces = {"alignment": 1.04, "injection": 0.05, "decay": -0.09, "coupling": 0.0, "rounding": 0.0}
    forces = {name: part * total for name, part in forces.items()}
    drivers = {"angle": angle * total, "length": (1 - angle) * total, "rate": 0.0}
    named = {"shuffled": shuffled, "times": times, "seed": seed, "beta2": beta2, "scale": scale}
    factors = {"angle": 0.3 * forces["alignment"], "length": 0.5 * forces["alignment"]}
    factors["norm"] = forces["alignment"] - sum(factors.values())
    bridge = {"norm": 0.8 * total, "shape": -0.1 * total}
    return named | {
        "total": total,
        "forces": forces,
        "drivers": drivers,
        "factors": factors,
        "bridge": bridge,
    }


def verdict_of(found, part):
    """Of the one row whose claim has this in it."""
    (row,) = [claim for claim in coherence.claims(found) if part in claim.claim]
    assert row.verdict.startswith(("holds", "holds in part", "does not hold"))
    return row


@pytest.mark.parametrize(
    ("scales", "verdict"),
    [
        ({0.3: (-0.01, -0.011, -0.012), 0.6: (-0.02, -0.021, -0.022)}, "holds"),
        ({0.3: (-0.01, 0.011, 0.002), 0.6: (-0.02, -0.021, -0.022)}, "holds in part"),
        ({0.3: (0.01, 0.011, 0.002), 0.6: (-0.02, 0.021, 0.022)}, "does not hold"),
    ],
)
def test_the_peak_varies_if_paired_differences_say_so(scales, verdict):
    runs = [run(rho, seed=seed) for rho in (0, *scales) for seed in range(3)]
    apart = [difference(rho, seed, scale=s) for rho, each in scales.items() for seed, s in enumerate(each)]
    assert verdict_of(findings_of(runs, apart), "varies with the coherence").verdict == verdict


@pytest.mark.parametrize(
    ("exponent", "verdict"), [(0.59, "holds"), (0.8, "holds in part"), (4.0, "does not hold")]
)
def test_the_exponent_is_judged_by_its_error(exponent, verdict):
    found = findings_of(shuffled_runs(exponent, noise=5e-6))
    row = verdict_of(found, "(H_r − D)^e")
    assert row.verdict == verdict
    told, error = (float(part) for part in row.exact.removeprefix("e = ").split(" ± "))
    assert told == pytest.approx(exponent, abs=0.05)
    assert error < 0.1
    # 2 bits learnt as the root of the gap, so that the two exponents make up the third.
    assert ("to the power 0.50 ± 0.00" in row.reason) == (verdict != "holds")


@pytest.mark.parametrize(
    ("exponent", "pairs", "verdict"),
    [
        (1 / 1.69, 1.69, "holds"),
        (1.0, 1.69, "holds in part"),
        (1 / 2.5, 2.5, "holds in part"),
        (1.0, 2.5, "does not hold"),
    ],
)
def test_where_the_exponent_comes_from_is_judged_by_both_parts(exponent, pairs, verdict):
    row = verdict_of(findings_of(shuffled_runs(exponent, pairs=pairs, noise=5e-6)), "1/p")
    assert row.verdict == verdict
    assert ("1.71 ± 0.04" in row.reason) == (pairs != 1.69)


@pytest.mark.parametrize(
    ("growth", "verdict"),
    [
        ((1.0, 1.5, 2.0, 0.5), "holds in part"),
        ((1.0, 2.0, 1.5, 0.5), "holds"),
        ((1.0, 1.5, 2.0, 2.5), "holds in part"),
        ((3.0, 1.5, 2.0, 0.5), "holds in part"),
        ((1.0, 1.0, 1.0, 1.0), "does not hold"),
    ],
)
def test_an_inverted_u_needs_both_sides(growth, verdict):
    deviations = (0.0, 0.01, -0.02)
    runs = [
        run(
            times=times,
            seed=seed,
            growth=1e-4 * (value + deviations[(seed + place) % 3]),
            on_the_way=[1e-4 * (times or 0), 1e-4],
            known=None if times in (None, 16) else 20 / times,
        )
        for place, (times, value) in enumerate(zip((None, 16, 64, 256), growth, strict=True))
        for seed in range(3)
    ]
    row = verdict_of(findings_of(runs), "rises, then falls")
    assert row.verdict == verdict
    if growth[3] == 0.5 and growth[0] == 1:  # both sides: the peak, on the way and at the end
        assert f"the peak is at {(16, 64)[growth[2] == 2]} times" in row.reason
        assert "at 256 after 20 %" in row.reason
        assert "seen 256 times it is +256.0 after 20 %, +0.0 after 50 % and -0.5 at the end" in row.reason
        assert "never at 16, after 31 % at 64, after 8 % at 256" in row.reason


def test_the_force_and_the_cause_are_told_in_per_cent():
    apart = [difference(0.6, seed, total=total) for seed, total in enumerate((-5.0, -6.0))]
    found = findings_of([run(rho, seed=seed) for rho in (0, 0.6) for seed in (0, 1)], apart)
    force = verdict_of(found, "which force")
    assert force.exact == "alignment 104.0 ± 0.0 %, injection 5.0 ± 0.0 %, decay -9.0 ± 0.0 %"
    assert force.as_published == "alignment 114.0 ± 0.0 %"
    assert force.verdict == "holds for alignment"
    assert "λ² differs by -3.85 ± 0.5 λ₀²: -4.4 ± 0.6 by ‖w‖²" in force.reason
    cause = verdict_of(found, "the updates are shorter")
    assert cause.exact == "angle 30.0 ± 0.0 %, length of the updates 70.0 ± 0.0 %"
    assert cause.verdict == "holds"
    assert "30 % by the angle, 50 % by the length, 20 % by the norm" in coherence.section(found)


@pytest.mark.parametrize(
    ("whole", "less", "verdict"),
    [(20.0, 17.0, "holds"), (40.0, 30.0, "holds in part"), (11.0, 3.0, "does not hold")],
)
def test_memory_is_judged_by_what_shuffling_costs(whole, less, verdict):
    """At β₂ = 0.999 it costs 8 of 10 in each of two seeds; the third has no run with another memory."""
    growth = {(0.999, 0.0): 10.0, (0.999, 0.6): 2.0, (0.95, 0.0): whole, (0.95, 0.6): less}
    runs = [
        run(rho, seed=seed, beta2=beta2, growth=1e-4 * value)
        for (beta2, rho), value in growth.items()
        for seed in ((0, 1, 2) if beta2 == 0.999 else (0, 1))
    ]
    apart = [difference(0.6, seed) for seed in range(3)]
    row = verdict_of(findings_of(runs, apart), "remembers")
    assert row.verdict == verdict
    assert f"20.0 ± 0.0 % at β₂ = 0.999, {100 * less / whole:.1f} ± 0.0 % at β₂ = 0.95" in row.exact
    assert "80 % of the growth where squared gradients are remembered for 100 % of the run" in row.reason
    assert f"-8.0 at β₂ = 0.999, {less - whole:.1f} at β₂ = 0.95" in row.reason


def test_a_part_of_the_runs_says_what_it_can():
    """With --only there may be no whole text, no law and no repetition."""
    found = findings_of([run(0.3)])
    assert coherence.claims(found) == []
    assert "ρ = 0.3" in coherence.section(found)


@pytest.mark.parametrize("name", ["cpu", "pythia-70m"])
def test_runs_of_a_seed_share_weights_and_begin_with_those_of_four_seeds(name):
    base = preset(name)
    jobs = coherence.jobs(base, coherence.SEEDS)
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.corpus.window for job in jobs if job.corpus != WHOLE} == {base.context}
    for seed in coherence.SEEDS:
        assert Job(replace(base, seed=seed)) in jobs
        assert Job(replace(base, seed=seed)) in four_seeds.jobs(base, coherence.SEEDS)
        assert {job.corpus.shuffled for job in jobs if job.settings.seed == seed} == {0, *coherence.SHUFFLED}
    for job in jobs:
        assert Job(job.settings) in jobs  # the same on the whole text, to be compared with
        assert job.corpus.length is None or job.corpus.length < coherence.text_length()


def test_memory_is_a_part_of_the_run():
    assert coherence.memories(CPU) == [0.98, 0.95]
    assert coherence.memories(PYTHIA_70M) == [0.9975]  # the first is its own
    assert coherence.memories(preset("cpu", steps=40)) == [0.5, 0.5]


def test_a_text_is_described_before_training():
    found = coherence.described(Corpus(length=4000, window=16), 16)
    assert found["gap"] == pytest.approx(found["baseline"] - found["entropy"])
    assert found["entropy"] == conditional_entropy(Corpus(length=4000, window=16).load())
    assert (found["bytes"], found["retained"]) == (4000, 1)
    full = coherence.described(Corpus(shuffled=1.0, length=4000, window=16), 16)
    assert full["gap"] == 0
    assert full["baseline"] == found["baseline"]
    assert full["unigram"] == found["unigram"]


def test_of_a_course_by_hand():
    course = made([0.1] * 8, [0.2] * 8, [-0.01] * 8, lr=0.01)
    # ℓ = Ση‖u‖ over ‖w₀‖, so û = ℓ·√3/(5·η·√100).
    assert course.update_rms == pytest.approx(np.full(8, 0.2 * 3**0.5 / (5 * 0.01 * 10)))
    assert coherence.known(course) is None
    nats = np.log(2) * np.array([8, 4, 2, 1.1, 0.9, 1.2, 0.5, 0.4])
    assert coherence.known(replace(course, loss=nats)) == 5 / 8
    assert coherence.growth_at(course, 1.0) == pytest.approx(course.scale[-1] ** 2 - 0.887487**2 * 3 / 100)
    assert coherence.growth_at(course, 0.5) == pytest.approx(course.scale[3] ** 2 - 0.887487**2 * 3 / 100)
    assert coherence.blocks(np.arange(6.0), 3) == [0.5, 2.5, 4.5]
    assert coherence.blocks(np.arange(2.0), 3) == [0, 1]


def test_the_bridge_splits_a_difference_of_scales():
    base, other = made([0.1] * 8, [0.2] * 8, [-0.01] * 8), made([0.1] * 8, [0.1] * 8, [-0.01] * 8)
    parts = coherence.by_bridge(base, other)
    first = 0.887487**2 * 3 / 100
    assert parts["shape"] == pytest.approx(0, abs=1e-12)  # λ/σ is kept
    assert parts["norm"] == pytest.approx((other.scale[-1] ** 2 - base.scale[-1] ** 2) / first)
    heavier = coherence.by_bridge(base, replace(base, scale=0.9 * base.scale))
    assert heavier["norm"] == pytest.approx(0, abs=1e-12)
    assert heavier["shape"] == pytest.approx((0.81 - 1) * base.scale[-1] ** 2 / first)


def test_pairs_of_bytes_have_an_exponent(monkeypatch):
    # Tokens in a fixed cycle: all is told by the one before until places are changed.
    cycle = torch.arange(8, dtype=torch.uint8).repeat(4000)
    monkeypatch.setattr(coherence, "library_source", lambda: cycle)
    found = coherence.pairs_of_bytes(64)
    assert 1 < found["exponent"] < 4
    assert 0 < found["error"] < 0.2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole command, with less text and less of a network."""
    folder = tmp_path_factory.mktemp("coherence")
    patch = pytest.MonkeyPatch()
    source = library_source(60_000)
    patch.setattr(corpus, "library_source", lambda: source)
    patch.setattr(coherence, "library_source", lambda: source)
    patch.setattr(coherence, "text_length", lambda: len(source))
    arguments = [
        coherence.NAME,
        *("--steps=20", "--width=16", "--seeds=0"),
        *(f"--{name}={folder / name}" for name in ("out", "results")),
        f"--page={folder / 'page.md'}",
    ]
    result = CliRunner().invoke(reproduce.app, arguments)
    patch.undo()
    assert result.exit_code == 0, result.output
    return folder


def test_the_command_leaves_numbers_a_picture_and_rows(finished):
    text = (finished / "results" / "coherence.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = json.loads(text)["findings"]
    assert {run["times"] for run in found["runs"]} == {None, 4, 8, 16, 64}
    for each in found["differences"]:
        assert sum(each["forces"].values()) == pytest.approx(each["total"], abs=1e-4)
        assert sum(each["drivers"].values()) == pytest.approx(each["total"], abs=1e-4)
        assert sum(each["factors"].values()) == pytest.approx(each["forces"]["alignment"], abs=1e-4)
    assert (finished / "results" / "coherence.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (finished / "page.md").read_text()
    for claim in coherence.claims(found):
        assert claim.row(json.loads(text)["command"]) in page
    assert len(coherence.claims(found)) == 7
    assert coherence.section(found) in page


def test_power_is_what_the_json_holds():
    assert Power(**law(shuffled_runs())["growth_on_gap"])(np.zeros(1)) == pytest.approx(4.1e-4, rel=0.05)
