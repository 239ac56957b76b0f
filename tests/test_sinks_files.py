"""Record files: both kinds hold the same, whatever fails while they are written."""

import contextlib
import dataclasses
import errno
import gc
import json
import math
import os
import resource
import stat
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sinks_oracle import NAMES, budget

import weibull_kernels as wk
from weibull_kernels.records import COLUMNS, part_of, run_metadata
from weibull_kernels.sinks import JsonLinesSink, Outbox, ParquetSink

KINDS = pytest.mark.parametrize("kind", [ParquetSink, JsonLinesSink])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def growing(kind, path):
    return part_of(path) if kind is ParquetSink else path


def columns_of(path):
    """Every value of a file, floats as their bits."""
    table = wk.read_records(path)
    return {
        name: [value.hex() if isinstance(value, float) else value for value in table[name].to_pylist()]
        for name in table.column_names
    }


@contextlib.contextmanager
def files_no_longer_than(limit):
    """The kernel cuts off writes beyond, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


NUMBER = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1])


@settings(max_examples=50)
@given(
    forces=st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=3),
    loss=NUMBER,
    text=st.text(st.characters(exclude_categories=["Cs"])),
    name=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_both_kinds_give_back_every_bit(tmp_path_factory, forces, loss, text, name):
    folder = tmp_path_factory.mktemp("both")
    names = tuple(f"{name}{row}" for row in range(len(forces)))
    written = budget(3, names=names, seed=0, alignment=torch.tensor(forces, dtype=torch.float64)[:, 0])
    decay = torch.tensor([pair[1] for pair in forces], dtype=torch.float64)
    for kind in (ParquetSink, JsonLinesSink):
        with kind(folder / kind.__name__) as sink:
            sink.write(7, dataclasses.replace(written, decay=decay), loss=loss, said=text)
    found = columns_of(folder / "ParquetSink")
    assert found == columns_of(folder / "JsonLinesSink")
    assert found["alignment"] == [float(pair[0]).hex() for pair in forces]
    assert found["decay"] == [float(pair[1]).hex() for pair in forces]
    assert found["name"] == list(names)
    assert found["said"] == [text] * len(forces)
    assert found["loss"] == [float(loss).hex()] * len(forces)
    assert found["max_abs"] == [None] * len(forces)
    assert set(found) == {*COLUMNS, "loss", "said"}


@KINDS
def test_every_type_comes_back_as_it_was(path, kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    with kind(path, {"rate": math.nan, "betas": (0.9, 0.95)}) as sink:
        sink.write(1, wk.forces(optimizer), lr=torch.tensor(0.1, dtype=torch.bfloat16), k=[math.nan, 1.2])
    table = wk.read_records(path)
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    whole = {"step", "numel", "steps", "optimizer_step", "zero_count", "non_finite_count"}
    assert types == {
        name: "int64" if name in whole else "string" if name in ("name", "role") else "double"
        for name in (*COLUMNS, "lr", "k")
    }
    assert table["numel"].to_pylist() == [6, 2]
    assert table["lr"].to_pylist() == [0.10009765625] * 2
    assert table["rounding"].to_pylist() == [None, None]
    assert math.isnan(table["k"][0].as_py())
    assert table["max_abs"].to_pylist() == [float(p.detach().abs().max()) for p in model.parameters()]
    assert run_metadata(table)["run"]["betas"] == [0.9, 0.95]


def test_json_lines_are_what_the_docstring_says(path):
    with JsonLinesSink(path, {"seed": 3}) as sink:
        sink.write(1, budget(1, seed=1), loss=math.nan, peak=math.inf, trough=-math.inf)
        assert len(path.read_bytes().splitlines()) == 4  # there when write returns

    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    header, *rows = (json.loads(line, parse_constant=strict) for line in path.read_text().splitlines())
    assert header["weibull_kernels"]["run"] == {"seed": 3}
    assert header["weibull_kernels"] == run_metadata(wk.read_records(path))
    assert header["columns"]["loss"] == "double"
    assert [row["name"] for row in rows] == list(NAMES)
    assert list(rows[0]) == [*COLUMNS, "loss", "peak", "trough"]
    assert (rows[0]["loss"], rows[0]["peak"], rows[0]["trough"]) == ("NaN", "Infinity", "-Infinity")
    assert rows[0]["max_abs"] is None


@KINDS
def test_a_new_file_is_read_before_its_first_record(path, kind):
    sink = kind(path, {"seed": 3})
    table = wk.read_records(path)
    assert table.num_rows == 0
    assert run_metadata(table)["run"] == {"seed": 3}
    sink.close()
    assert wk.read_records(path).num_rows == 0


@KINDS
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_disk_that_is_full_costs_no_record(path, kind, first):
    sink = kind(path)
    written = [budget(count, seed=count) for count in (1, 2, 3)]
    done = [] if first else [1]
    for count in done:
        sink.write(count, written[0])
    file = growing(kind, path)
    size = file.stat().st_size
    failing = written[len(done)]
    for _ in range(2):
        with files_no_longer_than(size + 300), pytest.raises(OSError, match="too large"):
            sink.write(len(done) + 1, failing)
        assert file.stat().st_size == size
        assert wk.read_records(path).num_rows == 3 * len(done)
    assert [one.name for one in path.parent.iterdir()] == [file.name]
    sink.write(len(done) + 1, failing)  # the same budget: it is not booked yet
    sink.write(len(done) + 2, written[len(done) + 1])
    sink.close()
    records = wk.read_records(path)
    assert records["steps"].to_pylist() == [1] * records.num_rows
    expected = torch.cat([one.alignment for one in written[: len(done) + 2]])
    assert records["alignment"].to_pylist() == expected.tolist()


@KINDS
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_ends_in_its_middle_leaves_nothing(path, kind, error, monkeypatch):
    sink = kind(path)
    drained = [budget(count, steps=count, rounding=1e-9, seed=count) for count in (1, 2)]
    sink.write(1, drained[0])
    written, write = [], os.write

    def torn(file, data):
        if written:
            raise error
        written.append(write(file, data[:100]))
        return written[0]

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", torn)
        with pytest.raises(type(error)):
            sink.write(2, drained[1])
    assert written == [100]
    assert wk.read_records(path).num_rows == 3
    sink.write(2, drained[1])
    sink.close()
    assert (
        wk.read_records(path)["alignment"].to_pylist() == torch.cat([d.alignment for d in drained]).tolist()
    )


def test_a_file_that_cannot_be_cut_back_is_cut_by_the_next_write(path, monkeypatch):
    sink = JsonLinesSink(path)
    sink.write(1, budget(1))
    write = os.write

    def torn(file, data):
        write(file, data[:100])
        raise OSError(errno.EIO, "Input/output error")

    def stuck(*_):
        raise OSError(errno.EIO, "Input/output error")

    size = path.stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", torn)
        patched.setattr(os, "ftruncate", stuck)
        with pytest.raises(OSError, match="Input/output"):
            sink.write(2, budget(2))
    assert path.stat().st_size == size + 100
    assert wk.read_records(path).num_rows == 3
    sink.write(2, budget(2))
    assert wk.read_records(path)["step"].to_pylist() == [1] * 3 + [2] * 3


@KINDS
def test_bad_writes_change_nothing(path, kind):
    sink = kind(path)
    with pytest.raises(ValueError, match=r"\['decay'\] are columns of every record file"):
        sink.write(1, budget(1), decay=1.0)
    sink.write(1, budget(1), loss=1.0, said="yes")
    before = growing(kind, path).read_bytes()
    with pytest.raises(ValueError, match=r"scalars of the first; \['said'\]"):
        sink.write(2, budget(2), loss=1.0)
    with pytest.raises(ValueError, match=r"\['loss'\] are text in one of this write and the first"):
        sink.write(2, budget(2), loss="1.0", said="no")
    with pytest.raises(ValueError, match="one entry per tensor, 3, or a single one"):
        sink.write(2, budget(2), loss=[1.0, 2.0], said="no")
    assert growing(kind, path).read_bytes() == before
    sink.close()
    with pytest.raises(ValueError, match="is closed"):
        sink.write(2, budget(2), loss=1.0, said="no")


def test_a_parquet_file_that_cannot_be_finished_stays_a_stream(path):
    sink = ParquetSink(path)
    for count in range(1, 20):
        sink.write(count, budget(count))
    with files_no_longer_than(1000), pytest.raises(OSError, match="too large"):
        sink.close()
    assert [file.name for file in path.parent.iterdir()] == ["run.part"]
    assert wk.read_records(path).num_rows == 57
    with ParquetSink(path, append=True) as sink:
        sink.write(20, budget(20))
    assert pq.read_table(path).num_rows == 60


def test_a_sink_leaves_the_file_of_its_successor_alone(path):
    sink = ParquetSink(path)
    sink.write(1, budget(1))
    successor = ParquetSink(path, overwrite=True)
    successor.write(5, budget(5))
    del sink
    gc.collect()
    assert not path.exists()
    successor.write(6, budget(6))
    successor.close()
    assert wk.read_records(path)["step"].to_pylist() == [5] * 3 + [6] * 3


FORKED = """
import os, sys, weibull_kernels as wk
budget = lambda: wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
sinks = [wk.ParquetSink(sys.argv[1] + "/parquet"), wk.JsonLinesSink(sys.argv[1] + "/lines")]
for sink in sinks:
    sink.write(1, budget())
child = os.fork()
if child == 0:
    sys.exit()  # what runs at the end of a program runs in the child as well
os.waitpid(child, 0)
for sink in sinks:
    sink.write(2, budget())
"""


def test_a_forked_child_that_ends_leaves_the_files_to_its_parent(tmp_path):
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lines", "parquet"]
    for name in ("lines", "parquet"):
        assert wk.read_records(tmp_path / name)["step"].to_pylist() == [1, 2]


@KINDS
def test_a_folder_that_may_not_be_written_to_says_so_at_once(tmp_path, kind):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    root = os.geteuid() == 0
    if root:  # who may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            kind(tmp_path / "run")
    finally:
        if root:
            os.seteuid(0)


@KINDS
def test_a_path_that_cannot_be_made_says_so_at_once(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        kind(tmp_path / "file" / "run")
    (tmp_path / "run").mkdir()
    if kind is JsonLinesSink:
        with pytest.raises(IsADirectoryError):
            kind(tmp_path / "run")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "run"]


@KINDS
def test_newer_formats_are_refused(path, kind):
    with kind(path) as sink:
        sink.write(1, budget(1))
    if kind is ParquetSink:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"weibull_kernels"]) | {"format": 9}
        pq.write_table(table.replace_schema_metadata({b"weibull_kernels": json.dumps(about)}), path)
    else:
        path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
    for read in (wk.read_records, lambda found: kind(found, append=True)):
        with pytest.raises(
            ValueError, match="has format 9, this version of weibull_kernels reads formats up to 2"
        ):
            read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its first line is cut off"),
        ("{]\n", "line 1: "),
        ('{"step": 1}\n', "does not have 'weibull_kernels' and 'columns'"),
        (
            '{"weibull_kernels": {}, "columns": {"step": "int3"}}\n',
            "columns have the types int64, double, string",
        ),
        ('{"weibull_kernels": {}, "columns": {"step": "int64"}}\n[1]\n', "line 2 is no JSON object"),
        ('{"weibull_kernels": {}, "columns": {"step": "int64"}}\n{"step":\n{"step": 1}\n', "line 2: "),
        ('{"weibull_kernels": {}, "columns": {"step": "int64"}}\n{"step": "x"}\n', "not a record file"),
        ('{"weibull_kernels": {}, "columns": {"step": "int64"}}\n{"step": 1}\n', "lacks the columns"),
    ],
)
def test_wrong_json_lines(path, text, message):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        wk.read_records(path)


@pytest.mark.parametrize("torn", [1, 30, 300])
def test_a_torn_last_line_is_left_out(path, torn):
    with JsonLinesSink(path) as sink:
        sink.write(1, budget(1, names=NAMES[:1]))
        sink.write(2, budget(2, names=NAMES[:1]))
    path.write_bytes(path.read_bytes()[:-torn])
    assert wk.read_records(path)["step"].to_pylist() == [1]


def test_both_kinds_are_told_by_their_content(tmp_path):
    with ParquetSink(tmp_path / "run.jsonl") as one, JsonLinesSink(tmp_path / "run.parquet") as other:
        for sink in (one, other):
            sink.write(1, budget(1, seed=1))
    one, other = (wk.read_records(tmp_path / name) for name in ("run.jsonl", "run.parquet"))
    assert isinstance(one, pa.Table)
    assert one.equals(other)


@KINDS
def test_in_a_job_a_file_is_opened_where_it_is_written(kind, tmp_path, monkeypatch):
    """Every process makes the sink, and one of them writes."""
    path = tmp_path / "run"
    monkeypatch.setenv("WORLD_SIZE", "2")
    first, other = kind(path), kind(path)
    other.close()
    assert list(tmp_path.iterdir()) == []
    outbox = Outbox([first])
    assert [file.name for file in tmp_path.iterdir()] == [growing(kind, path).name]
    record = wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    with pytest.raises(FileExistsError):
        Outbox([kind(path)])
    own = kind(tmp_path / "second")  # one of its own path, as for a stage of the model
    own.write(1, record)
    own.close()
    outbox.deliver(1, record, {})
    first.close()
    assert wk.read_records(path).num_rows == wk.read_records(tmp_path / "second").num_rows == 1
