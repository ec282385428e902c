"""A chat model for LangChain and LangGraph that uses any provider. Requires the extra ``[langchain]``.

This subpackage converts messages and answers. The provider or router handles retries and fallbacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal, Self, cast

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as missing:
    message = "ChatLearnFlow needs the package langchain-core (pip install langchain-core, or the extra langchain)"
    raise ModuleNotFoundError(message, name=missing.name) from None

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ...adapter.context_window import estimate_max_tokens
from ...adapter.routable import text_stream, to_completion
from ...background import BACKGROUND
from ...base import DEFAULT_MAX_TOKENS, LLMProvider, Reasoning, is_removable
from ...capabilities import default_capabilities
from ...errors import InvalidRequest, Unsupported
from ...factory import get_provider
from ...parameters import describe_faults
from . import messages as convert
from . import schemas

_MAX_NODE_CHARS: Final = 200  # a longer name of a node is cut, because ``metadata=`` would reject it
_PARAMETERS: Final = (
    "model",
    "temperature",
    "max_tokens",
    "timeout",
    "stop",
    "seed",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "reasoning",
)
# Keywords that LangChain or this class binds. They are not sent to the provider
_INTERNAL_KEYWORDS: Final = ("stream", "structured")
_METHODS: Final = ("json_schema", "json_mode", "function_calling")


def _hash_extra_body(options: dict[str, Any]) -> dict[str, Any]:
    """Replace ``extra_body`` with its hash.

    It can contain secrets, and LangChain stores the options in caches and traces.
    """
    if options.get("extra_body") is None:
        return options
    body = json.dumps(options["extra_body"], sort_keys=True, default=repr)
    return {**options, "extra_body": hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()}


class ChatLearnFlow(BaseChatModel):
    """A LangChain chat model that sends its requests to a provider or a router. Its errors are ``LLMError``.

    The ``response_metadata`` of an answer has ``finish_reason``, ``model_name``, ``provider``, ``attempts``,
    ``resumed``, ``cost`` (US dollars), ``first_token_s`` and ``total_s`` (seconds). A stream has chunks of text,
    reasoning and tool calls. ``profile`` (langchain-core 1.1 or newer) has the known capabilities of the provider.
    Each answer updates ``profile``.

    Attributes:
        provider: a provider, a router, or a name for ``get_provider``. Default: ``get_provider()``.
        model, temperature, max_tokens, timeout, stop, seed, top_p, frequency_penalty, presence_penalty, reasoning: as
            in ``LLMProvider.generate``; None for the provider's default. ``max_tokens`` may be ``AtMost``.
        model_kwargs: further keywords of ``generate``.
        streaming: always request a stream, for callbacks that receive pieces of the text.
        stream_structured: stream the answers of ``with_structured_output``, too. By default such an answer is one
            chunk, because an invalid answer cannot be retried after a part of it was streamed.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=()
    )

    provider: LLMProvider = Field(default_factory=get_provider, exclude=True)
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    stop: list[str] | str | None = None
    seed: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning: Reasoning | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    streaming: bool = False
    stream_structured: bool = False
    _updates_profile: bool = PrivateAttr(default=False)  # False if the caller passed a profile

    @model_validator(mode="wrap")
    @classmethod
    def _raise_our_error(cls, values: Any, check: Callable[[Any], Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            name, fault = next(iter(describe_faults(error).items()))
        raise InvalidRequest(f"{name}= {fault}", hint="Change or remove it")

    @field_validator("provider", mode="before")
    @classmethod
    def _provider_of_name(cls, provider: Any) -> Any:
        return get_provider(provider) if provider is None or isinstance(provider, str) else provider

    @field_validator("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", mode="wrap")
    @classmethod
    def _keep_default_or_at_most(cls, value: Any, check: Callable[[Any], float | None]) -> float | None:
        # pydantic would convert AtMost and DefaultFloat to int and float.
        return value if is_removable(value) else check(value)

    @property
    def _llm_type(self) -> str:
        return "learnflow"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # A part of LangChain's cache key. Use the repr of the provider, because it contains the models.
        return _hash_extra_body({"provider": repr(self.provider), **self._options(None, {})})

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters for traces."""
        return super()._get_invocation_params(stop=stop, **_hash_extra_body(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of LangChain's cache."""
        return super()._get_llm_string(stop=stop, **_hash_extra_body(kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        first = next(iter(getattr(self.provider, "providers", [self.provider])), self.provider)
        model = kwargs.get("model") or self.model or getattr(first, "model", None) or self.provider.name
        return {**params, "ls_provider": self.provider.name, "ls_model_name": model}

    def get_num_tokens(self, text: str) -> int:
        """Return an upper estimate of the tokens of a text, without a tokenizer."""
        return estimate_max_tokens([text])

    def _resolve_model_profile(self) -> Any:
        """Return a ModelProfile for LangChain's middleware.

        LangChain calls this method unless the caller passed a profile.
        """
        self._updates_profile = True
        return convert.profile({**default_capabilities(cost=None), **self.provider.get_capabilities()})

    def _update_profile(self) -> None:
        """Update the profile, because an answer can reveal more capabilities."""
        if self._updates_profile:
            self.profile = cast(
                Any, convert.profile({**default_capabilities(cost=None), **self.provider.get_capabilities()})
            )

    def _options(self, stop: list[str] | None, call_keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords for the provider. ``call_keywords`` override the attributes of the model."""
        options = {name: getattr(self, name) for name in _PARAMETERS} | self.model_kwargs
        options |= {
            name: value for name, value in call_keywords.items() if value is not None and name not in _INTERNAL_KEYWORDS
        }
        if options.get("headers"):  # refused, because LangChain's cache keys and callbacks would store them
            raise InvalidRequest(
                "ChatLearnFlow does not support headers=", hint="Give headers= to the class of the provider"
            )
        if "prompt" in options:
            raise InvalidRequest("ChatLearnFlow does not support prompt=", hint="Give the messages as the input")
        options["stop"] = stop or options["stop"] or None
        return {name: value for name, value in options.items() if value is not None}

    def _metadata(self, run_manager: Any) -> dict[str, Any]:
        """Return ``{"metadata": …}`` for a call, or {} if there is no metadata.

        The metadata contains the name of LangGraph's node, the fields of ``learnflow_llm`` in LangChain's metadata, and
        those of ``model_kwargs["metadata"]``. Later sources win.
        """
        # If there is no run manager, use LangChain's current config, which has the same metadata.
        langchain_metadata = getattr(run_manager, "metadata", None) or ensure_config().get("metadata") or {}
        node, fields = langchain_metadata.get("langgraph_node"), langchain_metadata.get("learnflow_llm")
        metadata = {"node": node[:_MAX_NODE_CHARS]} if isinstance(node, str) and node.isprintable() else {}
        metadata |= {**(fields if isinstance(fields, dict) else {}), **(self.model_kwargs.get("metadata") or {})}
        return {"metadata": metadata} if metadata else {}

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        options = self._options(stop, kwargs) | self._metadata(run_manager)
        answer = await self.provider.complete(convert.to_openai(messages), **options)
        completion = to_completion(answer, self.provider.name, options.get("model"))
        calls = [
            {"name": call.name, "args": call.arguments, "id": call.id, "type": "tool_call"}
            for call in completion.tool_calls
        ]
        message = AIMessage(content=completion.text, tool_calls=calls, **convert.metadata(completion))
        self._update_profile()
        return ChatResult(
            generations=[ChatGeneration(message=message)], llm_output={"model_name": str(completion.model)}
        )

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return next(filter(None, llm_outputs), {})  # Langfuse 2 reads the model name from the first output

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        options = self._options(stop, kwargs) | self._metadata(run_manager)
        if not self.stream_structured and (kwargs.get("structured") or options.get("response_format")):
            message = (await self._agenerate(messages, stop, run_manager, **kwargs)).generations[0].message
            yield ChatGenerationChunk(message=convert.as_chunk(cast(AIMessage, message)))
            return
        started_calls = set[int]()
        has_blocks = getattr(self, "output_version", None) == "v1"
        stream = self.provider.stream(convert.to_openai(messages), **options)
        limit = options.get("max_tokens", DEFAULT_MAX_TOKENS)
        stream = text_stream(stream, self.provider.name, options.get("model"), limit)
        async with aclosing(stream.events()) as events:
            async for event in events:
                if chunk := convert.chunk(event, started_calls, has_blocks=has_blocks):
                    yield ChatGenerationChunk(message=chunk)
        self._update_profile()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return BACKGROUND.run(self._agenerate(messages, stop, run_manager, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = cast(AsyncGenerator[ChatGenerationChunk, None], self._astream(messages, stop, run_manager, **kwargs))
        yield from BACKGROUND.iterate(chunks)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a runnable that calls the model with these tools.

        Args:
            tools: functions, classes, LangChain tools, or OpenAI-style dicts.
            tool_choice: "auto", "none", "any" or True (at least one tool must be called), or the name of a tool.
            strict: require arguments that fit the schema exactly, if the server supports that.
            kwargs: keywords of ``generate``.

        Raises:
            InvalidRequest: ``tool_choice`` names none of the tools.
            Unsupported: a tool is a built-in tool of one provider.
        """
        try:
            converted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        except ValueError:  # langchain-core before 0.3.76 rejects a provider's built-in tool
            converted = [{}]
        if not all("function" in tool for tool in converted):
            raise Unsupported("a tool is built into one provider and unknown to others", hint="Use functions only")
        names = [tool["function"]["name"] for tool in converted]
        choice = schemas.tool_choice(tool_choice, names) if converted else None
        return self.bind(tools=converted, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a runnable that returns an instance of a pydantic class, or a dict for any other schema.

        The runnable raises SchemaMismatch if the answer is invalid, unless ``include_raw`` is set. If an invalid answer
        ended at a token limit, the runnable raises AnswerTruncated, even with ``include_raw``.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or an OpenAI-style function.
            include_raw: return ``{"raw": message, "parsed": instance or None, "parsing_error": error or None}``.
            method: "json_schema" sends the schema, and ``provider`` validates the answer. If the model rejects the
                schema of a pydantic class, the request is retried with the schema in the prompt. "json_mode" requests
                any JSON. "function_calling" uses a tool. These two validate the answer only if ``schema`` is a pydantic
                class, and a mismatch is not retried.
            strict: require answers that fit the schema exactly, if the server supports that. It is always on
                for "json_schema" with a pydantic class. It is ignored for "json_mode".
            kwargs: keywords of ``generate``.

        Raises:
            InvalidRequest: ``method`` is unknown, or LangChain cannot convert the schema.
        """
        if method not in _METHODS:
            raise InvalidRequest(f"method= must be one of {', '.join(_METHODS)}")
        output_format = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            name = schemas.function_name(schema)
            model = self.bind_tools(
                [schema],
                tool_choice=name,
                strict=strict,
                ls_structured_output_format=output_format,
                structured=True,
                **kwargs,
            )
        else:
            response_format = (
                {"type": "json_object"} if method == "json_mode" else schemas.response_format(schema, strict)
            )
            model = self.bind(response_format=response_format, ls_structured_output_format=output_format, **kwargs)

        def parse(message: AIMessage) -> Any:
            return schemas.parse(schema, message)

        return schemas.with_raw(model, parse) if include_raw else model | RunnableLambda(parse)
