"""Conversations as LearnFlow has them: a last assistant message, a full window, a cut schema, a restarting server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import pytest
from llama import RSA, TEXTS, LlamaServer
from support import Quiz, router

from learnflow.llm import AtMost, events
from learnflow.llm.completion import Waiting
from learnflow.llm.errors import AnswerTruncated, ConnectionFailed, ContextOverflow
from learnflow.llm.providers import LlamaCppProvider
from learnflow.llm.testing.fault_server import closed_port

QUESTIONS = "Write three control questions about RSA as JSON"
DECIDED: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTIONS},
    {"role": "assistant", "content": "I decided to edit the text."},
]


class Port:
    """A relay at a fixed address to a server that restarts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.characters = 0

    async def open(self, to: LlamaServer) -> None:
        """Listen, and relay to this server."""
        host, _, port = to.url.removeprefix("http://").partition(":")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream_reader, upstream = await asyncio.open_connection(host, int(port))
            both = [asyncio.create_task(_pump(reader, upstream)), asyncio.create_task(_pump(upstream_reader, writer))]
            self._tasks |= set(both)
            await asyncio.wait(both)

        self._server = await asyncio.start_server(relay, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse new connections, and break open ones."""
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def test_schema_behind_assistant_message_is_answered(llama_server: LlamaServer) -> None:
    done = await llama_server.provider().complete(DECIDED, temperature=0, max_tokens=400, response_format=Quiz)
    assert isinstance(done.parsed, Quiz)


async def test_assistant_message_is_finished_turn_and_not_beginning_of_answer(
    llama_server: LlamaServer, events_seen: list[object]
) -> None:
    provider = llama_server.provider()
    text = await provider.generate(DECIDED, temperature=0, max_tokens=60)
    (adjusted,) = [event for event in events_seen if isinstance(event, events.RequestAdjusted)]
    assert "assistant message" in adjusted.change
    turn = {"role": "user", "content": "Please give your next message."}
    assert text == await provider.generate([*DECIDED, turn], temperature=0, max_tokens=60)


async def test_extra_body_with_the_servers_own_field_continues_the_message(llama_server: LlamaServer) -> None:
    begun = "RSA is a public-key cryptosystem. A key pair is"
    conversation = [{"role": "user", "content": RSA}, {"role": "assistant", "content": begun}]
    own = {"continue_final_message": True, "add_generation_prompt": False}
    text = await llama_server.provider().generate(conversation, temperature=0, max_tokens=400, extra_body=own)
    assert begun + text == TEXTS[RSA]


async def test_answer_to_finished_turn_is_continued_after_break(llama_server: LlamaServer, bindable_port: int) -> None:
    expected = await llama_server.provider().generate(DECIDED, temperature=0, max_tokens=60)
    async with Port(bindable_port) as port:
        await port.open(llama_server)
        first, second = llama_server.provider(port.url), llama_server.provider()
        stream = router(first, second).stream(DECIDED, temperature=0, max_tokens=60)
        text = await anext(stream)
        await port.close()
        text += "".join([piece async for piece in stream])
    assert text.startswith(expected)  # maybe longer: max_tokens of the continuation is estimated from characters
    assert stream.completion.text == text


@pytest.mark.parametrize(
    "wanted", [Quiz, {"type": "json_schema", "json_schema": {"name": "Quiz", "schema": Quiz.model_json_schema()}}]
)
async def test_schema_cut_at_max_tokens_is_sent_once_and_error_names_limit(
    llama_server: LlamaServer, wanted: Any, events_seen: list[object]
) -> None:
    with pytest.raises(AnswerTruncated, match=r"ended at max_tokens=12.*Raise max_tokens") as caught:
        await router(llama_server.provider()).complete(QUESTIONS, temperature=0, max_tokens=12, response_format=wanted)
    assert caught.value.partial.startswith('{"questions"')
    assert sum(isinstance(event, events.AttemptStarted) for event in events_seen) == 1
    assert not any(isinstance(event, events.BreakerOpened) for event in events_seen)


async def test_request_waits_for_only_server_to_restart_and_continues_its_text(
    start_llama: Callable[..., LlamaServer], monkeypatch: pytest.MonkeyPatch, bindable_port: int
) -> None:
    monkeypatch.setenv("LLM_PATIENCE", "60")
    async with Port(bindable_port) as port:
        first = start_llama()
        await port.open(first)
        provider = LlamaCppProvider(base_url=port.url, api_key=first.key, model="tiny")
        texts, waits = [], 0
        second: LlamaServer | None = None
        async for event in router(provider).stream(RSA, temperature=0, max_tokens=400).events():
            if hasattr(event, "text"):
                texts.append(event.text)
            if len("".join(texts)) > 100 and first.process.poll() is None:
                first.kill()
                await port.close()
            if isinstance(event, Waiting) and event.reason == "retry":
                waits += 1
                if waits == 3 and second is None:  # it restarts
                    second = start_llama(key=first.key)
                    await port.open(second)
        assert "".join(texts) == TEXTS[RSA]
        assert waits >= 3


async def test_server_that_does_not_restart_raises_after_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PATIENCE", "0.1")
    provider = LlamaCppProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="tiny")
    with pytest.raises(ConnectionFailed, match="refused"):
        await router(provider, retries=0).generate("hi")


async def test_server_that_answers_with_error_is_not_waited_for(
    llama_server: LlamaServer, monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    monkeypatch.setenv("LLM_PATIENCE", "60")
    with pytest.raises(Exception, match="key"):
        await router(llama_server.provider(api_key="wrong"), retries=0).generate("hi")
    assert sum(isinstance(event, events.AttemptStarted) for event in events_seen) == 1


async def test_chain_fails_over_at_once_from_server_that_refuses(
    llama_server: LlamaServer, monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    monkeypatch.setenv("LLM_PATIENCE", "60")
    dead = LlamaCppProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="tiny")
    assert await router(dead, llama_server.provider()).generate("Say pong", temperature=0) == "pong"
    assert sum(isinstance(event, events.AttemptStarted) for event in events_seen) == 2


async def test_ceiling_is_lowered_to_what_the_server_counted(
    llama_server: LlamaServer, events_seen: list[object]
) -> None:
    """The words have many tokens, so that an estimate by words is far too low."""
    prompt = "антидизестаблишментарианизм " * 92  # about 1,750 tokens of 2,048
    provider = llama_server.provider()
    done = await provider.complete(prompt, temperature=0, max_tokens=AtMost(1500))
    assert done.usage.prompt_tokens
    assert done.usage.prompt_tokens + (done.usage.completion_tokens or 0) <= 2048
    (adjusted,) = [event for event in events_seen if isinstance(event, events.RequestAdjusted)]
    assert adjusted.is_limit_low
    lowered = int(adjusted.change.partition("max_tokens=")[2].partition(" ")[0])
    assert 2048 - done.usage.prompt_tokens - 32 < lowered <= 2048 - done.usage.prompt_tokens


async def test_prompt_that_does_not_fit_is_named_before_it_is_sent(
    llama_server: LlamaServer, events_seen: list[object]
) -> None:
    prompt = "антидизестаблишментарианизм " * 200
    provider = llama_server.provider()
    await provider.refresh()
    with pytest.raises(ContextOverflow) as caught:
        await provider.complete(prompt, temperature=0, max_tokens=AtMost(1500))
    assert caught.value.context_length == 2048
    assert (caught.value.prompt_tokens or 0) > 2048
