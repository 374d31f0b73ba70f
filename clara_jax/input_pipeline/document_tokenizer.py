"""Documents as token ids: the base model's tokenizer with CLaRa's tokens added, and texts in it, whole or cut.

Everything here follows the released checkpoint format ("Special tokens", "Inputs"), so that token ids agree with those
that the released models were trained on.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from clara_jax.errors import ClaraError
from clara_jax.formats.hf_tokenizers import AddedToken, PreTrainedTokenizerFast
from clara_jax.formats.jsonl import checked_utf8
from clara_jax.input_pipeline.prompts import MARKERS
from clara_jax.memory_count import FIXED, memories_of

FRAME = 3  # <ENC>, bos and eos around a document
SLICE = 1024  # texts tokenized at one time
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# What stands for a bos or eos that a tokenizer lacks.
MISSING_BOS = ("omit", "memory_token", "first_special")


def further_special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the special tokens of a tokenizer that have no role such as bos, in its order ("additional" ones)."""
    return [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or ()]


class DocumentTokenizer:
    """A base model's tokenizer with CLaRa's tokens at its end, for documents and questions.

    Attributes:
      doc_max_length: longest document, in tokens; a document's input is cut at ``doc_max_length + 3``.
      memory_tokens: M, memory tokens of a full document.
      memory_count: one of `clara_jax.memory_count.MEMORY_COUNTS`.
      vocab_size: number of the base tokenizer's ids, ``len(tokenizer)``; the added ones follow.
      special_ids: id by name: "<MEM0>" ... or the one "<MEM>", then "<AE>", "<ENC>", "<SEP>".
      memory_ids: M ids; all the same where the memory tokens are not different.
      memory_text: the placeholder of a document's memory in a rendered prompt: the M memory tokens and "<SEP>".
      num_special: number of added ids.
      total_vocab: ``vocab_size + num_special``.
      bos_id: None where the tokenizer has none and ``missing_bos`` is "omit".
      eos_id: ends an answer.
      pad_id: fills padding, which is never attended: the tokenizer's padding token, else its bos, else its eos.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        doc_max_length: int,
        memory_tokens: int,
        different_mem_tokens: bool = True,
        missing_bos: str = "omit",
        memory_count: str = FIXED,
    ):
        """Add CLaRa's tokens to a copy of a base model's tokenizer.

        Args:
          tokenizer: a fast tokenizer of transformers; it is copied, never changed.
          doc_max_length: longest document, in tokens; at least 1.
          memory_tokens: M, memory tokens of a document; at least 1.
          different_mem_tokens: M different memory tokens, or one token M times.
          missing_bos: see `clara_jax.input_pipeline.tokenization.ClaraTokenizer`.
          memory_count: one of `clara_jax.memory_count.MEMORY_COUNTS`.

        Raises:
          ClaraError: no fast tokenizer, no eos, or an added token is in the vocabulary already.
        """
        if missing_bos not in MISSING_BOS:
            raise ClaraError(f"missing_bos: {missing_bos!r} must be one of {', '.join(MISSING_BOS)}")
        if not getattr(tokenizer, "is_fast", False):
            raise ClaraError("the base model's tokenizer is not a fast one; it needs a tokenizer.json")
        self.doc_max_length, self.memory_tokens = doc_max_length, memory_tokens
        self.different_mem_tokens, self.missing_bos = bool(different_mem_tokens), missing_bos
        self.memory_count = memory_count
        self._base = _copy(tokenizer)
        self._tokenizer = _copy(tokenizer)
        self._add_tokens()
        self._choose_ends()
        self._specials = self._special_pattern()
        self._strange: dict[int, bool] = {}  # by token, see `_is_strange`

    def memories_of(self, length: int) -> int:
        """Return the number of memories of a text whose `document_tokens` are so many; see `clara_jax.memory_count`.

        The frame, <ENC>, bos and eos, does not count.
        """
        if self.memory_count == FIXED:
            return self.memory_tokens
        frame = FRAME - (self.bos_id is None)
        return memories_of(length - frame, self.memory_tokens, self.doc_max_length)

    def with_memories(self, doc_max_length: int, memory_tokens: int, memory_count: str | None = None) -> Self:
        """Return the same tokenizer for documents of another longest length and another number of memory tokens.

        Args:
          doc_max_length: longest document, in tokens.
          memory_tokens: M.
          memory_count: one of `clara_jax.memory_count.MEMORY_COUNTS`; None keeps the tokenizer's.

        Raises:
          ClaraError: another number of memory tokens where these are different tokens.
        """
        if self.different_mem_tokens and memory_tokens != self.memory_tokens:
            raise ClaraError(
                f"{memory_tokens} memory tokens instead of {self.memory_tokens}: they are different tokens; only with "
                "one token for all places (different_mem_tokens = false) can their number change"
            )
        changed = copy.copy(self)
        changed.doc_max_length, changed.memory_tokens = doc_max_length, memory_tokens
        changed.memory_count = memory_count or self.memory_count
        changed._memory_names = [self._memory_names[j % len(self._memory_names)] for j in range(memory_tokens)]
        changed.memory_text = "".join(changed._memory_names) + "<SEP>"
        changed.memory_ids = tuple(self.special_ids[name] for name in changed._memory_names)
        return changed

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return where each token of each text begins and ends in it, in characters.

        Texts are taken as they are: make them `plain` before.
        """
        encode = self._tokenizer.backend_tokenizer.encode_batch
        return [encoding.offsets for encoding in _encodings(encode, texts)]

    def _add_tokens(self) -> None:
        names = [f"<MEM{j}>" for j in range(self.memory_tokens)] if self.different_mem_tokens else ["<MEM>"]
        self._memory_names = names * (self.memory_tokens // len(names))
        self.memory_text = "".join(self._memory_names) + "<SEP>"
        names = [*names, *MARKERS]
        known = self._tokenizer.get_vocab()
        for name in names:
            if name in known:
                raise ClaraError(
                    f"the base model's tokenizer already has the token {name}; "
                    "give the base as it was before CLaRa's tokens were added"
                )
        self._tokenizer.add_tokens(
            [AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True
        )
        ids = self._tokenizer.convert_tokens_to_ids(names)
        assert isinstance(ids, list)  # for a list of names
        # The first id after the base's: len(tokenizer), unless its ids have gaps.
        self.vocab_size, self.num_special = ids[0], len(ids)
        self.total_vocab = self.vocab_size + self.num_special
        if ids != list(range(self.vocab_size, self.total_vocab)) or self.vocab_size <= max(known.values()):
            raise ClaraError(
                "the base model's tokenizer does not number added tokens one after the other; repair its tokenizer.json"
            )
        self.special_ids: dict[str, int] = dict(zip(names, ids, strict=True))
        self.memory_ids = tuple(self.special_ids[name] for name in self._memory_names)

    def _choose_ends(self) -> None:
        tokenizer: Any = self._tokenizer  # it has its special tokens by __getattr__, which gives them no types
        if self.missing_bos != "omit":
            tokenizer.bos_token, tokenizer.eos_token = self._ends(self.missing_bos)
        if tokenizer.eos_token is None:
            raise ClaraError(
                'the base model\'s tokenizer has no end token; name it as "eos_token" in tokenizer_config.json'
            )
        self._bos_token: str | None = tokenizer.bos_token
        self._eos_token: str = tokenizer.eos_token
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = next(x for x in (tokenizer.pad_token_id, self.bos_id, self.eos_id) if x is not None)

    def _ends(self, missing_bos: str) -> tuple[str, str]:
        """Return bos and eos, and what stands for one that is missing."""
        base: Any = self._base
        stand_ins = [self._memory_names[0]] * 2
        if missing_bos == "first_special":
            stand_ins = [*further_special_tokens(self._base), *self.special_ids]
        return base.bos_token or stand_ins[0], base.eos_token or stand_ins[1]

    @property
    def lacks_bos(self) -> bool:
        """Whether the base's tokenizer has no bos, whatever stands for it."""
        return self._base.bos_token is None

    @property
    def has_released_ends(self) -> bool:
        """Whether what stands for a missing bos or eos is what the released code puts there."""
        return (self._bos_token, self._eos_token) == self._ends("first_special")

    def _special_pattern(self) -> re.Pattern:
        """Return a pattern that matches every string that the tokenizer would read as a special token."""
        named = self._tokenizer.special_tokens_map.values()
        strings = {text for value in named for text in ([value] if isinstance(value, str) else value)}
        strings |= {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted((text for text in strings if text.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    # --- text ---

    def plain(self, text: str) -> str:
        """Return the text with the strings of special tokens broken up by a space, so that none of it is read as one.

        Raises:
          ClaraError: half of a surrogate pair, which no tokenizer can read.
        """
        checked_utf8(text, "the text", "tokenizing")
        while True:
            broken = self._specials.sub(
                lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else " ", text
            )
            if broken == text:
                return text
            text = broken

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of token ids, with or without the special tokens among them.

        Bytes of a character that is not there as a whole, where an answer ends in its middle or tokens were taken out
        of a text, are left out. U+FFFD, which stands for them elsewhere, stays where the tokens spell it.
        """
        ids = list(map(int, ids))
        text = self._tokenizer.decode(ids, skip_special_tokens=not special)
        assert isinstance(text, str)  # of one text's ids
        if _REPLACEMENT in text and not _holds(ids, self._encode([_REPLACEMENT])[0]):
            text = text.replace(_REPLACEMENT, "")
        return text

    def whole_characters(self, ids: Sequence[int]) -> list[int]:
        """Return each token's group, numbered from 0: tokens share one where a character spans them."""
        groups, held, number = [], [], 0
        for token in ids:
            held.append(int(token))
            groups.append(number)
            # Characters have up to four bytes; longer groups are of bytes that make none.
            if len(held) == 4 or "\ufffd" not in self._tokenizer.decode(held):
                held, number = [], number + 1
        return groups

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' tokens that the tokenizer does not know as a part of a word; 0 without tokens.

        These are its token for the unknown, and those of parts of a character.
        """
        counts: Counter[int] = Counter()
        for ids in self._encode([self.plain(text) for text in texts]):
            counts.update(ids)
        return sum(count for token, count in counts.items() if self._is_strange(token)) / max(1, counts.total())

    def _is_strange(self, token: int) -> bool:
        """Return whether a token stands for the unknown or for a part of a character; each is decoded once."""
        if token not in self._strange:
            alone = self._tokenizer.decode([token])
            self._strange[token] = token == self._tokenizer.unk_token_id or _REPLACEMENT in alone
        return self._strange[token]

    # --- documents and questions ---

    def document_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of <ENC> + bos + text + eos of each text, not cut, without memory tokens and padding."""
        start, end = self._document_ends
        return self._encode([f"{start}{self.plain(text)}{end}" for text in texts])

    @property
    def _document_ends(self) -> tuple[str, str]:
        """The text that a document's input begins with, and the text that it ends with."""
        return f"<ENC>{'' if self.bos_id is None else self._bos_token}", self._eos_token

    @property
    def document_width(self) -> int:
        """The longest input of a document, its frame included: what is longer `is_cut`."""
        return self.doc_max_length + FRAME

    def encode_documents(self, texts: Sequence[str], width: int | None = None) -> list[list[int]]:
        """Return `document_tokens`, cut on the right: a long document keeps its first tokens and loses its eos.

        Args:
          texts: documents or questions.
          width: longest result; default ``doc_max_length + 3``.
        """
        width = self.document_width if width is None else width
        return [ids[:width] for ids in self.document_tokens(texts)]

    def encode_document(self, text: str, width: int | None = None) -> list[int]:
        """Return `encode_documents` of one text, a document or a question."""
        return self.encode_documents([text], width)[0]

    def is_cut(self, text: str) -> bool:
        """Return whether a text is longer than a document may be: the compressor would not read all of it."""
        return len(self.document_tokens([text])[0]) > self.document_width

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the part of each text that the compressor reads: one that `is_cut` ends with the last token read."""
        results, width = list(texts), self.document_width
        start, end = self._document_ends
        for number, ids in enumerate(self.document_tokens(texts)):
            if len(ids) > width:
                plain = self.plain(texts[number])
                whole = self._tokenizer.backend_tokenizer.encode(f"{start}{plain}{end}", add_special_tokens=False)
                results[number] = plain[: whole.offsets[width - 1][1] - len(start)]
        return results

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encode = self._tokenizer.backend_tokenizer.encode_batch_fast  # which leaves out where tokens stand
        return [encoding.ids for encoding in _encodings(encode, texts)]


def _holds(ids: list[int], part: list[int]) -> bool:
    """Return whether ids hold others, one after another."""
    return any(ids[place : place + len(part)] == part for place in range(len(ids) - len(part) + 1))


def _encodings(encode: Callable[..., list[Any]], texts: Sequence[str]) -> Iterator[Any]:
    """Yield the result of a function of the tokenizers package for each text, slice by slice."""
    for start in range(0, len(texts), SLICE):
        yield from encode(list(texts[start : start + SLICE]), add_special_tokens=False)


def _copy(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a copy that neither pads nor cuts by itself."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
