"""What a new process does with LiteLLM: run by test_litellm.py, once for all its tests.

It prints one JSON object: the name and the result of each check. The order matters: the first checks need a
process that has not imported LiteLLM.
"""

from __future__ import annotations

import sys
import time

WATCHED: list[str] = []


def watch(event: str, args: tuple[object, ...]) -> None:
    """Record connections and names beyond this machine, a dependency's .env, and changes of OpenAI's variables."""
    if event == "socket.connect" and not (str(args[1][0]).startswith("127.0.0.1") and args[1][1] != 11434):  # type: ignore[index]
        WATCHED.append(f"{event} {args[1]}")
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", None):
        WATCHED.append(f"{event} {args[0]!r}")
    if event == "open" and str(args[0]).endswith((".env", ".env.local")) and "site-packages" in str(args[0]):
        WATCHED.append(f"{event} {args[0]}")
    if event == "os.putenv" and b"OPENAI" in bytes(args[0]):  # type: ignore[arg-type]
        WATCHED.append(f"{event} {args[0]!r}")


sys.addaudithook(watch)
BEGAN = time.process_time()
import learnflow.llm  # noqa: E402

IMPORT_CPU_S = time.process_time() - BEGAN
HEAVY = [name for name in ("litellm", "httpx", "openai", "pydantic") if name in sys.modules]

import asyncio  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import traceback  # noqa: E402
from contextlib import suppress  # noqa: E402


def imported_with_the_package() -> list[str]:
    return HEAVY


def imported_with_a_provider() -> bool:
    from learnflow.llm.providers import AzureProvider, FireworksProvider, OpenAIProvider

    learnflow.llm.get_provider("ollama").get_capabilities()
    OpenAIProvider(api_key="k", model="gpt-4o").get_capabilities()  # read from LiteLLM's price map
    AzureProvider("https://x.openai.azure.com", "gpt-4o", "k").get_capabilities()
    FireworksProvider(api_key="k", model="accounts/fireworks/models/llama-v3p3-70b-instruct").get_capabilities()
    return "litellm" in sys.modules


async def imported_with_text_requests() -> bool:
    """Send requests of texts to local servers, which LiteLLM would pass unchanged."""
    from learnflow.llm.providers import CustomProvider, OllamaProvider
    from learnflow.llm.testing import Fault, FaultServer

    async with FaultServer("openai") as one, FaultServer("ollama") as two:
        for provider in (CustomProvider(base_url=one.root, model="m"), OllamaProvider(base_url=two.root, model="m")):
            await provider.generate("hi", system="Be brief", temperature=0.2, max_tokens=9, stop="x", seed=1)
        one.script = [Fault("status", status=500)]
        with suppress(learnflow.llm.LLMError):
            await CustomProvider(base_url=one.root, model="m").generate("hi")
    return "litellm" in sys.modules


async def first_call() -> dict[str, object]:
    """Count the turns of the loop while LiteLLM is imported; its import costs more than the first token's timeout."""
    from learnflow.llm.providers import OpenAIProvider
    from learnflow.llm.testing import FaultServer

    turns, over = 0, asyncio.Event()

    async def beat() -> None:
        nonlocal turns
        while not over.is_set():
            await asyncio.sleep(0.01)
            turns += 1

    async with FaultServer() as server:
        heart, began, cpu = asyncio.create_task(beat()), time.monotonic(), time.process_time()
        provider = OpenAIProvider(base_url=server.root, api_key="k", model="m", first_token_timeout=1.0)
        text = await provider.generate("hi")
        took, cpu_s = time.monotonic() - began, time.process_time() - cpu
        over.set()
        await heart
    return {"text": text, "turns": turns, "took_s": took, "cpu_s": cpu_s, "package_cpu_s": IMPORT_CPU_S}


async def requests() -> dict[str, list[str]]:
    """Send requests for which LiteLLM would download a tokenizer, look up a model, or print after a failure."""
    from learnflow.llm.errors import LLMError
    from learnflow.llm.providers import CustomProvider, OllamaProvider, OpenAIProvider
    from learnflow.llm.testing import Fault, FaultServer

    async with FaultServer("openai") as one, FaultServer("ollama") as two:
        for provider, server in (
            (CustomProvider(base_url=one.root), one),
            (OpenAIProvider(base_url=one.root, api_key="k"), one),
            (OllamaProvider(base_url=two.root), two),
        ):
            for model in ("meta-llama-3.1-8b-instruct", "llama3", "unheard-of"):
                await provider.generate("hi", model=model)
                async for _ in provider.stream("hi", model=model):
                    pass
                server.script = [Fault("refuse", refusal="failed")]
                with suppress(LLMError):
                    await provider.generate("hi", model=model)
        return {"openai": [path for _, path in one.pages], "ollama": [path for _, path in two.pages]}


def refusals_and_prices() -> None:
    from learnflow.llm import completion
    from learnflow.llm.adapter import _litellm
    from learnflow.llm.providers.registry import SPECS
    from learnflow.llm.settings import ProviderSettings
    from learnflow.llm.transport.endpoint import configure_endpoint

    for spec in SPECS.values():
        _litellm._prepare(spec, configure_endpoint(spec, ProviderSettings(), "http://127.0.0.1:9", "k"))
        _litellm.classify_error(spec, "llama3", 400, "no")
        _litellm.price(spec, "llama3", completion.Usage(1, 1, 2))


def connections_and_names() -> list[str]:
    return WATCHED


def variables_of_litellm() -> list[str]:
    return sorted(name for name in os.environ if name.startswith("LITELLM_"))


MESSAGES = [
    {"role": "system", "content": "Be brief"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "a", "content": "A cat"},
]


def written_requests() -> list[str]:
    """Write a request of every provider without a connection; return the files that were opened meanwhile."""
    from learnflow.llm.adapter import _litellm
    from learnflow.llm.providers.registry import SPECS
    from learnflow.llm.settings import ProviderSettings
    from learnflow.llm.transport.endpoint import configure_endpoint

    azure = SPECS["azure"]
    newer_azure = azure.api.choose_variant(azure, "", "v1")  # type: ignore[misc]

    def blocked(*_: object, **__: object) -> None:
        raise AssertionError("a request is written without a connection")

    for spec in (*SPECS.values(), newer_azure):
        _litellm._prepare(spec, configure_endpoint(spec, ProviderSettings(), "http://127.0.0.1:9", "key-of-ours"))
    socket.socket.connect = socket.getaddrinfo = socket.create_connection = blocked  # type: ignore[assignment,method-assign]
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "subprocess.Popen") else None)
    before = json.dumps(MESSAGES)
    for spec in (*SPECS.values(), newer_azure):
        there = configure_endpoint(spec, ProviderSettings(), "http://127.0.0.1:9", "key-of-ours")
        parameters = {"temperature": 0.5, "max_tokens": 7, "extra_body": {"model": "another", "own": 1}}
        request = _litellm.build_http_request(spec, there, "some-model", MESSAGES, parameters)
        sent, body = json.dumps([request.url, request.body]), request.body or {}
        assert request.url.startswith(there.base_url), request.url
        assert not any(word in sent for word in ("elsewhere", "stolen", "another", "extra_body")), sent
        assert body["stream"] is True, body
        assert body["own"] == 1, body
        assert body["model"].endswith("some-model"), body
        plain = _litellm.build_http_request(spec, there, "some-model", MESSAGES[:1], {"max_tokens": 7})
        assert "extra_body" not in (plain.body or {}), plain.body
    assert json.dumps(MESSAGES) == before, "the messages were changed"
    return [path for path in opened if "__pycache__" not in path]


def unsupported_parameter() -> list[str]:
    from learnflow.llm import errors
    from learnflow.llm.adapter import _litellm
    from learnflow.llm.providers.registry import SPECS
    from learnflow.llm.settings import ProviderSettings
    from learnflow.llm.transport.endpoint import configure_endpoint

    there = configure_endpoint(SPECS["openai"], ProviderSettings(), None, "k")
    try:
        _litellm.build_http_request(
            SPECS["openai"], there, "o3-mini", [{"role": "user", "content": "private"}], {"temperature": 0.5}
        )
    except errors.Unsupported as error:
        return [error.hint, f"{error} {error.__context__}"]
    return []


CHECKS = (
    *(
        imported_with_the_package,
        imported_with_a_provider,
        imported_with_text_requests,
        first_call,
        requests,
        refusals_and_prices,
    ),
    *(connections_and_names, variables_of_litellm, unsupported_parameter, written_requests),
)

if __name__ == "__main__":
    results: dict[str, object] = {}
    for check in CHECKS:
        try:
            result = check()
            results[check.__name__] = asyncio.run(result) if asyncio.iscoroutine(result) else result
        except Exception:  # noqa: BLE001  # one failing check fails one test
            results[check.__name__] = traceback.format_exc()
    print(json.dumps(results))
