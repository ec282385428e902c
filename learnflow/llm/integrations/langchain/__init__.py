"""A LangChain chat model over any provider: LangChain's messages in and out, the fallback inside.

Must never choose, retry or judge an answer: the provider does. Nothing of LangChain is imported elsewhere.
LearnFlow's factory makes them, and whoever uses LangChain or LangGraph; needs the extra ``[langchain]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal, cast

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as missing:
    what = "ChatLearnFlow needs the package langchain-core (pip install langchain-core, or the extra langchain)"
    raise ModuleNotFoundError(what, name=missing.name) from None

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
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from ...adapter.context_window import at_most
from ...background import BACKGROUND
from ...base import AtMost, LLMProvider, Reasoning
from ...errors import InvalidRequest, Unsupported
from ...factory import get_provider
from . import messages as put
from . import schemas

_SHOWN: Final = 200  # characters, as metadata= takes them
_ASKED: Final = (
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
_OURS: Final = ("stream", "structured")  # keywords that LangChain or we bind, and no provider knows
_METHODS: Final = ("json_schema", "json_mode", "function_calling")


class ChatLearnFlow(BaseChatModel):
    """A chat model that is answered by a provider, or by a router over several; every error in it is an ``LLMError``.

    An answer's ``response_metadata`` says ``finish_reason``, ``model_name``, ``provider``, ``attempts``, ``resumed``,
    ``cost`` (US dollars), ``first_token_s`` and ``total_s`` (seconds). A stream has tool calls and thinking in pieces,
    too. ``profile`` (of langchain-core 1.1) says what is known of the provider: after its ``refresh()``, or an answer,
    that is more than before.

    Attributes:
        provider: who answers; a name, or nothing for what the environment names.
        model: as in ``generate``; the provider's own where None.
        temperature, max_tokens, timeout, stop, seed, top_p, frequency_penalty, presence_penalty, reasoning: as in
            ``generate``; what is None is left to the provider. ``max_tokens`` may be ``AtMost``.
        model_kwargs: more keywords of ``generate``.
        streaming: ask for a stream, whoever asks; for callbacks that want tokens.
        stream_structured: stream answers of ``with_structured_output``, too. Without it they come whole, because one
            that breaks, or does not fit, can be asked for again only while nothing of it was shown.
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
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    streaming: bool = False
    stream_structured: bool = False
    _learns: bool = PrivateAttr(default=False)  # the profile is ours

    @field_validator("provider", mode="before")
    @classmethod
    def _named(cls, provider: Any) -> Any:
        return get_provider(provider) if provider is None or isinstance(provider, str) else provider

    @field_validator("max_tokens", mode="wrap")
    @classmethod
    def _ceiling(cls, most: Any, check: Callable[[Any], int | None]) -> int | None:
        return most if isinstance(most, AtMost) else check(most)  # pydantic would make a plain number of it

    @property
    def _llm_type(self) -> str:
        return "learnflow"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"provider": repr(self.provider), **self._asked(None, {})}  # a cache's key: it must name the models

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        told = super()._get_ls_params(stop=stop, **kwargs)
        first = next(iter(getattr(self.provider, "providers", [self.provider])), self.provider)
        model = kwargs.get("model") or self.model or getattr(first, "model", None) or self.provider.name
        return {**told, "ls_provider": self.provider.name, "ls_model_name": model}

    def get_num_tokens(self, text: str) -> int:
        """About how many tokens a text takes, estimated high; nothing is loaded or asked for it."""
        return at_most([text])

    def _resolve_model_profile(self) -> Any:
        """What LangChain's middleware asks for: a ModelProfile. Called once, where the caller has given none."""
        self._learns = True
        return put.profile(self.provider.get_capabilities())

    def _learned(self) -> None:
        """The provider may know more of itself after an answer."""
        if self._learns:
            self.profile = cast(Any, put.profile(self.provider.get_capabilities()))

    def _asked(self, stop: list[str] | None, more: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords for the provider; a call's own win."""
        own = {name: getattr(self, name) for name in _ASKED} | self.model_kwargs
        given = own | {name: value for name, value in more.items() if value is not None and name not in _OURS}
        given["stop"] = stop or given["stop"] or None
        return {name: value for name, value in given.items() if value is not None}

    def _whose(self, run: Any) -> dict[str, Any]:
        """``metadata=``: LangGraph's node; over it what the ``config`` has in its metadata under "learnflow_llm"."""
        # LangChain streams without a manager of the run; what surrounds it is known all the same
        told = getattr(run, "metadata", None) or ensure_config().get("metadata") or {}
        node, own = told.get("langgraph_node"), told.get("learnflow_llm")
        named = {"node": node[:_SHOWN]} if isinstance(node, str) and node.isprintable() else {}
        given = {**named, **(own if isinstance(own, dict) else {}), **(self.model_kwargs.get("metadata") or {})}
        return {"metadata": given} if given else {}

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        done = await self.provider.complete(put.put(messages), **(self._asked(stop, kwargs) | self._whose(run_manager)))
        calls = [
            {"name": call.name, "args": call.arguments, "id": call.id, "type": "tool_call"} for call in done.tool_calls
        ]
        message = AIMessage(content=done.text, tool_calls=calls, **put.told(done))
        self._learned()
        return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": str(done.model)})

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return next(filter(None, llm_outputs), {})  # where Langfuse 2 looks for the model

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = self._asked(stop, kwargs) | self._whose(run_manager)
        if not self.stream_structured and (kwargs.get("structured") or asked.get("response_format")):
            whole = (await self._agenerate(messages, stop, run_manager, **kwargs)).generations[0].message
            yield ChatGenerationChunk(message=put.as_chunk(cast(AIMessage, whole)))
            return
        called, asked_for_blocks = set[int](), getattr(self, "output_version", None) == "v1"
        async with aclosing(self.provider.stream(put.put(messages), **asked).events()) as events:
            async for event in events:
                if chunk := put.chunk(event, called, apart=asked_for_blocks):
                    yield ChatGenerationChunk(message=chunk)
        self._learned()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return BACKGROUND.wait(self._agenerate(messages, stop, run_manager, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = cast(AsyncGenerator[ChatGenerationChunk, None], self._astream(messages, stop, run_manager, **kwargs))
        yield from BACKGROUND.pieces(chunks)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with these tools.

        Args:
            tools: functions, classes, LangChain tools, or OpenAI-style dicts.
            tool_choice: "auto", "none", "any" (or True: one of them must be called), or the name of one.
            strict: ask for arguments that fit exactly, where the server can.
            kwargs: keywords of ``generate``.
        """
        try:
            put = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        except ValueError:  # langchain-core before 0.3.76, of a tool that is a provider's own
            put = [{}]
        if not all("function" in tool for tool in put):
            raise Unsupported("a tool that a provider has built in is not for all of them", hint="Give functions only")
        names = [tool["function"]["name"] for tool in put]
        return self.bind(tools=put, tool_choice=schemas.choice(tool_choice, names) if put else None, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model, whose answers are instances of ``schema``, or dicts where it is no pydantic class.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or an OpenAI-style function.
            include_raw: answer ``{"raw": message, "parsed": instance or None, "parsing_error": error or None}``.
            method: "json_schema", which falls back by itself where the model refuses it; "json_mode": any JSON is
                asked for; "function_calling": by a tool.
            strict: of schemas that are no pydantic class: ask for answers that fit exactly, where the server can.
            kwargs: keywords of ``generate``.

        Raises (when asked):
            SchemaMismatch: nobody's answer fits, and ``include_raw`` is not set. Only of a pydantic class (with
                "json_schema") every provider's answer is checked; of others that it is a JSON object.
        """
        if method not in _METHODS:
            raise InvalidRequest(f"method= must be one of {', '.join(_METHODS)}")
        how = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            model = self.bind_tools(
                [schema],
                tool_choice=name,
                strict=strict,
                ls_structured_output_format=how,
                structured=True,
                **kwargs,
            )
        else:
            wanted = {"type": "json_object"} if method == "json_mode" else schemas.wanted(schema, strict)
            model = self.bind(response_format=wanted, ls_structured_output_format=how, **kwargs)

        def read(message: AIMessage) -> Any:
            return schemas.parsed(schema, message)

        return schemas.with_raw(model, read) if include_raw else model | RunnableLambda(read)
