"""The word-level tokenizer, alone and as the base of CLaRa's."""

import pytest

from clara_jax.data.synthetic import documents, records, vocabulary
from clara_jax.data.synthetic_world import SyntheticConfig
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.word_level import word_level_tokenizer
from tests.configurations import changed

CONFIG = SyntheticConfig(
    world=dict(name_words=8, train_partners=4, eval_partners=4, attributes=3, phrasings=3, attribute_values=24),
    records=dict(train=80, complex_share=0.4),
)


@pytest.fixture(scope="module")
def tokenizer():
    return word_level_tokenizer([*vocabulary(CONFIG), "Where?"])


def test_words_and_punctuation_are_tokens():
    tokenizer = word_level_tokenizer(['Ada, of "Ulm", b. 1640: painter (retired).', "Ada"])
    text = 'Ada:(1640)".'
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["Ada", ":", "(", "1640", ")", '"', "."]
    assert tokenizer("Bo")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer("")["input_ids"] == []


def test_every_text_of_the_corpus_comes_back(tokenizer):
    texts = [document.text for split in ("train", "eval") for document in documents(CONFIG, split)]
    for stage in ("scp", "end_to_end"):
        texts += [text for r in records(CONFIG, stage, "train") for text in (*r.questions, *r.answers)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_prompts_have_no_unknown_word(tokenizer):
    clara = ClaraTokenizer(tokenizer, doc_max_length=24, memory_tokens=4)
    for stage in ("scp", "instruct", "end_to_end"):
        for r in records(changed(CONFIG, records=dict(paraphrase_share=0.6)), stage, "train"):
            encoded = clara.encode_prompt(prompts.record_prompt(r, stage, 2))
            assert tokenizer.unk_token_id not in encoded.ids
            assert not encoded.lost_memories
    for instruction in prompts.PARAPHRASE_INSTRUCTIONS:
        ids = clara.encode_prompt(prompts.paraphrase(None, instruction)).ids
        assert tokenizer.unk_token_id not in ids


def test_prompts_are_short(tokenizer):
    clara = ClaraTokenizer(tokenizer, doc_max_length=8, memory_tokens=2)
    prompt = prompts.question("Where?", 1, "Oslo")
    encoded = clara.encode_prompt(prompt)
    tokens = "<s> Background : <MEM0> <MEM1> <SEP> Question : Where ? <s> Oslo </s>".split()
    assert [clara.decode([i], special=True) for i in encoded.ids] == tokens
    assert encoded.labels[:-2] == [-100] * 11 and encoded.labels[-2:] == encoded.ids[-2:]


def test_it_survives_a_file(tokenizer, tmp_path):
    clara = ClaraTokenizer(tokenizer, doc_max_length=24, memory_tokens=4)
    clara.save(tmp_path)
    loaded = ClaraTokenizer.load(tmp_path)
    texts = [document.text for document in documents(CONFIG, "eval")]
    assert loaded.document_tokens(texts) == clara.document_tokens(texts)
    assert loaded.tokenizer_hash() == clara.tokenizer_hash()
    prompt = prompts.record_prompt(records(CONFIG, "end_to_end", "train")[0], "end_to_end", 2)
    assert loaded.encode_prompt(prompt) == clara.encode_prompt(prompt)
    assert [loaded.decode(ids, special=True) for ids in loaded.document_tokens(texts)] == [
        clara.decode(ids, special=True) for ids in clara.document_tokens(texts)
    ]
