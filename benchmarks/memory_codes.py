"""Compare product codes of memories with whole numbers at equal bytes: reconstruction and ranking, without a model.

    python -m benchmarks.memory_bytes --data FILE --limit 16 --memories memories.safetensors
    python -m benchmarks.memory_codes --memories memories.safetensors

A product code cuts each memory vector, divided by its length, into groups of numbers and keeps of each group the number
of the nearest of 256 centroids, which k-means finds for each group from 8,192 vectors; two in a row ("residual") code
what the first one leaves. Centroids are trained on one half of the passages and measured on the other: a store grows
after they are made.
"Equalised" whole numbers are int8 and int4 of vectors whose every place was divided by its root mean square over the
first half. The error is |x - x'|² / |x|². Ranking is by the cosine of whole passages: each of the second half asks, and
is coded in the ranking of the others; "same first five" is the share of the exact ranking's first five that is found.
Codes are read from Python here, so nothing is said of their speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax import command
from clara_jax.errors import ClaraError
from clara_jax.results import Memories
from clara_jax.retrieval.encodings import MemoryEncoding

CENTROIDS = 256
FIRST = 5  # of a ranking
_SCALE_BYTES = 4  # of a vector's length
_ROUNDS = 8  # of k-means
_TRAINED_ON = 8192  # vectors
Coder = Callable[[np.ndarray], np.ndarray]  # vectors float32 [N, E] -> what is read back, [N, E]


class ProductCode:
    """Codes of vectors: of each group of numbers, one of 256 centroids in each stage.

    Args:
      vectors: what the centroids are trained on, float32 [N, E].
      group: numbers of a group; E is a multiple of it.
      stages: 1, or 2 for a residual code.
      seed: of the first centroids.
    """

    def __init__(self, vectors: np.ndarray, group: int, stages: int = 1, seed: int = 0):
        self._group, rng = group, np.random.default_rng(seed)
        sample = rng.choice(len(vectors), min(len(vectors), _TRAINED_ON), replace=False)
        rest = self._groups(_directions(vectors[sample])[0])
        self._books = []
        for _ in range(stages):
            book = np.stack([_centroids(part, rng) for part in rest])
            self._books.append(book)
            rest = rest - _nearest(rest, book)

    @property
    def centroid_bytes(self) -> int:
        """The bytes of all centroids, as float16, which a store holds once."""
        return sum(book.size for book in self._books) * 2

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return what is read back of coded vectors [N, E]."""
        directions, lengths = _directions(vectors)
        rest = self._groups(directions)
        found = np.zeros_like(rest)
        for book in self._books:
            near = _nearest(rest, book)
            found, rest = found + near, rest - near
        return found.transpose(1, 0, 2).reshape(vectors.shape) * lengths

    def _groups(self, vectors: np.ndarray) -> np.ndarray:
        """Return [E / group, N, group]."""
        return vectors.reshape(len(vectors), -1, self._group).transpose(1, 0, 2)


def _directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
    return vectors / lengths, lengths


def _centroids(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 256 centroids of points [N, d] by Lloyd's algorithm; a centroid without points takes a random one."""
    book = points[rng.choice(len(points), CENTROIDS, replace=len(points) < CENTROIDS)]
    for _ in range(_ROUNDS):
        places = _places(points, book)
        counts = np.bincount(places, minlength=CENTROIDS)
        sums = np.stack([np.bincount(places, column, CENTROIDS) for column in points.T], axis=1)
        book = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], book).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        book[empty] = points[rng.choice(len(points), len(empty))]
    return book


def _places(points: np.ndarray, book: np.ndarray) -> np.ndarray:
    return np.argmin((book**2).sum(-1) - 2 * points @ book.T, axis=1)


def _nearest(groups: np.ndarray, books: np.ndarray) -> np.ndarray:
    return np.stack([book[_places(points, book)] for points, book in zip(groups, books, strict=True)])


def whole_numbers(name: str, width: int, scale: np.ndarray | None = None) -> Coder:
    """Return the coder of int8 or int4 (`MemoryEncoding`), of vectors that are divided by a scale [E] beforehand."""
    encoding = MemoryEncoding(name, 1, width)
    by = np.ones(width, np.float32) if scale is None else scale
    return lambda x: encoding.decode(encoding.encode((x / by)[:, None]))[:, 0].astype(np.float32) * by


def measure(memories: np.ndarray) -> list[dict[str, Any]]:
    """Return a row of figures for each code, those of fewer bytes last.

    Args:
      memories: float [n, M, E], of at least 8 passages; E is a multiple of 8.
    """
    count, tokens, width = memories.shape
    order = np.random.default_rng(0).permutation(count)
    vectors = memories.astype(np.float32)[order]
    train, test = vectors[: count // 2].reshape(-1, width), vectors[count // 2 :]
    scale = np.sqrt((train**2).mean(axis=0)) + 1e-8
    packed = {name: MemoryEncoding(name, tokens, width).size for name in ("int8", "int4", "int4-32")}
    coders: list[tuple[str, int, Callable[[], Coder]]] = [
        ("int8", packed["int8"], lambda: whole_numbers("int8", width)),
        ("int8, equalised", packed["int8"], lambda: whole_numbers("int8", width, scale)),
        ("int4", packed["int4"], lambda: whole_numbers("int4", width)),
        ("int4-32", packed["int4-32"], lambda: whole_numbers("int4-32", width)),
        ("int4, equalised", packed["int4"], lambda: whole_numbers("int4", width, scale)),
    ]
    for group, stages in ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
        name = f"{'residual' if stages > 1 else 'product'} code, groups of {group}"
        size = tokens * (width // group * stages + _SCALE_BYTES)
        coders.append((name, size, partial(ProductCode, train, group, stages)))
    rows = []
    for name, size, make in coders:
        coder = make()
        read = coder(test.reshape(-1, width)).reshape(test.shape)
        rows.append({"code": name, "bytes": size, **_figures(test, read)})
        rows[-1]["centroid bytes"] = coder.centroid_bytes if isinstance(coder, ProductCode) else 0
        print(_line(rows[-1]), flush=True)
    return rows


def _figures(test: np.ndarray, read: np.ndarray) -> dict[str, float]:
    error = ((test - read) ** 2).sum(axis=(1, 2)) / (test**2).sum(axis=(1, 2))
    exact, coded = (x.reshape(len(x), -1) for x in (test, read))
    exact, coded = _directions(exact)[0], _directions(coded)[0]
    wanted, found = exact @ exact.T, exact @ coded.T
    agree = []
    for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
        rest = np.delete(np.arange(len(one)), place)
        first, second = (set(rest[np.argsort(-scores[rest], kind="stable")[:FIRST]]) for scores in (one, other))
        agree.append(len(first & second) / min(FIRST, len(rest)))
    others = ~np.eye(len(test), dtype=bool)
    return {
        "error": float(error.mean()),
        "cosine error": float(np.abs(wanted - found)[others].mean()),
        "same first five": 100 * float(np.mean(agree)),
    }


def _line(row: dict[str, Any]) -> str:
    figures = f"{row['error']:.5f} | {row['cosine error']:.5f} | {row['same first five']:.1f}"
    return f"| {row['code']} | {row['bytes']:,} | {row['centroid bytes']:,} | {figures} |"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("memory_codes", __doc__, package="benchmarks")
    parser.add_argument("--memories", required=True, metavar="FILE", help="of benchmarks.memory_bytes --memories")
    command.add_option(parser, "--limit", "of passages (256)", default=256)
    command.add_option(parser, "--output", "all figures, as JSON")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    array = Memories.load(arguments.memories).array[: arguments.limit]
    if len(array) < 8 or array.shape[2] % 8:
        raise ClaraError(f"--memories: {arguments.memories}: at least 8 memories of a width that 8 divides are needed")
    print(f"{len(array)} passages of {array.shape[1]} × {array.shape[2]}, half of them to train on\n")
    print("| code | bytes a passage | bytes of centroids | error | error of a cosine | same first five, % |")
    print("|---" * 6 + "|")
    rows = measure(array)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
