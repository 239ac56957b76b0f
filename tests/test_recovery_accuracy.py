"""The recovery experiment on a run of a minute's thousandth: it ends with its table, numbers and picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
import recovery_accuracy as experiment
import recovery_calibration as calibration
import recovery_compared
import reproduce
from experiments import recovery as judged
from rich.progress import Progress
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels.gram import CheckpointGram
from weibull_kernels.records import read_records


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("recovery")
    arguments = [
        "recovery",
        "--steps=120",
        "--runs=1",
        "--width=32",
        f"--out={out / 'runs'}",
        f"--results={out / 'results'}",
        f"--page={out / 'page.md'}",
    ]
    result = CliRunner().invoke(reproduce.app, arguments)
    assert result.exit_code == 0, result.output
    return out, arguments, result


def test_it_leaves_a_table_the_numbers_and_a_picture(small):
    out, _, result = small
    page = (out / "results" / "recovery.md").read_text()
    rows = json.loads((out / "results" / "recovery.json").read_text())["findings"]["runs"]
    assert (out / "results" / "recovery.png").read_bytes().startswith(b"\x89PNG\r\n")
    for method in wk.recovery_methods.METHODS:
        assert f"`{method}`" in page
    assert {row["schedule"] for row in rows} == {"10", "20", "50", "log, then 50"}
    assert {row["role"] for row in rows} == set(experiment.ROLES)
    assert "corrected" in result.output
    page = (out / "page.md").read_text()
    assert "a spline through checkpoints recovers the alignment" in page
    assert page.count("not measured: no checkpoints 1–5 % of the run apart") == 2  # of 120 steps


def test_corrected_is_the_closest_in_the_rise(small):
    """Of the impulses, which is where a run this short can tell the methods apart."""
    out, _, _ = small
    rows = json.loads((out / "results" / "recovery.json").read_text())["findings"]["runs"]
    found = {
        row["method"]: row["rise"]
        for row in rows
        if row["schedule"] == "10" and row["role"] == "transmission"
    }
    errors = {method: rise["impulse_error"] for method, rise in found.items()}
    assert errors["corrected"] <= 0.02
    assert errors["corrected"] < errors["spline"] < errors["two_point"]
    assert errors["corrected"] < errors["midpoint"] < errors["two_point"]


def test_a_run_that_is_there_is_not_trained_again(small, monkeypatch):
    out, arguments, _ = small
    before = (out / "results" / "recovery.json").read_text()
    monkeypatch.setattr(experiment, "train", None)
    assert CliRunner().invoke(reproduce.app, arguments).exit_code == 0
    assert (out / "results" / "recovery.json").read_text() == before
    assert not list((out / "runs").rglob("*.pt"))


def test_the_mean_of_twenty_steps():
    values = np.arange(100.0)
    mean = recovery_compared.moving_mean(values)
    assert mean[50] == pytest.approx(values[40:60].mean())
    assert mean[0] == pytest.approx(values[:10].mean())
    assert mean[99] == pytest.approx(values[89:].mean())


def test_the_calibration_leaves_its_table(tmp_path):
    arguments = ["--steps=120", "--runs=1", "--width=32", f"--out={tmp_path}", f"--results={tmp_path}"]
    result = CliRunner().invoke(calibration.app, arguments)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "recovery-calibration.md").read_text()
    rows = [
        line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()
    ]
    assert [int(row[0]) for row in rows] == list(calibration.LENGTHS)
    five = [float(cell) for cell in rows[0][1:] if "–" not in cell]
    assert all(0.5 < part < 1.2 for part in five[::2])


SETTINGS = experiment.Plan(120, 1, 32).settings[0]


def test_the_true_forces_give_what_each_method_sums_up_to(small):
    """Â = A + J − M + (D + C − D̂), but for what float32 weights are rounded by."""
    out, _, _ = small
    rows = json.loads((out / "results" / "recovery.json").read_text())["findings"]["runs"]
    seen = [row for row in rows if "unexplained" in row["rise"] and row["rise"]["intervals"]]
    assert {row["method"] for row in seen} == {"spline", "midpoint", "two_point"}
    assert max(row["rise"]["unexplained"] for row in seen) <= 1e-5
    for row in seen:
        moved = row["rise"]["own_move"]
        assert moved > 0 if row["method"] != "midpoint" else moved == 0


def test_the_moves_of_a_spline_are_those_of_its_path():
    """On a straight line, w = t in one entry, every step is 1, and the interval's move its length."""
    gram = wk.checkpoint_gram([{"w": one_entry(10.0 + step)} for step in LINE], steps=LINE)
    lengths = [10.0, 10.0, 20.0, 10.0]
    moves = {
        method: recovery_compared.own_moves(
            wk.recover(gram, lr=1.0, weight_decay=0.0, method=method, roles={"w": "ffn"}), gram, "ffn"
        )
        for method in ("spline", "two_point", "midpoint")
    }
    assert moves["spline"] == pytest.approx(lengths)
    assert moves["two_point"] == pytest.approx([length**2 for length in lengths])
    assert moves["midpoint"] == pytest.approx([0.0] * 4)


LINE = [0, 10, 20, 40, 50]


def one_entry(value):
    return experiment.torch.tensor([value], dtype=experiment.torch.float64)


def test_straight_lines_keep_all_of_the_injection_of_single_steps():
    """c(1) = 1 and Σaₛaₜβ₁^|s−t| = η² = (Ση)², so that an interval of one step keeps all."""
    gram = wk.checkpoint_gram([{"w": one_entry(10.0 + step)} for step in (0, 1, 2, 3)], steps=[0, 1, 2, 3])
    recovery = wk.recover(gram, lr=1.0, weight_decay=0.0, method="midpoint")
    settings = replace(SETTINGS, weight_decay=0.0)
    assert recovery_compared.kept_on_lines(recovery, settings) == pytest.approx([1.0, 1.0, 1.0])


def test_a_run_of_other_settings_is_not_taken(small):
    out, _, _ = small
    folder = out / "runs" / experiment.name_of(SETTINGS)
    other = replace(SETTINGS, clip=0.5)
    assert experiment.name_of(other) == experiment.name_of(SETTINGS)
    with pytest.raises(ValueError, match=r"beta0\.95-steps120 holds .* clip 1\.0 in place of 0\.5; remove"):
        experiment.trained(other, None, folder, Progress(disable=True))
    with pytest.raises(ValueError, match=r"clip 'not named' in place of 1\.0"):
        experiment.require_same(SETTINGS, {"steps": 120, "unheard": 1}, folder)


def test_what_a_run_was_trained_on_stays_with_it(small, tmp_path):
    out, _, _ = small
    about = json.loads((out / "results" / "recovery.json").read_text())
    folder = out / "runs" / experiment.name_of(SETTINGS)
    assert judged.machines(about["findings"]) == [
        json.loads((folder / "machine.json").read_text())["machine"]
    ]
    with pytest.raises(ValueError, match=r"has no machine\.json"):
        experiment.described(SETTINGS, tmp_path)


def test_curves_of_the_picture_are_thinned(small, monkeypatch):
    out, _, _ = small
    folder = out / "runs" / experiment.name_of(SETTINGS)
    records = read_records(folder / "records.parquet")
    gram = CheckpointGram.load(folder / "gram.parquet")
    whole = experiment.shown_run(SETTINGS, records, gram)
    monkeypatch.setattr(experiment, "SHOWN", 18)
    some = experiment.shown_run(SETTINGS, records, gram)
    assert some["step"] == list(range(1, 121, 7))
    for name in ("step", "true", "averaged", "corrected", "spline", "two_point"):
        assert len(whole[name]) == 120
        assert some[name] == whole[name][::7]


def found_of(spline, two_point, errors, steps=1000):
    """Findings of one run, with a ratio as published for each of the spacings 10, 20 and 50."""
    rows = []
    for place, spacing in enumerate(("10", "20", "50")):
        published = {"spline": spline, "two_point": two_point, "midpoint": spline, "corrected": spline}
        for method, ratios in published.items():
            rise = {
                "ratio": ratios[place] + 0.1,
                "as_published": ratios[place],
                "error": errors[method == "two_point"],
                "impulse_ratio": 1.05,
                **dict.fromkeys(("sum", "sum_as_published", "remainder", "remainder_as_published"), 0.9),
                **dict.fromkeys(("own_move", "unexplained", "swing", "kept", "kept_by_diffusion"), 0.01),
            }
            rows.append({"schedule": spacing, "method": method, "role": "transmission", "rise": rise})
    return {"steps": steps, "runs": rows}


@pytest.mark.parametrize(
    ("spline", "two_point", "errors", "verdicts"),
    [
        ((0.92, 0.93, 0.94), (0.46, 0.46, 0.46), (0.05, 0.5), ("holds", "holds")),
        ((0.92, 0.93, 0.94), (0.68, 0.6, 0.55), (0.05, 0.3), ("holds", "holds in part: closer at every")),
        ((0.6, 0.6, 0.6), (0.3, 0.3, 0.3), (0.4, 0.7), ("holds in part: closer than", "holds")),
        ((0.6, 0.6, 0.6), (0.7, 0.7, 0.7), (0.4, 0.3), ("does not hold", "does not hold")),
    ],
)
def test_verdicts(spline, two_point, errors, verdicts):
    found = judged.claims(found_of(spline, two_point, errors))
    for claim, verdict in zip(found, verdicts, strict=True):
        assert claim.verdict.startswith(verdict)
        assert claim.verdict == verdict or verdict.startswith("holds in part")


def test_how_many_times_the_spline_has_the_ratio_of_two_points():
    claim = judged.claims(found_of((0.9, 0.9, 0.9), (0.6, 0.5, 0.45), (0.05, 0.4)))[1]
    assert claim.as_published == "ratio 0.900 beside 0.450–0.600: 1.50–2.00 times"
    assert claim.exact == "ratio 1.000 beside 0.550–0.700, error 5.0 % beside 40.0 %"


def test_spacings_are_judged_by_their_part_of_the_run():
    assert judged.judged_at(found_of(*[(0.9,) * 3] * 2, (0, 1))) == ["10", "20", "50"]
    assert judged.judged_at(found_of(*[(0.9,) * 3] * 2, (0, 1), steps=400)) == ["10", "20"]
    assert judged.judged_at(found_of(*[(0.9,) * 3] * 2, (0, 1), steps=120)) == []


def test_where_there_is_no_rise_it_says_so():
    found = found_of(*[(0.9,) * 3] * 2, (0, 1))
    for row in found["runs"]:
        row["rise"] = dict.fromkeys(row["rise"])
    claims = judged.claims(found)
    assert [claim.exact for claim in claims] == ["not measured"] * 2
    assert all(claim.verdict.startswith("not measured: ") for claim in claims)
