"""docker-compose.yml and its files, checked without an engine. tests/live has the rest."""

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
DOCKERFILES = sorted(path.relative_to(ROOT) for path in (ROOT / "compose").glob("*/Dockerfile"))
FILES = ["docker-compose.yml", "compose/gpu.yml", "compose/amd.yml"]
DOCKERFILES = sorted(path.relative_to(ROOT) for path in (ROOT / "compose").rglob("Dockerfile"))


class Loader(yaml.SafeLoader):
    """A YAML loader for Compose's own tags, which control the merge of files."""


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
    content: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader)  # noqa: S506  # safe: its base is
    return content


MAIN = load("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = MAIN["services"]
JOBS = {name for name, service in SERVICES.items() if service["restart"] == "no"}
RUNNING = sorted(set(SERVICES) - JOBS)


def test_every_local_server_has_service() -> None:
    assert {spec.server.compose_service for spec in SPECS.values() if spec.server.compose_service} <= set(SERVICES)
    for spec in SPECS.values():
        if spec.server.compose_service:
            inside = SERVICES[spec.server.compose_service]["ports"][0].rpartition(":")[2]
            assert spec.api.default_url
            assert spec.api.default_url.partition("://")[2].partition("/")[0].endswith(f":{inside}")


def test_every_service_has_profile() -> None:
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == {
        "local-llm",
        "llamacpp",
        "embedded",
        "vllm",
        "replicas",
        "demo",
        "monitoring",
    }


@pytest.mark.parametrize("name", RUNNING)
def test_service_has_restart_healthcheck_and_memory_limit(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["mem_limit"]
    for port in service["ports"]:
        assert port.startswith("127.0.0.1:"), "published on this machine only"


def test_ollamas_image_has_no_curl() -> None:
    assert "curl" not in str([service for name, service in SERVICES.items() if name.startswith("ollama")])


@pytest.mark.parametrize("name", SERVICES)
def test_container_has_log_limit_and_common_network(name: str) -> None:
    service = SERVICES[name]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service["networks"] == ["llm"]
    assert MAIN["networks"]["llm"]["name"] == "learnflow-llm"


def test_names_and_ports_differ_from_learnflow() -> None:
    assert not set(SERVICES) & LEARNFLOWS_SERVICES
    assert SERVICES["embedded"]["ports"] == SERVICES["llamacpp"]["ports"]  # one replaces the other
    ports = [port for name in set(SERVICES) - {"embedded"} for port in SERVICES[name].get("ports", ())]
    published = [int(number) for port in ports for number in re.findall(r":-?(\d+)}?:", port.removeprefix("127.0.0.1"))]
    assert len(published) == len(ports)
    assert not set(published) & LEARNFLOWS_PORTS
    assert len(set(published)) == len(published)


def test_server_waits_for_model_download() -> None:
    assert SERVICES["ollama-pull"]["depends_on"] == {"ollama": {"condition": "service_healthy"}}
    for name, before in (("ollama-warm-up", "ollama-pull"), ("demo", "ollama-warm-up")):
        assert SERVICES[name]["depends_on"] == {before: {"condition": "service_completed_successfully"}}
    assert SERVICES["ollama-pull"]["image"] == SERVICES["ollama"]["image"] == SERVICES["ollama-warm-up"]["image"]


IMAGE = re.compile(r"_IMAGE(?::-|=)((?:[\w.-]+/)*[\w.-]+):([\w.-]+)(@sha256:[0-9a-f]{64})?")


@pytest.mark.parametrize("file", [*FILES, *map(str, DOCKERFILES)])
def test_images_are_pinned(file: str) -> None:
    """By digest, except for llama.cpp, because its digests could not be looked up."""
    text = (ROOT / file).read_text(encoding="utf-8")
    images = IMAGE.findall(text)
    assert len(images) == len(re.findall(r"_IMAGE(?::-|=)", text)) > 0
    for name, tag, digest in images:
        assert digest or (name == "ghcr.io/ggml-org/llama.cpp" and re.search(r"-b\d{4,}$", tag)), name


@pytest.mark.parametrize("name", ["ollama", "llama.cpp", "vllm"])
def test_all_files_have_same_version_of_server(name: str) -> None:
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in [*FILES, "compose/llamacpp/Dockerfile"]]
    tags = [tag for text in texts for image, tag, _ in IMAGE.findall(text) if name in image]
    assert len(tags) >= len(FILES) - 1
    assert len({re.search(r"v?\d+\.\d+\.\d+|b\d{4,}", tag).group() for tag in tags}) == 1, tags  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SERVICES)
def test_container_has_least_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert "mem_limit" in service
    assert "cpus" in service
    assert "privileged" not in service
    if name == "vllm":  # its image has only the user root, and compiles into several folders
        return
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108  # of the container
    assert not service["user"].startswith(("0", "root"))


def test_amd_file_sets_device_group_for_every_server() -> None:
    services = load("compose/amd.yml")["services"]
    assert {"ollama", "llamacpp", "vllm"} <= set(services)
    for name in ("ollama", "llamacpp", "vllm"):
        assert services[name]["devices"] == ["/dev/kfd", "/dev/dri"]
        assert any("RENDER_GID:?" in group for group in services[name]["group_add"])


@pytest.mark.parametrize("file", FILES)
def test_built_images_are_not_pulled(file: str) -> None:
    """Each base image has its own tag."""
    built = [service for service in load(file)["services"].values() if "build" in service]
    assert built
    assert all(service["image"].startswith("localhost/") for service in built)
    assert all(service.get("pull_policy") == "build" for service in built if file == FILES[0])
    tags = [load(name)["services"]["llamacpp"]["image"] for name in FILES]
    assert len(set(tags)) == len(tags)


def test_privacy_settings_are_set() -> None:
    ollama = SERVICES["ollama"]
    assert ollama["environment"]["OLLAMA_NO_CLOUD"] == "1"
    assert ollama["environment"]["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert ollama["volumes"] == [f"ollama:{ollama['environment']['HOME']}"]
    assert ollama["healthcheck"]["test"] == ["CMD", "ollama", "list"]
    assert SERVICES["demo"]["environment"]["LLM_LOCAL_ONLY"] == "true"
    assert SERVICES["vllm"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert "--max-model-len" in SERVICES["vllm"]["command"]


@pytest.mark.parametrize("name", ["demo", "embedded"])
def test_files_of_image_are_in_build_context(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    context = {line[1:] for line in ignored if line.startswith("!")}
    text = (ROOT / "compose" / name / "Dockerfile").read_text(encoding="utf-8")
    copied = [Path(path) for line in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE) for path in line.split()]
    assert copied
    for path in copied:
        assert context & {str(path), *map(str, path.parents)}, path
        assert (ROOT / path).exists()


def test_monitoring_is_local_and_sends_nothing() -> None:
    """Grafana has no account with a password."""
    prometheus, grafana = SERVICES["prometheus"], SERVICES["grafana"]
    environment = grafana["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert (
        environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    )
    assert "PASSWORD" not in str(environment)
    assert {environment[f"GF_{name}"] for name in ("ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES")} == {
        "false"
    }
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    for volume in [*prometheus["volumes"], *grafana["volumes"]]:
        here, _, rest = volume.partition(":")
        assert here in MAIN["volumes"] or ((ROOT / here).exists() and rest.endswith(":ro")), volume
    (job,) = load("compose/monitoring/prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["host.docker.internal:9464"]}]
    assert prometheus["extra_hosts"] == ["host.docker.internal:host-gateway"]
    (named,) = job["dns_sd_configs"]
    assert (named["names"], named["port"]) == (["graph", "llm-metrics"], 9464)


def test_model_has_one_checksum_in_all_files() -> None:
    build = SERVICES["llamacpp"]["build"]["args"]
    assert re.search(r"[0-9a-f]{64}}$", build["MODEL_SHA256"])
    text = (ROOT / "compose/llamacpp/Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'!= "\$MODEL_SHA256" \]; then(.|\n)*exit 1', text)
    assert "volumes" not in SERVICES["llamacpp"]  # a volume could hide the model


def test_gpu_is_requested_only_in_gpu_files() -> None:
    assert "devices" not in str(MAIN)
    for name in ("compose/gpu.yml", "compose/amd.yml"):
        assert set(load(name)["services"]) <= set(SERVICES)
        assert "devices" in str(load(name))
        for service in load(name)["services"].values():
            assert set(service) <= {"image", "build", "deploy", "devices", "group_add"}


def test_replicas_wait_for_servers_and_only_router_is_published() -> None:
    router, *servers = (SERVICES[name] for name in ("vllm-router", "llamacpp-1", "llamacpp-2"))
    assert router["depends_on"] == {server: {"condition": "service_healthy"} for server in ("llamacpp-1", "llamacpp-2")}
    assert [server["ports"] for server in servers] == [[], []]
    assert servers[0] == servers[1]
    assert servers[0]["image"] == SERVICES["llamacpp"]["image"]
    gpus = [load("compose/gpu.yml")["services"][name] for name in ("llamacpp-1", "llamacpp-2")]
    devices = [gpu["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for gpu in gpus]
    assert devices == [["0"], ["1"]]


def test_router_has_options_that_tests_and_page_have() -> None:
    """``make engines`` shows what they do."""
    command = " ".join(SERVICES["vllm-router"]["command"]).replace("=", " ")
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").replace("\\\n", " ")
    code = (ROOT / "tests" / "engines" / "engines.py").read_text(encoding="utf-8")
    tested = code.partition("REJOIN: Final = (")[2].partition("\n)\n")[0]
    options = re.findall(r"--[a-z-]+(?: \d+)?", re.sub(r'[",()*]', "", tested))
    assert len(options) == 7
    for option in [*options, "--policy sticky_least_loaded"]:
        assert option in command
        assert option in page


def test_override_adds_variables_and_model_to_learnflow_service() -> None:
    """The additions are in this project's files, so that LearnFlow's compose file does not change."""
    override = load("compose/learnflow.yaml")
    (included,) = override["include"]
    assert included["path"].endswith("/docker-compose.yml")
    graph = override["services"].pop("graph")
    assert override["services"] == {}
    assert graph["env_file"] == [included["env_file"]]
    assert graph["networks"] == ["default", "llm"]
    (waits,) = graph["depends_on"]
    assert waits in JOBS
    assert graph["depends_on"][waits] == {"condition": "service_completed_successfully", "required": False}


@pytest.mark.parametrize("name", TEMPLATES)
def test_env_templates_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    template = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert template.keys() - {"OPENAI_API_KEY"} <= read_variables()
    (tmp_path / ".env.local").write_text(text, encoding="utf-8")
    assert settings.load().llm_local_only
    (provider,) = get_provider().providers
    assert repr(provider).startswith(f"OllamaProvider(base_url={template['OLLAMA_BASE_URL']!r}")
    inside = {"http://ollama", "http://llamacpp", "http://host.docker.internal"}
    host = {"http://localhost"} if "local" in name else inside
    assert {url.rpartition(":")[0] for key, url in template.items() if key.endswith("_URL")} == host


@pytest.mark.parametrize("page", ["docs/learnflow.md", "docs/learnflow.ru.md"])
def test_appended_text_starts_on_new_line(page: str, tmp_path: Path) -> None:
    """LearnFlow's templates have no newline at the end."""
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
    # LearnFlow's scripts/local-dev.sh reads the file in this way.
    shell = 'export $(grep -v "^#" .env.local | xargs) && printf "%s %s" "$LAST" "$LLM_PROVIDER"'
    assert subprocess.check_output(["sh", "-ec", shell], cwd=folder, text=True) == "1 ollama"
