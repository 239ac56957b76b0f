"""The injection from an optimizer state that was saved with the weights."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import weibull_kernels as wk
from weibull_kernels import optimizer_states
from weibull_kernels.optimizer_states import require_steps, stored_update_sq
from weibull_kernels.stored_tensors import CheckpointError
from weibull_kernels.trajectory import open_trajectory

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
    # One of the two reads only neighbours together, so that they differ by rounding.
    np.testing.assert_allclose(again.alignment, found.alignment, rtol=1e-6)


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


def one_step(state, *, names=("a", "b"), numel=(4, 3), step=20):
    """‖u‖²/n of the tensors from one given state, and the notes."""
    table, notes = stored_update_sq(None, {step: state}, [step], names, numel)
    return table[:, 0], notes


def adamw(*, names=("a", "b"), **changed):
    """A state whose update is 2 in every entry of a [2, 2], and 3 in those of b [3]."""
    first, second = torch.full((2, 2), 2.0), torch.full((3,), 3.0)
    group = {"params": [0, 1], "param_names": list(names), "betas": (0.0, 0.0), "eps": 0.0} | changed
    moments = [{"exp_avg": m, "exp_avg_sq": torch.ones_like(m), "step": 5} for m in (first, second)]
    return {"state": dict(enumerate(moments)), "param_groups": [group]}


def without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}


def test_a_table_of_tensors_and_steps():
    given = {20: adamw(), 40: adamw(names=("b", "other"))}
    given[40]["state"][0] = given[40]["state"][1]
    table, notes = stored_update_sq(None, given, [0, 20, 40], ["b", "c", "a"], [3, 7, 4])
    nan = np.nan
    np.testing.assert_allclose(table, [[nan, 9, 9], [nan, nan, nan], [nan, 4, nan]])
    assert notes == ()


def test_nothing_is_given_or_found():
    table, notes = stored_update_sq(None, None, [0, 10], ["a"], [4])
    assert table.shape == (1, 2)
    assert np.isnan(table).all()
    assert notes == ()


def test_steps_of_no_checkpoint():
    require_steps(None, [0, 10])
    require_steps({10: {}}, (0, 10))
    for check in (require_steps, lambda given, steps: stored_update_sq(None, given, steps, ["a"], [4])):
        with pytest.raises(
            ValueError, match=r"optimizer_states has step 5, the checkpoints are of \[0, 10\]"
        ):
            check({5: adamw()}, [0, 10])


def test_numbers_for_names_are_refused_where_tensors_could_be_confused(tmp_path):
    """Sorted by name, layer 10 comes before layer 2; all are of one size."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(12)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    weights = dict(sorted(model.state_dict().items()))
    names, numel = list(weights), [9] * 12
    assert names[2] == "10.weight"
    with pytest.raises(ValueError, match="the optimizer state of step 20: it has numbers for names"):
        one_step(optimizer.state_dict(), names=names, numel=numel)
    for step in (20, 30):
        torch.save({"model": weights, "optimizer": optimizer.state_dict()}, tmp_path / f"step{step}.pt")
    table, [note] = stored_update_sq(open_trajectory(tmp_path), None, [20, 30], names, numel)
    assert np.isnan(table).all()
    assert note.startswith("not used: the optimizer state of step 20, 30: it has numbers for names")
    assert "make the optimizer from model.named_parameters()" in note


@pytest.mark.parametrize(
    ("names", "numel", "known"),
    [(["a", "b"], [4, 3], True), (["b", "a"], [3, 4], False), (["a", "b", "c"], [4, 3, 2], False)],
)
def test_numbers_for_names_are_taken_in_the_order_of_the_sizes(names, numel, known):
    state = adamw()
    del state["param_groups"][0]["param_names"]
    if known:
        assert one_step(state, names=names, numel=numel)[0].tolist() == [4, 9]
        return
    with pytest.raises(ValueError, match="numbers for names"):
        one_step(state, names=names, numel=numel)


def test_numbers_of_several_groups_are_no_names():
    saved = trained(named=False, groups=2)
    names = list(saved[2][0])
    with pytest.raises(ValueError, match="numbers for names"):
        one_step(saved[2][1], names=names, numel=[w.numel() for w in saved[2][0].values()])


def test_tensors_of_another_optimizer_are_unknown():
    """As of Muon, which has AdamW beside it for what is no matrix."""
    state = adamw(names=("b",), params=[1])
    state["state"][0] = {"momentum_buffer": torch.ones(2, 2)}
    state["param_groups"].insert(0, {"params": [0], "momentum": 0.95})
    found, notes = one_step(state)
    np.testing.assert_array_equal(found, [np.nan, 9])
    assert notes == ()


def foreign():
    """What may lie beside a model and says nothing of û, and why it does not."""
    float8 = torch.ones(3).to(torch.float8_e4m3fn)
    masked = torch.ones(3).as_subclass(type("Sharded", (torch.Tensor,), {}))

    def with_moment(**changed):
        state = adamw()
        state["state"][1] |= changed
        return state

    def with_buffers(**buffers):
        return {"state": {0: buffers, 1: buffers}, "param_groups": [{"params": [0, 1], "lr": 0.1}]}

    stepless = adamw()
    stepless["state"] = {key: without(one, "step") for key, one in stepless["state"].items()}
    numberless = adamw()
    numberless["param_groups"] = [without(numberless["param_groups"][0], "betas", "eps")]
    nothing = "exp_avg and exp_avg_sq, which AdamW has, of no tensor"
    return {
        "sgd": (with_buffers(momentum_buffer=None), ValueError, nothing),
        "lion": (with_buffers(exp_avg=torch.ones(3)), ValueError, nothing),
        "no betas": (numberless, ValueError, "no 'betas' and no 'eps' for 'a'"),
        "no step": (stepless, ValueError, "no 'step' for 'a'"),
        "adafactor": (adamw(eps=(1e-30, 1e-3)), ValueError, "betas, eps or step for 'a' are not AdamW's"),
        "adan": (adamw(betas=(0.9, 0.9, 0.9)), ValueError, "betas, eps or step for 'a' are not AdamW's"),
        "steps": (with_moment(step=torch.ones(2)), ValueError, "betas, eps or step for 'b' are not AdamW's"),
        "float8": (with_moment(exp_avg_sq=float8), TypeError, "exp_avg_sq of 'b' has dtype .*float8_e4m3fn"),
        "wrapped": (with_moment(exp_avg=masked), TypeError, "exp_avg of 'b' is a .*Sharded; .* gather"),
        "amsgrad": (with_moment(max_exp_avg_sq=float8), TypeError, "max_exp_avg_sq of 'b' has dtype"),
        "sizes": (with_moment(exp_avg=torch.ones(5)), ValueError, r"shape \[5\] for 'b', .* 3 weights"),
        "shapes": (with_moment(exp_avg_sq=torch.ones(3, 1)), ValueError, r"exp_avg_sq of shape \[3, 1\]"),
        "names": (adamw(names=("c", "d")), ValueError, "none of the tensors, such as 'a'"),
        "groups": ({"state": {}, "param_groups": [{}]}, ValueError, "has 'state' and 'param_groups', this"),
        "no state": ({"loss": 1.0}, ValueError, "has 'state' and 'param_groups', this has loss"),
    }


@pytest.mark.parametrize("kind", foreign())
def test_foreign_states_are_refused_where_given_and_said_where_found(kind):
    state, error, message = foreign()[kind]
    with pytest.raises(error, match=f"the optimizer state of step 20: .*{message}"):
        one_step(state)
    trajectory = SimpleNamespace(steps=(20, 30), checkpoints=("foreign", "adamw"))
    with pytest.MonkeyPatch.context() as patch:
        # As if the files held it: torch would not save a wrapper of a class that is not in a module.
        patch.setattr(optimizer_states, "_beside_the_model", lambda checkpoint: checkpoint)
        patch.setattr(
            optimizer_states, "load_pickle", lambda path: state if path.name == "foreign" else adamw()
        )
        table, [note] = stored_update_sq(trajectory, None, [20, 30], ["a", "b"], [4, 3])
    np.testing.assert_array_equal(table, [[np.nan, 4], [np.nan, 9]])
    assert note.startswith("not used: the optimizer state of step 20: ")


def test_a_given_state_comes_before_one_that_is_found(tmp_path):
    torch.save({"model": {"a": torch.ones(2, 2)}, "optimizer": {"state": 1}}, tmp_path / "step20.pt")
    trajectory = open_trajectory(tmp_path)
    assert stored_update_sq(trajectory, {20: adamw()}, [20], ["a"], [4])[0] == 4
    [note] = stored_update_sq(trajectory, None, [20], ["a"], [4])[1]
    assert note.startswith("not used: the optimizer state of step 20: ")


def test_moments_that_are_not_finite_are_unknown():
    state = adamw()
    state["state"][0]["exp_avg"][0, 0] = torch.nan
    found, notes = one_step(state)
    np.testing.assert_array_equal(found, [np.nan, 9])
    assert notes == ("the optimizer state of step 20 is not finite for 'a'",)
    state["state"][1]["exp_avg"][0] = torch.inf
    assert one_step(state)[1] == ("the optimizer state of step 20 is not finite for 'a', 'b'",)


def test_tensors_without_entries_or_steps_are_unknown():
    state = adamw()
    state["state"][0] |= {"exp_avg": torch.ones(0), "exp_avg_sq": torch.ones(0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, notes = one_step(state, numel=(0, 3))
    np.testing.assert_array_equal(found, [np.nan, 9])
    assert notes == ()
    state["state"][1]["step"] = torch.tensor(0.0)
    assert np.isnan(one_step(state, numel=(0, 3))[0]).all()
    before_the_first_step = {"state": {}, "param_groups": adamw()["param_groups"]}
    assert np.isnan(one_step(before_the_first_step)[0]).all()


def test_moments_on_several_devices(monkeypatch):
    """Each device has a kernel of its own; the meta device stands for an accelerator here."""
    state = adamw()
    state["state"][1] |= {key: state["state"][1][key].to("meta") for key in ("exp_avg", "exp_avg_sq")}
    real = optimizer_states.find_kernel

    def find_kernel(operation, backend, device):
        if device.type == "cpu":
            return real(operation, backend, device)
        return lambda rows: SimpleNamespace(update_sq=torch.tensor([27.0] * len(rows)))

    monkeypatch.setattr(optimizer_states, "find_kernel", find_kernel)
    monkeypatch.setattr(optimizer_states, "require_plain", lambda name, tensor: None)
    assert one_step(state)[0].tolist() == [4, 9]


def test_steps_that_the_group_counts():
    state = adamw(step=5)
    state["state"] = {key: without(one, "step") for key, one in state["state"].items()}
    assert one_step(state)[0].tolist() == [4, 9]


def test_amsgrad_divides_by_the_largest():
    state = adamw()
    state["state"][0]["max_exp_avg_sq"] = torch.full((2, 2), 4.0)
    assert one_step(state)[0].tolist() == [1, 9]


@pytest.mark.parametrize("model", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("folders", [True, False])
def test_a_file_in_the_folder_of_the_step(model, folders, tmp_path):
    """As Hugging Face's Trainer writes them, which has no names and whose groups are two."""
    paths = []
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save(folder / model, {"a": torch.ones(2, 2), "b": torch.ones(3)})
        state = adamw()
        if step == 1000:
            state["param_groups"] = [without(state["param_groups"][0], "param_names") | {"params": [0]}] * 2
        torch.save(state, folder / "optimizer.pt")
        paths.append(folder if folders else folder / model)
    trajectory = open_trajectory(paths, [500, 1000])
    table, [note] = stored_update_sq(trajectory, None, [500, 1000], ["a", "b"], [4, 3])
    np.testing.assert_array_equal(table, [[4, np.nan], [9, np.nan]])
    assert note.startswith("not used: the optimizer state of step 1000: it has numbers for names")


def save(path, weights):
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        torch.save(weights, path)


def test_a_file_beside_the_models_of_all_steps_is_of_none(tmp_path):
    for step in (10, 20):
        torch.save({"a": torch.ones(2, 2)}, tmp_path / f"step{step}.pt")
    torch.save(adamw(), tmp_path / "optimizer.pt")
    table, notes = stored_update_sq(open_trajectory(tmp_path), None, [10, 20], ["a"], [4])
    assert np.isnan(table).all()
    assert notes == ()


def test_files_that_are_no_states(tmp_path):
    path = tmp_path / "optimizer.pt"
    with pytest.raises(FileNotFoundError, match="the optimizer state of step 20"):
        one_step(path)
    path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be loaded with weights_only=True"):
        one_step(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="a state_dict is expected, this is a list"):
        one_step(path)
    with pytest.raises(TypeError, match="the optimizer state of step 20"):
        one_step(5)


def test_a_file_in_the_format_before_torch_1_6(tmp_path):
    """It is no zip, so that it cannot be mapped."""
    torch.save(adamw(), tmp_path / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert one_step(str(tmp_path / "optimizer.pt"))[0].tolist() == [4, 9]


def test_states_that_nobody_looks_at():
    saved = trained()
    unused = wk.recover(
        [w for w, _, _ in saved], STEPS, optimizer_states={20: saved[2][1]}, injection=0.2, **OPTIONS
    )
    assert unused.notes == ("optimizer_states were given and not used",)


def test_states_that_nobody_uses_are_not_read(tmp_path, monkeypatch):
    files(tmp_path, trained())
    read = []
    monkeypatch.setattr(optimizer_states, "load_pickle", read.append)
    for options in ({"method": "midpoint"}, {"method": "spline"}, {"injection": "noise_limit"}):
        assert wk.recover(tmp_path, **OPTIONS, **options).names
    assert not read
