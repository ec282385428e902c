"""A provider that answers from a script and remembers what it was asked, for tests of applications.

Must never connect anywhere.
Applications' tests give it to what they test, or to ``get_provider()`` through ``provided``.
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
from ..capabilities import Capabilities
from ..capabilities import unknown as nothing_known
from ..completion import Completion, ReasoningDelta, ServedModel, TextDelta, ToolCallDelta
from ..stream import Emit, Work


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer that breaks.

    Attributes:
        text: what arrives before: a text, which comes in words, or its pieces.
    """

    text: str | list[str]


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What it was asked.

    Attributes:
        call: generate, stream or complete.
        prompt: as it was given; in no repr.
        model: None where the call named none.
        temperature: as it was given, or the default.
        max_tokens: as it was given, or the default.
        more: the other keywords.
    """

    call: Method
    prompt: Prompt = field(repr=False)
    model: str | None
    temperature: float
    max_tokens: int
    more: Mapping[str, Any]


Answer = str | list[str] | Completion | Cut | BaseException | type[BaseException]


class ScriptedProvider(AbstractProvider):
    """``ScriptedProvider(["Hello.", errors.RateLimited("busy"), Cut("It beg")])`` answers so, in this order.

    A text comes in words, a list in its own pieces, a ``Completion`` as it is (its text in words); an exception is
    raised; a ``Cut`` breaks after its text. Where ``response_format`` is a pydantic class, ``parsed`` is read from the
    text. A request beyond the script raises NotRecorded, which no fallback hides.

    Args:
        answers: the script, or its only text; ``answers`` may be added to at any time.
        name: what it goes by in logs and errors.
        capabilities: what it says it can, beside being local.

    Attributes:
        history: the requests so far.
    """

    def __init__(self, answers: Iterable[Answer] = (), *, name: str = "scripted", **capabilities: Any) -> None:
        self.answers: list[Answer] = [answers] if isinstance(answers, str) else list(answers)
        self.history: list[ScriptedRequest] = []
        self._name = name
        unknown = set(capabilities) - set(Capabilities.__annotations__)
        if unknown:
            raise errors.InvalidRequest(f"there is no capability {', '.join(sorted(unknown))}")
        can = {"vision": True, "tools": True, "json_schema": True, "cost": None}
        self._capabilities = nothing_known(**{**can, **capabilities})

    @property
    def name(self) -> str:
        """What it goes by."""
        return self._name

    def start(self, call: Call) -> Work:
        """The next answer; it is taken from the script when the first piece is asked for."""
        asked = ScriptedRequest(call.method, call.prompt, call.model, call.temperature, call.max_tokens, call.options)
        return partial(self._answer, asked)

    async def list_models(self) -> list[str]:
        """Its only model."""
        return [self._name]

    async def health_check(self) -> bool:
        """Whether there is an answer left."""
        return bool(self.answers)

    def get_capabilities(self) -> Capabilities:
        """What it was made to say."""
        return self._capabilities

    async def _answer(self, asked: ScriptedRequest, emit: Emit) -> Completion:
        self.history.append(replace(asked, prompt=copy.deepcopy(asked.prompt), more=dict(asked.more)))
        unknown = set(asked.more) - set(Options.__annotations__)
        if unknown:
            raise errors.InvalidRequest(f"unknown keyword {', '.join(sorted(unknown))}", provider=self._name)
        if not self.answers:
            raise errors.NotRecorded(
                f"the script has no answer for request {len(self.history)}",
                provider=self._name,
                hint="Give ScriptedProvider one answer more, or find out who asks once more",
            )
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, type):
            raise answer("as the script has it")
        said = answer.text if isinstance(answer, Cut | Completion) else answer
        text = "".join(said)
        if isinstance(answer, Completion) and answer.reasoning:
            emit(ReasoningDelta(answer.reasoning))
        for piece in said if isinstance(said, list) else re.findall(r"\S+\s*|\s+", said):
            emit(TextDelta(piece))
            await emit.drain()
        for at, call in enumerate(answer.tool_calls if isinstance(answer, Completion) else ()):
            emit(ToolCallDelta(at, call.id, call.name, json.dumps(call.arguments)))
        if isinstance(answer, Cut):
            cut = errors.AnswerCut("the script cuts it here", provider=self._name)
            cut.partial = text
            raise cut
        return answer if isinstance(answer, Completion) else self._made(asked, text)

    def _made(self, asked: ScriptedRequest, text: str) -> Completion:
        wanted = asked.more.get("response_format")
        return Completion(
            text=text,
            finish="stop",
            provider=self._name,
            model=ServedModel(asked.model or self._name),
            parsed=structured_output.parsed(wanted, text),
            cost=0.0,
        )
