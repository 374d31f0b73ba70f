import errno
import os

import pytest
from tokenizers import Tokenizer, models

from clara_jax import files
from clara_jax.errors import ClaraError
from clara_jax.files import folder_when_whole, replaced_when_whole


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    return path


def test_a_file_is_replaced_at_the_end_of_the_block(path):
    with replaced_when_whole(path) as temporary:
        temporary.write_text("new")
        assert content(path.parent) == {"a.json": "old", temporary.name: "new"}
        assert temporary.name.startswith(".")
    assert content(path.parent) == {"a.json": "new"}


def test_the_disk_holds_it_before_it_has_its_name(path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(files, "sync", order.append)
    monkeypatch.setattr(os, "replace", lambda *names: order.append(names) or replace(*names))
    with replaced_when_whole(str(path)) as temporary:
        temporary.write_text("new")
    assert order == [temporary, (temporary, path), path.parent]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ClaraError("of the caller"), ValueError])
def test_another_error_passes_and_leaves_the_old_file(path, error):
    with pytest.raises(error if isinstance(error, type) else ClaraError) as raised, replaced_when_whole(path) as new:
        new.write_text("half")
        raise error
    assert content(path.parent) == {"a.json": "old"}
    assert not isinstance(error, ClaraError) or raised.value is error


@pytest.mark.parametrize("where", ["block", "sync", "replace"])
def test_what_the_file_system_refuses_is_one_line(path, monkeypatch, where):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where != "block":
        monkeypatch.setattr(*{"sync": (files, "sync"), "replace": (os, "replace")}[where], refuse)
    with pytest.raises(ClaraError, match="a.json: the table cannot be written: No space left on device$"):
        with replaced_when_whole(path, "the table cannot be written") as temporary:
            temporary.write_text("half")
            if where == "block":
                refuse()
    assert content(path.parent) == {"a.json": "old"}


def test_nothing_was_written(path):
    with pytest.raises(ClaraError, match="none/a.json: cannot be written: No such file or directory"):
        with replaced_when_whole(path.parent / "none" / "a.json"):
            pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
def test_a_full_disk_is_known_by_the_errors_of_libraries_too(tmp_path):
    with pytest.raises(ClaraError, match="a: cannot be written: No space left on device$"):
        with folder_when_whole(tmp_path / "a") as folder:
            (folder / "tokenizer.json").symlink_to("/dev/full")
            Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    assert not [*tmp_path.iterdir()]
