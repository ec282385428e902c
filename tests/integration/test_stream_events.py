"""``stream().events()``: the events of an answer as it arrives. None is ever withdrawn."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from support import DIALECTS, JSON, TEXT, TOOL, Own, Quiz, dead, pair, provider_for, router

import learnflow.llm.events as events_module
import learnflow.llm.stream as stream_module
from learnflow.llm import (
    Event,
    Failover,
    Finished,
    LLMProvider,
    ReasoningDelta,
    Resumed,
    RouterProvider,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Waiting,
    errors,
    sync,
)
from learnflow.llm.completion import Completion, ServedModel
from learnflow.llm.providers import CustomProvider, OllamaProvider
from learnflow.llm.stream import TextStream
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider

ARGUMENTS = '{"city": "Москва", "days": 3}'
CALLS = [
    ToolCallDelta(0, "a", "weather", ARGUMENTS[:9]),
    ToolCallDelta(0, "", "", ARGUMENTS[9:]),
    ToolCallDelta(1, "b", "weather", "{}"),
]
WHOLE_CALLS = [ToolCallDelta(0, "", "weather", ARGUMENTS)]  # as Ollama sends them


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_WAITING_INTERVAL_S", 0.02)


async def events_of(provider: LLMProvider, **more: Any) -> list[Event]:
    return [event async for event in provider.stream("hi", **more).events()]


def joined(events: list[Event]) -> tuple[str, str, list[ToolCall]]:
    """Return the content of the deltas, joined like a reader would."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            calls.setdefault(event.index, []).append(event)
    for pieces in calls.values():
        assert len({(piece.id, piece.name) for piece in pieces}) == 1
    return (
        "".join(event.text for event in events if isinstance(event, TextDelta)),
        "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        [
            ToolCall(pieces[0].id, pieces[0].name, json.loads("".join(piece.arguments for piece in pieces)))
            for pieces in calls.values()
        ],
    )


def finished(events: list[Event]) -> Completion:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Finished) for event in events) == 1
    return events[-1].completion


def kinds(events: list[Event]) -> list[str]:
    """Return the names of the events without repetitions in a row."""
    names = [type(event).__name__ for event in events]
    return [name for at, name in enumerate(names) if not at or names[at - 1] != name]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_joined_deltas_equal_completion(dialect: str) -> None:
    calls = WHOLE_CALLS if dialect == "ollama" else CALLS
    async with FaultServer(dialect, TEXT, thinking="Let me see.", calls=calls) as server:  # type: ignore[arg-type]
        for provider in (provider_for(server), router(provider_for(server), dead())):
            events = await events_of(provider, tools=[TOOL])
            done = finished(events)
            text, thinking, tools = joined(events)
            assert (text, thinking, tuple(tools)) == (TEXT, "Let me see.", done.tool_calls)
            assert (done.text, done.reasoning, done.finish) == (TEXT, "Let me see.", "tool_calls")
            assert kinds(events) == ["ReasoningDelta", "TextDelta", "ToolCallDelta", "Finished"]


async def test_thinking_in_tags_is_reasoning_delta() -> None:
    async with FaultServer("openai", ["<thi", "nk>a bit", " more</think>", "\n\nYes", "."]) as server:
        events = await events_of(provider_for(server))
    assert joined(events) == ("Yes.", "a bit more", [])
    assert finished(events).reasoning == "a bit more"


async def test_stream_yields_only_text_even_with_tools() -> None:
    async with FaultServer("openai", TEXT, thinking="Hm.", calls=CALLS) as server:
        async with provider_for(server).stream("hi", tools=[TOOL]) as stream:
            assert "".join([piece async for piece in stream]) == TEXT
        assert [call.arguments for call in stream.completion.tool_calls] == [json.loads(ARGUMENTS), {}]


async def test_repr_contains_no_answer() -> None:
    async with FaultServer("openai", "Secret.", thinking="Secret.", calls=CALLS) as server:
        shown = repr(await events_of(provider_for(server), tools=[TOOL]))
    assert "Secret" not in shown
    assert "Москва" not in shown


async def test_repr_of_deltas_and_streams_says_their_length_and_state() -> None:
    assert repr([TextDelta("Secret."), ReasoningDelta("Hm")]) == (
        "[<TextDelta 7 characters>, <ReasoningDelta 2 characters>]"
    )
    async with FaultServer("vllm", "Secret.") as server:
        provider = provider_for(server)
        stream, unread, left = provider.stream("private"), provider.stream("private"), provider.stream("private")
        shown = [repr(stream)]
        async for _ in stream:
            pass
        shown.append(repr(stream))
        await unread.aclose()
        events = left.events()
        await anext(events)
        shown += [repr(unread), repr(events)]
        await left.aclose()
        server.fault = Fault("refuse", status=500)
        with suppress(errors.ServerFailed):
            await (failed := provider.stream("private")).final_completion()
        shown.append(repr(failed))
        shown.append(repr(sync.Provider(provider).stream("private")))
    assert [re.sub(r" in [0-9.]+ s", "", one) for one in shown] == [
        "<TextStream not started>",
        "<TextStream complete: <Completion vllm 'fault-model' finish=stop 7 characters>>",
        "<TextStream closed>",
        "<events of <TextStream open>>",
        "<TextStream failed: ServerFailed>",
        "<TextStream not started>",
    ]


async def test_failover_and_continuation_emit_events() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, _, chain):
        events = await events_of(chain)
    assert kinds(events) == ["TextDelta", "Failover", "Resumed", "TextDelta", "Finished"]
    (failover,) = (event for event in events if isinstance(event, Failover))
    assert (failover.provider, failover.to, type(failover.error)) == ("vllm", "llamacpp", errors.AnswerCut)
    resumed = next(event for event in events if isinstance(event, Resumed))
    begun = "".join(event.text for event in events[: events.index(resumed)] if isinstance(event, TextDelta))
    assert (resumed.provider, resumed.characters) == ("llamacpp", len(begun))
    assert joined(events)[0] == finished(events).text == TEXT


async def test_nested_router_emits_same_events() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, _, chain):
        events = await events_of(router(chain, dead()))
    assert kinds(events) == ["TextDelta", "Failover", "Resumed", "TextDelta", "Finished"]


async def test_shown_thinking_stays_after_failover() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=0)) as (one, two, chain):
        one.thinking, two.thinking = "First thoughts. ", "Second thoughts."
        events = await events_of(chain)
    assert kinds(events) == ["ReasoningDelta", "Failover", "ReasoningDelta", "TextDelta", "Finished"]
    assert joined(events)[:2] == (TEXT, "First thoughts. Second thoughts.")
    assert finished(events).reasoning == "First thoughts. Second thoughts."


@pytest.mark.parametrize("after", [1, 2])
async def test_shown_tool_call_is_not_requested_again(after: int) -> None:
    async with FaultServer("vllm", [], calls=CALLS) as one, FaultServer("vllm", [], calls=CALLS) as two:
        one.fault = Fault("cut", after=after)
        seen = list[Event]()
        with pytest.raises(errors.AnswerCut) as caught:
            async for event in router(provider_for(one), provider_for(two)).stream("hi", tools=[TOOL]).events():
                seen.append(event)
    assert two.seen == []
    assert kinds(seen) == ["ToolCallDelta"]
    assert caught.value.partial_calls == (
        {"id": "a", "name": "weather", "arguments": "".join(piece.arguments for piece in CALLS[:after])},
    )
    assert "Моск" not in repr(caught.value)


async def test_stream_is_continued_before_tool_call() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        two.calls = CALLS
        events = await events_of(chain, tools=[TOOL])
    assert kinds(events) == ["TextDelta", "Failover", "Resumed", "TextDelta", "ToolCallDelta", "Finished"]
    done = finished(events)
    assert joined(events)[0] == done.text == TEXT
    assert joined(events)[2] == list(done.tool_calls)
    assert len(done.tool_calls) == 2


async def test_tool_call_that_was_not_shown_is_requested_again() -> None:
    async with FaultServer("vllm", [], calls=CALLS) as one, FaultServer("vllm", [], calls=CALLS) as two:
        one.fault = Fault("cut", after=2)
        chain = router(provider_for(one), provider_for(two))
        async with chain.stream("hi", tools=[TOOL]) as stream:
            assert [piece async for piece in stream] == []
    assert len(stream.completion.tool_calls) == 2


async def test_shown_schema_is_not_restarted() -> None:
    async with FaultServer("vllm", JSON) as one, FaultServer("vllm", JSON) as two:
        one.fault = Fault("cut", after=2)
        with pytest.raises(errors.AnswerCut):
            await events_of(router(provider_for(one), provider_for(two)), response_format=Quiz)
    assert two.seen == []


async def test_wait_for_slot_emits_waiting() -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("stall", after=1)) as server:
        for provider in (provider_for(server, max_concurrency=1), _equals(server)):
            first = provider.stream("hi").events()
            assert isinstance(await anext(first), TextDelta)
            second = provider.stream("hi").events()
            waits = await anext(second)
            assert isinstance(waits, Waiting)
            assert waits.reason == "queue"
            assert "vllm" in waits.provider
            assert await anext(second) == waits  # as long as it lasts
            await second.aclose()
            await first.aclose()
            await asyncio.wait_for(server.seen[-1].gone.wait(), 30)


def _equals(server: FaultServer) -> RouterProvider:
    one, other = (provider_for(server, max_concurrency=1) for _ in range(2))
    return RouterProvider([one, other])


async def test_wait_for_load_emits_waiting() -> None:
    async with FaultServer("ollama", TEXT, fault=Fault("hang")) as server:
        server.responses["/api/ps"] = {"models": []}
        events = provider_for(server).stream("hi").events()
        assert await anext(events) == Waiting("load", "ollama", "fault-model")
        async with asyncio.timeout(30):
            while not server.seen:
                await asyncio.sleep(0.01)
        await events.aclose()
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


async def test_pause_before_retry_emits_waiting() -> None:
    async with FaultServer("vllm", TEXT) as server:
        server.script = [Fault("refuse", refusal="busy", status=503)]
        events = await events_of(router(provider_for(server), retries=1))
    assert kinds(events) == ["Waiting", "TextDelta", "Finished"]
    assert events[0] == Waiting("retry", "vllm")


async def test_failure_during_wait_raises() -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("refuse", refusal="key")) as server:
        with pytest.raises(errors.AuthenticationFailed) as caught:
            await events_of(provider_for(server))
    assert caught.value.__context__ is None


async def _left(events: AsyncIterator[Event], server: FaultServer) -> None:
    async for _ in events:
        if server.seen:
            break


@pytest.mark.parametrize("fault", [Fault("stall", after=2), Fault("hang")])
async def test_break_out_of_events_closes_connection(fault: Fault) -> None:
    async with FaultServer("ollama", TEXT, fault=fault) as server:
        server.responses["/api/ps"] = {"models": []}  # so that an event is emitted before any token
        provider = provider_for(server)
        await _left(provider.stream("hi").events(), server)
        gc.collect()
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


async def test_cancelled_reader_of_events_closes_connection() -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("hang")) as server:
        task = asyncio.ensure_future(events_of(provider_for(server)))
        while not server.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


async def test_closed_stream_ends_its_events() -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("hang")) as server:
        stream = provider_for(server).stream("hi")
        task = asyncio.ensure_future(_all(stream.events()))
        while not server.seen:
            await asyncio.sleep(0.01)
        await stream.aclose()
        assert await task == []
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


async def _all(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def test_own_provider_emits_events() -> None:
    own = Own([TEXT])
    events = await events_of(router(own, dead()))
    assert joined(events)[0] == finished(events).text == TEXT


async def test_scripted_provider_emits_tool_calls_and_thinking() -> None:
    call = ToolCall("a", "weather", {"city": "Москва"})
    completion = Completion(
        text="So.",
        reasoning="Hm.",
        tool_calls=(call,),
        finish="tool_calls",
        provider="scripted",
        model=ServedModel("scripted"),
    )
    events = await events_of(ScriptedProvider([completion]), tools=[TOOL])
    assert joined(events) == ("So.", "Hm.", [call])
    assert finished(events) is completion


SOME: ContextVar[str] = ContextVar("some")


async def test_own_generator_runs_in_task_of_reader() -> None:
    class Context(ScriptedProvider):
        def stream(self, prompt: Any, *given: Any, **more: Any) -> Any:
            inner = super().stream(prompt, *given, **more)

            async def work(emit: Any) -> Any:
                async with asyncio.timeout(60):
                    async with asyncio.TaskGroup():
                        token = SOME.set("mine")
                        async for piece in inner:
                            emit(TextDelta(piece))
                        SOME.reset(token)
                return inner.completion

            return TextStream(work)

    for provider in (Context([TEXT]), router(Context([TEXT]), dead())):
        events = await events_of(provider)
        assert joined(events)[0] == finished(events).text == TEXT


async def test_continuation_may_be_tool_call_only() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        two.pieces, two.calls = [], CALLS
        two.derailed = []
        events = await events_of(chain, tools=[TOOL])
    done = finished(events)
    assert kinds(events) == ["TextDelta", "Failover", "Resumed", "ToolCallDelta", "Finished"]
    assert joined(events)[0] == done.text == "RSA is a public-key cryptosystem. "
    assert joined(events)[2] == list(done.tool_calls)


async def test_tool_call_after_wrong_continuation_is_not_shown() -> None:
    async with pair("vllm", "openai", Fault("cut", after=5)) as (_, two, chain):
        two.derailed, two.pieces, two.calls = ["Else"], ["Something else."], CALLS
        seen = list[Event]()
        with suppress(errors.LLMError):  # or the first one is retried and continues
            async for event in chain.stream("hi", tools=[TOOL]).events():
                seen.append(event)
        assert two.seen
    assert "ToolCallDelta" not in kinds(seen)
    assert TEXT.startswith(joined(seen)[0])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("fault", [Fault("stall", after=2), Fault("cut", after=2)])
async def test_error_of_router_has_shown_part_of_tool_call(fault: Fault, nested: bool) -> None:
    async with FaultServer("vllm", [], thinking="Hm.", calls=CALLS, fault=fault) as server:
        chain = router(provider_for(server, gap_timeout=0.3))
        with pytest.raises(errors.LLMError) as caught:
            await events_of(router(chain, dead()) if nested else chain, tools=[TOOL], timeout=2)
    assert caught.value.partial_calls == ({"id": "a", "name": "weather", "arguments": ARGUMENTS},)
    assert caught.value.thinking == "Hm."


async def test_waiting_is_emitted_after_shown_text() -> None:
    async with FaultServer("vllm", TEXT) as server:
        server.thinking = "Hm."
        server.script = [Fault("cut", after=0), Fault("refuse", refusal="busy", status=503)]
        events = await events_of(router(provider_for(server), retries=3))
    assert kinds(events)[:2] == ["ReasoningDelta", "Waiting"]
    assert joined(events)[0] == TEXT


async def test_many_short_waits_emit_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_WAITING_INTERVAL_S", 0.7)  # longer than a pause, which is half a second
    async with FaultServer("openai", TEXT) as server:
        server.script = [Fault("refuse", status=503, body=b'{"error":{"message":"Loading model"}}')] * 3
        events = await events_of(router(provider_for(server), retries=9))
    assert kinds(events) == ["Waiting", "TextDelta", "Finished"]


async def test_no_waiting_while_tokens_arrive() -> None:
    async with FaultServer("ollama", "word " * 20, fault=Fault("slow", seconds=0.05)) as server:
        server.responses["/api/ps"] = {"models": []}
        events = await events_of(OllamaProvider(base_url=server.base_url, model="deepseek-r1"), reasoning=True)
    assert "Waiting" not in kinds(events)[1:]


async def test_stream_has_one_reader() -> None:
    async with FaultServer("vllm", TEXT) as server:
        stream = provider_for(server).stream("hi")
        events = stream.events()
        await anext(events)
        with pytest.raises(errors.InvalidRequest, match="events"):
            await anext(stream)
        with pytest.raises(errors.InvalidRequest, match="has started before"):
            await anext(stream.events())
        assert "".join([event.text async for event in events if isinstance(event, TextDelta)])
        text = provider_for(server).stream("hi")
        await anext(text)
        with pytest.raises(errors.InvalidRequest, match="has started before"):
            await anext(text.events())
        assert (await text.final_completion()).text == TEXT


async def test_slow_reader_slows_server_and_loses_nothing() -> None:
    stalled, count = asyncio.Event(), 20_000  # more bytes than the buffers of both sockets have
    line = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 300)
    end = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for _ in range(count // 100):
                writer.write(line * 100)
                sent = asyncio.ensure_future(writer.drain())
                if not (await asyncio.wait([sent], timeout=0.5))[0]:
                    stalled.set()
                    await sent
            writer.write(end)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        stream = CustomProvider(base_url=f"http://127.0.0.1:{port}", model="m").stream("hi", max_tokens=10**6)
        first = await anext(stream)
        await asyncio.wait_for(stalled.wait(), 30)
        assert first + "".join([piece async for piece in stream]) == "x" * 300 * count


async def test_stream_has_context_variables_of_first_piece() -> None:
    variable, seen = ContextVar("variable", default="before"), set[str]()
    remove = events_module.add_sink(lambda _: seen.add(variable.get()))
    async with FaultServer("openai") as server:
        stream = provider_for(server).stream("hi")
        variable.set("at the first piece")
        async for _ in stream:
            variable.set("later")
    remove()
    assert seen == {"at the first piece"}
