"""Which backend runs, and what is said where one cannot."""

import pytest
import torch

import weibull_kernels as wk
from weibull_kernels import dispatch
from weibull_kernels.dispatch import KERNELS, find_kernel
from weibull_kernels.kernels import cpu, reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_compiled_kernels(monkeypatch):
    """As where there was no compiler."""
    monkeypatch.setattr(cpu, "unavailable", lambda: "the compiled extension is missing; install a compiler")
    dispatch._default_backend.cache_clear()
    yield
    dispatch._default_backend.cache_clear()


def optimizer():
    weight = torch.nn.Parameter(torch.randn(20))
    made = torch.optim.AdamW([weight])
    weight.grad = torch.ones(20)
    made.step()
    return made


def test_every_backend_is_listed_with_its_reason(no_compiled_kernels):
    found = {backend.name: backend for backend in wk.backends()}
    assert set(found) == {backend for _, backend in KERNELS}
    lines = str(wk.backends()).splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert repr(wk.backends()) == str(wk.backends())
    assert not found["cpu"].available
    assert "cpu        cannot run: the compiled extension is missing; install a compiler" in lines
    assert found["reference"].available
    assert "runs on" in lines[list(found).index("reference")]


def test_the_device_chooses():
    assert find_kernel("sums", None, CPU) is cpu.sums
    assert find_kernel("sums", "reference", CPU) is reference.sums
    assert find_kernel("sums", "reference", CUDA) is reference.sums


def test_a_named_backend_that_cannot_run_is_an_error(no_compiled_kernels):
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: the compiled extension is missing"):
        wk.forces(optimizer(), backend="cpu")


def test_a_named_backend_on_the_wrong_device_is_an_error():
    with pytest.raises(RuntimeError, match="backend 'cpu' runs on cpu, but the tensors are on 'cuda'"):
        find_kernel("sums", "cpu", CUDA)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"backend must be one of reference, .* or None, got 'gpu'"):
        find_kernel("sums", "gpu", CPU)
    with pytest.raises(ValueError, match="no backend is meant for device 'xla'"):
        find_kernel("sums", None, torch.device("xla"))


def test_the_reference_takes_over_with_one_warning(no_compiled_kernels):
    made = optimizer()
    with pytest.warns(RuntimeWarning, match="slow reference backend .* install a compiler") as caught:
        budgets = [wk.forces(made) for _ in range(3)]
    assert len(caught) == 1
    assert caught[0].filename == __file__  # it points at the line that called, not into the library
    expected = wk.forces(made, backend="reference")
    assert all(torch.equal(budget.alignment, expected.alignment) for budget in budgets)
