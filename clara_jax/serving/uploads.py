"""A file that a client sends, read as the files of a folder are (`clara_jax.retrieval.documents`).

Its name is the id of its document, and never a path: the content is read from a temporary file of another name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import posixpath
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from clara_jax.data.corpus.files import KINDS, InputFile, kind_of
from clara_jax.errors import ClaraError
from clara_jax.retrieval.documents import ChunkedDocument, checked_id
from clara_jax.retrieval.read_report import ReadReport
from clara_jax.serving.worker import on_loop
from clara_jax.text.documents import DocumentMetadata

# See `clara_jax.rag_pipeline.RagPipeline.read_files`.
ReadFiles = Callable[[list[InputFile], ReadReport, int], Iterable[ChunkedDocument]]


class Upload(NamedTuple):
    """The documents of a file.

    Attributes:
      documents: at least one.
      skipped: reasons for the lines that could not be read, by "name:line".
      note: what else is to be known of the reading; "" for nothing.
    """

    documents: list[ChunkedDocument]
    skipped: dict[str, str]
    note: str


class UploadReader:
    """Reads files one at a time in threads beside the event loop.

    A reading cannot be stopped. One that nobody waits for any more still keeps others out, so that abandoned ones do
    not pile up, and does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    async def read(self, content: bytes, name: str, longest: int, read_files: ReadFiles) -> Upload:
        """Return the result of `read_upload`, and raise what it raises."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Upload] = loop.create_future()

        def finish(upload: Upload | None, error: Exception | None) -> None:
            self._free.release()
            if done.done():  # cancelled
                return
            if upload is None:
                assert error is not None  # one of both is there
                done.set_exception(error)
            else:
                done.set_result(upload)

        def work() -> None:
            try:
                outcome = read_upload(content, name, longest, read_files), None
            except Exception as error:
                outcome = None, error
            on_loop(loop, finish, *outcome)

        threading.Thread(target=work, name="clara-upload", daemon=True).start()
        return await done


def read_upload(content: bytes, name: str, longest: int, read_files: ReadFiles) -> Upload:
    """Read the documents of a file.

    Args:
      content: of the file.
      name: of the file, with the folders that it lay in; its suffix says what is in it.
      longest: characters of a text.
      read_files: the reader.

    Raises:
      ClaraError: the file is of no known kind, or compressed; nothing in it can be read.
    """
    checked_id(name, "")
    kind, suffix = kind_of(name), posixpath.splitext(name)[1].lower()
    if kind is None:
        raise ClaraError(f"{name}: is of no known kind; it must be one of {', '.join(KINDS)}")
    if suffix not in KINDS:
        raise ClaraError(f"{name}: compressed files are not read here, as a small one may hold anything; unpack it")
    report = ReadReport()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        path.write_bytes(content)
        file = InputFile(str(path), name, kind)
        documents = [_renamed(document, file) for document in read_files([file], report, longest)]
    skipped = {_named(place, file): reason for place, reason in report.skipped.items()}
    if not documents:
        place, reason = next(iter(skipped.items()), (name, "holds no document"))
        raise ClaraError(f"{place}: {reason}")
    return Upload(documents, skipped, report.notes.get(file.path, ""))


def _renamed(document: ChunkedDocument, file: InputFile) -> ChunkedDocument:
    """Return a document that says where it is from by the name of the file that was sent."""
    chunks = (dataclasses.replace(chunk, source=_named(chunk.source, file)) for chunk in document.chunks)
    return ChunkedDocument(document.id, tuple(chunks), DocumentMetadata("", file.kind, "", document.metadata.fields))


def _named(place: str, file: InputFile) -> str:
    return file.name + place.removeprefix(file.path) if place.startswith(file.path) else place
