"""Which files an input names, what kind each is, and the name that its documents are known by."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import posixpath
import unicodedata
from collections.abc import Iterable

from clara_jax.data.jsonl import GZIP, ZSTANDARD, data_files, is_remote
from clara_jax.errors import ClaraError

TEXT, MARKDOWN, HTML, PDF, JSONL = "text", "markdown", "html", "pdf", "jsonl"
KINDS = {
    ".txt": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".pdf": PDF,
    ".jsonl": JSONL,
}


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
      path: as it is opened.
      name: its path below the input's folder, with "/": the same on every machine.
      kind: one of the values of ``KINDS``.
    """

    path: str
    name: str
    kind: str

    @property
    def size(self) -> int:
        """Bytes, as stored; 0 where that is not known."""
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0


def find_files(inputs: Iterable[str]) -> tuple[list[InputFile], collections.Counter[str]]:
    """The files of some inputs, in the inputs' order, those of a folder sorted by name.

    Args:
      inputs: folders, which are searched to any depth; files; patterns. What begins with "." in a folder is passed
        over, and links to folders are not followed. Any of the kinds may be compressed (``.gz``, ``.zst``). Remote
        files (``gs://...``) are taken, remote folders are not.

    Returns:
      the files; how many files in folders were passed over because of their suffix, by suffix.

    Raises:
      ClaraError: an input that does not exist, a named file of no known kind, or nothing to read at all.
    """
    found: dict[str, InputFile] = {}
    ignored: collections.Counter[str] = collections.Counter()
    for given in inputs:
        for path in data_files([given], "--input"):
            folder = not is_remote(path) and os.path.isdir(path)
            root = path if folder else _root(given, path)
            for file in _walk(path) if folder else [path]:
                kind = _kind(file)
                if kind:
                    found.setdefault(file, InputFile(file, _name(file, root), kind))
                elif folder:
                    ignored[os.path.splitext(file)[1].lower() or "no suffix"] += 1
                else:
                    raise ClaraError(f"{file}: is of no known kind; it must be one of {', '.join(KINDS)}")
    if not found:
        raise ClaraError(f"--input: {', '.join(inputs)}: nothing to read; files must be one of {', '.join(KINDS)}")
    return list(found.values()), ignored


def _kind(path: str) -> str | None:
    name = path.lower()
    for suffix in (GZIP, ZSTANDARD):
        name = name.removesuffix(suffix)
    return KINDS.get(posixpath.splitext(name)[1])


def _walk(folder: str) -> list[str]:
    def refuse(error: OSError):
        raise ClaraError(f"{error.filename}: cannot be read: {error.strerror}") from error

    files = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(place, name) for name in names if not name.startswith(".")]
    # Not what would block when read, as pipes do; a link that leads nowhere is refused when it is read.
    files = [path for path in files if os.path.isfile(path) or not os.path.exists(path)]
    return sorted(files, key=lambda path: _name(path, folder))


def _root(given: str, path: str) -> str:
    """The folder that names begin below: a file's own, or where a pattern begins to vary."""
    pattern = os.path.expanduser(os.path.expandvars(given))
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = posixpath.dirname(fixed)
    varies = fixed not in (pattern, path) and path != pattern and path.startswith(fixed)
    return fixed if varies else posixpath.dirname(path)


def _name(path: str, root: str) -> str:
    name = path[len(root) :] if is_remote(path) else os.path.relpath(path, root or ".")
    # A file system may store names in bytes that are not UTF-8, or (macOS) with accents apart from their letters.
    name = os.fsencode(name.replace(os.sep, "/")).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", name.lstrip("/"))
