"""The embedded provider: llama.cpp's server in a child process (xllamacpp).

After its start the server is like any llama.cpp server on loopback, with a random key. Before its start the transport
returns the pages of a llama.cpp router with a cold model, which the rest of the package handles.

Tested with xllamacpp 2026.10.11549 and 2026.5.9093.
"""

from __future__ import annotations

import asyncio
import atexit
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final, Unpack
from weakref import WeakSet

import httpx

from .. import errors, log, settings
from ..adapter.provider import BaseProvider
from ..base import TimeOptions
from ..errors import LLMError, NotConfigured
from ..model_store import DEFAULT_MODEL
from ..process import register
from ..replay import active
from ..transport import pool
from ..transport.client import NETWORK
from ..transport.endpoint import origin
from ..transport.untrusted import json_object, printable
from . import embedded_model, llamacpp

_DEFAULT_SLOTS: Final = 2
_DEFAULT_CONTEXT: Final = 8192  # tokens of a slot, unless configured
_RESTART_PAUSE_S: Final = 10.0  # after a failed start
_MAX_STARTS, _STARTS_WITHIN_S = 3, 30.0  # of a server that becomes ready, and dies
_MAX_LOAD_S: Final = 30 * 24 * 3600.0  # a timer overflows above the system's time
_MAX_STDOUT_LINES: Final = 100  # before the report: modules that Python imports at start may print
_STOP_S: Final = 2.0  # for the end of the process; then it is killed
_MAX_LOG_LINES: Final = 2000  # of one server at DEBUG; further lines are dropped
_MAX_LOG_CHARS: Final = 300
_MAX_REPORT_BYTES: Final = 4096
_ERROR_LINE: Final = re.compile(r"[\d.]+ E ")  # 0.00.010.066 E gguf_init_from_reader: …
_MAX_TOKENS: Final = 2**31 - 1  # of all slots together: a C int
# The limits of llama.cpp (LLAMA_MAX_SEQ, GGML_MAX_N_THREADS; xllamacpp 2026.10).
_MAX_VALUES: Final = {"context": _MAX_TOKENS, "slots": 256, "threads": 512}
_PROGRAM: Final = Path(__file__).with_name("embedded_server.py")
_KILLED: Final = (-9, 137)  # exit codes after SIGKILL


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The configuration of a server. Providers with the same configuration share one server.

    Attributes:
        provider: the name of the provider in ``LLM_PROVIDER``.
        model: the path of the GGUF.
        alias: the name of the model in requests.
        context: the context length of a slot, in tokens.
        slots: the number of requests that are answered at once.
        threads: the number of threads for the computation.
        trained: the context length that the model was trained for; None if unknown.
    """

    provider: str
    model: Path
    alias: str
    context: int
    slots: int
    threads: int
    trained: int | None = field(compare=False)


class EmbeddedServer:
    """A llama.cpp server in a child process. All providers with its configuration share it.

    Attributes:
        config: its configuration.
        key: the API key of the server. The child reads it from a pipe.
        users: the open transports that have sent a request to it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.key = secrets.token_urlsafe(32)
        self.users: WeakSet[EmbeddedTransport] = WeakSet()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: Future[str] | None = None
        self._failure: tuple[float, LLMError] | None = None  # of the last start, with its time
        self._started_at: deque[float] = deque(maxlen=_MAX_STARTS)

    def __deepcopy__(self, _: object) -> EmbeddedServer:
        """Return the server itself, because it has one process."""
        return self

    @property
    def running(self) -> bool:
        """Return whether the server is ready and its process runs."""
        return self._alive() and not self.starting

    @property
    def starting(self) -> bool:
        """Return whether the server is loading its model."""
        return self._ready is not None and not self._ready.done()

    @property
    def failure(self) -> LLMError | None:
        """Return the error of a request while the server must not be started again; None if it may be started."""
        if self._failure and monotonic() - self._failure[0] < _RESTART_PAUSE_S:
            return copy_of(self._failure[1])
        starts = self._started_at
        if len(starts) == _MAX_STARTS and monotonic() - starts[0] < _STARTS_WITHIN_S and not self._alive():
            what = f"the embedded server ended {_MAX_STARTS} times within {_STARTS_WITHIN_S:g} s"
            return errors.ConnectionFailed(what, hint=SPEC.server.down_hint or "")
        return None

    @property
    def pid(self) -> int | None:
        """Return the process id of the server; None if it does not run."""
        return self._process.pid if self._process and self._alive() else None

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def address(self, within: float) -> str:
        """Return the address of the server. Start the server if it does not run.

        Args:
            within: the timeout of the start, in seconds.

        Raises:
            NotConfigured: the server ended before it was ready.
            ConnectionFailed: the server was killed or stopped during the start, or it died several times.
        """
        with self._lock:
            if not (self.running or self.starting):
                if failure := self.failure:
                    raise failure
                self._started_at.append(monotonic())
                self._ready = Future()
                self._ready.set_running_or_notify_cancel()  # a cancelled caller does not cancel the start
                threading.Thread(target=self._start, args=(self._ready, within), daemon=True).start()
            ready = self._ready
        assert ready is not None  # noqa: S101  # set above
        try:
            return await asyncio.shield(asyncio.wrap_future(ready))
        except LLMError as error:
            raise copy_of(error) from None

    def _start(self, ready: Future[str], within: float) -> None:
        try:
            address = self._spawn(ready, within)
        except Exception as error:  # noqa: BLE001  # requests raise only LLMError
            what = f"the embedded server could not be started ({type(error).__name__})"
            failure = error if isinstance(error, LLMError) else errors.ConnectionFailed(what)
            self._failure = (monotonic(), failure) if self._ready is ready else None
            ready.set_exception(failure)
        else:
            self._failure = None
            ready.set_result(address)

    def _spawn(self, ready: Future[str], within: float) -> str:
        """Start the process and return its address once it is ready."""
        # -P, because modules in the folder of the program have the names of libraries
        command = [sys.executable, "-P", str(_PROGRAM)]
        pipe = subprocess.PIPE
        with _spawning, self._lock:
            if self._ready is not ready:
                raise _stopped_error()
            if self._process and self._process.stdin:  # it died
                self._process.stdin.close()
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)  # noqa: S603  # a constant command
            self._process = process
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  # they are pipes
        log_lines = list[str]()
        reader = threading.Thread(target=_read_log, args=(process.stderr, log_lines), daemon=True)
        reader.start()
        timer = threading.Timer(min(within, _MAX_LOAD_S), process.kill)
        timer.start()
        try:
            config = {**asdict(self.config), "model": str(self.config.model), "key": self.key}
            process.stdin.write(json.dumps(config).encode() + b"\n")
            report = _report(process.stdout)
        except OSError:
            report = {}
        finally:
            timer.cancel()
            process.stdout.close()
        if address := report.get("address"):
            return str(address)
        self._end(process)
        reader.join(_STOP_S)
        if self._ready is not ready:
            raise _stopped_error()
        raise _start_error(process.returncode, str(report.get("error", "")), log_lines)

    def ended(self) -> bool:
        """Return whether the process ends soon: a dying process refuses connections before it has ended."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        return not self._alive()

    def leave(self, transport: EmbeddedTransport) -> str | None:
        """Stop the server if no other transport uses it. Return its former address; None if it still runs."""
        self.users.discard(transport)
        if self.users:
            return None
        address = self._ready.result() if self._ready and self.running else None
        self.stop()
        return address

    def stop(self) -> None:
        """Stop the server, and wait until it has ended."""
        with self._lock:
            process, self._process, self._ready, self._failure = self._process, None, None, None
        if process is not None:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()  # the process ends itself
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """Drop the parent's server in a forked child. The server runs on, and ends with the parent."""
        if process := self._process:
            for pipe in filter(None, (process.stdin, process.stderr)):
                pipe.close()
            process.returncode = 0  # not a child of this process, so that nothing can wait for it
        self._process = self._ready = self._failure = None
        self._lock, self.users = threading.Lock(), WeakSet(self.users)
        self._started_at.clear()


_servers: Final = register("embedded servers", dict[ServerConfig, EmbeddedServer]())
# Held during a fork, so that a child does not inherit a pipe that it cannot close.
_spawning: Final = threading.Lock()


def _after_fork() -> None:
    _spawning.release()
    for server in _servers.values():
        server.forget()


@atexit.register
def _stop_all() -> None:
    for server in _servers.values():
        server.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_spawning.acquire, after_in_parent=_spawning.release, after_in_child=_after_fork)


def _read_log(pipe: IO[bytes], cause: list[str]) -> None:
    """Log llama.cpp's lines at DEBUG, and store in ``cause`` the line that explains a failed start.

    It is the first error, because later ones only repeat that the model was not loaded. Without an error it is the last
    line.
    """
    for number, raw in enumerate(iter(lambda: pipe.readline(_MAX_LOG_CHARS), b"")):
        text = printable(raw.decode("utf-8", "replace").strip(), _MAX_LOG_CHARS)
        if text and not (cause and _ERROR_LINE.match(cause[0])):
            cause[:] = [text]
        if number < _MAX_LOG_LINES:
            log.line("debug", "llm.embedded_log", text=text)
    pipe.close()


def _report(stdout: IO[bytes]) -> dict[str, Any]:
    """Return the report of the program: its first line with a JSON object; empty if it ended before."""
    for _ in range(_MAX_STDOUT_LINES):
        line = stdout.readline(_MAX_REPORT_BYTES)
        if not line:
            break
        if line.startswith(b"{") and (report := json_object(line)):
            return report
    return {}


def copy_of(error: LLMError) -> LLMError:
    """Return a copy of the error of a start, because several requests raise it."""
    return type(error)(error.what, hint=error.hint)


def _stopped_error() -> LLMError:
    return errors.ConnectionFailed(
        "the embedded server was stopped while it started", hint="Retry: the next request starts it again"
    )


def _start_error(code: int | None, message: str, log_lines: list[str]) -> LLMError:
    """Return the error of a server that ended before it was ready."""
    line = _ERROR_LINE.sub("", log_lines[0]) if log_lines else printable(message, _MAX_LOG_CHARS)
    if code in _KILLED:
        return errors.ConnectionFailed(
            "the embedded server was killed while it loaded its model: out of memory, or LLM_LOAD_TIMEOUT is over",
            hint="Lower EMBEDDED_CONTEXT or EMBEDDED_SLOTS, set EMBEDDED_MODEL to a smaller model, or raise "
            "LLM_LOAD_TIMEOUT",
        )
    return NotConfigured(  # not retryable: it would end again
        f"the embedded server ended before it was ready ({line or 'without a log'})",
        hint="Check EMBEDDED_MODEL and the free memory, which EMBEDDED_CONTEXT and EMBEDDED_SLOTS require. "
        "The log is at DEBUG (event llm.embedded_log)",
    )


class EmbeddedTransport(httpx.AsyncBaseTransport):
    """The transport to an embedded server, which the first request starts."""

    def __init__(self, server: EmbeddedServer, load_timeout: float) -> None:
        self.server = server
        self._load_timeout = load_timeout

    @property
    def stopped(self) -> bool:
        """Return whether the next request waits for a start."""
        return not self.server.running

    async def address(self) -> str:
        """Return the address of the server. Start it if it does not run. Raise LLMError if that fails."""
        self.server.users.add(self)
        return await self.server.address(self._load_timeout)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, or return a page for a server that does not run. Raise LLMError if the start fails."""
        if request.method == "GET" and self.stopped:
            return self._page(request.url.path)
        try:
            return await self._send(request)
        except httpx.ConnectError:  # nothing was sent, so that the request can be repeated
            if not await asyncio.to_thread(self.server.ended):
                raise
            return await self._send(request)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        address = httpx.URL(await self.address())
        if request.url.path == llamacpp.SPEC.server.load_path:
            return httpx.Response(200, json={"success": True})
        request.url = request.url.copy_with(scheme=address.scheme, host=address.host, port=address.port)
        request.headers["host"] = f"{address.host}:{address.port}"
        request.extensions = {**request.extensions, "direct": True}
        return await NETWORK.handle_async_request(request)

    def _page(self, path: str) -> httpx.Response:
        """Return the page of a llama.cpp router with a cold model."""
        if failure := self.server.failure:
            raise failure
        if path != "/v1/models":
            return httpx.Response(404, headers=llamacpp.HEADERS, json={})
        config, loading = self.server.config, self.server.starting
        models = llamacpp.cold_model_list(config.alias, config.trained, config.context, loading=loading)
        return httpx.Response(200, headers=llamacpp.HEADERS, json=models)


SPEC: Final = replace(
    llamacpp.SPEC,
    name="embedded",
    title="embedded llama.cpp",
    tested_versions="xllamacpp 2026.10",
    api=replace(llamacpp.SPEC.api, default_url=None),
    server=replace(
        llamacpp.SPEC.server,
        service=None,
        down_hint="The next request starts it again; its log is at DEBUG (event llm.embedded_log)",
        start_command=f"`{embedded_model.EXTRA}` and `{embedded_model.DOWNLOAD} {DEFAULT_MODEL}`",
    ),
    settings=("model", "context", "slots", "threads", "max_concurrency", "capabilities"),
    other_spellings={},
    max_concurrency=_DEFAULT_SLOTS,
)


class EmbeddedProvider(BaseProvider):
    """llama.cpp's server in a child process, started by the first request or by ``prepare()``.

    Args:
        model: the path of a GGUF, or the name of a model in the store (``learnflow-llm pull``). Default:
            ``EMBEDDED_MODEL``, else "smollm2".
        context: the tokens of a request, prompt and answer. Default: ``EMBEDDED_CONTEXT``, else the context length of
            the training, up to 8,192.
        slots: the number of requests at once. Default: ``EMBEDDED_SLOTS``, else 2.
        threads: the number of threads. Default: ``EMBEDDED_THREADS``, else the cores that this process may use.
        base_url, api_key, vision_model: not supported. Every provider has these arguments.
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
        context: int | None = None,
        slots: int | None = None,
        threads: int | None = None,
        **times: Unpack[TimeOptions],
    ) -> None:
        common, own = settings.load(), settings.load_provider(self.spec)
        given = base_url or own.base_url or api_key or own.api_key or vision_model or own.vision_model
        if given:
            raise NotConfigured(
                "an embedded server has no configurable address, key or second model",
                provider=self.spec.name,
                hint=f"Unset {', '.join(map(self.spec.variable, ('base_url', 'api_key', 'vision_model')))}. "
                f"For a running server use {self.spec.variable('kind') if self.spec.kind else 'LLM_PROVIDER'}=llamacpp",
            )
        sizes = {"context": context, "slots": slots, "threads": threads}
        numbers = {name: getattr(own, name) if value is None else value for name, value in sizes.items()}
        for name, value in numbers.items():
            if value is not None and (type(value) is not int or not 1 <= value <= _MAX_VALUES[name]):
                what = f"{name}= must be an integer from 1 to {_MAX_VALUES[name]}"
                raise NotConfigured(what, provider=self.spec.name, hint=f"Change {self.spec.variable(name)}")
        replay = active.current(common.llm_replay, common.llm_replay_mode)
        requested, key = model or own.model, None
        # Cassettes may have any model: if none is configured, their list of models names it.
        alias = embedded_model.alias_of(requested) if requested else None if replay else DEFAULT_MODEL
        if not active.plays(replay):
            config = self._config(requested or DEFAULT_MODEL, **numbers)
            server = _servers.setdefault(config, EmbeddedServer(config))
            self._transport, key = EmbeddedTransport(server, common.llm_load_timeout), server.key
            times.setdefault("max_concurrency", own.max_concurrency or config.slots)
        host = f"http://{self.spec.name.replace('_', '-')}.localhost/v1"
        super().__init__(host, alias, key, **times)

    def _config(self, model: str, context: int | None, slots: int | None, threads: int | None) -> ServerConfig:
        """Return the configuration of the server. Raise NotConfigured if it cannot be started."""
        path, trained = embedded_model.find(self.spec, model)
        embedded_model.require_xllamacpp(self.spec.name)
        config = ServerConfig(
            provider=self.spec.name,
            model=path,
            alias=embedded_model.alias_of(model),
            context=context or min(trained or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT),
            slots=slots or _DEFAULT_SLOTS,
            threads=threads or embedded_model.available_cores(),
            trained=trained,
        )
        if config.context * config.slots > _MAX_TOKENS:
            what = f"context= times slots= is {config.context * config.slots} tokens"
            raise NotConfigured(what, provider=self.spec.name, hint=f"Set at most {_MAX_TOKENS}")
        return config

    @property
    def pid(self) -> int | None:
        """Return the process id of the server; None if it does not run."""
        return self._transport.server.pid if self._transport else None

    @property
    def cassettes_of(self) -> str:
        """Return the name of its cassettes, which are those of llama.cpp."""
        return llamacpp.SPEC.name

    @property
    def address(self) -> str:
        """Return the key of its circuit breaker, which all providers of its server share."""
        return f"{self.endpoint.base} ({id(self._transport.server)})" if self._transport else super().address

    async def prepare(self) -> None:
        """Import LiteLLM, and start the server. Return when it is ready. Raise LLMError if the start fails."""
        await asyncio.gather(super().prepare(), self._start_server())

    async def _start_server(self) -> None:
        if self._transport:
            with self._explain_errors(self.model):
                await self._transport.address()

    async def aclose(self) -> None:
        """Stop the server if no other provider uses it, and close its connections. The next request starts it again."""
        transport = self._transport
        address = await asyncio.to_thread(transport.server.leave, transport) if transport else None
        if address:
            await pool.close_idle(origin(address))
