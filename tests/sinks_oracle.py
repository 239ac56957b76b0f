"""Budgets to write, and runs that are killed and resumed, for the tests of sinks."""

import dataclasses
import os
import pathlib
import signal

import numpy as np
import torch

import weibull_kernels as wk

NAMES = ("layers.0.mlp.up_proj.weight", "layers.0.self_attn.o_proj.weight", "lm_head.weight")
FORCES = ("alignment", "injection", "decay", "coupling")


def column(values):
    return torch.as_tensor(values, dtype=torch.float64)


def budget(count, steps=1, names=NAMES, seed=None, rounding=None, **columns):
    """Of some steps that end at the optimizer's count, a number or one for each tensor."""
    rows = len(names)
    random = np.random.default_rng(seed)
    one = wk.ForceBudget(
        *(column(random.normal(size=rows)) for _ in FORCES),
        norm_sq=column(1 + random.random(rows)),
        rounding=None if rounding is None else column(np.full(rows, rounding)),
        numel=torch.arange(1, rows + 1),
        steps=torch.as_tensor(steps).expand(rows),
        step=torch.as_tensor(count).expand(rows),
        names=names,
    )
    return dataclasses.replace(one, **columns)


class Run:
    """A run of which each step of each tensor has an alignment of its own: 2**(step in the run).

    Sums are exact, so the alignment of a file says which steps are booked in it, and how often. Tensors
    move in the steps that `moves` [T, P] says.
    """

    def __init__(self, moves, ledger):
        self.moves, self.ledger = np.asarray(moves, dtype=bool), ledger
        rows = self.moves.shape[1]
        self.done, self.counts = 0, np.zeros(rows, dtype=np.int64)
        self.booked, self.steps = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        self.last = np.zeros(rows)

    def step(self):
        moved = self.moves[self.done]
        self.last = np.where(moved, 2.0**self.done, self.last)
        self.booked += np.where(moved, 2.0**self.done, 0)
        self.counts, self.steps = self.counts + moved, self.steps + moved
        self.done += 1

    def record(self):
        """What a ledger drains; or, as wk.forces has it, the last step of each tensor, whenever that was."""
        names = tuple(f"layers.{row}.mlp.a.weight" for row in range(len(self.counts)))
        zero = torch.zeros(len(names), dtype=torch.float64)
        alignment = self.booked if self.ledger else self.last
        steps = self.steps if self.ledger else np.minimum(self.counts, 1)
        made = wk.ForceBudget(
            *(column(alignment.copy()), zero, zero, zero),
            norm_sq=zero,
            rounding=zero if self.ledger else None,
            steps=torch.tensor(steps),
            step=torch.tensor(self.counts),
            names=names,
        )
        self.booked, self.steps = np.zeros(len(names)), np.zeros(len(names), dtype=np.int64)
        return made

    def copy(self):
        """A checkpoint."""
        twin = Run(self.moves, self.ledger)
        state = {name: getattr(self, name) for name in ("done", "counts", "booked", "steps", "last")}
        for name, value in state.items():
            setattr(twin, name, value.copy() if isinstance(value, np.ndarray) else value)
        return twin


def train(folder, last, kill=False):
    """Trains up to a step, from the checkpoint in the folder if there is one; records every second step.

    It saves the checkpoint after step 5, in the middle of an interval.
    """
    folder = pathlib.Path(folder)
    model = torch.nn.Linear(4, 2)
    optimizer = wk.AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    first = 0
    if (folder / "checkpoint.pt").exists():
        first, weights, state = torch.load(folder / "checkpoint.pt")
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    kinds = {"run.parquet": wk.ParquetSink, "run.jsonl": wk.JsonLinesSink}
    sinks = [kind(folder / name, append=True) for name, kind in kinds.items()]
    for step in range(first + 1, last + 1):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        if step % 2 == 0:
            drained = optimizer.ledger.drain()
            for sink in sinks:
                sink.write(step, drained, lr=0.1)
        if step == 5:
            torch.save((step, model.state_dict(), optimizer.state_dict()), folder / "checkpoint.pt")
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    for sink in sinks:
        sink.close()
    return model
