"""The transfer experiment: the laws it measures on made-up runs that follow them, and a tiny real one."""

import json
import math
from dataclasses import replace

import pytest
import torch
import width_training as training
import width_transfer as experiment
from text import VOCABULARY
from typer.testing import CliRunner
from width_training import ROLES, Settings
from width_transfer_findings import Findings, lowest, proxy_optimum

import weibull_kernels as wk

CPU = torch.device("cpu")
TINY = Settings(
    width=32, lr=2.0**-6, weight_decay=0.8, rule="published", base_width=16, steps=12, warmup=2, cooldown=2
)


@pytest.fixture(scope="module", autouse=True)
def text():
    """Instead of the standard library's; and fewer windows of it to judge by."""
    made_up = torch.randint(97, 123, (200_000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "library_source", lambda: made_up)
        patch.setattr(training, "WINDOWS", 16)
        yield made_up


@pytest.fixture(scope="module")
def small(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer")
    arguments = [
        "--widths=16,32",
        "--seeds=2,1",
        "--steps=20",
        "--batch=2",
        "--log2-lrs=-7,-6,-5",
        "--decays=0.2,0.8",
        "--widest-lrs=3",
        f"--out={out / 'runs'}",
        f"--results={out / 'results'}",
    ]
    result = CliRunner().invoke(experiment.app, arguments)
    assert result.exit_code == 0, result.output
    return out, arguments, result


def test_it_leaves_a_table_the_numbers_and_a_picture(small):
    out, _, result = small
    page = (out / "results" / "width-transfer.md").read_text()
    numbers = json.loads((out / "results" / "width-transfer.json").read_text())
    assert (out / "results" / "width-transfer.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert page in result.output
    assert len(numbers["runs"]) == 2 * 2 * 3 + 9 + 1
    assert [row["width"] for row in numbers["best_decays"]] == [32]
    assert {row["rule"] for row in numbers["sigma_slopes"]} == set(wk.scaling.RULES)
    for rule in wk.scaling.RULES:
        assert f"**`{rule}`**" in page
    assert "no setting comes to rest" in page


def test_runs_that_are_there_are_not_repeated(small, monkeypatch):
    out, arguments, _ = small
    before = (out / "results" / "width-transfer.json").read_text()
    monkeypatch.setattr(experiment, "train", None)
    assert CliRunner().invoke(experiment.app, arguments).exit_code == 0
    assert (out / "results" / "width-transfer.json").read_text() == before


def test_an_interrupted_experiment_writes_what_it_has(small, monkeypatch, tmp_path):
    out, arguments, _ = small
    lines = (out / "runs" / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-2]))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupt)
    moved = [f"--out={tmp_path}", f"--results={tmp_path}"]
    result = CliRunner().invoke(experiment.app, arguments[:-2] + moved)
    assert result.exit_code == 0, result.output
    assert "interrupted" in result.output
    rules = {row["rule"] for row in json.loads((tmp_path / "width-transfer.json").read_text())["optima"]}
    assert rules == {"published", "constant"}  # proportional lacks its last lr


def test_a_line_that_was_cut_off_is_forgotten_and_one_in_the_middle_is_an_error(small, tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = (small[0] / "runs" / "runs.jsonl").read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1] + lines[2][:100])
    records = experiment.Records.load(path)
    assert len(records.rows) == 2
    assert path.read_text() == lines[0] + lines[1]
    path.write_text(lines[0] + lines[1][:100] + "\n" + lines[2])
    with pytest.raises(ValueError, match="line 2: not JSON"):
        experiment.Records.load(path)


def test_a_run_is_the_same_when_repeated(text):
    first, second = (training.train(TINY, text, CPU) for _ in range(2))
    del first["seconds"], second["seconds"]
    assert first == second
    assert first["loss"] < math.log(VOCABULARY)


def test_all_rules_are_one_at_the_base_width(text):
    base = replace(TINY, width=16)
    losses = {training.train(replace(base, rule=rule), text, CPU)["loss"] for rule in wk.scaling.RULES}
    assert len(losses) == 1


@pytest.mark.parametrize(("rule", "decay"), [("published", 1.6), ("constant", 0.8), ("proportional", 3.2)])
def test_the_groups_at_four_times_the_width(rule, decay):
    settings = replace(TINY, width=64, rule=rule)
    model = training.LlamaForCausalLM(VOCABULARY, 64, 1)
    matrices, vectors = training.make_optimizer(model, settings).param_groups
    assert (matrices["lr"], matrices["weight_decay"]) == pytest.approx((2.0**-8, decay))
    assert (vectors["lr"], vectors["weight_decay"]) == (2.0**-6, 0)
    assert {wk.role_of(name) for name in matrices["param_names"]} == set(ROLES)
    # 10 steps before the cooldown, the first of them at half the peak.
    assert training.time_constants(settings) == pytest.approx(2.0**-8 * decay * 9.5)


def test_the_lr_warms_up_stays_and_cools_down():
    factors = [TINY.lr_factor(step) for step in range(1, 13)]
    assert factors == pytest.approx([1 / 2, *[1] * 9, 2 / 3, 1 / 3])


def test_what_is_said_of_a_role_is_said_of_its_matrices():
    torch.manual_seed(0)
    model = training.LlamaForCausalLM(VOCABULARY, 32, 2)
    optimizer = training.make_optimizer(model, TINY)
    model(torch.tensor([[1, 2, 3]])).square().sum().add(
        sum(weight.sum() for weight in model.parameters())
    ).backward()
    optimizer.step()
    found = training.by_role(optimizer)
    for role in ROLES:
        mine = [
            weight.detach().double() for name, weight in model.named_parameters() if wk.role_of(name) == role
        ]
        top = torch.stack([torch.linalg.svdvals(weight)[0] for weight in mine]).log().mean().exp().item()
        rms = torch.stack([weight.square().mean().sqrt() for weight in mine]).log().mean().exp().item()
        assert found[role]["sigma_top"] == pytest.approx(top, rel=1e-3)
        assert found[role]["rms"] == pytest.approx(rms)
        forces = found[role]["forces"]
        change = sum(forces[name] for name in ("alignment", "injection", "decay", "coupling", "rounding"))
        after = sum(weight.square().sum().item() for weight in mine)
        assert forces["norm_sq"] + change == pytest.approx(after)


def test_held_out_text_is_not_trained_on():
    blocks = 45
    text = torch.arange(blocks).repeat_interleave(training.BLOCK)
    known, held = training.split(torch.cat((text, torch.tensor([99]))))
    assert held.unique().tolist() == [19, 39]
    assert len(known) == (blocks - 2) * training.BLOCK
    assert not set(known.unique().tolist()) & {19, 39, 99}


def test_the_lowest_point_of_a_parabola_is_exact():
    x = [-9.0, -8.0, -7.0, -6.0, -5.0]
    found = lowest(x, [2 + 0.3 * (each + 7.3) ** 2 for each in x])
    assert (found.log2, found.loss, found.inside) == pytest.approx((-7.3, 2.0, True))
    # By hand: through (−1, 3), (0, 1), (1, 2) it is 1.5x² − 0.5x + 1, lowest at 1/6.
    found = lowest([-1, 0, 1], [3, 1, 2])
    assert (found.log2, found.loss) == pytest.approx((1 / 6, 23 / 24))


def test_a_lowest_point_at_an_end_or_beside_a_run_that_diverged_stays_where_it_is():
    assert lowest([1, 2, 3], [1, 2, 3]) == lowest([1, 2], [1, math.nan])
    assert not lowest([1, 2, 3], [1, 2, 3]).inside
    beside = lowest([1, 2, 3], [2, 1, math.nan])
    assert (beside.log2, beside.inside) == (2, True)
    assert lowest([1, 2, 3], [1, 1, 1]).log2 == 1


def made_up(drift, exponent, widths=(32, 64, 128, 256), seeds=2):
    """Runs whose best log₂ η goes with slope `drift[rule]` and σ_top as √(lr/ω)·width^exponent."""
    rows = {}
    for rule, law in wk.scaling.RULES.items():
        for width in widths:
            if width == widths[0] and rule != "published":
                continue
            for seed in range(seeds):
                for log2_lr in range(-10, -3):
                    best = -7 + drift[rule] * math.log2(width / widths[0]) + 0.1 * (2 * seed - 1)
                    settings = Settings(width, 2.0**log2_lr, 0.8, rule, seed)
                    m = settings.m
                    sigma = (
                        math.sqrt(settings.lr * law.lr_ratio(m) / law.weight_decay_ratio(m)) * width**exponent
                    )
                    forces = {"alignment": 3.0, "injection": 1.0, "coupling": 0.0, "decay": -1.0}
                    rows[settings] = {
                        "loss": 2 + 0.1 * (log2_lr - best) ** 2,
                        "constant_loss": 2 + 0.1 * (log2_lr - best - 1) ** 2,
                        "time_constants": training.time_constants(settings),
                        "matrices": {role: {"sigma_top": sigma, "forces": forces} for role in ROLES},
                    }
    return rows


def test_findings_of_runs_that_follow_laws_are_the_laws():
    drift = {"published": 0.0, "constant": -0.2, "proportional": 0.3}
    findings = Findings.of(made_up(drift, exponent=0.6))
    assert findings.lr == 2.0**-7  # Σηω is 3.05; of 2^−8, as good for one of the seeds, it is half of that
    for rule, slope in drift.items():
        for loss in ("loss", "constant_loss"):
            assert findings.drift(rule, loss) == pytest.approx((slope, slope, slope))
        for role in ROLES:
            by, error = findings.sigma_slope(rule, role)
            assert by == pytest.approx(wk.scaling.RULES[rule].sigma_exponent(0.6))
            assert error == pytest.approx(0, abs=1e-9)
    curve = findings.curve("proportional", 256)
    assert curve.optimum.log2 == pytest.approx(-7 + 0.9)
    assert [optimum.log2 for optimum in curve.of_seeds.values()] == pytest.approx([-6.2, -6.0])
    assert curve.above_best(2.0**-7) == pytest.approx(0.1 * (0.9**2 - 0.1**2))
    # Forces that add four times what decay takes off would rest at twice the σ.
    assert findings.over_rest("published", 128, "ffn") == pytest.approx(0.5)


def test_the_best_decay_is_found_by_the_decay_that_the_matrices_had():
    """Best at 2^−2·√m, whichever rule a decay came from."""
    rows = {}
    for width in (32, 64, 128):
        for rule, decay in [
            *((rule, 0.8) for rule in wk.scaling.RULES),
            ("constant", 0.05),
            ("constant", 0.2),
        ]:
            settings = Settings(width, 2.0**-7, decay, rule)
            had = decay * wk.scaling.RULES[rule].weight_decay_ratio(settings.m)
            loss = 2 + 0.1 * (math.log2(had) + 2 - math.log2(settings.m) / 2) ** 2
            rows[settings] = {"loss": loss, "time_constants": training.time_constants(settings)}
    findings = Findings.of(rows)
    curves = findings.decay_curves()
    assert curves[2].grid == pytest.approx((0.05, 0.2, 0.8, 1.6, 3.2))
    assert [curve.optimum.log2 for curve in curves] == pytest.approx([-2, -1.5, -1])


def test_the_page_says_whether_the_optimum_held():
    drift = {"published": 0.1, "constant": -0.3, "proportional": 1.5}
    page = experiment.page(Findings.of(made_up(drift, exponent=0.75)), "a machine")
    assert "**`published`** (decay ∝ √width): the best η holds: it moves by +0.30 octaves" in page
    assert "**`constant`** (decay constant): the best η does not hold: it moves by −0.90 octaves" in page
    assert "**`proportional`** (decay ∝ width): the best η lies at an end of the grid" in page
    assert "`published` +0.00 to +0.00 (predicted +0.00)" in page
    assert "on a machine" in page


def test_the_proxy_setting_is_the_best_that_comes_to_rest():
    def row(loss, time_constants):
        return {"loss": loss, "time_constants": time_constants}

    def at(lr, decay, seed=0):
        return Settings(32, lr, decay, seed=seed)

    rows = {
        at(0.01, 0.1): row(2.0, 0.5),
        at(0.01, 0.8): row(2.2, 4.0),
        at(0.02, 0.8): row(2.1, 8.0),
        at(0.02, 0.8, seed=1): row(2.4, 8.0),
    }
    assert proxy_optimum(rows) == (0.01, 0.8)
    short = {settings: found | {"time_constants": 0.1} for settings, found in rows.items()}
    assert proxy_optimum(short) == (0.01, 0.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"rule": "guessed"}, "rule must be one of published, constant, proportional, got 'guessed'"),
        ({"lr": 2.0}, "lr·weight_decay must be under 1, got 1.6; lower one"),
        ({"warmup": 11}, "must leave some of the 12 steps, got 11 and 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": (32,)}, "widths must be two or more"),
        ({"seeds": (1, 0)}, "seeds must be a number for each of the widths"),
        ({"lrs": (0.1, 0.2)}, "lrs must be three or more"),
        ({"widest_lrs": 5}, "widest_lrs must be from 3 to the 4 lrs, got 5"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changed, message):
    plan = experiment.Plan((16, 32), (1, 1), (0.01, 0.02, 0.04, 0.08), (0.8,), 3, steps=24, batch=2)
    with pytest.raises(ValueError, match=message):
        replace(plan, **changed)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--widths=16,40", "multiple of the head's dimensions"),
        ("--seeds=1", "seeds must be a number for each"),
    ],
)
def test_an_experiment_that_makes_no_sense_ends_with_a_message(small, option, message):
    result = CliRunner().invoke(experiment.app, [*small[1], option])
    assert result.exit_code == 2
    assert "error: " in result.output
    assert message in result.output


def test_nothing_is_said_before_a_wider_model_has_its_runs(small, monkeypatch, tmp_path):
    out, arguments, _ = small
    lines = (out / "runs" / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:14]))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupt)
    result = CliRunner().invoke(
        experiment.app, [*arguments[:-2], f"--out={tmp_path}", f"--results={tmp_path}"]
    )
    assert result.exit_code == 1
    assert "the same command goes on" in result.output
    assert not (tmp_path / "width-transfer.md").exists()


def test_seeds_go_breadth_first_and_the_widest_has_the_nearest_lrs():
    plan = experiment.Plan((16, 32, 64), (2, 2, 1), (1, 2, 4, 8, 16), (0.01,), 3, steps=24, batch=2)
    runs = list(plan.carried(lr=8, weight_decay=0.01))
    assert [run.rule for run in plan.decays_below(lr=8, weight_decay=0.01)] == []
    lower = replace(plan, decays=(0.001, 0.01)).decays_below(lr=8, weight_decay=0.01)
    assert [(run.width, run.weight_decay, run.seed) for run in lower] == [
        (32, 0.001, 0),
        (64, 0.001, 0),
        (32, 0.001, 1),
    ]
    order = list(dict.fromkeys((run.seed, run.width) for run in runs))
    assert order == [(0, 32), (0, 64), (1, 32)]
    assert sorted({run.lr for run in runs if run.width == 64}) == [4, 8, 16]
    assert len(runs) == 2 * 15 + 9
    assert {run.warmup for run in runs} == {1}


def test_an_option_that_is_no_list_of_numbers_is_refused():
    result = CliRunner().invoke(experiment.app, ["--widths=32,wide"])
    assert result.exit_code == 2
    assert "expected numbers parted by commas" in result.output
