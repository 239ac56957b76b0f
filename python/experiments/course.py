"""The course of one run: λ and the forces of its transmission weights, record by record."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weibull_kernels as wk
from weibull_kernels.phases import find_phases, moving_average, norm_sq_after
from weibull_kernels.records import force_series, read_records

FORCES = ("alignment", "injection", "decay", "coupling", "rounding")

RECORDS, SUMMARY = "records.parquet", "summary.json"
"""The files in the folder of a run."""


@dataclass(frozen=True, eq=False)
class Course:
    """Of the transmission weights (attention output and FFN) over one run, all [T].

    Attributes:
        step: of the records.
        lr, loss: η of the last step of each record, and its loss in nats a byte.
        weight_decay: ω.
        forces: summed over the steps of each record and over the tensors.
        k, scale: the Weibull fit of all of them together, by the probability plot, after each record.
        summary: what the run found beside its records.
    """

    step: np.ndarray
    lr: np.ndarray
    weight_decay: np.ndarray
    loss: np.ndarray
    forces: wk.ForceBudget
    k: np.ndarray
    scale: np.ndarray
    summary: dict[str, Any]

    @property
    def mean(self) -> wk.ForceBudget:
        """The forces of one step, in the mean of 5 % of the run around each record."""
        return moving_average(self.step, self.forces)

    @property
    def rms(self) -> np.ndarray:
        """σ after each record."""
        sigma: np.ndarray = np.sqrt(norm_sq_after(self.forces) / self.forces.numel)
        return sigma

    @property
    def phases(self) -> np.ndarray:
        """The phase of each record."""
        return find_phases(self.step, self.forces, self.scale)

    @property
    def run(self) -> Any:
        """Peak, final value, time constants; see `wk.summarize_run`."""
        return wk.summarize_run(
            self.step, self.forces, self.scale, lr=self.lr, weight_decay=self.weight_decay
        )

    @property
    def work(self) -> dict[str, float]:
        """What each force did to ‖w‖² over the run up to the peak of σ, relative to ‖w‖² at its beginning.

        Their sum is (σ_peak/σ₀)² − 1.
        """
        return work(self.forces, records=int(np.argmax(self.rms)) + 1)

    @property
    def update_rms(self) -> np.ndarray:
        """û = √(injection/n)/η of a step in each record, by the rate of its last one."""
        forces = self.forces
        update: np.ndarray = np.sqrt(forces.injection / (forces.steps * forces.numel)) / self.lr
        return update


def parts(forces: wk.ForceBudget) -> dict[str, np.ndarray]:
    """Every force of each record over ‖w‖² at the beginning; 0 where rounding was not measured."""
    start = forces.norm_sq[0]
    return {
        name: np.zeros_like(forces.norm_sq) if column is None else np.nan_to_num(column) / start
        for name, column in ((name, getattr(forces, name)) for name in FORCES)
    }


def work(forces: wk.ForceBudget, records: int | None = None) -> dict[str, float]:
    """What each force did to ‖w‖² over the first records, all if None, relative to ‖w‖² at the beginning.

    Their sum is (σ/σ₀)² − 1, with σ after these records.
    """
    return {name: float(column[:records].sum()) for name, column in parts(forces).items()}


def read_course(folder: Path) -> Course:
    """From the records of a run and its summary."""
    table = read_records(folder / RECORDS)
    step, forces = force_series(table, *wk.TRANSMISSION)
    frame = table.to_pandas()
    frame = frame[frame["role"].isin(wk.TRANSMISSION)].groupby("step", sort=True).first()
    column = {name: frame[name].to_numpy(float) for name in ("lr", "weight_decay", "loss")}
    fit = {name: frame[f"transmission_{name}"].to_numpy(float) for name in ("k", "scale")}
    return Course(step, forces=forces, **column, **fit, summary=json.loads((folder / SUMMARY).read_text()))
