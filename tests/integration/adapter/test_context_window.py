"""The context length of a request: what is sent, when it grows, and that nothing of a prompt is dropped silently."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from learnflow.llm import AtMost, RouterProvider, errors, events
from learnflow.llm.adapter.context_window import at_least
from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenRouterProvider, VLLMProvider
from learnflow.llm.providers.ollama import SPEC
from learnflow.llm.testing import Fault, FaultServer

TOO_LONG = b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"request (9009 tokens) exceeds the available context size (2048 tokens), try increasing it\\",\\"type\\":\\"exceed_context_size_error\\",\\"n_prompt_tokens\\":9009,\\"n_ctx\\":2048}}"}'  # noqa: E501  # as Ollama 0.33 says it
NO_LOAD = b'{"error":"llama runner process has terminated: cudaMalloc failed: out of memory"}'


def sent(server: FaultServer) -> list[Any]:
    return [seen.body["options"].get("num_ctx") for seen in server.seen]


def trained(tokens: int, loaded: int | None = None, asked: int | None = None) -> dict[str, Any]:
    """The pages of an Ollama whose model was trained for so many tokens."""
    running = [{"name": "fault-model", "context_length": loaded}] if loaded else []
    shown = {"model_info": {"x.context_length": tokens}, "parameters": f"num_ctx {asked}" if asked else ""}
    return {"/api/show": shown, "/api/ps": {"models": running}}


def ollama(server: FaultServer) -> OllamaProvider:
    return OllamaProvider(base_url=server.base_url, model="fault-model")


async def test_truncate_and_shift_are_sent_where_ollama_reads_them() -> None:
    async with FaultServer("ollama", tells=trained(40960)) as server:
        await ollama(server).generate("hi", max_tokens=10)
        body = server.seen[0].body
        assert (body["truncate"], body["shift"]) == (False, False)
        assert not {"truncate", "shift", "num_ctx"} & set(body["options"])


@pytest.mark.parametrize(
    ("pages", "operator", "first"),
    [
        (trained(40960), None, None),  # the server's own default
        (trained(40960, loaded=8192), None, 8192),
        (trained(40960, asked=6144), None, 6144),
        (trained(40960, loaded=8192, asked=6144), None, 8192),
        (trained(40960, loaded=8192), "16384", 16384),
        (trained(8192), "65536", 65536),  # the operator may know better
    ],
    ids=["default", "loaded", "modelfile", "both", "operator", "operator beyond"],
)
async def test_first_request_carries_the_known_context_length(
    pages: dict[str, Any], operator: str | None, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operator:
        monkeypatch.setenv("OLLAMA_CONTEXT", operator)
    async with FaultServer("ollama", tells=pages) as server:
        await ollama(server).generate("hi", max_tokens=10)
        assert sent(server) == [first]


async def test_context_length_grows_with_an_event_and_never_shrinks(events_seen: list[object]) -> None:
    async with FaultServer("ollama", tells=trained(100_000, loaded=2048)) as server:
        provider = ollama(server)
        await provider.generate("word " * 5000, max_tokens=100)  # at most 8333 tokens
        await provider.generate("hi", max_tokens=10)
        await ollama(server).generate("hi", max_tokens=10)  # another provider of the same process
        assert sent(server) == [16384, 16384, 16384]
        adjusted = [event for event in events_seen if isinstance(event, events.RequestAdjusted)]
        assert len(adjusted) == 1
        assert "16384 tokens instead of 2048" in adjusted[0].why
        assert provider.get_capabilities()["context_served"] == 16384


async def test_it_grows_up_to_what_the_model_was_trained_for() -> None:
    async with FaultServer("ollama", tells=trained(6000, loaded=2048)) as server:
        await ollama(server).generate("word " * 4000, max_tokens=10)
        assert sent(server) == [6000]
        with pytest.raises(errors.ContextOverflow, match="at least 7000 tokens, the model takes 6000") as caught:
            await ollama(server).generate("word " * 7000)
        assert (caught.value.needed, caught.value.window) == (7000, 6000)
        assert len(server.seen) == 1  # nothing was sent


async def test_the_servers_own_count_widens_it() -> None:
    async with FaultServer("ollama", tells=trained(40960, loaded=2048)) as server:
        server.script = [Fault("refuse", status=400, body=TOO_LONG)]
        assert await ollama(server).generate("hi", max_tokens=100)
        assert sent(server) == [2048, 16384]


async def test_an_overflow_names_both_lengths() -> None:
    async with FaultServer("ollama", tells=trained(2048, loaded=2048)) as server:
        server.fault = Fault("refuse", status=400, body=TOO_LONG)
        with pytest.raises(errors.ContextOverflow, match=r"9009 tokens.*2048 tokens") as caught:
            await ollama(server).generate("hi")
        assert (caught.value.needed, caught.value.window) == (9009, 2048)
        server.fault = Fault("refuse", refusal="overflow")  # 0.24 names neither
        with pytest.raises(errors.ContextOverflow, match=r"about \d+ tokens, the window 2048"):
            await ollama(server).generate("hi")


async def test_refusal_as_too_long_is_retried_once() -> None:
    async with FaultServer("ollama", tells=trained(40960, loaded=2048)) as server:
        server.fault = Fault("refuse", refusal="overflow")  # without numbers
        with pytest.raises(errors.ContextOverflow, match=r"about \d+ tokens, the window 4096"):
            await ollama(server).generate("hi", max_tokens=10)
        assert sent(server) == [2048, 4096]


async def test_context_that_cannot_be_loaded_is_a_named_failure_and_shorter_requests_go_on() -> None:
    async with FaultServer("ollama", tells=trained(40960, loaded=4096)) as server, FaultServer("openai") as second:
        provider = ollama(server)
        await provider.generate("hi", max_tokens=10)
        server.script = [Fault("refuse", status=500, body=NO_LOAD)]
        with pytest.raises(errors.ContextOverflow, match=r"context of 16384 tokens.*HTTP 500.*OLLAMA_CONTEXT"):
            await provider.generate("word " * 5000, max_tokens=10)
        await provider.generate("hi", max_tokens=10)
        assert sent(server) == [4096, 16384, 4096]
        server.script = [Fault("refuse", status=500, body=NO_LOAD)]
        router = RouterProvider(provider, [CustomProvider(base_url=second.base_url, model="fault-model")])
        assert (await router.complete("word " * 5000, max_tokens=10)).provider == "custom"
        assert router.status()[0]["breaker"] == "closed"  # it serves shorter requests
        assert (await router.complete("hi", max_tokens=10)).provider == "ollama"


async def test_operators_context_that_cannot_be_loaded_opens_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_CONTEXT", "65536")
    async with FaultServer("ollama", tells=trained(131072, loaded=4096)) as server, FaultServer("openai") as second:
        server.fault = Fault("refuse", status=500, body=NO_LOAD)
        with pytest.raises(errors.ServerFailed, match=r"context of 65536 tokens.*OLLAMA_CONTEXT"):
            await ollama(server).generate("hi")
        router = RouterProvider(ollama(server), [CustomProvider(base_url=second.base_url, model="fault-model")])
        assert (await router.complete("hi")).provider == "custom"
        assert router.status()[0]["breaker"] != "closed"


async def test_a_gateways_failure_is_no_failure_to_load() -> None:
    async with FaultServer("ollama", tells=trained(131072, loaded=32768)) as server:
        provider = ollama(server)
        for status in (502, 500):
            server.script = [Fault("refuse", status=status, body=b'{"error":"bad gateway"}')]
            with pytest.raises(errors.ServerFailed):
                await provider.generate("hi", max_tokens=10)
        await provider.generate("word " * 6000, max_tokens=10)
        assert sent(server) == [32768, 32768, 32768]


async def test_failed_load_is_the_failure_of_the_long_request_only() -> None:
    async with FaultServer("ollama", tells=trained(131072, loaded=4096)) as server:
        provider = ollama(server)
        short = provider.stream("hi", max_tokens=10)
        await anext(short)
        server.script = [Fault("refuse", status=500, body=NO_LOAD)]
        with pytest.raises(errors.ContextOverflow, match="context of 8192 tokens"):
            await provider.generate("word " * 3000, max_tokens=10)
        async for _ in short:
            pass
        await provider.generate("hi", max_tokens=10)
        assert sent(server) == [4096, 8192, 4096]


async def test_long_request_uses_the_context_length_that_another_client_loaded() -> None:
    async with FaultServer("ollama", tells=trained(131072)) as server:
        provider = ollama(server)
        await provider.generate("hi", max_tokens=10)
        server.tells |= trained(131072, loaded=32768)
        await provider.generate("word " * 3000, max_tokens=10)
        assert sent(server) == [None, 32768]


async def test_context_length_adopts_size_loaded_by_other_client() -> None:
    async with FaultServer("ollama", tells=trained(131072, loaded=4096)) as server:
        provider = ollama(server)
        await provider.generate("hi", max_tokens=10)
        server.tells |= trained(131072, loaded=65536)
        await provider.refresh()
        await provider.generate("hi", max_tokens=10)
        assert sent(server) == [4096, 65536]


def test_low_estimate_of_a_prompt() -> None:
    assert at_least(["one two", "three"]) == 3
    assert at_least(["中" * 600]) == 101
    assert at_least([""]) == 0


async def test_context_length_of_the_caller_is_sent() -> None:
    async with FaultServer("ollama", tells=trained(40960, loaded=8192)) as server:
        await ollama(server).generate("hi", extra_body={"options": {"num_ctx": 1024}})
        assert sent(server) == [1024]


@pytest.mark.parametrize(
    ("version", "lost"), [("0.12.5", True), ("0.5.7", True), ("0.12.6", False), ("0.33.0", False), ("0.3.14", False)]
)
async def test_older_versions_lose_a_beginning_and_it_is_raised(version: str, lost: bool) -> None:
    pages = {"/api/version": {"version": version}, **trained(40960, 8192)}
    async with FaultServer("ollama", tells=pages, reads=500) as server:
        asked = ollama(server).generate("word " * 2000, max_tokens=10)
        if not lost:
            assert await asked
            return
        with pytest.raises(errors.ContextOverflow, match=r"read 500 tokens of a prompt that has at least 2000"):
            await asked


OLLAMA = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [{"name": "fault-model"}]},
    "/api/ps": {"models": []},
}


@pytest.mark.parametrize(
    ("reads", "words", "tells", "lost"),
    [
        (1026, 3000, OLLAMA, True),
        (2000, 3000, OLLAMA, False),  # tokenizers that join words need fewer tokens than there are words
        (10, 400, OLLAMA, False),  # a small prompt is no evidence
        (0, 3000, OLLAMA, False),  # nor is a dummy
        (1026, 3000, {}, False),  # nor is a server that is not known to drop: it may count the uncached part alone
    ],
)
async def test_an_ollama_behind_its_v1_that_reads_far_too_little_has_dropped_the_beginning(
    reads: int, words: int, tells: dict[str, Any], lost: bool
) -> None:
    async with FaultServer("openai", reads=reads, tells=tells) as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        if not lost:
            assert await provider.generate("word " * words)
            return
        with pytest.raises(errors.ContextOverflow, match="dropped the beginning") as caught:
            await provider.generate("word " * words)
        assert (caught.value.needed, caught.value.window) == (words, reads)


async def test_a_picture_for_a_model_without_vision_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]
    blind = {"/api/tags": {"models": [{"name": "fault-model", "capabilities": ["completion"]}]}, **trained(8192)}
    async with FaultServer("ollama", tells=blind) as server:
        with pytest.raises(errors.Unsupported, match=r"cannot see pictures.*OLLAMA_CAPABILITIES"):
            await ollama(server).generate(picture)
        assert server.seen == []
        monkeypatch.setenv("OLLAMA_CAPABILITIES", "vision")
        await ollama(server).generate(picture)
        assert server.seen[0].body["messages"][0]["images"]
    async with FaultServer("openai") as server:  # which does not tell
        await CustomProvider(base_url=server.base_url, model="fault-model").generate(picture)


def picture() -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]


async def test_pictures_go_to_the_model_for_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_VISION_MODEL", "sees")
    tags = [
        {"name": "fault-model", "capabilities": ["completion"]},
        {"name": "sees", "capabilities": ["completion", "vision"]},
    ]
    loaded = {"/api/ps": {"models": [{"name": tag["name"], "context_length": 4096} for tag in tags]}}
    pages = {"/api/tags": {"models": tags}, **trained(8192), **loaded}
    async with FaultServer("ollama", tells=pages) as blind, FaultServer("openai") as second:
        provider = ollama(blind)
        last = CustomProvider(base_url=second.base_url, model="fault-model", vision_model="sees too")
        for asked in (provider, RouterProvider(provider), RouterProvider(provider, [last])):
            await asked.generate(picture())
            await asked.generate("hi")
            assert [seen.body["model"] for seen in blind.seen] == ["sees", "fault-model"]
            blind.seen.clear()
        blind.fault = Fault("refuse", status=500)
        done = await RouterProvider(provider, [last]).complete(picture())
        assert (done.provider, second.seen[0].body["model"]) == ("custom", "sees too")
        await provider.refresh()
        assert provider.get_capabilities()["vision"] is not False


async def test_a_failing_model_for_pictures_leaves_the_one_for_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_VISION_MODEL", "sees")
    async with FaultServer("openai", fault=Fault("refuse", status=404, refusal="model")) as server:
        router = RouterProvider(CustomProvider(base_url=server.base_url, model="fault-model"), retries=0)
        with pytest.raises(errors.ModelNotFound, match="sees"):
            await router.generate(picture())
        server.fault = None
        assert router.status()[0]["breaker"] == "closed"
        assert await router.generate("hi")


async def test_a_ceiling_is_lowered_to_what_the_window_leaves(events_seen: list[object]) -> None:
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", tells=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        await provider.generate("word " * 100, max_tokens=AtMost(100))
        await provider.generate("word " * 100, max_tokens=25_000)  # a demand
        assert [seen.body["max_tokens"] for seen in server.seen] == [412, 100, 25_000]
        whys = [event.why for event in events_seen if isinstance(event, events.RequestAdjusted)]
        assert whys == ["max_tokens=412 instead of 25000: there is room for no more"]


async def test_a_ceiling_is_lowered_again_by_the_servers_own_count() -> None:
    said = (
        b'{"error":{"message":"This model\'s maximum context length is 512 tokens. However, you requested 412 output '
        b'tokens and your prompt contains 200 input tokens, for a total of 612.","code":400}}'
    )
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", tells=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=said)]
        assert await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        assert [seen.body["max_tokens"] for seen in server.seen] == [412, 312]
        server.script = [Fault("refuse", status=400, body=said)]
        with pytest.raises(errors.ContextOverflow):
            await provider.generate("word " * 100, max_tokens=412)
        server.script = [Fault("refuse", status=400, body=said.replace(b"200 input", b"600 input"))]
        with pytest.raises(errors.ContextOverflow):
            await provider.generate("word " * 100, max_tokens=AtMost(25_000))


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (b"However, you requested 612 tokens (200 in the messages, 412 in the completion)", [412, 312]),
        (b"However, you requested about 612 tokens (200 of text input, 412 in the output)", [412, 312]),
        (b"Whatever the words are", [412, None]),
    ],
)
async def test_whatever_an_overflow_says_a_ceiling_is_no_demand(words: bytes, sent: list[int | None]) -> None:
    said = b'{"error":{"message":"This model\'s maximum context length is 512 tokens. ' + words + b'","code":400}}'
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", tells=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=said)]
        assert await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        assert await provider.generate("word " * 100, max_tokens=AtMost(50))  # that was of the other request only
        assert [seen.body.get("max_tokens") for seen in server.seen] == [*sent, 50]


async def test_a_resumed_answers_ceiling_knows_what_was_begun() -> None:
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 400}]}}
    text = "word " * 250
    async with (
        FaultServer("vllm", text, fault=Fault("cut", after=240)) as first,
        FaultServer("vllm", text, tells=served) as second,
    ):
        chain = [VLLMProvider(base_url=server.base_url, model="fault-model") for server in (first, second)]
        await RouterProvider(chain[0], chain[1:]).generate("word " * 100, max_tokens=AtMost(25_000))
        assert second.seen[-1].body["max_tokens"] <= 400 - 100 - 230


async def test_context_length_of_the_operator_is_sent_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_CONTEXT", "8192")
    async with FaultServer("ollama", tells=trained(131072)) as server:
        await ollama(server).generate("word " * 50, max_tokens=AtMost(25_000))
        await ollama(server).generate("word " * 50, max_tokens=25_000)
        asked = [(seen.body["options"]["num_ctx"], seen.body["options"]["num_predict"]) for seen in server.seen]
        assert asked == [(8192, 8142), (8192, 25_000)]
        with pytest.raises(errors.ContextOverflow, match="at least 9000 tokens, the model takes 8192"):
            await ollama(server).generate("word " * 9000)


async def test_a_schema_goes_in_words_to_whom_the_operator_says_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Number(BaseModel):
        number: int

    monkeypatch.setenv("CUSTOM_CAPABILITIES", "no-json_schema")
    async with FaultServer("openai", '{"number": 3}') as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        done = await provider.complete("hi", response_format=Number)
        assert done.parsed == Number(number=3)
        assert server.seen[0].body["response_format"] == {"type": "json_object"}


async def test_a_cloud_is_not_even_looked_up_under_local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    cloud = OpenRouterProvider(base_url="https://no-such-host.example/v1", model="m", api_key="k")
    with pytest.raises(errors.NotLocal, match="LLM_PROVIDER"):
        await RouterProvider(cloud).generate("hi")


async def test_a_ceiling_lets_ollamas_window_grow_as_far_as_it_goes() -> None:
    async with FaultServer("ollama", tells=trained(6000, loaded=2048)) as server:
        await ollama(server).generate("word " * 100, max_tokens=AtMost(25_000))
        assert sent(server) == [6000]
        assert server.seen[0].body["options"]["num_predict"] == 5900


async def test_a_ceiling_that_a_model_refuses_is_left_out() -> None:
    said = (
        b'{"error":{"message":"max_tokens is too large: 25000. This model supports at most 16384 completion tokens.",'
        b'"type":"invalid_request_error","param":"max_tokens","code":"invalid_value"}}'
    )
    async with FaultServer("openai") as server:
        for name, refusals in ((b"max_tokens", 1), (b"max_completion_tokens", 2)):
            server.seen.clear()
            provider = CustomProvider(base_url=server.base_url, model="fault-model")
            server.script = [Fault("refuse", status=400, body=said.replace(b"max_tokens", name))] * refusals
            assert await provider.generate("hi", max_tokens=AtMost(25_000))
            assert not {"max_tokens", "max_completion_tokens"} & set(server.seen[-1].body)
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=said)]
        with pytest.raises(errors.InvalidRequest):
            await provider.generate("hi", max_tokens=25_000)


async def test_more_than_thirty_equal_tokens_are_their_own_error() -> None:
    for name, pieces, leaf in (
        ("cut", [*["Once "], *["la "] * 31], errors.TokenRepeated),
        ("cut", [*["Once "], *["la "] * 20], errors.AnswerNotDone),
        ("cut", ["la"] * 29 + ["\n", "la"], errors.AnswerNotDone),
    ):
        async with FaultServer("ollama", pieces, fault=Fault(name, after=99)) as server:  # type: ignore[arg-type]
            with pytest.raises(leaf) as caught:
                await ollama(server).generate("hi")
            assert type(caught.value) is leaf
            assert caught.value.partial == "".join(pieces)


async def test_a_dead_ollama_is_not_knocked_at_twice() -> None:
    async with FaultServer("ollama") as server:
        provider = ollama(server)
    started = asyncio.get_running_loop().time()
    with pytest.raises(errors.ConnectionFailed, match="OLLAMA_BASE_URL"):
        await provider.generate("hi")
    assert asyncio.get_running_loop().time() - started < 1


@given(st.integers(1, 200_000), st.one_of(st.none(), st.integers(1, 200_000)), st.integers(1, 200_000))
def test_context_length_never_shrinks_or_passes_the_training(loaded: int, trained: int | None, need: int) -> None:
    assert SPEC.server.context_length
    length = SPEC.server.context_length(need, loaded, trained)
    assert length is not None
    assert length >= loaded
    assert length <= max(loaded, trained or length)
    assert length >= min(need, trained or need)
    assert length < 2 * max(loaded, need, 2049)
    assert SPEC.server.context_length(need, length, trained) == length  # which is enough, or as far as it goes
