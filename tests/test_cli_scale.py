import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from weibull_kernels import scaling
from weibull_kernels.cli import app

SHAPES = {
    "model.embed_tokens.weight": [1000, 256],
    "model.layers.0.mlp.up_proj.weight": [1024, 256],
    "model.layers.1.mlp.up_proj.weight": [1024, 256],
    "model.norm.weight": [256],
    "lm_head.weight": [1000, 256],
}
RATES = ("--from", "256", "--to", "4096", "--lr", "0.01", "--weight-decay", "0.1")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["scale", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(SHAPES))
    return path


def rows(path, *options):
    return {row["name"]: row for row in json.loads(run(path, *RATES, "--json", "-", *options).stdout)}


def test_the_table(shapes):
    lines = run(shapes, *RATES).stdout.splitlines()
    (up,) = (line.split() for line in lines if "up_proj" in line)
    assert up == [
        "model.layers.*.mlp.up_proj.weight",
        "matrix",
        "1024×256",
        "2",
        "0.000625",
        "0.4",
        "1.000",
        "12,000",
    ]
    assert lines[-2].startswith("m = 16;")
    assert lines[-1].startswith("multiply the logits by 0.0625 (1/m): the head,")
    assert "multiply" not in run(shapes, *RATES, "--head", "matrix").stdout


def test_rows_are_those_of_describe(shapes):
    table = scaling.describe(
        {name: tuple(shape) for name, shape in SHAPES.items()},
        width=4096,
        base_width=256,
        lr=0.01,
        weight_decay=0.1,
        rule="constant",
        head="matrix",
    )
    found = rows(shapes, "--by", "tensor", "--rule", "constant", "--head", "matrix")
    assert list(found) == list(table.names)
    for row, name in enumerate(table.names):
        assert found[name]["lr"] == table.lr[row]
        assert found[name]["weight_decay"] == table.weight_decay[row]
    assert found["model.layers.0.mlp.up_proj.weight"]["sigma_ratio"] == pytest.approx(2)
    assert found["lm_head.weight"]["sigma_ratio"] is None  # the vocabulary does not grow
    assert found["model.norm.weight"]["steps_to_equilibrium"] is None  # never: JSON has no infinity


def test_a_checkpoint_is_as_good_as_its_shapes(shapes, tmp_path):
    save_file({name: torch.zeros(shape) for name, shape in SHAPES.items()}, tmp_path / "model.safetensors")
    assert rows(tmp_path / "model.safetensors", "--by", "tensor") == rows(shapes, "--by", "tensor")


def test_independent_decay_is_converted(shapes):
    found = rows(shapes, "--decay", "independent", "--weight-decay", "0.001")
    assert found["model.layers.*.mlp.up_proj.weight"]["weight_decay"] == pytest.approx(0.4)


def test_what_cannot_be_classified_is_named_and_can_be_said(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(SHAPES | {"block.router.weight": [8, 256]}))
    said = run(path, *RATES, code=2).stderr
    assert (
        "cannot tell the scaling class of block.router.weight [8, 256]; say what they are in --class, "
        "as in --class 'block.router.weight=vector'" in said
    )
    found = rows(path, "--class", "*.router.*=vector")
    assert found["block.router.weight"]["class"] == "vector"


def test_fused_parameters_are_named_on_stderr(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({"h.0.attn.c_attn.weight": [64, 192]}))
    assert "h.0.attn.c_attn.weight: several matrices in each" in run(path, *RATES).stderr
    assert run(path, *RATES, "--class", "*.c_attn.*=matrix").stderr == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "got a list"),
        ('{"a": [2, 0]}', "the shape of 'a' must be a list of positive sizes, got [2, 0]"),
        ("{}", "there are no parameters"),
    ],
)
def test_files_that_are_no_shapes(tmp_path, text, said):
    path = tmp_path / "shapes.json"
    path.write_text(text)
    assert said in run(path, *RATES, code=2).stderr


def test_bad_options(shapes):
    assert "expected PATTERN=CLASS" in run(shapes, *RATES, "--class", "matrix", code=2).stderr
    assert "--from must be a positive number" in run(shapes, *RATES, "--from", "0", code=2).stderr
