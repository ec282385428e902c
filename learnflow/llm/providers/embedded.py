"""The embedded provider: llama.cpp's server in a child process, from the package xllamacpp.

The server listens on loopback and requires a random key. A probe (a GET of the server's status) never starts the
server. Until the server is ready, ``EmbeddedTransport`` itself responds to probes. Its responses are those of llama.cpp
in router mode, with one model that is not loaded.

Tested with xllamacpp 2026.10.11549 and 2026.5.9093.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import IO, Final, Unpack
from weakref import WeakSet

import httpx

from .. import errors, log, settings
from ..adapter.provider import BaseProvider
from ..base import TimeOptions
from ..errors import LLMError, NotConfigured
from ..parameters import Count, check_keywords
from ..process import register
from ..replay import active
from ..transport import network
from ..transport.client import NETWORK
from ..transport.endpoint import origin
from ..transport.untrusted import json_object, printable
from . import embedded_model, llamacpp
from .model_store import DEFAULT_MODEL

_DEFAULT_SLOTS: Final = 2
_DEFAULT_CONTEXT: Final = 8192  # tokens per slot (one of the concurrent requests)
_RESTART_PAUSE_S: Final = 10.0  # for this time after a failed start, requests fail at once
_MAX_STARTS, _STARTS_WITHIN_S = 3, 30.0  # a fourth start fails until 30 s after the first
_STOP_TIMEOUT_S: Final = 2.0  # the wait for the end of a process; then ``_end()`` kills it
_MAX_LOG_CHARS: Final = 300  # per line
_ERROR_LINE: Final = re.compile(r"[\d.]+ E ")  # such as 0.00.010.066 E gguf_init_from_reader: …
_PROGRAM: Final = Path(__file__).with_name("embedded_server.py")
_KILLED_EXIT_CODES: Final = (-9, 137)  # after SIGKILL
# Held while a server process is created. A fork waits for it (see ``register_at_fork``), so that the forked child knows
# the process, and can close its copies of the pipes.
_lock: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The configuration of a server. Providers with identical configurations share one server.

    Attributes:
        alias: the name of the model in requests.
        context: the context length of a slot in tokens. llama.cpp lowers it to the model's maximum.
        slots: the number of concurrent requests.
    """

    provider: str
    model: Path
    alias: str
    context: int
    slots: int
    threads: int


class EmbeddedServer:
    """A llama.cpp server in a child process.

    Attributes:
        key: the API key that the server requires.
        users: the open transports that have used the server. The last transport that closes stops the server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.key = secrets.token_urlsafe(32)
        self.users: WeakSet[EmbeddedTransport] = WeakSet()
        self._process: subprocess.Popen[bytes] | None = None
        self._address_future: Future[str] | None = None  # done when the model is loaded, or the start has failed
        self._failure: tuple[float, LLMError] | None = None  # the last failed start: its time and its error
        self._start_times: deque[float] = deque(maxlen=_MAX_STARTS)

    def __deepcopy__(self, _: object) -> EmbeddedServer:
        """Return this object, so that a copied provider uses the same process."""
        return self

    @property
    def pid(self) -> int | None:
        """Return the process id; None if no process runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    @property
    def starting(self) -> bool:
        """Return whether the server is loading its model."""
        return self._address_future is not None and not self._address_future.done()

    @property
    def running(self) -> bool:
        """Return whether the server can answer."""
        return self.pid is not None and not self.starting

    @property
    def failure(self) -> LLMError | None:
        """Return the error to raise instead of starting the server; None if the server can be started."""
        now, start_times = monotonic(), self._start_times
        if self._failure and now - self._failure[0] < _RESTART_PAUSE_S:
            return copy.copy(self._failure[1])
        if len(start_times) == _MAX_STARTS and now - start_times[0] < _STARTS_WITHIN_S and self.pid is None:
            what = f"the embedded server ended {_MAX_STARTS} times within {_STARTS_WITHIN_S:g} s"
            return errors.ConnectionFailed(what, hint=SPEC.server.down_hint or "")
        return None

    async def ensure_started(self, load_timeout_s: float) -> str:
        """Start the server unless it is running or starting. Return its address when it is ready.

        Raises:
            NotConfigured: the server ended before it was ready.
            ConnectionFailed: the process could not be created, has ended too often, or was stopped or killed before it
                was ready. It is killed if it is not ready after ``load_timeout_s``.
        """
        with _lock:
            if self._address_future is None or not (self.running or self.starting):
                if failure := self.failure:
                    raise failure
                self._address_future = self._start(load_timeout_s)
            address_future = self._address_future
        try:
            return await asyncio.wrap_future(address_future)
        except LLMError as error:
            raise copy.copy(error) from None  # a copy, because several requests wait for this start

    def _start(self, load_timeout_s: float) -> Future[str]:
        """Start the process, and a thread that waits for its report."""
        if self._process:
            _end(self._process)  # it has ended, but its pipe is open
        # -P: without it, the modules in this folder would hide libraries of the same name (openai).
        command, pipe = [sys.executable, "-P", str(_PROGRAM)], subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)  # noqa: S603  # a constant command
        except OSError as error:
            what = f"the process of the embedded server could not be started ({type(error).__name__})"
            raise errors.ConnectionFailed(what) from None
        self._process, address_future = process, Future[str]()
        self._start_times.append(monotonic())
        address_future.set_running_or_notify_cancel()  # a cancelled request does not cancel the start
        threading.Thread(target=self._finish_start, args=(process, address_future, load_timeout_s), daemon=True).start()
        return address_future

    def _finish_start(
        self, process: subprocess.Popen[bytes], address_future: Future[str], load_timeout_s: float
    ) -> None:
        """Wait for the server's report. Resolve the future with the address or the error."""
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  # ``_start`` created pipes
        explanation = list[str]()
        reader = threading.Thread(target=_read_log, args=(process.stderr, explanation), daemon=True)
        reader.start()
        timer = threading.Timer(min(load_timeout_s, threading.TIMEOUT_MAX), process.kill)
        timer.start()
        with suppress(OSError, ValueError):  # the process has ended, or was stopped
            config = {**asdict(self.config), "model": str(self.config.model), "key": self.key}
            process.stdin.write(json.dumps(config).encode() + b"\n")
        # The last line is the report of ``embedded_server``. Imported modules may print lines before it.
        with process.stdout:
            report = json_object(process.stdout.read().strip().rpartition(b"\n")[2]) or {}
        timer.cancel()
        if "address" in report:
            address_future.set_result(str(report["address"]))
            return
        _end(process)
        reader.join(_STOP_TIMEOUT_S)
        error = _start_error(process.returncode, str(report.get("error", "")), explanation)
        if self._process is process:
            self._failure = monotonic(), error
        else:
            what = "the embedded server was stopped while it started"
            error = errors.ConnectionFailed(what, hint="Retry: the next request starts it again")
        address_future.set_exception(error)

    def wait_ended(self) -> bool:
        """Wait up to two seconds for the process to end. Return whether it has ended.

        Call this after a ConnectError, because an exiting server refuses connections before its process ends.
        """
        process = self._process
        with suppress(subprocess.TimeoutExpired):
            if process:
                process.wait(_STOP_TIMEOUT_S)
        return self.pid is None

    def stop(self) -> None:
        """Stop the server. Return when its process has ended."""
        with _lock:
            process, self._process, self._address_future = self._process, None, None
            self._start_times.clear()  # a stop by the application is not a fault
        if process:
            _end(process)

    def forget(self) -> None:
        """Forget the process in a forked child, because only the parent ends the process.

        Close the copied pipes, because an open copy of stdin would keep the server running.
        """
        if process := self._process:
            for pipe in filter(None, (process.stdin, process.stderr)):
                pipe.close()
            process.returncode = 0  # Popen must not wait for a process that is not a child of this process
        self._process = self._address_future = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the stdin of a server process, so that the process exits. Kill the process after a timeout."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_servers: Final = register("embedded servers", dict[ServerConfig, EmbeddedServer]())


def _after_fork_in_child() -> None:
    _lock.release()
    for server in _servers.values():
        server.forget()


@atexit.register
def _stop_all() -> None:
    for server in _servers.values():
        server.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork_in_child)


def _read_log(pipe: IO[bytes], explanation: list[str]) -> None:
    """Log the lines of llama.cpp. Store the line that may explain a failed start in ``explanation``.

    This line is the first error, else the last line. Later errors only report that the model was not loaded.
    """
    with pipe:
        for raw in iter(lambda: pipe.readline(_MAX_LOG_CHARS), b""):
            text = printable(raw.decode("utf-8", "replace").strip(), _MAX_LOG_CHARS)
            if text and not (explanation and _ERROR_LINE.match(explanation[0])):
                explanation[:] = [text]
            log.write_line("debug", "llm.embedded_log", text=text)


def _start_error(exit_code: int | None, message: str, explanation: list[str]) -> LLMError:
    """Return the error for a failed start."""
    if exit_code in _KILLED_EXIT_CODES:
        return errors.ConnectionFailed(
            "the embedded server was killed while it loaded its model: out of memory, or LLM_LOAD_TIMEOUT has passed",
            hint="Lower EMBEDDED_CONTEXT or EMBEDDED_SLOTS, set EMBEDDED_MODEL to a smaller model, or raise "
            "LLM_LOAD_TIMEOUT",
        )
    if message.startswith(("ImportError", "ModuleNotFoundError", "OSError")):
        hint = "Install the system library that this error names, for example: apt-get install libgomp1"
        return NotConfigured(f"xllamacpp cannot be imported ({printable(message, _MAX_LOG_CHARS)})", hint=hint)
    reason = _ERROR_LINE.sub("", explanation[0]) if explanation else printable(message, _MAX_LOG_CHARS)
    return NotConfigured(  # not retryable, because the next start would fail, too
        f"the embedded server ended before it was ready ({reason or 'without a log'})",
        hint="Check EMBEDDED_MODEL and the free memory. Lower EMBEDDED_CONTEXT or EMBEDDED_SLOTS to use less memory. "
        "The log is at DEBUG (event llm.embedded_log)",
    )


class EmbeddedTransport(httpx.AsyncBaseTransport):
    """The transport of one provider to an embedded server."""

    def __init__(self, server: EmbeddedServer, load_timeout_s: float) -> None:
        self.server = server
        self._load_timeout_s = load_timeout_s
        self._address = ""  # the address that the last request used

    @property
    def server_stopped(self) -> bool:
        """Return whether the server is stopped, or still loads its model."""
        return not self.server.running

    async def ensure_started(self) -> str:
        """Return the address of the server, which is started if necessary. Raise LLMError if the start fails."""
        self.server.users.add(self)
        self._address = await self.server.ensure_started(self._load_timeout_s)
        return self._address

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Start the server if necessary, but not for a GET, because a GET is a probe.

        Raises:
            LLMError: the server cannot be started.
        """
        if request.method == "GET" and self.server_stopped:
            return self._cold_response(request.url.path)
        try:
            return await self._send(request)
        except httpx.ConnectError:  # nothing was sent, so the request can be repeated
            if not await asyncio.to_thread(self.server.wait_ended):
                raise
            return await self._send(request)

    async def aclose(self) -> None:
        """Stop the server if no other transport uses it. Close the idle connections."""
        self.server.users.discard(self)
        if not self.server.users:
            await asyncio.to_thread(self.server.stop)
        if self._address:
            await network.close_idle(origin(self._address))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        address = httpx.URL(await self.ensure_started())
        if request.url.path == llamacpp.SPEC.server.load_path:
            return httpx.Response(200, json={"success": True})  # the start has loaded the model
        request.url = request.url.copy_with(scheme=address.scheme, host=address.host, port=address.port)
        request.headers["host"] = f"{address.host}:{address.port}"
        return await NETWORK.handle_async_request(request)

    def _cold_response(self, path: str) -> httpx.Response:
        """Return llama.cpp's response for a model that is not loaded. Raise LLMError if a POST would fail now."""
        if failure := self.server.failure:
            raise failure
        if path != "/v1/models":
            return httpx.Response(404, headers=llamacpp.HEADERS, json={})
        config, loading = self.server.config, self.server.starting
        models = llamacpp.build_cold_model_list(config.alias, config.context, loading=loading)
        return httpx.Response(200, headers=llamacpp.HEADERS, json=models)


SPEC: Final = replace(
    llamacpp.SPEC,
    name="embedded",
    title="embedded llama.cpp",
    tested_versions="xllamacpp 2026.10",
    api=replace(llamacpp.SPEC.api, default_url=None),
    server=replace(
        llamacpp.SPEC.server,
        compose_service=None,
        down_hint="The next request starts it again; its log is at DEBUG (event llm.embedded_log)",
        start_command=f"`{embedded_model.INSTALL_COMMAND}` and `{embedded_model.PULL_COMMAND} {DEFAULT_MODEL}`",
    ),
    settings=("model", "context", "slots", "threads", "max_concurrency", "capabilities"),
    other_variable_names={},
    max_concurrency=_DEFAULT_SLOTS,
)


class EmbeddedProvider(BaseProvider):
    """llama.cpp's server in a child process, started by the first request or by ``prepare()``.

    Args:
        model: the path of a GGUF, or the name of a model in the store (``learnflow-llm pull``). Default:
            ``EMBEDDED_MODEL``, else "smollm2".
        context: the context length of a request in tokens, at most the model's maximum. Default:
            ``EMBEDDED_CONTEXT``, else 8,192.
        slots: the number of concurrent requests. Default: ``EMBEDDED_SLOTS``, else 2.
        threads: the number of computing threads. Default: ``EMBEDDED_THREADS``, else the cores that this process may
            use.
        base_url, api_key, vision_model: must be None. Only other providers use these arguments.
        times: see ``BaseProvider``.

    Raises:
        NotConfigured: xllamacpp is not installed, the model does not exist, or a value is invalid.
    """

    spec = SPEC
    _transport: EmbeddedTransport | None = None

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        vision_model: str | None = None,
        *,
        context: Count | None = None,
        slots: Count | None = None,
        threads: Count | None = None,
        **times: Unpack[TimeOptions],
    ) -> None:
        check_keywords(EmbeddedProvider.__init__, locals(), NotConfigured, self.spec.name)
        common, own = settings.load(), settings.load_provider(self.spec)
        if base_url or own.base_url or api_key or own.api_key or vision_model or own.vision_model:
            raise NotConfigured(
                "an embedded server has no configurable address, key or vision model",
                provider=self.spec.name,
                hint=f"Unset {', '.join(map(self.spec.variable, ('base_url', 'api_key', 'vision_model')))}. "
                f"For a running server use {self.spec.variable('kind') if self.spec.kind else 'LLM_PROVIDER'}=llamacpp",
            )
        cassettes = active.current(common)
        # With cassettes (files of responses), no default is set: the model is chosen from the response to /v1/models
        key, model = None, model or own.model or (None if cassettes else DEFAULT_MODEL)
        alias = embedded_model.alias_of(model) if model else None
        if not active.is_replay(cassettes):
            path = embedded_model.find_file(self.spec, model or DEFAULT_MODEL)
            embedded_model.require_xllamacpp(self.spec.name)
            context, slots = context or own.context or _DEFAULT_CONTEXT, slots or own.slots or _DEFAULT_SLOTS
            threads = threads or own.threads or embedded_model.available_cores()
            config = ServerConfig(self.spec.name, path, alias or DEFAULT_MODEL, context, slots, threads)
            server = _servers.setdefault(config, EmbeddedServer(config))
            self._transport, key = EmbeddedTransport(server, common.llm_load_timeout), server.key
            times.setdefault("max_concurrency", own.max_concurrency or config.slots)
        host = f"http://{self.spec.name.replace('_', '-')}.localhost/v1"
        super().__init__(host, alias, key, **times)

    @property
    def pid(self) -> int | None:
        """Return the process id of the server; None if no process runs."""
        return self._transport.server.pid if self._transport else None

    @property
    def cassette_folder(self) -> str:
        """Return the name of the folder with llama.cpp's cassettes (recorded responses)."""
        return llamacpp.SPEC.name

    @property
    def address(self) -> str:
        """Return an identifier of the server for circuit breakers. All providers of this server return the same."""
        return f"{self.endpoint.base_url} ({id(self._transport.server)})" if self._transport else super().address

    async def prepare(self) -> None:
        """Import LiteLLM, and start the server. Return when the server is ready. Raise LLMError if the start fails."""
        await asyncio.gather(super().prepare(), self._start_server())

    async def _start_server(self) -> None:
        if self._transport:
            with self._detailed_errors(self.model):
                await self._transport.ensure_started()

    async def aclose(self) -> None:
        """Close the connections. Stop the server if no other provider uses it. A later request starts it again."""
        if self._transport:
            await self._transport.aclose()
