"""Measure what last-layer states of an untrained model say of a document: why a generator does not read them.

    python -m benchmarks.fresh_states --data DIR/squad/stage1_pretrain_qa.dev.jsonl [--base smollm2] [--limit 32]

The documents are drawn from the file's records. A fresh adapter does nothing: a memory is the base's last-layer state
at a memory token behind the text.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
from jaxtyping import Float

from clara_jax import command
from clara_jax.analysis.geometry import document_states
from clara_jax.checkpoints import opening
from clara_jax.input_pipeline.drawn import drawn
from clara_jax.input_pipeline.records import read_records
from clara_jax.method.clara import ClaraConfig
from clara_jax.metrics.cosine import cosines
from clara_jax.model.output_major import OutputMajor
from clara_jax.model.sharding import make_mesh

CLARA = ClaraConfig(doc_max_length=256, compress_rate=16)
BATCH = 8


def rms(x: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def common_share(vectors: Float[np.ndarray, "n E"]) -> float:
    """Return the share of the mean squared norm that is the squared norm of the mean: 1 where all are equal."""
    return float(np.square(vectors.mean(0)).sum() / np.square(vectors).sum(1).mean())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("fresh_states", __doc__, package="benchmarks")
    parser.add_argument("--data", required=True, metavar="FILE", help="records of scp, each with one document")
    command.add_option(parser, "--base", "smollm2", default="smollm2")
    command.add_option(parser, "--limit", "documents (32)", default=32)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    bundle = opening.from_base(arguments.base, CLARA, make_mesh(1, 1, devices=jax.devices()[:1]), "float32")
    records = read_records(arguments.data, "scp")
    documents = drawn(list(dict.fromkeys(record.documents[0] for record in records)), arguments.limit)
    memories, texts = document_states(bundle, documents, BATCH)
    values = bundle.params["base"]["embed"]["table"]
    table = np.asarray(values.values if isinstance(values, OutputMajor) else values, np.float32)
    encoded = map(np.asarray, bundle.tokenizer.encode_documents(documents))
    inputs = [table[ids[ids < len(table)]] for ids in encoded]  # without added tokens
    size = CLARA.compress_rate
    runs = [rows[start : start + size].mean(0) for rows in inputs for start in range(0, len(rows) - size + 1, size)]
    channels = np.sort(np.sqrt(np.square(memories).mean((0, 1))))[::-1]
    each = memories.reshape(len(memories), -1)
    between = cosines(each, each)[~np.eye(len(each), dtype=bool)]
    low, high = np.percentile(between, (5, 95))
    lines = (
        f"RMS of input embeddings {rms(np.concatenate(inputs)):.2f}, of states at memory tokens {rms(memories):.2f}:",
        f"{channels[0]:.0f} and {channels[1]:.0f} in the largest channels, {np.median(channels):.2f} in the median one",
        f"cosines of two of {len(each)} documents' memories: {low:.2f} to {high:.2f} in 90% of pairs",
        f"common to all, of the squared norm: {common_share(np.concatenate(memories)):.0%} of memories,",
        f"{common_share(texts):.0%} of texts' mean states, {common_share(np.stack(runs)):.0%} of {size} inputs' means",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    command.run(main)
