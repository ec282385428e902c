"""Providers of an application that have only the methods of ``LLMProvider``, in a router, in sync and in LangChain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support import router

from learnflow.llm import sync
from learnflow.llm.completion import Finished
from learnflow.llm.errors import LLMError
from learnflow.llm.integrations.langchain import ChatLearnFlow


class Plain:
    """Text in, text out: ``stream`` is an async generator, and ``complete`` returns a text."""

    name = "own"

    async def generate(self, *_: Any, **__: Any) -> str:
        return "one two"

    complete: Any = generate

    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        yield "one "
        yield "two"

    async def list_models(self) -> list[str]:
        return []

    async def health_check(self) -> bool:
        return True

    def get_capabilities(self) -> Any:
        return {"local": True}


class Silent(Plain):
    """Reports no capability."""

    def get_capabilities(self) -> Any:
        return {}


class Words:
    """An async iterator without ``aclose``."""

    def __init__(self) -> None:
        self.words = ["one ", "two"]

    def __aiter__(self) -> Words:
        return self

    async def __anext__(self) -> str:
        if not self.words:
            raise StopAsyncIteration
        return self.words.pop(0)


class Bare(Plain):
    def stream(self, *_: Any, **__: Any) -> Any:
        return Words()


class Wrong(Plain):
    """Returns no answer, and its stream is a list."""

    async def complete(self, *_: Any, **__: Any) -> Any:
        return {"text": "one two"}

    def stream(self, *_: Any, **__: Any) -> Any:
        return ["one ", "two"]


@pytest.mark.parametrize("own", [Plain, Bare])
async def test_router_uses_provider_with_plain_stream_and_text(own: type[Any]) -> None:
    chain = router(own())
    assert await chain.generate("hi") == "one two"
    assert (await chain.complete("hi")).text == "one two"
    stream = chain.stream("hi")
    assert [piece async for piece in stream] == ["one ", "two"]
    assert (stream.completion.text, stream.completion.provider) == ("one two", "own")
    events = [event async for event in chain.stream("hi").events()]
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("own", [Plain, Bare])
def test_sync_uses_provider_with_plain_stream_and_text(own: type[Any]) -> None:
    provider = sync.Provider(own())
    assert provider.complete("hi").text == "one two"
    stream = provider.stream("hi")
    assert list(stream) == ["one ", "two"]
    assert stream.completion.text == "one two"
    assert isinstance(list(provider.stream("hi").events())[-1], Finished)


@pytest.mark.parametrize("own", [Plain, Bare])
async def test_langchain_uses_provider_with_plain_stream_and_text(own: type[Any]) -> None:
    model = ChatLearnFlow(provider=own())
    assert (await model.ainvoke("hi")).content == "one two"
    assert "".join([str(chunk.content) async for chunk in model.astream("hi")]) == "one two"
    assert await asyncio.to_thread(lambda: model.invoke("hi").content) == "one two"


async def test_provider_that_returns_no_answer_is_named() -> None:
    chain = router(Wrong())  # type: ignore[arg-type]  # the methods have other types
    with pytest.raises(LLMError, match=r"own: complete\(\) returned dict"):
        await chain.complete("hi")
    with pytest.raises(LLMError, match=r"own: .*TypeError"):
        await chain.stream("hi").final_completion()


def _broken(attribute: str) -> Any:
    def fail(_: object) -> object:
        raise RuntimeError("secret")

    return type("Own", (Plain,), {attribute: property(fail)})()


@pytest.mark.parametrize("method", ["complete", "stream", "list_models"])
async def test_provider_whose_method_raises_is_named(method: str) -> None:
    chain = router(_broken(method))
    calls = {
        "complete": lambda: chain.complete("hi"),
        "stream": lambda: chain.stream("hi").final_completion(),
        "list_models": chain.list_models,
    }
    with pytest.raises(LLMError, match=r"own: ") as caught:
        await calls[method]()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("method", ["get_capabilities", "health_check"])
async def test_provider_whose_probe_raises_still_answers(method: str) -> None:
    chain = router(_broken(method))
    assert await chain.generate("hi") == "one two"
    assert await chain.health_check() is (method != "health_check")


@pytest.mark.parametrize("own", [_broken("get_capabilities"), Silent()])
async def test_provider_that_does_not_report_local_gets_no_prompt_under_local_only(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await router(own).generate("hi") == "one two"
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    with pytest.raises(LLMError, match="LLM_LOCAL_ONLY"):
        await router(own).generate("hi")
    assert await router(own, Plain()).generate("hi") == "one two"
