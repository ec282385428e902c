"""A request: the prompt and keywords of a call, checked, and formatted for LiteLLM. Nothing is dropped silently."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .. import errors
from ..base import AtMost, Prompt, may_be_left_out
from ..errors import InvalidRequest, LLMError, Unsupported
from ..provider_spec import ProviderSpec
from . import structured_output
from .options import is_list_of_objects, messages_of, parts_of, text_of

_NOT_OPENAI: Final = ("top_k", "min_p")  # OpenAI has no such parameters: they go into the body unchanged
# One server requires both. Another repeats the prefill without them.
_CONTINUES: Final = "continue_final_message"
_PREFILL_FIELDS: Final = {_CONTINUES: True, "add_generation_prompt": False}
# Added after a last assistant message if the server would continue that message.
_NEXT_TURN: Final = {"role": "user", "content": "Please give your next message."}
_HEADER_VALUE: Final = re.compile(r"[!-~]+")  # no proxy splits or trims it
_MAX_TYPE_CHARS: Final = 40
_FORMAT_WORDS: Final = ("format", "schema", "grammar", "structured")
_REFUSAL_WORDS: Final = re.compile(
    r"support|unknown|unrecogni|unexpected|invalid|not allowed|not permitted|extra|leave out|greater"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """The format of a request after refusals.

    Attributes:
        without: parameters that this package added and the model refused.
        fallback_level: of the schema, an index into ``Dialect.structured``.
        newer_limit: send ``max_completion_tokens`` instead of ``max_tokens``. Reasoning models require it.
    """

    without: frozenset[str] = frozenset()
    fallback_level: int = 0
    newer_limit: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request. Its repr shows no prompt.

    Attributes:
        corrections: the number of messages at the end that ask for a correction: wrong answers and their faults.
        turn_added: a short user message was added after the caller's last assistant message.
    """

    spec: ProviderSpec
    messages: list[dict[str, Any]] = field(repr=False)
    model: str | None
    sampling: dict[str, Any]
    tools: list[dict[str, Any]] = field(repr=False)
    tool_choice: Any
    response_format: Any = field(repr=False)
    reasoning: bool | str | None
    timeout: float | None
    extra_body: dict[str, Any] = field(repr=False)
    session: str | None = field(default=None, repr=False)
    corrections: int = 0
    turn_added: bool = False

    @property
    def texts(self) -> list[str]:
        """Return the texts of the messages."""
        return [text_of(part) for message in self.messages for part in parts_of(message)]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(part.get("type") == "image_url" for message in self.messages for part in parts_of(message))

    @property
    def ceiling(self) -> int | None:
        """Return ``max_tokens`` if it is a ceiling (``AtMost``), which may be lowered; None if it is a demand."""
        max_tokens = self.sampling.get("max_tokens")
        return max_tokens if isinstance(max_tokens, AtMost) else None

    @property
    def own_context(self) -> bool:
        """Return whether ``extra_body`` sets the context length."""
        options, format_options = self.extra_body.get("options"), self.spec.dialect.format_options
        return bool(format_options and isinstance(options, Mapping) and format_options({}, 1).keys() & options.keys())

    @property
    def other_texts(self) -> list[str]:
        """Return every text of the caller, those in images, tools and the schema included."""
        return list(_strings([self.messages, self.tools, self.extra_body, self.response_format]))

    def corrected(self, text: str, reason: str) -> Request:
        """Return the request that asks the model to correct an answer, given its fault."""
        correction = [
            {"role": "assistant", "content": text},
            {"role": "user", "content": structured_output.write_correction(reason)},
        ]
        return replace(self, messages=[*self.messages, *correction], corrections=self.corrections + len(correction))

    def formatted(
        self, model: str, variant: Variant, *, context_length: int | None, max_tokens: int | None, prefill: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return messages and parameters in LiteLLM's format.

        Args:
            model: its name at the provider.
            variant: the format after refusals.
            context_length: in tokens, if the server accepts one; None for the server's default.
            max_tokens: the limit of the answer, if it is lower than the caller's ceiling.
            prefill: the beginning of an answer to continue, as the last message; None to begin an answer.

        Raises:
            Unsupported: the call requires reasoning, and the model does not support it.
        """
        dialect, messages, parameters = self.spec.dialect, list(self.messages), dict[str, Any]()
        body = {**dialect.body, **self._thinking(model), **self.session_field(header=False), **self.extra_body}
        if prefill is not None:
            messages.append({"role": "assistant", "content": prefill})
            body |= _PREFILL_FIELDS
        omitted = {name for name in variant.without if may_be_left_out(self.sampling.get(name))}
        sampling = {name: value for name, value in self.sampling.items() if name not in omitted}
        if max_tokens and "max_tokens" in sampling:
            sampling["max_tokens"] = max_tokens
        if dialect.format_options:
            body["options"] = dialect.format_options(sampling, context_length) | (body.get("options") or {})
        else:
            body |= {name: sampling.pop(name) for name in _NOT_OPENAI if name in sampling}
            if variant.newer_limit and "max_tokens" in sampling:
                sampling["max_completion_tokens"] = sampling.pop("max_tokens")
            parameters |= {name: _plain(value) for name, value in sampling.items()}
        if self.tools and self.tool_choice != "none":
            parameters["tools"] = self.tools
            if self.tool_choice is not None and not (dialect.format_options and self.tool_choice == "auto"):
                parameters["tool_choice"] = self.tool_choice
        if self.response_format is not None:
            mode = dialect.schema_modes[variant.fallback_level]
            response_format, instruction = structured_output.write_format(self.response_format, mode)
            parameters |= {"response_format": response_format} if response_format else {}
            messages = _with_instruction(messages, instruction, self.corrections) if instruction else messages
        if dialect.stream_usage and "stream_options" not in variant.without:
            parameters["stream_options"] = {"include_usage": True}
        if body:
            parameters["extra_body"] = body
        return messages, parameters

    def variant_after(self, variant: Variant, error: LLMError) -> tuple[Variant, str] | None:
        """Return the variant to retry with after a refusal, and a description of the change; None if no retry helps.

        A retry omits only what this package added: defaults, ``stream_options``, a mode of the schema. It never omits
        a keyword of the caller.
        """
        if not isinstance(error, (errors.CapabilityError, errors.RequestError)):
            return None
        message = error.server_message.lower()
        if "max_completion_tokens" in message and not variant.newer_limit:
            return replace(variant, newer_limit=True), "max_tokens as max_completion_tokens"
        ours = {name for name, value in self.sampling.items() if may_be_left_out(value)} | {"stream_options"}
        at_fault = {"max_tokens" if name == "max_completion_tokens" else name for name in error.params}
        at_fault = at_fault or {name for name in ours if name in message and _REFUSAL_WORDS.search(message)}
        overflow = isinstance(error, errors.ContextOverflow) and (error.needed or 0) < (error.window or math.inf)
        if self.ceiling and (overflow or "max_tokens" in message):
            at_fault.add("max_tokens")  # a ceiling may be omitted whatever the message is
        refused = frozenset(at_fault & ours) - variant.without
        if refused:
            return replace(variant, without=variant.without | refused), f"without {', '.join(sorted(refused))}"
        modes, level = self.spec.dialect.schema_modes, variant.fallback_level + 1
        falls_back = isinstance(self.response_format, type) and level < len(modes)
        if falls_back and any(word in message for word in _FORMAT_WORDS):
            return replace(variant, fallback_level=level), f"the schema as {modes[level]}"
        return None

    def variant_to_cache(self, variant: Variant, before: Variant) -> Variant:
        """Return the variant for later requests. The refusal of a ceiling concerns this request only."""
        if self.ceiling is None:
            return variant
        return replace(variant, without=variant.without - {"max_tokens"} | before.without)

    def session_field(self, *, header: bool) -> Mapping[str, str]:
        """Return the header, or the field of the body, with the session; empty if the provider has none.

        A session that is too long, or invalid in a header, is sent as a digest.
        """
        place = self.spec.dialect.session
        if place is None or self.session is None or place.header != header:
            return {}
        fits = len(self.session) <= place.max_chars and (not header or _HEADER_VALUE.fullmatch(self.session))
        return {place.name: self.session if fits else hashlib.sha256(self.session.encode()).hexdigest()}

    def _thinking(self, model: str) -> Mapping[str, Any]:
        """Return the fields of the body for ``reasoning=``."""
        if self.reasoning is None:
            return {}
        reasoning_models = self.spec.dialect.reasoning_models
        if reasoning_models and not reasoning_models.search(model):
            if self.reasoning is False:
                return {}
            hint = "Leave reasoning= out, or choose another model"
            raise Unsupported("the model does not support reasoning", hint=hint)
        return self.spec.dialect.reasoning[self.reasoning]


def request(spec: ProviderSpec, prompt: Prompt, model: str | None, given: dict[str, Any]) -> Request:
    """Return the request for a prompt and its keywords.

    Args:
        spec: of the provider.
        prompt: a text or messages.
        model: its name at the provider; None to choose it later.
        given: the checked keywords. The call empties them.

    Raises:
        InvalidRequest: the prompt is invalid.
        Unsupported: the provider does not support a part of a message.
    """
    response_format, stop = given.pop("response_format", None), given.get("stop")
    system = given.pop("system", None)
    messages = _messages(spec, prompt)
    extra_body = dict(given.pop("extra_body", {}))
    open_turn = messages[-1]["role"] == "assistant" and not (spec.dialect.finishes_turns or extra_body.get(_CONTINUES))
    if open_turn:
        messages.append(dict(_NEXT_TURN))
    if isinstance(stop, str):
        given["stop"] = [stop]  # some servers require a list
    return Request(
        spec=spec,
        messages=([{"role": "system", "content": system}] if system else []) + messages,
        model=model,
        tools=[dict(tool) for tool in given.pop("tools", ())],
        tool_choice=given.pop("tool_choice", None),
        response_format=dict(response_format) if isinstance(response_format, Mapping) else response_format,
        reasoning=given.pop("reasoning", None),
        timeout=given.pop("timeout", None),
        extra_body=extra_body,
        turn_added=open_turn,
        session=given.pop("session", None),
        sampling=given,
    )


def _messages(spec: ProviderSpec, prompt: Prompt) -> list[dict[str, Any]]:
    """Check the messages, and return deep copies of them: LiteLLM changes messages in place."""
    messages = messages_of(prompt)
    if not messages or not all(map(_is_message, messages)):
        raise InvalidRequest(
            "the prompt is neither a text nor a list of messages",
            hint='A message is {"role": "user", "content": "…"}. Content may be a list of text and image_url parts',
        )
    if not any(message.get("content") or message.get("tool_calls") for message in messages):
        raise InvalidRequest("the prompt is empty", hint="Give a prompt with text")
    for message in messages:
        _check_parts(spec, message)
    return [_copied(message) for message in messages]


def _is_message(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    has_content = content is None or isinstance(content, str) or is_list_of_objects(content)
    return has_content and isinstance(message.get("role"), str)


def _copied(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message. The role "developer" becomes "system", which every server supports."""
    copy = dict(message)
    if is_list_of_objects(copy.get("content")):
        copy["content"] = [dict(part) for part in copy["content"]]
    if copy["role"] == "developer":
        copy["role"] = "system"
    return copy


def _check_parts(spec: ProviderSpec, message: Mapping[str, Any]) -> None:
    """Raise if the provider does not support a part. LiteLLM would drop it silently, or fetch a file by its URL."""
    for part in message["content"] if is_list_of_objects(message.get("content")) else []:
        kind, file = part.get("type"), part.get("file")
        if kind not in spec.dialect.parts:
            what = f"{spec.title} does not support a part of type {str(kind)[:_MAX_TYPE_CHARS]!r}"
            raise Unsupported(what, hint=f"It supports {', '.join(sorted(spec.dialect.parts))}")
        if kind == "image_url" and not spec.dialect.reads_urls and not _is_data_url(part.get("image_url")):
            what = f"{spec.title} does not read images by URL; nothing was sent"
            raise Unsupported(what, hint="Give the image as a data URL: data:image/png;base64,…")
        if isinstance(file, Mapping) and str(file.get("file_id", "")).lower().startswith(("http", "www.")):
            raise Unsupported("a file cannot be given by URL", hint='Give its content as "file_data"')
    if message.get("images"):
        hint = "Give images as parts of type image_url in the content"
        raise InvalidRequest('a message has a field "images"', hint=hint)


def _is_data_url(image: Any) -> bool:
    url = image.get("url") if isinstance(image, Mapping) else image
    return isinstance(url, str) and url.startswith("data:")


def _with_instruction(messages: list[dict[str, Any]], instruction: str, corrections: int) -> list[dict[str, Any]]:
    """Add an instruction to the last user message, before the corrections: many templates require alternating roles."""
    end = len(messages) - corrections
    *before, last = messages[:end]
    if last["role"] != "user":
        return [*before, last, {"role": "user", "content": instruction}, *messages[end:]]
    text = last["content"]
    content = [*text, {"type": "text", "text": instruction}] if isinstance(text, list) else f"{text}\n\n{instruction}"
    return [*before, {**last, "content": content}, *messages[end:]]


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _plain(value: Any) -> Any:
    """Return a default or a ceiling as a plain int or float."""
    return type(value).__mro__[1](value) if may_be_left_out(value) else value
