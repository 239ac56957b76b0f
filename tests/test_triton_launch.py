"""The host's part of a Triton launch, with no driver there: compiled once, called directly from then on."""

from types import SimpleNamespace

import pytest
import torch

from weibull_kernels.kernels import triton_launch
from weibull_kernels.kernels.triton_launch import Kernel
from weibull_kernels.kernels.triton_tuning import Tuning, tuned_as, tuning_of


class Function:
    """Stands for a kernel that Triton compiles when it is first launched, and for what it compiled."""

    def __init__(self):
        self.arg_names = ["a_ptr", "b_ptr", "BLOCK"]
        self.first, self.later, self.watched = [], [], []

    def __getitem__(self, grid):
        def launch(*tensors, **constants):
            self.first.append((grid, tensors, constants))
            return Compiled(self)

        return launch


class Compiled:
    function, packed_metadata = "function", "metadata"

    def __init__(self, function):
        self.run = lambda *args: function.later.append(args)
        self._function = function

    def __getitem__(self, grid):
        return lambda *args, stream: self._function.watched.append((grid, stream, args))


@pytest.fixture
def now(monkeypatch):
    """The current device and stream."""
    now = SimpleNamespace(device=0, stream=7)
    active = SimpleNamespace(get_current_stream=lambda device: (device, now.stream))
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_launch, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now.device)
    return now


def test_compiled_once_then_called_with_addresses_on_the_current_stream(now):
    function, a, b = Function(), torch.zeros(3), torch.zeros(4)
    kernel = Kernel(function, {"BLOCK": 16}, num_warps=4)
    kernel(5, a, b)
    assert function.first == [((5,), (a, b), {"BLOCK": 16, "num_warps": 4, "enable_fp_fusion": True})]
    now.stream = 8
    kernel(6, b, a[1:])
    (call,) = function.later
    launched = (6, 1, 1, (0, 8), "function", "metadata", None, None, None)
    assert call == (*launched, b.data_ptr(), a.data_ptr() + 4, 16)
    assert len(function.first) == 1


def test_compiled_anew_for_another_device_and_for_what_is_absent(now):
    function, a = Function(), torch.zeros(3)
    kernel = Kernel(function, {"BLOCK": 16}, num_warps=4)
    for device in (0, 1):
        now.device = device
        for second in (a, None):
            kernel(1, a, second)
    assert len(function.first) == 4
    kernel(1, a, None)
    assert function.later[0][3:] == ((1, 7), "function", "metadata", None, None, None, a.data_ptr(), None, 16)


def test_a_profiler_is_told_of_launches(now, monkeypatch):
    function, a = Function(), torch.zeros(3)
    kernel = Kernel(function, {"BLOCK": 16}, num_warps=4)
    kernel(1, a, a)
    monkeypatch.setattr(triton_launch.triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    kernel(2, a, a)
    assert function.watched == [((2, 1, 1), (0, 7), (a.data_ptr(), a.data_ptr(), 16))]
    assert not function.later


def test_constants_must_come_last_and_in_order():
    with pytest.raises(TypeError, match=r"constants must be \['BLOCK'\], got \['CHUNK'\]"):
        Kernel(Function(), {"CHUNK": 16}, num_warps=4)


def test_other_sizes_hold_for_as_long_as_they_are_measured():
    usual, other = tuning_of("sums"), Tuning(chunk=1024, num_warps=2)
    with tuned_as("sums", other):
        assert tuning_of("sums") == other
        assert tuning_of("adamw") != other
    assert tuning_of("sums") == usual
    with (
        pytest.raises(ValueError, match=r"operation must be one of sums, .*, got 'gram'"),
        tuned_as("gram", other),
    ):
        pass
