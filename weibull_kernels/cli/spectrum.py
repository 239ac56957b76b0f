"""`weibull-kernels spectrum`: the singular values of two checkpoints side by side."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .files import WRITERS, JsonFile, check_files
from .terminal import FAILED, first_few, named_patterns, one_line_if_it_fails, progress_of_bytes

if TYPE_CHECKING:
    from ..spectra import Spectra
    from ..stored_tensors import Checkpoint


def spectrum(
    proxy: Annotated[Path, typer.Argument(help="a checkpoint", show_default=False)],
    target: Annotated[
        Path, typer.Argument(help="one of the same names and another width", show_default=False)
    ],
    tolerance: Annotated[float, typer.Option(help="of the ratio of top singular values, relative")] = 0.15,
    shape_tolerance: Annotated[float, typer.Option(help="of the distance of shapes")] = 0.1,
    expected: Annotated[float, typer.Option(help="the ratio that the rule promises")] = 1.0,
    proxy_age: Annotated[
        float | None, typer.Option(help="Σηω of the proxy's run; 3 is equilibrium", show_default="unknown")
    ] = None,
    target_age: Annotated[
        float | None, typer.Option(help="Σηω of the target's run", show_default="unknown")
    ] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option(
            "--role", metavar="PATTERN=ROLE", help="what weights of names of your own are; may be repeated"
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="draw it into this .png")] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare the singular values of a proxy and of a target, role by role.

    Reads every matrix of attention and FFN whole and works out its full spectrum. Exits with 0 whatever
    the verdict, with 2 where the two cannot be read or compared.
    """
    files = {"json": json_file, "picture": None if picture is None else str(picture)}
    check_files(files, text=("json",))
    overrides = named_patterns(roles, "--role")
    with one_line_if_it_fails(f"{proxy}, {target}") as outcome:
        from ..checkpoints import open_checkpoint
        from ..scaling.transfer import check_transfer, matrix_like

        opened = [open_checkpoint(path) for path in (proxy, target)]
        matrices = [
            {name: tensor for name, tensor in checkpoint.tensors.items() if len(tensor.shape) > 1}
            for checkpoint in opened
        ]
        names, left_out = matrix_like(matrices[0], matrices[1], overrides)
        total = sum(tensors[name].nbytes for tensors in matrices for name in names)
        with progress_of_bytes(total) as advance:
            spectra = [_spectra(checkpoint, names, advance) for checkpoint in opened]
        check = check_transfer(
            *spectra,
            tolerance=tolerance,
            shape_tolerance=shape_tolerance,
            expected=expected,
            proxy_age=proxy_age,
            target_age=target_age,
            # Those of what is left out have done their part.
            role_overrides={p: role for p, role in overrides.items() if fnmatch.filter(names, p)},
        )
        check = dataclasses.replace(check, left_out=left_out)
        if json_file != "-":
            typer.echo(str(check))
            if left_out:
                typer.echo(f"left out {first_few([f'{name} ({why})' for name, why in left_out.items()])}")
        if json_file is not None:
            import pyarrow as pa

            WRITERS["json"](pa.table(check.to_dict()), json_file)
        if picture is not None:
            check.draw(picture, called=f"{target.name} / {proxy.name}")
    if outcome.failed:
        raise typer.Exit(FAILED)


def _spectra(checkpoint: Checkpoint, names: list[str], on_read: Callable[[int], None]) -> Spectra:
    """Of the tensors of these names, one in memory at a time."""
    from ..spectra import Spectra, spectrum

    found = []
    for name in names:
        tensor = checkpoint.tensors[name]
        try:
            found.append(spectrum({name: tensor.load()}))
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from None
        on_read(tensor.nbytes)
    return Spectra(
        names=tuple(name for one in found for name in one.names),
        values=tuple(values for one in found for values in one.values),
    )
