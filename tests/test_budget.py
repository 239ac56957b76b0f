"""ForceBudget: by hand, as a law, in tables, and at its border."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weibull_kernels as wk
from weibull_kernels import ForceBudget, columns
from weibull_kernels.columns import on_host

FORCES = ("alignment", "injection", "decay", "coupling")

# w = (1, 2), u = (3, −1), η = 0.1, ω = 0.5: c = 0.95, w⁺ = (0.65, 2).
BEFORE = {"weight_update": 1.0, "update_sq": 10.0, "norm_sq": 5.0}
AFTER = {"weight_update": 0.65 * 3 - 2, "update_sq": 10.0, "norm_sq": 0.65**2 + 4}
BY_HAND = {"alignment": -0.2, "injection": 0.1, "decay": -0.5, "coupling": 0.05 * (0.2 + 0.25)}

KINDS = {
    "number": float,
    "numpy": lambda x: np.array([x, x]),
    "torch": lambda x: torch.tensor([x, x], dtype=torch.float64),
    "torch matrix": lambda x: torch.full((3, 2), x, dtype=torch.float64),
    "numpy scalar": np.float64,
}


def values(array):
    return np.atleast_1d(np.asarray(array)).ravel().tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("at", "sums"), [("before", BEFORE), ("after", AFTER)])
def test_from_sums_by_hand(kind, at, sums):
    sums = {name: KINDS[kind](value) for name, value in sums.items()}
    budget = ForceBudget.from_sums(**sums, lr=0.1, weight_decay=0.5, at=at)
    for force, expected in BY_HAND.items():
        found = getattr(budget, force)
        assert values(found) == pytest.approx([expected] * len(values(found)), rel=1e-13)
        assert type(found) is type(sums["norm_sq"])
    assert values(budget.norm_sq)[0] == pytest.approx(5.0)
    assert values(budget.predicted_change)[0] == pytest.approx(0.65**2 + 4 - 5)
    assert values(budget.absolute)[0] == pytest.approx(0.8)
    shares = budget.shares()
    assert [values(s)[0] for s in (shares.alignment, shares.injection, shares.decay)] == pytest.approx(
        [-0.25, 0.125, -0.625]
    )


def test_settings_of_each_row_and_a_rounded_factor():
    ones = np.ones(3)
    budget = ForceBudget.from_sums(
        ones, ones, ones, lr=np.array([0.1, 0.2, 0.3]), decay_factor=np.array([1, 0.9, 0.5])
    )
    assert budget.alignment.tolist() == pytest.approx([-0.2, -0.4, -0.6])
    assert budget.decay.tolist() == pytest.approx([0, -0.2, -1.0])
    assert budget.coupling.tolist() == pytest.approx([0, 0.1 * (0.4 + 0.1), 0.5 * (0.6 + 0.5)])


vectors = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=30)


@given(vectors, st.floats(0, 1), st.floats(0, 0.9), st.sampled_from(["before", "after"]))
def test_the_balance_closes(entries, lr, weight_decay, at):
    w, u = np.array(entries).T
    c = 1 - lr * weight_decay
    later = c * w - lr * u
    seen = w if at == "before" else later
    budget = ForceBudget.from_sums(seen @ u, u @ u, seen @ seen, lr=lr, weight_decay=weight_decay, at=at)
    # Looking back divides rounding by c², at least 0.01.
    scale = 1e-13 * (w @ w + u @ u) / c**2
    assert abs(budget.predicted_change - (later @ later - w @ w)) <= scale + 1e-300
    assert abs(budget.norm_sq - w @ w) <= scale + 1e-300


@given(vectors, st.floats(1e-6, 1), st.floats(0, 0.9))
def test_shares_are_parts_of_one(entries, lr, weight_decay):
    w, u = 1 + np.array(entries).T
    budget = ForceBudget.from_sums(w @ u, u @ u, w @ w, lr=lr, weight_decay=weight_decay)
    shares = budget.shares()
    whole = abs(shares.alignment) + abs(shares.injection) + abs(shares.decay)
    assert np.isnan(whole) if budget.absolute == 0 else whole == pytest.approx(1)
    assert not shares.injection < 0
    assert not shares.decay > 0


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_nothing_are_nan(kind):
    zero = KINDS[kind](0.0)
    assert np.isnan(values(ForceBudget.from_sums(zero, zero, zero, lr=0.1).shares().alignment)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_as_published_measures_after_the_step(kind):
    # −2η⟨w⁺,u⟩, η²‖u‖² and −2ηω‖w⁺‖² of the case by hand.
    sums = {name: KINDS[kind](value) for name, value in BEFORE.items()}
    published = ForceBudget.from_sums(**sums, lr=0.1, weight_decay=0.5).as_published()
    expected = (-0.2 * AFTER["weight_update"], 0.1, -0.1 * AFTER["norm_sq"], 0.0)
    for force, value in zip(FORCES, expected, strict=True):
        assert values(getattr(published, force))[0] == pytest.approx(value, rel=1e-12)


def test_as_published_of_rows_that_did_not_step_once():
    ones = torch.ones(3, dtype=torch.float64)
    budget = ForceBudget.from_sums(ones, ones, ones, lr=0.1, weight_decay=0.5, steps=torch.tensor([1, 4, 0]))
    published = budget.as_published()
    # Over several steps: alignment + 2·injection, and the decay as it is.
    assert published.alignment[1:].tolist() == pytest.approx([-0.2 + 0.02] * 2)
    assert published.decay[1:].tolist() == pytest.approx([-0.1] * 2)
    assert published.alignment[0].item() == pytest.approx(-0.2 * 0.95 + 0.02)


def test_as_published_of_forces():
    weight = torch.nn.Parameter(torch.randn(30, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.3)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    u = (state["exp_avg"] / 0.1) / ((state["exp_avg_sq"] / 0.001).sqrt() + 1e-8)
    published = wk.forces(optimizer).as_published()
    assert published.alignment.item() == pytest.approx((-0.02 * (weight * u).sum()).item())
    assert published.decay.item() == pytest.approx((-2 * 0.01 * 0.3 * weight.square().sum()).item())


NAMES = (
    "layers.0.mlp.up_proj.weight",
    "layers.0.self_attn.o_proj.weight",
    "layers.1.mlp.up_proj.weight",
    "norm.weight",
)


def budget_of(array):
    """Four rows: forces 1, 2, 3, 4 times those of one step."""
    factor = array([1.0, 2.0, 3.0, 4.0])
    return ForceBudget.from_sums(
        factor * 1.0,
        factor * 10.0,
        factor * 5.0,
        lr=0.1,
        weight_decay=0.5,
        names=NAMES,
        numel=array([2, 4, 6, 8]),
        steps=array([1, 1, 1, 0]),
        step=array([7, 7, 7, 3]),
    )


ARRAYS = {"numpy": np.array, "torch": lambda x: torch.tensor(x, dtype=torch.float64 if x[0] == 1.0 else None)}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(
    ("match", "rows", "name"),
    [
        ({}, [0, 1, 2, 3], "*"),
        ({"pattern": "*.mlp.*"}, [0, 2], "*.mlp.*"),
        ({"pattern": "layers.[01].self_attn.*"}, [1], "layers.[01].self_attn.*"),
        ({"role": "ffn"}, [0, 2], "ffn"),
        ({"pattern": "*.1.*", "role": "ffn"}, [2], "ffn"),
        ({"role": "norm"}, [3], "norm"),
    ],
)
def test_total(array, match, rows, name):
    budget, total = budget_of(array), budget_of(array).total(**match)
    factor = sum(row + 1 for row in rows)
    for force, expected in BY_HAND.items():
        assert values(getattr(total, force)) == pytest.approx([factor * expected])
    assert values(total.norm_sq) == pytest.approx([factor * 5.0])
    assert values(total.numel) == [sum(2 * (row + 1) for row in rows)]
    assert values(total.step) == [max(values(budget.step)[row] for row in rows)]
    assert total.names == (name,)
    assert values(total.shares().alignment) == pytest.approx([-0.25])


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_select(array):
    chosen = budget_of(array).select([3, 1])
    assert chosen.names == (NAMES[3], NAMES[1])
    assert values(chosen.injection) == pytest.approx([0.4, 0.2])
    assert values(chosen.steps) == [0, 1]


def test_total_without_names():
    budget = ForceBudget.from_sums(np.ones(3), np.ones(3), np.ones(3), lr=0.1)
    assert budget.total().alignment.tolist() == pytest.approx([-0.6])
    for match in ({"pattern": "*.mlp.*"}, {"role": "ffn"}):
        with pytest.raises(ValueError, match="no names to match"):
            budget.total(**match)


def test_errors():
    with pytest.raises(ValueError, match="at must be 'before' or 'after' the step, got 'during'"):
        ForceBudget.from_sums(1.0, 1.0, 1.0, lr=0.1, at="during")
    with pytest.raises(ValueError, match="the step erased the weights"):
        ForceBudget.from_sums(1.0, 1.0, 1.0, lr=0.5, weight_decay=2.0, at="after")
    budget = budget_of(np.array)
    for match, what in (({"pattern": "*.conv.*"}, r"\*\.conv\.\*"), ({"role": "qkv"}, "qkv")):
        with pytest.raises(ValueError, match=f"no tensor matches .*{what}.*; the 4 names begin with layers"):
            budget.total(**match)


def test_results_are_frozen():
    budget = budget_of(np.array)
    for result in (budget, budget.shares()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.alignment = 0.0


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_tables(array):
    budget = budget_of(array)
    columns = budget.to_dict()
    assert all(isinstance(column, np.ndarray) for column in columns.values())
    assert columns["name"].tolist() == list(NAMES)
    assert columns["role"].tolist() == ["ffn", "attention_output", "ffn", "norm"]
    frame = budget.to_pandas()
    assert list(frame.columns) == list(columns)
    assert frame.decay.tolist() == pytest.approx([-0.5, -1.0, -1.5, -2.0])
    assert frame.steps.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", ["number", "numpy", "torch"])
def test_tables_of_logged_sums(kind):
    sums = {name: KINDS[kind](value) for name, value in BEFORE.items()}
    frame = ForceBudget.from_sums(**sums, lr=0.1, weight_decay=0.5).to_pandas()
    assert frame.alignment.tolist() == pytest.approx([-0.2] * len(frame))
    assert frame.steps.tolist() == [1] * len(frame)
    assert "numel" not in frame


def test_the_statistics_of_the_weights():
    weight = torch.nn.Parameter(torch.tensor([3.0, -4.0, 0.0, torch.nan]))
    weights = wk.forces(torch.optim.AdamW([("w", weight)])).weights
    assert weights.names == ("w",)
    assert (weights.numel.item(), weights.zero_count.item(), weights.non_finite_count.item()) == (4, 1, 1)
    assert weights.max_abs.item() == 4.0
    assert weights.log_sum.item() == pytest.approx(np.log(12), rel=1e-6)
    with torch.no_grad():
        weight[3] = 0.0
    assert wk.forces(torch.optim.AdamW([weight])).weights.rms.item() == 2.5


def test_totals_keep_their_role_and_say_what_there_is():
    budget = budget_of(np.array)
    assert budget.total(role="ffn").roles == ("ffn",)
    assert budget.total(role="ffn").tensors == 2
    with pytest.raises(ValueError, match=r"role 'mlp'.*roles are attention_output, ffn, norm"):
        budget.total(role="mlp")


def test_the_published_reading_of_a_total_is_of_first_order():
    sums = {"weight_update": np.array([-1.0, -1.0]), "update_sq": np.ones(2), "norm_sq": np.array([5.0, 5.0])}
    budget = ForceBudget.from_sums(**sums, lr=0.1, weight_decay=np.array([0.5, 0.0]))
    total = budget.total().as_published()
    assert total.alignment.item() == pytest.approx((budget.alignment + 2 * budget.injection).sum())
    assert total.decay.item() == pytest.approx(budget.decay.sum())


def test_names_must_be_one_a_row():
    with pytest.raises(ValueError, match="names must be one for each row"):
        ForceBudget.from_sums(*np.ones((3, 4)), lr=0.1, names=("a", "b"))


def test_float32_rates_are_widened_before_c_is_taken():
    budget = ForceBudget.from_sums(0.0, 1.0, 1.0, lr=np.float32(1e-3), weight_decay=np.float32(1e-2))
    assert budget.decay == pytest.approx(-2 * float(np.float32(1e-3)) * float(np.float32(1e-2)), rel=1e-10)
    assert ForceBudget.from_sums([0.0], [1.0], [1.0], lr=[0.1], weight_decay=0.1).injection == pytest.approx(
        [0.01]
    )


def test_shares_and_statistics_have_tables_too():
    weight = torch.nn.Parameter(torch.randn(3))
    budget = wk.forces(torch.optim.AdamW([("w", weight)]), histogram=True)
    assert list(budget.shares().to_pandas().columns) == ["name", "alignment", "injection", "decay"]
    frame = budget.weights.to_pandas()
    assert frame.name.tolist() == ["w"]
    assert "histogram" not in frame
    assert budget.weights.to_dict()["histogram"].sum() == 3


class Arrived:
    """The event of a copy that has been made."""

    def query(self):
        return True

    def synchronize(self):
        pass


def test_columns_come_from_a_device_in_one_copy(monkeypatch):
    """Whatever their dtypes, widths and strides; the device is played by the host."""
    copies = []
    monkeypatch.setattr(columns, "_begin_copy", lambda packed: copies.append(1) or (packed, Arrived()))
    whole = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    there = {
        "count": torch.tensor([2**53 + 1, -1]),
        "strided": whole[:, 1],
        "flag": torch.tensor([True, False, True]),
        "expanded": torch.tensor(1.5).expand(3),
        "empty": torch.empty(0, dtype=torch.int64),
        "matrix": whole,
    }
    parcel = columns._Parcel(there)
    assert parcel.ready()
    assert len(copies) == 1
    opened = parcel.opened()
    assert list(opened) == list(there)
    for name, column in there.items():
        assert opened[name].dtype == column.dtype
        assert torch.equal(opened[name], column)


def test_columns_of_every_kind_arrive_as_they_are():
    """Of several widths, one and no entries, with strides, on the host already."""
    whole = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    columns = {
        "count": torch.tensor([2**53 + 1, -1]),
        "single": torch.tensor([0.1, 0.2, 0.3]),
        "strided": whole[:, 1],
        "one of a row": whole[:1, 2],
        "expanded": torch.tensor(1.5, dtype=torch.float64).expand(3),
        "flag": torch.tensor([True, False, True]),
        "number": torch.tensor(2.5, dtype=torch.float64, requires_grad=True),
        "empty": torch.empty(0, dtype=torch.int64),
        "matrix": whole,
        "array": np.array([1, 2], dtype=np.int32),
        "plain": 3,
    }
    arrived = on_host(columns)
    assert list(arrived) == list(columns)
    for name, column in columns.items():
        expected = column.detach().numpy() if isinstance(column, torch.Tensor) else np.asarray(column)
        assert arrived[name].dtype == expected.dtype, name
        assert arrived[name].shape == expected.shape, name
        assert arrived[name].tolist() == expected.tolist(), name
