"""The laws of width: pure functions, classes, param groups and their table."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trees import TREES, gpt2, groups_of, llama, tree

import weibull_kernels as wk
from weibull_kernels import scaling

ratios = st.floats(1 / 64, 64)


# The laws


@given(m=ratios, lr=st.floats(1e-5, 1), weight_decay=st.floats(1e-3, 10))
def test_published_law(m, lr, weight_decay):
    matrix = scaling.param_groups(
        {"mlp.up_proj.weight": nn.Parameter(torch.zeros(2, 2))},
        width=m,
        base_width=1.0,
        lr=lr,
        weight_decay=weight_decay,
    )[0]
    assert matrix["lr"] * m == pytest.approx(lr, rel=1e-12)
    assert matrix["weight_decay"] / math.sqrt(m) == pytest.approx(weight_decay, rel=1e-12)
    assert matrix["lr"] * matrix["weight_decay"] * math.sqrt(m) == pytest.approx(lr * weight_decay, rel=1e-12)


@given(m=ratios, e=st.floats(0.5, 1))
def test_what_each_rule_leaves_of_sigma(m, e):
    published, constant, proportional = (scaling.RULES[n] for n in ("published", "constant", "proportional"))
    # σ_top ∝ √(lr/ω)·width^e, put together by hand.
    for rule, decay in ((published, 0.5), (constant, 0.0), (proportional, 1.0)):
        by_hand = math.sqrt(m**-1.0 / m**decay) * m**e
        assert rule.sigma_ratio(m, e) == pytest.approx(by_hand, rel=1e-9)
    assert [rule.sigma_exponent() for rule in scaling.RULES.values()] == [0, 0.25, -0.25]
    # A decay in proportion to the width keeps the time constant.
    assert proportional.lr_ratio(m) * proportional.weight_decay_ratio(m) == pytest.approx(1)


@given(m=ratios, n=ratios)
def test_ratios_of_widths_multiply(m, n):
    rule = scaling.WidthRule(lr_exponent=-0.8, weight_decay_exponent=0.3)
    assert rule.lr_ratio(m * n) == pytest.approx(rule.lr_ratio(m) * rule.lr_ratio(n))
    assert rule.weight_decay_ratio(m) * rule.weight_decay_ratio(1 / m) == pytest.approx(1)


def test_initialisation_attention_and_logits():
    weight = torch.randn(400, 900, dtype=torch.float64) * scaling.initial_std("matrix", fan_in=900)
    x = torch.randn(900, 500, dtype=torch.float64)
    assert (weight @ x).square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
    assert scaling.initial_std("head", fan_in=64) == 0
    assert scaling.attention_scale(64) == 1 / 8
    # The product of aligned queries and keys is ∝ head_dim: with the scale it stays what it is at the base.
    assert scaling.attention_scale(256, 64) * 256 == pytest.approx(scaling.attention_scale(64, 64) * 64)
    assert scaling.output_scale(8) == 1 / 8
    assert scaling.equilibrium_steps(0.01, 0.3) == pytest.approx(1000)
    assert scaling.equilibrium_steps(0.01, 0) == math.inf


# Classes


@pytest.mark.parametrize("family", TREES)
def test_every_parameter_is_in_exactly_one_group(family):
    model = TREES[family]()
    groups = groups_of(model)
    grouped = [parameter for group in groups for _, parameter in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", TREES)
def test_matrices_follow_the_width_and_nothing_else_does(family):
    matrix, vector = groups_of(TREES[family](), m=4.0)
    assert (matrix["lr"], matrix["weight_decay"]) == (0.0025, 0.4)
    assert (vector["lr"], vector["weight_decay"]) == (0.01, 0.0)
    roles = {wk.role_of(name) for name, _ in matrix["params"]}
    assert roles == {"qkv", "attention_output", "ffn"}
    assert not roles & {wk.role_of(name) for name, _ in vector["params"]}


def test_classes_of_llama():
    found = scaling.classify(llama())
    of = {name: found.of(name) for name in found.names}
    assert of["model.embed_tokens.weight"] == "embedding"
    assert of["lm_head.weight"] == "head"
    assert of["model.layers.0.input_layernorm.weight"] == "vector"
    assert {of[f"model.layers.1.{n}_proj.weight"] for n in ("self_attn.q", "mlp.down")} == {"matrix"}
    assert found.to_pandas().columns.tolist() == ["name", "class", "shape"]


def test_the_head_is_a_choice():
    matrix, _ = groups_of(llama(), head="matrix")
    assert "lm_head.weight" in dict(matrix["params"])
    # Tied to an embedding it stays an embedding.
    matrix, vector = groups_of(gpt2(), head="matrix")
    assert "transformer.wte.weight" in dict(vector["params"])


def test_tied_and_fused_parameters_are_named():
    with pytest.warns(
        UserWarning, match=r"wte\.weight = lm_head\.weight are tied.*c_attn\.weight.*: several"
    ):
        found = scaling.classify(gpt2())
    assert found.tied == {"transformer.wte.weight": ("lm_head.weight",)}
    assert found.fused == ("transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight")
    # Who says that they are known is not told again: a warning would be an error here.
    scaling.classify(
        gpt2(), {"*.c_attn.weight": "matrix", "lm_head.weight": "embedding", "*.wte.weight": "embedding"}
    )


def test_one_parameter_cannot_follow_two_laws():
    shared = nn.Parameter(torch.zeros(8, 8))
    named = [("embed.weight", shared), ("mlp.up_proj.weight", shared)]
    with pytest.raises(
        ValueError, match=r"'embed.weight' \(embedding\), 'mlp.up_proj.weight' \(matrix\) are one"
    ):
        scaling.classify(named)
    found = scaling.classify(named, {"*": "matrix"})
    assert found.classes == ("matrix",)


def test_unknown_parameters_are_named_with_the_remedy():
    shapes = {"block.router.weight": (4, 64), "block.mixing.weight": (64, 64), "block.scale": (64,)}
    with pytest.raises(ValueError, match=r"block.router.weight \[4, 64\], block.mixing.weight.*in overrides"):
        scaling.classify(shapes)
    found = scaling.classify(shapes, {"*.router.*": "vector", "*.mixing.*": "matrix"})
    assert found.classes == ("vector", "matrix", "vector")


MATRICES = {
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (64, 64),
    "model.layers.0.mlp.experts.0.gate_proj.weight": (256, 64),
    "model.layers.0.mlp.experts.down_proj": (8, 256, 64),
    "transformer.blocks.0.norm_attn_norm.attn.out_proj.weight": (64, 64),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (256, 64),
    "bert.encoder.layer.0.attention.output.dense.weight": (64, 64),
    "rwkv.blocks.0.attention.output.weight": (64, 64),
}
VECTORS = {
    "model.layers.0.self_attn.q_norm.weight": (4, 16),
    "bert.embeddings.LayerNorm.weight": (64,),
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "model.layers.0.mlp.experts.down_proj_bias": (8, 64),
    "layers.0.self_attn.q_proj.scale": (64,),
    "blocks.0.ls1.gamma": (64,),
}
UNKNOWN = {
    "model.layers.0.mlp.gate.weight": (8, 64),
    "model.layers.0.feed_forward.gate.weight": (8, 64),
    "layers.0.ffn.gate.weight": (8, 64),
    "model.layers.0.mlp.shared_expert_gate.weight": (1, 64),
    "model.layers.0.self_attn.q_proj.lora_A.default.weight": (8, 64),
    "blocks.0.mlp.conv.weight": (64, 1, 4),
    "rwkv.blocks.0.feed_forward.time_maa_k": (1, 1, 64),
    "patch_embed.proj.weight": (64, 3, 16, 16),
    "blocks.0.norm1.linear.weight": (384, 64),
    "lm_head.dense.weight": (64, 64),
    "model.layers.0.mlp.up_proj.weight": (4096,),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_many_models(name):
    assert scaling.classify({name: MATRICES[name]}).classes == ("matrix",)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_many_models(name):
    assert scaling.classify({name: VECTORS[name]}).classes == ("vector",)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_name_does_not_tell_is_not_guessed(name):
    with pytest.raises(ValueError, match="cannot tell the scaling class of " + re.escape(name)):
        scaling.classify({name: UNKNOWN[name]})
    assert scaling.classify({name: UNKNOWN[name]}, {"*": "vector"}).classes == ("vector",)


def test_parameters_that_are_tied_no_more_are_trained():
    """Classes of the tied model, groups of stages that have the two apart or one of them alone."""
    with pytest.warns(UserWarning, match="tied"):
        classes = scaling.classify(gpt2())
    wte, head = (nn.Parameter(torch.zeros(40, 16)) for _ in range(2))
    (group,) = groups_of([("transformer.wte.weight", wte), ("lm_head.weight", head)], classes=classes)
    assert [parameter is one for (_, parameter), one in zip(group["params"], (wte, head), strict=True)]
    (group,) = groups_of([("lm_head.weight", head)], classes=classes)
    assert group["params"] == [("lm_head.weight", head)]


def test_classes_of_named_parameters_serve_the_model_too():
    """`named_parameters()` leaves out the second name of what is tied, the model has it."""
    model = gpt2()
    fused = {"*.c_attn.weight": "matrix"}
    groups = groups_of(model, classes=scaling.classify(model.named_parameters(), fused))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_state_dict_is_tied_as_its_model_is():
    with pytest.warns(UserWarning, match="tied"):
        found = scaling.classify(gpt2().state_dict())
    assert found.tied == {"transformer.wte.weight": ("lm_head.weight",)}


def test_what_is_neither_tensor_nor_shape():
    with pytest.raises(TypeError, match=r"expected a tensor or a shape such as \(64, 256\) under 'a', got 5"):
        scaling.classify({"a": 5})
    with pytest.raises(TypeError, match=r"expected a parameter under 'mlp.up_proj.weight', got \(4, 4\)"):
        groups_of({"mlp.up_proj.weight": (4, 4)})


def test_bad_overrides_are_errors():
    with pytest.raises(ValueError, match=r"overrides\['\*'\] must be one of matrix, vector.*got 'hidden'"):
        scaling.classify(llama(), {"*": "hidden"})
    with pytest.raises(ValueError, match=r"no parameter matches overrides\['\*.c_attn.weight'\]"):
        scaling.classify(llama(), {"*.c_attn.weight": "matrix"})


# How models are wrapped


def wrapped(name):
    return f"_orig_mod.{name}".replace("layers.", "layers._fsdp_wrapped_module.").replace(
        ".mlp.", ".mlp._checkpoint_wrapped_module."
    )


def test_wrappers_in_names_change_nothing():
    model = llama()
    named = [(wrapped(name), parameter) for name, parameter in model.named_parameters()]
    for plain, other in zip(groups_of(model), groups_of(named), strict=True):
        assert [name for name, _ in plain.pop("params")] == [name for name, _ in other.pop("params")]
        assert plain == other
    compiled = torch.compile(model, backend="eager")
    assert [len(g["params"]) for g in groups_of(compiled)] == [len(g["params"]) for g in groups_of(model)]


def test_flattened_parameters_keep_the_class_they_had():
    model = llama()
    classes = scaling.classify(model)
    # As FSDP with use_orig_params leaves them on one rank: flat, and some empty.
    flat = [
        (f"_fsdp_wrapped_module.{name}", nn.Parameter(parameter.detach().flatten()[: 7 * (i % 2)]))
        for i, (name, parameter) in enumerate(model.named_parameters())
    ]
    with pytest.raises(
        ValueError, match=r"flat because they are sharded, as by FSDP, classify\(model\) before"
    ):
        groups_of(flat)
    for plain, sharded in zip(groups_of(model), groups_of(flat, classes=classes), strict=True):
        assert [name for name, _ in plain.pop("params")] == [name for name, _ in sharded.pop("params")]
        assert plain == sharded


def test_a_flat_parameter_is_refused_by_name():
    with pytest.raises(ValueError, match=r"cannot tell the scaling class of _flat_param \[999\]; say"):
        scaling.classify({"_fsdp_wrapped_module._flat_param": (999,)})


def test_classes_of_another_model_are_an_error():
    with pytest.raises(ValueError, match=r"'transformer.wte.weight' is not among the 21 classified"):
        groups_of(gpt2(), classes=scaling.classify(llama()))


# Training with the groups


def train(groups, optimizer_class=torch.optim.AdamW, steps=100, schedule=None, **options):
    """A quadratic pull with noise that depends on the step alone; returns the optimizer."""
    optimizer = optimizer_class(groups, **options)
    scheduler = schedule(optimizer) if schedule else None
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.grad = 0.1 * parameter.detach() + noise
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return optimizer


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, wk.AdamW])
def test_coupled_and_independent_decay_train_identically(optimizer_class):
    torch.manual_seed(0)
    coupled = llama()
    independent = copy.deepcopy(coupled)
    lr, omega = 2.0**-7, 0.25  # whose product is exact, so that both are the same numbers
    train(groups_of(coupled, lr=lr, weight_decay=omega), optimizer_class)
    train(groups_of(independent, lr=lr, weight_decay=lr * omega, decay="independent"), optimizer_class)
    assert torch.equal(weights(coupled), weights(independent))


def test_independent_decay_is_what_it_says():
    """Against w ← (1 − κ)·w − lr·u written out in float64, κ = lr·ω·m^(−½) of the laws."""
    torch.manual_seed(0)
    m, lr, kappa = 4.0, 0.01, 0.002
    model = tree({"mlp.up_proj.weight": (6, 5)}).double()
    w = model.mlp.up_proj.weight.detach().clone()
    train(groups_of(model, m=m, lr=lr, weight_decay=kappa, decay="independent"))
    generator = torch.Generator().manual_seed(0)
    exp_avg, exp_avg_sq = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 101):
        grad = 0.1 * w + torch.randn(w.shape, generator=generator, dtype=w.dtype)
        exp_avg = 0.9 * exp_avg + 0.1 * grad
        exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * grad.square()
        u = exp_avg / (1 - 0.9**t) / ((exp_avg_sq / (1 - 0.999**t)).sqrt() + 1e-8)
        w = (1 - kappa / math.sqrt(m)) * w - lr / m * u
    torch.testing.assert_close(model.mlp.up_proj.weight.detach(), w, rtol=1e-9, atol=1e-12)


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(1, (t + 1) / 10)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 120),
    "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1, 50),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=scaling.peak_lrs(o, 0.01), total_steps=101
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, wk.AdamW])
def test_schedules_keep_the_ratio(schedule, optimizer_class):
    model = tree({"mlp.up_proj.weight": (4, 4), "norm.weight": (4,)})
    ratios = []

    def watched(optimizer):
        scheduler = SCHEDULES[schedule](optimizer)
        step = scheduler.step

        def step_and_look():
            scaling.require_ratios(optimizer)
            ratios.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[1]["lr"])
            step()

        scheduler.step = step_and_look
        return scheduler

    train(groups_of(model, m=8.0), optimizer_class, schedule=watched)
    assert len(ratios) == 100
    assert ratios == pytest.approx([1 / 8] * 100, rel=1e-9)


def test_a_schedule_that_sets_one_lr_for_all_is_found_out():
    model = tree({"mlp.up_proj.weight": (4, 4), "norm.weight": (4,)})
    optimizer = torch.optim.AdamW(groups_of(model, m=8.0))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=100)
    with pytest.raises(
        ValueError, match=r"group 1 \(vector\) is 0\.0004 and should be 0\.0032, 8 times that of"
    ):
        scaling.require_ratios(optimizer)
    with pytest.raises(ValueError, match="param group 0 has no lr_ratio"):
        scaling.require_ratios(torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, wk.AdamW])
def test_state_dicts_go_round(optimizer_class):
    torch.manual_seed(0)
    model = llama()
    optimizer = train(groups_of(model), optimizer_class, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    other = optimizer_class(groups_of(copy.deepcopy(model), m=1.0))
    other.load_state_dict(saved)
    scaling.require_ratios(other)
    for before, after in zip(optimizer.param_groups, other.param_groups, strict=True):
        for key in ("lr", "weight_decay", "lr_ratio", "scaling_class", "param_names"):
            assert before[key] == after[key]


# The table


def test_the_table_says_what_the_groups_do():
    model = llama()
    choices = {"width": 1024, "base_width": 64, "lr": 0.01, "weight_decay": 0.2}
    table = scaling.describe(model, **choices)
    groups = scaling.param_groups(model, **choices)
    given = {name: group for group in groups for name, _ in group["params"]}
    for row, name in enumerate(table.names):
        assert table.lr[row] == given[name]["lr"]
        assert table.weight_decay[row] == given[name]["weight_decay"]
    decaying = table.weight_decay > 0
    assert table.sigma_ratio[decaying] == pytest.approx(1)
    # √m times as long as 3/(η·ω) at the base.
    assert table.steps_to_equilibrium[decaying] == pytest.approx(4 * 3 / (0.01 * 0.2))
    assert (table.steps_to_equilibrium[~decaying] == math.inf).all()


def test_the_table_by_kind():
    table = scaling.describe(
        llama(layers=3), width=32, base_width=16, lr=0.01, weight_decay=0.2, rule="constant"
    )
    kinds = table.by_kind()
    row = kinds.names.index("model.layers.*.mlp.down_proj.weight")
    assert (kinds.tensors[row], kinds.shapes[row]) == (3, (16, 42))
    assert kinds.tensors.sum() == len(table.names)
    assert kinds.sigma_ratio[row] == pytest.approx(2**0.25)
    lines = str(kinds).splitlines()
    assert any(
        "model.layers.*.mlp.down_proj.weight" in li and "matrix" in li and "1.189" in li for li in lines
    )
    assert len(lines) == len(kinds.names) + 3
    assert table.to_pandas()["shape"][0] == "40x16"


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"weight_decay": -1}, "weight_decay must be 0 or a positive number, got -1"),
        ({"rule": "mup"}, "rule must be one of published, constant, proportional or a WidthRule, got 'mup'"),
        ({"decay": "l2"}, "decay must be 'coupled' or 'independent', got 'l2'"),
        ({"head": "tied"}, "head must be 'vector' or 'matrix', got 'tied'"),
        ({"decay": "independent", "weight_decay": 1.5}, "an independent weight_decay is the part of w"),
        ({"m": 0.0}, "width must be a positive number, got 0.0"),
    ],
)
def test_choices_that_make_no_sense(choices, said):
    with pytest.raises(ValueError, match=said):
        groups_of(llama(), **choices)


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_numbers_from_a_file_of_settings_are_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got '1e-3' "):
        groups_of(llama(), **{name: "1e-3"})


def test_what_is_no_named_parameters():
    with pytest.raises(TypeError, match="expected pairs"):
        groups_of(list(llama().parameters()))
    with pytest.raises(TypeError, match="got Tensor"):
        groups_of(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="there are no parameters"):
        groups_of(iter([]))
