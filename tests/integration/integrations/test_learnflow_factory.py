"""LearnFlow's model factory in new: its two files, its functions, and whoever the environment names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learnflow.llm import AtMost, errors, events
from learnflow.llm.cli.variables import variables
from learnflow.llm.integrations import learnflow as model_factory
from learnflow.llm.integrations import learnflow_nodes as nodes
from learnflow.llm.integrations.learnflow import (
    ModelFactory,
    create_model_for_node,
    get_model_factory,
    initialize_model_factory,
)
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import FaultServer, ScriptedProvider, provided

GRAPH = """
models:
  default: {provider: openai, model_name: "gpt-4.1-mini", temperature: 0.1, max_tokens: 4000}
  nodes:
    generating_content: {provider: home, model_name: "big", temperature: 0.5, max_tokens: 25000, top_p: 0.9}
    generating_questions: {provider: openai, model_name: "gpt-4.1", max_tokens: 6000, requires_structured_output: true}
    recognition_handwritten: {provider: home, model_name: "sees", max_tokens: 6000}
"""
STRANGE = """    strange: {provider: nowhere, model_name: "x"}
"""
NEEDS = """    needs: {provider: home, model_name: "big", requires_structured_output: true}
"""
PROVIDERS = """
providers:
  openai: {name: openai, api_key: "{{ env.OPENAI_API_KEY }}", supports_structured_output: true}
  home: {name: home, base_url: "{{ env.HOME_URL }}", api_key: "{{ env.HOME_KEY }}", default_model: big}
"""


@pytest.fixture(autouse=True)
def configs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files in the working directory, and no factory yet."""
    folder = Path("configs")
    folder.mkdir()
    (folder / "graph.yaml").write_text(GRAPH, encoding="utf-8")
    (folder / "providers.yaml").write_text(PROVIDERS, encoding="utf-8")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    monkeypatch.setenv("HOME_URL", "http://localhost:1")
    monkeypatch.setattr(model_factory, "_factory", None)
    return folder


async def test_the_files_rule_where_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("openai", key="key-of-home") as server:
        monkeypatch.setenv("HOME_URL", server.base_url)
        Path(".env").write_text("HOME_KEY=key-of-home\n", encoding="utf-8")
        initialize_model_factory()
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
    monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
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
        initialize_model_factory()
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
    whys = [event.why for event in events_seen if isinstance(event, events.Adjusted)]
    assert whys == ["max_tokens=8191 instead of 25000: there is room for no more"]


def test_a_provider_that_is_nowhere_is_an_error_at_the_start(configs: Path) -> None:
    (configs / "graph.yaml").write_text(GRAPH + STRANGE, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match=r"strange wants provider 'nowhere'.*openai, home.*LLM_PROVIDER"):
        initialize_model_factory()
    with pytest.raises(errors.NotConfigured, match="no model factory"):
        get_model_factory()


def test_structured_output_is_checked(monkeypatch: pytest.MonkeyPatch, configs: Path) -> None:
    (configs / "graph.yaml").write_text(GRAPH + NEEDS, encoding="utf-8")
    with pytest.raises(errors.Unsupported, match=r"needs requires structured output.*'home' has none"):
        initialize_model_factory()
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_CAPABILITIES", "no-json_schema")
    with pytest.raises(errors.Unsupported, match="no provider of llamacpp supports it"):
        initialize_model_factory()
    monkeypatch.delenv("LLAMACPP_CAPABILITIES")
    initialize_model_factory()
    assert create_model_for_node("needs").provider.name == "llamacpp"


def test_what_learnflow_hands_over_is_used_as_it_is() -> None:
    """Its guard asks with a configuration only; the node's variable must count there, too."""
    guard = SimpleNamespace(
        provider="mine", model_name="small", temperature=0.0, max_tokens=1000, requires_structured_output=True
    )
    for name in ("top_p", "frequency_penalty", "presence_penalty"):
        setattr(guard, name, None)
    row = SimpleNamespace(
        name="ollama", base_url="http://localhost:1", api_key="", supports_structured_output=True, default_model=None
    )

    class Manager:
        def get_model_config(self, node_name: str) -> Any:
            return guard

        def get_full_config(self) -> Any:
            return SimpleNamespace(models=SimpleNamespace(nodes={"security_guard": guard}))

        def get_providers_config(self) -> Any:
            return {"mine": row}

    factory = initialize_model_factory("key", Manager())
    assert get_model_factory() is factory
    assert factory.providers_config == {"mine": row}
    model = factory.create_model(guard)
    assert (model.provider.name, model.model, model.max_tokens) == ("ollama", "small", 1000)
    Path(".env").write_text("LLM_MODEL_SECURITY_GUARD=smaller\n", encoding="utf-8")
    assert factory.create_model(guard).model == "smaller"


def test_the_key_that_is_handed_over_is_openais_where_no_provider_is_named(configs: Path) -> None:
    (configs / "providers.yaml").unlink()
    (configs / "graph.yaml").write_text(GRAPH.replace("provider: home", "provider: openai"), encoding="utf-8")
    factory = initialize_model_factory("key-of-openai")
    assert factory.providers_config["openai"].api_key == "key-of-openai"
    assert "key-of-openai" not in repr(factory.providers_config)
    assert create_model_for_node("generating_questions").provider.name == "openai"


def test_a_tests_own_provider_answers_every_node() -> None:
    with provided(ScriptedProvider(["fine"])):
        initialize_model_factory()
        assert create_model_for_node("generating_content").invoke("hi").content == "fine"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("graph.yaml", None, r"graph.yaml cannot be read \(FileNotFoundError\).*configs/"),
        ("graph.yaml", "models: [", "graph.yaml is no YAML"),
        ("graph.yaml", "{% if %}", "graph.yaml is no YAML"),
        ("graph.yaml", "", "graph.yaml: : "),
        ("graph.yaml", GRAPH.replace("max_tokens: 25000", "max_tokens: 0"), "generating_content.max_tokens: "),
        ("providers.yaml", "providers: {openai: {api_key: SECRET}}", "openai.name: Field required"),
    ],
)
def test_files_that_cannot_be_read(configs: Path, name: str, text: str | None, said: str) -> None:
    if text is None:
        (configs / name).unlink()
    else:
        (configs / name).write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match=said) as caught:
        initialize_model_factory()
    assert "SECRET" not in repr(caught.value)


def test_a_strange_name_without_an_address(configs: Path) -> None:
    (configs / "providers.yaml").write_text("providers: {home: {name: home}}", encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match=r"there is no provider 'home'.*base_url in configs/providers.yaml"):
        initialize_model_factory()


def test_before_it_is_made() -> None:
    with pytest.raises(errors.NotConfigured, match=r"initialize_model_factory\(\) first"):
        create_model_for_node("generating_content")


def test_a_configuration_alone_needs_no_files(configs: Path) -> None:
    (configs / "graph.yaml").unlink()
    row = nodes.NamedProvider(name="ollama", supports_structured_output=True)
    model = ModelFactory({"mine": row}).create_model(nodes.Node(provider="mine", model_name="small"))
    assert (model.provider.name, model.model) == ("ollama", "small")


def test_variables_of_the_files_are_spelled_as_they_are(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (configs / "providers.yaml").write_text(PROVIDERS.replace("HOME_URL", "home_url"), encoding="utf-8")
    Path(".env").write_text("home_url=http://localhost:2\nHOME_KEY=key-of-home\nLLM_MODEL_ODD=x\n", encoding="utf-8")
    monkeypatch.setenv("HOME_KEY", "")  # as compose sets what is not set
    home = nodes.Files().get_providers_config()["home"]
    assert (home.base_url, home.api_key) == ("http://localhost:2", "key-of-home")
    assert "LLM_MODEL_ODD" in [each.name for each in variables(SPECS.values())]


def test_without_a_plan_it_reads_the_files() -> None:
    factory = ModelFactory(nodes.Files().get_providers_config())
    assert factory.create_model_for_node("generating_questions").model == "gpt-4.1"


async def test_learnflows_health_can_show_who_would_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NotConfigured):
        await model_factory.health()
    async with FaultServer("openai", tells={"/v1/models": {"data": [{"id": "a", "owned_by": "vllm"}]}}) as server:
        monkeypatch.setenv("LLM_PROVIDERS", "vllm,llamacpp")
        monkeypatch.setenv("VLLM_BASE_URL", server.base_url)
        monkeypatch.setenv("LLAMACPP_BASE_URL", "http://127.0.0.1:9")
        initialize_model_factory()
        assert await model_factory.health() == {"vllm": True, "llamacpp": False}
        assert server.seen == [], "no model was asked"


def test_a_student_reads_a_sentence_whoever_raised_the_error() -> None:
    assert model_factory.public_message(errors.ModelLoading("x")) == errors.ModelLoading("x").public_message("ru")
    assert "10.0.0.7" not in model_factory.public_message(OSError("10.0.0.7 refused"), "en")
