"""What we export, in the programs it is for: torch, PEFT and transformers. Needs them: `pip install -r
requirements-slow.txt`, then `pytest -m slow`."""

import dataclasses
import warnings

import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.checkpoints import exporting
from clara_jax.formats.torch_pickle import read_pth
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from tests import exports, tiny

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
DOCUMENT, QUESTION = tiny.document(3), "Where was Ada born?"


@pytest.fixture(scope="module", params=["tied", "untied", "fused"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    if request.param == "fused":
        return exports.bundle(exports.write_fused_base(folder))
    return exports.bundle(tiny.write_base(folder, tie_word_embeddings=request.param == "tied"))


def test_torch_reads_the_released_format(bundle, tmp_path):
    exporting.export_released(bundle, tmp_path / "out", dtype="bfloat16")
    for name in ("adapters.pth", "decoder_first_last_layers.pth"):
        ours = read_pth(tmp_path / "out" / name)
        theirs = torch.load(tmp_path / "out" / name, weights_only=True)
        for role in ours if name.startswith("adapters") else [None]:
            one, other = (ours[role], theirs[role]) if role else (ours, theirs)
            assert list(one) == list(other)
            for key, array in one.items():
                assert other[key].dtype == torch.bfloat16
                np.testing.assert_array_equal(other[key].float().numpy(), array.astype(np.float32))


def load(folder, base):
    """The base in torch with the three adapters and the added tokens, as docs/converting.md says."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    from safetensors.torch import load_file

    tables = load_file(folder / "embeddings.safetensors")
    model.resize_token_embeddings(len(tables["model.embed_tokens.weight"]), mean_resizing=False)
    missing = model.load_state_dict(tables, strict=False)
    assert not missing.unexpected_keys
    model = peft.PeftModel.from_pretrained(model, folder / "compressor", adapter_name="compressor")
    for role in ("query_reasoner", "generator"):
        model.load_adapter(folder / role, adapter_name=role)
    return model.eval()


def test_peft_computes_the_same_memories_and_scores(bundle, tmp_path):
    exporting.export_peft(bundle, tmp_path / "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of what it misses or cannot place
        model = load(tmp_path / "peft", bundle.base["name"])
    clara, tokenizer = Clara(bundle), bundle.tokenizer

    def memory(role, text):
        model.set_adapter(role)
        ids = tokenizer.encode_documents([text])[0] + list(tokenizer.memory_ids)
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        return states[0, -len(tokenizer.memory_ids) :].numpy()

    np.testing.assert_allclose(memory("compressor", DOCUMENT), clara.compress([DOCUMENT]).array[0], atol=1e-4)
    np.testing.assert_allclose(memory("query_reasoner", QUESTION), clara.encode_questions([QUESTION])[0], atol=1e-4)


def test_transformers_answers_with_the_merged_model(bundle, tmp_path):
    exporting.export_merged(bundle, tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer: ClaraTokenizer = bundle.tokenizer
    clara = Clara(bundle)
    memories = clara.compress([DOCUMENT])
    answer = clara.answer([QUESTION], memories=memories, k=1, max_new_tokens=8)[0]
    from clara_jax.input_pipeline import prompts

    prompt = tokenizer.encode_prompts([prompts.question(QUESTION, 1)])[0]
    embeddings = model.get_input_embeddings()(torch.tensor([list(prompt.ids)])).detach()
    for place, slot in enumerate(prompt.memory_index):
        if slot >= 0:
            embeddings[0, place] = torch.tensor(np.asarray(memories.array[0][slot]))
    with torch.no_grad():
        out = model.generate(inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2]), do_sample=False,
                             max_new_tokens=8)  # fmt: skip
    tokens = [int(token) for token in out[0]]
    while tokens and tokens[-1] in bundle.end_ids:
        tokens.pop()
    assert tuple(tokens) == answer.tokens
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<SEP>")
        == tokenizer.special_ids["<SEP>"]
    )


def test_a_base_that_is_written_along_is_one_of_transformers(bundle, tmp_path):
    whole = dataclasses.replace(bundle, base_overrides=("base",), trained=("base", *bundle.trained))
    exporting.export_peft(whole, tmp_path / "peft")
    model = load(tmp_path / "peft", tmp_path / "peft/base")
    assert model.get_base_model().config.vocab_size == bundle.tokenizer.total_vocab
