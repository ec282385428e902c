"""The program of the container: serve one GGUF file with llama.cpp's server until SIGTERM.

    serve.py MODEL PORT

It has the parameters of the embedded provider, but the address of a container. ``LLAMACPP_API_KEY`` is required.
"""

from __future__ import annotations

import math
import os
import signal
import sys

import xllamacpp
from embedded_server import server_parameters


def number(name: str, default: int) -> int:
    """Return the value of a variable. Exit if it is not a positive number."""
    value = os.environ.get(name) or str(default)
    if not (value.isdecimal() and int(value)):
        sys.exit(f"{name} is {value!r}. Set it to a whole number above 0, or unset it.")
    return int(value)


def main(model: str, port: str) -> None:
    """Serve until SIGTERM. Exit at once if a variable is missing or invalid."""
    key = os.environ.get("LLAMACPP_API_KEY", "").strip()
    if not key:
        sys.exit("LLAMACPP_API_KEY is missing, and the server would answer everyone. Set it to a long random text.")
    slots = number("LLAMACPP_PARALLEL", 2)
    config = {
        "model": model,
        "alias": os.environ.get("LLAMACPP_MODEL") or "smollm2",
        "slots": slots,
        "context": number("LLAMACPP_CTX", 8192) // slots,
        "threads": math.ceil(float(os.environ.get("LLAMACPP_CPUS") or 0)) or len(os.sched_getaffinity(0)),
        "key": key,
    }
    parameters = server_parameters(xllamacpp, config)
    parameters.hostnames, parameters.port = ["0.0.0.0"], int(port)  # noqa: S104  # the container's own network
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before llama.cpp starts threads, which inherit it
    server = xllamacpp.Server(parameters)
    signal.sigwait(signals)
    del server  # before, it would stop
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
