"""`weibull-kernels spectrum`: the singular values of two checkpoints side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .files import WRITERS, check_files
from .terminal import FAILED, first_few, one_line_if_it_fails, progress_of_bytes

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
    picture: Annotated[Path | None, typer.Option(help="draw it into this .png")] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="write the rows; - is stdout, without the table"),
    ] = None,
) -> None:
    """Compare the singular values of a proxy and of a target, role by role.

    Reads every matrix of attention and FFN whole and works out its full spectrum. Exits with 0 whatever
    the verdict, with 2 where the two cannot be read or compared.
    """
    files = {"json": json_file, "picture": None if picture is None else str(picture)}
    check_files(files, text=("json",))
    with one_line_if_it_fails(f"{proxy}, {target}") as outcome:
        from ..checkpoints import open_checkpoint
        from ..scaling import check_transfer

        opened = [open_checkpoint(path) for path in (proxy, target)]
        with progress_of_bytes(sum(checkpoint.nbytes for checkpoint in opened)) as advance:
            spectra = [_spectra(checkpoint, advance) for checkpoint in opened]
        check = check_transfer(
            *spectra,
            tolerance=tolerance,
            shape_tolerance=shape_tolerance,
            expected=expected,
            proxy_age=proxy_age,
            target_age=target_age,
        )
        if json_file != "-":
            typer.echo(str(check))
            if check.left_out:
                typer.echo(
                    f"left out {first_few([f'{name} ({why})' for name, why in check.left_out.items()])}"
                )
        if json_file is not None:
            import pyarrow as pa

            WRITERS["json"](pa.table(check.to_dict()), json_file)
        if picture is not None:
            from ..scaling.picture import draw_transfer

            draw_transfer(check, picture, called=f"{target.name} / {proxy.name}")
    if outcome.failed:
        raise typer.Exit(FAILED)


def _spectra(checkpoint: Checkpoint, on_read: Callable[[int], None]) -> Spectra:
    """Of the matrices of attention and FFN, one in memory at a time."""
    from ..roles import role_of
    from ..scaling.classes import MATRIX_ROLES
    from ..spectra import Spectra, spectrum

    found = []
    for name, tensor in checkpoint.tensors.items():
        if role_of(name) in MATRIX_ROLES and len(tensor.shape) > 1:
            found.append(spectrum({name: tensor.load()}))
        on_read(tensor.nbytes)
    if not found:
        raise ValueError(
            f"{checkpoint.path} has no matrix of attention or FFN among its {len(checkpoint.tensors)} tensors"
        )
    return Spectra(
        names=tuple(name for one in found for name in one.names),
        values=tuple(values for one in found for values in one.values),
    )
