import neox
import pytest
import text
import torch
import train_demo as demo
import training
from typer.testing import CliRunner

import weibull_kernels as wk
from weibull_kernels.records import ParquetSink, read_records, run_metadata

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
    for said in ("transmission", "wk.forces", "closure", "balance"):
        assert said in result.output
    assert command(out).exit_code == 0  # a second time over the first


def test_the_budget_closes(source, tmp_path):
    with ParquetSink(tmp_path / "run.parquet") as sink:
        run = training.train(training.Settings(**TINY | {"steps": 20}), source, sink)
    assert 0 < run.closure.of_bound <= 1
    records = read_records(tmp_path / "run.parquet").to_pandas()
    names = [name for name, _ in run.model.named_parameters()]
    assert set(records["name"]) == set(names)
    assert (records["weight_decay"] > 0).equals(~records["role"].isin(["norm", "bias"]))
    last = records[records["step"] == 20].set_index("name")["norm_sq_after"]
    for name, weight in run.model.named_parameters():
        assert last[name] == pytest.approx(weight.detach().double().square().sum().item(), rel=1e-12)


def test_measuring_leaves_the_weights_the_same_bits(source):
    runs = [training.train(training.Settings(**TINY, forces=forces), source) for forces in (True, False)]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert runs[1].last_budget is None


def test_the_demo_without_forces_only_trains(tmp_path):
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    result = CliRunner().invoke(demo.app, [*arguments, "--no-forces", f"--out={tmp_path / 'none'}"])
    assert result.exit_code == 0, result.output
    assert "wk.forces" not in result.output
    assert not (tmp_path / "none").exists()


def test_an_interrupt_keeps_the_records_so_far(source, tmp_path):
    def interrupt(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    with ParquetSink(tmp_path / "run.parquet") as sink:
        run = training.train(training.Settings(**TINY), source, sink, interrupt)
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
