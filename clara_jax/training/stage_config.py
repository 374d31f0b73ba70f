"""The configuration of a training stage, as a frozen dataclass that checks itself."""

from __future__ import annotations

import dataclasses
import math

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.encoding import DOCUMENTS, MEMORY, TEXT
from clara_jax.input_pipeline.records import ONE_DOCUMENT, RANKING_STAGES, TEXT_STAGES
from clara_jax.input_pipeline.windows import CROPS, START
from clara_jax.method.estimators.methods import METHODS
from clara_jax.method.generator import CE_OVER, TOKENS
from clara_jax.method.parameters import COMPRESSOR, overlap
from clara_jax.method.stages import NORMALIZATIONS, STAGES, Objective, Stage, as_text
from clara_jax.training.config_checks import nearest, one_of, require

SCHEDULES = ("cosine", "constant", "cosine_with_minimum")
IN_RUN = "run"  # where a stage's memories are kept: in the run directory
TEMPERATURE_SCHEDULES = ("constant", "cosine", "steps")
SCAFFOLD_SCHEDULES = ("linear", "cosine")
QUESTIONS = "questions"  # of scp records, one by one
ENTRY_KINDS = ("scp", "instruct", *TEXT_STAGES, QUESTIONS)
MSE_REDUCTIONS = ("mean", "sum")
COMPRESSING = ("lora/compressor", "lora/query_reasoner", "tokens")  # what prompts of texts never touch


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
      topk_method: whose gradient stands in for that of the choice, one of
        `clara_jax.method.estimators.methods.METHODS`; the paper's is "iterative".
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
        between them (see `clara_jax.method.appendix.gradient_paths`); costs a step, and ``top_k`` forward passes more.
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
            raise ClaraError(f"config.stages: there is no stage {self.name!r}{nearest(self.name, STAGES)}")

        def check(field: str, condition: bool, rule: str):
            require(condition, f"{self.name}.", field, getattr(self, field), rule)

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
        check("documents", self.documents in DOCUMENTS, one_of(DOCUMENTS))
        as_texts = self.documents == TEXT
        check("documents", not as_texts or self.kind != "retrieval", "retrieval ranks memories; take another stage")
        check("crop", self.crop in CROPS, one_of(CROPS))
        check("ce_over", self.ce_over in CE_OVER, one_of(CE_OVER))
        for field in ("scaffold", "scaffold_end"):
            value = getattr(self, field)
            check(field, value is None or 0 <= value <= 1, "it must be in [0, 1]")
        check("scaffold_schedule", self.scaffold_schedule in SCAFFOLD_SCHEDULES, one_of(SCAFFOLD_SCHEDULES))
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
        check("schedule", self.schedule in SCHEDULES, one_of(SCHEDULES))
        check("minimum_ratio", 0 <= self.minimum_ratio <= 1, "it must be in [0, 1]")
        check("betas", all(0 <= beta < 1 for beta in self.betas), "both must be in [0, 1)")
        check("score_normalization", self.score_normalization in NORMALIZATIONS, one_of(NORMALIZATIONS))
        check("topk_method", self.topk_method in METHODS, one_of(METHODS))
        schedule, steps = self.temperature_schedule, self.temperature_steps
        check("temperature_schedule", schedule in TEMPERATURE_SCHEDULES, one_of(TEMPERATURE_SCHEDULES))
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
        check("mse_reduction", self.mse_reduction in MSE_REDUCTIONS, one_of(MSE_REDUCTIONS))
        trained = [name for name in self.subtrees if any(overlap(name, part) for part in COMPRESSOR)]
        rule = f"{self.name} trains {', '.join(trained)}: memories that are kept would grow old; leave it empty"
        check("memories", not self.memories or not trained, rule)
        check("memories", not self.memories or self.ranks, "only end_to_end and retrieval read memories that are kept")
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
