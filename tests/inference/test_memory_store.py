"""A store gives back what was put in, to the compressor that made it and no other, whenever its writer was stopped."""

import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.inference.memory_store import ROWS, MemoryStore, document_keys

M, E = 3, 8
COUNT = 2 * ROWS + 50


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [np.append(rng.integers(0, 99, rng.integers(1, 9)), 100 + i).astype(np.int32) for i in range(COUNT)]


@pytest.fixture(scope="module")
def memories():
    return np.random.default_rng(1).normal(size=(COUNT, M, E)).astype(np.float32)


def open_store(path, fingerprint="made by one", dtype="float32"):
    return MemoryStore(path, fingerprint, M, E, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents_are_found_again(tmp_path, documents, memories, dtype):
    keys, memories = document_keys(documents), memories.astype(dtype)
    store = open_store(tmp_path / "store", dtype=dtype)
    assert len(store) == 0 and not store.has(keys).any()
    for part in (slice(0, 5), slice(5, ROWS + 20), slice(ROWS + 20, COUNT)):  # blocks with holes behind them
        store.append(keys[part], memories[part])
        assert store.has(keys[part]).all() and not store.has(keys[part.stop :]).any()
    asked = np.random.default_rng(2).integers(0, COUNT, 700)
    for again in (store, open_store(tmp_path / "store", dtype=dtype)):
        assert len(again) == COUNT and again.shape == (M, E) and again.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(again.read(keys[asked]), memories[asked])
    found = store.read_documents([None, documents[7], documents[3], None])
    np.testing.assert_array_equal(found, np.stack([np.zeros((M, E), dtype), memories[7], memories[3], found[0]]))


def test_equal_tokens_are_one_document():
    one, other = document_keys([np.array([1, 2, 3], np.int32), np.array([1, 2, 3], np.int64)])
    assert one == other
    different = [np.array(ids, np.int32) for ids in ([1, 2], [2, 1], [1], [1, 2, 0], [256], [])]
    assert len(np.unique(document_keys(different))) == len(different)


def test_a_writer_that_is_stopped_between_memory_and_key(tmp_path, documents, memories, monkeypatch):
    """The memory is there, its key is not: the document counts as missing and is written again."""
    keys = document_keys(documents)
    store = open_store(tmp_path / "store")
    store.append(keys[:10], memories[:10])
    monkeypatch.setattr(store, "_keys", None)
    with pytest.raises(AttributeError):
        store.append(keys[10:20], memories[10:20] + 1)
    store = open_store(tmp_path / "store")
    assert len(store) == 10
    store.append(keys[10:], memories[10:])
    np.testing.assert_array_equal(open_store(tmp_path / "store").read(keys), memories)


@pytest.mark.parametrize("array", ["memories", "keys"])
def test_any_byte_of_what_an_array_says_of_itself_matters(tmp_path, array, documents, memories):
    keys = document_keys(documents[:3])
    open_store(tmp_path / "store").append(keys, memories[:3])
    file = tmp_path / "store" / array / "zarr.json"
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
        try:
            np.testing.assert_array_equal(open_store(tmp_path / "store").read(keys), memories[:3])
        except ClaraError as error:
            assert str(error).startswith(f"{tmp_path}/store: ")


def test_a_memory_of_zeros_is_one(tmp_path, documents, memories):
    """TensorStore leaves out what equals the fill value, and what is not there is damage."""
    keys = document_keys(documents)
    open_store(tmp_path / "store").append(keys[:3], np.zeros_like(memories[:3]))
    assert not open_store(tmp_path / "store").read(keys[:3]).any()


def test_another_compressor_is_refused(tmp_path):
    open_store(tmp_path / "store", "made by one")
    refusal = "holds memories of another compressor, or of this one in another precision .*made by two"
    with pytest.raises(ClaraError, match=f"^{tmp_path}/store: {refusal}"):
        open_store(tmp_path / "store", "made by two")


def test_what_is_missing_or_damaged_is_said(tmp_path, documents, memories):
    keys = document_keys(documents)
    store = open_store(tmp_path / "store")
    store.append(keys[:20], memories[:20])
    with pytest.raises(ClaraError, match="has no memory of 2 documents"):
        store.read(keys[[3, 30, 31]])
    (block,) = (tmp_path / "store" / "memories" / "c").rglob("0/0/0")
    content = bytearray(block.read_bytes())
    content[500] ^= 1  # of the sixth document
    block.write_bytes(content)
    store = open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.read(keys[:5]), memories[:5])
    with pytest.raises(ClaraError, match="memories cannot be read: .*; delete the directory"):
        store.read(keys[:20])
    block.unlink()
    with pytest.raises(ClaraError, match="memories cannot be read: .* is missing; delete the directory"):
        store.read(keys[:5])
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="memories cannot be opened"):
        open_store(tmp_path / "file")


def test_one_writer_at_a_time(tmp_path, documents, memories):
    """The second one is refused while the first one writes, and then knows what it wrote."""
    keys = document_keys(documents)
    first, second = open_store(tmp_path / "store"), open_store(tmp_path / "store")
    with first.writing():
        first.append(keys[:30], memories[:30])
        with pytest.raises(ClaraError, match="another process is filling it"), second.writing():
            pass
    assert not second.has(keys[:30]).any()
    with second.writing():
        assert second.has(keys[:30]).all()
        second.append(keys[30:50], memories[30:50])
    np.testing.assert_array_equal(second.read(keys[:50]), memories[:50])
    np.testing.assert_array_equal(open_store(tmp_path / "store").read(keys[:50]), memories[:50])
