"""The replacement of LearnFlow's model factory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learnflow.llm import AtMost, errors, events
from learnflow.llm.integrations import learnflow as model_factory
from learnflow.llm.integrations.learnflow import (
    create_model_for_node,
    get_model_factory,
    initialize_model_factory,
)
from learnflow.llm.testing import FaultServer, ScriptedProvider, use_provider


class Manager:
    """The methods of LearnFlow's ``GraphConfigManager`` that the factory calls."""

    def __init__(self) -> None:
        self.default = node("openai", "gpt-4.1-mini", max_tokens=4000)
        self.nodes = {
            "generating_content": node("home", "big", temperature=0.5, max_tokens=25000, top_p=0.9),
            "generating_questions": node("openai", "gpt-4.1", max_tokens=6000, requires_structured_output=True),
            "recognition_handwritten": node("home", "sees", max_tokens=6000),
        }
        self.providers = {
            "openai": provider_config("openai", api_key="key-of-openai", supports_structured_output=True),
            "home": provider_config("home", base_url="http://localhost:1", api_key="key-of-home", default_model="big"),
        }

    def get_model_config(self, node_name: str) -> Any:
        return self.nodes.get(node_name, self.default)

    def get_full_config(self) -> Any:
        return SimpleNamespace(models=SimpleNamespace(default=self.default, nodes=self.nodes))

    def get_providers_config(self) -> Any:
        return self.providers


def node(provider: str, model_name: str, **fields: Any) -> Any:
    defaults = {"temperature": 0.1, "max_tokens": 4000, "requires_structured_output": False}
    defaults |= dict.fromkeys(("top_p", "frequency_penalty", "presence_penalty"))
    return SimpleNamespace(**{**defaults, **fields}, provider=provider, model_name=model_name)


def provider_config(name: str, **fields: Any) -> Any:
    defaults = {"base_url": None, "api_key": None, "supports_structured_output": False, "default_model": None}
    return SimpleNamespace(**{**defaults, **fields}, name=name)


@pytest.fixture(autouse=True)
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    """Return LearnFlow's configuration. No factory exists yet."""
    monkeypatch.setattr(model_factory, "_factory", None)
    return Manager()


async def test_graph_configuration_applies_if_no_provider_is_set(manager: Manager) -> None:
    async with FaultServer("openai", key="key-of-home") as server:
        manager.providers["home"].base_url = server.base_url
        initialize_model_factory(None, manager)
        model = create_model_for_node("generating_content")
        assert (await model.ainvoke("hi")).response_metadata["provider"] == "home"
        body = server.seen[0].body
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("big", 0.5, 0.9, 25_000)
        assert isinstance(model.max_tokens, AtMost)
        sees = create_model_for_node("recognition_handwritten")
        assert sees.provider is model.provider  # its concurrency limit is shared
        await sees.ainvoke("hi")
        assert server.seen[1].body["model"] == "sees"
    assert create_model_for_node("generating_questions").provider.name == "openai"
    default = create_model_for_node("input_processing")
    assert (default.model, default.temperature, default.max_tokens) == ("gpt-4.1-mini", 0.1, 4000)


async def test_temperature_of_a_node_is_left_out_for_a_model_without_it(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("openai", key="k") as server:
        for name, value in {
            "LLM_PROVIDER": "openai",
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "k",
        }.items():
            monkeypatch.setenv(name, value)
        initialize_model_factory(None, manager)
        for model in ("o3-mini", "unheard-of"):
            monkeypatch.setenv("OPENAI_MODEL", model)
            monkeypatch.setattr(model_factory, "_factory", None)
            initialize_model_factory(None, manager)
            await create_model_for_node("generating_content").ainvoke("hi")
        sent = [(seen.body["model"], seen.body.get("temperature"), seen.body.get("top_p")) for seen in server.seen]
    assert sent == [("o3-mini", None, None), ("unheard-of", 0.5, 0.9)]


async def test_every_node_uses_chain_of_environment(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    served = {"/v1/models": {"data": [{"id": name, "owned_by": "vllm", "max_model_len": 8192} for name in "ab"]}}
    async with FaultServer("openai", responses=served) as server:
        for name, value in {
            "LLM_PROVIDERS": "vllm",
            "VLLM_BASE_URL": server.base_url,
            "VLLM_MODEL": "a",
            "VLLM_VISION_MODEL": "b",
            "LLM_MODEL_GENERATING_QUESTIONS": "b",
            "LLM_MODEL_INPUT_PROCESSING": "b",
        }.items():
            monkeypatch.setenv(name, value)
        initialize_model_factory(None, manager)
        for node in ("generating_content", "generating_questions", "input_processing"):
            await create_model_for_node(node).ainvoke("hi")
        await create_model_for_node("recognition_handwritten").ainvoke([{"role": "user", "content": [picture]}])
        sent = [(seen.body["model"], seen.body["temperature"], seen.body["max_tokens"]) for seen in server.seen]
    assert sent == [
        ("a", 0.5, 8191),
        ("b", 0.1, 6000),
        ("b", 0.1, 4000),
        ("b", 0.1, 6000),
    ]
    changes = [event.change for event in events_seen if isinstance(event, events.RequestAdjusted)]
    assert changes == ["max_tokens=8191 instead of 25000, because no more fit the context or the model's output limit"]


def test_unknown_provider_raises_at_initialization(manager: Manager) -> None:
    manager.nodes["strange"] = node("nowhere", "x")
    with pytest.raises(errors.NotConfigured, match=r"strange requires provider 'nowhere'.*openai, home.*LLM_PROVIDER"):
        initialize_model_factory(None, manager)
    with pytest.raises(errors.NotConfigured, match="no model factory"):
        get_model_factory()


def test_node_with_structured_output_requires_support(monkeypatch: pytest.MonkeyPatch, manager: Manager) -> None:
    manager.nodes["needs"] = node("home", "big", requires_structured_output=True)
    with pytest.raises(
        errors.Unsupported, match=r"needs requires structured output.*'home' in configs/providers.yaml does not"
    ):
        initialize_model_factory(None, manager)
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_CAPABILITIES", "no-json_schema")
    with pytest.raises(errors.Unsupported, match="no provider of llamacpp supports it"):
        initialize_model_factory(None, manager)
    monkeypatch.delenv("LLAMACPP_CAPABILITIES")
    initialize_model_factory(None, manager)
    assert create_model_for_node("needs").provider.name == "llamacpp"


def test_node_variable_applies_to_configuration_without_node_name(manager: Manager) -> None:
    """LearnFlow's guard passes only its configuration."""
    guard = manager.nodes["security_guard"] = node("mine", "small", max_tokens=1000, requires_structured_output=True)
    manager.providers["mine"] = provider_config(
        "ollama", base_url="http://localhost:1", api_key="", supports_structured_output=True
    )
    factory = initialize_model_factory("key", manager)
    assert get_model_factory() is factory
    model = factory.create_model(guard)
    assert (model.provider.name, model.model, model.max_tokens) == ("ollama", "small", 1000)
    Path(".env").write_text("LLM_MODEL_SECURITY_GUARD=smaller\n", encoding="utf-8")
    assert factory.create_model(guard).model == "smaller"


async def test_api_key_argument_is_used_if_providers_are_empty(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.providers.clear()
    manager.nodes = {"generating_questions": node("openai", "gpt-4.1", requires_structured_output=True)}
    async with FaultServer("openai", key="key-handed-over") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        initialize_model_factory("key-handed-over", manager)
        await create_model_for_node("generating_questions").ainvoke("hi")
        assert server.seen[0].body["model"] == "gpt-4.1"
    manager.nodes["content"] = node("home", "big")
    with pytest.raises(errors.NotConfigured, match=r"content requires provider 'home'.*Name one of openai"):
        initialize_model_factory("key-handed-over", manager)


def test_provided_provider_answers_every_node(manager: Manager) -> None:
    with use_provider(ScriptedProvider(["fine"])):
        initialize_model_factory(None, manager)
        assert create_model_for_node("generating_content").invoke("hi").content == "fine"


def test_custom_provider_without_address_raises(manager: Manager) -> None:
    manager.providers["home"] = provider_config("home")
    with pytest.raises(errors.NotConfigured, match=r"unknown provider 'home'.*base_url in configs/providers.yaml"):
        initialize_model_factory(None, manager)


def test_functions_raise_before_initialization() -> None:
    with pytest.raises(errors.NotConfigured, match=r"initialize_model_factory\(\) first"):
        create_model_for_node("generating_content")


async def test_health_reports_readiness_without_requests_to_models(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.NotConfigured):
        await model_factory.health()
    async with FaultServer("openai", responses={"/v1/models": {"data": [{"id": "a", "owned_by": "vllm"}]}}) as server:
        monkeypatch.setenv("LLM_PROVIDERS", "vllm,llamacpp")
        monkeypatch.setenv("VLLM_BASE_URL", server.base_url)
        monkeypatch.setenv("LLAMACPP_BASE_URL", "http://127.0.0.1:9")
        initialize_model_factory(None, manager)
        assert await model_factory.health() == {"vllm": True, "llamacpp": False}
        assert server.seen == [], "no model was asked"
