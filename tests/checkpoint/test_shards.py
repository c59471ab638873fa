import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mvquant.checkpoint.shards import CODES, ShardWriter

METADATA = {"format": "pt"}


def awkward_tensors():
    """Every dtype, sizes that leave the next tensor unaligned, scalars, empty and non-contiguous ones."""
    torch.manual_seed(0)
    tensors = {}
    for number, dtype in enumerate(sorted(CODES, key=str)):
        values = torch.randint(0, 2, (3, 2 * number + 1)).to(dtype)
        tensors |= {f"{number}.odd": values, f"{number}.turned": values.T, f"{number}.scalar": values[0, 0]}
        tensors[f"{number}.empty"] = torch.empty(0, 4, dtype=dtype)
    return tensors


def write(folder, tensors, shard_bytes):
    writer = ShardWriter(folder, shard_bytes, METADATA)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_safetensors_reads_what_was_written(tmp_path, shard_bytes):
    tensors = awkward_tensors()
    names = write(tmp_path, tensors, shard_bytes)
    files = [name for name in names if name.endswith(".safetensors")]
    assert (len(files) == 1) == (shard_bytes == 10**9)
    assert set(names) - set(files) == (set() if len(files) == 1 else {"model.safetensors.index.json"})
    read = {}
    for file in files:
        read |= load_file(tmp_path / file)
        with safe_open(tmp_path / file, framework="pt") as handle:
            assert handle.metadata() == METADATA
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == tensors[name].dtype and torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_index_names_the_file_of_every_tensor(tmp_path):
    tensors = awkward_tensors()
    write(tmp_path, tensors, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


def test_a_file_ends_before_it_grows_too_large(tmp_path):
    write(tmp_path, awkward_tensors(), shard_bytes=100)
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100 or len(tensors) == 1


def test_tensors_are_on_disk_as_soon_as_they_are_added(tmp_path):
    writer = ShardWriter(tmp_path, 10**9, METADATA)
    writer.add("first", torch.ones(1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 4000
