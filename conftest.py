"""Fixtures of all tests: an isolated environment, and LiteLLM, imported once."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from learnflow.llm import discovery, integrations, process, settings_sources
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import embedded, registry
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import parse_endpoint

hypothesis.settings.register_profile("any machine", deadline=None)  # its deadline is a limit on wall-clock time
hypothesis.settings.load_profile("any machine")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in a background job of a shell; child processes would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The variables of the machine that tests and their processes get. Each provider reads all variables several times.
KEPT = re.compile(r"CI|HOME|LANG|LC_.*|PATH|TMPDIR|TZ|(COV|DYLD|LD|PYTEST|PYTHON|XDIST).*")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without garbage collections, which would find nothing to free."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)  # after the shuffle
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that mostly wait first. At the end, the other workers would have nothing to do meanwhile."""
    items.sort(key=lambda item: "waits" not in item.keywords)


@pytest.fixture(scope="session", autouse=True)
def few_variables() -> Iterator[None]:
    """Remove the variables that no test needs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if not KEPT.fullmatch(name)]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolate a test from the variables, .env files and proxies of the machine. Lines have any length."""
    for name in list(os.environ):
        prefix = name.split("_")[0].lower()
        if prefix in (*SPECS, "llm", "lm", "hosted", "llama") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "10000")
    monkeypatch.setenv("LLM_PATIENCE", "0")  # tests of a restart set it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))  # for the model store
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Restore the logger, which commands and the examples of the documents change in this process."""
    logger = logging.getLogger("learnflow.llm")
    before, handlers = (logger.level, logger.propagate, logger.disabled), [*logger.handlers]
    yield
    logger.setLevel(before[0])
    _, logger.propagate, logger.disabled = before
    for handler in {*logger.handlers} - {*handlers}:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def own_process_state() -> Iterator[None]:
    """Remove what a test left in this process: integrations, embedded servers, and knowledge about an address.

    A later test may get the same port.
    """
    yield
    for detach in list(integrations._detachers.values()):  # noqa: SLF001
        detach()
    for server in embedded._servers.values():  # noqa: SLF001
        server.stop()
    embedded._servers.clear()  # noqa: SLF001
    process.clear_learned_state()


@pytest.fixture(scope="session", autouse=True)
def litellm_ready() -> None:
    """Import LiteLLM before the first test, because that takes seconds. Garbage collections skip what is imported."""
    for name in ("custom", "ollama", "openai"):
        asyncio.run(_litellm.prepare(SPECS[name], parse_endpoint(SPECS[name], "http://localhost")))
    gc.collect()
    gc.freeze()


@pytest.fixture
def events_seen() -> Iterator[list[object]]:
    """Collect all log events of a test."""
    from learnflow.llm import events  # noqa: PLC0415

    seen: list[object] = []
    remove = events.add_sink(seen.append)
    yield seen
    remove()


@pytest.fixture
def bindable_port() -> Iterator[int]:
    """Reserve a port for a server of this test, which binds it with SO_REUSEADDR, as asyncio and http.server do.

    No other process gets it: it is bound here without listening. Only Linux permits to bind it again.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Replace the default addresses of local servers by unused ones, which a test may change. No container.

    The ports are bound without listening. So they refuse connections, and no other process gets them.
    """
    sockets = ExitStack()
    urls = {}
    for name in (name for name, spec in SPECS.items() if spec.api.default_url and spec.local):
        port = sockets.enter_context(socket.socket())
        port.bind(("127.0.0.1", 0))
        urls[name] = f"http://127.0.0.1:{port.getsockname()[1]}"

    def places() -> dict[str, Any]:
        specs = registry.discoverable_specs().items()
        return {name: replace(spec, api=replace(spec.api, default_url=urls.get(name))) for name, spec in specs}

    monkeypatch.setattr(discovery, "discoverable_specs", places)
    monkeypatch.setattr(settings_sources, "in_container", lambda: False)
    with sockets:
        yield urls
