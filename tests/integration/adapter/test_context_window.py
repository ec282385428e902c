"""The context length of a request: what is sent, when it grows, and that nothing of a prompt is dropped silently."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from learnflow.llm import AtMost, RouterProvider, errors, events
from learnflow.llm.adapter.context_window import estimate_min_tokens
from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenRouterProvider, VLLMProvider
from learnflow.llm.providers.ollama import SPEC
from learnflow.llm.testing import Fault, FaultServer, closed_port

TOO_LONG = b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"request (9009 tokens) exceeds the available context size (2048 tokens), try increasing it\\",\\"type\\":\\"exceed_context_size_error\\",\\"n_prompt_tokens\\":9009,\\"n_ctx\\":2048}}"}'  # noqa: E501  # as Ollama 0.33 sends it
NO_LOAD = b'{"error":"llama runner process has terminated: cudaMalloc failed: out of memory"}'


def sent(server: FaultServer) -> list[Any]:
    return [seen.body["options"].get("num_ctx") for seen in server.seen]


def trained(tokens: int, loaded: int | None = None, modelfile: int | None = None) -> dict[str, Any]:
    """Return pages of Ollama for a model that was trained with a context of so many tokens."""
    running = [{"name": "fault-model", "context_length": loaded}] if loaded else []
    shown = {"model_info": {"x.context_length": tokens}, "parameters": f"num_ctx {modelfile}" if modelfile else ""}
    return {"/api/show": shown, "/api/ps": {"models": running}}


def ollama(server: FaultServer) -> OllamaProvider:
    return OllamaProvider(base_url=server.base_url, model="fault-model")


async def test_truncate_and_shift_are_sent_outside_of_options() -> None:
    async with FaultServer("ollama", responses=trained(40960)) as server:
        await ollama(server).generate("hi", max_tokens=10)
        body = server.seen[0].body
        assert (body["truncate"], body["shift"]) == (False, False)
        assert not {"truncate", "shift", "num_ctx"} & set(body["options"])


@pytest.mark.parametrize(
    ("pages", "operator", "first"),
    [
        (trained(40960), None, None),  # the server's own default
        (trained(40960, loaded=8192), None, 8192),
        (trained(40960, modelfile=6144), None, 6144),
        (trained(40960, loaded=8192, modelfile=6144), None, 8192),
        (trained(40960, loaded=8192), "16384", 16384),
        (trained(8192), "65536", 65536),  # the operator overrides the training
    ],
    ids=["default", "loaded", "modelfile", "both", "operator", "operator beyond"],
)
async def test_first_request_carries_the_known_context_length(
    pages: dict[str, Any], operator: str | None, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operator:
        monkeypatch.setenv("OLLAMA_CONTEXT", operator)
    async with FaultServer("ollama", responses=pages) as server:
        await ollama(server).generate("hi", max_tokens=10)
        assert sent(server) == [first]


async def test_context_length_grows_with_an_event_and_never_shrinks(events_seen: list[object]) -> None:
    async with FaultServer("ollama", responses=trained(100_000, loaded=2048)) as server:
        provider = ollama(server)
        await provider.generate("word " * 5000, max_tokens=100)  # at most 8333 tokens
        await provider.generate("hi", max_tokens=10)
        await ollama(server).generate("hi", max_tokens=10)  # another provider of the same process
        assert sent(server) == [16384, 16384, 16384]
        adjusted = [event for event in events_seen if isinstance(event, events.RequestAdjusted)]
        assert len(adjusted) == 1
        assert "16384 tokens instead of 2048" in adjusted[0].change
        assert provider.get_capabilities()["context_served"] == 16384


async def test_context_length_grows_up_to_that_of_training() -> None:
    async with FaultServer("ollama", responses=trained(6000, loaded=2048)) as server:
        await ollama(server).generate("word " * 4000, max_tokens=10)
        assert sent(server) == [6000]
        with pytest.raises(errors.ContextOverflow, match="at least 7000 tokens, the context length is 6000") as caught:
            await ollama(server).generate("word " * 7000)
        assert (caught.value.prompt_tokens, caught.value.context_length) == (7000, 6000)
        assert len(server.seen) == 1  # nothing was sent


async def test_refused_prompt_is_retried_with_context_length_for_count_of_server() -> None:
    async with FaultServer("ollama", responses=trained(40960, loaded=2048)) as server:
        server.script = [Fault("refuse", status=400, body=TOO_LONG)]
        assert await ollama(server).generate("hi", max_tokens=100)
        assert sent(server) == [2048, 16384]


async def test_overflow_error_has_length_of_prompt_and_context() -> None:
    async with FaultServer("ollama", responses=trained(2048, loaded=2048)) as server:
        server.fault = Fault("refuse", status=400, body=TOO_LONG)
        with pytest.raises(errors.ContextOverflow, match=r"9009 tokens.*2048 tokens") as caught:
            await ollama(server).generate("hi")
        assert (caught.value.prompt_tokens, caught.value.context_length) == (9009, 2048)
        server.fault = Fault("refuse", refusal="overflow")  # 0.24 names neither
        with pytest.raises(errors.ContextOverflow, match=r"about \d+ tokens, the context length is 2048"):
            await ollama(server).generate("hi")


async def test_refusal_as_too_long_is_retried_once() -> None:
    async with FaultServer("ollama", responses=trained(40960, loaded=2048)) as server:
        server.fault = Fault("refuse", refusal="overflow")  # without numbers
        with pytest.raises(errors.ContextOverflow, match=r"about \d+ tokens, the context length is 4096"):
            await ollama(server).generate("hi", max_tokens=10)
        assert sent(server) == [2048, 4096]


async def test_context_length_that_is_refused_twice_is_not_used_for_later_requests() -> None:
    async with FaultServer("ollama", responses=trained(131_072, loaded=2048)) as server:
        server.fault = Fault("refuse", refusal="overflow")  # without numbers
        provider = ollama(server)
        for _ in range(3):
            with pytest.raises(errors.ContextOverflow):
                await provider.generate("hi", max_tokens=10)
        assert sent(server) == [2048, 4096] * 3


async def test_context_that_fails_to_load_is_error_and_shorter_requests_succeed() -> None:
    async with FaultServer("ollama", responses=trained(40960, loaded=4096)) as server, FaultServer("openai") as second:
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
    async with FaultServer("ollama", responses=trained(131072, loaded=4096)) as server, FaultServer("openai") as second:
        server.fault = Fault("refuse", status=500, body=NO_LOAD)
        with pytest.raises(errors.ServerFailed, match=r"context of 65536 tokens.*OLLAMA_CONTEXT"):
            await ollama(server).generate("hi")
        router = RouterProvider(ollama(server), [CustomProvider(base_url=second.base_url, model="fault-model")])
        assert (await router.complete("hi")).provider == "custom"
        assert router.status()[0]["breaker"] != "closed"


async def test_failure_of_gateway_is_not_failure_to_load() -> None:
    async with FaultServer("ollama", responses=trained(131072, loaded=32768)) as server:
        provider = ollama(server)
        for status in (502, 500):
            server.script = [Fault("refuse", status=status, body=b'{"error":"bad gateway"}')]
            with pytest.raises(errors.ServerFailed):
                await provider.generate("hi", max_tokens=10)
        await provider.generate("word " * 6000, max_tokens=10)
        assert sent(server) == [32768, 32768, 32768]


async def test_failed_load_is_the_failure_of_the_long_request_only() -> None:
    async with FaultServer("ollama", responses=trained(131072, loaded=4096)) as server:
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
    async with FaultServer("ollama", responses=trained(131072)) as server:
        provider = ollama(server)
        await provider.generate("hi", max_tokens=10)
        server.responses |= trained(131072, loaded=32768)
        await provider.generate("word " * 3000, max_tokens=10)
        assert sent(server) == [None, 32768]


async def test_context_length_adopts_size_loaded_by_other_client() -> None:
    async with FaultServer("ollama", responses=trained(131072, loaded=4096)) as server:
        provider = ollama(server)
        await provider.generate("hi", max_tokens=10)
        server.responses |= trained(131072, loaded=65536)
        await provider.refresh()
        await provider.generate("hi", max_tokens=10)
        assert sent(server) == [4096, 65536]


def test_low_estimate_counts_words_and_cjk_characters() -> None:
    assert estimate_min_tokens(["one two", "three"]) == 3
    assert estimate_min_tokens(["中" * 600]) == 101
    assert estimate_min_tokens([""]) == 0


async def test_context_length_of_the_caller_is_sent() -> None:
    async with FaultServer("ollama", responses=trained(40960, loaded=8192)) as server:
        await ollama(server).generate("hi", extra_body={"options": {"num_ctx": 1024}})
        assert sent(server) == [1024]


@pytest.mark.parametrize(
    ("version", "lost"), [("0.12.5", True), ("0.5.7", True), ("0.12.6", False), ("0.33.0", False), ("0.3.14", False)]
)
async def test_prompt_cut_by_old_ollama_raises_overflow(version: str, lost: bool) -> None:
    pages = {"/api/version": {"version": version}, **trained(40960, 8192)}
    async with FaultServer("ollama", responses=pages, prompt_tokens=500) as server:
        answer = ollama(server).generate("word " * 2000, max_tokens=10)
        if not lost:
            assert await answer
            return
        with pytest.raises(errors.ContextOverflow, match=r"read 500 of at least 2000 tokens"):
            await answer


OLLAMA = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [{"name": "fault-model"}]},
    "/api/ps": {"models": []},
}


@pytest.mark.parametrize(
    ("prompt_tokens", "words", "responses", "lost"),
    [
        (1026, 3000, OLLAMA, True),
        (2000, 3000, OLLAMA, False),  # tokenizers that join words need fewer tokens than there are words
        (10, 400, OLLAMA, False),  # a small prompt is no evidence
        (0, 3000, OLLAMA, False),  # no count
        (1026, 3000, {}, False),  # a server that is not known to drop may count only uncached tokens
    ],
)
async def test_prompt_cut_by_ollama_behind_v1_raises_overflow(
    prompt_tokens: int, words: int, responses: dict[str, Any], lost: bool
) -> None:
    async with FaultServer("openai", prompt_tokens=prompt_tokens, responses=responses) as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        if not lost:
            assert await provider.generate("word " * words)
            return
        with pytest.raises(errors.ContextOverflow, match="dropped the beginning") as caught:
            await provider.generate("word " * words)
        assert (caught.value.prompt_tokens, caught.value.context_length) == (words, prompt_tokens)


async def test_image_for_model_without_vision_is_refused_before_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = {"/api/tags": {"models": [{"name": "fault-model", "capabilities": ["completion"]}]}, **trained(8192)}
    async with FaultServer("ollama", responses=blind) as server:
        with pytest.raises(errors.Unsupported, match=r"does not support images.*OLLAMA_CAPABILITIES"):
            await ollama(server).generate(image())
        assert server.seen == []
        monkeypatch.setenv("OLLAMA_CAPABILITIES", "vision")
        await ollama(server).generate(image())
        assert server.seen[0].body["messages"][0]["images"]
    async with FaultServer("openai") as server:  # which does not report vision
        await CustomProvider(base_url=server.base_url, model="fault-model").generate(image())


def image() -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]


async def test_images_are_sent_to_vision_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_VISION_MODEL", "sees")
    tags = [
        {"name": "fault-model", "capabilities": ["completion"]},
        {"name": "sees", "capabilities": ["completion", "vision"]},
    ]
    loaded = {"/api/ps": {"models": [{"name": tag["name"], "context_length": 4096} for tag in tags]}}
    pages = {"/api/tags": {"models": tags}, **trained(8192), **loaded}
    async with FaultServer("ollama", responses=pages) as blind, FaultServer("openai") as second:
        provider = ollama(blind)
        last = CustomProvider(base_url=second.base_url, model="fault-model", vision_model="sees too")
        for caller in (provider, RouterProvider(provider), RouterProvider(provider, [last])):
            await caller.generate(image())
            await caller.generate("hi")
            assert [seen.body["model"] for seen in blind.seen] == ["sees", "fault-model"]
            blind.seen.clear()
        blind.fault = Fault("refuse", status=500)
        done = await RouterProvider(provider, [last]).complete(image())
        assert (done.provider, second.seen[0].body["model"]) == ("custom", "sees too")
        await provider.refresh()
        assert provider.get_capabilities()["vision"] is not False


async def test_failing_vision_model_does_not_open_breaker_of_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_VISION_MODEL", "sees")
    async with FaultServer("openai", fault=Fault("refuse", status=404, refusal="model")) as server:
        router = RouterProvider(CustomProvider(base_url=server.base_url, model="fault-model"), retries=0)
        with pytest.raises(errors.ModelNotFound, match="sees"):
            await router.generate(image())
        server.fault = None
        assert router.status()[0]["breaker"] == "closed"
        assert await router.generate("hi")


async def test_ceiling_is_lowered_to_room_in_context(events_seen: list[object]) -> None:
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", responses=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        await provider.generate("word " * 100, max_tokens=AtMost(100))
        await provider.generate("word " * 100, max_tokens=25_000)  # a demand
        assert [seen.body["max_tokens"] for seen in server.seen] == [412, 100, 25_000]
        changes = [event.change for event in events_seen if isinstance(event, events.RequestAdjusted)]
        assert changes == [
            "max_tokens=412 instead of 25000, because no more fit the context or the model's output limit"
        ]


async def test_ceiling_is_lowered_again_by_count_of_server() -> None:
    refusal = (
        b'{"error":{"message":"This model\'s maximum context length is 512 tokens. However, you requested 412 output '
        b'tokens and your prompt contains 200 input tokens, for a total of 612.","code":400}}'
    )
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", responses=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=refusal)]
        assert await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        assert [seen.body["max_tokens"] for seen in server.seen] == [412, 312]
        server.script = [Fault("refuse", status=400, body=refusal)]
        with pytest.raises(errors.ContextOverflow):
            await provider.generate("word " * 100, max_tokens=412)
        server.script = [Fault("refuse", status=400, body=refusal.replace(b"200 input", b"600 input"))]
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
async def test_ceiling_is_lowered_or_omitted_after_any_overflow(words: bytes, sent: list[int | None]) -> None:
    refusal = b'{"error":{"message":"This model\'s maximum context length is 512 tokens. ' + words + b'","code":400}}'
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 512}]}}
    async with FaultServer("openai", responses=served) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=refusal)]
        assert await provider.generate("word " * 100, max_tokens=AtMost(25_000))
        assert await provider.generate("word " * 100, max_tokens=AtMost(50))  # the refusal concerned the other request
        assert [seen.body.get("max_tokens") for seen in server.seen] == [*sent, 50]


async def test_ceiling_of_continuation_counts_emitted_text() -> None:
    served = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 400}]}}
    text = "word " * 250
    async with (
        FaultServer("vllm", text, fault=Fault("cut", after=240)) as first,
        FaultServer("vllm", text, responses=served) as second,
    ):
        chain = [VLLMProvider(base_url=server.base_url, model="fault-model") for server in (first, second)]
        await RouterProvider(chain[0], chain[1:]).generate("word " * 100, max_tokens=AtMost(25_000))
        assert second.seen[-1].body["max_tokens"] <= 400 - 100 - 230


async def test_context_length_of_the_operator_is_sent_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_CONTEXT", "8192")
    async with FaultServer("ollama", responses=trained(131072)) as server:
        await ollama(server).generate("word " * 50, max_tokens=AtMost(25_000))
        await ollama(server).generate("word " * 50, max_tokens=25_000)
        lengths = [(seen.body["options"]["num_ctx"], seen.body["options"]["num_predict"]) for seen in server.seen]
        assert lengths == [(8192, 8142), (8192, 25_000)]
        with pytest.raises(errors.ContextOverflow, match="at least 9000 tokens, the context length is 8192"):
            await ollama(server).generate("word " * 9000)


async def test_schema_is_sent_as_json_object_if_configured_as_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Number(BaseModel):
        number: int

    monkeypatch.setenv("CUSTOM_CAPABILITIES", "no-json_schema")
    async with FaultServer("openai", '{"number": 3}') as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        done = await provider.complete("hi", response_format=Number)
        assert done.parsed == Number(number=3)
        assert server.seen[0].body["response_format"] == {"type": "json_object"}


async def test_cloud_is_refused_under_local_only_without_dns_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    cloud = OpenRouterProvider(base_url="https://no-such-host.example/v1", model="m", api_key="k")
    with pytest.raises(errors.NotLocal, match="LLM_PROVIDER"):
        await RouterProvider(cloud).generate("hi")


async def test_ceiling_grows_context_length_up_to_training() -> None:
    async with FaultServer("ollama", responses=trained(6000, loaded=2048)) as server:
        await ollama(server).generate("word " * 100, max_tokens=AtMost(25_000))
        assert sent(server) == [6000]
        assert server.seen[0].body["options"]["num_predict"] == 5900


async def test_refused_ceiling_is_omitted() -> None:
    refusal = (
        b'{"error":{"message":"max_tokens is too large: 25000. This model supports at most 16384 completion tokens.",'
        b'"type":"invalid_request_error","param":"max_tokens","code":"invalid_value"}}'
    )
    async with FaultServer("openai") as server:
        for name, refusals in ((b"max_tokens", 1), (b"max_completion_tokens", 2)):
            server.seen.clear()
            provider = CustomProvider(base_url=server.base_url, model="fault-model")
            server.script = [Fault("refuse", status=400, body=refusal.replace(b"max_tokens", name))] * refusals
            assert await provider.generate("hi", max_tokens=AtMost(25_000))
            assert not {"max_tokens", "max_completion_tokens"} & set(server.seen[-1].body)
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        server.script = [Fault("refuse", status=400, body=refusal)]
        with pytest.raises(errors.RequestRefused):
            await provider.generate("hi", max_tokens=25_000)


async def test_more_than_thirty_equal_tokens_raise_token_repeated() -> None:
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


async def test_dead_server_is_not_probed_before_request() -> None:
    provider = OllamaProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="fault-model")
    started = asyncio.get_running_loop().time()
    with pytest.raises(errors.ConnectionFailed, match="OLLAMA_BASE_URL"):
        await provider.generate("hi")
    assert asyncio.get_running_loop().time() - started < 1


@given(st.integers(1, 200_000), st.one_of(st.none(), st.integers(1, 200_000)), st.integers(1, 200_000))
def test_context_length_never_shrinks_or_passes_the_training(loaded: int, trained: int | None, need: int) -> None:
    assert SPEC.server.choose_context_length
    length = SPEC.server.choose_context_length(need, loaded, trained)
    assert length is not None
    assert length >= loaded
    assert length <= max(loaded, trained or length)
    assert length >= min(need, trained or need)
    assert length < 2 * max(loaded, need, 2049)
    assert SPEC.server.choose_context_length(need, length, trained) == length  # a second request changes nothing
