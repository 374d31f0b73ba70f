"""Which files an input names, what kind each is, and the name that its documents are known by."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import glob
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import GZIP, ZSTANDARD, data_files, is_remote
from clara_jax.spelling import normal_form
from clara_jax.text.documents import DocumentMetadata

TEXT, MARKDOWN, HTML, PDF, JSONL = "text", "markdown", "html", "pdf", "jsonl"
DOCX, PPTX, EPUB, CSV, TSV = "docx", "pptx", "epub", "csv", "tsv"
KINDS = {
    ".txt": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".pdf": PDF,
    ".jsonl": JSONL,
    ".docx": DOCX,
    ".pptx": PPTX,
    ".epub": EPUB,
    ".csv": CSV,
    ".tsv": TSV,
}

# Reasons for which files are ignored, besides their suffixes.
LINKS, HIDDEN = "links out of the folder", "hidden"


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
        """The number of bytes, as stored; 0 where that is not known."""
        stated = self._stated()
        return stated.st_size if stated else 0

    @property
    def metadata(self) -> DocumentMetadata:
        """What the file system knows of its documents."""
        stated, modified = self._stated(), ""
        with contextlib.suppress(ValueError, OverflowError, OSError):  # of a time beyond the year 9999
            if stated:
                changed = datetime.datetime.fromtimestamp(int(stated.st_mtime), datetime.UTC)
                modified = f"{changed:%Y-%m-%dT%H:%M:%SZ}"
        return DocumentMetadata(real_path(self.path), self.kind, modified)

    def _stated(self) -> os.stat_result | None:
        """Return what the file system says; None of a remote file, and of one that is not there."""
        try:
            return None if is_remote(self.path) else os.stat(self.path)
        except OSError:
            return None


def _refuse(path: str, error: ClaraError) -> NoReturn:
    raise error


def find_files(
    inputs: Iterable[str],
    follow_links: bool = False,
    refuse: Callable[[str, ClaraError], None] = _refuse,
    option: str = "--input",
) -> tuple[list[InputFile], collections.Counter[str]]:
    """Find the files of some inputs, in the inputs' order, those of a folder sorted by name.

    Args:
      inputs: folders, which are searched to any depth; files; patterns. What begins with "." in a folder is passed
        over, and links to folders are not followed. Any of the kinds may be compressed (``.gz``, ``.zst``). Remote
        files (``gs://...``) are taken, remote folders are not.
      follow_links: read files outside of a folder to which links in it, or found by a pattern, lead. Links to files
        within it are always read.
      refuse: called with each path that cannot be read (a folder without permission, a named file of no known kind) and
        the error, which it raises by default.
      option: by which the inputs were named, for messages.

    Returns:
      the files; how many files in folders were passed over: because of their suffix, by suffix, ``LINKS`` and
      ``HIDDEN``, of which a folder counts as one.

    Raises:
      ClaraError: an input that does not exist, a named file of no known kind, or nothing to read at all.
    """
    found: dict[str, InputFile] = {}
    ignored: collections.Counter[str] = collections.Counter()
    for given in inputs:
        for path in data_files([given], option):
            folder = not is_remote(path) and os.path.isdir(path)
            root = path if folder else _root(given, path)
            varies = folder or _varies(given, path)
            if folder and _varies(given, path) and not follow_links and _leads_out(path, _root(given, path)):
                ignored[LINKS] += 1
                continue
            for file in _walk(path, follow_links, ignored, refuse) if folder else [path]:
                kind = kind_of(file)
                # A named file is read wherever it leads; one from a folder or a pattern may be a stranger's.
                if varies and not follow_links and _leads_out(file, root):
                    ignored[LINKS] += 1
                elif kind:
                    found.setdefault(file, InputFile(file, _name(file, root), kind))
                elif folder:
                    ignored[os.path.splitext(file)[1].lower() or "no suffix"] += 1
                else:
                    refuse(file, ClaraError(f"{file}: is of no known kind; it must be one of {', '.join(KINDS)}"))
    if not found:
        links = f" ({ignored[LINKS]} {LINKS}: --follow-links reads them)" if ignored[LINKS] else ""
        raise ClaraError(
            f"{option}: {', '.join(inputs)}: nothing to read{links}; files must be one of {', '.join(KINDS)}"
        )
    return list(found.values()), ignored


def real_path(path: str) -> str:
    """Return the one path of a file or folder, however it is named, as text; a URL is returned as it is."""
    return path if is_remote(path) else readable_path(os.path.realpath(path))


def same_content(files: Sequence[InputFile]) -> dict[str, InputFile]:
    """Return the first of the files with the same bytes, by the path of each later one; empty files are not compared.

    Only files of equal sizes are read; what cannot be read, or is remote, is like no other.
    """
    sizes = collections.Counter(file.size for file in files)
    first: dict[bytes, InputFile] = {}
    same: dict[str, InputFile] = {}
    for file in files:
        if file.size and sizes[file.size] > 1:
            try:
                with open(file.path, "rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").digest()
            except OSError:
                continue
            if first.setdefault(digest, file) is not file:
                same[file.path] = first[digest]
    return same


def kind_of(path: str) -> str | None:
    """Return the kind of a file by its suffix, one of the values of `KINDS`; None where there is none."""
    name = path.lower()
    for suffix in (GZIP, ZSTANDARD):
        name = name.removesuffix(suffix)
    return KINDS.get(posixpath.splitext(name)[1])


def _leads_out(path: str, root: str) -> bool:
    """Return whether a path is or goes through a link whose end does not lie in the folder."""
    if is_remote(path):
        return False
    within = os.path.realpath(root or ".")
    return os.path.commonpath([within, os.path.realpath(path)]) != within


def _walk(
    folder: str, follow_links: bool, ignored: collections.Counter[str], refuse: Callable[[str, ClaraError], None]
) -> list[str]:
    def refused(error: OSError) -> None:
        refuse(error.filename, ClaraError(f"{error.filename}: cannot be read: {error.strerror}"))

    files, seen = [], {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refused, followlinks=follow_links):
        ignored.update(HIDDEN for name in [*folders, *names] if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        if follow_links:  # a link may lead back to where it lies
            ends = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
            folders[:] = [name for name in folders if ends[name] not in seen]
            seen.update(ends.values())
        files += [os.path.join(place, name) for name in names if not name.startswith(".")]
    # Files that would block when read, as pipes do, are left out; a link that leads nowhere is refused when it is read.
    files = [path for path in files if os.path.isfile(path) or not os.path.exists(path)]
    return sorted(files, key=lambda path: _name(path, folder))


def _root(given: str, path: str) -> str:
    """Return the folder that names begin below: that of a file, or where a pattern begins to vary."""
    fixed = os.path.expanduser(os.path.expandvars(given))
    while glob.has_magic(fixed):
        fixed = posixpath.dirname(fixed)
    return fixed if _varies(given, path) and path.startswith(fixed) else posixpath.dirname(path)


def _varies(given: str, path: str) -> bool:
    """Return whether a file was found by a pattern, not named."""
    pattern = os.path.expanduser(os.path.expandvars(given))
    return glob.has_magic(pattern) and path != pattern


def _name(path: str, root: str) -> str:
    name = path[len(root) :] if is_remote(path) else os.path.relpath(path, root or ".")
    # macOS stores names with accents apart from their letters.
    return normal_form("NFC", readable_path(name.replace(os.sep, "/")).lstrip("/"))


def readable_path(path: str) -> str:
    """Return a path as text that can be written: a file system may store names in bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
