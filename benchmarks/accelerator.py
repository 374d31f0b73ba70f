"""Time a 7B model's steps on the accelerators of this machine: training, compressing, decoding.

    python -m benchmarks.accelerator [--tokens 2048] [--rows 8] [--repeats 10] [--profile DIR]

Mistral-7B's shapes with random bfloat16 weights: nothing is downloaded. Prints, each as the median over the repeats:

- a training step of every stage: tokens/s, MFU (as in clara_jax/training/throughput.py: 4N for LoRA, causal attention);
- compressing full documents: tokens/s, MFU;
- decoding at batches of 1, 8 and 64: tokens/s, and the share of the memory's bandwidth that reading weights, keys and
  values once for each token comes to.

--base-config FILE takes another model's config.json; --remat and --attention are those of config.model. A case that
does not fit is reported, and the next one follows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import command
from clara_jax.aot import workload
from clara_jax.aot.lowering import decode_bytes
from clara_jax.aot.workload import base_config, full_batch, stage_shapes
from clara_jax.chips import peak_flops
from clara_jax.inference.decode import Sampling, generate
from clara_jax.inference.encode import encode_batch
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, StoredMemories, memory_at_end
from clara_jax.input_pipeline.records import RANKING_STAGES
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, split
from clara_jax.method.stages import STAGES
from clara_jax.model.attention import IMPLEMENTATIONS
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import initialise
from clara_jax.model.sharding import batch_shards, make_mesh, put_batch
from clara_jax.model.transformer import REMAT_POLICIES
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import DataConfig, OptimizerConfig, StageConfig, TopKConfig
from clara_jax.training.step import init_state, make_train_step
from clara_jax.training.throughput import Work, blocks_flops, step_flops, work

NEW_TOKENS = 64
# Bytes/s of a device's memory, by the beginning of its kind (the makers' data sheets).
BANDWIDTHS = {"NVIDIA A100": 2.039e12, "NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("accelerator", __doc__, package="benchmarks")
    add = parser.add_argument
    add("--tokens", type=int, default=2048, metavar="N", help="positions of an example in scp and instruct (2048)")
    add(
        "--rows",
        type=int,
        default=8,
        metavar="N",
        help="examples of a step in scp and instruct; a quarter elsewhere (8)",
    )
    command.add_option(parser, "--candidates", "20", default=20)
    command.add_option(parser, "--repeats", "10", default=10)
    add("--remat", default="dots", choices=REMAT_POLICIES, help="of config.model (dots)")
    add("--attention", default="auto", choices=IMPLEMENTATIONS, help="of config.model (auto)")
    add("--base-config", metavar="FILE", help="a config.json (default: that of Mistral-7B-Instruct-v0.2)")
    add("--batches", default="1,8,64", metavar="N,N", help="of decoding (1,8,64)")
    add("--profile", metavar="DIR", help="a profile of the first stage's steps")
    command.add_option(parser, "--output", "all numbers, as JSON")
    command.add_renamed_option(parser, "--json", "--output")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    config = ModelConfig.from_hf(base_config("mistralai/Mistral-7B-Instruct-v0.2", arguments.base_config))
    clara = ClaraConfig(max_length=max(1024, arguments.tokens))
    model = ClaraModel(config, clara, "bfloat16", arguments.remat, arguments.attention)
    mesh = make_mesh()
    print(f"{mesh.size} x {jax.devices()[0].device_kind}, remat {arguments.remat}, attention {arguments.attention}")
    params = initialise(declare(config, clara, model.dtype), jax.random.key(0), mesh)
    results = []
    for name, case in _cases(model, params, mesh, arguments):
        try:
            row = {"case": name, **case()}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row = {"case": name, "error": "does not fit"}
        results.append(row)
        facts = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(", ".join(facts), flush=True)
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(results, file, indent=2)


def _cases(
    model: ClaraModel, params: Any, mesh: jax.sharding.Mesh, arguments
) -> Iterator[tuple[str, Callable[[], dict]]]:
    profile = arguments.profile
    for name in STAGES:
        yield name, partial(_train, name, model, params, mesh, arguments, profile)
        profile = None
    yield "compress", partial(_compress, model, params, mesh, arguments)
    for batch in map(int, arguments.batches.split(",")):
        yield f"decode {batch}", partial(_decode, model, params, mesh, arguments, batch)


def _train(name: str, model: ClaraModel, params: Any, mesh, arguments, profile: str | None) -> dict[str, Any]:
    ranks = name in RANKING_STAGES
    rows = max(arguments.rows // 4 if ranks else arguments.rows, batch_shards(mesh))
    topk = TopKConfig(candidates=arguments.candidates)
    topk = dataclasses.replace(topk, k=min(topk.k, topk.candidates) if ranks else topk.k)
    stage = StageConfig(name, DataConfig(("unread",)), OptimizerConfig(steps=1000, batch_size=rows), topk=topk)
    shapes = stage_shapes(stage, model.clara)
    if not ranks:  # what the documents leave of the example's tokens is the prompt's, half of it the target's
        prompt = arguments.tokens - shapes.documents * (shapes.encoder_width + model.clara.memory_tokens)
        shapes = dataclasses.replace(shapes, prompt_length=max(prompt, shapes.prompt_length))
        shapes = dataclasses.replace(shapes, target_length=shapes.prompt_length // 2)
    trained, frozen = split(params, STAGES[name].trains)
    optimizer = make_optimizer(stage.optimizer, 1000)
    step = make_train_step(model, STAGES[name], stage.hyperparameters, optimizer)
    planned = workload.batch(rows, shapes, model.clara.memory_tokens, ranks, mesh)
    batch = random_batch(planned, model, stage)
    key = jax.device_put(jax.random.key(0), jax.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        state, placed = init_state(trained, optimizer), put_batch(batch, mesh)

        def once():
            nonlocal state
            state, values = step(state, frozen, placed, key)
            return values["loss"]

        seconds = _median(once, arguments.repeats, profile)
    flops = step_flops(model.config, model.clara.lora_rank, name, STAGES[name].trains, full_batch(planned))
    prompt = None if name == "retrieval" else planned.prompt  # retrieval generates nothing
    tokens = sum(part.ids.size for part in (planned.texts, planned.query, prompt) if part is not None)
    return {"rows": rows, "tokens": tokens, **_rates(seconds, tokens, flops, mesh), **_peak_memory()}


def _compress(model: ClaraModel, params: Any, mesh, arguments) -> dict[str, Any]:
    rows, length = 64 * batch_shards(mesh), model.clara.doc_max_length + 2 + model.clara.memory_tokens
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length)).astype(np.int32)
    with jax.set_mesh(mesh):
        texts = Sequences(ids, np.ones_like(ids), memory_at_end(ids.shape, model.clara.memory_tokens))
        placed = put_batch(texts, mesh)
        seconds = _median(lambda: encode_batch(model, "compressor", params, placed), arguments.repeats)
    done = work(np.ones(ids.shape, bool), model.config.sliding_window)
    flops = blocks_flops(model.config, model.clara.lora_rank, Work(*done), False)
    return {"rows": rows, **_rates(seconds, ids.size, flops, mesh), **_peak_memory()}


def _decode(model: ClaraModel, params: Any, mesh, arguments, batch: int) -> dict[str, Any]:
    rows = -(-batch // batch_shards(mesh)) * batch_shards(mesh)
    memories = 5 * model.clara.memory_tokens
    length = memories + 64
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length)).astype(np.int32)
    index = np.broadcast_to(np.where(np.arange(length) < memories, np.arange(length), -1), ids.shape).astype(np.int32)
    memory = np.zeros((rows, 5, model.clara.memory_tokens, model.config.embed_dim), jnp.bfloat16)
    with jax.set_mesh(mesh):
        placed = put_batch((ids, np.ones(ids.shape, bool), index, memory, np.zeros(rows, np.uint32)), mesh)

        def answer(tokens: int):
            # No token is -1: every answer has its full length.
            return lambda: generate(model, params, *placed, Sampling(tokens), (-1,)).tokens

        # Both read the prompt: the difference is the time of the tokens after the first.
        seconds = _median(answer(NEW_TOKENS + 1), arguments.repeats) - _median(answer(1), arguments.repeats)
    seconds /= NEW_TOKENS
    row = {"rows": rows, "milliseconds a token": 1e3 * seconds, "tokens/s": rows / seconds}
    kind = jax.devices()[0].device_kind
    bandwidth = next((value for known, value in BANDWIDTHS.items() if kind.startswith(known)), None)
    if bandwidth:
        row["of bandwidth"] = decode_bytes(model, rows, length + NEW_TOKENS, mesh) / seconds / bandwidth
    return row


def random_batch(planned: Batch, model: ClaraModel, stage: StageConfig) -> Batch:
    """Return full rows of random tokens; memories stand at the beginning of the prompts."""
    rng = np.random.default_rng(0)

    def tokens(x: Any) -> np.ndarray:
        return rng.integers(0, model.config.vocab_size, x.shape).astype(np.int32)

    def texts(planned: Any) -> Any:
        if planned is None:
            return None
        ids = tokens(planned.ids)
        return Sequences(ids, np.ones_like(ids), memory_at_end(ids.shape, model.clara.memory_tokens))

    prompt, stored = planned.prompt, planned.documents
    if isinstance(stored, StoredMemories):
        shape, dtype = stored.vectors.shape, stored.vectors.dtype
        documents = StoredMemories(rng.integers(0, model.config.vocab_size, shape).astype(dtype))
    else:
        documents = texts(stored)
    (rows, length), labels = prompt.ids.shape, prompt.labels.shape[1]
    places, read = np.arange(length, dtype=np.int32), min(stage.topk.k, planned.document_valid.shape[1])
    index = np.where(places < read * model.clara.memory_tokens, places, -1).astype(np.int32)
    ids = tokens(prompt.ids)
    return Batch(
        documents=documents,
        document_valid=np.ones(planned.document_valid.shape, bool),
        query=texts(planned.query),
        prompt=PromptBatch(
            ids,
            np.ones_like(ids),
            np.tile(index, (rows, 1)),
            tokens(prompt.labels),
            np.tile(places[-labels:], (rows, 1)),
        ),
        positives=None if planned.positives is None else np.ones(planned.positives.shape, bool),
        example_ids=np.arange(rows, dtype=np.int32)[:, None],
    )


def _median(function: Callable[[], jax.Array], repeats: int, profile: str | None = None) -> float:
    """Return the seconds of a call, compiled and warmed up before."""
    for _ in range(2):
        jax.block_until_ready(function())
    seconds = []
    with jax.profiler.trace(profile) if profile else contextlib.nullcontext():
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _rates(seconds: float, tokens: int, flops: float, mesh: jax.sharding.Mesh) -> dict[str, float]:
    rates = {"seconds": seconds, "tokens/s/device": tokens / seconds / mesh.size}
    peak = peak_flops(jax.devices()[0].device_kind)
    return rates | ({"mfu": flops / seconds / mesh.size / peak} if peak else {})


def _peak_memory() -> dict[str, float]:
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak GiB": stats["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in stats else {}


if __name__ == "__main__":
    command.run(main)
