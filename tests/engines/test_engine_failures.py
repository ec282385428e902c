"""Servers behind an engine that are killed, answers that break, and refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from engines import MARKS, Configure, Report, Start, StartEngine
from llama import ANSWERS, RSA, TEXTS, LlamaServer, answer
from support import relay

from learnflow.llm import LLMError, errors, events
from learnflow.llm.testing import Fault, FaultServer

pytestmark = MARKS


class Victim:
    """Kills the first server that reaches a point of an answer, and no other."""

    def __init__(self) -> None:
        self.server: LlamaServer | None = None

    def kills(self, server: LlamaServer) -> Callable[[], bool]:
        """Return the function for a relay in front of a server."""

        def reached() -> bool:
            if self.server is None:
                self.server = server
                return server.killed()
            return False

        return reached


@pytest.mark.parametrize("how", ["stream", "generate"])
@pytest.mark.parametrize("characters", [1, 30, 300])
async def test_answer_of_killed_server_is_continued_at_same_address(
    start_llama: Start,
    start_engine: StartEngine,
    configure: Configure,
    report: Report,
    how: str,
    characters: int,
    events_seen: list[object],
) -> None:
    one, two, victim = start_llama(), start_llama(), Victim()
    async with relay(one.url, characters, victim.kills(one)) as a, relay(two.url, characters, victim.kills(two)) as b:
        engine = await start_engine([a, b]).healthy()
        text = await answer(configure(engine), how, RSA, session="lesson-7")
        after = [await answer(configure(engine), how, "Say pong", session=f"lesson-{at}") for at in range(8)]
    continued = [event for event in events_seen if isinstance(event, events.Resumed)]
    attempts = sum(isinstance(event, events.AttemptStarted) for event in events_seen) - len(after)
    same = "identical" if text == TEXTS[RSA] else "other text"
    report(
        f"server killed after {characters} characters, {how}",
        f"{same}, {len(continued)} continuation, {attempts} attempts; next {after.count('pong')} of 8",
    )
    assert victim.server
    assert text == TEXTS[RSA]
    # the engine may lose the only piece that it has not sent yet
    assert len(continued) == 1 or (characters == 1 and not continued)
    assert after == ["pong"] * 8


@pytest.mark.parametrize("advised", [True, False], ids=["advised", "default"])
async def test_requests_after_death_of_server(
    start_llama: Start, start_engine: StartEngine, configure: Configure, report: Report, advised: bool
) -> None:
    """An engine with its default options gives a dead server requests; with the advised ones it does not."""
    servers = start_llama(), start_llama()
    options = () if advised else ("--disable-retries",)
    engine = await start_engine([server.url for server in servers], *options, advised=advised).healthy()
    provider = configure(engine)
    for at in range(8):  # both servers have sessions
        await provider.generate("Say pong", temperature=0, session=f"lesson-{at}")
    servers[0].kill()
    answered = 0
    for at in range(8):
        try:
            answered += await provider.generate("Say pong", temperature=0, session=f"lesson-{at}") == "pong"
        except LLMError as error:
            assert isinstance(error, errors.ServerFailed | errors.Overloaded)
    report(
        f"server killed between requests, {'advised options' if advised else 'default options, retries off'}",
        f"{answered} of 8 answered",
    )
    if advised:
        assert answered == 8


async def test_first_request_is_answered_while_one_server_is_unhealthy(
    start_engine: StartEngine, configure: Configure, report: Report
) -> None:
    """vllm-router then responds with 503 on ``/health``, as a vLLM does whose engine is dead."""
    async with FaultServer("vllm") as living:
        async with FaultServer("vllm") as dying:
            engine = await start_engine([living.root, dying.root], key="").healthy()
        await engine.healthy(1)
        provider = configure(engine, GPUS_API_KEY="", GPUS_KIND="vllm")
        answers = [await provider.generate("hi", session=f"lesson-{at}") for at in range(4)]
    report("one of two vLLM servers is unhealthy", f"{len(answers)} of 4 answered")
    assert answers == ["The quick brown fox jumps over the lazy dog."] * 4


async def test_all_answers_while_one_server_is_killed(
    start_llama: Start, start_engine: StartEngine, configure: Configure, report: Report
) -> None:
    one, two, victim = start_llama(), start_llama(), Victim()
    known = [item for item in ANSWERS if not item.reasoning and len(item.answer) > 100]
    async with relay(one.url, 100, victim.kills(one)) as a, relay(two.url, 100, victim.kills(two)) as b:
        provider = configure(await start_engine([a, b]).healthy())
        texts = await asyncio.gather(
            *(answer(provider, "stream", item.prompt, session=f"lesson-{at}") for at, item in enumerate(known))
        )
    same = sum(text == item.answer for text, item in zip(texts, known, strict=True))
    report("a server killed under load", f"{same} of {len(known)} answers identical")
    assert victim.server
    assert same == len(known)


BROKEN = {
    "cut": errors.AnswerCut,
    "drop": errors.AnswerCut,
    "reset": errors.AnswerCut,
    "done_without_finish": errors.FinishMissing,
    "error_frame": errors.ErrorInAnswer,
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_answer_has_name(
    start_engine: StartEngine, configure: Configure, report: Report, fault: str
) -> None:
    """No broken answer becomes a complete one."""
    async with FaultServer("llamacpp", fault=Fault(fault)) as server:  # type: ignore[arg-type]
        engine = await start_engine([server.root], key="").healthy()
        provider = configure(engine, GPUS_API_KEY="", LLM_RETRIES="0")
        with pytest.raises(errors.BrokenAnswer) as caught:
            await provider.generate("hi", session="lesson-7")
    name = type(caught.value).__name__
    report(f"broken answer: {fault}", name if name == BROKEN[fault].__name__ else f"{name} ({BROKEN[fault].__name__})")
    assert caught.value.partial


@pytest.mark.parametrize(("status", "error"), [(429, errors.RateLimited), (503, errors.Overloaded)])
@pytest.mark.parametrize("retries", ["off", "on"])
async def test_refusals_reach_server_once_if_retries_of_engine_are_off(
    start_engine: StartEngine, configure: Configure, report: Report, status: int, error: type[LLMError], retries: str
) -> None:
    fault = Fault("refuse", status=status, body=b"{}", headers={"retry-after": "7"})
    async with FaultServer("llamacpp", fault=fault) as one, FaultServer("llamacpp", fault=fault) as two:
        options = ("--disable-retries",) if retries == "off" else ()
        engine = await start_engine([one.root, two.root], *options, key="", advised=False).healthy()
        provider = configure(engine, GPUS_API_KEY="", LLM_RETRIES="0")
        with pytest.raises(error) as caught:
            await provider.generate("hi", session="lesson-7")
        requests = len(one.seen) + len(two.seen)
    wait = getattr(caught.value, "retry_after", None)
    report(f"{status} with the engine's retries {retries}", f"requests: {requests}, Retry-After: {wait}")
    assert (requests == 1) is (retries == "off")
    if retries == "off":
        assert wait == 7
