"""What follows a refusal: the next provider, a warning in the log, a request without our own additions."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from odd_server import (
    DONE,
    HOWS,
    MODEL,
    SECOND,
    OddServer,
    Reply,
    answered,
    body,
    chunk,
    custom,
    good,
    openai_error,
    refusal,
    said,
    sse,
    unless,
    whole,
)
from support import router

from learnflow.llm import errors, events
from learnflow.llm.providers import CustomProvider, OllamaProvider
from learnflow.llm.testing import Fault, FaultServer

UNEXPLAINED = refusal(400, openai_error("Invalid request parameters"))


@pytest.mark.parametrize(
    "words", ["prompt too long; exceeded max context length by 4 tokens", "input too long", "the input is too long"]
)
async def test_overflow_in_words_of_ollama_moves_on(words: str) -> None:
    refused = Fault("refuse", status=400, body=f'{{"error": "{words}"}}'.encode())
    async with FaultServer("ollama", fault=refused) as one, OddServer(good(SECOND)) as two:
        chain = router(OllamaProvider(one.base_url, "fault-model"), custom(two.base_url))
        done = await chain.complete("Explain RSA")
        assert done.text == SECOND
        assert chain.status()[0]["breaker"] == "closed"
        with pytest.raises(errors.ContextOverflow):
            await OllamaProvider(one.base_url, "fault-model").complete("Explain RSA")


async def test_refusal_is_a_warning_with_the_words_of_the_server(
    events_seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with OddServer(UNEXPLAINED) as one, OddServer(good(SECOND)) as two:
        await router(custom(one.base_url), custom(two.base_url)).complete("Why two keys?")
    line = next(record.getMessage() for record in caplog.records if "llm.provider_refused" in record.getMessage())
    assert "Invalid request parameters" in line
    assert "400" in line
    assert [type(event) for event in events_seen if isinstance(event, events.AttemptFailed)] == [events.ProviderRefused]


async def test_words_that_repeat_the_prompt_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reply = refusal(400, openai_error("cannot read: My own private exponent is 65537"))
    async with OddServer(reply) as server:
        with pytest.raises(errors.RequestRefused):
            await custom(server.base_url).complete("My own private exponent is 65537")
    assert "llm.provider_refused" in caplog.text
    assert "exponent" not in caplog.text


async def test_provider_that_refuses_a_default_answers_without_it() -> None:
    async with (
        OddServer(unless(lambda request: "temperature" in request, UNEXPLAINED)) as one,
        OddServer(good(SECOND)) as two,
    ):
        chain = router(custom(one.base_url), custom(two.base_url))
        for _ in range(3):
            assert (await chain.complete("Why two keys?")).text == "Two keys."
        assert ["temperature" in seen for seen in one.bodies] == [True, False, False, False]
        assert not two.bodies


@pytest.mark.parametrize("how", HOWS)
async def test_request_without_defaults_is_sent_once_if_every_provider_fails(how: str) -> None:
    broken = refusal(500, openai_error("out of memory"))
    async with OddServer(UNEXPLAINED) as one, OddServer(broken) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        with pytest.raises(errors.ServerFailed):
            await answered(chain, how)
        assert ["temperature" in seen for seen in one.bodies] == [True, False]
        assert len(two.bodies) == 1


async def test_answer_that_cannot_be_streamed_may_take_longer_than_the_first_token() -> None:
    """A later ``stream()`` asks for a stream again."""

    class Slow(OddServer):
        async def _respond(self, *arguments: Any) -> bool:
            if len(self.bodies) == 1:
                await asyncio.sleep(0.4)
            return await super()._respond(*arguments)

    def reply(request: dict[str, Any]) -> Reply:
        if request["stream"]:
            return refusal(400, openai_error("stream is not supported", param="stream"))
        return body(whole({"content": "Two keys."}))

    async with Slow(reply) as server:
        provider = CustomProvider(server.base_url, MODEL, first_token_timeout=0.2)
        assert await provider.generate("Why two keys?") == "Two keys."
        with pytest.raises(errors.LLMError):
            await anext(aiter(provider.stream("Why two keys?")))
        assert [(seen["stream"], "stream_options" in seen) for seen in server.bodies[:3]] == [
            (True, True),
            (False, False),
            (True, True),
        ]


@pytest.mark.parametrize("began", [False, True])
async def test_overflow_that_only_litellm_knows_is_known_in_a_200(began: bool) -> None:
    error = openai_error("`inputs` tokens + `max_new_tokens` must be <= 4097")
    reply = sse(chunk({"role": "assistant", "content": ""}), error, DONE) if began else body(error)
    async with OddServer(reply) as one, OddServer(good(SECOND)) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        assert (await chain.complete("Why two keys?")).text == SECOND
        assert chain.status()[0]["breaker"] == "closed"
        with pytest.raises(errors.ContextOverflow):
            await custom(one.base_url).complete("Why two keys?")


async def test_error_object_after_text_is_no_refusal() -> None:
    reply = sse(said("Two"), {"error": {"message": "no more", "code": 400}}, DONE)
    async with OddServer(reply) as server:
        with pytest.raises(errors.ErrorInAnswer):
            await custom(server.base_url).complete("Why two keys?")


async def test_system_is_joined_with_the_system_message_of_the_prompt() -> None:
    parts = [{"type": "text", "text": "You teach."}]
    async with OddServer(good()) as server:
        provider = custom(server.base_url)
        for content in ("You teach.", parts):
            prompt = [{"role": "system", "content": content}, {"role": "user", "content": "What is RSA?"}]
            await provider.complete(prompt, system="Be short.")
        first, second = (seen["messages"] for seen in server.bodies)
    assert [message["role"] for message in first + second] == ["system", "user"] * 2
    assert first[0]["content"] == "Be short.\n\nYou teach."
    assert second[0]["content"] == [{"type": "text", "text": "Be short."}, *parts]
