"""The model store: its folder, and the names and the list of its models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from learnflow.llm import errors, settings
from learnflow.llm.providers import model_store


def test_folder_is_the_value_of_the_variable_with_home_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in (("~/models", tmp_path / "models"), ("/srv/m", Path("/srv/m")), ("m", Path.cwd() / "m")):
        monkeypatch.setenv("LLM_MODELS_DIR", value)
        assert model_store.folder() == folder


@pytest.mark.parametrize(
    ("platform", "variable", "usual"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_folder_defaults_to_the_users_cache(
    platform: str, variable: str | None, usual: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert model_store.folder() == tmp_path / usual / "learnflow-llm" / "models"
    if variable:
        monkeypatch.setenv(variable, "/elsewhere")
        assert model_store.folder() == Path("/elsewhere/learnflow-llm/models")
        monkeypatch.setenv(variable, "relative")
        assert model_store.folder() == tmp_path / usual / "learnflow-llm" / "models"


def test_folder_without_a_home_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(errors.NotConfigured, match="Set LLM_MODELS_DIR"):
        model_store.folder()


def test_invalid_folder_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_MODELS_DIR", "~no-such-user-here/models")
    with pytest.raises(errors.NotConfigured, match="LLM_MODELS_DIR"):
        settings.load()
    monkeypatch.delenv("LLM_MODELS_DIR")
    (tmp_path / ".env").write_text('LLM_MODELS_DIR="a\0b"\n', encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="LLM_MODELS_DIR"):
        settings.load()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a b", "-x", ".hidden", "é", "a\n", "x" * 201])
def test_path_of_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(errors.NotConfigured, match="invalid model name"):
        model_store.path_of(name)


def test_models_are_listed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("LLM_MODELS_DIR", str(store))
    assert model_store.models() == []
    store.mkdir()
    for name in ("b.gguf", "A-1.Q4_0.gguf", "b.gguf.part", ".b.json", "odd name.gguf", "notes.txt"):
        (store / name).write_bytes(b"GGUF")
    (store / "folder.gguf").mkdir()
    assert model_store.models() == [store / "A-1.Q4_0.gguf", store / "b.gguf"]
    assert model_store.path_of("b") == store / "b.gguf"
