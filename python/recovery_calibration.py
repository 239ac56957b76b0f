"""Measures c(h), the part of the updates' diffusion that is left after h steps: `injection.surviving_part`.

On runs of seeds under 20, none of which the accuracy of the recovery is judged by.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from optimizers import BETA1
from recovery_accuracy import DEFAULT, SPACINGS, name_of, trained
from recovery_compared import FIRST
from rich.progress import Progress
from settings import Settings
from text import library_source

import weibull_kernels as wk
from weibull_kernels.gram import CheckpointGram
from weibull_kernels.injection import diffusion_error, displacement_weights, surviving_part

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

RUNS = (
    replace(DEFAULT, seed=0),
    replace(DEFAULT, seed=1, beta2=0.999),
    replace(DEFAULT, seed=2, weight_decay=0.1),
    replace(DEFAULT, seed=3, weight_decay=0.4, beta2=0.99, width=64),
)
LENGTHS = (5, *SPACINGS)


def measured(settings: Settings, records: pa.Table, gram: CheckpointGram) -> dict[str, dict[int, np.ndarray]]:
    """The c of every matrix and interval by its length, in the rise and in saturation."""
    rates = np.array([settings.lr * settings.lr_factor(step) for step in range(1, settings.steps + 1)])
    frame = records.to_pandas()
    found: dict[str, dict[int, list[float]]] = {"rise": {}, "saturation": {}}
    for name, its in frame[~frame["role"].isin(["norm", "bias", "head"])].groupby("name"):
        budget = wk.ForceBudget(
            *(its[force].to_numpy() for force in ("alignment", "injection", "decay", "coupling")),
            norm_sq=its["norm_sq"].to_numpy(),
            numel=its["numel"].to_numpy(),
        )
        rise = wk.find_phases(its["step"].to_numpy(), budget) == "rise"
        update_sq = its["injection"].to_numpy() / rates**2 / its["numel"].to_numpy()
        products = gram.products[gram.names.index(name)]
        for length in LENGTHS:
            for start in range(0, settings.steps - length + 1, length):
                if start < FIRST or not {start, start + length} <= set(gram.steps):
                    continue
                steps = slice(start, start + length)
                kept, variance = displacement_weights(rates[steps], settings.weight_decay, BETA1)
                a, b = gram.steps.index(start), gram.steps.index(start + length)
                moved = products[b, b] - 2 * kept * products[a, b] + kept**2 * products[a, a]
                phase = "rise" if rise[steps].mean() > 0.5 else "saturation"
                part = moved / (variance * its["numel"].iloc[0] * update_sq[steps].mean())
                found[phase].setdefault(length, []).append(part)
    return {phase: {h: np.array(parts) for h, parts in of.items()} for phase, of in found.items()}


def table(found: list[dict[str, dict[int, np.ndarray]]]) -> str:
    """Medians and spreads over matrices, intervals and runs."""
    lines = [
        "| h | in the rise | spread of ln | in saturation | spread of ln | c(h) taken | error taken |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for length in LENGTHS:
        cells = [str(length)]
        for phase in ("rise", "saturation"):
            parts = np.concatenate([np.ravel(run[phase].get(length, [])) for run in found])
            cells += [f"{np.median(parts):.3f}", f"{np.log(parts).std():.2f}"] if len(parts) else ["–", "–"]
        h = np.array([float(length)])
        cells += [f"{surviving_part(h, BETA1)[0]:.3f}", f"{diffusion_error(h)[0]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(runs: list[Settings], found: list[dict[str, dict[int, np.ndarray]]]) -> str:
    """The results page."""
    kinds = "\n".join(f"- `{name_of(run)}`" for run in runs)
    return f"""# How much of the updates' diffusion is left after h steps

Written by `python python/recovery_calibration.py`. c(h) = ‖w⁺ − Πc·w‖²/(n·û_rms²·Σaₛaₜβ₁^|s−t|) of attention
output, FFN, QKV and embedding matrices, each by itself, with the true û_rms; `injection.surviving_part` is
what the recovery takes for it. Runs of {runs[0].steps} steps of the demo's model, which the accuracy of the
recovery is not judged by:

{kinds}

{table(found)}
"""


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/recovery"),
    results: Annotated[Path, typer.Option(help="folder of the table")] = Path("benchmarks/results"),
    steps: Annotated[int, typer.Option(min=60, help="of every run")] = DEFAULT.steps,
    runs: Annotated[int, typer.Option(min=1, max=len(RUNS), help="how many of the runs")] = len(RUNS),
    width: Annotated[int | None, typer.Option(help="instead of the widths of the runs")] = None,
) -> None:
    """Train with the ledger on, keep checkpoints, and compare how far the weights went with û."""
    source = library_source()
    changed = {"steps": steps} | ({} if width is None else {"width": width})
    chosen = [replace(settings, **changed) for settings in RUNS[:runs]]
    with Progress() as progress:
        found = [
            measured(settings, *trained(settings, source, out / name_of(settings), progress))
            for settings in chosen
        ]
    results.mkdir(parents=True, exist_ok=True)
    (results / "recovery-calibration.md").write_text(page(chosen, found))
    print(table(found))


if __name__ == "__main__":
    app()
