import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import weibull_kernels as wk
from weibull_kernels.records import ParquetSink, force_series, read_records, run_metadata

NAMES = ("layers.0.mlp.up_proj.weight", "layers.0.self_attn.o_proj.weight", "lm_head.weight")


def budget(step=1, names=NAMES, seed=0):
    random = np.random.default_rng(seed)
    rows = len(names) if names else 3
    update, update_sq, norm_sq = random.normal(size=rows), random.random(rows), 1 + random.random(rows)
    return wk.ForceBudget.from_sums(
        torch.tensor(update),
        torch.tensor(update_sq),
        torch.tensor(norm_sq),
        lr=0.1,
        weight_decay=0.1,
        numel=torch.arange(1, rows + 1),
        steps=torch.ones(rows, dtype=torch.long),
        step=torch.full((rows,), step),
        names=names,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "run.parquet"


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        return wk.forces(optimizer)

    return step


def test_what_is_written_is_read_bit_for_bit(path):
    written = [budget(step, seed=step) for step in (1, 2)]
    with ParquetSink(path) as sink:
        for step, one in enumerate(written, 1):
            sink.write(10 * step, one, loss=torch.tensor(2.5), lr=[0.1, 0.2, 0.3])
    records = read_records(path)
    assert records["step"].to_pylist() == [10] * 3 + [20] * 3
    assert records["name"].to_pylist() == list(NAMES) * 2
    assert records["role"].to_pylist() == ["ffn", "attention_output", "head"] * 2
    for column in ("alignment", "injection", "decay", "coupling", "norm_sq", "numel", "steps"):
        expected = torch.cat([getattr(one, column) for one in written]).tolist()
        assert records[column].to_pylist() == expected, column
    assert records["optimizer_step"].to_pylist() == [1] * 3 + [2] * 3
    assert records["loss"].to_pylist() == [2.5] * 6
    assert records["lr"].to_pylist() == [0.1, 0.2, 0.3] * 2


def test_measured_weights_bring_their_statistics(path, trained):
    measured = trained()
    with ParquetSink(path) as sink:
        sink.write(1, measured)
    records = read_records(path)
    for column in ("log_sum", "log_sq_sum", "max_abs", "zero_count", "non_finite_count"):
        assert records[column].to_pylist() == getattr(measured.weights, column).tolist()
    assert records["norm_sq_after"].to_pylist() == measured.weights.norm_sq.tolist()


def test_without_statistics_they_are_null_and_the_norm_after_is_predicted(path):
    with ParquetSink(path) as sink:
        sink.write(1, budget())
    records = read_records(path)
    assert records["max_abs"].null_count == records["zero_count"].null_count == 3
    after = budget().norm_sq + budget().predicted_change
    assert records["norm_sq_after"].to_pylist() == after.tolist()


def test_a_budget_of_plain_numbers_is_one_row_without_a_name(path):
    with ParquetSink(path) as sink:
        sink.write(1, wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1))
    (row,) = read_records(path).to_pylist()
    assert (row["name"], row["role"], row["steps"], row["numel"]) == ("0", "other", 1, None)
    assert row["alignment"] == pytest.approx(0.1)


def test_a_skipped_step_is_not_booked_twice(path, trained):
    measured = trained()
    with ParquetSink(path) as sink:
        sink.write(1, measured)
        sink.write(2, measured)  # a gradient scaler skipped: the optimizer's last step is still the first
        sink.write(3, trained())
    records = read_records(path).to_pandas().set_index(["step", "name"])
    assert (records.loc[2, ["alignment", "injection", "decay", "coupling", "steps"]] == 0).all(axis=None)
    assert (records.loc[2]["norm_sq"] == records.loc[1]["norm_sq_after"]).all()
    assert (records.loc[[1, 3]]["steps"] == 1).all()
    assert records.loc[3]["norm_sq"].to_numpy() == pytest.approx(records.loc[2]["norm_sq_after"].to_numpy())


def test_rows_that_did_not_move_by_their_own_account_stay_zero(path, trained):
    first = trained()
    with ParquetSink(path) as sink:
        sink.write(1, first)
        second = trained()
        sink.write(2, second)
    assert read_records(path)["steps"].to_pylist() == [1, 1, 1, 1]


def test_the_run_is_described_in_the_file(path):
    with ParquetSink(path, {"seed": 3, "betas": [0.9, 0.95]}) as sink:
        sink.write(1, budget())
    described = run_metadata(read_records(path))
    assert described["run"] == {"seed": 3, "betas": [0.9, 0.95]}
    assert described["torch"] == torch.__version__
    assert {"format", "weibull_kernels", "python", "machine", "started"} <= described.keys()
    assert json.loads(pq.read_schema(path).metadata[b"weibull_kernels"]) == described


def test_a_sink_never_written_to_leaves_an_empty_file(path):
    with ParquetSink(path, {"seed": 3}):
        pass
    assert read_records(path).num_rows == 0
    assert run_metadata(read_records(path))["run"] == {"seed": 3}


def test_the_rows_are_readable_while_the_run_writes(path):
    sink = ParquetSink(path)
    sink.write(1, budget())
    assert not path.exists()
    assert read_records(path).num_rows == 3
    sink.close()
    assert read_records(path).num_rows == 3
    assert [file.name for file in path.parent.iterdir()] == ["run.parquet"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_what_was_written(path, error):
    def run():
        with ParquetSink(path) as sink:
            sink.write(1, budget())
            raise error

    with pytest.raises(error):
        run()
    assert pq.read_table(path).num_rows == 3


@pytest.mark.parametrize("torn", [1, 100, 500])
def test_a_torn_end_costs_only_the_last_write(path, torn):
    sink = ParquetSink(path)
    for step in (1, 2):
        sink.write(step, budget(step))
    part = path.with_name("run.parquet.part")
    part.write_bytes(part.read_bytes()[:-torn])
    assert read_records(path)["step"].to_pylist() == [1, 1, 1]
    sink.close()
    assert pq.read_table(path).num_rows == 3


SCRIPT = """
import os, signal, sys, weibull_kernels as wk
from weibull_kernels.records import ParquetSink
sink = ParquetSink(sys.argv[1])
sink.write(1, wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1))
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("end", "whole"), [("kill", False), ("exit", True)])
def test_a_sink_nobody_closed(path, end, whole):
    subprocess.run([sys.executable, "-c", SCRIPT, str(path), end], check=whole)
    assert path.exists() == whole
    assert read_records(path).num_rows == 1


def test_an_earlier_run_is_not_overwritten_unasked(path):
    with ParquetSink(path) as sink:
        sink.write(1, budget())
    with pytest.raises(FileExistsError, match="earlier run; give another path or overwrite=True"):
        ParquetSink(path)
    assert read_records(path).num_rows == 3
    with ParquetSink(path, overwrite=True) as sink:
        sink.write(1, budget())
        sink.write(2, budget(2))
    assert read_records(path).num_rows == 6


def test_wrong_writes(path):
    with ParquetSink(path) as sink:
        with pytest.raises(ValueError, match=r"\['decay'\] are columns of every record file"):
            sink.write(1, budget(), decay=1.0)
        sink.write(1, budget(), loss=1.0)
        with pytest.raises(ValueError, match=r"scalars of the first; \['loss', 'lr'\]"):
            sink.write(2, budget(2), lr=1.0)
        with pytest.raises(
            ValueError, match=r"one entry per tensor, 3, or a single one, got \{'loss': \(2,\)\}"
        ):
            sink.write(2, budget(2), loss=[1.0, 2.0])
    with pytest.raises(ValueError, match="is closed"):
        sink.write(2, budget(2), loss=1.0)
    assert read_records(path).num_rows == 3


def test_settings_that_json_cannot_hold(path):
    with pytest.raises(TypeError, match="JSON"):
        ParquetSink(path, {"device": torch.device("cpu")})


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no records at .*ParquetSink"):
        read_records(tmp_path / "missing.parquet")
    with pytest.raises(FileNotFoundError, match="no records at"):
        read_records(tmp_path)
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    with pytest.raises(ValueError, match="is not a record file of ParquetSink"):
        read_records(tmp_path / "text.parquet")
    pq.write_table(pa.table({"step": [1]}), tmp_path / "others.parquet")
    with pytest.raises(ValueError, match="is not a record file of ParquetSink: its metadata"):
        read_records(tmp_path / "others.parquet")
    ours = pa.schema([("step", pa.int64())], {b"weibull_kernels": b"{}"})
    pq.write_table(pa.table({"step": [1]}, ours), tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['name', 'role', 'alignment'"):
        read_records(tmp_path / "cut.parquet")


def test_series_sum_over_the_tensors_of_a_role(path):
    with ParquetSink(path) as sink:
        for step in (1, 2):
            sink.write(step, budget(step, seed=step))
    step, series = force_series(read_records(path), *wk.TRANSMISSION)
    assert step.tolist() == [1, 2]
    assert series.alignment == pytest.approx([float(budget(s, seed=s).alignment[:2].sum()) for s in (1, 2)])
    assert series.numel.tolist() == [3, 3]
    _, everything = force_series(read_records(path))
    assert everything.norm_sq == pytest.approx([float(budget(s, seed=s).norm_sq.sum()) for s in (1, 2)])
    with pytest.raises(ValueError, match="no record has the role qkv; there are"):
        force_series(read_records(path), "qkv")
