import numpy as np
import pyarrow as pa
import pytest
import torch

import weibull_kernels as wk
from weibull_kernels.records import read_records
from weibull_kernels.report import budget_table, phase_table, role_series
from weibull_kernels.sinks import ParquetSink
from weibull_kernels.tables import columns_table


def cells(table):
    """The rows of a printed table by their first word."""
    return {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}


def budget(names, alignment, decay, **more):
    alignment, decay = np.array(alignment, float), np.array(decay, float)
    zero = np.zeros(len(alignment))
    return wk.ForceBudget(
        alignment, zero, decay, zero, norm_sq=zero + 4, numel=np.full(len(zero), 100), names=names, **more
    )


NAMES = (
    "embed_out.weight",
    "layers.0.mlp.a.weight",
    "layers.1.mlp.a.weight",
    "layers.0.attention.dense.weight",
)


def test_by_role_by_hand():
    table = cells(budget_table(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3])))
    assert list(table)[2:] == ["attention_output", "ffn", "head", "transmission", "all"]
    # tensors, entries, alignment, injection, decay, Δ‖w‖²/‖w‖², σ, direction
    assert table["ffn"][1:] == ["2", "200", "+75.0", "+0.0", "-25.0", "+2.50e-01", "0.20000", "grows"]
    assert table["attention_output"][6:] == ["-5.00e-01", "0.20000", "shrinks"]
    assert table["head"][-1] == "holds"
    assert table["transmission"][1:6] == ["3", "300", "+50.0", "+0.0", "-50.0"]
    assert table["all"][1:3] == ["4", "400"]


def test_the_table_is_plain_text_of_one_width():
    text = budget_table(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3]))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert text == text.strip("\n")
    assert str(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3])) == text


def test_rounding_is_shown_where_it_is_measured():
    """Absolute budgets 2, 4, 0, 4: rounding of 30 % of bfloat16's size and 1e-7 of float32's."""
    rounding = np.array([-4e-9, 1.2, 0, 0.0])
    text = budget_table(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3], rounding=rounding))
    table = cells(text)
    assert "rounding %" in text
    assert table["head"][5:] == ["-50.0", "-2.0e-07", "-1.00e-09", "0.20000", "holds"]
    # The change that was measured: (3 − 1 + 1.2)/8.
    assert table["ffn"][4:8] == ["+0.0", "-25.0", "+30.0", "+4.00e-01"]
    assert table["attention_output"][6] == "+0.0"
    assert table["all"][6] == "+12.0"
    assert "rounding" not in budget_table(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3]))


def test_the_direction_is_that_of_the_measured_change():
    one = wk.ForceBudget(1.0, 0.0, -0.5, 0.0, norm_sq=4.0, rounding=-0.4)
    assert cells(str(one))["all"][-1] == "holds"
    assert cells(str(wk.ForceBudget(1.0, 0.0, -0.5, 0.0, norm_sq=4.0)))["all"][-1] == "grows"
    assert cells(str(wk.ForceBudget(1.0, 0.0, -0.5, 0.0, 4.0, rounding=-0.7)))["all"][-1] == "shrinks"
    still = wk.ForceBudget(0.0, 0.0, 0.0, 0.0, norm_sq=4.0, rounding=0.0)
    assert cells(str(still))["all"][3:7] == ["–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([5, 5, 5, 5], "sums over 5 steps of each tensor"),
        ([5, 0, 5, 3], "sums over 0 to 5 steps of each tensor"),
        ([1, 1, 0, 1], None),
        ([0, 0, 0, 0], None),
    ],
)
def test_how_many_steps_are_covered(steps, said):
    text = budget_table(budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3], steps=np.array(steps)))
    assert (text.splitlines()[-1] == said) if said else "sums" not in text


def test_the_largest_table_is_whole():
    zero = np.zeros(4)
    numel = np.full(4, 10**12)
    forces = wk.ForceBudget(zero + 1, zero, -zero, zero, zero + 4, zero - 1e-9, numel, names=NAMES)
    text = budget_table(forces)
    assert max(map(len, text.splitlines())) <= 120
    for whole in ("4,000,000,000,000", "alignment %", "-1.0e-07", "direction"):
        assert whole in text
    assert "attention_output" in "".join(line.split()[0] for line in text.splitlines() if line.strip())


def test_no_transmission_row_where_there_are_no_such_weights():
    assert "transmission" not in budget_table(budget(("a.bias", "b.bias"), [1, 1], [0, 0]))


def test_without_names_all_is_one_row():
    sums = (np.array([-0.5, 1.0]), 1.0, 4.0)
    table = cells(budget_table(wk.ForceBudget.from_sums(*sums, lr=0.1, weight_decay=0.1)))
    assert list(table)[2:] == ["all"]
    assert table["all"][1:3] == ["2", "–"]


def test_plain_numbers_and_single_rows():
    one = wk.ForceBudget.from_sums(-0.5, 1.0, 4.0, lr=0.1, weight_decay=0.1)
    assert cells(str(one))["all"] == ["all", "1", "–", "+52.6", "+5.3", "-42.1", "+7.35e-03", "–", "grows"]
    total = budget(NAMES, [1, 3, 0, 1], [-1, -1, 0, -3]).total("*.mlp.*")
    assert cells(str(total))["*.mlp.*"][1:3] == ["1", "200"]


def test_tensors_that_did_not_move_and_tensors_of_zeros():
    still = wk.ForceBudget(0.0, 0.0, 0.0, 0.0, norm_sq=0.0, numel=4)
    assert cells(str(still))["all"] == ["all", "1", "4", "–", "–", "–", "–", "0.00000", "at", "rest"]


def test_a_measured_budget_of_torch_tensors():
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert set(cells(budget_table(wk.forces(optimizer)))) >= {"other", "bias", "all"}


def of_a_run(path, rounding=None):
    """A head in balance throughout; an FFN that rises for 50 steps, holds for 30 and relaxes for 20."""
    names = ("embed_out.weight", "layers.0.mlp.a.weight")
    alignment = np.repeat([3, 1, 1], [50, 30, 20])
    decay = np.repeat([-1, -1, -3], [50, 30, 20])
    with ParquetSink(path) as sink:
        for row in range(100):
            more = {"step": np.full(2, row + 1), "rounding": rounding}
            sink.write(row + 1, budget(names, [1, alignment[row]], [-1, decay[row]], **more))
    return read_records(path)


@pytest.fixture
def records(tmp_path):
    return of_a_run(tmp_path / "run.parquet")


def test_by_role_and_phase(records):
    lines = [line.split() for line in phase_table(records).splitlines() if line.strip()][3:]
    # role, phase, from, of run, alignment, injection, decay, net, σ; the role is said once. The average
    # over five records carries each phase two records into the next. σ is that after the last record.
    assert lines[0][:4] == ["ffn", "rise", "1", "52"]
    assert lines[1][:3] == ["balance", "53", "26"]
    assert lines[2] == ["relaxation", "79", "22", "+26.2", "+0.0", "-73.8", "-47.6", "0.14142"]
    assert lines[3][:4] == ["head", "balance", "1", "100"]
    assert lines[3][4:] == ["+50.0", "+0.0", "-50.0", "+0.0", "0.20000"]
    assert [line[0] for line in lines[4:] if len(line) > 8] == ["transmission", "all"]


def test_by_role_and_phase_with_rounding(tmp_path):
    text = phase_table(of_a_run(tmp_path / "run.parquet", rounding=np.array([0.5, -4e-9])))
    lines = [line.split() for line in text.splitlines() if line.strip()][3:]
    # In the rise the absolute budget is 4 fifty times and 2 twice, in the relaxation 2 and then 4.
    assert lines[0][7:] == ["-1.0e-07", "+49.0", "0.20000"]
    assert lines[2][3:] == ["+26.2", "+0.0", "-73.8", "-1.0e-07", "-47.6", "0.14142"]
    assert lines[3][4:] == ["+50.0", "+0.0", "-50.0", "+25.0", "+0.0", "0.21213"]
    assert "rounding" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 120


def with_fits(records, last=100):
    """k and λ of the FFN as they might be written: every tenth step up to `last`, and null elsewhere."""
    step = records["step"].to_numpy()
    known = (records["role"].to_numpy(zero_copy_only=False) == "ffn") & (step % 10 == 0) & (step <= last)
    for name, values in (("k", 1.2 - step / 1e4), ("scale", 0.1 + step / 1e3)):
        records = records.append_column(name, pa.array(values, mask=~known))
    return records


def test_by_role_and_phase_with_the_weibull_shape(records):
    text = phase_table(with_fits(records))
    lines = [line.split() for line in text.splitlines() if line.strip()][3:]
    # λ rises to the last record: the phases do not change, the ends have the last k and λ before them.
    assert lines[0][1:4] == ["rise", "1", "52"]
    assert lines[0][-3:-1] == ["1.1950", "0.15000"]
    assert lines[1][-3:-1] == ["1.1930", "0.17000"]
    assert lines[2][-3:-1] == ["1.1900", "0.20000"]
    assert lines[3][0] == "head"
    assert lines[3][-3:] == ["–", "–", "0.20000"]
    transmission = next(line for line in lines if line[0] == "transmission")
    assert transmission[-3:-1] == ["–", "–"]
    assert phase_table(with_fits(records, last=0)).count("–") >= 2 * len(lines)


def test_the_widest_phase_table_is_whole(tmp_path):
    records = of_a_run(tmp_path / "run.parquet", rounding=np.array([0.5, -4e-9]))
    names = ["attention_output" if role == "head" else role for role in records["role"].to_pylist()]
    records = records.set_column(records.column_names.index("role"), "role", pa.array(names))
    text = phase_table(with_fits(records))
    assert max(map(len, text.splitlines())) <= 120
    assert any(line.split()[0] == "attention_output" for line in text.splitlines() if line.strip())
    for heading in ("alignment", "injection", "decay", "rounding", "net", "k", "λ", "σ"):
        assert heading in text.splitlines()[0].split()


def test_the_peak_of_the_scale_decides_over_that_of_sigma(records):
    """Past the peak of λ, but within a hundredth of it, the last twenty steps overshoot."""
    step = records["step"].to_numpy()
    scale = np.where(step < 50, 0.1, 0.2 - 1e-6 * step)
    text = phase_table(records.append_column("k", pa.array(scale)).append_column("scale", pa.array(scale)))
    ffn = [line.split() for line in text.splitlines() if line.strip()][3:6]
    assert ffn[2][:3] == ["overshoot", "79", "22"]


def test_what_is_known_of_a_role_over_the_run(records):
    scale = role_series(with_fits(records), "ffn", "scale")
    assert scale.shape == (100,)
    assert np.flatnonzero(~np.isnan(scale)).tolist() == list(range(9, 100, 10))
    assert scale[9] == pytest.approx(0.11)
    assert np.isnan(role_series(with_fits(records), "head", "scale")).all()
    assert np.isnan(role_series(with_fits(records), "transmission", "k")).sum() == 100
    with pytest.raises(KeyError):
        role_series(records, "ffn", "scale")


def test_no_records_make_no_table(records):
    with pytest.raises(ValueError, match="no records to make a table of"):
        phase_table(records.slice(0, 0))


ODD = ("a[bold].weight", "x:key:y", "[/foo]", "new\nline\x1b[31m", "[red]")
SHOWN = ("a[bold].weight", "x:key:y", "[/foo]", r"new\nline\x1b[31m", "[red]")


@pytest.mark.parametrize(("name", "seen"), [*zip(ODD, SHOWN, strict=True)])
def test_names_and_roles_are_no_markup(name, seen, tmp_path):
    assert seen in cells(budget_table(budget((name,), [1], [-1])))
    forces = budget(("w", "v"), [1, 1], [-1, -1], role_overrides={"w": name})
    assert seen in cells(budget_table(forces))
    with ParquetSink(tmp_path / "run.parquet") as sink:
        for step in (1, 2):
            sink.write(step, forces)
    assert seen in cells(phase_table(read_records(tmp_path / "run.parquet")))


def test_results_of_columns_print_as_tables():
    columns = {
        "name": np.array(["a[q]", "b"]),
        "values": np.array([[3.0, 0.125], [1e-7, np.nan]]),
        "residual": np.array([[0.5], [0.25]]),
        "passes": np.array([1, 12]),
    }
    lines = columns_table(columns).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        ["parameter", "values", "1", "values", "2", "residual", "passes"],
        ["a[q]", "3", "0.125", "0.5", "1"],
        ["b", "1e-07", "nan", "0.25", "12"],
    ]


def test_results_across_widths_print_as_tables():
    weights = {"layers.0.mlp.up_proj.weight": torch.diag(torch.tensor([3.0, 2.0]))}
    for result, shown in (
        (wk.scaling.classify(weights), "matrix"),
        (wk.top_singular_values(weights), "ffn"),
    ):
        assert "layers.0.mlp.up_proj.weight" in str(result)
        assert shown in str(result)
