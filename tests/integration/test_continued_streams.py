"""A broken answer is continued by the next provider to the identical text, or raises an error."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from support import DIALECTS, JSON, TEXT, Own, Quiz, dead, idle_clock, pair, provider_for, request_text, router

from learnflow.llm import RouterProvider, errors
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.cli.explain import verdicts_of
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider, no_waiting
from learnflow.llm.testing.fault_server import FaultName

FAULTS = [name for name in get_args(FaultName) if name not in ("drip", "slow", "lingers", "whole", "filtered")]
SILENCES = ["hang", "stall"]  # end by a time limit


def _narrow(server: FaultServer) -> BaseProvider:
    server.responses["/props"] = {"default_generation_settings": {"n_ctx": 1000}}
    return provider_for(server)


def scripted(text: str, times: int = 1) -> ScriptedProvider:
    return ScriptedProvider([text] * times, name="deviant")


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in SILENCES])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_stream_is_continued_after_every_fault_at_every_position(dialect: str, name: str) -> None:
    await continue_after(dialect, name)


@pytest.mark.parametrize("name", SILENCES)
@pytest.mark.parametrize("dialect", DIALECTS)
@idle_clock
async def test_stream_is_continued_after_silence_at_every_position(dialect: str, name: str) -> None:
    await continue_after(dialect, name)


async def continue_after(dialect: str, name: str) -> None:
    """Check that the text is complete, whether or not it is streamed, if the first server has a fault."""
    refusals = {"refusal": "failed"} if name == "refuse" else {}
    cut = name in ("cut", "half_line", "drop", "reset", "error_frame", "malformed", "stall")
    places = (1, 2, 9, 18) if cut else (2,)
    others = {"ollama": "llamacpp", "llamacpp": "ollama"}
    async with pair(dialect, others.get(dialect, "vllm")) as (one, two, _):
        providers = [provider_for(one, first_token_timeout=0.5, gap_timeout=0.5), provider_for(two)]
        for after, how in itertools.product(places, ("stream", "generate")):
            one.fault = Fault(name, after=after, **refusals)
            two.seen.clear()
            chain = router(*providers)  # its circuit breakers are closed
            if name == "error_after_finish" and how == "stream":  # shown and finished: it is not continued
                with pytest.raises(errors.ErrorInAnswer) as caught:
                    await request_text(chain, how)
                assert (caught.value.partial, two.seen) == (TEXT, [])
                continue
            assert await request_text(chain, how) == TEXT, (after, how)
            assert two.seen, (after, how)


@pytest.mark.parametrize("second", DIALECTS)
async def test_every_dialect_is_continued(second: str) -> None:
    async with FaultServer("openai", TEXT) as one, FaultServer(second, TEXT) as two:  # type: ignore[arg-type]
        first, other = provider_for(one), provider_for(two)
        for after in range(len(TEXT.split(" "))):
            one.fault = Fault("cut", after=after)
            two.seen.clear()
            async with router(first, other).stream("hi") as answer:
                assert "".join([piece async for piece in answer]) == TEXT
            done = answer.completion
            assert (done.text, done.provider, done.attempts, done.resumed > 0) == (TEXT, other.name, 2, after > 0)
            assert two.seen


async def test_single_provider_continues_its_own_stream() -> None:
    for dialect in DIALECTS:
        async with FaultServer(dialect, TEXT) as server:  # type: ignore[arg-type]
            server.script = [Fault("reset", after=5)]
            with no_waiting():
                async with router(provider_for(server)).stream("hi", max_tokens=100) as answer:
                    assert "".join([piece async for piece in answer]) == TEXT
            assert answer.completion.resumed == 1
            assert answer.completion.usage.total_tokens is None  # the first part has no usage


async def test_continuation_that_does_not_match_prefix() -> None:
    """The continuation does not repeat the prefix: it is closed, and requested again with all of the text."""
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (_, two, chain):
        two.pieces = ["Something ", "else."]
        two.derailed = ["wholly ", "different."]
        text = await request_text(chain, "stream")
        assert text == "RSA is a " + "wholly different."
        prefixes = [seen.body["messages"][-1]["content"] for seen in two.seen]
        assert prefixes == ["RSA is a", "RSA is a "]


async def test_prefix_contains_thinking() -> None:
    thinks = FaultServer("vllm", TEXT, thinking="Let me think.", fault=Fault("cut", after=6))
    async with thinks as one, FaultServer("llamacpp", TEXT) as two, FaultServer("ollama", TEXT) as three:
        for second in (two, three):
            done = await router(provider_for(one), provider_for(second)).complete("hi")
            assert (done.text, done.reasoning) == (TEXT, "Let me think.")
        assert two.seen[0].body["messages"][-1]["content"].startswith("<think>Let me think.</think>RSA is")
        assert "<think>Let me think.</think>RSA is" in three.seen[0].body["prompt"]


async def test_break_while_thinking_restarts_answer() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=0)) as (one, two, chain):
        one.thinking = "Let me"
        assert await request_text(chain, "stream") == TEXT
        assert two.seen[0].body["messages"] == [{"role": "user", "content": "hi"}]


async def test_resume_option_decides_after_break() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        got: list[str] = []
        with pytest.raises(errors.AnswerCut) as caught:
            async for piece in chain.stream("hi", resume="raise"):
                got.append(piece)
        assert caught.value.partial == "".join(got) == "RSA is a public-key cryptosystem. "
        assert two.seen == []
        assert (
            await request_text(chain, "generate", resume="raise") == TEXT
        )  # nothing was shown, so that nothing is lost
    with pytest.raises(errors.InvalidRequest, match="resume"):
        chain.stream("hi", resume="sometimes")
    with pytest.raises(errors.NotConfigured, match="resume"):
        RouterProvider(dead(), resume="sometimes")  # type: ignore[arg-type]


async def test_json_restarts_if_nothing_was_shown_else_raises() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (one, two, chain):
        one.pieces, two.pieces = JSON.split(" "), JSON.split(" ")
        done = await chain.complete("hi", response_format=Quiz)
        assert done.parsed == Quiz(questions=["one", "two", "three and four"]) or done.parsed
        assert (done.attempts, done.resumed) == (2, 0)
    async with pair("vllm", "llamacpp", Fault("cut", after=3)) as (one, two, chain):
        with pytest.raises(errors.AnswerCut) as caught:
            await request_text(chain, "stream", response_format={"type": "json_object"})
        assert caught.value.partial
        assert two.seen == []


async def test_overflow_falls_back_only_to_larger_context() -> None:
    responses = {"/v1/models": {"data": [{"id": "fault-model", "owned_by": "vllm", "max_model_len": 2000}]}}
    refuses = FaultServer("vllm", TEXT, fault=Fault("refuse", refusal="overflow"))
    async with (
        refuses as one,
        FaultServer("llamacpp", TEXT) as two,
        FaultServer("vllm", TEXT, responses=responses) as small,
    ):
        assert await request_text(router(provider_for(one), provider_for(two)), "generate") == TEXT
        chain = router(provider_for(small), provider_for(two))
        assert await chain.generate("word " * 3000) == TEXT
        assert small.seen == []  # it was not even tried
        with pytest.raises(errors.ContextOverflow, match=r"vllm: no context .3000.*llamacpp: no context"):
            await router(provider_for(small), _narrow(two)).generate("word " * 3000)


async def test_image_goes_only_to_provider_with_vision() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}]
    blind = {"/props": {"modalities": {"vision": False}}}
    async with FaultServer("llamacpp", TEXT, responses=blind) as one, FaultServer("ollama", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))
        assert await chain.generate(picture) == TEXT
        assert one.seen == []
        choices = verdicts_of(chain, picture)
        assert [(choice.provider, choice.serves) for choice in choices] == [("llamacpp", False), ("ollama", True)]
        assert "vision" in choices[0].reason
        with pytest.raises(errors.Unsupported, match="llamacpp: no vision"):
            await router(provider_for(one), provider_for(one)).generate(picture)


async def test_finished_text_is_not_continued() -> None:
    """The answer does not match its schema: the next provider starts again, or the error is raised."""
    async with FaultServer("openai", "no JSON") as one, FaultServer("vllm", '{"a": 1}') as two:
        chain = router(provider_for(one), provider_for(two))
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        assert await chain.generate("hi", response_format=wanted) == '{"a": 1}'
        assert "assistant" not in str(two.seen[0].body["messages"])


async def test_refused_prefill_becomes_prompt_to_continue() -> None:
    async with pair("vllm", "llamacpp", Fault("cut", after=5)) as (_, two, chain):
        refused = Fault("refuse", status=400, body=b'{"error":{"message":"prefill is incompatible","code":400}}')
        two.script = [refused, refused]
        assert await request_text(chain, "stream") == TEXT
        # The second request has no defaults
        assert [seen.body["messages"][-1]["role"] for seen in two.seen] == ["assistant", "assistant", "user"]


async def test_continuation_contains_images() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    prompt = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, picture]}]
    async with pair("vllm", "ollama", Fault("cut", after=5)) as (_, two, chain):
        assert "".join([piece async for piece in chain.stream(prompt)]) == TEXT
        assert two.seen[-1].path == "/api/chat"
        assert two.seen[-1].body["messages"][0]["images"]


@pytest.mark.parametrize("page", [b"no JSON", b"[" * 100_000, b'{"_debug_info": 3}'])
async def test_missing_template_becomes_prompt_to_continue(page: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair("vllm", "ollama", Fault("cut", after=5)) as (_, two, chain):
        monkeypatch.setattr(type(two.dialect), "rendered_prompt", lambda *_: page)
        assert await request_text(chain, "stream") == TEXT
        assert [seen.path for seen in two.seen] == ["/api/chat"]  # by a prompt


@pytest.mark.parametrize("dialect", ["ollama", "vllm", "llamacpp", "openai"])
async def test_empty_continuation_does_not_end_answer(dialect: str) -> None:
    """The continuation finished without repeating the last word, so that the answer may be incomplete."""
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


@pytest.mark.parametrize("how", ["stream", "generate", "complete"])
async def test_wrong_continuation_is_not_joined_and_next_provider_is_tried(how: str) -> None:
    preface = "Sure, here is the rest: A key pair is built from two large prime numbers."
    async with (
        FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one,
        FaultServer("openai", TEXT) as three,
    ):
        deviant = scripted(preface)
        third = CustomProvider(base_url=three.base_url, model="other")  # the same model would be first
        chain = router(provider_for(one), deviant, third)
        assert await request_text(chain, how) == TEXT
        assert len(deviant.history) == 1
        state = chain.status()[1]
        assert (state["breaker"], state["failed"]) == ("closed", 0)


async def test_generate_restarts_once_if_no_provider_continues() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        deviant = scripted("Another answer, which is whole.", 2)
        done = await router(provider_for(one), deviant, retries=0).complete("hi")
        assert (done.text, done.provider) == ("Another answer, which is whole.", "deviant")
        assert [len(call.prompt) for call in deviant.history] == [
            3,
            2,
        ]  # a prompt to continue, then a restart
        with pytest.raises(errors.LLMError):
            await router(provider_for(one), scripted("Another one.", 1), retries=0).complete("hi")


async def test_stream_raises_with_delivered_text_if_no_provider_continues() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        pieces = []
        with pytest.raises(errors.AnswerCut) as caught:
            async for piece in router(provider_for(one), scripted("Another answer."), retries=0).stream("hi"):
                pieces.append(piece)
        assert "".join(pieces) == caught.value.partial
        assert TEXT.startswith(caught.value.partial)
        assert [attempt.error for attempt in caught.value.attempts] == ["AnswerCut", "NotContinued"]


async def test_same_model_continues_first_among_equally_near_providers() -> None:
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


async def test_fifty_cuts_in_a_row_are_continued() -> None:
    text = " ".join(f"word{at}" for at in range(200))
    async with FaultServer("vllm", text) as one, FaultServer("llamacpp", text) as two:
        one.script, two.script = [Fault("cut", after=3)] * 25, [Fault("reset", after=3)] * 25
        chain = router(provider_for(one), provider_for(two), retries=500)
        with no_waiting():  # otherwise it waits half a minute
            async with chain.stream("hi", max_tokens=1000) as answer:
                assert "".join([piece async for piece in answer]) == text
    assert answer.completion.resumed == 50


async def test_cut_within_first_word_is_continued_by_prefill() -> None:
    """The engine starts differently without a prefill, and continues with one."""
    async with FaultServer("openai", ["RSA", " is old."], fault=Fault("cut", after=1)) as one:
        own = Own(["Sure, RSA is old."], name="own")
        async with router(provider_for(one), own).stream("hi") as answer:
            assert "".join([piece async for piece in answer]) == TEXT
        assert (answer.completion.resumed, answer.completion.provider) == (1, "own")
