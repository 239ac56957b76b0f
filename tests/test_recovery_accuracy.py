"""The recovery experiment on a run of a minute's thousandth: it ends with its table, numbers and picture."""

import json

import numpy as np
import pytest
import recovery_accuracy as experiment
import recovery_calibration as calibration
import reproduce
from typer.testing import CliRunner

import weibull_kernels as wk


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
    assert "a spline through checkpoints recovers the alignment" in (out / "page.md").read_text()


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
    mean = experiment.moving_mean(values)
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
