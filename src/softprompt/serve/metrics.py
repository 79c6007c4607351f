"""What Prometheus is told: the queue, the passes, and for each prompt its requests, tokens and latencies."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one server. It is told of passes by the service's thread; see `Observer`."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        each = ("prompt", "route")
        self.requests = Counter(
            "softprompt_requests", "Requests by prompt, route and status.", (*each, "status"), registry=registry
        )
        self.seconds = Histogram(
            "softprompt_request_seconds",
            "From a request to its whole answer.",
            each,
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "softprompt_first_token_seconds",
            "From a request to the first text of a streamed answer.",
            each,
            buckets=_SECONDS,
            registry=registry,
        )
        self.read = Counter("softprompt_prompt_tokens", "Tokens of rows, by prompt.", ("prompt",), registry=registry)
        self.written = Counter(
            "softprompt_generated_tokens", "Tokens that were written, by prompt.", ("prompt",), registry=registry
        )
        self.waiting = Gauge("softprompt_waiting_rows", "Rows that wait for the model.", registry=registry)
        self.writing = Gauge("softprompt_writing_answers", "Answers that are being written.", registry=registry)
        self.prompts = Gauge("softprompt_prompts", "Prompts that can be asked.", registry=registry)
        self.loaded = Gauge("softprompt_prompts_in_memory", "Prompts that are in memory.", registry=registry)
        self.bytes = Gauge(
            "softprompt_prompts_bytes", "Size of prompts in memory and what they are compiled to.", registry=registry
        )
        kinds = ("kind",)
        self._rows = Histogram(
            "softprompt_pass_rows",
            "Rows of a pass of the model, by kind (answer, begin, step).",
            kinds,
            buckets=_ROWS,
            registry=registry,
        )
        self._passes = Histogram(
            "softprompt_pass_seconds", "Duration of a pass, by kind.", kinds, buckets=_SECONDS, registry=registry
        )

    def passed(self, kind: str, rows: int, seconds: float) -> None:
        """A pass of the model is over."""
        self._rows.labels(kind).observe(rows)
        self._passes.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
