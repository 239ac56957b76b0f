"""The Gram matrices of a run's checkpoints: all that a recovery of forces needs, from one streamed pass."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoints import PathLike
from .columns import Columns
from .dispatch import find_kernel
from .trajectory import CheckpointSource, Trajectory, open_trajectory, require_ascending

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Floats = NDArray[np.float64]

_KEY, _FORMAT = b"weibull_kernels_gram", 1
_HELD = 1 << 23  # bytes of a block, of all checkpoints together, at eight bytes an entry
_ALIGNED = 1 << 12  # entries that a block is a multiple of
_SAME = 1e-9  # relative: norms of a checkpoint that was read twice


@dataclass(frozen=True, eq=False)
class CheckpointGram(Columns):
    """Gᵢⱼ = ⟨wᵢ,wⱼ⟩ of the K checkpoints of P tensors.

    Everything that a linear spline through checkpoints says of the forces is quadratic in them, so
    these K² numbers a tensor stand for the weights. Source: [W2], spline recovery; design of the
    Gram ours.

    Attributes:
        steps: [K], of the checkpoints.
        names: of the tensors, [P].
        numel: [P] int64.
        products: [P, K, K] float64, symmetric; NaN where two checkpoints were never read together,
            which happens by `extended` alone.
        left_out: names without a row, and why.
        role_overrides: patterns to roles for names that `wk.role_of` would not know.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    numel: NDArray[np.int64]
    products: Floats
    left_out: Mapping[str, str] = field(default_factory=dict)
    role_overrides: Mapping[str, str] | None = None

    @property
    def norm_sq(self) -> Floats:
        """‖w‖² at each checkpoint, [P, K]."""
        return np.diagonal(self.products, axis1=1, axis2=2)

    def __add__(self, other: object) -> CheckpointGram:
        """That of both shards together, of other entries of the same tensors.

        Raises:
            ValueError: the steps or the names are not the same.
        """
        if not isinstance(other, CheckpointGram):
            return NotImplemented
        self._require_steps(other)
        if self.names != other.names:
            strange = sorted(set(self.names) ^ set(other.names))
            which = f"{', '.join(strange[:3])} in one of them only" if strange else "in another order"
            raise ValueError(
                f"shards add where they are of the same tensors, these have {which}; a | b joins"
            )
        return dataclasses.replace(
            self,
            numel=self.numel + other.numel,
            products=self.products + other.products,
            left_out={**self.left_out, **other.left_out},
        )

    def __or__(self, other: object) -> CheckpointGram:
        """The tensors of both, as from ranks that read different ones.

        Raises:
            ValueError: the steps are not the same, or a tensor is in both.
        """
        if not isinstance(other, CheckpointGram):
            return NotImplemented
        self._require_steps(other)
        if again := sorted(set(self.names) & set(other.names)):
            raise ValueError(f"{', '.join(again[:3])} is in both; shards of the same tensors are a + b")
        names = self.names + other.names
        left_out = {**self.left_out, **other.left_out}
        return dataclasses.replace(
            self,
            names=names,
            numel=np.concatenate((self.numel, other.numel)),
            products=np.concatenate((self.products, other.products)),
            left_out={name: why for name, why in left_out.items() if name not in names},
        )

    def _require_steps(self, other: CheckpointGram) -> None:
        if self.steps != other.steps:
            raise ValueError(
                f"both must be of the same steps, got {list(self.steps)[:4]}… and {list(other.steps)[:4]}…"
            )

    def select(self, rows: Sequence[int]) -> CheckpointGram:
        """The given tensors alone."""
        chosen = list(rows)
        return dataclasses.replace(
            self,
            names=tuple(self.names[row] for row in chosen),
            numel=self.numel[chosen],
            products=self.products[chosen],
        )

    def at(self, steps: Sequence[int]) -> CheckpointGram:
        """That of some of the checkpoints alone.

        Raises:
            ValueError: one of the steps is not among them.
        """
        if strange := [step for step in steps if step not in self.steps]:
            raise ValueError(f"there is no checkpoint of step {strange[0]}; there are {list(self.steps)}")
        chosen = [self.steps.index(step) for step in require_ascending(steps)]
        return dataclasses.replace(
            self, steps=tuple(steps), products=self.products[:, chosen][:, :, chosen].copy()
        )

    def extended(
        self,
        checkpoints: Sequence[CheckpointSource],
        steps: Sequence[int],
        *,
        reread: Mapping[int, CheckpointSource],
        backend: str | None = None,
    ) -> CheckpointGram:
        """With checkpoints that came since, reading again only some of the old ones.

        The products of a new checkpoint with an old one that is not read again stay unknown (NaN).
        `recover` then lays its splines through windows of checkpoints that are known together
        and says what that changes; the corrected forces need neighbours only, and change nothing.

        Args:
            checkpoints: the new ones.
            steps: theirs, after the last of the old.
            reread: old ones by step, the last of them at least.
            backend: as in `checkpoint_gram`.

        Raises:
            ValueError: the new steps do not come after the old, the last old checkpoint is not
                among `reread`, or an old checkpoint is no longer what it was.
        """
        again = require_ascending(sorted(reread))
        new = require_ascending(list(steps))
        if not again or again[-1] != self.steps[-1] or not set(again) <= set(self.steps):
            raise ValueError(
                f"reread must hold old checkpoints, that of step {self.steps[-1]} at least; got {list(again)}"
            )
        window = checkpoint_gram(
            [*(reread[step] for step in again), *checkpoints], [*again, *new], backend=backend
        )
        left_out = dict(self.left_out) | {
            name: window.left_out.get(name, "not in the new checkpoints")
            for name in self.names
            if name not in window.names
        }
        both = [name for name in self.names if name in window.names]
        left_out |= {name: "not in the old checkpoints" for name in window.names if name not in both}
        old = self.select([self.names.index(name) for name in both])
        window = window.select([window.names.index(name) for name in both])
        place = [self.steps.index(step) for step in again] + list(
            range(len(self.steps), len(self.steps) + len(new))
        )
        _require_same(old, window, place[: len(again)])
        size = len(self.steps) + len(new)
        products = np.full((len(both), size, size), np.nan)
        products[:, np.array(place)[:, None], place] = window.products
        products[:, : len(self.steps), : len(self.steps)] = old.products
        return dataclasses.replace(old, steps=self.steps + new, products=products, left_out=left_out)

    def save(self, path: PathLike) -> None:
        """As a Parquet file, with a row for each tensor; `load` reads it."""
        described = {
            "format": _FORMAT,
            "steps": list(self.steps),
            "left_out": dict(self.left_out),
            "role_overrides": None if self.role_overrides is None else dict(self.role_overrides),
        }
        flat = self.products.reshape(len(self.names), -1)
        table = pa.table(
            {
                "name": pa.array(self.names, pa.string()),
                "numel": pa.array(self.numel, pa.int64()),
                "products": pa.array(list(flat), pa.list_(pa.float64())),
            },
        ).replace_schema_metadata({_KEY: json.dumps(described).encode()})
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: PathLike) -> CheckpointGram:
        """What `save` wrote, to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is another.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} of Gram matrices")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} holds no Gram matrices: {error}") from None
        metadata = table.schema.metadata or {}
        if _KEY not in metadata:
            raise ValueError(f"{path} holds no Gram matrices: expected what CheckpointGram.save wrote")
        described = json.loads(metadata[_KEY])
        if described["format"] != _FORMAT:
            raise ValueError(f"{path} is of format {described['format']}, this version reads {_FORMAT}")
        steps = tuple(described["steps"])
        flat = table["products"].combine_chunks().flatten().to_numpy()
        return cls(
            steps=steps,
            names=tuple(table["name"].to_pylist()),
            numel=table["numel"].to_numpy(),
            products=flat.reshape(-1, len(steps), len(steps)),
            left_out=described["left_out"],
            role_overrides=described["role_overrides"],
        )


def checkpoint_gram(
    checkpoints: PathLike | Sequence[CheckpointSource],
    steps: Sequence[int] | None = None,
    *,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> CheckpointGram:
    """The Gram matrix of the checkpoints of every tensor, in float64, in one pass over the files.

        Gᵢⱼ = ⟨wᵢ,wⱼ⟩,   summed from the products of r₀ = w₀ and rᵢ = wᵢ − wᵢ₋₁

    so that what two neighbours have in common does not drown how they differ. By as many threads
    as torch is set to, each of which holds one block of all checkpoints, 8 MB at most; the
    result is the same to the bit for any number of them.

    Args:
        checkpoints: in the order of their steps: paths as in `open_checkpoint`, or mappings from name to
            tensor; or a folder of `step*` files or folders. float32, float64, bfloat16, float16,
            which may change from one to the next, and so may the shards.
        steps: [K]; told from the paths if None.
        roles: patterns to roles, as in `wk.forces`.
        backend: "reference", "cpu", "triton", or None to let the device choose.
        process_group: of torch.distributed. Its ranks divide the tensors among them and all of them
            return the whole, the same as one process; every rank must call.
        on_read: called with how many bytes were read, each time some were.

    Returns:
        A `CheckpointGram`. A tensor that is not in all checkpoints, changes its shape, or is not
        finite in one of them is named in `left_out` instead.

    Raises:
        ValueError: the steps do not ascend or are not one for each checkpoint; no tensor is left.
        FileNotFoundError, CheckpointError: a path cannot be read.

    >>> gram = checkpoint_gram([{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])}], [0, 10])
    >>> gram.products.tolist()
    [[[25.0, 29.0], [29.0, 34.0]]]
    """
    return gram_of(open_trajectory(checkpoints, steps), roles, backend, process_group, on_read)


def gram_of(
    trajectory: Trajectory,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> CheckpointGram:
    """`checkpoint_gram` of checkpoints that are open."""
    names = tuple(trajectory.tensors)
    rows = _share(trajectory, process_group)
    sums = dict(zip(rows, _sums(trajectory, rows, backend, on_read), strict=True))
    if process_group is not None:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(process_group)
        torch.distributed.all_gather_object(gathered, sums, group=process_group)
        sums = {row: of_row for of_rank in gathered for row, of_row in of_rank.items()}
    left_out = dict(trajectory.left_out)
    kept = []
    for row, name in enumerate(names):
        # Row i is the first that w of checkpoint i has a part in.
        wrong = np.flatnonzero(~np.isfinite(np.diagonal(sums[row])))
        if len(wrong):
            left_out[name] = f"not finite in the checkpoint of step {trajectory.steps[wrong[0]]}"
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"no tensor is left; {names[0]}: {left_out[names[0]]}")
    products = np.stack([sums[row] for row in kept]).cumsum(axis=1).cumsum(axis=2)
    return CheckpointGram(
        steps=trajectory.steps,
        names=tuple(names[row] for row in kept),
        numel=np.array([trajectory.tensors[names[row]][0].numel for row in kept], dtype=np.int64),
        # The two triangles are sums in another order.
        products=(products + products.transpose(0, 2, 1)) / 2,
        left_out=left_out,
        role_overrides=roles,
    )


def _require_same(old: CheckpointGram, window: CheckpointGram, place: list[int]) -> None:
    """That the checkpoints which were read again are the ones of the first time."""
    before, now = old.norm_sq[:, place], window.norm_sq[:, : len(place)]
    changed = np.argwhere(abs(now - before) > _SAME * before)
    if len(changed):
        tensor, checkpoint = changed[0]
        raise ValueError(
            f"the checkpoint of step {old.steps[place[checkpoint]]} is no longer what it was: ‖w‖² of "
            f"'{old.names[tensor]}' was {before[tensor, checkpoint]:.10g}, now {now[tensor, checkpoint]:.10g}"
        )


def _share(trajectory: Trajectory, process_group: ProcessGroup | None) -> list[int]:
    """The rows that this rank reads: the largest tensors first, each to the rank that has least."""
    sizes = [sum(stored.nbytes for stored in of_name) for of_name in trajectory.tensors.values()]
    if process_group is None:
        return list(range(len(sizes)))
    loads = [0] * torch.distributed.get_world_size(process_group)
    mine = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        rank = loads.index(min(loads))
        loads[rank] += sizes[row]
        if rank == torch.distributed.get_rank(process_group):
            mine.append(row)
    return sorted(mine)


@torch.no_grad()
def _sums(
    trajectory: Trajectory, rows: list[int], backend: str | None, on_read: Callable[[int], object]
) -> list[Floats]:
    """The products of w₀ and the differences, [K, K], of the tensors of some rows."""
    of_rows = [list(trajectory.tensors.values())[row] for row in rows]
    count = len(trajectory.steps)
    # Depends on the number of checkpoints alone: the same blocks whoever reads them.
    length = max(1, _HELD // (8 * count * _ALIGNED)) * _ALIGNED
    threads = torch.get_num_threads()
    totals = [np.zeros((count, count)) for _ in of_rows]
    buffers: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(threads):
        buffers.put(torch.empty((count, 8 * length), dtype=torch.uint8))

    def products(place: int, start: int) -> tuple[int, Floats, int]:
        with _borrowed(buffers) as buffer:
            columns = [
                stored.read(start, start + length, out=out)
                for stored, out in zip(of_rows[place], buffer, strict=True)
            ]
            device = columns[0].device
            columns = [column.to(device) for column in columns]
            found = find_kernel("gram", backend, device)(columns).cpu().numpy()
            return place, found, sum(column.nbytes for column in columns)

    blocks = (
        (place, start)
        for place, of_name in enumerate(of_rows)
        for start in range(0, of_name[0].numel, length)
    )
    with ThreadPoolExecutor(threads) as pool:
        for place, block, nbytes in _in_order(pool, products, blocks, ahead=2 * threads):
            totals[place] += block
            on_read(nbytes)
    return totals


@contextmanager
def _borrowed(buffers: SimpleQueue[Tensor]) -> Iterator[Tensor]:
    buffer = buffers.get()
    try:
        yield buffer
    finally:
        buffers.put(buffer)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[..., Any], tasks: Iterator[tuple[Any, ...]], ahead: int
) -> Iterator[Any]:
    """The results of the tasks in their order, of which no more than `ahead` wait."""
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
