"""How long a text is: in words, or in the tokens that a base model's compressor would read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clara_jax.errors import ClaraError

if TYPE_CHECKING:
    from clara_jax.input_pipeline.tokenization import ClaraTokenizer

CountTokens = Callable[
    [Sequence[str]], list[int]
]  # texts -> the length of each; worker processes need it to be picklable
WORDS = "words"

# Kana and Chinese characters are written without spaces: each counts as a word.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def count_words(texts: Sequence[str]) -> list[int]:
    """Count the runs of characters between white space in each text; a character of an unspaced script is a run."""
    return [sum(1 for _ in _WORD.finditer(text)) for text in texts]


class TokenCounter:
    """A counter of a text's tokens as the compressor reads it, without the frame: the number that is limited."""

    def __init__(self, tokenizer: ClaraTokenizer):
        self._tokenizer = tokenizer
        self._frame = len(tokenizer.document_tokens([""])[0])

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, comparable with ``doc_max_length``."""
        return [len(ids) - self._frame for ids in self._tokenizer.document_tokens(texts)]


def open_counter(name: str, max_tokens: int) -> CountTokens:
    """Open the counter of a tokenizer.

    Args:
      name: "words"; a base model as `clara_jax.formats.base.open_base` takes it; or the ``tokenizer`` folder of a
        checkpoint.
      max_tokens: the longest text that is going to be allowed.

    Raises:
      ClaraError: no such base model, or a checkpoint whose documents must be shorter.
    """
    if name == WORDS:
        return count_words
    # Slow to import, and not needed for words.
    from clara_jax.formats.base import open_base
    from clara_jax.input_pipeline.tokenization import OPTIONS_FILE, ClaraTokenizer

    if (Path(name) / OPTIONS_FILE).is_file():
        tokenizer = ClaraTokenizer.load(name)
        if max_tokens > tokenizer.doc_max_length:
            raise ClaraError(
                f"--max-tokens: {max_tokens} is more than the checkpoint's doc_max_length, {tokenizer.doc_max_length}"
            )
    else:
        tokenizer = ClaraTokenizer(open_base(name).load_tokenizer(), max_tokens, memory_tokens=1)
    return TokenCounter(tokenizer)
