"""Words: a text is found by what stands in it, in any script and spelling."""

import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.retrieval.document_store import DocumentStore
from clara_jax.retrieval.words import LONGEST, asked, indexed
from clara_jax.text.documents import Chunk

TEXTS = {
    "zh": "北京是中华人民共和国的首都，位于华北平原的北部。",
    "ja": "東京は日本の首都です。人口は約千四百万人です。ガラスの靴。",
    "ko": "서울은 대한민국의 수도이다.",
    "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "my": "ရန်ကုန်သည် မြန်မာနိုင်ငံ၏ အကြီးဆုံးမြို့ဖြစ်သည်။",
    "hi": "दिल्ली भारत की राजधानी है।",
    "ar": "القَاهِرَة عاصمة مصر",
    "who": "The Who recorded Tommy in 1969.",
    "it": "It is a novel of him, and they were not in it.",
    "de": "Zu\u0308rich und Łódź; die Straße nach Ångström.",
    "wide": "ＡＢＣ１２３ \ufb01ne \u200bzero\u00adwidth",
    "hash": f"commit {'0123456789abcdef' * 4} of {'very' * 60}",
    "quoted": 'He said "never again" and AND (left) the* house^2 ~ +1.',
    "emoji": "a party 🎉 tonight",
    "runs": "Cats are running there.",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = DocumentStore.open_or_make(tmp_path_factory.mktemp("words") / "store", "f" * 64, "float32", 1, 2)
    chunks = [Chunk(name, name, "", text, "", 0, 1, 9) for name, text in TEXTS.items()]
    half = len(chunks) // 2
    for part in (chunks[:half], chunks[half:]):  # what is in the index, and what is not yet
        made.replace(part, [bytes(16)] * len(part), np.ones((len(part), 1, 2), np.float32))
        if part is chunks[:half]:
            made.replace(part, [bytes(16)] * len(part), np.ones((len(part), 1, 2), np.float32))
            made.tidy(now=True)
    return made


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("葛城", "葛\U000e0100城市"), ("ᠮᠣᠩᠭᠣᠯ", "ᠮᠣᠩ\u180bᠭᠣᠯ"), ("❤", "love ❤\ufe0f"),
        ("ab", "a\u1dc4b"), ("v", "v\u20d7"),
        ("الله", "ٱلله"), ("أحمد", "احمد"), ("ꦗꦮ", "ꦲꦏ꧀ꦱꦫꦗꦮ"), ("ﾊﾟｿｺﾝ", "パソコン"),
        ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8은"),
    ],
)  # fmt: skip
def test_one_word_in_two_spellings(question, text):
    """Shapes of a character, accents of every block, letters of one sound, scripts without blanks."""
    assert set(asked(question).split()) <= set(indexed(text).split()) and asked(question)


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("北京", "zh"), ("北部在哪里？", "zh"), ("猫", None), ("東京", "ja"), ("靴", "ja"), ("ｶﾞﾗｽ", "ja"),
        ("カ\u3099ラス", "ja"),
        ("서울", "ko"), ("서울의 수도", "ko"), ("수도", "ko"), ("เมืองหลวง", "th"), ("ประเทศไทย", "th"), ("ရန်ကုန်", "my"),
        ("दिल्ली", "hi"), ("राजधानी", "hi"), ("القاهرة", "ar"), ("The Who", "who"), ("1969?", "who"), ("It", "it"),
        ("Zürich", "de"), ("ZÜRICH", "de"), ("zurich", "de"), ("Lodz", "de"), ("STRASSE", "de"), ("Ångström", "de"),
        ("abc123", "wide"), ("fine", "wide"), ("zerowidth", "wide"), ("0123456789abcdef" * 4, "hash"),
        ("very" * 60, "hash"), ('"never again"', "quoted"), ('never" OR (', "quoted"), ("house^2", "quoted"),
        ("🎉", "emoji"), ("run", "runs"), ("cat", "runs"),
    ],
)  # fmt: skip
def test_texts_are_found_by_their_words(store, question, name):
    found = [chunk_id for chunk_id, _ in store.words(question, 3)]
    assert found[:1] == [name] if name else not found


@pytest.mark.parametrize("question", ["", " ", "?!", '""', "...", "\ud83d", "\x00", "\u200b"])
def test_a_question_without_a_word_finds_nothing(store, question):
    assert store.words(question, 3) == []


ALPHABET = (
    string.ascii_letters
    + "äéñøßçœİıΣσςйёЖ北京東ガがハングル서울ไทย한국กำ日本١٢हिन्दी🎉 -'\"().,\u0301\u0308\u200b\u00ad"
)
some_text = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=40))


@given(some_text)
@settings(max_examples=200, deadline=None)
def test_spelling_does_not_matter(text):
    for function in (indexed, asked):
        expected = function(text)
        for form in ("NFC", "NFD"):
            assert function(unicodedata.normalize(form, text)) == expected
        assert all(0 < len(word) <= 3 * LONGEST for word in expected.split())


@given(some_text, some_text, some_text)
@settings(max_examples=200, deadline=None)
def test_a_stretch_between_blanks_is_found(before, within, after):
    words = set(indexed(f"{before} {within} {after}").split())
    assert set(asked(within).split()) <= words


@given(st.integers(0, 20), st.integers(1, 8))
def test_a_stretch_of_a_script_without_blanks_is_found(start, length):
    text = TEXTS["zh"].replace("，", "").replace("。", "")
    stretch = text[start % len(text) :][:length]
    assert set(asked(stretch).split()) <= set(indexed(text).split())


def test_much_text_takes_little_time():
    for letter in ("a", "北", "\u0301", "\u0e31", "ก", "\ufdfa", " "):
        assert len(indexed(letter * 20_000)) < 1_000_000
