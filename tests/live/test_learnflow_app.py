"""LearnFlow's FastAPI application with a PostgreSQL, killed in the middle of a lesson, then on tapes (``make live``).

Needs what ``test_learnflow.py`` needs, and ``LEARNFLOW_DATABASE_URL``: a PostgreSQL for its checkpoints, whose threads
``1`` to ``3`` are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from learnflow_checkout import (
    NEEDED,
    PROMPTS,
    QUESTION,
    checkout,
    environment,
    free_port,
    known,
    llamacpp,
    service,
    watched,
)
from support import LIVE

from learnflow.llm.testing import FaultServer, closed_port

__all__ = ["checkout", "service"]  # fixtures
needed = (*NEEDED, "LEARNFLOW_DATABASE_URL")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(any(not LIVE.get(name) for name in needed), reason=f"needs {', '.join(needed)}"),
]
NOTES = "Notes of a lesson: a key pair has a public half and a private half, and factoring is hard."
PHOTOGRAPHED = 9  # guard, name, content, recognition, synthesis, questions, three answers
RESUMED = ["synthesis_material", "generating_questions", *["answer_question"] * 3]


@pytest.fixture
def changed(checkout: Path) -> Path:
    """The checkout with the changes that docs/learnflow.md suggests beside the import."""
    for file, before, after in (
        ("nodes/answers.py", "генерации ответа:** {str(e)}", "генерации ответа:** {public_message(e)}"),
        ("api/main.py", '"service": "learnflow-ai"}', '"service": "learnflow-ai", "llm": await health()}'),
        ("api/main.py", "Processing error: {str(e)}", "Processing error: {public_message(e)}"),
    ):
        path = checkout / "learnflow" / file
        text = path.read_text(encoding="utf-8")
        assert before in text
        imported = "from ..llm.integrations.learnflow import health, public_message\n"
        text = text.replace(before, after)
        if imported not in text:
            text = text.replace("import logging\n", f"import logging\n{imported}", 1)
        path.write_text(text, "utf-8")
    return checkout


class App:
    """LearnFlow's process, and a client of its interface."""

    def __init__(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
        self.process = process
        self.client = client

    async def get(self, path: str) -> Any:
        answered = await self.client.get(path)
        assert answered.status_code == 200, answered.text
        return answered.json()

    async def post(self, path: str, **body: Any) -> Any:
        answered = await self.client.post(path, json=body)
        assert answered.status_code == 200, answered.text
        return answered.json()

    async def lesson(self, thread: str, message: str, images: list[str] | None = None) -> str:
        """Send a student's message; what LearnFlow says when the graph stops next, for it or at its end."""
        await self.post(f"/api/hitl/{thread}/bulk", enable_all=False)
        said = await self.post("/process", thread_id=thread, message=message, image_paths=images)
        return str(said["result"])


@contextlib.asynccontextmanager
async def learnflow(checkout: Path, service: Any, **variables: str) -> AsyncIterator[App]:
    """``python -m learnflow``, as its Dockerfile starts it; stopped as Docker stops it."""
    port = free_port()
    own = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "INFO"}
    log = checkout / "process.log"
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *(LIVE["LEARNFLOW_PYTHON"], "-m", "learnflow"),
            cwd=checkout,
            env={**environment(checkout, service), **own, **variables},
            stdout=out,
            stderr=out,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as client:
            for _ in range(600):
                assert process.returncode is None, log.read_text(encoding="utf-8")[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    await client.get("/")
                    break
                await asyncio.sleep(0.1)
            yield App(process, client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)


@pytest.fixture(autouse=True)
async def fresh(changed: Path, service: Any) -> None:
    """No thread is left from another run."""
    async with learnflow(changed, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL="http://127.0.0.1:9") as app:
        for thread in "123":
            assert (await app.client.delete(f"/thread/{thread}")).status_code == 200


async def outputs(service: Any, several: int) -> list[str]:
    """The answers that reached Langfuse, once there are as many: its client sends them in the background."""
    async with asyncio.timeout(60):
        while True:
            bodies = [each["body"] for each in service.traced if each["type"] == "generation-update"]
            found = [body["output"]["content"] for body in bodies if isinstance(body.get("output"), dict)]
            if len(found) >= several:
                return sorted(found)
            await asyncio.sleep(0.1)


async def test_a_lesson_survives_a_model_server_and_the_process(changed: Path, service: Any) -> None:
    middle, synthesis = asyncio.Event(), asyncio.Event()
    async with llamacpp() as (url, server), llamacpp() as (other, _):

        def kill_the_server() -> None:
            server.kill()
            middle.set()

        async with (
            watched(url, "generating_content", 20, kill_the_server) as first,
            watched(other, "synthesis_material", 20, synthesis.set) as next_one,
        ):
            chain = {
                "LLM_PROVIDERS": "llamacpp,second",
                "SECOND_KIND": "llamacpp",
                "LLAMACPP_BASE_URL": first,
                "SECOND_BASE_URL": next_one,
            }
            async with learnflow(changed, service, **chain) as app:
                assert (await app.get("/health"))["llm"] == {"llamacpp": True, "second": True}
                running = asyncio.create_task(app.lesson("1", QUESTION))
                await middle.wait()
                beside = asyncio.create_task(app.lesson("2", QUESTION))
                assert (await app.get("/state/1"))["state"]["input_content"] == QUESTION
                assert "конспекты" in await running
                assert "конспекты" in await beside
                for thread in "12":
                    state = (await app.get(f"/state/{thread}"))["state"]
                    assert state["generated_material"] == known(PROMPTS["generating_content"])
                assert (await app.get("/health"))["llm"] == {"llamacpp": False, "second": True}
                killed = asyncio.create_task(app.lesson("1", NOTES))
                await synthesis.wait()
                app.process.send_signal(signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    await killed
            service.prompted.clear()
            service.traced.clear()
            async with learnflow(changed, service, **chain) as app:
                state = (await app.get("/state/1"))["state"]
                assert (state["recognized_notes"], state["synthesized_material"]) == (NOTES, "")
                assert "Готово" in await app.lesson("1", "go on")
                assert (await app.get("/state/2"))["state"]["generated_material"], "the other lesson is still there"
                assert await outputs(service, len(RESUMED)) == sorted(known(PROMPTS[node]) for node in RESUMED)
    assert service.prompted == RESUMED, "nothing that was done is done again"


def picture() -> bytes:
    """A white page as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\xff" * 64 for _ in range(64)))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def photographed(app: App) -> str:
    """A lesson with a photographed page."""
    uploaded = await app.client.post("/upload-images/3", files=[("files", ("page.png", picture(), "image/png"))])
    assert uploaded.status_code == 200, uploaded.text
    return await app.lesson("3", QUESTION, uploaded.json()["uploaded_files"])


async def test_a_photographed_page_on_servers_then_on_tapes(changed: Path, service: Any, tmp_path: Path) -> None:
    """The page goes to the only provider that sees; on the tapes there is no server at all."""
    chain = {
        "LLM_PROVIDERS": "llamacpp,eyes",
        "EYES_MODEL": "fault-model",
        "EYES_CAPABILITIES": "vision",
        "LLM_REPLAY": str(tmp_path / "cassettes"),
    }
    async with FaultServer("openai", "RSA notes") as eyes, llamacpp() as (url, _):
        servers = {"LLAMACPP_BASE_URL": url, "EYES_BASE_URL": eyes.base_url}
        async with learnflow(changed, service, **chain, **servers, LLM_REPLAY_MODE="record") as app:
            assert "Готово" in await photographed(app)
            recorded = await outputs(service, PHOTOGRAPHED)
        assert len(eyes.seen) == 1
        assert "data:image/png;base64," in str(eyes.seen[0].body)
    prompts = list(service.prompted)
    assert known(PROMPTS["synthesis_material"]) in recorded
    service.traced.clear()
    service.prompted.clear()
    async with learnflow(changed, service, **chain, **servers) as app:
        assert "Готово" in await photographed(app)
        assert await outputs(service, PHOTOGRAPHED) == recorded
    assert service.prompted == prompts


async def test_the_students_text_shows_no_hint_of_ours(changed: Path, service: Any) -> None:
    """The answers fail, after the questions were asked: the error is in the student's material, without our address."""
    async with (
        llamacpp() as (url, server),
        watched(url, "answer_question", 1, server.kill) as address,
        learnflow(changed, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=address, LLM_PATIENCE="1") as app,
    ):
        assert "конспекты" in await app.lesson("1", QUESTION)
        assert "Готово" in await app.lesson("1", NOTES)
    files = (changed / "data" / "artifacts" / "1").rglob("answer_*.md")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert "Ошибка генерации ответа" in text
    assert "Попробуйте ещё раз" in text
    assert "LLAMACPP_BASE_URL" not in text
    assert "127.0.0.1" not in text


async def test_the_response_of_process_shows_no_hint_of_ours(changed: Path, service: Any) -> None:
    nowhere = {
        "LLM_PROVIDER": "llamacpp",
        "LLAMACPP_BASE_URL": f"http://127.0.0.1:{closed_port()}",
        "LLM_PATIENCE": "1",
    }
    async with learnflow(changed, service, **nowhere) as app:
        response = await app.client.post("/process", json={"thread_id": "1", "message": QUESTION})
    assert response.status_code == 500
    assert response.json()["detail"].startswith("Processing error: Модель")
    assert "LLAMACPP_BASE_URL" not in response.text
    assert "127.0.0.1" not in response.text
