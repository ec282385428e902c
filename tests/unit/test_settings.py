"""The environment is read in one place, as LearnFlow reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY_MODEL

from learnflow.llm import errors, get_provider, settings, settings_sources
from learnflow.llm.base import LLMProvider
from learnflow.llm.cli.variables import variables
from learnflow.llm.providers import build
from learnflow.llm.providers.registry import SPECS


def test_dotenv_files_are_read_as_learnflow_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env.local").write_text("LLM_PROVIDER=vllm\nOLLAMA_MODEL=local\n", encoding="utf-8")
    (tmp_path / ".env").write_text("LLM_PROVIDER=ollama\nSOMETHING_ELSE=1\n", encoding="utf-8")
    assert settings.load().chain == [("ollama",)]
    assert settings.load_provider(SPECS["ollama"]).model == "local"
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    assert settings.load().chain == [("llamacpp",)]


def test_providers_win_over_provider_and_fallback_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("LLM_PROVIDERS", " Ollama, lmstudio ,")
    assert settings.load().chain == [("ollama",), ("lmstudio",)]
    monkeypatch.setenv("LLM_PROVIDERS", "GPU1 + gpu2,openai")
    assert settings.load().chain == [("gpu1", "gpu2"), ("openai",)]
    monkeypatch.setenv("LLM_FALLBACK_ENABLED", "false")
    assert settings.load().chain == [("gpu1", "gpu2")]
    monkeypatch.setenv("LLM_PROVIDERS", "ollama,lmstudio")
    assert settings.load().chain == [("ollama",)]


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "")
    monkeypatch.setenv("OLLAMA_BASE_URL", "")
    assert settings.load().chain == []
    assert settings.load_provider(SPECS["ollama"]).base_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("LLM_DEADLINE", "soon"), ("LLM_GAP_TIMEOUT", "-1"), ("LLM_LOCAL_ONLY", "perhaps"), ("LLM_CONNECT_TIMEOUT", "0")],
)
def test_a_value_that_cannot_be_names_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.NotConfigured, match=name) as caught:
        build("ollama")
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", list(SPECS))
def test_every_row_can_be_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", name)
    if SPECS[name].starts_server:
        monkeypatch.setenv(f"{name.upper()}_MODEL", str(TINY_MODEL))
    else:
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
    provider = get_provider()
    assert provider.name == name
    assert isinstance(provider, LLMProvider)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(errors.NotConfigured, match="Did you mean ollama"):
        get_provider("olama")


@pytest.mark.parametrize("name", list(SPECS))
def test_a_key_is_read_under_every_spelling_and_never_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SPECS[name].spellings("api_key"):
        monkeypatch.setenv(variable, "sk-secret-0000")
        row = settings.load_provider(SPECS[name])
        assert row.api_key
        assert row.api_key.get_secret_value() == "sk-secret-0000"
        assert "secret" not in repr(row)
        monkeypatch.delenv(variable)


def test_a_secret_of_compose_is_a_key_and_goes_to_no_address_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "OPENROUTER_API_KEY").write_text("key-of-a-secret\n", encoding="utf-8")
    monkeypatch.setattr(settings_sources, "SECRETS", tmp_path / "secrets")
    monkeypatch.setenv("OPENROUTER_API_KEY", "")  # as LearnFlow's compose file hands on what is not set
    spec = SPECS["openrouter"]
    assert settings_sources.provider_key(spec, settings.load_provider(spec).api_key) == ("key-of-a-secret", "")
    (where,) = [each.where for each in variables([spec]) if each.name == "OPENROUTER_API_KEY"]
    assert where == str(tmp_path / "secrets")
    Path(".env").write_text("OPENROUTER_BASE_URL=https://elsewhere.example/v1\n", encoding="utf-8")
    _, refusal = settings_sources.provider_key(spec, settings.load_provider(spec).api_key)
    assert "a key goes only to an address of the same place" in refusal


def test_a_secret_of_compose_goes_to_the_address_of_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "OPENROUTER_API_KEY").write_text("key-of-a-secret\n", encoding="utf-8")
    (tmp_path / "OPENROUTER_BASE_URL").write_text("https://proxy.example/v1\n", encoding="utf-8")
    monkeypatch.setattr(settings_sources, "SECRETS", tmp_path)
    spec = SPECS["openrouter"]
    assert settings_sources.provider_key(spec, settings.load_provider(spec).api_key) == ("key-of-a-secret", "")


def test_an_address_with_a_secret_of_the_shell_by_way_of_another_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0000")
    Path(".env").write_text("X=${OPENAI_API_KEY}\nOLLAMA_BASE_URL=http://elsewhere.example/${X}\n", encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="puts a secret into an address"):
        settings_sources.provider_key(SPECS["ollama"], None)
