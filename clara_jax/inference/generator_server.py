"""A client of vLLM or SGLang, which write answers to prompts of embeddings.

The server runs the merged export of a model (`clara_jax.checkpoints.exporting.export_merged`). A prompt goes there as
the embeddings of its text, with memory vectors in their places; token ids come back as they are sampled, as server-sent
events.

- vLLM (0.11 or newer, ``--enable-prompt-embeds``): ``POST /v1/completions`` with ``prompt_embeds``, base64 of what
  ``torch.save`` writes of a tensor [T, E], and no ``prompt``.
- SGLang (``--disable-radix-cache``): ``POST /generate`` with ``input_embeds``, lists of numbers [T, E] in JSON.

A server says in ``GET /v1/models`` which of the two it is. Another one that says neither is spoken to as vLLM.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from clara_jax.errors import ClaraError
from clara_jax.formats.json_file import read_object
from clara_jax.formats.torch_file import write_pth
from clara_jax.inference.decode import Sampling
from clara_jax.redaction import address_of, error_message, secrets_of, shown, without_user
from clara_jax.strict_json import parse

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "CLARA_GENERATOR_KEY"  # environment variable with the server's API key
CONNECT_SECONDS = 10.0
LONGEST_REPLY = 2**24  # bytes of a line, of a list of models, of an error
_EVENT = (b"data:", b":", b"event:", b"id:", b"retry:")  # how the lines of server-sent events begin
_REFUSED = frozenset({400, 413, 422})  # statuses of a request that the server will not answer, though it answers others
_NO_MODEL = "serve the export of this checkpoint: python -m clara_jax.convert export --format merged"


class GeneratorServerError(ClaraError):
    """The other server cannot be reached, or does not work as it should; it is no fault of the request."""


class Piece(NamedTuple):
    """Tokens that were sampled since the last piece.

    Attributes:
      tokens: the end token included.
      log_probability: the sum over these tokens.
      ended: why the answer has ended, None where it goes on.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: Literal["stop", "length"] | None


class GeneratorServer:
    """A connection to a server, for any number of threads.

    Attributes:
      url: what precedes "/v1/completions" and "/generate", without secrets.
      kind: "vllm" or "sglang".
      model: the name of the model there.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None, timeout: float = 120.0):
        """Connect, and learn what is served.

        Args:
          url: of the server, with or without "/v1". Its query is sent along; a user and password in it are sent as
            basic authentication.
          model: which of the server's models; it may be left out where there is one.
          key: API key; default the content of the environment variable ``CLARA_GENERATOR_KEY``. No message shows it.
          timeout: seconds without a token after which an answer is given up.

        Raises:
          GeneratorServerError: no server, or none that answers; a wrong key.
          ClaraError: no URL, or no timeout; no such model, or several.
        """
        import httpx

        key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
        if not (key.isascii() and key.isprintable()):
            raise ClaraError(f"{KEY_VARIABLE}: has characters that no key has; set it anew")
        parts = address_of(url)
        self._secrets = [key, *(secrets_of(url) if parts else ())]
        if parts is None:
            address = self._shown(without_user(url))
            raise ClaraError(f"{address}: is no address of a server; it looks like http://localhost:8000")
        if not timeout > 0:
            raise ClaraError(f"timeout: {timeout} must be more than 0")
        path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
        # As in the whole address: the client takes user and password from it, and puts them into a header.
        self._root, self._timeout = f"{parts.scheme}://{parts.netloc}{path}", timeout
        with self._sending():  # the environment may name a proxy that is no address
            self._client = httpx.Client(
                headers={"authorization": f"Bearer {key}"} if key else {},
                params=parts.query,
                timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
                limits=httpx.Limits(max_connections=None),
            )
        listed = self._models()
        self.model, card = self._chosen(listed, model)
        self.kind: Literal["vllm", "sglang"] = "sglang" if card.get("owned_by") == "sglang" else "vllm"
        self._folder = card.get("root") or self.model

    @classmethod
    def connect(cls, generator: str | GeneratorServer | None) -> GeneratorServer | None:
        """Return a connection for the keyword ``generator`` of the Python API: a URL, a connection, or None."""
        return cls(generator) if isinstance(generator, str) else generator

    @classmethod
    def of_options(cls, url: str | None, model: str | None) -> GeneratorServer | None:
        """Return the server of a command's ``--generator`` and ``--generator-model``, None without the first.

        Raises:
          ClaraError: see `GeneratorServer`; a model without a server.
        """
        if url is None:
            if model is not None:
                raise ClaraError("--generator-model: means nothing without --generator")
            return None
        return cls(url, model)

    def __repr__(self) -> str:
        """Return the kind, the URL and the model."""
        return f"GeneratorServer({self.kind} at {self.url}, {self.model!r})"

    def check(self, embed_dim: int, vocab_size: int) -> None:
        """Compare the served model with the one here, as far as its folder can be read from here.

        Args:
          embed_dim: E of the model here.
          vocab_size: its tokens, the added ones included.

        Raises:
          ClaraError: it is another model.
        """
        path = Path(self._folder) / "config.json"
        with contextlib.suppress(OSError):  # a name that no file can have
            if path.is_file():
                config = read_object(path, "serve another folder")
                for name, ours in (("hidden_size", embed_dim), ("vocab_size", vocab_size)):
                    if config.get(name, ours) != ours:
                        raise ClaraError(
                            f"{self.url}: serves {self._shown(self._folder)}, whose {name} is {config[name]!r}, and "
                            f"not {ours} as of the model here; {_NO_MODEL}"
                        )

    def pieces(
        self, embeddings: Float[np.ndarray, "T E"], sampling: Sampling, seed: int, end_ids: Iterable[int]
    ) -> Iterator[Piece]:
        """Yield the pieces of an answer as they come; leaving the iteration cancels the answer there.

        Args:
          embeddings: of the prompt, [T, E], float32, float16 or bfloat16.
          sampling: how tokens are chosen.
          seed: of the sampling.
          end_ids: tokens that end an answer.

        Raises:
          GeneratorServerError: the server cannot be reached, is too slow, or says what it should not.
          ClaraError: it refuses this prompt.
        """
        body, path, read = self._request(embeddings, sampling, seed, list(end_ids))
        ended = False
        for piece in read(self._events(path, json.dumps(body).encode())):
            yield piece
            ended = piece.ended is not None
        if not ended:
            raise GeneratorServerError(f"{self.url}: the connection broke off before the answer's end")

    # --- the wire formats ---

    def _request(
        self, embeddings: np.ndarray, sampling: Sampling, seed: int, end_ids: list[int]
    ) -> tuple[dict[str, Any], str, Callable[[Iterable[Any]], Iterator[Piece]]]:
        """Return the body, the path, and the function that makes pieces of the events."""
        # What a server takes from the model's generation_config.json where a request leaves it open is said here.
        common = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": end_ids,
        }
        greedy = sampling.temperature == 0
        if self.kind == "sglang":
            options = common | {"max_new_tokens": sampling.max_new_tokens}
            options |= {} if greedy else {"sampling_seed": seed}
            rows = embeddings.astype(np.float32).tolist()
            body = {"input_embeds": rows, "sampling_params": options, "stream": True, "return_logprob": True}
            return body, "/generate", self._sglang_pieces
        tensor = io.BytesIO()
        write_pth(tensor, embeddings)
        body = (
            common
            | ({} if greedy else {"seed": seed})
            | {
                "model": self.model,
                "prompt_embeds": base64.b64encode(tensor.getvalue()).decode(),
                "max_tokens": sampling.max_new_tokens,
                "logprobs": 0,  # of the sampled tokens alone
                "return_token_ids": True,
                "stream": True,
            }
        )
        return body, "/v1/completions", self._vllm_pieces

    def _vllm_pieces(self, events: Iterable[Any]) -> Iterator[Piece]:
        for event in events:
            with self._format():
                if not event["choices"]:
                    continue
                (choice,) = event["choices"]
                tokens, reason = choice.get("token_ids"), choice.get("finish_reason")
                if tokens is None:
                    raise GeneratorServerError(
                        f"{self.url}: does not tell the ids of tokens (return_token_ids); use vLLM 0.11 or newer"
                    )
                scores = (choice.get("logprobs") or {}).get("token_logprobs") or ()
                piece = self._piece(tokens, scores, reason, reason)
            yield piece

    def _sglang_pieces(self, events: Iterable[Any]) -> Iterator[Piece]:
        seen = 0
        for event in events:
            with self._format():
                about, tokens = event["meta_info"], event["output_ids"]
                # All tokens so far, or, of a server with --incremental-streaming-output, the new ones alone.
                new = about["completion_tokens"] - seen
                seen += new
                if new < 0 or new > len(tokens):
                    raise ValueError(f"{new} new tokens of {len(tokens)}")
                scores = [entry[0] for entry in about.get("output_token_logprobs") or ()]
                reason = about.get("finish_reason") or {}
                last = slice(-new, None) if new else slice(0)
                piece = self._piece(tokens[last], scores[last], reason.get("type"), reason.get("message"))
            yield piece

    def _piece(self, tokens: list[Any], scores: Iterable[float | None], reason: str | None, why: Any) -> Piece:
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise ValueError("token ids that are no numbers")
        if reason not in (None, "stop", "length"):
            raise GeneratorServerError(f"{self.url}: ended the answer: {self._shown(str(why or reason))}")
        log_probability = float(sum(score or 0.0 for score in scores))
        if not math.isfinite(log_probability):
            raise ValueError(f"the log-probability {log_probability}")
        return Piece(tuple(tokens), log_probability, reason)

    # --- HTTP ---

    def _models(self) -> list[Mapping[str, Any]]:
        with self._sending(), self._client.stream("GET", f"{self._root}/v1/models") as response:
            content = self._content(response)
        if response.status_code != 200:
            raise self._refused(response, content)
        with self._format():
            cards = [card for card in parse(content)["data"] if isinstance(card["id"], str)]
            if not all(isinstance(card.get("root"), str | None) for card in cards):
                raise TypeError("a model's root that is no text")
            return cards

    def _chosen(self, cards: list[Mapping[str, Any]], wanted: str | None) -> tuple[str, Mapping[str, Any]]:
        names = [card["id"] for card in cards]
        listed = self._shown(", ".join(names)) or "none"
        if wanted is not None and wanted not in names:
            raise ClaraError(f"{self.url}: serves no model {wanted!r}; its models: {listed}")
        # One model may have several names.
        if wanted is None and (not names or len({card.get("root") or card["id"] for card in cards}) > 1):
            raise ClaraError(f"{self.url}: which model is to answer? name one of {listed}")
        place = 0 if wanted is None else names.index(wanted)
        return names[place], cards[place]

    def _events(self, path: str, content: bytes) -> Iterator[Any]:
        """Send a request, and yield the JSON of its server-sent events."""
        headers = {"content-type": "application/json"}
        with (
            self._sending(),
            self._client.stream("POST", f"{self._root}{path}", content=content, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise self._refused(response, self._content(response), path)
            for line in self._lines(response):
                with self._format():
                    if line.strip() and not line.startswith(_EVENT):
                        raise ValueError("no stream of events")
                if not line.startswith(b"data:"):
                    continue
                text = line.removeprefix(b"data:").strip()
                if text == b"[DONE]":
                    return
                with self._format():
                    event = parse(text)
                    failed = event.get("error")
                if failed:
                    raise GeneratorServerError(f"{self.url}: {self._shown(error_message(event))}")
                yield event

    def _lines(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the lines of a body, as they come; JSON may hold U+2028 and others that end a line of text."""
        begun, length = [], 0
        for block in response.iter_bytes():
            for number, part in enumerate(block.split(b"\n")):
                if number:
                    yield b"".join(begun)
                    begun, length = [], 0
                begun.append(part)
                length += len(part)
                self._check_length(length)
        yield b"".join(begun)

    def _content(self, response: httpx.Response) -> bytes:
        blocks, length = [], 0
        for block in response.iter_bytes():
            blocks.append(block)
            length += len(block)
            self._check_length(length)
        return b"".join(blocks)

    def _check_length(self, length: int) -> None:
        if length > LONGEST_REPLY:
            raise GeneratorServerError(f"{self.url}: its reply has no end; is it vLLM or SGLang?")

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Turn the client's errors into one line each; the client's exception may show a secret, and is not chained."""
        import httpx

        try:
            yield
        except httpx.TimeoutException as error:
            seconds = CONNECT_SECONDS if isinstance(error, httpx.ConnectTimeout) else self._timeout
            failed = f"no answer in {seconds:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the last of names that no host can have
            failed = f"cannot be reached: {self._shown(str(error)) or type(error).__name__}; does the server run there?"
        else:
            return
        raise GeneratorServerError(f"{self.url}: {failed}") from None

    @contextlib.contextmanager
    def _format(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            failed = f"its reply is not in the format of vLLM or SGLang ({self._shown(str(error))})"
        else:
            return
        raise GeneratorServerError(f"{self.url}: {failed}") from None

    def _refused(self, response: httpx.Response, content: bytes, path: str = "/v1/models") -> ClaraError:
        status = response.status_code
        words: Any = content.decode(errors="replace")
        with contextlib.suppress(ValueError):
            words = error_message(parse(content))
        said = f"{status}: {self._shown(words) or 'no reason'}"
        if status in (401, 403):
            return GeneratorServerError(f"{self.url}: refuses the key ({said}); set {KEY_VARIABLE}")
        if 300 <= status < 400:
            place = self._shown(response.headers.get("location", "")) or "another place"
            return GeneratorServerError(f"{self.url}: redirects to {place} ({status}); give the address of the server")
        if status == 404:
            return GeneratorServerError(f"{self.url}: has no {path} ({said}); is it vLLM or SGLang, with this model?")
        if status not in _REFUSED:
            return GeneratorServerError(f"{self.url}: {said}")
        if "disable_radix_cache" in words:
            return GeneratorServerError(f"{self.url}: takes no embeddings; start it with --disable-radix-cache")
        if "enable-prompt-embeds" in words:
            return GeneratorServerError(f"{self.url}: takes no embeddings; start it with --enable-prompt-embeds")
        if "hidden_size" in words:
            return GeneratorServerError(f"{self.url}: serves a model of another width ({said}); {_NO_MODEL}")
        return ClaraError(f"{self.url}: refuses the prompt ({said})")

    def _shown(self, words: str) -> str:
        return shown(words, *self._secrets)
