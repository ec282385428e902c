"""Connections: stale ones, event loops, proxies, LLM_LOCAL_ONLY."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import pytest
from support import DIALECTS, provider_for, serving

from learnflow.llm import RouterProvider, errors
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, OllamaProvider, OpenAIProvider
from learnflow.llm.testing import Fault, FaultServer, closed_port
from learnflow.llm.transport import network
from learnflow.llm.transport.client import Client, HttpRequest
from learnflow.llm.transport.endpoint import Endpoint, is_private


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_request_on_stale_connection_is_sent_again_on_new_one(dialect: str) -> None:
    async with FaultServer(dialect) as server:
        provider = provider_for(server)
        await provider.generate("hi")
        before = server.connections
        server.script = [Fault("close")]
        assert await provider.generate("hi") == "The quick brown fox jumps over the lazy dog."
        assert server.connections == before + 1
        assert len(server.seen) == 3


async def test_request_on_closed_new_connection_is_not_sent_again() -> None:
    async with FaultServer(fault=Fault("close")) as server:
        with pytest.raises(errors.ConnectionFailed):
            await provider_for(server).generate("hi")
        assert len(server.seen) == 1


async def test_request_on_stale_connection_is_sent_again_only_once() -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        await provider.generate("hi")
        server.fault = Fault("close")
        with pytest.raises(errors.ConnectionFailed):
            await provider.generate("hi")
        assert len(server.seen) == 3


def test_provider_serves_many_event_loops_without_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Run in asyncio's debug mode. Any warning, even of a finalizer, is an error in this suite."""
    one, two, answers = FaultServer("openai"), FaultServer("ollama"), list[str]()

    async def ask() -> None:
        for provider in providers:
            answers.append(await provider.generate("hi"))
            async for _ in provider.stream("hi"):
                break
            assert await provider.health_check()

    with serving(one, two):
        providers = [CustomProvider(base_url=one.root), OllamaProvider(base_url=two.root)]
        for _ in range(3):
            asyncio.run(ask(), debug=True)
        threads = [threading.Thread(target=lambda: asyncio.run(ask(), debug=True)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gc.collect()
    assert answers == ["The quick brown fox jumps over the lazy dog."] * 14
    logged = [
        record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelname != "DEBUG"
    ]
    assert [line for line in logged if "took" not in line] == []  # debug mode names slow callbacks
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("192.168.1.1", True),
        ("169.254.169.254", False),  # the metadata service, which returns keys
        ("169.254.1.1", False),
        ("fd00:ec2::254", False),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("8.8.8.8", False),
        ("100.64.0.1", False),
        ("2001:4860:4860::8888", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_private_addresses(address: str, private: bool) -> None:
    assert is_private(address) is private


def test_local_networks_count_as_private() -> None:
    assert is_private("100.64.0.1", ("100.64.0.0/10",))
    assert not is_private("100.100.100.200", ("100.64.0.0/10",))
    assert not is_private("2001:db8::1", ("100.64.0.0/10",))
    assert is_private("2001:db8::1", ("2001:db8::/32",))


async def test_is_local_agrees_with_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name is judged by its resolved addresses, before that by its form."""
    leads = {"box.vpn.example": "100.64.0.7", "inside.example": "127.0.0.1", "intruder": "8.8.8.8"}

    def look(host: str, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (leads[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    monkeypatch.setattr(network, "_resolved", {})
    port = closed_port()
    for host, before, after, named in (
        ("box.vpn.example", False, False, True),
        ("inside.example", False, True, True),
        ("intruder", True, False, False),
    ):
        provider = LlamaCppProvider(base_url=f"http://{host}:{port}", local_only=True, connect_timeout=0.5)
        assert provider.get_capabilities()["local"] is before
        if named and not after:
            await network.resolve(host, 1)
        else:
            with pytest.raises(errors.ConnectionFailed if after else errors.NotLocal):
                await provider.generate("hi")
        assert provider.get_capabilities()["local"] is after
        monkeypatch.setenv("LLM_LOCAL_NETWORKS", "100.64.0.0/10")
        assert LlamaCppProvider(base_url=f"http://{host}:{port}").get_capabilities()["local"] is named
        monkeypatch.delenv("LLM_LOCAL_NETWORKS")
        network._resolved.clear()


def test_invalid_local_network_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_NETWORKS", "100.64.0.0/10, home")
    with pytest.raises(errors.NotConfigured, match="LLM_LOCAL_NETWORKS"):
        LlamaCppProvider()


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Yield the addresses that sockets of this process connect to."""
    seen: list[Any] = []

    class Watched(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(address)
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            seen.append(address)
            return super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Watched)
    loop_connect = asyncio.selector_events.BaseSelectorEventLoop._sock_connect  # type: ignore[attr-defined]

    def watched(self: Any, future: Any, sock: Any, address: Any) -> Any:
        seen.append(address)
        return loop_connect(self, future, sock, address)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "_sock_connect", watched)
    return seen


@pytest.mark.parametrize("url", ["http://8.8.8.8/v1", "https://93.184.215.14/v1", "http://[2001:4860:4860::8888]/v1"])
async def test_local_only_refuses_before_sending(
    url: str, connects: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    provider = CustomProvider(base_url=url, model="m")
    with pytest.raises(errors.NotLocal, match="LLM_LOCAL_ONLY"):
        await provider.generate("hi")
    with pytest.raises(errors.NotLocal):
        await provider.list_models()
    assert not await provider.health_check()
    assert connects == []


async def test_local_only_checks_resolved_address(connects: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(errors.NotLocal):
        await CustomProvider(base_url="http://notes.local/v1", model="m", local_only=True).generate("hi")
    assert connects == []


async def test_local_only_connects_to_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = []

    real = socket.getaddrinfo

    def resolve(host: str, *more: Any, **how: Any) -> list[Any]:
        if host != "notes.local":
            return real(host, *more, **how)
        lookups.append(host)
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 80))
        dead = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
        return [public, dead, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async with FaultServer() as server:
        port = server.root.rsplit(":", 1)[1]
        provider = CustomProvider(base_url=f"http://notes.local:{port}", model="m", local_only=True)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert (await provider.generate("hi")).endswith("dog.")
    assert lookups
    assert len(lookups) <= server.connections  # once for a connection: a second lookup could return another address
    assert server.seen[0].headers["host"] == f"notes.local:{port}"


@pytest.mark.parametrize("local_only", [True, False])
async def test_proxy_is_not_used_for_loopback(local_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer() as server, FaultServer(fault=Fault("hang")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.root)
        provider = provider_for(server, local_only=local_only)
        assert (await provider.generate("hi")).endswith("dog.")
        assert await provider.health_check()
        assert proxy.connections == 0


async def test_proxy_is_used_for_public_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.root)
        provider = CustomProvider(base_url="http://93.184.215.14/v1", model="m")
        assert (await provider.generate("hi")).endswith("dog.")
        assert proxy.seen[0].path == "http://93.184.215.14/v1/chat/completions"


@pytest.mark.parametrize(
    "host", ["box.lan", "gpu.local", "ollama", "llm.internal", "nas.home.arpa", "box.lan.", "pc.localdomain", "BOX.LAN"]
)
async def test_name_that_is_never_public_goes_through_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lookup fails now, and succeeds later. The proxy gets neither the page nor the prompt nor the key."""
    monkeypatch.setattr(socket, "getaddrinfo", fail_lookup)
    async with FaultServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.root)
        provider = CustomProvider(base_url=f"http://{host}/v1", model="m", api_key="sk-1234567890")
        with pytest.raises(errors.Unavailable):
            await provider.generate("a private prompt")
        assert not await provider.health_check()
        assert proxy.connections == 0


async def test_failed_lookup_permits_proxy_for_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a server at home is resolved to a private address after the name server is back."""
    async with FaultServer() as server, FaultServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.root)
        port = int(server.root.rpartition(":")[2])
        provider = CustomProvider(base_url=f"http://llm.example.net:{port}/v1", model="m")
        monkeypatch.setattr(socket, "getaddrinfo", fail_lookup)
        await provider.generate("hi")  # perhaps only the proxy can resolve the name
        assert len(proxy.seen) == 1
        address = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
        await provider.generate("hi")
        assert (len(proxy.seen), len(server.seen)) == (1, 1)


def fail_lookup(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_no_proxy_variable_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.root)
        monkeypatch.setenv("no_proxy", "192.0.2.7")
        with pytest.raises(errors.Unavailable):
            await CustomProvider(base_url="http://192.0.2.7/v1", model="m", connect_timeout=0.2).generate("hi")
        assert proxy.connections == 0


async def test_request_to_other_host_than_provider_is_refused() -> None:
    async with FaultServer() as other:
        client = Client(Endpoint(server_url="http://127.0.0.1:9", base_url="http://127.0.0.1:9"), connect_timeout=1.0)
        with pytest.raises(errors.Misconfigured, match=r"127\.0\.0\.1 was not sent"):
            await client.send(HttpRequest(url=f"{other.root}/v1/models"))
        assert other.connections == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_proxy", "http://h:notaport"),
        ("http_proxy", "socks5://127.0.0.1:9"),
        ("http_proxy", "ftp://127.0.0.1:9"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
async def test_invalid_proxy_or_ca_file_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from learnflow.llm.transport import network  # noqa: PLC0415

    network._tls_context.cache_clear()
    monkeypatch.setenv(name, value)
    scheme = "https" if name == "SSL_CERT_FILE" else "http"
    with pytest.raises(errors.NotConfigured, match=r"HTTPS_PROXY.*SSL_CERT_FILE") as caught:
        await CustomProvider(base_url=f"{scheme}://93.184.215.14/v1", model="m").generate("hi")
    assert caught.value.failover
    assert not await CustomProvider(base_url=f"{scheme}://93.184.215.14/v1").health_check()
    network._tls_context.cache_clear()


@pytest.mark.parametrize("status", [201, 206])
async def test_other_2xx_status_is_read_like_200(status: int) -> None:
    async with FaultServer() as server:
        body = server.dialect.answer_body("fine")
        server.script = [Fault("refuse", status=status, body=body), Fault("refuse", status=204, body=b"")]
        assert await provider_for(server).generate("hi") == "fine"
        with pytest.raises(errors.EmptyStream):
            await provider_for(server).generate("hi")


async def test_model_without_chat_completions_is_named() -> None:
    async with FaultServer() as server:
        with pytest.raises(errors.Unsupported, match="not served by chat completions"):
            await OpenAIProvider(base_url=server.root, api_key="k", model="text-embedding-3-small").generate("hi")
        assert server.connections == 0


async def test_key_does_not_follow_redirect() -> None:
    async with FaultServer(fault=Fault("redirect")) as server:
        provider = OpenAIProvider(base_url=server.base_url, model="gpt-4o", api_key="sk-secret-0000")
        with pytest.raises(errors.Misconfigured, match="OPENAI_BASE_URL"):
            await provider.generate("hi")
        assert len(server.seen) == 1


async def test_sixty_concurrent_requests_share_event_loop() -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        answers = await asyncio.gather(*(provider.generate(f"hi {n}") for n in range(60)))
        assert set(answers) == {"The quick brown fox jumps over the lazy dog."}


def test_event_loop_of_other_thread_does_not_interfere() -> None:
    async def ask() -> str:
        async with FaultServer() as server:
            return await provider_for(server).generate("hi")

    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(asyncio.run(ask())))
    thread.start()
    got.append(asyncio.run(ask()))
    thread.join()
    assert len(set(got)) == 1


async def test_closed_provider_closes_idle_connections_and_can_be_used_again() -> None:
    async with FaultServer("vllm") as server, FaultServer("vllm") as other:
        one, two = provider_for(server), provider_for(other)
        chain = RouterProvider(one, [two])
        server.script = [Fault("slow", seconds=0.05)]
        busy = one.stream("hi")
        await anext(busy)
        for _ in range(2):
            await one.generate("hi")
            await two.generate("hi")
        assert (server.connections, other.connections) == (2, 1)
        await one.aclose()
        assert await busy.final_completion()  # a connection in use stays open
        await one.generate("hi")
        await two.generate("hi")
        assert (server.connections, other.connections) == (2, 1)  # the connection of the stream, which is idle now
        await chain.aclose()
        await one.generate("hi")
        await two.generate("hi")
        assert (server.connections, other.connections) == (3, 2)


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_request_that_ends_while_stale_connections_are_closed_closes_all_of_them(how: str) -> None:
    """The next request closes the idle connections that the server has closed."""
    all_arrived, writers, ends = asyncio.Barrier(40), list[asyncio.StreamWriter](), list[bytes]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        if len(writers) <= all_arrived.parties:
            await all_arrived.wait()  # each request has its own connection
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        ends.append(await reader.read())  # until the client closes the connection

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client(Endpoint(server_url=url, base_url=url), connect_timeout=5)
        await asyncio.gather(*(client.fetch(HttpRequest(url=url)) for _ in range(40)))
        for writer in writers:
            writer.write_eof()
        async with asyncio.timeout(60):
            if how == "cancelled":
                task = asyncio.create_task(client.fetch(HttpRequest(url=url)))
                while not ends:
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await client.fetch(HttpRequest(url=url))
            while len(ends) < all_arrived.parties:
                await asyncio.sleep(0.01)
        for writer in writers:
            writer.close()
