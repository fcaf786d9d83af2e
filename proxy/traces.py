"""OpenTelemetry traces (extra `otel`): a span an exchange, by the conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/client-inference.md. Spans are made where captures are
stored, after the fact, from what the capture says: requests pay nothing for them. What is said or answered is in no span unless
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says so; headers and keys are not known here.
"""

import logging
import os
import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from proxy import metrics
from store.states import CaptureStatus, Server
from store.tables import Capture

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("stillroom.proxy")

_TEXT = 8000  # characters of a prompt or an answer in a span: 2,048 spans may wait for a collector that is away
_HEAD = 4096  # bytes of an answer in which its id and its model are looked for
_ID = re.compile(rb'"id"\s*:\s*"([\w.:-]{1,100})"')
_MODEL = re.compile(rb'"model"\s*:\s*"([\w.:/@-]{1,100})"')

#: By endpoint: operation, and the API's name where the conventions have one.
_OPERATIONS = {
    "/v1/chat/completions": ("chat", "chat_completions"),
    "/v1/completions": ("text_completion", None),
    "/v1/responses": ("chat", "responses"),
}
#: By the end of the host's name; whoever else speaks OpenAI's API counts as openai, as the conventions mean it.
_PROVIDERS = (
    (".openai.azure.com", "azure.ai.openai"),
    (".cognitiveservices.azure.com", "azure.ai.openai"),
    (".services.ai.azure.com", "azure.ai.inference"),
    (".amazonaws.com", "aws.bedrock"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("api.anthropic.com", "anthropic"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.deepseek.com", "deepseek"),
    ("api.groq.com", "groq"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
)


class Tracer:
    """Turns stored captures into spans. A collector that is slow, away or broken costs spans and nothing else."""

    def __init__(self, exporter: "SpanExporter", *, content: bool = False) -> None:
        """`content`: the last user message and the answer are in the span. Made after any fork: it starts a thread."""
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # OTEL_SERVICE_NAME has a say
            resource = resource.merge(Resource({SERVICE_NAME: "stillroom"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("stillroom.proxy")
        self._parent = TraceContextTextMapPropagator()
        self._content = content

    @classmethod
    def from_settings(cls) -> "Tracer | None":
        """As the standard OTEL_* variables say; None if they name no collector, or the extra is not installed."""
        wanted = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
        if not wanted or off:
            return None
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in (None, "", "http/protobuf"):
            log.error("no traces: OTEL_EXPORTER_OTLP_PROTOCOL is %r, and only http/protobuf is spoken here", protocol)
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            log.error("no traces: %s; install stillroom[otel]", error)
            return None
        content = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower()
        return cls(OTLPSpanExporter(), content=content in ("true", "span_only", "span_and_event"))

    def exchange(self, capture: Capture, *, task: str, traceparent: str | None = None, address: str | None = None) -> None:
        """Make the span of a capture. `task` is the task's name, `address` the base URL of who answered. Waits for nobody.

        Of an exchange whose end nobody saw the span has no length. A traceparent that is none counts as absent; one that says
        "not sampled" makes no span, unless OTEL_TRACES_SAMPLER says so.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation, _ = _OPERATIONS.get(capture.endpoint, ("chat", None))
        start = round(capture.created_at.timestamp() * 1e6) * 1000
        span = self._tracer.start_span(
            f"{operation} {capture.model}".strip(),
            context=self._parent.extract({"traceparent": traceparent}) if traceparent else None,
            kind=SpanKind.CLIENT,
            start_time=start,
            attributes=_attributes(capture, task, address) | (_content(capture) if self._content else {}),
        )
        if capture.status != CaptureStatus.COMPLETE:
            span.set_status(Status(StatusCode.ERROR, capture.error if self._content else None))
        span.end(start + round((capture.duration_ms or 0.0) * 1e6))

    def close(self, seconds: float = 5.0) -> None:
        """Send what is left, for at most so long."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(seconds)


def _attributes(capture: Capture, task: str, address: str | None) -> dict[str, Any]:
    operation, api = _OPERATIONS.get(capture.endpoint, ("chat", None))
    student = capture.served_by == Server.STUDENT
    host, port = _host(address) if address else (None, None)
    head = capture.response[:_HEAD]
    incomplete = capture.status == CaptureStatus.INCOMPLETE
    found = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "stillroom" if student else _provider(host or ""),
        "gen_ai.request.model": capture.model or None,
        "gen_ai.request.stream": capture.stream or None,
        "gen_ai.response.id": _first(_ID, head),
        "gen_ai.response.model": capture.adapter_id if student else _first(_MODEL, head),
        "gen_ai.response.finish_reasons": ["error"] if incomplete else [capture.finish_reason] if capture.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": _seconds(capture.first_byte_ms) if capture.stream else None,
        "gen_ai.usage.input_tokens": capture.prompt_tokens,
        "gen_ai.usage.output_tokens": capture.completion_tokens,
        "openai.api.type": api,
        "server.address": host,
        "server.port": port,
        "http.response.status_code": capture.http_status,
        "error.type": _error(capture),
        "stillroom.task": task,
        "stillroom.server": str(capture.served_by),
        "stillroom.fallback": metrics.reason(capture.fallback) if capture.fallback else None,
        "stillroom.capture_id": capture.id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _content(capture: Capture) -> dict[str, Any]:
    """The last user message and the answer, as the conventions want messages: JSON."""
    said = {"input": ("user", capture.prompt_text), "output": ("assistant", capture.answer_text)}
    return {f"gen_ai.{way}.messages": orjson.dumps([_message(role, text)]).decode() for way, (role, text) in said.items()}


def _message(role: str, text: str | None) -> dict[str, Any]:
    shown = (text or "")[:_TEXT].encode("utf-8", "replace").decode()  # a lone surrogate can be in no JSON
    return {"role": role, "parts": [{"type": "text", "content": shown}]}


def _error(capture: Capture) -> str | None:
    """`error.type`: an HTTP status from 400 on, `incomplete`, or `unusable` for an answer that cannot be read; None without one."""
    if capture.http_status is not None and capture.http_status >= 400:
        return str(capture.http_status)
    return {CaptureStatus.COMPLETE: None, CaptureStatus.INCOMPLETE: "incomplete", CaptureStatus.FAILED: "unusable"}[capture.status]


def _first(pattern: re.Pattern[bytes], head: bytes) -> str | None:
    match = pattern.search(head)
    return match[1].decode("utf-8", "replace") if match else None


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@lru_cache(maxsize=64)
def _host(address: str) -> tuple[str | None, int | None]:
    parts = urlsplit(address)
    return parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _provider(host: str) -> str:
    return next((provider for end, provider in _PROVIDERS if host == end.removeprefix(".") or host.endswith(end)), "openai")
