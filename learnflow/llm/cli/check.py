"""``check``: test a server for the features that this package depends on. The answers are not printed.

A cloud provider gets requests only if ``--provider`` or the settings name this provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from .. import errors
from ..adapter.provider import BaseProvider
from ..base import Attempt, Call
from ..completion import Completion
from ..discovery import find_providers
from ..errors import LLMError
from ..providers import build
from ..stream import Emit
from .command import ExitCode, command, json_option, model_option, provider_option
from .status import chain_of
from .terminal import notify, progress, table, write, write_json

_MISSING_MODEL: Final = "learnflow-no-such-model"
_MAX_LONG_PROMPT_TOKENS: Final = 40_000  # a context length that needs a longer prompt is not checked
_ESTIMATED_TOKENS: Final = 900  # of all checks together, except the check of the context length
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
    """The result of a check. The attributes are keys of the JSON output.

    Attributes:
        question: the name of the check, such as "finish reason".
        passed: whether the server has the feature; None if the check was skipped or its result is unclear.
        seen: the observation, such as "stop, 5 characters in 0.3 s".
    """

    question: str
    passed: bool | None
    seen: str


@command
@model_option
@json_option(help="Print one JSON object with the findings.")
@provider_option
async def check(model: str | None, as_json: bool, provider: str | None) -> int:
    """Check a server for the features that this package depends on.

    Sends about a dozen short requests, for finish reasons, streams, errors, schemas, tools and continuation. Without
    --json, the last line of the output is the variable to set, or "Nothing to set."
    """
    server = await _refreshed_provider(provider)
    context_length = server.facts(model).capabilities["context_served"]
    long_prompt_tokens = int(context_length * 1.2) if context_length and server.spec.local else 0
    if long_prompt_tokens > _MAX_LONG_PROMPT_TOKENS:
        long_prompt_tokens = 0
    long_prompt = f", and one of {long_prompt_tokens} tokens to exceed its context length" if long_prompt_tokens else ""
    notify(f"{server.name}: sending about a dozen requests with about {_ESTIMATED_TOKENS} tokens in total{long_prompt}")
    findings: list[Finding] = []
    for question, run in _Checks(server, model, long_prompt_tokens).all():
        with progress(f"{server.name}: {question}"):
            findings.append(await _finding(question, run))
        if question == "finish reason" and findings[-1].passed is False:
            break  # the other checks would fail for the same reason
    value = _capabilities_value(findings)
    if as_json:
        write_json({"provider": server.name, "capabilities": value, "findings": [*map(asdict, findings)]})
    else:
        marks = {True: "yes", False: "NO", None: "-"}
        table(
            ("PASS", "CHECK", "SEEN"), ((marks[finding.passed], finding.question, finding.seen) for finding in findings)
        )
        write(f"{server.spec.variable('capabilities')}={value}" if value else "Nothing to set.")
    required = ("finish reason", "a stream")
    failed = any(finding.passed is False for finding in findings if finding.question in required)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _refreshed_provider(name: str | None) -> BaseProvider:
    chain = chain_of(name)
    provider = build(chain[0]) if chain else (await find_providers())[0]
    await provider.refresh()
    return provider


_Check = Callable[[], Awaitable[tuple[bool | None, str]]]  # returns ``passed`` and ``seen`` of the finding


class _Checks:
    """The checks of one provider.

    ``long_prompt_tokens`` is the size of a prompt that exceeds the context length. If it is 0, the context length is
    not checked.
    """

    def __init__(self, provider: BaseProvider, model: str | None, long_prompt_tokens: int) -> None:
        self._provider = provider
        self._model = model
        self._long_prompt_tokens = long_prompt_tokens

    def all(self) -> list[tuple[str, _Check]]:
        """Return the name and the function of each check, in order."""
        return [
            ("finish reason", self.check_finish_reason),
            ("tokens counted", self.check_usage),
            ("a stream", self.check_stream),
            ("max_tokens", self.check_max_tokens),
            ("a missing model", self.check_missing_model),
            ("a prompt too long", self.check_context_overflow),
            ("JSON schema", self.check_schema),
            ("tools", self.check_tools),
            ("continuation", self.check_prefill),
            ("stops on disconnect", self.check_disconnect),
        ]

    async def _complete(self, prompt: str = _PROMPT, **options: Any) -> Completion:
        return await self._provider.complete(
            prompt, **{"model": self._model, "max_tokens": 60, "temperature": 0.0, **options}
        )

    async def check_finish_reason(self) -> tuple[bool | None, str]:
        """Check that an answer ends with a finish reason."""
        completion = await self._complete()
        return True, f"{completion.finish}, {len(completion.text)} characters in {completion.total_s:.1f} s"

    async def check_usage(self) -> tuple[bool | None, str]:
        """Check that the server reports token counts."""
        usage = (await self._complete()).usage
        return usage.completion_tokens is not None, f"prompt {usage.prompt_tokens}, answer {usage.completion_tokens}"

    async def check_stream(self) -> tuple[bool | None, str]:
        """Check that the server sends the answer in more than one piece."""
        loop, times = asyncio.get_running_loop(), list[float]()
        started = loop.time()
        async with self._provider.stream(
            "Count from 1 to 30.", model=self._model, max_tokens=120, temperature=0.0
        ) as answer:
            async for _ in answer:
                times.append(loop.time() - started)
        return len(times) > 1, f"{len(times)} pieces from {times[0]:.2f} to {times[-1]:.2f} s" if times else "no text"

    async def check_max_tokens(self) -> tuple[bool | None, str]:
        """Check that an answer that reaches ``max_tokens`` has the finish reason "length"."""
        completion = await self._complete("Count from 1 to 100.", max_tokens=3)
        return completion.finish == "length", completion.finish

    async def check_missing_model(self) -> tuple[bool | None, str]:
        """Check that a missing model causes an error."""
        try:
            await self._complete(model=_MISSING_MODEL)
        except errors.ModelNotFound as error:
            code = error.code or "recognised by its text"
            return True, f"{code} (HTTP {error.status})" if error.status else "not in the server's list"
        return None, "answered: the server accepts any name"

    async def check_context_overflow(self) -> tuple[bool | None, str]:
        """Check that a prompt that exceeds the context length causes an error."""
        if not self._long_prompt_tokens:
            return None, "not checked: the context length is unknown, too large, or that of a cloud"
        try:
            await self._complete("word " * self._long_prompt_tokens, max_tokens=4)
        except errors.ContextOverflow as error:
            return True, f"HTTP {error.status}" if error.status else "raised before the request was sent"
        return False, "answered: the server drops the beginning of a long prompt without an error"

    async def check_schema(self) -> tuple[bool | None, str]:
        """Check that the first answer fits a JSON schema, so that no correction request is necessary."""
        response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA, "strict": True}}
        completion = await self._complete('Give the word "pong" as JSON.', response_format=response_format)
        if completion.attempts > 1:
            return False, "only after a correction request"
        return (True, "fits") if completion.finish == "stop" else (None, f"finish {completion.finish}")

    async def check_tools(self) -> tuple[bool | None, str]:
        """Check that the model calls a tool."""
        completion = await self._complete("What is the weather in Paris? Call the tool.", tools=[_TOOL])
        called = [call.name for call in completion.tool_calls]
        return bool(called) or None, f"called {', '.join(called)}" if called else "answered without a call"

    async def check_prefill(self) -> tuple[bool | None, str]:
        """Check that the model continues the beginning of an answer (a prefill)."""
        if not self._provider.facts(self._model).supports_prefill:
            return None, "no prefill: a prompt asks for the continuation"
        call = Call("Count from 1 to 9, with spaces.", self._model, 0.0, 40, method="generate")
        completion = await self._provider.attempt(call, Attempt(prefix="1 2 3 4"))(Emit())
        return True, f"continued with {len(completion.text)} characters"

    async def check_disconnect(self) -> tuple[bool | None, str]:
        """Check that the server stops generating when the client disconnects: the next answer is not late."""
        if not self._provider.spec.local:
            return None, "not checked for a cloud"
        before_s = (await self._complete()).first_token_s or 0.0
        async with self._provider.stream("Write a long story.", model=self._model, max_tokens=1000) as answer:
            async for _ in answer:
                break
        after_s = (await self._complete()).first_token_s or 0.0
        return (
            after_s < 1 + 3 * before_s,
            f"the next answer began after {after_s:.2f} s, an earlier one after {before_s:.2f} s",
        )


async def _finding(question: str, run: _Check) -> Finding:
    """Run a check. If it raises an LLMError, return a failed finding, which does not quote the answer."""
    try:
        passed, seen = await run()
    except errors.NotRecorded:
        raise
    except LLMError as error:
        status = f" (HTTP {error.status})" if error.status else ""
        return Finding(question, False, f"{type(error).__name__}{status}: {error.what}")
    return Finding(question, passed, seen)


def _capabilities_value(findings: list[Finding]) -> str:
    """Return the value to set for the variable ``<NAME>_CAPABILITIES``, such as "json_schema,no-tools"."""
    results = {finding.question: finding.passed for finding in findings}
    missing_finish = any(
        finding.question == "finish reason" and "FinishMissing" in finding.seen for finding in findings
    )
    words = ["no-finish"] if missing_finish else []
    for question, name in (("JSON schema", "json_schema"), ("tools", "tools")):
        if results.get(question) is not None:
            words.append(name if results[question] else f"no-{name}")
    return ",".join(words)
