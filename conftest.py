"""What every test stands on: an environment of its own, and LiteLLM made ready once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from learnflow.llm import discovery, settings_sources
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import registry
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import endpoint

hypothesis.settings.register_profile("any machine", deadline=None)  # its deadline is a bound of wall-clock time
hypothesis.settings.load_profile("any machine")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine, no .env of the working directory, no proxy; lines of any length."""
    for name in list(os.environ):
        row = name.split("_")[0].lower()
        if row in (*SPECS, "llm", "lm", "hosted", "llama") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "10000")
    monkeypatch.setenv("LLM_PATIENCE", "0")  # a dead server is dead; who tests a restart says so
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))  # the machine's model store is not the test's
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """What a program that a test runs in this process sets for its log is over with the test."""
    logger = logging.getLogger("learnflow.llm")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session", autouse=True)
def litellm_ready() -> None:
    """Seconds, once: no test's budget pays for it."""
    for name in ("custom", "ollama", "openai"):
        asyncio.run(_litellm.prepare(SPECS[name], endpoint(SPECS[name], "http://localhost")))


@pytest.fixture
def events_seen() -> Iterator[list[object]]:
    """Every event of the test."""
    from learnflow.llm import events  # noqa: PLC0415

    seen: list[object] = []
    remove = events.add_sink(seen.append)
    yield seen
    remove()


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Give each local server a usual address where no server is until a test sets one. No container.

    Each port stays bound without listening: it refuses connections, and no other process on the machine gets it.
    """
    held = ExitStack()
    places = {}
    for name in (name for name, spec in SPECS.items() if spec.api.default_url and spec.local):
        port = held.enter_context(socket.socket())
        port.bind(("127.0.0.1", 0))
        places[name] = f"http://127.0.0.1:{port.getsockname()[1]}"

    def elsewhere() -> dict[str, Any]:
        return {
            name: replace(
                spec,
                api=replace(
                    spec.api,
                    default_url=places.get(name),
                ),
            )
            for name, spec in registry.discoverable().items()
        }

    monkeypatch.setattr(discovery, "discoverable", elsewhere)
    monkeypatch.setattr(settings_sources, "in_container", lambda: False)
    with held:
        yield places
