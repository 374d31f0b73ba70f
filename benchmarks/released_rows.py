"""The rows of `benchmarks.against_released`: each one's work on both sides, and the comparison of their results."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.ask import endless
from clara_jax.api import Clara
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline.buckets import shape_ladder, without_texts
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.loader import BatchLoader
from clara_jax.input_pipeline.records import Record
from clara_jax.input_pipeline.sampler import BatchPlan
from clara_jax.method.parameters import split
from clara_jax.method.stages import inherit
from clara_jax.metrics.cosine import unit_vectors
from clara_jax.model.sharding import put_batch
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import DEFAULT_ENCODING
from clara_jax.text.documents import CorpusDocument
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import DataConfig, OptimizerConfig, StageConfig, TopKConfig
from clara_jax.training.step import init_state, make_train_step
from clara_jax.training.stopping import StopSignal
from clara_jax.training.stored_memories import open_memories

Result = dict[str, Any]  # "seconds", and what may be compared
Ask = Callable[..., Result]  # a request to the released side


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of both sides.

    Attributes:
      records: of "scp" and "end_to_end".
      arguments: ``scp_batch``, ``batch``, ``candidates``, ``k``, ``new_tokens``.
      folder: for intermediate files.
    """

    records: Mapping[str, Sequence[Record]]
    arguments: argparse.Namespace
    folder: Path

    @property
    def documents(self) -> list[str]:
        """The first record's candidates."""
        return list(self.records["end_to_end"][0].documents)

    def question(self, turn: int) -> str:
        """Return a question, another record's for every turn: the keys and values of one before would be cached."""
        return self.records["end_to_end"][turn % len(self.records["end_to_end"])].questions[0]

    def batch(self, stage: str) -> Sequence[Record]:
        """Return the records of a step."""
        return self.records[stage][: self.arguments.scp_batch if stage == "scp" else self.arguments.batch]

    def as_released(self, stage: str) -> list[tuple]:
        """Return the records of a step in the form that the released code makes batches from."""
        found = []
        for record in self.batch(stage):
            kind, question, answer = "qa", record.questions, record.answers
            if stage != "scp":
                question, answer = question[0], answer[0]
            elif record.kind == "paraphrase":
                kind, question = "paraphrase", ""
            found.append((record.documents, question, answer, kind, record.positives))
        return found


class Ours:
    """This package's side of all rows, with a model of one precision; each row is prepared at its first use."""

    def __init__(self, bundle: Bundle, inputs: Inputs):
        self.bundle, self.inputs = bundle, inputs
        self._folder = inputs.folder / bundle.model.precision
        self._steps: dict[str, Callable[[], Result]] = {}
        self._compressing = Clara(bundle, batch_size=inputs.arguments.candidates)
        self._pipeline: RagPipeline | None = None

    def step(self, name: str) -> Result:
        """Run the first step of a stage, from the plan to its end; memories of end_to_end are stored before."""
        if name not in self._steps:
            self._steps[name] = self._make_step(name)
        return self._steps[name]()

    def compress(self) -> Result:
        """Compress the documents, and write the memories to a file."""
        began = time.perf_counter()
        memories = self._compressing.compress(self.inputs.documents, long="cut")
        seconds = time.perf_counter() - began
        file = f"{self._folder}.npy"
        np.save(file, memories.array.astype(np.float32))
        return {"seconds": seconds, "file": file}

    def ask(self, turn: int) -> Result:
        """Answer a question at full length, from a store of the candidates."""
        if self._pipeline is None:
            model = self.bundle.model
            sizes = model.clara.memory_tokens, model.config.embed_dim
            place, made_by = self._folder / "store", self.bundle.compressor_fingerprint()
            store = DocumentStore.open_or_make(place, made_by, DEFAULT_ENCODING, *sizes)
            texts = dict.fromkeys(self.inputs.documents)
            documents = (CorpusDocument(str(i), "", text, "") for i, text in enumerate(texts))
            RagPipeline(self._compressing, store).add(documents)
            self._pipeline = RagPipeline(Clara(endless(self.bundle), batch_size=1), store)
        sampling = Sampling(self.inputs.arguments.new_tokens)
        began = time.perf_counter()
        # By memory as there: the adapters are fresh, and for such a model the pipeline's default is words.
        k = self.inputs.arguments.k
        answer = self._pipeline.answer(self.inputs.question(turn), k=k, how="memory", sampling=sampling)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "text": answer.text, "read": [hit.text for hit in answer.context.sources]}

    def _make_step(self, name: str) -> Callable[[], Result]:
        bundle, arguments, records = self.bundle, self.inputs.arguments, self.inputs.batch(name)
        tokenizer, memories, steps = bundle.tokenizer, None, 1
        stage = StageConfig(
            name=name,
            data=DataConfig(
                (records[0].where,), memories=str(self._folder / "memories") if name == "end_to_end" else ""
            ),
            optimizer=OptimizerConfig(steps=steps, batch_size=len(records)),
            topk=TopKConfig(k=arguments.k, candidates=arguments.candidates),
        )
        examples = encode_records(records, tokenizer, Encoding(name, stage.topk.k, stage.topk.candidates))
        sizes = sizes_of(examples)
        if stage.data.memories:
            documents = [ids for example in examples for ids in example.documents]
            memories, sizes = open_memories(stage, bundle, documents, StopSignal()), without_texts(sizes)
        plan = BatchPlan(sizes, shape_ladder(sizes, tokenizer, 1), stage.optimizer.batch_size, steps)
        loader = BatchLoader(plan, examples, sizes, tokenizer, memories=memories)
        params = inherit(stage.stage, bundle.params, bundle.trained)
        trained, frozen = split(params, stage.stage.trains)
        optimizer = make_optimizer(stage.optimizer, steps)
        step = make_train_step(bundle.model, stage.stage, stage.hyperparameters, optimizer)

        def run() -> Result:
            with jax.set_mesh(bundle.mesh):
                state, key = jax.block_until_ready(init_state(trained, optimizer)), jax.random.key(0)
                began = time.perf_counter()
                batch = put_batch(loader.batch(0), bundle.mesh)
                _, metrics = jax.block_until_ready(step(state, frozen, batch, key))
                seconds = time.perf_counter() - began
            return {"seconds": seconds, "loss": float(metrics["loss"])}

        return run


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """A row of the table.

    Attributes:
      name: in the table.
      released: a request to the released side, of a precision and a turn.
      ours: the same work here.
      compare: describes the agreement of both sides' first results, in float32.
      warm_up: turns that do not count.
    """

    name: str
    released: Callable[[Ask, Inputs, str, int], Result]
    ours: Callable[[Ours, int], Result]
    compare: Callable[[Result, Result], str]
    warm_up: int = 1


def _scp(ask: Ask, inputs: Inputs, precision: str, turn: int) -> Result:
    return ask("step", stage="stage1", precision=precision, records=inputs.as_released("scp"), length=2048)


def _end_to_end(true_length: bool) -> Callable[[Ask, Inputs, str, int], Result]:
    def request(ask: Ask, inputs: Inputs, precision: str, turn: int) -> Result:
        records = inputs.as_released("end_to_end")
        return ask("step", stage="stage2", precision=precision, records=records, length=1024, true_length=true_length)

    return request


def _compress(ask: Ask, inputs: Inputs, precision: str, turn: int) -> Result:
    file = f"{inputs.folder / 'released'} {precision}.npy"
    return ask("compress", precision=precision, documents=inputs.documents, file=file) | {"file": file}


def _question(ask: Ask, inputs: Inputs, precision: str, turn: int) -> Result:
    documents, tokens = inputs.documents, inputs.arguments.new_tokens
    question = inputs.question(turn)
    found = ask("question", precision=precision, question=question, documents=documents, tokens=tokens)
    return found | {"read": [documents[place] for place in found["chosen"]]}


def _losses(released: Result, ours: Result) -> str:
    width = f"; released questions of {released['question width']} positions" if released["question width"] else ""
    return f"loss of the first step {released['loss']:.5f}, ours {ours['loss']:.5f}{width}"


def _cosines(released: Result, ours: Result) -> str:
    one, other = (np.load(side["file"]).reshape(-1, np.load(side["file"]).shape[-1]) for side in (released, ours))
    cosines = np.sum(unit_vectors(one) * unit_vectors(other), axis=1)
    return f"cosines of the memory vectors at least {cosines.min():.6f}"


def _answers(released: Result, ours: Result) -> str:
    documents, text = (released[name] == ours[name] for name in ("read", "text"))
    return f"{'the same' if documents else 'other'} documents read, {'the same' if text else 'another'} answer"


ROWS = (
    BenchmarkRow("scp", _scp, lambda ours, turn: ours.step("scp"), _losses),
    BenchmarkRow("compress", _compress, lambda ours, turn: ours.compress(), _cosines),
    # Ours compiles one program for the first question, and another for one whose prompt begins as an earlier one.
    BenchmarkRow("question", _question, Ours.ask, _answers, warm_up=2),
    BenchmarkRow("end_to_end", _end_to_end(False), lambda ours, turn: ours.step("end_to_end"), _losses),
    BenchmarkRow("end_to_end, true length", _end_to_end(True), lambda ours, turn: ours.step("end_to_end"), _losses),
)


def questions(repeats: int) -> int:
    """Return how many different questions so many measurements need."""
    return repeats + max(row.warm_up for row in ROWS)
