"""The command line: tables, files, exit codes, and what it says of what it could not read."""

import csv
import io
import json
import math
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import sharded
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels import cli, survey
from weibull_kernels.checkpoints import open_checkpoint
from weibull_kernels.statistics import weight_statistics
from weibull_kernels.survey import FittedRow, survey_checkpoint, to_arrow, weight_class
from weibull_kernels.weibull import fit_weibull

LAYER = "model.layers.{}."
CLASSES = {"q_proj": "half-normal", "o_proj": "Weibull", "up_proj": "Weibull", "embed": "not Weibull"}


def model():
    """Gaussian queries, Weibull output projections, Student's t in the FFN; a norm of ones; token ids."""
    named = {"model.embed_tokens.weight": torch.rand(300, 400) - 0.5}
    for layer in (0, 2, 10):
        prefix = LAYER.format(layer)
        weibull = torch.distributions.Weibull(0.02, 1.3).sample((300, 400))
        named[prefix + "self_attn.q_proj.weight"] = 0.02 * torch.randn(300, 400)
        named[prefix + "self_attn.o_proj.weight"] = weibull * torch.randn(300, 400).sign()
        named[prefix + "mlp.up_proj.weight"] = 0.02 * torch.distributions.StudentT(5.0).sample((300, 400))
        named[prefix + "input_layernorm.weight"] = torch.ones(400)
        named[prefix + "position_ids"] = torch.arange(400)
    return named


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_file(model(), path)
    return str(path)


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows_of(text):
    """The lines of a table whose last words are a class, as lists of cells."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [row for row in cells if row[-1] in ("Weibull", "half-normal", "not Weibull", "too few", "no fit")]


def test_a_row_for_each_tensor_and_each_role(path):
    result = run("fit", path)
    rows = rows_of(result.stdout)
    named = weight_statistics(path)
    fit = fit_weibull(named, on_degenerate="mark")
    assert len(rows) == len(named.names) + 6
    norms = [row[0] for row in rows if "norm" in row[0]]
    assert norms == [LAYER.format(layer) + "input_layernorm.weight" for layer in (0, 2, 10)]
    by_name = {row[0]: row for row in rows}
    for i, name in enumerate(named.names):
        _, role, entries, k, scale, rms, ratio, r_squared, ks, kind = by_name[name]
        assert role == wk.role_of(name)
        assert entries == f"{named.numel[i].item():,}"
        assert float(rms) == pytest.approx(named.rms[i].item(), rel=1e-4)
        if "norm" in name:
            assert (k, scale, ratio, kind) == ("–", "–", "–", "no fit")
            continue
        for shown, value, digits in ((k, fit.k, 4), (r_squared, fit.r_squared, 5), (ks, fit.ks, 4)):
            assert shown == f"{value[i]:.{digits}f}"
        assert float(scale) == pytest.approx(fit.scale[i], rel=1e-4)
        assert float(ratio) == pytest.approx(fit.scale[i] / named.rms[i].item(), abs=1e-4)
        assert kind == next(kind for part, kind in CLASSES.items() if part in name)
    roles = [row[1] for row in rows[-6:]]
    assert roles == ["attention_output", "ffn", "qkv", "embedding", "norm", "transmission"]
    assert "left out model.layers.0.position_ids (int64)" in result.stdout
    assert "no fit of model.layers.0.input_layernorm.weight: all non-zero entries are equal" in result.stdout


def test_a_role_is_its_tensors_together(path):
    rows = {row[1]: row for row in rows_of(run("fit", path, "--by", "role").stdout)}
    assert list(rows) == ["attention_output", "ffn", "qkv", "embedding", "norm", "transmission"]
    torch.manual_seed(0)
    named = model()
    for role, parts in {"ffn": ["mlp"], "qkv": ["q_proj"], "transmission": ["mlp", "o_proj"]}.items():
        members = [tensor for name, tensor in named.items() if any(part in name for part in parts)]
        fit = fit_weibull(torch.cat([tensor.flatten() for tensor in members]), route="exact")
        assert rows[role][0] == f"{len(members)} tensors"
        assert rows[role][2] == f"{len(members) * 120_000:,}"
        assert float(rows[role][3]) == pytest.approx(float(fit.k), rel=3e-4)
        assert float(rows[role][4]) == pytest.approx(float(fit.scale), rel=3e-4)
    assert rows["embedding"][0] == "1 tensor"


@pytest.mark.parametrize("method", ["probability_plot", "log_moments", "mle"])
def test_methods(method, path):
    result = run("fit", path, "--method", method, "--by", "role")
    assert f"by {method}; " in result.stdout
    rows = {row[1]: row for row in rows_of(result.stdout)}
    assert float(rows["qkv"][3]) == pytest.approx(survey.HALF_NORMAL_K[method], rel=0.01)
    assert rows["qkv"][-1] == "half-normal"
    assert rows["attention_output"][-1] == "Weibull"


def test_the_same_rows_in_every_file(path, tmp_path):
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("json", "csv", "parquet")}
    result = run("fit", path, *(part for kind, file in files.items() for part in (f"--{kind}", file)))
    assert len(rows_of(result.stdout)) == 19
    from_json = json.loads(files["json"].read_text())
    from_csv = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    from_parquet = pq.read_table(files["parquet"]).to_pylist()
    assert from_json == from_parquet
    assert len(from_json) == len(from_csv) == 13
    for row, text in zip(from_json, from_csv, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == text
    assert {"path", "name", "role", "entries", "k", "scale", "rms", "class", "reason"} <= set(from_json[0])
    norm = next(row for row in from_json if "norm" in row["name"])
    assert norm["k"] is None
    assert norm["reason"] == "all non-zero entries are equal in magnitude"
    assert (norm["route"], from_json[0]["route"]) == ("exact", "histogram")


def test_numbers_survive_the_way_into_a_file(path):
    (row,) = [row for row in json.loads(run("fit", path, "--json", "-").stdout) if "embed" in row["name"]]
    statistics = weight_statistics(path).total("*embed*")
    fit = fit_weibull(statistics)
    for name in ("k", "scale", "k_error", "scale_error", "r_squared", "ks", "gini", "q90_q50", "q99_q50"):
        assert row[name] == getattr(fit, name)[0], name
    assert row["max_abs"] == statistics.max_abs.item()
    assert row["scale_over_rms"] == row["scale"] / row["rms"]
    assert (row["entries"], row["zero_count"], row["method"]) == (120_000, 0, "probability_plot")


def test_rows_on_stdout_are_alone_there(path):
    found = json.loads(run("fit", path, "--by", "role", "--json", "-").stdout)
    assert [row["role"] for row in found][-1] == "transmission"
    text = run("fit", path, "--by", "role", "--csv", "-").stdout
    assert [row["role"] for row in csv.DictReader(io.StringIO(text))] == [row["role"] for row in found]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parquet", "-"], "Parquet is not text"),
        (["--json", "-", "--csv", "-"], "only one of --json and --csv"),
        (["--csv", "no/folder/rows.csv"], "there is no folder"),
        (["--method", "guess"], "guess"),
        (["--min-numel", "-1"], "min-numel"),
    ],
)
def test_wrong_options(arguments, told, path, monkeypatch):
    monkeypatch.setattr(survey, "survey_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    assert told in run("fit", path, *arguments, code=2).stderr


def test_tiny_tensors_are_skipped_counted_and_said(path):
    result = run("fit", path, "--min-numel", 1000)
    assert not [row for row in rows_of(result.stdout) if "norm" in row[0] or row[1] == "norm"]
    assert "skipped 3 tensors of fewer than 1,000 entries, 1,200 in all" in result.stdout
    result = run("fit", path, "--min-numel", 10**9, code=2)
    told = f"weibull-kernels: {path} holds no floating-point tensor of at least 1000000000 entries\n"
    assert result.stderr == told


def test_several_checkpoints_have_a_column(path, tmp_path):
    sharded(tmp_path)
    rows = rows_of(run("fit", path, tmp_path, path, "--by", "role").stdout)
    assert [row[0] for row in rows] == [path] * 6 + [str(tmp_path)]
    assert rows[-1][1:4] == ["4 tensors", "other", "53"]


def test_what_cannot_be_read_is_one_line_and_the_rest_is_read(path, tmp_path):
    data = Path(path).read_bytes()
    names = ("cut.safetensors", "lie.safetensors", "float8.safetensors", "pickle.pt")
    cut, lying, fp8, pickle = (str(tmp_path / name) for name in names)
    Path(cut).write_bytes(data[:100_000])
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"shape":[300,400]', b'"shape":[300,401]', 1)
    Path(lying).write_bytes(data[:8] + header + data[8 + length :])
    save_file({"w": torch.ones(30).to(torch.float8_e5m2)}, fp8)
    torch.save({"w": torch.ones(3), "c": cli.fit.Method.mle}, pickle)
    result = run("fit", cut, lying, path, fp8, pickle, tmp_path / "none.pt", "--by", "role", code=2)
    assert [row[0] for row in rows_of(result.stdout)] == [path] * 6
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    for file, told in {
        cut: "it is cut off",
        lying: "has 481,200 bytes, its header gives it 480,000",
        fp8: "'w' has dtype torch.float8_e5m2",
        pickle: "cannot be loaded with weights_only=True: .*Method",
        "none.pt": "there is no file or folder",
    }.items():
        (line,) = [line for line in lines if file in line]
        assert line.startswith("weibull-kernels: ")
        assert re.search(told, line)


def test_a_file_that_breaks_while_it_is_read(path, tmp_path, monkeypatch):
    broken = tmp_path / "m.safetensors"
    broken.write_bytes(Path(path).read_bytes())
    opened = open_checkpoint(broken)
    with broken.open("r+b") as file:
        file.truncate(1_000_000)
    found = {str(broken): opened, path: open_checkpoint(path)}
    monkeypatch.setattr("weibull_kernels.checkpoints.open_checkpoint", found.__getitem__)
    result = run("fit", broken, path, "--by", "role", code=2)
    assert [row[0] for row in rows_of(result.stdout)] == [path] * 6
    assert result.stderr == f"weibull-kernels: {broken} has become shorter while it was read\n"


def test_nothing_read_prints_nothing(tmp_path):
    result = run("fit", tmp_path / "none.safetensors", code=2)
    assert result.stdout == ""


def test_the_table_is_not_cut_whatever_the_width(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    wide = run("fit", path).stdout
    assert "\x1b" not in wide
    assert "…" not in wide
    assert LAYER.format(10) + "self_attn.o_proj.weight" in wide


def test_in_a_narrow_terminal_names_fold_and_numbers_stay(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit) as ended:
        cli.app(["fit", path])
    assert not ended.value.code
    folded = capsys.readouterr().out
    wide = run("fit", path).stdout
    numbers = re.compile(r"\d+\.\d{4,}|\d{1,3}(?:,\d{3})+")
    assert numbers.findall(folded) == numbers.findall(wide)
    table = folded[: folded.index("\nby ")]
    assert max(map(len, table.splitlines())) < max(map(len, wide.splitlines()[:5]))
    assert LAYER.format(10) + "self_attn.o_proj.weight" not in folded


def test_progress_is_counted_in_bytes(path, monkeypatch):
    told = []
    checkpoint = open_checkpoint(path)
    survey_checkpoint(checkpoint, path, min_numel=1000, on_read=told.append)
    assert sum(told) == checkpoint.nbytes
    assert "MB" not in run("fit", path, "--by", "role").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    assert "4.8/4.8 MB" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", run("fit", path, "--by", "role").stderr)


def test_doctor_says_what_runs_and_why_not(monkeypatch):
    told = run("doctor").stdout
    for label, value in {
        "weibull-kernels": wk.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "threads": str(torch.get_num_threads()),
        "pandas": "to_pandas",
    }.items():
        assert re.search(rf"^{re.escape(label)} +.*{re.escape(str(value))}", told, re.MULTILINE), label
    for backend in wk.backends():
        (line,) = [line for line in told.splitlines() if line.startswith(f"backend {backend.name}")]
        assert (backend.reason or "runs on") in line
    assert "avx" in told or "portable" in told or "neon" in told
    monkeypatch.setattr("weibull_kernels.kernels.cpu._missing", "no module _cpu")
    monkeypatch.setitem(cli.doctor._OPTIONAL, "no-such-package", "nothing")
    told = run("doctor").stdout
    assert re.search(r"backend cpu +cannot run: the compiled extension is missing \(no module _cpu\)", told)
    assert re.search(r"instruction sets +no compiled extension", told)
    assert re.search(r"no-such-package +not installed; it is for nothing", told)


def test_version_and_help():
    assert run("--version").stdout == f"weibull-kernels {wk.__version__}\n"
    assert "doctor" in run("--help").stdout
    assert "Usage" in CliRunner().invoke(cli.app, []).output


def test_as_a_program(path, tmp_path):
    program = (sys.executable, "-W", "error", "-m", "weibull_kernels.cli")
    command = (*program, "fit", path, str(tmp_path / "none.pt"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"weibull-kernels: there is no file or folder {tmp_path / 'none.pt'}\n"
    assert done.stdout == run("fit", path, tmp_path / "none.pt", code=2).stdout


@pytest.mark.parametrize("method", survey.HALF_NORMAL_K)
def test_classes(method):
    n = 400_000
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    shapes = {
        "half-normal": torch.erfinv(quantiles),
        "Weibull": (-torch.log1p(-quantiles)) ** (1 / 1.2),  # of nearly the same k
        "not Weibull": quantiles,
    }
    for expected, x in shapes.items():
        fit = fit_weibull(x, method, route="exact")
        assert weight_class(method, fit.k, fit.r_squared, fit.ks, n) == expected
        assert weight_class(method, fit.k, fit.r_squared, fit.ks, 9_999) == "too few"
    assert weight_class(method, np.nan, np.nan, np.nan, n) == "no fit"
    limit = survey.HALF_NORMAL_K[method]
    assert weight_class(method, 1.05 * limit, 0.9977, 0.025, n) == "not Weibull"
    assert weight_class(method, limit, 0.995, 0.025, n) == "not Weibull"
    assert weight_class(method, limit, 0.9977, 0.04, n) == "not Weibull"


@pytest.mark.parametrize("method", survey.HALF_NORMAL_K)
def test_classes_of_heavier_tails_are_as_documented(method):
    expected = {
        2.0: "not Weibull",
        5.0: "Weibull",
        10.0: "Weibull",
        20.0: "half-normal",
        100.0: "half-normal",
    }
    shapes = [torch.tensor(freedom, dtype=torch.float64) for freedom in expected]
    drawn = {str(float(nu)): torch.distributions.StudentT(nu).sample((500_000,)) for nu in shapes}
    fit = fit_weibull(weight_statistics(drawn), method)
    rows = zip(fit.k, fit.r_squared, fit.ks, fit.count, strict=True)
    assert [weight_class(method, *row) for row in rows] == list(expected.values())


def test_an_empty_table_has_the_columns():
    table = to_arrow([])
    assert table.num_rows == 0
    assert len(table.column_names) == len(FittedRow.__dataclass_fields__)


ODD = ["a[bold].weight", "x:key:y", "[/foo]", "new\nline\x1b[31m", "layers.\u00b2.weight", "w" + "9" * 5000]
SHOWN = [
    "a[bold].weight",
    "x:key:y",
    "[/foo]",
    r"new\nline\x1b[31m",
    "layers.\u00b2.weight",
    "w" + "9" * 5000,
]


def test_names_and_paths_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "[red]:key:"
    folder.mkdir()
    named = {name: torch.randn(50) for name in ODD} | {"[i]ids\x1b": torch.arange(3)}
    save_file(named | {"[b]\x07": torch.ones(50)}, folder / "m.safetensors")
    save_file({"w": torch.randn(30)}, tmp_path / "n.safetensors")
    result = run("fit", folder, tmp_path / "n.safetensors", tmp_path / "[/none]\n.pt", code=2)
    rows = rows_of(result.stdout)
    assert {row[1] for row in rows} >= {*SHOWN, r"[b]\x07", "w"}
    assert {row[0] for row in rows} == {str(folder), str(tmp_path / "n.safetensors")}
    assert f"{folder}: left out [i]ids\\x1b (int64)" in result.stdout
    assert f"{folder}: no fit of [b]\\x07: all non-zero" in result.stdout
    assert not {"\x1b", "\x07"} & {*result.stdout}
    assert result.stderr == f"weibull-kernels: there is no file or folder {tmp_path}/[/none]\\n.pt\n"


def test_names_in_the_lines_of_errors_are_escaped(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a\n[b]\x1b": torch.ones(30).to(torch.float8_e5m2)}, path)
    (line,) = run("fit", path, code=2).stderr.splitlines()
    assert r"a\n[b]\x1b" in line
    assert "dtype torch.float8_e5m2" in line


@pytest.mark.parametrize(
    "error", [RuntimeError("no\n  such\nmemory"), MemoryError()], ids=["torch", "python"]
)
def test_what_fails_within_torch_is_one_line_and_the_rest_is_read(error, path, tmp_path, monkeypatch):
    save_file({"w": torch.randn(200_000)}, tmp_path / "m.safetensors")
    read = survey.stored_statistics

    def failing(stored, **more):
        if stored[0].name == "w":
            raise error
        return read(stored, **more)

    monkeypatch.setattr(survey, "stored_statistics", failing)
    result = run("fit", tmp_path / "m.safetensors", path, "--by", "role", code=2)
    told = "no such memory" if str(error) else "MemoryError"
    assert result.stderr == f"weibull-kernels: {tmp_path}/m.safetensors: {told}\n"
    assert [row[0] for row in rows_of(result.stdout)] == [path] * 6


def test_a_file_is_not_replaced_by_nothing(tmp_path):
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("json", "csv", "parquet")}
    for file in files.values():
        file.write_text("of last week")
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    run("fit", tmp_path / "none.pt", *options, code=2)
    assert {file.read_text() for file in files.values()} == {"of last week"}


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_a_folder_is_no_file_to_write(kind, path, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "survey_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    assert "is a folder" in run("fit", path, f"--{kind}", tmp_path, code=2).stderr


@pytest.mark.parametrize("options", [[], ["--json", "-"], ["--csv", "-"]], ids=["table", "json", "csv"])
def test_a_reader_that_closes_the_pipe_ends_it_quietly(options, tmp_path):
    save_file({"w": torch.randn(100)}, tmp_path / "m.safetensors")
    program = [sys.executable, "-W", "error", "-m", "weibull_kernels.cli", "fit"]
    command = [*program, str(tmp_path / "m.safetensors"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    save_file({"w": 1e200 * torch.randn(100, dtype=torch.float64)}, tmp_path / "m.safetensors")
    monstrous, *_ = survey_checkpoint(open_checkpoint(tmp_path / "m.safetensors"), "m").tensors
    (row,) = json.loads(run("fit", tmp_path / "m.safetensors", "--json", "-").stdout)
    assert row["max_abs"] == monstrous.max_abs
    assert all(value is None or value == value for value in row.values())


def test_a_row_that_is_infinite_is_null_in_json(path, tmp_path):
    rows = survey_checkpoint(open_checkpoint(path), path).roles
    rows = [replace(rows[0], rms=math.inf, scale=-math.inf, ks=math.nan)]
    cli.files.WRITERS["json"](survey.to_arrow(rows), str(tmp_path / "rows.json"))
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["rms"], row["scale"], row["ks"], row["k"]) == (None, None, None, rows[0].k)


def test_a_file_that_cannot_be_written_is_left_as_it_is(path, tmp_path):
    rows = [replace(survey_checkpoint(open_checkpoint(path), path).roles[0], name="\ud800")]
    for kind, write in cli.files.WRITERS.items():
        file = tmp_path / f"rows.{kind}"
        file.write_text("of last week")
        with pytest.raises(UnicodeEncodeError):
            write(survey.to_arrow(rows), str(file))
        assert file.read_text() == "of last week"


def test_names_in_the_order_of_their_numbers():
    ordered = ["a", "a.0", "a.1.w", "a.02", "a.10", "a.\u00b2", "b", "b" + "1" * 5000, "b" + "1" * 5001]
    shuffled = ordered[::-1]
    assert sorted(shuffled, key=survey._natural) == ordered


def narrow(count, mean=1.0):
    """With hundreds in each bin of the histogram, k about 60."""
    return mean + 0.02 * torch.randn(count)


def test_what_is_too_narrow_for_the_histogram_is_sorted_or_named(tmp_path, monkeypatch):
    few = torch.randn(200_000) * (torch.rand(200_000) < 0.2)
    named = {"norm.weight": narrow(150_000), "few.mlp.w": few, "usual.mlp.w": torch.randn(150_000)}
    save_file(named, tmp_path / "m.safetensors")
    found = survey_checkpoint(open_checkpoint(tmp_path / "m.safetensors"), "m")
    exact = fit_weibull(named)
    for row in found.tensors:
        i = exact.names.index(row.name)
        assert (row.route, row.k) == (exact.route[i], pytest.approx(exact.k[i], rel=1e-12))
    assert found.narrow == ("norm together",)
    told = run("fit", tmp_path / "m.safetensors").stdout
    assert "fitted from all entries 2 tensors, from histograms 1 and the roles" in told
    assert "too narrow for the histogram they are fitted from: norm together" in told
    monkeypatch.setattr(survey, "_SORTED", 140_000)
    told = run("fit", tmp_path / "m.safetensors").stdout
    assert "too narrow for the histogram they are fitted from: norm.weight; norm together" in told


def test_a_survey_keeps_no_histogram_of_a_tensor(tmp_path, monkeypatch):
    save_file({f"layers.{i}.bias": torch.randn(32) for i in range(300)}, tmp_path / "m.safetensors")
    read, alive, most = survey.stored_statistics, [], 0

    def watched(*arguments, **more):
        nonlocal most
        for part in read(*arguments, **more):
            alive.append(weakref.ref(part.histogram))
            yield part
            del part
            most = max(most, sum(reference() is not None for reference in alive))

    monkeypatch.setattr(survey, "stored_statistics", watched)
    found = survey_checkpoint(open_checkpoint(tmp_path / "m.safetensors"), "m")
    assert len(found.tensors) == 300
    assert len(alive) == 5
    assert most <= 1
