import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reproduce
import torch
from experiments import reconstruction
from experiments.claims import percent
from experiments.course import Course
from experiments.jobs import Job
from experiments.presets import preset
from experiments.published_logs import read_log
from experiments.reconstruction_claims import varied
from experiments.reconstruction_errors import (
    bridges,
    figure_of,
    integration_error,
    integration_of,
    of_trail,
    once_integration,
    predicted,
    published_integration,
    rule_integration,
    told,
    totals,
)
from experiments.reconstruction_shapes import mixture_quantiles, mixture_ratio, mixture_table
from experiments.reconstruction_trail import Trail, trail_of_course, trail_of_log
from typer.testing import CliRunner

import weibull_kernels as wk

ENTRIES, STEPS, LR, DECAY, RATIO = 500, 40, 0.02, 1e-3, 0.88


def walk(steps=STEPS, lr=LR, weight_decay=DECAY, entries=ENTRIES):
    """Weights w₀ … w_T [T+1, n] and updates u₁ … u_T [T, n] of AdamW's step, in float64."""
    generator = np.random.default_rng(0)
    drift = generator.standard_normal(entries) / 3
    weights, updates = [generator.standard_normal(entries)], []
    for _ in range(steps):
        updates.append(-drift + generator.standard_normal(entries))
        weights.append((1 - lr * weight_decay) * weights[-1] - lr * updates[-1])
    return np.array(weights), np.array(updates)


def rows_of(weights, updates, every=1, lr=LR, weight_decay=DECAY):
    """The records of that walk as the published code logs them."""
    return [
        {
            "step": step,
            "eta": lr,
            "true_align_full": float(2 * lr * weights[step] @ updates[step - 1]),
            "inj_full": float(lr**2 * updates[step - 1] @ updates[step - 1]),
            "dec_full": float(2 * lr * weight_decay * weights[step] @ weights[step]),
            "rms": float(np.sqrt(np.mean(weights[step] ** 2))),
        }
        for step in range(every, len(weights), every)
    ]


def fits_of(rows, ratio=RATIO):
    return [
        {"step": row["step"], "k": 1.1, "lambda": ratio * row["rms"], "sigma": row["rms"]}
        for row in rows
        if row["step"] % 2 == 0
    ]


def write_log(folder, rows, fits=None, ending=""):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"v1b_spline_true{ending}.jsonl").write_text(lines)
    if fits is not None:
        (folder / f"lambda_trajectory{ending}.json").write_text(json.dumps(fits))
    return folder


@pytest.fixture(scope="module")
def made():
    return walk()


@pytest.fixture
def log(tmp_path, made):
    rows = rows_of(*made)
    return write_log(tmp_path / "made", rows, fits_of(rows))


def test_a_log_gives_the_exact_change_of_the_norm(log, made):
    weights, updates = made
    read = read_log(log, DECAY)
    assert read.numel == ENTRIES
    norm_sq = (weights**2).sum(1)
    np.testing.assert_allclose(read.forces.predicted_change, np.diff(norm_sq), rtol=1e-8)
    np.testing.assert_allclose(read.forces.norm_sq, norm_sq[:-1], rtol=1e-12)
    injected = LR**2 * (updates**2).sum(1)
    np.testing.assert_allclose(read.forces.injection, injected, rtol=1e-12)
    # −2η⟨w⁺,u⟩ = alignment + 2·injection, up to ηω: all that is published too much.
    extra = read.published - np.diff(norm_sq)
    np.testing.assert_allclose(extra, 2 * injected, rtol=5e-3)
    np.testing.assert_allclose(
        read.forces.as_published().predicted_change, read.published, rtol=1e-9, atol=1e-12
    )


def test_the_published_offset_of_a_log_is_the_injection(log):
    trail = trail_of_log(read_log(log, DECAY))
    assert trail.gapless
    assert trail.rules == ("euler", "cubic", "interval")
    exact = integration_error(trail, trail.change("exact"), "interval", 1)
    assert abs(exact).max() < 1e-9
    published = integration_error(trail, trail.change("published"), "interval", 1)
    twice = 2 * np.cumsum(trail.forces.injection)[np.isin(trail.step, trail.at)]
    np.testing.assert_allclose(published, np.sqrt(1 + twice / trail.observed) - 1, rtol=1e-2)
    run = of_trail(trail)
    assert predicted(run) == pytest.approx(published_integration(run), rel=0.1)
    assert once_integration(run) < 0.1 * published_integration(run)


def trail_by_hand(change, injected=0.0, start=100.0, published=None, ratio=None, steps=40):
    """Every step recorded, ‖w‖² moved by `change`; a checkpoint at every twentieth."""
    step = np.arange(1, steps + 1)
    norm_sq = start + np.cumsum(change)
    zeros = np.zeros(steps)
    injected = injected + zeros
    forces = wk.ForceBudget(
        change - injected,
        injected,
        zeros,
        zeros,
        norm_sq=norm_sq - change,
        numel=np.full(steps, 4),
        steps=np.ones(steps, dtype=int),
    )
    at = step[step % (steps // 20) == 0]
    observed = norm_sq[at - 1]
    ratio = RATIO if ratio is None else ratio
    return Trail(
        name="made",
        step=step,
        forces=forces,
        published=change if published is None else published,
        norm_sq=norm_sq,
        numel=4.0,
        at=at,
        observed=observed,
        k=np.full(len(at), 1.1),
        scale=ratio * np.sqrt(observed / 4),
    )


def test_eulers_rule_is_off_by_the_slope_of_the_force():
    # d(t) = t: from a to b = a + h it takes h·a for h·a + h(h+1)/2.
    trail = trail_by_hand(np.arange(1, 41, dtype=float))
    assert trail.spacings == [1, 2]
    for spacing in trail.spacings:
        error = integration_error(trail, trail.change("exact"), "euler", spacing)
        intervals = (trail.at - spacing) // spacing
        missing = intervals * spacing * (spacing + 1) / 2
        np.testing.assert_allclose(error, np.sqrt(1 - missing / trail.observed) - 1, rtol=1e-12, atol=1e-15)
        assert abs(integration_error(trail, trail.change("exact"), "cubic", spacing)).max() < 1e-14


def test_two_injections_too_many_make_the_predicted_offset():
    trail = trail_by_hand(np.full(40, 3.0), injected=0.5, published=np.full(40, 4.0))
    error = integration_error(trail, trail.change("published"), "interval", 1)
    np.testing.assert_allclose(error, np.sqrt(1 + 2 * 0.5 * trail.at / trail.observed) - 1, rtol=1e-12)
    np.testing.assert_array_equal(trail.change("injection once"), trail.change("exact"))
    run = of_trail(trail)
    # The published rule begins after the first record, so that a 20th to a 40th of it is not in it.
    assert predicted(run) > published_integration(run) > 0.9 * predicted(run)
    assert once_integration(run) == rule_integration(run) < 1e-12


def test_a_constant_ratio_is_crossed_by_every_bridge_but_the_gamma():
    found = bridges(trail_by_hand(np.full(40, 3.0)))
    for bridge in ("mean", "anchored", "measured"):
        assert found[bridge]["all"] < 1e-14
    gamma = 1 / math.sqrt(math.gamma(1 + 2 / 1.2))
    assert found["gamma"]["signed"] == pytest.approx(gamma / RATIO - 1)
    assert found["gamma"]["ratio"] == pytest.approx(gamma)
    own = 1 / math.sqrt(math.gamma(1 + 2 / 1.1))
    assert found["gamma of its k"]["signed"] == pytest.approx(own / RATIO - 1)
    assert found["ratio"] == {"first": pytest.approx(RATIO), "late": pytest.approx(RATIO)}
    assert found["k"] == {"first": 1.1, "late": pytest.approx(1.1)}


def test_components_multiply_to_the_total():
    at = np.arange(2, 41, 2)
    trail = trail_by_hand(np.full(40, 3.0), injected=0.5, published=np.full(40, 4.0), ratio=0.8 + 0.002 * at)
    run = of_trail(trail)
    assert len(totals(trail)) == 2 * 3 * 5
    integration = integration_error(trail, trail.change("published"), "interval", 1)
    seen = trail.scale / np.sqrt(trail.observed / 4)
    wanted = (1 + integration) * seen.mean() / seen - 1
    late = trail.at >= 20
    assert figure_of(run, "total", sums="published", rule="interval", bridge="mean") == pytest.approx(
        abs(wanted[late]).mean()
    )
    assert figure_of(
        run, "total", "signed", sums="published", rule="interval", bridge="mean"
    ) == pytest.approx(wanted[late].mean())
    with pytest.raises(ValueError, match=r"total of made must have one row with .*, it has 0"):
        figure_of(run, "total", sums="published", rule="simpson", bridge="mean")


def test_claims_tell_what_the_sums_do_from_what_the_spacing_does():
    change = np.full(400, 3.0)
    trail = trail_by_hand(change, injected=0.2, published=change + 0.4, steps=400)
    found = {"logs": False, "runs": [of_trail(trail)]}
    offset, split, cause, spacing, bridge = reconstruction.claims(found)
    assert offset.exact == "0.00 %; with λ/σ measured at the checkpoints around, 0.00 %"
    assert offset.verdict == "holds"
    assert split.verdict == "holds"
    assert split.as_published.endswith("100 % of it")
    late = trail.at[trail.at >= 200]
    wanted = np.sqrt(1 + 0.4 * late / (100 + 3 * late)) - 1
    assert f"+{100 * wanted.mean():.2f} %" in cause.reason
    assert cause.verdict == "does not hold"
    assert "leaves 0 % of the published component" in cause.reason
    assert "100 % of the component is gone" in cause.reason
    assert spacing.verdict == "holds"
    assert spacing.reason.startswith("down to 80 records")
    assert spacing.exact == "0.00 % → 0.00 %"
    assert bridge.verdict == "does not hold"  # 0.8153/0.88 is 7 % too small, and the published one too large
    assert bridge.reason.startswith("k is 1.100 at first and 1.100 past half of the run")
    assert f"off by -{100 - 100 / math.sqrt(math.gamma(1 + 2 / 1.1)) / RATIO:.2f} %" in bridge.reason
    assert "nearly normal" in bridge.reason

    # A force that falls fast: Euler's rule is off by itself, and the more the wider the spacing.
    change = 3.0 * np.exp(-trail.step / 20)
    trail = trail_by_hand(change, injected=0.01, published=change + 0.02, steps=400)
    found = {"logs": False, "runs": [of_trail(trail)]}
    spacing = reconstruction.claims(found)[3]
    assert spacing.verdict.startswith("holds in part")
    narrow, wide = (float(part.strip(" %")) for part in spacing.exact.split("→"))
    assert wide > 2 * narrow > 0


def run_by_hand(integration, exact, bridge=0.0, injected=0.0, gamma=0.05, own=0.05, name="made"):
    """Findings of a run whose errors are these at every checkpoint, and at every spacing."""

    def errors(values):
        return {key: list(values) for key in ("signed", "all")} | {"late": [abs(value) for value in values]}

    sums, values = ("published", "injection once", "exact"), (integration, injected, exact)
    total = [(1 + value) * (1 + bridge) - 1 for value in (integration, exact, exact)]
    by = {
        "mean": bridge,
        "gamma": gamma,
        "gamma of its k": own,
        "anchored": 0.1,
        "measured": 0.0,
        "gamma of its k, foretold": own,
    }
    return {
        "name": name,
        "steps": 1000,
        "spacing": 2,
        "rules": ["euler"],
        "integration": {
            "sums": list(sums),
            "rule": ["euler"] * 3,
            "spacing": [2] * 3,
        }
        | errors(values),
        "total": {
            "sums": ["published", "exact", "exact"],
            "rule": ["euler"] * 3,
            "bridge": ["mean", "mean", "measured"],
        }
        | errors(total),
        "bridge": {bridge: {"late": abs(value), "signed": value} for bridge, value in by.items()}
        | {"k": {"first": 1.2, "late": 1.1}, "ratio": {"first": 0.88, "late": 0.75}},
        "injection": {"predicted": 0.05},
    }


def claims_of(*runs, logs=False):
    return reconstruction.claims({"logs": logs, "runs": list(runs)})


@pytest.mark.parametrize(
    ("integration", "bridge", "verdict"),
    [
        (0.055, 0.0, "holds"),
        (0.04, 0.0, "holds"),  # a quarter below 5 %
        (0.02, 0.053, "holds"),
        (0.05, 0.06, "holds in part"),  # 11 %
        (0.01, 0.0, "holds in part"),
        (-0.055, 0.0, "does not hold"),  # as large, but too small a λ
    ],
)
def test_the_offset_is_judged_by_the_figure_as_published_and_its_sign(integration, bridge, verdict):
    offset = claims_of(run_by_hand(integration, 0.0, bridge))[0]
    assert offset.verdict == verdict
    assert (offset.reason == "") == (verdict == "holds")
    assert offset.as_published == f"{100 * ((1 + integration) * (1 + bridge) - 1):+.2f} %"


def test_most_of_the_offset_is_judged_by_its_number():
    most, little = run_by_hand(0.05, 0.0, 0.01), run_by_hand(0.02, 0.0, 0.05)
    assert claims_of(most)[1].verdict == "holds"
    assert claims_of(little)[1].verdict == "does not hold"
    both = claims_of(most, little)[1]
    assert both.verdict == "holds in part"
    assert both.as_published == "+2.00 … +5.00 % of +6.05 … +7.10 %, 28–83 % of it"


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.05, "holds"), (0.04, "holds"), (0.03, "holds in part"), (0.001, "does not hold")]
)
def test_the_cause_is_judged_by_what_the_rule_leaves_with_exact_sums(left, verdict):
    cause = claims_of(run_by_hand(0.05, left, injected=0.002))[2]
    assert cause.verdict == verdict
    if verdict != "holds":
        assert f"leaves {100 * left / 0.05:.0f} % of the published component" in cause.reason
        assert "without the two too many 96 % of the component is gone" in cause.reason
    unexplained = claims_of(run_by_hand(0.05, 0.001, injected=0.05))[2]
    assert "injection" not in unexplained.reason


@pytest.mark.parametrize(
    ("gamma", "verdict"),
    [
        ((0.05, 0.04), "holds"),
        ((0.12, 0.05), "holds in part"),
        ((0.05, -0.05), "does not hold"),
        ((-0.046, -0.046), "does not hold"),
    ],
)
def test_the_gamma_bridge_is_judged_with_its_sign(gamma, verdict):
    runs = [run_by_hand(0.05, 0.0, gamma=value, name=str(value)) for value in gamma]
    assert claims_of(*runs)[-1].verdict == verdict


def test_the_reason_for_the_bridge_follows_its_sign():
    large = claims_of(run_by_hand(0.05, 0.0, own=0.02))[-1].reason
    assert "tails have grown" in large
    assert "would have +2.00 %" in large
    small = claims_of(run_by_hand(0.05, 0.0, own=-0.07))[-1].reason
    assert "too small as weights are still nearly normal" in small
    mixed = claims_of(run_by_hand(0.05, 0.0, own=-0.07), run_by_hand(0.05, 0.0, own=0.02, name="b"))[
        -1
    ].reason
    assert "tails" not in mixed
    assert "nearly normal" not in mixed
    assert "-7.00 … +2.00 %" in mixed


def test_figures_vary_by_their_mean_magnitude_whatever_their_sign():
    assert varied([-1, 2]) == 2
    assert varied([0, 2]) == 2
    assert varied([0, 0]) == 0
    assert varied([4, 5]) == pytest.approx(1 / 4.5)
    assert varied([-4, -5]) == pytest.approx(1 / 4.5)


def test_errors_are_told_with_their_sign_where_they_have_one():
    assert told(0.05, 0.05) == "+5.00"
    assert told(0.05, -0.05) == "-5.00"
    assert told(0.05, 0.01) == "±5.00"
    assert told(0.0, 0.0) == "0.00"
    assert told(4e-9, 4e-9) == "+4e-07"


def test_a_mixture_of_normal_weights_has_the_k_and_scale_of_its_sample():
    generator = torch.Generator().manual_seed(0)
    spread = 0.4
    # w = e^(s·g)·z
    normal = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    weights = normal[0] * (spread * normal[1]).exp()
    sampled, wanted = wk.fit_weibull(weights), wk.fit_weibull(torch.from_numpy(mixture_quantiles(spread)))
    assert wanted.k == pytest.approx(sampled.k, rel=3e-3)
    assert wanted.scale == pytest.approx(sampled.scale, rel=3e-3)
    ratio = sampled.scale / float(weights.square().mean().sqrt())
    assert mixture_ratio(np.array([sampled.k]))[0] == pytest.approx(ratio, rel=5e-3)


def test_the_mixture_begins_with_normal_weights_and_its_tails_grow():
    k, ratio = mixture_table()
    assert k[0] == pytest.approx(1.2054, abs=1e-3)
    assert ratio[0] == pytest.approx(0.8875, abs=1e-3)
    assert (np.diff(k) < 0).all()
    assert (np.diff(ratio) < 0).all()
    # With its own k the Γ bridge is 8 % too small for normal weights, and too large once tails are long.
    gamma = np.array([1 / math.sqrt(math.gamma(1 + 2 / each)) for each in k])
    error = gamma / ratio - 1
    assert error[0] == pytest.approx(-0.079, abs=1e-3)
    assert (np.diff(error) > 0).all()
    assert np.interp(0, error, k) == pytest.approx(1.137, abs=3e-3)
    np.testing.assert_array_equal(mixture_ratio(np.array([1.3])), ratio[:1])
    assert np.isnan(mixture_ratio(np.array([0.3]))).all()


def test_the_rise_of_a_log_is_read_both_ways(log, made):
    weights, updates = made
    read = read_log(log, DECAY)
    rise = reconstruction.rise_of(read)
    assert rise["records"] == 10
    before, after = weights[:10], weights[1:11]
    change = {
        "exact": -2 * LR * (before * updates[:10]).sum(1),
        "as_published": -2 * LR * (after * updates[:10]).sum(1),
    }
    injected, decay = LR**2 * (updates[:10] ** 2).sum(1), 2 * LR * DECAY * (after**2).sum(1)
    for reading, alignment in change.items():
        share = abs(alignment) / (abs(alignment) + injected + decay)
        np.testing.assert_allclose(rise[reading], [share.min(), share.max()], rtol=2e-3)
    found = reconstruction.findings_in_logs([log], DECAY)
    claim = reconstruction.claims(found)[-1]
    assert claim.claim == "[W2] alignment dominates the rise, single records of the log made"
    assert claim.exact == percent(*rise["exact"])
    assert claim.as_published == percent(*rise["as_published"])
    assert f"made {percent(*rise['exact'])}, as published" in reconstruction.section(found)


def test_a_log_that_begins_after_the_rise_has_no_share_in_it(tmp_path, made):
    folder = write_log(tmp_path / "late", rows_of(*made)[20:])
    found = reconstruction.findings_in_logs([folder], DECAY)
    assert found["runs"][0]["rise"] is None
    assert not any("rise" in claim.claim for claim in reconstruction.claims(found))


def test_the_share_in_the_rise_is_judged_by_the_published_one():
    def verdict(published, exact):
        run = run_by_hand(0.05, 0.0) | {"rise": {"records": 3, "exact": exact, "as_published": published}}
        return claims_of(run, logs=True)[-1].verdict

    assert verdict([0.88, 0.94], [0.87, 0.93]) == "holds"
    assert verdict([0.60, 0.94], [0.55, 0.93]) == "holds in part"
    assert verdict([0.60, 0.94], [0.45, 0.93]) == "does not hold"


def course_by_hand(settings, apart=1):
    """A run of rows over `apart` steps each, which grows; λ fitted every `settings.fit_every` records."""
    step = np.arange(apart, settings.steps + 1, apart)
    count = len(step)
    forces = wk.ForceBudget(
        np.full(count, 0.5 * apart),
        np.full(count, 0.05 * apart),
        np.full(count, -0.1 * apart),
        np.zeros(count),
        norm_sq=100 + 0.45 * (step - apart),
        rounding=np.zeros(count),
        numel=np.full(count, 1000),
        steps=np.full(count, apart),
    )
    fitted = (np.arange(1, count + 1) % settings.fit_every == 0) | (step == settings.steps)
    scale = np.where(fitted, 0.88 * np.sqrt((100 + 0.45 * step) / 1000), np.nan)
    return Course(
        step,
        lr=np.full(count, 1e-3),
        weight_decay=np.full(count, 0.1),
        loss=np.ones(count),
        forces=forces,
        k=np.where(fitted, 1.2, np.nan),
        scale=scale,
        summary={},
    )


def test_checkpoints_lie_at_powers_of_two_and_twentieths():
    settings = replace(preset("cpu"), every=1, fit_every=1)
    trail = trail_of_course(Job(settings), course_by_hand(settings))
    assert trail.at.tolist() == [1, 2, 4, 8, 16, 32, *range(50, 1001, 50)]
    assert trail.spacings == [1, 2, 5, 10, 25, 50]
    assert trail.dense == 2
    settings = replace(settings, fit_every=5)  # then at the next that was fitted
    trail = trail_of_course(Job(settings), course_by_hand(settings))
    assert trail.at.tolist() == [5, 10, 20, 35, *range(50, 1001, 50)]
    np.testing.assert_allclose(trail.observed, 100 + 0.45 * trail.at)
    np.testing.assert_allclose(trail.scale, 0.88 * np.sqrt(trail.observed / 1000))


def test_small_runs_record_every_step_and_large_ones_do_not():
    small = reconstruction.jobs(preset("cpu"), (0, 1))
    assert len(small) == 4
    assert {(job.settings.every, job.settings.fit_every) for job in small} == {(1, 5)}
    large = reconstruction.jobs(preset("pythia-70m"), (0,))
    assert {(job.settings.every, job.settings.fit_every) for job in large} == {(50, 1)}


def test_sums_of_intervals_serve_where_single_steps_are_not_recorded(tmp_path):
    settings = preset("pythia-70m")
    found = reconstruction.findings({Job(settings): course_by_hand(settings, apart=50)})
    (run,) = found["runs"]
    assert run["rules"] == ["interval"]
    assert integration_of(run, "exact", "interval") < 1e-12
    # Alignment + 2·injection in place of alignment.
    assert integration_of(run, "published", "interval") == pytest.approx(run["injection"]["predicted"])
    reconstruction.draw(found, tmp_path / "made.png")
    assert "– | – |" in reconstruction.section(found)
    _, split, cause, bridge = reconstruction.claims(found)
    assert split.verdict == "holds"
    assert cause.verdict == "does not hold"
    assert bridge.verdict == "does not hold"


def test_a_log_that_has_no_scale_is_judged_by_sigma(tmp_path, made):
    folder = write_log(tmp_path / "bare", rows_of(*made, every=2))
    found = reconstruction.findings_in_logs([folder], DECAY)
    (run,) = found["runs"]
    assert run["bridge"] is None
    assert run["checkpoints"] == 20
    assert [claim.claim.split(",")[0] for claim in reconstruction.claims(found)] == [
        "[W2] the integration component is an error of integrating",
        "[W2] alignment dominates the rise",
    ]
    assert "No λ was logged in bare" in reconstruction.section(found)
    reconstruction.draw(found, tmp_path / "bare.png")


def test_logs_of_different_density_are_drawn_together(tmp_path, made):
    folders = []
    for every in (1, 2):
        rows = rows_of(*made, every=every)
        folders.append(write_log(tmp_path / f"one_in_{every}", rows, fits_of(rows)))
    found = reconstruction.findings_in_logs(folders, DECAY)
    assert [run["rules"][-1] for run in found["runs"]] == ["interval", "cubic"]
    reconstruction.draw(found, tmp_path / "both.png")
    assert "| one_in_2 | 2 steps of 40 |" in reconstruction.section(found)
    assert "logs one_in_1, one_in_2" in reconstruction.claims(found)[0].claim


def test_the_trajectory_of_the_same_ending_is_taken(tmp_path, made):
    rows = rows_of(*made)
    write_log(tmp_path / "two", rows, fits_of(rows, 0.5), "_a")
    write_log(tmp_path / "two", rows, fits_of(rows, 0.7), "_b")
    read = read_log(tmp_path / "two" / "v1b_spline_true_b.jsonl", DECAY)
    np.testing.assert_allclose(read.checkpoints["lambda"] / read.checkpoints["sigma"], 0.7)


def spoiled(rows, place, **values):
    return [row | values if number == place else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: spoiled(rows, 3, rms=math.nan), r"row 4: rms must be a finite number, got nan"),
        (lambda rows: spoiled(rows, 3, rms="much"), r"row 4: rms must be a finite number, got 'much'"),
        (lambda rows: spoiled(rows, 3, eta=0.0), r"row 4: eta must be positive, got 0.0"),
        (lambda rows: spoiled(rows, 3, step=2), r"row 4: step must ascend, got 2 after 3; sort the rows"),
        (lambda rows: spoiled(rows, 3, dec_full=9.0), r"must be the number of weights .* at step 4: η or ω"),
        (lambda rows: rows[:1], r"must have at least two records, it has 1"),
        (lambda rows: [], r"must have a row for every record, it has none"),
        (lambda rows: [{"step": 1, "eta": 1.0}], r"row 1 must have step, .*; it lacks true_align_full"),
        (lambda rows: [3], r"row 1 must have step, .*; it lacks step"),
        (
            lambda rows: [row | {"true_align_full": -row["true_align_full"]} for row in rows],
            r"the other way than rms moved; is true_align_full \+2η⟨w⁺,u⟩\?",
        ),
    ],
)
def test_a_spoiled_log_says_what_is_wrong(tmp_path, made, spoil, message):
    folder = write_log(tmp_path / "spoiled", spoil(rows_of(*made)))
    with pytest.raises(ValueError, match=message):
        read_log(folder, DECAY)


def test_a_wrong_weight_decay_is_noticed_and_the_right_one_named(log):
    for wrong in (DECAY * 10, DECAY / 10):
        with pytest.raises(ValueError, match=r"weight_decay .*it is 0\.001$"):
            read_log(log, wrong)
    with pytest.raises(ValueError, match=r"weight_decay must be positive, got 0"):
        read_log(log, 0.0)


def test_a_torn_line_is_named(log):
    file = log / "v1b_spline_true.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"line 40 must be one JSON object, and is torn"):
        read_log(log, DECAY)


def test_files_that_are_not_there_are_named(tmp_path, made):
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must have one file v1b_spline_true\*\.jsonl, it has none"):
        read_log(tmp_path)
    rows = rows_of(*made)
    write_log(tmp_path, rows, fits_of(rows), "_a")
    folder = write_log(tmp_path, rows, fits_of(rows), "_b")
    with pytest.raises(ValueError, match=r"it has v1b_spline_true_a\.jsonl, v1b_spline_true_b\.jsonl"):
        read_log(folder)
    third = write_log(tmp_path, rows, None, "_c") / "v1b_spline_true_c.jsonl"
    with pytest.raises(ValueError, match=r"beside it, or lambda_trajectory_c\.json; there are"):
        read_log(third, DECAY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"must be JSON, and is torn"),
        ("{}", r"must be a list of checkpoints, got dict"),
        ("[]", r"must have a row for every record, it has none"),
        ('[{"step": 2, "k": 1, "lambda": 1}]', r"row 1 must have step, .*; it lacks sigma"),
        ('[{"step": 2, "k": 1, "lambda": 1, "sigma": 9}]', r"at step 2 its sigma is 9 and rms is"),
        (
            '[{"step": 99, "k": 1, "lambda": 1, "sigma": 9}]',
            r"checkpoint at the step of a record .*; none is",
        ),
    ],
)
def test_a_trajectory_must_be_of_the_run(log, text, message):
    (log / "lambda_trajectory.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(log, DECAY)


def command(tmp_path, name, *options):
    places = (f"--results={tmp_path / 'results'}", f"--page={tmp_path / 'page.md'}")
    return CliRunner().invoke(reproduce.app, [name, *map(str, options), *places])


def read(tmp_path, *options):
    return command(tmp_path, "logs", *options)


def test_the_command_ends_with_numbers_a_picture_and_rows(tmp_path):
    sizes = ("--steps=20", "--width=8", "--seeds=0", f"--out={tmp_path / 'runs'}")
    result = command(tmp_path, "reconstruction", *sizes)
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "results" / "reconstruction.json").read_text())
    assert [run["name"] for run in about["findings"]["runs"]] == [
        "Pythia-like, seed 0",
        "LLaMA-like, seed 0",
    ]
    for run in about["findings"]["runs"]:
        assert integration_of(run, "exact", "interval") < 1e-6 < integration_of(run, "published", "euler")
    assert (tmp_path / "results" / "reconstruction.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (tmp_path / "page.md").read_text()
    assert "give λ back, past half of the run, 2 runs" in page
    assert "does not depend on the spacing" not in page  # one spacing only, at this size


def test_the_command_reads_logs_and_tells_no_paths(tmp_path, log):
    result = read(tmp_path, log, f"--weight-decay={DECAY}")
    assert result.exit_code == 0, result.output
    file = tmp_path / "results" / "reconstruction-published-logs.json"
    about = json.loads(file.read_text())
    assert about["command"] == "python python/reproduce.py logs --weight-decay=0.001 made"
    assert str(tmp_path) not in file.read_text()
    assert file.with_suffix(".png").exists()
    assert "log made" in (tmp_path / "page.md").read_text()


def test_the_command_refuses_logs_that_it_cannot_read_or_tell_apart(tmp_path, log):
    result = read(tmp_path, log)
    assert result.exit_code == 2
    assert "weight_decay" in result.output
    result = read(tmp_path, log, log, f"--weight-decay={DECAY}")
    assert "told apart by the names" in result.output
