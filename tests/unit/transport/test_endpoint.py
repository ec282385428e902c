"""Addresses as operators write them, and keys that are sent only to their host."""

from __future__ import annotations

from pathlib import Path

import pytest

from learnflow.llm import errors
from learnflow.llm.providers import (
    AzureProvider,
    CustomProvider,
    OllamaProvider,
    OpenAIProvider,
    OpenRouterProvider,
    build,
)
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import parse_endpoint


@pytest.mark.parametrize(
    ("written", "base"),
    [  # Ollama's own envconfig.Host, 2026-08
        ("", None),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:11435", "http://127.0.0.1:11435"),
        (":11435", "http://127.0.0.1:11435"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        ("box", "http://box:11434"),
        ("box:", "http://box:11434"),
        ("box:80", "http://box:80"),
        ("http://box", "http://box"),
        ("https://box", "https://box"),
        ("http://box:11434/", "http://box:11434"),
        ("https://box/ollama/", "https://box/ollama"),
        ("ollama.com", "https://ollama.com"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::]:11434", "http://[::1]:11434"),
        (' "box" ', "http://box:11434"),
        ("http://box:11434/v1", "http://box:11434"),
        ("http://box:11434/v1/", "http://box:11434"),
        ("http://box:11434/api", "http://box:11434"),
    ],
)
def test_ollama_host_is_parsed_in_all_its_forms(
    written: str, base: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", written)
    assert OllamaProvider().endpoint.base_url == (base or "http://localhost:11434")


@pytest.mark.parametrize(
    ("row", "written", "base"),
    [
        ("lmstudio", "http://localhost:1234", "http://localhost:1234/v1"),
        ("lmstudio", "http://localhost:1234/", "http://localhost:1234/v1"),
        ("lmstudio", "http://localhost:1234/v1", "http://localhost:1234/v1"),
        ("lmstudio", "http://localhost:1234/v1/", "http://localhost:1234/v1"),
        ("lmstudio", "localhost", "http://localhost:1234/v1"),
        ("vllm", "http://gpu:8000/v1/chat/completions", "http://gpu:8000/v1"),
        ("llamacpp", "gpu:8080", "http://gpu:8080/v1"),
        ("openai", "https://api.openai.com", "https://api.openai.com/v1"),
        ("openai", "api.openai.com", "https://api.openai.com/v1"),
        ("openrouter", "https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("fireworks", "https://api.fireworks.ai/inference/v1/", "https://api.fireworks.ai/inference/v1"),
        ("custom", "https://h.example/v1beta/openai/", "https://h.example/v1beta/openai"),
        ("custom", "h.example", "https://h.example/v1"),
        ("custom", "10.0.0.7:5000", "http://10.0.0.7:5000/v1"),
        ("custom", "gpu.lan:8000", "http://gpu.lan:8000/v1"),
        ("openrouter", "https://openrouter.ai", "https://openrouter.ai/api/v1"),
        ("fireworks", "https://api.fireworks.ai/", "https://api.fireworks.ai/inference/v1"),
        ("azure", "https://r.openai.azure.com/", "https://r.openai.azure.com"),
        ("azure", "https://r.openai.azure.com/openai/deployments/d/chat/completions", "https://r.openai.azure.com"),
    ],
)
def test_base_url_with_or_without_version_and_slash_is_normalized(row: str, written: str, base: str) -> None:
    assert parse_endpoint(SPECS[row], written).base_url == base


@pytest.mark.parametrize("written", ["http://", "ftp://box", "http://user:pw@box", "box:99999", "a b", "http://box:x"])
def test_invalid_address_raises_error_with_variable(written: str) -> None:
    with pytest.raises(errors.NotConfigured, match="VLLM_BASE_URL") as caught:
        parse_endpoint(SPECS["vllm"], written)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("written", ["http:/localhost", "https:localhost", "HTTP:/box:1/v1"])
def test_scheme_with_one_slash_is_refused(written: str) -> None:
    with pytest.raises(errors.NotConfigured, match=r"two slashes\. Set OLLAMA_BASE_URL like http://localhost"):
        OllamaProvider(base_url=written)


async def test_unresolved_host_gives_no_hint_to_start_server() -> None:
    with pytest.raises(errors.ConnectionFailed) as caught:
        await OllamaProvider(base_url="http://localhos.invalid", model="m").warm_up()
    assert str(caught.value) == (
        "ollama, model m: the host name cannot be resolved. Check its spelling, the network and its name server; the "
        "address in use is http://localhos.invalid, the variable OLLAMA_BASE_URL."
    )


def test_arguments_win_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://one")
    monkeypatch.setenv("OLLAMA_HOST", "two")
    monkeypatch.setenv("OLLAMA_MODEL", "small")
    assert OllamaProvider().endpoint.base_url == "http://one"
    assert OllamaProvider().model == "small"
    assert OllamaProvider(base_url="http://three", model="big").endpoint.base_url == "http://three"
    assert OllamaProvider(base_url="http://three", model="big").model == "big"


def test_azure_endpoint_has_version_only_for_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://r.openai.azure.com")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    assert AzureProvider().spec.litellm_provider == "azure"
    assert AzureProvider().endpoint.version == "2024-10-21"
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-01-01-preview")
    assert AzureProvider().endpoint.version == "2025-01-01-preview"
    monkeypatch.setenv("AZURE_API_VERSION", "v1")
    assert AzureProvider().endpoint.base_url == "https://r.openai.azure.com/openai/v1"
    assert AzureProvider().spec.litellm_provider == "openai"


def test_cloud_without_key_raises_error_with_variable() -> None:
    with pytest.raises(errors.NotConfigured, match="OPENROUTER_API_KEY"):
        OpenRouterProvider(model="m")


@pytest.mark.parametrize("key", ["sk 0000\x00", "ключ"])
def test_invalid_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(errors.NotConfigured, match="CUSTOM_API_KEY") as caught:
        CustomProvider(base_url="http://127.0.0.1:9", api_key=key)
    assert key not in str(caught.value)


def test_custom_requires_address() -> None:
    with pytest.raises(errors.NotConfigured, match="CUSTOM_BASE_URL"):
        CustomProvider()


def test_repr_does_not_show_key() -> None:
    provider = OpenAIProvider(api_key="sk-secret-0000")
    assert "secret" not in repr(provider) + repr(provider.endpoint) + repr(vars(provider))


@pytest.mark.parametrize("row", ["openai", "azure", "custom"])
@pytest.mark.parametrize("file", [".env", ".env.local"])
def test_address_from_file_does_not_get_key_of_shell(
    row: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker who can write a .env into a folder must not get the key of a shell that runs there."""
    spec = SPECS[row]
    monkeypatch.setenv(spec.variable("api_key"), "key-of-the-shell")
    (tmp_path / file).write_text(f"{spec.variable('base_url')}=https://evil.example/v1\n", encoding="utf-8")
    if spec.local:
        assert build(row).endpoint.key is None
        return
    with pytest.raises(errors.KeyMissing) as caught:
        build(row)
    for word in (spec.variable("api_key"), "the environment", spec.variable("base_url"), file, "export"):
        assert word in str(caught.value)


def test_key_and_address_of_same_place_are_used_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://gateway.example/v1"
    (tmp_path / ".env").write_text(f"OPENAI_BASE_URL={address}\n", encoding="utf-8")
    (tmp_path / ".env.local").write_text("OPENAI_API_KEY=key-of-the-file\n", encoding="utf-8")
    assert OpenAIProvider().endpoint.key == "key-of-the-file"  # the two files are one place
    monkeypatch.setenv("OPENAI_BASE_URL", "https://other.example/v1")
    assert OpenAIProvider().endpoint.key == "key-of-the-file"  # the shell's address may use a file's key
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-shell")
    assert OpenAIProvider().endpoint.key == "key-of-the-shell"
    monkeypatch.delenv("OPENAI_BASE_URL")
    (tmp_path / ".env.local").unlink()
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=https://api.openai.com/v1\n", encoding="utf-8")
    assert OpenAIProvider().endpoint.key == "key-of-the-shell"  # OpenAI's default address


def test_file_with_key_and_address_uses_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-shell")
    both = "OPENAI_BASE_URL=https://gateway.example/v1\nOPENAI_API_KEY=key-of-the-file\n"
    (tmp_path / ".env").write_text(both, encoding="utf-8")
    assert OpenAIProvider().endpoint.key == "key-of-the-file"


def test_file_does_not_expand_key_of_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-shell")
    lines = "CUSTOM_BASE_URL=https://evil.example/v1\nCUSTOM_API_KEY=${OPENAI_API_KEY}\n"
    (tmp_path / ".env").write_text(lines, encoding="utf-8")
    assert CustomProvider().endpoint.key is None
    (tmp_path / ".env").write_text("OLLAMA_BASE_URL=http://evil.example/${OPENAI_API_KEY}\n", encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="secret"):
        OllamaProvider()
