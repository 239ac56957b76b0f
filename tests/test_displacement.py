"""Optimizers whose update is not known, measured by how they move the weights."""

import warnings

import pytest
import torch
from loops import Kept, Net, backward, train, two_groups
from torch import nn

import weibull_kernels as wk


class Lion(torch.optim.Optimizer):
    """w ← (1 − lr·wd)·w − lr·sign(β₁·m + (1−β₁)·g), in the way that Lion is usually written."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((0.9 * m + 0.1 * p.grad).sign(), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


def by_hand(before, after, lr, weight_decay):
    """The four forces of a step in float64, entry by entry, from the definition of u."""
    w, w1, c = before.double(), after.double(), 1 - lr * weight_decay
    u = (c * w - w1) / lr
    wu, lost = (w * u).sum(), lr * weight_decay
    return {
        "alignment": -2 * lr * wu,
        "injection": lr**2 * (u * u).sum(),
        "decay": -2 * lost * (w * w).sum(),
        "coupling": lost * (2 * lr * wu + lost * (w * w).sum()),
        "norm_sq": (w * w).sum(),
    }


MADE = {
    "sgd": (lambda model: torch.optim.SGD(two_groups(model), lr=0.1, momentum=0.9), False),
    "rmsprop": (lambda model: torch.optim.RMSprop(two_groups(model), lr=1e-2), False),
    "nadam": (lambda model: torch.optim.NAdam(two_groups(model), lr=1e-2), False),
    "nadamw": (
        lambda model: torch.optim.NAdam(two_groups(model), lr=1e-2, decoupled_weight_decay=True),
        True,
    ),
    "radamw": (
        lambda model: torch.optim.RAdam(two_groups(model), lr=1e-2, decoupled_weight_decay=True),
        True,
    ),
    "adafactor": (lambda model: torch.optim.Adafactor(two_groups(model), lr=1e-2), True),
    "muon": (lambda model: torch.optim.Muon([model.mlp.weight, model.lm_head.weight], lr=1e-2), True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [*MADE, "lion"])
def test_forces_are_those_of_the_displacement(kind, dtype):
    torch.manual_seed(0)
    model, kept = Net(dtype), Kept()
    make, decoupled = MADE.get(kind, (lambda model: Lion(two_groups(model), lr=1e-2), True))
    optimizer = make(model)
    settings = {"decoupled": True} if kind == "lion" else {}
    before = {}
    optimizer.register_step_pre_hook(
        lambda *_: before.update({p: p.detach().clone() for p in model.parameters()})
    )
    wk.attach(optimizer, names=model, sinks=[kept], **settings)
    names = dict(model.named_parameters())
    for step in range(1, 4):
        train(model, optimizer, range(step, step + 1))
        budget = kept.budgets[-1]
        rates = {p: group for group in optimizer.param_groups for p in group["params"]}
        for row, name in enumerate(budget.names):
            p = names[name]
            group = rates[p]
            decay = group["weight_decay"] if decoupled else 0.0
            expected = by_hand(before[p], p.detach(), group["lr"], decay)
            for column, value in expected.items():
                scale = expected["norm_sq"] if column == "norm_sq" else budget.absolute[row]
                assert getattr(budget, column)[row].item() == pytest.approx(
                    value.item(), abs=1e-9 * scale.item()
                ), (column, name)
            change = p.detach().double().square().sum() - before[p].double().square().sum()
            assert budget.predicted_change[row].item() == pytest.approx(
                change.item(), abs=1e-12 * expected["norm_sq"].item()
            )


def test_adamw_by_displacement_is_adamw_by_its_moments():
    """An independent look at the other way: in float64 the two agree."""

    class Renamed(torch.optim.AdamW):
        @torch.no_grad()
        def step(self, closure=None):
            return super().step(closure)

    records = []
    for kind in (torch.optim.AdamW, Renamed):
        torch.manual_seed(0)
        model, kept = Net(torch.float64), Kept()
        optimizer = kind(two_groups(model), lr=1e-2)
        meter = wk.attach(optimizer, sinks=[kept])
        train(model, optimizer, range(1, 6))
        assert kept.steps == [1, 2, 3, 4, 5]  # although torch hooks the step of the parent class too
        assert meter.steps == (5,)
        records.append(kept.budgets)
    for known, displaced in zip(*records, strict=True):
        for column in ("alignment", "injection", "decay", "coupling"):
            torch.testing.assert_close(
                getattr(displaced, column), getattr(known, column), rtol=1e-9, atol=1e-15
            )


def test_a_step_that_moves_nothing_is_not_booked():
    model, kept = Net(), Kept()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wk.attach(optimizer, names=model, sinks=[kept])
    train(model, optimizer, range(1, 3))
    assert kept.records == []


def test_a_rate_of_zero_for_some_is_no_force():
    model, kept = Net(), Kept()
    groups = [{"params": [model.mlp.weight], "lr": 0.0}, {"params": [model.lm_head.weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    wk.attach(optimizer, names=model, sinks=[kept])
    train(model, optimizer, range(1, 2))
    assert kept.budgets[0].steps.tolist() == [0, 1]
    assert kept.budgets[0].absolute.tolist()[0] == 0.0


def test_an_unknown_optimizer_is_taken_as_decoupled_and_says_so():
    model = Net()
    with pytest.warns(
        UserWarning, match=r"Lion is measured by how it moves the weights.* say decoupled=True"
    ):
        wk.attach(Lion(two_groups(model)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wk.attach(Lion(two_groups(model, weight_decay=0.0)))
        wk.attach(Lion(two_groups(model)), decoupled=False)
        wk.attach(torch.optim.SGD(two_groups(model)))


def test_decay_that_is_said_to_act_through_the_gradient_is_no_force():
    model, kept = Net(), Kept()
    optimizer = Lion(two_groups(model))
    wk.attach(optimizer, decoupled=False, sinks=[kept])
    train(model, optimizer, range(1, 2))
    assert (kept.budgets[0].decay == 0).all()


def test_strided_and_empty_tensors():
    images = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    empty = nn.Parameter(torch.zeros(0, 4))
    gapped = nn.Parameter(torch.randn(6, 6).t()[:, :3])
    kept = Kept()
    optimizer = torch.optim.SGD([images.weight, empty, gapped], lr=0.1)
    before = [p.detach().clone() for p in (images.weight, gapped)]
    wk.attach(optimizer, names={"conv": images.weight, "empty": empty, "gapped": gapped}, sinks=[kept])
    (images(torch.randn(1, 2, 5, 5)).square().sum() + gapped.square().sum() + empty.sum()).backward()
    optimizer.step()
    budget = kept.budgets[0]
    assert budget.steps.tolist() == [1, 0, 1]
    for row, old, new in ((0, before[0], images.weight), (2, before[1], gapped)):
        expected = by_hand(old, new.detach(), 0.1, 0.0)
        assert budget.alignment[row].item() == pytest.approx(expected["alignment"].item(), rel=1e-9)
        assert budget.injection[row].item() == pytest.approx(expected["injection"].item(), rel=1e-9)


def test_nothing_of_the_copy_is_kept_after_the_step():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = wk.attach(optimizer, names=model)
    backward(model, 1)
    optimizer.step()
    (hooks,) = meter._hooks
    assert hooks.probe._copied == []


def test_an_optimizer_that_chooses_its_rates_has_none_in_the_record():
    class Own(Lion):
        """It keeps its rate to itself."""

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=1e-2)

    model, kept = Net(), Kept()
    optimizer = Own(model.parameters(), lr=None)
    wk.attach(optimizer, names=model, sinks=[kept])
    train(model, optimizer, range(1, 2))
    ((_, budget, scalars),) = kept.records
    assert scalars["lr"].isnan().all()
    assert budget.predicted_change.isfinite().all()
    assert (budget.injection > 0).all()


def test_decay_by_a_rate_that_is_not_told_is_refused():
    optimizer = Lion(two_groups(Net()), lr=1e-3)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match=r"lr None and weight_decay 0.1, .* say decoupled=False"):
        wk.attach(optimizer, decoupled=True)
    wk.attach(optimizer, decoupled=False)
