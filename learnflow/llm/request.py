"""What the caller asked, checked against the row, and put as LiteLLM wants it.

Must never send anything, or drop a keyword in silence.
The adapter makes one for each call.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from . import structured
from .base import Options, Prompt, is_default
from .errors import CapabilityError, InvalidRequest, LLMError, RequestError, Unsupported
from .specs import ProviderSpec

_KEYWORDS: Final = tuple(Options.__annotations__)
_NOT_OPENAI: Final = ("top_k", "min_p")  # not parameters of OpenAI's: they travel in the body as they are
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, math.inf),
    "max_tokens": (1, math.inf),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "frequency_penalty": (-math.inf, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "timeout": (0, math.inf),
}
_WHOLE: Final = ("max_tokens", "top_k", "seed")
_REASONING: Final = (True, False, "low", "medium", "high")
_FORMATS: Final = ("text", "json_object", "json_schema")
_REFUSES: Final = re.compile(
    r"support|unknown|unrecogni|unexpected|invalid|not allowed|not permitted|extra|leave out|greater"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """How it is put this time: what is left out because the model refused it, and which rung of the schema ladder."""

    without: frozenset[str] = frozenset()
    rung: int = 0
    newer_limit: bool = False  # max_completion_tokens instead of max_tokens: models that think want it


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request; its repr shows no prompt."""

    spec: ProviderSpec
    messages: list[dict[str, Any]] = field(repr=False)
    model: str | None
    sampling: dict[str, Any]
    tools: list[dict[str, Any]] = field(repr=False)
    tool_choice: Any
    wanted: Any = field(repr=False)
    reasoning: bool | str | None
    timeout: float | None
    extra_body: dict[str, Any] = field(repr=False)

    @property
    def texts(self) -> list[str]:
        """What the messages say."""
        contents = [message.get("content") for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return [text for text in (*contents, *(part.get("text") for part in parts)) if isinstance(text, str)]

    @property
    def other_texts(self) -> list[str]:
        """Everything else that is the caller's: images, tools, arguments."""
        return list(_strings([self.messages, self.tools, self.extra_body]))

    def put(self, model: str, variant: Variant) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages and parameters as LiteLLM takes them. Raises Unsupported where the model cannot honour one."""
        messages, parameters = [dict(message) for message in self.messages], dict[str, Any]()
        body = {**self.spec.body, **self._thinking(model), **self.extra_body}
        sampling = {
            name: value
            for name, value in self.sampling.items()
            if not (name in variant.without and is_default(value))  # never what the caller asked for
        }
        if self.spec.options:
            own = body.pop("options", None) or {}
            body["options"] = {self.spec.options[name]: value for name, value in sampling.items()} | dict(own)
        else:
            body |= {name: sampling.pop(name) for name in _NOT_OPENAI if name in sampling}
            if variant.newer_limit and "max_tokens" in sampling:
                sampling["max_completion_tokens"] = sampling.pop("max_tokens")
            parameters |= {name: _plain(value) for name, value in sampling.items()}
        if self.tools and self.tool_choice != "none":
            parameters["tools"] = self.tools
            if self.tool_choice is not None and not (self.spec.options and self.tool_choice == "auto"):
                parameters["tool_choice"] = self.tool_choice
        if self.wanted is not None:
            asked, words = (
                (self.wanted, None)
                if isinstance(self.wanted, dict)
                else structured.asked_for(self.wanted, self.spec.structured[variant.rung])
            )
            parameters |= {"response_format": asked} if asked else {}
            messages += [{"role": "user", "content": words}] if words else []
        if self.spec.stream_usage and "stream_options" not in variant.without:
            parameters["stream_options"] = {"include_usage": True}
        if body:
            parameters["extra_body"] = body
        return messages, parameters

    def otherwise(self, variant: Variant, error: LLMError) -> tuple[Variant, str] | None:
        """Another way to put it after this refusal, and what it leaves out; None where there is none.

        Only what is ours is left out: our defaults, our wish for usage, the rung of our ladder. Never a caller's word.
        """
        if not isinstance(error, (CapabilityError, RequestError)):
            return None
        said = f"{error.what} {error.hint}".lower()
        if "max_completion_tokens" in said and not variant.newer_limit:
            return replace(variant, newer_limit=True), "max_tokens as max_completion_tokens"
        ours = {name for name, value in self.sampling.items() if is_default(value)} | {"stream_options"}
        at_fault = {error.param} if error.param else {name for name in ours if name in said and _REFUSES.search(said)}
        refused = frozenset(at_fault & ours) - variant.without
        if refused:
            return replace(variant, without=variant.without | refused), f"without {', '.join(sorted(refused))}"
        ladder = isinstance(self.wanted, type) and variant.rung + 1 < len(self.spec.structured)
        if ladder and any(word in said for word in ("response_format", "schema", "format", "grammar", "structured")):
            return replace(variant, rung=variant.rung + 1), f"the schema as {self.spec.structured[variant.rung + 1]}"
        return None

    def _thinking(self, model: str) -> Mapping[str, Any]:
        """What the row adds to the body for ``reasoning=``."""
        if self.reasoning is None:
            return {}
        thinks = self.spec.reasoning_models
        if thinks and not thinks.search(model):
            if self.reasoning is False:
                return {}
            raise Unsupported(f"{model} does not think", hint="Leave reasoning= out, or choose a model that does")
        return self.spec.reasoning[self.reasoning]


def request(
    spec: ProviderSpec,
    prompt: Prompt,
    model: str | None,
    sampling: Mapping[str, Any],
    more: Mapping[str, Any],
    *,
    tools_allowed: bool,
) -> Request:
    """Check what the caller asked.

    Raises:
        InvalidRequest: an unknown keyword, or a value that cannot be.
        Unsupported: a keyword that this provider cannot honour.
    """
    for name in more:
        if name not in _KEYWORDS:
            near = difflib.get_close_matches(name, (*_KEYWORDS, "temperature", "max_tokens"), 1)
            hint = f"Did you mean {near[0]}=?" if near else f"Known are {', '.join(_KEYWORDS)}"
            raise InvalidRequest(
                f"there is no keyword {name}=",
                provider=spec.name,
                hint=f"{hint}; extra_body= takes what only this server knows",
            )
    given = {name: value for name, value in {**sampling, **more}.items() if value is not None}
    for name in given:
        if name not in spec.parameters:
            raise Unsupported(f"{spec.title} cannot honour {name}=", provider=spec.name, hint=f"Leave {name}= out here")
    _check_values(spec, given)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]  # Ollama takes a list only
    tools, choice = given.pop("tools", []), given.pop("tool_choice", None)
    if tools and not tools_allowed:
        raise InvalidRequest("tools need complete(): a text alone cannot carry a call", provider=spec.name)
    _check_choice(spec, choice, tools)
    wanted = given.pop("response_format", None)
    system = given.pop("system", None)
    messages = _messages(spec, prompt)
    return Request(
        spec=spec,
        messages=([{"role": "system", "content": system}] if system else []) + messages,
        model=model,
        tools=[dict(tool) for tool in tools],
        tool_choice=choice,
        wanted=dict(wanted) if isinstance(wanted, Mapping) else wanted,
        reasoning=given.pop("reasoning", None),
        timeout=given.pop("timeout", None),
        extra_body=dict(given.pop("extra_body", {})),
        sampling=given,
    )


def _messages(spec: ProviderSpec, prompt: Prompt) -> list[dict[str, Any]]:
    """Copies, part by part: LiteLLM changes messages in place."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = list(prompt) if _rows(prompt) else []
    for each in messages:
        content = each.get("content")
        if not isinstance(each.get("role"), str) or not (content is None or isinstance(content, str) or _rows(content)):
            messages = []
            break
    if not messages:
        raise InvalidRequest(
            "the prompt is neither a text nor a list of messages",
            provider=spec.name,
            hint='A message is {"role": "user", "content": "…"}; content may be a list of text and image_url parts',
        )
    if not any(each.get("content") or each.get("tool_calls") for each in messages):
        raise InvalidRequest("the prompt is empty", provider=spec.name, hint="Say something")
    return [
        {**each, "content": [dict(part) for part in each["content"]]} if _rows(each.get("content")) else dict(each)
        for each in messages
    ]


def _rows(value: Any) -> bool:
    """Whether this is a list of objects."""
    return isinstance(value, (list, tuple)) and all(isinstance(each, Mapping) for each in value)


def _strings(value: Any) -> Iterator[str]:
    """Every text in it, however deep."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _strings(each)


def _check_values(spec: ProviderSpec, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        low, high = _NUMBERS.get(name, (-math.inf, math.inf))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _WHOLE and not (number and isinstance(value, int) and value >= low):
            raise _bad(spec, name, f"a whole number{f' from {low:g}' if low > -math.inf else ''}")
        if name in _NUMBERS and not (number and low <= value <= high and not math.isinf(value)):
            raise _bad(
                spec, name, f"a number from {low:g} to {high:g}" if high < math.inf else f"a number from {low:g}"
            )
    if given.get("timeout") == 0:
        raise _bad(spec, "timeout", "more than 0 seconds")
    for name, (fits, wanted) in _SHAPES.items():
        if name in given and not fits(given[name]):
            raise _bad(spec, name, wanted)
    reasoning = given.get("reasoning")
    if reasoning is not None and not (isinstance(reasoning, (bool, str)) and reasoning in _REASONING):
        raise _bad(spec, "reasoning", 'True, False, "low", "medium" or "high"')
    _check_format(spec, given.get("response_format"))


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value))


_SHAPES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "stop": (_texts, "a text or a list of texts"),
    "system": (lambda value: isinstance(value, str), "a text"),
    "tools": (_rows, "a list of OpenAI-style tools"),
    "extra_body": (lambda value: isinstance(value, Mapping), "a dict"),
    "tool_choice": (lambda value: isinstance(value, (str, Mapping)), "a text or a dict"),
}


def _check_format(spec: ProviderSpec, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        kind = wanted.get("type")
        if kind not in _FORMATS:
            raise _bad(
                spec, "response_format", f"a pydantic class, or a dict whose type is one of {', '.join(_FORMATS)}"
            )
        if kind != "text" and kind not in spec.structured:
            raise Unsupported(
                f"{spec.title} does not know response_format {kind}",
                provider=spec.name,
                hint=f"Use {spec.structured[0]}, or a pydantic class",
            )
        if kind == "json_schema" and not isinstance(wanted.get("json_schema"), Mapping):
            raise _bad(spec, "response_format", 'given its schema under "json_schema"')
    elif wanted is not None and not (isinstance(wanted, type) and hasattr(wanted, "model_validate_json")):
        raise _bad(spec, "response_format", "a pydantic class or a dict")


def _check_choice(spec: ProviderSpec, choice: Any, tools: Any) -> None:
    if choice is None:
        return
    if not tools:
        raise InvalidRequest("tool_choice= without tools=", provider=spec.name, hint="Give tools=, or leave it out")
    if spec.tool_choices is not None and choice not in spec.tool_choices:
        raise Unsupported(
            f"{spec.title} cannot honour this tool_choice=",
            provider=spec.name,
            hint=f"It knows {', '.join(spec.tool_choices)}",
        )


def _bad(spec: ProviderSpec, name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name}= must be {wanted}", provider=spec.name)


def _plain(value: Any) -> Any:
    """Our own defaults as the numbers that they are."""
    return type(value).__mro__[1](value) if is_default(value) else value
