"""Time a question: against a warm store, with its candidates compressed first, and with their text in the prompt.

    python -m benchmarks.ask [--base smollm2] [--chunks 200] [--questions 8] [--candidates 20] [--k 5]

Three ways to an answer of the same model from as many documents, timed in turns in one run: "store" reads the question,
searches the store and answers from k memories; "compress" compresses the question's candidates, ranks them and answers
from k memories, as the released code does; "text" gives the base model the text of k documents. Adapters are fresh:
the answers mean nothing, and take as long. Answers end after so many tokens in any case.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
import warnings

import jax
import numpy as np
from tqdm import tqdm

from clara_jax import command
from clara_jax.api import Clara
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline import prompts
from clara_jax.method.clara import ClaraConfig
from clara_jax.model.sharding import make_mesh
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import DEFAULT_ENCODING
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.text.documents import CorpusDocument

WORDS = (
    "the a of in and to was by on for river town king ship year people house church war city small old new first "
    "north built known called great later between during family state under court island school music water"
).split()


class _Endless(Bundle):
    @property
    def end_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.total_vocab,)  # no token


def endless(bundle: Bundle) -> Bundle:
    """Return the same model, every answer of which is as long as may be."""
    return _Endless(**{field.name: getattr(bundle, field.name) for field in dataclasses.fields(bundle)})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("ask", __doc__, package="benchmarks")
    option = command.add_option
    option(parser, "--base", "smollm2", default="smollm2")
    option(parser, "--precision", "float32", default="float32")
    parser.add_argument("--chunks", type=int, default=200, metavar="N", help="of the store (200)")
    parser.add_argument("--questions", type=int, default=8, metavar="N", help="measurements of each way (8)")
    option(parser, "--candidates", "20", default=20)
    option(parser, "--k", "5", default=5)
    option(parser, "--max-new-tokens", "16", default=16)
    command.add_renamed_option(parser, "--new-tokens", "--max-new-tokens", type=int)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    warnings.filterwarnings("ignore", message="this checkpoint has no trained query reasoner")
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    config = ClaraConfig(max_length=4096)
    bundle = endless(opening.from_base(arguments.base, config, mesh, arguments.precision))
    clara = Clara(bundle, batch_size=1)
    compressing = Clara(bundle, batch_size=arguments.candidates)

    rng, tokenizer = np.random.default_rng(0), bundle.tokenizer
    texts = [" ".join(rng.choice(WORDS, 225)) for _ in range(arguments.chunks)]
    lengths = [len(ids) for ids in tokenizer.encode_documents(texts)]
    asked = [f"What is the {' '.join(rng.choice(WORDS, 8))}?" for _ in range(arguments.questions + 1)]
    sampling, k = Sampling(arguments.max_new_tokens), arguments.k
    with tempfile.TemporaryDirectory() as folder:
        sizes = bundle.memory_sizes
        store = DocumentStore.open_or_make(folder, bundle.compressor_fingerprint(), DEFAULT_ENCODING, *sizes)
        pipeline = RagPipeline(clara, store)
        indexer = RagPipeline(compressing, store)
        with tqdm(total=len(texts), unit=" chunks", desc="indexing") as bar:
            began = time.perf_counter()
            documents = (CorpusDocument(str(i), "", text, "") for i, text in enumerate(texts))

            def show(report: IndexReport) -> None:
                bar.update(report.compressed)

            indexer.add(documents, show)
            rate = len(store) / (time.perf_counter() - began)

        def from_store(number: int) -> None:
            pipeline.answer(asked[number], k=k, how="memory", sampling=sampling)

        def compressed_first(number: int) -> None:
            candidates = [texts[(number * arguments.candidates + i) % len(texts)] for i in range(arguments.candidates)]
            compressing.answer([asked[number]], [candidates], k=k, max_new_tokens=arguments.max_new_tokens)

        def as_text(number: int) -> None:
            chosen = [texts[(number * k + i) % len(texts)] for i in range(k)]
            nothing = np.zeros((0, *sizes[:2]), np.float32)
            clara.generate([prompts.question(asked[number], chosen)], [nothing], sampling)

        ways = {"store": from_store, "compress": compressed_first, "text": as_text}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in tqdm(range(len(asked)), desc="asking"):
            for name, way in ways.items():
                began = time.perf_counter()
                way(number)
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}  # the first compiles
    print(
        f"{arguments.base}, {arguments.precision}, {jax.devices()[0].device_kind}, jax {jax.__version__}: {len(texts)} "
        f"chunks of {statistics.median(lengths):.0f} tokens, {rate:.2f} compressed a second; {arguments.candidates} "
        f"candidates, {k} read, {arguments.max_new_tokens} tokens answered\n\n| way | median | against the store |\n"
        "| --- | --- | --- |"
    )
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} s | {median / medians['store']:.1f} |")


if __name__ == "__main__":
    command.run(main)
