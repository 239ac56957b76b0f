"""The course of one run: λ and the forces of its transmission weights, record by record."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weibull_kernels as wk
from weibull_kernels.phases import find_phases, moving_average
from weibull_kernels.records import force_series, read_records

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
        rounding = 0 if self.forces.rounding is None else np.nan_to_num(self.forces.rounding)
        after = self.forces.norm_sq + self.forces.predicted_change + rounding
        sigma: np.ndarray = np.sqrt(after / self.forces.numel)
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
        upto = slice(0, int(np.argmax(self.rms)) + 1)
        forces = ("alignment", "injection", "decay", "coupling", "rounding")
        columns = {name: getattr(self.forces, name) for name in forces}
        start = self.forces.norm_sq[0]
        return {
            name: 0.0 if column is None else float(np.nansum(column[upto]) / start)
            for name, column in columns.items()
        }


def read_course(folder: Path) -> Course:
    """From the records of a run and its summary."""
    table = read_records(folder / RECORDS)
    step, forces = force_series(table, *wk.TRANSMISSION)
    frame = table.to_pandas()
    frame = frame[frame["role"].isin(wk.TRANSMISSION)].groupby("step", sort=True).first()
    column = {name: frame[name].to_numpy(float) for name in ("lr", "weight_decay", "loss")}
    fit = {name: frame[f"transmission_{name}"].to_numpy(float) for name in ("k", "scale")}
    return Course(step, forces=forces, **column, **fit, summary=json.loads((folder / SUMMARY).read_text()))
