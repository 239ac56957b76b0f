"""The Gram pass over checkpoints: what it reads, that it is exact, and that it adds up."""

import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file

import weibull_kernels as wk
from weibull_kernels import gram_pass
from weibull_kernels.stored_tensors import CheckpointError
from weibull_kernels.trajectory import open_trajectory

STEPS = [0, 10, 20, 30, 50]
SHAPES = {"layers.0.mlp.weight": (70, 90), "layers.0.norm.weight": (90,), "nothing": (0, 3), "number": ()}


def run(dtype=torch.float32):
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    found = []
    for _ in STEPS:
        weights = {name: w + 0.01 * torch.randn(w.shape) for name, w in weights.items()}
        found.append({name: w.to(dtype) for name, w in weights.items()})
    return found


def exact(checkpoints, name):
    """G in long double."""
    rows = np.stack([one[name].double().numpy().ravel() for one in checkpoints]).astype(np.longdouble)
    return (rows @ rows.T).astype(float)


def assert_exact(gram, checkpoints):
    assert gram.steps == tuple(STEPS)
    for row, name in enumerate(gram.names):
        expected = exact(checkpoints, name)
        assert abs(gram.products[row] - expected).max() <= 1e-13 * max(expected.max(), 1e-300), name
        assert gram.numel[row] == checkpoints[0][name].numel()
        assert np.array_equal(gram.products[row], gram.products[row].T)
    assert np.array_equal(gram.norm_sq, np.diagonal(gram.products, axis1=1, axis2=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_tensors_in_memory(dtype):
    checkpoints = run(dtype)
    gram = wk.checkpoint_gram(checkpoints, STEPS)
    assert gram.names == tuple(SHAPES)
    assert_exact(gram, checkpoints)


def test_dtypes_may_change_in_a_run():
    checkpoints = run()
    checkpoints[1] = {name: w.bfloat16() for name, w in checkpoints[1].items()}
    checkpoints[3] = {name: w.half() for name, w in checkpoints[3].items()}
    assert_exact(wk.checkpoint_gram(checkpoints, STEPS), checkpoints)


def write_safetensors(folder, step, named):
    save_file(named, folder / f"step{step}.safetensors")


def write_pickle(folder, step, named):
    torch.save({"model": named, "step": step}, folder / f"step{step}.pt")


def write_shards(folder, step, named):
    """Others in every checkpoint."""
    place = folder / f"step{step}"
    place.mkdir()
    names = sorted(named, reverse=step % 20 == 0)
    parts = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for file, of_part in parts.items():
        save_file({name: named[name] for name in of_part}, place / file)
    shard_of = {name: file for file, of_part in parts.items() for name in of_part}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))


def write_hugging_face(folder, step, named):
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    torch.save(named, place / "pytorch_model.bin")
    torch.save({"state": {}, "param_groups": []}, place / "optimizer.pt")


@pytest.mark.parametrize("write", [write_safetensors, write_pickle, write_shards, write_hugging_face])
def test_files(write, tmp_path):
    checkpoints = run()
    for step, named in zip(STEPS, checkpoints, strict=True):
        write(tmp_path, step, named)
    (tmp_path / "README.md").touch()
    read = []
    gram = wk.checkpoint_gram(tmp_path, on_read=read.append)
    assert_exact(gram, checkpoints)
    assert sum(read) == sum(w.nbytes for one in checkpoints for w in one.values())
    memory = wk.checkpoint_gram(checkpoints, STEPS)
    for name in gram.names:
        row, other = gram.names.index(name), memory.names.index(name)
        assert np.array_equal(gram.products[row], memory.products[other])


def test_every_kind_of_source_in_one_run(tmp_path):
    checkpoints = run()
    write_safetensors(tmp_path, STEPS[0], checkpoints[0])
    write_shards(tmp_path, STEPS[1], checkpoints[1])
    write_pickle(tmp_path, STEPS[2], checkpoints[2])
    mixed = [
        tmp_path / "step0.safetensors",
        str(tmp_path / "step10"),
        tmp_path / "step20.pt",
        *checkpoints[3:],
    ]
    assert_exact(wk.checkpoint_gram(mixed, STEPS), checkpoints)


def test_blocks_of_any_length(monkeypatch):
    checkpoints = run()
    whole = wk.checkpoint_gram(checkpoints, STEPS)
    monkeypatch.setattr(gram_pass, "_ALIGNED", 16)
    monkeypatch.setattr(gram_pass, "_LEAST", 48)
    monkeypatch.setattr(gram_pass, "_HELD", 1)
    pieces = wk.checkpoint_gram(checkpoints, STEPS)
    assert pieces.products == pytest.approx(whole.products, rel=1e-13)


def test_the_same_bits_for_any_number_of_threads(monkeypatch, restore_threads):
    monkeypatch.setattr(gram_pass, "_ALIGNED", 16)
    monkeypatch.setattr(gram_pass, "_LEAST", 48)
    monkeypatch.setattr(gram_pass, "_HELD", 1)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(wk.checkpoint_gram(run(), STEPS).products)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_backends_agree():
    checkpoints = run()
    reference, cpu = (wk.checkpoint_gram(checkpoints, STEPS, backend=name) for name in ("reference", "cpu"))
    assert cpu.products == pytest.approx(reference.products, rel=1e-13)
    with pytest.raises(ValueError, match="backend must be one of"):
        wk.checkpoint_gram(checkpoints, STEPS, backend="fast")


def test_small_differences_keep_their_digits():
    """Neighbours 1e-7 apart: the products give ‖wᵢ₊₁ − wᵢ‖² but for rounding of ‖w‖², the moves all of it."""
    torch.manual_seed(0)
    start = torch.randn(4000, dtype=torch.float64)
    moved = [torch.randn(4000, dtype=torch.float64) * 1e-7 for _ in STEPS]
    checkpoints = [{"w": start + move} for move in moved]
    gram = wk.checkpoint_gram(checkpoints, STEPS).products[0]
    for products in ("all", "neighbours"):
        moves = wk.checkpoint_gram(checkpoints, STEPS, products=products).moves[0]
        assert moves[0] == 0
        for i in range(len(STEPS) - 1):
            apart = (gram[i, i] - 2 * gram[i, i + 1] + gram[i + 1, i + 1]).item()
            expected = (checkpoints[i + 1]["w"] - checkpoints[i]["w"]).square().sum().item()
            assert abs(apart - expected) <= 8 * np.finfo(float).eps * gram[i, i]
            assert moves[i + 1] == pytest.approx(expected, rel=1e-12)


def test_saved_and_loaded_to_the_bit(tmp_path):
    checkpoints = run()
    checkpoints[2] = {name: w for name, w in checkpoints[2].items() if name != "number"}
    gram = wk.checkpoint_gram(checkpoints, STEPS, roles={"layers.0.mlp.*": "mine"})
    gram.save(tmp_path / "gram.parquet")
    loaded = wk.CheckpointGram.load(tmp_path / "gram.parquet")
    assert loaded.names == gram.names
    assert loaded.steps == gram.steps
    for column in ("products", "moves", "eps", "update_sq"):
        assert np.array_equal(getattr(loaded, column), getattr(gram, column), equal_nan=True)
    assert not (tmp_path / "gram.parquet.part").exists()
    assert loaded.numel.tolist() == gram.numel.tolist()
    assert loaded.left_out == gram.left_out == {"number": "not in the checkpoint of step 20"}
    assert loaded.role_overrides == {"layers.0.mlp.*": "mine"}
    options = {"lr": 1e-3, "weight_decay": 0.1}
    assert np.array_equal(wk.recover(loaded, **options).alignment, wk.recover(gram, **options).alignment)
    assert wk.recover(loaded, **options).roles[0] == "mine"


def test_files_that_hold_no_gram(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        wk.CheckpointGram.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ValueError, match="holds no Gram matrices"):
        wk.CheckpointGram.load(tmp_path / "text.parquet")
    with wk.ParquetSink(tmp_path / "run.parquet") as sink:
        sink.write(1, wk.ForceBudget.from_sums(1.0, 1.0, 1.0, lr=0.1))
    with pytest.raises(ValueError, match=r"expected what CheckpointGram.save wrote"):
        wk.CheckpointGram.load(tmp_path / "run.parquet")


def test_ranks_join_and_shards_add():
    checkpoints = run()
    whole = wk.checkpoint_gram(checkpoints, STEPS)
    names = list(SHAPES)
    ranks = [
        wk.checkpoint_gram([{name: one[name] for name in part} for one in checkpoints], STEPS)
        for part in (names[:1], names[1:])
    ]
    joined = ranks[0] | ranks[1]
    assert joined.names == whole.names
    assert np.array_equal(joined.products, whole.products)
    with pytest.raises(ValueError, match=r"layers.0.mlp.weight is in both"):
        joined | ranks[0]
    with pytest.raises(ValueError, match=r"in one of them only; a \| b joins"):
        joined + ranks[0]
    # Rows of the matrices over two ranks, the second of which has none of the small ones.
    upper = [{name: w[:40] if w.ndim == 2 else w for name, w in one.items()} for one in checkpoints]
    lower = [
        {name: w[40:] if w.ndim == 2 else w.reshape(-1)[:0] for name, w in one.items()} for one in checkpoints
    ]
    added = wk.checkpoint_gram(upper, STEPS) + wk.checkpoint_gram(lower, STEPS)
    assert added.numel.tolist() == whole.numel.tolist()
    assert added.products == pytest.approx(whole.products, rel=1e-13)
    with pytest.raises(ValueError, match="only one has that of step 50"):
        whole | wk.checkpoint_gram(checkpoints[:4], STEPS[:4])


def test_neighbours_alone():
    """The diagonal and its neighbours of the whole, and nothing else; `at` joins what is known."""
    checkpoints = run(torch.bfloat16)
    whole = wk.checkpoint_gram(checkpoints, STEPS)
    near = wk.checkpoint_gram(checkpoints, STEPS, products="neighbours")
    known = (
        np.eye(len(STEPS), dtype=bool)
        | np.eye(len(STEPS), k=1, dtype=bool)
        | np.eye(len(STEPS), k=-1, dtype=bool)
    )
    assert np.isnan(near.products[:, ~known]).all()
    assert near.products[:, known] == pytest.approx(whole.products[:, known], rel=1e-12)
    assert near.moves == pytest.approx(whole.moves, rel=1e-12)
    assert (near.eps == 2.0**-7).all()
    options = {"lr": 1e-3, "weight_decay": 0.1}
    for method in ("corrected", "midpoint", "two_point"):
        one, other = (wk.recover(gram, method=method, **options) for gram in (near, whole))
        assert one.alignment == pytest.approx(other.alignment, rel=1e-9)
    with pytest.raises(ValueError, match="a spline needs 4 checkpoints that were read together"):
        wk.recover(near, method="spline", **options)
    with pytest.raises(ValueError, match="of steps 0 and 20 were not read together"):
        near.at([0, 20, 30])
    with pytest.raises(ValueError, match="products must be one of"):
        wk.checkpoint_gram(checkpoints, STEPS, products="some")


def test_many_checkpoints():
    torch.manual_seed(0)
    walk = torch.cumsum(0.01 * torch.randn(130, 500), dim=0) + torch.randn(500)
    checkpoints = [{"w": w} for w in walk]
    gram = wk.checkpoint_gram(checkpoints, range(130))
    expected = exact(checkpoints, "w")
    assert abs(gram.products[0] - expected).max() <= 1e-13 * expected.max()


def test_some_of_the_checkpoints():
    checkpoints = run()
    gram = wk.checkpoint_gram(checkpoints, STEPS)
    some = gram.at([0, 20, 50])
    alone = wk.checkpoint_gram([checkpoints[i] for i in (0, 2, 4)], [0, 20, 50])
    assert some.steps == alone.steps
    assert some.products == pytest.approx(alone.products, rel=1e-13)
    assert some.moves == pytest.approx(alone.moves, rel=1e-9)
    assert np.array_equal(gram.at(np.array([10, 20, 30])).moves[:, 1:], gram.moves[:, 2:4])
    with pytest.raises(ValueError, match="there is no checkpoint of step 25"):
        gram.at([0, 25])


def test_extending_reads_what_it_is_given():
    checkpoints = run()
    whole = wk.checkpoint_gram(checkpoints, STEPS)
    old = wk.checkpoint_gram(checkpoints[:3], STEPS[:3])
    every = dict(zip(STEPS[:3], checkpoints[:3], strict=True))
    again = wk.extend_gram(old, checkpoints[3:], STEPS[3:], reread=every)
    assert again.products == pytest.approx(whole.products, rel=1e-12)
    local = wk.extend_gram(old, checkpoints[3:], STEPS[3:], reread={20: checkpoints[2]})
    assert np.isnan(local.products[:, :2, 3:]).all()
    assert np.isfinite(local.products[:, 2:, 2:]).all()
    assert local.products[:, 2:, 2:] == pytest.approx(whole.products[:, 2:, 2:], rel=1e-12)


def test_extending_what_has_changed():
    checkpoints = run()
    old = wk.checkpoint_gram(checkpoints[:3], STEPS[:3])
    other = {name: w + 1 for name, w in checkpoints[2].items()}
    with pytest.raises(ValueError, match="checkpoint of step 20 is no longer what it was"):
        wk.extend_gram(old, checkpoints[3:], STEPS[3:], reread={20: other})
    with pytest.raises(ValueError, match="that of step 20 at least"):
        wk.extend_gram(old, checkpoints[3:], STEPS[3:], reread={10: checkpoints[1]})
    with pytest.raises(ValueError, match="must ascend, got 20 after 20"):
        wk.extend_gram(old, checkpoints[2:3], [20], reread={20: checkpoints[2]})
    lost = [{name: w for name, w in one.items() if name != "number"} for one in checkpoints[3:]]
    extended = wk.extend_gram(old, lost, STEPS[3:], reread={20: checkpoints[2]})
    assert "number" not in extended.names
    assert "number" in extended.left_out


def test_a_failing_read_in_a_thread_reaches_the_caller(tmp_path):
    for step, named in zip(STEPS, run(), strict=True):
        write_safetensors(tmp_path, step, named)
    trajectory = open_trajectory(tmp_path)
    with (tmp_path / "step30.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(CheckpointError, match=r"step30.safetensors has become shorter"):
        gram_pass.gram_of(trajectory)


def test_sharded_tensors_are_refused_by_name():
    class Sharded(torch.Tensor):
        pass

    sharded = torch.ones(3).as_subclass(Sharded)
    with pytest.raises(TypeError, match=r"'w' is a .*Sharded; .* gather a sharded or wrapped parameter"):
        wk.checkpoint_gram([{"w": sharded}] * 2, [0, 1])


def _in_rank(rank, world, folder, method):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    group = torch.distributed.group.WORLD
    read = []
    found = wk.recover(
        f"{folder}/run", lr=1e-3, weight_decay=0.1, method=method, process_group=group, on_read=read.append
    )
    np.savez(f"{folder}/{rank}.npz", alignment=found.alignment, read=sum(read), names=found.names)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("world", "method"), [(2, "corrected"), (3, "spline")])
def test_processes_divide_the_tensors_and_all_have_the_result(world, method, tmp_path):
    checkpoints = run()
    (tmp_path / "run").mkdir()
    for step, named in zip(STEPS, checkpoints, strict=True):
        write_safetensors(tmp_path / "run", step, named)
    alone = wk.recover(tmp_path / "run", lr=1e-3, weight_decay=0.1, method=method)
    mp.spawn(_in_rank, (world, str(tmp_path), method), nprocs=world)
    ranks = [np.load(tmp_path / f"{rank}.npz") for rank in range(world)]
    for rank in ranks:
        assert tuple(rank["names"]) == alone.names
        assert np.array_equal(rank["alignment"], alone.alignment)
    read = [int(rank["read"]) for rank in ranks]
    assert sum(read) == sum(w.nbytes for one in checkpoints for w in one.values())
    assert max(read) < sum(read)
