"""A provider for tests of applications. It answers from a script, stores the received requests and opens no connection.

A test passes the provider to the tested code, or calls ``testing.use_provider``, so that ``get_provider()`` uses it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .. import errors
from ..adapter import structured_output
from ..base import AbstractProvider, Call, Method, Options, Prompt
from ..capabilities import Capabilities, default_capabilities
from ..completion import Completion, ReasoningDelta, ServedModel, TextDelta, ToolCallDelta
from ..stream import Emit, Work


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """An answer that ends with the error AnswerCut.

    Attributes:
        text: the text before the error. A ``str`` is streamed in words, a list piece by piece.
    """

    text: str | list[str]


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """A request to a ``ScriptedProvider``.

    Attributes:
        method: the called method: generate, stream or complete.
        prompt: a copy of the prompt.
        model: the requested model; None if the call does not specify it.
        temperature: the sampling temperature.
        max_tokens: the maximum length of the answer, in tokens.
        options: the other keywords of the call, by name, without ``metadata``.
    """

    method: Method
    prompt: Prompt = field(repr=False)
    model: str | None
    temperature: float
    max_tokens: int
    options: Mapping[str, Any]


Answer = str | list[str] | Completion | CutAnswer | BaseException | type[BaseException]


class ScriptedProvider(AbstractProvider):
    """A provider that answers from a script.

    Example: ``ScriptedProvider(["Hello.", errors.RateLimited("busy"), CutAnswer("It beg")])``.

    Each request gets the next answer of the script:

    - a text, which is streamed in words,
    - a list of pieces to stream,
    - a ``Completion``, which is returned unchanged,
    - an exception, which is raised, or
    - a ``CutAnswer``.

    If the request has a ``response_format``, a text or list is parsed and must match it. A request after the end of
    the script raises NotRecorded, and a router does not fall back from this error.

    Args:
        answers: the answers in order, or one text.
        name: the name in logs and errors.
        capabilities: the fields of ``Capabilities`` to report. The provider is local unless ``local=False``.

    Attributes:
        answers: the remaining answers. A test may append to them.
        history: the requests so far.

    Raises:
        InvalidRequest: a capability is unknown.
    """

    def __init__(self, answers: Iterable[Answer] = (), *, name: str = "scripted", **capabilities: Any) -> None:
        self.answers: list[Answer] = [answers] if isinstance(answers, str) else list(answers)
        self.history: list[ScriptedRequest] = []
        self._name = name
        unknown = set(capabilities) - set(Capabilities.__annotations__)
        if unknown:
            raise errors.InvalidRequest(f"unknown capability {', '.join(sorted(unknown))}")
        defaults = {"vision": True, "tools": True, "json_schema": True, "cost": None}
        self._capabilities = default_capabilities(**{**defaults, **capabilities})

    def __repr__(self) -> str:
        return f"ScriptedProvider({self.name!r})"

    @property
    def name(self) -> str:
        """Return the name in logs and errors."""
        return self._name

    def start(self, call: Call) -> Work:
        """Return the coroutine function that runs a call. The function removes the next answer from the script."""
        if call.prior_text:
            raise errors.Unsupported("the script cannot continue an answer with after=", provider=self.name)
        request = ScriptedRequest(call.method, call.prompt, call.model, call.temperature, call.max_tokens, call.options)
        return partial(self._answer, request)

    async def list_models(self) -> list[str]:
        """Return the name of the only model, which is the provider's name."""
        return [self._name]

    async def health_check(self) -> bool:
        """Return whether the script has another answer."""
        return bool(self.answers)

    def get_capabilities(self) -> Capabilities:
        """Return the capabilities."""
        return self._capabilities

    async def _answer(self, request: ScriptedRequest, emit: Emit) -> Completion:
        self.history.append(replace(request, prompt=copy.deepcopy(request.prompt), options=dict(request.options)))
        unknown = set(request.options) - set(Options.__annotations__)
        if unknown:
            raise errors.InvalidRequest(f"unknown keyword {', '.join(sorted(unknown))}", provider=self._name)
        if not self.answers:
            raise errors.NotRecorded(
                f"the script has no answer for request {len(self.history)}",
                provider=self._name,
                hint="Add an answer to ScriptedProvider, or check why the request is sent",
            )
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, type):
            raise answer("raised by the script")
        content = answer.text if isinstance(answer, CutAnswer | Completion) else answer
        text = "".join(content)
        if isinstance(answer, Completion) and answer.reasoning:
            emit(ReasoningDelta(answer.reasoning))
        for piece in content if isinstance(content, list) else re.findall(r"\S+\s*|\s+", content):
            emit(TextDelta(piece))
            await emit.drain()
        for index, call in enumerate(answer.tool_calls if isinstance(answer, Completion) else ()):
            emit(ToolCallDelta(index, call.id, call.name, json.dumps(call.arguments)))
        if isinstance(answer, CutAnswer):
            error = errors.AnswerCut("the script breaks the answer here", provider=self._name)
            error.partial = text
            raise error
        return answer if isinstance(answer, Completion) else self._completion(request, text)

    def _completion(self, request: ScriptedRequest, text: str) -> Completion:
        response_format = request.options.get("response_format")
        return Completion(
            text=text,
            finish="stop",
            provider=self._name,
            model=ServedModel(request.model or self._name),
            parsed=structured_output.parse(response_format, text),
            cost=0.0,
        )
