"""`weibull-kernels recover`: the forces of a run from its checkpoints, as a table, records and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import FAILED, first_few, one_line_if_it_fails, progress_of_bytes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..gram import CheckpointGram
    from ..series import Recovery


class Method(str, Enum):
    """The methods of `wk.recover`."""

    corrected = "corrected"
    spline = "spline"
    midpoint = "midpoint"
    two_point = "two_point"


class Variable(str, Enum):
    """What is interpolated along."""

    lr_sum = "lr_sum"
    step = "step"
    log_step = "log_step"


class EndCondition(str, Enum):
    """Of the splines."""

    not_a_knot = "not-a-knot"
    natural = "natural"
    clamped = "clamped"


def recover(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|CHECKPOINT...",
            help="a folder of step* folders or files, or the checkpoints themselves",
            show_default=False,
        ),
    ],
    lr: Annotated[
        str,
        typer.Option(
            help="η: a number, a .csv or .parquet with columns step and lr, or a description such as "
            "cosine:peak=1e-3,warmup=200,total=20000,floor=0.1",
            show_default=False,
        ),
    ],
    weight_decay: Annotated[
        list[str],
        typer.Option(
            metavar="ω|PATTERN=ω",
            help="decoupled; repeat it for tensors whose name or role matches a pattern, as norm=0",
            show_default=False,
        ),
    ],
    betas: Annotated[str, typer.Option(metavar="β₁,β₂", help="of AdamW")] = "0.9,0.999",
    method: Annotated[Method, typer.Option(help="corrected subtracts the injection")] = Method.corrected,
    bc_type: Annotated[EndCondition, typer.Option(help="end condition of splines")] = EndCondition.not_a_knot,
    variable: Annotated[
        Variable | None, typer.Option(help="interpolate along Ση, the step or its logarithm")
    ] = None,
    injection: Annotated[str, typer.Option(help="estimate, noise_limit, or û_rms as a number")] = "estimate",
    out: Annotated[Path, typer.Option(help="folder of the records and the picture")] = Path("recovered"),
    every: Annotated[
        int | None, typer.Option(min=1, help="write the forces at every N-th single step too")
    ] = None,
    gram: Annotated[
        Path | None,
        typer.Option(help="keep the Gram matrices in this file; where it is, only new checkpoints are read"),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="old checkpoints that --gram reads again for new")] = 8,
) -> None:
    """Recover the forces of a run from checkpoints alone: shares by role and phase, Parquet, a picture.

    Needs the learning rate of every step and the weight decay, and no optimizer state. Under torchrun the
    processes divide the tensors among them.
    """
    source = _checked(paths)
    options: dict[str, Any] = {
        "lr": lr,
        "weight_decay": _weight_decay(weight_decay),
        "betas": _betas(betas),
        "method": method.value,
        "bc_type": bc_type.value,
        "variable": variable and variable.value,
        "injection": _injection(injection),
    }
    with _process_group() as group, one_line_if_it_fails(", ".join(map(str, paths))) as outcome:
        recovery = _recovered(source, options, gram, window, group)
        if group is None or group.rank() == 0:
            _write(recovery, out, every, run=options | {"checkpoints": list(map(str, paths))})
    if outcome.failed:
        raise typer.Exit(FAILED)


def _checked(paths: list[Path]) -> Path | list[Path]:
    """The folder of checkpoints, or the checkpoints."""
    from ..trajectory import step_of

    if len(paths) == 1 and step_of(paths[0]) is None:
        return paths[0]
    return sorted(paths, key=lambda path: step_of(path) or 0)


def _weight_decay(given: list[str]) -> dict[str, float]:
    """Patterns before the number for the rest, whatever their order."""
    named: dict[str, float] = {}
    rest: dict[str, float] = {}
    for one in given:
        pattern, equals, number = one.rpartition("=")
        try:
            (named if equals else rest)[pattern or "*"] = float(number)
        except ValueError:
            raise typer.BadParameter(
                f"expected a number or PATTERN=number, got {one!r}", param_hint="--weight-decay"
            ) from None
    return named | rest


def _betas(given: str) -> tuple[float, float]:
    try:
        beta1, beta2 = map(float, given.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected two numbers such as 0.9,0.999, got {given!r}", param_hint="--betas"
        ) from None
    return beta1, beta2


def _injection(given: str) -> str | float:
    try:
        return float(given)
    except ValueError:
        return given


@contextmanager
def _process_group() -> Iterator[ProcessGroup | None]:
    """That of torchrun, or None where there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _recovered(
    source: Path | list[Path],
    options: dict[str, Any],
    file: Path | None,
    window: int,
    group: ProcessGroup | None,
) -> Recovery:
    from ..gram import gram_of
    from ..recovery import recover as recovered
    from ..trajectory import open_trajectory

    if file is None or not file.exists():
        trajectory = open_trajectory(source)
        mine = trajectory.nbytes // (1 if group is None else group.size())
        with progress_of_bytes(mine) as advance:
            if file is None:
                return recovered(
                    list(trajectory.checkpoints),
                    trajectory.steps,
                    process_group=group,
                    on_read=advance,
                    **options,
                )
            gram = gram_of(trajectory, process_group=group, on_read=advance)
    else:
        gram = _extended(file, source, window)
    if group is None or group.rank() == 0:
        gram.save(file)
    return recovered(gram, **options)


def _extended(file: Path, source: Path | list[Path], window: int) -> CheckpointGram:
    """What the file has, and the checkpoints that came since."""
    from ..gram import CheckpointGram
    from ..trajectory import find_checkpoints, step_of

    gram = CheckpointGram.load(file)
    found = find_checkpoints(source) if isinstance(source, Path) else {step_of(p) or 0: p for p in source}
    new = [step for step in found if step > gram.steps[-1]]
    if not new:
        return gram
    again = [step for step in gram.steps if step in found][-window:]
    return gram.extended([found[step] for step in new], new, reread={step: found[step] for step in again})


def _write(recovery: Recovery, out: Path, every: int | None, run: dict[str, Any]) -> None:
    from ..records import read_records
    from ..report import phase_table, shown

    out.mkdir(parents=True, exist_ok=True)
    records_path = out / "forces.parquet"
    recovery.impulses.write(records_path, run)
    records = read_records(records_path)
    typer.echo(f"{recovery}\n\n{phase_table(records)}\n")
    if recovery.left_out:
        typer.echo(f"left out {first_few([f'{name} ({why})' for name, why in recovery.left_out.items()])}")
    written = [records_path]
    if every is not None:
        written.append(out / "steps.parquet")
        _write_steps(recovery, written[-1], every)
    try:
        from ..pictures import draw_forces
    except ImportError as error:
        typer.echo(f"no picture: {error}; pip install 'weibull-kernels[pictures]'", err=True)
    else:
        written.append(out / "forces.png")
        draw_forces(records, written[-1])
    typer.echo(f"written: {', '.join(shown(str(path)) for path in written)}")


def _write_steps(recovery: Recovery, path: Path, every: int) -> None:
    import pyarrow.parquet as pq

    pq.write_table(
        recovery.to_arrow(steps=[step for step in recovery.step.tolist() if step % every == 0]), path
    )
