"""A run that goes on with its records: every step once, and no row lost on the way."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sinks_oracle import NAMES, Run, budget, train

import weibull_kernels as wk
from weibull_kernels.records import part_of, run_metadata
from weibull_kernels.sinks import JsonLinesSink, ParquetSink

KINDS = pytest.mark.parametrize("kind", [ParquetSink, JsonLinesSink])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def killed(sink):
    """What is on the disk when the program is killed: nobody closes the sink any more."""
    sink._finish.detach()


def steps_of(path):
    return list(dict.fromkeys(wk.read_records(path)["step"].to_pylist()))


def record(kind, path, training, until, every, **options):
    """Trains up to a step and records; the sink stays open."""
    sink = kind(path, **options)
    while training.done < until:
        training.step()
        if training.done % every == 0:
            sink.write(training.done, training.record())
    return sink


@KINDS
@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "instants"])
@pytest.mark.parametrize("end", ["killed", "finished"])
def test_records_since_the_checkpoint_are_replaced(path, kind, ledger, end, caplog):
    moves = np.full((150, 3), True)
    run = Run(moves, ledger)
    sink = record(kind, path, run, 100, every=10)
    checkpoint = run.copy()
    sink.close()
    sink = record(kind, path, run, 117, every=10, append=True)
    (killed if end == "killed" else kind.close)(sink)
    before = wk.read_records(path)
    assert steps_of(path) == list(range(10, 111, 10))

    resumed = kind(path, {"try": 2}, append=True)
    assert wk.read_records(path).equals(before)  # until the first record is written
    resumed.close()
    assert wk.read_records(path).equals(before)

    caplog.clear()
    resumed = record(kind, path, checkpoint, 130, every=10, run={"try": 2}, append=True)
    assert steps_of(path) == list(range(10, 131, 10))
    (message,) = caplog.messages
    assert message.endswith(
        "goes on at step 110: 3 rows of steps 110 to 110, which the run makes again, are replaced"
    )
    resumed.close()
    records = wk.read_records(path)
    assert records.num_rows == 13 * 3
    assert records["step"].to_pylist() == np.repeat(np.arange(10, 131, 10), 3).tolist()
    booked = records["alignment"].to_numpy()[::3]
    expected = [sum(2.0**t for t in range(s - 10 if ledger else s - 1, s)) for s in range(10, 131, 10)]
    assert booked.tolist() == expected
    first, second = run_metadata(records)["resumed"]
    assert (first["step"], first["replaced_rows"], first["run"]) == (110, 0, {})
    assert (second["step"], second["replaced_rows"], second["run"]) == (110, 3, {"try": 2})
    assert {"started", "weibull_kernels", "torch"} <= second.keys()
    assert run_metadata(records)["format"] == 2


@settings(max_examples=50)
@given(
    moves=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=30, max_size=30),
    sessions=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 6)), max_size=4),
    ledger=st.booleans(),
)
def test_each_step_is_booked_once_however_often_the_run_is_killed(tmp_path_factory, moves, sessions, ledger):
    """Tensors that stand still for long, records at any spacing, checkpoints and ends at any step.

    A checkpoint holds the ledger. By instants every step is recorded, so that all are booked there as well.
    """
    path = tmp_path_factory.mktemp("run") / "run"
    moves = [[True, *others] for others in np.array(moves)[:, 1:].tolist()]  # the first moves always
    checkpoint = Run(moves, ledger)
    for every, until, more in [*sessions, (1, 0, 30)]:
        every = every if ledger else 1
        run = checkpoint
        sink = record(ParquetSink, path, run, min(run.done + until, 30), every, append=True)
        checkpoint = run.copy()
        while run.done < min(checkpoint.done + more, 30):
            run.step()
            if run.done % every == 0:
                sink.write(run.done, run.record())
        killed(sink)
    records = wk.read_records(path).to_pandas()
    assert records["step"].is_monotonic_increasing
    assert not records.duplicated(["step", "name"]).any()
    sums = records.groupby("name")[["alignment", "steps"]].sum()
    powers = 2.0 ** np.arange(30)
    assert sums["alignment"].tolist() == (np.array(moves).T * powers).sum(axis=1).tolist()
    assert sums["steps"].tolist() == np.sum(moves, axis=0).tolist()


def test_a_tensor_that_stands_still_does_not_take_its_records_with_it(path):
    """Its optimizer step is old in every record since; an instant says again that it made one."""
    moves = np.full((60, 3), True)
    moves[5:, 2] = False
    run = Run(moves, ledger=False)
    killed(record(ParquetSink, path, run, 30, every=1))
    killed(record(ParquetSink, path, run, 60, every=1, append=True))
    records = wk.read_records(path).to_pandas().set_index(["step", "name"])
    assert len(records) == 180
    still = records.xs("layers.2.mlp.a.weight", level="name")
    assert still["steps"].tolist() == [1] * 5 + [0] * 55


def test_a_record_beside_those_of_several_steps(path):
    """Of two optimizers one keeps a ledger, of the other single steps are measured."""
    nan, steps = float("nan"), torch.tensor([10, 1, 1])
    rounding = torch.tensor([0.0, nan, nan], dtype=torch.float64)
    sink = ParquetSink(path)
    for count in (10, 20, 26):
        sink.write(count, budget(count, steps=steps, rounding=0.0))
    killed(sink)
    with ParquetSink(path, append=True) as sink:  # from a checkpoint at 20
        sink.write(30, budget(30, steps=steps, rounding=rounding))
    assert steps_of(path) == [10, 20, 30]


def test_without_counts_the_step_decides(path):
    nameless = {"step": None, "steps": torch.tensor([2, 2, 2])}
    sink = JsonLinesSink(path)
    for step in (2, 4, 6, 8):
        sink.write(step, budget(0, **nameless))
    killed(sink)
    with JsonLinesSink(path, append=True) as sink:
        sink.write(6, budget(0, **nameless))
    assert steps_of(path) == [2, 4, 6]


@KINDS
def test_a_run_from_the_beginning_replaces_all(path, kind, caplog):
    record(kind, path, Run(np.full((9, 2), True), ledger=True), 9, every=3).close()
    record(kind, path, Run(np.full((9, 2), True), ledger=True), 6, every=6, append=True).close()
    assert steps_of(path) == [6]
    assert caplog.messages == [
        f"{kind.__name__}('{path}') goes on at step 6: 6 rows of steps 3 to 9, which the run makes again, "
        "are replaced"
    ]


@KINDS
def test_where_there_is_nothing_append_begins(path, kind):
    with kind(path, append=True) as sink:
        sink.write(1, budget(1))
    assert steps_of(path) == [1]
    assert "resumed" not in run_metadata(wk.read_records(path))


@KINDS
def test_a_file_without_records_is_gone_on_with(path, kind):
    kind(path, {"try": 1}).close()
    with kind(path, append=True) as sink:
        sink.write(1, budget(1), loss=1.0)
    about = run_metadata(wk.read_records(path))
    assert about["run"] == {"try": 1}
    assert about["resumed"][0]["replaced_rows"] == 0


def test_the_first_format_is_gone_on_with(path):
    with ParquetSink(path) as sink:
        sink.write(1, budget(1, seed=1))
    pq.write_table(pq.read_table(path).drop_columns(["rounding"]), path)
    with ParquetSink(path, append=True) as sink:
        sink.write(2, budget(2, rounding=0.5))
    assert wk.read_records(path)["rounding"].to_pylist() == [None] * 3 + [0.5] * 3
    assert pq.read_schema(path).names.index("rounding") == 7


@KINDS
def test_scalars_must_be_those_of_the_earlier_records(path, kind):
    with kind(path) as sink:
        sink.write(1, budget(1), lr=0.1, loss=2.0)
    before = path.read_bytes()
    sink = kind(path, append=True)
    with pytest.raises(ValueError, match=r"scalars of the earlier records; \['loss', 'seen'\]"):
        sink.write(2, budget(2), lr=0.1, seen=2.0)
    with pytest.raises(ValueError, match=r"\['lr'\] are text in one of this write and the earlier records"):
        sink.write(2, budget(2), lr="0.1", loss=2.0)
    assert path.read_bytes() == before
    sink.write(2, budget(2), loss=2.0, lr=0.1)  # in any order
    sink.close()
    assert wk.read_records(path)["lr"].to_pylist() == [0.1] * 6


@KINDS
def test_wrong_ways_to_go_on(path, kind, tmp_path):
    with kind(path) as sink:
        sink.write(1, budget(1))
    with pytest.raises(
        ValueError, match="overwrite=True drops the earlier records and append=True keeps them"
    ):
        kind(path, overwrite=True, append=True)
    other = {ParquetSink: JsonLinesSink, JsonLinesSink: ParquetSink}[kind]
    with pytest.raises(
        ValueError, match=f"file, which {other.__name__} cannot go on with; use the sink that"
    ):
        other(path, append=True)
    with (
        kind(path, append=True) as sink,
        pytest.raises(ValueError, match="the tensors given now are a and others"),
    ):
        sink.write(2, budget(2, names=("a", "b")))
    (tmp_path / "text").write_text("nothing of ours")
    with pytest.raises(ValueError, match="is not a record file of ParquetSink"):
        kind(tmp_path / "text", append=True)
    assert steps_of(path) == [1]


@KINDS
def test_a_torn_end_is_repaired(path, kind):
    sink = kind(path)
    for count in (1, 2):
        sink.write(count, budget(count, names=NAMES[:1]))
    killed(sink)
    file = part_of(path) if kind is ParquetSink else path
    file.write_bytes(file.read_bytes()[:-20])
    with kind(path, append=True) as sink:
        sink.write(2, budget(2, names=NAMES[:1]))
    assert steps_of(path) == [1, 2]
    assert run_metadata(wk.read_records(path))["resumed"][0]["replaced_rows"] == 0


@KINDS
@pytest.mark.parametrize("at", ["os.write", "os.fsync", "pathlib.Path.replace"])
def test_whenever_the_first_write_fails_the_earlier_rows_are_there(path, kind, at, monkeypatch):
    sink = kind(path)
    for count in (1, 2):
        sink.write(count, budget(count))
    killed(sink)
    before = wk.read_records(path)
    sink = kind(path, append=True)

    def fails(*_):
        raise OSError("the machine goes down")

    with monkeypatch.context() as patched:
        patched.setattr(at, fails)
        with pytest.raises(OSError, match="goes down"):
            sink.write(2, budget(2))
    assert wk.read_records(path).equals(before)
    assert len(list(path.parent.iterdir())) == 1
    sink.write(2, budget(2, seed=5))
    sink.close()
    assert wk.read_records(path)["alignment"].to_pylist()[3:] == budget(2, seed=5).alignment.tolist()


def test_overwriting_leaves_no_part_of_another_kind(path):
    sink = ParquetSink(path)
    sink.write(1, budget(1))
    killed(sink)
    with pytest.raises(FileExistsError, match=r"run.part has the records of an earlier run"):
        JsonLinesSink(path)
    with JsonLinesSink(path, overwrite=True) as lines:
        lines.write(2, budget(2))
    assert steps_of(path) == [2]
    assert [file.name for file in path.parent.iterdir()] == ["run"]
    sink = ParquetSink(path, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == [
        "run.part"
    ]  # nobody reads the old run for the new
    sink.close()


def test_a_killed_run_and_its_second_try(tmp_path):
    """Killed at 9, with records up to 8, and resumed from a checkpoint of 5: in the middle of an interval."""
    command = "import sys; from sinks_oracle import train; train(sys.argv[1], 9, kill=True)"
    here = pathlib.Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", command, str(tmp_path)], cwd=here, check=False)
    assert done.returncode == -signal.SIGKILL
    assert steps_of(tmp_path / "run.jsonl") == steps_of(tmp_path / "run.parquet") == [2, 4, 6, 8]
    end = sum(p.detach().double().square().sum() for p in train(tmp_path, 12).parameters())
    for name in ("run.parquet", "run.jsonl"):
        records = wk.read_records(tmp_path / name).to_pandas()
        assert records["step"].tolist() == np.repeat(np.arange(2, 13, 2), 2).tolist()
        assert records["steps"].tolist() == [2] * 12
        assert records["optimizer_step"].tolist() == records["step"].tolist()
        forces = records[["alignment", "injection", "decay", "coupling", "rounding"]].to_numpy().sum()
        start = records.loc[records["step"] == 2, "norm_sq"].sum()
        assert forces == pytest.approx(float(end) - start, rel=1e-9)
        (entry,) = run_metadata(wk.read_records(tmp_path / name))["resumed"]
        assert (entry["step"], entry["replaced_rows"]) == (6, 4)
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pt", "run.jsonl", "run.parquet"}
