"""`weibull-kernels recover`: what it prints, what it writes, what it refuses."""

import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels.cli import app

STEPS = range(0, 60, 10)
NAMES = {
    "gpt_neox.layers.0.attention.dense.weight": (8, 8),
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (32, 8),
    "gpt_neox.layers.0.input_layernorm.weight": (8,),
}
LR = "cosine:peak=1e-2,warmup=5,total=50,floor=0.1"


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    weights = {name: torch.randn(shape) for name, shape in NAMES.items()}
    for step in STEPS:
        save_file(weights, folder / f"step{step}.safetensors")
        weights = {name: w + 0.02 * torch.randn(w.shape) + 0.01 * w for name, w in weights.items()}
    return folder


def recover(*arguments, out=None):
    options = ["--lr", LR, "--weight-decay", "0.1", *(["--out", str(out)] if out else [])]
    return CliRunner().invoke(app, ["recover", *map(str, arguments), *options])


def test_a_folder_becomes_a_table_records_and_a_picture(run, tmp_path):
    out = tmp_path / "found"
    result = recover(run, "--every", 7, "--weight-decay", "norm=0", out=out)
    assert result.exit_code == 0, result.output
    first = result.output.splitlines()[0]
    assert first == "6 checkpoints, steps 0 to 50; 3 tensors, 328 weights; method corrected"
    for said in ("injection from diffusion", "transmission", "norm", "alignment", "written:"):
        assert said in result.output
    records = wk.read_records(out / "forces.parquet").to_pandas()
    expected = wk.recover(run, lr=LR, weight_decay={"norm": 0.0, "*": 0.1})
    for row, name in enumerate(expected.names):
        mine = records[records["name"] == name]
        assert mine["step"].tolist() == list(STEPS)[1:]
        assert mine["steps"].tolist() == [10] * 5
        assert mine["alignment"].tolist() == expected.impulses.alignment[row].tolist()
        assert mine["alignment_error"].tolist() == expected.impulses.alignment_error[row].tolist()
    assert (records[records["role"] == "norm"]["decay"] == 0).all()
    steps = pq.read_table(out / "steps.parquet").to_pandas()
    assert sorted(set(steps["step"])) == [7, 14, 21, 28, 35, 42, 49]
    assert steps["alignment"].tolist() == expected.alignment[:, 6::7].ravel().tolist()
    assert (out / "forces.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_checkpoints_by_name_in_any_order(run, tmp_path):
    paths = sorted(run.iterdir(), reverse=True)
    result = recover(*paths, "--method", "spline", "--bc-type", "natural", out=tmp_path / "found")
    assert result.exit_code == 0, result.output
    assert "method spline" in result.output
    records = wk.read_records(tmp_path / "found" / "forces.parquet").to_pandas()
    expected = wk.recover(run, lr=LR, weight_decay=0.1, method="spline", bc_type="natural")
    assert records["alignment"].tolist() == expected.impulses.alignment.T.ravel().tolist()


def test_gram_matrices_are_kept_and_extended(run, tmp_path):
    late = run / "step50.safetensors"
    away = tmp_path / late.name
    late.rename(away)
    kept = tmp_path / "gram.parquet"
    first = recover(run, "--gram", kept, out=tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert wk.CheckpointGram.load(kept).steps == tuple(STEPS)[:-1]
    away.rename(late)
    second = recover(run, "--gram", kept, "--window", 2, out=tmp_path / "b")
    assert second.exit_code == 0, second.output
    gram = wk.CheckpointGram.load(kept)
    assert gram.steps == tuple(STEPS)
    assert np.isnan(gram.products[:, 0, -1]).all()
    assert np.isfinite(gram.products[:, -2, -1]).all()
    third = recover(run, "--gram", kept, out=tmp_path / "c")
    assert third.exit_code == 0, third.output
    records = [wk.read_records(tmp_path / part / "forces.parquet").to_pandas() for part in "bc"]
    assert records[0].equals(records[1])
    expected = wk.recover(gram, lr=LR, weight_decay=0.1)
    assert records[0]["alignment"].tolist() == expected.impulses.alignment.T.ravel().tolist()


def test_gram_matrices_of_another_run_are_refused(run, tmp_path):
    kept = tmp_path / "gram.parquet"
    assert recover(run, "--gram", kept, out=tmp_path / "a").exit_code == 0
    save_file({name: torch.ones(shape) for name, shape in NAMES.items()}, run / "step50.safetensors")
    other = recover(run, "--gram", kept, out=tmp_path / "b")
    assert other.exit_code == 2
    assert "the checkpoint of step 50 is no longer what it was" in other.output
    (run / "step25.safetensors").write_bytes((run / "step30.safetensors").read_bytes())
    between = recover(run, "--gram", kept, out=tmp_path / "c")
    assert between.exit_code == 2
    assert "there is a checkpoint of step 25 that the kept Gram matrices lack" in between.output


def test_what_could_not_be_followed_is_said(run, tmp_path):
    save_file(
        {"extra": torch.ones(3)} | {n: torch.ones(s) for n, s in NAMES.items()}, run / "step60.safetensors"
    )
    result = CliRunner().invoke(
        app, ["recover", str(run), "--lr", "1e-3", "--weight-decay", "0", "--out", str(tmp_path / "o")]
    )
    assert result.exit_code == 0, result.output
    assert "left out extra (not in the checkpoints of step 0, 10, 20 and 3 more)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--betas", "0.9"], "expected two numbers such as 0.9,0.999"),
        (["--weight-decay", "norm=a"], "expected a number or PATTERN=number"),
        (["--method", "best"], "method must be one of"),
        (["--gram", "no/folder/gram.parquet"], "there is no folder no/folder"),
    ],
)
def test_options_that_are_wrong(arguments, message, run, tmp_path):
    result = recover(run, *arguments, out=tmp_path / "found")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "found").exists()


def test_a_number_of_ranks_in_the_environment_is_not_torchrun(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert recover(run, out=tmp_path / "found").exit_code == 0


def test_one_line_where_it_cannot(run, tmp_path):
    for arguments, message in (
        ([tmp_path / "none"], "there is no folder"),
        ([run, "--injection", "guess"], "injection must be"),
        ([run, "--gram", tmp_path / "gram.parquet", "--betas", "0.9,2"], "betas must be two numbers"),
    ):
        result = recover(*arguments, out=tmp_path / "found")
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    late = CliRunner().invoke(
        app, ["recover", str(run), "--lr", "linear:peak=1,total=20", "--weight-decay", "0", "--out", str(run)]
    )
    assert late.exit_code == 2
    assert "20" in late.output


def test_torchrun_gives_the_same(run, tmp_path):
    alone = recover(run, out=tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "weibull_kernels.cli", "recover", str(run), "--lr", LR]
    command += ["--weight-decay", "0.1", "--out", str(tmp_path / "ranks")]
    ranks = []
    for rank in ("0", "1"):
        place = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test"}
        environment = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert printed[1] == ""
    assert printed[0].splitlines()[:-1] == alone.output.splitlines()[:-1]  # the last names the folder
    tables = [pq.read_table(tmp_path / part / "forces.parquet").to_pandas() for part in ("alone", "ranks")]
    assert tables[0].equals(tables[1])
