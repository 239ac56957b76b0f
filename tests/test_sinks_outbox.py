"""A sink that fails never stops the loop, and gets what it missed in order."""

import gc
import logging
import re

import pytest
import torch
from sinks_oracle import NAMES, budget

import weibull_kernels as wk
from weibull_kernels.sinks import JsonLinesSink, Outbox, ParquetSink


class Flaky:
    """Takes records unless it is down."""

    def __init__(self):
        self.down, self.taken, self.tries = False, [], 0

    def write(self, step, budget, **scalars):
        self.tries += 1
        if self.down:
            raise self.down
        self.taken.append((step, scalars))

    def close(self):
        raise AssertionError("a sink belongs to its owner")

    def __repr__(self):
        return "Flaky()"


@pytest.fixture(autouse=True)
def _listening(caplog):
    caplog.set_level(logging.WARNING, "weibull_kernels")


def deliver(outbox, *steps):
    for step in steps:
        outbox.deliver(step, budget(step, seed=step), {"lr": step / 10})


def test_every_sink_gets_every_record(caplog):
    sinks, seen = [Flaky(), Flaky()], []
    outbox = Outbox([*sinks, lambda metrics, step: seen.append(step)])
    deliver(outbox, 1, 2)
    outbox.flush()
    assert sinks[0].taken == sinks[1].taken == [(1, {"lr": 0.1}), (2, {"lr": 0.2})]
    assert seen == [1, 2]
    assert caplog.messages == []


def test_a_sink_that_is_down_gets_all_in_order_when_it_is_up_again(caplog):
    sink, other = Flaky(), Flaky()
    outbox = Outbox([sink, other])
    deliver(outbox, 1)
    sink.down = ConnectionError("no route to host")
    deliver(outbox, 2, 3, 4)
    assert caplog.messages == [
        "Flaky() failed at step 2 (ConnectionError: no route to host); the training goes on, and up to 100 "
        "records are kept and tried again later"
    ]
    assert [step for step, _ in other.taken] == [1, 2, 3, 4]  # is not held up
    sink.down = False
    deliver(outbox, 5)
    assert [step for step, _ in sink.taken] == [1, 2, 3, 4, 5]
    assert caplog.messages[1:] == ["Flaky() works again: 3 records were written late"]
    sink.down = OSError("again")
    deliver(outbox, 6)
    assert caplog.messages[2].startswith("Flaky() failed at step 6 (OSError: again)")
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert {record.name for record in caplog.records} == {"weibull_kernels"}


def test_the_last_records_are_tried_again_in_the_end(caplog):
    sink = Flaky()
    outbox = Outbox([sink])
    sink.down = OSError("full")
    deliver(outbox, 1, 2)
    sink.down = False
    outbox.flush()
    assert [step for step, _ in sink.taken] == [1, 2]
    assert caplog.messages[1:] == ["Flaky() works again: 2 records were written late"]


def test_what_was_not_written_is_said_in_the_end(caplog):
    sink = Flaky()
    outbox = Outbox([sink])
    sink.down = OSError("full")
    deliver(outbox, 1, 2, 3)
    outbox.flush()
    assert caplog.messages[1:] == ["Flaky() has not taken 3 records, of steps 1 to 3"]
    assert sink.tries == 3
    outbox.flush()  # nothing new
    assert len(caplog.messages) == 2


def test_a_sink_that_stays_down_is_asked_less_and_less_often():
    """It may take long to say so, and the training waits for it."""
    sink = Flaky()
    outbox = Outbox([sink])
    sink.down = OSError("timed out")
    deliver(outbox, *range(1, 65))
    assert sink.tries == 7  # at the records 1, 2, 4, 8, 16, 32, 64
    sink.down = False
    outbox.flush()
    assert [step for step, _ in sink.taken] == list(range(1, 65))


def test_of_too_many_the_oldest_are_lost_and_counted(caplog):
    sink = Flaky()
    outbox = Outbox([sink], kept=3)
    sink.down = OSError("full")
    deliver(outbox, *range(1, 8))
    assert caplog.messages[1:] == [
        "Flaky() still fails and 3 records wait for it: from step 1 on the oldest are lost"
    ]
    sink.down = False
    deliver(outbox, 8)
    outbox.flush()
    assert [step for step, _ in sink.taken] == [5, 6, 7, 8]
    assert caplog.messages[2:] == [
        "Flaky() works again: 3 records were written late",
        "Flaky() has lost 4 records",
    ]


def test_ctrl_c_passes_and_the_record_is_still_there():
    sink = Flaky()
    outbox = Outbox([sink])
    sink.down = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        deliver(outbox, 1)
    sink.down = False
    deliver(outbox, 2)
    assert [step for step, _ in sink.taken] == [1, 2]


def test_a_wrong_sink_is_refused_before_the_training():
    with pytest.raises(TypeError, match="a path is no sink"):
        Outbox(["run.parquet"])
    with pytest.raises(TypeError, match=r"sinks must be several, in a list, got 'run.parquet'"):
        Outbox("run.parquet")
    with pytest.raises(TypeError, match=r"in a list, got Flaky\(\); write \[Flaky\(\)\]"):
        Outbox(Flaky())
    with pytest.raises(ValueError, match="kept must be at least 1 record, got 0"):
        Outbox([], kept=0)


@pytest.mark.parametrize("kind", [ParquetSink, JsonLinesSink])
@pytest.mark.parametrize("rounding", [None, 1e-9], ids=["instants", "drained"])
def test_a_record_file_on_a_disk_that_is_full_for_a_while(tmp_path, kind, rounding, monkeypatch, caplog):
    path = tmp_path / "run"
    outbox = Outbox([kind(path)])
    made = [budget(step, seed=step, rounding=rounding) for step in range(1, 7)]

    def full(*_):
        raise OSError(28, "No space left on device")

    for step, one in enumerate(made, 1):
        with monkeypatch.context() as patched:
            if step in (1, 3, 4, 5):
                patched.setattr("os.write", full)
            outbox.deliver(step, one, {"lr": 0.1})
    outbox.flush()
    del outbox
    gc.collect()  # a sink that nobody holds is finished
    records = wk.read_records(path)
    assert records["step"].to_pylist() == [step for step in range(1, 7) for _ in NAMES]
    assert records["alignment"].to_pylist() == torch.cat([one.alignment for one in made]).tolist()
    assert records["steps"].to_pylist() == [1] * 18
    assert [re.sub(r".* (failed|works)", r"\1", message)[:14] for message in caplog.messages] == [
        *("failed at step", "works again: 1"),
        *("failed at step", "works again: 3"),
    ]
