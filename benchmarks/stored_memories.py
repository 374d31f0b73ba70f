"""Time end_to_end steps of SmolLM2-135M with stored memories against compressing documents in the step.

The step compresses each distinct document of a batch once, or each in its place.

    python -m benchmarks.stored_memories DATA.jsonl... [--limit 8] [--batch-size 2] [--candidates 20] [--repeats 3]

A step counts from the plan to its end: reading tokens or memories, placing them, computing. Prints medians, measured in
one run in turns, and what compressing the documents of the records once takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import jax
import optax

from clara_jax import command
from clara_jax.checkpoints import opening
from clara_jax.formats.jsonl import data_files
from clara_jax.input_pipeline.buckets import shape_ladder, without_texts
from clara_jax.input_pipeline.distinct import document_numbers, planned_counts
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.records import read_records
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import split
from clara_jax.method.stages import STAGES
from clara_jax.model.sharding import batch_shards, make_mesh, put_batch
from clara_jax.training.stage_config import DataConfig, OptimizerConfig, StageConfig, TopKConfig
from clara_jax.training.step import init_state, make_train_step
from clara_jax.training.stopping import StopSignal
from clara_jax.training.stored_memories import open_memories


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("stored_memories", __doc__, package="benchmarks")
    option = command.add_option
    parser.add_argument("data", nargs="+", help="JSONL files of end_to_end")
    option(parser, "--base", "smollm2", default="smollm2")
    option(parser, "--precision", "float32", default="float32")
    option(parser, "--limit", "8", default=8)
    option(parser, "--batch-size", "2", default=2)
    option(parser, "--candidates", "20", default=20)
    option(parser, "--k", "5", default=5)
    option(parser, "--repeats", "steps; 3", default=3)
    command.add_renamed_option(parser, "--records", "--limit", type=int)
    command.add_renamed_option(parser, "--top-k", "--k", type=int)
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()

    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    bundle = opening.from_base(arguments.base, ClaraConfig(), mesh, arguments.precision)
    tokenizer = bundle.tokenizer
    records = read_records(data_files(arguments.data, "data"), "end_to_end", arguments.limit)
    examples = encode_records(records, tokenizer, Encoding("end_to_end", arguments.k, arguments.candidates))
    documents = [ids for example in examples for ids in example.documents]
    stage, optimizer = STAGES["end_to_end"], optax.adamw(1e-4)
    trained, frozen = split(bundle.params, stage.trains)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        steps = arguments.repeats + 1
        config = StageConfig(
            name="end_to_end",
            data=DataConfig(tuple(arguments.data), memories=folder),
            optimizer=OptimizerConfig(steps=steps, batch_size=arguments.batch_size),
            topk=TopKConfig(k=arguments.k, candidates=arguments.candidates),
        )
        start = time.monotonic()
        memories = open_memories(config, bundle, documents, StopSignal(), progress=True)
        compressing = time.monotonic() - start
        step = make_train_step(bundle.model, stage, config.hyperparameters, optimizer)
        key = jax.random.key(0)
        loaders, states, times = {}, {}, {}
        variants = {"each in its place": None, "each distinct one once": None, "stored": memories}
        shapes = None  # of the last variant
        for name, given in variants.items():
            sizes = sizes_of(examples) if given is None else without_texts(sizes_of(examples))
            plan = BatchPlan(sizes, shape_ladder(sizes, tokenizer, 1), arguments.batch_size, steps)
            shapes = plan.ladder[-1]
            once = name == "each distinct one once"
            distinct = planned_counts(plan, document_numbers(examples), batch_shards(mesh)) if once else None
            loaders[name] = BatchLoader(plan, examples, sizes, tokenizer, memories=given, distinct=distinct)
            if distinct:
                places = arguments.batch_size * arguments.candidates
                print(f"{max(distinct.values())} of the {places} documents of a batch are distinct")
            states[name], times[name] = init_state(trained, optimizer), []
        for number in range(steps):
            for name, loader in loaders.items():
                start = time.monotonic()
                batch = put_batch(loader.batch(number), mesh)
                states[name], metrics = jax.block_until_ready(step(states[name], frozen, batch, key))
                if number:  # the first one compiles
                    times[name].append(time.monotonic() - start)
                print(f"{name}: step {number}, loss {metrics['loss']:.6f}", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    device = jax.devices()[0].device_kind
    print(f"{device}, {arguments.batch_size} questions of {arguments.candidates} candidates; {shapes}")
    print("| documents | median s of a step | ratio |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {first / median:.1f} |")
    print(f"compressing {len({ids.tobytes() for ids in documents})} distinct documents once took {compressing:.1f} s")


if __name__ == "__main__":
    command.run(main)
