"""Learning rates by hand, against torch's LambdaLR, and every way to give them wrongly."""

import math
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from weibull_kernels.schedules import rates


def at(lr, *steps):
    found = rates(lr, np.array(steps))
    assert found.dtype == np.float64
    assert found.shape == (len(steps),)
    return found.tolist()


# Numbers


@pytest.mark.parametrize(
    "lr",
    [
        0.25,
        np.float32(0.25),
        Decimal("0.25"),
        torch.tensor(0.25, requires_grad=True),
        np.array(0.25),
        "0.25",
        " 2.5e-1 ",
    ],
    ids=repr,
)
def test_a_number_is_constant(lr):
    assert at(lr, 1, 2, 9) == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("lr", [0.5, lambda t: t / 2, lambda t: 0.5, {1: 0.5, 9: 1}, "linear:peak=1,total=9"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (2, 3)])
def test_shape_of_the_steps(lr, shape):
    steps = np.arange(1, 1 + math.prod(shape)).reshape(shape)
    found = rates(lr, steps)
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (np.float64, shape)
    assert found.ravel().tolist() == [at(lr, step)[0] for step in steps.ravel()]
    assert rates(lr, steps.astype(np.float64)).tolist() == found.tolist()


# Descriptions, by hand

BY_HAND = {
    "constant:lr=0.5": {1: 0.5, 1000: 0.5},
    "constant:lr=0.5,warmup=4": {1: 0.125, 3: 0.375, 4: 0.5, 5: 0.5, 1000: 0.5},
    "constant:lr=0.5,warmup=4,first=0": {1: 0.0, 4: 0.375, 5: 0.5},
    "constant:lr=0": {1: 0.0},
    "linear:peak=8,total=8": {1: 7.0, 4: 4.0, 8: 0.0},
    "linear:peak=8,total=8,first=0": {1: 8.0, 5: 4.0, 9: 0.0},
    "linear:peak=8,total=10,warmup=2": {1: 4.0, 2: 8.0, 6: 4.0, 10: 0.0},
    "linear:peak=8,total=10,warmup=2,floor=0.5": {1: 4.0, 2: 8.0, 6: 6.0, 10: 4.0},
    "linear:peak=8,total=4,warmup=4": {1: 2.0, 4: 8.0},
    # Warm-up to 2, then half a wave of 6 steps: cos 60° = 1/2 a third of the way, 0 in the middle.
    "cosine:peak=8,total=8,warmup=2": {1: 4.0, 2: 8.0, 4: 6.0, 5: 4.0, 6: 2.0, 8: 0.0},
    "cosine:peak=8,total=8,warmup=2,floor=0.25": {1: 4.0, 2: 8.0, 4: 6.5, 5: 5.0, 6: 3.5, 8: 2.0},
    "cosine:peak=8,total=8,warmup=2,first=0": {1: 0.0, 2: 4.0, 3: 8.0, 6: 4.0, 9: 0.0},
    "cosine:peak=8,total=6": {2: 6.0, 3: 4.0, 6: 0.0},
    "cosine:peak=8,total=6,first=0": {1: 8.0, 4: 4.0, 7: 0.0},
    "cosine:peak=8,total=6,first=4": {1: 2.0, 3: 0.0},
    "cosine:peak=8,total=4,warmup=4": {2: 4.0, 4: 8.0},
    "cosine:peak=8,total=6,floor=1": {1: 8.0, 6: 8.0},
    "inverse_sqrt:peak=8,warmup=4": {1: 2.0, 4: 8.0, 16: 4.0, 64: 2.0},
    "inverse_sqrt:peak=8,warmup=4,first=0": {1: 0.0, 5: 8.0, 17: 4.0},
    "wsd:peak=8,total=10,decay=4": {1: 8.0, 6: 8.0, 7: 6.0, 8: 4.0, 10: 0.0},
    "wsd:peak=8,total=10,decay=4,warmup=2,floor=0.5": {1: 4.0, 2: 8.0, 6: 8.0, 8: 6.0, 10: 4.0},
    "wsd:peak=8,total=10,decay=8,warmup=2": {1: 4.0, 2: 8.0, 3: 7.0, 10: 0.0},
    " cosine: peak = 8, total = 6e0 ": {3: 4.0},
}


@pytest.mark.parametrize("description", BY_HAND)
def test_descriptions_by_hand(description):
    by_hand = BY_HAND[description]
    assert at(description, *by_hand) == pytest.approx(list(by_hand.values()), rel=1e-15, abs=1e-15)


def test_order_of_keys_and_steps_does_not_matter():
    assert at("cosine:warmup=2,total=8,peak=8", 5, 1, 5) == pytest.approx([4, 4, 4])


# As torch schedules them: LambdaLR makes its first step at position 0.


def in_torch(factor, peak, steps):
    """The rates that SGD's first steps see."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("description", "after_warmup"),
    [
        ("constant:lr=3e-3,warmup=7", lambda p: 1),
        ("linear:peak=3e-3,warmup=7,total=40", lambda p: (40 - p) / (40 - 7)),
        ("cosine:peak=3e-3,warmup=7,total=40", lambda p: (1 + math.cos(math.pi * (p - 7) / (40 - 7))) / 2),
        (
            "cosine:peak=3e-3,warmup=7,total=40,floor=0.1",
            lambda p: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (p - 7) / (40 - 7))),
        ),
        ("inverse_sqrt:peak=3e-3,warmup=7", lambda p: math.sqrt(7 / p)),
        ("wsd:peak=3e-3,warmup=7,total=40,decay=9", lambda p: min(1, (40 - p) / 9)),
    ],
)
def test_first_0_is_lambda_lr(description, after_warmup):
    expected = in_torch(lambda p: p / 7 if p < 7 else after_warmup(p), 3e-3, 40)
    assert at(description + ",first=0", *range(1, 41)) == pytest.approx(expected, rel=1e-13)


# Tables


@pytest.fixture
def files(tmp_path):
    """The table {1: 1, 5: 3, 9: 0} in files, with a column more."""
    (tmp_path / "lr.csv").write_text("step,loss,lr\n1,5,1\n5,,3\n9,3,0e0\n")
    (tmp_path / "excel.csv").write_text("step, lr\r\n1, 1\r\n5, 3\r\n\r\n9, 0\r\n", encoding="utf-8-sig")
    table = pa.table({"lr": [1.0, 3.0, 0.0], "loss": ["a", "b", "c"], "step": [1, 5, 9]})
    pq.write_table(table, tmp_path / "lr.parquet")
    return tmp_path


TABLES = [
    {1: 1, 5: 3, 9: 0},
    {9: 0, 1: 1, 5: 3},
    {"1": 1, "5": "3", "9": 0},
    {np.int64(1): torch.tensor(1.0), 5: np.float32(3), 9: 0},
    ([1, 5, 9], [1, 3, 0]),
    [(1, 5, 9), (1, 3, 0)],
    (range(1, 10, 4), (1.0, 3.0, 0.0)),
    (np.array([1, 5, 9]), np.array([1, 3, 0], dtype=np.float32)),
    (torch.tensor([1, 5, 9]), torch.tensor([1, 3, 0], dtype=torch.bfloat16, requires_grad=False)),
    (torch.tensor([1, 5, 9]), torch.tensor([1.0, 3.0, 0.0], requires_grad=True)),
    ([1, 5, 9], [torch.tensor(1.0), torch.tensor(3.0), torch.tensor(0.0)]),
    ([1, 5, math.inf], [1, 3, 3]),
]


@pytest.mark.parametrize("table", TABLES[:-1])
def test_tables_are_straight_between_their_rows(table):
    assert at(table, 1, 2, 3, 5, 6, 9) == [1, 1.5, 2, 3, 2.25, 0]


@pytest.mark.parametrize("name", ["lr.csv", "excel.csv", "lr.parquet"])
def test_tables_in_files(files, name):
    assert at(str(files / name), 1, 2, 3, 5, 6, 9) == [1, 1.5, 2, 3, 2.25, 0]


def test_a_table_may_go_beyond_the_steps():
    assert at({-3: 0, 0: 0, 4: 4, 100: 0}, 1, 4) == [1, 4]
    assert at(TABLES[-1], 3, 10**9) == [2, 3]
    assert at({7: 0.5}, 7) == [0.5]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({1: 1, 5: 1}, "the table lr covers steps 1 to 5, but steps 1 to 9 are needed; add rows"),
        (([3, 9], [1, 1]), "the table lr covers steps 3 to 9, but steps 1 to 9 are needed; add rows"),
        (([math.nan], [1]), "the table lr covers steps nan to nan, but steps 1 to 9 are needed"),
        ({}, "lr must have one step and one rate in each row; got 0 and 0"),
        (([1, 9], [1]), "lr must have one step and one rate in each row; got 2 and 1"),
        (([1, 5, 5, 9], [1, 1, 1, 1]), "the steps of lr must ascend without repeats, got 5 after 5"),
        (([1, 9, 5], [1, 1, 1]), "the steps of lr must ascend without repeats, got 5 after 9"),
        (([1, math.nan, 9], [1, 1, 1]), "the steps of lr must ascend without repeats, got nan after 1"),
        ({1: 1, "1": 1, 9: 1}, "the steps of lr must ascend without repeats, got 1 after 1"),
        ({1: 1, 5: -0.5, 9: 1}, "the rates of lr must be finite and not negative, got -0.5 at step 5"),
        # Also in a row that no step needs.
        ({1: 1, 9: 1, 12: math.inf}, "the rates of lr must be finite and not negative, got inf at step 12"),
        ({1: 1, 9: None}, "lr must hold numbers only: float.. argument must be"),
        ({(1, 9): 1}, "lr must hold numbers only"),
        (([1, "x"], [1, 1]), r"lr\[0\] must hold numbers only: could not convert string to float: 'x'"),
        ((np.ones((2, 2)), [1, 1]), r"lr\[0\] must hold numbers only"),
        ((torch.tensor(1), torch.tensor(1.0)), r"lr\[0\] must hold numbers only"),
        ((1e-3, 1e-4), r"lr\[0\] must hold numbers only"),
    ],
)
def test_wrong_tables(table, message):
    with pytest.raises(ValueError, match=message):
        rates(table, np.arange(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,rate\n1,1\n", "lr.csv must have the columns step and lr, it lacks lr$"),
        ("Step;lr\n1;1\n", "lr.csv must have the columns step and lr, it lacks step and lr$"),
        ("", "lr.csv must have the columns step and lr, it lacks step and lr$"),
        ("step,lr\n", "lr.csv must have one step and one rate in each row; got 0 and 0"),
        ("step,lr\n1,x\n", "the column lr of .*lr.csv must hold numbers only: .*'x'"),
        ("step,lr\n1\n", "the column lr of .*lr.csv must hold numbers only: .*NoneType"),
        ("step,lr\n1,1\n1,1\n", "the steps of .*lr.csv must ascend without repeats, got 1 after 1"),
        ("step,lr\n1,1\n2,-1\n", "the rates of .*lr.csv must be finite and not negative, got -1.0 at step 2"),
        ("step,lr\n1,1\n2,1\n", "the table .*lr.csv covers steps 1 to 2, but steps 1 to 9 are needed"),
    ],
)
def test_wrong_csv(tmp_path, text, message):
    (tmp_path / "lr.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        rates(str(tmp_path / "lr.csv"), np.arange(1, 10))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"step": [1], "rate": [1.0]}, "lr.parquet must have the columns step and lr, it lacks lr$"),
        ({"rate": [1.0]}, "lr.parquet must have the columns step and lr, it lacks step and lr$"),
        ({"step": [1, 9], "lr": [1.0, None]}, "the column lr of .*lr.parquet must hold numbers only"),
        ({"step": [1, 5], "lr": [1.0, 1.0]}, "the table .*lr.parquet covers steps 1 to 5, but steps 1 to 9"),
    ],
)
def test_wrong_parquet(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "lr.parquet")
    with pytest.raises(ValueError, match=message):
        rates(str(tmp_path / "lr.parquet"), np.arange(1, 10))


# Functions


def test_a_vectorised_function_is_called_once_and_cannot_change_the_steps():
    calls, steps = [], np.arange(1.0, 10.0)

    def lr(t):
        calls.append(t.shape)
        t /= 9
        return t

    assert rates(lr, steps).tolist() == [t / 9 for t in range(1, 10)]
    assert calls == [(9,)]
    assert steps[0] == 1


@pytest.mark.parametrize(
    "lr",
    [
        lambda t: (1 + np.cos(np.pi * t / 9)) / 2,
        lambda t: (1 + torch.cos(torch.pi * torch.as_tensor(t).double() / 9)).requires_grad_() / 2,
        lambda t: ((1 + np.cos(np.pi * t / 9)) / 2).tolist(),
        lambda t: (1 + math.cos(math.pi * t / 9)) / 2,  # TypeError for arrays
        lambda t: np.cos(np.pi * t / 18) ** 2 if t > 0 else 0.0,  # ValueError: the truth of an array
        lambda t: (1 + math.cos(math.pi * range(10)[t] / 9)) / 2,  # takes ints only
        lambda t: torch.tensor((1 + math.cos(math.pi * t / 9)) / 2, dtype=torch.float64),
        lambda t: (1 + math.cos(math.pi * (t.bit_length() and t) / 9)) / 2,  # AttributeError
    ],
)
def test_functions_of_arrays_or_of_single_steps(lr):
    expected = [(1 + math.cos(math.pi * t / 9)) / 2 for t in range(1, 10)]
    assert at(lr, *range(1, 10)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert at(lr, 4) == pytest.approx(expected[3:4])


def test_functions_that_do_not_depend_on_the_steps_shape():
    assert at(lambda t: 0.5, 1, 2, 3) == [0.5, 0.5, 0.5]
    assert at(lambda t: [0.5, 0.25] if np.ndim(t) else 0.125, 1, 2, 3) == [0.125, 0.125, 0.125]


def test_single_steps_are_plain_ints():
    seen = []

    def lr(t):
        if not isinstance(t, int):
            raise TypeError("an int")
        seen.append(type(t))
        return 1.0

    rates(lr, np.array([1.0, 2.0]))
    rates(lr, np.array([3], dtype=np.int32))
    assert seen == [int, int, int]


def test_errors_of_a_function_name_the_step():
    def lr(t):
        return {1: 0.1, 2: 0.2}[t]

    with pytest.raises(
        ValueError, match="lr must give a number for each step; at step 3, KeyError: 3"
    ) as info:
        rates(lr, np.arange(1, 5))
    assert isinstance(info.value.__cause__, KeyError)


@pytest.mark.parametrize("value", [None, "abc", [1.0, 2.0, 3.0, 4.0]])
def test_functions_that_give_no_number(value):
    with pytest.raises(
        ValueError, match=r"lr must give a number for each step; at step 1, (Type|Value)Error: "
    ):
        rates(lambda t: value, np.arange(1, 3))


# What is wrong in other ways


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (-1e-3, "the rates of lr must be finite and not negative, got -0.001 at step 1$"),
        (math.nan, "the rates of lr must be finite and not negative, got nan at step 1$"),
        ("inf", "the rates of lr must be finite and not negative, got inf at step 1$"),
        (lambda t: 3.0 - t, "the rates of lr must be finite and not negative, got -1.0 at step 4$"),
        (lambda t: 1.0 if t < 7 else math.inf, "finite and not negative, got inf at step 7$"),
    ],
)
def test_rates_are_finite_and_not_negative(lr, message):
    with pytest.raises(ValueError, match=message):
        rates(lr, np.arange(1, 10))


@pytest.mark.parametrize("lr", [None, object(), [1, 2, 3], (1,), np.ones(3), torch.ones(3), 1j])
def test_what_is_no_schedule(lr):
    with pytest.raises(
        ValueError, match=re.escape("lr must be a number, a function of the step, {step: lr},")
    ):
        rates(lr, np.arange(1, 10))


@pytest.mark.parametrize("steps", [[0, 1], [1.5], [-1], [math.nan], [math.inf]])
def test_steps_are_whole_numbers_from_1(steps):
    with pytest.raises(ValueError, match="steps must be whole numbers from 1, got "):
        rates(1e-3, np.array(steps))


KINDS = "a kind of constant, linear, cosine, inverse_sqrt, wsd; got "
WRONG = {
    "cosin:peak=1,total=9": KINDS + "'cosin:peak=1,total=9'",
    "": KINDS + "''",
    "Cosine:peak=1,total=9": KINDS,
    "no.csv": "an existing .csv or .parquet file, or kind:key=value,key=value with .* got 'no.csv'",
    "cosine:peak=1,steps=9": "cosine has the keys peak, total, warmup, floor, first; got 'steps'; "
    "in lr='cosine:peak=1,steps=9'",
    "constant:lr=1,peak=1": "constant has the keys lr, warmup, first; got 'peak'",
    "inverse_sqrt:peak=1,warmup=1,total=9": "inverse_sqrt has the keys peak, warmup, first; got 'total'",
    "cosine:peak=1,total=9,": "cosine has the keys .*; got ''",
    "constant": "constant needs lr; missing: lr; in lr='constant'",
    "constant:": "constant needs lr; missing: lr",
    "constant:1e-3": "constant has the keys lr, warmup, first; got '1e-3'",
    "cosine:warmup=2": "cosine needs peak, total; missing: peak, total",
    "inverse_sqrt:peak=1": "inverse_sqrt needs peak, warmup; missing: warmup",
    "wsd:peak=1,total=9": "wsd needs peak, total, decay; missing: decay",
    "linear:peak=1,total=9,peak=1": "peak must be given once, got it again; in lr='linear:",
    "linear:peak=x,total=9": "peak must be a finite number from 0, got 'x'",
    "linear:peak,total=9": "peak must be a finite number from 0, got ''",
    "linear:peak=1=2,total=9": "peak must be a finite number from 0, got '1=2'",
    "linear:peak=-1,total=9": "peak must be a finite number from 0, got '-1'",
    "linear:peak=nan,total=9": "peak must be a finite number from 0, got 'nan'",
    "linear:peak=inf,total=9": "peak must be a finite number from 0, got 'inf'",
    "constant:lr=-1": "lr must be a finite number from 0, got '-1'",
    "linear:peak=1,total=20k": "total must be a whole number of steps from 1, got '20k'",
    "linear:peak=1,total=inf": "total must be a whole number of steps from 1, got 'inf'",
    "linear:peak=1,total=0": "total must be a whole number of steps from 1, got '0'",
    "linear:peak=1,total=9.5": "total must be a whole number of steps from 1, got '9.5'",
    "linear:peak=1,total=9,warmup=0.1": "warmup must be a whole number of steps from 0, got '0.1'",
    "linear:peak=1,total=9,warmup=-1": "warmup must be a whole number of steps from 0, got '-1'",
    "inverse_sqrt:peak=1,warmup=0": "warmup must be a whole number of steps from 1, got '0'",
    "wsd:peak=1,total=9,decay=0.2": "decay must be a whole number of steps from 1, got '0.2'",
    "linear:peak=1,total=9,first=-1": "first must be a whole number of steps from 0, got '-1'",
    "linear:peak=1,total=9,floor=1.5": "floor must be a finite number from 0 to 1, got '1.5'",
    "linear:peak=1,total=9,floor=-0.1": "floor must be a finite number from 0 to 1, got '-0.1'",
    "linear:peak=1,total=9,warmup=10": "warmup must be at most total=9 steps, got 10; in lr='linear:",
    "wsd:peak=1,total=9,warmup=5,decay=5": "warmup and decay together must be at most total=9 steps, got 10",
    "wsd:peak=1,total=9,decay=10": "warmup and decay together must be at most total=9 steps, got 10",
    "cosine:peak=1,total=8": "lr='cosine:peak=1,total=8' covers steps 1 to 8, but steps 1 to 9 are needed; "
    "give it a larger total",
    "linear:peak=1,total=7,first=0": "covers steps 1 to 8, but steps 1 to 9 are needed",
    "wsd:peak=1,total=9,decay=3,first=4": "covers steps 1 to 6, but steps 1 to 9 are needed",
}


@pytest.mark.parametrize("description", WRONG)
def test_wrong_descriptions(description):
    with pytest.raises(ValueError, match=WRONG[description]):
        rates(description, np.arange(1, 10))


# By property

peaks = st.floats(0, 1e3)
floors = st.floats(0, 1)


@st.composite
def descriptions(draw):
    """A schedule of up to 60 steps and its last step."""
    kind = draw(st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt", "wsd"]))
    total, first = draw(st.integers(1, 60)), draw(st.integers(0, 3))
    assume(total + 1 - first >= 1)
    warmup = draw(st.integers(int(kind == "inverse_sqrt"), total))
    decay = draw(st.integers(1, max(total - warmup, 1)))
    if kind == "wsd":
        warmup = min(warmup, total - decay)
    own = {"linear": f",total={total}", "cosine": f",total={total}", "wsd": f",total={total},decay={decay}"}
    floor = f",floor={draw(floors)!r}" if kind in own else ""
    peak = f"{'lr' if kind == 'constant' else 'peak'}={draw(peaks)!r}"
    return f"{kind}:{peak},warmup={warmup}{own.get(kind, '')}{floor},first={first}", total + 1 - first


@given(descriptions())
def test_a_table_made_from_a_description_gives_the_same_rates(drawn):
    description, last = drawn
    steps = np.arange(1, last + 1)
    found = rates(description, steps)
    as_table = (
        dict(zip(steps.tolist(), found.tolist(), strict=True)),
        (steps, found),
        (torch.from_numpy(steps), torch.from_numpy(found)),
        lambda t: rates(description, t),
        lambda t: found[t - 1].item(),
    )
    for table in as_table:
        np.testing.assert_array_equal(rates(table, steps), found)


@given(descriptions())
def test_no_description_exceeds_its_peak_or_rises_after_its_warm_up(drawn):
    description, last = drawn
    settings = dict(pair.split("=") for pair in description.partition(":")[2].split(","))
    peak = float(settings.get("peak", settings.get("lr")))
    found = rates(description, np.arange(1, last + 1))
    assert (found <= peak * (1 + 1e-12)).all()
    position = np.arange(1, last + 1) - 1 + int(settings["first"])
    warm = position >= int(settings["warmup"])
    assert (np.diff(found[warm]) <= 1e-12 * peak).all()
    assert (np.diff(found[~warm]) >= 0).all()
