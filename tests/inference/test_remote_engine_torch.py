"""The merged export in transformers, fed with what is sent to a generator's server. Needs torch: `pip install -r
requirements-slow.txt`, then `pytest -m slow`."""

import base64
import io
import json

import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.checkpoints import exporting
from clara_jax.errors import ClaraError
from clara_jax.inference.decode import Sampling
from clara_jax.inference.generator_server import GeneratorServer
from clara_jax.inference.remote_engine import RemoteEngine
from clara_jax.input_pipeline import prompts
from tests import exports, generators, tiny
from tests.locations import shared_data

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
LEAST = 0.99  # of the greedy tokens are the same


class Recorded(GeneratorServer):
    """A connection to no server, whose requests are kept."""

    def __init__(self, kind):
        self.kind, self.model, self.url = kind, "clara-merged", "recorded"

    def check(self, *sizes):
        pass


def embeddings(body):
    """Read a request as vLLM and as SGLang do: float32 [1, T, E]."""
    if "prompt_embeds" in body:
        content = base64.b64decode(body["prompt_embeds"], validate=True)
        tensor = torch.load(io.BytesIO(content), weights_only=True, map_location=torch.device("cpu"))
        np.testing.assert_array_equal(
            tensor.float().numpy(), generators.load_tensor(content).astype(np.float32), strict=True
        )
        return tensor.float()[None]
    return torch.tensor(body["input_embeds"], dtype=torch.float32)[None]


def agreement(clara, folder, questions, documents, limit, kind):
    """Return the number of greedy tokens of the engine here, and of those that transformers writes likewise.

    Tokens are compared one by one, each after the same tokens before it: of one that differs the rest is not counted.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bundle = clara.bundle
    remote = RemoteEngine(bundle.model, bundle.params, bundle.mesh, bundle.tokenizer.total_vocab, bundle.end_ids,
                          Recorded(kind))  # fmt: skip
    same = counted = whole = 0
    for question, texts in zip(questions, documents, strict=True):
        memories = clara.compress(texts, long="cut").array
        request = clara.request(prompts.question(question, len(texts)), memories, Sampling(limit))
        (ours,) = clara.engine.generate([request])
        body, _, _ = remote.server._request(remote.embed(request), request.sampling, 0, bundle.end_ids)
        x = embeddings(json.loads(json.dumps(body)))
        with torch.no_grad():
            out = model.generate(
                inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), do_sample=False, max_new_tokens=limit
            )
        theirs = [int(token) for token in out[0]]
        mine = [*ours.tokens, *(bundle.end_ids[:1] if ours.ended == "stop" else ())]
        theirs = [bundle.end_ids[0] if token in bundle.end_ids else token for token in theirs]
        equal = next((n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
        same += len(mine) if equal is None else equal
        counted += len(mine) if equal is None else equal + 1
        whole += mine == theirs
    return same, counted, whole


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_writes_the_same_answers_with_a_tiny_model(tmp_path, kind, tied):
    bundle = exports.bundle(tiny.write_base(tmp_path / "base", tie_word_embeddings=tied))
    exporting.export_merged(bundle, tmp_path / "merged")
    questions = [f"Where was {person} number {n} born?" for n, person in enumerate(tiny.PEOPLE * 3)]
    documents = [[tiny.document(i), tiny.document(i + 1)] for i in range(24)]
    same, counted, whole = agreement(Clara(bundle), tmp_path / "merged", questions, documents, 16, kind)
    print(f"\ntiny, {kind}: {same} of {counted} greedy tokens, {whole} of {len(questions)} answers whole")
    assert same >= LEAST * counted and counted > 10 * len(questions)


def test_transformers_writes_the_same_answers_with_the_model_in_the_package(tmp_path, mesh):
    try:
        clara = Clara.load("smollm2-clara", precision="float32", mesh=mesh, rows=1)
    except ClaraError as error:
        pytest.skip(f"the model in the package needs its base: {error}")
    file = shared_data() / "eval/stage2_eval/squad/eval_processed_with_pos.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()[:32]]
    questions, documents = [line["question"] for line in lines], [line["docs"][: clara.usual_k] for line in lines]
    exporting.export_merged(clara.bundle, tmp_path / "merged")
    same, counted, whole = agreement(clara, tmp_path / "merged", questions, documents, 24, "vllm")
    print(f"\nsmollm2-clara: {same} of {counted} greedy tokens ({same / counted:.2%}), {whole} of {len(lines)} whole")
    assert same >= LEAST * counted
