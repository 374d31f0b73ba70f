"""The logit lens: memory vectors through the LM head, read as words.

The paper shows two queries whose memories say words of the gold document that the question does not have. Here such
words are counted, beside those of other documents. A memory vector is a last-layer state behind the final norm, which
is what the LM head reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from clara_jax.bundle import Bundle
from clara_jax.data.tokenization import ClaraTokenizer
from clara_jax.distributed import gather
from clara_jax.evaluation.cases import Case
from clara_jax.evaluation.inside.section import compared, section
from clara_jax.evaluation.ways import gold
from clara_jax.method.clara import ClaraModel
from clara_jax.model.sharding import BATCH, put_batch

TOP = 50  # tokens of a memory vector, as in the paper
OTHERS = 10  # documents that a control is averaged over
EXAMPLES = 6
SHOWN, LETTERS = 16, 160  # words of an example, characters of its text
_WORD = re.compile(r"[^\W_]{2,}")

Words = frozenset[str]


def vocabulary_words(tokenizer: ClaraTokenizer) -> list[str]:
    """What each token of the base's vocabulary says, in lower case; "" where it is no word: special tokens,
    punctuation, single characters and parts of them."""
    texts = (tokenizer.decode([token]).strip().casefold() for token in range(tokenizer.vocab_size))
    return [text if _WORD.fullmatch(text) else "" for text in texts]


def content_words(text: str, vocabulary: Words) -> Words:
    """Words of a text in lower case, without English stop words; only those that some token says as a whole, for no
    other can be found."""
    return (frozenset(_WORD.findall(text.casefold())) & vocabulary) - ENGLISH_STOP_WORDS


def top_tokens(bundle: Bundle, memories: np.ndarray, batch_size: int) -> np.ndarray:
    """The `TOP` likeliest tokens of the base's vocabulary for each memory vector, the likeliest first.

    Args:
      memories: [N, M, E].
      batch_size: texts of a device call, which the mesh divides.

    Returns:
      int32 [N, M, TOP].
    """
    found = []
    for start in range(0, len(memories), batch_size):
        rows = memories[start : start + batch_size]
        padded = np.concatenate([rows, np.zeros((batch_size - len(rows), *rows.shape[1:]), rows.dtype)])
        with jax.set_mesh(bundle.mesh):
            tokens = _top_tokens(bundle.model, bundle.params, put_batch(padded, bundle.mesh))
        found.append(gather(tokens)[: len(rows)])
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def _top_tokens(model: ClaraModel, params: Any, memories: jax.Array) -> jax.Array:
    logits, _ = model.logits(params, memories.astype(model.dtype))
    whole = jax.reshard(logits, jax.P(BATCH, None, None))
    return jax.lax.top_k(whole, min(TOP, whole.shape[-1]))[1]


def read_words(tokens: np.ndarray, words: Sequence[str]) -> list[str]:
    """What the tokens [M, TOP] of a text's memory vectors say, none twice: what is likeliest for some vector first,
    then what comes second, and so on.

    Args:
      words: see `vocabulary_words`.
    """
    return list(dict.fromkeys(words[token] for token in tokens.T.ravel() if words[token]))


def found_shares(lenses: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> np.ndarray:
    """How much of some texts' words is in each lens: float [n], the mean over the texts that have words, NaN where
    none has."""
    shares = [
        [len(words & lens) / len(words) for words in texts if words] for lens, texts in zip(lenses, wanted, strict=True)
    ]
    return np.array([np.mean(own) if own else np.nan for own in shares])


def question_shares(
    cases: Sequence[Case], lenses: Sequence[Words], vocabulary: Words, seed: int
) -> dict[str, np.ndarray]:
    """`found_shares` of questions, by the texts whose words are looked for. Words of the question do not count.

    Args:
      cases: with known right documents (`gold`).
      seed: draws other documents.

    Returns:
      "gold": the right documents, as one text; "rest": other candidates; "others": right documents of other cases
      that share none with this; "question": the question itself, whose words do count.
    """
    golds = [{case.documents[i] for i in gold(case)} for case in cases]
    gold_words = [content_words("\n".join(texts), vocabulary) for texts in golds]
    asked = [content_words(case.question, vocabulary) for case in cases]
    rest = [
        [content_words(text, vocabulary) - own for text in case.documents if text not in texts]
        for case, texts, own in zip(cases, golds, asked, strict=True)
    ]
    drawn = _draw([[golds[i].isdisjoint(other) for other in golds] for i in range(len(cases))], seed)
    others = [[gold_words[j] - own for j in row] for row, own in zip(drawn, asked, strict=True)]
    wanted = {
        "gold": [[words - own] for words, own in zip(gold_words, asked, strict=True)],
        "rest": rest,
        "others": others,
        "question": [[own] for own in asked],
    }
    return {name: found_shares(lenses, texts) for name, texts in wanted.items()}


def document_shares(
    documents: Sequence[str], lenses: Sequence[Words], vocabulary: Words, seed: int
) -> dict[str, np.ndarray]:
    """`found_shares` of documents: "own", the document's words; "others", those of others.

    Args:
      documents: none twice.
      seed: draws the others.
    """
    words = [content_words(text, vocabulary) for text in documents]
    drawn = _draw(~np.eye(len(documents), dtype=bool), seed)
    return {
        "own": found_shares(lenses, [[own] for own in words]),
        "others": found_shares(lenses, [[words[j] for j in row] for row in drawn]),
    }


def lens_section(questions: dict[str, np.ndarray], documents: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """What `question_shares`, or {}, and `document_shares` have found."""
    text = (
        f"Each memory vector goes through the LM head; the {TOP} likeliest tokens that are words make the lens of its "
        "text. Counted is which share of a document's content words (no stop words; only words that are one token) the "
        "lens holds. "
    )
    rows = []
    if questions:
        text += (
            "Of the right documents' words that the question does not have, the question's memory says "
            f"{compared(questions['gold'], questions['others'], seed)} of words of other questions' documents, the "
            "control. "
        )
        said = {
            "gold": "its right documents, without the question's words",
            "rest": "its other candidates, likewise",
            "others": "other questions' right documents, likewise (control)",
            "question": "the question itself",
        }
        rows += [["a question", said[name], *_mean(values)] for name, values in questions.items()]
    text += (
        f"A document's memory says {compared(documents['own'], documents['others'], seed)} of other documents' words."
    )
    said = {"own": "the document", "others": "other documents (control)"}
    rows += [["a document", said[name], *_mean(values)] for name, values in documents.items()]
    return section("Logit lens: what memories say", text, ["memory of", "words of", "share found", "texts"], rows)


def examples_section(
    asked: Sequence[tuple[str, Sequence[str], str]], read: Sequence[tuple[str, Sequence[str]]], vocabulary: Words
) -> dict[str, Any]:
    """A few lenses, in words.

    Args:
      asked: questions, what their lenses say, and their right documents as one text.
      read: documents and what their lenses say.
    """
    rows = []
    for question, said, document in asked[:EXAMPLES]:
        new = content_words(document, vocabulary) - content_words(question, vocabulary)
        rows.append(["question", question, *_shown(said, new)])
    for document, said in read[:EXAMPLES]:
        shown = document if len(document) <= LETTERS else document[:LETTERS].rstrip() + " ..."
        rows.append(["document", shown, *_shown(said, content_words(document, vocabulary))])
    text = (
        f"The first {SHOWN} words of some lenses, and all words in them that count: of a question's those of its right "
        "documents that the question does not have, of a document's its own."
    )
    return section("Logit lens: examples", text, ["memory of", "text", "says first", "found"], rows)


def _draw(allowed: Sequence[Sequence[bool]] | np.ndarray, seed: int) -> list[np.ndarray]:
    """Of each row up to `OTHERS` allowed columns, none twice."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(row))[:OTHERS] for row in allowed]


def _mean(values: np.ndarray) -> tuple[float, int]:
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else float("nan")), len(known)


def _shown(said: Sequence[str], wanted: Words) -> tuple[str, str]:
    return ", ".join(said[:SHOWN]), ", ".join(word for word in said if word in wanted)
