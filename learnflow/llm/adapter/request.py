"""Check the prompt and the keywords of a call, and write them in OpenAI's format.

``build_request`` returns a ``Request``. ``Request.to_openai`` writes it in a format that the model accepts
(``RequestFormat``). If the server rejects the request, ``Request.next_format`` returns the format for a retry. No
keyword of the caller is dropped silently.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .. import errors
from ..base import AtMost, Prompt, is_removable
from ..errors import InvalidRequest, LLMError, Unsupported
from ..parameters import LOCAL_SAMPLING, REASONING_LEVELS, ApiName
from ..provider_spec import ProviderSpec
from ..transport.client import HttpRequest
from ..transport.endpoint import Endpoint
from . import structured_output
from .options import messages_of, parts_of, strings_of, text_of

_BODY_PARAMETERS: Final = ("top_k", "min_p")  # sent in ``extra_body``, because OpenAI's API does not have them
# A prefill is a last assistant message that the model continues. vLLM requires the two fields below. Without them,
# llama.cpp repeats the prefill.
_CONTINUES_FIELD: Final = "continue_final_message"
_PREFILL_FIELDS: Final = {_CONTINUES_FIELD: True, "add_generation_prompt": False}
# Appended after a last assistant message, because many servers would continue that message.
_ADDED_MESSAGE: Final = {"role": "user", "content": "Please give your next message."}
_MAX_TYPE_CHARS: Final = 40  # of the type of a message part, in an error message
_MAX_SESSION_CHARS: Final = 64  # OpenAI returns an error for a longer session
_SCHEMA_WORDS: Final = ("format", "schema", "grammar", "structured")  # in messages of servers that reject a schema
# An error message of chat completions contains this path if the model requires the Responses API.
_RESPONSES_API: Final = "v1/responses"
# If the Responses API fails with one of these errors, chat completions may work.
_API_REFUSALS: Final = (errors.Misconfigured, errors.RequestRefused, errors.Unsupported)
_WORD_START: Final = re.compile(r"(?<=[a-z])(?:-(?=[a-z])|(?=[A-Z]))")  # before "tokens" in "max-tokens", "maxTokens"
_NAME: Final = re.compile(r"[a-z]+(?:_[a-z]+)*")  # a word in an error response, possibly a parameter


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """The format of a request that a model accepts. A retry after an error response may use another format.

    Attributes:
        omitted: the parameters that are omitted, because the server rejected them.
        unsupported: the parameters and reasoning levels that the model does not support, from ``ModelCatalog``.
        schema_mode_index: the index of the schema mode (like "json_schema") in ``Dialect.schema_modes``.
        api: the API that the operator configured or the server requires; None to choose it by LiteLLM's price map.
        max_completion_tokens: send ``max_completion_tokens`` instead of ``max_tokens``. Reasoning models require it.
    """

    omitted: frozenset[str] = frozenset()
    unsupported: frozenset[str] = frozenset()
    schema_mode_index: int = 0
    api: ApiName | None = None
    max_completion_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request. Its repr excludes texts.

    Attributes:
        messages: OpenAI-style messages, including the system message.
        model: the model's name at the provider; None if it is chosen later.
        correction_message_count: the number of messages at the end that ``with_correction`` added.
        user_message_added: the caller's messages end with an assistant message, and ``_ADDED_MESSAGE`` follows it.
        buffered: the caller receives the whole answer at the end. The answer can be requested without streaming.
        is_journaled: the journal (a file of unfinished answers) records the text while it arrives.
    """

    spec: ProviderSpec
    messages: list[dict[str, Any]] = field(repr=False)
    model: str | None
    sampling: dict[str, Any]
    tools: list[dict[str, Any]] = field(default_factory=list, repr=False)
    tool_choice: Any = None
    response_format: Any = field(default=None, repr=False)
    reasoning: bool | str | None = None
    timeout: float | None = None
    extra_body: dict[str, Any] = field(default_factory=dict, repr=False)
    session: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    correction_message_count: int = 0
    buffered: bool = False
    is_journaled: bool = False
    user_message_added: bool = False

    @property
    def texts(self) -> list[str]:
        """Return the texts of the messages."""
        return [text_of(part) for message in self.messages for part in parts_of(message)]

    @property
    def can_bypass_litellm(self) -> bool:
        """Return whether this package can write the request itself; see ``Dialect.chat_path_without_litellm``."""
        has_only_texts = all(m.keys() <= {"role", "content"} and isinstance(m["content"], str) for m in self.messages)
        return bool(self.spec.dialect.chat_path_without_litellm and has_only_texts) and not (
            self.tools or self.response_format
        )

    @property
    def image_count(self) -> int:
        """Return the number of images."""
        return sum(part.get("type") == "image_url" for message in self.messages for part in parts_of(message))

    @property
    def flexible_max_tokens(self) -> int | None:
        """Return ``max_tokens`` if the caller allows a lower value (``AtMost``); None otherwise."""
        max_tokens = self.sampling.get("max_tokens")
        return max_tokens if isinstance(max_tokens, AtMost) else None

    @property
    def sets_context_length(self) -> bool:
        """Return whether ``extra_body`` sets the context length."""
        options, format_options = self.extra_body.get("options"), self.spec.dialect.format_options
        return bool(format_options and isinstance(options, Mapping) and format_options({}, 1).keys() & options.keys())

    @property
    def all_texts(self) -> list[str]:
        """Return every text of the call, including image URLs, tools and the schema."""
        return list(strings_of([self.messages, self.tools, self.extra_body, self.response_format]))

    def with_correction(self, text: str, reason: str) -> Request:
        """Return this request with two more messages: the model's answer, and a request to correct it."""
        answer = {"role": "assistant", "content": text}
        correction = {"role": "user", "content": structured_output.write_correction(reason)}
        return replace(
            self,
            messages=[*self.messages, answer, correction],
            correction_message_count=self.correction_message_count + 2,
        )

    def to_openai(
        self, request_format: RequestFormat, *, context_length: int | None, max_tokens: int | None, prefill: str | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return messages and parameters for OpenAI's client. Fields that the client lacks are in ``extra_body``.

        Args:
            request_format: the format to use. Its ``api`` must be set.
            context_length: the context length to request, in tokens; None for the server's default.
            max_tokens: a smaller ``max_tokens`` than the caller's, in tokens; None to send the caller's.
            prefill: the text that the model continues; None for a new answer.

        Raises:
            Unsupported: the model does not support a sampling parameter or the ``reasoning=`` of the caller.
        """
        dialect, messages, parameters = self.spec.dialect, list(self.messages), dict[str, Any]()
        streams = self.streams(request_format)
        body = {**dialect.body_fields, **self._api_fields(request_format), **self._session_field()}
        body |= {**self.extra_body} if streams else {"stream": False, **self.extra_body}
        if prefill is not None:
            messages.append({"role": "assistant", "content": prefill})
            body |= _PREFILL_FIELDS
        sampling = self._sampling_of(request_format)
        if max_tokens and "max_tokens" in sampling:
            sampling["max_tokens"] = max_tokens
        if dialect.format_options:
            body["options"] = dialect.format_options(sampling, context_length) | (body.get("options") or {})
        else:
            body |= {name: sampling.pop(name) for name in _BODY_PARAMETERS if name in sampling}
            if request_format.max_completion_tokens and "max_tokens" in sampling:
                sampling["max_completion_tokens"] = sampling.pop("max_tokens")
            parameters |= sampling
        if self.tools and self.tool_choice != "none":
            parameters["tools"] = self.tools
            if self.tool_choice is not None and not (dialect.format_options and self.tool_choice == "auto"):
                parameters["tool_choice"] = self.tool_choice
        if self.response_format is not None:
            mode = dialect.schema_modes[request_format.schema_mode_index]
            response_format, instruction = structured_output.write_format(self.response_format, mode)
            parameters |= {"response_format": response_format} if response_format else {}
            messages = (
                _with_instruction(messages, instruction, self.correction_message_count) if instruction else messages
            )
        if dialect.supports_stream_usage and streams and "stream_options" not in request_format.omitted:
            parameters["stream_options"] = {"include_usage": True}
        if body:
            parameters["extra_body"] = body
        return messages, parameters

    def streams(self, request_format: RequestFormat) -> bool:
        """Return whether the response is requested as a stream. It always is if the caller called ``stream()``."""
        return not (self.buffered and "stream" in request_format.omitted)

    def next_format(
        self, request_format: RequestFormat, error: LLMError, *, api: ApiName
    ) -> tuple[RequestFormat, str] | None:
        """Return the format for a retry, and a description of the change; None if a retry cannot help.

        The retry uses the other API, or the format of ``_without_rejected``. ``request_format`` and ``api`` are those
        of the rejected request.
        """
        may_switch_api = request_format.api is None and self.spec.api.responses_path is not None
        if may_switch_api and api == "chat" and _RESPONSES_API in error.server_message:
            return replace(request_format, api="responses"), "to the Responses API, as the server requires"
        if change := self._without_rejected(request_format, error, api):
            return change
        if may_switch_api and api == "responses" and error.status and isinstance(error, _API_REFUSALS):
            return replace(request_format, api="chat"), "as a chat completion, because the Responses API refused it"
        return None

    def _without_rejected(
        self, request_format: RequestFormat, error: LLMError, api: ApiName
    ) -> tuple[RequestFormat, str] | None:
        """Return a format without the rejected parameters, and a description; None if a retry cannot help.

        A retry can omit the parameters that this package added. Of the caller's parameters, it can omit only an
        ``AtMost`` (a ``max_tokens`` that may be lowered). If the server refuses the request without naming a parameter,
        the retry omits every parameter that it can omit, except ``stream``. For some errors, the retry renames
        ``max_tokens`` instead, or sends the schema in the next mode.
        """
        if not isinstance(error, errors.CapabilityError):
            return None
        message = error.server_message.lower()
        words = " ".join((error.server_message, error.code or "", *error.params))
        names_in_error = set(_NAME.findall(f"{words} {_WORD_START.sub('_', words)}".lower()))
        if "max_completion_tokens" in names_in_error and not request_format.max_completion_tokens:
            return replace(request_format, max_completion_tokens=True), "max_tokens as max_completion_tokens"
        if names_in_error & {"max_completion_tokens", "max_output_tokens"}:
            names_in_error.add("max_tokens")
        if self.flexible_max_tokens and isinstance(error, errors.ContextOverflow) and error.prompt_fits:
            names_in_error.add("max_tokens")
        removable = {name for name, value in self.sampling.items() if is_removable(value)}
        removable |= {"include", "summary"} if api == "responses" else {"stream_options"}
        removable = removable - request_format.omitted
        stream = {"stream"} if self.streams(request_format) and self.buffered else set()
        rejected = names_in_error & removable or names_in_error & stream
        modes, index = self.spec.dialect.schema_modes, request_format.schema_mode_index + 1
        has_next_mode = isinstance(self.response_format, type) and index < len(modes)
        if not rejected and has_next_mode and any(word in message for word in _SCHEMA_WORDS):
            return replace(request_format, schema_mode_index=index), f"the schema as {modes[index]}"
        if isinstance(error, errors.RequestRefused) and not error.params:
            rejected = rejected or removable
        if not rejected:
            return None
        adjustment = f"without {', '.join(sorted(rejected))}"
        return replace(request_format, omitted=request_format.omitted | rejected), adjustment

    def format_to_cache(self, request_format: RequestFormat, first_format: RequestFormat) -> RequestFormat:
        """Return the accepted format as it is cached. ``first_format`` is the format of the first try.

        Later requests send an ``AtMost`` again, even if the retry omitted it, because the server may accept a lower
        value.
        """
        omitted = request_format.omitted
        if self.flexible_max_tokens:
            omitted = omitted - {"max_tokens"} | first_format.omitted
        return replace(request_format, omitted=omitted)

    def _session_field(self) -> Mapping[str, str]:
        """Return the body field for ``session=``. A long session is sent as a digest.

        Return no field if the caller set no session, or if the API has no field for it.
        """
        name, session = self.spec.dialect.session_field, self.session
        if name is None or session is None:
            return {}
        return {name: session if len(session) <= _MAX_SESSION_CHARS else hashlib.sha256(session.encode()).hexdigest()}

    def _api_fields(self, request_format: RequestFormat) -> Mapping[str, Any]:
        """Return the body fields for ``reasoning=``, and those that only the Responses API has.

        With ``store: false``, OpenAI does not store the response. Instead, the response contains the encrypted
        reasoning. The next request of the conversation sends this reasoning back.
        """
        reasoning = self._reasoning_fields(request_format.unsupported)
        if request_format.api != "responses":
            return reasoning
        fields: dict[str, Any] = {"store": False}
        if "include" not in request_format.omitted and not self.extra_body.get("store"):
            fields["include"] = ["reasoning.encrypted_content"]
        if effort := reasoning.get("reasoning_effort"):
            summary = {} if effort == "none" or "summary" in request_format.omitted else {"summary": "auto"}
            fields["reasoning"] = {"effort": effort, **summary}
        return fields

    def _sampling_of(self, request_format: RequestFormat) -> dict[str, Any]:
        """Return the sampling parameters. Omit a rejected or unsupported one if ``is_removable``.

        Raise Unsupported if the caller set an unsupported parameter to a value other than 1. Models accept 1 even if
        they reject other values, because it is the vendors' default.
        """
        omitted = request_format.omitted | request_format.unsupported
        sampling = {n: value for n, value in self.sampling.items() if n not in omitted or not is_removable(value)}
        for name in sorted(name for name in sampling.keys() & request_format.unsupported if sampling[name] != 1):
            hint = f"Leave {name}= out; extra_body= sends it anyway"
            raise Unsupported(f"the model does not support {name}=", hint=hint)
        return sampling

    def _reasoning_fields(self, unsupported: frozenset[str]) -> Mapping[str, Any]:
        """Return the body fields for ``reasoning=``. Raise Unsupported if the model does not support this level."""
        fields, value = self.spec.dialect.reasoning, self.reasoning
        if value is None or ("reasoning" in unsupported and value in (False, "none")):
            return {}
        if value is True and "medium" in unsupported:
            value = "high"
        if not unsupported & {"reasoning", value or "none"}:
            return fields[value]
        levels = (
            ()
            if "reasoning" in unsupported
            else [level for level in REASONING_LEVELS if level in fields.keys() - unsupported]
        )
        hint = f"Use {', '.join(levels) or 'another model'}, or leave reasoning= out"
        hint += f". {self.spec.variable('capabilities')}=reasoning sends it anyway"
        raise Unsupported(f"the model does not support reasoning{'' if value is True else f'={value!r}'}", hint=hint)


def build_without_litellm(
    spec: ProviderSpec, endpoint: Endpoint, model: str, messages: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> HttpRequest:
    """Return the HTTP request for a ``Request`` that bypasses LiteLLM.

    The arguments are those of ``_litellm.build_http_request``.
    """
    body = {"messages": messages, "stream": True, **parameters, **parameters.get("extra_body", {}), "model": model}
    body.pop("extra_body", None)
    return HttpRequest(url=f"{endpoint.base_url}{spec.dialect.chat_path_without_litellm}", body=body)


def build_request(spec: ProviderSpec, prompt: Prompt, model: str | None, keywords: Mapping[str, Any]) -> Request:
    """Check a prompt, and return its request. ``keywords`` is the result of ``checked_keywords``.

    Raises:
        InvalidRequest: the prompt is empty, or a message has Ollama's field "images".
        Unsupported: the provider does not support a part of a message.
    """
    sampling = {name: value for name, value in keywords.items() if name in LOCAL_SAMPLING}
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]  # some servers require a list
    fields = {name: value for name, value in keywords.items() if name not in sampling}
    fields |= {name: dict(value) for name, value in fields.items() if isinstance(value, Mapping)}
    fields["tools"] = [dict(tool) for tool in fields.get("tools", ())]
    messages, system = _check_messages(spec, prompt), fields.pop("system", None)
    continuation_requested = fields.get("extra_body", {}).get(_CONTINUES_FIELD)
    user_message_added = messages[-1]["role"] == "assistant" and not (
        spec.dialect.ignores_prefill or continuation_requested
    )
    if user_message_added:
        messages.append(dict(_ADDED_MESSAGE))
    if system and messages[0]["role"] == "system":  # some chat templates reject a second system message
        messages[0] = _add_text(messages[0], system, before=True)
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    return Request(
        spec=spec, messages=messages, model=model, sampling=sampling, user_message_added=user_message_added, **fields
    )


def _check_messages(spec: ProviderSpec, prompt: Prompt) -> list[dict[str, Any]]:
    """Check the messages of a prompt, and return copies."""
    messages = messages_of(prompt)
    if not any(message.get("content") or message.get("tool_calls") for message in messages):
        raise InvalidRequest("the prompt is empty", hint="Give a prompt with text")
    for message in messages:
        _check_parts(spec, message)
    return [_copy_message(message) for message in messages]


def _copy_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message. Replace the role "developer" by "system", which every server supports."""
    content = message.get("content")
    parts = {"content": [dict(part) for part in content]} if content and not isinstance(content, str) else {}
    return {**message, **parts, "role": "system" if message["role"] == "developer" else message["role"]}


def _check_parts(spec: ProviderSpec, message: Mapping[str, Any]) -> None:
    """Raise Unsupported for a part that the provider does not support. LiteLLM would drop the part silently.

    Raise Unsupported also for a file's URL, which LiteLLM would download. Raise InvalidRequest for Ollama's field
    "images".
    """
    for part in parts_of(message):
        kind, file = part.get("type"), part.get("file")
        if kind not in spec.dialect.content_parts:
            what = f"{spec.title} does not support a part of type {str(kind)[:_MAX_TYPE_CHARS]!r}"
            raise Unsupported(what, hint=f"It supports {', '.join(sorted(spec.dialect.content_parts))}")
        if kind == "image_url" and not spec.dialect.downloads_images and not _is_data_url(part.get("image_url")):
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


def _with_instruction(
    messages: list[dict[str, Any]], instruction: str, correction_message_count: int
) -> list[dict[str, Any]]:
    """Add an instruction to the caller's last message, because many chat templates reject two user messages in a row.

    If that message is not a user message, add a user message after it. The last ``correction_message_count`` messages
    are not the caller's.
    """
    end = len(messages) - correction_message_count
    *before, last = messages[:end]
    if last["role"] != "user":
        return [*before, last, {"role": "user", "content": instruction}, *messages[end:]]
    return [*before, _add_text(last, instruction), *messages[end:]]


def _add_text(message: dict[str, Any], text: str, *, before: bool = False) -> dict[str, Any]:
    """Return a copy of a message with a text added after its content, or before it."""
    content, part = message["content"] or "", {"type": "text", "text": text}
    if isinstance(content, list):
        return {**message, "content": [part, *content] if before else [*content, part]}
    return {**message, "content": "\n\n".join((text, content) if before else (content, text))}
