"""Files of strangers, generated: valid ones with bytes changed, cut, repeated, or with numbers that lie.

Every reader reads them or refuses them in one line, within bounds on time and memory; there is no other outcome.
The fast test tries some of each kind; the drill 10,000 of all: ``python -m pytest -n 0 -m drill tests/drills``.
"""

import functools
import gzip
import json
import random
import resource
import time
import zipfile

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax.checkpoints import peft_folders, released
from clara_jax.data.corpus.readers import read_documents
from clara_jax.data.importers import hotpotqa, squad
from clara_jax.data.importers.examples import Log
from clara_jax.errors import ClaraError
from clara_jax.formats.base import open_base
from clara_jax.formats.gguf_file import GGUFFile
from clara_jax.formats.safetensors_files import open_tensors
from clara_jax.formats.torch_file import write_pth
from clara_jax.formats.torch_pickle import read_pth
from clara_jax.input_pipeline.chat_templates import ChatTemplate
from clara_jax.input_pipeline.records import read_records
from clara_jax.metrics.answers import token_f1
from clara_jax.model.config import ModelConfig
from clara_jax.synthesis.completion import RefusedError
from clara_jax.synthesis.endpoint import Endpoint, _RetryableError
from tests.data import SYSTEM_TEMPLATE, tiny_tokenizer
from tests.data.corpus import archive, book, parts_of, pdf, slides, word
from tests.tiny import write_base

SECONDS = 20.0  # of this process for one file; most take a thousandth
GROWTH = 1 << 30  # bytes of memory that all of them together may leave behind
LIES = [b"9" * 5000, b"1e999", b"-1", b"0", b"null", b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"', b"NaN", b"99999999999"]
WORDS = [b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00" * 8, b"\xff" * 4, b"\x09\x00\x00\x00", b"\x01" + b"\x00" * 7]


def _tokenizer(tmp):
    return (write_base(tmp / "base") / "tokenizer.json").read_bytes()


def _config(tmp):
    return (write_base(tmp / "base") / "config.json").read_bytes()


def _gguf(tmp):
    writer = gguf.GGUFWriter(tmp / "a.gguf", "llama")
    for name, value in (
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
    ):
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "</s>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.add_chat_template(SYSTEM_TEMPLATE)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp / "a.gguf").read_bytes()


def _pth(tmp):
    write_pth(tmp / "a.pth", {"encoder_adapter": {"w": np.ones((3, 4), np.float32)}, "n": np.ones(2, np.float16)})
    return (tmp / "a.pth").read_bytes()


def _safetensors(tmp):
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, tmp / "a.safetensors")
    return (tmp / "a.safetensors").read_bytes()


SQUAD = {"title": "T", "paragraphs": [{"context": "Ada in Oslo", "qas": [{"id": "1", "question": "Who?"}]}]}
SQUAD["paragraphs"][0]["qas"][0]["answers"] = [{"text": "Ada", "answer_start": 0}]
HOTPOT = {"_id": "1", "question": "Who?", "answer": "Ada", "supporting_facts": [["T", 0]], "context": [["T", ["Ada."]]]}
RECORD = {"question": "Who?", "docs": ["Ada", "Bo"], "answer": "Ada", "gold_answer": "Ada", "pos_index": [0]}
REPLY = {"choices": [{"message": {"content": [{"type": "text", "text": "Hi"}]}, "finish_reason": "stop"}]}
REPLY["usage"] = {"prompt_tokens": 3, "completion_tokens": 10**30}
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
HTML = "<html><head><meta charset='utf-8'><title>T</title></head><body><main><p>A. B. C.</p></main></body></html>"
HTML = HTML.replace("A. ", "A sentence. " * 20)
# Read in a separate process, which takes longer; and what is nearly always a text of some kind.
CONFINED = ("a.html", "a.pdf", "a.docx", "a.pptx", "a.epub", "document.xml", "slide1.xml", "book.opf")
NEVER_REFUSED = ("answer.txt", "a.txt", "a.md", "a.csv")


def _documents(path):
    for document in read_documents([str(path)]):
        document.text.encode()


@functools.cache
def _word():
    return word(["One line.", "And more."], [["a", "b"], ["1", "2"]], title="T")


@functools.cache
def _slides():
    return slides(("One", "slide"), ("and", "more"), notes="Notes.")


@functools.cache
def _book():
    return book({"a.xhtml": "One chapter.", "b.xhtml": "And more."})


def _part(path, whole, name, kind):
    """Reads a ZIP archive of which one part, with a right checksum, is the file."""
    folder = path.parent / "whole"
    folder.mkdir(exist_ok=True)
    (folder / f"a.{kind}").write_bytes(archive(parts_of(whole) | {name: path.read_bytes()}))
    _documents(folder)


def _gguf_read(path):
    file = GGUFFile(path)
    ModelConfig.from_hf(file.config)
    for name in file.tensors:
        file.tensors[name]
    file.tokenizer()
    assert isinstance(file.end_ids, tuple)


def _pth_read(path):
    content = read_pth(path)
    sum(array.size for array in content.values() if isinstance(array, np.ndarray))


def _released(path):
    (path.parent / "config.json").write_text(
        json.dumps({"model_type": "CLaRa", "doc_max_length": 16, "compr_rate": 4, "lora_r": 4})
    )
    path.replace(path.parent / "adapters.pth")
    released.tensors(released.describe(path.parent))


def _safetensors_read(path):
    tensors = open_tensors(path)
    for name in tensors:
        float(np.sum(tensors[name].astype(np.float64)))


def _index(path):
    folder = path.parent / "sharded"
    folder.mkdir(exist_ok=True)
    save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    path.replace(folder / "model.safetensors.index.json")
    dict(open_tensors(folder))


def _base(path, name, tokenizer=False):
    folder = path.parent / "base"
    if not folder.is_dir():
        write_base(folder)
    before = (folder / name).read_bytes() if (folder / name).exists() else None
    try:
        path.replace(folder / name)
        opened = open_base(str(folder))
        ModelConfig.from_hf(opened.config)
        if tokenizer:
            opened.load_tokenizer()
    finally:
        if before is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(before)


def _template(path):
    base = tiny_tokenizer("x")
    base.chat_template = path.read_bytes().decode("utf-8", "replace") or "x"
    ChatTemplate(base).render([[{"role": "user", "content": "Hi"}]], True)


def _reply(path):
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    try:
        endpoint._read(path.read_bytes(), 10)
    except (RefusedError, _RetryableError) as error:
        raise ClaraError(str(error)) from error


def _metric(path):
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    assert 0 <= token_f1(text, [text[: len(text) // 2], "Pier 4"]) <= 1


# Name of the file: (a valid one, by a folder to work in; the reader).
READERS = {
    "a.txt": (lambda tmp: "One. Two-\nthree \ufb01.\n".encode() * 3, _documents),
    "a.md": (lambda tmp: b"---\ntitle: >-\n  A b\n---\n# Head\n\nText\n===\n```\nx\n```\n", _documents),
    "a.html": (lambda tmp: HTML.encode(), _documents),
    "a.pdf": (lambda tmp: pdf([["One line", "and more"]], title="T"), _documents),
    "a.jsonl": (lambda tmp: b'{"id": "a", "title": "T", "text": "One two."}\n' * 2, _documents),
    "a.txt.gz": (lambda tmp: gzip.compress(b"One two. " * 20), _documents),
    "a.csv": (lambda tmp: b'name;town\n"Lind; ""Ada""";Ulm\n1931;\n' * 3, _documents),
    "a.docx": (lambda tmp: _word(), _documents),
    "a.pptx": (lambda tmp: _slides(), _documents),
    "a.epub": (lambda tmp: _book(), _documents),
    "document.xml": (
        lambda tmp: parts_of(_word())["word/document.xml"],
        lambda path: _part(path, _word(), "word/document.xml", "docx"),
    ),
    "slide1.xml": (
        lambda tmp: parts_of(_slides())["ppt/slides/slide1.xml"],
        lambda path: _part(path, _slides(), "ppt/slides/slide1.xml", "pptx"),
    ),
    "book.opf": (lambda tmp: parts_of(_book())["O/book.opf"], lambda path: _part(path, _book(), "O/book.opf", "epub")),
    "a.gguf": (_gguf, _gguf_read),
    "a.pth": (_pth, _pth_read),
    "b.pth": (_pth, _released),
    "a.safetensors": (_safetensors, _safetensors_read),
    "index.json": (lambda tmp: b'{"weight_map": {"a": "model-1.safetensors"}, "metadata": {}}', _index),
    "config.json": (_config, lambda path: _base(path, "config.json")),
    "generation.json": (lambda tmp: b'{"eos_token_id": [2, 7]}', lambda path: _base(path, "generation_config.json")),
    "tokenizer.json": (_tokenizer, lambda path: _base(path, "tokenizer.json", True)),
    "tokenizer_config.json": (
        lambda tmp: json.dumps({"eos_token": "</s>", "chat_template": SYSTEM_TEMPLATE}).encode(),
        lambda path: _base(path, "tokenizer_config.json", True),
    ),
    "adapter.json": (
        lambda tmp: json.dumps(ADAPTER).encode(),
        lambda path: peft_folders._scale(path, peft_folders.read_object(path, "remedy"), 4),
    ),
    "squad.json": (
        lambda tmp: json.dumps({"data": [SQUAD]}).encode(),
        lambda path: list(squad.read([str(path)], Log())),
    ),
    "hotpot.json": (lambda tmp: json.dumps([HOTPOT]).encode(), lambda path: list(hotpotqa.read([str(path)], Log()))),
    "records.jsonl": (lambda tmp: json.dumps(RECORD).encode(), lambda path: read_records(path, "end_to_end")),
    "template.jinja": (lambda tmp: SYSTEM_TEMPLATE.encode(), _template),
    "reply.json": (lambda tmp: json.dumps(REPLY).encode(), _reply),
    "answer.txt": (lambda tmp: "−5 € 東京都 The １２ \u200b".encode(), _metric),
}


def changed(good: bytes, rng: random.Random) -> bytes:
    """A file like a valid one."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + rng.choice((1, 4, 8))] = rng.choice(WORDS)
            case 2:
                data[at:at] = rng.choice(LIES)
            case 3:
                del data[at : at + rng.randrange(64)]
            case 4 if rng.random() < 0.3:
                del data[at:]
            case 5:
                data[at:at] = bytes(data[max(0, at - 40) : at]) * rng.choice((1, 5, 200))
            case 6:  # a number of the text gives way to one that lies
                digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    place = rng.choice(digits)
                    data[place : place + 1] = rng.choice(LIES)
    return bytes(data)


def try_files(tmp_path, names, count: int, seed: int) -> dict[str, int]:
    """How many files of each kind were refused; fails at the first that was neither read nor refused in one line."""
    rng, refused = random.Random(seed), dict.fromkeys(names, 0)
    good = {}
    for name in names:
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir(exist_ok=True)
        good[name] = READERS[name][0](folder)
    for number in range(count):
        name = names[number % len(names)]
        folder = tmp_path / name.replace(".", "_") / "tried"
        folder.mkdir(exist_ok=True)
        path, content = folder / name, changed(good[name], rng)
        path.write_bytes(content)
        start = time.process_time()
        try:
            READERS[name][1](path)
        except ClaraError as error:
            refused[name] += 1
            assert "\n" not in str(error) and len(str(error)) < 2000
        except BaseException as error:
            raise AssertionError(f"{name}, number {number} of seed {seed}: {content[:500]!r}") from error
        assert time.process_time() - start < SECONDS, (name, number, seed)
    return refused


@pytest.mark.parametrize("name", READERS)
def test_a_few_of_each_kind(name, tmp_path):
    READERS[name][0](tmp_path)
    try_files(tmp_path, [name], 25 if name in CONFINED else 60, seed=7)


@pytest.mark.slow
@pytest.mark.drill
def test_ten_thousand(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = try_files(tmp_path, list(READERS), 10_000, seed=21)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print({name: count for name, count in refused.items()}, f"grown by {grown / 2**20:.0f} MiB")
    assert all(refused[name] for name in refused if name not in NEVER_REFUSED) and grown < GROWTH


def test_a_zip_of_zeros(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(2**26))
    with pytest.raises(ClaraError, match="unpack to"):
        read_pth(tmp_path / "a.pth")
