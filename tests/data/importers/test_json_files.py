"""JSON arrays: the same values as json.load gives, each with its line, and every way of being broken."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.data.importers import json_files
from clara_jax.data.importers.json_files import read_array, read_whole
from clara_jax.errors import ClaraError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
)


@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_what_json_reads(tmp_path_factory, items, indent, ascii, block):
    path = tmp_path_factory.getbasetemp() / "array.json"
    text = json.dumps(items, indent=indent, ensure_ascii=ascii)
    path.write_bytes(text.encode(errors="surrogatepass") if ascii else text.encode(errors="replace"))
    expected = json.loads(path.read_text())
    whole, json_files.BLOCK = json_files.BLOCK, block
    try:
        found = list(read_array(str(path)))
    finally:
        json_files.BLOCK = whole
    assert [value for _, value in found] == expected
    assert [where.rpartition(" ")[2] for where, _ in found] == [str(i) for i in range(len(items))]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_places(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "x.json"
    path.write_text('\ufeff[\n {"a":\n  1}, {"a": 2},\n\n 12345\n]\n')
    assert list(read_array(str(path))) == [
        (f"{path}:2: record 0", {"a": 1}),
        (f"{path}:3: record 1", {"a": 2}),
        (f"{path}:5: record 2", 12345),
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_numbers_that_a_block_cuts(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "x.json"
    path.write_text("[12, 1.5e+5, 0.25, -3, 2E-7]")
    assert [value for _, value in read_array(str(path))] == [12, 1.5e5, 0.25, -3, 2e-7]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, 'does not begin with "["'),
        ('{"data": []}', 1, 'does not begin with "["'),
        ("[", 1, "record 0: not JSON"),
        ('[{"a": 1},\n {"a": 2', 2, "record 1: not JSON"),
        ('[{"a": 1},\n\n {"a" 2}, {"a": 3}]', 3, "record 1: not JSON (Expecting ':' delimiter)"),
        ('[{"a": 1}\n {"a": 2}]', 2, "record 0: not JSON (Expecting ',' or ']' after it)"),
        ('[{"a": 1},\n]', 2, "record 0: not JSON (',' before ']')"),
        ('[{"a": "x\n"}]', 1, "record 0: not JSON (Invalid control character at"),
        ('[{"a": 1}]\n\n7', 3, "not JSON (text after the array's end)"),
    ],
)
def test_broken_arrays(tmp_path, monkeypatch, block, text, line, message):
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ClaraError) as caught:
        list(read_array(str(path)))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_a_mistake_is_found_without_reading_the_rest(tmp_path, monkeypatch):
    """The records before it are given, and what follows it is not read into memory."""
    monkeypatch.setattr(json_files, "BLOCK", 100)
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"a" 2}' + ', {"a": 3}' * 1000 + "]" + "\xff" * 10)
    found = read_array(str(path))
    assert next(found)[1] == {"a": 1}
    with pytest.raises(ClaraError, match="record 1: not JSON"):
        next(found)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.json"
    for read in (lambda path: list(read_array(path)), read_whole):
        with pytest.raises(ClaraError, match="no such file"):
            read(str(path))
        with pytest.raises(ClaraError, match="is a directory"):
            read(str(tmp_path))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(ClaraError, match="not UTF-8"):
        list(read_array(str(path)))
    path.with_suffix(".gz").write_bytes(b"[]")
    with pytest.raises(ClaraError, match="cannot be read"):
        list(read_array(str(path.with_suffix(".gz"))))


def test_whole_values(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a":\n 1}')
    assert read_whole(str(path)) == {"a": 1}
    path.write_text('{"a":\n\n oops}')
    with pytest.raises(ClaraError) as caught:
        read_whole(str(path))
    assert str(caught.value) == f"{path}:3: column 2: not JSON (Expecting value)"
