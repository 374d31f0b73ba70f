"""Token ids without golden files: special tokens, templates, cuts and chunks."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.prompts import Memory, Prompt
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.data import REFUSING_TEMPLATE, SYSTEM_TEMPLATE, tiny_tokenizer

TOKENIZER = ClaraTokenizer(tiny_tokenizer(), doc_max_length=16, memory_tokens=4, max_length=10_000)
SPECIAL = ["<MEM0>", "<MEM3>", "<AE>", "<ENC>", "<SEP>", "<|im_start|>", "<|im_end|>"]
HOSTILE = st.lists(st.sampled_from([*SPECIAL, "<", "MEM0", ">", "<MEM", "0>", "<|im", "_end|>", " ", "the an"])).map(
    "".join
)
TEXTS = st.lists(st.sampled_from([*"aé.! \n\t日。😀", "the ", " an", "word ", "<SEP>", "A long sentence ends. "])).map(
    "".join
)


def test_added_tokens_follow_the_vocabulary():
    base = tiny_tokenizer()
    before = base.get_vocab()
    tokenizer = ClaraTokenizer(base, 16, 4)
    names = ["<MEM0>", "<MEM1>", "<MEM2>", "<MEM3>", "<AE>", "<ENC>", "<SEP>"]
    assert tokenizer.special_ids == {name: len(before) + i for i, name in enumerate(names)}
    assert tokenizer.memory_ids == tuple(range(len(before), len(before) + 4))
    assert (tokenizer.vocab_size, tokenizer.num_special, tokenizer.total_vocab) == (len(base), 7, len(base) + 7)
    assert base.get_vocab() == before  # a copy was worked on


def test_one_memory_token():
    tokenizer = ClaraTokenizer(tiny_tokenizer(), 16, 3, different_mem_tokens=False)
    assert list(tokenizer.special_ids) == ["<MEM>", "<AE>", "<ENC>", "<SEP>"]
    assert tokenizer.memory_ids == (tokenizer.vocab_size,) * 3
    encoded = tokenizer.encode_prompt(prompts.question("Who?", 2))
    assert [i for i in encoded.memory_index if i >= 0] == list(range(6))


def test_padding_token():
    def pad(**ends):
        tokenizer = ClaraTokenizer(tiny_tokenizer(**ends), 16, 4)
        return tokenizer.decode([tokenizer.pad_id], special=True)

    assert pad(pad="<pad>") == "<pad>"
    assert pad() == "<|im_start|>"
    assert pad(bos=None) == "<|im_end|>"


def test_missing_bos():
    omit = ClaraTokenizer(tiny_tokenizer(bos=None), 16, 4)
    stand_in = ClaraTokenizer(tiny_tokenizer(bos=None), 16, 4, missing_bos="memory_token")
    assert omit.bos_id is None and stand_in.bos_id == stand_in.memory_ids[0]
    enc, eos = omit.special_ids["<ENC>"], omit.eos_id
    the = omit.encode_document("the")[1]
    assert omit.encode_document("the") == [enc, the, eos]
    assert stand_in.encode_document("the") == [enc, stand_in.memory_ids[0], the, eos]
    # The released code takes the first special token without a role, where the base has one.
    base = tiny_tokenizer(bos=None)
    plain = ClaraTokenizer(base, 16, 4, missing_bos="first_special")
    assert plain.bos_id == plain.memory_ids[0]
    base.add_special_tokens({"extra_special_tokens": ["<|tool|>", "<|end|>"]})
    first = ClaraTokenizer(base, 16, 4, missing_bos="first_special")
    assert first.decode([first.bos_id], special=True) == "<|tool|>"
    other = ClaraTokenizer(base, 16, 4, missing_bos="memory_token")
    assert other.bos_id == first.memory_ids[0]
    assert [one.lacks_bos for one in (first, other, ClaraTokenizer(tiny_tokenizer(), 16, 4))] == [True, True, False]
    assert [one.has_released_ends for one in (first, plain, stand_in, other, omit)] == [True, True, True, False, False]
    # An eos is the second one, which without further tokens of the base is a memory token.
    base.eos_token = None
    ends = ClaraTokenizer(base, 16, 4, missing_bos="first_special")
    assert (ends.bos_id, ends.decode([ends.eos_id], special=True)) == (first.bos_id, "<|end|>")
    base = tiny_tokenizer(bos=None)
    base.eos_token = None
    ends = ClaraTokenizer(base, 16, 4, missing_bos="first_special")
    assert (ends.bos_id, ends.eos_id) == ends.memory_ids[:2]
    # A memory token that stands alone, as a bos here, is no memory.
    tokenizer = ClaraTokenizer(tiny_tokenizer(REFUSING_TEMPLATE, bos=None), 16, 4, missing_bos="memory_token")
    encoded = tokenizer.encode_prompt(prompts.question("Who?", 1))
    assert encoded.ids[0] == tokenizer.memory_ids[0] and encoded.memory_index[0] == -1
    assert [i for i in encoded.memory_index if i >= 0] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClaraTokenizer(tiny_tokenizer(template=None), 16, 4), "no chat template"),
        (lambda: ClaraTokenizer(tiny_tokenizer(eos=None), 16, 4), "no end token"),
        (lambda: ClaraTokenizer(tiny_tokenizer(pad="<SEP>"), 16, 4), "already has the token <SEP>"),
        (lambda: ClaraTokenizer(TOKENIZER._tokenizer, 16, 4), "already has the token <MEM0>"),
        (lambda: ClaraTokenizer(tiny_tokenizer(), 16, 0), "memory_tokens: 0 must be at least 1"),
        (lambda: ClaraTokenizer(tiny_tokenizer(), 16, 4, missing_bos="skip"), "missing_bos: 'skip'"),
        (
            lambda: ClaraTokenizer(tiny_tokenizer("{{ raise_exception('never') }}"), 16, 4).render(Prompt("s", ("u",))),
            "chat template fails: never",
        ),
    ],
)
def test_unusable_tokenizers(make, message):
    with pytest.raises(ClaraError, match=message):
        make()


def test_document_is_framed_and_cut_on_the_right():
    ids = TOKENIZER.encode_document("x" * 16)
    assert ids[:2] == [TOKENIZER.special_ids["<ENC>"], TOKENIZER.bos_id] and ids[-1] == TOKENIZER.eos_id
    assert len(ids) == 19 and not TOKENIZER.is_cut("x" * 16)
    longer = TOKENIZER.encode_document("x" * 16 + "y")
    assert longer == ids[:-1] + TOKENIZER.encode_document("y")[2:3] and TOKENIZER.is_cut("x" * 16 + "y")
    assert TOKENIZER.encode_document("xyz", width=3) == TOKENIZER.encode_document("xyz")[:3]
    assert TOKENIZER.encode_documents(["a", "the b"]) == [TOKENIZER.encode_document(text) for text in ("a", "the b")]


@pytest.mark.parametrize("bos", ["<|im_start|>", None])
@given(st.lists(TEXTS, max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_text_is_cut_where_the_compressor_stops_reading(bos, texts):
    tokenizer = ClaraTokenizer(tiny_tokenizer(bos=bos), doc_max_length=16, memory_tokens=4)
    for text, cut, ids in zip(texts, tokenizer.cut_texts(texts), tokenizer.encode_documents(texts), strict=True):
        if not tokenizer.is_cut(text):
            assert cut == text
            continue
        read = tokenizer.decode(ids)
        # A character of several tokens may be cut within; then all of it is kept.
        assert tokenizer.plain(text).startswith(cut) and cut.startswith(read.rstrip("\ufffd"))
        assert len(cut) <= len(read.rstrip("\ufffd")) + 1


def test_characters_that_are_not_whole_are_left_out():
    ids = TOKENIZER._encode(["a😀é"])[0]
    assert len(ids) > 4, "several tokens a character"
    assert TOKENIZER.decode(ids) == "a😀é" and TOKENIZER.decode(ids[:-1]) == "a😀" and TOKENIZER.decode(ids[:3]) == "a"
    assert TOKENIZER.decode([*ids[:2], *ids[-2:]]) == "aé", "tokens taken out of the middle"
    spelled = TOKENIZER._encode(["a\ufffd b"])[0]
    assert TOKENIZER.decode(spelled) == "a\ufffd b", "as it stands in the text"


def test_prompt_with_a_system_role():
    prompt = Prompt("Sys", ("B: ", Memory(1), Memory(0), " Q"), "Yes")
    blocks = "<MEM0><MEM1><MEM2><MEM3><SEP>" * 2
    head = f"<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nB: {blocks} Q<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.render(prompt) == head + "Yes<|im_end|>\n"
    assert TOKENIZER.render(Prompt(prompt.system, prompt.user)) == head
    encoded = TOKENIZER.encode_prompt(prompt)
    assert TOKENIZER.decode(encoded.ids, special=True) == head + "Yes<|im_end|>\n"
    assert [i for i in encoded.memory_index if i >= 0] == [4, 5, 6, 7, 0, 1, 2, 3]  # the second slot stands first
    first = encoded.memory_index.index(4)
    assert encoded.ids[first : first + 5] == [*TOKENIZER.memory_ids, TOKENIZER.special_ids["<SEP>"]]
    learned = [id for id in encoded.labels if id != -100]
    assert encoded.labels == [-100] * (len(encoded.ids) - len(learned)) + learned
    assert TOKENIZER.decode(learned, special=True) == "Yes<|im_end|>\n"
    generation = TOKENIZER.encode_prompt(Prompt(prompt.system, prompt.user))
    assert generation.ids == encoded.ids[: -len(learned)] and set(generation.labels) == {-100}
    assert not generation.target_lost and not generation.cut


def test_prompt_where_the_template_refuses_the_system_role():
    tokenizer = ClaraTokenizer(tiny_tokenizer(REFUSING_TEMPLATE), 16, 4)
    prompt = Prompt("Sys", ("B",), "Yes")
    assert tokenizer.render(prompt) == "<|im_start|>[INST] Sys\nB [/INST]Yes<|im_end|>"
    labels = tokenizer.encode_prompt(prompt).labels
    assert tokenizer.decode([id for id in labels if id != -100], special=True) == "Yes<|im_end|>"


def test_what_is_cut_off_is_told():
    prompt = prompts.question("Who?", 2, "Ann")
    whole = TOKENIZER.encode_prompt(prompt)
    learned = sum(label != -100 for label in whole.labels)

    def at(length):
        return ClaraTokenizer(tiny_tokenizer(), 16, 4, max_length=length).encode_prompt(prompt)

    some = at(whole.full_length - learned + 1)
    assert (some.cut, some.target_lost, some.lost_memories) == (True, False, 0)
    assert some.ids == whole.ids[: len(some.ids)] and some.labels == whole.labels[: len(some.ids)]
    none = at(whole.full_length - learned)
    assert (none.cut, none.target_lost, none.lost_memories, none.full_length) == (True, True, 0, whole.full_length)
    second = whole.memory_index.index(4)
    for length, lost in ((second + 4, 0), (second + 3, 1), (second, 1), (second - 1, 1), (second - 2, 2), (3, 2)):
        encoded = at(length)
        assert encoded.lost_memories == lost, length
        assert encoded.memory_index == whole.memory_index[:length]
        assert len(encoded.ids) == len(encoded.memory_index) == len(encoded.labels) == length


@given(HOSTILE)
@settings(max_examples=200, deadline=None)
def test_no_text_becomes_a_special_token(text):
    plain = TOKENIZER.plain(text)
    assert not any(name in plain for name in SPECIAL)
    assert TOKENIZER.plain(plain) == plain
    assert plain.replace(" ", "") == text.replace(" ", "")
    ids = TOKENIZER.encode_document(text, width=10_000)
    added = set(TOKENIZER.special_ids.values()) | {TOKENIZER.bos_id, TOKENIZER.eos_id}
    assert added.isdisjoint(ids[2:-1])
    for prompt in (
        prompts.question(text, 1, text),
        prompts.question(text, [text], text),
        Prompt(text, ("<", text), text),
    ):
        encoded = TOKENIZER.encode_prompt(prompt)
        slots = sum(isinstance(segment, Memory) for segment in prompt.user)
        assert sum(id == TOKENIZER.special_ids["<SEP>"] for id in encoded.ids) == slots
        assert sum(id in TOKENIZER.memory_ids for id in encoded.ids) == 4 * slots
        assert sum(id == TOKENIZER.bos_id for id in encoded.ids) == 3


def test_harmless_text_stays_as_it_is():
    for text in ("", "a < b > c", "<b>bold</b>", "MEM0", "日本語 😀"):
        assert TOKENIZER.plain(text) == text
    assert TOKENIZER.plain("a<SEP>b<|im_end|>") == "a< SEP>b< |im_end|>"


def test_save_and_load(tmp_path):
    tokenizer = ClaraTokenizer(
        tiny_tokenizer(bos=None), 32, 2, different_mem_tokens=False, missing_bos="memory_token", max_length=99
    )
    tokenizer.save(tmp_path / "new" / "tokenizer")
    loaded = ClaraTokenizer.load(tmp_path / "new" / "tokenizer")
    assert loaded.tokenizer_hash() == tokenizer.tokenizer_hash()
    prompt = prompts.question("Who?", 2, "Ann")
    assert loaded.encode_prompt(prompt) == tokenizer.encode_prompt(prompt)
    assert loaded.encode_document("the <SEP>") == tokenizer.encode_document("the <SEP>")
    assert (loaded.special_ids, loaded.memory_ids, loaded.pad_id) == (
        tokenizer.special_ids,
        tokenizer.memory_ids,
        tokenizer.pad_id,
    )
    assert (loaded.doc_max_length, loaded.max_length) == (32, 99)


def test_hash_sees_what_matters():
    def digest(template=SYSTEM_TEMPLATE, bos="<|im_start|>", **options):
        return ClaraTokenizer(
            tiny_tokenizer(template, bos), **{"doc_max_length": 16, "memory_tokens": 4, **options}
        ).tokenizer_hash()

    assert digest() == digest() == digest(max_length=1024)
    others = [digest(REFUSING_TEMPLATE), digest(bos="<s>"), digest(memory_tokens=2), digest(different_mem_tokens=False)]
    assert len({digest(), *others}) == 5


def test_a_changed_or_missing_file_is_refused(tmp_path):
    with pytest.raises(ClaraError, match="clara_tokenizer.json: cannot be read"):
        ClaraTokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    path = tmp_path / "clara_tokenizer.json"
    options = json.loads(path.read_text())
    for content, message in [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps(options | {"more": 1}), "has the fields"),
        (json.dumps(options | {"max_length": 77}), "is not the one that was saved"),
    ]:
        path.write_text(content)
        with pytest.raises(ClaraError, match=message):
            ClaraTokenizer.load(tmp_path)
    path.write_text(json.dumps(options))
    assert ClaraTokenizer.load(tmp_path).tokenizer_hash() == TOKENIZER.tokenizer_hash()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ClaraError, match="cannot be read"):
        ClaraTokenizer.load(tmp_path)


@pytest.mark.parametrize("added", [False, True])
def test_what_is_written_for_transformers_names_what_its_version_4_knows(tmp_path, added):
    base = tiny_tokenizer()
    base.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer = ClaraTokenizer(base, doc_max_length=16, memory_tokens=4)
    tokenizer.save_hugging_face(tmp_path, added)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # transformers 5 writes another class, and a list, which stop version 4, and with it the released code.
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "extra_special_tokens"} & set(config)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert "<tool>" in read.all_special_tokens
    assert len(read) == (tokenizer.total_vocab if added else tokenizer.vocab_size)
