"""The program of the child process: serve one GGUF file with llama.cpp's server until the parent process ends.

The parent starts this file by its path. The file imports no other module of the package, because an application may
include the package under another name.

    stdin   one JSON line: model, alias, context (tokens per slot), slots (concurrent requests), threads, key. The
            server stops when stdin is closed.
    stdout  one JSON line with ``address`` when the server is ready, or with ``error`` if it could not be started.
    stderr  the log of llama.cpp.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any


def _stop_with_parent() -> None:
    """End this process when stdin is closed. The system closes stdin even if the parent is killed."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # at once, even if llama.cpp's threads are busy


def server_parameters(xllamacpp: Any, config: dict[str, Any]) -> Any:
    """Return llama.cpp's parameters for a configuration."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = config["model"]
    parameters.model_alias = {config["alias"]}
    parameters.n_parallel = config["slots"]
    parameters.n_ctx = config["context"] * config["slots"]  # llama.cpp divides it among the slots
    parameters.cpuparams.n_threads = config["threads"]
    parameters.cpuparams.poll = 0  # idle threads sleep, so that two servers can share the cores
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # the kernel chooses
    parameters.api_keys = [config["key"]]
    parameters.use_jinja = True
    parameters.endpoint_slots = True
    # A context that does not fit in memory must be an error. llama.cpp's default is to serve a smaller one silently.
    parameters.fit_params = False
    if hasattr(parameters, "ui"):  # not in xllamacpp 2026.5
        parameters.ui = False
    return parameters


def main() -> None:
    """Serve, and report the address or the error on stdout."""
    # A terminal and systemd send signals to parent and child. The child ignores them, so that the parent can finish
    # answers.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    config = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    report_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout now print to stderr
    try:
        import xllamacpp  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415

        server = xllamacpp.Server(server_parameters(xllamacpp, config))
        message = {"address": server.listening_address}
    except Exception as error:  # noqa: BLE001  # the parent reports it
        message = {"error": f"{type(error).__name__}: {error}"}
    json.dump(message, report_file)
    report_file.write("\n")
    report_file.close()
    if "address" in message:
        threading.Event().wait()
    os._exit(1)


if __name__ == "__main__":
    main()
