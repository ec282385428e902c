"""The contract of a provider: each behaviour is a function that sends a request and checks the response.

``record.py`` runs the functions to make the cassettes, with a real server or with authored responses.
``test_contract.py`` runs them while the cassettes are replayed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pydantic import BaseModel

from learnflow.llm import RouterProvider, errors
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import build
from learnflow.llm.testing import CutAnswer, ScriptedProvider

# The tiny model was trained on these answers; authored cassettes have the same ones.
ANSWERS: Final = {
    "Say hello": "Hello! How can I help you study today?",
    "Count to ten": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "Draw a lock": "🔐 locked, 🔓 unlocked, 🗝️ key",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet around the year 1600.",
    "Explain RSA encryption": (
        "RSA is a public-key cryptosystem. A key pair is built from two large prime numbers: the public key holds "
        "their product n and an exponent e, the private key holds an exponent d that undoes e. Anyone may encrypt a "
        "message with the public key, but only the owner of the private key can decrypt it. Its security rests on the "
        "difficulty of factoring n."
    ),
    "Explain cryptography": (
        "Cryptography is the study of keeping information safe in the presence of an adversary. It offers "
        "confidentiality, so that only the intended reader understands a message; integrity, so that changes are "
        "noticed; and authentication, so that the sender is known. Modern cryptography builds on hard mathematical "
        "problems and on secret keys, not on secret algorithms."
    ),
    "Объясни шифрование RSA": (
        "RSA — это криптосистема с открытым ключом. Пара ключей строится из двух больших простых чисел: открытый "
        "ключ содержит их произведение n и показатель e, закрытый ключ содержит показатель d. Зашифровать сообщение "
        "может каждый, а расшифровать только владелец закрытого ключа."
    ),
    "Write three control questions about RSA as JSON": (
        '{"questions": ["Why is RSA called a public-key cryptosystem?", "Which problem must an attacker solve to '
        'break RSA?", "What does the private exponent d do?"]}'
    ),
    "Is 17 prime? Think first.": "Yes, 17 is prime.",
    "Is 17 prime? Think first. (thinking)": (
        "17 is not divisible by 2, 3 or 5, and 5 squared is 25, which is more than 17."
    ),
    "Explain RSA encryption (5 tokens)": "RSA is a public-",
}
# The answers of ``cut`` and ``resume`` break at the same place, as in ``make demo``.
BROKEN: Final = "Explain cryptography"
BEGUN: Final = ANSWERS[BROKEN].partition("; integrity")[0]
# As many pieces as llama.cpp sends: ``max_tokens`` of the continuation depends on their number.
PIECES: Final = re.findall(r".{2}", BEGUN[:6]) + re.findall(r".{3}", BEGUN[6:])
LONG: Final = "word " * 3000
DOT: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
)
WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Quiz(BaseModel):
    # The docstring is the description in the recorded schemas.
    """What ``schema`` asks for."""

    questions: list[str]


@dataclass(slots=True, kw_only=True)
class Subject:
    """A provider under contract.

    Attributes:
        row: its name.
        base_url, key: its address and its key; None without a key.
        model: the model that answers.
        sees, thinks: the models for images and for thinking; None for ``model``.
        kind: the spec of an endpoint with a name of its own; None for a vendor's row.
        api: the API of all requests; None if the model and the request decide.
        shows_thinking: the response has the thinking.
        answers: the expected answers by their prompts; None if another model than the tiny one is recorded.
        texts: the received answers by their prompts.
    """

    row: str
    base_url: str
    model: str
    key: str | None = None
    sees: str | None = None
    thinks: str | None = None
    kind: str | None = None
    api: Any = None
    shows_thinking: bool = True
    answers: Mapping[str, str] | None = field(default_factory=lambda: ANSWERS)
    texts: dict[str, str] = field(default_factory=dict)

    def provider(self, key: str | None = None) -> BaseProvider:
        """Create the provider, as an application does."""
        more = {"default_kind": self.kind, "api": self.api} if self.kind else {}
        return build(self.row, base_url=self.base_url, model=self.model, api_key=key or self.key, **more)

    def check(self, prompt: str, text: str) -> None:
        """Assert that the text is the expected answer."""
        self.texts[prompt] = text
        assert text
        assert text == (self.answers or self.texts)[prompt]


async def generate(one: Subject) -> None:
    """Return the text of an answer unchanged."""
    one.check("Say hello", await one.provider().generate("Say hello", temperature=0))


async def stream(one: Subject) -> None:
    """Return an answer by pieces, and its completion at the end."""
    prompt = "Explain RSA encryption"
    async with one.provider().stream(prompt, temperature=0) as answer:
        pieces = [piece async for piece in answer]
    done = answer.completion
    one.check(prompt, done.text)
    assert "".join(pieces) == done.text
    assert len(pieces) > 5
    assert (done.finish, done.provider, done.model.requested) == ("stop", one.row, one.model)
    assert done.model.served


async def usage(one: Subject) -> None:
    """Count the tokens of a stream."""
    async with one.provider().stream("Count to ten", temperature=0) as answer:
        one.check("Count to ten", "".join([piece async for piece in answer]))
    used = answer.completion.usage
    assert used.prompt_tokens
    assert used.completion_tokens
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens


async def unicode(one: Subject) -> None:
    """Return Russian text and emoji unchanged."""
    for prompt in ("Объясни шифрование RSA", "Draw a lock"):
        async with one.provider().stream(prompt, temperature=0) as answer:
            one.check(prompt, "".join([piece async for piece in answer]))


async def system(one: Subject) -> None:
    """Send a system prompt and earlier messages."""
    prompt = "What is the capital of France?"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Say pong"},
        {"role": "assistant", "content": "pong"},
        {"role": "user", "content": prompt},
    ]
    done = await one.provider().complete(messages, temperature=0, max_tokens=40, system="You are a patient teacher.")
    assert done.text


async def image(one: Subject) -> None:
    """Send an image with a text."""
    prompt = "Who wrote Hamlet?"
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DOT}"}}
    parts = [{"type": "text", "text": prompt}, picture]
    one.check(prompt, await one.provider().generate([{"role": "user", "content": parts}], one.sees, temperature=0))


async def schema(one: Subject) -> None:
    """Return an instance of a pydantic class."""
    prompt = "Write three control questions about RSA as JSON"
    done = await one.provider().complete(prompt, temperature=0, response_format=Quiz)
    one.check(prompt, done.text)
    assert done.parsed == Quiz.model_validate_json(done.text)


async def tools(one: Subject) -> None:
    """Return the model's call of a tool."""
    prompt = "What is the weather in Paris?"
    done = await one.provider().complete(prompt, temperature=0, tools=[WEATHER], tool_choice="auto")
    (call,) = done.tool_calls
    assert (done.finish, call.name, call.arguments) == ("tool_calls", "get_weather", {"city": "Paris"})
    assert call.id


async def thinking(one: Subject) -> None:
    """Separate thinking from the answer."""
    prompt, provider = "Is 17 prime? Think first.", one.provider()
    more: Any = {"reasoning": True} if True in provider.spec.dialect.reasoning else {}
    more |= {"temperature": 0} if one.shows_thinking else {}  # models that hide it refuse a temperature
    done = await provider.complete(prompt, one.thinks, **more)
    one.check(prompt, done.text)
    if one.shows_thinking:
        one.check(f"{prompt} (thinking)", done.reasoning or "")
    else:
        assert done.reasoning is None
        assert done.usage.reasoning_tokens


async def length(one: Subject) -> None:
    """Return an answer that ends at ``max_tokens``, with the finish reason."""
    done = await one.provider().complete("Explain RSA encryption", temperature=0, max_tokens=5)
    one.check("Explain RSA encryption (5 tokens)", done.text)
    assert done.finish == "length"


async def models(one: Subject) -> None:
    """List the models."""
    assert one.model in " ".join(await one.provider().list_models()) or not one.provider().spec.api.lists_all_models


async def health(one: Subject) -> None:
    """Probe the server without a chat request."""
    provider = one.provider()
    assert await provider.health_check()
    seen = await provider.refresh()
    assert (seen.state, seen.model) == ("ready", one.model)
    assert seen.models


async def wrong_key(one: Subject) -> None:
    """Raise an error for a wrong key that names the variable."""
    with _Raises(errors.AuthenticationFailed) as caught:
        await one.provider(key="wrong-key").generate("Say pong", temperature=0)
    assert caught.error.status in (400, 401, 403)
    assert one.provider().spec.variable("api_key") in caught.error.hint
    assert "wrong-key" not in str(caught.error)


async def missing_model(one: Subject) -> None:
    """Raise an error for a missing model that names the variable."""
    with _Raises(errors.ModelNotFound) as caught:
        await one.provider().generate("Say pong", model="no-such-model", temperature=0)
    assert caught.error.status in (400, 404)
    assert one.provider().spec.variable("model") in caught.error.hint


async def overflow(one: Subject) -> None:
    """Raise ContextOverflow for a prompt that is too long."""
    with _Raises(errors.ContextOverflow):
        await one.provider().generate(LONG, temperature=0, max_tokens=5)


async def rate_limit(one: Subject) -> None:
    """Raise RateLimited with the seconds to wait."""
    with _Raises(errors.RateLimited) as caught:
        await one.provider().generate("What is entropy?", temperature=0)
    assert (caught.error.status, caught.error.retry_after) == (429, 20.0)


async def busy(one: Subject) -> None:
    """Raise a retryable error if the server is loading or overloaded."""
    with _Raises(errors.Overloaded, errors.ModelLoading) as caught:
        await one.provider().generate("What is a deadlock?", temperature=0)
    assert caught.error.status in (503, 529)
    assert caught.error.retryable


async def cut(one: Subject) -> None:
    """Raise AnswerCut for a broken stream, with the text that arrived."""
    pieces: list[str] = []
    with _Raises(errors.AnswerCut) as caught:
        async for piece in one.provider().stream(BROKEN, temperature=0):
            pieces.append(piece)
    assert "".join(pieces) == caught.error.partial == BEGUN


async def resume(one: Subject) -> None:
    """Continue an answer that another provider began, without a gap or a repetition."""
    router = RouterProvider(ScriptedProvider([CutAnswer(PIECES)]), [one.provider()])
    async with router.stream(BROKEN, temperature=0) as answer:
        text = "".join([piece async for piece in answer])
    one.check(BROKEN, text)
    assert text.startswith(BEGUN)
    assert (answer.completion.resumed, answer.completion.provider) == (1, one.row)


BEHAVIOURS: Final[dict[str, Callable[[Subject], Awaitable[None]]]] = {
    behaviour.__name__: behaviour
    for behaviour in (
        generate,
        stream,
        usage,
        unicode,
        system,
        image,
        schema,
        tools,
        thinking,
        length,
        models,
        health,
        wrong_key,
        missing_model,
        overflow,
        rate_limit,
        busy,
        cut,
        resume,
    )
}


class _Raises:
    """Replacement of ``pytest.raises``, because ``record.py`` runs without pytest."""

    error: LLMError

    def __init__(self, *kinds: type[LLMError]) -> None:
        self._kinds = kinds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"no {' or '.join(kind.__name__ for kind in self._kinds)} was raised"
        if not isinstance(error, self._kinds):
            return False
        self.error = error
        return True
