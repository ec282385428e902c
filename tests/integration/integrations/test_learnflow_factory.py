"""LearnFlow's model factory in new: its functions, and the providers that its files or the environment name."""

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
from learnflow.llm.testing import FaultServer, ScriptedProvider, provided


class Manager:
    """LearnFlow's ``GraphConfigManager``, as far as the factory uses it."""

    def __init__(self) -> None:
        self.default = node("openai", "gpt-4.1-mini", max_tokens=4000)
        self.nodes = {
            "generating_content": node("home", "big", temperature=0.5, max_tokens=25000, top_p=0.9),
            "generating_questions": node("openai", "gpt-4.1", max_tokens=6000, requires_structured_output=True),
            "recognition_handwritten": node("home", "sees", max_tokens=6000),
        }
        self.rows = {
            "openai": row("openai", api_key="key-of-openai", supports_structured_output=True),
            "home": row("home", base_url="http://localhost:1", api_key="key-of-home", default_model="big"),
        }

    def get_model_config(self, node_name: str) -> Any:
        return self.nodes.get(node_name, self.default)

    def get_full_config(self) -> Any:
        return SimpleNamespace(models=SimpleNamespace(default=self.default, nodes=self.nodes))

    def get_providers_config(self) -> Any:
        return self.rows


def node(provider: str, model_name: str, **given: Any) -> Any:
    usual = {"temperature": 0.1, "max_tokens": 4000, "requires_structured_output": False}
    usual |= dict.fromkeys(("top_p", "frequency_penalty", "presence_penalty"))
    return SimpleNamespace(**{**usual, **given}, provider=provider, model_name=model_name)


def row(name: str, **given: Any) -> Any:
    usual = {"base_url": None, "api_key": None, "supports_structured_output": False, "default_model": None}
    return SimpleNamespace(**{**usual, **given}, name=name)


@pytest.fixture(autouse=True)
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    """What LearnFlow hands over, and no factory yet."""
    monkeypatch.setattr(model_factory, "_factory", None)
    return Manager()


async def test_learnflows_configuration_decides_if_no_provider_is_named(manager: Manager) -> None:
    async with FaultServer("openai", key="key-of-home") as server:
        manager.rows["home"].base_url = server.base_url
        initialize_model_factory(None, manager)
        model = create_model_for_node("generating_content")
        assert (await model.ainvoke("hi")).response_metadata["provider"] == "home"
        body = server.seen[0].body
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("big", 0.5, 0.9, 25_000)
        assert isinstance(model.max_tokens, AtMost)
        sees = create_model_for_node("recognition_handwritten")
        assert sees.provider is model.provider  # its limits are for all nodes together
        await sees.ainvoke("hi")
        assert server.seen[1].body["model"] == "sees"
    assert create_model_for_node("generating_questions").provider.name == "openai"
    default = create_model_for_node("input_processing")
    assert (default.model, default.temperature, default.max_tokens) == ("gpt-4.1-mini", 0.1, 4000)


async def test_every_node_goes_to_the_chain_that_is_named(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    served = {"/v1/models": {"data": [{"id": name, "owned_by": "vllm", "max_model_len": 8192} for name in "ab"]}}
    async with FaultServer("openai", tells=served) as server:
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
        asked = [(seen.body["model"], seen.body["temperature"], seen.body["max_tokens"]) for seen in server.seen]
    assert asked == [
        ("a", 0.5, 8191),
        ("b", 0.1, 6000),
        ("b", 0.1, 4000),
        ("b", 0.1, 6000),
    ]
    whys = [event.why for event in events_seen if isinstance(event, events.RequestAdjusted)]
    assert whys == ["max_tokens=8191 instead of 25000: there is room for no more"]


def test_a_provider_that_is_nowhere_is_an_error_at_the_start(manager: Manager) -> None:
    manager.nodes["strange"] = node("nowhere", "x")
    with pytest.raises(errors.NotConfigured, match=r"strange requires provider 'nowhere'.*openai, home.*LLM_PROVIDER"):
        initialize_model_factory(None, manager)
    with pytest.raises(errors.NotConfigured, match="no model factory"):
        get_model_factory()


def test_structured_output_is_checked(monkeypatch: pytest.MonkeyPatch, manager: Manager) -> None:
    manager.nodes["needs"] = node("home", "big", requires_structured_output=True)
    with pytest.raises(errors.Unsupported, match=r"needs requires structured output.*'home' has none"):
        initialize_model_factory(None, manager)
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_CAPABILITIES", "no-json_schema")
    with pytest.raises(errors.Unsupported, match="no provider of llamacpp supports it"):
        initialize_model_factory(None, manager)
    monkeypatch.delenv("LLAMACPP_CAPABILITIES")
    initialize_model_factory(None, manager)
    assert create_model_for_node("needs").provider.name == "llamacpp"


def test_a_node_variable_counts_for_a_configuration_without_a_node(manager: Manager) -> None:
    """LearnFlow's guard gives its configuration only."""
    guard = manager.nodes["security_guard"] = node("mine", "small", max_tokens=1000, requires_structured_output=True)
    manager.rows["mine"] = row("ollama", base_url="http://localhost:1", api_key="", supports_structured_output=True)
    factory = initialize_model_factory("key", manager)
    assert get_model_factory() is factory
    model = factory.create_model(guard)
    assert (model.provider.name, model.model, model.max_tokens) == ("ollama", "small", 1000)
    Path(".env").write_text("LLM_MODEL_SECURITY_GUARD=smaller\n", encoding="utf-8")
    assert factory.create_model(guard).model == "smaller"


async def test_the_key_that_is_handed_over_is_openais_if_there_is_no_row(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.rows.clear()
    manager.nodes = {"generating_questions": node("openai", "gpt-4.1", requires_structured_output=True)}
    async with FaultServer("openai", key="key-handed-over") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        initialize_model_factory("key-handed-over", manager)
        await create_model_for_node("generating_questions").ainvoke("hi")
        assert server.seen[0].body["model"] == "gpt-4.1"
    manager.nodes["content"] = node("home", "big")
    with pytest.raises(errors.NotConfigured, match=r"content requires provider 'home'.*Name one of openai"):
        initialize_model_factory("key-handed-over", manager)


def test_a_tests_own_provider_answers_every_node(manager: Manager) -> None:
    with provided(ScriptedProvider(["fine"])):
        initialize_model_factory(None, manager)
        assert create_model_for_node("generating_content").invoke("hi").content == "fine"


def test_a_strange_name_without_an_address(manager: Manager) -> None:
    manager.rows["home"] = row("home")
    with pytest.raises(errors.NotConfigured, match=r"unknown provider 'home'.*base_url in configs/providers.yaml"):
        initialize_model_factory(None, manager)


def test_before_it_is_made() -> None:
    with pytest.raises(errors.NotConfigured, match=r"initialize_model_factory\(\) first"):
        create_model_for_node("generating_content")


async def test_learnflows_health_can_show_who_would_answer(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NotConfigured):
        await model_factory.health()
    async with FaultServer("openai", tells={"/v1/models": {"data": [{"id": "a", "owned_by": "vllm"}]}}) as server:
        monkeypatch.setenv("LLM_PROVIDERS", "vllm,llamacpp")
        monkeypatch.setenv("VLLM_BASE_URL", server.base_url)
        monkeypatch.setenv("LLAMACPP_BASE_URL", "http://127.0.0.1:9")
        initialize_model_factory(None, manager)
        assert await model_factory.health() == {"vllm": True, "llamacpp": False}
        assert server.seen == [], "no model was asked"
