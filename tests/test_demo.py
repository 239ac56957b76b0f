import math

import measured
import neox
import numpy as np
import optimizers
import pytest
import settings
import text
import torch
import train_demo as demo
import training
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels import pictures
from weibull_kernels.records import force_series, read_records, run_metadata
from weibull_kernels.sinks import ParquetSink

TINY = {
    "steps": 6,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "context": 16,
    "batch": 2,
    "every": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def source():
    return text.library_source(100_000)


def command(out, **options):
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | options).items()]
    return CliRunner().invoke(demo.app, [*arguments, f"--out={out}"])


def test_the_demo_leaves_records_and_pictures(tmp_path):
    out = tmp_path / "runs" / "new"
    result = command(out)
    assert result.exit_code == 0, result.output
    records = read_records(out / "records.parquet")
    assert sorted(set(records["step"].to_pylist())) == [2, 4, 6]
    assert {"loss", "lr", "weight_decay", "tokens"} <= set(records.column_names)
    assert run_metadata(records)["run"]["width"] == 32
    for picture in ("forces.png", "sigma.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG\r\n")
    for said in ("sums over 2 steps", "transmission", "recording", "rounding", "closure"):
        assert said in result.output
    assert any(phase in result.output for phase in wk.PHASES)  # which, depends on the version's own source
    assert command(out).exit_code == 0  # a second time over the first


def test_the_budget_closes(source, tmp_path):
    with ParquetSink(tmp_path / "run.parquet") as sink:
        run = training.train(settings.Settings(**TINY | {"steps": 20}), source, sink)
    assert 0 < run.closure.of_bound <= 1
    assert 0 < run.closure.of_budget <= 1e-10
    records = read_records(tmp_path / "run.parquet").to_pandas()
    names = [name for name, _ in run.model.named_parameters()]
    assert set(records["name"]) == set(names)
    assert (records["weight_decay"] > 0).equals(~records["role"].isin(["norm", "bias"]))
    last = records[records["step"] == 20].set_index("name")["norm_sq_after"]
    for name, weight in run.model.named_parameters():
        assert last[name] == pytest.approx(weight.detach().double().square().sum().item(), rel=1e-12)


def recorded(source, path, **options):
    with ParquetSink(path) as sink:
        run = training.train(settings.Settings(**TINY | {"steps": 7} | options), source, sink)
    return run, read_records(path)


def test_the_records_are_exact_sums_over_the_run(source, tmp_path):
    """However far they lie apart, the last one after a shorter interval than the others."""
    torch.manual_seed(0)
    untrained = neox.GPTNeoXForCausalLM(text.VOCABULARY, TINY["width"], TINY["layers"], TINY["heads"])
    sums = {}
    for every in (1, 3, 7):
        run, records = recorded(source, tmp_path / f"{every}.parquet", every=every)
        frame = records.to_pandas().groupby("name")
        assert (frame["steps"].sum() == 7).all()
        sums[every] = frame[["alignment", "injection", "decay", "coupling", "rounding"]].sum()
        assert (sums[every]["rounding"] != 0).all()
        for (name, start), weight in zip(untrained.named_parameters(), run.model.parameters(), strict=True):
            before, after = (w.detach().double().square().sum().item() for w in (start, weight))
            assert sums[every].loc[name].sum() == pytest.approx(after - before, rel=0, abs=1e-12 * after)
            # The same training, cut into other intervals.
            once = sums[1].loc[name].to_numpy()
            assert sums[every].loc[name].to_numpy() == pytest.approx(once, rel=0, abs=1e-12 * after)
    step, series = force_series(read_records(tmp_path / "3.parquet"))
    assert step.tolist() == [3, 6, 7]
    assert series.steps.tolist() == [3, 3, 1]


def test_closure_by_hand():
    """A tensor over four steps, forces 2 − 1, rounding 1e-6, √Σw⁴ = 5; and one that made no step."""
    columns = {"injection": [0.0, 0.0], "decay": [-1.0, 0.0], "coupling": [0.0, 0.0], "norm_sq": [7.0, 0.0]}
    budget = wk.ForceBudget(
        torch.tensor([2.0, 0.0], dtype=torch.float64),
        **{name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()},
        rounding=torch.tensor([1e-6, 0.0], dtype=torch.float64),
        steps=torch.tensor([4, 0]),
    )
    weights = [torch.tensor([3.0, 4.0], dtype=torch.float64).sqrt(), torch.zeros(2)]
    closure = measured.Closure()
    closure.add(budget, torch.tensor([1 + 4e-6, 0.0], dtype=torch.float64), weights)
    assert closure.of_budget == pytest.approx(3e-6 / 3, rel=1e-6)
    assert closure.of_bound == pytest.approx(4e-6 / (3e-5 + 40 * 2**-24 * 2 * 5), rel=1e-6)
    worst = closure.of_bound
    closure.add(budget, torch.tensor([1 + 1e-6, 0.0], dtype=torch.float64), weights)
    assert closure.of_bound == worst  # a better interval does not hide a worse one
    closure.add(budget, torch.tensor([1 + 1e-6, 1e-9], dtype=torch.float64), weights)
    assert closure.of_bound == math.inf  # nothing booked, yet something moved
    closure.of_budget = 0.0
    closure.add(budget, torch.tensor([math.nan, 0.0], dtype=torch.float64), weights)
    assert closure.of_budget == math.inf


def test_pictures_show_one_step_whatever_the_interval():
    column = np.array([10.0, 4.0, 0.0])
    sums = wk.ForceBudget(
        2 * column, column, -column, 0.1 * column, column + 1, 0 * column, steps=np.array([5, 2, 0])
    )
    series = pictures.per_step(sums)
    assert series.alignment.tolist() == [4, 4, 0]
    assert series.injection.tolist() == [2, 2, 0]
    assert series.decay.tolist() == [-2, -2, 0]
    assert series.coupling == pytest.approx([0.2, 0.2, 0])
    assert series.norm_sq.tolist() == [11, 5, 1]


def test_sigma_is_that_after_a_record(source, tmp_path):
    run, records = recorded(source, tmp_path / "run.parquet", every=3)
    sigma = pictures.rms(force_series(records, "head")[1])
    weight = run.model.embed_out.weight.detach().double()
    assert sigma[-1] == pytest.approx(weight.square().mean().sqrt().item(), rel=1e-12)


def test_measuring_leaves_the_weights_the_same_bits(source):
    runs = [training.train(settings.Settings(**TINY, forces=forces), source) for forces in (True, False)]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert runs[1].last_budget is None
    assert runs[1].recording.seconds == 0
    with pytest.raises(AttributeError, match="keeps no ledger"):
        _ = optimizers.make_optimizer(runs[1].model, settings.Settings(forces=False)).ledger


def test_the_demo_without_forces_only_trains(tmp_path):
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    result = CliRunner().invoke(demo.app, [*arguments, "--no-forces", f"--out={tmp_path / 'none'}"])
    assert result.exit_code == 0, result.output
    assert "training" in result.output
    assert "recording" not in result.output
    assert not (tmp_path / "none").exists()


def test_an_interrupt_keeps_the_records_so_far(source, tmp_path):
    def interrupt(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    with ParquetSink(tmp_path / "run.parquet") as sink:
        run = training.train(settings.Settings(**TINY), source, sink, interrupt)
    assert run.interrupted
    assert run.step == 4
    assert sorted(set(read_records(tmp_path / "run.parquet")["step"].to_pylist())) == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"heads": 3}, "width must be an even number for each head; 32 over 3 heads is not"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"weight_decay": -1}, "weight_decay must be 0 or a positive number, got -1"),
        ({"lr": 0.5, "weight_decay": 2}, "lr·weight_decay must be under 1, got 1"),
        ({"warmup": 7}, r"warmup must be from 0 to steps (6), got 7"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
    ],
)
def test_wrong_options_get_one_line(tmp_path, options, message):
    result = command(tmp_path, **options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_the_names_are_those_of_hugging_face():
    model = neox.GPTNeoXForCausalLM(256, 32, 1, 2)
    names = {name for name, _ in model.named_parameters()}
    layer = "gpt_neox.layers.0."
    matrices = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    norms = ("input_layernorm", "post_attention_layernorm")
    assert names == {
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
        *(f"gpt_neox.final_layer_norm.{part}" for part in ("weight", "bias")),
        *(f"{layer}{module}.{part}" for module in (*matrices, *norms) for part in ("weight", "bias")),
    }
    assert "other" not in map(wk.role_of, names)


def test_the_model_does_not_see_the_future():
    torch.manual_seed(0)
    model = neox.GPTNeoXForCausalLM(256, 32, 2, 2)
    tokens = torch.randint(256, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] = 0
    assert torch.allclose(model(tokens)[:, :5], model(changed)[:, :5], atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    turned = [neox.rotate(vector.expand(1, 1, 6, 16), 8) for vector in (query, key)]
    assert torch.allclose(turned[0].norm(dim=-1), query.norm().expand(1, 1, 6))
    scores = (turned[0] @ turned[1].transpose(-1, -2))[0, 0]
    assert torch.allclose(scores[0, 2], scores[3, 5])
    assert not torch.allclose(scores[0, 2], scores[0, 3])


def test_the_text_is_the_same_every_time_and_windows_are_shifted_by_one(source):
    assert torch.equal(source, text.library_source(100_000))
    assert len(source) == 100_000
    inputs, following = text.random_windows(source, 3, 8, torch.Generator().manual_seed(0))
    assert inputs.shape == following.shape == (3, 8)
    assert torch.equal(inputs[:, 1:], following[:, :-1])
