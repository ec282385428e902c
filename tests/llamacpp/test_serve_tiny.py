"""The program that benchmarks start as a server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress

import httpx
from llama import RSA, TEXTS, wait_until
from replicas import free_port
from support import ROOT

from learnflow.llm.providers import LlamaCppProvider


def test_program_serves_tiny_model_at_its_port() -> None:
    port = free_port()
    program = ROOT / "benchmarks" / "serve_tiny.py"
    server = subprocess.Popen([sys.executable, str(program), "--port", str(port), "--cache-ram", "0"], cwd=ROOT)

    def ready() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        assert server.poll() is None
        return False

    try:
        wait_until(ready)
        provider = LlamaCppProvider(base_url=f"http://127.0.0.1:{port}")
        assert asyncio.run(provider.generate(RSA, temperature=0, max_tokens=400)) == TEXTS[RSA]
    finally:
        server.kill()
        server.wait()
