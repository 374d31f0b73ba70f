"""Abstract arguments are those of the real step; topologies and meshes that cannot be are refused in one line."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from clara_jax.aot import workload
from clara_jax.chips import parse_topology, topology_devices
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.method.clara import ClaraConfig, ClaraModel
from clara_jax.method.parameters import declare, split
from clara_jax.method.stages import STAGES, Objective
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import initialise
from clara_jax.model.sharding import make_mesh
from clara_jax.training.optimizer import make_optimizer
from clara_jax.training.stage_config import OptimizerConfig
from clara_jax.training.step import init_state, make_train_step

BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
MODEL = ClaraModel(ModelConfig.from_hf(BASE), ClaraConfig(doc_max_length=16, compress_rate=4, lora_rank=4))
SHAPES = Shapes(documents=3, encoder_width=18, query_width=12, prompt_length=32, target_length=8)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def lower(stage, mesh, model=MODEL, shapes=SHAPES, rows=8):
    optimizer = make_optimizer(OptimizerConfig(steps=10, batch_size=8), 10)
    state, frozen = workload.state_and_frozen(workload.params(model, mesh), STAGES[stage].trains, optimizer, mesh)
    batch = workload.batch(rows, shapes, model.clara.memory_tokens, stage in ("end_to_end", "retrieval"), mesh)
    step = make_train_step(model, STAGES[stage], Objective(top_k=2), optimizer)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return step.lower(state, frozen, batch, workload.key(mesh))


def test_the_abstract_state_is_shaped_and_placed_as_the_real_one():
    mesh = make_mesh(4, 2)
    optimizer = make_optimizer(OptimizerConfig(steps=10), 10)
    trains = STAGES["scp"].trains
    params = initialise(declare(MODEL.config, MODEL.clara, MODEL.dtype), jax.random.key(0), mesh)
    with jax.set_mesh(mesh):
        real = init_state(split(params, trains)[0], optimizer)
    planned, _ = workload.state_and_frozen(workload.params(MODEL, mesh), trains, optimizer, mesh)
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for one, other in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.ndim:
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


@needs_libtpu
@pytest.mark.parametrize("stage", [pytest.param("scp", marks=pytest.mark.slow), "end_to_end"])
def test_the_real_step_compiles_for_a_slice_that_is_not_there(stage):
    compiled = lower(stage, make_mesh(4, 2, devices=topology_devices("v5e:2x4"))).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 0 and memory.temp_size_in_bytes > 0
    # The state is donated: its outputs take its place.
    assert memory.alias_size_in_bytes > 0


@needs_libtpu
@pytest.mark.slow
def test_each_remat_policy_keeps_less_than_the_one_before():
    """What a device holds beside arguments and results. It takes some width: offloading needs buffers, too."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "vocab_size": 4096}
    sizes = BASE | sizes | {"num_attention_heads": 8, "num_key_value_heads": 4}
    shapes = dataclasses.replace(SHAPES, documents=1, encoder_width=240, prompt_length=1024, target_length=128)
    mesh, device, host = make_mesh(2, 4, devices=topology_devices("v5e:2x4")), {}, {}
    for remat in ("none", "products", "mlp", "names", "full", "offload"):
        model = dataclasses.replace(MODEL, config=ModelConfig.from_hf(sizes), remat=remat)
        memory = lower("scp", mesh, model, shapes).compile().memory_analysis()
        device[remat], host[remat] = memory.temp_size_in_bytes, memory.host_temp_size_in_bytes
    assert list(device.values()) == sorted(device.values(), reverse=True) and len({*device.values()}) == 6, device
    assert host["offload"] > 0 == host["names"], host


def test_topologies_that_cannot_be():
    with pytest.raises(ClaraError, match="known are v4, v5e, v5p, v6e, tpu7x"):
        parse_topology("v9:2x2")
    with pytest.raises(ClaraError, match="chips along each axis"):
        parse_topology("v5e:8")
    chip, shape = parse_topology("v5p:4x4x4")
    assert (chip.name, shape) == ("v5p", (4, 4, 4))


def test_a_missing_libtpu_names_its_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClaraError, match="pip install libtpu"):
        topology_devices("v5e:2x4")


@needs_libtpu
def test_a_mesh_that_does_not_match_the_topology():
    with pytest.raises(ClaraError, match="does not match the 8 devices"):
        make_mesh(3, 2, devices=topology_devices("v5e:2x4"))


def test_a_batch_that_the_mesh_does_not_divide():
    with pytest.raises(ClaraError, match="batch_size: 6 is not divisible"):
        workload.batch(6, SHAPES, 4, False, make_mesh(4, 2))


def test_a_bfloat16_base_is_planned_as_one():
    tree = workload.params(MODEL, make_mesh(8, 1))
    assert tree["base"]["embed"]["table"].dtype == jnp.bfloat16
