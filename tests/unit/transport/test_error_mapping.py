"""The error tree, and the mapping of statuses, bodies and exceptions to errors."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import httpx
import pytest

from learnflow.llm import errors
from learnflow.llm.adapter import _litellm
from learnflow.llm.errors import LLMError
from learnflow.llm.transport import error_mapping
from learnflow.llm.transport.untrusted import mask_keys


@pytest.mark.parametrize(
    ("status", "body", "leaf"),
    [
        (403, b"", errors.Misconfigured),  # Ollama's check of Host and Origin
        (403, b'{"error":"forbidden"}', errors.AuthenticationFailed),
        (404, b'{"error":{"code":"404","message":"Resource not found"}}', errors.Misconfigured),  # Azure: wrong path
        (404, b'{"error":{"code":"DeploymentNotFound","message":"The API deployment"}}', errors.ModelNotFound),
        (404, b'{"detail":"Not Found"}', errors.Misconfigured),
        (400, b'{"error":{"message":"x/y is not a valid model ID","code":400}}', errors.ModelNotFound),  # OpenRouter
        (404, b'{"error":{"message":"No endpoints found for x/y.","code":404}}', errors.ModelNotFound),  # OpenRouter
        (404, b'{"error":{"message":"Model not found","param":"model","code":"NOT_FOUND"}}', errors.ModelNotFound),
        (400, b'{"error":{"message":"No connected db.","type":"no_db_connection"}}', errors.AuthenticationFailed),
        (404, b"404 page not found", errors.Misconfigured),
        (405, b"", errors.Misconfigured),
        (400, b'{"error":{"code":400,"message":"model \'x\' not found"}}', errors.ModelNotFound),  # llama.cpp's router
        (
            400,
            b'{"error":"{\\"error\\":{\\"code\\":400,\\"type\\":\\"exceed_context_size_error\\"}}"}',
            errors.ContextOverflow,
        ),
        (
            400,
            b'{"error":{"message":"Input length (9) exceeds model\'s maximum context length (8)"}}',
            errors.ContextOverflow,
        ),
        (
            400,
            b'{"error":{"message":"Prompt too big: the prompt is longer than the context length currently available"}}',
            errors.ContextOverflow,
        ),
        (400, b'{"error":"\\"m\\" does not support thinking"}', errors.Unsupported),
        (400, b'{"error":{"message":"\\"auto\\" tool choice requires --enable-auto-tool-choice"}}', errors.Unsupported),
        (400, b"{\"error\":\"'response_format.type' must be 'json_schema' or 'text'\"}", errors.Unsupported),
        (
            400,
            b'{"error":{"code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}',
            errors.ContentFiltered,
        ),
        (422, b'{"detail":[{"loc":["body","messages"],"msg":"Field required"}]}', errors.RequestRefused),
        (
            400,
            b'{"error":{"message":"tool_choice=required requires --tool-call-parser to be set"}}',
            errors.Unsupported,
        ),
        (402, b"{}", errors.QuotaExceeded),
        (429, b"slow down", errors.RateLimited),
        (500, b"<html>oops</html>", errors.ServerFailed),
        (502, b"<html>Bad Gateway</html>", errors.ServerFailed),
        (503, b"", errors.Overloaded),
        (529, b"{}", errors.Overloaded),
        (501, b"{}", errors.Unsupported),
        (200 + 102, b"", errors.Misconfigured),
        (407, b"", errors.Misconfigured),
        *((status, b"{}", errors.RequestRefused) for status in (409, 410, 418, 421, 423, 424, 425, 426, 451, 494, 499)),
        *((status, b"{}", errors.ServerFailed) for status in (408, 599)),
        (405, b"{}", errors.Misconfigured),
        (413, b"{}", errors.RequestRefused),  # a limit in bytes, of a proxy for instance
        (451, b'{"error":{"message":"The maximum context length is 8 tokens."}}', errors.ContextOverflow),
        (413, b"", errors.RequestRefused),
        (413, b"<html>413 Request Entity Too Large</html>", errors.RequestRefused),
        (404, b"", errors.Misconfigured),
        (404, b'{"error":{"message":"Invalid URL (POST /v1/x)"}}', errors.Misconfigured),  # OpenAI
        (404, b'{"error":{"code":404,"message":"File Not Found"}}', errors.Misconfigured),  # llama.cpp
        (404, b'{"message":"no Route matched with those values"}', errors.Misconfigured),  # Kong
        (
            404,
            b'{"error":{"message":"No endpoints found matching your policy: https://openrouter.ai/settings/privacy","code":404}}',
            errors.RequestRefused,
        ),
        (404, b"Cannot POST /x", errors.Misconfigured),  # Express
        (405, b'{"detail":"Method Not Allowed"}', errors.Misconfigured),  # FastAPI
        (
            404,
            b'{"error":{"message":"No allowed providers are available for the selected model."}}',
            errors.RequestRefused,
        ),
        (
            400,
            b'{"error":"prompt too long; exceeded max context length by 4 tokens"}',
            errors.ContextOverflow,
        ),  # Ollama
        (400, b'{"error":"input too long"}', errors.ContextOverflow),
        (500, b'{"error":"the input length exceeds the context length"}', errors.ContextOverflow),
        (400, b'{"error":"input image exceeds 5 MB maximum"}', errors.RequestRefused),
        (400, b'{"error":{"message":"string too long","param":"prompt_cache_key"}}', errors.RequestRefused),
        (400, b'{"error":{"message":"Throttled: 100 requests per minute"}}', errors.RateLimited),
        (400, b'{"error":{"message":"max_tokens=9 cannot be greater than max_model_len=8"}}', errors.ContextOverflow),
        (500, b'{"error":{"message":"image input is not supported - hint: mmproj"}}', errors.Unsupported),  # llama.cpp
        (429, b"You exceeded your current quota, please check your plan and billing", errors.QuotaExceeded),
        (400, b'{"error":{"message":"Your credit balance is too low"}}', errors.QuotaExceeded),
        (400, b'{"error":{"message":"API key not valid. Please pass a valid API key."}}', errors.AuthenticationFailed),
        (404, b'{"error":{"message":"No endpoints found that support image input"}}', errors.Unsupported),
        (400, b'{"error":{"message":"Tool \'foo\' of the model: function not found"}}', errors.RequestRefused),
    ],
)
def test_refusal_is_classified_by_status_code_and_message(status: int, body: bytes, leaf: type[LLMError]) -> None:
    error = error_mapping.map_response(status, body)
    assert type(error) is leaf
    assert error.status == status


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("body", [b"inference error: ResourceExhausted - the pool is full", b"rate limit", b""])
def test_request_dropped_by_router_is_overload_with_reason_and_wait(status: int, body: bytes) -> None:
    headers = {"x-llm-d-request-dropped-reason": "rejected-ttl-expired", "retry-after": "3"}
    error = error_mapping.map_response(status, body, headers)
    assert type(error) is errors.Overloaded
    assert error.server_message.endswith("(rejected-ttl-expired)")
    assert (error.status, error.retry_after) == (status, 3)
    assert type(error_mapping.map_response(500, b"", {"x-request-dropped-reason": "internal"})) is errors.ServerFailed


@pytest.mark.parametrize(
    "words", ["model hf.co/MaziyarPanahi/Qwen3-0.6B-GGUF:Q4_K_M", "Meta-Llama-3.1-8B-Instruct-GGUF"]
)
def test_model_name_is_not_masked_as_key(words: str) -> None:
    assert mask_keys(words, None) == words


def test_long_server_message_is_shortened() -> None:
    assert len(str(error_mapping.map_response(400, b"x" * 10_000))) < 600


@pytest.mark.parametrize("leaf", [leaf for _, leaf in inspect.getmembers(errors, inspect.isclass)])
def test_every_error_has_hint_can_be_pickled_and_hides_partial(leaf: type[LLMError]) -> None:
    if leaf is LLMError or not issubclass(leaf, LLMError):
        return
    error = leaf("it broke", provider="ollama", model="m", status=500)
    error.partial, error.thinking = "half of a secret answer", "secret thought"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert (str(copy), copy.partial, copy.provider) == (str(error), error.partial, "ollama")
    assert str(error).startswith("ollama, model m: it broke (HTTP 500)")
    assert "secret" not in str(error) + repr(error) + str(error.args)


def leaves_of(kind: type[LLMError]) -> Iterator[type[LLMError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from leaves_of(subclass)


def test_error_tree_in_docstring_matches_classes() -> None:
    assert errors.__doc__
    for leaf in leaves_of(LLMError):
        assert f"─ {leaf.__name__}" in errors.__doc__
    for line in errors.__doc__.splitlines():
        if "─ " in line:
            assert hasattr(errors, line.split("─ ")[1].split()[0])


def test_every_httpx_exception_is_mapped() -> None:
    # misuse of httpx's objects, and errors of its client, which is not used
    inner = {"StreamConsumed", "StreamClosed", "ResponseNotRead", "RequestNotRead"}
    inner |= {"HTTPStatusError", "TooManyRedirects", "CookieConflict"}
    for name, kind in inspect.getmembers(httpx, inspect.isclass):
        if issubclass(kind, Exception) and name not in inner:
            assert not isinstance(error_mapping.map_exception(kind.__new__(kind)), errors.MalformedAnswer), name


def test_table_of_litellm_exceptions_names_only_what_exists() -> None:
    _litellm._load()
    import litellm.exceptions  # noqa: PLC0415

    assert [name for name in _litellm._ERROR_CLASSES if not hasattr(litellm.exceptions, name)] == []


def test_wait_in_error_object_of_a_200_makes_a_quota_a_rate_limit() -> None:
    message = "You exceeded your current quota. Please retry in 1h2m3.5s."
    error = error_mapping.map_error_object({"error": {"code": 429, "message": message}}, answer_started=False)
    assert type(error) is errors.RateLimited
    assert error.retry_after == 3723.5


def test_wait_is_bounded_and_never_guessed() -> None:
    for words in ("retry in " + "9" * 4000 + "s", "Try again later.", "retry in 5 apples", "retry in ms", "retry in ."):
        assert error_mapping.map_response(429, words.encode()).retry_after is None
    assert error_mapping.map_response(429, b"retry in 250 milliseconds").retry_after == 0.25
    assert error_mapping.map_response(429, b"retry in 9s", {"retry-after": "0"}).retry_after == 0
