"""Times a salient-compressor-pretraining step of SmolLM2-135M: what dropout and rematerialization cost.

    python -m benchmarks.train_step [--rows 2] [--prompt 192] [--repeats 5]

Prints the median of each variant and its ratio to the first, all measured in one run, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np
import optax

from clara_jax import bundle as bundles
from clara_jax import command
from clara_jax.data.batches import Batch
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.training.step import init_state, make_train_step

VARIANTS = {"dropout 0": ("none", 0.0), "dropout 0.1": ("none", 0.1), "dropout 0.1, remat full": ("full", 0.1)}


def make_batch(bundle: bundles.Bundle, rows: int, length: int) -> Batch:
    """Random tokens: one full document and a prompt of ``length`` a row, its second half labelled."""
    rng, clara, tokenizer = np.random.default_rng(0), bundle.model.clara, bundle.tokenizer
    documents = rng.integers(0, tokenizer.vocab_size, (rows, 1, clara.doc_max_length + 3 + clara.memory_tokens))
    documents[..., -clara.memory_tokens :] = tokenizer.memory_ids
    prompts = rng.integers(0, tokenizer.vocab_size, (rows, length)).astype(np.int32)
    index = np.full((rows, length), -1, np.int32)
    index[:, 8 : 8 + clara.memory_tokens] = np.arange(clara.memory_tokens)
    return Batch(
        document_ids=documents.astype(np.int32),
        document_mask=np.ones(documents.shape, bool),
        document_valid=np.ones((rows, 1), bool),
        query_ids=None,
        query_mask=None,
        prompt_ids=prompts,
        prompt_mask=np.ones(prompts.shape, bool),
        memory_index=index,
        labels=prompts[:, length // 2 :],
        positives=None,
        example_ids=np.arange(rows, dtype=np.int32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2, help="examples of a step")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of a prompt")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each variant")
    arguments = parser.parse_args()
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    bundle = bundles.from_base("smollm2", ClaraConfig(), mesh, "float32")
    stage, optimizer = STAGES["scp"], optax.adamw(1e-4)
    trained, frozen = split(bundle.params, stage.trains)
    steps, states, times = {}, {}, {name: [] for name in VARIANTS}
    with jax.set_mesh(mesh):
        batch, key = put_batch(make_batch(bundle, arguments.rows, arguments.prompt), mesh), jax.random.key(0)
        for name, (remat, rate) in VARIANTS.items():
            clara = dataclasses.replace(bundle.model.clara, lora_dropout=rate)
            model = dataclasses.replace(bundle.model, remat=remat, clara=clara)
            steps[name] = make_train_step(model, stage, Objective(), optimizer)
            states[name], _ = steps[name](init_state(trained, optimizer), frozen, batch, key)
        for _ in range(arguments.repeats):
            for name in VARIANTS:
                start = time.monotonic()
                states[name], _ = jax.block_until_ready(steps[name](states[name], frozen, batch, key))
                times[name].append(time.monotonic() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    print("| variant | median s | ratio |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / first:.2f} |")


if __name__ == "__main__":
    command.run(main)
