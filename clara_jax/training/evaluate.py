"""Evaluation while training: held-out loss, answers and ranking on fixed shapes, each with its controls.

The controls measure how much of a value comes from the memories. *No memory* is the same prompt with the memories left
out, *another document's memory* the same prompt over the documents of another example. Both go through the functions
that are compiled for the real case. Where documents stand in the prompt as text there are no memories, and no controls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.distributed import gather
from clara_jax.inference.decode import Generated, Sampling, generate
from clara_jax.input_pipeline.batches import Array, Batch, MemoryReader, PromptBatch, Sequences, collate, plan_shapes
from clara_jax.input_pipeline.distinct import most_distinct
from clara_jax.input_pipeline.encoding import TEXT, Encoding, Example, record_prompts
from clara_jax.input_pipeline.records import Record
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.method.clara import ClaraModel
from clara_jax.method.estimators.methods import select
from clara_jax.method.generator import attended
from clara_jax.method.parameters import merge
from clara_jax.method.stages import Objective, Stage, Terms, encode_documents, objective_value, rank_documents
from clara_jax.metrics.answers import exact_match, token_f1
from clara_jax.metrics.controls import HELD_OUT_CONTROLS, disjoint_others, repeated
from clara_jax.metrics.ranking import DEPTHS, recall_at
from clara_jax.model.sharding import divisible, put_batch
from clara_jax.training.step import Leaves, compiled_programs, make_eval_step, make_gradient_step

# Cases, and what ends the names of their values.
REAL, NO_MEMORY, OTHER_MEMORY = "", *(f"_{name}" for name in HELD_OUT_CONTROLS)


class Evaluation:
    """A measurement of a model on held-out examples; built once per stage, called at every evaluation.

    All of it runs on a few fixed shapes, compiled at the first call.

    Attributes:
      answers: the texts that the newest complete call generated, in the order of the records.
    """

    def __init__(
        self,
        model: ClaraModel,
        stage: Stage,
        objective: Objective,
        tokenizer: ClaraTokenizer,
        mesh: jax.sharding.Mesh,
        examples: Sequence[Example],
        records: Sequence[Record],
        encoding: Encoding,
        batch_size: int,
        *,
        loss_batches: int | None = None,
        answers: int | None = None,
        max_new_tokens: int = 32,
        end_ids: tuple[int, ...],
        controls: bool = True,
        gradients: bool = False,
        memories: MemoryReader | None = None,
    ):
        """Prepare the batches and the jitted functions.

        Args:
          model: the model to be measured, without its parameters.
          stage: the stage, whose loss is measured.
          objective: the numbers of its loss.
          tokenizer: that of the examples.
          mesh: the devices.
          examples: held out, tokenized for this stage; none of them makes every call give {}.
          records: the same, with the references of their answers.
          encoding: how they became the examples.
          batch_size: rows of a device call, which the mesh divides; the last batch is filled up.
          loss_batches: batches that loss and recall are taken over; default all.
          answers: records that are answered, the first ones, in a stage that answers questions; default all.
          max_new_tokens: longest answer.
          end_ids: tokens that end an answer.
          controls: measure the controls as well. *Another document's memory* is left out if an example shares
            documents with every other one.
          gradients: measure those of the two paths of `clara_jax.method.appendix.gradient_paths`, too; of end_to_end
            alone.
          memories: of the documents, where they were compressed before.
        """
        if len(examples) != len(records):
            raise ValueError(f"{len(examples)} examples and {len(records)} records")
        self.answers: tuple[str, ...] = ()
        self._stage, self._objective, self._tokenizer, self._mesh = stage, objective, tokenizer, mesh
        generates = "ce" in stage.weights(objective)
        self._reads_memory = generates and encoding.documents != TEXT
        answering = generates and bool(records) and records[0].kind == "question"
        answered = len(records[:answers]) if answering else 0
        controls = controls and self._reads_memory
        self._batches = _prepare(
            examples, records, encoding, tokenizer, batch_size, loss_batches, answered, controls, memories, mesh
        )
        self._terms = make_eval_step(model, stage, objective)
        self._gradients = make_gradient_step(model, objective) if gradients else None
        self._select = jax.jit(_selector(model, encoding.ranks, objective))
        sampling = Sampling(max_new_tokens)

        def answer(trained: Leaves, frozen: Leaves, prompt: PromptBatch, memories: jax.Array | None):
            seeds = jnp.zeros(len(prompt.ids), jnp.uint32)  # greedy: never drawn from
            mask = attended(model, prompt, memories) != 0
            tokens = jnp.asarray(prompt.ids), mask, jnp.asarray(prompt.memory_index)
            return generate(model, merge(trained, frozen), *tokens, memories, seeds, sampling, end_ids)

        self._generate = jax.jit(answer)

    @property
    def batches(self) -> int:
        """Batches of a call."""
        return len(self._batches)

    @property
    def compilations(self) -> int:
        """Programs compiled by all calls together."""
        functions = (self._terms, self._gradients, self._select, self._generate)
        return sum(compiled_programs(function) for function in functions if function is not None)

    def __call__(
        self,
        trained: Leaves,
        frozen: Leaves,
        stop: Callable[[], bool] = lambda: False,
        numbers: Mapping[str, jax.Array] = MappingProxyType({}),
        measured: Callable[[], None] = lambda: None,
    ) -> dict[str, float] | None:
        """Return means over the examples; to be called under `jax.set_mesh`.

        Args:
          trained: the trained parameters, see `clara_jax.method.parameters.split`.
          frozen: the others.
          stop: asked before each device call.
          numbers: replace the objective's of their names.
          measured: called after each batch.

        Returns:
          None as soon as ``stop`` returns True. Else, by name: "loss" and the stage's terms; "ce_no_memory" and
          "ce_other_memory" where the generator reads memories; "exact_match" and "f1" of greedy answers to questions,
          both also with "_no_memory" and "_other_memory"; "recall@1", "recall@3", "recall@5" among all candidates, as
          far as there are as many and positives are known; "gradient_probability", "gradient_representation" and
          "gradient_cosine" where they are asked for, the last where neither is zero.
        """
        found = _Measurements()
        for _ in self._measure(trained, frozen, dict(numbers), found, measured):
            if stop():
                return None
        self.answers = tuple(found.answers.get(REAL, ()))
        return self._loss(found) | self._quality(found) | self._recall(found) | _means(found.gradients)

    def _measure(
        self, trained: Leaves, frozen: Leaves, numbers: Terms, found: _Measurements, measured: Callable[[], None]
    ) -> Iterator[None]:
        """Fill ``found``, yielding before each device call, and call ``measured`` after each batch."""
        for batch in self._batches:
            memories = {}
            for case, make in batch.cases.items():
                host = make()
                placed = put_batch(host, self._mesh)
                if batch.measured:
                    yield
                    terms = _on_device(self._terms, trained, frozen, placed, numbers)
                    found.terms.setdefault(case, []).append(gather(terms))
                if batch.measured and case == REAL and self._gradients is not None:
                    yield
                    found.gradients.append(gather(_on_device(self._gradients, trained, frozen, placed)))
                ranked = batch.ranked and case == REAL
                if ranked or (self._reads_memory and batch.prompts and case != NO_MEMORY):
                    yield
                    scores, memories[case] = _on_device(self._select, trained, frozen, placed, numbers)
                    if ranked:
                        assert host.positives is not None  # `_prepare` ranks batches that have them
                        found.scores.append((gather(scores), host.document_valid, host.positives))
            for case, prompt in batch.prompts.items():
                yield
                # Without memory any will do: the prompt attends to none.
                case_memories = memories.get(REAL if case == NO_MEMORY else case)
                placed = put_batch(prompt, self._mesh)
                out = _on_device(self._generate, trained, frozen, placed, case_memories)
                found.answers.setdefault(case, []).extend(self._texts(gather(out), len(batch.golds)))
            found.golds.extend(batch.golds)
            measured()

    def _texts(self, out: Generated, count: int) -> list[str]:
        return [self._tokenizer.decode(out.tokens[row, : out.lengths[row]].tolist()) for row in range(count)]

    def _loss(self, found: _Measurements) -> dict[str, float]:
        values = {}
        for case, terms in found.terms.items():
            sums, counted = _total(terms)
            loss, means = objective_value(self._stage, self._objective, sums, counted)
            # What the controls change is the answer's likelihood; other terms of the loss do not depend on them.
            named = {"loss": loss, **means} if case == REAL else {f"ce{case}": means["ce"]}
            values |= {name: float(value) for name, value in named.items()}
        return values

    def _quality(self, found: _Measurements) -> dict[str, float]:
        return {
            f"{name}{case}": float(np.mean([metric(*pair) for pair in zip(texts, found.golds, strict=True)]))
            for name, metric in (("exact_match", exact_match), ("f1", token_f1))
            for case, texts in found.answers.items()
        }

    def _recall(self, found: _Measurements) -> dict[str, float]:
        if not found.scores:
            return {}
        scores, valid, positives = (np.concatenate(parts) for parts in zip(*found.scores, strict=True))
        if not (positives & valid).any():
            return {}
        depths = [k for k in DEPTHS if k <= scores.shape[1]]
        return {f"recall@{k}": float(np.nanmean(recall_at(scores, valid, positives, k))) for k in depths}


def _total(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *values: np.sum(np.asarray(values, np.float64)), *parts)


def _means(parts: Sequence[Any]) -> dict[str, float]:
    """Return the means of (sums, counts) of batches; a value with a count of zero is left out."""
    sums, counted = _total(parts) if parts else ({}, {})
    return {name: float(value / counted[name]) for name, value in sums.items() if counted[name]}


@dataclasses.dataclass
class _Measurements:
    """Everything that a call has measured so far."""

    terms: dict[str, list[Any]] = dataclasses.field(default_factory=dict)  # by case: (sums, counts) of each batch
    gradients: list[Any] = dataclasses.field(default_factory=list)  # (sums, counts) of each batch
    scores: list[tuple[Array, ...]] = dataclasses.field(default_factory=list)  # scores, valid, positives [B, D]
    answers: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by case
    golds: list[Sequence[str]] = dataclasses.field(default_factory=list)  # of the answers


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """A batch of held-out examples.

    Attributes:
      cases: functions that make the batch itself and its controls, of equal shapes, in host arrays. The batches are not
        kept: memories of many candidates take much room.
      measured: whether it counts for the loss.
      ranked: whether it counts for recall.
      prompts: by case, the prompts without their targets; empty where nothing is answered.
      golds: the references of its first rows, those that are answered.
    """

    cases: Mapping[str, Callable[[], Batch]]
    measured: bool
    ranked: bool
    prompts: Mapping[str, PromptBatch]
    golds: Sequence[Sequence[str]]


def _prepare(
    examples: Sequence[Example],
    records: Sequence[Record],
    encoding: Encoding,
    tokenizer: ClaraTokenizer,
    size: int,
    loss_batches: int | None,
    answered: int,
    controls: bool,
    memories: MemoryReader | None,
    mesh: jax.sharding.Mesh,
) -> list[_HeldOut]:
    starts = range(0, len(examples), size)
    measured = len(starts[:loss_batches])
    starts = starts[: max(measured, -(-answered // size))]
    if not starts:
        return []
    used = examples[: starts[-1] + size]
    others = other_documents(examples, len(used)) if controls else None
    asked = _questions(used[:answered], records, tokenizer, encoding)
    shapes = plan_shapes(examples, tokenizer)
    asked_shapes = plan_shapes(asked, tokenizer, documents=shapes.documents) if asked else None
    distinct = None
    if encoding.ranks and memories is None:  # one number for all, so that all run through one program
        distinct = divisible(
            most_distinct([part[start : start + size] for part in (used, others or []) for start in starts]), mesh
        )

    batches = []
    for number, start in enumerate(starts):
        rows = slice(start, start + size)
        cases: dict[str, Callable[[], Batch]] = {
            REAL: partial(collate, used[rows], shapes, tokenizer, size, memories, distinct)
        }
        if controls:
            cases[NO_MEMORY] = partial(_make_without_memory, cases[REAL])
        if others:
            cases[OTHER_MEMORY] = partial(collate, others[rows], shapes, tokenizer, size, memories, distinct)
        asked_cases = {}
        if asked_shapes is not None and asked[rows]:
            real = collate(asked[rows], asked_shapes, tokenizer, size)
            asked_cases = {case: _without_memory(real) if case == NO_MEMORY else real for case in cases}
        batches.append(
            _HeldOut(
                cases=cases,
                measured=number < measured,
                ranked=number < measured and used[0].positives is not None,
                prompts={case: batch.prompt for case, batch in asked_cases.items()},
                golds=[record.gold_answers for record in records[rows][: len(asked[rows])]],
            )
        )
    return batches


def other_documents(examples: Sequence[Example], count: int) -> list[Example] | None:
    """Return the first ``count`` examples, each with the documents of another one (`disjoint_others`).

    These are repeated or cut to as many documents as the example had. No document is positive any more.

    Returns:
      None if there is no such other for one of them.
    """
    found = disjoint_others([frozenset(ids.tobytes() for ids in example.documents) for example in examples])[:count]
    results = []
    for example, other in zip(examples, found, strict=False):
        if other is None:
            return None
        documents = repeated(examples[other].documents, len(example.documents))
        positives = None if example.positives is None else ()
        results.append(dataclasses.replace(example, documents=documents, positives=positives))
    return results


def _questions(
    examples: Sequence[Example], records: Sequence[Record], tokenizer: ClaraTokenizer, encoding: Encoding
) -> list[Example]:
    """Return the examples with their prompts without targets, from which answers are generated.

    They are tokenized anew: in a prompt with its target, the tokens before the target may hold the target's beginning,
    where the tokenizer joins the two.
    """
    trained = record_prompts(records[: len(examples)], tokenizer, encoding)
    asked = [dataclasses.replace(prompt, target=None) for prompt in trained]
    results = []
    for example, prompt in zip(examples, tokenizer.encode_prompts(asked), strict=True):
        ids, index, labels = (np.array(part, np.int32) for part in (prompt.ids, prompt.memory_index, prompt.labels))
        results.append(dataclasses.replace(example, prompt_ids=ids, memory_index=index, labels=labels))
    return results


def _make_without_memory(make: Callable[[], Batch]) -> Batch:
    return _without_memory(make())


def _without_memory(batch: Batch) -> Batch:
    """Return the batch with the memories masked: no attention to them, and positions do not count them."""
    segment_ids = np.where(batch.prompt.memory_index < 0, batch.prompt.segment_ids, 0)
    return dataclasses.replace(batch, prompt=dataclasses.replace(batch.prompt, segment_ids=segment_ids))


def _selector(
    model: ClaraModel, ranks: bool, objective: Objective
) -> Callable[[Leaves, Leaves, Batch, Terms], tuple[jax.Array | None, jax.Array]]:
    """Make ``(trained, frozen, batch, numbers) -> (scores [B, D] or None, memories [B, K, M, E])``.

    The memories are those that the generator reads: the best k in their order where candidates are ranked, else all.
    """

    def rank(trained: Leaves, frozen: Leaves, batch: Batch, numbers: Terms):
        scores, documents, _ = rank_documents(model, merge(trained, frozen), batch, None)
        chosen, _ = select(scores, objective.top_k, objective.topk_method, objective.temperature, batch.document_valid)
        return scores, jnp.einsum("BKD,BDME->BKME", chosen.astype(documents.dtype), documents)

    def compress(trained: Leaves, frozen: Leaves, batch: Batch, numbers: Terms):
        assert isinstance(batch.documents, Sequences)  # only ranking stages have stored memories
        scaffold = numbers.get("scaffold", objective.scaffold)
        return None, encode_documents(model, merge(trained, frozen), batch.documents, scaffold=scaffold).memory

    return rank if ranks else compress


def _on_device(function: Callable, *arguments: Any) -> Any:
    """Call a function whose arguments must all be on the device already."""
    with jax.transfer_guard("disallow"):
        return function(*arguments)
