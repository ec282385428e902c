"""Two real llama.cpp servers behind an engine, and the summary of ``make engines``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

import pytest
from engines import KINDS, REJOIN, Configure, Engine, Report, StartEngine
from llama import LlamaServer

from learnflow.llm import RouterProvider, get_provider

SEEN: Final = pytest.StashKey[list[tuple[str, str, str]]]()
KEY: Final = "key-of-the-servers"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a table: promise, engine, seen."""
    rows = terminalreporter.config.stash.get(SEEN, [])
    if not rows:
        return
    rows = [("PROMISE", "ENGINE", "SEEN"), *sorted(rows)]
    widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
    terminalreporter.section("engines")
    for promise, engine, seen in rows:
        terminalreporter.line(f"{promise:{widths[0]}}  {engine:{widths[1]}}  {seen}")


@pytest.fixture(params=KINDS)
def engine_name(request: pytest.FixtureRequest) -> str:
    """The name of an engine. A test that uses this fixture runs with each of them."""
    return str(request.param)


@pytest.fixture
def report(request: pytest.FixtureRequest, engine_name: str) -> Report:
    """Return a function that adds a row to the summary: ``report(promise, seen)``."""
    rows = request.config.stash.setdefault(SEEN, [])

    def add(promise: str, seen: str) -> None:
        rows.append((promise, f"{engine_name} {KINDS[engine_name].version}".strip(), seen))

    return add


@pytest.fixture
def start_llama() -> Iterator[Callable[..., LlamaServer]]:
    """Start a server for one test, which may kill it: ``start_llama(slots=1)``."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(LlamaServer(key=KEY, **options))


@pytest.fixture
def start_engine(engine_name: str) -> Iterator[StartEngine]:
    """Start the engine in front of servers, with the options that docs/scaling.md advises."""
    with ExitStack() as engines:

        def start(workers: Sequence[str], *options: str, key: str = KEY, advised: bool = True) -> Engine:
            kind = KINDS[engine_name]
            policy = () if "--policy" in options else kind.session_options
            return engines.enter_context(Engine(kind, workers, key, [*(REJOIN if advised else ()), *policy, *options]))

        yield start


@pytest.fixture
async def configure(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Configure]:
    """Set the variables of docs/scaling.md for an engine, and return the provider that an application gets."""
    providers: list[RouterProvider] = []

    def provider(engine: Engine, **more: str) -> RouterProvider:
        lines = {
            "LLM_PROVIDER": "gpus",
            "LLM_LOCAL_ONLY": "true",
            "LLM_RETRIES": "4",
            "GPUS_BASE_URL": engine.url,
            "GPUS_API_KEY": KEY,
            "GPUS_KIND": "llamacpp",
            "GPUS_MAX_CONCURRENCY": "4",
            "GPUS_HEADERS": f"{engine.kind.session_header}: {{session}}",
            **more,
        }
        for name, value in lines.items():
            monkeypatch.setenv(name, value)
        providers.append(get_provider())
        return providers[-1]

    yield provider
    for inner in [inner for one in providers for inner in one.providers]:
        await inner.aclose()
