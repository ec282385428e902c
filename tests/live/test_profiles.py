"""The profiles of docker-compose.yml on a real Docker engine: in order, healthy, an answer, and down again.

``COMPOSE_CHECK=1 make live`` runs it where an engine answers. The images are those of the file, or stand-ins that
``OLLAMA_IMAGE``, ``LLAMACPP_IMAGE`` and ``PYTHON_IMAGE`` name. ``COMPOSE_MODEL`` is the tag to pull (qwen3:0.6b),
``COMPOSE_MISSING`` one that is not there, ``COMPOSE_SLOW`` one whose download takes some seconds, ``COMPOSE_GGUF`` a
model file for llama.cpp's image. ``COMPOSE_HOST_NETWORK=1``: for an engine without a bridge. ``COMPOSE_COMMAND`` is
Compose ("docker compose").
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import LIVE, ROOT

from learnflow.llm.cli.pull import SMOLLM2
from learnflow.llm.providers import LlamaCppProvider, OllamaProvider

MODEL = LIVE.get("COMPOSE_MODEL", "qwen3:0.6b")
ENGINE = bool(LIVE.get("COMPOSE_CHECK")) and shutil.which("docker") is not None
HOST = bool(LIVE.get("COMPOSE_HOST_NETWORK"))
COMPOSE = shlex.split(LIVE.get("COMPOSE_COMMAND", "docker compose"))
PROFILES = ["--profile", "local-llm", "--profile", "llamacpp", "--profile", "embedded"]
PORTS = {"OLLAMA_PORT": "21434", "LLAMACPP_PORT": "28080"}

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not ENGINE, reason="COMPOSE_CHECK is not set, or there is no docker"),
    pytest.mark.xdist_group("compose"),
]


class Project:
    """One checkout's containers, of a name of their own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.environment = {**LIVE, **PORTS, "OLLAMA_MODEL": MODEL, "PULL_INSECURE": LIVE.get("PULL_INSECURE", "")}

    def compose(self, *words: str, check: bool = True, timeout: float = 900) -> str:
        """Run compose; its output."""
        file = self._file()
        ran = subprocess.run(
            [*COMPOSE, "-p", self.name, "-f", str(file), *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment,
            cwd=self.folder,
        )
        if check and ran.returncode:
            raise AssertionError(
                ran.stdout + ran.stderr + self.compose(*words[:2], "logs", "--tail", "20", check=False)
            )
        return ran.stdout + ran.stderr

    def _file(self) -> Path:
        """The compose file, or for an engine without a bridge the same with every container on the host's network."""
        if not HOST:
            return self.folder / "docker-compose.yml"
        said = yaml.safe_load((self.folder / "docker-compose.yml").read_text(encoding="utf-8"))
        for service in said["services"].values():
            service.pop("networks", None)
            service.pop("ports", None)
            service["network_mode"] = "host"
            if "build" in service:
                service["build"]["network"] = "host"
        text = yaml.safe_dump(said, sort_keys=False)
        port, other = PORTS["OLLAMA_PORT"], PORTS["LLAMACPP_PORT"]
        text = text.replace("0.0.0.0:11434", f"127.0.0.1:{port}").replace(
            "http://ollama:11434", f"http://127.0.0.1:{port}"
        )
        text = text.replace("http://127.0.0.1:8080/health", f"http://127.0.0.1:{other}/health")
        said = yaml.safe_load(text)
        said["services"]["llamacpp"]["environment"]["LLAMA_ARG_PORT"] = other
        said["services"]["embedded"]["command"] = [f"/wheels/{SMOLLM2.member}", other]
        said["services"]["embedded"]["healthcheck"]["test"][-1] = (
            f"import urllib.request as u; u.urlopen('http://127.0.0.1:{other}/health', timeout=3)"
        )
        said["services"]["ollama"]["healthcheck"]["test"] = [
            "CMD",
            "env",
            f"OLLAMA_HOST=127.0.0.1:{port}",
            "ollama",
            "list",
        ]
        file = self.folder / "host-network.yml"
        file.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
        return file

    def choose_python_image(self, name: str) -> None:
        """Write PYTHON_IMAGE into a Dockerfile, if it is set."""
        if LIVE.get("PYTHON_IMAGE"):
            file = self.folder / "compose" / name / "Dockerfile"
            text = re.sub("(?<=ARG PYTHON_IMAGE=).*", LIVE["PYTHON_IMAGE"], file.read_text(encoding="utf-8"))
            file.write_text(text, encoding="utf-8")

    def state(self, service: str) -> dict[str, Any]:
        """How a container is; empty where there is none."""
        state: dict[str, Any] = self.inspected(service).get("State", {})
        return state

    def inspected(self, service: str) -> dict[str, Any]:
        """What the engine says of a container; empty where there is none."""
        name = self.compose(*PROFILES, "ps", "-a", "-q", service, check=False)
        container = next((line for line in name.split() if len(line) == 64), None)
        if container is None:
            return {}
        shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True, env=LIVE)
        said: dict[str, Any] = json.loads(shown.stdout)[0]
        return said

    def is_hardened(self, service: str) -> None:
        """It runs as the file says: no root, nothing to write to, no capability."""
        said = self.inspected(service)
        host = said["HostConfig"]
        assert said["Config"]["User"].split(":")[0] not in ("", "0", "root")
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
        assert host["PidsLimit"] > 0
        assert host["Memory"] > 0

    def wait(self, service: str, what: str, within: float = 600) -> dict[str, Any]:
        """Until it is "healthy" or "exited"."""
        over = time.monotonic() + within
        while time.monotonic() < over:
            state = self.state(service)
            if what in (state.get("Status"), state.get("Health", {}).get("Status")):
                return state
            time.sleep(0.5)
        raise AssertionError(f"{service} is not {what}: {self.state(service)}")

    def left(self) -> tuple[list[str], list[str]]:
        """What is left of it: containers, volumes."""
        mine = ["--filter", f"label=com.docker.compose.project={self.name}", "-q"]
        found = [
            subprocess.run(words, capture_output=True, text=True, check=True, env=LIVE).stdout.split()
            for words in (["docker", "ps", "-a", *mine], ["docker", "volume", "ls", *mine])
        ]
        return found[0], found[1]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    folder = tmp_path / "checkout"
    wanted = (
        "docker-compose.yml",
        ".dockerignore",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "compose",
        "learnflow",
    )
    for name in wanted:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    one = Project(folder, f"llmcheck{os.getpid()}")
    yield one
    for profile in ("local-llm", "llamacpp", "embedded", "demo"):
        with suppress(subprocess.TimeoutExpired):
            one.compose("--profile", profile, "down", "-v", "--remove-orphans", check=False)


@pytest.mark.parametrize("profile", ["local-llm", "llamacpp", "embedded", "vllm", "demo", "monitoring"])
@pytest.mark.parametrize("override", [None, "compose/gpu.yml", "compose/amd.yml"])
def test_every_profile_and_override_is_valid(profile: str, override: str | None) -> None:
    files = ["-f", "docker-compose.yml", *(["-f", override] if override else [])]
    words = [*COMPOSE, *files, "--profile", profile, "config"]
    variables = {**LIVE, "RENDER_GID": "110"}
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=variables)
    assert ran.returncode == 0, ran.stderr


async def test_local_llm_comes_up_in_order_and_answers(project: Project) -> None:
    project.compose("--profile", "local-llm", "up", "-d")
    assert project.wait("ollama", "healthy")
    pulled, warm = project.wait("ollama-pull", "exited"), project.wait("ollama-warm-up", "exited")
    assert (pulled["ExitCode"], warm["ExitCode"]) == (0, 0)
    assert pulled["FinishedAt"] <= warm["StartedAt"]
    for service in ("ollama", "ollama-pull", "ollama-warm-up"):
        project.is_hardened(service)
    assert "docker compose logs -f ollama-pull" in project.compose("--profile", "local-llm", "logs", "ollama-pull")
    provider = OllamaProvider(base_url=f"http://127.0.0.1:{PORTS['OLLAMA_PORT']}", model=MODEL)
    health = await provider.refresh()
    assert (health.state, health.cold) == ("ready", False)
    assert await provider.generate("Say pong", temperature=0, max_tokens=50)
    project.compose("--profile", "local-llm", "down")
    containers, volumes = project.left()
    assert not containers
    assert volumes
    project.compose("--profile", "local-llm", "up", "-d")  # the volume has it: nothing is pulled again
    assert project.wait("ollama-pull", "exited")["ExitCode"] == 0
    assert "to download" not in project.compose("--profile", "local-llm", "logs", "ollama-pull")


def test_demo_asks_once_and_leaves(project: Project) -> None:
    project.environment |= {"QUESTION": "Explain RSA encryption"}
    project.choose_python_image("demo")
    project.compose("--profile", "demo", "build", "demo")
    said = project.compose("--profile", "demo", "up", "demo")
    assert project.wait("demo", "exited")["ExitCode"] == 0
    answer = project.compose("--profile", "demo", "logs", "--no-color", "demo")
    assert "llm_" not in answer
    assert len(answer.split()) > 5, said


@pytest.mark.skipif(not LIVE.get("COMPOSE_GGUF"), reason="COMPOSE_GGUF names no model file")
async def test_llamacpp_has_its_model_inside(project: Project) -> None:
    gguf = Path(LIVE["COMPOSE_GGUF"])
    shutil.copy(gguf, project.folder / "compose" / "llamacpp" / "model.gguf")
    project.environment["LLAMACPP_MODEL_SHA256"] = "0" * 64
    with pytest.raises(AssertionError, match="The GGUF has another SHA-256"):
        project.compose("--profile", "llamacpp", "build")
    project.environment["LLAMACPP_MODEL_SHA256"] = hashlib.sha256(gguf.read_bytes()).hexdigest()
    project.compose("--profile", "llamacpp", "up", "-d", "--build")
    assert project.wait("llamacpp", "healthy")
    project.is_hardened("llamacpp")
    provider = LlamaCppProvider(base_url=f"http://127.0.0.1:{PORTS['LLAMACPP_PORT']}")
    assert await provider.generate("Say pong", temperature=0, max_tokens=50)
    project.compose("--profile", "llamacpp", "down")
    assert not project.left()[0]


async def test_embedded_image_requires_key_and_is_healthy_when_it_answers(project: Project) -> None:
    project.choose_python_image("embedded")
    project.environment["LLAMACPP_API_KEY"] = ""
    project.compose("--profile", "embedded", "up", "-d", "--build", check=False)
    project.wait("embedded", "restarting")
    assert "LLAMACPP_API_KEY is missing" in project.compose("--profile", "embedded", "logs", "embedded")
    project.environment["LLAMACPP_API_KEY"] = key = "a-key-of-a-test"
    project.compose("--profile", "embedded", "up", "-d")
    assert project.wait("embedded", "healthy")
    project.is_hardened("embedded")
    provider = LlamaCppProvider(base_url=f"http://127.0.0.1:{PORTS['LLAMACPP_PORT']}", api_key=key)
    assert await provider.list_models() == ["smollm2"]
    assert await provider.generate("Say pong", temperature=0, max_tokens=50)
    project.compose("--profile", "embedded", "down")
    assert not project.left()[0]


def test_a_model_that_is_missing_starts_nothing_that_needs_it(project: Project) -> None:
    project.environment |= {"OLLAMA_MODEL": LIVE.get("COMPOSE_MISSING", "no-such-model:1b"), "PULL_TRIES": "1"}
    project.compose("--profile", "local-llm", "up", "-d", check=False)
    assert project.wait("ollama-pull", "exited")["ExitCode"] != 0
    assert project.state("ollama-warm-up").get("Status") in (None, "created")
    assert "could not be pulled" in project.compose("--profile", "local-llm", "logs", "ollama-pull")


def test_a_full_disk_is_said_before_the_download(project: Project) -> None:
    file = project.folder / "docker-compose.yml"
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    said["volumes"]["ollama"] = {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "size=3m"}}
    file.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    project.compose("--profile", "local-llm", "up", "-d", check=False)
    assert project.wait("ollama-pull", "exited")["ExitCode"] != 0
    assert "not enough room" in project.compose("--profile", "local-llm", "logs", "ollama-pull")


@pytest.mark.skipif(not LIVE.get("COMPOSE_SLOW"), reason="COMPOSE_SLOW names no model that takes its time")
def test_a_pull_that_is_broken_off_goes_on(project: Project) -> None:
    project.environment["OLLAMA_MODEL"] = LIVE["COMPOSE_SLOW"]
    project.compose("--profile", "local-llm", "up", "-d", "ollama")
    project.wait("ollama", "healthy")
    project.compose("--profile", "local-llm", "up", "-d", "ollama-pull")
    time.sleep(4)  # in the middle of the download: its own time, not ours
    assert project.state("ollama-pull")["Status"] == "running"
    project.compose("--profile", "local-llm", "kill", "ollama-pull")
    project.compose("--profile", "local-llm", "up", "-d", "ollama-pull")
    assert project.wait("ollama-pull", "exited")["ExitCode"] == 0
