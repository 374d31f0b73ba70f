"""A server in the wire formats of vLLM and of SGLang, which decodes a merged export greedily from prompt embeddings.

It shares no code with the client: a tensor is unpacked by Python's unpickler, and every token is the argmax of a pass
over the whole text so far, without a cache.
"""

import base64
import io
import json
import pickle
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from clara_jax.checkpoints.names import load_base
from clara_jax.formats.base import open_base
from clara_jax.method.parameters import flatten, unflatten
from clara_jax.model.config import ModelConfig
from clara_jax.model.declare import abstract, declare_base
from clara_jax.model.transformer import Transformer

DTYPES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16}
LEAST = 16  # positions that a text is padded to a multiple of


def load_tensor(content):
    """Return the tensor of a file of torch.save."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    (root,) = {name.partition("/")[0] for name in archive.namelist()}
    assert archive.read(f"{root}/byteorder") == b"little"

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("collections", "OrderedDict"):
                return dict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, size, strides, *_: np.lib.stride_tricks.as_strided(
                    storage[offset:], size, [stride * storage.itemsize for stride in strides]
                )
            assert module == "torch", (module, name)
            return DTYPES[name]

        def persistent_load(self, reference):
            kind, dtype, key, device, count = reference
            assert (kind, device) == ("storage", "cpu")
            storage = np.frombuffer(archive.read(f"{root}/data/{key}"), dtype)
            assert len(storage) == count
            return storage

    return Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()


class Merged:
    """A merged export, opened as the base model that it is, which decodes greedily."""

    def __init__(self, folder, mesh):
        opened = open_base(str(folder))
        config = ModelConfig.from_hf(opened.config, str(folder))
        leaves = flatten({"base": abstract(declare_base(config, np.float32), mesh)})
        self.params = unflatten(load_base(config, leaves, opened.tensors, opened.path))["base"]
        self.folder, self.mesh, self.embed_dim, self.vocab_size = folder, mesh, config.embed_dim, config.vocab_size
        transformer = Transformer(config, 0.0, np.dtype(np.float32), np.dtype(np.float32))
        self._lock = threading.Lock()

        @jax.jit
        def next_token(params, x, mask, ids, last):
            def run(*inputs, **options):
                return transformer.apply({"params": params}, *inputs, **options)

            with jax.default_matmul_precision("highest"):
                given = jnp.where(ids[..., None] >= 0, run(jnp.maximum(ids, 0), method="embed"), x)
                states, _ = run(given, mask)
                logits = run(states[:, last][:, None], method="unembed")[0][0, 0]
            return jnp.argmax(logits), jax.nn.log_softmax(logits)

        self._next = next_token

    def decode(self, embeddings, limit, ends):
        """Yield tokens and their log-probabilities, the end token included."""
        ids = []
        for _ in range(limit):
            length = len(embeddings) + len(ids)
            padded = -(-length // LEAST) * LEAST
            x, row = np.zeros((1, padded, self.embed_dim), np.float32), np.full((1, padded), -1, np.int32)
            x[0, : len(embeddings)] = embeddings
            row[0, len(embeddings) : length] = ids
            with self._lock, jax.set_mesh(self.mesh):
                token, scores = self._next(self.params, x, np.arange(padded)[None] < length, row, np.int32(length - 1))
                token = int(token)
                score = float(scores[token])
            ids.append(token)
            yield token, score
            if token in ends:
                return


class GeneratorFixture:
    """A running server.

    Attributes:
      url: where.
      bodies: of the requests for answers.
      given_up: how many clients left before the end.
      answer: a function (path, body) -> (status, JSON) or None, in place of what the model answers.
      pause: seconds between two tokens.
    """

    def __init__(self, merged, kind, key=None, incremental=False, cards=None):
        self.merged, self.kind, self.key, self.incremental = merged, kind, key, incremental
        self.bodies, self.given_up, self.answer, self.pause = [], 0, lambda path, body: None, 0.0
        card = {"id": "clara-merged", "object": "model", "owned_by": kind, "root": str(merged.folder)}
        self.cards = cards or [card]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.handle(self, None)

            def do_POST(self):
                outer.handle(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self):
        self.server.shutdown()
        self.server.server_close()

    def handle(self, http, body):
        if self.key is not None and http.headers.get("authorization") != f"Bearer {self.key}":
            return self.say(http, 401, {"error": "Unauthorized"})
        if (instead := self.answer(http.path, body)) is not None:
            return self.say(http, *instead)
        if http.path == "/v1/models":
            return self.say(http, 200, {"object": "list", "data": self.cards})
        self.bodies.append(body)
        if http.path != {"vllm": "/v1/completions", "sglang": "/generate"}[self.kind]:
            return self.say(http, 404, {"detail": "Not Found"})
        return self.vllm(http, body) if self.kind == "vllm" else self.sglang(http, body)

    def say(self, http, status, body):
        content = json.dumps(body).encode()
        http.send_response(status)
        http.send_header("content-length", str(len(content)))
        http.end_headers()
        http.wfile.write(content)

    def stream(self, http, events):
        http.send_response(200)
        http.send_header("content-type", "text/event-stream")
        http.end_headers()
        try:
            for event in events:
                http.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                http.wfile.flush()
                time.sleep(self.pause)
            http.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.given_up += 1

    def wide(self, x):
        if x.shape[1] == self.merged.embed_dim:
            return None
        words = (
            f"`prompt_embeds` hidden_size {x.shape[1]} does not match the model's hidden_size {self.merged.embed_dim}."
        )
        return {"error": {"message": words, "type": "BadRequestError", "param": "prompt_embeds", "code": 400}}

    def vllm(self, http, body):
        x = load_tensor(base64.b64decode(body["prompt_embeds"], validate=True))
        assert body.get("prompt") is None and body["model"] == self.cards[0]["id"] and x.ndim == 2
        if refusal := self.wide(x):
            return self.say(http, 400, refusal)
        assert body["stream"] and body["return_token_ids"] and body["logprobs"] == 0 and body["temperature"] == 0

        def events():
            answer = self.merged.decode(x, body["max_tokens"], body["stop_token_ids"])
            for number, (token, score) in enumerate(answer, 1):
                stopped = token in body["stop_token_ids"]
                reason = "stop" if stopped else "length" if number == body["max_tokens"] else None
                choice = {
                    "index": 0,
                    "text": "" if stopped else "?",
                    "logprobs": {"token_logprobs": [score], "tokens": ["?"]},
                    "finish_reason": reason,
                    "token_ids": [token],
                }
                yield {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}

        return self.stream(http, events())

    def sglang(self, http, body):
        x, options = np.asarray(body["input_embeds"], np.float32), body["sampling_params"]
        assert body["stream"] and body["return_logprob"] and options["temperature"] == 0 and "text" not in body

        def events():
            tokens, scores, sent = [], [], 0
            for token, score in self.merged.decode(x, options["max_new_tokens"], options["stop_token_ids"]):
                tokens, scores = [*tokens, token], [*scores, [score, token, None]]
                stopped = token in options["stop_token_ids"]
                ended = {"type": "stop", "matched": token} if stopped else None
                if len(tokens) == options["max_new_tokens"]:
                    ended = ended or {"type": "length", "length": len(tokens)}
                elif len(tokens) % 2 and not ended:
                    continue  # several tokens at a time, as with --stream-interval
                first = sent if self.incremental else 0
                sent = len(tokens)
                about = {"completion_tokens": sent, "finish_reason": ended, "output_token_logprobs": scores[first:]}
                yield {"text": "?", "output_ids": tokens[first:], "meta_info": {"id": "1"} | about}

        return self.stream(http, events())
