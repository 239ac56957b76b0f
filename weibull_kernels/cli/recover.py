"""`weibull-kernels recover`: the forces of a run from its checkpoints, as a table, records and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .files import check_files
from .terminal import FAILED, first_few, one_line_if_it_fails, progress_of_bytes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..gram import CheckpointGram
    from ..series import Recovery


def recover(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|CHECKPOINT...",
            help="a folder of step*, checkpoint-* or iter_*, folders or files; or the checkpoints",
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
    method: Annotated[str, typer.Option(help="corrected, spline, midpoint or two_point")] = "corrected",
    bc_type: Annotated[
        str, typer.Option(help="end condition of splines: not-a-knot, natural or clamped")
    ] = "not-a-knot",
    variable: Annotated[
        str | None,
        typer.Option(
            help="interpolate along lr_sum, step or log_step", show_default="as the method needs it"
        ),
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

    Needs the learning rate of every step and the weight decay; an optimizer state is used where one was
    saved, and not needed. Under torchrun the processes divide the tensors among them.

    Rates are described as constant:lr=,warmup= · linear:, cosine: or wsd:peak=,total=,warmup=,floor=
    (and decay= for wsd) · inverse_sqrt:peak=,warmup=; floor is a part of the peak.
    """
    check_files({"gram": None if gram is None else str(gram)}, text=())
    options: dict[str, Any] = {
        "lr": lr,
        "weight_decay": _weight_decay(weight_decay),
        "betas": _betas(betas),
        "method": method,
        "bc_type": bc_type,
        "variable": variable,
        "injection": _injection(injection),
    }
    with one_line_if_it_fails(", ".join(map(str, paths))) as outcome, _process_group() as group:
        found = _found(paths)
        recovery = _recovered(found, options, every, gram, window, group)
        if group is None or group.rank() == 0:
            _write(recovery, out, every, run=options | {"checkpoints": list(map(str, paths))})
    if outcome.failed:
        raise typer.Exit(FAILED)


def _found(paths: list[Path]) -> dict[int, Path]:
    """The checkpoints of a folder, or those that are named, by step."""
    from ..trajectory import find_checkpoints, step_of, steps_of

    if len(paths) == 1:
        return find_checkpoints(paths[0])
    paths = sorted(paths, key=lambda path: step_of(path) or 0)
    return dict(zip(steps_of(paths), paths, strict=True))


def _weight_decay(given: list[str]) -> dict[str, float]:
    """Patterns before the number for the rest, whatever their order."""
    named: dict[str, float] = {}
    rest: dict[str, float] = {}
    for one in given:
        pattern, equals, number = one.rpartition("=")
        try:
            (named if equals and pattern != "*" else rest)[pattern or "*"] = float(number)
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
    """That of torchrun, or None where it did not start this process."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield None
        return
    dist.init_process_group("gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _recovered(
    found: dict[int, Path],
    options: dict[str, Any],
    every: int | None,
    file: Path | None,
    window: int,
    group: ProcessGroup | None,
) -> Recovery:
    """From the checkpoints, or from the file and those that it lacks, which is then written anew."""
    from ..gram import CheckpointGram
    from ..gram_pass import gram_of
    from ..rates_by_name import rates_by_name
    from ..recovery import checked
    from ..recovery import recover as recovered
    from ..trajectory import open_trajectory

    kept = CheckpointGram.load(file) if file is not None and file.exists() else None
    steps = sorted({*found, *(kept.steps if kept else ())})
    options = options | {
        "at": [] if every is None else [t for t in range(steps[0] + 1, steps[-1] + 1) if t % every == 0]
    }
    if kept is not None:
        gram = _extended(kept, found, window, group)
    else:
        trajectory = open_trajectory(list(found.values()), list(found))
        mine = trajectory.nbytes // (1 if group is None else group.size())
        with progress_of_bytes(mine) as advance:
            if file is None:
                return recovered(
                    trajectory.checkpoints, trajectory.steps, process_group=group, on_read=advance, **options
                )
            # Wrong options are said before minutes of reading, as without a file.
            limits = {name: value for name, value in options.items() if name not in ("lr", "weight_decay")}
            grid, _, _ = checked(trajectory.steps, **limits)
            rates_by_name(tuple(trajectory.tensors), options["lr"], options["weight_decay"], None, grid.steps)
            gram = gram_of(trajectory, process_group=group, on_read=advance)
    if gram is not kept and (group is None or group.rank() == 0):
        assert file is not None
        gram.save(file)
    return recovered(gram, **options)


def _extended(
    gram: CheckpointGram, found: dict[int, Path], window: int, group: ProcessGroup | None
) -> CheckpointGram:
    """With the checkpoints that came since; the old ones that are still there must be the same."""
    from ..gram_pass import extend_gram, require_unchanged

    last = gram.steps[-1]
    if strange := [step for step in found if step < last and step not in gram.steps]:
        raise ValueError(
            f"there is a checkpoint of step {strange[0]} that the kept Gram matrices lack, and they go on to "
            f"step {last}; delete their file, and all are read"
        )
    again = {step: found[step] for step in [step for step in gram.steps if step in found][-window:]}
    new = [step for step in found if step > last]
    if new:
        return extend_gram(gram, [found[step] for step in new], new, reread=again, process_group=group)
    if again:
        newest = max(again)
        require_unchanged(gram, {newest: again[newest]})
    return gram


def _write(recovery: Recovery, out: Path, every: int | None, run: dict[str, Any]) -> None:
    from ..records import read_records
    from ..report import phase_table
    from ..tables import shown

    out.mkdir(parents=True, exist_ok=True)
    records_path = out / "forces.parquet"
    recovery.impulses.write(records_path, run)
    records = read_records(records_path)
    typer.echo(f"{recovery}\n\n{phase_table(records)}\n")
    if recovery.left_out:
        typer.echo(f"left out {first_few([f'{name} ({why})' for name, why in recovery.left_out.items()])}")
    written = [records_path]
    if every is not None:
        import pyarrow.parquet as pq

        written.append(out / "steps.parquet")
        pq.write_table(recovery.to_arrow(), written[-1])
    try:
        from ..pictures import draw_forces
    except ImportError as error:
        typer.echo(f"no picture: {error}; pip install 'weibull-kernels[pictures]'", err=True)
    else:
        written.append(out / "forces.png")
        draw_forces(records, written[-1], called="Recovered forces")
    typer.echo(f"written: {', '.join(shown(str(path)) for path in written)}")
