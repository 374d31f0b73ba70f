"""Time a salient-compressor-pretraining step of SmolLM2-135M by precision, dropout and rematerialization.

    python -m benchmarks.train_step [--rows 2] [--prompt 192] [--repeats 5] [--precision float32 mixed] [--profile DIR]

Prints for each variant the median of its steps, all measured in one run, in turns; its attended tokens a second; model
FLOPs (clara_jax/training/throughput.py) a second, as a share of what the products of a block alone reach in the same
run (``--precision mixed``: bfloat16 into float32); and the share of the step's CPU time that the kernel took.
``--profile`` writes a trace of one step of each variant there, and prints what XLA's operations took in it, by kind.

    GLIBC_TUNABLES=glibc.malloc.mmap_max=65536 python -m benchmarks.train_step

is the same without `clara_jax.huge_pages`: 65,536 is glibc's default.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax import command, huge_pages
from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, memory_at_end
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES, Objective
from clara_jax.model.config import ModelConfig
from clara_jax.model.precision import PRECISIONS
from clara_jax.model.sharding import make_mesh, put_batch
from clara_jax.training.step import init_state, make_train_step
from clara_jax.training.throughput import block_weights, map_sizes, step_flops

T = TypeVar("T")

# Rematerialization and dropout, each tried in each precision.
VARIANTS = {"": ("none", 0.0), ", dropout 0.1": ("none", 0.1), ", dropout 0.1, remat full": ("full", 0.1)}


class CallTime(NamedTuple):
    """The seconds of one call: wall time, and CPU time in this program and in the kernel."""

    wall: float
    user: float
    kernel: float


def timed(call: Callable[[], T]) -> tuple[T, CallTime]:
    """Return the result of a call, once it is computed, and its time."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    result = jax.block_until_ready(call())
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    return result, CallTime(wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)


def product_rate(config: ModelConfig, tokens: int, precision: str, repeats: int) -> float:
    """Return the FLOP/s of the linear maps of a block, forward, each over so many tokens: a step's bound."""
    dtype = PRECISIONS[precision].stored
    seconds = 0.0
    product = jax.jit(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32))
    for inputs, outputs in map_sizes(config):
        x, w = jnp.ones((tokens, inputs), dtype), jnp.ones((inputs, outputs), dtype)
        jax.block_until_ready(product(x, w))
        seconds += statistics.median(timed(lambda x=x, w=w: product(x, w))[1].wall for _ in range(repeats))
    return 2 * tokens * block_weights(config) / seconds


def make_batch(bundle: Bundle, rows: int, length: int) -> Batch:
    """Return random tokens: one full document and a prompt of ``length`` a row, its second half labelled."""
    rng, clara, tokenizer = np.random.default_rng(0), bundle.model.clara, bundle.tokenizer
    documents = rng.integers(0, tokenizer.vocab_size, (rows, 1, clara.doc_max_length + 3 + clara.memory_tokens))
    documents[..., -clara.memory_tokens :] = tokenizer.memory_ids
    prompts = rng.integers(0, tokenizer.vocab_size, (rows, length)).astype(np.int32)
    index = np.full((rows, length), -1, np.int32)
    index[:, 8 : 8 + clara.memory_tokens] = np.arange(clara.memory_tokens)
    labels, places = prompts[:, length // 2 :], np.arange(length // 2, length, dtype=np.int32)
    ends = memory_at_end(documents.shape, clara.memory_tokens)
    return Batch(
        documents=Sequences(documents.astype(np.int32), np.ones(documents.shape, np.int32), ends),
        document_valid=np.ones((rows, 1), bool),
        query=None,
        prompt=PromptBatch(prompts, np.ones_like(prompts), index, labels, np.tile(places, (rows, 1))),
        positives=None,
        example_ids=np.arange(rows, dtype=np.int32)[:, None],
    )


def by_kind(folder: Path) -> Counter[str]:
    """Return the seconds of XLA's operations in the trace that a folder holds, by name without number."""
    (trace,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    seconds: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        # Names with a "$" are Python's, those with a capital the executor's, which hold the others.
        if event.get("ph") == "X" and re.match(r"[a-z]", event["name"]):
            seconds[re.sub(r"[.\d]+$", "", event["name"])] += event["dur"] / 1e6
    return seconds


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("train_step", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--rows", type=int, default=2, metavar="N", help="examples of a step (2)")
    add("--prompt", type=int, default=192, metavar="N", help="tokens of a prompt (192)")
    command.add_option(parser, "--repeats", "steps; 5", default=5)
    both = ("float32", "mixed")
    command.add_option(parser, "--precision", "float32 mixed", nargs="+", choices=tuple(PRECISIONS), default=both)
    add("--profile", metavar="DIR", help="a trace of one step of each variant, and its summary")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    stage, optimizer = STAGES["scp"], optax.adamw(1e-4)
    steps, states, frozen, batches = {}, {}, {}, {}
    spent: dict[str, list[CallTime]] = {}
    ceilings = {}
    tokens = flops = 0  # of a step, the same in all precisions
    with jax.set_mesh(mesh):
        key = jax.random.key(0)
        for precision in arguments.precision:
            bundle = opening.from_base("smollm2", ClaraConfig(), mesh, precision)
            host = make_batch(bundle, arguments.rows, arguments.prompt)
            tokens = host.tokens
            flops = step_flops(bundle.model.config, bundle.model.clara.lora_rank, "scp", stage.trains, host)
            ceilings[precision] = product_rate(bundle.model.config, tokens, precision, arguments.repeats)
            batch = put_batch(host, mesh)
            trained, kept = split(bundle.params, stage.trains)
            for suffix, (remat, rate) in VARIANTS.items():
                name = precision + suffix
                clara = dataclasses.replace(bundle.model.clara, lora_dropout=rate)
                model = dataclasses.replace(bundle.model, remat=remat, clara=clara)
                steps[name], frozen[name] = make_train_step(model, stage, Objective(), optimizer), kept
                batches[name] = batch
                states[name], _ = steps[name](init_state(trained, optimizer), kept, batch, key)
                spent[name] = []
        for _ in range(arguments.repeats):
            for name, step in steps.items():
                (states[name], _), seconds = timed(lambda s=step, n=name: s(states[n], frozen[n], batches[n], key))
                spent[name].append(seconds)
        for name, step in steps.items() if arguments.profile else ():
            with jax.profiler.trace(f"{arguments.profile}/{name}"):
                jax.block_until_ready(step(states[name], frozen[name], batches[name], key))
    first = None
    print("| variant | median s | ratio | tokens/s | GFLOP/s | of the products' | kernel |\n|" + "---|" * 7)
    for name, each in spent.items():
        median = statistics.median(s.wall for s in each)
        first = first or median
        kernel = sum(s.kernel for s in each) / sum(s.user + s.kernel for s in each)
        share = flops / median / ceilings[name.split(",")[0]]
        numbers = f"{tokens / median:,.0f} | {flops / median / 1e9:,.0f} | {share:.0%} | {kernel:.0%}"
        print(f"| {name} | {median:.2f} | {median / first:.2f} | {numbers} |")
    for precision, rate in ceilings.items():
        print(f"products of a block over {tokens} tokens, {precision}: {rate / 1e9:,.0f} GFLOP/s")
    for name in steps if arguments.profile else ():
        seconds = by_kind(Path(arguments.profile) / name)
        total = sum(seconds.values())
        shares = ", ".join(f"{kind} {part / total:.1%}" for kind, part in seconds.most_common(12))
        print(f"{name}, by kind of operation: {shares}")


if __name__ == "__main__":
    huge_pages.start_again()
    command.run(main)
