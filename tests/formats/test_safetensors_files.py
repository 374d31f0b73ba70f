"""Safetensors: one file, a directory, an index with shards; and all the ways in which they can be incomplete."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax.errors import ClaraError
from clara_jax.formats.safetensors_files import open_tensors, weight_files
from tests.locations import golden_folders

FIRST = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.array([1.5, -2], np.float16)}
SECOND = {"b": np.array([[1.0, 3.140625], [-0.5, 2e30]]).astype(ml_dtypes.bfloat16), "n": np.array([2**40, -1])}
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8, bool]


def equal(tensors, expected):
    assert set(tensors) == set(expected) and len(tensors) == len(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


@pytest.fixture
def sharded(tmp_path):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(FIRST, tmp_path / shards[0], metadata={"format": "pt"})
    save_file(SECOND, tmp_path / shards[1])
    write_index(tmp_path, dict.fromkeys(FIRST, shards[0]) | dict.fromkeys(SECOND, shards[1]))
    return tmp_path


def write_index(folder, weight_map):
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))


def fails(path, match):
    with pytest.raises(ClaraError, match=match) as error:
        open_tensors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes(tmp_path, dtype):
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    tensors = {"x": array, "none": array[:0], "one": array[0, 1:2].reshape(())}
    save_file(tensors, tmp_path / "x.safetensors")
    equal(open_tensors(tmp_path / "x.safetensors"), tensors)


def test_eight_bit_floats_by_hand(tmp_path):
    # The package's numpy side writes none: header and bytes as the format describes them.
    array = np.array([0.5, -448, 3], ml_dtypes.float8_e4m3fn)
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + array.tobytes())
    equal(open_tensors(tmp_path / "x.safetensors"), {"x": array})


def test_directory_with_one_file(tmp_path):
    save_file(FIRST | SECOND, tmp_path / "model.safetensors")
    equal(open_tensors(tmp_path), FIRST | SECOND)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_index_and_shards(sharded):
    equal(open_tensors(sharded), FIRST | SECOND)
    assert [file.name for file in weight_files(sharded)] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_unknown_name_is_a_key_error(sharded):
    with pytest.raises(KeyError):
        open_tensors(sharded)["c"]


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    fails(sharded, "names 'model-00002-of-00002.safetensors', which is missing")


def test_tensor_that_no_shard_holds(sharded):
    names = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(sharded, names | {"ghost": "model-00001-of-00002.safetensors"})
    fails(sharded, 'names the tensor "ghost" in model-00001')
    write_index(sharded, names | {"a": "model-00002-of-00002.safetensors"})
    fails(sharded, 'names the tensor "a" in model-00002')


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 3, ""])
def test_index_cannot_name_files_elsewhere(sharded, shard):
    write_index(sharded, {"a": shard})
    fails(sharded, "same directory")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"weight_map": {\n"a": }}', "json:2: not valid JSON"),
        ("[]", "weight_map"),
        ("{}", "weight_map"),
        ("\xff", "weight_map"),
    ],
)
def test_damaged_index(sharded, content, match):
    (sharded / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    fails(sharded, match)


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_truncated_file(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(5000, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-cut])
    fails(path, "truncated")


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, b"GGUF" + bytes(100)])
def test_another_file(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    fails(tmp_path / "x.safetensors", "not a safetensors file")


def test_directory_with_torch_weights_only(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    fails(tmp_path, "holds pytorch_model.bin but no model.safetensors; convert")


def test_nothing_there(tmp_path):
    fails(tmp_path, "holds no weights")
    fails(tmp_path / "none", "no such file or directory")


@pytest.mark.parametrize("folder", golden_folders() or [None], ids=lambda folder: folder.name if folder else "none")
def test_golden_bases(folder):
    if folder is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    config = json.loads((folder / "base" / "config.json").read_text())
    tensors = open_tensors(folder / "base")
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    for name, array in tensors.items():
        # "Exactly representable in bfloat16, and stored in float32."
        assert array.dtype == np.float32, name
        np.testing.assert_array_equal(array, array.astype(ml_dtypes.bfloat16).astype(np.float32))
