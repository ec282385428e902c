"""The types of the public API, for mypy only: this module is not run."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from learnflow.llm import (
    Capabilities,
    Completion,
    Event,
    LLMProvider,
    RouterProvider,
    TextStream,
    ToolCallDelta,
    get_provider,
    sync,
)
from learnflow.llm.providers import OllamaProvider, build


class Quiz(BaseModel):
    """The schema of an answer."""

    questions: list[str]


async def snippets() -> None:
    """Check the snippets of the README."""
    router = get_provider()
    assert_type(router, RouterProvider)
    provider: LLMProvider = router
    assert_type(await provider.generate("Explain cryptography"), str)
    async for piece in provider.stream("Explain RSA"):
        assert_type(piece, str)
    done = await provider.complete(
        "Explain RSA", temperature=0, response_format=Quiz, reasoning="low", timeout=5, session="s"
    )
    assert_type(done, Completion[Quiz])
    assert_type(done.parsed.questions, list[str])
    assert_type((await provider.complete("hi")).parsed, Any)
    assert_type(await router.complete("hi", response_format={"type": "json_object"}), Completion)
    assert_type(sync.get_provider().complete("hi", response_format=Quiz), Completion[Quiz])
    async for event in provider.stream("hi", tools=[{}]).events():
        assert_type(event, Event)
        if isinstance(event, ToolCallDelta):
            assert_type(event.arguments, str)
    assert_type(await provider.health_check(), bool)
    assert_type(provider.get_capabilities(), Capabilities)
    assert_type(await provider.list_models(), list[str])
    async with provider.stream([{"role": "user", "content": "hi"}], stop=["x"]) as answer:
        assert_type(answer, TextStream)
        assert_type(answer.completion.usage.completion_tokens, int | None)
    ollama = OllamaProvider(base_url="http://localhost:11434", first_token_timeout=5)
    await ollama.generate("Explain RSA encryption", model="llama3:latest")
    await ollama.generate("hi", temprature=1)  # type: ignore[call-arg]
    one: LLMProvider = build("ollama")
