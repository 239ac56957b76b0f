"""Beyond the papers: the figures of made-up runs that are known by hand, and the whole command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reproduce
import torch
from experiments import beyond
from experiments.beyond_claims import in_order
from experiments.course import Course, work
from experiments.jobs import Job
from experiments.presets import CPU, PYTHIA_70M, preset
from typer.testing import CliRunner

import weibull_kernels as wk

T, ENTRIES = 40, 100
LR, DECAY = 0.01, 0.5
FORCES = ("alignment", "injection", "decay", "coupling")


def course_of(alignment, injection, decay, rounding=None, norm_sq_start=400.0, lr=LR, unmoved=None):
    """A run of `T` records of one step with these forces; they and rounding make up the norm."""
    step = np.arange(1, T + 1)
    columns = [np.broadcast_to(np.asarray(force, float), T) for force in (alignment, injection, decay)]
    rounded = None if rounding is None else np.broadcast_to(np.asarray(rounding, float), T)
    change = np.sum(columns, axis=0) + (0 if rounded is None else np.nan_to_num(rounded))
    norm_sq = norm_sq_start + np.concatenate(([0.0], np.cumsum(change)[:-1]))
    forces = wk.ForceBudget(
        *columns,
        coupling=np.zeros(T),
        norm_sq=norm_sq,
        rounding=rounded,
        numel=np.full(T, ENTRIES),
        steps=np.ones(T, dtype=int),
    )
    sigma = np.sqrt((norm_sq + change) / ENTRIES)
    summary = {"closure_of_budget": 1e-12} | ({} if unmoved is None else {"unmoved": unmoved})
    scale = np.where(step % 2 == 0, 0.9 * sigma, np.nan)  # fitted at every other record
    return Course(
        step,
        np.full(T, lr),
        np.full(T, DECAY),
        np.full(T, 2.0),
        forces,
        np.where(step % 2 == 0, 1.2, np.nan),
        scale,
        summary,
    )


# What is run


def test_the_variants():
    jobs = beyond.jobs(CPU, (0, 1))
    assert [beyond.variant_of(job.settings) for job in jobs[::2]] == [
        "AdamW",
        "Adam without decay",
        "AdamW, age 0.11",
        "AdamW, bfloat16 weights",
        "Adam without decay, bfloat16 weights",
        "AdamW, age 0.11, bfloat16 weights",
        "Lion",
        "Muon",
    ]
    assert [job.settings.seed for job in jobs] == [0, 1] * 8
    assert len({job.name for job in jobs}) == 16
    ages = {beyond.variant_of(job.settings): job.settings.age for job in jobs}
    expected = {"AdamW": 2.2, "Adam without decay": 0, "AdamW, age 0.11": PYTHIA_70M.age, "Lion": 2.2}
    for variant, age in expected.items():
        assert ages[variant] == pytest.approx(age, rel=1e-3)
    assert {job.settings.every for job in jobs if job.settings.optimizer != "adamw"} == {1}


def test_lion_decays_as_adamw_does_at_a_quarter_of_its_rate():
    adamw, *_, lion, _ = (job.settings for job in beyond.jobs(CPU, (0,)))
    assert lion.lr == adamw.lr / 4
    assert lion.lr * lion.weight_decay == pytest.approx(adamw.lr * adamw.weight_decay, rel=1e-12)


# Its figures, by hand


def test_the_update_of_a_made_up_lion_has_rms_1_and_a_known_angle():
    """u = ±1 in all 100 entries: injection η²·100; at ‖w‖ = 20 and cosθ = 1/4 alignment is 2η·20·10/4."""
    course = course_of(100 * LR, LR**2 * 100, -100 * LR - LR**2 * 100)  # at rest
    settings = replace(CPU, optimizer="lion", steps=T, every=1)
    run = beyond.of_run(Job(settings), course)
    assert run["update_rms"] == pytest.approx({"rise": 1.0, "end": 1.0})
    assert run["cosine"] == pytest.approx({"rise": 0.25, "end": 0.25})
    assert run["rounding"] is None
    assert run["unmoved"] is None
    assert run["scale"]["final"] == pytest.approx(0.9 * 2)
    assert run["k"] == {"start": 1.2, "final": 1.2}
    assert not np.isnan(run["curves"]["scale"]).any()
    assert json.loads(json.dumps(run, allow_nan=False)) == run


def test_shares_are_those_of_the_sums_up_to_the_peak_and_as_published():
    """Ten steps of 6 + 1 − 3, then thirty of 1 + 1 − 3."""
    course = course_of(np.where(np.arange(T) < 10, 6.0, 1.0), 1.0, -3.0)
    run = beyond.of_run(Job(replace(CPU, steps=T)), course)
    assert run["shares"]["rise"] == pytest.approx({"alignment": 0.6, "injection": 0.1, "decay": -0.3})
    assert run["shares"]["end"] == pytest.approx({"alignment": 0.2, "injection": 0.2, "decay": -0.6})
    # The published decay is that of the norm after the step, which is hardly another.
    published = run["shares"]["rise_as_published"]
    assert published["alignment"] == pytest.approx(8 / 12, rel=0.01)
    assert run["work"]["whole"] == pytest.approx(
        {"alignment": 90 / 400, "injection": 40 / 400, "decay": -120 / 400, "coupling": 0, "rounding": 0}
    )
    assert run["work"]["to_peak"]["alignment"] == pytest.approx(60 / 400)
    assert run["peak_at"] == 10 / T


def test_work_sums_to_the_growth_of_the_norm():
    course = course_of(np.linspace(3, 1, T), 0.5, -1.5, rounding=0.2)
    grown = (course.rms[-1] ** 2 * ENTRIES - 400) / 400
    assert sum(work(course.forces).values()) == pytest.approx(grown, rel=1e-12)
    assert work(course.forces)["rounding"] == pytest.approx(0.2 * T / 400)


def test_rounding_beside_the_budget_and_the_net():
    """0.5 of a budget of 3 + 1 + 5 and against the net of −1; in the last two steps all of it."""
    tail = np.arange(T) >= 38
    found = beyond.rounding(course_of(3.0, 1.0, -5.0, rounding=np.where(tail, 1.0, 0.5)), tail)
    assert found["end"] == {"of_budget": pytest.approx(1 / 9), "of_net": pytest.approx(-1)}
    rounded = 38 * 0.5 + 2
    assert found["whole"] == {
        "of_budget": pytest.approx(rounded / (9 * T)),
        "of_net": pytest.approx(rounded / -T),
    }


def test_rounding_takes_nothing_back_of_no_net():
    found = beyond.rounding(course_of(3.0, 1.0, -4.0, rounding=1.0), np.full(T, True))
    assert found["whole"] == {"of_budget": pytest.approx(1 / 8), "of_net": None}


def test_half_of_the_last_digit_of_bfloat16():
    """The least that moves an entry up, by torch."""
    sizes = np.array([1.0, 1.5, 0.02, 0.1])
    for size, half in zip(sizes, beyond.half_digit(sizes), strict=True):
        weight = torch.tensor(size, dtype=torch.bfloat16).double()
        moved = [(weight + part * half).bfloat16().double() != weight for part in (0.99, 1.01)]
        assert moved == [False, True]


def test_rounding_of_displacements_is_none():
    assert beyond.rounding(course_of(3.0, 1.0, -4.0, rounding=np.nan), np.full(T, True)) is None


def test_the_part_of_each_force_on_unmoved_entries_and_what_decay_did():
    looks = [
        ({"alignment": 2.0, "injection": 2.0, "decay": -4.0, "coupling": 0.0, "decay_done": -3.0}, 0.5),
        ({"alignment": 4.0, "injection": 1.0, "decay": -2.0, "coupling": 0.5, "decay_done": 0.0}, -1.0),
        ({"alignment": 4.0, "injection": 1.0, "decay": 0.0, "coupling": 0.0, "decay_done": 0.0}, 0.0),
    ]
    seen = {
        "step": [20, 30, 40],
        "fraction": [0.25, 0.75, 1.0],
        "forces": [forces for forces, _ in looks],
        "of_unmoved": [dict.fromkeys(forces, part) for forces, part in looks],
    }
    found = beyond.unmoved(course_of(1.0, 4.0, -5.0, unmoved=seen))
    # η·û is √(4/100) = 0.2, and σ = 2 has digits of 2⁻⁶.
    assert found.pop("reach") == pytest.approx([0.2 * 2**7] * 3)
    assert found == {
        "step": [20, 30, 40],
        "entries": [0.25, 0.75, 1.0],
        "alignment": [0.25, -0.25, 0.0],
        "injection": [0.25, -1.0, 0.0],
        "decay": [-0.125, 0.5, None],
        "decay_done": [0.75, 0.0, None],
        "decay_done_of_all": pytest.approx(3 / 5.5),
        "decay_done_at_end": None,
    }


def test_twins_tell_how_much_decay_is_left_and_which_force_makes_the_difference():
    """Decay takes 100 − 60 with float32 weights and 110 − 90 with bfloat16 ones: half of it acts."""
    ends = {
        "AdamW": (60.0, 0.0),
        "Adam without decay": (100.0, 0.0),
        "AdamW, bfloat16 weights": (85.0, 5.0),  # 5 of it by rounding
        "Adam without decay, bfloat16 weights": (110.0, 0.0),
    }
    jobs = {beyond.variant_of(job.settings): job for job in beyond.jobs(CPU, (3,))}
    courses = {
        jobs[name]: course_of((end - 50) / T, 0, 0, rounding=rounded / T, norm_sq_start=50)
        for name, (end, rounded) in ends.items()
    }
    with_decay, without = beyond.twins(courses)
    nothing = {"injection": 0, "decay": 0, "coupling": 0}
    assert with_decay == {
        "variant": "AdamW",
        "seed": 3,
        "norm_sq": pytest.approx(0.5),
        "work": pytest.approx({"alignment": 25 / 60, "rounding": 5 / 60} | nothing),
        "decay_acts": pytest.approx(0.5),
    }
    assert without["norm_sq"] == pytest.approx(0.1)
    assert without["decay_acts"] is None
    alone = {job: course for job, course in courses.items() if job.settings.weights == "float32"}
    assert beyond.twins(alone) == []


# What it says


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        (["plateau", "rise", "balance", "relaxation"], True),
        (["rise", "relaxation"], True),
        (["plateau", "rise"], False),
        (["plateau", "relaxation", "rise", "balance"], False),
        (["plateau"], False),
    ],
)
def test_rise_and_then_balance(phases, told):
    assert in_order(phases) == told


SEEN = {
    "step": [20, 38],
    "fraction": [0.1, 0.5],
    "forces": [
        {"alignment": 2.0, "injection": 1.0, "decay": -1.0, "coupling": 0.0, "decay_done": -1.0},
        {"alignment": 2.0, "injection": 1.0, "decay": -1.0, "coupling": 0.0, "decay_done": -0.3},
    ],
    "of_unmoved": [dict.fromkeys(FORCES, 0.1), dict.fromkeys(FORCES, 0.5)],
}


@pytest.fixture
def made_up():
    """Two seeds of all variants: they rise by 4 + 1 − 2, Lion by 2 + 1 − 2, and fall by 1 + 1 − 3."""
    up = np.arange(T) < 25
    falls = {"alignment": np.where(up, 4.0, 1.0), "injection": 1.0, "decay": np.where(up, -2.0, -3.0)}
    rises = {"alignment": 3.0, "injection": 1.0, "decay": 0.0}
    courses = {}
    for job in beyond.jobs(preset("cpu", steps=T), (0, 1)):
        forces = falls if job.settings.weight_decay else rises
        if job.settings.optimizer == "lion":
            forces = falls | {"alignment": np.where(up, 2.0, 1.0)}
        rounded = np.nan if job.settings.optimizer != "adamw" else 0.0
        narrow = {}
        if job.settings.weights == "bfloat16":
            rounded, narrow = np.where(up, 0.0, 0.5), {"unmoved": SEEN}
        courses[job] = course_of(**forces, rounding=rounded, **narrow)
    return json.loads(json.dumps(beyond.findings(courses), allow_nan=False))


def said(found):
    """Verdict by the first words of the claim."""
    return {claim.claim.removeprefix("beyond the papers: "): claim.verdict for claim in beyond.claims(found)}


def test_verdicts(made_up):
    assert said(made_up) == {
        "Adam without decay has no relaxation, 2 seeds": "holds",
        "rounding of bfloat16 weights is a force of its own, age 2.2, 2 seeds": "holds",
        "rounding of bfloat16 weights is a force of its own, age 0.11, 2 seeds": "holds",
        "alignment dominates the rise, balance or relaxation follows: Lion, 2 seeds": "holds in part",
        "alignment dominates the rise, balance or relaxation follows: Muon, 2 seeds": "holds",
    }


@pytest.mark.parametrize(
    ("done", "verdict"),
    [((1.0, 0.95), "holds"), ((0.95, 0.3), "holds in part: not to the end"), ((0.3, 0.1), "does not hold")],
)
def test_decay_is_judged_where_a_step_of_it_is_less_than_half_a_digit(made_up, done, verdict):
    assert not any("decay acts" in claim for claim in said(made_up))  # 0.5 % of an entry
    for run in made_up["runs"]:
        if run["variant"] == "AdamW, age 0.11, bfloat16 weights":
            run["weight_decay"] = 2.0**-10 / run["lr"]
            run["unmoved"] |= {"decay_done_of_all": done[0], "decay_done_at_end": done[1]}
    found = {claim: verdict for claim, verdict in said(made_up).items() if "decay acts" in claim}
    assert list(found.values()) == [verdict]
    assert "at most 0.098 % of an entry" in next(iter(found))


def test_the_page_in_words(made_up, tmp_path):
    claims = {claim.claim.split(",")[0]: claim for claim in beyond.claims(made_up)}
    assert claims["beyond the papers: Adam without decay has no relaxation"].exact.startswith(
        "λ ends at 1.000 ± 0 of its peak; with decay"
    )
    section = beyond.section(made_up)
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8
    assert len({row.count("|") for row in rows}) == 1
    assert "all forces following" in section
    beyond.draw(made_up, tmp_path / "beyond.png")
    assert (tmp_path / "beyond.png").read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path):
    arguments = ["beyond", "--steps=20", "--width=8", "--seeds=0", f"--out={tmp_path / 'runs'}"]
    result = CliRunner().invoke(
        reproduce.app, [*arguments, f"--results={tmp_path}", f"--page={tmp_path / 'page.md'}"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "beyond.json").read_text())["findings"]
    runs = {run["variant"]: run for run in found["runs"]}
    assert len(runs) == 8
    assert runs["Lion"]["update_rms"] == pytest.approx({"rise": 1.0, "end": 1.0}, rel=1e-4)
    assert runs["Adam without decay"]["work"]["whole"]["decay"] == 0
    assert runs["AdamW, bfloat16 weights"]["unmoved"]["step"] == [10, 20]
    assert runs["AdamW"]["unmoved"] is None
    for run in runs.values():
        assert run["closure"] < 1e-9
        assert len(run["curves"]["step"]) <= 60
    assert len(found["twins"]) == 3
    assert (tmp_path / "beyond.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.md").read_text()
    assert all(claim.claim in page for claim in beyond.claims(found))
    assert beyond.section(found) in page
