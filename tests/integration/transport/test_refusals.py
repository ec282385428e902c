"""Refusals: their errors, when to retry, and what is not quoted."""

from __future__ import annotations

import json

import pytest
from support import DIALECTS, provider_for

from learnflow.llm import errors
from learnflow.llm.errors import LLMError
from learnflow.llm.testing import Fault, FaultServer
from learnflow.llm.testing.dialects import ERROR_RESPONSES
from learnflow.llm.transport import error_mapping

LEAVES = {
    "key": errors.AuthenticationFailed,
    "model": errors.ModelNotFound,
    "overflow": errors.ContextOverflow,
    "rate": errors.RateLimited,
    "quota": errors.QuotaExceeded,
    "busy": errors.Overloaded,
    "loading": errors.ModelLoading,
    "failed": errors.ServerFailed,
    "request": errors.RequestRefused,
    "filter": errors.ContentFiltered,
}


@pytest.mark.parametrize(("dialect", "refusal"), [(d, r) for d in DIALECTS for r in ERROR_RESPONSES[d]])
async def test_refusal_raises_its_error_class(dialect: str, refusal: str) -> None:
    async with FaultServer(dialect, fault=Fault("refuse", refusal=refusal)) as server:
        with pytest.raises(LLMError) as caught:
            await provider_for(server).generate("Explain RSA to me")
        assert len(server.seen) == (2 if refusal == "request" else 1)  # without our defaults; no other layer retries
    error = caught.value
    assert type(error) is LEAVES[refusal]
    assert error.status == ERROR_RESPONSES[dialect][refusal][0]
    assert error.provider
    assert error.model == "fault-model"
    assert error.hint
    assert error.__context__ is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_parsed_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    async with FaultServer(fault=Fault("refuse", refusal="rate", headers=headers)) as server:
        with pytest.raises(errors.RateLimited) as caught:
            await provider_for(server).generate("hi")
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    "message",
    [
        "you wrote: Explain the private exponent d of my own key",
        "bad input near 'the private exponent d of'",
        "Incorrect API key provided: sk-secret-0000",
        "Incorrect API key provided: sk-secre…",
        r"input was 'Explain the\n  private exponent d of my own key'",
        "x" * 270 + " Explain the private exponent d of my own key",
    ],
)
async def test_message_that_repeats_prompt_or_key_is_not_quoted(message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    async with FaultServer(fault=Fault("refuse", refusal="request", body=body)) as server:
        provider = provider_for(server, api_key="sk-secret-0000")
        with pytest.raises(LLMError) as caught:
            await provider.generate("Explain the\n  private exponent d of my own key")
    shown = f"{caught.value!s} {caught.value!r} {caught.value.args} {caught.value.what}"
    assert "secret" not in shown
    assert "exponent" not in shown
    assert "left out" in shown or "[masked]" in shown
    assert "secret" not in caught.value.server_message


async def test_server_message_is_quoted() -> None:
    error = error_mapping.map_response(404, b'{"error":"model \'x\' not found"}')
    assert error.server_message == "model 'x' not found"
    assert "not found" not in str(error)  # it is quoted only after a comparison with the request
    body = json.dumps({"error": {"message": "n must be 1\x1b[31m"}}).encode()
    async with FaultServer(fault=Fault("refuse", refusal="request", body=body)) as server:
        with pytest.raises(LLMError) as caught:
            await provider_for(server).generate("hi")
    assert "“n must be 1 [31m”" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghij0123456789",
        "Bearer abcdefgh12345678",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "hf_abcdefghijklmnop",
        "3f9a1c0e5b7d2468ace013579bdf0246",
        "QWxhZGRpbjpvcGVuIHNlc2FtZSBhbmQgbW9yZTE=",
    ],
)
async def test_anything_like_a_key_is_masked(key: str) -> None:
    body = json.dumps({"error": {"message": f"the upstream refused {key} today"}}).encode()
    async with FaultServer(fault=Fault("refuse", refusal="request", body=body)) as server:
        with pytest.raises(LLMError) as caught:
            await provider_for(server).generate("hi")
    assert caught.value.server_message == "the upstream refused [masked] today"
    assert "refused [masked] today" in str(caught.value)
