"""Compiled programs are read: collectives with their sizes, products, traffic, each as often as loops make it run."""

import math

import jax
import jax.numpy as jnp
import pytest

from clara_jax.aot import hlo_cost
from clara_jax.aot.hlo import HloModule
from clara_jax.aot.hlo_cost import collectives, totals
from clara_jax.chips import topology_devices
from clara_jax.model.sharding import make_mesh
from tests.aot.test_planning import lower, needs_libtpu

LAYERS, REPEATS, WIDTH, ROWS = 5, 3, 64, 4096


def program(mesh, repeats):
    """A scan over layers whose weights are gathered one by one, itself scanned ``repeats`` times."""

    def layer(x, w):
        w = jax.reshard(w, jax.P(None, None))
        return jnp.tanh(jnp.einsum("be,ef->bf", x, w)), None

    def apply(w, x):
        return jax.lax.scan(lambda x, _: (jax.lax.scan(layer, x, w)[0], None), x, length=repeats)[0]

    return compiled(apply, mesh, ((LAYERS, WIDTH, WIDTH), jax.P(None, "data")), ((ROWS, WIDTH), jax.P("data")))


def compiled(function, mesh, *arrays, dtype=jnp.float32, otherwise=None, **options):
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec)) for shape, spec in arrays]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return HloModule.parse(jax.jit(function).lower(*arrays).compile(options).as_text(), otherwise)


def check(read, repeats):
    gathers = [c for c in collectives(read, 8) if c.kind == "all-gather"]
    # Elements, for a TPU multiplies float32 in bfloat16 by default, and gathers what it has rounded.
    elements = sum(c.times * max(math.prod(shape) for shape in c.shapes) for c in gathers)
    assert elements == repeats * LAYERS * WIDTH * WIDTH
    assert {c.devices for c in gathers} == {8}
    assert hlo_cost.flops(read) == 2 * repeats * LAYERS * ROWS // 8 * WIDTH * WIDTH


@pytest.mark.parametrize("repeats", [1, REPEATS])
def test_loops_multiply_what_is_in_them(repeats):
    check(program(make_mesh(8, 1), repeats), repeats)


@needs_libtpu
def test_programs_for_a_tpu_are_read_as_well():
    check(program(make_mesh(8, 1, devices=topology_devices("v5e:2x4")), REPEATS), REPEATS)


def product(**options):
    """Rows of eight devices times a kernel of which each has a part; of smaller ones the question does not come up."""
    size = 1024
    read = compiled(
        lambda w, x: jnp.einsum("be,ef->bf", x, w),
        make_mesh(8, 1, devices=topology_devices("v5e:2x4")),
        ((size, size), jax.P("data")),
        ((8 * size, size), jax.P("data")),
        dtype=jnp.bfloat16,
        **options,
    )
    assert hlo_cost.flops(read) == 2 * size**3
    return totals(collectives(read, 8)), 2 * size * size / 8


@needs_libtpu
def test_loops_that_the_compiler_unrolled_run_less_often():
    """By default a TPU multiplies piece by piece while the pieces go round, two in each run of a loop."""
    received, piece = product(xla_jf_spmd_threshold_for_windowed_einsum_mib=0)
    # Each device needs the seven pieces of others; a piece or two more go round for nothing.
    assert set(received) == {"collective-permute"} and 7 <= received["collective-permute"] / piece <= 9


@needs_libtpu
def test_kernels_are_gathered_whole():
    received, piece = product()
    assert received == {"all-gather": 7 * piece}


@pytest.mark.parametrize(
    ("spec", "kind", "received"),
    [(jax.P(None, None), "all-reduce", 2 * 7 / 8), (jax.P("data", None), "reduce-scatter", 7 / 8)],
)
def test_bytes_are_those_that_must_reach_a_device(spec, kind, received):
    def contract(x, y):
        return jnp.einsum("be,bf->ef", x, y, out_sharding=spec)

    read = compiled(contract, make_mesh(8, 1), *[((ROWS, WIDTH), jax.P("data"))] * 2)
    found = totals(collectives(read, 8))
    if kind == "reduce-scatter" and kind not in found:  # XLA on CPU sums everywhere and keeps a part
        kind, received = "all-reduce", 2 * 7 / 8
    assert found == {kind: received * WIDTH * WIDTH * 4}


def test_groups_of_devices_are_read_in_all_spellings():
    def one(groups):
        return HloModule.parse(f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add
}}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}}
""")

    for groups, devices in (
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=4,'b'=2] {'a'}", 4),
        ("mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("{}", 8),
    ):
        (found,) = collectives(one(groups), 8)
        assert found.devices == devices, groups


def test_traffic_counts_slices_and_updates_and_not_what_they_are_cut_from():
    def apply(table, x):
        def step(i, x):
            return x + jax.lax.dynamic_slice_in_dim(table, i * ROWS, ROWS)

        return jax.lax.fori_loop(0, 10, step, x)

    read = compiled(apply, make_mesh(1, 1, devices=jax.devices()[:1]), ((10 * ROWS,), jax.P()), ((ROWS,), jax.P()))
    # Each run reads a slice and the sum, and writes the sum; the rest are copies of the sum and counters.
    assert 3 * 10 * ROWS * 4 <= sum(hlo_cost.traffic(read).values()) <= 3 * 10 * ROWS * 4 + 4 * ROWS * 4 + 1000


def test_a_slice_that_is_fetched_ahead_counts_once_and_without_its_array():
    """A TPU brings weights into the memory beside its cores in pieces, while other work runs."""
    read = HloModule.parse("""
%fetch (whole: s8[1000]) -> s8[100] {
  %whole = s8[1000]{0:T(1024)} parameter(0)
  ROOT %piece = s8[100]{0:T(1024)S(1)} slice(%whole), slice={[0:100]}
}

ENTRY %main (x: s8[1000]) -> s8[100] {
  %x = s8[1000]{0:T(1024)} parameter(0)
  %start = ((s8[1000]{0:T(1024)}), s8[100]{0:T(1024)S(1)}, s32[]{:S(2)}) async-start(%x), calls=%fetch
  %done = s8[100]{0:T(1024)S(1)} async-done(%start)
  ROOT %out = s8[100]{0:T(1024)} copy(%done)
}
""")
    assert hlo_cost.traffic(read) == {"async-start": 0, "slice": 100, "copy": 100}  # read, and written back


def test_a_loop_that_nobody_can_count_is_said_to_be_one():
    def forever(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ x, x)

    arrays = make_mesh(1, 1, devices=jax.devices()[:1]), ((8, 8), jax.P())
    with pytest.raises(ValueError, match="trip count"):
        hlo_cost.flops(compiled(forever, *arrays))
    assert hlo_cost.flops(compiled(forever, *arrays, otherwise=7)) == 7 * 2 * 8**3


@needs_libtpu
@pytest.mark.parametrize("stage", [pytest.param("scp", marks=pytest.mark.slow), "end_to_end"])
def test_the_train_step_reads_whole(stage):
    read = HloModule.parse(lower(stage, make_mesh(8, 1, devices=topology_devices("v5e:2x4"))).compile().as_text())
    found = collectives(read, 8)
    assert "all-gather" in {c.kind for c in found}
    assert max(c.times for c in found) >= 3  # layers
