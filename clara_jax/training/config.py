"""The configuration of a training run, as frozen dataclasses that check themselves.

A config file builds an `ml_collections.ConfigDict`; `resolve` turns it, once, into a `RunConfig`. From there on no
field is looked up by a string, nothing is missing, and every value has been checked. `to_json` writes the resolved
config into the run directory, `from_json` reads it back.

A ConfigDict holds the fields of `RunConfig`, with ``stages`` as the names of the stages in order, and a section of that
name for each of them: a flag reaches every field of every stage (``--config.scp.learning_rate=1e-4``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from clara_jax.data.synthetic import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import ON_ERROR
from clara_jax.input_pipeline.encoding import DOCUMENTS, MEMORY, TEXT
from clara_jax.input_pipeline.records import ONE_DOCUMENT, RANKING_STAGES, TEXT_STAGES
from clara_jax.input_pipeline.windows import CROPS, START
from clara_jax.method.clara import AFFINE, ClaraConfig
from clara_jax.method.parameters import COMPRESSOR, overlap
from clara_jax.method.stages import CE_OVER, NORMALIZATIONS, STAGES, TOKENS, Objective, Stage, as_text
from clara_jax.method.topk import METHODS
from clara_jax.model.attention import IMPLEMENTATIONS
from clara_jax.model.precision import CHOICES
from clara_jax.model.sharding import AXES
from clara_jax.model.transformer import REMAT_POLICIES

SCHEDULES = ("cosine", "constant", "cosine_with_minimum")
NON_FINITE = ("stop", "skip")
SCRATCH = "scratch"
IN_RUN = "run"  # where a stage's memories are kept: in the run directory
TEMPERATURE_SCHEDULES = ("constant", "cosine", "steps")
SCAFFOLD_SCHEDULES = ("linear", "cosine")
QUESTIONS = "questions"  # of scp records, one by one
ENTRY_KINDS = ("scp", "instruct", *TEXT_STAGES, QUESTIONS)
MSE_REDUCTIONS = ("mean", "sum")
COMPRESSING = ("lora/compressor", "lora/query_reasoner", "tokens")  # what prompts of texts never touch


class MeshSizes(typing.TypedDict):
    """Devices along each axis of the mesh, see `clara_jax.model.sharding.AXES`."""

    replica: int
    data: int
    model: int


def stage_kind(name: str) -> str:
    """Return the one of `STAGES` that a section's name stands for.

    It is the name itself, or the longest stage that the name begins with, followed by "_"; the name as it is where
    there is none.
    """
    fitting = [stage for stage in STAGES if name == stage or name.startswith(f"{stage}_")]
    return max(fitting, key=len, default=name)


def entry_kind(name: str) -> tuple[str | None, str]:
    """Split an entry of ``train_data`` or ``eval_data`` into the kind of records that it names, or None, and files."""
    kind, colon, files = name.partition(":")
    return (kind, files) if colon and kind in ENTRY_KINDS else (None, name)


def _require(condition: bool, where: str, field: str, value: Any, rule: str) -> None:
    if not condition:
        raise ClaraError(f"config.{where}{field} is {value!r}; {rule}")


def _one_of(names: Iterable[str]) -> str:
    return "it must be one of " + ", ".join(names)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The base language model.

    Attributes:
      base: "smollm2", a directory, a .gguf file or a hub id; "scratch" for a fresh one of the sizes in
        `RunConfig.scratch`; "" where `RunConfig.initial_checkpoint` names it.
      precision: "bfloat16" (base and compute; adapters, norms, softmax, losses stay float32), "float32" throughout, or
        "mixed" (base stored and multiplied as bfloat16, all else float32); "auto": on CPUs "mixed" where the processor
        has the instructions and "float32" elsewhere, on accelerators "bfloat16". A run keeps what it began with.
      remat: what the backward pass keeps of a block, a name of `REMAT_POLICIES`: "none" keeps everything, "full" only
        its input, "dots" the matrix products, "names" its input and the output of attention, "offload" the same in the
        host's memory.
      attention: how attention is computed: "auto" goes by the devices, or "xla", "blockwise" (for
        CPUs), "splash" (TPU), "cudnn" (NVIDIA GPU).
    """

    base: str = ""
    precision: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        _require(self.precision in CHOICES, "model.", "precision", self.precision, _one_of(CHOICES))
        _require(self.remat in REMAT_POLICIES, "model.", "remat", self.remat, _one_of(REMAT_POLICIES))
        _require(self.attention in IMPLEMENTATIONS, "model.", "attention", self.attention, _one_of(IMPLEMENTATIONS))


@dataclasses.dataclass(frozen=True)
class ScratchSection:
    """A small base made fresh, in the Llama architecture; names as in a ``config.json``.

    Its tokenizer has a token for every word of the training records. Stages train the base by ``trains``.
    """

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    rope_theta: float = 10000.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(value > 0, "scratch.", field.name, value, "it must be positive")
        heads = self.num_attention_heads
        rule = f"it must be an even multiple of num_attention_heads {heads}"
        _require(self.hidden_size % (2 * heads) == 0, "scratch.", "hidden_size", self.hidden_size, rule)
        rule = f"it must divide num_attention_heads {heads}"
        _require(
            heads % self.num_key_value_heads == 0, "scratch.", "num_key_value_heads", self.num_key_value_heads, rule
        )


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of training. Its defaults are the paper's where the paper has one (Table 10).

    Attributes:
      name: "scp", "instruct", "end_to_end", "retrieval", or, from text alone, "autoencode" or "continue". Several
        stages of a kind in a run have different endings: "instruct_32", "instruct_64".
      train_data: JSONL files; glob patterns and ``${VARIABLE}`` are allowed (see `data_files`). A directory is a data
        set that ``python -m clara_jax.data build`` made, of which the split "train" is read. "synthetic:train" names
        records of the synthetic corpus (`RunConfig.synthetic`). Stages without ranking mix records of several kinds:
        "KIND:FILES" reads files as records of that stage ("autoencode:pool/*.jsonl.gz"), and "questions:FILES" makes
        one record of each question of scp records.
      train_weights: how often records are drawn from each entry of ``train_data``, relative to one another, each entry
        in separate epochs; () takes all records as one set. ``epochs`` counts the records of all entries.
      eval_data: held-out files of the same format, a data set's directory (its split "eval"), or "synthetic:eval".
        Records of several kinds are measured apart.
      doc_max_length, compress_rate: of this stage, instead of the run's; None leaves them. The number of memory tokens
        can change with one memory token for all places alone (``clara.different_mem_tokens``).
      further_rates: a batch has ``compress_rate`` or one of these, each equally often: one model for several rates.
        Each is above ``compress_rate`` and divides ``doc_max_length``; held-out records are measured at each.
      crop: documents of questions that are longer than ``doc_max_length`` are cut at their "start", or to a window that
        holds the "answer" (the positive ones).
      steps: optimizer steps; exactly one of ``steps`` and ``epochs`` is given.
      epochs: passes over the training records, a fraction allowed.
      batch_size: records of one optimizer step, over all devices.
      accumulate: parts that a batch is computed in, one after the other; divides ``batch_size``.
      learning_rate: the peak.
      schedule: after warm-up "cosine" (to zero), "constant", or "cosine_with_minimum".
      minimum_ratio: where "cosine_with_minimum" ends, as a fraction of the peak.
      warmup: below 1 a fraction of the stage's steps, otherwise a number of steps.
      weight_decay: of AdamW, on matrices alone.
      betas, eps: of AdamW.
      clip_norm: largest global norm of a gradient.
      ce_over: what L_CE is a mean over: labelled "tokens" (the paper), or "records", of which each is a mean over its
        labels; so a short answer counts as much as a long text.
      scaffold: β of the memory map at the stage's start (`clara_jax.method.compressor`); 0 is none.
      scaffold_end: β at its end; None leaves it as it is.
      scaffold_schedule: how it gets there, "linear" or "cosine".
      scaffold_steps: over so many steps; None takes all of the stage's.
      mse_weight: λ of L = L_CE + λ L_MSE, in stages that train the compressor.
      mse_reduction: L_MSE over the embedding axis: "mean" (released code) or "sum" (the paper's squared norm).
      top_k: documents that the generator reads.
      candidates: documents that the query reasoner ranks (end_to_end, retrieval).
      temperature: τ of the softmax over cosine scores.
      temperature_schedule: "constant", "cosine" (from ``temperature`` to ``temperature_end`` over the stage), or
        "steps": from step ``temperature_steps[i]`` on it is ``temperature_values[i]``, before that ``temperature``.
      learn_temperature: train τ, too, from ``temperature`` on.
      score_normalization: "none", or "standard": scores of a question's candidates are brought to mean 0 and standard
        deviation 1 before they are divided by τ.
      topk_method: whose gradient stands in for that of the choice, one of `clara_jax.method.topk.METHODS`; the paper's
        is "iterative".
      marginal_weight: of the loss -log Σ_d p(d|x) p(y|x, d) over the selected documents, which gives the ranking the
        gradient that the straight-through estimator drops; ``top_k`` more forward passes of the generator. 0 is off.
      buckets: shapes of batches, at most: examples of about one size share a batch, and the step is compiled for each
        shape. With 1 every batch has the shape of the largest example.
      pack: tokens of documents, their memory tokens among them, that share a row in scp, where several records fit into
        one; 0 gives each record a separate row. ``batch_size`` counts records in any case.
      memories: a directory, or the URL of a bucket, where the memories of all documents are kept: compressed once,
        before the first step, and then read instead of compressing the documents in each step. For end_to_end and
        retrieval, where the compressor is frozen. "run" keeps them in the run directory, below ``memories``. ""
        compresses in each step, every distinct document of its batch once.
      documents: "memory", or "text": the control of equal data. Up to ``top_k`` documents, positive ones first (of scp
        the one), stand in the prompt as texts, each cut where the compressor would cut it; the generator alone is
        trained, by L_CE. Nothing is compressed or ranked. Not for retrieval.
      train_limit, eval_limit: read no more records than this; of each entry, where ``train_weights`` are given or the
        entry names the kind of its records.
      eval_every: steps between evaluations; None evaluates before the first step and after the last.
      eval_batches: batches of one evaluation; None takes all of ``eval_data``.
      eval_answers: held-out questions that are answered in one evaluation, for exact match and F1; 0 for none.
      answer_tokens: longest such answer.
      eval_controls: evaluate without memory and with another document's memory as well, where there are memories.
      eval_gradients: evaluate the norms of the two gradients that the scores of end_to_end have, too, and the cosine
        between them (see `clara_jax.method.gradient_paths`); costs a step, and ``top_k`` forward passes more.
      save_every: steps between checkpoints, besides those that `RunConfig.save_minutes` asks for and the stage's last.
      log_every: steps between lines of metrics.
      trains: the subtrees of the parameters that are trained, e.g. "lora/generator"; None takes the stage's list.
    """

    name: str
    train_data: tuple[str, ...]
    train_weights: tuple[float, ...] = ()
    eval_data: tuple[str, ...] = ()
    doc_max_length: int | None = None
    compress_rate: int | None = None
    further_rates: tuple[int, ...] = ()
    crop: str = START
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    minimum_ratio: float = 0.1
    warmup: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    ce_over: str = TOKENS
    scaffold: float = 0.0
    scaffold_end: float | None = None
    scaffold_schedule: str = "linear"
    scaffold_steps: int | None = None
    mse_weight: float = 0.1
    mse_reduction: str = "mean"
    top_k: int = 5
    candidates: int = 20
    temperature: float = 0.02
    temperature_schedule: str = "constant"
    temperature_end: float | None = None
    temperature_steps: tuple[int, ...] = ()
    temperature_values: tuple[float, ...] = ()
    learn_temperature: bool = False
    score_normalization: str = "none"
    topk_method: str = "iterative"
    marginal_weight: float = 0.0
    buckets: int = 1
    pack: int = 0
    memories: str = ""
    documents: str = MEMORY
    train_limit: int | None = None
    eval_limit: int | None = None
    eval_every: int | None = None
    eval_batches: int | None = None
    eval_answers: int = 64
    answer_tokens: int = 32
    eval_controls: bool = True
    eval_gradients: bool = False
    save_every: int | None = None
    log_every: int = 1
    trains: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.kind not in STAGES:
            raise ClaraError(f"config.stages: there is no stage {self.name!r}{_nearest(self.name, STAGES)}")

        def check(field: str, condition: bool, rule: str):
            _require(condition, f"{self.name}.", field, getattr(self, field), rule)

        check("train_data", bool(self.train_data) and all(self.train_data), "name at least one file")
        weights = not self.train_weights or len(self.train_weights) == len(self.train_data)
        check("train_weights", weights, f"give one for each of the {len(self.train_data)} entries of train_data")
        check("train_weights", all(0 < w < math.inf for w in self.train_weights), "all must be positive")
        check("eval_data", all(self.eval_data), "a file name may not be empty")
        if (self.steps is None) == (self.epochs is None):
            both = "neither is" if self.steps is None else "both are"
            raise ClaraError(
                f"config.{self.name}: give exactly one of steps and epochs, {both} given "
                f"(on the command line 0 stands for none: --config.{self.name}.epochs=0)"
            )
        counts = ("steps", "batch_size", "accumulate", "top_k", "candidates", "log_every", "answer_tokens", "buckets")
        counts += ("doc_max_length", "compress_rate", "scaffold_steps")
        for field in counts + ("train_limit", "eval_limit", "eval_every", "eval_batches", "save_every"):
            check(field, getattr(self, field) is None or getattr(self, field) >= 1, "it must be at least 1")
        for field in ("epochs", "learning_rate", "eps", "clip_norm", "temperature", "temperature_end"):
            value = getattr(self, field)
            check(field, value is None or 0 < value < math.inf, "it must be positive")
        for field in ("weight_decay", "mse_weight", "marginal_weight", "warmup", "eval_answers", "pack"):
            check(field, 0 <= getattr(self, field) < math.inf, "it must be zero or positive")
        check("warmup", self.warmup < 1 or float(self.warmup).is_integer(), "from 1 on it is a whole number of steps")
        rule = f"only records of {', '.join(ONE_DOCUMENT)} are packed"
        check("pack", not self.pack or self.kind in ONE_DOCUMENT, rule)
        check("pack", not self.pack or self.buckets == 1, "packed rows have one shape; leave buckets at 1")
        rates = self.further_rates
        check("further_rates", all(rate >= 1 for rate in rates), "each must be at least 1")
        check("further_rates", len(set(rates)) == len(rates), "each must be named once")
        good = not rates or not (self.pack or self.memories or self.ranks or self.documents == TEXT)
        rule = "several rates go with stages that compress their documents in rows of their own, and rank nothing"
        check("further_rates", good, rule)
        check("documents", self.documents in DOCUMENTS, _one_of(DOCUMENTS))
        as_texts = self.documents == TEXT
        check("documents", not as_texts or self.kind != "retrieval", "retrieval ranks memories; take another stage")
        check("crop", self.crop in CROPS, _one_of(CROPS))
        check("ce_over", self.ce_over in CE_OVER, _one_of(CE_OVER))
        for field in ("scaffold", "scaffold_end"):
            value = getattr(self, field)
            check(field, value is None or 0 <= value <= 1, "it must be in [0, 1]")
        check("scaffold_schedule", self.scaffold_schedule in SCAFFOLD_SCHEDULES, _one_of(SCAFFOLD_SCHEDULES))
        falls = self.scaffold_end is not None
        check("scaffold_steps", self.scaffold_steps is None or falls, "it goes with scaffold_end")
        trains = any(overlap(name, part) for name in self.subtrees for part in COMPRESSOR)
        rule = "only stages that train the compressor have one"
        check("scaffold", not self.has_scaffold or (trains and not as_texts), rule)
        for field in ("train_data", "eval_data"):
            kinds = [entry_kind(name)[0] for name in getattr(self, field)]
            mixed = all(kind is None for kind in kinds) or self.kind not in RANKING_STAGES
            check(field, mixed, f"{self.kind} ranks documents: records of other kinds have no place in it")
        rule = "with documents=text there are no documents' tokens to pack; leave it at 0, and raise buckets instead"
        check("pack", not self.pack or not as_texts, rule)
        check("memories", not self.memories or not as_texts, "with documents=text nothing reads them; leave it empty")
        untouched = [name for name in self.trains or () if any(overlap(name, part) for part in COMPRESSING)]
        rule = f"with documents=text nothing reads {', '.join(untouched)}; name lora/generator (or base) alone"
        check("trains", not as_texts or not untouched, rule)
        check("accumulate", self.batch_size % self.accumulate == 0, f"it must divide batch_size {self.batch_size}")
        check("schedule", self.schedule in SCHEDULES, _one_of(SCHEDULES))
        check("minimum_ratio", 0 <= self.minimum_ratio <= 1, "it must be in [0, 1]")
        check("betas", all(0 <= beta < 1 for beta in self.betas), "both must be in [0, 1)")
        check("score_normalization", self.score_normalization in NORMALIZATIONS, _one_of(NORMALIZATIONS))
        check("topk_method", self.topk_method in METHODS, _one_of(METHODS))
        schedule, steps = self.temperature_schedule, self.temperature_steps
        check("temperature_schedule", schedule in TEMPERATURE_SCHEDULES, _one_of(TEMPERATURE_SCHEDULES))
        check("temperature_end", (self.temperature_end is not None) == (schedule == "cosine"), "it goes with cosine")
        check("temperature_steps", bool(steps) == (schedule == "steps"), "they go with temperature_schedule=steps")
        check(
            "temperature_steps", all(a < b for a, b in zip((0, *steps), steps, strict=False)), "they must rise from 1"
        )
        check("temperature_values", len(self.temperature_values) == len(steps), f"give one for each of {steps}")
        check("temperature_values", all(0 < value < math.inf for value in self.temperature_values), "all above 0")
        check("learn_temperature", not self.learn_temperature or schedule == "constant", "or a schedule, not both")
        nothing = f"{self.name} ranks nothing" + (" with documents=text" if as_texts else "")
        check("learn_temperature", not self.learn_temperature or self.ranks, nothing)
        only = not self.marginal_weight or self.kind == "end_to_end"
        check("marginal_weight", only, "only end_to_end has that term")
        check("marginal_weight", not self.marginal_weight or self.ranks, nothing)
        check("mse_reduction", self.mse_reduction in MSE_REDUCTIONS, _one_of(MSE_REDUCTIONS))
        trained = [name for name in self.subtrees if any(overlap(name, part) for part in COMPRESSOR)]
        rule = f"{self.name} trains {', '.join(trained)}: memories that are kept would grow old; leave it empty"
        check("memories", not self.memories or not trained, rule)
        if self.kind == "end_to_end":
            check("top_k", self.top_k <= self.candidates, f"it may not exceed candidates {self.candidates}")
        check("eval_every", self.eval_every is None or bool(self.eval_data), "eval_data names no file to evaluate on")
        only = "only end_to_end with memories has them"
        check("eval_gradients", not self.eval_gradients or (self.kind == "end_to_end" and self.ranks), only)
        check(
            "eval_gradients", not self.eval_gradients or bool(self.eval_data), "eval_data names no file to measure on"
        )
        check("trains", self.trains is None or bool(self.trains), "name at least one subtree, or leave it out")

    @property
    def kind(self) -> str:
        """The one of `STAGES` that it is: the name without its ending."""
        return stage_kind(self.name)

    @property
    def has_scaffold(self) -> bool:
        """Whether β is above 0 at the stage's start or end."""
        return self.scaffold > 0 or bool(self.scaffold_end)

    @property
    def ranks(self) -> bool:
        """Whether questions rank documents."""
        return self.kind in RANKING_STAGES and self.documents == MEMORY

    @property
    def stage(self) -> Stage:
        """The stage of the method: what is trained, and by which loss."""
        return as_text(STAGES[self.kind]) if self.documents == TEXT else STAGES[self.kind]

    @property
    def subtrees(self) -> tuple[str, ...]:
        """Paths of the subtrees that are trained: ``trains``, else those of `stage`."""
        return self.trains or self.stage.trains

    @property
    def objective(self) -> Objective:
        """The numbers of the stage's loss."""
        return Objective(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Objective)})

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


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run: stages in order, each starting from the one before.

    Attributes:
      stages: in order; the first starts from ``initial_checkpoint`` or from fresh adapters.
      model, clara: the base and the method's sizes.
      seed: of initial values, order of records and dropout.
      mesh: devices along (data, model), or along (replica, data, model); see `clara_jax.model.sharding.make_mesh`.
      workdir: the run directory; the command's ``--workdir`` goes before it.
      initial_checkpoint: a run directory, one of its checkpoints, or a released CLaRa checkpoint.
      scratch: sizes of the base where ``model.base`` is "scratch".
      synthetic: the corpus of "synthetic:train" and "synthetic:eval".
      token_cache: where tokens of built data sets are kept; "" is ``clara_jax/tokens`` in the user's cache directory.
      save_minutes: time between checkpoints while a stage runs; a stage's last step is saved in any case.
      keep: checkpoints that are kept, the newest; each stage's last and best stay besides.
      best: the held-out value by which a checkpoint is best, e.g. "loss" or "exact_match"; "" keeps none for it.
      on_error: at a line of a data file that is no record, "stop", or "skip" it: it goes to ``rejected.jsonl`` in the
        run directory with its reason, and is counted in the metrics.
      non_finite: a step whose loss or gradient is not finite changes nothing; then "stop" the run with the batch's
        records on file, or "skip" the batch and count it.
      profile: write a profile of the steps from the first number up to the second, of the stage that runs.
      tensorboard: write TensorBoard events, too.
      show: questions of the last stage's held-out records that the finished model answers from memories in print; none
        where that stage has its documents as text.
      require_progress: fail at the end unless training and held-out loss have fallen in every stage.
      progress: show a progress bar (a line now and then where standard error is no terminal).
      progress_seconds: time between such lines.
    """

    stages: tuple[StageConfig, ...]
    model: ModelSection = ModelSection()
    clara: ClaraConfig = ClaraConfig()
    seed: int = 0
    mesh: tuple[int, ...] = (-1, 1)
    workdir: str = ""
    initial_checkpoint: str | None = None
    scratch: ScratchSection = ScratchSection()
    synthetic: SyntheticConfig = SyntheticConfig()
    token_cache: str = ""
    save_minutes: float = 10.0
    keep: int = 3
    best: str = "loss"
    on_error: str = "stop"
    non_finite: str = "stop"
    profile: tuple[int, int] | None = None
    tensorboard: bool = True
    show: int = 3
    require_progress: bool = False
    progress: bool = True
    progress_seconds: float = 30.0

    def __post_init__(self):
        _require(bool(self.stages), "", "stages", self.stages, f"name at least one of {', '.join(STAGES)}")
        _require(0 <= self.seed < 2**32, "", "seed", self.seed, "it must be in [0, 2^32)")
        good = len(self.mesh) in (2, 3) and self.mesh[-1] >= 1
        good = good and all(size >= 1 or size == -1 for size in self.mesh)
        rule = (
            "it must be (data, model) or (replica, data, model), each at least 1; data may be -1: all that is left; "
            "replica may be -1: one for each slice"
        )
        _require(good, "", "mesh", self.mesh, rule)
        _require(self.progress_seconds > 0, "", "progress_seconds", self.progress_seconds, "it must be positive")
        _require(self.save_minutes > 0, "", "save_minutes", self.save_minutes, "it must be positive")
        _require(self.keep >= 1, "", "keep", self.keep, "it must be at least 1")
        _require(self.show >= 0, "", "show", self.show, "it must be zero or positive")
        _require(self.on_error in ON_ERROR, "", "on_error", self.on_error, _one_of(ON_ERROR))
        _require(self.non_finite in NON_FINITE, "", "non_finite", self.non_finite, _one_of(NON_FINITE))
        window = self.profile is None or 0 <= self.profile[0] < self.profile[1]
        _require(window, "", "profile", self.profile, "it must be (first step, step after the last), e.g. 10,13")
        for stage in self.stages:
            try:
                clara = self.clara_of(stage)
            except ClaraError as error:
                raise ClaraError(f"config.{stage.name}: {error}") from None
            fixed = self.clara.different_mem_tokens and clara.memory_tokens != self.clara.memory_tokens
            rule = (
                f"it makes {clara.memory_tokens} memory tokens of {self.clara.memory_tokens}: only with one token for "
                "all places can their number change; set config.clara.different_mem_tokens=False"
            )
            _require(not fixed, f"{stage.name}.", "compress_rate", stage.compress_rate, rule)
            rule = (
                f"each must be above compress_rate {clara.compress_rate} and divide doc_max_length "
                f"{clara.doc_max_length}"
            )
            good = all(rate > clara.compress_rate and not clara.doc_max_length % rate for rate in stage.further_rates)
            _require(good, f"{stage.name}.", "further_rates", stage.further_rates, rule)
            rule = "only with one token for all places; set config.clara.different_mem_tokens=False"
            good = not (stage.further_rates and self.clara.different_mem_tokens)
            _require(good, f"{stage.name}.", "further_rates", stage.further_rates, rule)
            rule = 'only a memory map has one; set config.clara.memory_map="affine"'
            good = not stage.has_scaffold or clara.memory_map == AFFINE
            _require(good, f"{stage.name}.", "scaffold", stage.scaffold, rule)
        if not self.model.base and not self.initial_checkpoint:
            raise ClaraError(
                "config.model.base is empty: name a base model (smollm2, a directory, a .gguf file or a hub id), "
                "or a checkpoint to start from in config.initial_checkpoint"
            )

    def clara_of(self, stage: StageConfig) -> ClaraConfig:
        """Return the method's numbers in a stage: the run's, but for those that the stage names."""
        named = {name: getattr(stage, name) for name in ("doc_max_length", "compress_rate") if getattr(stage, name)}
        return dataclasses.replace(self.clara, **named)

    @property
    def mesh_sizes(self) -> MeshSizes:
        """Arguments of `clara_jax.model.sharding.make_mesh`."""
        replica, data, model = (-1, *self.mesh)[-len(AXES) :]
        return {"replica": replica, "data": data, "model": model}


def resolve(config: Any) -> RunConfig:
    """Return the checked `RunConfig` of a config file's `ml_collections.ConfigDict`.

    ``steps = 0`` and ``epochs = 0`` mean "not given": a flag cannot say None.

    Raises:
      ClaraError: an unknown field (with the nearest known name), a missing one, a wrong type, a value out of range.
    """
    try:
        values = dict(config.to_dict())
    except Exception as error:  # ml_collections: a required placeholder without value
        raise ClaraError(f"config: {error}") from error
    names = _convert(values.pop("stages", ()), tuple[str, ...], "config.stages")
    sections = {name: values.pop(name) for name in list(values) if stage_kind(name) in STAGES}
    known = (*(field.name for field in dataclasses.fields(RunConfig)), *STAGES)
    for name in values:
        if name not in known:
            raise ClaraError(f"config.{name}: there is no such field{_nearest(name, known)}")
    # A section that ``stages`` leaves out is checked too: a slip in it would wait for the day it is switched on.
    stages = {name: _stage(name, section) for name, section in sections.items()}
    for name in names:
        if stage_kind(name) not in STAGES:
            raise ClaraError(f"config.stages: there is no stage {name!r}{_nearest(name, STAGES)}")
        if name not in stages:
            raise ClaraError(f"config.stages names {name}, but there is no section config.{name}")
    values = {name: _convert(value, _hints(RunConfig)[name], f"config.{name}") for name, value in values.items()}
    return RunConfig(stages=tuple(stages[name] for name in names), **values)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return every field as a JSON value: dicts, lists, strings, numbers, None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def from_json(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `to_json` gave, with all of `resolve`'s checks."""
    return _build(RunConfig, values, "config")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _stage(name: str, section: Any) -> StageConfig:
    where = f"config.{name}"
    if not isinstance(section, Mapping):
        raise ClaraError(f"{where} is {section!r}; it must be a section (a ConfigDict)")
    unset = {field: None for field in ("steps", "epochs") if section.get(field) == 0}
    return _build(StageConfig, {**section, **unset, "name": name}, where)


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass from a mapping, field by field."""
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            raise ClaraError(f"{where}.{name}: there is no such field{_nearest(str(name), hints)}")
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ClaraError(f"{where}.{field.name} is missing")
    return cls(**{name: _convert(value, hints[name], f"{where}.{name}") for name, value in values.items()})


_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type of ``hint``, or raise a `ClaraError`. Integers pass as numbers, lists as tuples."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ClaraError(f"{where} is {value!r}; it must be a section")
        return _build(hint, value, where)
    if isinstance(hint, types.UnionType):  # X | None
        (inner,) = (option for option in typing.get_args(hint) if option is not type(None))
        return None if value is None else _convert(value, inner, where)
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, tuple | list):
            raise ClaraError(f"{where} is {value!r}; it must be a tuple")
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(items) != len(value):
            raise ClaraError(f"{where} is {value!r}; it must hold {len(items)} values")
        return tuple(_convert(v, item, f"{where}[{i}]") for i, (v, item) in enumerate(zip(value, items, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ClaraError(f"{where} is {value!r}; it must be {_WORDS[hint]}")
    return value
