"""The report page: its figures against the records, and what it says of runs that lack something."""

import html
import json
import re

import numpy as np
import pytest
from recorded_runs import LR, NAMES, WEIGHT_DECAY, run_of, write_run

import weibull_kernels as wk
from weibull_kernels.page.bins import bin_starts, binned
from weibull_kernels.page.closure import closure_residual, overall, rounding_share, worst
from weibull_kernels.page.comparison import common_groups, compare_forces, compare_sigma
from weibull_kernels.page.facts import facts, groups_table, runs_table, tensors_table
from weibull_kernels.page.figures import forces_figure, rounding_figure, sigma_figure
from weibull_kernels.page.html import page_of
from weibull_kernels.page.layers import NO_LAYER, at_end, by_kind, end_maps, layer_of, over_run, run_maps
from weibull_kernels.page.runs import make_run
from weibull_kernels.records import read_records
from weibull_kernels.report import role_series


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path)


@pytest.fixture
def frame(run):
    return run.records.to_pandas()


def traces(figure, name, axis="y"):
    return [trace for trace in figure.data if trace.name == name and (trace.yaxis or "y") == axis]


def table(found):
    """Cells by heading of each row, by its first cell."""
    headings = [heading for heading, _ in found.headings]
    return {row[0].text: dict(zip(headings, row, strict=True)) for row in found.rows}


def texts(page):
    """The captions and facts."""
    return html.unescape(" ".join(re.findall(r"<(?:figcaption|dd|dt)[^>]*>(.*?)</", page, re.S)))


# Figures against the records.


def test_the_forces_drawn_are_those_of_the_records(run, frame):
    figure = forces_figure(run.main)
    chosen = frame[frame["role"].isin(wk.TRANSMISSION)].groupby("step")
    raw, mean = traces(figure, "alignment", "y2")
    sums = chosen[["alignment", "injection", "decay"]].sum()
    assert raw.x == pytest.approx(sums.index.to_numpy() - 2)  # the middle of five steps
    assert raw.y == pytest.approx((sums["alignment"] / sums.abs().sum(axis=1)).to_numpy(), rel=1e-6)
    # A window of 5 % of 195 steps reaches 4.875 to either side, so it is widened to the neighbours.
    around = sums.rolling(3, center=True, min_periods=1)
    together = around.sum()
    assert mean.y == pytest.approx((together["alignment"] / together.abs().sum(axis=1)).to_numpy(), rel=1e-6)
    (_, upper) = traces(figure, "decay")
    steps = 5 * around.count()["decay"]
    assert upper.customdata == pytest.approx((together["decay"] / steps).to_numpy(), rel=1e-6)
    (net,) = traces(figure, "net", "y2")
    whole = chosen[["alignment", "injection", "decay", "coupling"]].sum().sum(axis=1)
    whole = whole.rolling(3, center=True, min_periods=1).sum()
    assert net.y == pytest.approx((whole / together.abs().sum(axis=1)).to_numpy(), rel=1e-5)
    assert {trace.line.dash for trace in figure.data if trace.showlegend is None and trace.line.dash} == {
        "solid",
        "dot",
        "dashdot",
        "dash",
    }


def test_the_phases_are_those_of_the_library(run):
    step, series = wk.records.force_series(run.records, *wk.TRANSMISSION)
    assert run.main.phases.tolist() == wk.find_phases(step, series).tolist()
    shades = forces_figure(run.main).layout.shapes
    assert shades[0].x0 == 0
    assert shades[-1].x1 == step[-1]
    assert [one.x1 for one in shades[:-1]] == [one.x0 for one in shades[1:]]


def test_sigma_lambda_and_the_rate_are_those_of_the_records(run, frame):
    roles = [group for label, group in run.groups.items() if label != "all weights"]
    figure = sigma_figure(roles, run.lrs, run.main)
    sigma, scale = traces(figure, "ffn")
    last = frame[frame["role"] == "ffn"].groupby("step")[["norm_sq_after", "numel"]].sum()
    assert sigma.y == pytest.approx(np.sqrt(last["norm_sq_after"] / last["numel"]).to_numpy(), rel=1e-6)
    known = role_series(run.records, "ffn", "scale")
    assert scale.y == pytest.approx(known[~np.isnan(known)], rel=1e-6)
    assert scale.x.tolist() == run.groups["ffn"].step[~np.isnan(known)].tolist()
    assert scale.line.dash == "dash"
    (rate,) = traces(figure, "lr", "y4")
    assert rate.y == pytest.approx(np.full(40, LR))
    titles = [figure.layout[axis].title.text for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert titles == ["σ of matrices", "σ of vectors", "shape k", "lr η"]


def test_closure_and_rounding_by_hand(run, frame):
    tensors = run.tensors
    one = frame[frame["name"] == NAMES[1]].reset_index()
    absolute = one[["alignment", "injection", "decay"]].abs().sum(axis=1)
    share = rounding_share(tensors)
    assert share[1] == pytest.approx((one["rounding"].abs() / absolute).to_numpy())
    whole = (
        frame.groupby("step")[["alignment", "injection", "decay"]].agg(lambda x: x.abs().sum()).sum(axis=1)
    )
    by_step = frame.assign(size=frame["rounding"].abs()).groupby("step")["size"].sum() / whole
    assert overall(share, tensors) == pytest.approx(by_step.to_numpy())
    assert worst(share) == pytest.approx(share.max(axis=0))
    residual = closure_residual(tensors)
    assert np.isnan(residual[:, -1]).all()
    assert np.nanmax(residual) < 1e-13
    figure = rounding_figure(tensors)
    assert [figure.layout[axis].title.text for axis in ("yaxis", "yaxis2")] == [
        "rounding / budget",
        "closure / budget",
    ]


def test_a_force_that_is_wrong_is_seen_in_the_closure(tmp_path):
    def change(record, columns):
        if record == 3:
            columns["alignment"] = columns["alignment"] * np.where(np.arange(len(NAMES)) == 1, 1.5, 1)

    residual = closure_residual(run_of(tmp_path, change=change).tensors)
    assert np.argwhere(residual > 1e-12).tolist() == [[1, 2]]
    forces = run_of(tmp_path, change=change).tensors.sums
    wrong = forces.alignment[1, 2] / 3 / forces.absolute[1, 2]
    assert residual[1, 2] == pytest.approx(wrong)


def test_heat_maps_by_hand(run, frame):
    edges, found = over_run(run.tensors)
    assert edges.tolist() == list(range(0, 201, 5))
    one = frame[frame["name"] == NAMES[5]].reset_index()
    absolute = one[["alignment", "injection", "decay"]].abs().sum(axis=1)
    net = one[["alignment", "injection", "decay", "coupling"]].sum(axis=1)
    assert found["net"][5] == pytest.approx((net / absolute).to_numpy())
    assert found["alignment"][5] == pytest.approx((one["alignment"] / absolute).to_numpy())
    start = one["norm_sq"][0]
    assert 4 ** found["sigma"][5] == pytest.approx((one["norm_sq_after"] / start).to_numpy())
    maps = run_maps(run.tensors)
    assert {kind for _, kind in maps} == {
        "attention.dense.weight",
        "mlp.dense_h_to_4h.weight",
        "input_layernorm.weight",
        NO_LAYER,
    }
    (heat,) = maps["net", "mlp.dense_h_to_4h.weight"].data
    assert heat.y == ("0", "1")
    assert heat.z[1] == pytest.approx(found["net"][5], rel=1e-6)
    (heat,) = maps["sigma", NO_LAYER].data
    assert heat.y == (NAMES[0],)
    assert heat.customdata[0] == pytest.approx(2.0 ** found["sigma"][0], rel=1e-6)
    (heat,) = end_maps(run.tensors)["net",].data
    last = at_end(run.tensors)["net"]
    assert heat.z.tolist() == [
        pytest.approx([last[1], last[2], last[3]], rel=1e-6),
        pytest.approx([last[4], last[5], last[6]], rel=1e-6),
    ]
    # Within 5 % of 195 steps of the end: the last two records.
    assert last[5] == pytest.approx(net[-2:].sum() / absolute[-2:].sum(), rel=1e-2)


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight", 12),
        ("h.0.attn.c_attn.weight", "h.*.attn.c_attn.weight", 0),
        ("0.weight", "*.weight", 0),
        ("blocks.7", "blocks.*", 7),
        ("layers.3.experts.5.w1", "layers.*.experts.5.w1", 3),
        ("fc1.weight", "fc1.weight", None),
    ],
)
def test_the_layer_is_the_first_integer_of_a_name(name, kind, layer):
    assert layer_of(name) == (kind, layer)


def test_kinds_keep_what_tells_them_apart():
    assert by_kind(("h.1.a", "h.0.a", "h.0.b", "head")) == {"a": {0: 1, 1: 0}, "b": {0: 2}}
    assert list(by_kind(("enc.0.a", "dec.0.a"))) == ["enc.*.a", "dec.*.a"]
    assert list(by_kind(("3", "4"))) == ["*"]


# Many records.


def test_bins_add_forces_up_and_drop_none():
    random = np.random.default_rng(0)
    columns = {
        name: random.standard_normal((3, 11)) for name in ("alignment", "injection", "decay", "coupling")
    }
    sums = wk.ForceBudget(
        **columns, norm_sq=random.uniform(1, 2, (3, 11)), numel=np.ones((3, 11)), steps=np.full((3, 11), 5)
    )
    starts = bin_starts(11, 4)
    assert starts.tolist() == [0, 3, 6, 9]
    found = binned(sums, starts)
    assert found.decay[:, 1] == pytest.approx(columns["decay"][:, 3:6].sum(axis=1))
    assert found.alignment.sum(axis=1) == pytest.approx(columns["alignment"].sum(axis=1))
    assert found.steps.tolist() == [[15, 15, 15, 10]] * 3
    assert found.norm_sq.tolist() == sums.norm_sq[:, [0, 3, 6, 9]].tolist()
    assert bin_starts(3, 5).tolist() == [0, 1, 2]


def test_a_long_run_is_thinned_and_says_so(tmp_path):
    run = run_of(tmp_path, records=1300, names=NAMES[:3])
    figure = forces_figure(run.main)
    assert {len(trace.x) for trace in figure.data if trace.x is not None} <= {500, 1}
    page = page_of([run])
    assert "Each point stands for up to 3 consecutive records (1,300 in all)" in texts(page)
    assert "up to 7 consecutive records" in texts(page)  # 200 columns of the maps
    raw = traces(figure, "alignment", "y2")[0]
    chosen = run.records.to_pandas().query("role in @wk.TRANSMISSION", local_dict={"wk": wk})
    first = chosen[chosen["step"] <= 15][["alignment", "injection", "decay"]].sum()
    assert raw.y[0] == pytest.approx(first["alignment"] / first.abs().sum(), rel=1e-6)
    assert raw.x[0] == 8


# What is said.


def test_facts_are_those_of_the_summary(run):
    found = {fact.label: fact for fact in facts(run)}
    step, series = wk.records.force_series(run.records, *wk.TRANSMISSION)
    summary = wk.summarize_run(step, series, lr=LR, weight_decay=WEIGHT_DECAY)
    assert found["Peak of σ"].value == f"{summary.peak:.4g} at step {summary.peak_step}"
    assert found["Final σ over peak"].value == f"{summary.final_over_peak:.1%}"
    assert found["Time constant τ"].value == "200 steps"
    assert found["Age Ση·ω"].value == "1 τ"
    assert found["Recorded"].value == "40 records to step 200"
    assert "exact sum over 5 steps: no step is left out" in found["Recorded"].meaning
    assert "relaxation, net −" in found["At the end"].value
    assert "Not finite" not in found


def test_a_rate_that_falls_to_zero_leaves_the_head_of_the_page_in_its_senses(tmp_path):
    """The last record has no decay and hardly any force, as under OneCycle or a cosine to zero."""

    def still(record, columns):
        if record == 40:
            for force in ("alignment", "injection", "coupling"):
                columns[force] = columns[force] * 1e-9
            columns["decay"] = 0 * columns["decay"]

    found = {fact.label: fact for fact in facts(run_of(tmp_path, change=still))}
    assert found["Time constant τ"].value == "200 steps"
    assert "∞" not in found["Alignment over decay"].value
    assert "relaxation" in found["At the end"].value


def test_decay_that_acts_through_the_gradient_has_no_time_constant(tmp_path):
    """SGD's or Adam's: there is a rate and no force."""

    def without(record, columns):
        columns["decay"] = 0 * columns["decay"]

    found = {fact.label: fact for fact in facts(run_of(tmp_path, change=without))}
    assert found["Time constant τ"].value == "∞: no weight decay"
    assert found["Age Ση·ω"].value == "0 τ"


def test_tables_by_hand(run, frame):
    one = frame[frame["name"] == NAMES[2]]
    absolute = one[["alignment", "injection", "decay"]].sum().abs().sum()
    row = table(tensors_table(run))[NAMES[2]]
    assert row["role"].text == "ffn"
    assert row["entries"].value == one["numel"].iloc[0]
    assert row["decay"].value == pytest.approx(one["decay"].sum() / absolute)
    assert row["decay"].text.startswith("−")
    assert row["σ end"].value == pytest.approx(np.sqrt(one["norm_sq_after"].iloc[-1] / one["numel"].iloc[0]))
    assert (row["k of role"].value, row["λ of role"].value) == pytest.approx((1.2, 0.94))
    assert row["not finite"].text == "–"  # nobody counted
    groups = table(groups_table(run))
    assert list(groups) == [
        "transmission weights",
        "all weights",
        "attention output",
        "ffn",
        "embedding",
        "norm",
    ]
    assert groups["ffn"]["tensors"].value == 2
    assert groups["ffn"]["phase at end"].text == "relaxation"
    assert groups["ffn"]["peak"].value == pytest.approx(0.94)  # of λ


def test_several_runs_side_by_side(tmp_path):
    runs = [run_of(tmp_path, seed=seed) for seed in (0, 1)]
    runs.append(make_run("third", read_records(write_run(tmp_path / "c.parquet", names=("head.weight",)))))
    assert common_groups(runs) == [*runs[0].groups]
    shares = compare_forces(runs, "transmission weights")
    assert len(shares.data) == 8  # the third has no such weights
    assert {(trace.line.color, trace.line.dash) for trace in shares.data} == {
        ("#0072B2", "solid"),
        ("#E69F00", "dash"),
    }
    mean = runs[1].main.mean
    assert traces(shares, "a run", "y4")[1].y == pytest.approx(
        mean.predicted_change / mean.absolute, rel=1e-6
    )
    assert [compare_sigma(runs, "ffn").layout[f"yaxis{i}"].title.text for i in ("", 2, 3, 4)] == [
        "σ",
        "scale λ",
        "shape k",
        "decay rate ηω",
    ]
    rows = runs_table(runs, "all weights").rows
    assert rows[1][3].value == runs[1].groups["all weights"].summary.peak
    page = page_of(runs)
    assert "Comparison of 3 runs" in page
    assert page.count('class="panel"') == 3 + 5 + 5 + 4  # a head alone has no layers


# Runs that lack something.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounding": False}, "The records have no rounding; the ledger of wk.AdamW measures it."),
        ({"fits": False}, "The records have no Weibull fits (columns k and scale)."),
        ({"rates": False}, "(read off the decay: the records have no rates)"),
        ({"records": 1}, "Closure cannot be judged from one record."),
        ({"names": NAMES[:1]}, "in 1 tensor"),
        (
            {"names": ("w",), "records": 1, "rounding": False, "fits": False, "rates": False},
            "1 record to step 5",
        ),
    ],
)
def test_what_a_run_does_not_have_is_said(tmp_path, options, said):
    assert said in texts(page_of([run_of(tmp_path, **options)]))


def test_records_of_instants_say_that_closure_cannot_be_judged(tmp_path):
    def instant(record, columns):
        columns["steps"][:] = 1

    page = texts(page_of([run_of(tmp_path, change=instant, rounding=False)]))
    assert "Closure between records cannot be judged: they are instants" in page
    assert "They measure 40 of 196 steps, 20.4%" in page


def test_the_decay_rate_without_columns(tmp_path):
    run = run_of(tmp_path, rates=False)
    assert run.main.decay_rate == pytest.approx(np.full(40, LR * WEIGHT_DECAY), rel=0.06)
    assert run.lrs == {}


def test_what_is_not_finite_leaves_gaps_and_is_counted(tmp_path):
    def spoil(record, columns):
        if record == 20:
            columns["alignment"][1] = np.nan
        if record == 21:
            columns["decay"][2] = -np.inf

    run = run_of(tmp_path, change=spoil)
    found = {fact.label: fact.value for fact in facts(run)}
    assert found["Not finite"] == "2 of 280 rows"
    assert found["Peak of σ"]
    figure = forces_figure(run.main)
    mean = traces(figure, "alignment", "y2")[1].y
    assert np.flatnonzero(np.isnan(mean)).tolist() == [19, 20]
    assert run.main.phases[[19, 20]].tolist() == ["undefined"] * 2
    assert run.groups["norm"].known.tolist() == list(range(40))
    page = page_of([run])
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S):
        json.loads(block, parse_constant=pytest.fail)


def test_nothing_finite_at_all(tmp_path):
    def spoil(record, columns):
        columns["alignment"][:] = np.nan

    page = texts(page_of([run_of(tmp_path, change=spoil, records=3)]))
    assert "21 of 21 rows" in page
    assert "Peak" not in page


def test_tensors_that_are_not_in_every_record(tmp_path):
    path = tmp_path / "run.parquet"
    with wk.ParquetSink(path) as sink:
        for step, names in ((1, ("a.0.w", "b.w")), (2, ("b.w",)), (3, ("a.0.w", "b.w"))):
            one = wk.ForceBudget.from_sums(
                np.full(len(names), -1.0), 1.0, 4.0, lr=0.1, names=names, step=np.full(len(names), step)
            )
            sink.write(step, one, lr=[0.1, 0.2][: len(names)])
    run = make_run("holes", read_records(path))
    assert run.tensors.present.tolist() == [[True, False, True], [True, True, True]]
    assert np.isnan(over_run(run.tensors)[1]["net"][0, 1])
    assert "no records" not in page_of([run])
