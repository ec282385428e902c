"""``check``: test a server for the features that this package depends on.

It tests a cloud only if the user names it, and prints no answer.
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
from .terminal import notify, progress, table, write, write_json

_MISSING_MODEL: Final = "learnflow-no-such-model"
_MAX_LONG_PROMPT_TOKENS: Final = 40_000  # of the prompt that exceeds the context length; longer ones are not sent
_ESTIMATED_TOKENS: Final = 900  # of all other requests together
_PROMPT = "Say the word pong."
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
    """One check. ``passed`` may be None: unknown."""

    question: str
    passed: bool | None
    seen: str


@command
@model_option
@json_option(help="Print one object with the findings.")
@provider_option
async def check(model: str | None, as_json: bool, provider: str | None) -> int:
    """Check a server for the features that this package depends on.

    Sends up to ten short requests: finish reasons, streams, errors, schemas, tools, continuation. The last line has the
    variable to set.
    """
    server = await _provider(provider)
    served = server.facts(model).capabilities["context_served"]
    long = int(served * 1.2) if server.spec.local and served and served * 1.2 < _MAX_LONG_PROMPT_TOKENS else None
    more = f", and one of {long} tokens, which exceeds its context length" if long else ""
    notify(f"{server.name}: sending up to 10 requests of about {_ESTIMATED_TOKENS} tokens together{more}")
    findings: list[Finding] = []
    for question, run in _Checks(server, model, long).all():
        with progress(f"{server.name}: {question}"):
            findings.append(await _finding(question, run))
        if question == "finish reason" and findings[-1].passed is False:
            break  # the other checks would fail for the same reason
    words = _capabilities(findings)
    if as_json:
        write_json({"provider": server.name, "capabilities": words, "findings": [*map(asdict, findings)]})
    else:
        marks = {True: "yes", False: "NO", None: "-"}
        table(
            ("PASS", "CHECK", "SEEN"), ((marks[finding.passed], finding.question, finding.seen) for finding in findings)
        )
        write(f"{server.spec.variable('capabilities')}={words}" if words else "Nothing to set.")
    required = ("finish reason", "a stream")
    failed = any(finding.passed is False for finding in findings if finding.question in required)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _provider(name: str | None) -> BaseProvider:
    chain = chain_of(name)
    provider = build(chain[0]) if chain else (await find_providers())[0]
    await provider.refresh()
    return provider


_Check = Callable[[], Awaitable[tuple[bool | None, str]]]  # returns whether it passed, and the details


class _Checks:
    """The checks of one provider. ``long``: tokens of a prompt that exceeds the context length, or None."""

    def __init__(self, provider: BaseProvider, model: str | None, long: int | None) -> None:
        self._provider = provider
        self._model = model
        self._long = long

    def all(self) -> list[tuple[str, _Check]]:
        """Return the checks in their order, with their names."""
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

    async def _complete(self, prompt: str = _PROMPT, **more: Any) -> Any:
        return await self._provider.complete(
            prompt, **{"model": self._model, "max_tokens": 60, "temperature": 0.0, **more}
        )

    async def finish(self) -> tuple[bool | None, str]:
        """Check that an answer ends with a finish reason."""
        done = await self._complete()
        return True, f"{done.finish}, {len(done.text)} characters in {done.total_s:.1f} s"

    async def usage(self) -> tuple[bool | None, str]:
        """Check that the server reports tokens."""
        usage = (await self._complete()).usage
        return usage.completion_tokens is not None, f"prompt {usage.prompt_tokens}, answer {usage.completion_tokens}"

    async def stream(self) -> tuple[bool | None, str]:
        """Check that pieces arrive during generation."""
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
        """Check that an answer that ends at ``max_tokens`` has the finish reason "length"."""
        done = await self._complete("Count from 1 to 100.", max_tokens=3)
        return done.finish == "length", done.finish

    async def missing(self) -> tuple[bool | None, str]:
        """Check the error for a missing model."""
        try:
            await self._complete(model=_MISSING_MODEL)
        except errors.ModelNotFound as error:
            return True, f"{error.code or 'by its words'} (HTTP {error.status})" if error.status else "by its list"
        return None, "answered: it serves one model under any name"

    async def overflow(self) -> tuple[bool | None, str]:
        """Check the error for a prompt that exceeds the context length."""
        if self._long is None:
            return None, "not checked: the context length is unknown, too large, or that of a cloud"
        try:
            await self._complete("word " * self._long, max_tokens=4)
        except errors.ContextOverflow as error:
            return True, f"refused by name (HTTP {error.status})" if error.status else "refused before it was sent"
        return False, "answered: the server drops the beginning of a long prompt without an error"

    async def schema(self) -> tuple[bool | None, str]:
        """Check that an answer fits a JSON schema."""
        response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA, "strict": True}}
        done = await self._complete('Give the word "pong" as JSON.', response_format=response_format)
        if done.attempts > 1:
            return False, "only on the second attempt, after a hint about the fault"
        return (True, "fits") if done.finish == "stop" else (None, f"finish {done.finish}")

    async def tools(self) -> tuple[bool | None, str]:
        """Check that the model calls a tool."""
        done = await self._complete("What is the weather in Paris? Call the tool.", tools=[_TOOL])
        called = [call.name for call in done.tool_calls]
        return bool(called) or None, f"called {', '.join(called)}" if called else "answered in words: model or server"

    async def prefill(self) -> tuple[bool | None, str]:
        """Check that a prefill is continued."""
        if not self._provider.facts(self._model).prefills:
            return None, "no prefill: a broken answer is continued by a request in words"
        call = Call("Count from 1 to 9, with spaces.", self._model, 0.0, 40, method="generate")
        done = await self._provider.attempt(call, Attempt(prefix="1 2 3 4"))(Emit())
        return True, f"continued with {len(done.text)} characters"

    async def leaving(self) -> tuple[bool | None, str]:
        """Check that the server stops when the client disconnects."""
        if not self._provider.spec.local:
            return None, "not checked for a cloud"
        before = (await self._complete()).first_token_s or 0.0
        async with self._provider.stream("Write a long story.", model=self._model, max_tokens=1000) as answer:
            async for _ in answer:
                break
        after = (await self._complete()).first_token_s or 0.0
        return after < 1 + 3 * before, f"the next answer began after {after:.2f} s ({before:.2f} s before)"


async def _finding(question: str, run: _Check) -> Finding:
    """Return the finding of a check. An error is a finding, too; it repeats nothing of the answer."""
    try:
        passed, seen = await run()
    except errors.NotRecorded:
        raise
    except LLMError as error:
        status = f" (HTTP {error.status})" if error.status else ""
        return Finding(question, False, f"{type(error).__name__}{status}: {error.what}")
    return Finding(question, passed, seen)


def _capabilities(findings: list[Finding]) -> str:
    """Return the value for ``<NAME>_CAPABILITIES`` that follows from the findings."""
    passed = {finding.question: finding.passed for finding in findings}
    missing_finish = any(
        finding.question == "finish reason" and "FinishMissing" in finding.seen for finding in findings
    )
    words = ["no-finish"] if missing_finish else []
    for question, name in (("JSON schema", "json_schema"), ("tools", "tools")):
        if passed.get(question) is not None:
            words.append(name if passed[question] else f"no-{name}")
    return ",".join(words)
