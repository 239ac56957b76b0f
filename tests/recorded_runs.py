"""Small record files for the tests of the report page, of forces that add up."""

import numpy as np

import weibull_kernels as wk
from weibull_kernels.page.runs import make_run
from weibull_kernels.records import read_records

NAMES = (
    "gpt_neox.embed_in.weight",
    "gpt_neox.layers.0.attention.dense.weight",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
    "gpt_neox.layers.0.input_layernorm.weight",
    "gpt_neox.layers.1.attention.dense.weight",
    "gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
    "gpt_neox.layers.1.input_layernorm.weight",
)
LR, WEIGHT_DECAY = 0.01, 0.5


def write_run(
    path,
    records=40,
    *,
    every=5,
    names=NAMES,
    rounding=True,
    rates=True,
    fits=True,
    seed=0,
    change=None,
    run=None,
):
    """Rise, then relaxation; a record covers `every` steps, and the next begins where it ends.

    `change(record, columns)` may alter the columns of a record, [P] each, before they are written.
    """
    random = np.random.default_rng(seed)
    count = len(names)
    numel = random.integers(50, 500, count)
    norm_sq = numel * random.uniform(0.5, 2, count)
    with wk.ParquetSink(path, run or {"lr": LR, "seed": seed}) as sink:
        for record in range(1, records + 1):
            columns = {
                "alignment": norm_sq * 0.05 * (1 - record / records) * random.uniform(0.8, 1.2, count),
                "injection": norm_sq * 0.002,
                "decay": -2 * LR * WEIGHT_DECAY * norm_sq * every,
                "coupling": norm_sq * 1e-5,
                "norm_sq": norm_sq,
            }
            if rounding:
                columns["rounding"] = norm_sq * 1e-8 * random.standard_normal(count)
            forces = (columns[name] for name in ("alignment", "injection", "decay", "coupling"))
            norm_sq = norm_sq + (sum(forces) + columns.get("rounding", 0))
            columns |= {
                "numel": numel,
                "steps": np.full(count, every),
                "step": np.full(count, every * record),
            }
            if change is not None:
                change(record, columns)
            scalars = {"lr": LR, "weight_decay": WEIGHT_DECAY} if rates else {}
            if fits:
                known = record % 2 == 0
                scalars["k"] = np.full(count, 1.2 if known else np.nan)
                scalars["scale"] = np.full(count, 0.9 + 0.001 * record if known else np.nan)
            sink.write(every * record, wk.ForceBudget(**columns, names=names), **scalars)
    return path


def run_of(path, **options):
    """A run of a page."""
    return make_run(
        "a run", read_records(write_run(path / f"{len(list(path.iterdir()))}.parquet", **options))
    )
