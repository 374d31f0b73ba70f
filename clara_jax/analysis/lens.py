"""The logit lens: memory vectors decoded by the LM head into words.

The paper shows two queries whose memories decode to words of the gold document that the question does not have. Here
such words are counted, with those of other documents as the control. A memory vector is a last-layer state after the
final norm, which is the input of the LM head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from clara_jax.analysis.section import compared, section
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.distributed import gather
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraModel
from clara_jax.metrics.cases import Case
from clara_jax.metrics.controls import gold
from clara_jax.model.sharding import BATCH, put_batch

TOP = 50  # tokens of a memory vector, as in the paper
OTHERS = 10  # documents that a control is averaged over
EXAMPLES = 6
SHOWN, LETTERS = 16, 160  # words of an example, characters of its text
_WORD = re.compile(r"[^\W_]{2,}")

Words = frozenset[str]


def vocabulary_words(tokenizer: ClaraTokenizer) -> list[str]:
    """Return the word of each token of the base's vocabulary, in lower case.

    It is "" for tokens that are no word: special tokens, punctuation, single characters and parts of them.
    """
    texts = (tokenizer.decode([token]).strip().casefold() for token in range(tokenizer.vocab_size))
    return [text if _WORD.fullmatch(text) else "" for text in texts]


def content_words(text: str, vocabulary: Words) -> Words:
    """Return the words of a text in lower case, without English stop words.

    Only words of the vocabulary, which are one token, are kept: the lens can find no others.
    """
    return (frozenset(_WORD.findall(text.casefold())) & vocabulary) - ENGLISH_STOP_WORDS


def top_tokens(bundle: Bundle, memories: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the `TOP` likeliest tokens of the base's vocabulary for each memory vector, the likeliest first.

    Args:
      bundle: the model.
      memories: [N, M, E].
      batch_size: texts of a device call, a multiple of the mesh's batch shards.

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
    """Return the distinct words among the likeliest tokens of a text's memory vectors.

    Those that are the likeliest of some vector come first, then the second likeliest, and so on.

    Args:
      tokens: int [M, TOP], see `top_tokens`.
      words: see `vocabulary_words`.
    """
    found = (words[int(token)] for token in tokens.T.ravel())
    return list(dict.fromkeys(word for word in found if word))


def found_shares(lenses: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> np.ndarray:
    """Return the share of texts' words in each lens, float [n].

    It is the mean over a lens's texts that have words, NaN where none has.
    """
    shares = [
        [len(words & lens) / len(words) for words in texts if words] for lens, texts in zip(lenses, wanted, strict=True)
    ]
    return np.array([np.mean(of_texts) if of_texts else np.nan for of_texts in shares])


def question_shares(
    cases: Sequence[Case], lenses: Sequence[Words], vocabulary: Words, seed: int
) -> dict[str, np.ndarray]:
    """Return `found_shares` of questions, by the texts whose words are searched. Words of the question do not count.

    Args:
      cases: with known right documents (`gold`).
      lenses: words of each question's lens.
      vocabulary: words that can be found.
      seed: draws other documents.

    Returns:
      "gold": the right documents, as one text; "rest": other candidates; "others": right documents of other cases
      that share none with this; "question": the question itself, whose words do count.
    """
    golds = [{case.documents[i] for i in gold(case)} for case in cases]
    gold_words = [content_words("\n".join(texts), vocabulary) for texts in golds]
    asked = [content_words(case.question, vocabulary) for case in cases]
    rest = [
        [content_words(text, vocabulary) - of_question for text in case.documents if text not in texts]
        for case, texts, of_question in zip(cases, golds, asked, strict=True)
    ]
    drawn = _draw([[golds[i].isdisjoint(other) for other in golds] for i in range(len(cases))], seed)
    others = [[gold_words[j] - of_question for j in row] for row, of_question in zip(drawn, asked, strict=True)]
    wanted = {
        "gold": [[words - of_question] for words, of_question in zip(gold_words, asked, strict=True)],
        "rest": rest,
        "others": others,
        "question": [[of_question] for of_question in asked],
    }
    return {name: found_shares(lenses, texts) for name, texts in wanted.items()}


def document_shares(
    documents: Sequence[str], lenses: Sequence[Words], vocabulary: Words, seed: int
) -> dict[str, np.ndarray]:
    """Return `found_shares` of documents: "own", the document's words; "others", those of others.

    Args:
      documents: none twice.
      lenses: words of each document's lens.
      vocabulary: words that can be found.
      seed: draws the others.
    """
    words = [content_words(text, vocabulary) for text in documents]
    drawn = _draw(~np.eye(len(documents), dtype=bool), seed)
    return {
        "own": found_shares(lenses, [[of_document] for of_document in words]),
        "others": found_shares(lenses, [[words[j] for j in row] for row in drawn]),
    }


def lens_section(questions: dict[str, np.ndarray], documents: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Return the section of a report on the logit lens.

    Args:
      questions: of `question_shares`, or {}.
      documents: of `document_shares`.
      seed: of the intervals.
    """
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
        labels = {
            "gold": "its right documents, without the question's words",
            "rest": "its other candidates, likewise",
            "others": "other questions' right documents, likewise (control)",
            "question": "the question itself",
        }
        rows += [["a question", labels[name], *_mean(values)] for name, values in questions.items()]
    text += (
        f"A document's memory says {compared(documents['own'], documents['others'], seed)} of other documents' words."
    )
    labels = {"own": "the document", "others": "other documents (control)"}
    rows += [["a document", labels[name], *_mean(values)] for name, values in documents.items()]
    return section("Logit lens: what memories say", text, ["memory of", "words of", "share found", "texts"], rows)


def examples_section(
    asked: Sequence[tuple[str, Sequence[str], str]], read: Sequence[tuple[str, Sequence[str]]], vocabulary: Words
) -> dict[str, Any]:
    """Return the section of a report with a few lenses in words.

    Args:
      asked: questions, the words of their lenses, and their right documents as one text.
      read: documents and the words of their lenses.
      vocabulary: words that can be found.
    """
    rows = []
    for question, decoded, document in asked[:EXAMPLES]:
        new = content_words(document, vocabulary) - content_words(question, vocabulary)
        rows.append(["question", question, *_shown(decoded, new)])
    for document, decoded in read[:EXAMPLES]:
        shown = document if len(document) <= LETTERS else document[:LETTERS].rstrip() + " ..."
        rows.append(["document", shown, *_shown(decoded, content_words(document, vocabulary))])
    text = (
        f"The first {SHOWN} words of some lenses, and all words in them that count: of a question's those of its right "
        "documents that the question does not have, of a document's its own."
    )
    return section("Logit lens: examples", text, ["memory of", "text", "says first", "found"], rows)


def _draw(allowed: Sequence[Sequence[bool]] | np.ndarray, seed: int) -> list[np.ndarray]:
    """Return up to `OTHERS` distinct allowed columns of each row."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(row))[:OTHERS] for row in allowed]


def _mean(values: np.ndarray) -> tuple[float, int]:
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else float("nan")), len(known)


def _shown(decoded: Sequence[str], wanted: Words) -> tuple[str, str]:
    return ", ".join(decoded[:SHOWN]), ", ".join(word for word in decoded if word in wanted)
