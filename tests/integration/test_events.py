"""Events, the log line of a request, and sinks that fail."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry
from support import provider_for, router

from learnflow.llm import RouterProvider, errors, events, get_provider, log
from learnflow.llm.integrations import prometheus
from learnflow.llm.providers import OpenAIProvider
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
    assert [(log["event"], log["log_level"]) for log in logs] == [("llm.attempt_succeeded", "info")]


async def test_failing_sink_does_not_fail_request() -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the sink's own")

    remove = events.add_sink(broken)
    try:
        async with FaultServer() as server:
            assert await provider_for(server).generate("hi")
    finally:
        remove()


async def log_of_request(caplog: pytest.LogCaptureFixture, **metadata: object) -> str:
    """Send a request. Return its log line."""
    caplog.set_level(logging.INFO, logger="learnflow.llm")
    async with FaultServer() as server:
        await provider_for(server).generate("private prompt", metadata=metadata)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "learnflow.llm")
    return str(line)


async def test_floats_of_a_line_have_three_digits(caplog: pytest.LogCaptureFixture) -> None:
    line = await log_of_request(caplog)
    numbers = re.findall(r"(?:total_s|first_token_s)=([\d.e-]+)", line)
    assert len(numbers) == 2
    assert [number for number in numbers if float(number) != float(f"{float(number):.3g}")] == []
    log.write_line("info", "llm.test", seconds=12.3456, cost=0.000012345, tokens=123456, hint="12.3456")
    assert caplog.messages[-1] == "event='llm.test' seconds=12.3 cost=1.23e-05 tokens=123456 hint='12.3456'"


async def test_json_line_has_event_level_time_and_the_fields(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LOG_FORMAT", "json")
    line = json.loads(await log_of_request(caplog, node="объясни"))
    assert (line["event"], line["level"], line["provider"]) == ("llm.attempt_succeeded", "info", "custom")
    assert line["completion_tokens"] == 7
    assert line["metadata"] == {"node": "объясни"}
    assert datetime.fromisoformat(line["timestamp"]).tzinfo


async def test_text_is_the_format_again_without_the_variable(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("LLM_LOG_FORMAT", "json")
        get_provider("ollama")
    assert (await log_of_request(caplog)).startswith("event='llm.attempt_succeeded' provider='custom' ")


def test_unknown_format_is_an_error_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOG_FORMAT", "xml")
    with pytest.raises(errors.NotConfigured, match="LLM_LOG_FORMAT"):
        get_provider("ollama")


def test_line_about_an_unreadable_env_file_has_the_format_too(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLM_LOG_FORMAT=json\nno assignment at all\n", encoding="utf-8")
    get_provider("ollama")
    (line,) = map(json.loads, caplog.messages)
    assert (line["event"], line["lines"]) == ("llm.env_lines_unreadable", [2])


async def test_provider_that_was_never_sent_anything_has_no_failure(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="learnflow.llm")
    registry = CollectorRegistry()
    detach = prometheus.attach(registry)
    async with FaultServer("llamacpp") as server:
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.base_url)
        assert await RouterProvider("openai", ["llamacpp"]).generate("hi")  # OPENAI_API_KEY is missing
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    detach()
    unusable, completed = caplog.messages
    assert unusable.startswith("event='llm.provider_unusable' provider='openai' error='KeyMissing' ")
    assert "OPENAI_API_KEY" in unusable
    assert completed.startswith("event='llm.attempt_succeeded' provider='llamacpp' ")
    counted = {(sample.name, sample.labels.get("provider")): sample.value for sample in samples}
    assert counted["learnflow_llm_configuration_errors_total", "openai"] == 1
    assert ("learnflow_llm_requests_total", "openai") not in counted
    assert counted["learnflow_llm_requests_total", "llamacpp"] == 1


async def test_skipped_provider_has_no_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, logger="learnflow.llm")
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("llamacpp") as server:
        chain = router(OpenAIProvider(api_key="k", model="gpt-none"), provider_for(server))
        assert await chain.generate("hi")
    (line,) = caplog.messages
    assert line.startswith("event='llm.attempt_succeeded' provider='llamacpp' ")


@pytest.mark.parametrize("switch", ["level", "disabled"])
async def test_log_is_switched_off_by_its_logger(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    caplog.set_level(logging.DEBUG)
    logger = logging.getLogger("learnflow.llm")
    if switch == "level":
        logger.setLevel(logging.CRITICAL + 1)  # a fixture restores it
    else:
        monkeypatch.setattr(logger, "disabled", True)
    async with FaultServer(fault=Fault("refuse", refusal="key")) as server:
        with pytest.raises(errors.AuthenticationFailed):
            await provider_for(server).generate("hi")
    assert [record for record in caplog.records if record.name == "learnflow.llm"] == []
