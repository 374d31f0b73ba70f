"""What a caller of the Python API gives: checks of texts and numbers, and long texts in pieces."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from clara_jax.checkpoints.bundle import SCRATCH, Bundle
from clara_jax.errors import ClaraError, ClaraWarning
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.text.chunks import chunker_of
from clara_jax.text.documents import CorpusDocument

LongDocuments = Literal["chunk", "cut"]
_JUDGED_TEXTS, _JUDGED_CHARACTERS = 32, 1000  # by which `unread` judges documents: so many, and so much of each
_MOST_UNKNOWN, _MOST_UNKNOWN_FROM_SCRATCH = 1 / 2, 1 / 20  # shares of tokens


class Pieces(NamedTuple):
    """Texts that the compressor reads, their ids, and the ids of the documents that they are of."""

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    documents: tuple[str, ...]


def check_positive(name: str, value: Any) -> None:
    """Check that a value is a whole number above 0.

    Raises:
      ClaraError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ClaraError(f"{name}: {value!r} is not a positive whole number")


def check_texts(texts: Sequence[str], name: str) -> list[str]:
    """Return texts as a list.

    Raises:
      ClaraError: one text in the place of a list, what is no list, or a text that is empty or none.
    """
    if isinstance(texts, str):
        raise ClaraError(f"{name}: is one text; give a list of texts")
    # A dict or bytes can be iterated over, but is no list of texts.
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise ClaraError(f"{name}: is of type {type(texts).__name__}; give a list of texts")
    result = list(texts)  # a generator can be read only once
    for number, text in enumerate(result):
        if not isinstance(text, str) or not text.strip():
            raise ClaraError(f"{name}[{number}]: {text!r} is no text; each must be a non-empty string")
    return result


def check_ids(ids: Sequence[str] | None, count: int) -> list[str]:
    """Return the ids of documents; "0", "1", ... where none are given.

    Raises:
      ClaraError: they are not one per document, or not unique.
    """
    names = [str(i) for i in range(count)] if ids is None else [str(name) for name in ids]
    if len(names) != count or len(set(names)) != len(names):
        raise ClaraError(
            f"ids: {len(names)} names, {len(set(names))} of them different, for {count} documents; "
            "give one unique name each"
        )
    return names


def beyond_training(bundle: Bundle, k: int | None) -> str | None:
    """Return a warning where more documents are to be read than the last stage trained the model to, else None."""
    if k is None or bundle.top_k is None or k <= bundle.top_k:
        return None
    return (
        f"k: {k} documents are read, and the model was trained to read {bundle.top_k}: its answers may be worse; leave "
        "k out"
    )


def unread(bundle: Bundle, texts: Iterable[str]) -> str | None:
    """Return a warning where a model cannot read documents, else None; the first ones are judged.

    It cannot where its tokenizer does not know most of the text. A base from scratch has learned nothing but the words
    of its training records, which is what its tokenizer knows: few unknown ones show that the documents are others.
    """
    share = bundle.tokenizer.unknown_share([text[:_JUDGED_CHARACTERS] for text in islice(texts, _JUDGED_TEXTS)])
    if bundle.base["name"] == SCRATCH and share > _MOST_UNKNOWN_FROM_SCRATCH:
        return (
            "this model cannot read ordinary text: it was made from scratch and knows no words but those of its "
            f"training records; {share:.0%} of these documents is unknown to it, and its answers from them mean "
            "nothing; open a model with a pretrained base"
        )
    if share > _MOST_UNKNOWN:
        return (
            f"the model's tokenizer does not know {share:.0%} of these documents, so that their memories hold little "
            "of them; open a model whose tokenizer knows their language"
        )
    return None


def split_texts(texts: Sequence[str], ids: Sequence[str], tokenizer: ClaraTokenizer, long: LongDocuments) -> Pieces:
    """Split documents into texts that the compressor reads whole ("chunk"), or leave them to be cut ("cut").

    Raises:
      ClaraError: another ``long``.
    """
    if long not in ("chunk", "cut"):
        raise ClaraError(f'long: {long!r} must be "chunk" or "cut"')
    if long == "cut":
        cut = [name for name, text in zip(ids, texts, strict=True) if tokenizer.is_cut(text)]
        if cut:
            names = ", ".join(cut[:3]) + (", ..." if len(cut) > 3 else "")
            warnings.warn(
                f"{len(cut)} document(s) longer than {tokenizer.doc_max_length} tokens lose their end ({names}); "
                "long='chunk' keeps it",
                ClaraWarning,
                stacklevel=3,
            )
        return Pieces(tuple(texts), tuple(ids), tuple(ids))
    chunker = chunker_of(tokenizer)
    parts: list[tuple[str, str, str]] = []
    for number, (name, text) in enumerate(zip(ids, texts, strict=True)):
        chunks = list(chunker(CorpusDocument(name, "", text, f"documents[{number}]")))
        named = zip(chunks, chunk_ids(name, len(chunks)), strict=True)
        parts += [(chunk.text, chunk_id, name) for chunk, chunk_id in named]
    return Pieces(*(tuple(part[i] for part in parts) for i in range(3)))


def chunk_ids(document: str, count: int) -> list[str]:
    """Return the ids of a document's chunks: that of the document where there is one chunk."""
    return [document] if count == 1 else [f"{document}#{number}" for number in range(count)]
