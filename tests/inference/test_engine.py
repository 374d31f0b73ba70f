"""The engine: an answer is the same alone, among others, from a row that another left, and on several devices."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import ClaraError
from clara_jax.checkpoints import opening
from clara_jax.inference import programs
from clara_jax.inference import weights as ready
from clara_jax.inference.decode import Sampling, generate, prefill
from clara_jax.inference.engine import Engine, bucket
from clara_jax.inference.prefix_cache import key, split_at
from clara_jax.inference.requests import Request
from clara_jax.method.clara import ClaraConfig
from clara_jax.method.merging import merge_adapter
from clara_jax.model.sharding import make_mesh, put_batch
from tests.tiny import write_base

NEVER = (10**6,)  # ends no answer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def opened(base, mesh, precision="float32"):
    """A generator that is not the base: its adapter's B is not zero."""
    clara = ClaraConfig(doc_max_length=32, compress_rate=8, lora_rank=4, max_length=192)
    bundle = opening.from_base(str(base), clara, mesh, precision)
    lora = jax.tree.map(
        lambda x: jax.device_put(
            np.asarray(x) + 0.05 * np.cos(np.arange(x.size)).reshape(x.shape).astype("f4"), x.sharding
        ),
        bundle.params["lora"],
    )
    return dataclasses.replace(bundle, params=bundle.params | {"lora": lora})


@pytest.fixture(scope="module")
def bundle(base, mesh):
    return opened(base, mesh)


def requests(bundle, count, limits=(3, 9, 17), **sampling):
    """Ragged ones: other lengths, other memories, other limits."""
    rng, model = np.random.default_rng(1), bundle.model
    size = model.clara.memory_tokens
    made = []
    for number in range(count):
        documents, length = number % 4, int(rng.integers(4, 70))
        ids = rng.integers(5, model.config.vocab_size, length + documents * size)
        index = np.full(len(ids), -1)
        index[2 : 2 + documents * size] = np.arange(documents * size)
        memories = rng.normal(size=(documents, size, model.config.embed_dim)).astype("f4")
        limit = Sampling(limits[number % len(limits)], **sampling)
        made.append(Request(ids.tolist(), index.tolist(), memories, limit, seed=number))
    return made


def directly(bundle, request, end_ids=NEVER):
    """The answer from the program for a whole batch, with the prompt padded on the left."""
    ids, index = np.asarray(request.ids, np.int32), np.asarray(request.memory_index, np.int32)
    row, places = np.zeros((1, 96), np.int32), np.full((1, 96), -1, np.int32)
    row[0, -len(ids) :], places[0, -len(ids) :] = ids, index
    memories = np.zeros((3, *request.memories.shape[1:]), "f4")
    memories[: len(request.memories)] = request.memories
    seed = np.array([request.seed], np.uint32)
    with jax.set_mesh(bundle.mesh):
        arrays = put_batch((row, np.arange(96)[None] >= 96 - len(ids), places, memories[None], seed), bundle.mesh)
        out = jax.device_get(generate(bundle.model, bundle.params, *arrays, request.sampling, end_ids))
    return tuple(out.tokens[0, : out.lengths[0]].tolist()), float(out.log_probability[0])


def tokens_directly(bundle, request):
    """The tokens alone: the first ones of a long answer, whatever the limit, so that all limits share a program."""
    long = dataclasses.replace(request.sampling, max_new_tokens=30)
    assert request.sampling.max_new_tokens <= long.max_new_tokens
    return directly(bundle, dataclasses.replace(request, sampling=long))[0][: request.sampling.max_new_tokens]


@pytest.mark.parametrize(("weights", "rows"), [("adapter", 4), ("merged", 4), ("merged-float32", 1)])
def test_answers_are_those_of_one_prompt_alone(bundle, weights, rows):
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=rows, weights=weights, steps=4)
    asked = requests(bundle, 9)
    for request, result in zip(asked, engine.generate(asked), strict=True):
        tokens, log_probability = directly(bundle, request)
        assert result.tokens == tokens and len(tokens) == request.sampling.max_new_tokens
        assert result.log_probability == pytest.approx(log_probability, abs=1e-3)
        assert result.ended == "length"
        assert 0 <= result.milliseconds["queued"] <= result.milliseconds["first"] <= result.milliseconds["total"]
    assert not engine.busy and not engine.waiting and not engine.step()


def test_end_tokens_free_a_row_for_the_next(bundle):
    asked = requests(bundle, 8, limits=(12,))
    free = [tokens_directly(bundle, request) for request in asked]
    ends = (free[0][3], free[1][5])
    engine = Engine(bundle.model, bundle.params, bundle.mesh, ends, rows=2, steps=3)
    for request, tokens, result in zip(asked, free, engine.generate(asked), strict=True):
        stop = next((place for place, token in enumerate(tokens) if token in ends), None)
        assert result.tokens == tokens[:stop] and result.ended == ("length" if stop is None else "stop")
        assert (result.tokens, pytest.approx(result.log_probability, abs=1e-3)) == directly(bundle, request, ends)


def test_those_who_come_later_change_nothing_and_rows_grow(bundle):
    asked = requests(bundle, 6, limits=(30,))
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4, steps=4)
    handles, lengths = [], set()
    for request in asked:  # the second comes while the first, alone in its program, is written
        handles.append(engine.submit(request))
        for _ in range(3):
            engine.step()
            lengths.add(len(handles[0].tokens))
    while engine.step():
        pass
    assert len(lengths) > 3  # tokens come a few at a time
    for request, handle in zip(asked, handles, strict=True):
        assert handle.result.tokens == tokens_directly(bundle, request) == tuple(handle.tokens)


def test_draws_depend_on_the_seed_alone(bundle):
    asked = requests(bundle, 5, temperature=0.8) + requests(bundle, 3, temperature=1.3, top_p=0.7) + requests(bundle, 2)
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4, steps=4)
    together = engine.generate(asked)
    for request, result in zip(asked, together, strict=True):
        assert result.tokens == tokens_directly(bundle, request) == engine.generate([request])[0].tokens
    other = engine.generate([dataclasses.replace(request, seed=request.seed + 100) for request in asked])
    changed = [a.tokens != b.tokens for a, b in zip(together, other, strict=True)]
    assert sum(changed[:8]) >= 6 and not any(changed[8:])


def test_a_small_nucleus_is_the_likeliest_token(bundle):
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4)
    narrow = engine.generate(requests(bundle, 4, temperature=2.0, top_p=1e-6))
    assert [r.tokens for r in narrow] == [r.tokens for r in engine.generate(requests(bundle, 4))]


def test_cancelled_requests_leave_the_others_alone(bundle):
    asked = requests(bundle, 4, limits=(20,))
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=2, steps=3)
    handles = [engine.submit(request) for request in asked]
    engine.step()
    handles[0].cancel()  # has a row
    handles[3].cancel()  # waits
    while engine.step():
        pass
    assert [handle.result.ended for handle in handles] == ["cancelled", "length", "length", "cancelled"]
    assert len(handles[0].result.tokens) < 20
    for request, handle in list(zip(asked, handles, strict=True))[1:3]:
        assert handle.result.tokens == tokens_directly(bundle, request)


def test_questions_on_the_same_documents_read_them_once(bundle):
    one = requests(bundle, 4)[3]
    beginning = split_at(one.memory_index)
    assert beginning == 2 + 3 * bundle.model.clara.memory_tokens
    rng = np.random.default_rng(5)
    asked = []
    for length in (5, 40, 11):
        ids = one.ids[:beginning] + rng.integers(5, 90, length).tolist()
        asked.append(dataclasses.replace(one, ids=ids, memory_index=one.memory_index[:beginning] + [-1] * length))
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4)
    results = [engine.generate([request])[0] for request in asked]
    assert (engine.prefix_cache.hits, engine.prefix_cache.misses, len(engine.prefix_cache)) == (2, 1, 1)
    for request, result in zip(asked, results, strict=True):
        assert result.tokens == tokens_directly(bundle, request)
    # Other memories at the same tokens are another beginning.
    other = dataclasses.replace(asked[0], memories=-asked[0].memories)
    assert engine.generate([other])[0].tokens == tokens_directly(bundle, other) != results[0].tokens
    assert engine.prefix_cache.misses == 2


def test_shared_tokens_are_read_once(bundle):
    """Of prompts without memories, and of more than memories."""
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4)
    for one in requests(bundle, 4)[0], requests(bundle, 4)[3]:
        end = max(split_at(one.memory_index) + 1, 2)
        asked = [
            dataclasses.replace(
                one,
                ids=[*one.ids[:end], *range(5, 5 + n)],
                memory_index=[*one.memory_index[:end], *[-1] * n],
                shared=end,
            )
            for n in (3, 9)
        ]
        found, missed = engine.prefix_cache.hits, engine.prefix_cache.misses
        results = [engine.generate([request])[0] for request in asked]
        assert (engine.prefix_cache.hits, engine.prefix_cache.misses) == (found + 1, missed + 1)
        for request, result in zip(asked, results, strict=True):
            assert result.tokens == tokens_directly(bundle, request)


def test_beginnings_that_were_not_used_for_longest_go(bundle):
    asked = [request for request in requests(bundle, 12) if len(request.memories)]
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=1)
    engine.generate(asked[:1])
    size = engine.prefix_cache._taken
    small = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=1, prefix_budget=3 * size)
    small.generate(asked)
    assert 0 < small.prefix_cache._taken <= 3 * size and len(small.prefix_cache) < len(asked)
    last, end = asked[-1], split_at(asked[-1].memory_index)
    assert key(last.ids[:end], last.memory_index[:end], last.memories, False) in small.prefix_cache
    none = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=1, prefix_budget=0)
    none.generate(asked[:2])
    assert len(none.prefix_cache) == 0


def test_a_beginning_under_longrope_keeps_to_its_table(tmp_path, mesh):
    """A prompt beyond the first table's positions has other keys from its first token on than one within them."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [6.0] * 8}
    base = write_base(tmp_path / "base", rope_scaling=scaling, original_max_position_embeddings=40)
    bundle = opened(base, mesh)
    rng, size = np.random.default_rng(3), bundle.model.clara.memory_tokens
    memories = rng.normal(size=(2, size, bundle.model.config.embed_dim)).astype("f4")
    head, index = rng.integers(5, 200, 2 * size).tolist(), list(range(2 * size))

    def request(behind):
        tail = np.random.default_rng(behind).integers(5, 200, behind).tolist()
        return Request(head + tail, index + [-1] * behind, memories, Sampling(9))

    engine = Engine(bundle.model, bundle.params, mesh, NEVER, rows=1)
    for behind in (40 - 2 * size, 41 - 2 * size, 20, 60, 30):
        (result,) = engine.generate([request(behind)])
        assert result.tokens == directly(bundle, request(behind))[0], behind
    assert (engine.prefix_cache.hits, engine.prefix_cache.misses) == (3, 2)


@pytest.mark.parametrize("weights", ["adapter", "merged", pytest.param("merged-bfloat16", marks=pytest.mark.slow)])
def test_several_devices(base, bundle, weights, mesh222):
    expected = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4, weights=weights, steps=4)
    split = opened(base, mesh222)
    engine = Engine(split.model, split.params, mesh222, NEVER, rows=4, weights=weights, steps=4)
    asked = requests(bundle, 7)
    twice = asked + [dataclasses.replace(asked[3], seed=1)]
    ours = [result.tokens for result in engine.generate(twice)]
    assert ours == [result.tokens for result in expected.generate(twice)]
    assert engine.generate([asked[3]])[0].tokens == ours[3] and engine.prefix_cache.hits


def run(bundle, model, params):
    """Return the states of tokens after a cached one, and the tokens' keys and values."""

    @jax.jit
    def both(params, ids):
        x = model.embed(params, ids)
        _, cache = model.forward(params, None, x[:, :1], ids[:, :1] > 0, return_kv=True)
        return model.forward(params, None, x[:, 1:], ids[:, 1:] > 0, (cache,), return_kv=True)

    ids = np.arange(5, 45, dtype=np.int32)[None]
    with jax.set_mesh(bundle.mesh):
        return jax.device_get(both(params, jax.device_put(ids, jax.P(("replica", "data")))))


@pytest.mark.parametrize("single_row", [True, False])
def test_unstacked_layers_compute_what_the_stack_does(bundle, single_row):
    model, params = ready.prepare(bundle.model, bundle.params, "merged", bundle.mesh, single_row)
    assert isinstance(params["base"]["layers"], tuple) and len(params["base"]["layers"]) == model.config.layers
    stacked = merge_adapter(bundle.model, bundle.params, "generator", bundle.mesh)
    assert ready.size(params) == ready.size({"base": stacked, "lora": {}})
    ours, theirs = run(bundle, model, params), run(bundle, model, {**params, "base": stacked})
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), ours, theirs)


def test_bfloat16_is_close(bundle):
    model, params = ready.prepare(bundle.model, bundle.params, "merged-float32", bundle.mesh)
    other, small = ready.prepare(bundle.model, bundle.params, "merged-bfloat16", bundle.mesh)
    assert ready.size(small) < 0.51 * ready.size(params)
    exact, rounded = (run(bundle, *args)[0] for args in ((model, params), (other, small)))
    assert rounded.dtype == exact.dtype == np.float32  # what is added up is not rounded
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.02


def test_bfloat16_for_one_row_where_the_processor_multiplies_it(base, mesh, monkeypatch):
    """A base in bfloat16: read as it is, unless one row would have to be widened first."""
    bundle = opened(base, mesh, "bfloat16")

    def stored(weights, single_row):
        model, params = ready.prepare(bundle.model, bundle.params, weights, mesh, single_row)
        assert model.precision == "float32"
        (kernel,) = jax.tree.leaves(params["base"]["layers"][0]["mlp"]["down"]["kernel"])
        return kernel.dtype.name

    for found in (True, False):
        monkeypatch.setattr(ready, "has_instructions", lambda found=found: found)
        assert stored("merged", False) == stored("merged-bfloat16", True) == "bfloat16"
        assert stored("merged", True) == ("bfloat16" if found else "float32")
        assert stored("merged-float32", False) == "float32"


@pytest.mark.parametrize("rows", [1, 8])
def test_bfloat16_is_read_as_it_is(bundle, rows, usual_code):
    """Nothing in the program of a token is as large as a kernel in float32: XLA widens none of them in memory."""
    model, params = ready.prepare(bundle.model, bundle.params, "merged-bfloat16", bundle.mesh)
    sizes = {leaf.size for leaf in jax.tree.leaves(params["base"]["layers"][0]) if leaf.ndim > 1}

    def token(params, ids):
        x = model.embed(params, ids)
        return model.logits(params, model.forward(params, None, x, jnp.ones_like(ids, bool))[0])

    with jax.set_mesh(bundle.mesh):
        ids = jax.device_put(np.full((rows, 1), 7, np.int32), jax.P(("replica", "data")))
        lowered = jax.jit(token).lower(params, ids)
        text = lowered.compile({"xla_backend_optimization_level": 3, **usual_code}).as_text()
    products = [line for line in text.splitlines() if " dot(" in line or "kind=kCustom" in line]
    assert len(products) >= 7 * model.config.layers
    wide = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"= f32\[([0-9,]+)\]", text)]
    assert sizes.isdisjoint(wide), "a kernel in float32"


def test_few_programs_for_a_mixed_load(bundle):
    """Other lengths, memories, numbers of requests and times of coming: the programs are those of a few sizes."""
    functions = prefill, programs.insert, programs.advance, programs.resize

    def compiled():
        return np.array([function._cache_size() for function in functions])

    options = dict(rows=8, weights="merged", steps=4, prefix_budget=0)
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, **options)
    asked, before = requests(bundle, 48, limits=(3, 9, 17, 30)), compiled()
    bursts = iter((1, 2, 3, 5, 8, 1, 7, 4, 6, 11))
    while asked or engine.step():
        count = next(bursts, 0)
        for request in asked[:count]:
            engine.submit(request)
        del asked[:count]
        engine.step()
    engine.generate(requests(bundle, 48, limits=(5, 25))[::-1])
    # Prompts of 4 to 82 tokens are read in three lengths, one or four of them, with memories or without; one row and
    # eight in one cache.
    prefills, inserts, advances, resizes = compiled() - before
    assert prefills <= 12 and inserts <= 18 and advances <= 2 and resizes <= 1


def test_a_warm_engine_compiles_nothing(bundle):
    one = requests(bundle, 4, limits=(40,))[3]
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=4, weights="merged", steps=4)

    def ask(number):
        return dataclasses.replace(one, memories=np.full_like(one.memories, number))

    engine.warm_up(ask)
    assert not engine.busy and not engine.waiting and not len(engine.prefix_cache) and not engine.prefix_cache.hits
    functions = prefill, programs.insert, programs.advance, programs.resize, programs.first_slots
    before = [function._cache_size() for function in functions]
    engine.generate([ask(7)])
    engine.generate([ask(7), ask(8), ask(9), ask(8), ask(10)])
    first = engine.submit(ask(1))
    engine.step()
    engine.generate([ask(2), ask(3)])
    assert first.result is not None or first.tokens
    while engine.step():
        pass
    assert [function._cache_size() for function in functions] == before


def test_refusals(bundle):
    engine = Engine(bundle.model, bundle.params, bundle.mesh, NEVER, rows=2)
    good = requests(bundle, 2)[1]
    for changed, said in (
        ({"ids": [], "memory_index": []}, "0 tokens"),
        ({"memory_index": [-1]}, "1 memory indices"),
        ({"memories": good.memories[:, :1]}, "is needed"),
        ({"memories": good.memories[:0]}, "0 memories"),
        ({"shared": len(good.ids)}, "of which [0-9]+ are shared; one must be its own"),
        ({"sampling": Sampling(10**7)}, "positions"),
    ):
        with pytest.raises(ClaraError, match=said):
            engine.submit(dataclasses.replace(good, **changed))
        with pytest.raises(ClaraError, match=f"prompt 1: .*{said}"):
            engine.generate([good, dataclasses.replace(good, **changed)])
    assert not engine.waiting
    for weights, said in (("fast", "must be one of adapter, merged, merged-bfloat16"), ("int8", "is gone")):
        with pytest.raises(ClaraError, match=f"weights: '{weights}' {said}"):
            Engine(bundle.model, bundle.params, bundle.mesh, NEVER, weights=weights)
    with pytest.raises(ClaraError, match="rows"):
        Engine(bundle.model, bundle.params, make_mesh(2, 1, devices=jax.devices()[:2]), NEVER, rows=3)


def test_buckets_hold_their_number():
    sizes = [bucket(number) for number in range(1, 3000)]
    assert all(number <= size for number, size in enumerate(sizes, 1))
    assert all(size <= 2 * number for number, size in enumerate(sizes, 1) if number > 32)
    assert all(size <= 1.5 * number for number, size in enumerate(sizes, 1) if number > 128)
    assert len(set(sizes)) < 15
