"""What is read from an optimizer: rows, rates, and c as torch executes it."""

import subprocess
import sys

import pytest
import torch
from oracle import set_gradients
from torch.optim import Adam, AdamW

from weibull_kernels.optimizers import read_optimizer, with_columns

LR, DECAY = 0.1, 0.1234


def weight_of(dtype, n=1000):
    return torch.nn.Parameter(torch.linspace(1, 2, n, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "form",
    [
        {"foreach": False},
        {"foreach": True},
        {"fused": True},
        {},
        {"lr": torch.tensor(LR), "foreach": False},
        {"lr": torch.tensor(LR), "fused": True},
        {"lr": torch.tensor(LR, dtype=torch.float64), "foreach": False},
    ],
    ids=str,
)
def test_decay_factor_is_the_one_torch_multiplies_by(form, dtype):
    # With zero gradients a step is w⁺ = c·w, rounded once to the dtype of w.
    weight = weight_of(dtype)
    before, weight.grad = weight.detach().double().clone(), torch.zeros_like(weight)
    optimizer = AdamW([weight], **({"lr": LR, "weight_decay": DECAY, "eps": 1e-4} | form))
    optimizer.step()
    c = with_columns(read_optimizer(optimizer)).decay_factor
    assert c.dtype == torch.float64
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(weight.detach(), (before.to(wide) * c.to(wide)).to(dtype))
    assert c.item() == pytest.approx(1 - LR * DECAY, rel=2.0**-8)


@pytest.mark.parametrize(
    ("kind", "settings"), [(AdamW, {"weight_decay": 0.0}), (Adam, {"weight_decay": 0.1}), (Adam, {})]
)
def test_without_decoupled_decay_the_factor_is_one(kind, settings):
    assert with_columns(read_optimizer(kind([weight_of(torch.float32)], **settings))).decay_factor.item() == 1


def test_rows_follow_the_groups_and_hold_the_tensors_themselves():
    a, b, c = (weight_of(torch.float32, n) for n in (2, 3, 4))
    optimizer = AdamW(
        [{"params": [c], "lr": 3.0, "betas": (0.1, 0.2)}, {"params": [a, b], "eps": 0.5}], lr=2.0
    )
    set_gradients([a, c])
    optimizer.step()
    rows = read_optimizer(optimizer)
    assert [row.weight is p for row, p in zip(rows, (c, a, b), strict=True)] == [True] * 3
    assert rows[0].exp_avg is optimizer.state[c]["exp_avg"]
    assert rows[2].exp_avg is rows[2].exp_avg_sq is None
    stepped = with_columns(rows)
    assert stepped.lr.tolist() == [3.0, 2.0, 2.0]
    assert stepped.step.tolist() == [1, 1, 0]
    assert stepped.kernel_rows.eps.tolist() == [1e-8, 0.5, 0.5]
    assert stepped.kernel_rows.bias_correction1.tolist() == pytest.approx([0.9, 0.1, 0.1])
    assert stepped.kernel_rows.bias_correction2.tolist() == pytest.approx([0.8, 0.001, 0.001])


def test_amsgrad_reads_the_largest_second_moment():
    weight = weight_of(torch.float32)
    optimizer = AdamW([weight], amsgrad=True)
    for scale in (1.0, 0.0):
        set_gradients([weight], scale)
        optimizer.step()
    (row,) = read_optimizer(optimizer)
    assert row.exp_avg_sq is optimizer.state[weight]["max_exp_avg_sq"]
    assert (row.exp_avg_sq > optimizer.state[weight]["exp_avg_sq"]).any()


def test_a_loaded_state_is_read():
    weight, other = weight_of(torch.float32), weight_of(torch.float32)
    optimizer, loaded = AdamW([weight], lr=LR), AdamW([other], lr=1.0)
    set_gradients([weight])
    optimizer.step()
    loaded.load_state_dict(optimizer.state_dict())
    (row,), (copy,) = read_optimizer(optimizer), read_optimizer(loaded)
    assert row.settings == copy.settings
    assert torch.equal(row.exp_avg, copy.exp_avg)
    assert copy.step == 1


def test_steps_beyond_every_correction():
    weight = weight_of(torch.float32)
    optimizer = AdamW([weight], betas=(0.0, 0.999))
    set_gradients([weight])
    optimizer.step()
    optimizer.state[weight]["step"].fill_(1_000_000)
    columns = with_columns(read_optimizer(optimizer)).kernel_rows
    assert (columns.bias_correction1.item(), columns.bias_correction2.item()) == (1.0, 1.0)


def test_a_subclass_made_before_its_parent():
    # Torch wraps `step` of whichever class is instantiated first, so this needs a fresh process.
    program = """
import torch
from weibull_kernels.optimizers import read_optimizer
class Mine(torch.optim.AdamW): pass
class Other(torch.optim.Adam): pass
for kind in (Mine, torch.optim.AdamW, Other, torch.optim.Adam):
    print(len(read_optimizer(kind([torch.nn.Parameter(torch.ones(3))]))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 4
