"""Relaxation: the turn and the fall of made-up runs whose course is known, and the whole command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reproduce
from experiments import relaxation
from experiments.course import Course
from experiments.growth import after_peak, half_step, start_scale
from experiments.jobs import Job
from experiments.long_path import as_long
from experiments.presets import CPU, PYTHIA_70M, preset
from experiments.relaxation_claims import PUBLISHED, published_after
from settings import Settings
from typer.testing import CliRunner

import weibull_kernels as wk

T = 40
STEADY = Settings(steps=T, lr=0.01, weight_decay=0.5, warmup=0, final_lr=1.0, every=1, fit_every=1)


def course_of(alignment, injection, decay, scale=None, norm_sq_start=400.0, entries=100):
    """A run of `T` records of one step with these forces, which add up; no coupling."""
    step = np.arange(1, T + 1)
    columns = [
        np.broadcast_to(np.asarray(column, float), step.shape) for column in (alignment, injection, decay)
    ]
    change = np.sum(columns, axis=0)
    norm_sq = norm_sq_start + np.concatenate(([0.0], np.cumsum(change)[:-1]))
    forces = wk.ForceBudget(
        *columns,
        coupling=np.zeros(T),
        norm_sq=norm_sq,
        rounding=np.zeros(T),
        numel=np.full(T, entries),
        steps=np.ones(T, dtype=int),
        step=step,
    )
    sigma = np.sqrt((norm_sq + change) / entries)
    return Course(
        step=step,
        lr=np.full(T, STEADY.lr),
        weight_decay=np.full(T, STEADY.weight_decay),
        loss=np.full(T, 2.0),
        forces=forces,
        k=np.full(T, 1.2),
        scale=sigma if scale is None else np.asarray(scale, float),
        summary={"closure_of_bound": 0.1},
    )


@pytest.fixture
def falling():
    """Alignment 30.5 − t, injection 2, decay −t: they cross at 15.25, and all growth is passed at 16.25."""
    t = np.arange(1, T + 1)
    return course_of(30.5 - t, 2.0, -1.0 * t)


@pytest.mark.parametrize(
    ("ahead", "found"),
    [([0, 1, 0, 1, 1], 8), ([0, 0, 0, 0, 1], 10), ([1, 1, 1, 1, 1], 2), ([1, 1, 1, 1, 0], None)],
)
def test_for_good_is_where_the_last_stretch_begins(ahead, found):
    assert relaxation.for_good(np.array([2, 4, 6, 8, 10]), np.array(ahead, bool)) == found


def test_decay_passes_alignment_first_then_all_growth_then_the_published_alignment(falling):
    # t > 30.5 − t from 16 on, t > 32.5 − t from 17, t > 34.5 − t from 18: the mean of a line is itself.
    assert relaxation.crossings(falling) == {"exact": 16, "net": 17, "as_published": 18}


def test_no_crossing_where_decay_is_never_ahead():
    assert relaxation.crossings(course_of(3.0, 1.0, -2.0)) == dict.fromkeys(("exact", "net", "as_published"))


def test_the_balance_at_a_record(falling):
    at = relaxation.balance(falling, 15)  # step 16: 14.5, 2 and −16
    shrunk = 1 - 16 / (2 * falling.forces.norm_sq[15])  # c: ⟨w⁺,u⟩ = c·⟨w,u⟩ − η‖u‖²
    assert at == pytest.approx(
        {
            "alignment": 14.5 / 16,
            "alignment_as_published": (shrunk * 14.5 + 4) / 16,
            "injection": 2 / 16,
            "coupling": 0.0,
            "net_over_budget": 0.5 / 32.5,
        },
        abs=1e-12,
    )


def test_a_run_in_numbers(falling):
    run = relaxation.of_run(Job(STEADY), falling)
    sigma = falling.rms
    assert run["rms"]["peak_step"] == run["peak_step"] == 16
    assert run["rms"]["peak"] == sigma[15]
    assert run["rms"]["at_net"] == sigma[16]  # decay is ahead of all growth from step 17 on
    assert run["final_over_peak"] == sigma[-1] / sigma[15]
    assert run["scale"]["start"] == pytest.approx(0.887487 * 2)  # ‖w‖² = 400 of 100 entries
    assert run["age"] == pytest.approx(0.2)
    assert run["after_peak"]["age"] == pytest.approx(0.005 * (T - run["peak_step"]))
    assert start_scale(falling) == run["scale"]["start"]


def test_what_growth_offset_of_the_decay_since_the_peak():
    settings = replace(STEADY, weight_decay=2.0)  # 0.02 of an age in a step
    alone = after_peak(settings, 30, math.exp(-0.2))
    assert alone == pytest.approx({"age": 0.2, "decay_alone": math.exp(-0.2), "offset": 0.0}, abs=1e-12)
    assert after_peak(settings, 30, 1.0)["offset"] == 1.0
    assert after_peak(settings, 30, math.exp(-0.05))["offset"] == pytest.approx(0.75)
    assert after_peak(settings, T, 1.0)["offset"] is None
    assert after_peak(replace(settings, weight_decay=0.0), 30, 1.0)["offset"] is None


def test_half_of_the_way_to_the_peak():
    step, scale = np.array([10, 20, 30]), np.array([2.0, 5.0, 4.0])
    assert half_step(step, scale, start=1.0) == pytest.approx(10 + 10 / 3)  # 3 on the way from 2 to 5
    assert half_step(step, scale, start=3.0) == pytest.approx(10 + 20 / 3)
    assert half_step(step, np.array([2.0, 1.0, 0.5]), start=2.0) == 0.0  # it only falls


def test_the_published_runs_stay_what_they_are():
    assert as_long(PYTHIA_70M) == PYTHIA_70M


@pytest.mark.parametrize("steps", [1000, 2000, 5000])
def test_fewer_steps_lead_as_far_and_forget_as_soon(steps):
    settings = as_long(preset("cpu", steps=steps))
    assert settings.lr * steps == pytest.approx(PYTHIA_70M.lr * PYTHIA_70M.steps)
    assert 1 / (1 - settings.beta2) == pytest.approx(0.05 * steps)
    assert settings.warmup_steps == min(200, steps // 10)


def test_a_run_for_every_age_and_seed():
    jobs = relaxation.jobs(CPU, (0, 1))
    assert len({job.name for job in jobs}) == len(jobs) == 13
    assert {round(job.settings.age, 9) for job in jobs} == set(relaxation.AGES)
    assert [job.settings.steps for job in jobs] == 12 * [1000] + [4000]
    assert jobs[-1].settings.lr * 4000 == pytest.approx(jobs[0].settings.lr * 1000)
    assert len(relaxation.jobs(PYTHIA_70M, (0, 1))) == 12  # as long as the published already
    assert set(PUBLISHED) < set(relaxation.AGES)


def test_what_is_left_of_the_published_ages():
    # ω from the age: the last 20 % of the cosine to a tenth is flat, and 0.11 hardly decays there.
    assert published_after(0.11)["age"] < 0.02
    for age, (peak, final, step, _) in PUBLISHED.items():
        left = published_after(age)
        assert left["age"] < age * (1 - step / PYTHIA_70M.steps)  # η is lower in the second half
        assert left["decay_alone"] < final / peak < 1
        assert left["offset"] == pytest.approx(1 - math.log(peak / final) / left["age"])


def found_of(ratios, places=(90, 50, 40), lag=2):
    """The findings of three ages with these final over peak."""
    run = relaxation.of_run(
        Job(STEADY),
        course_of(30.0 - np.arange(1, T + 1), 1.0, -1.0 * np.arange(1, T + 1), norm_sq_start=600.0),
    )
    runs = []
    for age, ratio, place in zip((0.11, 1.1, 2.2), ratios, places, strict=True):
        crossing = {"exact": place - 2 * lag, "net": place - lag, "as_published": place + lag}
        runs.append(
            run
            | {"age": age, "steps": 100, "final_over_peak": ratio, "peak_step": place, "crossing": crossing}
            | {"rms": {"peak": 2.0, "final": 1.8, "peak_step": place - lag - 1, "at_net": 1.99}}
        )
    return {"runs": runs, "longer": [], "curves": []}


def verdicts(found):
    return [claim.verdict.split(":")[0] for claim in relaxation.claims(found)]


def test_verdicts_follow_the_numbers():
    assert verdicts(found_of((1.0, 0.9, 0.8))) == ["holds"] * 5
    late = relaxation.claims(found_of((1.0, 0.9, 0.8), lag=6))
    assert late[1].verdict == "does not hold"  # the published lag is −6 % in every run
    assert (
        late[1].exact
        == "λ peaks +12.0 % of the run after decay passes alignment, +6.0 % after it passes all growth"
    )
    assert late[1].as_published.startswith("-6.0 %")
    assert "σ peaks -1.0 % of the run after the net changes sign for good" in late[1].reason
    assert "within 0.50 % of its peak there" in late[1].reason
    assert verdicts(found_of((1.0, 0.95, 0.9)))[2] == "holds in part"  # not as deep as published
    assert verdicts(found_of((1.0, 0.9, 0.95)))[2] == "does not hold"  # the oldest falls less
    assert verdicts(found_of((1.0, 0.9, 0.8), places=(60, 70, 80)))[3] == "does not hold"
    assert (
        verdicts(found_of((1.0, 0.9, 0.8), places=(90, 70, 60)))[3] == "holds in part"
    )  # later than published
    assert verdicts(found_of((0.97, 0.9, 0.8)))[4] == "does not hold"  # the base relaxes


def test_far_from_balance_at_the_peak():
    found = found_of((1.0, 0.9, 0.8))
    found["runs"][2]["at_scale_peak"] = found["runs"][2]["at_scale_peak"] | {"net_over_budget": -0.3}
    told = relaxation.claims(found)[0]
    assert told.verdict == "does not hold"
    assert "at most 30.0 % of the budget" in told.reason
    found = found_of((1.0, 0.9, 0.8))
    found["runs"][2]["at_peak"] = found["runs"][2]["at_peak"] | {"alignment_as_published": 1.3}
    assert relaxation.claims(found)[0].verdict == "does not hold"


def test_every_run_in_which_decay_gets_ahead_is_judged():
    found = found_of((1.0, 0.9, 0.8))
    assert "(3 runs)" in relaxation.claims(found)[0].claim  # the youngest too, whose λ does not fall
    found["runs"][0]["crossing"] = {"exact": 70, "net": 75, "as_published": 80}
    cause = relaxation.claims(found)[1]
    assert cause.verdict == "holds in part: within 5 % of the run in 2 of 3 runs"
    assert "+10.0 %" in cause.as_published
    assert "at age 0.11, seed 0, σ turns at step 87 and λ is highest at 90 of 100" in cause.reason
    never = dict.fromkeys(("exact", "net", "as_published"))
    found["runs"][0]["crossing"] = never
    assert "(2 runs)" in relaxation.claims(found)[0].claim
    found["runs"][1]["crossing"] = never  # its λ falls all the same
    told = relaxation.claims(found)
    assert "(2 runs)" in told[0].claim
    assert told[1].verdict == "does not hold"


def test_ages_that_peak_at_the_end_are_not_earlier_than_each_other():
    def place_of(places):
        return relaxation.claims(found_of((1.0, 0.9, 0.8), places=places))[3].verdict

    assert place_of((100, 50, 40)) == "holds"  # 100 is a quarter over the published 80
    assert place_of((100, 100, 40)).startswith("holds in part")
    assert place_of((100, 100, 40)).endswith("at the end at 2 ages")
    assert place_of((100, 100, 100)) == "does not hold"
    assert place_of((90, 50, 50)) == "does not hold"


def test_a_quarter_of_the_fall_is_what_counts():
    theirs = [1 - PUBLISHED[age][1] / PUBLISHED[age][0] for age in (1.1, 2.2)]
    for times, verdict in ((0.8, "holds"), (1.2, "holds"), (0.7, "holds in part"), (1.3, "holds in part")):
        told = relaxation.claims(found_of((1.0, *(1 - times * fall for fall in theirs))))[2]
        assert told.verdict.split(":")[0] == verdict
    assert "is 130 % at 1.1, 130 % at 2.2 of the published" in told.reason


def test_without_a_run_that_relaxes_there_is_no_turn_to_judge():
    found = found_of((1.0, 1.0, 1.0))
    for run in found["runs"]:
        run["crossing"] = dict.fromkeys(run["crossing"])
    told = relaxation.claims(found)
    assert [claim.claim for claim in told if "turn" in claim.claim] == []
    assert [claim.verdict.split(":")[0] for claim in told] == ["does not hold", "holds", "holds"]


def test_one_age_alone_tells_only_of_itself():
    found = found_of((1.0, 0.9, 0.8))
    for age, claims in ((0.11, ["[W2] at the age of its base, 0.11, λ does not relax yet"]), (2.2, [])):
        mine = found | {"runs": [run for run in found["runs"] if run["age"] == age]}
        told = [claim.claim for claim in relaxation.claims(mine) if "turn" not in claim.claim]
        assert told == claims


def test_why_a_fall_is_not_the_published_one():
    found = found_of((1.0, 0.95, 0.9))
    found["runs"][2]["after_peak"] = {"age": 0.5, "decay_alone": 0.6, "offset": 0.25}
    told = relaxation.claims(found)[2].reason
    theirs = published_after(2.2)
    assert (
        "at 2.2 an age of 0.50 is left after the peak, and growth offsets 25 % of that decay "
        f"([W2]: {theirs['age']:.2f}" in told
    )


def test_the_longer_run_is_told_of():
    found = found_of((1.0, 0.9, 0.8))
    longer = found["runs"][2] | {"steps": 400, "peak_step": 160, "half_step": 80, "final_over_peak": 0.77}
    told = relaxation.claims(found | {"longer": [longer]})[3].reason
    assert "with 4 times the steps to the same Ση, so at η = 0.01 for 0.01, in one seed" in told
    assert "half is done at 20 %, the peak is at 40 %, and λ falls to 0.770" in told
    assert relaxation.section(found | {"longer": [longer]}).count("\n| 2.2 (") == 2


def test_the_command(tmp_path):
    arguments = ["relaxation", "--steps=20", "--width=16", "--seeds=0", f"--out={tmp_path / 'runs'}"]
    result = CliRunner().invoke(
        reproduce.app, [*arguments, f"--results={tmp_path}", f"--page={tmp_path / 'page.md'}"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "relaxation.json").read_text())["findings"]
    assert [run["age"] for run in found["runs"]] == list(relaxation.AGES)
    assert [run["steps"] for run in found["longer"]] == [80]
    assert max(run["closure_of_bound"] for run in found["runs"]) < 1
    assert all(len(curve["step"]) <= 60 for curve in found["curves"])
    assert (tmp_path / "relaxation.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.md").read_text()
    assert all(claim.claim in page for claim in relaxation.claims(found))
    assert relaxation.section(found) in page
