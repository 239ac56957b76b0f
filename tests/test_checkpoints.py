"""Checkpoints on disk: what is read, and that what is wrong with a file is said in one line."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from weibull_kernels.checkpoints import open_checkpoint
from weibull_kernels.stored_tensors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
]


def tensors():
    """A matrix, a vector, a number and nothing."""
    return {
        "matrix": torch.randn(5, 9),
        "vector": torch.randn(7, dtype=torch.float64),
        "number": torch.tensor(2.5, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 3),
    }


def as_bytes(tensor):
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def assert_holds(checkpoint, expected):
    assert set(checkpoint.tensors) == set(expected)
    assert len(checkpoint) == len(expected)
    for stored in checkpoint:
        tensor = expected[stored.name]
        found = stored.load()
        assert found.dtype == stored.dtype == tensor.dtype
        assert found.shape == stored.shape == tensor.shape
        assert stored.nbytes == tensor.nbytes
        assert as_bytes(found) == as_bytes(tensor)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())


def written(path, header, data=b""):
    """A safetensors file by hand; the header may be bytes, or an object for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sharded(folder, weight_map=None):
    """Two shards with their index."""
    every = tensors()
    save_file({"matrix": every["matrix"], "nothing": every["nothing"]}, folder / "a.safetensors")
    save_file({"vector": every["vector"], "number": every["number"]}, folder / "b.safetensors")
    shard_of = {"matrix": "a", "nothing": "a", "vector": "b", "number": "b"}
    weight_map = weight_map or {name: f"{shard}.safetensors" for name, shard in shard_of.items()}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return every


def test_a_file_of_the_official_writer(tmp_path):
    save_file(tensors(), tmp_path / "m.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    assert_holds(open_checkpoint(tmp_path / "m.safetensors"), tensors())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, tmp_path):
    width = dtype.itemsize
    tensor = torch.randint(0, 2, (4 * width,), dtype=torch.uint8).view(dtype).view(2, 2)
    save_file({"t": tensor}, tmp_path / "m.safetensors")
    assert_holds(open_checkpoint(str(tmp_path / "m.safetensors")), {"t": tensor})


def test_read_gives_any_stretch_of_the_flat_tensor(tmp_path):
    matrix = torch.randn(50, 3)
    save_file({"other": torch.randn(5), "matrix": matrix}, tmp_path / "m.safetensors")
    torch.save({"matrix": matrix.t()}, tmp_path / "m.pt")  # as seen: transposed, with its own order
    for path, flat in (("m.safetensors", matrix.flatten()), ("m.pt", matrix.t().flatten())):
        stored = open_checkpoint(tmp_path / path).tensors["matrix"]
        assert torch.equal(stored.read(7, 120), flat[7:120])
        assert torch.equal(stored.read(-3), flat[-3:])
        assert stored.read(9, 4).numel() == 0
        pieces = list(stored.pieces(64))
        assert [len(piece) for piece in pieces] == [16] * 9 + [6]
        assert torch.equal(torch.cat(pieces), flat)


def test_read_into_memory_that_is_there(tmp_path):
    save_file({"t": torch.arange(10.0)}, tmp_path / "m.safetensors")
    stored = open_checkpoint(tmp_path / "m.safetensors").tensors["t"]
    buffer = torch.zeros(64, dtype=torch.uint8)
    found = stored.read(2, 6, out=buffer[16:])
    assert found.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert found.data_ptr() == buffer.data_ptr() + 16
    with pytest.raises(ValueError, match="out has 8 bytes, 10 entries need 40"):
        stored.read(out=buffer[:8])


def test_a_sharded_folder_by_its_index(tmp_path):
    every = sharded(tmp_path)
    assert_holds(open_checkpoint(tmp_path), every)
    assert_holds(open_checkpoint(tmp_path / "model.safetensors.index.json"), every)


def test_a_folder_without_an_index(tmp_path):
    every = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_holds(open_checkpoint(tmp_path), every)
    save_file({"matrix": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"'matrix' is in .*a\.safetensors and in c\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_told(tmp_path):
    every = sharded(tmp_path, {"matrix": "a.safetensors", "vector": "b.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, {name: every[name] for name in ("matrix", "vector")})
    assert checkpoint.left_out == {
        "nothing": "a.safetensors has it, the index does not name it",
        "number": "b.safetensors has it, the index does not name it",
    }


def test_pickled_shards_and_several_indices(tmp_path):
    every = tensors()
    torch.save(every, tmp_path / "a.bin")
    index = json.dumps({"weight_map": dict.fromkeys(every, "a.bin")})
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert_holds(open_checkpoint(tmp_path), every)
    save_file({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    for kind in ("fp16", "fp32"):
        index = json.dumps({"weight_map": {"w": "b.safetensors"}})
        (tmp_path / f"model.{kind}.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"several indices, model\.fp16.*, model\.fp32"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert_holds(open_checkpoint(tmp_path), {"w": torch.ones(2)})


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_in_a_pickle(suffix, key, tmp_path):
    every = tensors()
    saved = every if key is None else {"optimizer": {"state": {0: torch.ones(3)}}, key: every, "step": 3}
    torch.save(saved, tmp_path / f"m.{suffix}")
    assert_holds(open_checkpoint(tmp_path / f"m.{suffix}"), every)


def test_a_pickle_names_what_is_tied_and_what_is_no_tensor(tmp_path):
    weight = torch.randn(4, 4)
    saved = {"embed": weight, "head": weight, "turned": weight.t(), "epoch": 3}
    torch.save(saved, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_holds(checkpoint, {"embed": weight, "turned": weight.t()})
    assert checkpoint.left_out == {"head": "tied to 'embed'", "epoch": "not a tensor but a int"}


def test_the_format_of_before_torch_1_6(tmp_path):
    every = tensors()
    torch.save(every, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert_holds(open_checkpoint(tmp_path / "m.pt"), every)


def test_the_entries_of_a_pickle_stay_on_disk(tmp_path):
    torch.save({"w": torch.full((1000,), 1.5)}, tmp_path / "m.pt")
    stored = open_checkpoint(tmp_path / "m.pt").tensors["w"]
    data = (tmp_path / "m.pt").read_bytes()
    with (tmp_path / "m.pt").open("r+b") as file:
        file.seek(data.index(struct.pack("<f", 1.5) * 1000) + 4 * 500)
        file.write(struct.pack("<f", 7.0))
    assert stored.load()[499:502].tolist() == [1.5, 7.0, 1.5]


class Harmful:
    """Runs a command where it is unpickled without weights_only."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(zipped, tmp_path):
    saved = {"w": torch.ones(2), "x": Harmful(tmp_path / "made")}
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"m\.pt cannot be loaded with weights_only=True: .*mkdir"
    ) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch 2.11, loading one
@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ({"step": 3}, "holds no tensors by name but a dict of step"),
        (torch.ones(3), "holds no tensors by name but Tensor"),
        ({"w": torch.ones(3).to_sparse()}, "'w' is torch.sparse_coo"),
        ({"w": torch.empty(3, device="meta")}, "'w' is meta"),
    ],
)
def test_pickles_without_weights(saved, told, tmp_path):
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path / "m.pt")


def test_pickles_that_are_cut_off(tmp_path):
    torch.save({"w": torch.ones(10_000)}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for cut in (0, 3, len(data) // 2, len(data) - 1):
        (tmp_path / "m.pt").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"m\.pt cannot be loaded") as caught:
            open_checkpoint(tmp_path / "m.pt")
        assert "\n" not in str(caught.value)


def test_nothing_there_and_nothing_known(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*m\.safetensors"):
        open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"holds neither an index nor \*\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("w = 1")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a checkpoint by its name"):
        open_checkpoint(tmp_path / "notes.txt")


FOUR = entry([1], 0, 4)
HEADERS = {
    "header is not JSON": (b"{not json", b"", "its header cannot be read"),
    "header is not text": (b"\xff\xfe{}", b"", "its header cannot be read"),
    "header is a list": ([FOUR], b"1234", "its header cannot be read"),
    "header is nested too deeply": (b"[" * 200_000, b"", "its header cannot be read"),
    "entry is a number": ({"t": 3}, b"", "its header cannot be read"),
    "no offsets": ({"t": {"dtype": "F32", "shape": [1]}}, b"1234", "its header cannot be read"),
    "three offsets": ({"t": FOUR | {"data_offsets": [0, 2, 4]}}, b"1234", "its header cannot be read"),
    "dtype is a list": ({"t": FOUR | {"dtype": ["F32"]}}, b"1234", "its header cannot be read"),
    "negative size": ({"t": entry([-1], 0, 4)}, b"1234", r"'t' has shape \[-1\] at bytes 0 to 4"),
    "size is no integer": ({"t": entry([1.0], 0, 4)}, b"1234", r"'t' has shape \[1\.0\]"),
    "size is a truth": ({"t": entry([True], 0, 4)}, b"1234", r"'t' has shape \[True\]"),
    "negative offset": ({"t": entry([2], -4, 4)}, b"1234", "'t' has shape .* bytes -4 to 4"),
    "unknown dtype": ({"t": entry([1], 0, 4, "F6")}, b"1234", "'t' has dtype F6"),
    "wrong size": (
        {"t": entry([2], 0, 4)},
        b"1234",
        r"\[2\] and dtype F32 has 8 bytes, its header gives it 4",
    ),
    "end before begin": ({"t": entry([1], 4, 0)}, b"1234", "has 4 bytes, its header gives it -4"),
    "huge": ({"t": entry([1 << 62], 0, 1 << 64)}, b"1234", "'t' ends at byte 18,446,744,073,709,.*cut off"),
    "beyond the file": ({"t": entry([2], 0, 8)}, b"1234", "'t' ends at byte .*; it is cut off"),
    "overlap": ({"a": FOUR, "b": FOUR}, b"1234", "'b' begins at byte .* not where the tensor before it ends"),
    "hole": ({"a": FOUR, "b": entry([1], 8, 12)}, b"123456789012", "'b' begins at byte .* header is wrong"),
    "begins late": ({"a": entry([1], 4, 8)}, b"12345678", "'a' begins at byte"),
    "bytes too many": ({"a": FOUR}, b"12345678", "its tensors end at byte .*, the file has"),
    "twice the same name": (
        b'{"a": %b, "a": %b}' % (json.dumps(FOUR).encode(), json.dumps(entry([1], 4, 8)).encode()),
        b"12345678",
        "'a' begins at byte",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(case, tmp_path):
    header, data, told = HEADERS[case]
    with pytest.raises(CheckpointError, match=told) as caught:
        open_checkpoint(written(tmp_path / "m.safetensors", header, data))
    assert "m.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_header_that_does_not_lie(tmp_path):
    data = struct.pack("<2f", 3.0, 4.0)
    header = {"__metadata__": {"format": "pt"}, "b": entry([1], 4, 8), "a": entry([1], 0, 4)}
    assert_holds(
        open_checkpoint(written(tmp_path / "m.safetensors", header, data)),
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
    )
    assert len(open_checkpoint(written(tmp_path / "empty.safetensors", {}))) == 0


def test_every_cut_of_a_file_is_told(tmp_path):
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    for cut in range(len(data)):
        (tmp_path / "m.safetensors").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="cut off"):
            open_checkpoint(tmp_path / "m.safetensors")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    save_file({"a": torch.ones(300)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(CheckpointError, match="has become shorter while it was read"):
        checkpoint.tensors["a"].load()


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("{", "is not an index of shards"),
        ('{"metadata": {}}', "is not an index of shards"),
        ('{"weight_map": ["a.safetensors"]}', "is not an index of shards"),
        (
            '{"weight_map": {"matrix": "c.safetensors"}}',
            "names the shard 'c.safetensors', which is not beside it",
        ),
        ('{"weight_map": {"x": "a.safetensors"}}', "says that 'x' is in a.safetensors, but it is not"),
        ('{"weight_map": {"matrix": "../out.safetensors"}}', "names the shard '../out.safetensors'"),
    ],
)
def test_an_index_that_lies(index, told, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder)
    save_file({"matrix": torch.ones(2)}, tmp_path / "out.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=told) as caught:
        open_checkpoint(folder)
    assert "model.safetensors.index.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_shard_is_named(tmp_path):
    sharded(tmp_path)
    with (tmp_path / "b.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        open_checkpoint(tmp_path)


def permuted():
    """Dense and not, with strides of all kinds."""
    image = torch.randn(3, 4, 5, 6)
    return {
        "transposed": torch.randn(7, 11).t(),
        "permuted": image.permute(2, 0, 3, 1),
        "channels last": image.to(memory_format=torch.channels_last),
        "one row": torch.randn(6, 5, 1).permute(2, 1, 0),
        "gaps": torch.randn(12, 5)[::2, 1:4],
        "column": torch.randn(9, 2)[:, 1],
        "nothing": torch.randn(4, 0, 3).permute(2, 0, 1),
    }


@pytest.mark.parametrize("name", permuted())
def test_strides_are_read_in_the_order_of_the_indices(name, tmp_path):
    tensor = permuted()[name]
    torch.save({name: tensor}, tmp_path / "m.pt")
    [stored] = open_checkpoint(tmp_path / "m.pt")
    flat = tensor.reshape(-1)
    for start in range(len(flat) + 1):
        for stop in {start, start + 1, start + 13, start + 40, len(flat)}:
            assert torch.equal(stored.read(start, stop), flat[start:stop])
    assert torch.equal(stored.load(), tensor)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # of torch 2.11
def test_a_permuted_tensor_is_not_copied_whole_for_a_piece(tmp_path):
    torch.save({"w": torch.randn(1, 500, 400).permute(0, 2, 1)}, tmp_path / "m.pt")
    [stored] = open_checkpoint(tmp_path / "m.pt")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        stored.read(1200, 2300)
    made = [event.cpu_memory_usage for event in run.events() if event.cpu_memory_usage > 0]
    assert 4400 <= sum(made) < 40_000  # of 800,000


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(10**12), torch.ones(3, 1).expand(3, 2), torch.ones(9).as_strided((5, 3), (1, 1))],
    ids=["one", "rows", "windows"],
)
def test_a_tensor_that_repeats_its_entries_is_refused(tensor, tmp_path):
    torch.save({"v": torch.ones(2), "w": tensor}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: 'w' of shape .* repeats its entries: .* are stored"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_model_beside_tensors(key, tmp_path):
    saved = {"epoch": 3, "loss": torch.tensor(0.3), "w": torch.ones(9), key: {"w": torch.ones(2), "n": 1}}
    torch.save(saved, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_holds(checkpoint, {"w": torch.ones(2)})
    beside = f"beside '{key}'"
    assert checkpoint.left_out == {"epoch": beside, "loss": beside, "n": "not a tensor but a int"}


def test_a_tensor_may_be_called_model(tmp_path):
    saved = {"model": torch.ones(2), "module": {"step": 3}, "w": torch.ones(3)}
    torch.save(saved, tmp_path / "m.pt")
    assert_holds(open_checkpoint(tmp_path / "m.pt"), {name: saved[name] for name in ("model", "w")})
