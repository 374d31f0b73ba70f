"""A pipeline without a model, and a server around it on a real socket."""

import dataclasses
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import uvicorn

from clara_jax.api import GREEDY
from clara_jax.errors import ClaraError
from clara_jax.inference.requests import Request, Result
from clara_jax.results import Hit, RetrievedContext
from clara_jax.retrieval.chunk_reader import StoredDocument
from clara_jax.retrieval.documents import ChunkedDocument, read_files
from clara_jax.retrieval.indexing import IndexReport
from clara_jax.serving.app import UVICORN
from clara_jax.serving.guard import RequestLimits
from clara_jax.serving.store import store_app
from clara_jax.serving.worker import Worker
from clara_jax.text.chunks import Chunker
from clara_jax.text.counting import count_words

TIMES = {"queued": 0.0, "first": 1.0, "total": 2.0}


class FakeHandle:
    def __init__(self, request):
        self.request, self.tokens, self.result, self.cancelled, self.error = request, [], None, False, None

    def cancel(self):
        self.cancelled = True

    def finish(self):
        self.result = self.result or Result(tuple(self.tokens), 0.0, "stop", TIMES)
        self.cancelled = True


class FakeEngine:
    """Writes the code points of "answer to <question>", a few of each row at a step, slowly if asked to."""

    def __init__(self, rows, pause):
        self.rows, self.weights, self.pause = rows, "fake", pause
        self.running, self.waiting, self.ended, self.together = [], [], [], 0
        self.prefix_cache = SimpleNamespace(hits=3, misses=2)

    def submit(self, request):
        handle = FakeHandle(request)
        self.waiting.append(handle)
        return handle

    def step(self):
        while self.waiting and len(self.running) < self.rows:
            self.running.append(self.waiting.pop(0))
        self.together = max(self.together, len(self.running))
        time.sleep(self.pause)
        for handle in self.running + self.waiting:
            limit = handle.request.sampling.max_new_tokens
            whole = list(handle.request.ids)[:limit]
            if handle in self.running:
                handle.tokens = whole[: len(handle.tokens) + 4]
            if handle.cancelled or handle.tokens == whole:
                short = len(handle.request.ids) > limit
                ended = "cancelled" if handle.cancelled else "length" if short else "stop"
                handle.result = handle.result or Result(tuple(handle.tokens), -1.0, ended, TIMES)
                self.ended.append(handle)
        self.running = [handle for handle in self.running if handle.result is None]
        self.waiting = [handle for handle in self.waiting if handle.result is None]
        return bool(self.running or self.waiting)


class FakePipeline:
    """Documents in a dict, found by shared words."""

    def __init__(self, rows=4, pause=0.0):
        self.engine, self.stored = FakeEngine(rows, pause), {}
        self.store = SimpleNamespace(__len__=lambda: len(self.stored))
        self.pause_add = 0.0
        self.thread = None

    def _here(self):
        """The pipeline is one thread's."""
        self.thread = self.thread or threading.get_ident()
        assert self.thread == threading.get_ident()

    def search(self, question, k=5, how=None, where=None):
        self._here()
        if not question.strip():
            raise ClaraError("the question is empty")
        if where is not None:
            raise ClaraError(f"where: {where!r} is no condition on the columns")
        words = set(question.lower().split())
        scored = sorted(((-len(words & set(text.lower().split())), name) for name, text in self.stored.items()))[:k]
        return [
            Hit(f"{name}#0", name, "", self.stored[name], "", 0, len(self.stored[name]), 5, -score / 10, rank)
            for rank, (score, name) in enumerate(scored, 1)
        ]

    def ask(
        self,
        question,
        *,
        history=(),
        k=None,
        how=None,
        where=None,
        expand=0,
        abstain_below=None,
        candidates=20,
        sampling=GREEDY,
        seed=0,
    ):
        k = 5 if k is None else k
        searched = "\n".join([*(said for role, said in history if role == "user"), question])
        hits = self.search(searched, max(k, candidates), how, where)
        silent = not hits or (abstain_below is not None and hits[0].score < abstain_below)
        text = f"answer to {question} ✓"
        request = Request([ord(c) for c in text], [-1] * len(text), np.zeros((0, 1, 1)), sampling, seed)
        request = None if silent else request
        selected, times = min(k, len(hits)), {"read": 1.0}
        warned = (f"k: {k} are many",) if k > 5 else ()
        return RetrievedContext(question, tuple(hits), selected, request, 16.0, times, searched, len(history), warned)

    def text(self, tokens):
        return "".join(map(chr, tokens))

    defaults = {"k": 5, "how": "memory"}

    def unread(self, documents):
        """Say that Greek cannot be read."""
        return "Greek" if any("α" in chunk.text for one in documents for chunk in one.chunks) else None

    def embed(self, texts, query=False):
        """Make of each text its length and whether it was a query, in two numbers."""
        self._here()
        self.embedded = [*getattr(self, "embedded", []), len(texts)]
        return np.array([[len(text), query] for text in texts], np.float32)

    def count_tokens(self, texts):
        return sum(len(text.split()) for text in texts)

    def rank(self, question, texts):
        self._here()
        return [float(len(set(question.split()) & set(text.split()))) for text in texts]

    def chunk(self, documents):
        for document in documents:
            if isinstance(document, ChunkedDocument):
                yield document
                continue
            if not document.text.strip():
                raise ClaraError(f"document {document.id!r}: holds no text")
            if any(ord(c) < 32 for c in document.id):
                raise ClaraError(f"document {document.id!r}: the id holds a control character")
            yield ChunkedDocument(document.id, (SimpleNamespace(text=document.text),))

    def add(self, documents):
        self._here()
        time.sleep(self.pause_add)
        for document in documents:
            self.stored[document.id] = document.chunks[0].text
        return IndexReport(len(documents), len(documents), 0, 0)

    def finish(self):
        pass

    def delete(self, ids):
        self._here()
        return sum(self.stored.pop(name, None) is not None for name in ids)

    def read_files(self, files, report, longest=None):
        return read_files(files, Chunker(count_words, max_tokens=50), report, longest)

    def documents(self, offset=0, limit=100, containing=""):
        self._here()
        names = sorted(name for name in self.stored if containing.lower() in name.lower())
        return [StoredDocument(name, "", "", 1, 5) for name in names[offset : offset + limit]], len(names)


class FakeBaseLM:
    """A base that says "answer to <all messages>"."""

    defaults = {}

    def __init__(self, rows=4, pause=0.0):
        self.engine = FakeEngine(rows, pause)

    def request(self, messages, sampling=GREEDY, seed=0):
        text = "answer to " + " ".join(message["content"] for message in messages)
        return Request([ord(c) for c in text], [-1] * len(text), np.zeros((0, 1, 1)), sampling, seed)

    def text(self, tokens):
        return "".join(map(chr, tokens))


@dataclasses.dataclass
class Served:
    url: str
    pipeline: FakePipeline  # or another model
    worker: Worker
    server: uvicorn.Server
    thread: threading.Thread

    def end(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.worker.end()


def serve(pipeline=None, queue=8, app=store_app, prepare=None, **limits):
    """A server on a free port of the loopback interface."""
    pipeline = pipeline or FakePipeline()
    worker = Worker(pipeline, queue, prepare)
    config = uvicorn.Config(app(worker, RequestLimits(**limits)), **UVICORN, timeout_graceful_shutdown=5)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return Served(f"http://127.0.0.1:{listening.getsockname()[1]}", pipeline, worker, server, thread)
