"""Small files of every stage, as the tests of data sets write them."""

import gzip
import json

from clara_jax.formats.jsonl import zstd

QUESTION = {"question": "Wer?", "docs": ["d0", "dß\u2028 1", "d2"], "answer": "Ann", "pos_index": [1]}
LINES = {
    "scp": [
        {"data_type": "qa", "question": ["Q1", "Q2"], "answers": ["A1", "A2"], "docs": ["d"]},
        {"data_type": "paraphrase", "question": "", "answers": ["told again"], "docs": ["d" * 5000], "qid": 7},
    ],
    "instruct": [QUESTION, QUESTION | {"docs": ["only"], "pos_index": None, "golden_answers": ["Ann", "A."]}],
    "end_to_end": [QUESTION, QUESTION | {"qid": "own", "pos_index": []}],
    "retrieval": [QUESTION, QUESTION | {"pos_index": [2, 0]}, QUESTION | {"pos_index": [], "qid": "\ud83d"}],
    "corpus": [
        {"id": "a#0", "document": "a", "title": "A", "text": "one", "source": "a.txt", "start": 0, "end": 3, "page": 1},
        {"_id": 5, "contents": "two"},
        {"text": "three", "title": None},
    ],
}


def write(path, lines):
    """A file of lines, objects or bytes as they are, compressed by its name."""
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    return str(path)


def questions(count, documents=2, words=20):
    """Records of a question, each with other texts."""
    return [
        QUESTION | {"question": f"Who is {i}?", "docs": [f"{i}.{j} " + "word " * words for j in range(documents)]}
        for i in range(count)
    ]
