"""The settings are read from the environment and from files, as LearnFlow does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from dotenv import dotenv_values
from dotenv.parser import Binding
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


def test_llm_providers_wins_over_llm_provider_and_fallback_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("LLM_PROVIDERS", " Ollama, lmstudio ,")
    assert settings.load().chain == [("ollama",), ("lmstudio",)]
    monkeypatch.setenv("LLM_PROVIDERS", "GPU1 + gpu2,openai")
    assert settings.load().chain == [("gpu1", "gpu2"), ("openai",)]
    monkeypatch.setenv("LLM_FALLBACK_ENABLED", "false")
    assert settings.load().chain == [("gpu1", "gpu2")]
    monkeypatch.setenv("LLM_PROVIDERS", "ollama,lmstudio")
    assert settings.load().chain == [("ollama",)]


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "")
    monkeypatch.setenv("OLLAMA_BASE_URL", "")
    assert settings.load().chain == []
    assert settings.load_provider(SPECS["ollama"]).base_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("LLM_DEADLINE", "soon"), ("LLM_GAP_TIMEOUT", "-1"), ("LLM_LOCAL_ONLY", "perhaps"), ("LLM_CONNECT_TIMEOUT", "0")],
)
def test_invalid_value_raises_with_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.NotConfigured, match=name) as caught:
        build("ollama")
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", list(SPECS))
def test_get_provider_creates_every_provider(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", name)
    if SPECS[name].starts_server:
        monkeypatch.setenv(f"{name.upper()}_MODEL", str(TINY_MODEL))
    else:
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
    provider = get_provider()
    assert provider.name == name
    assert isinstance(provider, LLMProvider)


def test_unknown_name_raises_with_the_nearest_name() -> None:
    with pytest.raises(errors.NotConfigured, match="Did you mean ollama"):
        get_provider("olama")


@pytest.mark.parametrize("name", list(SPECS))
def test_key_is_read_from_every_spelling_and_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SPECS[name].variable_names("api_key"):
        monkeypatch.setenv(variable, "sk-secret-0000")
        loaded = settings.load_provider(SPECS[name])
        assert loaded.api_key
        assert loaded.api_key.get_secret_value() == "sk-secret-0000"
        assert "secret" not in repr(loaded)
        monkeypatch.delenv(variable)


def test_key_from_docker_secret_is_not_sent_to_address_from_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "OPENROUTER_API_KEY").write_text("key-of-a-secret\n", encoding="utf-8")
    monkeypatch.setattr(settings_sources, "SECRETS_FOLDER", tmp_path / "secrets")
    monkeypatch.setenv("OPENROUTER_API_KEY", "")  # LearnFlow's compose file passes unset variables as empty
    spec = SPECS["openrouter"]
    assert settings_sources.provider_secret(spec, "api_key") == ("key-of-a-secret", "")
    (source,) = [variable.source for variable in variables([spec]) if variable.name == "OPENROUTER_API_KEY"]
    assert source == str(tmp_path / "secrets")
    Path(".env").write_text("OPENROUTER_BASE_URL=https://elsewhere.example/v1\n", encoding="utf-8")
    _, hint = settings_sources.provider_secret(spec, "api_key")
    assert "A key is sent only to an address from the same source" in hint


def test_key_and_address_from_docker_secrets_go_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "OPENROUTER_API_KEY").write_text("key-of-a-secret\n", encoding="utf-8")
    (tmp_path / "OPENROUTER_BASE_URL").write_text("https://proxy.example/v1\n", encoding="utf-8")
    monkeypatch.setattr(settings_sources, "SECRETS_FOLDER", tmp_path)
    spec = SPECS["openrouter"]
    assert settings_sources.provider_secret(spec, "api_key") == ("key-of-a-secret", "")


def test_address_with_secret_copied_by_another_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0000")
    Path(".env").write_text("X=${OPENAI_API_KEY}\nOLLAMA_BASE_URL=http://elsewhere.example/${X}\n", encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="contains a secret"):
        settings_sources.provider_secret(SPECS["ollama"], "api_key")


@pytest.mark.parametrize("value", ["5", "true", "{}", "[]", "null", '"vision"'])
def test_capabilities_that_json_could_parse_raise_with_their_variable(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CAPABILITIES", value)
    with pytest.raises(errors.NotConfigured, match="VLLM_CAPABILITIES"):
        build("vllm")
    assert build("ollama").name == "ollama"


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "x" * 5000, "a\tb"])
@pytest.mark.parametrize("name", ["LLM_REPLAY", "LLM_MODELS_DIR"])
def test_impossible_folder_raises_with_its_variable(name: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, folder)
    with pytest.raises(errors.NotConfigured, match=name) as caught:
        build("ollama")
    assert len(str(caught.value)) < 500


def test_error_names_variable_type_and_valid_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SPILL", "everywhere")
    monkeypatch.setenv("LLM_RETRIES", "1" * 400)
    with pytest.raises(errors.NotConfigured) as caught:
        settings.load()
    assert "LLM_SPILL must be 'no', 'local' or 'cloud' (given: str)" in str(caught.value)
    assert "LLM_RETRIES must be" in str(caught.value)
    monkeypatch.setenv("LLM_LOCAL_ONLY", "yess")
    with pytest.raises(errors.NotConfigured, match="LLM_LOCAL_ONLY must be true or false"):
        settings.load()


UNREADABLE = (
    "# a comment\n\nOLLAMA_MODEL=m\n\n\nOLLAMA_BASE_URL http://x\nexport LLM_LOCAL_ONLY\nLLM_PROVIDER='ollama\n"
)


def test_unreadable_lines_of_env_file_are_logged_once_with_numbers(caplog: pytest.LogCaptureFixture) -> None:
    Path(".env").write_text(UNREADABLE, encoding="utf-8")
    assert settings_sources.unreadable_lines() == [(".env", 6), (".env", 7), (".env", 8)]
    for _ in range(3):
        assert settings.load_provider(SPECS["ollama"]).model == "m"
    lines = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert len(lines) == 1
    assert "[6, 7, 8]" in lines[0]
    assert ".env" in lines[0]


def test_long_env_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = settings_sources.parse_stream

    def count(stream: TextIO) -> Iterator[Binding]:
        for line in parse(stream):
            parsed.append(line.original.line)
            yield line

    monkeypatch.setattr(settings_sources, "parse_stream", count)
    text = "".join(f"VARIABLE_{number}=${{HOME}} {number}\n" for number in range(5000))
    Path(".env").write_text(f"{text}OLLAMA_MODEL=${{VARIABLE_1}}\n", encoding="utf-8")
    monkeypatch.setenv("HOME", "/one")
    for name in SPECS:
        settings.load_provider(SPECS[name])
    assert settings.load_provider(SPECS["ollama"]).model == "/one 1"
    monkeypatch.setenv("HOME", "/two")
    assert settings.load_provider(SPECS["ollama"]).model == "/two 1"
    assert len(parsed) == 5001


@pytest.mark.parametrize("content", [b"\xff\xfe", b"A=1\n" * 300_000])
def test_env_file_that_is_no_short_text_raises_with_its_name(content: bytes) -> None:
    Path(".env.local").write_bytes(content)
    with pytest.raises(errors.NotConfigured, match=r"^\.env\.local cannot be read"):
        settings.load()


def test_secret_that_is_no_text_raises_only_if_it_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "certificate").write_bytes(b"\xff")
    monkeypatch.setattr(settings_sources, "SECRETS_FOLDER", tmp_path / "secrets")
    assert settings.load().llm_retries == 2
    (tmp_path / "secrets" / "OPENAI_API_KEY").write_bytes(b"\xff")
    with pytest.raises(errors.NotConfigured, match="OPENAI_API_KEY cannot be read"):
        settings.load_provider(SPECS["openai"])


@pytest.mark.parametrize(
    "text", ["A=${B:-x}$C ${D} $$", 'A="a\nb"', "A='${HOME}'", "export A = x # y", "A=", "A=${UNSET}"]
)
def test_values_are_those_of_dotenv(text: str) -> None:
    Path(".env").write_text(f"D=d\n{text}\nE=${{A}}${{D}}\n", encoding="utf-8")
    sources = settings_sources.read_sources()
    assert sources[".env"] == dotenv_values(".env")


@pytest.mark.parametrize(
    ("in_file", "in_environment", "chain"),
    [
        ("LLM_PROVIDERS", "LLM_PROVIDER", [("groq",)]),
        ("LLM_PROVIDER", "LLM_PROVIDERS", [("groq",)]),
        ("LLM_PROVIDERS", "LLM_RETRIES", [("gpu1", "gpu2")]),
    ],
)
def test_provider_of_environment_wins_over_providers_of_file(
    in_file: str, in_environment: str, chain: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"{in_file}=gpu1+gpu2\n", encoding="utf-8")
    monkeypatch.setenv(in_environment, "1" if in_environment == "LLM_RETRIES" else "groq")
    assert settings.load().chain == chain
