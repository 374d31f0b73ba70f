"""The configuration of a training run, as frozen dataclasses that check themselves.

A config file builds an `ml_collections.ConfigDict`; `config_parsing.resolve` turns it, once, into a `RunConfig`. From
there on no field is looked up by a string, nothing is missing, and every value has been checked.

A ConfigDict holds the fields of `RunConfig`, with ``stages`` as the names of the stages in order, and a section of that
name for each of them, with the fields of `stage_config.StageConfig`: a flag reaches every field of every stage
(``--config.scp.learning_rate=1e-4``).
"""

from __future__ import annotations

import dataclasses
import typing

from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import ON_ERROR
from clara_jax.method.clara import AFFINE, ClaraConfig
from clara_jax.method.stages import STAGES
from clara_jax.model.attention import IMPLEMENTATIONS
from clara_jax.model.precision import CHOICES
from clara_jax.model.sharding import AXES
from clara_jax.model.transformer import REMAT_POLICIES
from clara_jax.training.config_checks import one_of, require
from clara_jax.training.stage_config import StageConfig

NON_FINITE = ("stop", "skip")
SCRATCH = "scratch"


class MeshSizes(typing.TypedDict):
    """Devices along each axis of the mesh, see `clara_jax.model.sharding.AXES`."""

    replica: int
    data: int
    model: int


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
        require(self.precision in CHOICES, "model.", "precision", self.precision, one_of(CHOICES))
        require(self.remat in REMAT_POLICIES, "model.", "remat", self.remat, one_of(REMAT_POLICIES))
        require(self.attention in IMPLEMENTATIONS, "model.", "attention", self.attention, one_of(IMPLEMENTATIONS))


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
            require(value > 0, "scratch.", field.name, value, "it must be positive")
        heads = self.num_attention_heads
        rule = f"it must be an even multiple of num_attention_heads {heads}"
        require(self.hidden_size % (2 * heads) == 0, "scratch.", "hidden_size", self.hidden_size, rule)
        rule = f"it must divide num_attention_heads {heads}"
        require(
            heads % self.num_key_value_heads == 0, "scratch.", "num_key_value_heads", self.num_key_value_heads, rule
        )


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
        require(bool(self.stages), "", "stages", self.stages, f"name at least one of {', '.join(STAGES)}")
        require(0 <= self.seed < 2**32, "", "seed", self.seed, "it must be in [0, 2^32)")
        good = len(self.mesh) in (2, 3) and self.mesh[-1] >= 1
        good = good and all(size >= 1 or size == -1 for size in self.mesh)
        rule = (
            "it must be (data, model) or (replica, data, model), each at least 1; data may be -1: all that is left; "
            "replica may be -1: one for each slice"
        )
        require(good, "", "mesh", self.mesh, rule)
        require(self.progress_seconds > 0, "", "progress_seconds", self.progress_seconds, "it must be positive")
        require(self.save_minutes > 0, "", "save_minutes", self.save_minutes, "it must be positive")
        require(self.keep >= 1, "", "keep", self.keep, "it must be at least 1")
        require(self.show >= 0, "", "show", self.show, "it must be zero or positive")
        require(self.on_error in ON_ERROR, "", "on_error", self.on_error, one_of(ON_ERROR))
        require(self.non_finite in NON_FINITE, "", "non_finite", self.non_finite, one_of(NON_FINITE))
        window = self.profile is None or 0 <= self.profile[0] < self.profile[1]
        require(window, "", "profile", self.profile, "it must be (first step, step after the last), e.g. 10,13")
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
            require(not fixed, f"{stage.name}.", "compress_rate", stage.compress_rate, rule)
            rule = (
                f"each must be above compress_rate {clara.compress_rate} and divide doc_max_length "
                f"{clara.doc_max_length}"
            )
            good = all(rate > clara.compress_rate and not clara.doc_max_length % rate for rate in stage.further_rates)
            require(good, f"{stage.name}.", "further_rates", stage.further_rates, rule)
            rule = "only with one token for all places; set config.clara.different_mem_tokens=False"
            good = not (stage.further_rates and self.clara.different_mem_tokens)
            require(good, f"{stage.name}.", "further_rates", stage.further_rates, rule)
            rule = 'only a memory map has one; set config.clara.memory_map="affine"'
            good = not stage.has_scaffold or clara.memory_map == AFFINE
            require(good, f"{stage.name}.", "scaffold", stage.scaffold, rule)
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
