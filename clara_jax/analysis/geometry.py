"""Geometry of memories: their distance from the states of their text, from each other, and their spread in a document.

The loss L_MSE (section 2.2) is to bring memories close to the states of their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.decomposition import PCA

from clara_jax.analysis.section import BLUE, ORANGE, draw, embed, legend, percent, section
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.encode import encode_texts
from clara_jax.input_pipeline.batches import Sequences
from clara_jax.memory_count import FIXED, existing
from clara_jax.method.clara import ClaraModel
from clara_jax.method.compressor import Encoded, encode
from clara_jax.metrics.cosine import cosines

LEAST = 3  # documents, for which the statistics are defined
DIRECTIONS = (2, 10)


def document_states(bundle: Bundle, documents: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents' memories, float32 [n, M, E], and the mean states at their text, float32 [n, E].

    Args:
      bundle: the model.
      documents: n of them; long ones are cut.
      batch_size: texts of a device call, a multiple of the mesh's batch shards.
    """
    config, count = bundle.model.config, len(documents)
    memories = np.zeros((count, bundle.model.clara.memory_tokens, config.embed_dim), np.float32)
    texts = np.zeros((count, config.embed_dim), np.float32)
    ids = bundle.tokenizer.encode_documents(documents)
    arguments = ids, bundle.tokenizer, bundle.mesh, batch_size, _encode
    for places, encoded in encode_texts(bundle.model, bundle.params, "compressor", *arguments):
        memories[places], texts[places] = encoded.memory[:, 0], encoded.text_mean[:, 0]
    return memories, texts


@partial(jax.jit, static_argnums=(0, 1))
def _encode(model: ClaraModel, role: str, params: Any, texts: Sequences) -> Encoded:
    return encode(model, params, role, texts)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Euclidean distances between all a [n, E] and all b [m, E]: [n, m]."""
    return np.sqrt(np.maximum(np.sum(a * a, 1)[:, None] + np.sum(b * b, 1) - 2 * a @ b.T, 0))


def on_and_off_diagonal(matrix: np.ndarray) -> tuple[float, float]:
    """Return the means on and off the diagonal of [n, n], n at least 2."""
    n = len(matrix)
    trace = float(np.trace(matrix))
    return trace / n, (float(matrix.sum()) - trace) / (n * (n - 1))


def effective_rank(vectors: np.ndarray) -> float:
    """Return the effective rank of [M, E] (Roy and Vetterli 2007).

    It is exp of the entropy of the normalised singular values: 1 where all vectors are parallel, M where they are
    orthogonal and equally long, 0 where all are zero.
    """
    values = np.linalg.svd(vectors, compute_uv=False)
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def explained(vectors: np.ndarray, counts: Sequence[int]) -> list[float]:
    """Return the share of the variance of [n, E] in its first principal directions, for each count of them.

    NaN where there is no variance.
    """
    values = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    return [float(values[:count].sum() / values.sum()) if values.any() else float("nan") for count in counts]


def mixing(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of points of two clouds [n, E] whose nearest neighbour is of the other cloud.

    It is about 0.5 where both have the same distribution.
    """
    points = np.concatenate([a, b])
    matrix = distances(points, points)
    np.fill_diagonal(matrix, np.inf)
    label = np.arange(len(points)) < len(a)
    return float(np.mean(label[matrix.argmin(1)] != label))


def geometry_section(memories: np.ndarray, texts: np.ndarray, seed: int, memory_count: str) -> dict[str, Any]:
    """Return the section of a report on the geometry of memories.

    Args:
      memories: [n, M, E], n at least `LEAST`.
      texts: mean states of their texts, [n, E].
      seed: of the random control.
      memory_count: see `clara_jax.memory_count`.
    """
    memories, texts = memories.astype(np.float64), texts.astype(np.float64)
    count, tokens, _ = memories.shape
    there = existing(memories, memory_count)
    means = memories.sum(1) / there.sum(1, keepdims=True)
    whole = memories.reshape(count, -1) if memory_count == FIXED else means  # memories of no common places
    apart, turned = distances(means, texts), cosines(means, texts)
    same, other = on_and_off_diagonal(apart)
    nearest = float(np.mean(apart.argmin(1) == np.arange(count)))
    clouds = float(np.linalg.norm(means.mean(0) - texts.mean(0)))
    between = [cosines(x, x)[np.triu_indices(count, 1)] for x in (whole, texts)]
    random = np.random.default_rng(seed).standard_normal(memories.shape)
    sets = [[x[which] for x, which in zip(each, there, strict=True)] for each in (memories, random)]
    ranks, random_ranks = (
        [np.mean([effective_rank(x - taken_away * x.mean(0)) for x in each]) for taken_away in (0, 1)] for each in sets
    )
    spread = [float(np.sqrt(np.mean(np.sum((x - x.mean(0)) ** 2, 1)))) for x in (means, texts)]
    rows = [
        ["distance of a document's mean memory state from the mean state of its text", same, other, "text of others"],
        ["the same as cosine", *on_and_off_diagonal(turned), "text of others"],
        ["share of documents whose nearest text is their own", nearest, 1 / count, "by chance"],
        ["distance between the middles of both clouds", clouds, spread[1], "spread of the texts"],
        ["spread of the mean memory states", spread[0], spread[1], "of the texts"],
        [
            "share of points whose nearest other is of the other kind",
            mixing(means, texts),
            0.5,
            "if they were one cloud",
        ],
        ["cosine between the memories of two documents", *(x.mean() for x in between), "mean states of their texts"],
        ["standard deviation of these cosines", *(x.std() for x in between), "mean states of their texts"],
    ]
    for directions, of_memories, of_texts in zip(
        DIRECTIONS, explained(means, DIRECTIONS), explained(texts, DIRECTIONS), strict=True
    ):
        rows.append(
            [f"variance of the means in {directions} directions", of_memories, of_texts, "mean states of texts"]
        )
    rows += [
        [f"effective rank of a document's {tokens} memory vectors", ranks[0], random_ranks[0], "random vectors"],
        ["the same, their mean taken away", ranks[1], random_ranks[1], "random vectors"],
    ]
    text = (
        f"Of {count} documents, the mean memory state lies at {same:.3g} from the mean state of its own text and at "
        f"{other:.3g} from other texts; for {percent(nearest)} of them the own text is the nearest "
        f"({percent(1 / count)} by chance). Memories of two documents have a cosine of {between[0].mean():.3f} on "
        f"average, with a standard deviation of {between[0].std():.3f}: the smaller it is, the more alike all memories "
        f"are to the ranking. The {tokens} memory vectors of a document use an effective rank of {ranks[0]:.2f} of at "
        f"most {tokens}. The picture shows both kinds of means in the two directions of most variance."
    )
    picture = _picture(means, texts)
    return section("Geometry of memories", text, ["measure", "value", "beside it", "which is"], rows, picture)


def _picture(means: np.ndarray, texts: np.ndarray) -> str:
    at, count = PCA(2, svd_solver="full").fit_transform(np.concatenate([means, texts])), len(means)
    figure, (panel,) = draw(1)
    for points, colour, label in ((at[:count], BLUE, "memory"), (at[count:], ORANGE, "text")):
        panel.scatter(points[:, 0], points[:, 1], s=9, color=colour, alpha=0.7, linewidths=0, label=label)
    panel.set_title("PCA")
    panel.set_xticks([])
    panel.set_yticks([])
    legend(panel)
    return embed(figure)
