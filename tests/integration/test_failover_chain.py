"""Failover: which failures move to the next provider, which are raised, and which are retried."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import JSON, KINDS, TEXT, Clock, Quiz, dead, pair, provider_for, request_text, router

from learnflow.llm import RouterProvider, errors, events
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.adapter.routable import RoutableProvider
from learnflow.llm.base import Attempt, Call
from learnflow.llm.cli.explain import verdicts_of
from learnflow.llm.completion import Completion, TextDelta
from learnflow.llm.errors import FailedAttempt
from learnflow.llm.providers import OllamaProvider, OpenAIProvider, VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.stream import Emit, Work
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider

MOVES = {"failed": 500, "rate": 429, "quota": 429, "key": 401, "model": 404, "busy": 503}


async def test_schema_mismatch_falls_back_to_next_provider() -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        one.pieces, two.pieces = ["no JSON"], [JSON]
        done = await chain.complete("hi", response_format=Quiz)
        assert (done.provider, done.parsed) == ("llamacpp", Quiz(questions=["one", "two", "three and four"]))


@pytest.mark.parametrize("refusal", MOVES)
async def test_failover_is_immediate_and_next_request_skips_failed_provider(
    refusal: str, events_seen: list[Any]
) -> None:
    async with pair("openai", "vllm", Fault("refuse", refusal=refusal, headers={"retry-after": "30"})) as parts:
        one, two, chain = parts
        for how in ("generate", "stream", "complete"):
            assert await request_text(chain, how) == TEXT
        assert (len(one.seen), len(two.seen)) == (1, 3)
        moved = [event for event in events_seen if isinstance(event, events.Failover)]
        assert [(event.provider, event.to) for event in moved] == [("custom", "vllm")]
        loud = [event for event in events_seen if isinstance(event, events.AttemptFailed)]
        assert isinstance(loud[0].error, errors.ConfigError) is (
            refusal in ("key", "model")
        )  # only the operator can correct it
        state = chain.status()[0]
        assert (state["breaker"], state["failed"]) == ("open", 1)
        assert state["open_for_s"] > 0


async def test_refused_connection_is_tried_once_and_next_provider_answers() -> None:
    async with FaultServer("vllm", TEXT) as good:
        chain = router(dead(), provider_for(good))
        first, second = await chain.complete("hi"), await chain.complete("hi")
        assert (first.text, first.attempts) == (TEXT, 2)
        assert (second.text, second.attempts) == (TEXT, 1)  # the breaker is open


async def test_hanging_provider_costs_first_token_timeout_once(events_seen: list[Any]) -> None:
    async with pair("vllm", "llamacpp", Fault("hang")) as (one, _, chain):
        assert await request_text(chain, "stream") == TEXT
        assert await request_text(chain, "stream") == TEXT
        assert len(one.seen) == 1
        failed = [event for event in events_seen if isinstance(event, events.AttemptFailed)]
        assert [(event.provider, type(event.error)) for event in failed] == [("vllm", errors.FirstTokenTimeout)]


async def test_filtered_request_is_not_sent_to_next_provider() -> None:
    async with pair("openai", "vllm", Fault("refuse", refusal="filter")) as (_, two, chain):
        with pytest.raises(errors.RequestError):
            await request_text(chain, "generate")
        assert two.seen == []
        assert chain.status()[0]["breaker"] == "closed"


async def test_sole_provider_is_retried_after_pause() -> None:
    async with FaultServer("vllm", TEXT) as server:
        server.script = [Fault("refuse"), Fault("refuse", refusal="busy")]
        done = await router(provider_for(server)).complete("hi")
        assert (done.text, done.attempts, len(server.seen)) == (TEXT, 3, 3)
        server.script = [Fault("refuse")] * 9
        with pytest.raises(errors.ServerFailed) as caught:
            await router(provider_for(server), retries=1).generate("hi")
        assert len(server.seen) == 5
        assert [(attempt.provider, attempt.error, attempt.status) for attempt in caught.value.attempts] == [
            ("vllm", "ServerFailed", 500)
        ] * 2
        assert "Tried: vllm ServerFailed 500" in str(caught.value)


async def test_one_deadline_covers_chain_and_leaves_share_for_last_provider() -> None:
    async with FaultServer("vllm", fault=Fault("hang")) as one, FaultServer("llamacpp", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))  # its own limit is three minutes
        assert await chain.generate("hi", timeout=1.0) == TEXT  # in the share left by the first
        assert (len(one.seen), len(two.seen)) == (1, 1)
        two.fault = Fault("hang")
        with pytest.raises(errors.TimedOut):
            await router(provider_for(one), provider_for(two)).generate("hi", timeout=0.6)
        assert (len(one.seen), len(two.seen)) == (2, 2)


async def test_time_in_queue_does_not_count_against_first_token() -> None:
    async with FaultServer("llamacpp", fault=Fault("drip", after=0, seconds=0.05)) as server:
        provider = provider_for(server, max_concurrency=2, first_token_timeout=0.3)
        streams = [provider.stream("hi") for _ in range(3)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        done, left = await asyncio.wait(waiting, timeout=0.6)
        assert (len(done), len(left), len(server.seen)) == (2, 1, 2)
        for stream, task in zip(streams, waiting, strict=True):
            if task in done:
                await stream.aclose()
                break
        assert await next(iter(left))  # its turn
        with pytest.raises(errors.DeadlineExceeded, match="LLAMACPP_MAX_CONCURRENCY"):
            await provider.generate("hi", timeout=0.1)
        for stream in streams:
            await stream.aclose()


async def test_named_model_goes_to_provider_that_has_it() -> None:
    tags = {"/api/tags": {"models": [{"name": "llama3:latest"}]}}
    async with (
        FaultServer("openai", TEXT, fault=Fault("refuse")) as cloud,
        FaultServer("ollama", TEXT, responses=tags) as own,
    ):
        openai = OpenAIProvider(base_url=cloud.base_url, api_key="k", model="gpt-4o-mini")
        chain = router(openai, OllamaProvider(base_url=own.base_url))
        done = await chain.complete("hi", model="gpt-4o")
        assert (cloud.seen[0].body["model"], own.seen[0].body["model"]) == ("gpt-4o", "llama3:latest")
        assert done.model.requested == "llama3:latest"
        cloud.fault = None
        chain = router(openai, OllamaProvider(base_url=own.base_url))
        await chain.complete("hi", model="llama3")
        assert cloud.seen[-1].body["model"] == "gpt-4o-mini"


async def test_errors_and_status_contain_no_key_or_prompt() -> None:
    secret = "my very private notes"
    async with FaultServer("openai", fault=Fault("refuse", body=secret.encode(), status=500)) as server:
        chain = router(OpenAIProvider(base_url=server.base_url, api_key="sk-very-secret", model="m"), retries=0)
        with pytest.raises(errors.ServerFailed) as caught:
            await chain.generate(secret)
        shown = f"{caught.value} {caught.value!r} {chain!r} {chain.status()} {caught.value.attempts}"
        assert secret not in shown
        assert "sk-very" not in shown
        assert caught.value.__context__ is None


def test_local_providers_are_classes_with_their_spec() -> None:
    assert {kind.spec.name for kind in KINDS.values()} == {"custom", "lmstudio", "vllm", "llamacpp", "ollama"}
    assert issubclass(VLLMProvider, BaseProvider)


async def test_cancelled_request_does_not_affect_others() -> None:
    clock = Clock()
    async with FaultServer("llamacpp", TEXT) as server:
        chain = router(provider_for(server), breakers=BreakerRegistry(clock))
        server.script = [Fault("close")] * 2
        with pytest.raises(errors.ConnectionFailed):
            await router(provider_for(server), retries=0, breakers=chain._registry).generate("hi")
        requests = [asyncio.create_task(chain.generate("hi")) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        requests[0].cancel()
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [TEXT] * 4


@pytest.mark.parametrize("routing", ["order", "cost", "latency", "local-first"])
async def test_misconfigured_member_does_not_stop_router(routing: str) -> None:
    async with FaultServer("llamacpp", TEXT) as server:
        chain = RouterProvider("openai", [provider_for(server)], routing=routing, breakers=BreakerRegistry())  # type: ignore[arg-type]
        assert await chain.generate("hi") == TEXT
        assert await chain.health_check()
        assert await chain.list_models() == ["fault-model"]
        assert "openai" in repr(chain)


async def test_local_only_skips_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("llamacpp", TEXT) as server:
        chain = router(
            OpenAIProvider(base_url="https://api.example.org/v1", api_key="k", model="m"), provider_for(server)
        )
        assert (await chain.complete("hi")).attempts == 1
        assert "LLM_LOCAL_ONLY" in verdicts_of(chain, "hi")[0].reason


async def test_short_timeout_of_caller_opens_no_breaker() -> None:
    async with pair("vllm", "llamacpp", Fault("hang")) as (one, two, _):
        chain = router(provider_for(one), provider_for(two))
        assert await chain.generate("hi", timeout=0.4) == TEXT
        assert chain.status()[0]["breaker"] == "closed"


async def test_full_queue_spills_to_next_rank_only_with_llm_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("llamacpp", fault=Fault("stall", after=1)) as one, FaultServer("vllm", TEXT) as two:
        first = provider_for(one, max_concurrency=1)
        async with router(first).stream("hi") as busy:
            await anext(busy)
            with pytest.raises(errors.DeadlineExceeded, match="LLAMACPP_MAX_CONCURRENCY"):
                await router(first, provider_for(two)).complete("hi", timeout=0.3)
            assert not two.seen
            monkeypatch.setenv("LLM_SPILL", "local")
            assert (await router(first, provider_for(two)).complete("hi", timeout=1)).provider == "vllm"


async def test_unsupported_option_falls_back_to_next_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    async with FaultServer("vllm", TEXT, fault=Fault("cut", after=9)) as one, FaultServer("vllm", TEXT) as two:
        openai = OpenAIProvider(base_url=one.base_url, api_key="key-of-openai", model="m")  # it has no top_k
        assert await router(openai, provider_for(two)).generate("hi", top_k=5) == TEXT
        pieces = []
        with pytest.raises(errors.LLMError) as caught:
            async for piece in router(provider_for(one), openai, retries=0).stream("hi", top_k=5):
                pieces.append(piece)
        assert caught.value.partial == "".join(pieces) != ""


@pytest.mark.parametrize("limit", ["soon", [1], 0, -1, True, float("nan")])
async def test_invalid_timeout_is_refused_by_name(limit: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="timeout"):
        await router(dead(), dead()).generate("hi", timeout=limit)


async def test_hanging_server_costs_other_providers_one_probe() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with FaultServer("openai", TEXT) as one, silent:
        hangs = OllamaProvider(base_url=f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", model="m")
        await provider_for(one).generate("hi")
        for chain in (router(provider_for(one), hangs), router(router(provider_for(one)), hangs)):
            done = await chain.complete("hi")
            assert (done.text, done.provider, done.attempts) == (TEXT, "custom", 1)


class _OwnAttempt(RoutableProvider, ScriptedProvider):
    """An application's provider with its own ``attempt()``, which raises before or while it runs."""

    def __init__(self, when: str) -> None:
        super().__init__(name="own")
        self._when = when

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """Return work that emits a piece of the text and raises, or raise at once."""
        if self._when == "at once":
            raise KeyError(call.prompt)

        async def work(emit: Emit) -> Completion:
            emit(TextDelta(TEXT[:9]))
            raise KeyError(call.prompt)

        return work


@pytest.mark.parametrize("when", ["at once", "while it runs"])
async def test_raw_exception_of_overridden_attempt_becomes_server_failed(when: str) -> None:
    with pytest.raises(errors.ServerFailed, match="own: the provider raised KeyError") as caught:
        await router(_OwnAttempt(when), retries=0).generate("my notes")
    assert (caught.value.provider, caught.value.__context__) == ("own", None)
    assert "my notes" not in str(caught.value)
    async with FaultServer("vllm", TEXT) as server:
        done = await router(_OwnAttempt(when), provider_for(server)).complete("hi")
        assert (done.text, done.provider, done.attempts) == (TEXT, "vllm", 2)


async def test_error_of_unsupported_request_quotes_the_fault_of_a_provider_without_key() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]
    blind = {"/props": {"modalities": {"vision": False}}}
    async with FaultServer("llamacpp", TEXT, responses=blind) as one:
        chain = router(provider_for(one), "openai")  # type: ignore[arg-type]  # it has no key
        with pytest.raises(errors.Unsupported, match=r"llamacpp: no vision; openai: there is no key"):
            await chain.generate(picture)


def test_repeated_attempts_are_one_in_a_message() -> None:
    refused = FailedAttempt("llamacpp", "m", "ConnectionFailed", None, 0.5)
    error = errors.ConnectionFailed("connection refused", provider="llamacpp")
    error.attempts = (*[refused] * 14, FailedAttempt("openai", "m", "ServerFailed", 500, 1.0))
    tried = "Tried: llamacpp ConnectionFailed after 7.00 s (14 times); openai ServerFailed 500 after 1.00 s."
    assert str(error).endswith(tried)
