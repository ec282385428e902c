"""Whose request it is: ``metadata=`` is in events, log, spans and (the node) metrics, and nowhere on the wire."""

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


async def test_it_is_in_every_event_of_the_request_and_in_no_request_body(events_seen: list[Any]) -> None:
    async with FaultServer("vllm", fault=Fault("cut", after=3)) as one, FaultServer("ollama") as two:
        router = RouterProvider(provider_for(one), [provider_for(two)])
        assert await router.generate("hi", metadata=WHOSE)
        assert "".join([piece async for piece in provider_for(two).stream("hi", metadata=WHOSE)])
        told = [each for each in events_seen if hasattr(each, "metadata")]
        assert {type(each) for each in told} == {
            events.RequestStarted,
            events.AttemptStarted,
            events.AttemptFailed,
            events.AttemptSucceeded,
        }
        assert all(each.metadata == WHOSE for each in told)
        sent = [str(each.body) + str(each.headers) for each in (*one.seen, *two.seen)]
        assert sent
        assert not [each for each in sent if "u-17" in each or "metadata" in each]


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
    "said", ["a text", {"node": ["a", "list"]}, {"a b": 1}, {"node": "x" * 201}, {"node": "a\nb"}, {1: 2}]
)
async def test_what_no_log_line_can_hold_is_refused(said: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="metadata= must be a dict"):
        await RouterProvider(ScriptedProvider(["x"])).generate("hi", metadata=said)


async def test_the_log_line_has_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with FaultServer("vllm") as server:
        await provider_for(server).generate("hi", metadata=WHOSE)
        await provider_for(server).generate("hi")
    lines = [record.getMessage() for record in caplog.records if "request" in record.getMessage()]
    assert ["u-17" in line for line in lines] == [True, False]
    assert ["metadata" in line for line in lines] == [True, False]


async def test_the_node_is_a_label_and_the_user_never(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    remove = prometheus.attach(registry)
    async with FaultServer("vllm") as server:
        provider = provider_for(server)
        await provider.generate("hi", metadata=WHOSE)
        for number in range(70):
            await provider.generate("hi", metadata={"node": f"node {number}"})
    samples = [each for metric in registry.collect() for each in metric.samples]
    remove()
    nodes = {each.labels["node"] for each in samples if "node" in each.labels}
    assert "answer_question" in nodes
    assert "other" in nodes
    assert len(nodes) <= 51
    assert not [each for each in samples if "u-17" in str(each.labels)]
    tokens = [each for each in samples if each.name == "learnflow_llm_tokens_total"]
    assert any(each.labels["node"] == "answer_question" and each.value > 0 for each in tokens)


async def test_spans_have_it() -> None:
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    remove = opentelemetry.attach(tracers)
    async with FaultServer("vllm") as server:
        await provider_for(server).generate("hi", metadata=WHOSE)
    remove()
    spans = exporter.get_finished_spans()
    assert len(spans) == 2
    assert {dict(each.attributes or {})["learnflow_llm.metadata.node"] for each in spans} == {"answer_question"}


async def test_langgraphs_node_is_filled_in_unless_the_caller_names_one(events_seen: list[Any]) -> None:
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
    asked = {name: value for name, value in model._identifying_params.items() if name == "metadata"}
    assert not asked  # a cache's key: whose request it is changes no answer
    told = [each.metadata for each in events_seen if isinstance(each, events.RequestStarted)]
    assert told == [{"node": "generating_content"}, {"node": "mine", "user": "u-17"}, {"node": "generating_content"}]
