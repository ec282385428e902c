"""What the caller asked, checked against the row, and put as LiteLLM wants it. Nothing is dropped in silence."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from ..base import AtMost, Prompt, may_be_left_out
from ..errors import (
    CapabilityError,
    ContextOverflow,
    InvalidRequest,
    LLMError,
    NotLocal,
    NotRecorded,
    RequestError,
    Unsupported,
)
from ..spec import ProviderSpec
from ..transport.client import Client, HttpRequest
from ..transport.endpoint import Endpoint, origin
from . import structured_output
from .options import rows

_NOT_OPENAI: Final = ("top_k", "min_p")  # not parameters of OpenAI's: they travel in the body as they are
# One server requires both, another repeats the beginning without them.
_CONTINUES: Final = "continue_final_message"
_GO_ON: Final = {_CONTINUES: True, "add_generation_prompt": False}
# For servers that would take a last assistant message as the beginning of the answer.
_NEXT_TURN: Final = {"role": "user", "content": "Please give your next message."}
_TOKEN: Final = re.compile(r"[!-~]+")  # of a header's value: what no proxy takes apart or trims
MAX_IMAGE_BYTES: Final = 20 * 1024 * 1024
# The first bytes of an image; a content type may be wrong.
_IMAGE_FORMATS: Final = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_REFUSES: Final = re.compile(
    r"support|unknown|unrecogni|unexpected|invalid|not allowed|not permitted|extra|leave out|greater"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """How it is put this time: what is left out because the model refused it, and which rung of the schema ladder."""

    without: frozenset[str] = frozenset()
    rung: int = 0
    newer_limit: bool = False  # max_completion_tokens instead of max_tokens: models that think want it


class Size(NamedTuple):
    """How large it may be, in tokens: the context to send, and the answer, where that is less than was asked for."""

    window: int | None = None
    answer: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request; its repr shows no prompt.

    ``corrections`` of its messages, the last ones, are not the caller's: an answer that is sent back, and why.
    ``turn_added``: a short turn of the user follows the caller's last assistant message.
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
        """What the messages say."""
        contents = [message.get("content") for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return [text for text in (*contents, *(part.get("text") for part in parts)) if isinstance(text, str)]

    @property
    def images(self) -> int:
        """How many pictures it carries."""
        contents = [message.get("content") for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return sum(part.get("type") == "image_url" for part in parts)

    @property
    def ceiling(self) -> int | None:
        """How many tokens the answer may have, where that is no demand."""
        most = self.sampling.get("max_tokens")
        return most if isinstance(most, AtMost) else None

    @property
    def own_window(self) -> bool:
        """Whether the caller says himself how wide the context shall be."""
        options = self.extra_body.get("options")
        return bool(self.spec.window and isinstance(options, Mapping) and self.spec.window in options)

    @property
    def other_texts(self) -> list[str]:
        """Everything else that is the caller's: images, tools, arguments."""
        return list(_strings([self.messages, self.tools, self.extra_body, self.wanted]))

    def corrected(self, text: str, reason: str) -> Request:
        """The request that sends this answer back to the model, with what is wrong with it."""
        sent_back = [
            {"role": "assistant", "content": text},
            {"role": "user", "content": structured_output.correction(reason)},
        ]
        return replace(self, messages=[*self.messages, *sent_back], corrections=self.corrections + len(sent_back))

    def put(
        self, model: str, variant: Variant, size: Size, begun: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages and parameters as LiteLLM takes them, of this size.

        ``begun`` is an answer to be continued, where the server takes one as the last message.

        Raises Unsupported where the model does not support a parameter.
        """
        messages, parameters = list(self.messages), dict[str, Any]()
        body = {**self.spec.body, **self._thinking(model), **self._session(header=False), **self.extra_body}
        if begun is not None:
            messages.append({"role": "assistant", "content": begun})
            body |= _GO_ON
        sampling = {
            name: value
            for name, value in self.sampling.items()
            if not (name in variant.without and may_be_left_out(value))  # never what the caller asked for
        }
        if size.answer and "max_tokens" in sampling:
            sampling["max_tokens"] = size.answer
        if self.spec.options:
            own = body.pop("options", None) or {}
            wide = {self.spec.window: size.window} if self.spec.window and size.window else {}
            body["options"] = {self.spec.options[name]: value for name, value in sampling.items()} | wide | dict(own)
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
                else structured_output.asked_for(self.wanted, self.spec.structured[variant.rung])
            )
            parameters |= {"response_format": asked} if asked else {}
            messages = _with_words(messages, words, self.corrections) if words else messages
        if self.spec.stream_usage and "stream_options" not in variant.without:
            parameters["stream_options"] = {"include_usage": True}
        if body:
            parameters["extra_body"] = body
        return messages, parameters

    @property
    def headers(self) -> Mapping[str, str]:
        """What it adds to the headers."""
        return self._session(header=True)

    def otherwise(self, variant: Variant, error: LLMError) -> tuple[Variant, str] | None:
        """Another way to put it after this refusal, and what it leaves out; None where there is none.

        Only what is ours is left out: our defaults, our wish for usage, the rung of our ladder. Never a caller's word.
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
        ladder = isinstance(self.wanted, type) and variant.rung + 1 < len(self.spec.structured)
        if ladder and any(word in said for word in ("response_format", "schema", "format", "grammar", "structured")):
            return replace(variant, rung=variant.rung + 1), f"the schema as {self.spec.structured[variant.rung + 1]}"
        return None

    def lasting(self, variant: Variant, before: Variant) -> Variant:
        """What of this variant is true of the next request, too: not that this one's ceiling was too high."""
        if self.ceiling is None:
            return variant
        return replace(variant, without=variant.without - {"max_tokens"} | before.without)

    def _session(self, *, header: bool) -> Mapping[str, str]:
        """The session, where the row takes it in this place; a digest of it where the place does not take the text."""
        place = self.spec.session
        if place is None or self.session is None or place.header != header:
            return {}
        fits = len(self.session) <= place.most and (not header or _TOKEN.fullmatch(self.session))
        return {place.name: self.session if fits else hashlib.sha256(self.session.encode()).hexdigest()}

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


def request(spec: ProviderSpec, prompt: Prompt, model: str | None, given: dict[str, Any]) -> Request:
    """The request for a prompt and its checked keywords. Raises InvalidRequest where the prompt is none."""
    wanted, stop = given.pop("response_format", None), given.get("stop")
    system = given.pop("system", None)
    messages = _messages(spec, prompt)
    extra_body = dict(given.pop("extra_body", {}))
    open_turn = messages[-1]["role"] == "assistant" and not (spec.finishes_turns or extra_body.get(_CONTINUES))
    if open_turn:
        messages.append(dict(_NEXT_TURN))
    if isinstance(stop, str):
        given["stop"] = [stop]  # Ollama takes a list only
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
    """Copies, part by part: LiteLLM changes messages in place."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = list(prompt) if rows(prompt) else []
    for each in messages:
        content = each.get("content")
        if not isinstance(each.get("role"), str) or not (content is None or isinstance(content, str) or rows(content)):
            messages = []
            break
    if not messages:
        raise InvalidRequest(
            "the prompt is neither a text nor a list of messages",
            provider=spec.name,
            hint='A message is {"role": "user", "content": "…"}; content may be a list of text and image_url parts',
        )
    if not any(each.get("content") or each.get("tool_calls") for each in messages):
        raise InvalidRequest("the prompt is empty", provider=spec.name, hint="Give a prompt with text in it")
    for each in messages:
        _check_parts(spec, each)
    return [_copied(each) for each in messages]


def _copied(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message, part by part; OpenAI's newer name for a system message as the one that everybody knows."""
    copy = (
        {**message, "content": [dict(part) for part in message["content"]]} if rows(message.get("content")) else message
    )
    return {**copy, "role": "system"} if message["role"] == "developer" else dict(copy)


def _check_parts(spec: ProviderSpec, message: Mapping[str, Any]) -> None:
    """LiteLLM would leave a part that it does not know out in silence, and fetch a file that is an address."""
    parts = message["content"] if rows(message.get("content")) else []
    for part in parts:
        kind = part.get("type")
        if kind not in spec.parts:
            known = ", ".join(sorted(spec.parts))
            raise Unsupported(
                f"{spec.title} cannot be sent a part of type {str(kind)[:40]!r}",
                provider=spec.name,
                hint=f"It takes {known}",
            )
        file = part.get("file")
        if isinstance(file, Mapping) and str(file.get("file_id", "")).lower().startswith(("http", "www.")):
            raise Unsupported(
                "a file cannot be given by URL", provider=spec.name, hint='Give it inline, as "file_data"'
            )
    if message.get("images"):
        raise InvalidRequest(
            'a message has "images"', provider=spec.name, hint="Give pictures as parts of type image_url in its content"
        )


async def with_inline_images(messages: list[dict[str, Any]], client: Client) -> list[dict[str, Any]]:
    """Return the messages with each image inline that was given by URL, for a server that fetches none.

    Args:
        messages: OpenAI-style; not changed.
        client: of the provider; its locality and transport are used, its key is not sent.

    Raises:
        InvalidRequest: no image at the URL, or one larger than ``MAX_IMAGE_BYTES``.
        LLMError: the URL cannot be read; NotLocal under ``LLM_LOCAL_ONLY``.
    """
    urls = list(
        dict.fromkeys(url for message in messages for part in _content_parts(message) if (url := _url_of(part)))
    )
    if not urls:
        return messages
    reading = [asyncio.ensure_future(_read_image(url, client)) for url in urls]
    try:
        read = dict(zip(urls, await asyncio.gather(*reading), strict=True))
    finally:
        for each in reading:
            each.cancel()
    return [
        {**message, "content": [_with_image(part, read) for part in message["content"]]}
        if _content_parts(message)
        else message
        for message in messages
    ]


def _content_parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _url_of(part: Any) -> str | None:
    """Return the URL of an image that must be read; None for anything else."""
    picture = part.get("image_url") if part.get("type") == "image_url" else None
    url = picture.get("url") if isinstance(picture, Mapping) else picture
    if not isinstance(url, str) or url.startswith("data:"):
        return None
    if not url.strip().lower().startswith(("http://", "https://")):
        raise InvalidRequest("a picture has neither an http address nor a data URL", hint="Give one of the two")
    return url.strip()


def _with_image(part: Mapping[str, Any], read: Mapping[str, str]) -> Mapping[str, Any]:
    url = _url_of(part)
    if url is None:
        return part
    picture = part["image_url"]
    more = {name: value for name, value in picture.items() if name != "url"} if isinstance(picture, Mapping) else {}
    return {**part, "image_url": {"url": read[url], **more}}


async def _read_image(url: str, client: Client) -> str:
    """Return one image as a data URL."""
    try:
        origin(url)
        place = Endpoint(root="", base=url)  # a recording keeps the whole path
        reader = Client(place, client.connect_timeout, client.local_only, client.transport, client.replays)
        response = await reader.ask(HttpRequest(url=url, direct=place.near))
        try:
            data = await response.beginning(MAX_IMAGE_BYTES + 1)
        finally:
            await response.aclose()
    except ValueError:
        raise InvalidRequest("the address of a picture is not a valid URL", hint="Give it as a data URL") from None
    except LLMError as error:
        raise _unread(error) from None
    kind = next((name for start, name in _IMAGE_FORMATS if data.startswith(start)), None)
    if not kind or len(data) > MAX_IMAGE_BYTES:
        what = f"is larger than {MAX_IMAGE_BYTES >> 20} MiB" if kind else "is none (PNG, JPEG, GIF and WebP are)"
        raise InvalidRequest(f"what was read as a picture {what}", hint="Give a smaller one, as a data URL")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _unread(error: LLMError) -> LLMError:
    """Return why an image could not be read: the caller's fault, not an outage of the provider."""
    if isinstance(error, NotLocal | NotRecorded):
        return error
    return InvalidRequest(
        f"the picture could not be read from its address ({type(error).__name__})",
        hint="This server takes pictures inline only: give it as a data URL, or an address that answers",
    )


def _with_words(messages: list[dict[str, Any]], words: str, behind: int) -> list[dict[str, Any]]:
    """The messages with our words in the last one of the user's: many templates want the roles to alternate.

    ``behind`` of them are behind that one, and stay there.
    """
    own = len(messages) - behind
    *before, last = messages[:own]
    if last["role"] != "user":
        return [*before, last, {"role": "user", "content": words}, *messages[own:]]
    said = last["content"]
    with_words = [*said, {"type": "text", "text": words}] if isinstance(said, list) else f"{said}\n\n{words}"
    return [*before, {**last, "content": with_words}, *messages[own:]]


def _strings(value: Any) -> Iterator[str]:
    """Every text in it, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)


def _plain(value: Any) -> Any:
    """Our own kinds of numbers as the numbers that they are."""
    return type(value).__mro__[1](value) if may_be_left_out(value) else value
