"""Token ids, masks, labels and texts of the golden folders: what the released implementation feeds its model."""

import json
import warnings

import numpy as np
import pytest

from clara_jax.formats.base import open_base
from clara_jax.input_pipeline import prompts
from clara_jax.input_pipeline.batches import collate, plan_shapes
from clara_jax.input_pipeline.buckets import Shapes
from clara_jax.input_pipeline.document_tokenizer import FRAME
from clara_jax.input_pipeline.encoding import Encoding, encode_records
from clara_jax.input_pipeline.prompts import PARAPHRASE_SYSTEM
from clara_jax.input_pipeline.records import read_records
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests.locations import golden_folders

FOLDERS = golden_folders()
STAGES = {
    "stage1": "scp",
    "stage1_2": "instruct",
    "stage2": "end_to_end",
    "stage2_pretrain_retrieval": "retrieval",
}
DECODER_LIMIT = 512  # of the golden files


@pytest.fixture(scope="module", params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "absent")
def golden(request):
    if request.param is None:
        pytest.skip("no golden files: set CLARA_GOLDEN_DIR")
    meta = json.loads((request.param / "meta.json").read_text())
    config = meta["config"]
    tokenizer = ClaraTokenizer(
        open_base(str(request.param / "base")).load_tokenizer(),
        doc_max_length=config["doc_max_length"],
        memory_tokens=config["doc_max_length"] // config["compr_rate"],
        different_mem_tokens=config["different_mem_tokens"],
        missing_bos="first_special",
        max_length=DECODER_LIMIT,
    )
    return request.param, meta, tokenizer


def golden_instructions(info, arrays, tokenizer):
    """The paraphrase records' instructions, by target, read off the decoder's text."""
    found = {}
    for row, record in enumerate(info["batch"]):
        if record.get("data_type") != "paraphrase":
            continue
        text = tokenizer.decode(arrays["dec_input_ids"][row][arrays["dec_attention_mask"][row] == 1], special=True)
        assert info["decoder_text"][row].endswith(text)
        before, _, after = text.partition(tokenizer.memory_text)
        # What stands before the user's message follows from the template, what comes after it from the target.
        probe = tokenizer.render(prompts.Prompt(PARAPHRASE_SYSTEM, ("{probe}",), record["answers"][0]))
        head, tail = probe.split("{probe}")
        assert before.startswith(head) and after.endswith(tail)
        found[record["answers"][0]] = before.removeprefix(head) + "{docs}" + after.removesuffix(tail)
    return found


def test_golden_special_tokens(golden):
    _, meta, tokenizer = golden
    assert tokenizer.special_ids == meta["special_token_ids"]
    assert list(tokenizer.memory_ids) == meta["mem_token_ids"]
    assert tokenizer.total_vocab == meta["vocab_with_special"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (meta["pad_token_id"], meta["bos"], meta["eos"])


@pytest.mark.parametrize("reference", STAGES)
def test_golden_stage_tokens(golden, reference, tmp_path, monkeypatch):
    folder, meta, tokenizer = golden
    stage = STAGES[reference]
    info, arrays = json.loads((folder / f"{reference}.json").read_text()), np.load(folder / f"{reference}.npz")
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in info["batch"]), encoding="utf-8")
    records = read_records(path, stage)
    instructions = golden_instructions(info, arrays, tokenizer)
    monkeypatch.setattr(prompts, "paraphrase_instruction", lambda record, seed: instructions[record.answers[0]])

    rows, length = arrays["dec_input_ids"].shape
    per_row = len(arrays["enc_input_ids"]) // rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # documents that are cut
        examples = encode_records(records, tokenizer, Encoding(stage, info["generation_top_k"], per_row))
    shapes = Shapes(
        documents=per_row,
        encoder_width=meta["config"]["doc_max_length"] + FRAME,
        query_width=arrays["query_input_ids"].shape[1] - tokenizer.memory_tokens if "query_input_ids" in arrays else 0,
        prompt_length=length,
        target_length=length - 1,
    )
    batch = collate(examples, shapes, tokenizer)

    np.testing.assert_array_equal(batch.documents.ids.reshape(rows * per_row, -1), arrays["enc_input_ids"])
    np.testing.assert_array_equal(batch.documents.segment_ids.reshape(rows * per_row, -1), arrays["enc_attention_mask"])
    np.testing.assert_array_equal(batch.prompt.ids, arrays["dec_input_ids"])
    np.testing.assert_array_equal(batch.prompt.segment_ids, arrays["dec_attention_mask"])
    np.testing.assert_array_equal(batch.prompt.labels, arrays["labels"][:, 1:])
    assert np.all(arrays["labels"][:, 0] == -100)
    assert batch.document_valid.all()
    if "query_input_ids" in arrays:
        assert shapes.query_width == DECODER_LIMIT + FRAME
        np.testing.assert_array_equal(batch.query.ids, arrays["query_input_ids"])
        np.testing.assert_array_equal(batch.query.segment_ids, arrays["query_attention_mask"])
        assert [list(np.flatnonzero(row)) for row in batch.positives] == [r["pos_index"] for r in info["batch"]]
    else:
        assert batch.query is batch.positives is None

    # The memories stand where the memory tokens do, slot after slot.
    slots = min(info["generation_top_k"], per_row)
    expected = np.arange(slots * tokenizer.memory_tokens)
    for index, ids in zip(batch.prompt.memory_index, batch.prompt.ids, strict=True):
        np.testing.assert_array_equal(index[index >= 0], expected)
        np.testing.assert_array_equal(ids[index >= 0], np.tile(tokenizer.memory_ids, slots))

    # Smaller shapes hold the same tokens.
    small = collate(examples, plan_shapes(examples, tokenizer, multiple=1), tokenizer)
    assert small.prompt.ids.shape == arrays["dec_input_ids"].shape
    np.testing.assert_array_equal(small.prompt.labels, arrays["labels"][:, -small.prompt.labels.shape[1] :])


@pytest.mark.parametrize("reference", STAGES)
def test_golden_texts(golden, reference):
    folder, _, tokenizer = golden
    info, arrays = json.loads((folder / f"{reference}.json").read_text()), np.load(folder / f"{reference}.npz")
    names = {"decoder_text": "dec_input_ids", "encoder_text": "enc_input_ids", "query_text": "query_input_ids"}
    checked = 0
    for name, ids in names.items():
        if name in info:
            # A text that is cut within a character ends with U+FFFD there; `decode` leaves such bytes out.
            texts = [text.replace("\N{REPLACEMENT CHARACTER}", "") for text in info[name]]
            assert [tokenizer.decode(row, special=True) for row in arrays[ids]] == texts
            checked += len(info[name])
    assert checked > len(info["batch"])
    padding = tokenizer.decode([tokenizer.pad_id], special=True)
    for record, text in zip(info["batch"], info["decoder_text"], strict=True):
        if record.get("data_type") == "paraphrase":
            continue
        if STAGES[reference] == "scp":
            prompt = prompts.scp_qa(record["question"], record["answers"])
        else:
            prompt = prompts.question(record["question"], info["generation_top_k"], record["answers"])
        assert text.endswith(rendered := tokenizer.render(prompt))
        assert not text.removesuffix(rendered).replace(padding, "")


def test_golden_generated_text(golden):
    folder, _, tokenizer = golden
    for entry in json.loads((folder / "generation.json").read_text()):
        # The released code writes U+FFFD for bytes of a character that is not there as a whole; here they are left out.
        whole = [text.replace("\N{REPLACEMENT CHARACTER}", "") for text in entry["text"]]
        assert [tokenizer.decode(ids) for ids in entry["token_ids"]] == whole
