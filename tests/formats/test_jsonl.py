"""Lines of files, however they are stored: the same from plain, gzip and Zstandard, local and remote; and written."""

import gzip

import fsspec
import pytest

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import data_files, raw_lines, read_json_lines, write_json_lines, zstd

TEXT = '\ufeff{"a": 1}\n\n{"a": "ß"}\n'.encode()


def stored(folder, name, content=TEXT):
    path = folder / name
    path.write_bytes({"gz": gzip.compress, "zst": zstd.compress}.get(name[-3:].strip("."), bytes)(content))
    return str(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_one_content_in_every_way(name, tmp_path):
    path = stored(tmp_path, name)
    expected = [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "ß"})]
    assert list(read_json_lines(path)) == expected
    remote = f"memory://{tmp_path.name}/{name}"
    with fsspec.open(remote, "wb") as file, open(path, "rb") as source:
        file.write(source.read())
    (found,) = data_files([f"memory://{tmp_path.name}/x.json*"], "train_data")
    assert [value for _, value in read_json_lines(found)] == [{"a": 1}, {"a": "ß"}]


def test_files_of_several_zstandard_frames(tmp_path):
    path = tmp_path / "x.zst"
    path.write_bytes(zstd.compress(b'{"a": 1}\n') + zstd.compress(b'{"a": 2}\n'))
    assert [value for _, value in read_json_lines(str(path))] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
@pytest.mark.parametrize(
    "damage", [lambda content: content[:-6], lambda content: b"junk" + content], ids=["cut", "junk"]
)
def test_damaged_files_are_named(name, damage, tmp_path):
    path = stored(tmp_path, name, b'{"a": 1}\n' * 1000)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    with pytest.raises(ClaraError, match="cannot be read") as caught:
        list(read_json_lines(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_unknown_file_systems_are_one_line():
    with pytest.raises(ClaraError, match="train_data: nowhere://x.jsonl"):
        data_files(["nowhere://x.jsonl"], "train_data")


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ferry.md").touch()
    for given, said in (
        ("nots/", "--corpus: nots/ does not exist; did you mean notes?"),
        ("notes/fery.md", "--corpus: notes/fery.md does not exist; did you mean notes/ferry.md?"),
        ("zzz/x", "--corpus: zzz/x does not exist"),
    ):
        with pytest.raises(ClaraError) as caught:
            data_files([given], "--corpus")
        assert str(caught.value) == said


def test_data_files(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "odd[1].jsonl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    patterns = ("${SOME_DATA}/?.jsonl", f"{tmp_path}/a.jsonl", f"{tmp_path}/odd[1].jsonl")
    found = data_files(patterns, "config.scp.data.train")
    assert found == tuple(str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "odd[1].jsonl"))
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(ClaraError, match="config.scp.data.train: .* variable SOME_DATA, which is not set"):
        data_files(("${SOME_DATA}/a.jsonl",), "config.scp.data.train")
    with pytest.raises(ClaraError, match="c.jsonl does not exist"):
        data_files((f"{tmp_path}/c.jsonl",), "config.scp.data.train")
    with pytest.raises(ClaraError, match="matches no file"):
        data_files((f"{tmp_path}/c*.jsonl",), "config.scp.data.train")


def test_a_failing_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "x" / "a.jsonl"
    with write_json_lines(path) as line:
        line({"a": "ß"})
    with pytest.raises(KeyboardInterrupt), write_json_lines(path) as line:
        line({"a": 2})
        raise KeyboardInterrupt
    assert path.read_text() == '{"a": "ß"}\n' and [file.name for file in path.parent.iterdir()] == ["a.jsonl"]
    with pytest.raises(ClaraError, match="a.jsonl/b.jsonl: cannot be written"), write_json_lines(path / "b.jsonl"):
        pass


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_what_is_written_is_read_and_the_same_lines_give_the_same_bytes(tmp_path, name):
    values = [{"a": "ß"}, {"b": [1, None]}]
    for folder in "xy":
        with write_json_lines(tmp_path / folder / name) as write:
            for value in values:
                write(value)
    path = tmp_path / "x" / name
    assert [value for _, value in read_json_lines(str(path))] == values
    assert path.read_bytes() == (tmp_path / "y" / name).read_bytes()


class Blocks(fsspec.spec.AbstractBufferedFile):
    """A file as those of buckets are: it is read by blocks, and its lines may be of any length."""

    def _fetch_range(self, start, end):
        return LINES[start:end]


class Bucket(fsspec.AbstractFileSystem):
    protocol = "blocks"

    def info(self, path, **kwargs):
        return {"name": path, "size": len(LINES), "type": "file"}

    def _open(self, path, mode="rb", **kwargs):
        return Blocks(self, path, mode, block_size=10, cache_type="readahead")


LINES = b'{"n": 1}\n' * 1000


def test_lines_of_a_bucket():
    fsspec.register_implementation("blocks", Bucket, clobber=True)
    lines = list(raw_lines("blocks://x.jsonl"))
    assert len(lines) == 1000 and lines[-1] == ("blocks://x.jsonl:1000", b'{"n": 1}\n')
