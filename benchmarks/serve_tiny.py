"""Serve the tiny model of the tests with llama.cpp (``xllamacpp``) until the process is killed.

    python benchmarks/serve_tiny.py --port 8081 [--parallel 2] [--threads 1] [--cache-ram MIB]

The model knows forty answers by heart (``tests/models/answers.json``). The options are those of ``llama-server``.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import xllamacpp

from learnflow.llm.providers import embedded_server

MODEL = Path(__file__).parents[1] / "tests" / "models" / "learnflow-tiny.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=2, help="slots (2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-ram", type=int, help="MiB for prompts of earlier slots; 0 for none")
    options = parser.parse_args()
    config = {"model": str(MODEL), "alias": "tiny", "context": 2048, "key": ""}
    config |= {"slots": options.parallel, "threads": options.threads}
    parameters = embedded_server.server_parameters(xllamacpp, config)
    parameters.port, parameters.api_keys = options.port, []
    if options.cache_ram is not None:
        parameters.cache_ram_mib = options.cache_ram
    server = xllamacpp.Server(parameters)  # stops when it is collected
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
