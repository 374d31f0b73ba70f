"""Metrics of the server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clara_jax.serving.worker import Worker

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """The metrics of one server, in a separate registry: a process may have several servers."""

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "clara_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "clara_request_seconds", "Time to the end of a response", ["route"], buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "clara_first_token_seconds", "Time to the first token", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("clara_answer_tokens", "Tokens of answers", registry=registry)
        self.abstained = Counter("clara_abstained", "Questions that were not answered", registry=registry)
        self.compressed = Counter("clara_compressed_chunks", "Chunks compressed into the store", registry=registry)
        gauges = {
            "clara_inside": ("Requests that wait or are worked on", lambda: worker.inside),
            "clara_inside_limit": ("Requests that may be inside", lambda: worker.limit),
            "clara_answering": ("Answers that are written or wait for a row", lambda: worker.answering),
            "clara_rows": ("Answers that are written together", lambda: worker.rows),
            "clara_prefixes_found": ("Prompts whose beginning had been read", lambda: worker.prefix_cache.hits),
            "clara_prefixes_missed": ("Prompts whose beginning was read, and kept", lambda: worker.prefix_cache.misses),
        }
        for name, (words, value) in gauges.items():
            Gauge(name, words, registry=registry).set_function(value)

    def text(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
