"""weight_statistics from every source, that statistics add, and that files are read in little memory."""

import json
import math
import re
import struct
import subprocess
import sys
import warnings
import weakref
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import BACKENDS, FAST, assert_agrees, assert_same_bits, make_rows
from safetensors.torch import save_file
from test_checkpoints import sharded

import weibull_kernels as wk
from weibull_kernels import statistics
from weibull_kernels.checkpoints import open_checkpoint
from weibull_kernels.kernels.interface import BINS, Sums
from weibull_kernels.statistics import WeightStatistics, matching_rows, stored_statistics, weight_statistics
from weibull_kernels.stored_tensors import CheckpointError

COLUMNS = (
    "numel",
    "norm_sq",
    "log_sum",
    "log_sq_sum",
    "max_abs",
    "zero_count",
    "non_finite_count",
    "histogram",
)
EXACT = ("numel", "max_abs", "zero_count", "non_finite_count", "histogram")


def weights():
    """Of several dtypes and shapes, with zeros, subnormals and what is not finite."""
    odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -2.0, 3e38])
    return {
        "layers.0.mlp.up_proj.weight": torch.randn(40, 30),
        "layers.0.self_attn.o_proj.weight": torch.randn(30, 30).bfloat16(),
        "layers.0.self_attn.q_proj.weight": torch.randn(30, 30).half(),
        "layers.0.norm.weight": torch.ones(30, dtype=torch.float64),
        "layers.0.norm.bias": torch.zeros(0),
        "scale": torch.tensor(-3.0),
        "odd": odd,
    }


def as_sums(found):
    nothing = torch.zeros(len(found.names), dtype=torch.float64)
    values = {field.name: getattr(found, field.name, nothing) for field in fields(Sums)}
    return Sums(**values | {"weight_sq": found.norm_sq, "weight_update": nothing, "update_sq": nothing})


def assert_equal(a, b):
    """The same rows, to the last bit."""
    assert a.names == b.names
    assert torch.equal(a.numel, b.numel)
    assert_same_bits(as_sums(a), as_sums(b))


def assert_adds_up(found, whole, backend="cpu"):
    """Counts the same, sums to 1e-12; but `cpu` adds logarithms in float32 within a block."""
    assert found.names == whole.names
    for name in EXACT:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    torch.testing.assert_close(found.norm_sq, whole.norm_sq, rtol=1e-12, atol=0, equal_nan=True)
    allowed = (1e-12 if backend == "reference" else 1e-8) * (1 + whole.numel + whole.log_sq_sum)
    assert ((found.log_sum - whole.log_sum).abs() <= allowed).all()
    assert ((found.log_sq_sum - whole.log_sq_sum).abs() <= allowed).all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("histogram", [True, False])
def test_every_sum_against_the_reference(backend, histogram):
    found = weight_statistics(weights(), histogram=histogram, backend=backend)
    torch.manual_seed(0)
    named = weights()
    assert found.names == tuple(named)
    assert found.numel.tolist() == [tensor.numel() for tensor in named.values()]
    assert (found.histogram is not None) == histogram
    assert_agrees(as_sums(found), make_rows(*((w,) for w in named.values())), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("tests/gpu has it")
    w = torch.tensor([[0.0, 3.0], [-4.0, math.exp(2)]])
    found = weight_statistics([("w", w)], backend=backend)
    assert found.names == ("w",)
    assert (found.numel.item(), found.zero_count.item(), found.non_finite_count.item()) == (4, 1, 0)
    assert found.norm_sq.item() == pytest.approx(25 + math.exp(4), rel=1e-6)
    assert found.rms.item() == pytest.approx(math.sqrt((25 + math.exp(4)) / 4), rel=1e-6)
    assert found.log_sum.item() == pytest.approx(math.log(12) + 2, rel=1e-6)
    assert found.log_sq_sum.item() == pytest.approx(math.log(3) ** 2 + math.log(4) ** 2 + 4, rel=1e-6)
    assert found.max_abs.item() == pytest.approx(math.exp(2), rel=1e-6)
    # 3 = 1.5·2¹ is bin 32 of its octave, 4 = 2² bin 0, e² = 1.847·2² bin 54.
    assert found.histogram.shape == (1, BINS)
    assert found.histogram[0].nonzero().flatten().tolist() == [128 * 64 + 32, 129 * 64, 129 * 64 + 54]


def test_a_module_has_the_rows_of_forces():
    model = torch.nn.Sequential(
        torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False), torch.nn.BatchNorm1d(9)
    )
    model[1].weight = model[0].weight  # tied
    model.compiled = torch.nn.Module()
    model.compiled._orig_mod = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    budget, found = wk.forces(optimizer, model, histogram=True), weight_statistics(model)
    assert "compiled.weight" in found.names
    assert found.left_out == {"1.weight": "tied to '0.weight'"}  # running means are no parameters
    assert_equal(found, budget.weights)
    assert found.roles == budget.roles


def test_a_state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    found = weight_statistics(model.state_dict())
    assert found.names == (
        "0.weight",
        "0.bias",
        "1.bias",
        "2.weight",
        "2.bias",
        "2.running_mean",
        "2.running_var",
    )
    assert found.left_out == {"1.weight": "tied to '0.weight'", "2.num_batches_tracked": "int64"}
    assert not found.norm_sq.requires_grad


def test_pairs_that_are_made_one_by_one(monkeypatch):
    whole = weight_statistics(weights())

    def made():
        torch.manual_seed(0)
        yield from weights().items()

    for held in (1, 5000, 1 << 28):
        monkeypatch.setattr(statistics, "_HELD", held)
        assert_equal(weight_statistics(made()), whole)


def test_tensors_of_an_iterable_are_let_go(monkeypatch):
    """Where an iterable makes its tensors as it goes, they are not all held."""
    monkeypatch.setattr(statistics, "_HELD", 4000)
    made, most = [], 0

    def one_by_one():
        nonlocal most
        for i in range(20):
            tensor = torch.ones(300)
            made.append(weakref.ref(tensor))
            yield str(i), tensor
            del tensor
            most = max(most, sum(reference() is not None for reference in made))

    assert weight_statistics(one_by_one()).numel.sum() == 6000
    assert most <= 5


def test_what_is_in_memory_anyway_is_one_launch(monkeypatch):
    monkeypatch.setattr(statistics, "_HELD", 1)
    measured, launched = statistics._measured, []
    monkeypatch.setattr(
        statistics, "_measured", lambda batch, *rest: launched.append(len(batch)) or measured(batch, *rest)
    )
    weight_statistics(weights())
    weight_statistics(torch.nn.Linear(2, 2))
    weight_statistics(iter(weights().items()))
    assert launched == [7, 2, 1, 1, 1, 1, 2, 1]  # a tensor of no entries goes with the next


@pytest.mark.parametrize("size", [15, 16, 17, 32, 33])
def test_the_last_piece_of_a_large_tensor(size, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_READ", 64)  # 16 entries
    save_file({"w": torch.arange(1.0, size + 1)}, tmp_path / "m.safetensors")
    found = weight_statistics(tmp_path / "m.safetensors")
    assert found.norm_sq.item() == size * (size + 1) * (2 * size + 1) / 6
    assert (found.numel.item(), found.max_abs.item(), found.histogram.sum().item()) == (size, size, size)


def test_what_a_checkpoint_leaves_out_is_told(tmp_path):
    torch.save({"w": torch.ones(2), "epoch": 3, "ids": torch.arange(2)}, tmp_path / "m.pt")
    found = weight_statistics(tmp_path / "m.pt")
    assert found.left_out == {"ids": "int64", "epoch": "not a tensor but a int"}


def test_strides_and_gradients():
    w = torch.randn(8, 6, requires_grad=True)
    sparse = torch.zeros(16, 6)
    sparse[::2] = w.detach()
    image = torch.randn(2, 3, 4, 5)
    named = {"t": w.t(), "gaps": sparse[::2], "last": image.to(memory_format=torch.channels_last)}
    dense = {"t": w.detach().t().contiguous(), "gaps": w.detach(), "last": image}
    assert_adds_up(weight_statistics(named), weight_statistics([*dense.items()]))


@pytest.mark.parametrize("kind", ["file", "folder", "index", "pickle"])
def test_checkpoints(kind, tmp_path):
    if kind in ("folder", "index"):
        every = sharded(tmp_path)
        path = tmp_path if kind == "folder" else tmp_path / "model.safetensors.index.json"
    else:
        every = weights() | {"ids": torch.arange(5), "mask": torch.ones(3, dtype=torch.bool)}
        path = str(tmp_path / ("m.pt" if kind == "pickle" else "m.safetensors"))
        torch.save(every, path) if kind == "pickle" else save_file(every, path)
    found = weight_statistics(path)
    assert set(found.names) | set(found.left_out) == set(every)
    floating = {name: every[name] for name in found.names}
    assert all(tensor.is_floating_point() for tensor in floating.values())
    assert_adds_up(found, weight_statistics(floating))
    if kind in ("file", "pickle"):
        assert found.left_out == {"ids": "int64", "mask": "bool"}


@pytest.mark.parametrize("read", [64, 1000, 4096])
def test_large_tensors_are_read_in_pieces_and_small_ones_together(read, tmp_path, monkeypatch):
    save_file(weights(), tmp_path / "m.safetensors")
    whole = weight_statistics(tmp_path / "m.safetensors")
    launched = []
    measured = statistics._measured
    monkeypatch.setattr(
        statistics, "_measured", lambda batch, *rest: launched.append(batch) or measured(batch, *rest)
    )
    monkeypatch.setattr(statistics, "_READ", read)
    told = []
    stored = list(open_checkpoint(tmp_path / "m.safetensors"))
    parts = list(stored_statistics(stored, on_read=told.append))
    assert sum(told) == sum(tensor.nbytes for tensor in stored)
    assert all(sum(tensor.nbytes for _, tensor in batch) <= read for batch in launched)
    assert 1 < len(parts) <= len(stored)
    assert len(launched) >= sum(told) / read
    found = statistics.joined_statistics(parts)
    assert_adds_up(found, whole)


@given(st.lists(st.integers(0, 300), max_size=4), st.sampled_from(FAST))
def test_slices_add_to_the_whole(cuts, backend):
    torch.manual_seed(len(cuts))
    w = torch.cat([torch.randn(292) * 0.02, weights()["odd"]])[torch.randperm(300)]
    edges = [0, *sorted(cuts), 300]
    slices = [weight_statistics([("w", w[a:b])], backend=backend) for a, b in pairwise(edges)]
    total = slices[0]
    for part in slices[1:]:
        total = total + part
    assert_adds_up(total, weight_statistics([("w", w)], backend=backend), backend)


def test_statistics_of_two_shards():
    a, b = ({name: torch.randn(4, 5) for name in ("x", "y")} for _ in range(2))
    found = weight_statistics(a | {"i": torch.arange(2)}) + weight_statistics(b | {"j": torch.arange(2)})
    assert_adds_up(found, weight_statistics({name: torch.cat([a[name], b[name]]) for name in a}))
    assert found.left_out == {"i": "int64", "j": "int64"}
    without = [weight_statistics(shard, histogram=False) for shard in (a, b)]
    assert (without[0] + without[1]).histogram is None


def test_statistics_that_do_not_add():
    a = weight_statistics({"x": torch.ones(2), "y": torch.ones(2)})
    with pytest.raises(ValueError, match="these have y, z in one of them only"):
        a + weight_statistics({"x": torch.ones(2), "z": torch.ones(2)})
    with pytest.raises(ValueError, match="in another order"):
        a + a.select([1, 0])
    with pytest.raises(ValueError, match="only one of the statistics has a histogram"):
        a + replace(a, histogram=None)
    with pytest.raises(TypeError):
        a + 1


def test_totals():
    named = weights()
    del named["odd"]
    found = weight_statistics(named)
    assert found.roles == ("ffn", "attention_output", "qkv", "norm", "norm", "other")
    for total, members in (
        (found.total(), list(named)),
        (found.total("layers.0.norm.*"), ["layers.0.norm.weight", "layers.0.norm.bias"]),
        (found.total(role="qkv"), ["layers.0.self_attn.q_proj.weight"]),
        (
            found.total(role="transmission"),
            ["layers.0.mlp.up_proj.weight", "layers.0.self_attn.o_proj.weight"],
        ),
    ):
        together = torch.cat([named[name].flatten().double() for name in members])
        assert_adds_up(total, weight_statistics({total.names[0]: together}))
    assert found.total("*norm*").names == ("*norm*",)
    assert found.total(role="transmission").roles == ("transmission",)
    assert weight_statistics(named, histogram=False).total().histogram is None


def test_roles_of_ones_own():
    found = weight_statistics({"a.x": torch.ones(2), "b.x": torch.ones(3)}, roles={"a.*": "adapter"})
    assert found.roles == ("adapter", "other")
    assert found.select([0]).roles == ("adapter",)
    assert found.total(role="adapter").numel.tolist() == [2]
    assert (found + found).roles == found.roles


def test_nothing_matches():
    found = weight_statistics({"a": torch.ones(2), "mlp.b": torch.ones(2)})
    with pytest.raises(
        ValueError, match=r"no tensor matches the name pattern 'x'; the 2 names begin with a, mlp\.b"
    ):
        found.total("x")
    with pytest.raises(ValueError, match=r"no tensor matches 'a' and role 'ffn'.* roles are ffn, other"):
        found.total("a", role="ffn")
    assert matching_rows(["a", "b"], ["ffn", "qkv"], "*", "qkv") == [1]


def test_as_a_table():
    found = weight_statistics({"mlp.w": torch.ones(2, 2), "ids": torch.arange(2)})
    assert list(found.to_dict()) == ["name", "role", *COLUMNS]
    assert found.to_dict()["histogram"].shape == (1, BINS)
    frame = found.to_pandas()
    assert frame.role.tolist() == ["ffn"]
    assert frame.norm_sq.tolist() == [4.0]
    assert isinstance(found.to_dict()["norm_sq"], np.ndarray)


REFUSED = {
    "float8": (torch.ones(3).to(torch.float8_e4m3fn), "'w' has dtype torch.float8_e4m3fn"),
    "scales": (torch.ones(3, dtype=torch.float8_e8m0fnu), "'w' has dtype torch.float8_e8m0fnu"),
    "complex": (torch.ones(3, dtype=torch.complex64), "'w' has dtype torch.complex64"),
    "sparse": (torch.ones(3).to_sparse(), "'w' has layout torch.sparse_coo"),
    "meta": (torch.ones(3, device="meta"), "'w' is on the meta device"),
    "no tensor": ([1.0, 2.0], "expected a tensor under each name, got list under 'w'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("form", [dict, lambda pairs: iter(list(pairs))], ids=["mapping", "pairs"])
def test_what_is_refused_by_name(case, form):
    tensor, told = REFUSED[case]
    with pytest.raises(TypeError, match=re.escape(told)):
        weight_statistics(form([("fine", torch.ones(2)), ("w", tensor)]))


def test_quantised_tensors_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch gives them up
        tensor = torch._empty_affine_quantized([3], scale=0.1, zero_point=0, dtype=torch.qint8)
    with pytest.raises(TypeError, match=r"'w' has dtype torch\.qint8"):
        weight_statistics({"w": tensor})


def test_float8_in_a_file_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    save_file({"w": torch.ones(3).to(torch.float8_e4m3fn), "a": torch.ones(2)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(statistics, "stored_statistics", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(TypeError, match=r"'w' has dtype torch\.float8_e4m3fn; the kernels take float32"):
        weight_statistics(tmp_path / "m.safetensors")


def test_what_is_no_source(tmp_path):
    for source in (3, torch.ones(3), None):
        with pytest.raises(
            TypeError, match=f"weight_statistics takes a module, .* got {type(source).__name__}"
        ):
            weight_statistics(source)
    with pytest.raises(TypeError, match="expected pairs"):
        weight_statistics([torch.ones(3)])
    with pytest.raises(TypeError, match="under 3"):
        weight_statistics([(3, torch.ones(3))])
    with pytest.raises(ValueError, match="two tensors are called 'w'"):
        weight_statistics([("w", torch.ones(3)), ("w", torch.ones(2))])
    with pytest.raises(ValueError, match=r"no floating-point tensors; left out were ids"):
        weight_statistics({"ids": torch.arange(3)})
    with pytest.raises(ValueError, match=r"no floating-point tensors$"):
        weight_statistics([])
    with pytest.raises(FileNotFoundError):
        weight_statistics(tmp_path / "none.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError):
        weight_statistics(tmp_path / "m.safetensors")


def test_a_backend_that_is_named():
    with pytest.raises(ValueError, match="backend must be one of"):
        weight_statistics({"w": torch.ones(2)}, backend="fast")


def test_the_state_of_the_program_is_left_alone():
    w = torch.randn(100, requires_grad=True)
    before, random = w.detach().clone(), torch.get_rng_state()
    assert torch.is_grad_enabled()
    weight_statistics({"w": w})
    assert torch.equal(w.detach(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


# The most memory that was ever resident in this very program: getrusage would count its parent's.
READER = """
import sys, torch
torch.set_num_threads(1)
from weibull_kernels.statistics import weight_statistics
for path in sys.argv[1:]:
    found = weight_statistics(path)
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], int(found.numel.sum()), int(found.histogram.sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_read_in_little_memory(tmp_path):
    sizes = {"large": 36_000_000, **{f"w{i}": 1_000_000 for i in range(14)}}  # 200 MB of float32
    header, position = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [position, position + 4 * size]}
        position += 4 * size
    text = json.dumps(header).encode()
    block = np.random.default_rng(0).normal(size=1_000_000).astype("<f4").tobytes()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(50):
            file.write(block)
    save_file({"w": torch.randn(1000)}, tmp_path / "tiny.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("tiny", "large")]
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True, check=True)
    (tiny, *_), (large, *counts) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert counts == [50_000_000, 50_000_000]
    assert large - tiny < 60_000  # kB; what is read at a time is 8 MB
    (tmp_path / "large.safetensors").unlink()


def test_summed_is_public_for_rows_already_chosen():
    found = weight_statistics({"a": torch.ones(2), "b": 2 * torch.ones(3)})
    one = found.summed("both", "ffn")
    assert isinstance(one, WeightStatistics)
    assert (one.names, one.roles) == (("both",), ("ffn",))
    assert (one.numel.tolist(), one.norm_sq.tolist(), one.max_abs.tolist()) == ([5], [14.0], [2.0])


def test_thousands_of_small_tensors_go_a_few_at_a_time(tmp_path, monkeypatch):
    """Each has a histogram of 130 kB, however small it is."""
    save_file({f"layers.{i}.bias": torch.randn(32) for i in range(3000)}, tmp_path / "m.safetensors")
    measured, launched = statistics._measured, []
    monkeypatch.setattr(
        statistics, "_measured", lambda batch, *rest: launched.append(len(batch)) or measured(batch, *rest)
    )
    parts = stored_statistics(open_checkpoint(tmp_path / "m.safetensors"))
    assert sum(int(part.histogram.sum()) for part in parts) == 3000 * 32
    assert sum(launched) == 3000
    assert max(launched) == 64


def test_statistics_by_role_are_the_totals_of_the_roles():
    torch.manual_seed(0)
    named = {name: torch.randn(40) for name in ("a.mlp.w1", "norm.weight", "b.mlp.w1", "x.weight")}
    found = wk.weight_statistics(named, roles={"x.*": "mine"}).by_role()
    assert found.names == found.roles == ("ffn", "norm", "mine")
    whole = wk.weight_statistics(named, roles={"x.*": "mine"})
    for row, role in enumerate(found.names):
        total = whole.total(role=role)
        for column in ("numel", "norm_sq", "log_sum", "max_abs", "histogram"):
            assert torch.equal(getattr(found, column)[row], getattr(total, column)[0])
