"""What every test stands on: an environment of its own, and LiteLLM made ready once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from learnflow.llm import settings
from learnflow.llm.adapter import _litellm
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, LMStudioProvider, OllamaProvider, VLLMProvider
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import FaultServer
from learnflow.llm.transport.endpoint import endpoint

KINDS: dict[str, type[BaseProvider]] = {
    "openai": CustomProvider,
    "lmstudio": LMStudioProvider,
    "vllm": VLLMProvider,
    "llamacpp": LlamaCppProvider,
    "ollama": OllamaProvider,
}
DIALECTS = list(KINDS)
LIVE = os.environ.copy()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine, no .env of the working directory, no proxy."""
    for name in list(os.environ):
        row = name.split("_")[0].lower()
        if row in (*SPECS, "llm", "lm", "hosted", "llama") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def litellm_ready() -> None:
    """Seconds, once: no test's budget pays for it."""
    for name in ("custom", "ollama", "openai"):
        asyncio.run(_litellm.prepare(SPECS[name], endpoint(SPECS[name], "http://localhost")))


def read_variables() -> set[str]:
    """Every variable that the settings read."""
    common = {name.upper() for name in settings.Settings.model_fields}
    return common | {name for spec in SPECS.values() for names in spec.variables for name in names}


def provider_for(server: FaultServer, **options: object) -> BaseProvider:
    """The provider of the server's dialect, asking the model that it has."""
    return KINDS[server.dialect.name](base_url=server.base_url, model="fault-model", **options)  # type: ignore[arg-type]


@pytest.fixture
def events_seen() -> Iterator[list[object]]:
    """Every event of the test."""
    from learnflow.llm import events  # noqa: PLC0415

    seen: list[object] = []
    remove = events.add_sink(seen.append)
    yield seen
    remove()
