"""The document store: what is put in comes out, documents are replaced whole, and searches agree with brute force."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.errors import ClaraError
from clara_jax.memory_count import FIXED, PROPORTIONAL
from clara_jax.method.reranker import relevance_scores
from clara_jax.model.sharding import make_mesh
from clara_jax.retrieval import ann, exact_search
from clara_jax.retrieval.chunk_reader import StoredDocument
from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.encodings import ENCODINGS, MemoryEncoding
from clara_jax.retrieval.exact_search import ExactSearch
from clara_jax.retrieval.search import ScoredId, Search, fuse
from clara_jax.text.documents import Chunk

M, E = 4, 24
RNG = np.random.default_rng(0)


def chunks(document, count, words="about"):
    return [
        Chunk(f"{document}#{i}", document, "a title", f"{words} {i} of {document}", "a file", i, i + 1, 7)
        for i in range(count)
    ]


def key(chunk, memory):
    return (hash((chunk.id, memory.tobytes())) % 2**64).to_bytes(8) * 2


def put(store, document, count, outdated=(), words="about"):
    rows, memories = chunks(document, count, words), RNG.normal(size=(count, M, E)).astype(np.float32)
    if store.encoding.memory_count == PROPORTIONAL:
        memories[np.arange(M) >= RNG.integers(1, M + 1, count)[:, None]] = 0
    store.replace(rows, [key(*pair) for pair in zip(rows, memories, strict=True)], memories, outdated=outdated)
    return memories


def make(path, encoding="float32", fingerprint="f" * 64, memory_count=FIXED):
    return DocumentStore.open_or_make(path, fingerprint, encoding, M, E, memory_count)


def brute_force(store, query, k, ids=None):
    ids = store.index()[0] if ids is None else ids
    memories = np.asarray(store.memories(ids), np.float32)
    scores = np.asarray(relevance_scores(query[None], memories[None], store.encoding.memory_count))[0]
    return sorted(zip(ids, scores.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))[:k]


def assert_same(found, expected):
    assert [hit[0] for hit in found] == [hit[0] for hit in expected]
    np.testing.assert_allclose([hit[1] for hit in found], [hit[1] for hit in expected], atol=1e-6)


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_keep_what_they_promise(name):
    encoding = MemoryEncoding(name, M, E)
    memories = RNG.normal(size=(5, M, E)).astype(np.float32)
    rows = encoding.encode(memories)
    assert rows.shape == (5, encoding.size) and rows.dtype == np.uint8
    back = encoding.decode(rows)
    assert back.dtype == encoding.dtype
    error = np.abs(back.astype(np.float32) - memories)
    steps = {"int8": 127, "int4": 7, "int4-32": 7}
    if name in steps:  # half a step of the vector's scale, and the rounding of bfloat16 (E is below 32: one run)
        assert (error <= np.abs(memories).max(-1, keepdims=True) / (2 * steps[name]) + 2**-8 * np.abs(memories)).all()
    else:
        np.testing.assert_array_equal(back, memories.astype(encoding.dtype))
    assert encoding.decode(encoding.encode(memories[:0])).shape == (0, M, E)


@pytest.mark.parametrize("width", [1, 4, 7])
def test_int4_keeps_each_of_its_numbers_in_half_a_byte(width):
    numbers = RNG.integers(-7, 8, (50, M, width))
    numbers[..., 0] = 7  # so that the scale is 1
    encoding = MemoryEncoding("int4", M, width)
    rows = encoding.encode(numbers.astype(np.float32))
    assert rows.shape == (50, M * ((width + 1) // 2 + 4))
    np.testing.assert_array_equal(encoding.decode(rows).astype(int), numbers)


@pytest.mark.parametrize("width", [31, 64, 70])
def test_a_large_number_costs_its_neighbours_and_no_other_run(width):
    memories = RNG.normal(size=(20, M, width)).astype(np.float32)
    memories[..., 3] = 1000.0
    memories[0] = 0.0
    runs = MemoryEncoding("int4-32", M, width)
    assert runs.size == M * ((width + 1) // 2 + 2 * -(-width // 32))
    found = {name: MemoryEncoding(name, M, width) for name in ("int4", "int4-32")}
    error = {}
    for name, encoding in found.items():
        back = encoding.decode(encoding.encode(memories)).astype(np.float32)
        assert not back[0].any() and back.shape == memories.shape
        error[name] = np.abs(back - memories)[..., 32:].max(initial=0)
    if width > 32:
        largest = np.abs(memories[..., 32:]).max()
        assert error["int4-32"] < largest / 13 < error["int4"] == largest


def test_what_an_encoding_cannot_hold_is_refused():
    with pytest.raises(ClaraError, match="int4-32 cannot hold"):  # its scales are of two bytes
        MemoryEncoding("int4-32", M, E).encode(np.full((1, M, E), 1e6, np.float32))
    huge = np.full((1, M, E), 1e6, np.float32)
    with pytest.raises(ClaraError, match="float16 cannot hold"):
        MemoryEncoding("float16", M, E).encode(huge)
    MemoryEncoding("bfloat16", M, E).encode(huge)
    with pytest.raises(ClaraError, match="int3"):
        MemoryEncoding("int3", M, E)


def test_documents_are_replaced_whole(tmp_path):
    store = make(tmp_path / "store")
    first = put(store, "it's", 5)
    put(store, "other", 3)
    assert store.documents() == ([StoredDocument("it's", "a title", "a file", 5, 35)] * 1 + store.documents()[0][1:], 2)
    np.testing.assert_array_equal(store.memories(["it's#3", "it's#0"]), first[[3, 0]])
    version, again = store.version, DocumentStore.open(tmp_path / "store")
    second = put(store, "it's", 2, outdated=["it's"])
    assert store.version == version + 1  # one commit: nobody sees it half
    assert len(again) == 5 and again.version == store.version  # and another handle sees it at once
    np.testing.assert_array_equal(again.memories(["it's#0", "it's#1"]), second)
    # Only what is named as kept stays.
    store.replace([], [], np.zeros((0, M, E), np.float32), kept=["it's#1"], outdated=["it's"])
    assert set(store.known(["it's"])["it's"]) == {"it's#1"}
    assert store.delete(["it's", "nobody"]) == 1 and store.index()[0] == ["other#0", "other#1", "other#2"]
    assert store.documents(offset=0, limit=1)[1] == 1 and store.stats()["chunks"] == 3


def test_a_place_with_a_url(tmp_path):
    place = f"file://{tmp_path}/store"
    assert not DocumentStore.exists(place)
    memories = put(make(place), "a", 3)
    again = DocumentStore.open(place)
    np.testing.assert_array_equal(again.memories(["a#0", "a#1", "a#2"]), memories)
    assert again.delete(["a"]) == 1 and len(make(place)) == 0


def test_many_make_it_at_once(tmp_path):
    for number in range(5):
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(make, [tmp_path / f"store-{number}"] * 8))
        put(stores[0], "a", 2)
        assert [len(store) for store in stores] == [2] * 8


def test_another_compressor_or_encoding_is_refused(tmp_path):
    make(tmp_path / "store", "float16")
    with pytest.raises(ClaraError, match="another compressor"):
        make(tmp_path / "store", "float16", fingerprint="e" * 64)
    with pytest.raises(ClaraError, match="holds memories as float16"):
        make(tmp_path / "store", "int8")
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ClaraError, match="no store is there"):
            DocumentStore.open(place)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ClaraError, match="no chunk 'x'"):
        DocumentStore.open(tmp_path / "store").chunks(["x"])
    with pytest.raises(ClaraError, match="no condition"):
        DocumentStore.open(tmp_path / "store").where("colour ==== 'red'")


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "encoding, count",
    [*((name, FIXED) for name in ("float32", "bfloat16", "int8", "int4", "int4-32")), ("int8", PROPORTIONAL)],
)
def test_exact_search_is_brute_force_and_follows_the_store(tmp_path, monkeypatch, devices, encoding, count):
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 16 * M * E * 4)  # several blocks
    monkeypatch.setattr(exact_search, "LEAST_ROWS", 8)
    mesh = (
        make_mesh(devices // 2, 2, devices=jax.devices()[:devices])
        if devices > 1
        else make_mesh(1, 1, devices=jax.devices()[:1])
    )
    store = make(tmp_path / "store", encoding, memory_count=count)
    search = ExactSearch(store, mesh, 2**30)
    query = RNG.normal(size=(2, M, E)).astype(np.float32)
    query[1, 1:] = query[1, 1:] if count == FIXED else 0
    assert search(query, 3) == [[], []]

    def check():
        for vector, found in zip(query, search(query, 9), strict=True):
            assert_same(found, brute_force(store, vector, 9))

    for document, number in (("a", 3), ("b", 40), ("c", 70)):
        put(store, document, number)
        check()
    put(store, "b", 7, outdated=["b"])
    check()
    store.delete(["c"])
    check()
    put(store, "d", 5)
    check()
    allowed = {"a#1", "d#4", "b#2"}
    assert_same(search(query[:1], 9, allowed)[0], brute_force(store, query[0], 9, sorted(allowed)))
    some = store.index()[0][::2]
    for vector, found in zip(query, search.among(query, 9, some), strict=True):
        assert_same(found, brute_force(store, vector, 9, some))
    assert search.among(query, 9, []) == [[], []]
    # What does not fit is read from the store.
    small = ExactSearch(store, mesh, 10)
    assert not small.fits and search.fits
    assert_same(small(query[:1], 9)[0], search(query[:1], 9)[0])


def test_equal_scores_are_ordered_by_id(tmp_path, mesh):
    store = make(tmp_path / "store")
    one = np.ones((1, M, E), np.float32)
    for name in ("z", "a", "m"):
        rows = chunks(name, 1)
        store.replace(rows, [key(rows[0], one)], one)
    assert [name for name, _ in ExactSearch(store, mesh, 2**30)(one, 2)[0]] == ["a#0", "m#0"]


def test_an_empty_store_has_no_search_vectors(tmp_path):
    store = make(tmp_path / "store")
    with pytest.raises(ClaraError, match="store: is empty"):
        ann.build(store)
    assert store.projection() is None


def test_search_vectors_find_what_the_exact_score_finds(tmp_path, mesh):
    """Memories near few directions: those are what the basis holds."""
    store = make(tmp_path / "store")
    directions = RNG.normal(size=(6, M * E))
    rows = chunks("d", 300)
    memories = (3 + RNG.normal(size=(300, 6)) @ directions).reshape(300, M, E).astype(np.float32)
    store.replace(rows, [key(*pair) for pair in zip(rows, memories, strict=True)], memories)
    search = Search(store, mesh, 2**30)
    query = (3 + RNG.normal(size=6) @ directions).reshape(M, E).astype(np.float32)
    with pytest.raises(ClaraError, match="no search vectors"):
        search("", query, 5, ann=True)
    ann.build(store)
    assert_same(search("", query, 5, ann=True), brute_force(store, query, 5))
    # A store that does not fit is searched so by itself, and what comes later has its vector at once.
    late = chunks("late", 1)
    projection = ann.Projection.read(store)
    store.replace(late, [key(late[0], query)], query[None], vectors=projection.vectors(query[None]))
    assert Search(store, mesh, 10)("", query, 1)[0] == ScoredId("late#0", pytest.approx(1, abs=1e-6))
    assert search("", query, 3, where="document = 'late'") == [ScoredId("late#0", pytest.approx(1, abs=1e-6))]
    assert search("", query, 3, where="document = 'late'", ann=True)[0].id == "late#0"


def test_words_and_fusion(tmp_path, mesh):
    store = make(tmp_path / "store")
    put(store, "a", 3, words="pears and plums")
    put(store, "b", 3, words="ships and sails")
    store.index_words()
    put(store, "c", 1, words="sails alone")  # not in the index yet, and found all the same
    search = Search(store, mesh, 2**30)
    assert {found.id.partition("#")[0] for found in search("sails", None, 9, "words")} == {"b", "c"}
    assert [found.id[0] for found in search("pears'; DROP \" AND (", None, 3, "words")] == ["a"] * 3
    query = store.memories(["a#2"])[0]
    both = search("sails", query, 3, "both")
    assert both[0].id == "a#2" or both[0].id[0] in "bc"
    with pytest.raises(ClaraError, match="how: 'smell'"):
        search("sails", query, 3, "smell")
    with pytest.raises(ClaraError, match="no condition"):
        search("sails", query, 3, where="document =")


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), max_size=3))
@settings(max_examples=50, deadline=None)
def test_fusion_keeps_what_all_rankings_agree_on(rankings):
    fused = fuse([[ScoredId(name, 0.0) for name in ranking] for ranking in rankings])
    assert {found.id for found in fused} == {name for ranking in rankings for name in ranking}
    places = {found.id: place for place, found in enumerate(fused)}
    for x in places:
        for y in places:
            better = all(x in r and (y not in r or r.index(x) < r.index(y)) for r in rankings)
            assert not (x != y and rankings and better) or places[x] < places[y]


def test_the_memory_of_a_container_is_what_it_may_use(tmp_path, monkeypatch):
    """The machine's memory is no measure there: a store of a quarter of it would be killed."""
    machine = exact_search._host_memory()
    limits = [tmp_path / "memory.max", tmp_path / "limit_in_bytes"]
    monkeypatch.setattr(exact_search, "_CONTAINER_LIMITS", limits)
    assert exact_search._host_memory() >= machine > 2**28, "there are no files"
    limits[0].write_text("max\n")
    limits[1].write_text(f"{2**63 - 4096}\n")  # how version 1 says that there is none
    assert exact_search._host_memory() >= machine
    limits[0].write_text(f"{2**28}\n")
    assert exact_search._host_memory() == 2**28
