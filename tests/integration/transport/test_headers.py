"""Headers of the operator are sent to their own server only, and their values are secrets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import DIALECTS, KINDS, TEXT, dead, provider_for, router

from learnflow.llm import errors, get_provider
from learnflow.llm.base import AtMost
from learnflow.llm.errors import LLMError
from learnflow.llm.integrations import opentelemetry
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import (
    AzureProvider,
    CustomProvider,
    FireworksProvider,
    LlamaCppProvider,
    OpenAIProvider,
    VLLMProvider,
)
from learnflow.llm.testing import Fault, FaultServer
from learnflow.llm.testing.fault_server import ReceivedRequest, closed_port

SECRET = "cf-client-9f8e7d6c"
HEADERS = {"CF-Access-Client-Id": SECRET}
NAME = "cf-access-client-id"


class RecordingServer(FaultServer):
    """A server that records the headers of all requests, also those of its pages."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.requests: list[ReceivedRequest] = []

    async def _respond(self, seen: ReceivedRequest, *streams: Any) -> bool:
        self.requests.append(seen)
        return await super()._respond(seen, *streams)

    def values(self, name: str = NAME) -> set[str | None]:
        """Return the values of a header in all requests; None if a request lacks it."""
        return {seen.headers.get(name) for seen in self.requests}


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a proxy that refuses to connect. Yield its URL, and the bytes that it receives."""
    received: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("door", ["environment", "keyword"])
async def test_every_request_to_server_has_header(dialect: Any, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingServer(dialect, TEXT) as server:
        name = KINDS[dialect].spec.name.upper()
        monkeypatch.setenv(f"{name}_BASE_URL", server.base_url)
        if door == "environment":
            monkeypatch.setenv(f"{name}_HEADERS", f"CF-Access-Client-Id: {SECRET}; X-Team: a=b:c")
        given = {"headers": {**HEADERS, "X-Team": "a=b:c"}} if door == "keyword" else {}
        provider = KINDS[dialect](model="fault-model", **given)
        assert await provider.health_check()
        assert await provider.list_models() == ["fault-model"]
        await provider.warm_up()
        assert await provider.generate("hi") == TEXT
        assert "".join([piece async for piece in provider.stream("hi")]) == TEXT
    assert len(server.requests) > 4
    assert (server.values(), server.values("x-team")) == ({SECRET}, {"a=b:c"})


async def test_continuation_and_token_count_have_header_of_their_call() -> None:
    tokens = {"/apply-template": {"prompt": "hi"}, "/tokenize": {"tokens": [1, 2, 3]}}
    async with RecordingServer("llamacpp", responses=tokens) as server:
        provider = LlamaCppProvider(base_url=server.root, model="fault-model")
        await provider.generate(
            "word " * 9000, max_tokens=AtMost(100), headers={"X-Team": "{session}"}, session="lesson-1"
        )
    counted = [seen for seen in server.requests if seen.path in tokens]
    assert {seen.headers.get("x-team") for seen in counted} == {"lesson-1"}
    assert [seen.path for seen in counted] == list(tokens)


async def test_continuation_by_ollama_has_header() -> None:
    async with (
        RecordingServer("llamacpp", TEXT, fault=Fault("drop", after=6)) as first,
        RecordingServer("ollama", TEXT) as second,
    ):
        chain = router(provider_for(first, headers={NAME: "first"}), provider_for(second, headers={NAME: "second"}))
        assert "".join([piece async for piece in chain.stream("hi")]) == TEXT
    assert (first.values(), second.values()) == ({"first"}, {"second"})
    assert "/api/generate" in [seen.path for seen in second.requests]


async def test_header_of_environment_belongs_to_configured_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HEADERS", f"X-Team: {SECRET}")
    async with RecordingServer("vllm") as server, RecordingServer("vllm") as other:
        monkeypatch.setenv("VLLM_BASE_URL", server.base_url)
        await provider_for(server).generate("hi")
        await provider_for(other).generate("hi")
        await CustomProvider(base_url=server.base_url, model="m").generate("hi")
        assert server.requests[0].headers["x-team"] == SECRET
        assert "x-team" not in server.requests[-1].headers  # of another provider
        assert other.values("x-team") == {None}
        other.key = "k"
        with pytest.raises(errors.AuthenticationFailed, match=r"VLLM_HEADERS belongs to 127\.0\.0\.1"):
            await provider_for(other).generate("hi")


async def test_header_of_environment_is_not_sent_to_address_of_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HEADERS", f"X-Team: {SECRET}")
    async with RecordingServer("vllm") as server:
        Path(".env").write_text(f"VLLM_BASE_URL={server.base_url}\n", encoding="utf-8")
        await VLLMProvider(model="m").generate("hi")
        assert server.values("x-team") == {None}
        Path(".env").write_text(f"VLLM_BASE_URL={server.base_url}\nVLLM_HEADERS=X-Team: of the file\n", "utf-8")
        await VLLMProvider(model="m").generate("hi")
        assert server.requests[-1].headers["x-team"] == "of the file"
        monkeypatch.setenv("VLLM_HEADERS", f"X-Team:{SECRET}")
        Path(".env").write_text(f"VLLM_BASE_URL={server.base_url}/${{VLLM_HEADERS}}\n", encoding="utf-8")
        with pytest.raises(errors.NotConfigured, match="contains a secret"):
            VLLMProvider(model="m")


async def test_found_server_at_default_address_gets_header(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_HEADERS", f"X-Team: {SECRET}")
    async with RecordingServer("vllm") as server, RecordingServer("ollama") as other:
        usual |= {"vllm": server.base_url, "ollama": other.root}
        await get_provider().generate("hi")
        assert SECRET in server.values("x-team")
        assert other.values("x-team") == {None}


async def test_redirect_is_not_followed() -> None:
    async with RecordingServer() as other:
        async with RecordingServer(fault=Fault("redirect", headers={"location": other.root})) as server:
            with pytest.raises(LLMError):
                await provider_for(server, headers=HEADERS).generate("hi")
            server.responses["/v1/models"] = (307, {})
            await provider_for(server, headers=HEADERS).health_check()
        assert server.values() == {SECRET}
        assert other.connections == 0


async def test_proxy_of_tls_does_not_see_header(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as (url, received):
        monkeypatch.setenv("https_proxy", url)
        provider = CustomProvider(base_url="https://93.184.215.14/v1", model="m", headers=HEADERS)
        with pytest.raises(errors.Misconfigured, match="the proxy refused"):
            await provider.generate("hi", headers={"X-Team": SECRET})
        await provider.health_check()
    assert received
    assert all(request.startswith(b"CONNECT 93.184.215.14:443 ") for request in received)
    assert SECRET.encode() not in b"".join(received).lower()


async def test_local_only_sends_no_header_to_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingServer() as server, RecordingServer() as web:
        monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
        monkeypatch.setenv("http_proxy", web.root)
        far = CustomProvider(base_url="http://93.184.215.14/v1", model="m", headers=HEADERS)
        with pytest.raises(errors.NotLocal):
            await far.generate("hi")
        assert not await far.health_check()
        await provider_for(server, headers=HEADERS).generate("hi")
    assert (server.values(), web.connections) == ({SECRET}, 0)


async def test_session_fills_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_HEADERS", '{"X-Session": "{session}", "X-Team": "red; {session}", "X-Fixed": "1"}')
    async with RecordingServer() as server:
        monkeypatch.setenv("CUSTOM_BASE_URL", server.base_url)
        provider = CustomProvider(model="m")
        await provider.generate("hi", session="lesson-1")
        seen = server.requests[-1].headers
        assert (seen["x-session"], seen["x-team"], seen["x-fixed"]) == ("lesson-1", "red; lesson-1", "1")
        await provider.generate("hi")
        assert {"x-session", "x-team"}.isdisjoint(server.requests[-1].headers)
        assert server.requests[-1].headers["x-fixed"] == "1"
        for session in ("урок 1", "lesson 1", "lesson,1"):
            await provider.generate("hi", session=session)
            assert len(server.requests[-1].headers["x-session"]) == 64  # a digest


async def test_header_of_call_overrides_that_of_class_for_one_request() -> None:
    async with RecordingServer() as server:
        provider = provider_for(server, headers={"X-Team": "red", "X-Fixed": "1"})
        await provider.generate("hi", headers={"x-team": "blue"})
        assert server.seen[-1].headers["x-team"] == "blue"
        assert server.seen[-1].headers["x-fixed"] == "1"
        await provider.generate("hi")
        assert server.seen[-1].headers["x-team"] == "red"


async def test_empty_headers_override_those_of_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_HEADERS", "X-Team: red")
    async with RecordingServer() as server:
        monkeypatch.setenv("CUSTOM_BASE_URL", server.base_url)
        await CustomProvider(model="m", headers={}).generate("hi")
    assert server.values("x-team") == {None}


async def test_router_refuses_headers_of_call() -> None:
    async with RecordingServer() as server:
        with pytest.raises(errors.InvalidRequest, match=r"a router does not support headers=.*<NAME>_HEADERS"):
            await router(provider_for(server), dead()).generate("hi", headers=HEADERS)
        assert server.connections == 0


SET_BY_PACKAGE = (
    *("Authorization", "content-type", "Content-Length", "HOST", "Accept", "accept-encoding", "user-agent"),
    *("Connection", "transfer-encoding", "proxy-authorization"),
)


@pytest.mark.parametrize("name", SET_BY_PACKAGE)
async def test_header_of_package_cannot_be_overwritten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = rf"the header {name} is set by this package.*VLLM_HEADERS"
    with pytest.raises(errors.NotConfigured, match=fault) as caught:
        VLLMProvider(headers={name: SECRET})
    assert SECRET not in repr(caught.value) + str(caught.value)
    with pytest.raises(errors.InvalidRequest, match=fault):
        await VLLMProvider().generate("hi", model="m", headers={name: SECRET})
    monkeypatch.setenv("VLLM_HEADERS", f"X-Team: red; {name}: {SECRET}")
    with pytest.raises(errors.NotConfigured, match=fault):
        VLLMProvider()
    with pytest.raises(errors.NotConfigured, match=fault):
        get_provider("vllm")


async def test_every_header_of_a_request_is_set_by_operator_or_reserved() -> None:
    async with RecordingServer() as server:
        for provider in (
            CustomProvider(server.base_url, "m", "key"),
            AzureProvider(f"{server.root}/openai/v1", "m", "key"),
            FireworksProvider(server.base_url, "m", "key"),
        ):
            await provider.generate("hi", session="lesson-1")
            for name in server.requests[-1].headers:
                with pytest.raises(errors.InvalidRequest, match=f"the header {name} is set by this package"):
                    await provider.generate("hi", headers={name: "x"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("X-Team: a\r\nX-Other: b", "value of the header X-Team"),
        ("X-Team: пароль", "value of the header X-Team"),
        ("X-Team: ", "value of the header X-Team is empty"),
        ("X-Team:", "value of the header X-Team is empty"),
        (SECRET, "header 1 has no valid name"),
        (f"X-Team: a; {SECRET}", "header 2 has no valid name"),
        (f"X Team {SECRET}: a", "header 1 has no valid name"),
        (f"{{{SECRET}}}", "headers are not a dict"),
        (f'{{"X-Team": ["{SECRET}"]}}', "value of the header X-Team"),
        (f'{{"X-Team": "a", "": "{SECRET}"}}', "header 2 has no valid name"),
    ],
)
async def test_invalid_headers_are_named_without_value(text: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_HEADERS", text)
    with pytest.raises(errors.NotConfigured, match=f"{fault}.*CUSTOM_HEADERS") as caught:
        CustomProvider("http://127.0.0.1:1")
    assert SECRET not in repr(caught.value) + str(caught.value)
    assert "пароль" not in str(caught.value)


@pytest.mark.parametrize("headers", [{"X-Team": "a\nb"}, {"X-Team": ""}, {"X-Team": 5}, {"X Team": "a"}, 5, [1]])
async def test_invalid_headers_of_class_and_call_are_refused(headers: Any) -> None:
    with pytest.raises(errors.NotConfigured, match=r"header.*(VLLM_HEADERS|must be)"):
        VLLMProvider(headers=headers)
    with pytest.raises(errors.InvalidRequest, match=r"header.*(VLLM_HEADERS|must be)"):
        await VLLMProvider(model="m").generate("hi", headers=headers)


async def test_latin_1_value_is_sent() -> None:
    async with RecordingServer() as server:
        raw: list[bytes] = []

        async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raw.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async with await asyncio.start_server(record, "127.0.0.1", 0) as plain:
            port = plain.sockets[0].getsockname()[1]
            provider = CustomProvider(f"http://127.0.0.1:{port}", "m", headers={"X-Team": "Fußball\tÄ"})
            with pytest.raises(LLMError):
                await provider.generate("hi")
        assert not server.requests
    assert b"x-team: " + "Fußball\tÄ".encode("latin-1") in raw[0].replace(b"X-Team", b"x-team")


@pytest.mark.parametrize("status", [400, 401, 403, 500])
@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", "abc"])
async def test_error_of_server_that_repeats_value_is_masked(
    status: int, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    word = value.rsplit(maxsplit=1)[-1]
    body = json.dumps({"error": {"message": f"the client '{word}' is unknown, write to support"}}).encode()
    async with FaultServer(fault=Fault("refuse", status=status, body=body)) as server:
        for provider, more in (
            (provider_for(server, headers={"X-Team": value}), {}),
            (provider_for(server), {"headers": {"X-Team": value}}),
        ):
            with pytest.raises(LLMError) as caught:
                await router(provider, retries=0).generate("hi") if not more else await provider.generate("hi", **more)
            shown = f"{caught.value!r} {caught.value} {caught.value.server_message} {caplog.text}"
            assert word not in shown
            assert "write to support" in caught.value.server_message
            assert caught.value.__traceback__ is None or word not in str(caught.value.__cause__)


async def test_page_that_repeats_value_is_masked() -> None:
    page = (403, {"error": {"message": f"the client {SECRET} is unknown"}})
    async with FaultServer("vllm", responses=dict.fromkeys(["/v1/models", "/version", "/health"], page)) as server:
        provider = provider_for(server, headers=HEADERS)
        health = await provider.refresh()
        with pytest.raises(LLMError) as caught:
            await provider.list_models()
    assert SECRET not in f"{health} {caught.value!r} {caught.value} {caught.value.server_message}"


async def test_error_in_stream_that_repeats_value_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("error_frame")) as server:
        monkeypatch.setattr(type(server.dialect), "error", lambda *_: _error_frame())
        with pytest.raises(LLMError) as caught:
            await provider_for(server).generate("hi", headers=HEADERS)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.server_message}"
    assert "client [masked]" in caught.value.server_message


def _error_frame() -> bytes:
    return b'data: {"error": {"message": "the client %s is gone", "code": 500}}\n\n' % SECRET.encode()


def test_values_are_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_HEADERS", f"X-Team: {SECRET}")
    monkeypatch.setenv("CUSTOM_BASE_URL", "http://127.0.0.1:1")
    from learnflow.llm import settings  # noqa: PLC0415

    for provider in (CustomProvider(), CustomProvider(headers=HEADERS), get_provider("custom")):
        assert SECRET not in repr(provider)
    provider = CustomProvider()
    assert provider.endpoint.headers == {"x-team": SECRET}
    for value in (provider.endpoint, provider.runner, provider.catalog, settings.load_provider(provider.spec)):
        assert SECRET not in repr(value)


@pytest.mark.parametrize("by_call", [True, False])
async def test_cassette_has_no_value_and_plays_without_headers(
    by_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path / "cassettes"))
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    of_call, of_class = (HEADERS, None) if by_call else (None, HEADERS)
    async with FaultServer("vllm", f"The client {SECRET} is known.") as server:
        provider = provider_for(server, headers=of_class)
        await provider.generate("hi", headers=of_call)
        await provider.health_check()
    text = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "cassettes").rglob("*.yaml"))
    assert "chat/completions" in text
    assert SECRET not in text
    assert NAME not in text.lower()
    monkeypatch.setenv("LLM_REPLAY_MODE", "play")
    assert await VLLMProvider(model="fault-model").generate("hi") == "The client header-of-vllm is known."


async def test_span_and_events_have_no_value(events_seen: list[object]) -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    detach = opentelemetry.attach(tracers)
    async with FaultServer() as server:
        await provider_for(server, headers=HEADERS).generate("hi", headers={"X-Team": SECRET + "2"})
    detach()
    assert exporter.get_finished_spans()
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())
    assert SECRET not in repr(events_seen)


async def test_langchain_model_has_no_value_in_its_cache_key() -> None:
    async with RecordingServer() as server:
        model = ChatLearnFlow(provider=provider_for(server, headers=HEADERS))
        assert SECRET not in model._get_llm_string()
        assert SECRET not in repr(model)
        assert (await model.ainvoke([HumanMessage("hi")])).content
        assert server.values() == {SECRET}
        for refused in (
            model.bind(headers=HEADERS),
            ChatLearnFlow(provider=model.provider, model_kwargs={"headers": HEADERS}),
        ):
            with pytest.raises(errors.InvalidRequest, match="ChatLearnFlow does not support headers="):
                await refused.ainvoke([HumanMessage("hi")])


async def test_openai_sends_header_beside_its_key() -> None:
    async with RecordingServer() as server:
        provider = OpenAIProvider(
            base_url=server.base_url, api_key="key-0000", model="m", headers={"anthropic-workspace-id": "w"}
        )
        await provider.generate("hi")
        assert server.requests[-1].headers["authorization"] == "Bearer key-0000"
        assert server.requests[-1].headers["anthropic-workspace-id"] == "w"


async def test_dead_server_with_header_is_named() -> None:
    with pytest.raises(errors.ConnectionFailed) as caught:
        await CustomProvider(f"http://127.0.0.1:{closed_port()}", "m", headers=HEADERS).generate("hi")
    assert SECRET not in repr(caught.value)
