"""Equals share requests by cached prefixes, and a failed one is replaced."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support import idle_clock

from learnflow.llm import RouterProvider, errors, get_provider
from learnflow.llm.adapter.capacity import CAPACITY, Capacity, Ticket
from learnflow.llm.base import Slot
from learnflow.llm.cli import main
from learnflow.llm.cli.explain import verdicts_of
from learnflow.llm.providers import VLLMProvider
from learnflow.llm.testing import Fault, FaultServer, closed_port

TEXT = "The quick brown fox jumps over the lazy dog."


def flying() -> list[int]:
    """Return the requests in flight of this loop."""
    return list(CAPACITY.in_flight_counts.get(asyncio.get_running_loop(), {}).values())


@pytest.fixture(autouse=True)
async def nothing_held() -> AsyncIterator[None]:
    CAPACITY.recent_prompts.clear()
    yield
    assert not flying()  # every slot is released


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FaultServer]]:
    """Run gpu1 and gpu2, each with a concurrency limit of one, and a third that is no equal."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FaultServer("llamacpp", TEXT)) for _ in range(3)]
        for name, server in zip(("gpu1", "gpu2", "gpu3"), servers, strict=True):
            monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.root)
            monkeypatch.setenv(f"{name.upper()}_KIND", "llamacpp")
            monkeypatch.setenv(f"{name.upper()}_MAX_CONCURRENCY", "1")
        yield servers


def material(number: int, question: int) -> str:
    return f"Material {number}: {'one two three ' * 400}\nQuestion {question}"


async def test_plus_in_router_name_joins_equals(two: list[FaultServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "gpu1 + gpu2, gpu3")
    assert get_provider().name == "gpu1+gpu2,gpu3"
    assert RouterProvider(primary=["gpu1", "gpu2"], fallback=["gpu3"]).name == "gpu1+gpu2,gpu3"
    assert RouterProvider("gpu1", ["gpu2"]).name == "gpu1,gpu2"
    assert [row["rank"] for row in get_provider().status()] == [0, 0, 1]


async def test_explain_and_status_show_rank_requests_in_flight_and_cached_share(
    two: list[FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    router = RouterProvider("gpu1+gpu2", ["gpu3"])
    assert [row.rank for row in verdicts_of(router, "hi")] == [0, 0, 1]
    assert [(row["in_flight"], row["cached_share"]) for row in router.status()] == [(0, None)] * 3
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 90}}
    output = {"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}], "usage": usage}
    for server in two:
        server.script = [Fault("refuse", status=200, body=json.dumps(output).encode())]
    await router.generate("hi")
    assert sorted(row["cached_share"] or 0 for row in router.status()) == [0, 0, 0.9]
    for server in two:
        server.fault = Fault("stall", after=1)
    async with router.stream("hi") as busy:
        await anext(busy)
        assert sorted(row["in_flight"] for row in router.status()) == [0, 0, 1]
        assert {row["concurrency_limit"] for row in router.status()} == {1}


async def test_slots_of_server_are_concurrency_limit(two: list[FaultServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPU1_MAX_CONCURRENCY")
    two[0].responses["/props"] = {**two[0].responses["/props"], "total_slots": 3}
    router = RouterProvider("gpu1+gpu2")
    await router.generate("hi")
    assert [row["concurrency_limit"] for row in router.status()] == [3, 1]


async def test_conversation_goes_to_server_with_its_prefix_in_cache(two: list[FaultServer]) -> None:
    router = RouterProvider("gpu1+gpu2")
    for number in range(16):  # a hash of random ports decides: in one of 32 runs all six go to one server
        before = [len(server.seen) for server in two]
        for question in range(3):
            await router.generate(material(number, question))
        counts = [len(server.seen) - there for server, there in zip(two, before, strict=True)]
        assert sorted(counts) == [0, 0, 3]
    assert all(server.seen for server in two[:2])  # not all at one server


@pytest.mark.parametrize("system", ["", "You teach. " * 200])
async def test_repeated_text_is_recognised_at_any_position(two: list[FaultServer], system: str) -> None:
    """LearnFlow sends text and question in one system prompt; others have a long one before every text."""
    router = RouterProvider("gpu1+gpu2")
    for number in range(4):
        before = [len(server.seen) for server in two]
        for question in range(3):
            text = f"{system}Material {number}: {f'lesson {number} ' * 500}\nQuestion {question}"
            await router.generate([{"role": "system", "content": text}, {"role": "user", "content": "Answer it."}])
        counts = [len(server.seen) - there for server, there in zip(two, before, strict=True)]
        assert sorted(counts) == [0, 0, 3]


async def test_requests_go_to_idle_equal_and_wait_only_if_all_are_full(two: list[FaultServer]) -> None:
    for server in two:
        server.fault = Fault("slow", seconds=0.005)
    router = RouterProvider("gpu1+gpu2", ["gpu3"])
    most = 0

    async def ask(question: int) -> str:
        nonlocal most
        output = await router.generate(material(1, question))
        most = max(most, *flying(), 0)
        return output

    assert await asyncio.gather(*map(ask, range(8))) == [TEXT] * 8
    one, other, lower = (len(server.seen) for server in two)
    assert (one + other, lower) == (8, 0)
    assert min(one, other) >= 2
    assert most == 1


async def test_freed_slot_goes_to_request_with_cached_prefix(two: list[FaultServer]) -> None:
    for server in two:
        server.fault = Fault("slow", seconds=0.005)
    router = RouterProvider("gpu1+gpu2")
    await asyncio.gather(*(router.generate(material(number, question)) for question in range(8) for number in (1, 2)))
    for server in two[:2]:
        numbers = [str(request.body["messages"]).partition("Material ")[2][0] for request in server.seen]
        changes = sum(a != b for a, b in itertools.pairwise(numbers))
        assert changes <= 1, numbers  # at the end one server takes requests of the other


@pytest.mark.parametrize(("spill", "lower"), [("no", 0), ("local", 1), ("cloud", 1)])
async def test_full_equals_spill_to_next_rank_only_with_llm_spill(
    two: list[FaultServer], monkeypatch: pytest.MonkeyPatch, spill: str, lower: int
) -> None:
    monkeypatch.setenv("LLM_SPILL", spill)
    for server in two:
        server.fault = Fault("slow", seconds=0.005)
    router = RouterProvider("gpu1+gpu2", ["gpu3"])
    await asyncio.gather(*(router.generate(material(number, 0)) for number in range(3)))
    assert len(two[2].seen) == lower


async def test_wait_for_slot_ends_at_deadline(two: list[FaultServer]) -> None:
    for server in two:
        server.fault = Fault("hang")
    router = RouterProvider("gpu1+gpu2")
    held = [asyncio.create_task(router.generate(material(number, 0))) for number in (1, 2)]
    while len(flying()) < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(errors.DeadlineExceeded, match=r"free slot at one of gpu\d\+gpu\d.*LLM_SPILL"):
        await router.generate("hi", timeout=0.2)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert not flying()


async def test_cancelled_request_releases_slot(two: list[FaultServer]) -> None:
    for server in two:
        server.fault = Fault("hang")
    router = RouterProvider("gpu1+gpu2")
    tasks = [asyncio.create_task(router.generate(material(number, 0))) for number in range(6)]
    while len(flying()) < 2:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not flying()
    for server in two:
        server.fault = None
    assert await router.generate("hi") == TEXT


async def test_broken_answer_is_continued_by_equal_first(two: list[FaultServer]) -> None:
    router = RouterProvider(["gpu1", "gpu2"], ["gpu3"])
    await router.generate("hi")
    next(server for server in two if server.seen).script = [Fault("cut", after=4)]
    assert "".join([piece async for piece in router.stream("hi")]) == TEXT
    assert [len(server.seen) for server in two[:2]] in ([2, 1], [1, 2])
    assert not two[2].seen


@pytest.mark.parametrize("status", [429, 503])
async def test_refused_request_is_sent_once_to_other_equal(two: list[FaultServer], status: int) -> None:
    router = RouterProvider(["gpu1", "gpu2"], ["gpu3"])
    await router.generate("hi")
    first = next(server for server in two if server.seen)
    first.fault = Fault("refuse", status=status, body=b"{}", headers={"retry-after": "7"})
    assert await router.generate("hi") == TEXT
    assert sorted(len(server.seen) for server in two[:2]) == [1, 2]
    assert not two[2].seen


async def test_death_of_one_equal_loses_no_answer(two: list[FaultServer], monkeypatch: pytest.MonkeyPatch) -> None:
    dying = FaultServer("llamacpp", TEXT, fault=Fault("slow", seconds=0.003))
    await dying.__aenter__()
    monkeypatch.setenv("GPU2_BASE_URL", dying.root)
    two[0].fault = Fault("slow", seconds=0.003)
    router = RouterProvider("gpu1+gpu2")

    async def ask(question: int) -> str:
        return "".join([piece async for piece in router.stream(material(question % 2, question))])

    tasks = [asyncio.create_task(ask(question)) for question in range(12)]
    while len(dying.seen) < 2:  # while others run
        await asyncio.sleep(0.005)
    await dying.__aexit__(None, None, None)
    assert await asyncio.gather(*tasks) == [TEXT] * 12


async def test_slow_equal_never_exceeds_its_limit() -> None:
    """A hundred requests without limits: no server has more than its share, a quarter, and one."""
    places, rooms, fast = Capacity(), {"fast": None, "slow": None, "third": None}, list[Slot]()
    for number in range(100):
        head = (f"the same {number % 2}",)
        place = places.try_acquire(places.sort_addresses(rooms, head)[0], None, head)
        fast += [place] if place.address == "fast" else []
        under_way = sum(map(places.in_flight, rooms))
        assert max(map(places.in_flight, rooms)) <= -(-under_way * 5 // 12)
        if number % 2 and fast:
            places.release(fast.pop())
    assert places.in_flight("slow") < 100 * 5 / 12


@pytest.mark.parametrize("behind", [1, 17, 40])
@idle_clock
async def test_cached_prefixes_do_not_starve_other_requests(behind: int) -> None:
    places, rooms = Capacity(), {"gpu1": 1}
    place = places.try_acquire("gpu1", None, KNOWN)
    places.recent_prompts["gone"] = OrderedDict({("held by one that has gone",): None})

    async def one(head: str) -> str:
        nonlocal place
        turn, taken = Ticket(), None
        while not taken:  # it chooses again, in its turn
            taken = await places.wait(
                {**rooms, "gone": 0}, KNOWN if head == "known" else (head,), turn, 9 if head == "known" else 1e-3
            )
        place = taken
        return head

    served = list[str]()
    tasks = [asyncio.create_task(one("held by one that has gone"))]
    tasks += [asyncio.create_task(one("known")) for _ in range(behind)]
    for _ in range(60):
        await asyncio.sleep(0.0003)
        tasks.append(asyncio.create_task(one("known")))
        await asyncio.sleep(0.0004)
        places.release(place)
        while not (done := [task for task in tasks if task.done()]):
            await asyncio.sleep(0)
        served.append(done[0].result())
        tasks.remove(done[0])
        if served[-1] != "known":
            break
    assert len(served) <= 18
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_limits_of_servers_decide_their_shares() -> None:
    places, rooms = Capacity(), {"small": 2, "large": 8}
    for number in range(10):
        places.try_acquire(places.sort_addresses(rooms, (str(number),))[0], None, (str(number),))
    assert {name: places.in_flight(name) for name in rooms} == rooms


def test_closed_loop_leaves_no_slot_taken() -> None:
    places = Capacity()

    async def leaves_without_a_word() -> None:
        places.try_acquire("gpu1", None, ("a beginning",))

    asyncio.run(leaves_without_a_word())
    assert not places.is_full("gpu1", 1)


KNOWN = tuple("a longer beginning")
ODD: dict[str, Any] = {
    "a number": 10**5000,
    "a content": [{"role": "user", "content": 10**5000}],
    "a part": [{"role": "user", "content": [1]}],
}


@pytest.mark.parametrize("name", ODD)
async def test_invalid_prompt_is_refused_by_name(two: list[FaultServer], name: str) -> None:
    for router in (RouterProvider("gpu1+gpu2"), RouterProvider("gpu1")):
        with pytest.raises(errors.LLMError):
            await router.generate(ODD[name])


@pytest.mark.parametrize("command", ["status", "doctor", "explain hi", "ask hi"])
@pytest.mark.usefixtures("usual")
async def test_commands_accept_equals(
    two: list[FaultServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "gpu1+gpu2,gpu3")
    code = await asyncio.to_thread(main.main, command.split())
    output = capsys.readouterr()
    assert (code, "gpu1+gpu2" in output.err) == (0, False), output
    if command != "ask hi":
        assert "gpu1" in output.out
        assert "gpu2" in output.out


async def test_providers_of_one_address_share_its_limit() -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("stall", after=1)) as server:
        one, other = (VLLMProvider(base_url=server.base_url, model="fault-model", max_concurrency=1) for _ in range(2))
        async with one.stream("hi") as busy:
            await anext(busy)
            with pytest.raises(errors.DeadlineExceeded, match=r"free slot \(max_concurrency=1\)"):
                await other.generate("hi", timeout=0.2)
            with pytest.raises(errors.DeadlineExceeded, match=r"free slot \(max_concurrency=1\)"):
                await RouterProvider(other).generate("hi", timeout=0.2)
            waiting = asyncio.create_task(other.generate("hi"))
            await asyncio.sleep(0)
            assert RouterProvider(one).status()[0]["in_flight"] == 1
        server.fault = None
        assert await waiting == TEXT
        assert len(server.seen) == 2


async def test_queued_requests_do_not_wait_one_by_one_for_unreachable_server() -> None:
    """Requests queued behind one that finds the server unreachable fail with it."""
    provider = VLLMProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m", max_concurrency=1)
    outcomes = await asyncio.gather(*(provider.generate("hi") for _ in range(3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.ConnectionFailed}
