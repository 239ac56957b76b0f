"""Runs a function in several processes that are joined over gloo, as a sharded training would be."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A server imports what all of them need, once; each process is a fork of it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        *("torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"),
        *("torch.distributed.tensor.debug", "torch.distributed.checkpoint.state_dict", "weibull_kernels"),
    ]
)
# Longer than any collective call here takes, and so that a lost process is not found by waiting for it.
PATIENCE = timedelta(minutes=5)


def run_ranks(
    job: Callable[..., Any], world: int, folder: Path, *args: Any, timeout: float = 100
) -> list[Any]:
    """What `job(*args)` returned in each of `world` processes.

    Raises:
        AssertionError: with the traceback of every process that failed.
    """
    ended = end_of_ranks(job, world, folder, *args, timeout=timeout)
    failed = {rank: error for rank, error in enumerate(ended) if error is not None}
    assert not failed, "\n".join(f"rank {rank} of {world}: {error}" for rank, error in failed.items())
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def end_of_ranks(
    job: Callable[..., Any], world: int, folder: Path, *args: Any, timeout: float
) -> list[str | None]:
    """How each process ended: None if well, else its traceback, the signal it died of, or "still running"."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "store"
    store.unlink(missing_ok=True)
    processes = [
        _PROCESSES.Process(target=_work, args=(job, rank, world, folder, args), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [_end(folder / f"{rank}.error", code) for rank, code in enumerate(codes)]


def _end(error: Path, code: int | None) -> str | None:
    if code == 0:
        return None
    if code is None:
        return "still running"
    return error.read_text() if error.exists() else f"exit code {code}"


def _work(job: Callable[..., Any], rank: int, world: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
        torch.manual_seed(0)
        torch.save(job(*args), folder / f"{rank}.pt")
        dist.barrier()  # nobody leaves while another still works
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        # Without the end of an interpreter, which might wait for a process that is gone.
        os._exit(1)


def kill_myself() -> None:
    """As the machine would, or a lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
