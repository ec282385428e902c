"""Capabilities that a server reports, and those that the operator configures."""

from __future__ import annotations

import pytest

from learnflow.llm import errors
from learnflow.llm.providers import (
    CustomProvider,
    LlamaCppProvider,
    OllamaProvider,
)
from learnflow.llm.testing import FaultServer


async def test_configured_context_overrides_reported_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACPP_CONTEXT", "1234")
    async with FaultServer("llamacpp") as server:
        health = await LlamaCppProvider(base_url=server.base_url).refresh()
        assert (health.capabilities["context_served"], health.capabilities["context"]) == (1234, 8192)


async def test_forwarded_model_is_not_local_and_refused_under_local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"models": [{"name": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com"}, {"name": "small"}]}
    async with FaultServer("ollama", responses={"/api/tags": tags, "/api/show": (404, {})}) as server:
        away = OllamaProvider(base_url=server.base_url, model="gpt-oss:120b-cloud")
        assert (await away.refresh()).capabilities["local"] is False
        monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
        for model in ("gpt-oss:120b-cloud", "deepseek-v3.1:671b-cloud"):  # listed, or not known to be local
            with pytest.raises(errors.NotLocal, match="forwards this model elsewhere"):
                await OllamaProvider(base_url=server.base_url, model=model).generate("hi")
        server.responses["/v1/models"] = {"data": [{"id": "gpt-oss:120b-cloud"}]}
        with pytest.raises(errors.NotLocal):  # the same server by its other address
            await CustomProvider(base_url=server.base_url, model="gpt-oss:120b-cloud").generate("hi")
        good, server.responses["/api/tags"] = server.responses["/api/tags"], (500, {"error": "?"})
        with pytest.raises(errors.LLMError):  # no probe, no request
            await OllamaProvider(base_url=server.base_url, model="small").generate("hi")
        server.responses["/api/tags"] = good
        assert server.seen == []
        await OllamaProvider(base_url=server.base_url).generate("hi")  # the only local one
        assert server.seen[0].body["model"] == "small"
