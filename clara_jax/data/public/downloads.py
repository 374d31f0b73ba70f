"""Files from their addresses, or from the user: whole, checked, and fetched once."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from clara_jax.data.public.sources import Download
from clara_jax.errors import ClaraError
from clara_jax.files import file_errors, replaced_when_whole, sync

RECORDED = "SHA256SUMS"  # in the folder of downloads, as sha256sum writes and reads it
_BLOCK = 1 << 20  # bytes
_SECONDS = 60.0  # without a byte from the other side
_LARGEST_MEMBER = 1 << 26  # bytes of a file in an archive
_AGAIN = "the same command goes on where it stopped; or fetch it by hand and name it with --files"


class Downloads:
    """A folder of downloads, and the files that the user has.

    Attributes:
      folder: where what is fetched is kept.
    """

    def __init__(self, folder: Path, given: Mapping[str, Path], offline: bool):
        """Open a folder of downloads.

        Args:
          folder: made where there is none.
          given: files of the user by name; they are read where they are.
          offline: fetch nothing.
        """
        self.folder, self._given, self._offline = folder, given, offline
        with file_errors(f"{folder}: cannot be made"):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, wanted: Download) -> Path:
        """Return a file that is whole and has its checksum; it is fetched where it is not there.

        Raises:
          ClaraError: it is not there, cannot be fetched, or has another checksum.
        """
        path = self._given.get(wanted.file, self.folder / wanted.file)
        fetched = not path.is_file()
        if fetched:
            self._refuse_to_fetch(wanted)
            _fetch(wanted.url, path)
        found = listing(path, wanted.members) if wanted.members else _sha256(path)
        expected = wanted.sha256 or self._recorded().get(wanted.file)
        if expected is None:
            self._record(wanted.file, found)
        elif found != expected:
            whose = "as published" if wanted.sha256 else f"as when it was first used ({self.folder / RECORDED})"
            if fetched:
                path.unlink()
            place, remedy = (wanted.url, "try again") if fetched else (path, "remove it, and it is fetched anew")
            raise ClaraError(
                f"{place}: is not the file {whose}: its SHA-256 is {found[:16]}..., not {expected[:16]}...; {remedy}"
            )
        return path

    def obtainable(self, wanted: Download) -> bool:
        """Return whether a file is here, or has an address."""
        return bool(wanted.url) or self._given.get(wanted.file, self.folder / wanted.file).is_file()

    def _refuse_to_fetch(self, wanted: Download) -> None:
        place = wanted.url or wanted.page
        if not wanted.url:
            raise ClaraError(f"{wanted.file}: fetch it by hand from {place}, and name it with --files")
        if self._offline:
            raise ClaraError(f"{wanted.file}: is not among --files, and --offline is given; it is at {place}")

    def _recorded(self) -> dict[str, str]:
        path = self.folder / RECORDED
        if not path.is_file():
            return {}
        lines = [line.split("  ", 1) for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not all(len(line) == 2 and re.fullmatch("[0-9a-f]{64}", line[0]) for line in lines):
            raise ClaraError(f"{path}: is no list of checksums; remove it, and they are recorded anew")
        return {name: digest for digest, name in lines}

    def _record(self, name: str, digest: str) -> None:
        known = self._recorded() | {name: digest}
        with replaced_when_whole(self.folder / RECORDED) as temporary:
            temporary.write_text("".join(f"{known[name]}  {name}\n" for name in sorted(known)), "utf-8")


def given_files(paths: Sequence[str]) -> dict[str, Path]:
    """Return files by their names: those that are named, and those in folders that are.

    Raises:
      ClaraError: a path that does not exist; two files of one name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ClaraError(f"--files: {path}: there is no such file or folder")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if found.setdefault(file.name, file) != file:
                raise ClaraError(f"--files: {found[file.name]} and {file} have one name; leave one of them out")
    return found


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the members of a ZIP archive whose names match, by name.

    Names are without the folder that holds them all, which GitHub calls after the commit.

    Raises:
      ClaraError: no archive, a damaged one, a member that is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            named = {info.filename.partition("/")[2]: info for info in archive.infolist() if not info.is_dir()}
            for name in sorted(name for name in named if re.fullmatch(pattern, name)):
                if named[name].file_size > _LARGEST_MEMBER:
                    raise ClaraError(f"{path}: {name} is larger than {_LARGEST_MEMBER >> 20} MiB")
                yield name, archive.read(named[name])
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ClaraError(f"{path}: is no whole ZIP archive ({error}); remove it, and it is fetched anew") from None


def listing(path: Path, pattern: str) -> str:
    """Return the SHA-256 of what ``sha256sum`` would print of an archive's members that match, by name."""
    whole = hashlib.sha256()
    for name, content in tqdm(members(path, pattern), f"checking {path.name}", unit=" files", leave=False):
        whole.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    with file_errors(f"{path}: cannot be read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, path: Path) -> None:
    """Download a file; what an earlier attempt has brought is not fetched again where the server can go on.

    Raises:
      ClaraError: in one line, with what to do.
    """
    partial, tag = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.etag")
    with file_errors(f"{path}: cannot be written"), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of another version must not be joined to what is here: the server compares its tag.
        known = tag.read_text("utf-8") if tag.is_file() and partial.is_file() else ""
        begun = partial.stat().st_size if known else 0
        with _network_errors(url):
            reply = stack.enter_context(_open(url, begun, known))
        begun = begun if reply.status == http.client.PARTIAL_CONTENT else 0
        length = reply.headers.get("Content-Length")
        total = None if length is None else begun + int(length)
        bar = stack.enter_context(tqdm(total=total, initial=begun, unit="B", unit_scale=True, desc=path.name))
        with open(partial, "ab" if begun else "wb") as file:
            tag.write_text(reply.headers.get("ETag") or "", "utf-8")
            while True:
                with _network_errors(url):
                    block = reply.read(_BLOCK)
                if not block:
                    break
                file.write(block)
                bar.update(len(block))
        size = partial.stat().st_size
        if total is not None and size != total:
            raise ClaraError(f"{url}: broke off after {size:,} of {total:,} bytes; {_AGAIN}")
        sync(partial)
        os.replace(partial, path)
        tag.unlink(missing_ok=True)


@contextlib.contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are among them
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise ClaraError(f"{url}: cannot be fetched: {reason}; {_AGAIN}") from None


def _open(url: str, begun: int, tag: str) -> http.client.HTTPResponse:
    headers = {"User-Agent": "clara_jax", "Accept-Encoding": "identity"}
    further = {"Range": f"bytes={begun}-", "If-Range": tag} if begun else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers | further), timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if not begun or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()  # what is here is as long as the file, or longer: from the beginning
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS)
