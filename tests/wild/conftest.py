"""Fixtures of the servers of the world: no retries, so that each test counts the requests of one attempt."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch retries off. A test of retries sets them."""
    monkeypatch.setenv("LLM_RETRIES", "0")
