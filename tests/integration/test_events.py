"""Events, the log line of a request, and sinks that fail."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict

import pytest
import structlog
from support import provider_for

from learnflow.llm import RouterProvider, errors, events
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer


async def test_each_request_logs_one_line_without_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="learnflow.llm")
    async with FaultServer() as server:
        provider = provider_for(server)
        await provider.generate("private prompt")
        server.fault = Fault("refuse", refusal="key")
        with pytest.raises(errors.AuthenticationFailed):
            await provider.generate("private prompt")
    lines = [record for record in caplog.records if record.name == "learnflow.llm"]
    assert [record.levelname for record in lines] == ["INFO", "ERROR"]  # a wrong key is an error line
    assert "provider='custom'" in lines[0].message
    assert "completion_tokens=7" in lines[0].message
    assert "AuthenticationFailed" in lines[1].message
    assert "private" not in caplog.text
    assert "quick" not in caplog.text


async def test_events_contain_no_prompt_or_answer(events_seen: list[events.LogEvent]) -> None:
    async with FaultServer("openai", fault=Fault("cut", after=3)) as one, FaultServer("vllm") as two:
        router = RouterProvider(provider_for(one), [provider_for(two)], breakers=BreakerRegistry())
        assert await router.generate("private prompt")
    kinds = {events.AttemptFailed, events.Failover, events.Resumed, events.AttemptSucceeded, events.RequestEnded}
    assert kinds <= {type(event) for event in events_seen}
    for event in events_seen:
        error = getattr(event, "error", None)
        shown = (asdict(event), events.log_fields(event), vars(error) if error else {})
        assert not re.search("private|quick|brown", repr(shown))


async def test_configured_structlog_receives_events() -> None:
    try:
        with structlog.testing.capture_logs() as logs:
            async with FaultServer() as server:
                await provider_for(server).generate("hi")
    finally:
        structlog.reset_defaults()
    assert [(log["event"], log["log_level"]) for log in logs] == [("llm.request_completed", "info")]


async def test_failing_sink_does_not_fail_request() -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the sink's own")

    remove = events.add_sink(broken)
    try:
        async with FaultServer() as server:
            assert await provider_for(server).generate("hi")
    finally:
        remove()
