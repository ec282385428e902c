"""A request: the prompt and keywords of a call, checked and formatted for LiteLLM. Nothing is dropped silently."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..base import AtMost, Prompt, may_be_left_out
from ..errors import (
    CapabilityError,
    ContextOverflow,
    InvalidRequest,
    LLMError,
    RequestError,
    Unsupported,
)
from ..provider_spec import ProviderSpec
from . import structured_output
from .options import messages_of, parts_of, rows, text_of

_NOT_OPENAI: Final = ("top_k", "min_p")  # not parameters of OpenAI's: they are sent in the body as they are
# One server requires both, another repeats the beginning without them.
_CONTINUES: Final = "continue_final_message"
_GO_ON: Final = {_CONTINUES: True, "add_generation_prompt": False}
# For servers that would take a last assistant message as the beginning of the answer.
_NEXT_TURN: Final = {"role": "user", "content": "Please give your next message."}
_TOKEN: Final = re.compile(r"[!-~]+")  # a header's value that no proxy splits or trims
_REFUSES: Final = re.compile(
    r"support|unknown|unrecogni|unexpected|invalid|not allowed|not permitted|extra|leave out|greater"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """How a request is formatted after refusals.

    Attributes:
        without: parameters of ours that the model refused.
        rung: the fallback level for a schema.
        newer_limit: ``max_completion_tokens`` instead of ``max_tokens``, which models that think require.
    """

    without: frozenset[str] = frozenset()
    rung: int = 0
    newer_limit: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request; its repr shows no prompt.

    Attributes:
        corrections: how many of the last messages are not the caller's: an answer that is sent back, and the reason.
        turn_added: a short turn of the user follows the caller's last assistant message.
    """

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
    session: str | None = field(default=None, repr=False)
    corrections: int = 0
    turn_added: bool = False

    @property
    def texts(self) -> list[str]:
        """The texts of the messages."""
        return [text_of(part) for message in self.messages for part in parts_of(message)]

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(part.get("type") == "image_url" for message in self.messages for part in parts_of(message))

    @property
    def ceiling(self) -> int | None:
        """The limit of tokens of the answer, if it is a ceiling and no demand."""
        most = self.sampling.get("max_tokens")
        return most if isinstance(most, AtMost) else None

    @property
    def own_context(self) -> bool:
        """Whether the caller sets the context length."""
        options, written = self.extra_body.get("options"), self.spec.dialect.format_options
        return bool(written and isinstance(options, Mapping) and written({}, 1).keys() & options.keys())

    @property
    def other_texts(self) -> list[str]:
        """The other texts of the caller: images, tools, arguments."""
        return list(_strings([self.messages, self.tools, self.extra_body, self.wanted]))

    def corrected(self, text: str, reason: str) -> Request:
        """Return the request that sends an answer back to the model, with the reason."""
        sent_back = [
            {"role": "assistant", "content": text},
            {"role": "user", "content": structured_output.correction(reason)},
        ]
        return replace(self, messages=[*self.messages, *sent_back], corrections=self.corrections + len(sent_back))

    def formatted(
        self, model: str, variant: Variant, *, context_length: int | None, max_tokens: int | None, begun: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return messages and parameters as LiteLLM takes them.

        Args:
            model: its name at the provider.
            variant: what is left out.
            context_length: to request, if the server takes one with a request.
            max_tokens: the limit of the answer, if it is lower than the caller's ceiling.
            begun: an answer to be continued, if the server takes one as the last message.

        Raises:
            Unsupported: the model does not think.
        """
        messages, parameters = list(self.messages), dict[str, Any]()
        body = {**self.spec.dialect.body, **self._thinking(model), **self._session(header=False), **self.extra_body}
        if begun is not None:
            messages.append({"role": "assistant", "content": begun})
            body |= _GO_ON
        sampling = {
            name: value
            for name, value in self.sampling.items()
            if not (name in variant.without and may_be_left_out(value))  # never what the caller asked for
        }
        if max_tokens and "max_tokens" in sampling:
            sampling["max_tokens"] = max_tokens
        if self.spec.dialect.format_options:
            body["options"] = {
                **self.spec.dialect.format_options(sampling, context_length),
                **(body.get("options") or {}),
            }
        else:
            body |= {name: sampling.pop(name) for name in _NOT_OPENAI if name in sampling}
            if variant.newer_limit and "max_tokens" in sampling:
                sampling["max_completion_tokens"] = sampling.pop("max_tokens")
            parameters |= {name: _plain(value) for name, value in sampling.items()}
        if self.tools and self.tool_choice != "none":
            parameters["tools"] = self.tools
            if self.tool_choice is not None and not (self.spec.dialect.format_options and self.tool_choice == "auto"):
                parameters["tool_choice"] = self.tool_choice
        if self.wanted is not None:
            response_format, words = structured_output.formatted(
                self.wanted, self.spec.dialect.schema_modes[variant.rung]
            )
            parameters |= {"response_format": response_format} if response_format else {}
            messages = _with_words(messages, words, self.corrections) if words else messages
        if self.spec.dialect.stream_usage and "stream_options" not in variant.without:
            parameters["stream_options"] = {"include_usage": True}
        if body:
            parameters["extra_body"] = body
        return messages, parameters

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the request's own."""
        return self._session(header=True)

    def otherwise(self, variant: Variant, error: LLMError) -> tuple[Variant, str] | None:
        """Return the variant to retry with after a refusal, and what changes; None if a retry cannot help.

        Only what is ours is left out: defaults, ``stream_options``, a level of the schema. Never a caller's keyword.
        """
        if not isinstance(error, (CapabilityError, RequestError)):
            return None
        said = error.server_message.lower()
        if "max_completion_tokens" in said and not variant.newer_limit:
            return replace(variant, newer_limit=True), "max_tokens as max_completion_tokens"
        ours = {name for name, value in self.sampling.items() if may_be_left_out(value)} | {"stream_options"}
        at_fault = {"max_tokens" if name == "max_completion_tokens" else name for name in error.params}
        at_fault = at_fault or {name for name in ours if name in said and _REFUSES.search(said)}
        overflow = isinstance(error, ContextOverflow) and (error.needed or 0) < (error.window or math.inf)
        if self.ceiling and (overflow or "max_tokens" in said):
            at_fault.add("max_tokens")  # a ceiling is no demand, whatever the words are
        refused = frozenset(at_fault & ours) - variant.without
        if refused:
            return replace(variant, without=variant.without | refused), f"without {', '.join(sorted(refused))}"
        ladder = isinstance(self.wanted, type) and variant.rung + 1 < len(self.spec.dialect.schema_modes)
        if ladder and any(word in said for word in ("response_format", "schema", "format", "grammar", "structured")):
            return replace(
                variant, rung=variant.rung + 1
            ), f"the schema as {self.spec.dialect.schema_modes[variant.rung + 1]}"
        return None

    def lasting(self, variant: Variant, before: Variant) -> Variant:
        """Return the variant for later requests: a ceiling of this one that was too high says nothing about them."""
        if self.ceiling is None:
            return variant
        return replace(variant, without=variant.without - {"max_tokens"} | before.without)

    def _session(self, *, header: bool) -> Mapping[str, str]:
        """Return the session if the provider takes it in this place; a digest if the place does not take the text."""
        place = self.spec.dialect.session
        if place is None or self.session is None or place.header != header:
            return {}
        fits = len(self.session) <= place.max_chars and (not header or _TOKEN.fullmatch(self.session))
        return {place.name: self.session if fits else hashlib.sha256(self.session.encode()).hexdigest()}

    def _thinking(self, model: str) -> Mapping[str, Any]:
        """Return what ``reasoning=`` adds to the body."""
        if self.reasoning is None:
            return {}
        thinks = self.spec.dialect.reasoning_models
        if thinks and not thinks.search(model):
            if self.reasoning is False:
                return {}
            raise Unsupported(f"{model} does not think", hint="Leave reasoning= out, or choose a model that does")
        return self.spec.dialect.reasoning[self.reasoning]


def request(spec: ProviderSpec, prompt: Prompt, model: str | None, given: dict[str, Any]) -> Request:
    """Return the request for a prompt and its checked keywords. Raises InvalidRequest for an invalid prompt."""
    wanted, stop = given.pop("response_format", None), given.get("stop")
    system = given.pop("system", None)
    messages = _messages(spec, prompt)
    extra_body = dict(given.pop("extra_body", {}))
    open_turn = messages[-1]["role"] == "assistant" and not (spec.dialect.finishes_turns or extra_body.get(_CONTINUES))
    if open_turn:
        messages.append(dict(_NEXT_TURN))
    if isinstance(stop, str):
        given["stop"] = [stop]  # some servers take a list only
    return Request(
        spec=spec,
        messages=([{"role": "system", "content": system}] if system else []) + messages,
        model=model,
        tools=[dict(tool) for tool in given.pop("tools", ())],
        tool_choice=given.pop("tool_choice", None),
        wanted=dict(wanted) if isinstance(wanted, Mapping) else wanted,
        reasoning=given.pop("reasoning", None),
        timeout=given.pop("timeout", None),
        extra_body=extra_body,
        turn_added=open_turn,
        session=given.pop("session", None),
        sampling=given,
    )


def _messages(spec: ProviderSpec, prompt: Prompt) -> list[dict[str, Any]]:
    """Return copies of the messages, part by part: LiteLLM changes messages in place. Raises for an invalid prompt."""
    messages = messages_of(prompt)
    if not messages or not all(map(_is_message, messages)):
        raise InvalidRequest(
            "the prompt is neither a text nor a list of messages",
            hint='A message is {"role": "user", "content": "…"}; content may be a list of text and image_url parts',
        )
    if not any(each.get("content") or each.get("tool_calls") for each in messages):
        raise InvalidRequest("the prompt is empty", hint="Give a prompt with text in it")
    for each in messages:
        _check_parts(spec, each)
    return [_copied(each) for each in messages]


def _is_message(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(message.get("role"), str) and (content is None or isinstance(content, str) or rows(content))


def _copied(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message; OpenAI's newer role "developer" as "system", which every server supports."""
    copy = dict(message)
    if rows(copy.get("content")):
        copy["content"] = [dict(part) for part in copy["content"]]
    if copy["role"] == "developer":
        copy["role"] = "system"
    return copy


def _check_parts(spec: ProviderSpec, message: Mapping[str, Any]) -> None:
    """Raise for a part that the provider does not take. LiteLLM would drop it silently, or fetch a file by its URL."""
    for part in message["content"] if rows(message.get("content")) else []:
        kind, file = part.get("type"), part.get("file")
        if kind not in spec.dialect.parts:
            what = f"{spec.title} cannot be sent a part of type {str(kind)[:40]!r}"
            raise Unsupported(what, hint=f"It takes {', '.join(sorted(spec.dialect.parts))}")
        if kind == "image_url" and not spec.dialect.reads_urls and not _is_data_url(part.get("image_url")):
            what = f"{spec.title} reads no picture by URL; nothing was sent"
            raise Unsupported(what, hint="Give it as a data URL: data:image/png;base64,…")
        if isinstance(file, Mapping) and str(file.get("file_id", "")).lower().startswith(("http", "www.")):
            raise Unsupported("a file cannot be given by URL", hint='Give it inline, as "file_data"')
    if message.get("images"):
        hint = "Give pictures as parts of type image_url in its content"
        raise InvalidRequest('a message has "images"', hint=hint)


def _is_data_url(image: Any) -> bool:
    url = image.get("url") if isinstance(image, Mapping) else image
    return isinstance(url, str) and url.startswith("data:")


def _with_words(messages: list[dict[str, Any]], words: str, behind: int) -> list[dict[str, Any]]:
    """Add our words to the last message of the user: many templates require the roles to alternate.

    ``behind`` messages follow that one, and stay there.
    """
    own = len(messages) - behind
    *before, last = messages[:own]
    if last["role"] != "user":
        return [*before, last, {"role": "user", "content": words}, *messages[own:]]
    said = last["content"]
    with_words = [*said, {"type": "text", "text": words}] if isinstance(said, list) else f"{said}\n\n{words}"
    return [*before, {**last, "content": with_words}, *messages[own:]]


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)


def _plain(value: Any) -> Any:
    """Return a number of a class of ours as the plain number."""
    return type(value).__mro__[1](value) if may_be_left_out(value) else value
