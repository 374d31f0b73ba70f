"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clara_jax.serving.worker import Worker

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """A registry of its own, so that several servers may live in one process."""

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        kept = {"registry": self._registry}
        self.requests = Counter("clara_requests", "Requests by route and status", ["route", "status"], **kept)
        self.seconds = Histogram(
            "clara_request_seconds", "Time to the end of a response", ["route"], buckets=_SECONDS, **kept
        )
        self.first = Histogram("clara_first_token_seconds", "Time to the first token", buckets=_SECONDS, **kept)
        self.tokens = Counter("clara_answer_tokens", "Tokens of answers", **kept)
        self.abstained = Counter("clara_abstained", "Questions that were not answered", **kept)
        self.compressed = Counter("clara_compressed_chunks", "Chunks compressed into the store", **kept)
        gauges = {
            "clara_inside": ("Requests that wait or are worked on", lambda: worker.inside),
            "clara_inside_limit": ("Requests that may be inside", lambda: worker.limit),
            "clara_answering": ("Answers that are written or wait for a row", lambda: worker.answering),
            "clara_rows": ("Answers that are written together", lambda: worker.rows),
            "clara_prefixes_found": ("Prompts whose beginning had been read", lambda: worker.prefixes.found),
            "clara_prefixes_missed": ("Prompts whose beginning was read, and kept", lambda: worker.prefixes.missed),
        }
        for name, (words, value) in gauges.items():
            Gauge(name, words, **kept).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
