"""LiteLLM stays quiet, offline, in one room, and out of the way until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os  # noqa: PLC0415

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, learnflow.llm; print([m for m in ('litellm', 'httpx', 'openai', 'pydantic') if m in sys.modules])"
    )
    assert run(code).stdout == "[]\n"


def test_importing_the_package_takes_a_tenth_of_litellms_time() -> None:
    code = "import time; a = time.process_time(); import {}; print(time.process_time() - a)"
    ours = min(float(run(code.format("learnflow.llm")).stdout) for _ in range(2))
    theirs = float(run(code.format("litellm"), LITELLM_LOCAL_MODEL_COST_MAP="True").stdout)
    assert ours < theirs / 10


def test_a_provider_can_be_made_without_litellm() -> None:
    code = (
        "import sys; from learnflow.llm import get_provider; provider = get_provider('ollama');"
        "provider.get_capabilities(); print('litellm' in sys.modules)"
    )
    assert run(code).stdout == "False\n"


# Every connection and every name that is looked up, every file named .env, seen from outside LiteLLM.
QUIET = """
import asyncio, sys
seen = []
def watch(event, args):
    if event == "socket.connect" and not str(args[1][0]).startswith("127.0.0.1"):
        seen.append((event, args[1]))
    if event == "socket.connect" and args[1][1] == 11434:
        seen.append((event, args[1]))
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", None):
        seen.append((event, args[0]))
    if event == "open" and str(args[0]).endswith((".env", ".env.local")) and "site-packages" in str(args[0]):
        seen.append((event, args[0]))
    if event == "os.putenv" and b"OPENAI" in bytes(args[0]):
        seen.append((event, args))
sys.addaudithook(watch)
from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenAIProvider
from learnflow.llm.testing import Fault, FaultServer
async def main():
    async with FaultServer("openai") as one, FaultServer("ollama") as two:
        for provider, server in (
            (CustomProvider(base_url=one.root), one),
            (OpenAIProvider(base_url=one.root, api_key="k"), one),
            (OllamaProvider(base_url=two.root), two),
        ):
            # names that make LiteLLM download a tokenizer, look up a model, or ask for one
            for model in ("meta-llama-3.1-8b-instruct", "llama3", "unheard-of"):
                await provider.generate("hi", model=model)
                async for piece in provider.stream("hi", model=model):
                    pass
                server.script = [Fault("refuse", refusal="failed")]
                try:
                    await provider.generate("hi", model=model)
                except Exception:
                    pass
        assert one.pages == [], one.pages
        # once for each model, our own look: which window it has, whether it can see
        ours = {"/api/version", "/api/tags", "/api/ps", "/api/show"}
        assert {path for _, path in two.pages} <= ours, two.pages
        assert len([path for _, path in two.pages if path == "/api/tags"]) == 3, two.pages
        await asyncio.sleep(0.1)
asyncio.run(main())
print(seen)
"""


def test_no_byte_no_name_no_dotenv_no_word_but_ours() -> None:
    ran = run(QUIET, DOTENV="x", LITELLM_LOG="INFO")
    assert ran.stdout == "[]\n"  # LiteLLM prints "Give Feedback / Get Help" on failures otherwise
    assert ran.stderr == ""


def test_prompts_are_not_logged_even_at_debug() -> None:
    code = """
import asyncio, logging
logging.basicConfig(level=logging.DEBUG)
from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenAIProvider
from learnflow.llm.testing import FaultServer
async def main():
    async with FaultServer("openai", "fine answer") as one, FaultServer("ollama", "fine answer") as two:
        for provider in (
            CustomProvider(base_url=one.root, model="m"),
            OpenAIProvider(base_url=one.root, api_key="sk-secret-0000", model="m"),
            OllamaProvider(base_url=two.root, model="m"),
        ):
            await provider.generate("private prompt")
asyncio.run(main())
"""
    ran = run(code)
    assert ran.returncode == 0, ran.stderr
    assert "llm.request_completed" in ran.stderr
    assert "private prompt" not in ran.stderr
    assert "fine answer" not in ran.stderr
    assert "secret" not in ran.stderr
    logged = run(code, LLM_LOG_CONTENT="true")
    assert "private prompt" in logged.stderr


def test_the_first_call_does_not_freeze_the_loop_or_the_first_token() -> None:
    code = """
import asyncio, time
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import FaultServer
async def main():
    worst, stop = 0.0, False
    async def beat():
        nonlocal worst
        while not stop:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - before)
    async with FaultServer() as server:
        heart = asyncio.create_task(beat())
        began = time.monotonic()
        provider = CustomProvider(base_url=server.root, model="m", first_token_timeout=1.0)
        await provider.generate("hi")
        whole = time.monotonic() - began
        await provider.prepare()
        stop = True
        await heart
    print(worst < whole / 2, whole > 1)
asyncio.run(main())
"""
    assert run(code).stdout == "True True\n"


@pytest.mark.parametrize("bad", ["1.82.7", "1.82.8"])
def test_the_malicious_versions_stay_excluded(bad: str) -> None:

    assert f"!={bad}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# Writes one request of every row with everything blocked that it must not need: sockets, names, files, and variables
# that LiteLLM's configurations look for where they are given no base and no key.
PURE = """
import json, os, socket, sys
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers.azure import V1 as AZURE_V1
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import settle
rows = [*SPECS.values(), AZURE_V1]
for spec in rows:
    _litellm._prepare(spec, settle(spec, "http://127.0.0.1:9", "key-of-ours", None, None, None))
def blocked(*_, **__):
    raise AssertionError("a request is written without a connection")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = blocked
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ("open", "subprocess.Popen") else None)
words = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "a", "content": "A cat"},
]
before = json.dumps(words)
for spec in rows:
    there = settle(spec, "http://127.0.0.1:9", "key-of-ours", None, None, None)
    asked = {"temperature": 0.5, "max_tokens": 7, "extra_body": {"model": "another", "own": 1}}
    request = _litellm.write(spec, there, "some-model", words, asked)
    said = json.dumps([request.url, request.body])
    assert request.url.startswith(there.base), request.url
    assert "elsewhere" not in said and "stolen" not in said, said
    assert request.body["stream"] is True and request.body["own"] == 1, request.body
    assert "extra_body" not in request.body and request.body["model"].endswith("some-model"), request.body
    assert "another" not in said
    empty = _litellm.write(spec, there, "some-model", words[:1], {"max_tokens": 7})
    assert "extra_body" not in empty.body, empty.body
assert json.dumps(words) == before, "what was given was changed"
assert not [each for each in opened if "__pycache__" not in str(each)], opened
print("fine")
"""
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


def test_every_rows_request_is_written_from_its_arguments_alone() -> None:
    ran = run(PURE, **NOISE)
    assert ran.stdout == "fine\n", ran.stderr


def test_a_parameter_that_the_model_does_not_take_is_named_and_not_dropped() -> None:
    code = """
from learnflow.llm import errors
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import settle
spec = SPECS["openai"]
try:
    _litellm.write(spec, settle(spec, None, "k", None, None, None), "o3-mini", [{"role": "user", "content": "private"}],
                   {"temperature": 0.5})
except errors.Unsupported as error:
    print("temperature" in error.hint, "private" not in str(error) + str(error.__context__))
"""
    assert run(code, LITELLM_DROP_PARAMS="true").stdout == "True True\n"


def test_what_is_used_of_litellms_insides_is_there() -> None:
    """The one list of it: should a new version move something, this says what."""
    import inspect  # noqa: PLC0415

    from learnflow.llm.adapter._litellm import _load  # noqa: PLC0415
    from learnflow.llm.providers.registry import SPECS  # noqa: PLC0415

    litellm = _load()
    takes = {
        litellm.utils.get_optional_params: {
            *("model", "custom_llm_provider", "stream", "drop_params", "api_version"),
            *("temperature", "max_tokens", "tools", "tool_choice", "response_format", "stream_options", "stop", "seed"),
        },
        litellm.exception_type: {"model", "original_exception", "custom_llm_provider"},
        litellm.cost_per_token: {"model", "prompt_tokens", "completion_tokens"},
    }
    for function, wanted in takes.items():
        assert wanted <= set(inspect.signature(function).parameters), function
    for spec in SPECS.values():
        provider = litellm.types.utils.LlmProviders(spec.litellm)
        config = litellm.utils.ProviderConfigManager.get_provider_chat_config("m", provider)
        methods = {
            config.get_complete_url: {"api_base", "api_key", "model", "optional_params", "litellm_params", "stream"},
            config.transform_request: {"model", "messages", "optional_params", "litellm_params", "headers"},
            config.get_error_class: {"error_message", "status_code", "headers"},
        }
        for method, wanted in methods.items():
            assert wanted <= set(inspect.signature(method).parameters), (spec.name, method)
    assert "gpt-4o" in litellm.model_cost
    assert litellm.drop_params is False


def test_importing_and_running_sends_nothing_with_litellms_switches_as_we_set_them() -> None:
    """Telemetry and look-ups of every version: nothing but loopback is connected to, no other name is looked up."""
    code = """
import os, sys
seen = []
def watch(event, args):
    if event == "socket.connect" or event == "socket.getaddrinfo":
        seen.append((event, args[-1] if event == "socket.connect" else args[0]))
sys.addaudithook(watch)
from learnflow.llm import completion
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import settle
for spec in SPECS.values():
    there = settle(spec, "http://127.0.0.1:9", "k", None, None, None)
    _litellm._prepare(spec, there)
    _litellm.judge(spec, "llama3", 400, b'{"error": {"message": "no"}}', {})
    _litellm.price(spec, "llama3", completion.Usage(1, 1, 2))
print(seen, sorted(name for name in os.environ if name.startswith("LITELLM")))
"""
    set_by_us = [
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS",
        "LITELLM_LOCAL_BLOG_POSTS",
        "LITELLM_LOCAL_MODEL_COST_MAP",
        "LITELLM_MODE",
        "LITELLM_OFFLINE_MODE",
    ]
    assert run(code).stdout == f"[] {set_by_us}\n"
