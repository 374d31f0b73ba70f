"""The communication of a training step, derived analytically, as a check of what a compiled program sends.

Fully sharded data parallelism keeps 1 / n of a weight on each of the n devices of the ``data`` axis, and gathers a
layer's weights whenever it runs the layer: forward, and again backward, which needs them for the gradients of
activations; what rematerialization runs a second time uses the same gather. Bytes that reach a device, for a *pass*,
the way of documents, of questions or of prompts through the blocks, c bytes a number in the compute dtype (a weight is
rounded where it lies and travels rounded, and so does its gradient), P numbers of a weight on a device once it is
gathered (after the split into m parts over ``model``), r replicas:

    weights split over data        c P (n - 1) / n           forward
                                   c P (n - 1) / n           backward
      gradient, where trained      c P (n - 1) / n           summed and scattered
                                   2 c P / n (r - 1) / r     summed over replicas
    weights whole along data
      gradient, where trained      2 c P (r n - 1) / (r n)
    embedding table                c P (n - 1) / n           once for all passes
    LM head                        c P (n - 1) / n           forward, and again backward
    rows of added tokens, trained  8 P (r n - 1) / (r n)     float32

Adapters' matrices A of q, k, v, gate, up and B of o, down are split over ``data``, the others are whole. With m > 1
states of A = c T E bytes, of the T tokens of a pass on a device, are summed over ``model``, each time 2 A (m - 1) / m:
after attention and MLP forward, before them backward, after attention once more where everything is rematerialized
(the MLP's output is not needed again), and at the embedding, where each device looks up the rows it has; at the LM head
once, backward, for the labelled positions. Each of a batch's microbatches makes all of it.

Not counted are sums of few numbers: norms, the loss, and what adapters sum over ``model``, R / E of the above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax

from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.method.clara import ClaraModel
from clara_jax.method.parameters import declare, flatten, overlap
from clara_jax.model.declare import Leaf
from clara_jax.model.sharding import batch_shards, spec
from clara_jax.training.stage_config import StageConfig


class Pass(NamedTuple):
    """Texts that run through the blocks together: tokens of the whole batch, and whether a gradient comes back."""

    role: str
    tokens: int
    flows_back: bool


def passes(model: ClaraModel, stage: StageConfig, shapes: Shapes, rows: int) -> list[Pass]:
    """Return the passes of a stage's step, see `clara_jax.method.stages`."""
    memory, ranks = model.clara.memory_tokens, stage.ranks
    found = []
    if shapes.documents and not stage.data.memories:
        tokens = rows * shapes.documents * (shapes.encoder_width + memory)
        found.append(Pass("compressor", tokens, not ranks))
    if ranks:
        found.append(Pass("query_reasoner", rows * (shapes.query_width + memory), True))
    if stage.kind != "retrieval":
        found.append(Pass("generator", rows * shapes.prompt_length, True))
    return found


def step_bytes(
    model: ClaraModel, stage: StageConfig, shapes: Shapes, rows: int, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Return the bytes that reach a device in one step.

    Args:
      model: of the run.
      stage: whose step it is.
      shapes: of its batches.
      rows: B, of the whole batch.
      mesh: of the run.

    Returns:
      bytes by origin: "base", "adapters", "tables", "gradients", "activations".
    """
    width, config = model.dtype.itemsize, model.config
    data, parts = mesh.shape["data"], batch_shards(mesh)
    leaves = flatten(declare(config, model.clara, model.base_dtype))
    trains = stage.subtrees
    todo = passes(model, stage, shapes, rows // stage.optimizer.accumulate)

    def under(*prefixes: str) -> list[Leaf]:
        return [leaf for name, leaf in leaves.items() if name.startswith(prefixes)]

    def trained(*prefixes: str) -> list[Leaf]:
        names = (name for name in leaves if name.startswith(prefixes))
        return [leaves[name] for name in names if any(overlap(name, subtree) for subtree in trains)]

    def gathered(leaves: Iterable[Leaf]) -> float:
        return width * _others(data) * sum(_held(leaf, mesh) for leaf in leaves if _split(leaf, mesh))

    gradients = 0.0
    for one in todo:
        if one.flows_back:
            with_gradient = trained("base/layers/", f"lora/{one.role}/")
            split, whole = (
                width * sum(_held(leaf, mesh) for leaf in with_gradient if _split(leaf, mesh) == by)
                for by in (True, False)
            )
            gradients += split * (_others(data) + 2 / data * _others(parts // data)) + 2 * whole * _others(parts)
    gradients += 8 * sum(math.prod(leaf.shape) for leaf in trained("tokens/")) * _others(parts)
    head = () if stage.kind == "retrieval" else under("base/embed/" if config.tied else "base/lm_head/")
    counted = {
        "base": sum(gathered(under("base/layers/")) * (1 + one.flows_back) for one in todo),
        "adapters": sum(gathered(under(f"lora/{one.role}/")) * (1 + one.flows_back) for one in todo),
        "tables": gathered(under("base/embed/")) + 2 * gathered(head),
        "gradients": gradients,
        "activations": _activations(model, stage, shapes, rows // stage.optimizer.accumulate, todo, mesh),
    }
    return {name: size * stage.optimizer.accumulate for name, size in counted.items()}


def _activations(
    model: ClaraModel, stage: StageConfig, shapes: Shapes, rows: int, todo: list[Pass], mesh: jax.sharding.Mesh
) -> float:
    config = model.config
    table = declare(config, model.clara, model.base_dtype)["base"]["embed"]["table"]
    vocabulary = spec(table.shape, table.axes, mesh)[0] is not None
    sums = 0.0  # tokens of a device whose states are summed
    for one in todo:
        in_block = 2 + one.flows_back * (2 + (model.remat == "full"))
        sums += one.tokens / batch_shards(mesh) * (in_block * config.layers + vocabulary)
    if vocabulary and stage.kind != "retrieval":
        sums += rows / batch_shards(mesh) * shapes.target_length
    return 2 * model.dtype.itemsize * config.embed_dim * sums * _others(mesh.shape["model"])


def _held(leaf: Leaf, mesh: jax.sharding.Mesh) -> float:
    """Return the size of a leaf on a device once it is gathered over "data"."""
    return math.prod(leaf.shape) / (mesh.shape["model"] if "model" in spec(leaf.shape, leaf.axes, mesh) else 1)


def _split(leaf: Leaf, mesh: jax.sharding.Mesh) -> bool:
    return "data" in spec(leaf.shape, leaf.axes, mesh)


def _others(parts: int) -> float:
    """Return the share of a whole that lies on other devices."""
    return (parts - 1) / parts
