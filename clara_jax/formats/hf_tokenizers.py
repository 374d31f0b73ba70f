"""The tokenizer classes of transformers, imported without its advice to install PyTorch, which is not needed."""

import os
from typing import Any

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_before = os.environ.get(_ADVICE)
os.environ[_ADVICE] = _before or "1"
try:
    from transformers import AddedToken, PreTrainedTokenizerFast
finally:
    if _before is None:
        del os.environ[_ADVICE]

__all__ = ["AddedToken", "PreTrainedTokenizerFast", "auto_tokenizer"]


def auto_tokenizer() -> Any:
    """Return ``AutoTokenizer``, whose import takes longer than that of the others."""
    from transformers import AutoTokenizer

    return AutoTokenizer
