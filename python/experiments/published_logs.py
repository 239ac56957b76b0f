"""Logs in the format published with [W2]: the sums of single steps, and λ at checkpoints.

`v1b_spline_true*.jsonl` has a line for every record: `step`, `eta` (η), `true_align_full` = +2η⟨w⁺,u⟩,
`inj_full` = η²‖u‖², `dec_full` = 2ηω‖w⁺‖² and `rms` (σ), all of the transmission weights after the step.
`lambda_trajectory*.json` beside it has, for every checkpoint, `step`, `k`, `lambda` and `sigma`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weibull_kernels as wk

SUMS, TRAJECTORY = "v1b_spline_true", "lambda_trajectory"
COLUMNS = ("step", "eta", "true_align_full", "inj_full", "dec_full", "rms")
FITTED = ("step", "k", "lambda", "sigma")
POSITIVE = ("step", "eta", "dec_full", "rms", "k", "lambda", "sigma")
CONSTANT = 1e-3
"""How far the number of entries, or σ in the two files, may differ, relative."""


@dataclass(frozen=True, eq=False)
class PublishedLog:
    """One log.

    Attributes:
        name: of its folder, or of the file that was given.
        step, lr, rms: of the records, [T]; σ after the step.
        numel: n, from dec_full = 2ηω·n·σ².
        forces: the exact budget of the step of each record, [T].
        published: Δ‖w‖² of that step as the published code adds its terms up, [T].
        checkpoints: `step`, `k`, `lambda` and `sigma`, [C] each; None where there is no trajectory.
    """

    name: str
    step: np.ndarray
    lr: np.ndarray
    rms: np.ndarray
    numel: float
    forces: wk.ForceBudget
    published: np.ndarray
    checkpoints: dict[str, np.ndarray] | None


def read_log(path: Path, weight_decay: float = 0.01) -> PublishedLog:
    """From a folder with one log, or the file of its records.

    Args:
        path: of either.
        weight_decay: ω of the run, which the log does not tell; the number of entries follows from it.

    Raises:
        ValueError: there is no such log, or more than one; a line is torn, a column missing or a value
            not finite; the steps do not ascend; ω does not fit what is logged, or the trajectory is
            that of another run.
    """
    if not 0 < weight_decay < np.inf:
        raise ValueError(
            f"weight_decay must be positive, got {weight_decay}: n follows from dec_full/(2ηω·σ²)"
        )
    file = records_file(path)
    rows = columns(_lines(file), COLUMNS, file)
    step, lr, rms = rows["step"], rows["eta"], rows["rms"]
    numel = entries(rows, weight_decay, file)
    forces = wk.ForceBudget.from_sums(
        rows["true_align_full"] / (2 * lr),
        rows["inj_full"] / lr**2,
        rms**2 * numel,
        lr=lr,
        weight_decay=weight_decay,
        at="after",
        numel=np.full(len(step), numel),
    )
    require_fit(step, forces, rms**2 * numel, weight_decay, file)
    return PublishedLog(
        name=path.resolve().name,
        step=step,
        lr=lr,
        rms=rms,
        numel=numel,
        forces=forces,
        published=-rows["true_align_full"] + rows["inj_full"] - rows["dec_full"],
        checkpoints=checkpoints(file, step, rms),
    )


def records_file(path: Path) -> Path:
    """The file of the records, of a path to it or to its folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"logs must be a folder with {SUMS}*.jsonl, or that file; there is no {path}")
    found = sorted(path.glob(f"{SUMS}*.jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(
            f"{path} must have one file {SUMS}*.jsonl, it has {names}; give the path of a file instead"
        )
    return found[0]


def trajectory_file(records: Path) -> Path | None:
    """The λ trajectory beside the records: that of the same ending, or the only one."""
    own = records.with_name(f"{TRAJECTORY}{records.stem.removeprefix(SUMS)}.json")
    if own.exists():
        return own
    found = sorted(records.parent.glob(f"{TRAJECTORY}*.json"))
    if len(found) > 1:
        raise ValueError(
            f"{records} must have one {TRAJECTORY}*.json beside it, or {own.name}; "
            f"there are {', '.join(file.name for file in found)}"
        )
    return found[0] if found else None


def checkpoints(records: Path, step: np.ndarray, rms: np.ndarray) -> dict[str, np.ndarray] | None:
    """k, λ and σ at the checkpoints, where they were logged."""
    file = trajectory_file(records)
    if file is None:
        return None
    try:
        rows = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} must be JSON, and is torn or something else: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file} must be a list of checkpoints, got {type(rows).__name__}")
    found = columns(list(enumerate(rows, 1)), FITTED, file)
    shared, here, there = np.intersect1d(step, found["step"], return_indices=True)
    if not len(shared):
        raise ValueError(f"{file} must have a checkpoint at the step of a record of {records.name}; none is")
    apart = abs(found["sigma"][there] / rms[here] - 1)
    if apart.max() > CONSTANT:
        worst = int(apart.argmax())
        raise ValueError(
            f"{file} must be of the run of {records.name}: at step {shared[worst]:.15g} its sigma is "
            f"{found['sigma'][there][worst]:.6g} and rms is {rms[here][worst]:.6g}; move it away, or put its "
            "own there"
        )
    return found


def entries(rows: dict[str, np.ndarray], weight_decay: float, file: Path) -> float:
    """How many weights there are: n = dec_full/(2ηω·σ²), the same in every record."""
    found = rows["dec_full"] / (2 * rows["eta"] * weight_decay * rows["rms"] ** 2)
    middle = float(np.median(found))
    wrong = abs(found / middle - 1) > CONSTANT
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{file}: dec_full/(2ηω·rms²) must be the number of weights in every record; it is {middle:.10g} "
            f"in most and {found[at]:.10g} at step {rows['step'][at]:.15g}: η or ω is not what the step was "
            "made with"
        )
    return float(round(middle))


def require_fit(
    step: np.ndarray, forces: wk.ForceBudget, norm_sq: np.ndarray, weight_decay: float, file: Path
) -> None:
    """The forces must move ‖w‖² = n·σ² about as it moved: n follows from ω, the forces do not."""
    if len(step) < 2:
        raise ValueError(f"{file} must have at least two records, it has {len(step)}")
    path = wk.integrate_forces(step, forces.predicted_change, norm_sq[0])
    by_forces, seen = np.diff(path), np.diff(norm_sq)
    slope = float((by_forces * seen).sum() / (seen**2).sum()) if seen.any() else 1.0
    if not 2 / 3 < slope < 3 / 2:
        raise ValueError(
            f"{file}: the forces move ‖w‖² {slope:.3g} times as far as n·rms² moved with weight_decay "
            f"{weight_decay:g}; if all of it was logged as published, it is {weight_decay / slope:.3g}"
            if slope > 0
            else f"{file}: the forces move ‖w‖² the other way than rms moved; is true_align_full +2η⟨w⁺,u⟩?"
        )


Rows = list[tuple[int, Any]]


def _lines(file: Path) -> Rows:
    """The rows of a file of JSON lines, each with the number of its line."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError:
                raise ValueError(
                    f"{file}, line {number} must be one JSON object, and is torn or something else: "
                    f"{line[:60]!r}"
                ) from None
    return rows


def columns(rows: Rows, names: tuple[str, ...], file: Path) -> dict[str, np.ndarray]:
    """The named columns of numbered rows, float64 [T] each, which must be finite and `step` ascend."""
    if not rows:
        raise ValueError(f"{file} must have a row for every record, it has none")
    found: dict[str, list[float]] = {name: [] for name in names}
    for number, row in rows:
        for name in names:
            if not isinstance(row, dict) or name not in row:
                raise ValueError(f"{file}, row {number} must have {', '.join(names)}; it lacks {name}")
            value = row[name]
            if not isinstance(value, (int, float)) or not np.isfinite(value):
                raise ValueError(f"{file}, row {number}: {name} must be a finite number, got {value!r}")
            if name in POSITIVE and value <= 0:
                raise ValueError(f"{file}, row {number}: {name} must be positive, got {value!r}")
            found[name].append(value)
    columns = {name: np.array(values, dtype=np.float64) for name, values in found.items()}
    falls = np.flatnonzero(np.diff(columns["step"]) <= 0)
    if len(falls):
        first = int(falls[0])
        before, after = columns["step"][first : first + 2]
        raise ValueError(
            f"{file}, row {rows[first + 1][0]}: step must ascend, got {after:.15g} after {before:.15g}; "
            "sort the rows, and drop those that a resumed run has made again"
        )
    return columns
