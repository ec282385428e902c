"""The settings of an embedded provider, and the errors for invalid ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from llama import MODEL, server_processes
from support import ROOT

from learnflow.llm import errors, get_provider
from learnflow.llm.providers import EmbeddedProvider, embedded, embedded_model


@pytest.fixture(autouse=True)
def no_server_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use an empty store, and fail if a server is started."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(embedded.subprocess, "Popen", None)


def config(provider: EmbeddedProvider) -> embedded.ServerConfig:
    assert provider._transport
    return provider._transport.server.config


def test_keywords_choose_context_slots_and_threads() -> None:
    made = config(EmbeddedProvider(model=str(MODEL), context=512, slots=3, threads=1))
    assert (made.model, made.alias, made.context, made.slots, made.threads) == (MODEL, "learnflow-tiny", 512, 3, 1)


def test_variables_choose_context_slots_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL": str(MODEL), "CONTEXT": "512", "SLOTS": "3", "THREADS": "1"}.items():
        monkeypatch.setenv(f"EMBEDDED_{name}", value)
    made = config(EmbeddedProvider())
    assert (made.model, made.context, made.slots, made.threads) == (MODEL, 512, 3, 1)
    assert config(EmbeddedProvider(slots=1)).slots == 1  # a keyword wins


def test_defaults_are_8192_tokens_two_slots_and_the_cores() -> None:
    provider = EmbeddedProvider(model=str(MODEL))
    made = config(provider)
    assert (made.context, made.slots, made.threads) == (8192, 2, embedded_model.available_cores())
    assert provider.facts(None).concurrency_limit == 2


@pytest.mark.parametrize("name", ["CONTEXT", "SLOTS", "THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_invalid_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EMBEDDED_{name}", value)
    with pytest.raises(errors.NotConfigured, match=f"EMBEDDED_{name}"):
        EmbeddedProvider(model=str(MODEL))


@pytest.mark.parametrize("name", ["context", "slots", "threads"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_invalid_keyword_is_named(name: str, value: object) -> None:
    with pytest.raises(errors.NotConfigured, match=f"{name}="):
        EmbeddedProvider(model=str(MODEL), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["BASE_URL", "API_KEY", "VISION_MODEL"])
def test_unsupported_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"EMBEDDED_{name}", "http://localhost:1")
    with pytest.raises(errors.NotConfigured) as caught:
        EmbeddedProvider(model=str(MODEL))
    assert f"EMBEDDED_{name}" in caught.value.hint


def test_missing_file_is_named() -> None:
    with pytest.raises(errors.NotConfigured, match=r"file /nowhere/model\.gguf does not exist") as caught:
        EmbeddedProvider(model="/nowhere/model.gguf")
    assert "EMBEDDED_MODEL" in caught.value.hint


def test_folder_as_model_raises(tmp_path: Path) -> None:
    with pytest.raises(errors.NotConfigured, match="does not exist"):
        EmbeddedProvider(model=str(tmp_path) + "/")


@pytest.mark.parametrize("name", ["smollm2", "another"])
def test_missing_name_raises_with_the_download_command(name: str) -> None:
    with pytest.raises(errors.NotConfigured, match=name) as caught:
        EmbeddedProvider(model=name)
    assert "learnflow-llm pull" in caught.value.hint


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(errors.NotConfigured, match="not installed") as caught:
        EmbeddedProvider(model=str(MODEL))
    assert "pip install xllamacpp" in caught.value.hint
    assert "LLM_PROVIDER=llamacpp" in caught.value.hint


async def test_replay_uses_cassettes_of_llamacpp_and_starts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # the extra is not required either
    monkeypatch.setenv("LLM_PROVIDER", "embedded")
    monkeypatch.setenv("LLM_REPLAY", str(ROOT / "cassettes" / "llamacpp"))
    running = server_processes()
    provider = get_provider()
    done = await provider.complete("Say hello", temperature=0)
    assert (done.provider, done.text) == ("embedded", "Hello! How can I help you study today?")
    assert set(server_processes()) <= set(running)  # one of an earlier test may be ending
