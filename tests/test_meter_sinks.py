"""Sinks that fail while a loop trains, and several kinds of them at one meter."""

import errno
import logging

import torch
from loops import OPTIMIZERS, Kept, Net, states, train

import weibull_kernels as wk


class Down(Kept):
    """A sink that cannot be reached for a while."""

    def __init__(self, error, steps):
        super().__init__()
        self.error, self.down = error, set(steps)
        self.calls = 0

    def write(self, step, budget, **scalars):
        self.calls += 1
        if step in self.down and self.calls <= 5:
            raise self.error
        super().write(step, budget, **scalars)


def run(sinks):
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS["wk"](model)
    if sinks is not None:
        with wk.attach(optimizer, sinks=sinks):
            train(model, optimizer, range(1, 11))
    else:
        train(model, optimizer, range(1, 11))
    return states(model, optimizer)


def test_a_sink_that_is_down_changes_nothing_and_gets_everything_later(caplog):
    caplog.set_level(logging.WARNING, "weibull_kernels")
    for error in (ConnectionError("refused"), OSError(errno.ENOSPC, "no space left"), PermissionError("no")):
        caplog.clear()
        down, other = Down(error, range(3, 6)), Kept()
        ends = run([down, other])
        assert down.steps == other.steps == list(range(1, 11))
        assert all(map(torch.equal, ends, run(None)))
        said = [record.message for record in caplog.records]
        assert len(said) == 2, said
        assert "failed at step 3" in said[0]
        assert type(error).__name__ in said[0]
        assert "works again" in said[1]


def test_a_full_disk_costs_no_record(tmp_path, monkeypatch, caplog):
    """The file system takes no more for a while; the file is whole at the end."""
    from weibull_kernels.sinks import journal

    write, calls = journal._write_all, []

    def full(file, data):
        calls.append(1)
        if 4 <= len(calls) <= 6:
            write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "no space left on device")
        write(file, data)

    monkeypatch.setattr(journal, "_write_all", full)
    run([wk.ParquetSink(tmp_path / "run.parquet")])
    frame = wk.read_run(tmp_path / "run.parquet")
    assert frame["step"].tolist() == [step for step in range(1, 11) for _ in range(6)]
    assert (frame["steps"] == 1).all()
    assert "no space left" in caplog.text


def test_files_have_every_tensor_and_live_sinks_the_roles(tmp_path, capsys):
    logged = {}
    run(
        [
            wk.ParquetSink(tmp_path / "run.parquet"),
            wk.ConsoleSink(),
            lambda values, step: logged.update({step: values}),
        ]
    )
    frame = wk.read_run(tmp_path / "run.parquet")
    assert len(frame) == 60
    assert {"lr", "weight_decay", "alignment", "rounding"} <= set(frame.columns)
    roles = wk.read_run(tmp_path / "run.parquet", by="role").set_index(["step", "role"])
    for step, values in logged.items():
        assert values["forces/ffn/alignment"] == roles.loc[(step, "ffn"), "alignment"]
        assert "forces/mlp.weight/alignment" not in values
    assert len(capsys.readouterr().out.splitlines()) == 10
