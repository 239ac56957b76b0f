"""The top singular values of many matrices against LAPACK, from a cold start and tracked."""

import math
import warnings

import numpy as np
import pytest
import torch
from oracle import FAST, same_bits

from weibull_kernels import krylov_batches
from weibull_kernels.fused import Fused
from weibull_kernels.kernels import cpu
from weibull_kernels.singular_values import top_singular_values

every_backend = pytest.mark.parametrize("backend", FAST)


def orthogonal(n, count):
    return torch.linalg.qr(torch.randn(n, count, dtype=torch.float64)).Q


def with_values(values, m, n):
    """A matrix [m, n] of these singular values, float64."""
    values = torch.tensor(values, dtype=torch.float64)
    return (orthogonal(m, len(values)) * values) @ orthogonal(n, len(values)).T


def trained():
    """The weights of a small network that has learned a little."""
    model = torch.nn.Sequential(torch.nn.Linear(24, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs = torch.randn(200, 24)
    targets = (inputs[:, :10].square() + inputs[:, 10:20]).argmax(1)
    for _ in range(40):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def matrices():
    return {
        "Gaussian": torch.randn(200, 120),
        "Gaussian, wide": torch.randn(100, 300),
        "eight within a percent": with_values([1 + 0.01 * i / 8 for i in range(8)] + [0.5] * 40, 150, 100),
        "eight equal": with_values([1.0] * 8 + [0.5] * 40, 100, 150),
        "all equal": torch.eye(64),
        "rank one": with_values([2.0], 90, 80).float(),
        "zero": torch.zeros(30, 50),
        "tall": torch.randn(4096, 8),
        "wide": torch.randn(8, 4096),
        "a row": torch.randn(1, 77),
        "a column": torch.randn(77, 1),
        "one entry": torch.tensor([[-3.0]]),
        "tiny": torch.randn(2, 3),
        "bfloat16": torch.randn(130, 96).bfloat16(),
        "float16": torch.randn(96, 130).half(),
        "float64": torch.randn(60, 70, dtype=torch.float64),
        "huge": 1e30 * torch.randn(40, 50),
        "small": 1e-30 * torch.randn(40, 50),
        "past float32": 1e-200 * torch.randn(40, 50, dtype=torch.float64),
        "convolution": torch.randn(16, 3, 5, 5),
        "channels last": torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last),
        "transposed": torch.randn(70, 50).T,
        "cut": torch.randn(70, 50)[:, 7:40],
    } | {f"trained {name}": p.detach() for name, p in trained().named_parameters()}


def exact(tensor, count=1):
    return torch.linalg.svdvals(tensor.detach().double().flatten(1))[:count]


def assert_exact(sigma, named, tolerance=1e-4):
    """As far as float32 squares resolve: the noise of the top one covers what is a thousandth of it."""
    for row, name in enumerate(sigma.names):
        expected = exact(named[name], sigma.values.shape[1])
        error = (sigma.values[row] - expected).abs()
        seen = expected > 2e-3 * expected[0]
        assert (error[seen] <= tolerance * expected[seen]).all(), (name, error / expected)
        assert (error[~seen] <= 3e-3 * expected[0]).all(), (name, error / expected[0])


@every_backend
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_cold_call(backend, count):
    named = {name: w for name, w in matrices().items() if w.ndim > 1 and min(w.flatten(1).shape) >= count}
    sigma = top_singular_values(named, count, backend=backend)
    assert sigma.names == tuple(named)
    assert sigma.shapes == tuple(tuple(w.flatten(1).shape) for w in named.values())
    assert sigma.values.dtype == torch.float64
    assert sigma.values.shape == sigma.residual.shape == (len(named), count)
    assert sigma.converged.all()
    assert (sigma.values.diff(dim=1) <= 0).all()
    assert (sigma.residual >= 0).all()
    assert_exact(sigma, named)
    again = top_singular_values(named, count, start=sigma, backend=backend)
    assert (again.passes == 1).all()
    assert_exact(again, named)


def test_by_hand():
    # AᵀA = diag(9, 16): the values are exact whatever the vectors, which span the plane.
    sigma = top_singular_values({"w": torch.tensor([[3.0, 0.0], [0.0, 4.0]])}, 2)
    assert sigma.values[0].tolist() == pytest.approx([4, 3], rel=1e-6)
    assert sigma.residual.max() < 1e-6
    zero = top_singular_values({"w": torch.zeros(4, 5)}, 2)
    assert zero.values.tolist() == zero.residual.tolist() == [[0, 0]]


def test_the_residual_is_what_it_says_and_bounds_the_error():
    weight = torch.randn(80, 60, dtype=torch.float64)
    start = top_singular_values({"w": weight}, 3)
    weight += 0.1 * torch.randn(80, 60)
    sigma = top_singular_values({"w": weight}, 3, start=start)
    errors = (sigma.values[0, :, None] - torch.linalg.svdvals(weight)).abs().min(dim=1).values
    assert (errors / sigma.values[0] <= sigma.residual[0] / 2 + 1e-12).all()
    # Of vectors that are a power step behind the returned ones; of those, it is smaller.
    v = torch.linalg.qr(sigma.vectors[0].T).Q
    values, axes = torch.linalg.eigh(v.T @ weight.T @ weight @ v)
    v, values = (v @ axes).flip(1), values.flip(0)
    left = weight.T @ weight @ v - v * values
    ahead = torch.linalg.vector_norm(left, dim=0)[:3] / values[:3]
    assert (ahead <= sigma.residual[0]).all()


@every_backend
def test_tracked_through_training(backend):
    weights = {"a": torch.randn(100, 64), "b": torch.randn(64, 100), "c": torch.randn(20, 30)}
    drift = {name: 3e-3 * torch.randn_like(w) for name, w in weights.items()}
    sigma = top_singular_values(weights, 2, backend=backend)
    for _ in range(25):
        for name, w in weights.items():
            w += drift[name]
        sigma = top_singular_values(weights, 2, start=sigma, backend=backend)
        assert_exact(sigma, weights, tolerance=1e-3)
        for row, w in enumerate(weights.values()):
            nearest = (sigma.values[row][:, None] - exact(w, 30)).abs().min(dim=1).values
            assert (nearest <= (sigma.residual[row] / 2 + 1e-6) * sigma.values[row]).all()


def test_more_passes_from_a_start_end_within_the_tolerance():
    weight = {"w": torch.randn(100, 80)}
    start = top_singular_values(weight)
    weight["w"] = torch.randn(100, 80)
    once = top_singular_values(weight, start=start)
    assert not once.converged.any()
    assert once.residual > 1e-3
    more = top_singular_values(weight, start=start, max_passes=100)
    assert more.converged.all()
    assert 1 < more.passes.item() < 60
    assert_exact(more, weight)


def test_a_matrix_of_zeros_that_wakes_up():
    # As a projection that is initialised to zero; its start keeps directions to find the weights with.
    for rank_one in (False, True):
        weight = torch.zeros(40, 30)
        sigma = top_singular_values({"w": weight}, 2)
        if rank_one:
            weight += with_values([1.0], 40, 30).float()
            sigma = top_singular_values({"w": weight}, 2, start=sigma)
        weight += torch.randn(40, 30)
        for _ in range(60):
            sigma = top_singular_values({"w": weight}, 2, start=sigma)
        assert_exact(sigma, {"w": weight})


def test_a_start_of_another_count():
    weight = {"w": torch.randn(60, 50)}
    start = top_singular_values(weight, 1)
    more = top_singular_values(weight, 6, start=start, max_passes=100)
    assert_exact(more, weight)
    assert_exact(top_singular_values(weight, 1, start=more), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_tight_tolerance(dtype):
    weight = {"w": torch.randn(60, 50, dtype=torch.float64).to(dtype)}
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    sigma = top_singular_values(weight, 3, tolerance=tolerance)
    assert sigma.converged.all()
    assert_exact(sigma, weight, tolerance)


def test_the_same_again_and_for_any_number_of_threads(restore_threads):
    named = {"a": torch.randn(300, 48), "b": torch.randn(30, 300), "c": torch.randn(50, 48)}
    expected = top_singular_values(named)
    torch.rand(7)
    assert same_bits(top_singular_values(named).values, expected.values)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        # The kernel's bits are the same; those of torch's small products are not.
        found = top_singular_values(named)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=0)
        assert torch.equal(found.passes, expected.passes)


def test_in_portions(monkeypatch):
    named = {f"w{i}": torch.randn(40 + i % 3, 20 + 7 * (i % 2)) for i in range(9)}
    expected = top_singular_values(named)
    monkeypatch.setattr(krylov_batches, "_BASES", 30_000)
    found = top_singular_values(named)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-8, atol=0)
    assert torch.equal(found.passes, expected.passes)
    assert_exact(found, named)


def test_nothing_of_the_users_is_touched():
    model = trained()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    sigma = top_singular_values(model)
    top_singular_values(model.named_parameters(), start=sigma)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert not sigma.values.requires_grad


def test_module_pairs_and_mapping_are_the_same():
    model = trained()
    expected = top_singular_values(model)
    assert expected.names == ("0.weight", "2.weight")
    for named in (model.named_parameters(), dict(model.named_parameters()), model.state_dict()):
        found = top_singular_values(named)
        assert found.names == expected.names
        assert same_bits(found.values, expected.values)


def test_tied_parameters_of_a_module_once():
    model = torch.nn.Sequential(torch.nn.Embedding(20, 6), torch.nn.Linear(6, 20, bias=False))
    model[1].weight = model[0].weight
    assert top_singular_values(model).names == ("0.weight",)


@every_backend
def test_fused_parameters(backend):
    weight, transposed, rest = torch.randn(48, 40), torch.randn(40, 48), torch.randn(12, 40)
    named = {"h.0.query_key_value.weight": weight, "h.0.c_attn.weight": transposed, "h.0.mlp.weight": rest}
    split = {
        "*.query_key_value.weight": Fused(("q", "k", "v"), heads=4),
        "*.c_attn.weight": Fused(("q", "kv"), sizes=(16, 32), dim=1),
    }
    sigma = top_singular_values(named, split=split, backend=backend)
    parts = {
        **{f"h.0.query_key_value.weight[{p}]": weight.view(4, 3, 4, 40)[:, i] for i, p in enumerate("qkv")},
        "h.0.c_attn.weight[q]": transposed[:, :16],
        "h.0.c_attn.weight[kv]": transposed[:, 16:],
        "h.0.mlp.weight": rest,
    }
    assert sigma.names == tuple(parts)
    assert sigma.roles == ("qkv",) * 5 + ("ffn",)
    assert sigma.shapes[0] == (16, 40)
    assert_exact(sigma, {name: part.flatten(0, -2) for name, part in parts.items()})
    assert (top_singular_values(named, split=split, start=sigma, backend=backend).passes == 1).all()


def test_columns():
    named = {"x.mlp.weight": torch.randn(5, 4), "x.attention.dense.weight": torch.randn(4, 4)}
    sigma = top_singular_values(named, 2)
    columns = sigma.to_dict()
    assert columns["role"].tolist() == ["ffn", "attention_output"]
    assert np.array_equal(columns["values"], sigma.values.numpy())
    frame = sigma.to_pandas()
    assert frame["value_2"].tolist() == sigma.values[:, 1].tolist()
    assert frame["residual_1"].tolist() == sigma.residual[:, 0].tolist()
    assert frame["rows"].tolist() == [5, 4]
    assert frame["converged"].all()


def test_what_does_not_converge_is_said():
    named = {"fine": torch.ones(50, 40), "slow": torch.randn(50, 40)}
    with pytest.warns(RuntimeWarning, match=r"after 2 passes .* of slow \(.*\) are above") as caught:
        sigma = top_singular_values(named, max_passes=2)
    assert caught[0].filename == __file__
    assert sigma.converged.tolist() == [True, False]
    assert sigma.residual[1] > 2e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top_singular_values(named, start=sigma)  # one pass is what was asked for


def test_only_a_missing_extension_is_the_reference(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: "it is missing")
    with pytest.raises(RuntimeError, match="'cpu' cannot run: it is missing"):
        top_singular_values({"w": torch.ones(2, 2)}, backend="cpu")


def spoilt(value):
    weight = torch.randn(20, 30)
    weight[3, 4] = value
    return weight


GOOD = {"good": torch.ones(3, 4)}


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite(backend, value):
    named = GOOD | {"bad": spoilt(value)}
    with pytest.raises(ValueError, match="'bad' has entries that are not finite"):
        top_singular_values(named, backend=backend)
    start = top_singular_values(GOOD | {"bad": spoilt(0.0)}, backend=backend)
    with pytest.raises(ValueError, match="'bad' has entries that are not finite"):
        top_singular_values(named, start=start, backend=backend)


@pytest.mark.parametrize(
    ("named", "settings", "error", "message"),
    [
        (torch.ones(3, 3), {}, TypeError, "got Tensor"),
        ([torch.ones(3, 3)], {}, TypeError, r"pairs \(name, tensor\)"),
        ({"w": [[1.0]]}, {}, TypeError, "got list under 'w'"),
        ([("w", torch.ones(2, 2))] * 2, {}, ValueError, "two tensors are called 'w'"),
        ({"ids": torch.ones(2, 2, dtype=torch.int64)}, {}, TypeError, "'ids' has dtype torch.int64"),
        ({"z": torch.ones(2, 2, dtype=torch.complex64)}, {}, TypeError, "'z' has dtype torch.complex64"),
        ({"bias": torch.ones(3)}, {}, ValueError, "none of the 1 tensors has two dimensions"),
        ({}, {}, ValueError, "no tensor matches"),
        (GOOD, {"pattern": "*.weight"}, ValueError, r"no tensor matches the name pattern '\*.weight'"),
        (GOOD | {"none": torch.ones(0, 4)}, {}, ValueError, r"'none' has shape \(0, 4\): an empty matrix"),
        (GOOD, {"count": 4}, ValueError, r"'good' of shape \(3, 4\) has 3 singular values, count=4"),
        (GOOD, {"count": 0}, ValueError, "count must be a whole number, at least 1, got 0"),
        (GOOD, {"tolerance": 0.0}, ValueError, "tolerance is relative"),
        (GOOD, {"max_passes": 0}, ValueError, "max_passes must be at least 1"),
        (GOOD, {"split": {"*.qkv": Fused()}}, ValueError, r"split: no matrix matches '\*.qkv'"),
        (GOOD, {"split": {"good": Fused(("a", "b"))}}, ValueError, "'good' has 3 along dim 0"),
        (GOOD, {"backend": "gpu"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments(named, settings, error, message):
    with pytest.raises(error, match=message):
        top_singular_values(named, **settings)


def test_a_start_of_other_matrices():
    start = top_singular_values({"a": torch.ones(2, 3), "b": torch.ones(4, 3)})
    for named, message in (
        ({"a": torch.ones(2, 3), "c": torch.ones(4, 3)}, "start differs in 'c'"),
        ({"a": torch.ones(2, 3)}, "start differs in 'b'"),
        ({"b": torch.ones(4, 3), "a": torch.ones(2, 3)}, "start has another order"),
        ({"a": torch.ones(2, 3), "b": torch.ones(4, 5)}, r"'b' has shape \(4, 5\), in start it has \(4, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            top_singular_values(named, start=start)


def test_a_direction_that_comes_up_from_nothing_is_found():
    """Passes drive a direction without a value out of the tracked vectors; it may get one later."""
    torch.manual_seed(0)
    a = torch.zeros(128, 128)
    a[:64, :64] = torch.randn(64, 64)
    sigma = top_singular_values({"a": a})
    for _ in range(30):
        sigma = top_singular_values({"a": a}, start=sigma)
    a[100, 100] = 30.0
    for _ in range(10):
        sigma = top_singular_values({"a": a}, start=sigma)
    assert sigma.values.item() == pytest.approx(30, rel=1e-4)
    a[120, 110] = 40.0
    sigma = top_singular_values({"a": a}, start=sigma, max_passes=20)
    assert sigma.values.item() == pytest.approx(40, rel=1e-4)


def test_a_value_that_grows_slowly_from_nothing_is_followed():
    torch.manual_seed(0)
    a = torch.zeros(128, 128)
    a[:64, :64] = torch.randn(64, 64)
    sigma = top_singular_values({"a": a})
    top = sigma.values.item()
    late = 0
    for step in range(1, 101):
        a[100, 100] = top * (0.5 + 0.01 * step)
        sigma = top_singular_values({"a": a}, start=sigma)
        late += abs(sigma.values.item() / max(top, a[100, 100].item()) - 1) > 1e-3
    assert late <= 25  # about when the two are equal
    assert sigma.values.item() == pytest.approx(a[100, 100].item(), rel=1e-3)


def test_the_top_of_a_tight_cluster_is_not_passed_over():
    """Orthogonal as after initialisation, and one direction a little longer."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(1024, 1024)).Q
    a = q + 0.004 * torch.outer(q[:, 0], torch.eye(1024)[0])
    found = top_singular_values({"a": a})
    exact = torch.linalg.eigvalsh(a.double().T @ a.double())[-1].sqrt()
    assert exact > 1.003
    assert found.values.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-42), (torch.float32, 1e37), (torch.float64, 1e-310), (torch.float64, 1e306)],
)
def test_numbers_at_the_ends_of_their_range(dtype, scale):
    torch.manual_seed(0)
    usual = torch.randn(40, 30, dtype=torch.float64)
    a = (usual * scale).to(dtype)
    lifted = 2.0**1000 if scale < 1e-300 else 1 / scale
    exact = torch.linalg.svdvals(a.double() * lifted)[0].item()
    found = top_singular_values({"a": a, "usual": usual.float()})
    again = top_singular_values({"a": a, "usual": usual.float()}, start=found)
    for sigma in (found, again):
        assert sigma.values[0].item() * lifted == pytest.approx(exact, rel=1e-4)
        assert sigma.values[1].item() == pytest.approx(torch.linalg.svdvals(usual)[0].item(), rel=1e-4)


def test_more_values_than_last_time_are_worked_out():
    torch.manual_seed(0)
    a = torch.randn(100, 80)
    start = top_singular_values({"a": a}, count=3)
    found = top_singular_values({"a": a}, count=7, start=start)
    assert found.converged.all()
    exact = torch.linalg.svdvals(a.double())[:7]
    torch.testing.assert_close(found.values[0], exact, rtol=1e-4, atol=0)


def test_a_count_is_a_whole_number():
    with pytest.raises(ValueError, match=r"count must be a whole number, at least 1, got 1\.5"):
        top_singular_values({"a": torch.eye(3)}, count=1.5)


def test_parts_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"has a part called 'a\.experts\.w\[0\]', as another matrix is"):
        top_singular_values({"a.experts.w[0]": torch.eye(3), "a.experts.w": torch.ones(2, 3, 3)})
