"""`weibull-kernels scale`: what a width rule makes of the parameters of a model, as a table."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .files import WRITERS, CsvFile, JsonFile, check_files
from .terminal import FAILED, named_patterns, one_line_if_it_fails

if TYPE_CHECKING:
    from ..scaling import ScalingTable


class Rule(str, Enum):
    """The names in `scaling.RULES`."""

    published = "published"
    constant = "constant"
    proportional = "proportional"


class Decay(str, Enum):
    """What a weight decay means."""

    coupled = "coupled"
    independent = "independent"


class Head(str, Enum):
    """The law of the head."""

    vector = "vector"
    matrix = "matrix"


class By(str, Enum):
    """What has a row."""

    kind = "kind"
    tensor = "tensor"


def scale(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_OR_SHAPES",
            help="a checkpoint, of which names and shapes alone are read; or a .json of shapes by name. Of "
            "any width: the ratio of --to and --from is what counts",
            show_default=False,
        ),
    ],
    base_width: Annotated[
        float, typer.Option("--from", metavar="WIDTH", help="of the proxy", show_default=False)
    ],
    width: Annotated[float, typer.Option("--to", metavar="WIDTH", help="of the target", show_default=False)],
    lr: Annotated[float, typer.Option(metavar="η", help="of the proxy", show_default=False)],
    weight_decay: Annotated[float, typer.Option(metavar="ω", help="of the proxy", show_default=False)],
    rule: Annotated[Rule, typer.Option(help="weight decay ∝ √width, constant, or ∝ width")] = Rule.published,
    decay: Annotated[
        Decay, typer.Option(help="PyTorch's, times lr in a step; or the part of w taken off in a step")
    ] = Decay.coupled,
    head: Annotated[
        Head, typer.Option(help="vector: constant lr, logits times 1/m; matrix: as a matrix")
    ] = Head.vector,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="PATTERN=CLASS",
            help="what a parameter is: matrix, vector, embedding or head; may be repeated",
        ),
    ] = None,
    width_exponent: Annotated[float, typer.Option(help="e of σ_top ∝ √(η/ω)·width^e")] = 0.75,
    by: Annotated[By, typer.Option(help="layers together, or a row for each tensor")] = By.kind,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
) -> None:
    """Carry lr and weight decay from a narrow model to a wide one, parameter by parameter.

    Matrices get lr ∝ 1/width and weight decay ∝ √width (or a rival rule), the rest a constant lr and no
    decay. Exits with 2 where the model cannot be read or a parameter cannot be classified.
    """
    files = {"json": json_file, "csv": csv_file}
    check_files(files, text=("json", "csv"))
    classes = named_patterns(overrides, "--class")
    with one_line_if_it_fails(str(model)) as outcome:
        from ..scaling import describe

        with _in_options(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            table = describe(
                _shapes(model),
                width=width,
                base_width=base_width,
                lr=lr,
                weight_decay=weight_decay,
                rule=rule.value,
                decay=decay.value,
                head=head.value,
                overrides=classes,
                width_exponent=width_exponent,
            )
        table = table.by_kind() if by is By.kind else table
        if "-" not in files.values():
            _print(table, width / base_width, head)
        for warning in said:
            typer.echo(_as_options(str(warning.message)), err=True)
        for kind, file in files.items():
            if file is not None:
                import pyarrow as pa

                WRITERS[kind](pa.table(table.to_dict()), file)
    if outcome.failed:
        raise typer.Exit(FAILED)


@contextmanager
def _in_options() -> Iterator[None]:
    """Errors that speak of arguments speak of the options that they came from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_as_options(str(error))) from None


_OPTIONS = {"overrides": "--class", "base_width": "--from", "weight_decay": "--weight-decay"}


def _as_options(said: str) -> str:
    said = re.sub(r"overrides, as in \{'([^']*)': '(\w+)'\}", r"--class, as in --class '\1=\2'", said)
    return re.sub("|".join(_OPTIONS), lambda found: _OPTIONS[found[0]], said)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """By name, of a checkpoint or of a file that says them."""
    from ..checkpoints import open_checkpoint

    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        return {name: _shape(name, shape) for name, shape in _read_json(path).items()}
    return {name: tensor.shape for name, tensor in open_checkpoint(path).tensors.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f'expected {{"name": [shape], ...}}, got a {type(found).__name__}')
    return found


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"the shape of '{name}' must be a list of positive sizes, got {shape!r}")
    return tuple(shape)


def _print(table: ScalingTable, m: float, head: Head) -> None:
    from ..scaling import output_scale

    typer.echo(f"{table}\n\nm = {m:g}; σ_top ratio: predicted, in equilibrium, target over proxy")
    if head is Head.vector and {"head", "embedding"} & set(table.classes):
        typer.echo(
            f"multiply the logits by {output_scale(m):g} (1/m): the head, or the embedding it is tied to, "
            "keeps its lr"
        )
