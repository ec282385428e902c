"""Refusals in unknown words: the next provider is asked, our defaults are left out, the server's words are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from odd_server import (
    HOWS,
    KEY,
    MODEL,
    SECOND,
    TOOLS,
    OddServer,
    Reply,
    answered,
    body,
    custom,
    good,
    openai_error,
    outcome,
    refusal,
    rows,
    sse,
    unless,
    whole,
)
from support import router

from learnflow.llm import LLMProvider, errors, events
from learnflow.llm.providers import (
    AnthropicProvider,
    GeminiProvider,
    LMStudioProvider,
    OpenAIProvider,
    OpenRouterProvider,
    VLLMProvider,
    build,
)

Make = Callable[[str], LLMProvider]


def groq(url: str) -> LLMProvider:
    return build("groq", url, "study-70b", KEY)


def openrouter(url: str) -> LLMProvider:
    return OpenRouterProvider(url, "study/model", KEY)


def vllm(url: str) -> LLMProvider:
    return VLLMProvider(url, MODEL)


def lmstudio(url: str) -> LLMProvider:
    return LMStudioProvider(url, MODEL)


def gemini(url: str) -> LLMProvider:
    return GeminiProvider(url, "gemini-3-flash", KEY)


@dataclass(frozen=True)
class Row:
    """A refusal that another provider may not share.

    Attributes:
        words: a part of the server's words.
        error: the class of the error without a next provider, if only one is right.
    """

    id: str
    seen: str
    reply: Reply
    words: str
    make: Make = custom
    error: type[errors.LLMError] = errors.LLMError
    options: dict[str, Any] = field(default_factory=dict)


DECOMMISSIONED: Final = "The model `study-70b` has been decommissioned and is no longer supported."
NO_ENDPOINT: Final = "No endpoints found matching your data policy (Paid model training)."

NOT_UNDERSTOOD = (
    Row(
        "400 with a code of the gateway",
        "github.com/adolfousier/opencrabs/issues/1007 (2026-08), github.com/openclaw/openclaw/pull/1879 (2026-01)",
        refusal(400, {"code": 40017, "msg": "Invalid request parameters"}),
        "Invalid request parameters",
    ),
    Row(
        "400 without JSON",
        "github.com/odysseus-dev/odysseus/pull/868 (2026-06: a gateway that refuses every request for a model)",
        body(b"Bad Request", 400, content_type="text/plain"),
        "",
    ),
    Row("400 with an empty body", "a sibling of github.com/aaif-goose/goose/pull/9831 (2026-06)", body(b"", 400), ""),
    Row(
        "400 about tools together with reasoning_effort",
        "github.com/BerriAI/litellm/issues/23156 (2026-03)",
        refusal(400, openai_error("Function tools with reasoning_effort are not supported for study-5 here.")),
        "Function tools with reasoning_effort",
        error=errors.Unsupported,
        options={"tools": TOOLS},
    ),
    Row(
        "400 about tools, from a model that calls none",
        "github.com/sbintuitions/flexeval/pull/242 (2025-09)",
        refusal(400, openai_error("tools is not supported in this model.", param="tools")),
        "tools is not supported",
        error=errors.Unsupported,
        options={"tools": TOOLS},
    ),
    Row(
        "405 about tools",
        "github.com/truefoundry/models/pull/944",
        refusal(405, {"status": "failure", "message": "Tool calling is not supported for model: study-70b"}),
        "Tool calling is not supported",
        error=errors.Unsupported,
        options={"tools": TOOLS},
    ),
    Row(
        "400 about a field of the previous turn",
        "github.com/JohnnyZ93/oai-compatible-copilot/issues/215 (2026-04)",
        refusal(400, openai_error("The `reasoning_content` in the thinking mode must be passed back to the API.")),
        "must be passed back",
    ),
    Row(
        "400 about a missing signature, in a list",
        "github.com/securo-finance/securo/issues/884 (2026-09)",
        refusal(
            400, [{"error": {"code": 400, "message": "A thought_signature is missing.", "status": "INVALID_ARGUMENT"}}]
        ),
        "thought_signature is missing",
        gemini,
    ),
    Row(
        "400 about duplicate ids of calls",
        "github.com/HKUDS/nanobot/issues/4473 (2026-06), github.com/NousResearch/hermes-agent/pull/11722 (2026-04)",
        refusal(400, openai_error("tool call id define:0 is duplicated")),
        "is duplicated",
    ),
    Row(
        "400 about the format of the answer",
        "github.com/llm-exe/llm-exe/issues/662 (2026-07), github.com/UKGovernmentBEIS/inspect_ai/issues/4916 (2026-08)",
        refusal(400, openai_error("This response_format type is unavailable now", code="invalid_request_error")),
        "response_format type is unavailable",
    ),
    Row(
        "404 of a policy",
        "github.com/unoplat/unoplat-code-confluence/issues/1080, github.com/slomin/sai/issues/115 (2026-09)",
        refusal(404, {"error": {"message": NO_ENDPOINT, "code": 404}}),
        NO_ENDPOINT,
        openrouter,
    ),
    Row(
        "404 of a feature that no route has",
        "github.com/agent0ai/agent-zero/pull/1717 (2026-06)",
        refusal(404, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
        "support image input",
        openrouter,
        errors.Unsupported,
    ),
    Row(
        "409",
        "a sibling of github.com/openclaw/openclaw/pull/1879 (2026-01)",
        refusal(409, openai_error("conflict of two routes")),
        "conflict of two routes",
    ),
    Row(
        "413 of a proxy",
        "github.com/tashfeenahmed/freellmapi/issues/168 (2026-06)",
        body(b"<html><title>413 Request Entity Too Large</title></html>", 413, content_type="text/html"),
        "",
    ),
    Row(
        "416 about the length of the answer",
        "github.com/scaleway/docs-content/pull/4858 (2025-04)",
        refusal(416, openai_error("the range is not satisfiable for this model")),
        "range is not satisfiable",
    ),
    Row(
        "422 with a sentence",
        "github.com/router-for-me/CLIProxyAPI/issues/1307 (2026-01)",
        refusal(422, {"detail": "Invalid request: the adapter of this model is missing"}),
        "adapter of this model is missing",
    ),
    Row(
        "424",
        "a sibling of github.com/odysseus-dev/odysseus/pull/868 (2026-06)",
        refusal(424, openai_error("a dependency of the deployment failed")),
        "dependency of the deployment",
    ),
    Row(
        "tool_use_failed",
        "github.com/anomalyco/opencode/issues/1018 (2025-07), github.com/tashfeenahmed/freellmapi/issues/168 (2026-06)",
        refusal(400, openai_error("Failed to call a function.", code="tool_use_failed", failed_generation="<define>")),
        "Failed to call a function",
        groq,
        options={"tools": TOOLS},
    ),
    Row(
        "json_validate_failed",
        "github.com/pydantic/pydantic-ai/pull/4354 (2026-02)",
        refusal(400, openai_error("Failed to generate JSON.", code="json_validate_failed", failed_generation="{")),
        "Failed to generate JSON",
        groq,
    ),
    Row(
        "model_decommissioned",
        "github.com/RightNow-AI/openfang/issues/60 (2026-02), github.com/ItzCrazyKns/Vane/issues/771",
        refusal(400, openai_error(DECOMMISSIONED, code="model_decommissioned")),
        "",
        groq,
        errors.ModelNotFound,
    ),
    Row(
        "model_not_found as 400",
        "github.com/can1357/oh-my-pi/issues/10758 (2026-09)",
        refusal(400, openai_error("unknown provider for model study-7b", param="model", code="model_not_found")),
        "",
        error=errors.ModelNotFound,
    ),
    Row(
        "an unpaid account as 400",
        "github.com/dataelement/bisheng/pull/2426 (2026-09), github.com/HKUDS/nanobot/pull/4048 (2026-05)",
        refusal(400, {"error": {"code": "Arrearage", "message": "Make sure your account is in good standing."}}),
        "",
        error=errors.QuotaExceeded,
    ),
    Row(
        "no balance as 400",
        "github.com/alvinunreal/oh-my-opencode-slim/pull/484 (2026-05), "
        "github.com/dataelement/Clawith/issues/964 (2026-08)",
        refusal(400, {"error": {"message": "Insufficient balance."}}),
        "",
        error=errors.QuotaExceeded,
    ),
    Row(
        "no balance as 402",
        "github.com/dataelement/Clawith/issues/964 (2026-08), "
        "github.com/Dstack-TEE/private-ai-gateway/pull/56 (2026-07)",
        refusal(402, {"error": {"message": "Payment Required", "code": 402}}),
        "",
        error=errors.QuotaExceeded,
    ),
    Row(
        "no balance as 429",
        "github.com/modelscope/modelscope/issues/1691 (2026-04)",
        refusal(
            429,
            {
                "error": {
                    "http_code": "429",
                    "message": "insufficient balance (1008)",
                    "type": "insufficient_balance_error",
                }
            },
        ),
        "",
        error=errors.QuotaExceeded,
    ),
    Row(
        "no balance as 500",
        "github.com/MiniMax-AI/MiniMax-M2/issues/62 (2025-12), "
        "github.com/NousResearch/hermes-agent/issues/16680 (2026-04)",
        refusal(500, {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}}),
        "",
        error=errors.Unavailable,
    ),
    Row(
        "the upstream's 401",
        "github.com/mnfst/llm-gateway/issues/1986 (2026-05)",
        refusal(401, {"error": {"message": "Authentication failed with upstream provider", "type": "upstream_error"}}),
        "",
        error=errors.AuthenticationFailed,
    ),
)
_UNKNOWN_4XX = tuple(row for row in NOT_UNDERSTOOD if row.error is errors.LLMError)


@pytest.mark.parametrize("how", HOWS)
@rows(*NOT_UNDERSTOOD)
async def test_next_provider_gets_request_after_one_retry_without_defaults(
    row: Row, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_RETRIES", "2")
    if row.error is not errors.LLMError:
        monkeypatch.setenv("LLM_RETRIES", "0")  # known errors may be retried first
    async with OddServer(row.reply) as one, OddServer(good(SECOND)) as two:
        done = await answered(router(row.make(one.base_url), custom(two.base_url)), how, **row.options)
        assert done.text == SECOND
        assert (len(one.bodies) <= 2, len(two.bodies)) == (True, 1)


@pytest.mark.parametrize("how", HOWS)
@rows(*_UNKNOWN_4XX)
async def test_unknown_refusal_is_a_warning_and_opens_no_breaker(row: Row, how: str, events_seen: list[Any]) -> None:
    async with OddServer(row.reply) as one, OddServer(good(SECOND)) as two:
        chain = router(row.make(one.base_url), custom(two.base_url))
        await answered(chain, how, **row.options)
        await answered(chain, how, **row.options)
        assert 2 <= len(one.bodies) <= 4  # it stays the first choice; each request is sent again without defaults
    assert [status["breaker"] for status in chain.status()] == ["closed", "closed"]
    refused = [event for event in events_seen if isinstance(event, events.ProviderRefused)]
    assert len(refused) == 2
    assert refused[0].provider == chain.providers[0].name
    assert refused[0].model
    assert isinstance(refused[0].error, errors.LLMError)


@pytest.mark.parametrize("how", HOWS)
@rows(*NOT_UNDERSTOOD)
async def test_sole_provider_raises_with_the_words_of_the_server(row: Row, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(row.make(server.base_url), how, **row.options)
        assert len(server.bodies) <= 2  # once more without our own defaults
    assert isinstance(got, row.error)
    assert row.words in f"{got} {got.server_message}"


@pytest.mark.parametrize("how", HOWS)
async def test_first_refusal_is_raised_if_every_provider_refuses(how: str) -> None:
    """github.com/adolfousier/opencrabs/issues/1007 (2026-08): the last raw error explains nothing."""
    first, second = (
        refusal(400, openai_error(words)) for words in ("the first door is shut", "the second door is shut")
    )
    async with OddServer(first) as one, OddServer(second) as two:
        got = await outcome(router(vllm(one.base_url), custom(two.base_url)), how)
        assert len(two.bodies) >= 1
    assert isinstance(got, errors.LLMError)
    assert got.provider == "vllm"
    assert "the first door is shut" in f"{got} {got.server_message}"
    assert [attempt.provider for attempt in got.attempts][-1] == "custom"


@pytest.mark.parametrize("how", HOWS)
async def test_certain_error_of_the_caller_ends_the_chain(how: str) -> None:
    async with OddServer(good()) as one, OddServer(good()) as two:
        with pytest.raises(errors.RequestError):
            await answered(router(custom(one.base_url), custom(two.base_url)), how, nonsense=True)
        with pytest.raises(errors.RequestError):
            await answered(router(custom(one.base_url), custom(two.base_url)), how, [{"role": "nobody", "content": 1}])
        assert not one.bodies + two.bodies


_OURS: Final = ("temperature", "max_tokens", "max_completion_tokens", "stream_options")


@pytest.mark.parametrize("how", HOWS)
async def test_sole_provider_gets_one_request_without_our_defaults_if_the_refusal_names_nothing(how: str) -> None:
    """Design, rule 6; seen as a bare "Invalid request parameters": github.com/adolfousier/opencrabs/issues/1007 (2026-08)."""  # noqa: E501
    rule = unless(lambda request: any(name in request for name in _OURS), refusal(400, {"msg": "Invalid parameters"}))
    async with OddServer(rule) as server:
        assert (await answered(custom(server.base_url), how)).text == "Two keys."
        assert len(server.bodies) == 2


@dataclass(frozen=True)
class OursRow:
    """A refusal of something that only this package added.

    Attributes:
        bad: whether the server refuses a request.
        prompt: of the call; None for the usual one.
        hows: the methods that are tested. A caller of ``stream()`` requests a stream: no addition of ours.
    """

    id: str
    seen: str
    bad: Callable[[dict[str, Any]], Any]
    reply: Reply
    make: Make = custom
    options: dict[str, Any] = field(default_factory=dict)
    prompt: Any = None
    hows: tuple[str, ...] = ("generate", *HOWS)


def claude(url: str) -> LLMProvider:
    return AnthropicProvider(url, "claude-of-tomorrow", KEY)


def named(field_: str, message: str = "Extra inputs are not permitted") -> list[dict[str, Any]]:
    return [{"type": "extra_forbidden", "loc": ["body", field_], "msg": message, "input": {}}]


def mistral_error(field_: str) -> Any:
    return {"object": "error", "message": {"detail": named(field_)}, "type": "invalid_request_error", "code": None}


def has(*fields: str) -> Callable[[dict[str, Any]], Any]:
    return lambda request: all(name in request for name in fields)


def two_systems(request: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in request["messages"][1:])


TEACHER: Final = [{"role": "system", "content": "You teach."}, {"role": "user", "content": "What is RSA?"}]
SYSTEM_FIRST: Final = {
    "error": {"message": "System message must be at the beginning.", "type": "BadRequestError", "code": 400}
}

OURS = (
    OursRow(
        "temperature is deprecated",
        "github.com/RooCodeInc/Roo-Code/issues/12162 (2026-04), github.com/The-PR-Agent/pr-agent/issues/2456 (2026-06)",
        has("temperature"),
        refusal(400, openai_error("`temperature` is deprecated for this model.")),
        claude,
    ),
    OursRow(
        "temperature is deprecated, at a gateway",
        "github.com/UKGovernmentBEIS/inspect_ai/issues/3721",
        has("temperature"),
        refusal(400, openai_error("`temperature` is deprecated for this model.")),
    ),
    OursRow(
        "temperature beside the caller's top_p",
        "github.com/langfuse/langfuse/issues/9882 (2025-10), github.com/Vali-98/ChatterUI/issues/564 (2026-05)",
        has("temperature", "top_p"),
        refusal(400, openai_error("`temperature` and `top_p` cannot both be specified for this model.")),
        claude,
        {"top_p": 0.9},
    ),
    OursRow(
        "max_tokens in another spelling",
        "a sibling of github.com/NoFxAiOS/nofx/pull/1415 (2026-03)",
        has("max_tokens"),
        refusal(400, openai_error("Unknown field: maxTokens")),
    ),
    OursRow(
        "stream_options with a hyphen",
        "a sibling of github.com/NoFxAiOS/nofx/pull/1415 (2026-03)",
        has("stream_options"),
        refusal(400, openai_error("'stream-options' is not permitted")),
    ),
    OursRow(
        "temperature must be 1",
        "github.com/NoFxAiOS/nofx/pull/1415 (2026-03), github.com/XCNXNXNX/dsh-portable-tavern/issues/1 (2026-08)",
        lambda request: request.get("temperature", 1) != 1,
        refusal(
            400, {"message": "invalid temperature: only 1 is allowed for this model", "type": "invalid_request_error"}
        ),
    ),
    OursRow(
        "temperature in param only",
        "github.com/vijayk1989/TheStoryNexusTauriApp/issues/47 (2026-07), "
        "github.com/JetBrains/koog/issues/1263 (2025-12)",
        has("temperature"),
        refusal(400, openai_error("this value cannot be used here", param="temperature", code="unsupported_value")),
    ),
    OursRow(
        "temperature in the words of a LiteLLM proxy",
        "github.com/HKUDS/nanobot/issues/370 (2026-02)",
        has("temperature"),
        refusal(
            400,
            openai_error(
                "litellm.UnsupportedParamsError: study-5 models don't support temperature=0.7. "
                "Only temperature=1 is supported. To drop unsupported params set `litellm.drop_params = True`"
            ),
        ),
    ),
    OursRow(
        "max_tokens is called max_completion_tokens now",
        "github.com/router-for-me/CLIProxyAPI/issues/2101 (2026-03), github.com/Gitlawb/openclaude/pull/85 (2026-04), "
        "github.com/openhab/openhab-addons/pull/21459 (2026-08)",
        has("max_tokens"),
        refusal(
            400,
            openai_error(
                "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead.",
                param="max_tokens",
                code="unsupported_parameter",
            ),
        ),
    ),
    OursRow(
        "max_tokens above the model's own limit, in the words of param",
        "github.com/AQBot-Desktop/AQBot/issues/93 (2026-05), github.com/browseros-ai/BrowserOS/issues/71 (2025-08)",
        lambda request: max(request.get("max_tokens", 0), request.get("max_completion_tokens", 0)) > 512,
        refusal(
            400,
            openai_error(
                "Param Incorrect",
                param="max_tokens is too large: 1000. This model supports at most 512 completion tokens.",
            ),
        ),
    ),
    OursRow(
        "max_tokens above the model's own limit, in the words of Volcengine",
        "github.com/Gitlawb/openclaude/issues/331 (2026-04)",
        lambda request: max(request.get("max_tokens", 0), request.get("max_completion_tokens", 0)) > 512,
        refusal(
            400,
            {
                "error": {
                    "code": "InvalidParameter",
                    "message": "The parameter `max_tokens` specified in the request are not valid: above maximum "
                    "value, expected a value <= 512, but got 1000 instead.",
                    "param": "max_tokens",
                    "type": "BadRequest",
                }
            },
        ),
    ),
    OursRow(
        "stream_options in loc, as FastAPI writes it",
        "github.com/earendil-works/pi/pull/596 (2026-01), github.com/editor-code-assistant/eca/issues/231 (2025-12)",
        has("stream_options"),
        refusal(422, {"detail": named("stream_options")}),
    ),
    OursRow(
        "stream_options in loc, as Mistral writes it",
        "github.com/Gitlawb/openclaude/issues/739 (2026-04), github.com/partITech/php-mistral/issues/76 (2025-11)",
        has("stream_options"),
        refusal(422, mistral_error("stream_options")),
    ),
    OursRow(
        "stream_options in a pointer",
        "github.com/openai/openai-python/issues/2296 (2025-04)",
        has("stream_options"),
        refusal(400, openai_error("Validation error at #/stream_options: Extra inputs are not permitted")),
    ),
    OursRow(
        "stream_options, at Databricks",
        "github.com/anomalyco/opencode/issues/4698 (2025-11)",
        has("stream_options"),
        refusal(400, {"error_code": "BAD_REQUEST", "message": "include_usage: stream_options is not a known field"}),
    ),
    OursRow(
        "temperature in loc, as FastAPI writes it",
        "github.com/crewAIInc/crewAI/issues/60, github.com/editor-code-assistant/eca/issues/231 (2025-12)",
        has("temperature"),
        refusal(422, {"detail": named("temperature")}),
    ),
    OursRow(
        "temperature in loc, as Mistral writes it",
        "github.com/partITech/php-mistral/issues/76 (2025-11)",
        has("temperature"),
        refusal(422, mistral_error("temperature")),
    ),
    OursRow(
        "temperature in loc, printed into the message",
        "github.com/router-for-me/CLIProxyAPI/issues/1572 (2026-02, SGLang)",
        has("temperature"),
        refusal(
            400,
            {
                "object": "error",
                "message": "1 validation error:\n  {'type': 'extra_forbidden', 'loc': ('body', 'temperature')}",
                "type": "Bad Request",
                "param": None,
                "code": 400,
            },
        ),
    ),
    OursRow(
        "temperature in another language",
        "github.com/XCNXNXNX/dsh-portable-tavern/issues/1 (2026-08)",
        has("temperature"),
        refusal(400, {"error": {"code": "1210", "message": "temperature 不支持"}}),
    ),
    OursRow(
        "stream, for an organisation that is not verified",
        "github.com/lobehub/lobehub/issues/9385 (2025-09), github.com/RooCodeInc/Roo-Code/issues/6868 (2025-08), "
        "github.com/vinhnx/VTCode/issues/438 (2025-10)",
        lambda request: request.get("stream"),
        refusal(
            400,
            openai_error(
                "Your organization must be verified to stream this model.", param="stream", code="unsupported_value"
            ),
        ),
        lambda url: OpenAIProvider(url, "gpt-5", KEY),
        hows=("complete", "generate"),
    ),
    OursRow(
        "stream, in words only",
        "github.com/strands-agents/harness-sdk/issues/243 (2025-06), "
        "github.com/chatboxai/chatbox/issues/1772 (2025-01)",
        lambda request: request.get("stream"),
        refusal(400, {"detail": "stream is not supported by this deployment"}),
        hows=("complete", "generate"),
    ),
    OursRow(
        "a second system message that system= added",
        "github.com/vllm-project/vllm/issues/41114 (2026-04), github.com/nashsu/llm_wiki/issues/45 (2026-04), "
        "github.com/moltis-org/moltis/pull/431 (2026-03)",
        two_systems,
        refusal(400, SYSTEM_FIRST),
        vllm,
        {"system": "Be short."},
        TEACHER,
    ),
    OursRow(
        "a second system message, in the words of a template",
        "github.com/phuetz/code-buddy/pull/75 (2026-08)",
        two_systems,
        refusal(400, openai_error("Jinja Exception: System message must be at the beginning")),
        options={"system": "Be short."},
        prompt=TEACHER,
    ),
)


_OURS_BY_METHOD = [pytest.param(row, how, id=f"{row.id}-{how}") for row in OURS for how in row.hows]


def ours(row: OursRow) -> Callable[[dict[str, Any]], Reply]:
    """Return the rule of a server that refuses what ``row.bad`` names, and answers in the requested form."""

    def reply(request: dict[str, Any]) -> Reply:
        if row.bad(request):
            return row.reply
        return good() if request.get("stream") else body(whole({"content": "Two keys."}))

    return reply


async def text_of(provider: LLMProvider, how: str, row: OursRow) -> str:
    prompt = "Why two keys?" if row.prompt is None else row.prompt
    if how == "generate":
        return await provider.generate(prompt, **row.options)
    return (await answered(provider, how, prompt, **row.options)).text


@pytest.mark.parametrize(("row", "how"), _OURS_BY_METHOD)
async def test_our_own_addition_is_left_out_and_that_is_remembered(row: OursRow, how: str) -> None:
    async with OddServer(ours(row)) as server:
        provider = row.make(server.base_url)
        assert await text_of(provider, how, row) == "Two keys."
        first = len(server.bodies)
        assert first <= 2  # one if the request was good already
        assert await text_of(provider, how, row) == "Two keys."
        assert len(server.bodies) == first + 1
        for name, value in row.options.items():
            assert name == "system" or server.bodies[-1][name] == value
    if row.prompt:
        contents = " ".join(str(message["content"]) for message in server.bodies[-1]["messages"])
        assert "Be short." in contents
        assert "You teach." in contents


@pytest.mark.parametrize(("row", "how"), _OURS_BY_METHOD)
async def test_router_also_leaves_our_own_addition_out(row: OursRow, how: str) -> None:
    """A default of ours never kills a request, so the first provider answers."""
    async with OddServer(ours(row)) as one, OddServer(good(SECOND)) as two:
        chain = router(row.make(one.base_url), custom(two.base_url))
        assert await text_of(chain, how, row) == "Two keys."
        assert not two.bodies


@dataclass(frozen=True)
class CallersRow:
    id: str
    seen: str
    options: dict[str, Any]
    reply: Reply
    name: str


@pytest.mark.parametrize("how", HOWS)
@rows(
    CallersRow(
        "seed in loc",
        "github.com/editor-code-assistant/eca/issues/231 (2025-12)",
        {"seed": 7},
        refusal(422, {"detail": named("seed")}),
        "seed",
    ),
    CallersRow(
        "the caller's temperature",
        "github.com/QwenLM/qwen-code/issues/921 (2025-10), github.com/johny-b/llmcomp/issues/69 (2026-04)",
        {"temperature": 0.2},
        refusal(400, openai_error("`temperature` is deprecated for this model.")),
        "temperature",
    ),
    CallersRow(
        "the caller's level of reasoning",
        "github.com/router-for-me/CLIProxyAPI/issues/1572 (2026-02)",
        {"extra_body": {"reasoning_effort": "xhigh"}},
        refusal(400, {"object": "error", "message": "1 validation error: 'loc': ('body', 'reasoning_effort')"}),
        "reasoning_effort",
    ),
)
async def test_keyword_of_the_caller_is_never_left_out_and_the_error_names_it(row: CallersRow, how: str) -> None:
    given = row.options.get("extra_body", row.options)
    async with OddServer(unless(has(row.name), row.reply)) as server:
        got = await outcome(custom(server.base_url), how, **row.options)
        assert isinstance(got, errors.LLMError)
        assert row.name in str(got)
        assert all(request[row.name] == given[row.name] for request in server.bodies)


@pytest.mark.parametrize("how", HOWS)
async def test_max_tokens_of_the_caller_is_sent_under_the_name_that_the_server_requires(how: str) -> None:
    """github.com/devnullvoid/dms-ai-assistant/issues/12 (2026-05): honoured or refused by name, never left out."""
    rule = unless(
        has("max_tokens"),
        refusal(400, openai_error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.")),
    )
    async with OddServer(rule) as server:
        got = await outcome(custom(server.base_url), how, max_tokens=50)
        if isinstance(got, errors.LLMError):
            assert "max_tokens" in str(got)
        else:
            assert server.bodies[-1]["max_completion_tokens"] == 50


@pytest.mark.parametrize("how", HOWS)
async def test_two_system_messages_of_the_caller_reach_a_provider_that_takes_them(how: str) -> None:
    """github.com/anomalyco/opencode/issues/15059 (2026-05), github.com/anomalyco/opencode/pull/19464 (2026-03)."""
    turns = [TEACHER[1], {"role": "assistant", "content": "A cipher."}, TEACHER[0], TEACHER[1]]
    async with OddServer(unless(two_systems, refusal(400, SYSTEM_FIRST))) as one, OddServer(good(SECOND)) as two:
        done = await answered(router(vllm(one.base_url), custom(two.base_url)), how, turns)
    assert done.text in (SECOND, "Two keys.")


@dataclass(frozen=True)
class OverflowRow:
    id: str
    seen: str
    reply: Reply
    make: Make = custom


LONG: Final = "word " * 60

OVERFLOWS = (
    OverflowRow(
        "vLLM, with pictures",
        "github.com/XiaomiMiMo/MiMo-Embodied/issues/5 (2025-12), github.com/linagora/openrag/issues/128 (2025-11)",
        refusal(400, openai_error("The decoder prompt (length 9100) is longer than the maximum model length of 8192.")),
        vllm,
    ),
    OverflowRow(
        "vLLM 0.6",
        "github.com/vllm-project/vllm/issues/12165",
        refusal(
            400,
            {
                "object": "error",
                "message": "The prompt (total length 9100) is too long to fit into the model (context length 8192).",
            },
        ),
        vllm,
    ),
    OverflowRow(
        "LM Studio",
        "github.com/lmstudio-ai/lmstudio-bug-tracker/issues/546, github.com/cline/cline/issues/3664 (2025-05)",
        refusal(
            400,
            {
                "error": "Trying to keep the first 9100 tokens when context the overflows. The model is loaded "
                "with context length of only 8192 tokens, which is not enough."
            },
        ),
        lmstudio,
    ),
    OverflowRow(
        "Moonshot",
        "github.com/MoonshotAI/kimi-code/pull/207 (2026-05), github.com/open-octo/octo-agent/pull/2124 (2026-08)",
        refusal(400, openai_error("Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)")),
    ),
    OverflowRow(
        "MiniMax",
        "github.com/open-octo/octo-agent/pull/2124 (2026-08)",
        refusal(400, openai_error("invalid params, context window exceeds limit (2013)", type="bad_request_error")),
    ),
    OverflowRow(
        "a number in parentheses",
        "github.com/earendil-works/pi/issues/5677 (2026-06)",
        refusal(400, openai_error("Input length (70123) exceeds model's maximum context length (65536).")),
    ),
    OverflowRow(
        "Poolside, GLM",
        "github.com/earendil-works/pi/issues/4943 (2026-05), github.com/NVIDIA-NeMo/Switchyard/pull/314 (2026-08)",
        refusal(
            400,
            {
                "error": {
                    "message": "Input length 33001 exceeds the maximum allowed input length of 32768 tokens.",
                    "code": "400",
                }
            },
        ),
    ),
    OverflowRow(
        "Z.AI, a code",
        "github.com/earendil-works/pi/issues/9805 (2026-09)",
        refusal(400, {"error": {"code": "1261", "message": "Prompt too long"}}),
    ),
    OverflowRow(
        "Zhipu, a code and Chinese words",
        "github.com/open-octo/octo-agent/pull/2124 (2026-08)",
        refusal(400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
    ),
    OverflowRow(
        "DashScope",
        "github.com/open-octo/octo-agent/pull/2124 (2026-08)",
        refusal(400, openai_error("Range of input length should be [1, 8192]", code="invalid_parameter_error")),
    ),
    OverflowRow(
        "Atlas",
        "github.com/0xBakeer/inference-atlas/pull/186 (2026-09)",
        refusal(
            400, openai_error("Prompt too long: 9100 tokens exceeds max_seq_len 8192 (leave room for output tokens)")
        ),
    ),
    OverflowRow(
        "llama-cpp-python",
        "github.com/jin-bo/agentao/pull/88 (2026-06)",
        refusal(400, openai_error("Requested tokens (9000) exceed context window of 4096")),
    ),
    OverflowRow(
        "llama.cpp, a type",
        "github.com/DraconDev/pi-goal-list-loop-audit/pull/48 (2026-09)",
        refusal(
            400,
            {
                "error": {
                    "code": 400,
                    "message": "too much",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9100,
                    "n_ctx": 8192,
                }
            },
        ),
    ),
    OverflowRow(
        "SGLang",
        "github.com/0xBakeer/inference-atlas/pull/186 (2026-09)",
        refusal(
            400,
            {
                "object": "error",
                "message": "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            },
        ),
    ),
    OverflowRow(
        "Gemini",
        "github.com/earendil-works/pi/issues/129 (2025-12)",
        refusal(
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": "The input token count (12000) exceeds the maximum number of tokens allowed (8192).",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
        ),
        gemini,
    ),
    OverflowRow(
        "xAI",
        "github.com/jin-bo/agentao/pull/88 (2026-06)",
        refusal(
            400,
            {
                "code": "invalid",
                "error": "This model's maximum prompt length is 8192 but the request contains 9100 tokens.",
            },
        ),
    ),
    OverflowRow(
        "inside a 200, in a stream",
        "github.com/vercel/ai/pull/17279 (2026-07), github.com/NousResearch/hermes-agent/pull/65643 (2026-07)",
        sse(
            {
                "error": {
                    "message": "This model's maximum context length is 8192 tokens, you requested 9000.",
                    "code": 400,
                }
            }
        ),
    ),
    OverflowRow(
        "inside a 200, in one piece, by a code",
        "github.com/vercel/ai/pull/17279 (2026-07)",
        body({"error": {"message": "no", "code": "context_length_exceeded"}}),
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*OVERFLOWS)
async def test_overflow_is_known_and_the_next_provider_answers(row: OverflowRow, how: str) -> None:
    async with OddServer(row.reply) as one, OddServer(good(SECOND)) as two:
        assert isinstance(await outcome(row.make(one.base_url), how, LONG), errors.ContextOverflow)
        chain = router(row.make(one.base_url), custom(two.base_url))
        assert (await answered(chain, how, LONG)).text == SECOND
    assert chain.status()[0]["breaker"] == "closed"


@dataclass(frozen=True)
class NoOverflowRow:
    id: str
    seen: str
    reply: Reply


@pytest.mark.parametrize("how", HOWS)
@rows(
    NoOverflowRow(
        "a limit of the answer",
        "github.com/aaif-goose/goose/pull/9831 (2026-06)",
        refusal(400, openai_error("max_tokens must be less than or equal to 512")),
    ),
    NoOverflowRow(
        "throttling",
        "github.com/jin-bo/agentao/pull/88 (2026-06, Bedrock)",
        refusal(429, openai_error("Too many tokens, please wait before trying again.")),
    ),
    NoOverflowRow(
        "a quota of the organisation",
        "github.com/aaif-goose/goose/pull/9831 (2026-06)",
        refusal(429, openai_error("Current token count exceeds your organization quota")),
    ),
    NoOverflowRow(
        "tokens for a minute as 413",
        "github.com/openclaw/openclaw/issues/147644 (2026-09), github.com/openclaw/openclaw/pull/16176 (2026-02), "
        "github.com/continuedev/continue/issues/10218 (2026-02)",
        refusal(
            413,
            {
                "error": {
                    "message": "Request too large for model `study-70b` on tokens per minute (TPM): Limit 8000, "
                    "Requested 9100, please reduce your message size and try again.",
                    "type": "tokens",
                    "code": "rate_limit_exceeded",
                }
            },
        ),
    ),
)
async def test_other_limits_are_no_overflow(row: NoOverflowRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(custom(server.base_url), how, LONG, max_tokens=900)
    assert isinstance(got, errors.LLMError)
    assert not isinstance(got, errors.ContextOverflow)


@dataclass(frozen=True)
class RateRow:
    id: str
    seen: str
    reply: Reply
    wait_s: float | None
    make: Make = custom


def google(message: str, delay: str | None = None, quota: str = "PerMinutePerProjectPerModel-FreeTier") -> Any:
    detail: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": f"GenerateRequests{quota}"}],
        }
    ]
    if delay:
        detail.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return [{"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": detail}}]


QUOTA_WORDS: Final = "You exceeded your current quota, please check your plan and billing details."

RATES = (
    RateRow(
        "Gemini, RetryInfo in whole seconds",
        "github.com/anomalyco/opencode/issues/49039 (2026-09), github.com/RooCodeInc/Roo-Code/issues/3883 (2025-06)",
        refusal(429, google(QUOTA_WORDS, "19s")),
        19,
        gemini,
    ),
    RateRow(
        "Gemini, RetryInfo with nine decimals",
        "github.com/dcdpr/jp/pull/1061 (2026-09)",
        refusal(429, google(QUOTA_WORDS, "31.250000125s")),
        31.250000125,
        gemini,
    ),
    RateRow(
        "Gemini, the seconds in words only",
        "github.com/diegosouzapw/OmniRoute/pull/9513 (2026-08), github.com/dimetron/pi-go/pull/177 (2026-08)",
        refusal(429, {"error": {"message": f"{QUOTA_WORDS}\nPlease retry in 17.25s.", "code": 429}}),
        17.25,
    ),
    RateRow(
        "Groq, the seconds in words",
        "github.com/elizaOS/eliza/issues/4040 (2025-03)",
        refusal(
            429,
            openai_error(
                "Rate limit reached for model `study-8b` on tokens per minute (TPM): Limit 6000, Used 5034. "
                "Please try again in 6.5s.",
                type="tokens",
                code="rate_limit_exceeded",
            ),
        ),
        6.5,
        groq,
    ),
    RateRow(
        "minutes and seconds in words",
        "a sibling of github.com/elizaOS/eliza/issues/4040 (2025-03)",
        refusal(429, openai_error("Rate limit reached. Please try again in 1m30s.", code="rate_limit_exceeded")),
        90,
    ),
    RateRow(
        "milliseconds in words",
        "a sibling of github.com/router-for-me/CLIProxyAPI/pull/449 (2025-12)",
        refusal(429, openai_error("Rate limit reached. Please try again in 850ms.", code="rate_limit_exceeded")),
        0.85,
    ),
    RateRow(
        "tokens for a minute as 413",
        "github.com/openclaw/openclaw/issues/147644 (2026-09), github.com/tinyhumansai/openhuman/issues/4404 (2026-07)",
        refusal(
            413,
            openai_error(
                "Request too large for model `study-70b` on tokens per minute (TPM): Limit 9000, Requested 9900.",
                type="tokens",
                code="rate_limit_exceeded",
            ),
        ),
        None,
        groq,
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*RATES)
async def test_quota_for_a_minute_is_a_rate_limit_with_its_seconds(row: RateRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(row.make(server.base_url), how)
    assert type(got) is errors.RateLimited
    assert got.retry_after == (None if row.wait_s is None else pytest.approx(row.wait_s))


@pytest.mark.parametrize("how", HOWS)
@rows(
    RateRow(
        "OpenAI, insufficient_quota",
        "github.com/anomalyco/opencode/pull/50101 (2026-09)",
        refusal(429, openai_error(QUOTA_WORDS, type="insufficient_quota", code="insufficient_quota")),
        None,
    ),
    RateRow(
        "Gemini, a quota for a day",
        "github.com/dcdpr/jp/pull/1061 (2026-09), github.com/google-gemini/gemini-cli/pull/21881 (2026-03)",
        refusal(429, google(QUOTA_WORDS, None, "PerDayPerProjectPerModel-FreeTier")),
        None,
        gemini,
    ),
)
async def test_quota_without_a_time_to_wait_is_used_up(row: RateRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        assert isinstance(await outcome(row.make(server.base_url), how), errors.QuotaExceeded)


async def test_rate_limit_of_gemini_is_waited_for_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """github.com/microsoft/vscode/issues/273025 (2025-10), github.com/letterstory/lettertrace/pull/34 (2026-07)."""
    monkeypatch.setenv("LLM_RETRIES", "2")
    replies = [refusal(429, google(QUOTA_WORDS, "0.001s")), good()]
    async with OddServer(lambda request: replies.pop(0)) as server:
        assert (await router(gemini(server.base_url)).complete("Why two keys?")).text == "Two keys."
        assert len(server.bodies) == 2


@pytest.mark.parametrize("how", HOWS)
async def test_wrong_address_is_still_named(how: str) -> None:
    """A 404 without any word of a model server, as of github.com/grafana/grafana-llm-app/issues/642 (2025-04)."""
    async with OddServer(body(b"<html>Not Found</html>", 404, content_type="text/html")) as server:
        assert isinstance(await outcome(custom(server.base_url), how), errors.Misconfigured)


async def test_stream_after_a_refusal_is_that_of_the_next_provider() -> None:
    async with OddServer(refusal(400, {"msg": "no"})) as one, OddServer(good(SECOND)) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        assert "".join([piece async for piece in chain.stream("Why two keys?")]) == SECOND
