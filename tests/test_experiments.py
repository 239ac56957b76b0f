"""What all experiments share: runs that are made once and can be killed, results, and the page."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reproduce
import torch
from corpus import Corpus
from experiments import EXPERIMENTS, four_seeds, jobs, page
from experiments.claims import Claim, percent, spread
from experiments.course import read_course
from experiments.jobs import Job, trained
from experiments.presets import CPU, PYTHIA_70M, preset, with_age, with_steps
from experiments.results import results_file, rounded, write_results
from typer.testing import CliRunner

from weibull_kernels.records import read_records

ROOT = Path(__file__).parent.parent
TINY = replace(preset("cpu", steps=40), width=16, layers=1, heads=2, context=16, batch=2)


def options(folder, *more):
    return [
        *more,
        f"--out={folder / 'runs'}",
        f"--results={folder / 'results'}",
        f"--page={folder / 'page.md'}",
    ]


def command(folder, *arguments):
    return CliRunner().invoke(reproduce.app, options(folder, *arguments))


def results_of(folder):
    """Without what tells one call from another: the command as typed."""
    return {
        path.name: json.loads(path.read_text()) | {"command": None}
        for path in sorted((folder / "results").glob("*.json"))
    }


FOUR_SEEDS = ("four-seeds", "--steps=40", "--width=16", "--seeds=0,1", "--only=neox")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    result = command(folder, *FOUR_SEEDS)
    assert result.exit_code == 0, result.output
    return folder, result


def test_an_experiment_leaves_records_numbers_a_picture_and_the_page(finished):
    folder, result = finished
    about = json.loads((folder / "results" / "four-seeds.json").read_text())
    assert about["preset"] == "cpu"
    assert "torch" in about["machines"][0]
    assert [run["seed"] for run in about["findings"]["runs"]] == [0, 1]
    assert (folder / "results" / "four-seeds.png").read_bytes().startswith(b"\x89PNG\r\n")
    written = (folder / "page.md").read_text()
    assert written.count("alignment dominates the rise") == 1
    assert about["command"] in written
    assert "(results/four-seeds.png)" in written
    assert four_seeds.section(about["findings"]) in result.output
    assert about["command"] == (
        "python python/reproduce.py four-seeds --steps=40 --width=16 --seeds=0,1 --only=neox"
    )
    for records in (folder / "runs").glob("*/records.parquet"):
        assert read_records(records).num_rows > 0


def test_a_second_time_nothing_is_trained(finished, monkeypatch):
    folder, _ = finished
    before = results_of(folder)
    monkeypatch.setattr(jobs, "train", None)
    assert command(folder, *FOUR_SEEDS).exit_code == 0
    assert results_of(folder) == before


def test_the_seed_fixes_the_result(finished, tmp_path):
    folder, _ = finished
    assert command(tmp_path, *FOUR_SEEDS).exit_code == 0
    assert results_of(tmp_path) == results_of(folder)
    one, other = (
        json.loads((folder / "results" / "four-seeds.json").read_text())["findings"]["runs"][place]
        for place in (0, 1)
    )
    assert one["seed"] != other["seed"]
    assert one["scale"] != other["scale"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_and_resumed_it_ends_with_the_same_numbers(finished, tmp_path, how):
    """Killed in the second run, when the first is whole and the second has records."""
    folder, _ = finished
    program = (
        "import os, signal, sys; sys.path.insert(0, 'python'); import reproduce, experiments.jobs as jobs\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it\n"
        "train, runs = jobs.train, []\n"
        "def interrupted(settings, text, sink, report):\n"
        "    runs.append(settings)\n"
        "    def killing(step, loss):\n"
        f"        if len(runs) == 2 and step >= 20: os.kill(os.getpid(), {int(how)})\n"
        "        report(step, loss)\n"
        "    return train(settings, text, sink, killing)\n"
        "jobs.train = interrupted\n"
        f"reproduce.app({options(tmp_path, *FOUR_SEEDS)!r})"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == (-how if how == signal.SIGKILL else 130), killed.stderr
    if how == signal.SIGINT:
        assert "the same command goes on" in killed.stderr
    whole = list((tmp_path / "runs").glob("*/summary.json"))
    begun = list((tmp_path / "runs").glob("*.part-*/run/records.parquet.part"))
    assert (len(whole), len(begun)) == (1, 1 if how == signal.SIGKILL else 0)
    assert not (tmp_path / "results").exists()
    first = whole[0].stat().st_mtime_ns
    assert command(tmp_path, *FOUR_SEEDS).exit_code == 0
    assert whole[0].stat().st_mtime_ns == first  # that one was not made again
    assert results_of(tmp_path) == results_of(folder)


def test_a_trial_leaves_alone_what_is_in_the_repository(tmp_path, monkeypatch):
    """Without --results, numbers of another size go into a folder beside the runs."""
    for place in ("RESULTS", "PAGE"):
        monkeypatch.setattr(reproduce, place, tmp_path / "repository" / place)
    result = CliRunner().invoke(reproduce.app, [*FOUR_SEEDS, "--seeds=0", f"--out={tmp_path / 'runs'}"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "results" / "four-seeds.json").exists()
    assert (tmp_path / "runs" / "results" / "README.md").exists()
    assert not (tmp_path / "repository").exists()
    assert reproduce.placed(None, None, tmp_path, changed=False) == (reproduce.RESULTS, reproduce.PAGE)


def test_the_number_of_threads_changes_nothing(tmp_path):
    """Two threads sum in another order than one."""
    job, found = Job(TINY), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(trained([job], tmp_path / str(threads))[job])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert found[0].scale.tolist() == found[1].scale.tolist()
    assert found[0].forces.alignment.tolist() == found[1].forces.alignment.tolist()


def test_of_two_processes_that_make_a_run_the_first_to_end_counts(tmp_path, monkeypatch):
    job = Job(TINY)
    whole = trained([job], tmp_path)[job]
    jobs.make(job, tmp_path)  # as if both had found it missing
    assert [path.name for path in tmp_path.iterdir()] == [job.name]

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        jobs.make(job, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [job.name]
    assert trained([job], tmp_path)[job].scale.tolist() == whole.scale.tolist()


def test_runs_on_different_texts_are_not_taken_together(tmp_path):
    base = Job(TINY)
    both = [base, base.with_(seed=1)]
    trained(both, tmp_path)
    summary = tmp_path / base.name / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"text": "another"}))
    with pytest.raises(ValueError, match="made on different texts, of different versions of Python: neox"):
        trained(both, tmp_path)
    assert trained([base], tmp_path)


def test_only_some_runs(tmp_path):
    assert command(tmp_path, *FOUR_SEEDS[:-1], "--only=llama-adamw").exit_code == 0
    runs = json.loads((tmp_path / "results" / "four-seeds.json").read_text())["findings"]["runs"]
    assert {run["architecture"] for run in runs} == {"llama"}
    result = command(tmp_path, *FOUR_SEEDS[:-1], "--only=nothing")
    assert result.exit_code == 2
    assert "no run has 'nothing' in its name; they are neox-adamw" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset=huge"], "preset must be one of cpu, pythia-70m, got 'huge'"),
        (["--seeds=a"], "seeds must be whole numbers parted by commas, got 'a'"),
        (["--width=10"], "width must be an even number for each head"),
        (["--device=nowhere"], "device 'nowhere' cannot be used here"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, arguments, said):
    result = command(tmp_path, "four-seeds", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.iterdir())


def test_no_two_jobs_share_a_folder():
    base = Job(TINY)
    others = [
        base.with_(clip=2.0),
        base.with_(beta2=0.9),
        base.with_(seed=1),
        replace(base, corpus=Corpus(shuffled=0.1)),
        replace(base, corpus=Corpus(length=1000)),
    ]
    names = {job.name for job in (base, *others)}
    assert len(names) == 1 + len(others)
    assert base.name == Job(replace(TINY)).name


def test_a_course_is_what_the_records_say(tmp_path):
    job = Job(TINY)
    course = trained([job], tmp_path)[job]
    table = read_records(tmp_path / job.name / "records.parquet").to_pandas()
    mine = table[table["role"].isin(["attention_output", "ffn"])]
    assert course.step.tolist() == sorted(set(mine["step"]))
    assert course.forces.alignment == pytest.approx(mine.groupby("step")["alignment"].sum().to_numpy())
    after = mine.groupby("step")["norm_sq_after"].sum().to_numpy()
    assert course.rms == pytest.approx(np.sqrt(after / course.forces.numel))
    # The works up to the peak of σ are all that changed ‖w‖² until then.
    peak = int(np.argmax(course.rms))
    start = mine.groupby("step")["norm_sq"].sum().iloc[0]
    assert sum(course.work.values()) == pytest.approx(after[peak] / start - 1, rel=1e-9)
    assert np.isfinite(course.scale).all()
    assert course.lr == pytest.approx([TINY.lr * TINY.lr_factor(step) for step in course.step])
    again = read_course(tmp_path / job.name)
    assert again.scale.tolist() == course.scale.tolist()


def test_the_presets_are_as_old_as_the_published_runs():
    assert PYTHIA_70M.age == pytest.approx(0.11, rel=0.01)
    assert CPU.age == pytest.approx(PYTHIA_70M.age, rel=1e-12)
    short = with_steps(PYTHIA_70M, 1000)
    assert (short.steps, short.warmup, short.every) == (1000, 10, 25)
    assert short.age == pytest.approx(PYTHIA_70M.age, rel=1e-12)
    assert with_age(CPU, 2.0).age == pytest.approx(2.0, rel=1e-12)
    assert preset("cpu", steps=None, width=32).width == 32
    layers, width = PYTHIA_70M.layers, PYTHIA_70M.width
    assert layers * 9 * width**2 == 14_155_776


def test_the_published_reading_counts_the_injection_three_times():
    """A = 90, J = 4, D = 6: (90 + 8)/(98 + 4 + 6)."""

    class Shares:
        alignment, injection, decay = np.array([0.90]), np.array([0.04]), np.array([-0.06])

    assert four_seeds.with_more_injection(Shares) == pytest.approx([98 / 108])


def test_the_rise_is_a_part_of_the_run():
    step = np.arange(50, 20_001, 50)
    rise = step[four_seeds.in_rise(step, 20_000)]
    assert (rise[0], rise[-1]) == (250, 5000)


def test_numbers_in_words():
    assert percent(0.88, 0.94) == "88.0–94.0 %"
    assert percent(0.5, digits=0) == "50 %"
    assert spread([1.0, 3.0]) == "2 ± 1"
    assert spread([2.5]) == "2.5"
    assert (
        Claim("a", "b", "c", "d", "holds")
        .row("python x")
        .startswith("| a | b | c | d | holds | `python x` |")
    )
    assert rounded({"a": [1.23456789, np.float64(2.0), 3, "x", None]}) == {"a": [1.23457, 2.0, 3, "x", None]}


def test_results_can_be_read_again(tmp_path):
    findings = {"curve": [0.1] * 60, "runs": [{"name": "x" * 120, "parts": [1, 2]}], "none": None}
    path = results_file(tmp_path, "four-seeds", "pythia-70m")
    assert path.name == "four-seeds-pythia-70m.json"
    assert results_file(tmp_path, "four-seeds", "cpu").name == "four-seeds.json"
    write_results(path, findings, command="c", preset="pythia-70m", machines=["m"])
    assert json.loads(path.read_text())["findings"] == findings
    assert max(map(len, path.read_text().splitlines())) < 400
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, {"a": float("nan")}, command="c", preset="pythia-70m", machines=["m"])
    assert json.loads(path.read_text())["findings"] == findings


def test_the_page_keeps_what_was_written_by_hand(finished, tmp_path):
    folder, _ = finished
    written = tmp_path / "page.md"
    written.write_text(f"# Mine\n\nBefore.\n\n{page.BEGIN}\noutdated\n{page.END}\n\nAfter.\n")
    page.write(folder / "results", written)
    text = written.read_text()
    assert text.startswith("# Mine\n\nBefore.\n")
    assert text.endswith("\n\nAfter.\n")
    assert "outdated" not in text
    relative = os.path.relpath(folder / "results" / "four-seeds.png", tmp_path)
    assert f"]({relative})" in text
    about = json.loads((folder / "results" / "four-seeds.json").read_text())
    call = ["page", f"--results={folder / 'results'}", f"--page={written}", "--check"]
    assert CliRunner().invoke(reproduce.app, call).exit_code == 0
    written.write_text(text.replace("holds", "fails"))
    result = CliRunner().invoke(reproduce.app, call)
    assert result.exit_code == 1
    assert "does not say what is in" in result.output
    assert CliRunner().invoke(reproduce.app, call[:-1]).exit_code == 0
    assert written.read_text() == text
    stray = folder / "results" / "four-seeds-older.json"
    for content, message in (
        (about, "is of no experiment"),
        ({"preset": "older"}, "lacks command, findings"),
    ):
        stray.write_text(json.dumps(content | {"preset": "oldest" if content is about else "older"}))
        result = CliRunner().invoke(reproduce.app, call[:-1])
        stray.unlink()
        assert result.exit_code == 2
        assert message in result.output
    written.write_text("no markers")
    result = CliRunner().invoke(reproduce.app, call[:-1])
    assert result.exit_code == 2
    assert "lacks the lines" in result.output


def test_every_row_of_the_page_comes_from_a_file_in_the_repository():
    """The committed page is the one that the committed numbers make."""
    results, written = ROOT / "benchmarks" / "results", ROOT / "python" / "README.md"
    found = page.results_in(results)
    assert {result.experiment.NAME for result in found} == {experiment.NAME for experiment in EXPERIMENTS}
    assert written.read_text() == page.whole(results, written)
    for result in found:
        assert result.picture.read_bytes().startswith(b"\x89PNG\r\n")
        assert result.rows()
        assert "/" not in re.sub(r"python/\w+\.py", "", result.about["command"])  # no path of some machine
