"""The pass over the files of a run that makes the Gram matrices of its checkpoints."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .dispatch import find_kernel
from .gram import CheckpointGram, Floats
from .optimizer_states import OptimizerState, require_steps, stored_update_sq
from .safetensors_files import close_files
from .stored_tensors import Memory, PathLike
from .trajectory import CheckpointSource, Trajectory, open_trajectory, require_ascending

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_HELD = 1 << 24  # bytes of a block, of all checkpoints together, at eight bytes an entry
_ALIGNED, _LEAST = 1 << 12, 1 << 14  # entries that a block is a multiple of, and has at least
_BLOCKS = 16  # that a thread takes at a time: to hand one over costs as much as to read it
_SAME = 1e-9  # relative: norms of a checkpoint that was read twice

PRODUCTS = ("all", "neighbours")
"""Which checkpoints a pass multiplies with which."""


def checkpoint_gram(
    checkpoints: PathLike | Sequence[CheckpointSource],
    steps: Sequence[int] | None = None,
    *,
    products: str = "all",
    optimizer_states: Mapping[int, OptimizerState] | None = None,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> CheckpointGram:
    """The Gram matrix of the checkpoints of every tensor, in float64, in one pass over the files.

        Gᵢⱼ = ⟨wᵢ,wⱼ⟩,   summed from the products of r₀ = w₀ and rᵢ = wᵢ − wᵢ₋₁

    By as many threads as torch is set to, each of which holds a block of all checkpoints, 16 MB or
    16,384 entries of each; the result is the same to the bit for any number of them. (A `.pt` is
    mapped into memory by torch: its pages count as this program's until the system wants them back.)

    Args:
        checkpoints: in the order of their steps: paths as in `open_checkpoint`, or mappings from name to
            tensor; or a folder of `step*` files or folders. float32, float64, bfloat16, float16,
            which may change from one to the next, and so may the shards.
        steps: [K]; told from the paths if None.
        products: "all" pairs of checkpoints, or "neighbours" alone, several times faster: all but
            the `spline` of `recover` need no more.
        optimizer_states: by step of the checkpoint, paths or `state_dict`s of AdamW; where a `.pt`
            holds one beside the model, or a folder an `optimizer.pt`, it is found without.
        roles: patterns to roles, as in `wk.forces`.
        backend: "reference", "cpu", "triton", "cuda", or None to let the device choose.
        process_group: of torch.distributed. Its ranks divide the tensors among them and all of them
            return the whole, the same as one process; every rank must call.
        on_read: called with how many bytes were read, each time some were.

    Returns:
        A `CheckpointGram`. A tensor that is not in all checkpoints, changes its shape, or is not
        finite in one of them is named in `left_out` instead.

    Raises:
        ValueError: the steps do not ascend or are not one for each checkpoint; no tensor is left; an
            optimizer state is of no checkpoint or cannot be used.
        FileNotFoundError, CheckpointError: a path cannot be read.
        TypeError: a tensor is float8, sharded, or otherwise not one that can be read.

    >>> gram = checkpoint_gram([{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])}], [0, 10])
    >>> gram.products.tolist(), gram.moves.tolist()
    ([[[25.0, 29.0], [29.0, 34.0]]], [[0.0, 1.0]])
    """
    trajectory = open_trajectory(checkpoints, steps)
    return gram_of(trajectory, products, optimizer_states, roles, backend, process_group, on_read)


def gram_of(
    trajectory: Trajectory,
    products: str = "all",
    optimizer_states: Mapping[int, OptimizerState] | None = None,
    roles: Mapping[str, str] | None = None,
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
    with_states: bool = True,
) -> CheckpointGram:
    """`checkpoint_gram` of checkpoints that are open; `with_states` is whether to look at the optimizer's."""
    if products not in PRODUCTS:
        raise ValueError(f"products must be one of {PRODUCTS}, got {products!r}")
    require_steps(optimizer_states, trajectory.steps)
    names = tuple(trajectory.tensors)
    rows = _share(trajectory, process_group)
    operation = "gram" if products == "all" else "moves"
    sums = dict(zip(rows, _sums(trajectory, rows, operation, backend, on_read), strict=True))
    if process_group is not None:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(process_group)
        torch.distributed.all_gather_object(gathered, sums, group=process_group)
        sums = {row: of_row for of_rank in gathered for row, of_row in of_rank.items()}
    left_out = dict(trajectory.left_out)
    kept = []
    for row, name in enumerate(names):
        # The first row with w of checkpoint i in it is row i.
        of_checkpoints = np.diagonal(sums[row])[:, None] if operation == "gram" else sums[row]
        wrong = np.flatnonzero(~np.isfinite(of_checkpoints).all(axis=1))
        if len(wrong):
            left_out[name] = f"not finite in the checkpoint of step {trajectory.steps[wrong[0]]}"
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"no tensor is left; {names[0]}: {left_out[names[0]]}")
    found = np.stack([sums[row] for row in kept])
    matrices, moves = _of_differences(found) if operation == "gram" else _of_moves(found)
    tensors = [trajectory.tensors[names[row]] for row in kept]
    numel = np.array([stored[0].numel for stored in tensors], dtype=np.int64)
    of_kept = tuple(names[row] for row in kept)
    update_sq, notes = stored_update_sq(
        trajectory if with_states else None,
        optimizer_states if with_states else None,
        trajectory.steps,
        of_kept,
        numel.tolist(),
    )
    return CheckpointGram(
        steps=trajectory.steps,
        names=of_kept,
        numel=numel,
        products=matrices,
        moves=moves,
        eps=np.array([[torch.finfo(one.dtype).eps for one in stored] for stored in tensors]),
        update_sq=update_sq,
        left_out=left_out,
        notes=notes,
        role_overrides=roles,
    )


def extend_gram(
    gram: CheckpointGram,
    checkpoints: Sequence[CheckpointSource],
    steps: Sequence[int],
    *,
    reread: Mapping[int, CheckpointSource],
    products: str = "all",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    on_read: Callable[[int], object] = lambda count: None,
) -> CheckpointGram:
    """A Gram matrix with checkpoints that came since, reading again only some of the old ones.

    The products of a new checkpoint with an old one that is not read again stay unknown (NaN).
    `recover` then lays its splines through windows of checkpoints that are known together and
    says what that changes; the corrected forces need neighbours only, and do not change.

    Args:
        gram: of the old checkpoints.
        checkpoints: the new ones.
        steps: theirs, after the last of the old.
        reread: old ones by step, the last of them at least.
        products: as in `checkpoint_gram`.
        backend: likewise.
        process_group: likewise.
        on_read: likewise.

    Raises:
        ValueError: the new steps do not come after the old, the last old checkpoint is not among
            `reread`, or an old checkpoint is no longer what it was.
    """
    again, new = require_ascending(sorted(reread)), require_ascending(steps)
    if not again or again[-1] != gram.steps[-1] or not set(again) <= set(gram.steps):
        raise ValueError(
            f"reread must hold old checkpoints, that of step {gram.steps[-1]} at least; got {list(again)}"
        )
    window = checkpoint_gram(
        [*(reread[step] for step in again), *checkpoints],
        [*again, *new],
        products=products,
        backend=backend,
        process_group=process_group,
        on_read=on_read,
    )
    both = [name for name in gram.names if name in window.names]
    left_out = {**window.left_out, **gram.left_out}
    left_out |= {n: window.left_out.get(n, "not in the new checkpoints") for n in gram.names if n not in both}
    left_out |= {n: "not in the old checkpoints" for n in window.names if n not in both}
    old = gram.select([gram.names.index(name) for name in both])
    window = window.select([window.names.index(name) for name in both])
    count = len(gram.steps)
    place = np.array([gram.steps.index(step) for step in again] + list(range(count, count + len(new))))
    _require_same(old, window, place[: len(again)])
    matrices = np.full((len(both), count + len(new), count + len(new)), np.nan)
    matrices[:, place[:, None], place] = window.products
    matrices[:, :count, :count] = np.where(np.isnan(old.products), matrices[:, :count, :count], old.products)

    def joined(column: str) -> Floats:
        later: Floats = getattr(window, column)[:, len(again) :]
        return np.concatenate((getattr(old, column), later), axis=1)

    return dataclasses.replace(
        old,
        steps=gram.steps + new,
        products=matrices,
        moves=joined("moves"),
        eps=joined("eps"),
        update_sq=joined("update_sq"),
        left_out=left_out,
        notes=gram.notes + window.notes,
    )


def require_unchanged(gram: CheckpointGram, checkpoints: Mapping[int, CheckpointSource]) -> None:
    """That checkpoints, by step, are still the ones the Gram matrix was made of; reads them.

    Raises:
        ValueError: one has another ‖w‖², which is named.
    """
    steps = sorted(checkpoints)
    now = checkpoint_gram([checkpoints[step] for step in steps], steps, products="neighbours")
    both = [name for name in gram.names if name in now.names]
    place = np.array([gram.steps.index(step) for step in steps])
    _require_same(
        gram.select([gram.names.index(name) for name in both]),
        now.select([now.names.index(name) for name in both]),
        place,
    )


def _of_differences(sums: Floats) -> tuple[Floats, Floats]:
    """G and the moves from the products of w₀ and the differences, [P, K, K]."""
    matrices = sums.cumsum(axis=1).cumsum(axis=2)
    moves = np.diagonal(sums, axis1=1, axis2=2).copy()
    moves[:, 0] = 0
    return (matrices + matrices.transpose(0, 2, 1)) / 2, moves  # the triangles are sums in another order


def _of_moves(sums: Floats) -> tuple[Floats, Floats]:
    """G of neighbours and the moves from ‖wᵢ‖² and ‖wᵢ − wᵢ₋₁‖², [P, K, 2]."""
    norm_sq, moves = sums[..., 0], sums[..., 1]
    count = norm_sq.shape[1]
    matrices = np.full((len(sums), count, count), np.nan)
    place = np.arange(count)
    matrices[:, place, place] = norm_sq
    crossed = (norm_sq[:, :-1] + norm_sq[:, 1:] - moves[:, 1:]) / 2
    matrices[:, place[:-1], place[1:]] = matrices[:, place[1:], place[:-1]] = crossed
    return matrices, moves


def _require_same(old: CheckpointGram, window: CheckpointGram, place: np.ndarray) -> None:
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
    trajectory: Trajectory,
    rows: list[int],
    operation: str,
    backend: str | None,
    on_read: Callable[[int], object],
) -> list[Floats]:
    """What the kernel `operation` says of the tensors of some rows, over all their entries."""
    of_rows = [list(trajectory.tensors.values())[row] for row in rows]
    count = len(trajectory.steps)
    # Depends on the number of checkpoints alone: the same blocks whoever reads them.
    length = max(_LEAST, _HELD // (8 * count * _ALIGNED) * _ALIGNED)
    threads = torch.get_num_threads()
    totals = [np.zeros((count, count if operation == "gram" else 2)) for _ in of_rows]
    buffers: SimpleQueue[list[Memory]] = SimpleQueue()
    for _ in range(threads):
        buffers.put([Memory(8 * length) for _ in range(count)])

    def of_blocks(place: int, first: int) -> tuple[int, Floats, int]:
        total, nbytes = np.zeros_like(totals[place]), 0
        with _borrowed(buffers) as buffer:
            for start in range(first, min(first + _BLOCKS * length, of_rows[place][0].numel), length):
                columns = [
                    stored.read(start, start + length, out=out)
                    for stored, out in zip(of_rows[place], buffer, strict=True)
                ]
                device = columns[0].device
                columns = [column if column.device == device else column.to(device) for column in columns]
                total += find_kernel(operation, backend, device)(columns).cpu().numpy()
                nbytes += sum(column.nbytes for column in columns)
        return place, total, nbytes

    blocks = (
        (place, first)
        for place, of_name in enumerate(of_rows)
        for first in range(0, of_name[0].numel, _BLOCKS * length)
    )
    try:
        with ThreadPoolExecutor(threads) as pool:
            for place, block, nbytes in _in_order(pool, of_blocks, blocks, ahead=2 * threads):
                totals[place] += block
                on_read(nbytes)
    finally:
        close_files()
    return totals


@contextmanager
def _borrowed(buffers: SimpleQueue[list[Memory]]) -> Iterator[list[Memory]]:
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
