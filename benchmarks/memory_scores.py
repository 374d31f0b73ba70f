"""Compare scores of a question and a document: memories in fixed number, and in proportion to the length.

    python -m benchmarks.memory_scores --data DIR/squad [--checkpoint smollm2-clara] [--limit 300] [--steps 40]

The compressor is frozen and compresses each passage once. For each score a fresh query reasoner, a copy of the
compressor, is trained by the contrastive loss of the `retrieval` stage, among all training passages, and ranks the
held-out ones. All are `clara_jax.method.reranker.late_interaction`, of different vectors: all memories one after
another as one (the score of a fixed number), their mean, or each by itself ("late", the score of a proportional one).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32

from clara_jax import command
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.errors import ClaraError
from clara_jax.inference.encode import encode_texts
from clara_jax.input_pipeline.batches import Sequences, with_memory
from clara_jax.input_pipeline.drawn import drawn
from clara_jax.input_pipeline.records import Record, read_records
from clara_jax.memory_count import FIXED, PROPORTIONAL
from clara_jax.method.compressor import encode
from clara_jax.method.parameters import merge, split
from clara_jax.method.reranker import contrastive_loss, late_interaction, score_vectors
from clara_jax.method.stages import STAGES, inherit
from clara_jax.model.sharding import make_mesh, put_batch

BATCH = 16  # questions of a step
TEMPERATURE = 0.02
LEARNING_RATE = 1e-3
QUESTIONS, MOST = 2, 9  # questions of a held-out passage, and of one of training


def score_by(
    vectors: Callable[[jax.Array], jax.Array], queries: jax.Array, documents: jax.Array
) -> Float32[jax.Array, "Q D"]:
    """Return the scores of all questions and all documents by some vectors [n, S, X] of their memories [n, M, E]."""
    compared = vectors(documents)
    return late_interaction(vectors(queries), compared, jnp.linalg.norm(compared, axis=-1))


whole, each = (partial(score_by, partial(score_vectors, memory_count=count)) for count in (FIXED, PROPORTIONAL))
means = partial(score_by, partial(jnp.sum, axis=1, keepdims=True))  # a sum has the direction of the mean
SCORES: dict[tuple[str, str], Callable[[jax.Array, jax.Array], jax.Array]] = {
    (FIXED, "one after another"): whole,
    (FIXED, "means"): means,
    (FIXED, "late"): each,
    (PROPORTIONAL, "means"): means,
    (PROPORTIONAL, "late"): each,
}


class Passages:
    """Passages with their memories under the frozen compressor, and questions about them.

    Attributes:
      memories: float32 [D, M, E].
      questions: token ids, and the number of the passage that each is about.
    """

    def __init__(self, bundle: Bundle, params: Any, records: Sequence[Record], most: int):
        encode_documents = bundle.tokenizer.encode_documents
        texts = encode_documents([record.documents[0] for record in records])
        shape = bundle.model.clara.memory_tokens, bundle.model.config.embed_dim
        self.memories = np.zeros((len(texts), *shape), np.float32)
        for places, found in encode_texts(bundle.model, params, "compressor", texts, bundle.tokenizer, bundle.mesh, 8):
            self.memories[places] = found
        asked = [(text, i) for i, record in enumerate(records) for text in record.questions[:most]]
        self.questions = [
            (np.array(ids, np.int32), about)
            for ids, (_, about) in zip(encode_documents([text for text, _ in asked]), asked, strict=True)
        ]


def read(path: str, count: int) -> list[Record]:
    """Draw records of questions about different passages."""
    found = {record.documents[0]: record for record in read_records(path, "scp") if record.kind == "qa"}
    return drawn(list(found.values()), count)


def train(
    bundle: Bundle, params: Any, score: Callable[[jax.Array, jax.Array], jax.Array], passages: Passages, steps: int
) -> tuple[Any, float]:
    """Return the parameters after so many steps of the contrastive loss, and the mean loss of the last ten."""
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, max(1, steps // 10), steps))
    trained, frozen = split(params, STAGES["retrieval"].trains)
    state, documents = optimizer.init(trained), jnp.asarray(passages.memories)

    @jax.jit
    def step(
        trained: Any, state: Any, frozen: Any, documents: jax.Array, texts: Sequences, about: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        def loss(trained: Any) -> jax.Array:
            queries = encode(bundle.model, merge(trained, frozen), "query_reasoner", texts).memory[:, 0]
            scores = score(queries.astype(jnp.float32), documents)
            positives = about[:, None] == jnp.arange(len(documents))
            return jnp.mean(contrastive_loss(scores, positives, jnp.ones_like(positives), TEMPERATURE))

        value, gradient = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value

    rng, losses = np.random.default_rng(0), []
    width = max(len(ids) for ids, _ in passages.questions)
    for _ in range(steps):
        some = [passages.questions[i] for i in rng.choice(len(passages.questions), BATCH, replace=False)]
        texts = with_memory([ids for ids, _ in some], width, bundle.tokenizer, bundle.tokenizer.memories_of(width))
        about = np.array([about for _, about in some])
        with jax.set_mesh(bundle.mesh):
            trained, state, value = step(trained, state, frozen, documents, *put_batch((texts, about), bundle.mesh))
        losses.append(float(value))
    return merge(trained, frozen), float(np.mean(losses[-10:]))


def recall(
    bundle: Bundle, params: Any, score: Callable[[jax.Array, jax.Array], jax.Array], passages: Passages
) -> tuple[float, float]:
    """Return Recall@1 and Recall@5 of the questions' passages among all."""
    texts = [ids for ids, _ in passages.questions]
    queries = np.zeros((len(texts), *passages.memories.shape[1:]), np.float32)
    model, tokenizer = bundle.model, bundle.tokenizer
    for places, found in encode_texts(model, params, "query_reasoner", texts, tokenizer, bundle.mesh, BATCH):
        queries[places] = found
    documents = jnp.asarray(passages.memories)
    parts = [score(jnp.asarray(queries[i : i + BATCH]), documents) for i in range(0, len(texts), BATCH)]
    scores = np.concatenate(parts)
    right = scores[np.arange(len(texts)), [about for _, about in passages.questions]]
    ranks = np.sum(scores > right[:, None], axis=1)
    return float(np.mean(ranks < 1)), float(np.mean(ranks < 5))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("memory_scores", __doc__, package="benchmarks")
    parser.add_argument("--data", required=True, metavar="DIR", help="with stage1_pretrain_qa.{train,dev}.jsonl")
    command.add_option(parser, "--checkpoint", "smollm2-clara", default="smollm2-clara")
    command.add_option(parser, "--limit", "training passages (300); two thirds as many are held out", default=300)
    parser.add_argument("--steps", type=int, default=40, metavar="N", help=f"of {BATCH} questions each (40)")
    names = ["/".join(key) for key in SCORES]
    parser.add_argument("--score", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names} (all)")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    opened = opening.load(arguments.checkpoint, make_mesh(1, 1, devices=jax.devices()[:1]))
    train_records, held_out = (
        read(f"{arguments.data}/stage1_pretrain_qa.{part}.jsonl", count)
        for part, count in (("train", arguments.limit), ("dev", 2 * arguments.limit // 3))
    )
    if sum(len(record.questions[:MOST]) for record in train_records) < BATCH:
        raise ClaraError(f"--limit: the training passages have fewer than the {BATCH} questions of a step; raise it")
    print(f"{len(train_records)} training passages, {len(held_out)} held out; Recall@1, Recall@5 before and after")
    made: dict[str, tuple[Bundle, Any, list[Passages]]] = {}
    for (count, name), score in SCORES.items():
        if f"{count}/{name}" not in arguments.score:
            continue
        if count not in made:
            bundle = opened.at_rate(None, count)
            params = inherit(STAGES["retrieval"], bundle.params, ())
            asked = (train_records, MOST), (held_out, QUESTIONS)
            made[count] = bundle, params, [Passages(bundle, params, *some) for some in asked]
        bundle, params, (seen, unseen) = made[count]
        before = recall(bundle, params, score, unseen)
        after, loss = train(bundle, params, score, seen, arguments.steps)
        values = " ".join(f"{100 * value:.1f}" for value in (*before, *recall(bundle, after, score, unseen)))
        print(f"{count}, {name}: {values}; loss {loss:.3f}; {len(unseen.questions)} questions", flush=True)


if __name__ == "__main__":
    command.run(main)
