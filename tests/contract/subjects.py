"""The providers under contract, and the paths of their cassettes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from behaviours import Subject
from support import ROOT

from learnflow.llm.provider_spec import ProviderSpec
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.replay import cassette
from learnflow.llm.replay.cassette import Interaction

CASSETTES: Final = ROOT / "cassettes"
TINY: Final = "learnflow-tiny"


def _subject(row: str, model: str, *, key: bool = True, **more: object) -> Subject:
    return Subject(  # type: ignore[arg-type]
        row=row,
        base_url=f"http://{row}.example",
        model=model,
        key=f"key-of-{row}" if key else None,
        **more,  # type: ignore[arg-type]
    )


SUBJECTS: Final = {
    subject.row: subject
    for subject in (
        _subject("openai", "gpt-4.1-mini", thinks="gpt-5-mini", shows_thinking=False),
        _subject("responses", "gpt-6-sol", kind="openai", api="responses"),
        _subject("azure", "study", shows_thinking=False),
        _subject("ollama", f"{TINY}:latest", key=False, thinks=f"{TINY}-think:latest"),
        _subject("lmstudio", "qwen3-0.6b"),
        _subject("vllm", TINY),
        _subject("llamacpp", TINY),
        _subject("openrouter", "qwen/qwen3-8b"),
        _subject("gemini", "gemini-3.5-flash", shows_thinking=False),
        _subject("anthropic", "claude-sonnet-4-6"),
        _subject("yandexgpt", "gpt://b1gfolder/yandexgpt/latest"),
        _subject("fireworks", "accounts/fireworks/models/kimi-k2p6"),
        _subject("custom", f"{TINY}:latest", thinks=f"{TINY}-think:latest"),
    )
}


def cassette_of(row: str, behaviour: str) -> Path:
    """Return the path of a cassette."""
    return CASSETTES / row / f"{behaviour}.yaml"


def spec_of(row: str) -> ProviderSpec:
    """Return the spec of a row."""
    return SPECS[SUBJECTS[row].kind or row]


@cache
def loaded(row: str, behaviour: str) -> tuple[Mapping[str, Any], list[Interaction]]:
    """Return the origin and the interactions of a cassette. A test must not change them."""
    return cassette.load(cassette_of(row, behaviour).read_text(encoding="utf-8"))


@cache
def absent() -> Mapping[str, Mapping[str, str]]:
    """Return the reasons for missing cassettes, by provider and behaviour."""
    reasons: Mapping[str, Mapping[str, str]] = yaml.safe_load((CASSETTES / "absent.yaml").read_text(encoding="utf-8"))
    return reasons


def seal(interactions: Iterable[Interaction]) -> str:
    """Return the digest of a cassette, which shows that it was edited by hand."""
    values = []
    for one in interactions:
        response = asdict(one.response)
        response["left"] = response.pop("client_disconnected")  # its name in cassettes
        values.append([asdict(one.request), response, repr(one.response.failure)])
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def fresh(row: str, **more: object) -> Subject:
    """Return a copy of the provider's subject without received answers."""
    return replace(SUBJECTS[row], texts={}, **more)  # type: ignore[arg-type]


def named(row: str) -> Subject | None:
    """Return the subject at the server in the environment; None if the environment names no server."""
    spec = spec_of(row)
    names = [name for setting in ("base_url", "api_key", "model") for name in spec.variable_names(setting)]
    given = {name: value for name in names if (value := os.environ.get(name))}
    url = next((given[name] for name in spec.variable_names("base_url") if name in given), spec.api.default_url)
    if not any(name in given for name in spec.variable_names("base_url" if spec.local else "api_key")) or not url:
        return None
    model = next((given[name] for name in spec.variable_names("model") if name in given), SUBJECTS[row].model)
    key = next((given[name] for name in spec.variable_names("api_key") if name in given), None)
    tiny = TINY in model
    other = {} if tiny else {"answers": None, "thinks": None, "sees": None}
    return fresh(row, base_url=url, key=key, model=model, **other)
