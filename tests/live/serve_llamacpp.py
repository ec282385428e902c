"""Serve a GGUF with llama.cpp at a port of loopback until it is killed: ``serve_llamacpp.py PORT [MODEL [CONTEXT]]``.

The default is the tiny model. The child process of the provider ``embedded`` cannot be used: it chooses its own port,
and a server that starts again must be found at the same one.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import xllamacpp

from learnflow.llm.providers import embedded_server

TINY = Path(__file__).parents[1] / "models" / "learnflow-tiny.gguf"


def main(port: str, model: str = str(TINY), context: str = "2048") -> None:
    config = {"model": model, "alias": Path(model).stem, "context": int(context), "slots": 2, "threads": 2, "key": ""}
    parameters = embedded_server.server_parameters(xllamacpp, config)
    parameters.port = int(port)
    parameters.api_keys = []
    server = xllamacpp.Server(parameters)  # stops when it is collected
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
