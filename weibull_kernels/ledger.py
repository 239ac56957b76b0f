"""The ledger of `wk.AdamW`: every step booked, tensor by tensor, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .budget import ForceBudget
from .dispatch import find_kernel
from .kernels.interface import LEDGER_COLUMNS, Rows, Sums
from .kernels.memory import SentNumbers, index_on
from .ledger_rows import MAXIMA, NORM_SQ, NORM_SQ_START, STATISTICS, SUMMED, budget_of_rows, rows_over_shards
from .optimizers import names_of, parameters_of
from .processes import this_process
from .shards import holds_the_rest, is_sharded, local_of
from .statistics import weight_statistics


class Ledger:
    """What the steps of a `wk.AdamW` did to ‖w‖² of every tensor since the last `drain()`.

    Every step adds its four forces and the change that it really made, Σ(w⁺−w)(w⁺+w), to float64
    sums on the device, in the pass over memory that the step makes anyway. So the budget of an
    interval is exact over its steps, however many, and nothing waits for the device.

    What others do to weights between two steps is no force and is not booked.

    It is `optimizer.ledger`, travels in `optimizer.state_dict()`, and goes on from there. Where
    something else saves the optimizer's state (torch.distributed.checkpoint keeps only what torch
    knows of), save `optimizer.ledger.state_dict()` beside it, and load it after that state.

    Of sharded parameters (DTensor) each process books what lies with it. `drain`, `peek` and `state_dict`
    add that up, which is a collective call: every process must make it. They take one all-reduce for each
    device mesh that parameters are sharded over, and all get the same. What `optimizer.state_dict()` holds
    is the part of the process alone, for the file of that process.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tables: Tables) -> None:
        self._optimizer = optimizer
        self._tables = tables

    def drain(self, *, histogram: bool = False) -> ForceBudget:
        """The budget since the last `drain()`, and the start of a new interval; collective like `peek`."""
        budget = self.peek(histogram=histogram)
        self._tables.begin_interval()
        return budget

    def peek(self, *, histogram: bool = False) -> ForceBudget:
        """The budget since the last `drain()`; the interval goes on.

        Args:
            histogram: also count the bit-pattern histogram of the weights as they are now into
                `budget.weights`, which reads them once more.

        Returns:
            A `ForceBudget` of [P] rows in the order of the param groups, float64 on the device of
            the parameters; reading its numbers waits for the device, this call does not. Forces
            are sums over the `steps` of the interval, `norm_sq` is ‖w‖² before it, and

                rounding = measured Δ‖w‖² − (alignment + injection + decay + coupling)

            is what the rounding of single entries did. `weights` are statistics of the weights
            after the latest step. A tensor that made no step has zero force, `steps` 0, and the
            norm and statistics of when the ledger last saw it. After infinite or NaN gradients
            the forces of their tensors are NaN: that names them.

        >>> import weibull_kernels as wk
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = wk.AdamW(model.named_parameters(), lr=1e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> optimizer.ledger.peek().steps.tolist()
        [3, 3]
        """
        names = names_of(self._optimizer)
        rows, counted = self._whole_rows(histogram=histogram)
        numel = self._tables.numel_on(rows.device)
        return budget_of_rows(rows, names, numel, counted, change_measured=True)

    def state_dict(self) -> dict[str, Any]:
        """The ledger as a checkpoint holds it: the names of the columns and a copy of the rows.

        The rows are those of whole tensors, the same on every process, so that any number of processes may
        go on from them. Their sums are then those of a run that never stopped, to float64 rounding.
        """
        return {"columns": list(LEDGER_COLUMNS), "rows": self._whole_rows()[0]}

    def local_state_dict(self) -> dict[str, Any]:
        """The same of what lies with this process, for its own file: no collective call, exact to the bit."""
        found = {"columns": list(LEDGER_COLUMNS), "rows": self._rows()}
        if self._tables.sharded:
            found["part"] = list(this_process())
        return found

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on from a saved ledger; what this one held is forgotten, as its weights are.

        Raises:
            ValueError: it is that of other parameters or of another process, or of an unknown format.
        """
        parameters = parameters_of(self._optimizer)
        require_ledger(saved, rows=len(parameters))
        rows = saved["rows"]
        if "part" not in saved and any(map(is_sharded, parameters)):
            rows = _part_of(rows, parameters)
        self._tables.load(rows, parameters)

    def _whole_rows(self, *, histogram: bool = False) -> tuple[Tensor, Tensor | None]:
        """The rows of whole tensors, [P, 14], and their histograms where asked for, [P, BINS]."""
        parameters, rows, counts = parameters_of(self._optimizer), self._rows(), None
        if histogram:
            here = ((str(place), local_of(parameter)) for place, parameter in enumerate(parameters))
            counts = weight_statistics(here, backend=getattr(self._optimizer, "backend", None)).histogram
        return rows_over_shards(parameters, rows, counts) if self._tables.sharded else (rows, counts)

    def _rows(self) -> Tensor:
        """A copy of all rows, [P, 14], of what lies here."""
        self._tables.open(parameters_of(self._optimizer), getattr(self._optimizer, "backend", None))
        return self._tables.gathered()


class Tables:
    """The rows of the ledger where the steps write them: float64 [P, 14] by `LEDGER_COLUMNS` on every device.

    Of the table of a device only the rows of its own parameters are in use. The rows of sharded
    parameters are of what lies here.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []  # whose rows there are, in the order of the groups
        self._homes: list[torch.device] = []  # where each of them was
        self._by_device: dict[torch.device, Tensor] = {}
        self._numel: SentNumbers | None = None
        self.sharded = False  # whether there are DTensors among the parameters

    def open(self, parameters: list[Tensor], backend: str | None) -> None:
        """Gives a row to every parameter that has none yet, with the weights as they are.

        Parameters keep theirs wherever they move; of those that left the optimizer there is none.
        """
        homes = [parameter.device for parameter in parameters]
        if homes == self._homes and all(map(is_, parameters, self._parameters)):
            return
        place_of = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        before = self.gathered()
        tables = {device: _zeros(len(parameters), device) for device in dict.fromkeys(homes)}
        for device, table in tables.items():
            here = [place for place, home in enumerate(homes) if home == device]
            new = [place for place in here if id(parameters[place]) not in place_of]
            old = [place for place in here if id(parameters[place]) in place_of]
            if new:
                table[index_on(new, device)] = _opening([parameters[place] for place in new], backend)
            if old:
                kept = before[index_on([place_of[id(parameters[place])] for place in old], before.device)]
                table[index_on(old, device)] = kept.to(device, non_blocking=device.type != "cpu")
        self._take(parameters, homes, tables)

    def on(self, device: torch.device) -> Tensor:
        """The table of a device."""
        return self._by_device[device]

    def gathered(self) -> Tensor:
        """A copy of all rows, on the first device that is not a CPU."""
        if not self._by_device:
            return _zeros(0, torch.device("cpu"))
        home = next((device for device in self._by_device if device.type != "cpu"), self._homes[0])
        rows = self._by_device[home].clone()
        others = {device: table for device, table in self._by_device.items() if device != home}
        for device, table in others.items():
            places = [place for place, where in enumerate(self._homes) if where == device]
            moved = table[index_on(places, device)].to(home, non_blocking=home.type != "cpu")
            rows[index_on(places, home)] = moved
        return rows

    def begin_interval(self) -> None:
        """Sums begin at zero, from the norms of now."""
        for table in self._by_device.values():
            table[:, :SUMMED].zero_()
            table[:, NORM_SQ_START].copy_(table[:, NORM_SQ])

    def numel_on(self, device: torch.device) -> Tensor:
        """How many entries each parameter has, sharded ones as a whole; int64 [P]."""
        if self._numel is None or self._numel.device != device:
            self._numel = SentNumbers(device)
        return self._numel.of(np.array([parameter.numel() for parameter in self._parameters], dtype=np.int64))

    def load(self, rows: Tensor, parameters: list[Tensor]) -> None:
        """Takes a copy of the rows of all parameters."""
        homes = [parameter.device for parameter in parameters]
        tables = {}
        for device in dict.fromkeys(homes):
            # The one that is there stays where it is: CUDA graphs may write into it.
            table = self._by_device.get(device)
            if table is None or len(table) != len(parameters):
                table = _zeros(len(parameters), device)
            tables[device] = table
            here = [place for place, home in enumerate(homes) if home == device]
            table[index_on(here, device)] = rows[index_on(here, rows.device)].to(device, torch.float64)
        self._take(parameters, homes, tables)

    def _take(
        self, parameters: list[Tensor], homes: list[torch.device], tables: dict[torch.device, Tensor]
    ) -> None:
        self._parameters, self._homes, self._by_device = parameters, homes, tables
        self._numel, self.sharded = None, any(map(is_sharded, parameters))

    def clear(self) -> None:
        """Forgets everything; the next step opens new rows."""
        self.__init__()  # type: ignore[misc]


def require_ledger(saved: Mapping[str, Any], rows: int) -> None:
    """Raises a ValueError if this is not the state of a ledger of so many parameters and of this process."""
    expected = (rows, len(LEDGER_COLUMNS))
    columns, found = tuple(saved.get("columns", ())), saved.get("rows")
    if columns != LEDGER_COLUMNS or not isinstance(found, Tensor) or tuple(found.shape) != expected:
        shape = tuple(found.shape) if isinstance(found, Tensor) else found
        raise ValueError(
            f"the ledger of the checkpoint has columns {columns} and rows {shape}; expected {LEDGER_COLUMNS} "
            f"and rows {expected}. Load the checkpoint of this model, or remove its 'ledger' to begin anew"
        )
    if (part := saved.get("part")) is not None and list(part) != list(this_process()):
        (rank, size), (here, now) = part, list(this_process())
        raise ValueError(
            f"the ledger of the checkpoint is the part of process {rank} of {size}, and this is process "
            f"{here} of {now}. Load the file that this process saved, or save optimizer.ledger.state_dict(), "
            "which holds whole tensors; remove the checkpoint's 'ledger' to begin anew"
        )


def _part_of(rows: Tensor, parameters: list[Tensor]) -> Tensor:
    """Rows that add up to those given: the first process of a mesh has them, the others 0."""
    mine = index_on([int(holds_the_rest(parameter)) for parameter in parameters], rows.device)
    part = torch.where(mine[:, None] > 0, rows, 0.0)
    for column in MAXIMA:
        part[:, column] = rows[:, column]
    return part


def _opening(parameters: Sequence[Tensor], backend: str | None) -> Tensor:
    """Rows [N, 14] of tensors of one device that have made no step."""
    device, nothing = parameters[0].device, [None] * len(parameters)
    if device.type == "meta":  # no entries yet
        return _zeros(len(parameters), device)
    one = torch.ones(len(parameters), dtype=torch.float64, device=device)
    kernel = find_kernel("sums", backend, device)
    sums: Sums = kernel(Rows([local_of(p).detach() for p in parameters], nothing, nothing, one, one, one))
    known = {
        "norm_sq_start": sums.weight_sq,
        "norm_sq": sums.weight_sq,
        **{name: getattr(sums, name) for name in STATISTICS[1:]},
    }
    return torch.stack([known.get(name, 0 * one).double() for name in LEDGER_COLUMNS], dim=1)


def _zeros(rows: int, device: torch.device) -> Tensor:
    return torch.zeros(rows, len(LEDGER_COLUMNS), dtype=torch.float64, device=device)
