"""Batches by step: the same whole batch from any number of processes, and after any restart."""

import dataclasses
import json
import subprocess
import sys
from itertools import islice

import jax
import numpy as np
import pytest

from clara_jax.data.synthetic import write
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.input_pipeline.buckets import shape_ladder
from clara_jax.input_pipeline.distinct import document_numbers, planned_counts
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.packing import plan_row
from clara_jax.input_pipeline.records import read_records
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import tiny_tokenizer
from tests.locations import ROOT

CASES = {"buckets": ("end_to_end", 3, 0), "distinct": ("end_to_end", 3, 0), "packing": ("scp", 1, 256)}
BATCH, STEPS = 8, 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading")
    config = SyntheticConfig(world=dict(attributes=3), records=dict(train=60, eval=1, candidates=3))
    write(config, path, ["scp", "end_to_end"])
    return path


def make_loader(directory, case, process_index=0, process_count=1):
    stage, buckets, pack = CASES[case]
    tokenizer = ClaraTokenizer(tiny_tokenizer(), doc_max_length=96, memory_tokens=4, max_length=400)
    records = read_records(f"{directory}/{stage}.train.jsonl", stage)
    examples = encode_records(records, tokenizer, Encoding(stage, 2))
    sizes = sizes_of(examples)
    plan = BatchPlan(sizes, shape_ladder(sizes, tokenizer, buckets), BATCH, STEPS, seed=5)
    row = plan_row(sizes, tokenizer.memory_tokens, pack) if pack else None
    # Packed rows are filled up to a multiple that the processes divide.
    multiple = max(2, process_count)
    local_rows = lambda rows: np.split(np.arange(rows), process_count)[process_index]  # noqa: E731
    distinct = planned_counts(plan, document_numbers(examples), 4) if case == "distinct" else None
    return BatchLoader(plan, examples, sizes, tokenizer, row, multiple, local_rows, distinct=distinct)


def ids(batch):
    return [int(i) for i in batch.example_ids.ravel() if i >= 0]


@pytest.mark.parametrize("case", CASES)
def test_the_parts_of_processes_make_up_the_whole(directory, case):
    whole = make_loader(directory, case)
    for count in (2, 4):
        loaders = [make_loader(directory, case, i, count) for i in range(count)]
        for step in (0, 7, 23):
            parts = [loader.batch(step) for loader in loaders]
            batch = whole.batch(step)
            if case != "packing":  # packed rows are filled up to a multiple of the processes
                joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
                jax.tree.map(np.testing.assert_array_equal, joined, batch)
            assert sorted(i for part in parts for i in ids(part)) == sorted(ids(batch))
            assert len({jax.tree.map(np.shape, part).prompt.ids for part in parts}) == 1


@pytest.mark.parametrize("case", CASES)
def test_batches_made_ahead_are_those_of_their_steps(directory, case):
    loader = make_loader(directory, case)
    ahead = list(loader.ahead(20, STEPS))
    assert len(ahead) == 4
    for step, batch in zip(range(20, STEPS), ahead, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, loader.batch(step))
    assert len({dataclasses.astuple(loader.plan.shapes(step)) for step in range(STEPS)}) > (case != "packing")


def start(directory, case, begin, index, count):
    """A process that prints a line for each step: the step and the examples it has read."""
    code = "import sys; from tests.input_pipeline.test_loader import read; read(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(directory), case, str(begin), str(index), str(count)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read(directory, case, begin, index, count):
    loader = make_loader(directory, case, int(index), int(count))
    for step, batch in enumerate(loader.ahead(int(begin), STEPS), int(begin)):
        print(json.dumps([step, ids(batch)]), flush=True)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_repeated_or_skipped_when_processes_are_killed_and_their_number_changes(directory, case):
    seen, begin = {}, 0
    for count, steps in ((1, 5), (4, 6), (1, STEPS)):  # 60 examples: the first kills come in the middle of an epoch
        processes = [start(directory, case, begin, i, count) for i in range(count)]
        lines = [[json.loads(line) for line in islice(p.stdout, steps)] for p in processes]
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
        for line in lines:
            for step, examples in line:
                seen.setdefault(step, []).extend(examples)
        begin += min(len(line) for line in lines)
    assert begin == STEPS and sorted(seen) == list(range(STEPS))
    whole = make_loader(directory, case)
    for step, examples in seen.items():
        assert sorted(examples) == sorted(ids(whole.batch(step))) and len(examples) == BATCH
    counted = np.bincount([i for examples in seen.values() for i in examples], minlength=60)
    assert counted.min() == 3 and counted.max() == 4  # 192 reads of 60 examples
