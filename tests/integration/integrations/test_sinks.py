"""The sinks for Prometheus and OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from learnflow.llm import RouterProvider, errors, events, get_provider
from learnflow.llm import integrations as sinks
from learnflow.llm.base import Call
from learnflow.llm.completion import Completion, ServedModel, TextDelta
from learnflow.llm.integrations import opentelemetry, prometheus
from learnflow.llm.providers import AzureProvider, CustomProvider, OllamaProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.routing.candidate import Candidate
from learnflow.llm.routing.progress import Progress
from learnflow.llm.stream import Emit
from learnflow.llm.testing import Fault, FaultServer

TEXT = "one two three four five six seven eight"


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    own = CollectorRegistry()
    detach = prometheus.attach(own)
    yield own
    detach()
    assert list(own.collect()) == []


def shown(registry: CollectorRegistry) -> dict[str, float]:
    """Return the samples that are not 0 as ``name{labels}``; of a histogram only its count."""
    samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_sum", "_created")):
                continue
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            if sample.value:
                samples[f"{sample.name.removeprefix('learnflow_llm_')}{{{labels}}}"] = sample.value
    return samples


def chain(first: FaultServer, second: FaultServer, **more: Any) -> RouterProvider:
    one = CustomProvider(base_url=first.base_url, model="fault-model")
    return RouterProvider(
        one, [OllamaProvider(base_url=second.base_url, model="fault-model")], breakers=BreakerRegistry(), **more
    )


async def test_successful_attempt_updates_metrics(registry: CollectorRegistry) -> None:
    async with FaultServer("ollama", TEXT) as server:
        provider = OllamaProvider(base_url=server.base_url, model="fault-model", max_concurrency=2)
        stream = provider.stream("hi there")
        await anext(stream)
        assert shown(registry)["requests_in_flight{provider=ollama}"] == 1
        async for _ in stream:
            pass
        await provider.refresh()
    one = "{model=fault-model,provider=ollama}"
    samples = shown(registry)
    assert samples["requests_total{model=fault-model,outcome=stop,provider=ollama}"] == 1
    assert samples[f"request_seconds_count{one}"] == samples[f"first_token_seconds_count{one}"] == 1
    assert samples["tokens_total{direction=in,model=fault-model,provider=ollama}"] == 5
    assert samples["tokens_total{direction=out,model=fault-model,provider=ollama}"] == 7
    assert samples["queue_seconds_count{provider=ollama}"] == 1
    assert samples["health_checks_total{provider=ollama,state=ready}"] == 1
    assert not any(name.startswith(("requests_in_flight", "failovers")) for name in samples)


async def test_failover_and_continuation_update_metrics(registry: CollectorRegistry) -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=3)) as dying, FaultServer("ollama", TEXT) as other:
        assert await chain(dying, other).generate("hi") == TEXT
        await chain(dying, other).generate("hi")
    samples = shown(registry)
    assert samples["failovers_total{from=custom,reason=AnswerCut,to=ollama}"] == 2
    assert samples["failover_seconds_count{from=custom,to=ollama}"] == 2
    assert samples["continuations_ended_total{outcome=complete,provider=ollama}"] == 2
    assert samples["breaker_open{model=fault-model,provider=custom}"] == 1
    assert samples["requests_total{model=fault-model,outcome=AnswerCut,provider=custom}"] == 2
    assert not any(name.startswith("requests_in_flight") for name in samples)


async def test_broken_continuation_is_counted(registry: CollectorRegistry) -> None:
    async with (
        FaultServer("openai", TEXT, fault=Fault("cut", after=3)) as dying,
        FaultServer("ollama", TEXT, fault=Fault("cut", after=4)) as other,
    ):
        with pytest.raises(errors.BrokenAnswer):
            await chain(dying, other, retries=0).generate("hi")
    assert shown(registry)["continuations_ended_total{outcome=broken,provider=ollama}"] == 1


def test_mismatched_continuation_is_counted(registry: CollectorRegistry) -> None:
    progress = Progress(Emit(), 0.0, [], Call("hi"))
    for error in (errors.NotContinued("x"), errors.AnswerCut("x")):
        progress.begin_attempt(Candidate(OllamaProvider()), None, continues=True)
        progress.record_failure(error, [], 2.0, is_free=True)
    samples = shown(registry)
    assert samples["continuations_ended_total{outcome=mismatched,provider=ollama}"] == 1
    assert samples["continuations_ended_total{outcome=broken,provider=ollama}"] == 1


async def test_configuration_error_and_cancelled_attempt_are_counted(registry: CollectorRegistry) -> None:
    async with FaultServer("openai", TEXT, key="key-of-custom") as server:
        with pytest.raises(errors.AuthenticationFailed):
            await CustomProvider(base_url=server.base_url, model="fault-model").generate("hi")
        server.fault = Fault("stall", after=2)
        right = CustomProvider(base_url=server.base_url, model="fault-model", api_key="key-of-custom")
        async for _ in right.stream("hi"):
            break
        await asyncio.wait_for(server.seen[-1].gone.wait(), 30)
    samples = shown(registry)
    assert samples["configuration_errors_total{error=AuthenticationFailed,provider=custom}"] == 1
    assert samples["requests_total{model=fault-model,outcome=cancelled,provider=custom}"] == 1
    assert not any(name.startswith("requests_in_flight") for name in samples)


async def test_failover_seconds_start_at_first_failure(registry: CollectorRegistry) -> None:
    dead = Fault("refuse", status=500)
    async with (
        FaultServer("openai", TEXT, fault=dead) as one,
        FaultServer("openai", TEXT, fault=dead) as two,
        FaultServer("ollama", TEXT) as three,
    ):
        both = [CustomProvider(base_url=server.base_url, model="fault-model") for server in (one, two)]
        last = OllamaProvider(base_url=three.base_url, model="fault-model")
        assert await RouterProvider(both[0], [both[1], last], breakers=BreakerRegistry()).generate("hi") == TEXT
        one.fault = two.fault = None
    assert {name for name in shown(registry) if name.startswith("failover_seconds")} == {
        "failover_seconds_count{from=custom,to=ollama}"
    }
    seen = []
    remove = events.add_sink(seen.append)
    now = asyncio.get_running_loop().time()
    progress = Progress(Emit(), now, [], Call("hi"))
    for at in (now - 9.0, now):
        progress.begin_attempt(Candidate(CustomProvider(base_url="http://127.0.0.1:1")), None, continues=False)
        progress.record_failure(errors.AnswerCut("x"), [], at, is_free=True)
    progress.begin_attempt(Candidate(OllamaProvider()), None, continues=False)
    progress(TextDelta("one"))
    remove()
    (switched,) = seen
    assert (switched.provider, switched.to) == ("custom", "ollama")
    assert switched.seconds >= 9.0


async def test_breaker_gauge_resets_when_any_model_succeeds(registry: CollectorRegistry) -> None:
    """A refused key opens the breaker of the whole address. A success of any model closes it."""
    async with FaultServer("openai", TEXT, fault=Fault("refuse", refusal="key")) as server:
        clock = [0.0]
        router = RouterProvider(
            CustomProvider(base_url=server.base_url, model="fault-model"),
            breakers=BreakerRegistry(clock=lambda: clock[0]),
            retries=0,
        )
        with pytest.raises(errors.AuthenticationFailed):
            await router.generate("hi")
        assert shown(registry)["breaker_open{model=all,provider=custom}"] == 1
        server.fault, clock[0] = None, 1000.0
        await router.generate("hi", model="other-model")
    assert not any(name.startswith("breaker_open") for name in shown(registry))


async def test_attempt_started_before_attach_is_not_in_flight() -> None:
    own = CollectorRegistry()
    async with FaultServer("openai", TEXT) as server:
        stream = CustomProvider(base_url=server.base_url, model="fault-model").stream("hi")
        await anext(stream)
        detach = prometheus.attach(own)
        assert prometheus.attach(own) is detach  # once
        async for _ in stream:
            pass
    assert not any(name.startswith("requests_in_flight") for name in shown(own))
    detach()


def test_label_values_are_bounded(registry: CollectorRegistry) -> None:

    def answer(provider: str, model: str) -> None:
        completion = Completion(text="", finish="stop", provider=provider, model=ServedModel(model))
        events.emit(events.AttemptSucceeded(provider=provider, completion=completion, total_s=1.0, request=1))

    for number in range(200):
        answer("ollama", f"model-{number}")
        answer(f"provider-{number}", "m")
    samples = shown(registry)
    assert samples["requests_total{model=other,outcome=stop,provider=ollama}"] == 150
    assert len(samples) < 200


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's prometheus) is not here")
async def test_promtool_accepts_metrics(registry: CollectorRegistry) -> None:
    await test_failover_and_continuation_update_metrics(registry)
    ran = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


@pytest.fixture
def telemetry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Attach OpenTelemetry with exporters in memory."""
    if getattr(request, "param", None):
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", request.param)
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    detach = opentelemetry.attach(tracers, meters)
    yield tracers, (spans, reader)
    detach()
    meters.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_request_span_has_one_child_per_attempt(telemetry: tuple[Any, Any]) -> None:
    tracers, (exporter, reader) = telemetry
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=3)) as dying, FaultServer("ollama", TEXT) as other:
        with tracers.get_tracer("application").start_as_current_span("study"):
            await chain(dying, other).complete("hi there", temperature=0.3, max_tokens=50, top_p=0.9)
        port = int(other.base_url.rpartition(":")[2])
    broken, second, request, study = exporter.get_finished_spans()
    assert request.parent.span_id == study.context.span_id
    assert {broken.parent.span_id, second.parent.span_id} == {request.context.span_id}
    assert (request.name, broken.name, second.name) == ("request custom,ollama", "chat fault-model", "chat fault-model")
    assert (request.kind, second.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)
    assert attributes(request) == {
        "learnflow_llm.providers": "custom,ollama",
        "learnflow_llm.provider": "ollama",
        "learnflow_llm.attempts": 2,
        "learnflow_llm.resumed": 1,
    }
    recorded = attributes(second)
    assert recorded == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "fault-model",
        "gen_ai.request.temperature": 0.3,
        "gen_ai.request.max_tokens": recorded["gen_ai.request.max_tokens"],
        "gen_ai.request.top_p": 0.9,
        "gen_ai.response.model": "fault-model",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": recorded["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": recorded["gen_ai.usage.output_tokens"],
        "server.address": "127.0.0.1",
        "server.port": port,
        "learnflow_llm.attempt": 2,
        "learnflow_llm.cost_dollars": 0.0,
    }
    assert attributes(broken)["error.type"] == "AnswerCut"
    assert (broken.status.status_code, request.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert "hi there" not in str([span.to_json() for span in exporter.get_finished_spans()])
    measured = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        measured[metric.name] = (metric.unit, [dict(point.attributes) for point in metric.data.data_points])
    assert set(measured) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.token.usage",
    }
    unit, points = measured["gen_ai.client.operation.duration"]
    assert (unit, [point.get("error.type") for point in points]) == ("s", ["AnswerCut", None])
    unit, points = measured["gen_ai.client.token.usage"]
    assert (unit, sorted(point["gen_ai.token.type"] for point in points)) == ("{token}", ["input", "output"])


async def test_continuation_attempt_belongs_to_same_request_span(telemetry: tuple[Any, Any]) -> None:
    _, (exporter, _) = telemetry
    async with FaultServer("ollama", TEXT, fault=Fault("cut", after=3)) as dying, FaultServer("openai", TEXT) as other:
        first = OllamaProvider(base_url=dying.base_url, model="fault-model")
        second = CustomProvider(base_url=other.base_url, model="fault-model")
        await RouterProvider(first, [second], breakers=BreakerRegistry()).complete("hi there")
    *attempts, request = exporter.get_finished_spans()
    assert [span.parent.span_id for span in attempts] == [request.context.span_id] * 2
    assert attributes(request)["learnflow_llm.attempts"] == 2


async def test_failed_span_has_error_and_cancelled_span_has_none(telemetry: tuple[Any, Any]) -> None:
    _, (exporter, _) = telemetry
    async with FaultServer("openai", TEXT, fault=Fault("refuse", status=500)) as server:
        provider = AzureProvider(base_url=f"{server.base_url}/openai/v1", model="fault-model", api_key="k")
        with pytest.raises(errors.ServerFailed):
            await provider.generate("hi")
        attempt, request = exporter.get_finished_spans()
        assert attributes(attempt)["gen_ai.provider.name"] == "azure.ai.openai"
        assert attributes(request)["error.type"] == attributes(attempt)["error.type"] == "ServerFailed"
        exporter.clear()
        server.fault = Fault("stall", after=2)
        async for _ in CustomProvider(base_url=server.base_url, model="fault-model").stream("hi"):
            break
        await asyncio.wait_for(server.seen[-1].gone.wait(), 30)
    attempt, request = exporter.get_finished_spans()
    assert (attempt.status.status_code, request.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)


@pytest.mark.parametrize("telemetry", ["true"], indirect=True)
async def test_content_is_recorded_if_variable_is_set(telemetry: tuple[Any, Any]) -> None:
    _, (exporter, _) = telemetry
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    async with FaultServer("openai", TEXT) as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        await provider.generate(
            [{"role": "user", "content": [{"type": "text", "text": "hi"}, picture]}], system="Be brief."
        )
    recorded = attributes(exporter.get_finished_spans()[0])
    assert json.loads(recorded["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "hi"}, {"type": "image_url"}]},
    ]
    answer = {"role": "assistant", "parts": [{"type": "text", "content": TEXT}], "finish_reason": "stop"}
    assert json.loads(recorded["gen_ai.output.messages"]) == [answer]


async def test_failing_sink_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("SECRET")

    removers = [events.add_sink(broken), events.add_content_sink(broken)]
    try:
        async with FaultServer("openai", TEXT) as server:
            provider = CustomProvider(base_url=server.base_url, model="fault-model")
            assert await RouterProvider(provider).generate("hi") == TEXT
    finally:
        for remove in removers:
            remove()
    assert "RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


async def test_environment_variables_attach_sinks(
    monkeypatch: pytest.MonkeyPatch, bindable_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLM_METRICS_PORT", str(bindable_port))
    monkeypatch.setenv("LLM_OPENTELEMETRY", "true")
    monkeypatch.setattr(sinks, "_served", set())
    before = list(events._sinks)
    try:
        with socket.create_server(("127.0.0.1", bindable_port)):
            get_provider("ollama")  # the port is in use: logged once
            get_provider("ollama")
            assert caplog.text.count("llm.metrics_unavailable") == 1
        get_provider("ollama")  # it is free now
        assert len(events._sinks) == len(before) + 2
        url = f"http://127.0.0.1:{bindable_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "learnflow_llm_requests_total" in page
        monkeypatch.setenv("LLM_METRICS_HOST", "a..b")
        get_provider("ollama")
        assert "a..b" in caplog.text
    finally:
        prometheus.attach()()
        opentelemetry.attach()()
    assert events._sinks == before


BARE = """
import sys
from learnflow.llm import get_provider
get_provider("ollama")
print([name for name in sys.modules if name.split(".")[0] in ("prometheus_client", "opentelemetry")])
"""


def test_sink_libraries_are_not_imported_by_default() -> None:
    ran = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "[]\n", ran.stderr
