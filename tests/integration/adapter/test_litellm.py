"""LiteLLM is silent, offline, used by one module, and imported only if a request needs it."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from learnflow.llm import AtMost
from learnflow.llm.adapter import _litellm
from learnflow.llm.adapter._litellm import _load
from learnflow.llm.adapter.request import RequestFormat, build_request, build_without_litellm
from learnflow.llm.parameters import REASONING_LEVELS
from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenAIProvider
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.settings import ProviderSettings
from learnflow.llm.testing import FaultServer
from learnflow.llm.transport.endpoint import configure_endpoint

# Variables that LiteLLM's configurations read if they are given no base URL and no key.
NOISE = {
    f"{name}_{what}": value
    for name in (
        "OPENAI",
        "AZURE",
        "OLLAMA",
        "HOSTED_VLLM",
        "LM_STUDIO",
        "OPENROUTER",
        "FIREWORKS",
        "FIREWORKS_AI",
        "OR",
    )
    for what, value in (("API_BASE", "http://elsewhere"), ("BASE_URL", "http://elsewhere"), ("API_KEY", "stolen"))
} | {"LITELLM_DROP_PARAMS": "true", "AZURE_API_VERSION": "elsewhere", "OPENAI_ORGANIZATION": "stolen"}
CHATTY = {"DOTENV": "x", "LITELLM_LOG": "INFO"}


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """Run ``fresh_process.py``: one import of LiteLLM for the tests that need a process of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fresh_process.py"))],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**environment, **NOISE, **CHATTY},
    )
    return {"stderr": ran.stderr, "lines": ran.stdout.splitlines(), **json.loads(ran.stdout.splitlines()[-1])}


def test_importing_package_imports_nothing_heavy(fresh: dict[str, Any]) -> None:
    assert fresh["imported_with_the_package"] == []


def test_making_provider_does_not_import_litellm(fresh: dict[str, Any]) -> None:
    assert fresh["imported_with_a_provider"] is False


def test_text_requests_to_local_servers_do_not_import_litellm(fresh: dict[str, Any]) -> None:
    assert fresh["imported_with_text_requests"] is False


TEXTS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": ""},
    {"role": "system", "content": "Ünicode \ud83d\ude00 <|im_start|>"},
    {"role": "assistant", "content": "{}"},
]
KEYWORDS: list[dict[str, Any]] = [
    {},
    *({"temperature": value} for value in (0, 0.0, 0.7, 2)),
    {"max_tokens": 5},
    {"max_tokens": AtMost(5000)},
    {"top_p": 1.0, "seed": 0, "stop": ["a", "b"], "frequency_penalty": -0.5, "presence_penalty": 0.0},
    {"top_k": -1, "min_p": 0.05},
    {"system": "Be brief"},
    {"session": "s" * 80},
    {"extra_body": {"model": "other", "options": {"num_ctx": 9}, "keep_alive": "5m", "temperature": 1, "x": [None]}},
    *({"reasoning": value} for value in (False, True, *REASONING_LEVELS)),
]


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.dialect.chat_path_without_litellm])
def test_request_of_texts_equals_the_one_of_litellm(name: str, buffered: bool) -> None:
    spec = SPECS[name]
    endpoint = configure_endpoint(spec, ProviderSettings(), "http://127.0.0.1:9/v1", "k")
    compared = 0
    for keywords in KEYWORDS:
        if not keywords.keys() <= spec.dialect.parameters | {"system"}:
            continue
        if keywords.get("reasoning") not in (None, *spec.dialect.reasoning):
            continue
        for prompt, prefill in itertools.product((TEXTS, "Hi"), (None, "The quick")):
            request = replace(build_request(spec, prompt, "m", keywords), buffered=buffered)
            assert request.can_bypass_litellm
            for omitted in (frozenset[str](), frozenset({"stream", "stream_options", "max_tokens", "temperature"})):
                messages, parameters = request.to_openai(
                    RequestFormat(omitted=omitted), context_length=64, max_tokens=None, prefill=prefill
                )
                ours = build_without_litellm(spec, endpoint, "qwen/m:1b", messages, parameters)
                theirs = _litellm.build_http_request(spec, endpoint, "qwen/m:1b", messages, parameters)
                for message in theirs.body["messages"]:
                    assert message.pop("images", []) == []  # LiteLLM adds an empty list for Ollama
                assert (ours.url, ours.body) == (theirs.url, theirs.body)
                compared += 1
    assert compared >= 80


@pytest.mark.parametrize(
    "keywords",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_other_requests_are_written_by_litellm(keywords: dict[str, Any]) -> None:
    assert not build_request(SPECS["llamacpp"], "Hi", "m", keywords).can_bypass_litellm


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
        {"role": "user", "content": "Hi", "name": "Ann"},
    ],
)
def test_messages_with_other_fields_are_written_by_litellm(message: dict[str, Any]) -> None:
    request = build_request(SPECS["llamacpp"], [{"role": "user", "content": "Hi"}, message], "m", {})
    assert not request.can_bypass_litellm


def test_openai_requests_are_written_by_litellm() -> None:
    assert not build_request(SPECS["openai"], "Hi", "m", {}).can_bypass_litellm


def test_importing_package_costs_a_tenth_of_preparing_litellm(fresh: dict[str, Any]) -> None:
    """Compare CPU times of one process."""
    assert fresh["first_call"]["package_cpu_s"] < fresh["first_call"]["cpu_s"] / 10


def test_first_call_keeps_loop_turning_and_does_not_charge_first_token(fresh: dict[str, Any]) -> None:
    """Show that the import of LiteLLM neither blocks the loop nor counts as waiting for the first token."""
    first = fresh["first_call"]
    assert first["text"] == "The quick brown fox jumps over the lazy dog."
    assert first["took_s"] > 1
    assert first["turns"] > 10  # one or two if the import held the loop


def test_requests_of_litellm_send_no_byte_and_look_up_no_name_of_their_own(fresh: dict[str, Any]) -> None:
    assert fresh["refusals_and_prices"] is None
    assert fresh["connections_and_names"] == []
    pages = fresh["requests"]
    assert pages["openai"] == []
    # The package's own probes, once for each model: its context length, and whether it supports images.
    assert set(pages["ollama"]) <= {"/api/version", "/api/tags", "/api/ps", "/api/show"}
    assert pages["ollama"].count("/api/tags") == 3


def test_process_prints_nothing_if_requests_fail_and_litellm_logs(fresh: dict[str, Any]) -> None:
    others = [line for line in fresh["stderr"].splitlines() if "llm.other_model_answered" not in line]
    assert others == []  # FaultServer answers with one name for every model
    assert len(fresh["lines"]) == 1  # LiteLLM would print "Give Feedback / Get Help"


def test_litellm_switches_are_set_by_package(fresh: dict[str, Any]) -> None:
    assert fresh["variables_of_litellm"] == [
        "LITELLM_DROP_PARAMS",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS",
        "LITELLM_LOCAL_BLOG_POSTS",
        "LITELLM_LOCAL_MODEL_COST_MAP",
        "LITELLM_LOG",
        "LITELLM_MODE",
        "LITELLM_OFFLINE_MODE",
    ]


def test_request_of_every_provider_is_written_from_its_arguments_alone(fresh: dict[str, Any]) -> None:
    """Show that the variables in NOISE, sockets, names and files are not used."""
    assert fresh["written_requests"] == []


def test_unsupported_parameter_is_named_although_litellm_would_drop_it(fresh: dict[str, Any]) -> None:
    hint, error = fresh["unsupported_parameter"]
    assert "temperature" in hint
    assert "private" not in error


@pytest.fixture
def debug_log() -> Iterator[io.StringIO]:
    """Collect what every logger of the process writes at DEBUG."""
    root, stream = logging.getLogger(), io.StringIO()
    handler, before = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(before)
    root.removeHandler(handler)


@pytest.mark.parametrize("content", [False, True])
async def test_debug_log_holds_prompt_only_if_allowed(
    content: bool, debug_log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content:
        monkeypatch.setenv("LLM_LOG_CONTENT", "true")
    async with FaultServer("openai", "fine answer") as one, FaultServer("ollama", "fine answer") as two:
        for provider in (
            CustomProvider(base_url=one.root, model="m"),
            OpenAIProvider(base_url=one.root, api_key="sk-secret-0000", model="m"),
            OllamaProvider(base_url=two.root, model="m"),
        ):
            await provider.generate("private prompt")
    logged = debug_log.getvalue()
    assert "llm.attempt_succeeded" in logged
    assert ("private prompt" in logged) is content
    assert ("fine answer" in logged) is content
    assert "secret" not in logged


@pytest.mark.parametrize("bad", ["1.82.7", "1.82.8"])
def test_malicious_versions_are_excluded(bad: str) -> None:
    assert f"!={bad}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_used_internals_of_litellm_exist() -> None:
    """Check the one list of what is used, so that a new version of LiteLLM fails here."""
    litellm = _load()
    parameters_of = {
        litellm.utils.get_optional_params: {
            *("model", "custom_llm_provider", "stream", "drop_params", "api_version"),
            *("temperature", "max_tokens", "tools", "tool_choice", "response_format", "stream_options", "stop", "seed"),
        },
        litellm.exception_type: {"model", "original_exception", "custom_llm_provider"},
        litellm.cost_per_token: {"model", "prompt_tokens", "completion_tokens"},
    }
    for function, used in parameters_of.items():
        assert used <= set(inspect.signature(function).parameters), function
    for spec in SPECS.values():
        provider = litellm.types.utils.LlmProviders(spec.litellm_provider)
        config = litellm.utils.ProviderConfigManager.get_provider_chat_config("m", provider)
        methods = {
            config.get_complete_url: {"api_base", "api_key", "model", "optional_params", "litellm_params", "stream"},
            config.transform_request: {"model", "messages", "optional_params", "litellm_params", "headers"},
            config.get_error_class: {"error_message", "status_code", "headers"},
        }
        for method, used in methods.items():
            assert used <= set(inspect.signature(method).parameters), (spec.name, method)
    assert "gpt-4o" in litellm.model_cost
    assert litellm.drop_params is False
