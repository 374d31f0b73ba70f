"""The configuration of a training run: frozen dataclasses that pydantic validates.

A config file builds an `ml_collections.ConfigDict`; `config_parsing.resolve` turns it, once, into a `RunConfig`. From
there on no field is looked up by a string, nothing is missing, and every value has been checked.

A ConfigDict holds the fields of `RunConfig`, with ``stages`` as the names of the stages in order, and a section of that
name for each of them, with the fields of `stage_config.StageConfig`: a flag reaches every field of every stage
(``--config.scp.optimizer.learning_rate=1e-4``).
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated

from clara_jax.config_checks import (
    Bool,
    Count,
    Natural,
    OneOf,
    Positive,
    Text,
    Whole,
    check,
    checked,
    require,
    section,
)
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import ON_ERROR
from clara_jax.method.clara import AFFINE, ClaraConfig
from clara_jax.method.parameters import overlap
from clara_jax.method.stages import STAGES
from clara_jax.model.attention import IMPLEMENTATIONS
from clara_jax.model.precision import CHOICES
from clara_jax.model.quantization import CHOICES as QUANTIZATIONS
from clara_jax.model.quantization import NONE
from clara_jax.model.sharding import AXES
from clara_jax.model.transformer import REMAT_POLICIES
from clara_jax.training.old_names import RUN_NAMES
from clara_jax.training.stage_config import StageConfig

NON_FINITE = ("stop", "skip")
SCRATCH = "scratch"


class MeshSizes(typing.TypedDict):
    """Devices along each axis of the mesh, see `clara_jax.model.sharding.AXES`."""

    replica: int
    data: int
    model: int


@section("model")
class ModelSection:
    """The base language model."""

    base: Text = ""
    """`smollm2`, a directory, a `.gguf` file or a hub id; `scratch`: a fresh one of the sizes in the section `scratch`;
    empty where `initial_checkpoint` names it."""
    precision: Annotated[str, OneOf(CHOICES)] = "bfloat16"
    """`bfloat16`: base and compute; adapters, norms, softmax and losses stay float32. `float32` throughout. `mixed`:
    base stored and multiplied as bfloat16, all else float32. `auto` goes by the devices; a run keeps what it began
    with. See docs/training.md#precision."""
    quantization: Annotated[str, OneOf(QUANTIZATIONS)] = NONE
    """`int8`: the base's kernels stand in memory as int8, a scale for each output channel: half of bfloat16's bytes.
    They are frozen; adapters and added rows are trained in float32 as ever (QLoRA). See docs/training.md#int8."""
    remat: Annotated[str, OneOf(REMAT_POLICIES)] = "none"
    """What the backward pass keeps of a block: `none` (everything), `full` (its input), `dots` (matrix products),
    `names` (its input and the output of attention), `mlp` (these, and gate and up), `products` (these, and what
    attention reads and writes), `offload` (what `names` does, in the host's memory); see docs/training.md#remat."""
    attention: Annotated[str, OneOf(IMPLEMENTATIONS)] = "auto"
    """How attention is computed: `xla` (anywhere), `blockwise` (for CPUs), `splash` (TPU), `cudnn` (NVIDIA GPU,
    bfloat16); `auto` goes by the devices. See docs/training.md#attention."""


@section("scratch")
class ScratchSection:
    """A small base made fresh, in the Llama architecture; names as in a ``config.json``.

    Its tokenizer has a token for every word of the training records. Stages train the base by ``trains``.
    """

    hidden_size: Count = 128
    """Width; an even multiple of `num_attention_heads`."""
    intermediate_size: Count = 384
    """Width of the MLP."""
    num_hidden_layers: Count = 4
    """Layers."""
    num_attention_heads: Count = 4
    """Heads of the queries."""
    num_key_value_heads: Count = 4
    """Heads of keys and values; divides `num_attention_heads`."""
    rope_theta: Positive = 10000.0
    """Base of the rotary position embedding's wavelengths."""

    def __post_init__(self):
        heads = self.num_attention_heads
        rule = f"it must be an even multiple of num_attention_heads {heads}"
        check(self, "hidden_size", self.hidden_size % (2 * heads) == 0, rule)
        rule = f"it must divide num_attention_heads {heads}"
        check(self, "num_key_value_heads", heads % self.num_key_value_heads == 0, rule)


@section("saving")
class RunSavingConfig:
    """The checkpoints of a run; see `StageSavingConfig` for those by steps."""

    minutes: Positive = 10.0
    """Minutes between checkpoints while a stage runs; a stage's last step is saved in any case."""
    keep: Count = 3
    """Checkpoints that are kept, the newest; each stage's last and best stay besides."""
    best: Text = "loss"
    """Held-out value by which a checkpoint of a stage is its best, e.g. `loss`, `exact_match`; empty keeps none for
    it."""


@section("reporting")
class ReportingConfig:
    """What a run shows and writes about itself, besides ``metrics.jsonl``."""

    progress: Bool = True
    """Show a progress bar (a line now and then where standard error is no terminal)."""
    progress_seconds: Positive = 30.0
    """Seconds between such lines."""
    tensorboard: Bool = True
    """Write TensorBoard events, too."""
    profile: Annotated[tuple[Natural, Natural], "two whole numbers"] | None = None
    """Write a profile of the steps from the first number up to the second, of the stage that runs."""
    show: Natural = 3
    """Questions of the last stage's held-out records that the finished model answers from memories in print; none where
    that stage has its documents as text."""
    require_progress: Bool = False
    """Fail at the end unless training and held-out loss have fallen in every stage."""

    def __post_init__(self):
        window = self.profile is None or self.profile[0] < self.profile[1]
        check(self, "profile", window, "it must be (first step, step after the last), e.g. 10,13")


@section(old_names=RUN_NAMES)
class RunConfig:
    """A training run: stages in order, each starting from the one before."""

    stages: Annotated[tuple[StageConfig, ...], "a tuple of stages"]
    """In order; the first starts from `initial_checkpoint` or from fresh adapters. In a config file their names, each
    with a section of that name."""
    model: ModelSection = ModelSection()
    clara: Annotated[ClaraConfig, checked(ClaraConfig)] = ClaraConfig()
    seed: Annotated[Natural, "a whole number in [0, 2^32)"] = 0
    """Of initial values, order of records and dropout."""
    mesh: Annotated[tuple[Whole, ...], "a tuple of whole numbers"] = (-1, 1)
    """Devices along (data, model), or (replica, data, model); -1 for data takes what the others leave, -1 for replica
    one for each slice (docs/pods.md#choosing-the-mesh)."""
    workdir: Text = ""
    """The run directory; the command's `--workdir` goes before it."""
    initial_checkpoint: Text | None = None
    """A run directory, one of its checkpoints, or a released CLaRa checkpoint, also by its hub id,
    docs/training.md#starting-from-a-checkpoint."""
    scratch: ScratchSection = ScratchSection()
    synthetic: SyntheticConfig = SyntheticConfig()
    token_cache: Text = ""
    """Where tokens of built data sets are kept; empty: `clara_jax/tokens` in the user's cache directory."""
    on_error: Annotated[str, OneOf(ON_ERROR)] = "stop"
    """At a line of a data file that is no record: `stop`, or `skip` it; it goes to `rejected.jsonl` in the run
    directory with its reason, and is counted in the metrics."""
    non_finite: Annotated[str, OneOf(NON_FINITE)] = "stop"
    """A step whose loss or gradient is not finite changes nothing; then `stop` the run with the batch's records on
    file, or `skip` the batch and count it."""
    saving: RunSavingConfig = RunSavingConfig()
    reporting: ReportingConfig = ReportingConfig()

    def __post_init__(self):
        require(bool(self.stages), "", "stages", self.stages, f"name at least one of {', '.join(STAGES)}")
        require(self.seed < 2**32, "", "seed", self.seed, "it must be in [0, 2^32)")
        good = len(self.mesh) in (2, 3) and self.mesh[-1] >= 1
        good = good and all(size >= 1 or size == -1 for size in self.mesh)
        rule = (
            "it must be (data, model) or (replica, data, model), each at least 1; data may be -1: all that is left; "
            "replica may be -1: one for each slice"
        )
        require(good, "", "mesh", self.mesh, rule)
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
            require(not fixed, f"{stage.name}.", "data.compress_rate", stage.data.compress_rate, rule)
            rule = (
                f"each must be above compress_rate {clara.compress_rate} and divide doc_max_length "
                f"{clara.doc_max_length}"
            )
            rates = stage.data.further_rates
            good = all(rate > clara.compress_rate and not clara.doc_max_length % rate for rate in rates)
            require(good, f"{stage.name}.", "data.further_rates", rates, rule)
            rule = "only with one token for all places; set config.clara.different_mem_tokens=False"
            good = not (rates and self.clara.different_mem_tokens)
            require(good, f"{stage.name}.", "data.further_rates", rates, rule)
            rule = 'only a memory map has one; set config.clara.memory_map="affine"'
            good = not stage.objective.has_scaffold or clara.memory_map == AFFINE
            require(good, f"{stage.name}.", "objective.scaffold", stage.objective.scaffold, rule)
            good = self.model.quantization == NONE or not any(overlap(name, "base") for name in stage.subtrees)
            rule = "config.model.quantization=int8 freezes the base; leave it out, or set that to none"
            require(good, f"{stage.name}.", "trains", stage.subtrees, rule)
        if not self.model.base and not self.initial_checkpoint:
            raise ClaraError(
                "config.model.base is empty: name a base model (smollm2, a directory, a .gguf file or a hub id), "
                "or a checkpoint to start from in config.initial_checkpoint"
            )
        good = self.model.quantization == NONE or self.model.base != SCRATCH or bool(self.initial_checkpoint)
        rule = (
            "it freezes the base, and a fresh one knows nothing; name another base, or a checkpoint that has trained "
            "this one in config.initial_checkpoint"
        )
        require(good, "model.", "quantization", self.model.quantization, rule)

    def clara_of(self, stage: StageConfig) -> ClaraConfig:
        """Return the method's numbers in a stage: the run's, but for those that the stage names."""
        length = stage.data.doc_max_length or self.clara.doc_max_length
        rate = stage.data.compress_rate or self.clara.compress_rate
        return dataclasses.replace(self.clara, doc_max_length=length, compress_rate=rate)

    @property
    def mesh_sizes(self) -> MeshSizes:
        """Arguments of `clara_jax.model.sharding.make_mesh`."""
        replica, data, model = (-1, *self.mesh)[-len(AXES) :]
        return {"replica": replica, "data": data, "model": model}
