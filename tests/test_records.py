import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import weibull_kernels as wk
from weibull_kernels import columns
from weibull_kernels.records import force_series, read_records, run_metadata
from weibull_kernels.sinks import ParquetSink

FORCES = ("alignment", "injection", "decay", "coupling")
NAMES = ("layers.0.mlp.up_proj.weight", "layers.0.self_attn.o_proj.weight", "lm_head.weight")


def budget(step=1, names=NAMES, seed=0, **columns):
    random = np.random.default_rng(seed)
    rows = len(names) if names else 3
    update, update_sq, norm_sq = random.normal(size=rows), random.random(rows), 1 + random.random(rows)
    one_step = wk.ForceBudget.from_sums(
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
    return dataclasses.replace(one_step, **columns)


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
    rounding = torch.tensor([1e-9, -2e-9, 3e-300], dtype=torch.float64)
    written = [budget(step, seed=step, rounding=step * rounding) for step in (1, 2)]
    with ParquetSink(path) as sink:
        for step, one in enumerate(written, 1):
            sink.write(10 * step, one, loss=torch.tensor(2.5), lr=[0.1, 0.2, 0.3])
    records = read_records(path)
    assert records["step"].to_pylist() == [10] * 3 + [20] * 3
    assert records["name"].to_pylist() == list(NAMES) * 2
    assert records["role"].to_pylist() == ["ffn", "attention_output", "head"] * 2
    for column in (*FORCES, "rounding", "norm_sq", "numel", "steps"):
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
    for column in ("max_abs", "zero_count", "rounding"):
        assert records[column].null_count == 3
    after = budget().norm_sq + budget().predicted_change
    assert records["norm_sq_after"].to_pylist() == after.tolist()


def test_where_rounding_is_known_the_norm_after_has_it(path):
    with ParquetSink(path) as sink:
        sink.write(1, budget(rounding=torch.full((3,), 0.5, dtype=torch.float64)))
    after = budget().norm_sq + budget().predicted_change + 0.5
    assert read_records(path)["norm_sq_after"].to_pylist() == pytest.approx(after.tolist(), rel=1e-15)


def test_scalars_of_any_kind(path):
    loss = torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True)
    with ParquetSink(path) as sink:
        sink.write(1, budget(), loss=loss, tokens=7, lr=[torch.tensor(0.5), 0.25, 1], seen=np.float32(3))
    records = read_records(path)
    assert records["loss"].to_pylist() == [2.5] * 3
    assert records["tokens"].to_pylist() == [7.0] * 3
    assert records["lr"].to_pylist() == [0.5, 0.25, 1.0]
    assert records["seen"].to_pylist() == [3.0] * 3


def test_a_write_copies_from_the_device_once(path, trained, monkeypatch):
    measured, transfers, transfer = trained(), [], columns.Transfer
    monkeypatch.setattr(columns, "Transfer", lambda there: transfers.append(there) or transfer(there))
    with ParquetSink(path) as sink:
        sink.write(1, measured, loss=torch.tensor(1.0))
    assert len(transfers) == 1


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


@pytest.fixture
def booked():
    """A model of two layers and its ledger, to be stepped through one of them or both."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2))
    optimizer = wk.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)

    def steps(count, layers=(0, 1)):
        for _ in range(count):
            optimizer.zero_grad()
            for layer in layers:
                part = model[layer]
                part(torch.randn(4, part.in_features)).square().sum().backward()
            optimizer.step()

    return model, optimizer.ledger, steps


def norms_sq(model):
    return torch.stack([p.detach().double().square().sum() for p in model.parameters()])


def test_drained_intervals_sum_to_the_change_of_the_run(path, booked):
    model, ledger, steps = booked
    start, before, drained = norms_sq(model), norms_sq(model), []
    with ParquetSink(path) as sink:
        for step, count in enumerate((3, 1, 4), 1):
            steps(count)
            drained.append(ledger.drain())
            sink.write(step, drained[-1])
            change = drained[-1].predicted_change + drained[-1].rounding
            torch.testing.assert_close(change, norms_sq(model) - before, rtol=1e-10, atol=1e-13)
            before = norms_sq(model)
    records = read_records(path).to_pandas()
    sums = records.groupby("name", sort=False)[[*FORCES, "rounding", "steps"]].sum()
    assert (sums["steps"] == 8).all()
    assert (sums["rounding"] != 0).all()
    change = sums[[*FORCES, "rounding"]].sum(axis=1).to_numpy()
    assert change == pytest.approx((norms_sq(model) - start).tolist(), rel=1e-10, abs=1e-13)
    assert records["rounding"].tolist() == torch.cat([one.rounding for one in drained]).tolist()
    assert records["steps"].tolist() == [3] * 4 + [1] * 4 + [4] * 4


def test_a_drain_in_which_a_tensor_made_no_step_books_nothing(path, booked):
    model, ledger, steps = booked
    with ParquetSink(path) as sink:
        steps(2)
        sink.write(1, ledger.drain())
        steps(3, layers=[0])
        sink.write(2, ledger.drain())
        sink.write(3, ledger.drain())  # no step at all
        steps(1)
        sink.write(4, ledger.drain())
    records = read_records(path).to_pandas().set_index(["step", "name"])
    still = records.loc[
        [(2, "1.weight"), (2, "1.bias"), *((3, name) for name, _ in model.named_parameters())]
    ]
    assert (still[[*FORCES, "rounding", "steps"]] == 0).all(axis=None)
    assert (still["norm_sq"] == still["norm_sq_after"]).all()
    assert records.loc[(2, "1.weight"), "norm_sq"] == records.loc[(1, "1.weight"), "norm_sq_after"]
    assert records["steps"].unstack()[["0.weight", "1.weight"]].to_numpy().T.tolist() == [
        [2, 3, 0, 1],
        [2, 0, 0, 1],
    ]
    assert records.loc[4, "norm_sq_after"].tolist() == pytest.approx(norms_sq(model).tolist(), rel=1e-12)


def test_a_drained_budget_goes_into_two_sinks_whole_and_into_one_once(path, booked):
    _, ledger, steps = booked
    steps(3)
    drained = ledger.drain()
    with ParquetSink(path) as one, ParquetSink(path.with_name("other.parquet")) as other:
        for sink, step in ((one, 1), (other, 1), (one, 2)):
            sink.write(step, drained)
    assert read_records(path)["steps"].to_pylist() == [3] * 4 + [0] * 4
    rounding = read_records(path)["rounding"].to_pylist()
    assert rounding == drained.rounding.tolist() + [0.0] * 4
    assert read_records(path.with_name("other.parquet"))["rounding"].to_pylist() == rounding[:4]


def test_a_file_of_the_first_format_is_read_without_rounding(path):
    with ParquetSink(path) as sink:
        sink.write(1, budget(rounding=torch.ones(3, dtype=torch.float64)), loss=1.0)
    old = pq.read_table(path).drop_columns(["rounding"])
    pq.write_table(old, path)
    records = read_records(path)
    assert records["rounding"].type == pa.float64()
    assert records["rounding"].to_pylist() == [None] * 3
    assert records["alignment"].to_pylist() == budget().alignment.tolist()
    assert force_series(records)[1].rounding is None
    assert "rounding" not in wk.phase_table(records)


def test_the_run_is_described_in_the_file(path):
    with ParquetSink(path, {"seed": 3, "betas": [0.9, 0.95]}) as sink:
        sink.write(1, budget())
    described = run_metadata(read_records(path))
    assert described["run"] == {"seed": 3, "betas": [0.9, 0.95]}
    assert described["torch"] == torch.__version__
    assert described["format"] == 2
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
from weibull_kernels.sinks import ParquetSink
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
    assert everything.rounding is None
    with pytest.raises(ValueError, match="no record has the role qkv; there are"):
        force_series(read_records(path), "qkv")


def test_series_of_intervals(path):
    rounding = torch.tensor([0.25, 0.5, 8.0], dtype=torch.float64)
    with ParquetSink(path) as sink:
        sink.write(5, budget(5, rounding=rounding, steps=torch.tensor([5, 4, 5])))
        sink.write(7, budget(7, rounding=-rounding, steps=torch.tensor([2, 1, 2])))
        sink.write(8, budget(8))  # by wk.forces, that measures no rounding
    records = read_records(path)
    step, series = force_series(records, *wk.TRANSMISSION)
    assert step.tolist() == [5, 7, 8]
    assert series.steps.tolist() == [5, 2, 1]
    assert series.rounding[:2].tolist() == [0.75, -0.75]
    assert np.isnan(series.rounding[2])
    assert force_series(records)[1].rounding[0] == 8.75


def test_after_a_rollback_the_steps_made_again_are_booked_again(path, booked):
    _model, ledger, steps = booked
    with ParquetSink(path) as sink:
        for step, saved in ((1, None), (2, None), (2, "rolled back")):
            steps(2)
            budget = ledger.drain()
            if saved:  # the optimizer's count is that of the record before
                budget = dataclasses.replace(budget, step=budget.step - 2)
            sink.write(step, budget)
    assert read_records(path)["steps"].to_pylist() == [2] * 12
