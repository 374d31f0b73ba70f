"""The configuration of a training stage, in groups: frozen dataclasses that pydantic validates.

Defaults are the paper's where the paper has one (Table 10). The string below a field describes it; the tables of
docs/training.md are made from these (``python -m docs.config_tables``).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from clara_jax.config_checks import (
    BelowOne,
    Bool,
    Count,
    Counts,
    Fraction,
    Name,
    Names,
    Natural,
    NonNegative,
    OneOf,
    Positive,
    Positives,
    Text,
    check,
    nearest,
    require,
    section,
)
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.encoding import DOCUMENTS, MEMORY, TEXT
from clara_jax.input_pipeline.records import ONE_DOCUMENT, RANKING_STAGES, TEXT_STAGES
from clara_jax.input_pipeline.windows import CROPS, START
from clara_jax.method.estimators.methods import METHODS
from clara_jax.method.generator import CE_OVER, TOKENS
from clara_jax.method.parameters import COMPRESSOR, overlap
from clara_jax.method.stages import NORMALIZATIONS, STAGES, Objective, Stage, as_text, stage_kind
from clara_jax.training.old_names import STAGE_NAMES

IN_RUN = "run"  # where a stage's memories are kept: in the run directory
QUESTIONS = "questions"  # of scp records, one by one
ENTRY_KINDS = ("scp", "instruct", *TEXT_STAGES, QUESTIONS)
COMPRESSING = ("lora/compressor", "lora/query_reasoner", "tokens")  # what prompts of texts never touch


def entry_kind(name: str) -> tuple[str | None, str]:
    """Split an entry of ``data.train`` or ``evaluation.data`` into the kind of records it names, or None, and files."""
    kind, colon, files = name.partition(":")
    return (kind, files) if colon and kind in ENTRY_KINDS else (None, name)


@section("data")
class DataConfig:
    """The training records of a stage, how they are cut, and how they share batches."""

    train: Names = ()
    """Files (JSONL, plain, `.gz`, `.zst`, local or `gs://`); globs and `${VARIABLE}` are allowed. A directory: a data
    set that was built (docs/datasets.md), its split `train`. `synthetic:train`: records of the synthetic corpus.
    `KIND:FILES`, in stages without ranking: records of another kind, docs/training.md#stages."""
    weights: Positives = ()
    """How often records are drawn from each entry of `train`, relative to one another, each entry in separate epochs;
    none: all records are one set."""
    limit: Count | None = None
    """Read no more training records than this, from the first file on; of each entry, where there are `weights` or it
    names a kind."""
    doc_max_length: Count | None = None
    """Longest document, in tokens, of this stage instead of the run's. The number of memory tokens can change with one
    memory token for all places alone (`clara.different_mem_tokens`)."""
    compress_rate: Count | None = None
    """Tokens of a full document per memory vector, of this stage instead of the run's; as `doc_max_length`."""
    further_rates: Counts = ()
    """A batch has `compress_rate` or one of these, each equally often: one model for several rates. Each is above
    `compress_rate` and divides `doc_max_length`; one memory token for all places. Held-out values of a further rate
    begin with `rate_<R>_`. Not with packed rows, stored memories or ranking."""
    crop: Annotated[str, OneOf(CROPS)] = START
    """Documents of questions beyond `doc_max_length` are cut at their `start`, or to a window that holds the `answer`
    (the positive ones). Passages are always cut to a window that is drawn from them."""
    documents: Annotated[str, OneOf(DOCUMENTS)] = MEMORY
    """`text`, not for `retrieval`: the control of equal data, docs/training.md#the-control-of-equal-data. Up to
    `topk.k` documents stand in the prompt as texts; the generator alone is trained, by L_CE."""
    memories: Text = ""
    """`end_to_end`, `retrieval`: a directory (or `gs://...`) of memories that are compressed once, before the first
    step, docs/training.md#documents-compressed-once; `run`: `memories/` in the run directory; empty: in every step."""
    buckets: Count = 1
    """Shapes of batches, at most: examples of about one size share a batch, and the step is compiled once for each
    shape. With 1 every batch has the shape of the largest example."""
    pack: Natural = 0
    """`scp`, `autoencode`, `continue`: tokens of documents, their memory tokens among them, that share a row; 0: a row
    for each record. Rows must divide among `optimizer.accumulate` and the parts that the mesh splits a batch into: pack
    where a batch fills several rows for each of them."""

    def __post_init__(self):
        check(self, "train", bool(self.train), "name at least one file")
        weights = not self.weights or len(self.weights) == len(self.train)
        check(self, "weights", weights, f"give one for each of the {len(self.train)} entries of train")
        check(self, "pack", not self.pack or self.buckets == 1, "packed rows have one shape; leave buckets at 1")
        rule = "with documents=text there are no documents' tokens to pack; leave it at 0, and raise buckets instead"
        check(self, "pack", not self.pack or self.documents != TEXT, rule)
        rule = "with documents=text nothing reads them; leave it empty"
        check(self, "memories", not self.memories or self.documents != TEXT, rule)
        rates = self.further_rates
        check(self, "further_rates", len(set(rates)) == len(rates), "each must be named once")


@section("optimizer")
class OptimizerConfig:
    """The steps of a stage, and AdamW's hyperparameters in them."""

    steps: Count | None = None
    """Optimizer steps; exactly one of `steps` and `epochs` is given."""
    epochs: Positive | None = None
    """Passes over the training records of all entries, a fraction allowed."""
    batch_size: Count = 128
    """Records of one optimizer step, over all devices."""
    accumulate: Count = 1
    """Parts that a batch is computed in, one after the other; divides `batch_size`."""
    learning_rate: Positive = 1e-4
    """The peak of the learning rate, after warm-up."""
    schedule: Literal["cosine", "constant", "cosine_with_minimum"] = "cosine"
    """Of the learning rate after warm-up; `cosine` falls to zero."""
    minimum_ratio: Fraction = 0.1
    """Where `cosine_with_minimum` ends, as a fraction of the peak."""
    warmup: NonNegative = 0.03
    """Below 1 a fraction of the stage's steps, otherwise a number of steps."""
    weight_decay: NonNegative = 0.0
    """Of AdamW, on matrices alone."""
    betas: Annotated[tuple[BelowOne, BelowOne], "two numbers in [0, 1)"] = (0.9, 0.999)
    """Of AdamW."""
    eps: Positive = 1e-8
    """Of AdamW."""
    clip_norm: Positive = 1.0
    """Largest global norm of a gradient."""

    def __post_init__(self):
        whole = self.warmup < 1 or float(self.warmup).is_integer()
        check(self, "warmup", whole, "from 1 on it is a whole number of steps")
        rule = f"it must divide batch_size {self.batch_size}"
        check(self, "accumulate", self.batch_size % self.accumulate == 0, rule)

    @property
    def microbatch(self) -> int:
        """Records of a part that a batch is computed in."""
        return self.batch_size // self.accumulate

    def total_steps(self, examples: int) -> int:
        """Return the stage's optimizer steps for a number of training records; at least one."""
        if self.steps:
            return self.steps
        assert self.epochs is not None  # exactly one of the two is given
        return max(1, math.ceil(self.epochs * examples / self.batch_size))

    def warmup_steps(self, total_steps: int) -> int:
        """Return the number of steps before the learning rate's peak, fewer than ``total_steps``."""
        steps = math.ceil(self.warmup * total_steps) if self.warmup < 1 else int(self.warmup)
        return min(steps, total_steps - 1)


@section("objective")
class ObjectiveConfig:
    """The weights of the loss's terms, and the scaffold of the memories."""

    ce_over: Annotated[str, OneOf(CE_OVER)] = TOKENS
    """What L_CE is a mean over: labelled `tokens` (the paper), or `records`, of which each is a mean over its labels;
    so a short answer counts as much as a long text."""
    mse_weight: NonNegative = 0.1
    """λ of L = L_CE + λ L_MSE, in stages that train the compressor."""
    mse_reduction: Literal["mean", "sum"] = "mean"
    """L_MSE over the width: `mean` (released code) or `sum` (the paper's squared norm)."""
    marginal_weight: NonNegative = 0.0
    """`end_to_end`: of the loss -log Σ_d p(d|x) p(y|x, d) over the selected documents, which gives the ranking the
    gradient that the straight-through estimator drops; `topk.k` more forward passes of the generator. 0 is off."""
    scaffold: Fraction = 0.0
    """β of the memory map at the stage's start, see docs/reading.md; 0 is none."""
    scaffold_end: Fraction | None = None
    """β at the stage's end; none leaves it as it is."""
    scaffold_schedule: Literal["linear", "cosine"] = "linear"
    """How β gets there."""
    scaffold_steps: Count | None = None
    """Over so many steps; none: all of the stage's."""

    def __post_init__(self):
        falls = self.scaffold_end is not None
        check(self, "scaffold_steps", self.scaffold_steps is None or falls, "it goes with scaffold_end")

    @property
    def has_scaffold(self) -> bool:
        """Whether β is above 0 at the stage's start or end."""
        return self.scaffold > 0 or bool(self.scaffold_end)


@section("topk")
class TopKConfig:
    """The ranking of documents, and the differentiable choice of the best."""

    k: Count = 5
    """Documents that the generator reads (`scp`: one)."""
    candidates: Count = 20
    """`end_to_end`, `retrieval`: documents that the query reasoner ranks."""
    search_every: Count | None = None
    """`end_to_end`: candidates come from a search over the documents of all training records, drawn again every so many
    steps with the query reasoner as it is then; docs/training.md#candidates-from-the-whole-corpus. None: those of the
    records."""
    method: Annotated[str, OneOf(METHODS)] = "iterative"
    """Whose gradient stands in for that of the choice, see docs/topk.md: the paper's is `iterative`; our configs take
    `neuralsort`, at a `temperature` of 0.1."""
    score_normalization: Annotated[str, OneOf(NORMALIZATIONS)] = "none"
    """`standard`: scores of a question's candidates are brought to mean 0 and standard deviation 1 before they are
    divided by τ."""
    temperature: Positive = 0.02
    """τ of the softmax over scores."""
    temperature_schedule: Literal["constant", "cosine", "steps"] = "constant"
    """`cosine`: from `temperature` to `temperature_end` over the stage; `steps`: from step `temperature_steps[i]` on
    it is `temperature_values[i]`, before that `temperature`; see docs/topk.md. Held-out losses are at `temperature`."""
    temperature_end: Positive | None = None
    """τ at the end of a `cosine`."""
    temperature_steps: Counts = ()
    """The steps from which on τ is another, rising."""
    temperature_values: Positives = ()
    """τ from each of these steps on."""
    learn_temperature: Bool = False
    """Train τ, too, from `temperature` on."""

    def __post_init__(self):
        schedule, steps = self.temperature_schedule, self.temperature_steps
        with_end = (self.temperature_end is not None) == (schedule == "cosine")
        check(self, "temperature_end", with_end, "it goes with temperature_schedule=cosine")
        with_steps = bool(steps) == (schedule == "steps")
        check(self, "temperature_steps", with_steps, "they go with temperature_schedule=steps")
        rising = all(a < b for a, b in zip((0, *steps), steps, strict=False))
        check(self, "temperature_steps", rising, "they must rise from 1")
        given = len(self.temperature_values) == len(steps)
        check(self, "temperature_values", given, f"give one for each of {steps}")
        alone = not self.learn_temperature or schedule == "constant"
        check(self, "learn_temperature", alone, "or a schedule, not both")


@section("evaluation")
class EvaluationConfig:
    """The held-out records of a stage, and what is measured on them while it trains."""

    data: Names = ()
    """Held-out files of the same format as `data.train`, a built data set (its split `eval`), or `synthetic:eval`.
    Questions, texts of each kind and records of `scp` are measured apart."""
    limit: Count | None = None
    """Measure no more held-out records, of each entry that names a kind: drawn from all, always the same ones.
    Without a limit all are measured, and the first `answers` of them answered, which in a file sorted by article are
    about one."""
    every: Count | None = None
    """Steps between evaluations; none: before the first step and after the last."""
    batches: Count | None = None
    """Batches of one evaluation; none: all of `data`."""
    answers: Natural = 64
    """Held-out questions that are answered in one evaluation, for exact match and F1; 0 for none."""
    answer_tokens: Count = 32
    """Longest such answer, in tokens."""
    controls: Bool = True
    """Evaluate without memory and with another document's memory, too, where there are memories."""
    gradients: Bool = False
    """`end_to_end`: evaluate the norms of the two gradients of the scores, and the cosine between them, too
    (docs/topk.md#the-two-gradients-of-a-score); costs a step, and `topk.k` forward passes more."""

    def __post_init__(self):
        check(self, "every", self.every is None or bool(self.data), "data names no file to evaluate on")
        check(self, "gradients", not self.gradients or bool(self.data), "data names no file to measure on")


@section("saving")
class StageSavingConfig:
    """What a stage writes while it trains."""

    every: Count | None = None
    """Steps between checkpoints, besides those by time (the run's `saving.minutes`) and the stage's last."""
    log_every: Count = 1
    """Steps between lines of metrics."""


@section(old_names=STAGE_NAMES)
class StageConfig:
    """A stage of training; several of a kind in a run have different endings: "instruct_32", "instruct_64"."""

    name: Name
    """`scp`, `instruct`, `end_to_end`, `retrieval`, or, from text alone, `autoencode` or `continue`; in a config file
    the section's name."""
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    topk: TopKConfig = TopKConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    saving: StageSavingConfig = StageSavingConfig()
    trains: Annotated[tuple[Name, ...], "a tuple of names of subtrees"] | None = None
    """Subtrees of the parameters that are trained, e.g. `lora/generator`; none: those of the stage."""
    reset: Names = ()
    """Subtrees of `lora` and `tokens` that the stage starts afresh, as if none had trained them; none: it goes on with
    what the one before has left. See docs/training.md#what-a-stage-starts-from."""

    def __post_init__(self):
        if self.kind not in STAGES:
            raise ClaraError(f"config.stages: there is no stage {self.name!r}{nearest(self.name, STAGES)}")

        def rule(field: str, condition: bool, text: str):
            group, _, last = field.rpartition(".")
            value = getattr(getattr(self, group) if group else self, last)
            require(condition, f"{self.name}.", field, value, text)

        data, optimizer, objective, topk, evaluation = (
            self.data,
            self.optimizer,
            self.objective,
            self.topk,
            self.evaluation,
        )
        if (optimizer.steps is None) == (optimizer.epochs is None):
            both = "neither is" if optimizer.steps is None else "both are"
            raise ClaraError(
                f"config.{self.name}.optimizer: give exactly one of steps and epochs, {both} given "
                f"(on the command line 0 stands for none: --config.{self.name}.optimizer.epochs=0)"
            )
        # Of records and documents.
        as_texts = data.documents == TEXT
        packed = not data.pack or self.kind in ONE_DOCUMENT
        rule("data.pack", packed, f"only records of {', '.join(ONE_DOCUMENT)} are packed")
        alone = not data.further_rates or not (data.pack or data.memories or self.ranks or as_texts)
        text = "several rates go with stages that compress their documents in rows of their own, and rank nothing"
        rule("data.further_rates", alone, text)
        text = "retrieval ranks memories; take another stage"
        rule("data.documents", not as_texts or self.kind != "retrieval", text)
        for field, entries in (("data.train", data.train), ("evaluation.data", evaluation.data)):
            one_kind = self.kind not in RANKING_STAGES or all(entry_kind(name)[0] is None for name in entries)
            rule(field, one_kind, f"{self.kind} ranks documents: records of other kinds have no place in it")
        # Of what is trained.
        trained = [name for name in self.subtrees if any(overlap(name, part) for part in COMPRESSOR)]
        compresses = bool(trained) and not as_texts
        text = "only stages that train the compressor have one"
        rule("objective.scaffold", not objective.has_scaffold or compresses, text)
        untouched = [name for name in self.trains or () if any(overlap(name, part) for part in COMPRESSING)]
        text = f"with documents=text nothing reads {', '.join(untouched)}; name lora/generator (or base) alone"
        rule("trains", not as_texts or not untouched, text)
        rule("trains", self.trains is None or bool(self.trains), "name at least one subtree, or leave it out")
        fresh = all(overlap(name, "lora") or overlap(name, "tokens") for name in self.reset)
        rule("reset", fresh, "only subtrees of lora and tokens are started afresh, e.g. lora/generator")
        text = f"{self.name} trains {', '.join(trained)}: memories that are kept would grow old; leave it empty"
        rule("data.memories", not data.memories or not trained, text)
        text = "only end_to_end and retrieval read memories that are kept"
        rule("data.memories", not data.memories or self.ranks, text)
        # Of the ranking.
        nothing = f"{self.name} ranks nothing" + (" with documents=text" if as_texts else "")
        rule("topk.learn_temperature", not topk.learn_temperature or self.ranks, nothing)
        searches = self.kind == "end_to_end" and self.ranks and bool(data.memories)
        text = "only end_to_end with stored memories searches; set data.memories=run"
        rule("topk.search_every", topk.search_every is None or searches, text)
        if self.kind == "end_to_end":
            rule("topk.k", topk.k <= topk.candidates, f"it may not exceed candidates {topk.candidates}")
        is_end_to_end = not objective.marginal_weight or self.kind == "end_to_end"
        rule("objective.marginal_weight", is_end_to_end, "only end_to_end has that term")
        rule("objective.marginal_weight", not objective.marginal_weight or self.ranks, nothing)
        both_gradients = self.kind == "end_to_end" and self.ranks
        text = "only end_to_end with memories has them"
        rule("evaluation.gradients", not evaluation.gradients or both_gradients, text)

    @property
    def kind(self) -> str:
        """The one of `STAGES` that it is: the name without its ending."""
        return stage_kind(self.name)

    @property
    def ranks(self) -> bool:
        """Whether questions rank documents."""
        return self.kind in RANKING_STAGES and self.data.documents != TEXT

    @property
    def stage(self) -> Stage:
        """The stage of the method: what is trained, and by which loss."""
        return as_text(STAGES[self.kind]) if self.data.documents == TEXT else STAGES[self.kind]

    @property
    def subtrees(self) -> tuple[str, ...]:
        """Paths of the subtrees that are trained: ``trains``, else those of `stage`."""
        return self.trains or self.stage.trains

    @property
    def hyperparameters(self) -> Objective:
        """The numbers that the method's loss takes, at the stage's start."""
        loss, topk = self.objective, self.topk
        return Objective(
            ce_over=loss.ce_over,
            scaffold=loss.scaffold,
            mse_weight=loss.mse_weight,
            mse_reduction=loss.mse_reduction,
            top_k=topk.k,
            temperature=topk.temperature,
            topk_method=topk.method,
            score_normalization=topk.score_normalization,
            marginal_weight=loss.marginal_weight,
        )
