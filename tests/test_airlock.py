"""LiteLLM stays quiet, offline, in one room, and out of the way until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import build
from learnflow.llm.specs import SPECS
from learnflow.llm.testing import FaultServer


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
            # names that make LiteLLM download a tokenizer (facts/litellm.md 1.2), look up a model, or ask for one
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
    assert "llm_answered" in ran.stderr
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


@pytest.mark.parametrize("row", list(SPECS))
async def test_litellm_is_content_with_what_it_is_given_back(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that we heard hides whatever LiteLLM raised behind us; it would cost milliseconds, and be a sign."""
    raised: list[str] = []
    failure = _litellm._failure

    def watched(error: Exception, *more: object) -> object:
        raised.append(repr(error))
        return failure(error, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(_litellm, "_failure", watched)
    monkeypatch.setenv(f"{row.upper()}_API_KEY", "k")
    async with FaultServer("ollama" if row == "ollama" else "openai") as server:
        monkeypatch.setenv(f"{row.upper()}_BASE_URL", server.root)
        assert (await build(row).generate("hi", model="m")).endswith("dog.")
    assert raised == []


@pytest.mark.parametrize("bad", ["1.82.7", "1.82.8"])
def test_the_malicious_versions_stay_excluded(bad: str) -> None:
    from pathlib import Path  # noqa: PLC0415

    assert f"!={bad}" in (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
