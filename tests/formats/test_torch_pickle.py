"""Files of torch.save: written here by stand-ins for torch's classes, friendly and hostile, and read without torch."""

import builtins
import collections
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.formats.torch_pickle import read_pth
from tests.locations import golden_folders

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


class _Name:
    """Pickles as the name of something in torch, without being it."""

    def __init__(self, module: str, name: str):
        self.__module__, self.__qualname__, self.__name__ = module, name, name

    def __call__(self, *_):
        raise AssertionError("only pickled")


class _Storage:
    def __init__(self, key: str, data: np.ndarray):
        self.key, self.data = key, data


class _Tensor:
    """A view of a storage, pickled as torch pickles tensors."""

    def __init__(self, storage, offset, shape, strides, dtype=None):
        self.parts = (storage, offset, shape, strides)
        self.dtype = dtype

    def __reduce__(self):
        if self.dtype:
            return (_torch("torch._utils", "_rebuild_tensor_v3"), (*self.parts, False, {}, _torch("torch", self.dtype)))
        return (_torch("torch._utils", "_rebuild_tensor_v2"), (*self.parts, False, collections.OrderedDict()))


class _Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return (_torch("torch._utils", "_rebuild_parameter"), (self.tensor, True, collections.OrderedDict()))


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call if self.call[2] is not None else self.call[:2]


_NAMES: dict[tuple[str, str], _Name] = {}


def _torch(module: str, name: str) -> _Name:
    return _NAMES.setdefault((module, name), _Name(module, name))


class _Pickler(pickle._Pickler):
    """The pickler written in Python, which lets names be written that cannot be imported."""

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            kind = STORAGES.get(obj.data.dtype, "UntypedStorage")
            return ("storage", _torch("torch", kind), obj.key, "cpu", obj.data.size)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Name):
            if id(obj) not in self.memo:
                if self.proto >= 4:
                    pickle._Pickler.save(self, obj.__module__)
                    pickle._Pickler.save(self, obj.__name__)
                    self.write(pickle.STACK_GLOBAL)
                else:
                    self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
                self.memoize(obj)
            else:
                self.write(self.get(self.memo[id(obj)][0]))
            return None
        return super().save(obj, save_persistent_id)


def dump(content, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(content)
    return stream.getvalue()


def write(path: Path, content, storages=(), byteorder: str | None = "little", protocol: int = 2, deflate: bool = False):
    """A file as torch.save lays it out; ``content`` may be a finished pickle."""
    data = content if isinstance(content, bytes) else dump(content, protocol)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for storage in storages:
            raw = storage.data
            if byteorder == "big" and raw.dtype.itemsize > 1:
                raw = raw.view(f"u{raw.dtype.itemsize}").byteswap()
            archive.writestr(f"archive/data/{storage.key}", raw.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def contiguous(storage, shape):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return _Tensor(storage, 0, shape, strides)


def values(dtype, count=24):
    return (np.arange(count) % 2 if dtype == np.bool_ else np.arange(count) * 3 - 7).astype(dtype)


@pytest.mark.parametrize("byteorder", ["little", "big", None])
@pytest.mark.parametrize("dtype", STORAGES, ids=lambda dtype: dtype.name)
def test_dtypes_and_byte_orders(tmp_path, dtype, byteorder):
    data = values(dtype)
    storage = _Storage("0", data)
    path = write(tmp_path / "a.pth", {"w": contiguous(storage, (2, 3, 4))}, [storage], byteorder)
    read = read_pth(path)["w"]
    assert read.dtype == dtype and read.shape == (2, 3, 4)
    np.testing.assert_array_equal(read, data.reshape(2, 3, 4))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("deflate", [False, True])
def test_nested_dicts_parameters_and_plain_values(tmp_path, protocol, deflate):
    storages = [_Storage("0", values(ml_dtypes.bfloat16)), _Storage("17", values(np.float32))]
    state = collections.OrderedDict(a=_Parameter(contiguous(storages[0], (6, 4))), b=contiguous(storages[1], (24,)))
    state._metadata = collections.OrderedDict(version=1)  # as every state_dict() has it
    content = {
        "role": state,
        "list": [1, -5, 2**40, 1.5, True, None, "text é", b"bytes", (1, 2, 3, 4), (), {"x": []}],
        "set": {1, 2},
        3: _torch("torch", "bfloat16"),
        "size": _Call(_torch("torch", "Size"), (2, 3)),
    }
    if protocol == 2:
        del content["list"][7]  # bytes need a function call there
    read = read_pth(write(tmp_path / "a.pth", content, storages, protocol=protocol, deflate=deflate))
    np.testing.assert_array_equal(read["role"]["a"], storages[0].data.reshape(6, 4))
    np.testing.assert_array_equal(read["role"]["b"], storages[1].data)
    assert read["role"]["a"].dtype == ml_dtypes.bfloat16 and list(read["role"]) == ["a", "b"]
    assert read["list"] == content["list"] and read["set"] == {1, 2} and read["size"] == (2, 3)
    assert read[3] == np.dtype(ml_dtypes.bfloat16)


def test_shared_storage_with_offsets_and_strides(tmp_path):
    storage = _Storage("0", values(np.float32))
    grid = storage.data.reshape(4, 6)
    content = {
        "all": contiguous(storage, (4, 6)),
        "transposed": _Tensor(storage, 0, (6, 4), (1, 6)),
        "part": _Tensor(storage, 8, (2, 3), (6, 1)),
        "every second": _Tensor(storage, 1, (4, 3), (6, 2)),
        "repeated": _Tensor(storage, 2, (5, 2), (0, 1)),
        "scalar": _Tensor(storage, 23, (), ()),
        "empty": _Tensor(storage, 24, (0, 4), (4, 1)),
    }
    read = read_pth(write(tmp_path / "a.pth", content, [storage]))
    np.testing.assert_array_equal(read["all"], grid)
    np.testing.assert_array_equal(read["transposed"], grid.T)
    np.testing.assert_array_equal(read["part"], grid[1:3, 2:5])
    np.testing.assert_array_equal(read["every second"], grid[:, 1::2])
    np.testing.assert_array_equal(read["repeated"], np.tile(grid[0, 2:4], (5, 1)))
    assert read["scalar"] == grid[3, 5] and read["empty"].shape == (0, 4)
    assert np.shares_memory(read["all"], read["part"])
    assert not any(array.flags.writeable for array in read.values() if array.size)


def test_untyped_storage_with_its_dtype_in_the_tensor(tmp_path):
    data = np.arange(10, dtype=np.uint16) * 5000
    storage = _Storage("0", data)
    storage.data = data.view(np.dtype([("bytes", "u1", 2)]))  # a dtype without a typed storage
    content = {"w": _Tensor(storage, 2, (2, 4), (4, 1), dtype="uint16")}
    stored = _Storage("0", data)
    np.testing.assert_array_equal(read_pth(write(tmp_path / "a.pth", content, [stored]))["w"], data[2:].reshape(2, 4))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (0, (4, 6), (7, 1)),
        (0, (2, 2), (10**15, 1)),
        (10**18, (1,), (1,)),
        (0, (2**40, 2**40), (1, 1)),
        (4, (2,), (-8,)),
        (-1, (2,), (1,)),
        (0, (-3,), (1,)),
        (0, (2, 2), (1,)),
        (0, (1.5,), (1,)),
        (0, (2,) * 40, (0,) * 40),
    ],
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path, offset, shape, strides):
    storage = _Storage("0", values(np.float32))
    path = write(tmp_path / "a.pth", {"w": _Tensor(storage, offset, shape, strides)}, [storage])
    with pytest.raises(ClaraError, match="a.pth: .*(outside its storage|offset)"):
        read_pth(path)


def test_a_wide_dtype_on_a_narrow_storage_stays_inside(tmp_path):
    storage = _Storage("0", values(np.int8))
    path = write(tmp_path / "a.pth", {"w": _Tensor(storage, 0, (24,), (1,), dtype="float64")}, [storage])
    with pytest.raises(ClaraError, match="outside its storage"):
        read_pth(path)


class TestHostile:
    """Each file would leave a canary behind, or change something, if anything in it ran."""

    @pytest.fixture
    def canary(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path / "canary"

    def refused(self, tmp_path, canary, content, match="refused|damaged", **options) -> str:
        path = write(tmp_path / "evil.pth", content, **options)
        with pytest.raises(ClaraError, match=match) as error:
            read_pth(path)
        assert not canary.exists()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    def test_the_canary_sings_in_an_ordinary_unpickler(self, canary):
        pickle.loads(pickle.dumps(_Call(os.system, f"touch {canary}")))
        assert canary.exists()

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (os.system, f"{os.name}.system"),
            (builtins.eval, "eval"),
            (builtins.exec, "exec"),
            (builtins.__import__, "__import__"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_calls(self, tmp_path, canary, function, name, protocol):
        code = f"touch {canary}" if function is os.system else f"__import__('os').system('touch {canary}')"
        content = {"w": _Call(function, code)}
        assert name in self.refused(tmp_path, canary, pickle.dumps(content, protocol), "refused")

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("torch.storage", "_load_from_bytes"),
            ("torch", "load"),
            ("torch.jit", "load"),
            ("torch.hub", "load"),
            ("torch._utils", "__builtins__"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("collections", "OrderedDict.__init__.__globals__"),
            ("collections", "namedtuple"),
            ("builtins", "getattr"),
            ("__builtin__", "eval"),
            ("numpy", "load"),
            ("clara_jax.formats.torch_pickle", "read_pth"),
            ("torch ", "FloatStorage"),
            ("torch.FloatStorage", "__class__"),
            ("", "torch.Size"),
        ],
    )
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_names(self, tmp_path, canary, module, name, protocol):
        content = {"w": _Call(_Name(module, name), "x")}
        self.refused(tmp_path, canary, dump(content, protocol), "refused")

    def test_names_that_are_not_text(self, tmp_path, canary):
        self.refused(tmp_path, canary, b"\x80\x04}K\x01\x93.")
        self.refused(tmp_path, canary, b"\x80\x04\x8c\x02os)\x93.")

    def test_listed_names_are_not_callable_at_will(self, tmp_path, canary):
        for name in ("FloatStorage", "UntypedStorage", "float32"):
            self.refused(tmp_path, canary, {"w": _Call(_torch("torch", name), "x", "y")})

    @pytest.mark.parametrize(
        "pickled",
        [
            b"(cos\nsystem\nS'touch canary'\no.",  # OBJ
            b"(S'touch canary'\nios\nsystem\n.",  # INST
            b"\x80\x02ccollections\nOrderedDict\n)\x81}S'x'\nS'y'\nsb.",  # NEWOBJ
            b"\x80\x04ccollections\nOrderedDict\n)}\x92.",  # NEWOBJ_EX
            b"\x80\x02\x82\x01.",  # EXT1
            b"Pmemory\n.",  # PERSID
            b"\x80\x05\x97.",  # NEXT_BUFFER
            b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",  # BYTEARRAY8
        ],
        ids=["OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "EXT1", "PERSID", "NEXT_BUFFER", "BYTEARRAY8"],
    )
    def test_instructions(self, tmp_path, canary, pickled):
        self.refused(tmp_path, canary, pickled, "refused")

    def test_build_sets_no_attributes(self, tmp_path, canary):
        function = b"ctorch._utils\n_rebuild_tensor_v2\n"
        for target in (b"ctorch\nSize\n", function, b"]", b"ctorch\nfloat32\n", b"I1\n", b"S'x'\n", b")"):
            self.refused(tmp_path, canary, b"(dS'w'\n" + target + b"}S'__call__'\nS'x'\nsbs.", "refused")
        # On a dict, where state dicts have their _metadata, it is read over: nothing of it reaches the result.
        path = write(tmp_path / "meta.pth", b"ccollections\nOrderedDict\n)R}S'items'\nS'x'\nsb.")
        assert read_pth(path) == {} and callable(read_pth(path).items)

    def test_build_on_a_tensor(self, tmp_path, canary):
        storage = _Storage("0", values(np.float32))
        tensor = dump(contiguous(storage, (24,)))[2:-1]
        state = b"(I1\n(I9\ntctorch\nfloat32\nI00\nS''\nt"  # what numpy's __setstate__ would take
        self.refused(tmp_path, canary, b"}S'w'\n" + tensor + state + b"bs.", "refused", storages=[storage])

    def test_persistent_references_are_storages_only(self, tmp_path, canary):
        for reference in (
            b"(S'module'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI1\nt",
            b"(S'storage'\nctorch\nSize\nS'0'\nS'cpu'\nI1\nt",
            b"(S'storage'\nS'FloatStorage'\nS'0'\nS'cpu'\nI1\nt",
            b"(S'storage'\nctorch\nFloatStorage\nI0\nS'cpu'\nI1\nt",
            b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-1\nt",
            b"S'storage'\n",
        ):
            self.refused(tmp_path, canary, b"}S'w'\n" + reference + b"Qs.")
        self.refused(tmp_path, canary, b"}S'w'\n(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQs.")

    def test_a_storage_key_cannot_leave_the_zip(self, tmp_path, canary):
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(8))
        storage = _Storage(f"../../../{secret}", values(np.float32, 2))
        self.refused(tmp_path, canary, {"w": contiguous(storage, (2,))}, "missing from the zip")

    def test_deep_nesting_and_huge_memo_do_no_harm(self, tmp_path, canary):
        deep = b"(d" + b")" + b"\x85" * 200_000 + b"I1\ns."
        self.refused(tmp_path, canary, deep)
        path = write(tmp_path / "memo.pth", b"}r\xff\xff\xff\x7f.")
        assert read_pth(path) == {}

    @pytest.mark.parametrize(
        "pickled",
        [b"", b".", b"}", b"0.", b"h\x07.", b"(t", b"u.", b"\xff\xff", b"}I1\ns.", b"K\x01e.", b"}aaa."],
    )
    def test_nonsense(self, tmp_path, canary, pickled):
        self.refused(tmp_path, canary, pickled, "damaged|truncated")


def test_reading_never_imports_torch_or_the_named_module(tmp_path, monkeypatch):
    module = types.ModuleType("trap")
    module.__getattr__ = lambda name: pytest.fail(f"trap.{name} was looked up")
    monkeypatch.setitem(sys.modules, "trap", module)
    with pytest.raises(ClaraError, match="trap.spring"):
        read_pth(write(tmp_path / "a.pth", b"ctrap\nspring\n."))


class TestDamaged:
    @pytest.fixture
    def good(self, tmp_path):
        storage = _Storage("0", values(np.float32, 1000))
        return write(tmp_path / "a.pth", {"w": contiguous(storage, (1000,))}, [storage])

    def fails(self, path, match):
        with pytest.raises(ClaraError, match=match) as error:
            read_pth(path)
        assert str(path) in str(error.value)

    def test_missing_file(self, tmp_path):
        self.fails(tmp_path / "none.pth", "no such file")

    def test_directory(self, tmp_path):
        self.fails(tmp_path, "cannot be read")

    def test_legacy_format(self, tmp_path):
        path = tmp_path / "old.pth"
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2))
        self.fails(path, "before 1.6.*save it again")

    def test_truncated_anywhere(self, good, tmp_path):
        data = good.read_bytes()
        cut = tmp_path / "cut.pth"
        for length in (4, 100, len(data) // 2, len(data) - 30, len(data) - 1):
            cut.write_bytes(data[:length])
            self.fails(cut, "truncated or damaged|missing")

    def test_one_flipped_bit_in_a_storage(self, good):
        data = bytearray(good.read_bytes())
        data[data.index(struct.pack("<f", values(np.float32, 1000)[500]))] ^= 4
        good.write_bytes(data)
        self.fails(good, "wrong checksum")

    def test_missing_and_short_storage(self, tmp_path):
        storage = _Storage("0", values(np.float32))
        content = {"w": contiguous(storage, (24,))}
        self.fails(write(tmp_path / "a.pth", content), 'storage "data/0" is missing')
        short = _Storage("0", storage.data[:10])
        self.fails(write(tmp_path / "b.pth", content, [short]), "40 bytes where 96 are announced")

    def test_unknown_byte_order(self, tmp_path):
        self.fails(write(tmp_path / "a.pth", {}, byteorder="middle"), "\"byteorder\" is 'middle'")

    def test_another_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("word/document.xml", "<xml/>")
        self.fails(tmp_path / "a.pth", "0 data.pkl")

    def test_not_a_dict(self, tmp_path):
        self.fails(write(tmp_path / "a.pth", [1, 2]), "holds a list")


@pytest.mark.parametrize("folder", golden_folders() or [None], ids=lambda folder: folder.name if folder else "none")
def test_golden_checkpoints(folder):
    if folder is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    checkpoint = folder / "clara_checkpoint"
    base = json.loads((folder / "base" / "config.json").read_text())
    meta = json.loads((folder / "meta.json").read_text())
    tables = read_pth(checkpoint / "decoder_first_last_layers.pth")
    shape = (meta["vocab_with_special"], base["hidden_size"])
    assert tables["model.embed_tokens.weight"].shape == shape
    assert base.get("tie_word_embeddings", False) or tables["lm_head.weight"].shape == shape
    adapters = read_pth(checkpoint / "adapters.pth")
    assert set(adapters) == {"encoder_adapter", "decoder_adapter", "query_reasoner_adapter"}
    rank = meta["config"]["lora_r"]
    for state in adapters.values():
        # Rank-r matrices in pairs, one pair per linear layer, of ordinary finite numbers.
        first = [name for name in state if "lora_A" in name]
        assert len(first) == sum("lora_B" in name for name in state) > 0
        assert len(first) % base["num_hidden_layers"] == 0
        for name in first:
            a, b = state[name], state[name.replace("lora_A", "lora_B")]
            assert a.shape[0] == b.shape[1] == rank
            assert np.isfinite(a).all() and np.isfinite(b).all() and 0 < np.abs(a.astype(np.float32)).max() < 10
