"""`weibull-kernels report`: what it writes, what it says, what it refuses."""

import subprocess
import sys

import pytest
from recorded_runs import write_run
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels.cli import app


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"{name}.parquet", records=4, seed=i) for i, name in enumerate("ab")]


def test_a_page_of_one_run_and_of_two(runs, tmp_path):
    page = tmp_path / "page.html"
    result = report(runs[0], "-o", page)
    assert result.exit_code == 0, result.output
    assert result.output == f"written: {page}\n"
    assert "Comparison" not in page.read_text()
    result = report(*runs, "--output", page, "--title", "Two <rates>")  # over the first
    assert result.exit_code == 0, result.output
    assert "<title>Two &lt;rates&gt;</title>" in page.read_text()
    assert "Comparison of 2 runs" in page.read_text()


def test_without_options_it_is_report_html(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report("a.parquet").exit_code == 0
    assert "Forces of a</title>" in (tmp_path / "report.html").read_text()


def test_json_lines_are_read_too(runs, tmp_path):
    sink = wk.JsonLinesSink(tmp_path / "c.jsonl")
    sink.write(1, wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1, names=("w",)))
    sink.close()
    result = report(tmp_path / "c.jsonl", "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output


def test_what_cannot_be_read_is_said_in_one_line(runs, tmp_path):
    page = tmp_path / "page.html"
    (tmp_path / "other.txt").write_text("no records")
    with wk.ParquetSink(tmp_path / "empty.parquet"):
        pass
    for name, said in (
        ("none.parquet", "no records at"),
        ("other.txt", "is not a record file of ParquetSink"),
        ("empty.parquet", "has no records to show; was the sink ever written to?"),
    ):
        result = report(runs[0], tmp_path / name, "-o", page)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("weibull-kernels: ")
        assert name.removesuffix(".parquet") in line
        assert said in line
        assert not page.exists()
    result = report(runs[0], runs[0], "-o", page)
    assert result.exit_code == 2
    assert "is given twice" in result.stderr


@pytest.mark.parametrize(("output", "said"), [("none/page.html", "no folder"), (".", "is a folder")])
def test_where_a_page_cannot_go(runs, tmp_path, output, said):
    result = report(runs[0], "-o", tmp_path / output)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_without_plotly_it_says_what_to_install(runs, tmp_path):
    program = (
        "import sys; sys.modules['plotly'] = None\n"
        "import weibull_kernels.cli as cli\n"
        f"sys.argv = ['weibull-kernels', 'report', {str(runs[0])!r}, '-o', {str(tmp_path / 'page.html')!r}]\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'weibull-kernels[report]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_importing_the_library_does_not_load_plotly():
    program = (
        "import sys, weibull_kernels, weibull_kernels.page, weibull_kernels.cli\n"
        "print([name for name in ('plotly', 'jinja2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
