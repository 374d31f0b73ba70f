"""Prompts are segments; the released strings themselves are checked against the golden files."""

import pytest

from clara_jax.errors import ClaraError
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.prompts import Memory, Prompt
from clara_jax.input_pipeline.records import parse_record

QUESTION = parse_record({"question": "Who?", "docs": ["a", "b", "c"], "answer": "Ann"}, "instruct", "f:1")
QA = parse_record({"data_type": "qa", "question": ["Q1", "Q2"], "answers": ["A1", "A2"], "docs": ["d"]}, "scp", "f:2")
PARAPHRASE = parse_record({"data_type": "paraphrase", "answers": ["again"], "docs": ["d"]}, "scp", "f:3")


def test_question_over_memories_and_over_text_differ_in_the_documents_alone():
    memories = prompts.question("Who?", 2, "Ann")
    text = prompts.question("Who?", ["first {docs}", "second"], "Ann")
    assert memories.user == ("Background:\n", Memory(0), Memory(1), "\n\nQuestion:Who?")
    assert text.user == ("Background:\n", "first {docs}\nsecond", "\n\nQuestion:Who?")
    assert (memories.system, memories.target) == (text.system, text.target)
    assert prompts.question("Who?", 1).target is None


def test_scp_qa_lists_all_pairs():
    prompt = prompts.scp_qa(["Q1", "Q2"], ["A1", "A2"])
    assert prompt.target == "Question: Q1\nAnswer: A1\nQuestion: Q2\nAnswer: A2"
    assert prompt.user == ("Background:\n", Memory(0))


def test_paraphrase_puts_the_document_in_the_instruction():
    assert prompts.paraphrase("t", "Say {docs} {again}").user == ("Say ", Memory(0), " {again}")
    assert prompts.paraphrase(None, "{docs}!", ["text"]).user == ("", "text", "!")
    for instruction in ("no place", "{docs} and {docs}"):
        with pytest.raises(ClaraError, match="exactly once"):
            prompts.paraphrase("t", instruction)


def test_instructions():
    known = prompts.PARAPHRASE_INSTRUCTIONS
    assert len(set(known)) == len(known) >= 10
    assert all(text.count("{docs}") == 1 for text in known)
    records = [
        parse_record({"data_type": "paraphrase", "answers": ["again"], "docs": [f"d{i}"]}, "scp", f"f:{i}")
        for i in range(300)
    ]
    chosen = [prompts.paraphrase_instruction(record, 0) for record in records]
    assert set(chosen) == set(known)
    assert chosen == [prompts.paraphrase_instruction(record, 0) for record in records]
    assert chosen != [prompts.paraphrase_instruction(record, 1) for record in records]


def test_record_prompt():
    assert prompts.record_prompt(QUESTION, "instruct", 5) == prompts.question("Who?", 3, "Ann")
    assert prompts.record_prompt(QUESTION, "end_to_end", 2) == prompts.question("Who?", 2, "Ann")
    assert prompts.record_prompt(QA, "scp", 5) == prompts.scp_qa(("Q1", "Q2"), ("A1", "A2"))
    expected = prompts.paraphrase("again", prompts.paraphrase_instruction(PARAPHRASE, 3))
    assert prompts.record_prompt(PARAPHRASE, "scp", 1, seed=3) == expected
    assert isinstance(expected, Prompt)


def test_record_prompt_of_texts():
    assert prompts.record_prompt(QUESTION, "instruct", 5, texts=["a", "b"]) == prompts.question(
        "Who?", ["a", "b"], "Ann"
    )
    assert prompts.record_prompt(QA, "scp", 5, texts=["d"]).user == ("Background:\n", "d")
    memory, text = (prompts.record_prompt(PARAPHRASE, "scp", 1, 3, texts) for texts in (None, ["the text"]))
    assert [part for part in text.user if part != "the text"] == [part for part in memory.user if isinstance(part, str)]
    assert (text.system, text.target) == (memory.system, memory.target) and "the text" in text.user
