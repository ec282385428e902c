"""``check``: asks a server the questions of the contract, and prints what it keeps of what this package relies on.

Must never ask a cloud that nobody named, or print an answer.
The command line calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from .. import errors
from ..adapter.provider import BaseProvider
from ..base import Attempt, Call
from ..discovery import find_providers
from ..errors import LLMError
from ..providers import build
from ..stream import Emit
from .command import ExitCode, command, json_option, model_option, provider_option
from .status import chain_of
from .terminal import progress, say, table, write, write_json

_NOWHERE: Final = "learnflow-no-such-model"
_LONGEST: Final = 40_000  # tokens of a prompt that is longer than the context; beyond it is not asked
_TOKENS: Final = 900  # of all the others together, about
_SAY = "Say the word pong."
_SCHEMA: Final = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``passed`` is None if that is unknown."""

    question: str
    passed: bool | None
    seen: str


@command
@model_option
@json_option(help="Print one object with the findings.")
@provider_option
async def check(model: str | None, as_json: bool, provider: str | None) -> int:
    """Show what a server keeps of what answers rely on.

    Ten short questions are asked: finish reasons, streams, errors by name, schemas, tools, continuation. The last line
    is what to set.
    """
    server = await _provider(provider)
    served = server.facts(model).capabilities["context_served"]
    long = int(served * 1.2) if server.spec.local and served and served * 1.2 < _LONGEST else None
    more = f", and one of {long} tokens, which is longer than its context" if long else ""
    say(f"{server.name}: asking up to 10 requests of about {_TOKENS} tokens together{more}")
    findings: list[Finding] = []
    for question, ask in _Questions(server, model, long).all():
        with progress(f"{server.name}: {question}"):
            findings.append(await _asked(question, ask))
        if question == "finish reason" and findings[-1].passed is False:
            break  # nothing else can be told
    words = _capabilities(findings)
    if as_json:
        write_json({"provider": server.name, "capabilities": words, "findings": [*map(asdict, findings)]})
    else:
        marks = {True: "yes", False: "NO", None: "-"}
        table(
            ("PASS", "CHECK", "SEEN"), ((marks[finding.passed], finding.question, finding.seen) for finding in findings)
        )
        write(f"{server.spec.variable('capabilities')}={words}" if words else "Nothing to set.")
    relied = ("finish reason", "a stream")
    unreliable = any(each.passed is False for each in findings if each.question in relied)
    return ExitCode.FAILED if unreliable else ExitCode.OK


async def _provider(name: str | None) -> BaseProvider:
    chain = chain_of(name)
    provider = build(chain[0]) if chain else (await find_providers())[0]
    await provider.refresh()
    return provider


Ask = Callable[[], Awaitable[tuple[bool | None, str]]]


class _Questions:
    """What is asked of one provider; ``long``: tokens of a prompt that does not fit, where that can be asked."""

    def __init__(self, provider: BaseProvider, model: str | None, long: int | None) -> None:
        self._provider = provider
        self._model = model
        self._long = long

    def all(self) -> list[tuple[str, Ask]]:
        """Each by its name, in the order in which they are asked."""
        return [
            ("finish reason", self.finish),
            ("tokens counted", self.usage),
            ("a stream", self.stream),
            ("max_tokens", self.limit),
            ("a missing model", self.missing),
            ("a prompt too long", self.overflow),
            ("JSON schema", self.schema),
            ("tools", self.tools),
            ("continuation", self.prefill),
            ("leaving stops it", self.leaving),
        ]

    async def _complete(self, prompt: str = _SAY, **more: Any) -> Any:
        return await self._provider.complete(
            prompt, **{"model": self._model, "max_tokens": 60, "temperature": 0.0, **more}
        )

    async def finish(self) -> tuple[bool | None, str]:
        """Whether an answer ends with a finish reason."""
        done = await self._complete()
        return True, f"{done.finish}, {len(done.text)} characters in {done.total_s:.1f} s"

    async def usage(self) -> tuple[bool | None, str]:
        """Whether tokens are counted."""
        told = (await self._complete()).usage
        return told.completion_tokens is not None, f"prompt {told.prompt_tokens}, answer {told.completion_tokens}"

    async def stream(self) -> tuple[bool | None, str]:
        """Whether pieces come while it generates."""
        loop, times = asyncio.get_running_loop(), list[float]()
        started = loop.time()
        async with self._provider.stream(
            "Count from 1 to 30.", model=self._model, max_tokens=120, temperature=0.0
        ) as answer:
            async for _ in answer:
                times.append(loop.time() - started)
        seen = f"{len(times)} pieces from {times[0]:.2f} to {times[-1]:.2f} s" if times else "nothing"
        return len(times) > 1, seen

    async def limit(self) -> tuple[bool | None, str]:
        """Whether an answer that is cut at ``max_tokens`` says so."""
        done = await self._complete("Count from 1 to 100.", max_tokens=3)
        return done.finish == "length", done.finish

    async def missing(self) -> tuple[bool | None, str]:
        """How a model is named that is not there."""
        try:
            await self._complete(model=_NOWHERE)
        except errors.ModelNotFound as error:
            return True, f"{error.code or 'by its words'} (HTTP {error.status})" if error.status else "by its list"
        return None, "answered for a name that is no model's: it serves one, whatever the name"

    async def overflow(self) -> tuple[bool | None, str]:
        """What a prompt gets that is longer than the context."""
        if self._long is None:
            return None, "not asked: its context is not known, too long, or a cloud's"
        try:
            await self._complete("word " * self._long, max_tokens=4)
        except errors.ContextOverflow as error:
            return True, f"refused by name (HTTP {error.status})" if error.status else "refused before it was sent"
        return False, "answered: the beginning of a long prompt is dropped without a word"

    async def schema(self) -> tuple[bool | None, str]:
        """Whether an answer fits a JSON schema."""
        wanted = {"type": "json_schema", "json_schema": {"name": "said", "schema": _SCHEMA, "strict": True}}
        done = await self._complete('Give the word "pong" as JSON.', response_format=wanted)
        if done.attempts > 1:
            return False, "only on the second attempt, with what was wrong"
        return (True, "fits") if done.finish == "stop" else (None, f"finish {done.finish}")

    async def tools(self) -> tuple[bool | None, str]:
        """Whether a tool is called."""
        done = await self._complete("What is the weather in Paris? Call the tool.", tools=[_TOOL])
        called = [call.name for call in done.tool_calls]
        return bool(called) or None, f"called {', '.join(called)}" if called else "answered in words: model or server"

    async def prefill(self) -> tuple[bool | None, str]:
        """Whether a begun answer is continued."""
        if not self._provider.facts(self._model).prefills:
            return None, "a broken answer is continued in words"
        call = Call("Count from 1 to 9, with spaces.", self._model, 0.0, 40, method="generate")
        done = await self._provider.attempt(call, Attempt(prefix="1 2 3 4"))(Emit())
        return True, f"went on with {len(done.text)} characters"

    async def leaving(self) -> tuple[bool | None, str]:
        """Whether the server stops for a client that has left."""
        if not self._provider.spec.local:
            return None, "not asked of a cloud"
        before = (await self._complete()).first_token_s or 0.0
        async with self._provider.stream("Write a long story.", model=self._model, max_tokens=1000) as answer:
            async for _ in answer:
                break
        after = (await self._complete()).first_token_s or 0.0
        return after < 1 + 3 * before, f"the next answer began after {after:.2f} s ({before:.2f} s before)"


async def _asked(question: str, ask: Ask) -> Finding:
    """The finding; an error is one, and says nothing of the answer."""
    try:
        passed, seen = await ask()
    except errors.NotRecorded:
        raise
    except LLMError as error:
        status = f" (HTTP {error.status})" if error.status else ""
        return Finding(question, False, f"{type(error).__name__}{status}: {error.what}")
    return Finding(question, passed, seen)


def _capabilities(findings: list[Finding]) -> str:
    """What follows for ``<NAME>_CAPABILITIES``."""
    passed = {each.question: each.passed for each in findings}
    missing_finish = any(each.question == "finish reason" and "FinishMissing" in each.seen for each in findings)
    words = ["no-finish"] if missing_finish else []
    for question, name in (("JSON schema", "json_schema"), ("tools", "tools")):
        if passed.get(question) is not None:
            words.append(name if passed[question] else f"no-{name}")
    return ",".join(words)
