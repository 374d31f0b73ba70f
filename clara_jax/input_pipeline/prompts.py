"""Every prompt, in this one file.

The strings are part of the released checkpoints' interface (released checkpoint format, "Prompts by stage"): a model
answers best when asked as in training. Change one, and `PROMPT_VERSION` must change with it; the instructions for
paraphrases are free, the released models saw many wordings.

A prompt is a sequence of segments, text or memory: a document's memory and its plain text take the same path.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import ONE_DOCUMENT, Record

PROMPT_VERSION = "1"

MARKERS = ("<AE>", "<ENC>", "<SEP>")  # tokens added after the memory tokens, in this order

QUESTION_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to "
    "answer to questions as briefly as possible."
)
SCP_QA_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all key "
    "information of the document and answer them sequentially."
)
PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information."
)

PARAPHRASE_INSTRUCTIONS = (
    "Background: {docs}\nSay the same thing in your own words.",
    "{docs}\nRewrite the passage above without changing what it means.",
    "Read this passage: {docs} Now tell it again in other words.",
    "Here is a text: {docs}\nWrite a second text that carries the same facts.",
    "Source: {docs}\nRestate everything the source says, worded differently.",
    "Please rephrase the following background. {docs}",
    "{docs} Put the information given here another way.",
    "Turn this into a fresh version that keeps every detail: {docs}",
    "Someone wrote: {docs}\nHow would you express this yourself?",
    "Passage: {docs}\nParaphrase:",
    "Write out, in new sentences, what is stated here: {docs}",
    "Keep the content, change the wording: {docs}",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """The place of a document's memory in a prompt.

    Attributes:
      slot: which of the row's selected documents, in rank order, from 0.
    """

    slot: int


@dataclasses.dataclass(frozen=True)
class Marker:
    """The place of one of the `MARKERS` in a prompt, by name."""

    name: str


Segment = str | Memory | Marker


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The input of the generator, and the target that it learns to write.

    Attributes:
      system: the system message.
      user: the user message, text and memories in order.
      target: the assistant's message; None to have it generated.
      bare: no chat: the content of the user message, the target and the end token follow each other, without a
        template, which would cost more tokens than a short text has. There is no system message.
    """

    system: str
    user: tuple[Segment, ...]
    target: str | None = None
    bare: bool = False


def question(
    question: str,
    documents: int | Sequence[str],
    target: str | None = None,
    beside: Sequence[str] = (),
    earlier: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """Return the prompt of a question over documents (instruct, end_to_end, answering).

    Args:
      question: the question's text.
      documents: a number of memory slots, or texts that stand in the prompt as they are, one a line (baselines).
      target: the answer; None to have it generated.
      beside: texts of some of the documents, best first, that stand after the memories, one a line: for names and
        numbers that a memory has lost.
      earlier: the messages before the question, (role, text) each; no released model was trained with them.
    """
    background = (*_background(documents), *(f"\n{text}" for text in beside))
    if earlier:
        background += ("\n\nConversation:", *(f"\n{role.capitalize()}: {text}" for role, text in earlier))
    return Prompt(QUESTION_SYSTEM, ("Background:\n", *background, f"\n\nQuestion:{question}"), target)


def scp_qa(questions: Sequence[str], answers: Sequence[str], documents: int | Sequence[str] = 1) -> Prompt:
    """Return the prompt for a document's key questions and answers (salient compressor pretraining, section 2.1)."""
    target = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in zip(questions, answers, strict=True))
    return Prompt(SCP_QA_SYSTEM, ("Background:\n", *_background(documents)), target)


def paraphrase(target: str | None, instruction: str, documents: int | Sequence[str] = 1) -> Prompt:
    """Return the prompt for a document's paraphrase (salient compressor pretraining, section 2.1).

    Args:
      target: the paraphrase; None to have it generated.
      instruction: text in which "{docs}" stands, once, where the document belongs.
      documents: as of `question`.

    Raises:
      ClaraError: an instruction without "{docs}", or with several.
    """
    if instruction.count("{docs}") != 1:
        raise ClaraError(
            f'instruction {instruction!r}: it must contain "{{docs}}" exactly once, where the document belongs'
        )
    before, after = instruction.split("{docs}")
    return Prompt(PARAPHRASE_SYSTEM, (before, *_background(documents), after), target)


def autoencode(target: str | None, documents: int | Sequence[str] = 1) -> Prompt:
    """Return the prompt for a document written out from its memories, after the released models' marker for it."""
    return Prompt("", (*_background(documents), Marker("<AE>")), target, bare=True)


def continuation(target: str | None, documents: int | Sequence[str] = 1) -> Prompt:
    """Return the prompt for the text that follows a document, from the document's memories."""
    return Prompt("", _background(documents), target, bare=True)


def paraphrase_instruction(record: Record, seed: int = 0) -> str:
    """Return one of `PARAPHRASE_INSTRUCTIONS`, a function of the document, the target and the seed alone."""
    digest = hashlib.blake2b(repr((seed, record.documents, record.answers)).encode(), digest_size=8).digest()
    return PARAPHRASE_INSTRUCTIONS[int.from_bytes(digest, "big") % len(PARAPHRASE_INSTRUCTIONS)]


def record_prompt(record: Record, stage: str, k: int, seed: int = 0, texts: Sequence[str] | None = None) -> Prompt:
    """Return the training prompt of a record, which depends on its kind.

    Args:
      record: of the stage.
      stage: one of `clara_jax.input_pipeline.records.ALL_STAGES`.
      k: memory slots in the prompt, fewer where the record has fewer documents; scp has one.
      seed: chooses the instruction of a paraphrase.
      texts: stand in the prompt instead of memories.
    """
    slots = 1 if stage in ONE_DOCUMENT else min(k, len(record.documents))
    documents = slots if texts is None else texts
    match record.kind:
        case "question":
            return question(record.questions[0], documents, next(iter(record.answers), None))
        case "paraphrase":
            return paraphrase(record.answers[0], paraphrase_instruction(record, seed), documents)
        case "autoencode":
            return autoencode(record.answers[0], documents)
        case "continue":
            return continuation(record.answers[0], documents)
    return scp_qa(record.questions, record.answers, documents)


def _background(documents: int | Sequence[str]) -> tuple[Segment, ...]:
    if isinstance(documents, int):
        return tuple(Memory(slot) for slot in range(documents))
    return ("\n".join(documents),)
