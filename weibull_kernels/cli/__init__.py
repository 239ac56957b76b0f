"""The command `weibull-kernels`: what the weights and the checkpoints of a run say."""

from __future__ import annotations

from typing import Annotated

import typer

from . import doctor, fit, recover, report, scale, spectrum

app = typer.Typer(
    name="weibull-kernels",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Weibull fits of the weights in checkpoints, the forces between them, and rules across widths.",
)


def main() -> None:
    """The entry point."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"weibull-kernels {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


# In the order of --help. The modules are named, so that they are not hidden by their functions.
app.command()(fit.fit)
app.command()(recover.recover)
app.command()(report.report)
app.command()(scale.scale)
app.command()(spectrum.spectrum)
app.command()(doctor.doctor)
