"""How a chat template renders a question and its answer: examined once, when a tokenizer is opened.

A prompt for training is one for answering and then the answer. Many templates break this rule. Each violation is found
on a made-up chat here, and either handled, with a warning and a fact for the tokenizer's hash, or refused:

- the system role is refused: it is joined to the user's message, by a newline, as the released code does (no warning);
- it is dropped: the same, but for the template of `clara_jax.input_pipeline.word_level`, which drops it on purpose;
- the prompt ends with text that an answer does not have before it, as a thought that is opened, or a space that becomes
  one token with the answer's first word: that is left out of prompts;
- no token ends the answer: the tokenizer's end token is written after it;
- the clock is read: see `clara_jax.input_pipeline.chat_templates`;
- the question or the answer itself is not there, or an address of memory is: refused.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.chat_templates import DATE, ChatTemplate, ChatTemplateError
from clara_jax.input_pipeline.word_level import CHAT_TEMPLATE as WITHOUT_SYSTEM

if TYPE_CHECKING:
    from clara_jax.input_pipeline.tokenization import ClaraTokenizer

_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # how Python writes an object that has no text form
# Words that no template holds, of letters that every tokenizer has.
_SYSTEM, _QUESTION, _ANSWERS = "Zebra system", "Zebra question", ("No", "Pier 4 zebra")


@dataclasses.dataclass(frozen=True)
class Turns:
    """How a chat template renders turns.

    Attributes:
      takes_system: the template shows a system message.
      surplus: the end of prompts for answering that no answer has before it; left out.
      missing_end: the text that is written after an answer that the template leaves open.
      end_id: the special token that follows an answer; None for none.
      facts: everything here that changes token ids, for the tokenizer's hash.
    """

    takes_system: bool
    surplus: str
    missing_end: str
    end_id: int | None
    facts: tuple[Any, ...]

    def finished(self, texts: Sequence[str], with_target: bool) -> list[str]:
        """Return rendered chats as they are tokenized."""
        if with_target:
            return [text + self.missing_end for text in texts]
        return [text.removesuffix(self.surplus) for text in texts]


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginnings."""
    if first[: len(second)] == second:
        return len(second)
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def read_turns(tokenizer: ClaraTokenizer) -> Turns:
    """Examine how a tokenizer's template renders a question and two answers.

    Raises:
      ClaraError: the template fails, or what it makes cannot be learned from.
    """
    template, warn = tokenizer._template, []
    takes_system, dropped = _takes_system(template)
    messages = [{"role": "system", "content": _SYSTEM}] if takes_system or template.source == WITHOUT_SYSTEM else []
    messages.append({"role": "user", "content": _QUESTION})
    try:
        (prompt,) = template.render([messages], True)
        whole = template.render([[*messages, {"role": "assistant", "content": x}] for x in _ANSWERS], False)
    except ChatTemplateError as error:
        raise ClaraError(f"{error}; it must take a user and an assistant message") from None
    for text in (prompt, *whole):
        if _ADDRESS.search(text):
            raise ClaraError(
                "the base model's chat template writes out a function or an object, with an address that is another "
                "one in each process; use another one"
            )
        if _QUESTION not in text:
            raise ClaraError("the base model's chat template leaves out the user's message; use another one")
    for text, answer in zip(whole, _ANSWERS, strict=True):
        if answer not in text[text.rindex(_QUESTION) :]:
            raise ClaraError("the base model's chat template leaves out the assistant's message; use another one")
    if dropped:
        warn.append("it drops the system message, which is joined to the user's message instead")
    surplus = _surplus(tokenizer, prompt, whole)
    if surplus:
        warn.append(f"its prompts end with {surplus!r}, which no answer has before it and which is left out")
    last, answer = whole[-1], _ANSWERS[-1]
    end_id = _end_id(tokenizer, last[last.rindex(answer) + len(answer) :])
    missing = "" if end_id is not None else tokenizer._eos_token
    if missing:
        warn.append(f"no token ends its answers; {missing!r} is written after them")
        end_id = tokenizer.eos_id
    facts: list[Any] = ["system joined"] * dropped
    facts += [f"surplus {surplus}"] if surplus else []
    facts += [f"end {missing}"] if missing else []
    facts += [f"date {DATE:%Y-%m-%d}"] if template.reads_clock else []
    for line in warn:
        warnings.warn(f"the base model's chat template: {line}", stacklevel=3)
    return Turns(takes_system, surplus, missing, end_id, tuple(facts))


def _takes_system(template: ChatTemplate) -> tuple[bool, bool]:
    """Return whether the template takes a system message and, where it seems to, whether it drops it."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}]
    try:
        (text,) = template.render([messages], True)
    except ChatTemplateError:
        return False, False
    if _SYSTEM in text or template.source == WITHOUT_SYSTEM:
        return True, False
    return False, True


def _surplus(tokenizer: ClaraTokenizer, prompt: str, whole: Sequence[str]) -> str:
    """Return the end of a prompt that its tokens do not share with those of the prompt and an answer."""
    # The rendered answers may differ in the text before them: only the text that all share stands before any answer.
    shared = len(os.path.commonprefix([prompt, *whole]))
    if shared < max(prompt.rindex(text) + len(text) for text in (_QUESTION, _SYSTEM) if text in prompt):
        raise ClaraError(
            "the base model's chat template renders messages otherwise once there is an answer; none can be learned"
        )
    # A blank at the end becomes one token with the first word of some answers, if not of these.
    for kept in (len(prompt[:shared].rstrip(" ")), shared, len(prompt[:shared].rstrip())):
        (alone,) = tokenizer._encode([prompt[:kept]])
        if all(ids[: len(alone)] == alone for ids in tokenizer._encode(whole)):
            return prompt[kept:]
    return prompt[shared:]


def _end_id(tokenizer: ClaraTokenizer, after: str) -> int | None:
    """Return the first special token after an answer, where nothing but white space stands before it; else None."""
    (ids,) = tokenizer._encode([after])
    special = {i for i, token in tokenizer._tokenizer.added_tokens_decoder.items() if token.special}
    special.add(tokenizer.eos_id)
    for place, token in enumerate(ids):
        if token in special:
            return None if tokenizer.decode(ids[:place], True).strip() else token
    return None
