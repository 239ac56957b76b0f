"""Checkpoints found in a folder and put in order."""

import pytest
import torch
from safetensors.torch import save_file

from weibull_kernels.stored_tensors import CheckpointError
from weibull_kernels.trajectory import find_checkpoints, open_trajectory, step_of


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step1000", 1000),
        ("step_20", 20),
        ("step0", 0),
        ("STEP-7.safetensors", 7),
        ("global_step250", 250),
        ("checkpoint-500", 500),
        ("iter_0002000", 2000),
        ("ckpt12.pt", 12),
        ("pythia-70m-step143000", 143000),
        ("run3-step8.pt", 8),
        ("model.pt", None),
        ("epoch", None),
    ],
)
def test_the_step_in_a_name(name, step):
    assert step_of(name) == step


def test_a_folder_in_the_order_of_steps(tmp_path):
    for name in ("step100", "step20", "step3"):
        (tmp_path / name).mkdir()
    (tmp_path / "log.txt").touch()
    assert list(find_checkpoints(tmp_path)) == [3, 20, 100]
    for beside in ("step20.json", "step20.png"):
        (tmp_path / beside).touch()
    assert list(find_checkpoints(tmp_path)) == [3, 20, 100]
    (tmp_path / "step0020.pt").touch()
    with pytest.raises(ValueError, match=r"two checkpoints of step 20, step0020.pt and step20"):
        find_checkpoints(tmp_path)


def test_folders_without_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints by their names"):
        find_checkpoints(tmp_path)
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"model.pt is a single checkpoint; give the folder"):
        find_checkpoints(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_checkpoints(tmp_path / "none")


def test_steps_are_told_from_names_or_given(tmp_path):
    for step in (1, 2):
        save_file({"w": torch.ones(2)}, tmp_path / f"step{step}.safetensors")
    paths = sorted(tmp_path.iterdir())
    assert open_trajectory(paths).steps == (1, 2)
    assert open_trajectory(paths, [5, 8]).steps == (5, 8)
    assert open_trajectory(tmp_path).steps == (1, 2)
    with pytest.raises(ValueError, match="leave steps out"):
        open_trajectory(tmp_path, [1, 2])
    (tmp_path / "step2.safetensors").rename(tmp_path / "last.safetensors")
    with pytest.raises(ValueError, match=r"the step of .*last.safetensors cannot be told from its name"):
        open_trajectory(sorted(tmp_path.iterdir(), reverse=True))
    with pytest.raises(ValueError, match="the step of a dict cannot be told"):
        open_trajectory([{"w": torch.ones(2)}])


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "step1.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"step1.safetensors is not a safetensors file"):
        open_trajectory(tmp_path)
    with pytest.raises(TypeError, match="expected a path or a mapping from name to tensor, got a list"):
        open_trajectory([[torch.ones(2)]], [1])
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 1: 'w' is torch.sparse_coo"):
        open_trajectory([{"w": torch.ones(2).to_sparse()}], [1])


def test_tied_tensors_are_followed_once():
    weight = torch.ones(3)
    found = open_trajectory([{"a": weight, "b": weight, "count": 3}] * 2, [1, 2])
    assert list(found.tensors) == ["a"]
    assert found.left_out["b"] == "tied to 'a'"
    assert found.left_out["count"] == "not a tensor but a int"
    assert found.nbytes == 24
