"""The items of a journal: a user's documents, in the form in which they are compressed later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara_jax.data.corpus.readers import read_documents
from clara_jax.synthesis.journal import Item
from clara_jax.text.titles import titled


def document_items(inputs: Sequence[str], follow_links: bool = False) -> Iterator[Item]:
    """Yield the documents of files and folders, see `clara_jax.data.corpus.readers`; the text is below its title.

    Raises:
      ClaraError: a file that cannot be read, a line that is no document.
    """
    for document in read_documents(inputs, follow_links):
        content = {"text": titled(document.title, document.text)}
        yield Item(document.id, digest(content), content)


def digest(content: Mapping[str, Any]) -> str:
    """Return a digest of an item's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
