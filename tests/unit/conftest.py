"""What holds for unit tests: they open no socket of the network."""

from __future__ import annotations

import socket
from typing import Any

import pytest

MESSAGE = "a test in tests/unit opened a socket. Move it to tests/integration."


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects, binds or listens on IP. asyncio's own pair of sockets is not IP."""
    for name in ("connect", "connect_ex", "bind", "listen"):
        real = getattr(socket.socket, name)

        def guarded(own: socket.socket, *given: Any, real: Any = real) -> Any:
            if own.family in (socket.AF_INET, socket.AF_INET6):
                pytest.fail(MESSAGE)
            return real(own, *given)

        monkeypatch.setattr(socket.socket, name, guarded)
