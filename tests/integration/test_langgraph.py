"""A graph like LearnFlow's: a text, questions as structured output, and parallel answers, streamed."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from pydantic import BaseModel
from support import Obedient, provider_for, router

from learnflow.llm import RouterProvider, errors, events
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import CustomProvider, OllamaProvider
from learnflow.llm.testing import Fault, FaultServer

TEXT = "A key is a number that only its owner knows and nobody else can guess."
ASKED = '{"questions": ["Why?", "How?", "When?"]}'


class Questions(BaseModel):
    questions: list[str]


class State(TypedDict, total=False):
    topic: str
    text: str
    questions: list[str]
    answers: Annotated[list[str], operator.add]


def graph(write: ChatLearnFlow, ask: ChatLearnFlow) -> Any:
    async def content(state: State) -> State:
        message = await write.ainvoke([SystemMessage("You teach."), HumanMessage(state["topic"])])
        return {"text": str(message.content)}

    async def questions(state: State) -> State:
        result = await ask.with_structured_output(Questions).ainvoke([SystemMessage(state["text"])])
        return {"questions": result.questions}

    async def answer(state: State) -> State:
        message = await write.ainvoke([HumanMessage(state["topic"])])
        return {"answers": [f"{state['topic']} {message.content}"]}

    def send_questions(state: State) -> list[Send]:
        return [Send("answer", {"topic": question}) for question in state["questions"]]

    plan = StateGraph(State)
    for node in (content, questions, answer):
        plan.add_node(node)
    plan.add_edge(START, "content")
    plan.add_edge("content", "questions")
    plan.add_conditional_edges("questions", send_questions, ["answer"])
    plan.add_edge("answer", END)
    return plan.compile()


async def run(first: FaultServer, second: FaultServer, asks: tuple[FaultServer, FaultServer]) -> tuple[Any, list[str]]:
    """Return the final state, and the streamed text of the first node."""
    chats = []
    for one, other in ((first, second), asks):
        primary = CustomProvider(base_url=one.base_url, model="fault-model")
        chats.append(
            ChatLearnFlow(
                provider=RouterProvider(primary, [OllamaProvider(base_url=other.base_url, model="fault-model")])
            )
        )
    pieces, state = [], {}
    async for event in graph(*chats).astream_events({"topic": "RSA", "answers": []}, version="v2"):
        if event["event"] == "on_chat_model_stream" and event["metadata"]["langgraph_node"] == "content":
            pieces.append(event["data"]["chunk"].content)
        if event["event"] == "on_chain_end" and not event["parent_ids"]:
            state = event["data"]["output"]
    return state, pieces


@pytest.mark.parametrize(
    ("fault", "resumed"),
    [
        (None, False),
        (Fault("refuse", status=500), False),
        (Fault("cut", after=5), True),
        (Fault("drop", after=1), True),
    ],
    ids=["well", "dead", "dying", "dying early"],
)
async def test_graph_completes(fault: Fault | None, resumed: bool, events_seen: list[object]) -> None:
    async with (
        FaultServer("openai", TEXT, fault=fault) as first,
        FaultServer("ollama", TEXT) as second,
        FaultServer("openai", ASKED, fault=fault) as asks,
        FaultServer("ollama", ASKED) as asks_too,
    ):
        state, pieces = await run(first, second, (asks, asks_too))
    assert state["text"] == "".join(pieces) == TEXT
    assert len(pieces) > 5
    assert state["questions"] == ["Why?", "How?", "When?"]
    assert sorted(state["answers"]) == sorted(f"{question} {TEXT}" for question in state["questions"])
    answered = [event for event in events_seen if isinstance(event, events.AttemptSucceeded)]
    assert len(answered) == 5
    assert {event.provider for event in answered} == ({"ollama"} if fault else {"custom"})
    assert any(isinstance(event, events.Failover) for event in events_seen) == bool(fault)
    assert any(isinstance(event, events.Resumed) for event in events_seen) == resumed


async def test_error_of_graph_is_llm_error_if_no_provider_answers(events_seen: list[object]) -> None:
    dead = Fault("refuse", status=500)
    async with FaultServer("openai", fault=dead) as first, FaultServer("ollama", fault=dead) as second:
        primary = CustomProvider(base_url=first.base_url, model="fault-model")
        other = OllamaProvider(base_url=second.base_url, model="fault-model")
        chat = ChatLearnFlow(provider=RouterProvider(primary, [other], retries=0))
        with pytest.raises(errors.ServerFailed):
            await graph(chat, chat).ainvoke({"topic": "RSA"})


@tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"sunny in {city[:5]}"


def agent(chat: ChatLearnFlow) -> Any:
    """Return a graph of a model with tools and a node that runs them, in a loop."""

    async def ask(state: MessagesState) -> Any:
        return {"messages": [await chat.bind_tools([weather]).ainvoke(state["messages"])]}

    plan = StateGraph(MessagesState)
    plan.add_node("ask", ask)
    plan.add_node("tools", ToolNode([weather]))
    plan.add_edge(START, "ask")
    plan.add_conditional_edges("ask", tools_condition)
    plan.add_edge("tools", "ask")
    return plan.compile()


async def test_graph_with_tools_streams_arguments() -> None:
    async with Obedient("vllm") as server:
        graph = agent(ChatLearnFlow(provider=router(provider_for(server))))
        given = {"messages": [HumanMessage("Ясно ли в Москве?")]}
        grown, text = [""], ""
        async for event in graph.astream_events(given, version="v2"):
            if event["event"] == "on_chat_model_stream":
                chunk = event["data"]["chunk"]
                grown += [grown[-1] + piece["args"] for piece in chunk.tool_call_chunks if piece["args"]]
                text += str(chunk.content)
        assert len(grown) > 4
        assert json.loads(grown[-1]) == {"city": "Ясно ли в Москве?"}
        assert text == "Done, as you asked."


async def test_messages_mode_streams_tokens_of_every_node() -> None:
    async with Obedient("vllm") as server:
        graph = agent(ChatLearnFlow(provider=router(provider_for(server))))
        seen: dict[str, int] = {}
        async for message, metadata in graph.astream({"messages": [HumanMessage("Moscow?")]}, stream_mode="messages"):
            if isinstance(message, AIMessageChunk) and (message.content or message.tool_call_chunks):
                kind = "call" if message.tool_call_chunks else "text"
                seen[kind] = seen.get(kind, 0) + 1
                assert metadata["langgraph_node"] == "ask"
        assert seen["text"] == 4
        assert seen["call"] > 4
