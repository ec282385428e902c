"""The journal: which unfinished answers are continued, and what happens to their files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import TEXT, TOOL, IdleClockLoop, Quiz, request_text, router

from learnflow.llm import RouterProvider, TextDelta, errors, events, journal
from learnflow.llm.adapter.routable import Facts, RoutableProvider
from learnflow.llm.base import Call
from learnflow.llm.cli.journal import journal as journal_command
from learnflow.llm.completion import Completion, Resumed, ServedModel
from learnflow.llm.journal import JournalFile
from learnflow.llm.settings import Settings
from learnflow.llm.stream import Emit, Work
from learnflow.llm.testing import CutAnswer, ScriptedProvider, no_waiting

DIGEST = "0123456789abcdef" * 2
PIECES = ["RSA is a ", "public-key ", "crypto", "system. ", "Привет, мир! 🦊 "]
METHODS = ["generate", "complete", "stream"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(journal, "_warned", set())
    return tmp_path / "journal"


def open_file(folder: Path, digest: str = DIGEST) -> JournalFile:
    file = journal.open_file(Settings(llm_journal=folder), digest, Emit())
    assert file
    return file


def text_of(file: JournalFile) -> str:
    return "".join(file.pieces)


def write(folder: Path, pieces: list[str] = PIECES) -> Path:
    """Write a file as a process that was killed leaves it. Return its path."""
    file = open_file(folder)
    for piece in pieces:
        file._unwritten.append(piece)
        file.write()
    file.close()
    return file.path


def texts(folder: Path) -> list[str]:
    """Return the texts of all files."""
    return ["".join(journal.read(path)[0]) for path in journal.paths(folder)]


class Continuing(ScriptedProvider, RoutableProvider):
    """A provider that continues a prefill of TEXT."""

    def facts(self, model: str | None) -> Facts:
        return replace(super().facts(model), supports_prefill=True)

    def start(self, call: Call) -> Work:
        prompt = call.prompt
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            self.answers.insert(0, TEXT.removeprefix(prompt[-1]["content"]))
        self.answers = self.answers or [TEXT]
        return super().start(call)


class Stalling(ScriptedProvider):
    """A provider that stops after its first piece, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    def start(self, call: Call) -> Work:
        async def work(emit: Emit) -> Completion:
            emit(TextDelta(TEXT[:40]))
            await self.released.wait()
            emit(TextDelta(TEXT[40:]))
            return Completion(text=TEXT, finish="stop", provider=self.name, model=ServedModel("x"))

        return work


def cut_chain(text: str, **more: Any) -> RouterProvider:
    """Return a chain that breaks after this text."""
    return router(ScriptedProvider([CutAnswer([text])]), retries=0, **more)


async def interrupt(how: str, length: int = 40, **more: Any) -> None:
    """Send a request that fails after some characters of TEXT."""
    with pytest.raises(errors.LLMError), no_waiting():
        await request_text(cut_chain(TEXT[:length]), how, **more)


def warnings_of(seen: list[object]) -> list[events.JournalFailed]:
    return [event for event in seen if isinstance(event, events.JournalFailed)]


@pytest.mark.parametrize("how", METHODS)
async def test_interrupted_answer_is_continued_by_the_next_equal_call(folder: Path, how: str) -> None:
    await interrupt("stream")
    assert texts(folder) == [TEXT[:40]]
    own = Continuing()
    assert await request_text(router(own), how) == TEXT
    assert own.history[0].prompt[-1] == {"role": "assistant", "content": TEXT[:40].rpartition(" ")[0]}
    assert list(folder.iterdir()) == []


async def test_stream_yields_the_recorded_text_and_reports_its_source(folder: Path, events_seen: list[object]) -> None:
    await interrupt("stream")
    seen = [event async for event in router(Continuing()).stream("hi").events()]
    assert seen[0] == TextDelta(TEXT[:40])
    assert seen[1] == Resumed("scripted", 40, source="journal")
    assert Resumed("scripted", 40, source="journal") in events_seen
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == TEXT
    assert seen[-1].completion.resumed == 1  # type: ignore[union-attr]
    assert seen[-1].completion.text == TEXT  # type: ignore[union-attr]


@pytest.mark.parametrize("how", METHODS)
async def test_finished_answer_is_never_replayed(folder: Path, how: str) -> None:
    chain = router(ScriptedProvider(["the first answer", "the second answer"]))
    assert await request_text(chain, how) == "the first answer"
    assert list(folder.iterdir()) == []
    assert await request_text(chain, how) == "the second answer"


async def test_file_is_deleted_before_the_completion_is_returned(folder: Path) -> None:
    stream = router(ScriptedProvider(["a b"])).stream("hi")
    assert [await anext(stream), await anext(stream)] == ["a ", "b"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "more",
    [
        {"system": "Be brief"},
        {"max_tokens": 7},
        {"temperature": 0.1},
        {"model": "other"},
        {"seed": 1},
        {"stop": ["x"]},
        {"after": TEXT[:5]},
    ],
)
async def test_other_request_begins_its_own_answer(folder: Path, more: dict[str, Any]) -> None:
    await interrupt("stream")
    chain = router(ScriptedProvider(["another answer"]) if "after" not in more else Continuing())
    await request_text(chain, "generate", **more)
    assert texts(folder) == [TEXT[:40]]


async def test_timeout_session_and_metadata_do_not_make_another_request(folder: Path) -> None:
    await interrupt("stream", timeout=5, session="a", metadata={"node": "x"})
    assert await request_text(router(Continuing()), "generate", timeout=9, metadata={"node": "y"}) == TEXT
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("more", [{"tools": [TOOL]}, {"response_format": {"type": "json_object"}}])
async def test_answers_other_than_text_are_not_recorded(folder: Path, more: dict[str, Any]) -> None:
    with pytest.raises(errors.LLMError), no_waiting():
        await request_text(cut_chain('{"a": '), "stream", **more)
    assert not folder.exists()


async def test_call_that_forbids_continuation_is_not_recorded(folder: Path) -> None:
    await interrupt("stream", resume="raise")
    assert not folder.exists()


async def test_closing_a_stream_or_leaving_its_loop_deletes_the_file(folder: Path) -> None:
    chain = router(ScriptedProvider([["a ", "b ", "c "]] * 5))
    for leave in ("aclose", "with", "break", "events"):
        stream = chain.stream("hi", stop=[leave])
        if leave == "events":
            async for _ in stream.events():
                break
        elif leave == "with":
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
        if leave == "aclose":
            await stream.aclose()
        del stream
        for _ in range(5):
            await asyncio.sleep(0)
        assert texts(folder) == [], leave


@pytest.mark.parametrize("place", ["waiting", "in the body", "in the body of events", "after the body raised"])
async def test_cancelled_task_and_failed_body_keep_the_file(folder: Path, place: str) -> None:
    reached = asyncio.Event()

    async def read() -> None:
        stream = router(Stalling()).stream("hi")
        if place == "in the body of events":
            async for _ in stream.events():
                reached.set()
                await asyncio.Event().wait()
        async with stream:
            async for _ in stream:
                reached.set()
                if place == "waiting":
                    continue
                if place == "after the body raised":
                    raise OSError("the browser is gone")
                if place == "in the body":
                    await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await reached.wait()
    if place != "after the body raised":
        task.cancel()
    with pytest.raises((asyncio.CancelledError, OSError)):
        await task
    del task
    for _ in range(9):
        await asyncio.sleep(0)
    assert texts(folder) == [TEXT[:40]]


async def test_two_equal_requests_at_once_are_two_answers(folder: Path) -> None:
    provider = Stalling()
    first, second = router(provider).stream("hi"), router(provider).stream("hi")
    assert [await anext(first), await anext(second)] == [TEXT[:40], TEXT[:40]]
    assert len(journal.paths(folder)) == 2
    provider.released.set()
    assert [await anext(first), await anext(second)] == [TEXT[40:], TEXT[40:]]


async def test_text_is_written_within_a_second(folder: Path) -> None:
    stream = router(Stalling()).stream("hi")
    await anext(stream)
    assert texts(folder) == [""]
    await asyncio.sleep(journal._MAX_UNWRITTEN_S)
    assert texts(folder) == [TEXT[:40]]
    await stream.aclose()
    assert texts(folder) == []


async def test_text_that_no_provider_continues_begins_anew(folder: Path) -> None:
    await interrupt("stream")
    deviant = ScriptedProvider(["Something else entirely"] * 9)
    with no_waiting():
        assert await request_text(router(deviant), "stream") == "Something else entirely"
    assert list(folder.iterdir()) == []


class SlowDeviant(ScriptedProvider):
    """A provider that takes 6 seconds for an answer, and never continues a text."""

    def start(self, call: Call) -> Work:
        async def work(emit: Emit) -> Completion:
            await asyncio.sleep(6)
            emit(TextDelta("Something else"))
            return Completion(text="Something else", finish="stop", provider=self.name, model=ServedModel("x"))

        return work


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("keyword", ["timeout", "deadline"])
@pytest.mark.usefixtures("folder")
def test_answer_begun_anew_has_the_time_that_is_left(how: str, keyword: str) -> None:
    """The continuation takes 6 of 10 seconds, so that 4 are left for the new answer."""

    async def run() -> float:
        await interrupt("stream")
        began = asyncio.get_running_loop().time()
        call, chain = ({"timeout": 10}, {}) if keyword == "timeout" else ({}, {"deadline": 10})
        with pytest.raises(errors.TimedOut):
            await request_text(router(SlowDeviant(), **chain), how, **call)
        return asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=IdleClockLoop) as runner:
        assert 9.9 < runner.run(run()) < 10.1


@pytest.mark.parametrize("method", ["ainvoke", "astream", "stream"])
async def test_langchain_model_continues_a_text(folder: Path, method: str) -> None:
    from learnflow.llm.integrations.langchain import ChatLearnFlow  # noqa: PLC0415  # slow

    async def send(chain: RouterProvider, method: str) -> str:
        chat = ChatLearnFlow(provider=chain)
        if method == "ainvoke":
            return str((await chat.ainvoke("hi")).content)
        if method == "stream":
            return "".join(await asyncio.to_thread(lambda: [str(chunk.content) for chunk in chat.stream("hi")]))
        return "".join([str(chunk.content) async for chunk in chat.astream("hi")])

    with pytest.raises(errors.LLMError), no_waiting():
        await send(cut_chain(TEXT[:40]), "astream")
    assert texts(folder) == [TEXT[:40]]
    assert await send(router(Continuing()), method) == TEXT
    assert list(folder.iterdir()) == []


async def test_resumed_answers_are_counted(folder: Path) -> None:
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from learnflow.llm.integrations import prometheus  # noqa: PLC0415

    registry = CollectorRegistry()
    detach = prometheus.attach(registry)

    def count(source: str) -> float | None:
        return registry.get_sample_value(
            "learnflow_llm_continuations_started_total", {"provider": "scripted", "source": source}
        )

    await interrupt("stream")
    await request_text(router(Continuing()), "complete")
    assert (count("journal"), count("call"), count("stream")) == (1, None, None)
    await request_text(router(Continuing()), "complete", after=TEXT[:30])
    await request_text(router(ScriptedProvider([CutAnswer([TEXT[:40]])]), Continuing(), retries=0), "stream")
    assert (count("journal"), count("call"), count("stream")) == (1, 1, 1)
    detach()


def run_command(*arguments: str) -> Result:
    return CliRunner().invoke(journal_command, arguments, standalone_mode=False, catch_exceptions=False)


def test_command_lists_and_clears_unfinished_answers(folder: Path) -> None:
    assert "no answer is unfinished" in run_command("list").output
    path, text = write(folder), "".join(PIECES)
    used = open_file(folder, "f" * 32)
    used._unwritten.append("secret answer")
    used.write()
    (folder / "of another program.journal").write_text("x", encoding="utf-8")
    listed = run_command("list")
    assert listed.return_value == 0
    assert [line.split()[0] for line in listed.output.splitlines()] == ["FILE", path.name, used.path.name]
    assert str(len(text)) in listed.output
    assert "RSA" not in listed.output
    assert "secret" not in listed.output
    assert "1 unfinished answer deleted" in run_command("clear").output
    assert journal.paths(folder) == [used.path]
    assert len(list(folder.iterdir())) == 2
    used.close(deletes=True)
    assert "0 unfinished answers deleted" in run_command("clear").output


def test_command_requires_the_variable() -> None:
    result = run_command("list")
    assert result.return_value == 3
    assert "LLM_JOURNAL" in result.stderr


async def test_unreachable_provider_does_not_lose_the_text(folder: Path) -> None:
    await interrupt("stream")
    with pytest.raises(errors.ConnectionFailed), no_waiting():
        await request_text(router(ScriptedProvider([errors.ConnectionFailed("x")] * 9)), "stream")
    assert texts(folder) == [TEXT[:40]]


async def test_restarted_answer_replaces_the_recorded_text(folder: Path) -> None:
    chain = router(
        ScriptedProvider([CutAnswer(["nonsense "])]),
        ScriptedProvider(["Another beginning"] * 3, name="second"),
        retries=0,
    )
    with no_waiting():
        assert await chain.generate("hi") == "Another beginning"
    assert list(folder.iterdir()) == []


async def test_router_inside_a_provider_of_the_application_records_once(folder: Path) -> None:
    class Wrapper(ScriptedProvider):
        def stream(self, prompt: Any, *arguments: Any, **more: Any) -> Any:
            return cut_chain(TEXT[:40]).stream(prompt, *arguments, **more)

    with pytest.raises(errors.LLMError), no_waiting():
        await request_text(router(Wrapper(), retries=0), "stream")
    assert len(texts(folder)) == 1


async def test_record_cut_at_every_byte_is_used_up_to_its_last_whole_record(
    folder: Path, events_seen: list[object]
) -> None:
    path = write(folder)
    data = path.read_bytes()
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        file = open_file(folder)
        assert text_of(file) == "".join(PIECES[: data[:length].count(b"\n")])
        file(TextDelta("new text"))
        file.close()
        assert texts(folder) == [text_of(file) + "new text"]
        file.path.unlink()
    assert {event.fault for event in warnings_of(events_seen)} == {"it is not used (damaged, or of another version)"}


def test_changed_byte_is_never_used(folder: Path) -> None:
    path = write(folder)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        file = open_file(folder)
        assert "".join(PIECES).startswith(text_of(file))
        file.close(deletes=True)
        path.unlink(missing_ok=True)


def test_text_behind_a_damaged_record_is_not_used_again(folder: Path) -> None:
    """A new record may be as long as the damaged one, so that the record behind it would be whole again."""
    path = write(folder, ["first", "other", "third"])
    path.write_bytes(path.read_bytes().replace(b"other", b"wrong"))
    file = open_file(folder)
    assert text_of(file) == "first"
    file._unwritten.append("OTHER")
    file.close()
    assert texts(folder) == ["firstOTHER"]


@pytest.mark.parametrize("data", [b"\xff\n", b"x [\n", b"x " + b"[" * 100_000 + b"\n", b'x {"a": 1}\n', b"x 7\n"])
def test_file_of_another_format_is_deleted(folder: Path, data: bytes) -> None:
    path = write(folder)
    path.write_bytes(data)
    file = open_file(folder)
    assert text_of(file) == ""
    assert journal.paths(folder) == [file.path]
    assert file.path != path
    file.close(deletes=True)


@pytest.mark.parametrize(
    ("change", "is_deleted"),
    [
        ("old", True),
        ("version", True),
        ("request", True),
        ("link", False),
        ("pipe", False),
        ("owner", False),
        ("folder", False),
    ],
)
def test_unusable_file_is_not_used_and_reported_once(
    folder: Path, events_seen: list[object], change: str, is_deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder)
    data = path.read_bytes()
    path.unlink()
    if change == "old":
        path.write_bytes(data)
        os.utime(path, (time.time() - 90000, time.time() - 90000))
    elif change == "version":  # the same text with a checksum of another version
        checksum = hashlib.blake2b(data[17:-1], digest_size=8, key=b"2" + DIGEST.encode()).hexdigest()
        path.write_bytes(checksum.encode() + data[16:])
    elif change == "request":
        path.write_bytes(journal._encode(Path("f" * 32), PIECES))
    elif change == "owner":
        path.write_bytes(data)
        number, real = path.stat().st_ino, os.fstat

        def report_other_owner(descriptor: int) -> Any:
            status = real(descriptor)
            uid = status.st_uid + (status.st_ino == number)
            return os.stat_result((*status[:4], uid, *status[5:]))

        monkeypatch.setattr(os, "fstat", report_other_owner)
    elif change == "link":
        (folder.parent / "secret").write_bytes(data)
        path.symlink_to(folder.parent / "secret")
    elif change == "pipe":
        os.mkfifo(path)
        os.utime(path, (1, 1))
    else:
        path.mkdir()
    for _ in range(2):
        file = open_file(folder)
        assert text_of(file) == ""
        file.close(deletes=True)
    assert len(warnings_of(events_seen)) == 1
    assert os.path.lexists(path) is not is_deleted


def test_old_files_of_other_requests_are_deleted(folder: Path) -> None:
    path = write(folder)
    os.utime(path, (1, 1))
    other = open_file(folder, "f" * 32)
    assert journal.paths(folder) == [other.path]
    other.close(deletes=True)


def test_files_and_folder_are_private_and_have_no_prompt(folder: Path) -> None:
    path = write(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_prompt_is_not_written(folder: Path) -> None:
    with pytest.raises(errors.LLMError), no_waiting():
        await cut_chain(TEXT[:40]).stream("my secret diary", extra_body={"key": "sk-secret"}).final_completion()
    (path,) = folder.iterdir()
    assert "secret" not in path.read_text(encoding="utf-8")
    assert "secret" not in path.name


def test_folder_with_wider_rights_is_reported_once(folder: Path, events_seen: list[object]) -> None:
    folder.mkdir(mode=0o755)
    write(folder)
    write(folder)
    (warning,) = warnings_of(events_seen)
    assert "700" in warning.fault


def test_locked_file_is_left_to_its_owner(folder: Path) -> None:
    path = write(folder)
    first, second = open_file(folder), open_file(folder)
    assert (first.path, text_of(first), text_of(second)) == (path, "".join(PIECES), "")
    first.close()
    second.close(deletes=True)
    assert journal.paths(folder) == [path]


def test_lock_ends_with_the_parent_although_a_child_lives(folder: Path) -> None:
    """A child of a fork inherits descriptors. It must neither hold the lock nor write to the file."""
    ready, go = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        file = open_file(folder)
        file._unwritten.append("text of the parent")
        file.write()
        if os.fork() == 0:
            file._unwritten.append("text of the child")
            file.write()
            file.close(deletes=True)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        os._exit(0)  # like a kill: nothing is closed
    os.waitpid(parent, 0)
    reopened = open_file(folder)
    os.write(go[1], b"x")
    assert text_of(reopened) == "text of the parent"
    reopened.close(deletes=True)
    for descriptor in (*ready, *go):
        os.close(descriptor)


@pytest.mark.parametrize("writes", [0, 1])
async def test_full_disk_does_not_fail_the_answer(
    folder: Path, events_seen: list[object], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A write fails, or only a part of it is written."""

    def write_some(descriptor: int, data: bytes, at: int) -> int:
        if not writes:
            raise OSError(28, "No space left on device")
        return os.pwritev(descriptor, [data[:5]], at)

    monkeypatch.setattr(os, "pwrite", write_some)
    monkeypatch.setattr(journal, "_MAX_UNWRITTEN_CHARS", 1)
    for _ in range(2):
        assert await router(ScriptedProvider(["a b c d e"])).generate("hi") == "a b c d e"
    (warning,) = warnings_of(events_seen)
    assert ("the disk is full" if writes else "No space left") in warning.fault
    assert list(folder.iterdir()) == []


def test_text_is_written_once_the_disk_has_space_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_file(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, data, at: os.pwritev(descriptor, [data[:-1]], at))
        file._unwritten.append("a longer first part, ")
        file.write()
        assert texts(folder) == [""]
    file._unwritten.append("and a second one")
    file.close()
    assert texts(folder) == ["a longer first part, and a second one"]


async def test_folder_that_cannot_be_made_does_not_fail_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.setenv("LLM_JOURNAL", str(tmp_path / "file" / "journal"))
    monkeypatch.setattr(journal, "_warned", set())
    for _ in range(2):
        assert await router(ScriptedProvider(["a"])).generate("hi") == "a"
    assert len(warnings_of(events_seen)) == 1


async def test_sync_writes_each_record_to_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_JOURNAL_SYNC", "true")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(stat.S_IFMT(os.fstat(descriptor).st_mode)))
    assert await router(ScriptedProvider(["a b"])).generate("hi") == "a b"
    assert synced == [stat.S_IFDIR]  # of the deletion
    await interrupt("stream")
    await asyncio.get_running_loop().shutdown_default_executor()
    assert synced[1:] == [stat.S_IFREG, stat.S_IFDIR]


async def test_without_the_variable_nothing_is_wrapped(tmp_path: Path) -> None:
    run = router(Continuing())._run
    assert journal.with_journal(Settings(), 1.0, run, Call("hi")).func is run  # type: ignore[arg-type, attr-defined]
    await interrupt("stream")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("after", [TEXT[:1], TEXT[:40], TEXT[:41], TEXT[:-1], TEXT])
async def test_after_continues_a_text(after: str) -> None:
    assert await router(Continuing()).generate("hi", after=after) == TEXT
    completion = await router(Continuing()).complete("hi", after=after)
    assert (completion.text, completion.resumed) == (TEXT, 1)
    assert await request_text(router(Continuing()), "stream", after=after) == TEXT[len(after) :]
    assert await request_text(router(Continuing()), "stream", after=after, include_prior=True) == TEXT


async def test_partial_of_an_error_can_be_given_as_it_is() -> None:
    for length in (0, 40):
        with pytest.raises(errors.LLMError) as caught, no_waiting():
            await cut_chain(TEXT[:length]).stream("hi").final_completion()
        chain = router(Continuing() if length else ScriptedProvider([TEXT]))
        assert await chain.generate("hi", after=caught.value.partial, include_prior=True) == TEXT
    with pytest.raises(errors.LLMError) as caught, no_waiting():
        await cut_chain(TEXT[:60]).stream("hi", after=TEXT[:40]).final_completion()
    assert caught.value.partial.startswith(TEXT[:40])


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"response_format": Quiz}, "response_format="),
        ({"response_format": {"type": "json_object"}}, "response_format="),
        ({"tools": [TOOL]}, "tools="),
        ({"after": 7}, "after="),
        ({"include_prior": "yes"}, "include_prior="),
    ],
)
async def test_after_is_refused_by_name(more: dict[str, Any], name: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=name):
        await router(Continuing()).complete("hi", **{"after": "x", **more})


async def test_after_is_part_of_max_tokens() -> None:
    own = Continuing()
    await router(own).generate("hi", after=TEXT[:40], max_tokens=30)
    assert own.history[0].max_tokens < 30
    assert type(own.history[0].max_tokens) is int


async def test_provider_that_cannot_continue_refuses_after() -> None:
    with pytest.raises(errors.Unsupported, match="after="):
        await ScriptedProvider(["x"]).generate("hi", after="y")
