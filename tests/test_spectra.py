"""All singular values, and the distance between the shapes of spectra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weibull_kernels.fused import Fused
from weibull_kernels.spectra import Spectra, shape_distance, spectrum

SPECTRA = st.lists(st.floats(0, 1e6), min_size=1, max_size=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_values_of_numpy(dtype):
    named = {
        name: torch.randn(shape, dtype=torch.float64).to(dtype)
        for name, shape in {
            "a": (30, 20),
            "b": (20, 30),
            "c": (30, 20),
            "conv": (6, 2, 3, 3),
            "large": (150, 160),
            "v": (4,),
        }.items()
    }
    found = spectrum(named)
    assert found.names == ("a", "b", "c", "conv", "large")
    for name, values in zip(found.names, found.values, strict=True):
        expected = np.linalg.svd(named[name].double().flatten(1).numpy(), compute_uv=False)
        assert values.dtype == torch.float64
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-11)


def test_columns():
    found = Spectra(
        ("x.mlp.weight", "y[q]", "z"),
        (torch.tensor([3.0, 4.0]).double().flip(0), torch.ones(3).double(), torch.zeros(2).double()),
        role_overrides={"y": "qkv"},
    )
    assert found.roles == ("ffn", "qkv", "other")
    assert found.top.tolist() == [4, 1, 0]
    assert found.norm_sq.tolist() == [25, 3, 0]
    assert found.stable_rank.tolist() == [25 / 16, 3, 0]
    assert found.normalized()[0].tolist() == pytest.approx([4 / math.sqrt(12.5), 3 / math.sqrt(12.5)])
    assert [len(values) for values in found.to_dict()["values"]] == [2, 3, 2]
    frame = found.to_pandas()
    assert frame["value"].tolist() == [4, 3, 1, 1, 1, 0, 0]
    assert frame["index"].tolist() == [1, 2, 1, 2, 3, 1, 2]
    assert frame["role"].tolist() == ["ffn"] * 2 + ["qkv"] * 3 + ["other"] * 2


def test_parts_of_a_fused_parameter():
    weight = torch.randn(12, 5)
    found = spectrum({"qkv": weight, "other": weight}, split={"qkv": Fused(heads=2)}, pattern="q*")
    assert found.names == ("qkv[q]", "qkv[k]", "qkv[v]")
    rows = weight.view(2, 3, 2, 5)[:, 1].reshape(4, 5).double()
    torch.testing.assert_close(found.values[1], torch.linalg.svdvals(rows))


@pytest.mark.parametrize("shape", [(3, 4), (200, 200)])
def test_entries_that_are_not_finite(shape):
    bad = torch.ones(shape)
    bad[0, 0] = math.nan
    with pytest.raises(ValueError, match="'bad' has entries that are not finite"):
        spectrum({"good": torch.ones(shape), "bad": bad})


def test_distance_by_hand():
    # (1, 1) against (√2, 0): 2 − 2·∫ab = 2 − √2.
    assert shape_distance([5, 5], torch.tensor([0.1, 0.0])) == pytest.approx(math.sqrt(2 - math.sqrt(2)))
    # (1, 1, 1) against (√2, 0): the same law of a constant, whatever the length.
    assert shape_distance([1, 1, 1], [1, 0]) == pytest.approx(math.sqrt(2 - math.sqrt(2)))
    assert shape_distance([0.0, 0.0], [3.0]) == 1
    assert shape_distance([0.0], [0.0, 0.0]) == 0


@given(SPECTRA, SPECTRA, SPECTRA, st.floats(1e-3, 1e3))
def test_it_is_a_metric_on_shapes(a, b, c, scale):
    d = shape_distance(a, b)
    assert 0 <= d <= math.sqrt(2) + 1e-12
    assert d == pytest.approx(shape_distance(b, a), abs=1e-12)
    assert d <= shape_distance(a, c) + shape_distance(c, b) + 1e-12
    assert shape_distance(a, a) == 0
    assert shape_distance([scale * value for value in a], b) == pytest.approx(d, abs=1e-9)
    assert shape_distance(np.repeat(a, 3), b) == pytest.approx(d, abs=1e-9)  # the same law, longer


def test_one_law_is_one_shape_and_others_are_far():
    def of(rows, columns):
        generator = torch.Generator().manual_seed(rows + columns)
        return torch.linalg.svdvals(torch.randn(rows, columns, dtype=torch.float64, generator=generator))

    narrow, wide, square = of(512, 128), of(2048, 512), of(256, 256)
    few = torch.zeros(256).double()
    few[:4] = 1
    assert shape_distance(narrow, wide) < 0.02
    assert shape_distance(wide, square) > 0.2
    assert shape_distance(square, few) > 1


@pytest.mark.parametrize("bad", [[], [[1.0]], [-1.0], [math.nan], [math.inf, 1.0]])
def test_what_is_no_spectrum(bad):
    with pytest.raises(ValueError, match="a spectrum is one or more finite singular values"):
        shape_distance([1.0], bad)
