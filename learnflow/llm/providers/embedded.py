"""llama.cpp's server in a child process of this one (xllamacpp): a real model without a server to install.

From its start on it is the ``llamacpp`` provider at an address on loopback that needs a random key. Before its start
its transport answers as llama.cpp's router does for a model that is not loaded: the rest of the package knows that.

Source of the calls: xllamacpp 2026.10.11549 and 2026.5.9093, run.
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
from dataclasses import asdict, dataclass, replace
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
from ..process import kept
from ..replay import active
from ..transport import pool
from ..transport.client import NETWORK
from ..transport.endpoint import origin
from ..transport.untrusted import json_object, printable
from . import llamacpp
from .embedded_model import (
    DOWNLOAD,
    EXTRA,
    alias_of,
    available_cores,
    checked_gguf,
    model_file,
    require_xllamacpp,
)

_DEFAULT_SLOTS: Final = 2
_DEFAULT_CONTEXT: Final = 8192  # tokens of a request at the most, unless the operator wants more
_RESTART_PAUSE_S: Final = 10.0  # between two starts, if the server ended before it was ready
_MAX_STARTS, _STARTS_WITHIN_S = 3, 30.0  # of a server that is ready each time, and dies
_MAX_LOAD_S: Final = 30 * 24 * 3600.0  # a timer cannot count more than the system's time can hold
_MAX_STDOUT_LINES: Final = 100  # before the program's own: whatever is imported with Python may print
_STOP_S: Final = 2.0  # for a server that is told to stop
_MAX_LOG_LINES: Final = 2000  # of one server at DEBUG; the rest is read and dropped
_MAX_LOG_CHARS: Final = 300
_MAX_REPORT_BYTES: Final = 4096
_ERROR_LINE: Final = re.compile(r"[\d.]+ E ")  # 0.00.010.066 E gguf_init_from_reader: …
_MAX_TOKENS: Final = 2**31 - 1  # of all slots together: a C int
# What llama.cpp takes (LLAMA_MAX_SEQ, GGML_MAX_N_THREADS; xllamacpp 2026.10).
_MOST: Final = {"context": _MAX_TOKENS, "slots": 256, "threads": 512}
_PROGRAM: Final = Path(__file__).with_name("embedded_server.py")
_KILLED: Final = (-9, 137)  # exit codes of a process that the kernel killed


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What distinguishes one server of this process from another.

    Attributes:
        provider: the name of the provider in ``LLM_PROVIDER``.
        model: the GGUF.
        alias: the name of the model in requests.
        context: tokens of each slot.
        slots: requests that are answered at once.
        threads: for the computation.
    """

    provider: str
    model: Path
    alias: str
    context: int
    slots: int
    threads: int


class EmbeddedServer:
    """One llama.cpp server in a child process, shared by all providers of its configuration in this process.

    Attributes:
        key: the API key that the server needs; it reaches the child through a pipe.
        users: the transports that have sent to it and are not closed.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.key = secrets.token_urlsafe(32)
        self.users: WeakSet[EmbeddedTransport] = WeakSet()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: Future[str] | None = None
        self._spawned: subprocess.Popen[bytes] | None = None  # the last one, also if it was not recorded yet
        self._failed_at: float | None = None
        self._started_at: deque[float] = deque(maxlen=_MAX_STARTS)

    def __deepcopy__(self, _: object) -> EmbeddedServer:
        """Return the server itself: there is one process."""
        return self

    @property
    def running(self) -> bool:
        """Whether the server answers at its address, as far as its process tells."""
        ready = self._ready
        return self._alive() and ready is not None and ready.done() and ready.exception() is None

    @property
    def starting(self) -> bool:
        """Whether the server loads its model."""
        return self._ready is not None and not self._ready.done()

    @property
    def failure(self) -> BaseException | None:
        """Why the last start failed, until the server may be started again."""
        recent = self._failed_at is not None and monotonic() - self._failed_at < _RESTART_PAUSE_S
        if recent and self._ready and self._ready.done():
            return self._ready.exception()
        starts = self._started_at
        if len(starts) == _MAX_STARTS and monotonic() - starts[0] < _STARTS_WITHIN_S and not self._alive():
            what = f"the embedded server ended {_MAX_STARTS} times within {_STARTS_WITHIN_S:g} s"
            return errors.ConnectionFailed(what, hint=SPEC.server.down or "")
        return None

    @property
    def pid(self) -> int | None:
        """The process of the server, None if it does not run."""
        return self._process.pid if self._process and self._alive() else None

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def address(self, within: float) -> str:
        """Return the address of the running server; start the server if it does not run.

        Args:
            within: seconds for the start.

        Raises:
            NotConfigured: the server ended before it was ready, by itself.
            ConnectionFailed: it was killed or stopped before, or it died several times.
        """
        with self._lock:
            failure = None if self.running or self.starting else self.failure
            if isinstance(failure, LLMError):
                raise copied(failure)
            if not (self.running or self.starting):
                self._started_at.append(monotonic())
                self._ready = Future()
                self._ready.set_running_or_notify_cancel()  # no caller that leaves cancels the start
                threading.Thread(target=self._start, args=(self._ready, within), daemon=True).start()
            ready = self._ready
        assert ready is not None  # noqa: S101  # set above
        try:
            return await asyncio.shield(asyncio.wrap_future(ready))
        except LLMError as error:
            raise copied(error) from None

    def _start(self, ready: Future[str], within: float) -> None:
        try:
            address = self._started(ready, within)
        except Exception as error:  # noqa: BLE001  # nothing raw leaves
            what = f"the embedded server could not be started ({type(error).__name__})"
            self._failed_at = monotonic()
            ready.set_exception(error if isinstance(error, LLMError) else errors.ConnectionFailed(what))
        else:
            self._failed_at = None
            ready.set_result(address)

    def _started(self, ready: Future[str], within: float) -> str:
        """Start the process and return its address once it is ready."""
        # -P: the folder of the program has modules named like libraries
        command = [sys.executable, "-P", str(_PROGRAM)]
        pipe = subprocess.PIPE
        with _spawning:
            process = self._spawned = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)  # noqa: S603  # ours
        with self._lock:
            before, stopped = self._process, self._ready is not ready
            self._process = None if stopped else process
        if before and before.stdin:  # it died
            before.stdin.close()
        if stopped:
            self._end(process)
            raise _stopped()
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  # they are pipes
        log_lines = list[str]()
        reader = threading.Thread(target=_read_log, args=(process.stderr, log_lines), daemon=True)
        reader.start()
        late = threading.Timer(min(within, _MAX_LOAD_S), process.kill)
        late.start()
        try:
            config = {**asdict(self.config), "model": str(self.config.model), "key": self.key}
            process.stdin.write(json.dumps(config).encode() + b"\n")
            said = _report(process.stdout)
        except OSError:
            said = {}
        finally:
            late.cancel()
            process.stdout.close()
        if address := said.get("address"):
            return str(address)
        self._end(process)
        reader.join(_STOP_S)
        if self._ready is not ready:
            raise _stopped()
        raise _start_failure(process.returncode, str(said.get("error", "")), log_lines)

    def ended(self) -> bool:
        """Return whether the process ends within a moment: it refuses connections before it can be waited for."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        return not self._alive()

    def leave(self, transport: EmbeddedTransport) -> str | None:
        """Stop the server if no other transport uses it. Return the address that it had, None if it still runs."""
        self.users.discard(transport)
        if self.users:
            return None
        address = self._ready.result() if self.running and self._ready else None
        self.stop()
        return address

    def stop(self) -> None:
        """Stop the server and wait for its end."""
        with self._lock:
            process, self._process, self._ready = self._process, None, None
        if process is not None:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()  # which ends it
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """Drop the parent's server in a forked child, without stopping it and without keeping it alive."""
        for process in filter(None, {self._process, self._spawned}):
            for pipe in filter(None, (process.stdin, process.stderr)):
                pipe.close()
            process.returncode = 0  # it is no child of this process: nothing is to be waited for
        self._process = self._spawned = self._ready = self._failed_at = None
        self._lock, self.users = threading.Lock(), WeakSet(self.users)
        self._started_at.clear()


_servers: Final = kept("embedded servers", dict[ServerConfig, EmbeddedServer]())
_spawning: Final = threading.Lock()  # held over a fork, so that no child inherits a pipe that nobody can close


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
    """Read llama.cpp's log until its end: the lines go to DEBUG. Keep the line that explains a failed start.

    It is the first error, because the following ones only repeat that the model was not loaded; else the last line.
    """
    for number, raw in enumerate(iter(lambda: pipe.readline(_MAX_LOG_CHARS), b"")):
        text = printable(raw.decode("utf-8", "replace").strip(), _MAX_LOG_CHARS)
        if text and not (cause and _ERROR_LINE.match(cause[0])):
            cause[:] = [text]
        if number < _MAX_LOG_LINES:
            log.line("debug", "llm.embedded_log", text=text)
    pipe.close()


def _report(stdout: IO[bytes]) -> dict[str, Any]:
    """Return what the program reports: the first line that is a JSON object; nothing if it ended before."""
    for _ in range(_MAX_STDOUT_LINES):
        line = stdout.readline(_MAX_REPORT_BYTES)
        if not line:
            break
        if line.startswith(b"{") and (report := json_object(line)):
            return report
    return {}


def copied(error: LLMError) -> LLMError:
    """Return a copy of an error of a start, which many requests may raise."""
    return type(error)(error.what, hint=error.hint)


def _stopped() -> LLMError:
    return errors.ConnectionFailed("the embedded server was stopped while it started", hint="Ask again: it starts anew")


def _start_failure(code: int | None, message: str, log_lines: list[str]) -> LLMError:
    """Return the error for a server that ended before it was ready."""
    line = _ERROR_LINE.sub("", log_lines[0]) if log_lines else printable(message, _MAX_LOG_CHARS)
    if code in _KILLED:
        return errors.ConnectionFailed(
            "the embedded server was killed while it loaded its model: out of memory, or LLM_LOAD_TIMEOUT is over",
            hint="Set EMBEDDED_CONTEXT or EMBEDDED_SLOTS lower, EMBEDDED_MODEL to a smaller model, or raise "
            "LLM_LOAD_TIMEOUT",
        )
    return NotConfigured(  # the same file and the same memory: it would end again
        f"the embedded server ended before it was ready ({line or 'without a log'})",
        hint="Check EMBEDDED_MODEL and the free memory: EMBEDDED_CONTEXT and EMBEDDED_SLOTS decide how much it needs. "
        "The log is at DEBUG (event llm.embedded_log)",
    )


class EmbeddedTransport(httpx.AsyncBaseTransport):
    """Send requests to an embedded server, which the first request starts."""

    def __init__(self, server: EmbeddedServer, trained: int | None, load_timeout: float) -> None:
        self.server = server
        self._trained = trained
        self._load_timeout = load_timeout

    @property
    def stopped(self) -> bool:
        """Whether the next request has to wait for a start."""
        return not self.server.running

    async def started(self) -> str:
        """Return the address of the server, which is started if it does not run. Raises a ConnectionFailed."""
        self.server.users.add(self)
        return await self.server.address(self._load_timeout)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, or answer a page of a server that does not run. Raises an LLMError."""
        if request.method == "GET" and self.stopped:
            return self._page(request.url.path)
        try:
            return await self._sent(request)
        except httpx.ConnectError:  # nothing was sent
            if not await asyncio.to_thread(self.server.ended):
                raise
            return await self._sent(request)

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        address = httpx.URL(await self.started())
        if request.url.path == llamacpp.SPEC.server.load_path:
            return httpx.Response(200, json={"success": True})
        request.url = request.url.copy_with(scheme=address.scheme, host=address.host, port=address.port)
        request.headers["host"] = f"{address.host}:{address.port}"
        request.extensions = {**request.extensions, "direct": True}
        return await NETWORK.handle_async_request(request)

    def _page(self, path: str) -> httpx.Response:
        """Return what llama.cpp's router returns for a model that is not loaded."""
        failure = self.server.failure
        if isinstance(failure, LLMError):
            raise copied(failure)
        if path != "/v1/models":
            return httpx.Response(404, headers=llamacpp.HEADERS, json={})
        config, loading = self.server.config, self.server.starting
        models = llamacpp.unloaded(config.alias, self._trained, config.context, loading=loading)
        return httpx.Response(200, headers=llamacpp.HEADERS, json=models)


SPEC: Final = replace(
    llamacpp.SPEC,
    name="embedded",
    title="embedded llama.cpp",
    seen="xllamacpp 2026.10",
    api=replace(llamacpp.SPEC.api, default_url=None),
    server=replace(
        llamacpp.SPEC.server,
        service=None,
        down="The next request starts it again; its log is at DEBUG (event llm.embedded_log)",
        start=f"`{EXTRA}` and `{DOWNLOAD} {DEFAULT_MODEL}`",
    ),
    settings=("model", "context", "slots", "threads", "max_concurrency", "capabilities"),
    also={},
    max_concurrency=_DEFAULT_SLOTS,
)


class EmbeddedProvider(BaseProvider):
    """llama.cpp's server in a child process, started by the first request or by ``prepare()``.

    Args:
        model: the path of a GGUF, or the name of a model in the store (``learnflow-llm pull``); ``EMBEDDED_MODEL``,
            else "smollm2".
        context: tokens of each request, prompt and answer; ``EMBEDDED_CONTEXT``, else what the model was trained for,
            at most 8,192.
        slots: requests at once; ``EMBEDDED_SLOTS``, else 2.
        threads: ``EMBEDDED_THREADS``, else the cores that this process may use.
        base_url, api_key, vision_model: not supported; they are here because every provider has them.
        times: see ``BaseProvider``.

    Raises:
        NotConfigured: xllamacpp is not installed, or there is no such model.
    """

    spec = SPEC

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
                "an embedded server has no address, no key and no second model of its own",
                provider=self.spec.name,
                hint=f"Unset {', '.join(map(self.spec.variable, ('base_url', 'api_key', 'vision_model')))}. "
                f"For a server that runs already use {self.spec.variable('kind') if self.spec.kind else 'LLM_PROVIDER'}"
                "=llamacpp",
            )
        sizes = {"context": context, "slots": slots, "threads": threads}
        numbers = {name: getattr(own, name) if value is None else value for name, value in sizes.items()}
        for name, value in numbers.items():
            if value is not None and (type(value) is not int or not 1 <= value <= _MOST[name]):
                what = f"{name}= must be a whole number from 1 to {_MOST[name]}"
                raise NotConfigured(what, provider=self.spec.name, hint=f"Change {self.spec.variable(name)}")
        replay = active.current(common.llm_replay, common.llm_replay_mode)
        self._transport: EmbeddedTransport | None = None
        wanted, key = model or own.model, None
        # Cassettes are of any model: if none is named, the page that lists it is one of them.
        alias = alias_of(wanted) if wanted else None if replay else DEFAULT_MODEL
        if not active.plays(replay):
            config, trained = self._config(wanted or DEFAULT_MODEL, **numbers)
            server = _servers.setdefault(config, EmbeddedServer(config))
            self._transport, key = EmbeddedTransport(server, trained, common.llm_load_timeout), server.key
            times.setdefault("max_concurrency", own.max_concurrency or config.slots)
        host = f"http://{self.spec.name.replace('_', '-')}.localhost/v1"
        super().__init__(host, alias, key, **times)

    def _config(
        self, model: str, context: int | None, slots: int | None, threads: int | None
    ) -> tuple[ServerConfig, int | None]:
        """Return the configuration of the server, and the context length that the model was trained for, if known."""
        path = model_file(self.spec.name, self.spec.variable("model"), model)
        trained = checked_gguf(path, self.spec.name, self.spec.variable("model"))
        require_xllamacpp(self.spec.name)
        config = ServerConfig(
            provider=self.spec.name,
            model=path,
            alias=alias_of(model),
            context=context or min(trained or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT),
            slots=slots or _DEFAULT_SLOTS,
            threads=threads or available_cores(),
        )
        if config.context * config.slots > _MAX_TOKENS:
            what = f"context= times slots= is {config.context * config.slots} tokens"
            raise NotConfigured(what, provider=self.spec.name, hint=f"At most {_MAX_TOKENS} are possible")
        return config, trained

    def _network(self) -> EmbeddedTransport | None:
        """Send to the child process; under LLM_REPLAY there is none."""
        return self._transport

    @property
    def pid(self) -> int | None:
        """The process of its server, None if it does not run."""
        return self._transport.server.pid if self._transport else None

    @property
    def cassettes_of(self) -> str:
        """The name under which its answers are recorded: it is llama.cpp."""
        return llamacpp.SPEC.name

    @property
    def address(self) -> str:
        """Where its breaker is kept: providers of one server fail together."""
        return f"{self.endpoint.base} ({id(self._transport.server)})" if self._transport else super().address

    async def prepare(self) -> None:
        """Import LiteLLM and start the server; return when the server is ready. Raises an LLMError."""
        await asyncio.gather(super().prepare(), self._started())

    async def _started(self) -> None:
        if self._transport:
            await self._explain_errors(self._transport.started(), self.model)

    async def aclose(self) -> None:
        """Close its connections, and stop the server if no other provider uses it; a later request starts it again."""
        transport = self._transport
        address = await asyncio.to_thread(transport.server.leave, transport) if transport else None
        if address:
            await pool.close_idle(origin(address))
