"""The main job on real servers: whatever the environment names (``make live``).

``LLAMACPP_BASE_URL``, ``VLLM_BASE_URL``, ``OLLAMA_BASE_URL`` … name servers, ``…_MODEL`` their models.
``LIVE_ANSWERS`` may name a JSON file of prompts and answers that the model knows by heart, a list of
``{"prompt": …, "answer": …}``: answers are then compared letter by letter, thinking removed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from support import LIVE

from learnflow.llm import errors, get_provider
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.providers import CustomProvider, build
from learnflow.llm.providers.registry import SPECS

pytestmark = pytest.mark.live

NAMED = [
    name
    for name, spec in SPECS.items()
    if any(
        LIVE.get(variable)
        for variable in (spec.variable_names("base_url") if spec.local else spec.variable_names("api_key"))
    )
]
rows = pytest.mark.parametrize(
    "row", NAMED or [pytest.param("none", marks=pytest.mark.skip(reason="no server is named in the environment"))]
)


def known() -> list[tuple[str, str, str | None]]:
    """Prompt, answer, thinking."""
    if not LIVE.get("LIVE_ANSWERS"):
        return []
    found = []
    for each in json.loads(Path(LIVE["LIVE_ANSWERS"]).read_text(encoding="utf-8")):
        thought = re.match(r"<think>(.*?)</think>(.*)", each["answer"], re.DOTALL)
        answer, thinking = (thought[2], thought[1]) if thought else (each["answer"], None)
        found.append((each["prompt"], answer, thinking))
    return found


ANSWERS = known()
PROMPTS = [prompt for prompt, *_ in ANSWERS] or ["Say pong", "Explain RSA encryption", "Скажи привет"]


@pytest.fixture(autouse=True)
def named_environment(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers that the environment names, and nothing else of it."""
    for name in NAMED:
        spec = SPECS[name]
        settings = ("base_url", "model", "api_key", "api_version")
        for variable in [name for setting in settings for name in spec.variable_names(setting)]:
            if LIVE.get(variable):
                monkeypatch.setenv(variable, LIVE[variable])


def providers(row: str, monkeypatch: pytest.MonkeyPatch) -> list[BaseProvider]:
    """The same server by get_provider(), by its class, and as a custom one."""
    monkeypatch.setenv("LLM_PROVIDER", row)
    own = build(row)
    found: list[Any] = [get_provider(), own]
    if own.spec.local:
        root, key = own.endpoint.server_url, own.endpoint.key
        found.append(CustomProvider(base_url=f"{root}/v1", model=own.model or "local-model", api_key=key))
    return found


@rows
async def test_known_answers_letter_by_letter(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {prompt: (answer, thinking) for prompt, answer, thinking in ANSWERS}
    for provider in providers(row, monkeypatch):
        for prompt in PROMPTS:
            async with provider.stream(prompt, temperature=0, max_tokens=400) as stream:
                streamed = "".join([piece async for piece in stream])
            done = stream.completion
            assert (streamed, done.finish) == (done.text, "stop")
            assert done.usage.completion_tokens
            if expected:
                assert (done.text, done.reasoning) == expected[prompt]
                assert await provider.generate(prompt, temperature=0, max_tokens=400) == expected[prompt][0]


@rows
@pytest.mark.parametrize("reasoning", [True, False])
async def test_thinking_on_and_off_never_reaches_the_answer(row: str, reasoning: bool) -> None:
    provider = build(row)
    if not provider.spec.dialect.reasoning:
        with pytest.raises(errors.Unsupported):
            await provider.generate("hi", reasoning=reasoning)
        return
    for prompt, answer, thinking in [known for known in ANSWERS if known[2]] or [("Say pong", None, None)]:
        try:
            done = await provider.complete(prompt, temperature=0, max_tokens=400, reasoning=reasoning)
        except errors.Unsupported as error:  # the server says so itself: honoured or refused, never dropped
            assert reasoning, error
            return
        assert "<think>" not in done.text
        assert "</think>" not in done.text
        if answer:
            assert (done.text, done.reasoning) == (answer, thinking)


@rows
async def test_a_hundred_streams_in_a_row(row: str) -> None:
    provider = build(row)
    first = None
    for _ in range(100):
        text = "".join([piece async for piece in provider.stream(PROMPTS[0], temperature=0, max_tokens=20)])
        first = first or text
        assert text == first or not ANSWERS


@rows
async def test_sixty_at_once(row: str) -> None:
    provider = build(row)
    asked = [PROMPTS[n % len(PROMPTS)] for n in range(60)]
    answers = await asyncio.gather(*(provider.generate(each, temperature=0, max_tokens=400) for each in asked))
    expected = {prompt: answer for prompt, answer, _ in ANSWERS}
    assert all(answers)
    assert answers == [expected.get(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]


@rows
async def test_leaving_and_asking_again(row: str) -> None:
    provider = build(row)
    for _ in range(10):
        async for _piece in provider.stream(PROMPTS[-1], temperature=0, max_tokens=400):
            break
    assert await provider.generate(PROMPTS[0], temperature=0, max_tokens=400)


@rows
async def test_length_is_told(row: str) -> None:
    done = await build(row).complete("Explain RSA encryption", temperature=0, max_tokens=5)
    assert done.finish == "length"


@rows
async def test_a_pydantic_class_comes_back_filled(row: str) -> None:
    class Quiz(BaseModel):
        questions: list[str]

    prompt = "Write three control questions about RSA as JSON"
    done = await build(row).complete(prompt, temperature=0, max_tokens=400, response_format=Quiz)
    assert isinstance(done.parsed, Quiz)
    assert done.parsed.questions


@rows
async def test_a_model_that_is_not_there(row: str) -> None:
    provider = build(row)
    try:
        done = await provider.complete("Say pong", model="no-such-model", temperature=0, max_tokens=20)
    except errors.ModelNotFound as error:
        assert error.status in (400, 404)
        assert provider.spec.variable("model") in error.hint
    else:  # a server of one model takes any name, and the completion tells which it was
        assert (done.model.requested, done.model.served) == ("no-such-model", (await provider.list_models())[0])


@rows
async def test_a_prompt_longer_than_the_window_is_never_answered_silently(row: str) -> None:
    if not SPECS[row].local:
        pytest.skip("costs money")
    with pytest.raises(errors.ContextOverflow):
        await build(row).generate("word " * 200_000, temperature=0, max_tokens=5)


@rows
async def test_health_and_models(row: str) -> None:
    provider = build(row)
    assert await provider.health_check()
    assert await provider.list_models()
    health = await provider.refresh(1.0)
    assert health.state == "ready"
    assert health.latency_s is not None
    if provider.spec.local:
        assert health.server == provider.spec.title
        assert health.version or provider.spec.name == "lmstudio"
        assert health.capabilities["context_served"] or health.cold
        assert health.capabilities["vision"] is not None or provider.spec.name == "vllm"
        wrong = type(provider)(base_url=f"{provider.endpoint.server_url}/nowhere/v1", model=provider.model)
        assert (await wrong.refresh()).state == "misconfigured"
        missing = type(provider)(model="no-such-model")
        assert (await missing.refresh()).state in ("model_missing", "ready")  # ready: it serves one, whatever the name


@rows
async def test_warm_up_loads_and_the_next_answer_does_not_load_again(row: str) -> None:
    if not SPECS[row].local:
        pytest.skip("nothing to load")
    provider = build(row)
    await provider.warm_up()
    health = await provider.refresh()
    assert (health.state, health.cold) == ("ready", False)
    before = health.capabilities["context_served"]
    assert await provider.generate("Say pong", temperature=0, max_tokens=20)
    assert (await build(row).refresh()).capabilities["context_served"] == before


@rows
async def test_a_picture_that_nobody_can_see_is_refused(row: str) -> None:
    """Ollama 0.24 answers as if there had been none; llama.cpp says 500; vLLM says 400."""
    provider = build(row)
    if (await provider.refresh()).capabilities["vision"] is not False:
        pytest.skip("it can, or does not say")
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{dot}"}}
    with pytest.raises(errors.Unsupported, match="nothing was sent"):
        await provider.generate([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}])


@rows
def test_the_command_line_asks_it(row: str) -> None:
    command = [sys.executable, "-m", "learnflow.llm", "ask", PROMPTS[0], "-p", row, "-t", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ.copy())
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == (ANSWERS[0][1] if ANSWERS else ran.stdout.strip())
    assert ran.stdout.strip()
