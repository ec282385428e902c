"""Downloading a model by the server's own means, with its progress; and freeing its memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from learnflow.llm import errors
from learnflow.llm.health import loading
from learnflow.llm.providers import LlamaCppProvider, LMStudioProvider, OllamaProvider, VLLMProvider
from learnflow.llm.providers.registry import build
from learnflow.llm.spec import Progress
from learnflow.llm.testing import FaultServer

LAYER = {"status": "pulling aa", "digest": "sha256:aa", "total": 100}
DOWNLOAD, JOB = "/api/v1/models/download", "/api/v1/models/download/status/job_1"


class Pages(FaultServer):
    """A page may be a list: of what it says each time, the last one for ever; and what was sent to it is kept."""

    bodies: list[tuple[str, Any]]

    async def _page(self, seen: Any, writer: Any) -> bool:
        if seen.method == "POST":
            self.bodies = [*getattr(self, "bodies", []), (seen.path, seen.body)]
        path, told = seen.path, self.tells.get(seen.path)
        if not isinstance(told, list):
            return await super()._page(seen, writer)
        self.tells[path] = told[0]
        try:
            return await super()._page(seen, writer)
        finally:
            self.tells[path] = told[1:] if len(told) > 1 else told


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AGAIN_S", 0.0)


def lines(*said: Any) -> bytes:
    return b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in said)


async def pulled(provider: Any, model: str = "m") -> list[Progress]:
    return [progress async for progress in provider.pull(model)]


async def test_ollama_tells_the_bytes_of_all_layers_and_nothing_twice() -> None:
    told = lines(
        {"status": "pulling manifest"},
        LAYER,
        {**LAYER, "completed": 40},
        {**LAYER, "completed": 40},
        {"status": "pulling bb", "digest": "sha256:bb", "total": 10, "completed": 10},
        {**LAYER, "completed": 100},
        {"status": "verifying sha256 digest"},
        b'{"status":"success"}',
    )
    async with Pages("ollama", tells={"/api/pull": told}) as server:
        seen = await pulled(OllamaProvider(base_url=server.root), "qwen3:0.6b")
        assert server.bodies == [("/api/pull", {"model": "qwen3:0.6b", "stream": True})]
    assert seen == [
        Progress("pulling manifest"),
        Progress("pulling aa", 0, 100),
        Progress("pulling aa", 40, 100),
        Progress("pulling bb", 50, 110),
        Progress("pulling aa", 110, 110),
        Progress("verifying sha256 digest", 110, 110),
    ]


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (lines({"error": "pull model manifest: file does not exist"}), errors.ModelNotFound, "no such model"),
        (lines(LAYER, {"error": "no space left on device"}), errors.ErrorBody, "no space left on device"),
        (lines(LAYER), errors.ConnectionFailed, "stopped before its end.*goes on where it stopped"),
        (lines(LAYER, b"<html>\n"), errors.MalformedAnswer, "not JSON"),
        (lines(LAYER, b"[1]\n"), errors.MalformedAnswer, "not JSON"),
        (lines(LAYER, b"[" * 60_000 + b"\n"), errors.MalformedAnswer, "not JSON"),
        (b'{"status": "' + b"x" * 300_000, errors.MalformedAnswer, "without end"),
        (b"", errors.ConnectionFailed, "stopped"),
        ((500, {"error": "broken"}), errors.ServerFailed, "broken"),
    ],
)
async def test_what_goes_wrong_has_a_name(told: Any, kind: type[errors.LLMError], words: str) -> None:
    async with FaultServer("ollama", tells={"/api/pull": told}) as server:
        with pytest.raises(kind, match=f"ollama, model m: .*{words}"):
            await pulled(OllamaProvider(base_url=server.root))


async def test_odd_values_are_no_progress() -> None:
    odd = [
        {"status": 7, "digest": ["x"], "total": "many", "completed": -1},
        {"status": "a\x1b]0;title\x07", "digest": "d", "total": 2**70, "completed": 1},
        {"status": "x" * 5000, "digest": "d", "total": 1.5},
        {"status": "b", "digest": "d", "total": 5, "completed": True},
        {"status": "success"},
    ]
    async with FaultServer("ollama", tells={"/api/pull": lines(*odd)}) as server:
        assert await pulled(OllamaProvider(base_url=server.root)) == [Progress(""), Progress("b", 0, 5)]


async def test_a_download_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_TIMEOUT", "0.2")
    same = {"job_id": "job_1", "status": "downloading", "downloaded_bytes": 1, "total_size_bytes": 2}
    async with FaultServer("lmstudio", tells={DOWNLOAD: same, JOB: same}) as server:
        with pytest.raises(errors.GapTimeout, match=r"no progress for 0.2 s. Ask again"):
            await pulled(LMStudioProvider(base_url=server.base_url))


async def test_lmstudio_has_a_job() -> None:
    job = {"job_id": "job_1", "status": "downloading", "downloaded_bytes": 1, "total_size_bytes": 9}
    told = {DOWNLOAD: job, JOB: [{**job, "downloaded_bytes": 5}, {**job, "status": "completed"}]}
    async with Pages("lmstudio", tells=told) as server:
        provider = LMStudioProvider(base_url=server.base_url)
        assert await pulled(provider) == [Progress("downloading", 1, 9), Progress("downloading", 5, 9)]
        server.tells[DOWNLOAD] = {"status": "already_downloaded"}
        assert await pulled(provider) == []
        for broken in ({**job, "status": "failed"}, {"status": "downloading"}, {}, {**job, "status": 3}):
            server.tells[DOWNLOAD] = broken
            with pytest.raises(errors.ServerFailed, match="the download failed"):
                await pulled(provider)


async def test_a_router_of_llamacpp_is_looked_at() -> None:
    def listed(value: str, done: int | None = None) -> Any:
        progress = {"https://x/m.gguf": {"done": done, "total": 9}, "odd": 3} if done is not None else {}
        return {"data": [{"id": "org/m:Q4", "status": {"value": value, "progress": progress}}]}

    empty: Any = {"data": []}
    pages = [empty, listed("downloading"), listed("downloading", 4), listed("unloaded")]
    async with Pages("llamacpp", tells={"/models": pages}) as server:
        provider = LlamaCppProvider(base_url=server.base_url)
        server.tells["/models"] = [empty, {"success": True}, *pages[1:]]  # the second is the answer to the POST
        assert await pulled(provider, "org/m") == [Progress("downloading", 0), Progress("downloading", 4, 9)]
        assert server.bodies == [("/models", {"model": "org/m"})]
        server.tells["/models"] = [listed("unloaded")]
        assert await pulled(provider, "org/m") == []  # it is there
        server.tells["/models"] = [empty, {"success": True}, empty]
        with pytest.raises(errors.ServerFailed, match="Look into the server"):
            await pulled(provider, "org/m")
        server.tells["/models"] = [empty, (404, {"error": {"message": "File Not Found", "code": 404}})]
        with pytest.raises(errors.Unsupported, match="Started without a model it is a router"):
            await pulled(provider, "org/m")


async def test_who_downloads_nothing_says_so() -> None:
    async with FaultServer("vllm") as server:
        with pytest.raises(errors.Unsupported, match="vLLM downloads no models"):
            await pulled(VLLMProvider(base_url=server.base_url))
        with pytest.raises(errors.Unsupported, match="vLLM unloads no models"):
            await VLLMProvider(base_url=server.base_url).unload()


async def test_a_version_without_such_a_page_says_so() -> None:
    loaded = {"models": [{"type": "llm", "key": "m", "loaded_instances": [{"id": "m"}], "max_context_length": 4096}]}
    unexpected = {"error": "Unexpected endpoint or method. (POST /api/v1/models/download)"}
    tells = {"/api/v1/models": loaded, DOWNLOAD: unexpected, "/api/v1/models/unload": unexpected}
    async with FaultServer("lmstudio", tells=tells) as server:
        with pytest.raises(errors.Unsupported, match="this LM Studio downloads no models"):
            await pulled(LMStudioProvider(base_url=server.base_url))
        with pytest.raises(errors.Unsupported, match="this LM Studio keeps its models loaded"):
            await LMStudioProvider(base_url=server.base_url).unload()


async def test_an_endpoint_of_ones_own_is_asked_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("ollama", tells={"/api/pull": lines(LAYER, {"status": "success"})}) as server:
        assert await pulled(build("gpu1", base_url=server.root)) == [Progress("pulling aa", 0, 100)]


async def test_unloading() -> None:
    instances = [{"id": "m"}, {"id": "m:2"}]
    loaded = {"models": [{"type": "llm", "key": "m", "loaded_instances": instances, "max_context_length": 4096}]}
    async with Pages("lmstudio", tells={"/api/v1/models": loaded, "/api/v1/models/unload": {}}) as server:
        assert await LMStudioProvider(base_url=server.base_url).unload() == "m"
        assert [body for _, body in server.bodies] == [{"instance_id": "m"}, {"instance_id": "m:2"}]
    running = {"models": [{"name": "fault-model", "context_length": 4096}]}
    told = {"/api/generate": {"done": True, "done_reason": "unload"}, "/api/ps": running}
    async with Pages("ollama", tells=told) as server:
        assert await OllamaProvider(base_url=server.root).unload() == "fault-model"
        assert ("/api/generate", {"model": "fault-model", "keep_alive": 0}) in server.bodies
        server.tells["/api/ps"], server.bodies = {"models": []}, []
        assert await OllamaProvider(base_url=server.root).unload() == "fault-model"
        assert "/api/generate" not in dict(server.bodies)  # it is not loaded: nothing to do
