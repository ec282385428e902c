"""docker-compose.yml and what belongs to it, as far as it can be seen without an engine (tests/live has the rest)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from support import ROOT, read_variables

from learnflow.llm import get_provider, settings
from learnflow.llm.providers.registry import SPECS

LEARNFLOWS_PORTS = {8000, 8001, 8002, 3000, 3001, 5432}
LEARNFLOWS_SERVICES = {
    *("graph", "bot", "artifacts-service", "prompt-config-service", "web-ui", "postgres"),
    *("redis", "minio", "clickhouse", "langfuse-web", "langfuse-worker"),
}
TEMPLATES = ["compose/learnflow.env.example", "compose/learnflow.env.local.example"]
FILES = ["docker-compose.yml", "compose/gpu.yml", "compose/amd.yml"]


class Loader(yaml.SafeLoader):
    """YAML with Compose's own tags, which say how files are merged."""


for tag in ("!override", "!reset"):
    Loader.add_constructor(
        tag,
        lambda loader, node: (
            loader.construct_mapping(node, deep=True)
            if isinstance(node, yaml.MappingNode)
            else loader.construct_sequence(node)
        ),
    )


def load(name: str) -> dict[str, Any]:
    said: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader)  # noqa: S506  # safe: its base is
    return said


MAIN = load("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = MAIN["services"]
JOBS = {name for name, said in SERVICES.items() if said["restart"] == "no"}
RUNNING = sorted(set(SERVICES) - JOBS)


def test_the_rows_that_have_a_service_have_it_here() -> None:
    assert {spec.server.service for spec in SPECS.values() if spec.server.service} <= set(SERVICES)
    for spec in SPECS.values():
        if spec.server.service:
            inside = SERVICES[spec.server.service]["ports"][0].rpartition(":")[2]
            assert spec.api.default_url
            assert spec.api.default_url.partition("://")[2].partition("/")[0].endswith(f":{inside}")


def test_nothing_starts_without_a_profile() -> None:
    assert {profile for said in SERVICES.values() for profile in said["profiles"]} == {
        "local-llm",
        "llamacpp",
        "vllm",
        "demo",
        "monitoring",
    }


@pytest.mark.parametrize("name", RUNNING)
def test_every_service_is_looked_after(name: str) -> None:
    said = SERVICES[name]
    assert said["restart"] == "unless-stopped"
    assert said["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(said["healthcheck"])
    assert said["mem_limit"]
    for port in said["ports"]:
        assert port.startswith("127.0.0.1:"), "published on this machine only"


def test_ollamas_image_has_no_curl() -> None:
    assert "curl" not in str([said for name, said in SERVICES.items() if name.startswith("ollama")])


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_bounded_logs_and_the_common_network(name: str) -> None:
    said = SERVICES[name]
    assert said["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert said["networks"] == ["llm"]
    assert MAIN["networks"]["llm"]["name"] == "learnflow-llm"


def test_nothing_clashes_with_learnflow() -> None:
    assert not set(SERVICES) & LEARNFLOWS_SERVICES
    ports = [port for said in SERVICES.values() for port in said.get("ports", ())]
    published = [int(number) for port in ports for number in re.findall(r":-?(\d+)}?:", port.removeprefix("127.0.0.1"))]
    assert len(published) == len(ports)
    assert not set(published) & LEARNFLOWS_PORTS
    assert len(set(published)) == len(published)


def test_what_needs_the_model_waits_until_it_is_there() -> None:
    assert SERVICES["ollama-pull"]["depends_on"] == {"ollama": {"condition": "service_healthy"}}
    for name, before in (("ollama-warm-up", "ollama-pull"), ("demo", "ollama-warm-up")):
        assert SERVICES[name]["depends_on"] == {before: {"condition": "service_completed_successfully"}}
    assert SERVICES["ollama-pull"]["image"] == SERVICES["ollama"]["image"] == SERVICES["ollama-warm-up"]["image"]


IMAGE = re.compile(r"_IMAGE(?::-|=)((?:[\w.-]+/)*[\w.-]+):([\w.-]+)(@sha256:[0-9a-f]{64})?")


@pytest.mark.parametrize("file", [*FILES, "compose/llamacpp/Dockerfile", "compose/demo/Dockerfile"])
def test_images_are_pinned(file: str) -> None:
    """By digest, but for llama.cpp, of whose images none could be looked up."""
    text = (ROOT / file).read_text(encoding="utf-8")
    images = IMAGE.findall(text)
    assert len(images) == len(re.findall(r"_IMAGE(?::-|=)", text)) > 0
    for name, tag, digest in images:
        assert digest or (name == "ghcr.io/ggml-org/llama.cpp" and re.search(r"-b\d{4,}$", tag)), name


@pytest.mark.parametrize("name", ["ollama", "llama.cpp", "vllm"])
def test_every_file_has_the_same_version_of_a_server(name: str) -> None:
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in [*FILES, "compose/llamacpp/Dockerfile"]]
    tags = [tag for text in texts for image, tag, _ in IMAGE.findall(text) if name in image]
    assert len(tags) >= len(FILES) - 1
    assert len({re.search(r"v?\d+\.\d+\.\d+|b\d{4,}", tag).group() for tag in tags}) == 1, tags  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_needs(name: str) -> None:
    said = SERVICES[name]
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert said["pids_limit"] > 0
    assert "mem_limit" in said
    assert "cpus" in said
    assert "privileged" not in said
    if name == "vllm":  # its image has no user but root, and compiles into folders of its own
        return
    assert said["read_only"] is True
    assert said["tmpfs"] == ["/tmp"]  # noqa: S108  # of the container
    assert not said["user"].startswith(("0", "root"))


def test_amd_asks_for_the_group_of_the_device_and_has_every_server() -> None:
    said = load("compose/amd.yml")["services"]
    assert {"ollama", "llamacpp", "vllm"} <= set(said)
    for name in ("ollama", "llamacpp", "vllm"):
        assert said[name]["devices"] == ["/dev/kfd", "/dev/dri"]
        assert any("RENDER_GID:?" in group for group in said[name]["group_add"])


@pytest.mark.parametrize("file", FILES)
def test_what_is_built_here_is_asked_for_nowhere_else(file: str) -> None:
    """And each base has a tag of its own, so that none is taken for another."""
    built = [said for said in load(file)["services"].values() if "build" in said]
    assert built
    assert all(said["image"].startswith("localhost/") for said in built)
    assert all(said.get("pull_policy") == "build" for said in built if file == FILES[0])
    tags = [load(name)["services"]["llamacpp"]["image"] for name in FILES]
    assert len(set(tags)) == len(tags)


def test_what_keeps_notes_on_the_machine_and_strangers_out_stays_set() -> None:
    ollama = SERVICES["ollama"]
    assert ollama["environment"]["OLLAMA_NO_CLOUD"] == "1"
    assert ollama["environment"]["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert ollama["volumes"] == [f"ollama:{ollama['environment']['HOME']}"]
    assert ollama["healthcheck"]["test"] == ["CMD", "ollama", "list"]
    assert SERVICES["demo"]["environment"]["LLM_LOCAL_ONLY"] == "true"
    assert SERVICES["vllm"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert "--max-model-len" in SERVICES["vllm"]["command"]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = re.findall(
        r"^COPY ([^-].*) \S+$", (ROOT / "compose/demo/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name for line in copied for name in line.split()} <= {name[1:] for name in ignored if name.startswith("!")}


def test_who_watches_is_on_this_machine_and_asks_nobody_outside() -> None:
    """And Grafana has no account that a password could belong to."""
    prometheus, grafana = SERVICES["prometheus"], SERVICES["grafana"]
    said = grafana["environment"]
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == said["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert "PASSWORD" not in str(said)
    assert {said[f"GF_{name}"] for name in ("ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES")} == {"false"}
    assert said["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    for volume in [*prometheus["volumes"], *grafana["volumes"]]:
        here, _, rest = volume.partition(":")
        assert here in MAIN["volumes"] or ((ROOT / here).exists() and rest.endswith(":ro")), volume
    (job,) = load("compose/monitoring/prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["host.docker.internal:9464"]}]
    assert prometheus["extra_hosts"] == ["host.docker.internal:host-gateway"]
    (named,) = job["dns_sd_configs"]
    assert (named["names"], named["port"]) == (["graph", "llm-metrics"], 9464)


def test_the_models_checksum_is_one() -> None:
    build = SERVICES["llamacpp"]["build"]["args"]
    assert re.search(r"[0-9a-f]{64}}$", build["MODEL_SHA256"])
    text = (ROOT / "compose/llamacpp/Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'!= "\$MODEL_SHA256" \]; then(.|\n)*exit 1', text)
    assert "volumes" not in SERVICES["llamacpp"]  # none that could hide the model


def test_a_gpu_is_only_asked_for_in_files_of_its_own() -> None:
    assert "devices" not in str(MAIN)
    for name in ("compose/gpu.yml", "compose/amd.yml"):
        assert set(load(name)["services"]) <= set(SERVICES)
        assert "devices" in str(load(name))
        for said in load(name)["services"].values():
            assert set(said) <= {"image", "build", "deploy", "devices", "group_add"}


def test_the_override_gives_learnflows_service_our_variables_and_the_model() -> None:
    """And what it adds is in files of ours, so that LearnFlow's compose file stays as it is."""
    said = load("compose/learnflow.yaml")
    (included,) = said["include"]
    assert included["path"].endswith("/docker-compose.yml")
    graph = said["services"].pop("graph")
    assert said["services"] == {}
    assert graph["env_file"] == [included["env_file"]]
    assert graph["networks"] == ["default", "llm"]
    (waits,) = graph["depends_on"]
    assert waits in JOBS
    assert graph["depends_on"][waits] == {"condition": "service_completed_successfully", "required": False}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_are_read_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    said = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert said.keys() - {"OPENAI_API_KEY"} <= read_variables()
    (tmp_path / ".env.local").write_text(text, encoding="utf-8")
    assert settings.load().llm_local_only
    (provider,) = get_provider().providers
    assert repr(provider).startswith(f"OllamaProvider(base_url={said['OLLAMA_BASE_URL']!r}")
    inside = {"http://ollama", "http://llamacpp", "http://host.docker.internal"}
    host = {"http://localhost"} if "local" in name else inside
    assert {url.rpartition(":")[0] for key, url in said.items() if key.endswith("_URL")} == host


@pytest.mark.parametrize("page", ["docs/learnflow.md", "docs/learnflow.ru.md"])
def test_what_is_appended_to_learnflows_files_begins_a_line(page: str, tmp_path: Path) -> None:
    """None of its templates has a newline at its end."""
    (tmp_path / "learnflow.llm").symlink_to(ROOT)
    folder = tmp_path / "learnflow-ai"
    folder.mkdir()
    for name in (".env", ".env.local", ".gitignore"):
        (folder / name).write_text("LAST=1", encoding="utf-8")
    commands = re.findall(r"^.+ >> \S+$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run(["sh", "-ec", command], cwd=folder, check=True)
    template = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / TEMPLATES[1]).read_text(encoding="utf-8"), re.MULTILINE))
    assert dotenv_values(folder / ".env.local") == {"LAST": "1", **template}
    own = dotenv_values(folder / ".env")
    assert (own["LAST"], own["COMPOSE_PROFILES"]) == ("1", "local-llm")
    assert [(folder / name).name for name in own["COMPOSE_FILE"].split(":")] == [
        "docker-compose.yaml",
        "learnflow.yaml",
    ]
    assert (folder / own["COMPOSE_FILE"].split(":")[1]).exists()
    assert {"LAST=1", "llm.env"} <= set((folder / ".gitignore").read_text(encoding="utf-8").splitlines())
    # How LearnFlow's scripts/local-dev.sh reads it.
    shell = 'export $(grep -v "^#" .env.local | xargs) && printf "%s %s" "$LAST" "$LLM_PROVIDER"'
    assert subprocess.check_output(["sh", "-ec", shell], cwd=folder, text=True) == "1 ollama"
