"""Spans of captures: as the SDK has them, and as a real collector gets them."""

import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from proxy.traces import Tracer
from store.states import CaptureStatus, Server
from store.tables import Capture

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
AT = datetime(2026, 5, 4, 3, 2, 1, 123456, UTC)
AT_NS = 1777863721_123456_000
ASKED, ANSWERED = "where is my parcel", "at the post office"
BODY = orjson.dumps(
    {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-2024-08-06", "choices": [{"message": ANSWERED}]}
)
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def capture(**fields: Any) -> Capture:
    """A complete answer of a teacher."""
    usual = {
        "id": "cap_1", "created_at": AT, "task_id": "task_1", "endpoint": "/v1/chat/completions", "status": CaptureStatus.COMPLETE,
        "served_by": Server.TEACHER, "model": "gpt-4o", "http_status": 200, "request": ASKED.encode(), "response": BODY,
        "prompt_text": ASKED, "answer_text": ANSWERED, "finish_reason": "stop", "prompt_tokens": 52, "completion_tokens": 47,
        "first_byte_ms": 250.5, "duration_ms": 1500.25,
    }  # fmt: skip
    return Capture(**{**usual, **fields})


def span(of: Capture, *, content: bool = False, **about: Any) -> ReadableSpan:
    """The one span of a capture."""
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter, content=content)
    tracer.exchange(of, **{"task": "sort", **about})
    tracer.close()
    (found,) = exporter.get_finished_spans()
    return found


def attributes(of: Capture, **about: Any) -> dict[str, Any]:
    return dict(span(of, **about).attributes or {})


def test_a_teachers_answer_is_a_span_by_the_conventions() -> None:
    found = span(capture(), address="https://api.openai.com/v1")
    assert (found.name, found.kind, found.status.status_code) == ("chat gpt-4o", SpanKind.CLIENT, StatusCode.UNSET)
    assert (found.start_time, found.end_time) == (AT_NS, AT_NS + 1_500_250_000)
    assert dict(found.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 52,
        "gen_ai.usage.output_tokens": 47,
        "openai.api.type": "chat_completions",
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "stillroom.task": "sort",
        "stillroom.server": "teacher",
        "stillroom.capture_id": "cap_1",
    }
    assert found.resource.attributes["service.name"] == "stillroom"
    assert found.parent is None


def test_a_students_answer_names_the_adapter_and_a_fallback_the_reason() -> None:
    found = attributes(capture(served_by=Server.STUDENT, adapter_id="task_1@v3"), address="http://127.0.0.1:8000")
    assert (found["gen_ai.provider.name"], found["gen_ai.request.model"]) == ("stillroom", "gpt-4o")
    assert (found["gen_ai.response.model"], found["stillroom.server"]) == ("task_1@v3", "student")
    assert (found["server.address"], found["server.port"]) == ("127.0.0.1", 8000)
    found = attributes(capture(fallback="student: its answer cannot be used: in the words of the answer"))
    assert found["stillroom.fallback"] == "unreadable"


def test_a_stream_says_when_its_first_chunk_came_and_who_it_was() -> None:
    events = b'data: {"id":"chatcmpl-2","object":"chat.completion.chunk","model":"m-1","choices":[]}\n\ndata: [DONE]\n\n'
    found = attributes(capture(stream=True, response=events))
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.response.time_to_first_chunk"] == 0.2505
    assert (found["gen_ai.response.id"], found["gen_ai.response.model"]) == ("chatcmpl-2", "m-1")


@pytest.mark.parametrize(
    ("endpoint", "operation"),
    [("/v1/chat/completions", "chat"), ("/v1/completions", "text_completion"), ("/v1/responses", "chat")],
)
def test_each_endpoint_has_its_operation(endpoint: str, operation: str) -> None:
    assert attributes(capture(endpoint=endpoint))["gen_ai.operation.name"] == operation
    assert span(capture(endpoint=endpoint)).name == f"{operation} gpt-4o"


@pytest.mark.parametrize(
    ("address", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com/openai/v1", "azure.ai.openai"),
        ("https://api.mistral.ai/v1", "mistral_ai"),
        ("https://bedrock-runtime.eu-central-1.amazonaws.com/openai/v1", "aws.bedrock"),
        ("http://gateway.inside:4000/v1", "openai"),
        (None, "openai"),
    ],
)
def test_the_provider_is_known_by_its_address(address: str | None, provider: str) -> None:
    assert attributes(capture(), address=address)["gen_ai.provider.name"] == provider


@pytest.mark.parametrize(
    ("fields", "error", "finish"),
    [
        ({"status": CaptureStatus.FAILED, "http_status": 429, "finish_reason": None}, "429", None),
        ({"status": CaptureStatus.FAILED, "http_status": 200, "finish_reason": None}, "unusable", None),
        ({"status": CaptureStatus.INCOMPLETE, "finish_reason": None}, "incomplete", ("error",)),
        ({"status": CaptureStatus.INCOMPLETE, "http_status": None, "duration_ms": None, "response": b""}, "incomplete", ("error",)),
    ],
)
def test_what_went_wrong_is_an_error_of_few_kinds(fields: dict[str, Any], error: str, finish: Any) -> None:
    found = span(capture(error=f"it said: {ASKED}", **fields))
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, None)
    assert (found.attributes or {})["error.type"] == error
    assert (found.attributes or {}).get("gen_ai.response.finish_reasons") == finish
    assert (found.end_time or 0) >= (found.start_time or 0)


def test_the_clients_trace_is_joined() -> None:
    found = span(capture(), traceparent=f"00-{TRACE}-{PARENT}-01")
    assert found.parent is not None
    assert found.parent.is_remote
    assert (f"{found.context.trace_id:032x}", f"{found.parent.span_id:016x}") == (TRACE, PARENT)


@pytest.mark.parametrize("traceparent", ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "00-" * 1000, "\ud800"])
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(traceparent: str) -> None:
    assert span(capture(), traceparent=traceparent).parent is None


def test_a_client_that_does_not_sample_is_not_traced() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    tracer.exchange(capture(), task="sort", traceparent=f"00-{TRACE}-{PARENT}-00")
    tracer.close()
    assert exporter.get_finished_spans() == ()


def test_no_text_is_in_a_span_unless_it_is_asked_for() -> None:
    of = capture(error=f"it said: {ANSWERED}", status=CaptureStatus.FAILED, fallback=f"student: {ANSWERED}", meta={"user": ASKED})
    silent = span(of).to_json()
    assert ASKED not in silent
    assert ANSWERED not in silent
    found = attributes(of, content=True)
    assert orjson.loads(found["gen_ai.input.messages"]) == [{"role": "user", "parts": [{"type": "text", "content": ASKED}]}]
    assert orjson.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": ANSWERED}]}
    ]


def test_text_in_a_span_is_bounded_and_strange_text_disturbs_nobody() -> None:
    found = attributes(capture(prompt_text="x" * 10_000_000, answer_text="\ud800 half a letter"), content=True)
    assert len(found["gen_ai.input.messages"]) < 9000
    assert orjson.loads(found["gen_ai.output.messages"])[0]["parts"][0]["content"] == "? half a letter"


class Collector:
    """An OTLP/HTTP collector on a free port."""

    def __init__(self) -> None:
        self.status = 200
        self.seen: list[tuple[str, ExportTraceServiceRequest]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.status == 200:
                    collector.seen.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not to the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def spans(self) -> list[Span]:
        return [each for _, got in self.seen for of in got.resource_spans for scope in of.scope_spans for each in scope.spans]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setenv(ENDPOINT, found.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield found
    found.stop()


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def test_a_collector_gets_the_span_over_http(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-proxy")
    tracer = Tracer.from_settings()
    assert tracer is not None
    tracer.exchange(capture(), task="sort", traceparent=f"00-{TRACE}-{PARENT}-01", address="https://api.openai.com/v1")
    tracer.close()
    (path, got), *_ = collector.seen
    (found,) = collector.spans
    assert path == "/v1/traces"
    assert {each.key: plain(each.value) for each in got.resource_spans[0].resource.attributes}["service.name"] == "shop-proxy"
    assert (found.name, found.kind) == ("chat gpt-4o", Span.SPAN_KIND_CLIENT)
    assert (found.trace_id.hex(), found.parent_span_id.hex()) == (TRACE, PARENT)
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (AT_NS, AT_NS + 1_500_250_000)
    said = {each.key: plain(each.value) for each in found.attributes}
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.response.finish_reasons"]) == (52, ["stop"])
    assert ANSWERED.encode() not in got.SerializeToString()


def test_the_standard_variable_lets_text_through(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    tracer = Tracer.from_settings()
    assert tracer is not None
    tracer.exchange(capture(), task="sort")
    tracer.close()
    assert ANSWERED.encode() in collector.seen[0][1].SerializeToString()


def test_a_collector_that_is_away_costs_its_spans_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    tracer = Tracer.from_settings()
    assert tracer is not None
    of = capture()
    started = time.monotonic()
    for _ in range(3000):  # more than the queue holds
        tracer.exchange(of, task="sort")
    assert time.monotonic() - started < 5
    started = time.monotonic()
    tracer.close(0.2)
    assert time.monotonic() - started < 2


def test_a_collector_that_refuses_costs_its_spans_only(collector: Collector) -> None:
    collector.status = 400
    tracer = Tracer.from_settings()
    assert tracer is not None
    tracer.exchange(capture(), task="sort")
    time.sleep(0.3)
    collector.status = 200
    tracer.exchange(capture(id="cap_2"), task="sort")
    tracer.close()
    assert [plain(each.value) for each in collector.spans[0].attributes if each.key == "stillroom.capture_id"] == ["cap_2"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_without_a_collector_that_can_be_spoken_to_there_is_no_tracer(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Tracer.from_settings() is None


def test_without_the_extra_there_is_no_tracer_and_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert Tracer.from_settings() is None
    assert "install stillroom[otel]" in caplog.text
