"""What a run's programs take, without its files and data: a base's sizes, full batches, arguments as shapes.

The arguments are abstract arrays with shardings: nothing is allocated.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.json_file import read_object
from clara_jax.input_pipeline.batches import Batch, PromptBatch, Sequences, StoredMemories
from clara_jax.input_pipeline.buckets import Shapes, text_width
from clara_jax.input_pipeline.document_tokenizer import FRAME
from clara_jax.input_pipeline.encoding import TEXT as AS_TEXT
from clara_jax.input_pipeline.records import ONE_DOCUMENT
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, split
from clara_jax.model.declare import abstract
from clara_jax.model.sharding import BATCH, check_batch
from clara_jax.training.stage_config import StageConfig
from clara_jax.training.step import TrainState

# The published config.json of base models that configurations name, for planning without the model's files: the fields
# that shapes and costs depend on, without Phi's tables of rotary factors, which change neither.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-Instruct-v0.2": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "microsoft/Phi-4-mini-instruct": {
        "model_type": "phi3",
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131072,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
}
# Tokens of a prompt besides its memories, and of its target: a paraphrase is as long as its document, an instruction's
# answer a paragraph, an answer to a question a sentence.
TEXT = {
    "scp": (64, 256),
    "instruct": (128, 256),
    "end_to_end": (64, 64),
    "retrieval": (64, 64),
    "autoencode": (2, 256),
    "continue": (2, 32),
}
QUESTION = 64


def base_config(name: str, file: str | None = None) -> dict[str, Any]:
    """Return a base model's configuration, without its weights.

    Args:
      name: as `clara_jax.training.config.ModelSection.base`.
      file: a ``config.json`` to read instead.

    Raises:
      ClaraError: there is neither a file, nor a known name, nor a model of that name.
    """
    if file:
        return read_object(Path(file), "name the config.json of a Hugging Face model")
    if name in PUBLISHED:
        return PUBLISHED[name]
    if not name or name == "scratch":
        raise ClaraError(
            "--base-config is missing: the configuration names no base whose sizes are known before the run; give the "
            "config.json of one"
        )
    return dict(open_base(name).config)


def stage_shapes(stage: StageConfig, clara: ClaraConfig, text: int | None = None, target: int | None = None) -> Shapes:
    """Return the shapes of a stage's batches with full documents.

    Args:
      stage: of a configuration.
      clara: the method's sizes.
      text: tokens of a prompt besides documents, as memories or texts, and target; default by stage.
      target: tokens of a target; default by stage.

    Raises:
      ClaraError: a prompt beyond ``max_length``.
    """
    usual_text, usual_target = TEXT[stage.kind]
    text, target = usual_text if text is None else text, usual_target if target is None else target
    documents = stage.topk.candidates if stage.ranks else 1 if stage.kind in ONE_DOCUMENT else stage.topk.k
    read, as_text = min(stage.topk.k, documents), stage.data.documents == AS_TEXT
    each, what = (clara.doc_max_length, "document's") if as_text else (clara.memory_tokens, "memory")
    prompt = read * each + text + target
    if prompt > clara.max_length:
        raise ClaraError(
            f"--text, --target: a prompt of {read} x {each} {what} tokens, {text} of text and {target} "
            f"of target has {prompt} tokens, beyond config.clara.max_length {clara.max_length}; choose less"
        )
    if as_text:
        return Shapes(0, 0, 0, prompt, target)
    document, question = (
        text_width(length + FRAME, clara.memory_tokens) for length in (clara.doc_max_length, QUESTION)
    )
    return Shapes(documents, document, question if stage.ranks else 0, prompt, target)


def full_batch(batch: Batch) -> Batch:
    """Return a host batch with the shapes of an abstract one and without padding, for throughput accounting."""
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), batch)


def params(model: ClaraModel, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return all parameters; the base is stored in the compute dtype, or quantized."""
    return abstract(declare(model.config, model.clara, model.base_dtype, model.quantization), mesh)


def state_and_frozen(
    tree: Any, trains: tuple[str, ...], optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state at the start of a stage, and the frozen parameters."""
    trained, frozen = split(tree, trains)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        moments = jax.eval_shape(jax.jit(optimizer.init), trained)

    def place(x: jax.ShapeDtypeStruct) -> Any:  # a ShapeDtypeStruct where TrainState holds an array
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

    step = place(jax.ShapeDtypeStruct((), jnp.int32))
    return TrainState(step, trained, jax.tree.map(place, moments)), frozen


def key(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """Return the run's PRNG key, replicated on every device."""
    dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
    return jax.ShapeDtypeStruct((), dtype, sharding=jax.NamedSharding(mesh, jax.P()))


def batch(rows: int, shapes: Shapes, memory_tokens: int, ranks: bool, mesh: jax.sharding.Mesh) -> Batch:
    """Return a batch of unpacked rows, every one of the full shapes.

    Args:
      rows: B.
      shapes: lengths of the rows.
      memory_tokens: M.
      ranks: whether the stage has questions and positives (end_to_end, retrieval).
      mesh: over which rows are split.

    Raises:
      ClaraError: the mesh does not divide the rows.
    """
    check_batch(rows, mesh)

    def array(dtype: Any, *shape: int) -> Any:  # a ShapeDtypeStruct where Batch holds an array
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=jax.NamedSharding(mesh, jax.P(BATCH)))

    def texts(width: int, *leading: int) -> Sequences:
        tokens = array(jnp.int32, *leading, width + memory_tokens)
        return Sequences(tokens, tokens, array(jnp.int32, *leading, 1, memory_tokens))

    prompt, target = (array(jnp.int32, length) for length in (shapes.prompt_length, shapes.target_length))
    return Batch(
        documents=texts(shapes.encoder_width, shapes.documents) if shapes.documents else None,
        document_valid=array(bool, shapes.documents),
        query=texts(shapes.query_width) if ranks else None,
        prompt=PromptBatch(prompt, prompt, prompt, target, target),
        positives=array(bool, shapes.documents) if ranks else None,
        example_ids=array(jnp.int32, 1),
    )


def stored(batch: Batch, model: ClaraModel, mesh: jax.sharding.Mesh) -> Batch:
    """Return the batch with memories in the place of its documents, as where these were compressed before."""
    shape = *batch.document_valid.shape, model.clara.memory_tokens, model.config.embed_dim
    sharding = jax.NamedSharding(mesh, jax.P(BATCH))
    memories: Any = jax.ShapeDtypeStruct(shape, model.dtype, sharding=sharding)  # in the place of an array, as above
    return dataclasses.replace(batch, documents=StoredMemories(memories))
