"""A run as a pandas frame, by tensor and by role."""

import builtins
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sinks_oracle import budget, column

import weibull_kernels as wk
from weibull_kernels.records import FORCES, force_series
from weibull_kernels.sinks import JsonLinesSink, ParquetSink

NAMES = (
    "lm_head.weight",
    "layers.0.mlp.up_proj.weight",
    "layers.0.mlp.down_proj.weight",
    "layers.0.self_attn.o_proj.weight",
)
K = [1.3, 1.2, 1.2, 1.1]


@pytest.fixture(params=[ParquetSink, JsonLinesSink])
def path(request, tmp_path):
    """Two records, the first with statistics of the weights; still being written."""
    weights = {name: torch.randn(2, row + 1) for row, name in enumerate(NAMES)}
    statistics = wk.weight_statistics(weights)
    sink = request.param(tmp_path / "run")
    lr = {"lr": [0.1, 0.2, 0.2, 0.2], "weight_decay": 0.1, "k": K}
    sink.write(10, budget(10, 5, names=NAMES, seed=1, rounding=0.5, weights=statistics), **lr, said="up")
    steps = torch.tensor([5, 4, 5, 5])
    sink.write(15, budget(15, steps, names=NAMES, seed=2), **lr, said="down")
    yield tmp_path / "run"
    sink.close()


def test_by_tensor_it_is_what_was_recorded(path):
    frame = wk.read_run(path)
    pd.testing.assert_frame_equal(frame, wk.read_records(path).to_pandas())
    assert frame["name"].tolist() == list(NAMES) * 2


def test_by_role_by_hand(path):
    frame = wk.read_run(path, by="role")
    roles = ["attention_output", "ffn", "head", "transmission", "all"]
    assert frame["role"].tolist() == roles * 2
    assert frame["step"].tolist() == [10] * 5 + [15] * 5
    assert frame["tensors"].tolist() == [1, 2, 1, 3, 4] * 2
    assert list(frame.columns[:4]) == ["step", "role", "tensors", "alignment"]
    by = frame.set_index(["step", "role"])
    made = {10: budget(10, names=NAMES, seed=1), 15: budget(15, names=NAMES, seed=2)}
    rows = {"ffn": [1, 2], "transmission": [1, 2, 3], "all": [0, 1, 2, 3]}
    for step, one in made.items():
        for role, chosen in rows.items():
            for force in (*FORCES, "norm_sq"):
                expected = getattr(one, force)[chosen].sum().item()
                assert by.loc[(step, role), force] == pytest.approx(expected, rel=1e-12)
            assert by.loc[(step, role), "numel"] == one.numel[chosen].sum()
    assert by.loc[10, "rounding"].tolist() == [0.5, 1.0, 0.5, 1.5, 2.0]
    assert by.loc[15, "rounding"].isna().all()
    assert by["steps"].tolist() == [5] * 10
    assert by["k"].tolist()[:3] == [1.1, 1.2, 1.3]
    assert by["k"].isna().tolist() == [False, False, False, True, True] * 2
    assert by.loc[10, "lr"].fillna(-1).tolist() == [0.2, 0.2, 0.1, 0.2, -1]
    assert by["weight_decay"].tolist() == [0.1] * 10
    assert by["said"].tolist() == ["up"] * 5 + ["down"] * 5
    largest = wk.read_records(path)["max_abs"].to_pylist()[:4]
    assert by.loc[10, "max_abs"].tolist()[1] == max(largest[1:3])
    assert by.loc[15, "max_abs"].isna().all()


def test_by_role_it_is_what_force_series_says(path):
    frame = wk.read_run(path, by="role").set_index("role")
    for role, members in (("ffn", ("ffn",)), ("transmission", wk.TRANSMISSION), ("all", ())):
        step, series = force_series(wk.read_records(path), *members)
        assert frame.loc[role, "step"].tolist() == step.tolist()
        assert frame.loc[role, "alignment"].to_numpy() == pytest.approx(series.alignment, rel=1e-14)
        assert frame.loc[role, "steps"].tolist() == series.steps.tolist()


def test_what_is_not_finite_shows_in_the_sum(tmp_path):
    values = column([math.nan, 1, math.inf, 3])
    with ParquetSink(tmp_path / "run") as sink:
        sink.write(1, budget(1, names=NAMES, alignment=values), lr=[math.nan, 0.1, math.nan, 0.1])
    by = wk.read_run(tmp_path / "run", by="role").set_index("role")
    expected = {"attention_output": 3, "ffn": math.inf, "head": math.nan, "all": math.nan}
    for role, value in expected.items():
        assert by.loc[role, "alignment"] == pytest.approx(value, nan_ok=True)
    assert np.isnan(by["lr"].to_numpy()).tolist() == [False, True, True, True, True]


def test_a_run_without_records_or_transmission(tmp_path):
    ParquetSink(tmp_path / "empty").close()
    assert wk.read_run(tmp_path / "empty", by="role").empty
    with ParquetSink(tmp_path / "head") as sink:
        sink.write(1, budget(1, names=("lm_head.weight",)))
    assert wk.read_run(tmp_path / "head", by="role")["role"].tolist() == ["head", "all"]


def test_wrong_calls(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="by must be 'tensor' or 'role', got 'layer'"):
        wk.read_run(tmp_path / "run", by="layer")
    with pytest.raises(FileNotFoundError, match="no records at"):
        wk.read_run(tmp_path / "run")
    real = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError("No module named 'pandas'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="pip install pandas"):
        wk.read_run(tmp_path / "run")
