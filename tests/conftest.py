"""Set before anything imports Triton: without a GPU its kernels run in the interpreter."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

# The tensors here are small: a second thread costs more than it saves.
torch.set_num_threads(1)

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def restore_threads():
    """For tests that set the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mesh(tmp_path):
    """A job of this process alone, and its device mesh."""
    store = f"file://{tmp_path}/alone"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    from torch.distributed.device_mesh import init_device_mesh

    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def pytest_terminal_summary(terminalreporter):
    """What was left out, and why, without being asked."""
    for reason in sorted({report.longrepr[2] for report in terminalreporter.stats.get("skipped", ())}):
        terminalreporter.write_line(reason.replace("Skipped: ", "left out: ", 1))
