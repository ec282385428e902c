"""The public face, as the type checker must see it; nobody runs this."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

from learnflow.llm import Capabilities, Completion, LLMProvider, RouterProvider, TextStream, get_provider
from learnflow.llm.providers import OllamaProvider, build


class Quiz(BaseModel):
    """What is asked for."""

    questions: list[str]


async def snippets() -> None:
    """The snippets of the README."""
    router = get_provider()
    assert_type(router, RouterProvider)
    provider: LLMProvider = router
    assert_type(await provider.generate("Explain cryptography"), str)
    async for piece in provider.stream("Explain RSA"):
        assert_type(piece, str)
    done = await provider.complete(
        "Explain RSA", temperature=0, response_format=Quiz, reasoning="low", timeout=5, session="s"
    )
    assert_type(done, Completion)
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
