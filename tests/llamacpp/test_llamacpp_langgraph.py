"""``ChatLearnFlow`` and a small LangGraph on a real llama.cpp."""

from __future__ import annotations

from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from llama import RSA, TEXTS, LlamaServer
from pydantic import BaseModel
from support import relay, router

from learnflow.llm.integrations.langchain import ChatLearnFlow

QUESTIONS = "Write three control questions about RSA as JSON"


class Quiz(BaseModel):
    questions: list[str]


class State(TypedDict, total=False):
    text: str
    questions: list[str]


def graph(chat: ChatLearnFlow) -> Any:
    async def content(_: State) -> State:
        return {"text": str((await chat.ainvoke([HumanMessage(RSA)])).content)}

    async def questions(_: State) -> State:
        quiz = await chat.with_structured_output(Quiz).ainvoke([HumanMessage(QUESTIONS)])
        return {"questions": quiz.questions}

    plan = StateGraph(State)
    plan.add_node("content", content)
    plan.add_node("questions", questions)
    plan.add_edge(START, "content")
    plan.add_edge("content", "questions")
    plan.add_edge("questions", END)
    return plan.compile()


async def test_chat_returns_and_streams_the_known_answer(llama_server: LlamaServer) -> None:
    chat = ChatLearnFlow(provider=llama_server.provider(), temperature=0, max_tokens=400)
    message = await chat.ainvoke([HumanMessage(RSA)])
    assert (message.content, message.response_metadata["finish_reason"]) == (TEXTS[RSA], "stop")
    assert "".join([str(piece.content) async for piece in chat.astream([HumanMessage(RSA)])]) == TEXTS[RSA]


async def test_graph_has_its_text_and_questions_after_a_server_breaks(llama_server: LlamaServer) -> None:
    async with relay(llama_server.url, 100) as url:
        chain = router(llama_server.provider(url), llama_server.provider())
        chat = ChatLearnFlow(provider=chain, temperature=0, max_tokens=400)
        pieces, state = "", {}
        async for event in graph(chat).astream_events({}, version="v2"):
            if event["event"] == "on_chat_model_stream" and event["metadata"]["langgraph_node"] == "content":
                pieces += event["data"]["chunk"].content
            if event["event"] == "on_chain_end" and not event["parent_ids"]:
                state = event["data"]["output"]
    assert state["text"] == pieces == TEXTS[RSA]
    assert Quiz(questions=state["questions"]) == Quiz.model_validate_json(TEXTS[QUESTIONS])
