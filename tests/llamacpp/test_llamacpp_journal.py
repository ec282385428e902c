"""Answers are continued on a real llama.cpp: by hand with ``after=``, and after the process was killed."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypedDict

import pytest
from killed import FORKS, METHODS, environment_of, interrupt, resume, stalling, start, wait_for_texts, write_and_die
from llama import RSA, TEXTS, LlamaServer
from support import router

from learnflow.llm import LLMProvider, errors, sync

TEXT = TEXTS[RSA]
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 400}


@pytest.mark.parametrize("chain", [True, False])
async def test_after_continues_at_every_position(llama_server: LlamaServer, chain: bool) -> None:
    provider: LLMProvider = router(llama_server.provider()) if chain else llama_server.provider()
    for length in range(1, len(TEXT) + 1, 11):
        after = TEXT[:length]
        completion = await provider.complete(RSA, after=after, **SAMPLING)
        assert (completion.text, completion.resumed) == (TEXT, 1), length
        pieces = [piece async for piece in provider.stream(RSA, after=after, **SAMPLING)]
        assert "".join(pieces) == TEXT[length:], length
    assert await provider.generate(RSA, after="", **SAMPLING) == TEXT
    pieces = [piece async for piece in provider.stream(RSA, after=TEXT[:50], include_prior=True, **SAMPLING)]
    assert "".join(pieces) == TEXT


@pytest.mark.parametrize("chain", [True, False])
async def test_after_is_part_of_max_tokens(llama_server: LlamaServer, chain: bool) -> None:
    provider: LLMProvider = router(llama_server.provider()) if chain else llama_server.provider()
    short = await provider.complete(RSA, temperature=0, max_tokens=40)
    continued = await provider.complete(RSA, after=TEXT[:60], temperature=0, max_tokens=40)
    assert continued.finish == "length"
    assert len(TEXT[:60]) < len(continued.text) <= len(short.text) * 2
    assert TEXT.startswith(continued.text)


async def test_wrong_text_is_not_continued_silently(llama_server: LlamaServer) -> None:
    with pytest.raises(errors.LLMError) as caught:
        await llama_server.provider().generate(RSA, after="Qzxwv jkqx vvbn", **SAMPLING)
    assert caught.value.partial.startswith("Qzxwv")


def test_blocking_calls_continue_a_text(llama_server: LlamaServer) -> None:
    provider = sync.Provider(llama_server.provider())
    assert provider.generate(RSA, after=TEXT[:50], **SAMPLING) == TEXT
    assert "".join(provider.stream(RSA, after=TEXT[:50], **SAMPLING)) == TEXT[50:]


@pytest.mark.parametrize("how", METHODS)
def test_killed_process_is_continued_by_a_new_one(llama_server: LlamaServer, tmp_path: Path, how: str) -> None:
    at = random.Random(how).randrange(1, len(TEXT))  # noqa: S311
    (before,) = interrupt(llama_server, tmp_path / "journal", how, RSA, at)
    assert before == TEXT[: len(before)]
    assert len(before) >= at
    assert resume(llama_server, tmp_path / "journal", how, RSA) == [TEXT]
    assert list((tmp_path / "journal").iterdir()) == []


def test_other_server_continues_after_process_and_server_were_killed(
    start_llama: Callable[..., LlamaServer], tmp_path: Path
) -> None:
    first = start_llama()
    interrupt(first, tmp_path / "journal", "stream", RSA, 150)
    first.kill()
    assert resume(start_llama(), tmp_path / "journal", "generate", RSA) == [TEXT]


def test_twenty_processes_share_a_folder(start_llama: Callable[..., LlamaServer], tmp_path: Path) -> None:
    server, folder = start_llama(slots=20, context=512), tmp_path / "journal"
    assert [len(text) >= 100 for text in interrupt(server, folder, "stream", RSA, 100, processes=20)] == [True] * 20
    assert resume(server, folder, "stream", RSA, processes=20) == [TEXT] * 20
    assert list(folder.iterdir()) == []


def test_a_hundred_processes_have_a_file_each(tmp_path: Path) -> None:
    barrier = FORKS.Barrier(100)
    for begun in (0, 100):
        running = [start(write_and_die, tmp_path, number, barrier) for number in range(100)]
        before = sorted(str(results.recv()) for _, results in running)
        for process, _ in running:
            process.join()
        assert len(set(before)) == (begun or 1)
        assert len(list(tmp_path.iterdir())) == 100


class State(TypedDict, total=False):
    text: str


def run_graph(environment: dict[str, str], checkpoints: Path, results: Connection) -> None:
    """Run a graph with a checkpointer that writes to a file, or resume it."""
    from langchain_core.messages import HumanMessage  # noqa: PLC0415
    from langgraph.checkpoint.memory import InMemorySaver  # noqa: PLC0415
    from langgraph.graph import END, START, StateGraph  # noqa: PLC0415

    from learnflow.llm.integrations.langchain import ChatLearnFlow  # noqa: PLC0415

    os.environ.update(environment)

    class FileSaver(InMemorySaver):
        async def aput(self, *arguments: Any, **more: Any) -> Any:
            config = await super().aput(*arguments, **more)
            storage = {
                thread: {name: dict(rows) for name, rows in spaces.items()} for thread, spaces in self.storage.items()
            }
            checkpoints.write_bytes(pickle.dumps((storage, dict(self.blobs))))
            return config

    saver = FileSaver()
    if checkpoints.exists():
        storage, blobs = pickle.loads(checkpoints.read_bytes())  # noqa: S301
        for thread, spaces in storage.items():
            for name, rows in spaces.items():
                saver.storage[thread][name].update(rows)
        saver.blobs.update(blobs)
    chat = ChatLearnFlow(temperature=0, max_tokens=400)

    async def content(_: State) -> State:
        message = await chat.ainvoke([HumanMessage(RSA)])
        results.send(("resumed", message.response_metadata["resumed"]))
        return {"text": str(message.content)}

    plan = StateGraph(State)
    plan.add_node("content", content)
    plan.add_edge(START, "content")
    plan.add_edge("content", END)
    graph = plan.compile(checkpointer=saver)
    start_with = None if checkpoints.exists() else State(text="")
    state = asyncio.run(graph.ainvoke(start_with, {"configurable": {"thread_id": "1"}}))
    results.send(("text", state["text"]))


def test_graph_resumed_by_its_checkpointer_continues_the_text_of_its_node(
    llama_server: LlamaServer, tmp_path: Path
) -> None:
    folder, checkpoints = tmp_path / "journal", tmp_path / "checkpoints"
    with stalling(llama_server.url, 200) as (url, sent):
        process, _ = start(run_graph, environment_of(llama_server, folder, url), checkpoints)
        wait_for_texts(folder, sent)
        process.kill()
        process.join()
    process, results = start(run_graph, environment_of(llama_server, folder), checkpoints)
    received = dict([results.recv(), results.recv()])
    process.join()
    assert received == {"resumed": 1, "text": TEXT}
    with suppress(FileNotFoundError):
        assert list(folder.iterdir()) == []
