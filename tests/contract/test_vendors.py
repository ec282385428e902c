"""LiteLLM's vendors: the table matches the installed LiteLLM, and six different vendors answer on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
import vendors

from learnflow.llm import RouterProvider, errors, get_provider
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import build
from learnflow.llm.providers.registry import SPECS, spec_of, vendor_specs
from learnflow.llm.testing import Fault, FaultServer

# One of each shape. Every other vendor differs only in its names and its address.
VENDORS = (
    "groq",  # the usual one
    "ai21_chat",  # a key of another prefix than its name
    "nano-gpt",  # a hyphen in the name
    "vercel_ai_gateway",  # three spellings of the key
    "docker_model_runner",  # local, with a path before /v1
    "llamaswap",  # local, recognised by a page
)
TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def installed() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in vendors.vendors()}


def test_table_matches_the_installed_litellm(installed: dict[str, dict[str, Any]]) -> None:
    """A newer LiteLLM may have more vendors, but must have those of the table unchanged (``make vendors``)."""
    written = {row["name"]: row for row in json.loads(vendors.FILE.read_text(encoding="utf-8"))}
    assert {name: row for name, row in written.items() if installed.get(name) != row} == {}
    assert len(written) > 60
    assert set(written) & set(SPECS) == set()


@pytest.mark.parametrize("name", vendor_specs())
def test_vendor_of_table_writes_request_with_its_key_to_its_url(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every vendor without HTTP: its variables are read, and LiteLLM writes its request."""
    spec = spec_of(name)
    monkeypatch.setenv(spec.variable("base_url"), "http://127.0.0.1:9/v1")
    monkeypatch.setenv(spec.variable("api_key"), "key-of-the-vendor")
    monkeypatch.setenv(spec.variable("model"), "a-model")
    provider = build(name)
    request = _litellm.build_http_request(
        provider.spec, provider.endpoint, "a-model", [{"role": "user", "content": "hi"}], {}
    )
    body = request.body or {}
    assert (provider.name, provider.model) == (name, "a-model")
    assert (request.url.startswith("http://127.0.0.1:9/"), request.url.endswith("/chat/completions")) == (True, True)
    assert (body["model"], body["messages"]) == ("a-model", [{"role": "user", "content": "hi"}])
    assert provider.endpoint.credentials == {"authorization": "Bearer key-of-the-vendor"}


@pytest.mark.parametrize("name", VENDORS)
async def test_vendor_named_by_environment_shows_six_behaviours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check an answer, a stream, a wrong key, a missing model, a limit and a cut."""
    spec = spec_of(name)
    async with FaultServer("openai", TEXT) as server:
        monkeypatch.setenv("LLM_PROVIDER", name)
        monkeypatch.setenv(spec.variable("base_url"), server.root + "/v1")
        monkeypatch.setenv(spec.variable("api_key"), "key-of-the-vendor")
        monkeypatch.setenv(spec.variable("model"), "a-model")
        provider = get_provider()
        done = await provider.complete("hi")
        assert (done.text, done.finish, done.provider, done.model.requested) == (TEXT, "stop", name, "a-model")
        request = server.seen[-1]
        assert request.headers["authorization"] == "Bearer key-of-the-vendor"
        assert request.body["messages"] == [{"role": "user", "content": "hi"}]
        assert request.body["model"] == "a-model"
        assert "".join([piece async for piece in provider.stream("hi")]) == TEXT

        for refusal, kind in (("key", errors.AuthenticationFailed), ("model", errors.ModelNotFound)):
            server.script = [Fault("refuse", refusal=refusal)]
            with pytest.raises(kind) as caught:
                await build(name).generate("hi")
            assert caught.value.provider == name
            assert "key-of-the-vendor" not in str(caught.value)

        half = json.dumps({"choices": [{"message": {"content": "half"}, "finish_reason": "length"}]}).encode()
        server.script = [Fault("refuse", status=200, body=half)]
        assert (await build(name).complete("hi")).finish == "length"

        server.script = [Fault("cut", after=3)]
        with pytest.raises(errors.AnswerCut) as cut:
            await build(name).generate("hi")
        assert cut.value.partial
        assert TEXT.startswith(cut.value.partial)


# The address of a chat in the vendor's own documents (2026-11).
DOCUMENTED = {
    "groq": "https://api.groq.com/openai/v1/chat/completions",
    "mistral": "https://api.mistral.ai/v1/chat/completions",
    "xai": "https://api.x.ai/v1/chat/completions",
    "together_ai": "https://api.together.ai/v1/chat/completions",
    "cerebras": "https://api.cerebras.ai/v1/chat/completions",
    "nvidia_nim": "https://integrate.api.nvidia.com/v1/chat/completions",
    "perplexity": "https://api.perplexity.ai/chat/completions",
    "docker_model_runner": "http://localhost:12434/engines/v1/chat/completions",
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_request_goes_to_the_documented_address(name: str) -> None:
    provider = build(name, api_key="key")
    messages, parameters = [{"role": "user", "content": "hi"}], {"temperature": 0.5, "max_tokens": 7}
    request = _litellm.build_http_request(provider.spec, provider.endpoint, "a-model", messages, parameters)
    assert request.url == DOCUMENTED[name]
    body = request.body or {}
    assert (body["model"], body["messages"], body["temperature"]) == ("a-model", messages, 0.5)
    assert 7 in (body.get("max_tokens"), body.get("max_completion_tokens"))


def test_spec_of_table_states_no_unknown_capability() -> None:
    for spec in vendor_specs().values():
        claimed = {name for name, value in spec.capabilities.items() if value not in (None, spec.local)}
        assert claimed <= {"streaming", "local"}, spec.name
        assert not spec.is_tested or spec.tested_versions


def test_missing_key_or_unknown_name_raises_with_a_hint() -> None:
    with pytest.raises(errors.KeyMissing, match="Set GROQ_API_KEY"):
        build("groq", model="m")
    with pytest.raises(errors.NotConfigured, match=r"Did you mean deepseek\?"):
        RouterProvider("depseek")
