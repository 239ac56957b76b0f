"""What loops log to: each takes a few numbers by role, and what cannot is refused by name."""

import io
import json
import logging
import math
import tempfile
import types

import pytest
import rich
import torch
from rich.console import Console
from rich.progress import Progress
from sinks_oracle import NAMES, budget, column
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import weibull_kernels as wk
from weibull_kernels.sinks import ConsoleSink, JsonLinesSink, LiveSink, as_sink, role_metrics

TWO = (*NAMES[:2], "layers.0.mlp.down_proj.weight", "lm_head.weight")


def by_hand(**columns):
    """Two FFN matrices, an attention output and a head; over four steps, the head over two."""
    return budget(
        8,
        names=TWO,
        alignment=column([8.0, 4, 4, -2]),
        injection=column([4.0, 0, 4, 2]),
        decay=column([-4.0, -4, 0, -4]),
        coupling=column([0.5, 0, 0.5, 0]),
        norm_sq=column([100.0, 10, 40, 30]),
        numel=torch.tensor([10, 5, 10, 3]),
        steps=torch.tensor([4, 4, 4, 2]),
        **columns,
    )


def test_metrics_by_hand():
    found = role_metrics(by_hand(), k=[1.2, 1.1, 1.2, math.nan], scale=[0.5, 0.4, 0.5, math.nan], lr=0.1)
    ffn = {name.rsplit("/", 1)[1]: value for name, value in found.items() if name.startswith("forces/ffn/")}
    assert ffn == {
        **{"alignment": 12 / 4, "injection": 8 / 4, "decay": -4 / 4},
        **{"alignment_share": 12 / 24, "injection_share": 8 / 24, "decay_share": -4 / 24},
        **{"net": 17 / 4, "rms": pytest.approx(math.sqrt((140 + 17) / 20)), "k": 1.2, "scale": 0.5},
    }
    assert found["forces/head/alignment"] == -1.0  # two steps
    assert found["forces/transmission/net"] == (17 + 0) / 4
    assert found["forces/all/rms"] == pytest.approx(math.sqrt((180 + 17 - 4) / 28))
    assert (found["forces/step"], found["forces/non_finite"], found["forces/non_finite_tensors"]) == (8, 0, 0)
    roles = list(dict.fromkeys(name.split("/")[1] for name in found if name.count("/") == 2))
    assert roles == ["attention_output", "ffn", "head", "transmission", "all"]
    assert {type(value) for value in found.values()} == {float}
    assert not [name for name in found if "lr" in name]
    assert {name for name in found if name.endswith("/k")} == {"forces/attention_output/k", "forces/ffn/k"}


def test_metrics_are_those_of_the_budget():
    """Against `total`, and σ against the weights themselves."""
    model = torch.nn.TransformerEncoderLayer(8, 2, 16)
    optimizer = wk.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(4, 2, 8)).square().sum().backward()
        optimizer.step()
    drained = optimizer.ledger.drain()
    found = role_metrics(drained)
    for role in ("ffn", "attention_output", "transmission", "norm"):
        total = drained.total(role=role)
        assert found[f"forces/{role}/decay"] == pytest.approx(total.decay.item() / 3, rel=1e-12)
        assert found[f"forces/{role}/alignment_share"] == pytest.approx(
            total.shares().alignment.item(), rel=1e-12
        )
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    assert found["forces/all/rms"] == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-12)


def test_what_is_not_known_or_not_finite_has_no_key():
    nan = column([math.nan, 4, 4, -2])
    found = role_metrics(by_hand(), k=nan)
    assert found["forces/ffn/k"] == 4.0  # of the role, known in one of its rows
    for first in (math.nan, -math.inf):
        found = role_metrics(budget(1, alignment=column([first, math.inf, 1])))
        assert not [name for name in found if name.startswith(("forces/ffn/align", "forces/all/align"))]
        assert found["forces/head/alignment"] == 1.0
        assert found["forces/non_finite_tensors"] == 2.0
    assert all(math.isfinite(value) for value in found.values())
    plain = role_metrics(wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1))
    assert {name.split("/")[1] for name in plain if name.count("/") == 2} == {"all"}
    assert "forces/step" not in plain
    assert "forces/all/rms" not in plain


def test_weights_that_are_not_finite_are_counted():
    weight = torch.nn.Parameter(torch.tensor([1.0, math.nan, math.inf, 2.0]))
    optimizer = torch.optim.AdamW([("lm_head.weight", weight)], lr=0.1)
    weight.grad = torch.ones(4)
    optimizer.step()
    assert role_metrics(wk.forces(optimizer))["forces/non_finite"] == 2.0


def test_at_rest_there_are_no_shares():
    zero = column([0.0, 0, 0])
    still = budget(1, 0, alignment=zero, injection=zero, decay=zero, coupling=zero)
    found = role_metrics(still)
    assert found["forces/all/alignment"] == 0.0
    assert not [name for name in found if name.endswith("_share")]


def delivered(thing, *steps):
    sink = as_sink(thing)
    for step in steps:
        sink.write(step, by_hand(), lr=column([0.1] * 4), weight_decay=column([0.1] * 4))
    return sink


def test_a_function():
    seen = []
    sink = delivered(lambda metrics, step: seen.append((step, metrics)), 8, 16)
    assert [step for step, _ in seen] == [8, 16]
    assert seen[0][1] == role_metrics(by_hand())
    assert seen[1][1]["forces/step"] == 16.0
    assert repr(sink) == "LiveSink(<lambda>)"
    sink.close()


def test_tensorboard_reads_back_what_was_written(tmp_path):
    writer = SummaryWriter(tmp_path)
    sink = delivered(writer, 10, 20)
    sink.close()
    writer.flush()  # the writer is its owner's
    events = EventAccumulator(str(tmp_path)).Reload()
    expected = role_metrics(by_hand())
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, value in expected.items():
        values = events.Scalars(name)
        assert [event.step for event in values] == [10, 20]
        if name != "forces/step":
            assert [event.value for event in values] == [pytest.approx(value, rel=1e-6)] * 2
    writer.add_scalar("loss", 1.0, 30)
    writer.close()


def test_a_lightning_logger(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    delivered(logger, 10, 20)
    logger.save()
    (file,) = tmp_path.rglob("metrics.csv")
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    steps = [row[header.index("step")] for row in rows]
    values = [float(row[header.index("forces/ffn/alignment")]) for row in rows]
    assert (steps, values) == (["10", "20"], [3.0, 3.0])


class Wandb:
    """Rows by step as a wandb run keeps them: what comes with a step below the current one is dropped."""

    def __init__(self):
        self.step, self.row, self.rows, self.dropped = 0, {}, [], []

    def log(self, data, step=None, commit=None):
        if step is not None and step < self.step:
            self.dropped.append((step, data))
            return
        if step is not None and step > self.step:
            self.flush(step)
        self.row.update(data)
        if commit or (commit is None and step is None):
            self.flush(self.step + 1)

    def flush(self, step):
        if self.row:
            self.rows.append(self.row)
        self.row, self.step = {}, step


Wandb.__module__ = "wandb.sdk.wandb_run"


@pytest.mark.parametrize("loop", ["with its step", "with steps of its own", "without"])
@pytest.mark.parametrize("as_module", [False, True])
def test_wandb_drops_nothing(loop, as_module):
    run = Wandb()
    module = types.ModuleType("wandb")
    module.run, module.log = run, run.log
    sink = as_sink(module if as_module else run)
    for step in range(1, 41):
        for micro in range(4):
            at = {"with its step": step, "with steps of its own": 4 * step + micro, "without": None}[loop]
            run.log({"loss": 1.0}, step=at)
        if step % 10 == 0:
            sink.write(step, by_hand())
    run.flush(1000)
    ours = [row for row in run.rows if "forces/step" in row]
    assert [row["forces/step"] for row in ours] == [10, 20, 30, 40]
    assert run.dropped == []
    assert repr(sink) == ("LiveSink(wandb)" if as_module else "LiveSink(Wandb)")


def test_other_steps_are_left_alone():
    """`step` of accelerate's Accelerator counts something else."""

    class Accelerator:
        step = 1000

        def log(self, values, step=None, log_kwargs=None):
            self.got = step

    thing = Accelerator()
    delivered(thing, 8)
    assert thing.got == 8


class Own:
    def __init__(self):
        self.steps = []

    def write(self, step, budget, **scalars):
        self.steps.append((step, budget.names, sorted(scalars)))

    def close(self):
        pass


def test_sinks_pass_through(tmp_path):
    own = Own()
    assert delivered(own, 8) is own
    assert own.steps == [(8, TWO, ["lr", "weight_decay"])]
    for sink in (JsonLinesSink(tmp_path / "run"), ConsoleSink(), LiveSink(print, "print")):
        assert as_sink(sink) is sink


class Shapes:
    """What has the right method with the wrong arguments."""

    class Keyed:
        def log(self, name, value):
            pass

    class Message:
        def log(self, level, message, *args, **kwargs):
            pass

    class Metrics:
        def log_metrics(self, metrics):
            pass

    class Bytes:
        def write(self, data):
            pass

        def close(self):
            pass


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("run.parquet", r"a path is no sink: give wk.ParquetSink\('run.parquet'\)"),
        (logging.getLogger("x"), "takes messages, not numbers; give a function such as"),
        (logging.LoggerAdapter(logging.getLogger("x"), {}), "takes messages, not numbers"),
        (logging, "takes messages, not numbers"),
        (wk.ParquetSink, "ParquetSink is a class; a sink is one of its objects"),
        (Own, "Own is a class"),
        (io.StringIO(), r"an open file is no sink: give wk.JsonLinesSink\('run.jsonl'\)"),
        (Shapes.Keyed(), r"does not take log\(dict, step=\)"),
        (Shapes.Message(), r"does not take log\(dict, step=\)"),
        (Shapes.Metrics(), r"does not take log_metrics\(dict, step=\)"),
        (Shapes.Bytes(), r"does not take write\(step, budget, \*\*scalars\)"),
        (lambda metrics: None, r"does not take f\(dict, step\) \(too many positional arguments\)"),
        (7, "7 cannot take records; a sink is a sink of weibull_kernels"),
        (None, "None cannot take records"),
        ({}, r"\{\} cannot take records"),
    ],
)
def test_what_is_no_sink_is_refused(thing, message):
    with pytest.raises(TypeError, match=message):
        as_sink(thing)


def test_open_files_and_paths_are_refused(tmp_path):
    with pytest.raises(TypeError, match="a path is no sink"):
        as_sink(tmp_path / "run.parquet")
    with (
        (tmp_path / "log.txt").open("w") as file,
        pytest.raises(TypeError, match=r"JsonLinesSink\('.*log.txt'\)"),
    ):
        as_sink(file)
    with tempfile.NamedTemporaryFile() as file, pytest.raises(TypeError, match="an open file is no sink"):
        as_sink(file)


def printed(made, step=1200, width=80, **options):
    text = io.StringIO()
    sink = ConsoleSink(Console(file=text, width=width, **options))
    sink.write(step, made, lr=0.1)
    sink.close()
    return text.getvalue()


def test_the_console_line():
    # Transmission: alignment 16, injection 8, decay −8 of 32; net 17; σ² = (150 + 17)/25.
    line = "step 1200  alignment +50.0 injection +25.0 decay -25.0 net +53.1 %  σ 2.585\n"
    assert printed(by_hand()) == line
    assert len(line) <= 80
    assert printed(by_hand(), color_system="truecolor", force_terminal=True) == line
    assert printed(by_hand(), width=20) == line  # one line, whatever the width
    head = budget(1, names=("[bold]", "b"), alignment=column([1.0, 0]), injection=column([0.0, 0]))
    assert printed(head).startswith("step 1200  alignment ")


def test_the_console_line_of_what_is_unusual():
    broken = budget(1, alignment=column([math.nan, 1, 1]))
    assert printed(broken).endswith("alignment – injection – decay – net – %  σ –  not finite: 1 forces\n")
    zero = column([0.0, 0, 0])
    still = budget(1, 0, alignment=zero, injection=zero, decay=zero, coupling=zero)
    assert "alignment – injection – decay – net – %" in printed(still)
    plain = wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    assert printed(plain, step=1).startswith("step 1  alignment +52.6")


def test_the_console_stands_above_a_progress_bar():
    text = io.StringIO()
    with Progress(console=Console(file=text, width=80, force_terminal=True)) as progress:
        task = progress.add_task("training", total=2)
        sink = as_sink(progress.console)
        assert isinstance(sink, ConsoleSink)
        for step in (1, 2):
            sink.write(step, by_hand())
            progress.advance(task)
    lines = [line for line in text.getvalue().splitlines() if "alignment" in line]
    assert [line[line.index("step") :] for line in lines] == [
        printed(by_hand(), step)[:-1] for step in (1, 2)
    ]


def test_the_console_of_rich_is_the_one_where_none_is_given(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=text, width=80))
    ConsoleSink().write(1200, by_hand())
    assert text.getvalue() == printed(by_hand())


def test_metrics_are_json():
    assert json.loads(json.dumps(role_metrics(by_hand()), allow_nan=False)) == role_metrics(by_hand())
