"""The start of a run, or where it is resumed: the resume ladder, and a checkpoint's position in the run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clara_jax.checkpoints import opening
from clara_jax.checkpoints.bundle import Bundle
from clara_jax.checkpoints.integrity import read_metadata
from clara_jax.checkpoints.retention import newest_intact
from clara_jax.checkpoints.run import load_arrays
from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import read_object
from clara_jax.input_pipeline.records import Record
from clara_jax.input_pipeline.word_level import word_level_tokenizer
from clara_jax.memory_count import PROPORTIONAL
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.parameters import flatten, unflatten
from clara_jax.method.stages import STAGES, stage_kind
from clara_jax.model.precision import AUTO, resolve
from clara_jax.training.config import SCRATCH, RunConfig
from clara_jax.training.config_parsing import to_json
from clara_jax.training.old_names import RUN_NAMES, json_in_groups
from clara_jax.training.schedules import LOG_TEMPERATURE

CONFIG, RUN = "config.json", "run.json"

# The fields that may differ between the command that began a run and the one that resumes it: none of them changes a
# number, save for the mesh, which changes the last bits.
RESUMABLE_FIELDS = ("workdir", "mesh", "token_cache", *RUN_NAMES.values())  # of the run: all of saving and reporting
RESUMABLE_STAGE_FIELDS = ("saving.every",)


@dataclasses.dataclass(frozen=True)
class Position:
    """A place in a run: ``step`` steps of stage ``number`` are done.

    Attributes:
      evaluated: the step after which the stage was evaluated last; -1 for not yet.
      first, last: held-out values before the stage's first step, and the newest.
      seconds: spent in this stage.
      skipped: steps of this stage that were not finite and changed nothing.
      metrics_bytes: length of the metrics file here; the rest of it belongs to steps that are repeated.
      finished: nothing of the stage is left to do.
    """

    number: int = 0
    step: int = 0
    evaluated: int = -1
    first: Mapping[str, float] = dataclasses.field(default_factory=dict)
    last: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    metrics_bytes: int = 0
    finished: bool = False


class Start(NamedTuple):
    """A model at a place in a run.

    Attributes:
      bundle: the model.
      position: the place.
      checkpoint: with the optimizer's state of that place, if any.
      newest: the checkpoint of this run that it was read from: ``checkpoint``, or the last of the stage before.
    """

    bundle: Bundle
    position: Position
    checkpoint: Path | None = None
    newest: Path | None = None


def find_start(config: RunConfig, workdir: Path, mesh: jax.sharding.Mesh, records: Sequence[Sequence[Record]]) -> Start:
    """Return where the run begins or is resumed.

    Args:
      config: the run's.
      workdir: the run directory.
      mesh: the devices.
      records: the training records of all stages; a base from scratch takes its words from them.

    Raises:
      ClaraError: a base or checkpoint that cannot be opened.
    """
    start = _highest_rung(config, workdir, mesh, records)
    return start._replace(bundle=start.bundle.with_attention(config.model.attention))


def _highest_rung(
    config: RunConfig, workdir: Path, mesh: jax.sharding.Mesh, records: Sequence[Sequence[Record]]
) -> Start:
    precision, remat, quantization = config.model.precision, config.model.remat, config.model.quantization
    # The resume ladder; the first rung that holds is taken.
    # 1. The run is finished: nothing to do. `is_finished` tells before any data is read.
    # 2. Its newest intact checkpoint: go on after that step, or with the next stage.
    if newest := newest_intact(workdir):
        _say(config, f"going on from {newest}")
        bundle = opening.load(newest, mesh, config.model.base if config.model.base != SCRATCH else None, None, remat)
        position = Position(**read_metadata(newest)["training"])
        if not position.finished:
            return Start(bundle, position, newest, newest)
        following = Position(position.number + 1, metrics_bytes=position.metrics_bytes)
        return Start(bundle, following, newest=newest)
    # 3. Another run, or a released checkpoint, that the configuration names.
    if config.initial_checkpoint:
        _say(config, f"opening {config.initial_checkpoint}")
        base = config.model.base or None
        bundle = opening.load(config.initial_checkpoint, mesh, base, precision, remat, quantization)
        _check_same_sizes(config, bundle)
        return Start(bundle.with_limits(config.clara.max_length, config.clara.lora_dropout), Position())
    # 4. A fresh base with fresh adapters.
    if config.model.base == SCRATCH:
        sizes = {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
        sizes |= dataclasses.asdict(config.scratch)
        tokenizer = word_level_tokenizer(_texts(records))
        return Start(
            opening.from_scratch(sizes, tokenizer, config.clara, mesh, precision, remat, config.seed), Position()
        )
    # 5. A given base with fresh adapters.
    _say(config, f"opening {config.model.base}")
    bundle = opening.from_base(config.model.base, config.clara, mesh, precision, remat, config.seed, quantization)
    return Start(bundle, Position())


def resolved_precision(config: RunConfig, workdir: Path) -> str:
    """Return the precision of the run in ``workdir``, a name of `PRECISIONS`.

    With "auto" it is the one that the run began with, since the run may be resumed on processors that would choose
    another; of a new run the one that suits this process's devices.
    """
    asked = config.model.precision
    if asked == AUTO and (workdir / CONFIG).exists():
        asked = read_object(workdir / CONFIG, "choose another --workdir").get("model", {}).get("precision", AUTO)
    return resolve(asked, jax.local_devices()[0].platform)


def is_finished(config: RunConfig, workdir: Path) -> bool:
    """Return whether all stages are trained and ``run.json`` has the note of it.

    Raises:
      ClaraError: the directory's run has another configuration.
    """
    if (workdir / CONFIG).exists():
        check_same_config(config, workdir)
    path = workdir / RUN
    return path.exists() and "finished" in read_object(path, f"delete {path.name} and give the command again")


def check_same_config(config: RunConfig, workdir: Path) -> None:
    """Check that the run may be resumed with this configuration, which may differ in fields that change no number.

    Raises:
      ClaraError: the run in ``workdir`` was begun with another configuration; names the first field that differs.
    """
    path = workdir / CONFIG
    # The run may have been begun by a version whose fields had other names.
    written = json_in_groups(read_object(path, "choose another --workdir"))
    began, now = (dict(flat_fields(tree)) for tree in (written, to_json(config)))
    # A run from before a field of the method has what is the field's default now.
    began = dict(flat_fields({"clara": dataclasses.asdict(ClaraConfig())})) | began
    for field in [*now, *(field for field in began if field not in now)]:
        section, _, inner = field.partition(".")
        free = inner in RESUMABLE_STAGE_FIELDS if stage_kind(section) in STAGES else field in RESUMABLE_FIELDS
        if free or began.get(field) == now.get(field):
            continue
        raise ClaraError(
            f"config.{field} is {now.get(field)}, but the run in {workdir} was begun with {began.get(field)}; give "
            f"the same to go on, name another --workdir, or start from this run with "
            f"--config.initial_checkpoint={workdir}"
        )


def named_optimizer(state: Any) -> dict[str, Any]:
    """Return an Optax state as a nested dict of arrays, which a checkpoint can hold."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return unflatten({jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat})


def load_optimizer(checkpoint: Path, like: Any) -> Any:
    """Return the optimizer's state of a checkpoint, with the structure and the placement of ``like``."""
    named = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), named_optimizer(like))
    loaded = flatten(load_arrays(checkpoint, {"optimizer": named}, only=("optimizer",))["optimizer"])
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return jax.tree.unflatten(structure, [loaded[name] for name in names])


def load_temperature(checkpoint: Path | None, fresh: jax.Array) -> jax.Array:
    """Return the trained log τ that a checkpoint holds in addition to the model; ``fresh`` without a checkpoint."""
    if checkpoint is None:
        return fresh
    (top,) = tree = unflatten({LOG_TEMPERATURE: fresh})
    return flatten(load_arrays(checkpoint, tree, only=(top,)))[LOG_TEMPERATURE]


def _check_same_sizes(config: RunConfig, bundle: Bundle) -> None:
    """Refuse a configuration whose sizes differ from the checkpoint's."""
    fields = ["lora_rank", "lora_alpha", "different_mem_tokens", "memory_map", "memory_places", "missing_bos"]
    # A model of fixed number may learn to do with fewer; the other way it is hardly meant.
    fields += ["memory_count"] if bundle.model.clara.memory_count == PROPORTIONAL else []
    # With one memory token for all places, a stage may choose lengths and rates.
    fields += ["doc_max_length", "compress_rate"] if config.clara.different_mem_tokens else []
    for field in fields:
        have, asked = getattr(bundle.model.clara, field), getattr(config.clara, field)
        if have != asked:
            raise ClaraError(
                f"config.clara.{field} is {asked!r}, but the checkpoint {config.initial_checkpoint} was made with "
                f"{have!r}; set it to that"
            )


def flat_fields(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value as JSON) of every leaf; stages by their names."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "stages":
                yield "stages", json.dumps([stage["name"] for stage in value])
                value = {stage["name"]: stage for stage in value}
                yield from flat_fields(value, name)
            else:
                yield from flat_fields(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(tree)


def _texts(records: Sequence[Sequence[Record]]) -> Iterator[str]:
    for part in records:
        for record in part:
            yield from (*record.documents, *record.questions, *record.answers)


def _say(config: RunConfig, line: str) -> None:
    if config.reporting.progress:
        print(line, file=sys.stderr, flush=True)
