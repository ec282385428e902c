"""Real llama.cpp servers with the tiny model, in processes that a test can kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from llama import LlamaServer


@pytest.fixture(scope="session")
def llama_server() -> Iterator[LlamaServer]:
    """Serve the tiny model for tests that only read; one server for each xdist worker."""
    with LlamaServer(slots=4) as server:
        yield server


@pytest.fixture
def start_llama() -> Iterator[Callable[..., LlamaServer]]:
    """Start a server for one test, which may kill it: ``start_llama(slots=1)``."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(LlamaServer(**options))
