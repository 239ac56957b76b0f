"""The injection from an optimizer state that was saved with the weights."""

import numpy as np
import pytest
import torch

import weibull_kernels as wk

STEPS = range(0, 50, 10)
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99)}


def trained(*, named=True, groups=1):
    """Weights, optimizer states and the true ‖u‖²/n at every tenth step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 10))
    parameters = list(model.named_parameters() if named else model.parameters())
    split = [parameters] if groups == 1 else [parameters[1::2], parameters[::2]]
    optimizer = torch.optim.AdamW(
        [{"params": part} for part in split], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99)
    )
    saved = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            truth = None
            if step:
                budget = wk.forces(optimizer, model)
                truth = dict(
                    zip(budget.names, (budget.injection / 1e-4 / budget.numel).tolist(), strict=True)
                )
            weights = {name: w.clone() for name, w in model.state_dict().items()}
            saved.append((weights, torch.utils._pytree.tree_map(_copy, optimizer.state_dict()), truth))
        x = torch.randn(16, 20)
        optimizer.zero_grad()
        (model(x) - x[:, :10].tanh()).square().mean().backward()
        optimizer.step()
    return saved


def _copy(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def files(folder, saved, *, states=None, key="optimizer"):
    for step, (weights, state, _) in zip(STEPS, saved, strict=True):
        beside = {key: state} if states is None or step in states else {}
        torch.save({"model": weights} | beside, folder / f"step{step}.pt")


@pytest.mark.parametrize(("named", "groups"), [(True, 1), (True, 2), (False, 1)])
def test_a_state_beside_the_model_is_found(named, groups, tmp_path):
    saved = trained(named=named, groups=groups)
    files(tmp_path, saved)
    found = wk.recover(tmp_path, **OPTIONS)
    assert (found.impulses.injection_source == "stored").all()
    for row, name in enumerate(found.names):
        ends = np.array([np.nan] + [truth[name] for _, _, truth in saved[1:]])
        # The geometric mean of both ends; of the first interval, whose beginning has no state, the end.
        expected = np.sqrt(ends[:-1] * ends[1:])
        expected[0] = ends[1]
        assert found.impulses.update_rms[row] ** 2 == pytest.approx(expected, rel=1e-5)
    errors = found.impulses.update_rms_error
    assert (errors[:, 0] > errors[:, 1]).all()
    assert not found.notes


def test_states_that_are_given(tmp_path):
    saved = trained()
    weights = [weights for weights, _, _ in saved]
    torch.save(saved[2][1], tmp_path / "optimizer.pt")
    found = wk.recover(
        weights, STEPS, optimizer_states={20: tmp_path / "optimizer.pt", 30: saved[3][1]}, **OPTIONS
    )
    assert (found.impulses.injection_source[:, 1:] == "stored").all()
    assert (found.impulses.injection_source[:, 0] != "stored").all()
    gram = wk.checkpoint_gram(weights, STEPS)
    again = wk.recover(gram, optimizer_states={20: saved[2][1], 30: saved[3][1]}, **OPTIONS)
    assert np.array_equal(again.alignment, found.alignment)


def test_states_keyed_by_name():
    saved = trained()
    weights, state, truth = saved[4]
    named = dict(zip(state["param_groups"][0]["params"], weights, strict=True))
    full = {
        "state": {named[key]: value for key, value in state["state"].items()},
        "param_groups": [state["param_groups"][0] | {"params": list(weights)}],
    }
    del full["param_groups"][0]["param_names"]
    found = wk.recover([w for w, _, _ in saved], STEPS, optimizer_states={40: full}, **OPTIONS)
    last = found.impulses.update_rms[:, -1] ** 2
    assert last == pytest.approx([truth[name] for name in found.names], rel=1e-5)


def test_a_state_without_names_is_refused_and_said(tmp_path):
    saved = trained(named=False, groups=2)
    files(tmp_path, saved, states=[20])
    found = wk.recover(tmp_path, **OPTIONS)
    assert "stored" not in found.impulses.injection_source
    [note] = found.notes
    assert note.startswith("not used: the optimizer state in")
    assert "make the optimizer from model.named_parameters()" in note
    with pytest.raises(ValueError, match="the optimizer state of step 20 has numbers for names"):
        wk.recover([w for w, _, _ in saved], STEPS, optimizer_states={20: saved[2][1]}, **OPTIONS)


def test_states_that_are_none(tmp_path):
    saved = trained()
    weights = [w for w, _, _ in saved]
    with pytest.raises(ValueError, match="has 'state' and 'param_groups', this has loss"):
        wk.recover(weights, STEPS, optimizer_states={20: {"loss": 1.0}}, **OPTIONS)
    (tmp_path / "optimizer.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be loaded with weights_only=True"):
        wk.recover(weights, STEPS, optimizer_states={20: tmp_path / "optimizer.pt"}, **OPTIONS)
    with pytest.raises(FileNotFoundError):
        wk.recover(weights, STEPS, optimizer_states={20: tmp_path / "none.pt"}, **OPTIONS)
    with pytest.raises(ValueError, match="has none of the tensors"):
        wk.recover(
            [{"other": w["0.weight"]} for w in weights], STEPS, optimizer_states={20: saved[2][1]}, **OPTIONS
        )
    with pytest.raises(ValueError, match=r"has 600 moments of '0.weight'"):
        wk.recover(
            [{"0.weight": w["0.bias"]} for w in weights], STEPS, optimizer_states={20: saved[2][1]}, **OPTIONS
        )
    unused = wk.recover(weights, STEPS, optimizer_states={20: saved[2][1]}, injection=0.2, **OPTIONS)
    assert unused.notes == ("optimizer_states were given and not used",)
