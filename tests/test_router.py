"""The chain: no answer is lost that one of its providers could have given, and nothing is waited for in vain."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import pytest
from conftest import DIALECTS, KINDS, provider_for
from pydantic import BaseModel

from learnflow.llm import Capabilities, LLMProvider, RouterProvider, errors, events
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.adapter.routable import RoutableProvider
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, OllamaProvider, OpenAIProvider, VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry, Target
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider, no_waiting
from learnflow.llm.testing.fault_server import FaultName, closed_port

TEXT = "RSA is a public-key cryptosystem. Привет, мир! 🦊 A key pair is built from two large prime numbers, and so on."
FAULTS = [name for name in get_args(FaultName) if name not in ("drip", "lingers", "whole", "filtered")]


def dead() -> LlamaCppProvider:
    return LlamaCppProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="fault-model")


def router(*providers: LLMProvider, **more: Any) -> RouterProvider:
    """A chain with a board of its own."""
    return RouterProvider(providers[0], list(providers[1:]), breakers=more.pop("breakers", BreakerRegistry()), **more)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pair(first: str, second: str, fault: Fault | None = None, **more: Any) -> AsyncIterator[tuple[Any, ...]]:
    """A faulty server, a good one, and the chain over both."""
    async with FaultServer(first, TEXT, fault=fault) as one, FaultServer(second, TEXT) as two:  # type: ignore[arg-type]
        providers = [provider_for(one, first_token_timeout=0.5, gap_timeout=0.5), provider_for(two)]
        yield one, two, router(*providers, **more)


async def heard(chain: LLMProvider, how: str, **more: Any) -> str:
    if how == "generate":
        return await chain.generate("hi", **more)
    if how == "complete":
        return (await chain.complete("hi", **more)).text
    return "".join([piece async for piece in chain.stream("hi", **more)])


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_fault_at_every_place_loses_nothing(dialect: str, name: str) -> None:
    refusals = {"refusal": "failed"} if name == "refuse" else {}
    places = (
        (1, 2, 9, 18) if name in ("cut", "half_line", "drop", "reset", "error_frame", "malformed", "stall") else (2,)
    )
    others = {"ollama": "llamacpp", "llamacpp": "ollama"}
    for after, how in itertools.product(places, ("stream", "generate")):
        fault = Fault(name, after=after, **refusals)
        async with pair(dialect, others.get(dialect, "vllm"), fault) as (_, two, chain):
            if name == "error_after_finish" and how == "stream":  # shown, and its finish stood: nobody continues it
                with pytest.raises(errors.ErrorInAnswer) as caught:
                    await heard(chain, how)
                assert (caught.value.partial, two.seen) == (TEXT, [])
                continue
            assert await heard(chain, how) == TEXT, (after, how)


@pytest.mark.parametrize("second", DIALECTS)
async def test_every_dialect_goes_on(second: str) -> None:
    for after in range(len(TEXT.split(" "))):
        async with pair("openai", second, Fault("cut", after=after)) as (_, two, chain):
            async with chain.stream("hi") as answer:
                assert "".join([piece async for piece in answer]) == TEXT
            done = answer.completion
            assert (done.text, done.provider, done.attempts, done.resumed > 0) == (
                TEXT,
                two.dialect.name.replace("openai", "custom"),
                2,
                after > 0,
            )
            assert two.seen


async def test_a_single_provider_is_continued_too() -> None:
    for dialect in DIALECTS:
        async with FaultServer(dialect, TEXT) as server:  # type: ignore[arg-type]
            server.script = [Fault("reset", after=5)]
            async with router(provider_for(server)).stream("hi", max_tokens=100) as answer:
                assert "".join([piece async for piece in answer]) == TEXT
            assert answer.completion.resumed == 1
            assert answer.completion.usage.total_tokens is None  # the first part was not counted: unknown stays unknown


async def test_a_prefix_that_the_next_one_does_not_recognise() -> None:
    """What comes is not what was delivered: it is closed, and asked again from where it broke."""
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (_, two, chain):
        two.pieces = ["Something ", "else."]
        two.derailed = ["wholly ", "different."]
        text = await heard(chain, "stream")
        assert text == "RSA is a " + "wholly different."
        prefixes = [seen.body["messages"][-1]["content"] for seen in two.seen]
        assert prefixes == ["RSA is a", "RSA is a "]


async def test_thinking_is_part_of_the_prefix() -> None:
    thinks = FaultServer("vllm", TEXT, thinking="Let me think.", fault=Fault("cut", after=6))
    async with thinks as one, FaultServer("llamacpp", TEXT) as two, FaultServer("ollama", TEXT) as three:
        for second in (two, three):
            done = await router(provider_for(one), provider_for(second)).complete("hi")
            assert (done.text, done.reasoning) == (TEXT, "Let me think.")
        assert two.seen[0].body["messages"][-1]["content"].startswith("<think>Let me think.</think>RSA is")
        assert "<think>Let me think.</think>RSA is" in three.seen[0].body["prompt"]


async def test_a_break_while_thinking_begins_again() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=0)) as (one, two, chain):
        one.thinking = "Let me"
        assert await heard(chain, "stream") == TEXT
        assert two.seen[0].body["messages"] == [{"role": "user", "content": "hi"}]


async def test_the_caller_chooses_what_a_break_means() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        got: list[str] = []
        with pytest.raises(errors.AnswerCut) as caught:
            async for piece in chain.stream("hi", resume="raise"):
                got.append(piece)
        assert caught.value.partial == "".join(got) == "RSA is a public-key cryptosystem. "
        assert two.seen == []
        assert await heard(chain, "generate", resume="raise") == TEXT  # nothing was shown: nothing is lost
    with pytest.raises(errors.InvalidRequest, match="resume"):
        chain.stream("hi", resume="sometimes")
    with pytest.raises(errors.NotConfigured, match="resume"):
        RouterProvider(dead(), resume="sometimes")  # type: ignore[arg-type]


class Quiz(BaseModel):
    questions: list[str]


JSON = '{"questions": ["one", "two", "three and four"]}'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


async def test_json_is_begun_again_where_nothing_was_shown_and_raised_where_it_was() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (one, two, chain):
        one.pieces, two.pieces = JSON.split(" "), JSON.split(" ")
        done = await chain.complete("hi", response_format=Quiz)
        assert done.parsed == Quiz(questions=["one", "two", "three and four"]) or done.parsed
        assert (done.attempts, done.resumed) == (2, 0)
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (one, two, chain):
        with pytest.raises(errors.AnswerCut) as caught:
            await heard(chain, "stream", response_format={"type": "json_object"})
        assert caught.value.partial
        assert two.seen == []


async def test_an_answer_that_fails_its_schema_is_asked_of_the_next() -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        one.pieces, two.pieces = ["no JSON"], [JSON]
        done = await chain.complete("hi", response_format=Quiz)
        assert (done.provider, done.parsed) == ("llamacpp", Quiz(questions=["one", "two", "three and four"]))


MOVES = {"failed": 500, "rate": 429, "quota": 429, "key": 401, "model": 404, "busy": 503}


@pytest.mark.parametrize("refusal", MOVES)
async def test_what_moves_on_costs_nothing_and_the_next_request_does_not_knock(
    refusal: str, events_seen: list[Any]
) -> None:
    async with pair("openai", "vllm", Fault("refuse", refusal=refusal, headers={"retry-after": "30"})) as parts:
        one, two, chain = parts
        started = time.perf_counter()
        assert await heard(chain, "generate") == TEXT
        assert time.perf_counter() - started < 0.5
        for how in ("stream", "complete"):
            assert await heard(chain, how) == TEXT
        assert (len(one.seen), len(two.seen)) == (1, 3)
        moved = [event for event in events_seen if isinstance(event, events.Moved)]
        assert [(event.provider, event.to) for event in moved] == [("custom", "vllm")]
        loud = [event for event in events_seen if isinstance(event, events.Failed)]
        assert loud[0].loud is (refusal in ("key", "model"))  # which will not mend itself
        state = chain.status()[0]
        assert (state["breaker"], state["failed"]) == ("open", 1)
        assert state["opens_in_s"] > 0


async def test_a_refused_connection_costs_nothing() -> None:
    async with FaultServer("vllm", TEXT) as good:
        chain = router(dead(), provider_for(good))
        started = time.perf_counter()
        assert await heard(chain, "generate") == TEXT
        assert await heard(chain, "stream") == TEXT
        assert time.perf_counter() - started < 0.5


async def test_a_hang_costs_the_first_token_budget_and_no_more() -> None:
    async with pair("vllm", "llamacpp", Fault("hang")) as (one, _, chain):
        started = time.perf_counter()
        assert await heard(chain, "stream") == TEXT
        assert 0.5 <= time.perf_counter() - started < 1.0
        started = time.perf_counter()
        assert await heard(chain, "stream") == TEXT
        assert time.perf_counter() - started < 0.3
        assert len(one.seen) == 1


@pytest.mark.parametrize("refusal", ["request", "filter"])
async def test_what_is_wrong_in_itself_is_asked_of_nobody_else(refusal: str) -> None:
    async with pair("openai", "vllm", Fault("refuse", refusal=refusal)) as (_, two, chain):
        with pytest.raises(errors.RequestError):
            await heard(chain, "generate")
        assert two.seen == []
        assert chain.status()[0]["breaker"] == "closed"


async def test_an_overflow_goes_only_to_one_that_can() -> None:
    tells = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 2000}]}}
    refuses = FaultServer("vllm", TEXT, fault=Fault("refuse", refusal="overflow"))
    async with refuses as one, FaultServer("llamacpp", TEXT) as two, FaultServer("vllm", TEXT, tells=tells) as small:
        assert await heard(router(provider_for(one), provider_for(two)), "generate") == TEXT
        chain = router(provider_for(small), provider_for(two))
        assert await chain.generate("word " * 3000) == TEXT
        assert small.seen == []  # it was not even tried
        with pytest.raises(errors.ContextOverflow, match=r"vllm: no context .3000.*llamacpp: no context"):
            await router(provider_for(small), _narrow(two)).generate("word " * 3000)


def _narrow(server: FaultServer) -> BaseProvider:
    server.tells["/props"] = {"default_generation_settings": {"n_ctx": 1000}}
    return provider_for(server)


async def test_a_picture_goes_only_to_one_that_can_see() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]
    blind = {"/props": {"modalities": {"vision": False}}}
    async with FaultServer("llamacpp", TEXT, tells=blind) as one, FaultServer("ollama", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))
        assert await chain.generate(picture) == TEXT
        assert one.seen == []
        choices = chain.explain(picture)
        assert [(choice.provider, choice.serves) for choice in choices] == [("llamacpp", False), ("ollama", True)]
        assert "vision" in choices[0].why
        with pytest.raises(errors.Unsupported, match="llamacpp: no vision"):
            await router(provider_for(one), provider_for(one)).generate(picture)


async def test_nobody_else_can_help_so_it_is_asked_again_a_little_later() -> None:
    async with FaultServer("vllm", TEXT) as server:
        server.script = [Fault("refuse"), Fault("refuse", refusal="busy")]
        done = await router(provider_for(server)).complete("hi")
        assert (done.text, done.attempts, len(server.seen)) == (TEXT, 3, 3)
        server.script = [Fault("refuse")] * 9
        with pytest.raises(errors.ServerFailed) as caught:
            await router(provider_for(server), retries=1).generate("hi")
        assert len(server.seen) == 5
        assert [(each.provider, each.error, each.status) for each in caught.value.attempts] == [
            ("vllm", "ServerFailed", 500)
        ] * 2
        assert "Tried before: vllm ServerFailed 500" in str(caught.value)


async def test_one_deadline_spans_the_chain_and_leaves_the_last_a_share() -> None:
    async with FaultServer("vllm", fault=Fault("hang")) as one, FaultServer("llamacpp", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))  # its own budget would be three minutes
        started = time.perf_counter()
        assert await chain.generate("hi", timeout=1.0) == TEXT
        assert 0.4 < time.perf_counter() - started < 0.9
        two.fault = Fault("hang")
        started = time.perf_counter()
        with pytest.raises(errors.LLMError) as caught:
            await router(provider_for(one), provider_for(two)).generate("hi", timeout=0.6)
        assert time.perf_counter() - started < 0.9
        assert isinstance(caught.value, errors.TimedOut)


async def test_a_breaker_closes_through_a_probe_before_a_user_is_risked(events_seen: list[Any]) -> None:
    clock = Clock()
    async with FaultServer("vllm", TEXT) as two, FaultServer("llamacpp", TEXT) as one:
        chain = router(provider_for(one), provider_for(two), breakers=BreakerRegistry(clock))
        one.script = [Fault("close")] * 2  # a pooled connection is tried once more
        assert (await chain.complete("hi")).provider == "vllm"
        knocked = len(one.seen)
        clock.now += 4
        assert (await chain.complete("hi")).provider == "vllm"
        assert len(one.seen) == knocked
        clock.now += 2
        pages = len(one.pages)
        assert (await chain.complete("hi")).provider == "vllm"  # the probe runs beside it
        while chain.status()[0]["breaker"] == "open":
            await asyncio.sleep(0.01)
        assert len(one.pages) > pages
        assert (await chain.complete("hi")).provider == "llamacpp"
        assert [event for event in events_seen if isinstance(event, events.Closed)]


async def test_what_a_probe_cannot_see_lets_one_request_through() -> None:
    clock = Clock()
    async with FaultServer("vllm", TEXT) as two, FaultServer("llamacpp", TEXT, fault=Fault("hang")) as one:
        chain = router(provider_for(one, first_token_timeout=0.2), provider_for(two), breakers=BreakerRegistry(clock))
        assert (await chain.complete("hi")).provider == "vllm"
        clock.now += 16
        await chain.complete("hi")  # the probe runs beside it, and finds it well
        await asyncio.sleep(0.2)
        answers = await asyncio.gather(*(chain.complete("hi") for _ in range(10)))
        assert {done.provider for done in answers} == {"vllm"}
        assert len(one.seen) == 2  # one of the ten went there first
        clock.now += 16
        await chain.complete("hi")
        assert len(one.seen) == 2  # the next period is longer
        one.fault = None
        clock.now += 30
        await chain.complete("hi")
        await asyncio.sleep(0.2)
        assert (await chain.complete("hi")).provider == "llamacpp"
        assert chain.status()[0]["breaker"] == "closed"


async def test_when_all_are_shut_the_one_that_opens_first_is_tried() -> None:
    async with FaultServer("vllm", TEXT) as one, FaultServer("llamacpp", TEXT) as two:
        one.script, two.script = [Fault("refuse")], [Fault("refuse", refusal="failed", headers={"retry-after": "99"})]
        chain = router(provider_for(one), provider_for(two), retries=0)
        with pytest.raises(errors.ServerFailed):
            await chain.generate("hi")
        assert [state["breaker"] for state in chain.status()] == ["open", "open"]
        assert (await chain.complete("hi")).provider == "vllm"


async def test_200_at_once_when_the_primary_dies_none_is_lost_and_it_is_not_knocked_at_again() -> None:
    async with FaultServer("vllm", TEXT) as two:
        async with FaultServer("llamacpp", TEXT, fault=Fault("drop", after=4)) as one:
            chain = router(provider_for(one, max_concurrency=20), provider_for(two))
            answers = await asyncio.gather(*(heard(chain, "stream") for _ in range(200)))
            assert set(answers) == {TEXT}
            knocked = len(one.seen)
            assert knocked <= 200
        assert set(await asyncio.gather(*(heard(chain, "stream") for _ in range(200)))) == {TEXT}
        assert len(one.seen) == knocked


async def test_more_than_a_server_takes_wait_and_are_not_too_late_for_it() -> None:
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


async def test_a_model_goes_to_those_who_have_it() -> None:
    tags = {"/api/tags": {"models": [{"name": "llama3:latest"}]}}
    async with (
        FaultServer("openai", TEXT, fault=Fault("refuse")) as cloud,
        FaultServer("ollama", TEXT, tells=tags) as own,
    ):
        openai = OpenAIProvider(base_url=cloud.base_url, api_key="k", model="gpt-4o-mini")
        chain = router(openai, OllamaProvider(base_url=own.base_url))
        done = await chain.complete("hi", model="gpt-4o")
        assert (cloud.seen[0].body["model"], own.seen[0].body["model"]) == ("gpt-4o", "llama3:latest")
        assert done.model.asked == "llama3:latest"
        cloud.fault = None
        chain = router(openai, OllamaProvider(base_url=own.base_url))
        await chain.complete("hi", model="llama3")
        assert cloud.seen[-1].body["model"] == "gpt-4o-mini"


LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


async def test_loading_is_not_dead() -> None:
    pages = dict.fromkeys(("/health", "/v1/models", "/props"), LOADING)
    async with FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=pages) as one:
        async with FaultServer("vllm", TEXT) as two:
            chain = router(provider_for(one), provider_for(two))
            assert (await chain.complete("hi")).provider == "vllm"  # at once
            assert chain.status()[0]["breaker"] == "closed"
        alone = asyncio.create_task(router(provider_for(one)).complete("hi"))
        await asyncio.sleep(0.3)
        assert not alone.done()
        one.fault = None
        one.tells.update(one.dialect.pages())
        assert (await alone).text == TEXT


async def test_a_cold_model_loads_while_another_answers() -> None:
    cold = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
    async with FaultServer("ollama", TEXT, tells=cold) as one, FaultServer("vllm", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))
        assert (await chain.complete("hi")).provider == "vllm"
        one.tells["/api/ps"] = {"models": [{"name": "fault-model", "context_length": 8192}]}
        while ("POST", "/api/generate") not in one.pages:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert (await chain.complete("hi")).provider == "ollama"


COLD = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}


class Cloud(CustomProvider):
    """A provider whose text leaves the machine, by its own word."""

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        return {**super().get_capabilities(model), "local": False}


@pytest.mark.parametrize("routing", ["order", "local-first"])
async def test_a_cold_model_is_waited_for_and_no_cloud_gets_the_prompt(routing: str) -> None:
    async with FaultServer("ollama", TEXT, tells=COLD) as one, FaultServer("openai", TEXT) as two:
        cloud = Cloud(base_url=two.base_url, model="fault-model")
        chain = router(provider_for(one), cloud, routing=routing)
        assert (await chain.complete("a private prompt")).provider == "ollama"
        assert two.seen == []


async def test_no_share_of_the_time_is_kept_for_a_farther_provider_while_a_model_loads() -> None:
    async with FaultServer("ollama", TEXT, fault=Fault("hang"), tells=COLD) as one, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        with pytest.raises(errors.DeadlineExceeded):
            await chain.generate("a private prompt", timeout=0.8)
        assert two.seen == []


async def test_warm_first_is_the_operators_word_for_anything_else() -> None:
    async with FaultServer("ollama", TEXT, tells=COLD) as one, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"), routing="warm-first")
        await chain.complete("hi")
        assert (len(one.seen), len(two.seen)) == (0, 1)


async def test_a_loading_server_is_waited_for_and_no_cloud_gets_the_prompt() -> None:
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        asked = asyncio.create_task(chain.complete("a private prompt"))
        await asyncio.sleep(0.7)
        assert not asked.done()
        one.fault = None
        one.tells.update(one.dialect.pages())
        assert (await asked).provider == "llamacpp"
        assert two.seen == []


async def test_a_load_that_outlasts_its_budget_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_TIMEOUT", "1")
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        assert (await chain.complete("hi")).text == TEXT
        assert len(two.seen) == 1


async def test_a_late_first_token_is_checked_on_the_servers_own_page() -> None:
    """Unloaded after five idle minutes, of which nobody was told: it loads, and is waited for."""
    loaded = {"models": [{"name": "fault-model", "context_length": 8192}]}
    async with FaultServer("ollama", TEXT, tells={"/api/ps": loaded}) as one, FaultServer("openai", TEXT) as two:
        cloud = Cloud(base_url=two.base_url, model="fault-model")
        chain = router(provider_for(one, first_token_timeout=0.4), cloud)
        assert (await chain.complete("hi")).provider == "ollama"
        one.fault = Fault("hang")
        one.tells["/api/ps"] = {"models": []}
        asked = asyncio.create_task(chain.complete("a private prompt"))
        await asyncio.sleep(0.7)
        one.fault = None
        one.tells["/api/ps"] = loaded
        async with asyncio.timeout(10):
            assert (await asked).provider == "ollama"
        assert two.seen == []


async def test_a_text_whose_finish_stood_is_continued_by_nobody() -> None:
    """The schema was not kept to: another one begins, or the caller is told."""
    async with FaultServer("openai", "no JSON") as one, FaultServer("vllm", '{"a": 1}') as two:
        chain = router(provider_for(one), provider_for(two))
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        assert await chain.generate("hi", response_format=wanted) == '{"a": 1}'
        assert "assistant" not in str(two.seen[0].body["messages"])


async def test_routers_nest_and_any_provider_will_do() -> None:
    class Scripted:
        """A provider of an application's own, by the protocol alone."""

        name = "scripted"

        async def generate(self, prompt: Any, *a: Any, **k: Any) -> str:
            return "scripted"

        def stream(self, *a: Any, **k: Any) -> Any:
            return dead().stream("hi")

        async def complete(self, *a: Any, **k: Any) -> Any:
            raise errors.ServerFailed("scripted")

        async def list_models(self) -> list[str]:
            return ["mine"]

        async def health_check(self) -> bool:
            return True

        def get_capabilities(self) -> Any:
            return CustomProvider("http://x").get_capabilities()

    async with FaultServer("vllm", TEXT, fault=Fault("cut", after=5)) as one, FaultServer("openai", TEXT) as two:
        inner = router(dead(), provider_for(two))
        chain = router(Scripted(), provider_for(one), inner)  # type: ignore[arg-type]
        for how in ("stream", "generate", "complete"):
            assert await heard(chain, how) == TEXT
        assert chain.name == "scripted+vllm+llamacpp+custom"
        assert await chain.health_check()
        assert await chain.list_models() == ["mine", "fault-model"]
        assert isinstance(chain, LLMProvider)


async def test_a_member_that_cannot_be_asked_is_said_to_be_so_and_the_others_serve(events_seen: list[Any]) -> None:
    async with FaultServer("llamacpp", TEXT) as server:
        chain = RouterProvider(primary="openai", fallback=[provider_for(server)], breakers=BreakerRegistry())
        assert [(event.provider, event.loud) for event in events_seen] == [("openai", True)]  # its key is missing
        assert await heard(chain, "generate") == TEXT
        state = chain.status()[0]
        assert (state["breaker"], "OPENAI_API_KEY" in state["because"]) == ("misconfigured", True)
        assert "OPENAI_API_KEY" in chain.explain("hi")[0].why
    with pytest.raises(errors.KeyMissing, match="OPENAI_API_KEY"):
        RouterProvider(primary="openai")
    with pytest.raises(errors.NotConfigured, match="Did you mean openai"):
        RouterProvider(primary="opnai", fallback=["ollama"])


async def test_leaving_frees_the_server_and_gives_back_the_trial() -> None:
    async with pair("vllm", "llamacpp", Fault("stall", after=3)) as (one, _, chain):
        async with chain.stream("hi") as answer:
            await anext(answer)
        await asyncio.wait_for(one.seen[0].gone.wait(), 1)
        assert chain.status()[0]["breaker"] == "closed"


async def test_routing_by_cost_and_locality() -> None:
    async with FaultServer("openai", TEXT) as cloud, FaultServer("ollama", TEXT) as own:
        openai = OpenAIProvider(base_url=cloud.base_url, api_key="k", model="gpt-4o")
        for routing in ("cost", "local-first"):
            chain = router(openai, provider_for(own), routing=routing)
            assert (await chain.complete("hi")).provider == (
                "ollama" if routing == "cost" else "openai"
            )  # both are near


async def test_explain_asks_nobody() -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        choices = chain.explain("hi")
        assert [(choice.provider, choice.serves) for choice in choices] == [("vllm", True), ("llamacpp", False)]
        assert one.pages == two.pages == []


async def test_keys_and_prompts_stay_out_of_what_is_raised_and_shown() -> None:
    secret = "my very private notes"
    async with FaultServer("openai", fault=Fault("refuse", body=secret.encode(), status=500)) as server:
        chain = router(OpenAIProvider(base_url=server.base_url, api_key="sk-very-secret", model="m"), retries=0)
        with pytest.raises(errors.ServerFailed) as caught:
            await chain.generate(secret)
        shown = f"{caught.value} {caught.value!r} {chain!r} {chain.status()} {caught.value.attempts}"
        assert secret not in shown
        assert "sk-very" not in shown
        assert caught.value.__context__ is None


def test_the_classes_of_the_rows_are_what_this_file_asks() -> None:
    assert {kind.spec.name for kind in KINDS.values()} == {"custom", "lmstudio", "vllm", "llamacpp", "ollama"}
    assert issubclass(VLLMProvider, BaseProvider)


async def test_one_who_leaves_takes_nobody_along() -> None:
    clock = Clock()
    async with FaultServer("llamacpp", TEXT) as server:
        chain = router(provider_for(server), breakers=BreakerRegistry(clock))
        server.script = [Fault("close")] * 2
        with pytest.raises(errors.ConnectionFailed):
            await router(provider_for(server), retries=0, breakers=chain._registry).generate("hi")
        asked = [asyncio.create_task(chain.generate("hi")) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked[0].cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [TEXT] * 4


async def test_a_trial_that_fails_otherwise_keeps_no_breaker_busy_for_ever() -> None:
    clock = Clock()
    async with FaultServer("openai", TEXT) as one, FaultServer("vllm", TEXT) as two:
        chain = router(provider_for(one), provider_for(two), breakers=BreakerRegistry(clock))
        one.script = [Fault("refuse", refusal="quota"), Fault("refuse")]
        for _ in range(12):
            await chain.generate("hi")
            await asyncio.sleep(0.05)
            clock.now += 301
        assert (await chain.complete("hi")).provider == "custom"


@pytest.mark.parametrize("routing", ["order", "cost", "latency", "local-first"])
async def test_a_member_that_cannot_be_asked_stops_nothing(routing: str) -> None:
    async with FaultServer("llamacpp", TEXT) as server:
        chain = RouterProvider("openai", [provider_for(server)], routing=routing, breakers=BreakerRegistry())  # type: ignore[arg-type]
        assert await chain.generate("hi") == TEXT
        assert await chain.health_check()
        assert await chain.list_models() == ["fault-model"]
        assert "openai" in repr(chain)


async def test_a_server_that_says_loading_for_ever_is_not_hammered() -> None:
    async with FaultServer("llamacpp", fault=Fault("refuse", refusal="loading")) as server:
        with pytest.raises(errors.ModelLoading):
            await router(provider_for(server)).generate("hi", timeout=1.5)
        assert len(server.seen) <= 4


def test_probes_before_their_time_make_no_period_longer() -> None:
    board = BreakerRegistry(Clock())
    place = Target("http://x", None)
    board.fail(place, errors.ConnectionFailed("x"))
    for _ in range(10):
        for breaker in board.shut(place):
            breaker.probed(board.clock(), ready=False)
    assert [breaker.period for breaker in board.shut(place)] == [5]


def test_an_older_answer_closes_no_breaker() -> None:
    clock = Clock()
    board, place = BreakerRegistry(clock), Target("http://x", "m")
    began = clock.now
    clock.now += 1
    board.fail(place, errors.RateLimited("x", retry_after=60))
    assert not board.answer(place, 0.1, began)
    assert board.shut(place)


async def test_local_only_asks_no_cloud_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("llamacpp", TEXT) as server:
        chain = router(
            OpenAIProvider(base_url="https://api.example.org/v1", api_key="k", model="m"), provider_for(server)
        )
        assert (await chain.complete("hi")).attempts == 1
        assert "LLM_LOCAL_ONLY" in chain.explain("hi")[0].why


async def test_a_refused_beginning_is_asked_for_in_words() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        two.script = [Fault("refuse", status=400, body=b'{"error":{"message":"prefill is incompatible","code":400}}')]
        assert await heard(chain, "stream") == TEXT
        assert [seen.body["messages"][-1]["role"] for seen in two.seen] == ["assistant", "user"]


async def test_pictures_are_not_lost_on_the_way() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    asked = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, picture]}]
    async with pair("vllm", "ollama", Fault("cut", after=5)) as (_, two, chain):
        assert "".join([piece async for piece in chain.stream(asked)]) == TEXT
        assert two.seen[-1].path == "/api/chat"
        assert two.seen[-1].body["messages"][0]["images"]


async def test_a_short_timeout_of_one_caller_is_nobodys_fault() -> None:
    async with pair("vllm", "llamacpp", Fault("hang")) as (one, two, _):
        chain = router(provider_for(one), provider_for(two))
        assert await chain.generate("hi", timeout=0.4) == TEXT
        assert chain.status()[0]["breaker"] == "closed"


async def test_strangers_are_bounded_and_their_exceptions_are_failures() -> None:
    class Stranger:
        def __init__(self, how: str) -> None:
            self.name = how

        async def complete(self, *a: Any, **k: Any) -> Any:
            if self.name == "hangs":
                await asyncio.sleep(60)
            raise OSError("boom")

        def get_capabilities(self) -> Any:
            return CustomProvider("http://x").get_capabilities()

    async with FaultServer("vllm", TEXT) as two:
        for how in ("hangs", "raises"):
            chain = router(Stranger(how), provider_for(two))  # type: ignore[arg-type]
            assert await chain.generate("hi", timeout=1) == TEXT


async def test_a_full_queue_leaves_the_others_their_share() -> None:
    async with FaultServer("llamacpp", fault=Fault("stall", after=1)) as one, FaultServer("vllm", TEXT) as two:
        first = provider_for(one, max_concurrency=1)
        async with first.stream("hi") as busy:
            await anext(busy)
            assert (await router(first, provider_for(two)).complete("hi", timeout=1)).provider == "vllm"


@pytest.mark.parametrize("page", [b"no JSON", b"[" * 100_000, b'{"_debug_info": 3}'])
async def test_a_template_that_cannot_be_had_is_no_end(page: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair("vllm", "ollama", Fault("cut", after=5)) as (_, two, chain):
        monkeypatch.setattr(type(two.dialect), "rendered", lambda *_: page)
        assert await heard(chain, "stream") == TEXT
        assert [seen.path for seen in two.seen] == ["/api/chat"]  # asked in words


@pytest.mark.parametrize("dialect", ["ollama", "vllm", "llamacpp", "openai"])
async def test_a_continuation_that_says_nothing_is_no_end(dialect: str) -> None:
    """Finished properly, and not even the last word came again: who knows that the answer was over?"""
    text = "one two three four five six seven"
    async with (
        FaultServer("openai", text, fault=Fault("cut", after=4)) as dying,
        FaultServer(dialect, text, fault=Fault("silent")) as silent,  # type: ignore[arg-type]
        FaultServer("openai", text) as last,
    ):
        one, two, three = (provider_for(server) for server in (dying, silent, last))
        done = await RouterProvider(one, [two, three], breakers=BreakerRegistry(), retries=0).complete("count")
        assert done.text == text
        assert done.attempts == 3
        with pytest.raises(errors.BrokenAnswer) as caught:
            await RouterProvider(one, [two], breakers=BreakerRegistry(), retries=0).complete("count")
        assert caught.value.partial.startswith("one two three")


class Own(ScriptedProvider, RoutableProvider):
    """A provider of an application's own that goes on with a message that it began."""

    @property
    def continues(self) -> bool:
        """It does."""
        return True

    def stream(self, prompt: Any, *given: Any, **more: Any) -> Any:
        """What follows the beginning."""
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            self.answers.append(TEXT.removeprefix(prompt[-1]["content"]))
        return super().stream(prompt, *given, **more)


def said(text: str, times: int = 1) -> ScriptedProvider:
    return ScriptedProvider([text] * times, name="deviant")


@pytest.mark.parametrize("how", ["stream", "generate", "complete"])
async def test_a_continuation_that_is_none_is_not_joined_and_the_next_is_asked(how: str) -> None:
    preface = "Sure, here is the rest: A key pair is built from two large prime numbers."
    async with (
        FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one,
        FaultServer("openai", TEXT) as three,
    ):
        deviant = said(preface)
        third = CustomProvider(base_url=three.base_url, model="other")  # the same one would go first
        chain = router(provider_for(one), deviant, third)
        assert await heard(chain, how) == TEXT
        assert len(deviant.history) == 1
        state = chain.status()[1]
        assert (state["breaker"], state["failed"]) == ("closed", 0)


async def test_where_nobody_can_go_on_a_whole_answer_is_begun_again_once() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        deviant = said("Another answer, which is whole.", 2)
        done = await router(provider_for(one), deviant, retries=0).complete("hi")
        assert (done.text, done.provider) == ("Another answer, which is whole.", "deviant")
        assert [len(asked.prompt) for asked in deviant.history] == [3, 2]  # asked in words, and then from the beginning
        with pytest.raises(errors.LLMError):
            await router(provider_for(one), said("Another one.", 1), retries=0).complete("hi")


async def test_where_nobody_can_go_on_a_stream_ends_with_what_was_delivered() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        pieces = []
        with pytest.raises(errors.AnswerCut) as caught:
            async for piece in router(provider_for(one), said("Another answer."), retries=0).stream("hi"):
                pieces.append(piece)
        assert "".join(pieces) == caught.value.partial
        assert TEXT.startswith(caught.value.partial)
        assert [each.error for each in caught.value.attempts] == ["AnswerCut", "NotContinued"]


async def test_an_applications_own_provider_is_a_full_member(events_seen: list[Any]) -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        own = Own(name="own")
        chain = router(provider_for(one), own)
        async with chain.stream("hi") as answer:
            assert "".join([piece async for piece in answer]) == TEXT
        assert (answer.completion.provider, answer.completion.resumed) == ("own", 1)
        assert [event.provider for event in events_seen if isinstance(event, events.Answered)] == ["own"]
        assert [event.in_words for event in events_seen if isinstance(event, events.Resumed)] == [False]


async def test_the_same_model_goes_on_before_another_one_that_is_no_farther_away() -> None:
    async with (
        FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one,
        FaultServer("vllm", TEXT) as two,
        FaultServer("llamacpp", TEXT) as three,
    ):
        chain = router(
            CustomProvider(base_url=one.base_url, model="vendor/learnflow"),
            VLLMProvider(base_url=two.base_url, model="other"),
            LlamaCppProvider(base_url=three.base_url, model="learnflow:latest"),
        )
        done = await chain.complete("hi")
        assert (done.text, done.provider) == (TEXT, "llamacpp")


async def test_two_providers_that_die_in_turn_and_fifty_cuts_in_a_row() -> None:
    text = " ".join(f"word{at}" for at in range(200))
    async with FaultServer("vllm", text) as one, FaultServer("llamacpp", text) as two:
        one.script, two.script = [Fault("cut", after=3)] * 25, [Fault("reset", after=3)] * 25
        chain = router(provider_for(one), provider_for(two), retries=500)
        with no_waiting():  # else it would wait half a minute
            async with chain.stream("hi", max_tokens=1000) as answer:
                assert "".join([piece async for piece in answer]) == text
    assert answer.completion.resumed == 50


async def test_explain_says_what_the_selection_does() -> None:
    picture: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
    ]
    async with FaultServer("openai", TEXT) as server:
        provider = CustomProvider(base_url=server.base_url, model="m")
        (unknown,) = router(provider).explain(picture)
        assert (unknown.serves, "nobody knows" in unknown.why) == (None, True)
        (known,) = router(provider).explain("hi")
        assert known.serves is True
        monkeyed = CustomProvider(base_url=server.base_url, model="m")
        monkeyed.knowledge.stated = {"vision": False}
        (refused,) = router(monkeyed).explain(picture)
        assert (refused.serves, refused.why) == (False, "lacks vision")


async def test_the_callers_mistakes_are_no_failures_of_the_provider() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("refuse", refusal="request")) as server:
        chain = router(provider_for(server), retries=0)
        with pytest.raises(errors.RequestError):
            await chain.generate("hi")
        assert chain.status()[0]["failed"] == 0
        assert chain.status()[0]["recent_failures"] == []


async def test_a_request_that_one_cannot_honour_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    async with FaultServer("vllm", TEXT, fault=Fault("cut", after=9)) as one, FaultServer("vllm", TEXT) as two:
        openai = OpenAIProvider(base_url=one.base_url, api_key="key-of-openai", model="m")  # it has no top_k
        assert await router(openai, provider_for(two)).generate("hi", top_k=5) == TEXT
        pieces = []
        with pytest.raises(errors.LLMError) as caught:
            async for piece in router(provider_for(one), openai, retries=0).stream("hi", top_k=5):
                pieces.append(piece)
        assert caught.value.partial == "".join(pieces) != ""


async def test_a_cut_within_the_first_word_is_continued_by_an_engine_that_can() -> None:
    """Asked from the beginning it begins otherwise; given the beginning it goes on."""
    async with FaultServer("openai", ["RSA", " is old."], fault=Fault("cut", after=1)) as one:
        own = Own(["Sure, RSA is old."], name="own")
        async with router(provider_for(one), own).stream("hi") as answer:
            assert "".join([piece async for piece in answer]) == TEXT
        assert (answer.completion.resumed, answer.completion.provider) == (1, "own")


async def test_a_nested_router_waits_for_its_cold_model_and_no_cloud_gets_the_prompt() -> None:
    cold = {"/api/ps": {"models": []}}
    async with FaultServer("ollama", TEXT, tells=cold, fault=Fault("hang")) as one:
        local = provider_for(one)
        await local.refresh()
        cloud = ScriptedProvider(["from afar"] * 3, name="cloud", local=False)
        with pytest.raises(errors.LLMError):
            await router(router(local), cloud).generate("hi", timeout=1.0)
        assert cloud.history == []


@pytest.mark.parametrize("limit", ["soon", [1], 0, -1, True, float("nan")])
async def test_a_deadline_that_is_none_is_refused_by_name(limit: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="timeout"):
        await router(dead(), dead()).generate("hi", timeout=limit)


async def test_local_only_holds_for_an_applications_own_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    cloud = ScriptedProvider(["private"], local=False)
    with pytest.raises(errors.NotLocal):
        await router(cloud).generate("hi")
    assert cloud.history == []


async def test_a_server_that_hangs_costs_the_others_nothing_once_it_was_looked_at() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with FaultServer("openai", TEXT) as one, silent:
        hangs = OllamaProvider(base_url=f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", model="m")
        await provider_for(one).generate("hi")
        for chain in (router(provider_for(one), hangs), router(router(provider_for(one)), hangs)):
            started = time.perf_counter()
            assert await chain.generate("hi") == TEXT
            assert time.perf_counter() - started < 0.9


async def test_a_nested_router_is_one_request_of_the_outer_one(events_seen: list[Any]) -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one, FaultServer("openai", TEXT) as two:
        for how in ("stream", "generate", "complete"):
            events_seen.clear()
            assert await heard(router(router(provider_for(one), retries=0), provider_for(two)), how) == TEXT
            kinds = (events.Began, events.Asked, events.Answered, events.Failed, events.Ended)
            numbers = {event.request for event in events_seen if isinstance(event, kinds)}
            assert len(numbers) == 1, how
            assert len([event for event in events_seen if isinstance(event, (events.Began, events.Ended))]) == 2


async def test_a_request_for_which_nobody_is_found_begins_and_ends(events_seen: list[Any]) -> None:
    async def find() -> list[Any]:
        raise errors.NotConfigured("nobody is there")

    with pytest.raises(errors.NotConfigured, match="nobody is there"):
        await RouterProvider(find=find).generate("hi")
    began, ended = events_seen
    assert (type(began), type(ended)) == (events.Began, events.Ended)
    assert (began.provider, ended.request) == ("local", began.request)


async def test_a_nested_router_says_that_its_model_is_loading() -> None:
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with FaultServer("llamacpp", TEXT, tells=loading) as one, FaultServer("openai", TEXT) as two:
        assert (await router(provider_for(one)).refresh()).state == "loading"
        assert (await router(provider_for(one), provider_for(two)).refresh()).state == "ready"
