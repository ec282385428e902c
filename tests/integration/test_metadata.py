"""``metadata=`` is in events, log lines, spans and (the node) metrics, and not in the request."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from support import provider_for

from learnflow.llm import RouterProvider, errors, events
from learnflow.llm.integrations import opentelemetry, prometheus
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider

WHOSE = {"node": "answer_question", "user": "u-17"}


async def test_metadata_is_in_every_event_and_in_no_request_body(events_seen: list[Any]) -> None:
    async with FaultServer("vllm", fault=Fault("cut", after=3)) as one, FaultServer("ollama") as two:
        router = RouterProvider(provider_for(one), [provider_for(two)])
        assert await router.generate("hi", metadata=WHOSE)
        assert "".join([piece async for piece in provider_for(two).stream("hi", metadata=WHOSE)])
        emitted = [item for item in events_seen if hasattr(item, "metadata")]
        assert {type(item) for item in emitted} == {
            events.RequestStarted,
            events.AttemptStarted,
            events.AttemptFailed,
            events.AttemptSucceeded,
        }
        assert all(item.metadata == WHOSE for item in emitted)
        sent = [str(item.body) + str(item.headers) for item in (*one.seen, *two.seen)]
        assert sent
        assert not [item for item in sent if "u-17" in item or "metadata" in item]


async def test_metadata_of_own_provider_is_in_events_and_not_in_its_arguments(events_seen: list[Any]) -> None:
    router = RouterProvider(ScriptedProvider(["an answer"]), [ScriptedProvider(["another"])])
    assert await router.generate("hi", metadata=WHOSE) == "an answer"
    with_metadata = [event for event in events_seen if hasattr(event, "metadata")]
    assert {type(event) for event in with_metadata} == {
        events.RequestStarted,
        events.AttemptStarted,
        events.AttemptSucceeded,
    }
    assert all(event.metadata == WHOSE for event in with_metadata)


@pytest.mark.parametrize(
    "metadata", ["a text", {"node": ["a", "list"]}, {"a b": 1}, {"node": "x" * 201}, {"node": "a\nb"}, {1: 2}]
)
async def test_metadata_that_cannot_be_logged_is_refused(metadata: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="metadata= must be a dict"):
        await RouterProvider(ScriptedProvider(["x"])).generate("hi", metadata=metadata)


async def test_log_line_has_metadata(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with FaultServer("vllm") as server:
        await provider_for(server).generate("hi", metadata=WHOSE)
        await provider_for(server).generate("hi")
    lines = [record.getMessage() for record in caplog.records if "attempt_succeeded" in record.getMessage()]
    assert ["u-17" in line for line in lines] == [True, False]
    assert ["metadata" in line for line in lines] == [True, False]


async def test_node_is_metric_label_and_user_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    remove = prometheus.attach(registry)
    async with FaultServer("vllm") as server:
        provider = provider_for(server)
        await provider.generate("hi", metadata=WHOSE)
        for number in range(70):
            await provider.generate("hi", metadata={"node": f"node {number}"})
    samples = [item for metric in registry.collect() for item in metric.samples]
    remove()
    nodes = {item.labels["node"] for item in samples if "node" in item.labels}
    assert "answer_question" in nodes
    assert "other" in nodes
    assert len(nodes) <= 51
    assert not [item for item in samples if "u-17" in str(item.labels)]
    tokens = [item for item in samples if item.name == "learnflow_llm_tokens_total"]
    assert any(item.labels["node"] == "answer_question" and item.value > 0 for item in tokens)


async def test_spans_have_metadata() -> None:
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    remove = opentelemetry.attach(tracers)
    async with FaultServer("vllm") as server:
        await provider_for(server).generate("hi", metadata=WHOSE)
    remove()
    spans = exporter.get_finished_spans()
    assert len(spans) == 2
    assert {dict(item.attributes or {})["learnflow_llm.metadata.node"] for item in spans} == {"answer_question"}


async def test_langgraph_node_is_added_unless_caller_sets_it(events_seen: list[Any]) -> None:
    model = ChatLearnFlow(provider=RouterProvider(ScriptedProvider(["one", "two", "three"])))

    async def generating_content(_: dict[str, Any]) -> dict[str, Any]:
        await model.ainvoke([HumanMessage("hi")])
        await model.ainvoke([HumanMessage("hi")], {"metadata": {"learnflow_llm": {"node": "mine", "user": "u-17"}}})
        async for _piece in model.astream([HumanMessage("hi")]):
            pass
        return {}

    plan: Any = StateGraph(dict)
    plan.add_node("generating_content", generating_content)
    plan.add_edge(START, "generating_content")
    plan.add_edge("generating_content", END)
    await plan.compile().ainvoke({})
    params = {name: value for name, value in model._identifying_params.items() if name == "metadata"}
    assert not params  # the key of LangChain's cache: metadata does not change the answer
    emitted = [item.metadata for item in events_seen if isinstance(item, events.RequestStarted)]
    assert emitted == [{"node": "generating_content"}, {"node": "mine", "user": "u-17"}, {"node": "generating_content"}]
