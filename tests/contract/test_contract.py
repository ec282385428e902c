"""Every row does every behaviour, played from its cassette by vcrpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from behaviours import ANSWERS, BEHAVIOURS
from subjects import SUBJECTS, absent, cassette_of, fresh
from vcr_player import deserialize, played_by_vcrpy, unmarked

from learnflow.llm import Completion, Finished, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta, errors
from learnflow.llm.base import AbstractProvider
from learnflow.llm.replay import cassette
from learnflow.llm.replay.cassette import RecordedResponse
from learnflow.llm.replay.player import Player
from learnflow.llm.testing import forget, no_model_calls, replaying

CELLS = [(row, behaviour) for row in SUBJECTS for behaviour in BEHAVIOURS if behaviour not in absent().get(row, {})]


@pytest.fixture(autouse=True)
def nothing_known_yet() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
async def test_contract(row: str, behaviour: str) -> None:
    file = cassette_of(row, behaviour)
    origin, _ = cassette.load(file.read_text(encoding="utf-8"))
    with played_by_vcrpy(file):
        await BEHAVIOURS[behaviour](fresh(row, answers=origin.get("answers", ANSWERS)))


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
async def test_the_events_of_a_stream_say_what_complete_says(
    row: str, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AbstractProvider, "complete", _by_events)
    await test_contract(row, behaviour)


async def _by_events(provider: AbstractProvider, *given: Any, **more: Any) -> Completion:
    """As ``complete``, by way of the events, which must say the same."""
    stream = provider.stream(*given, **more)
    events = [event async for event in stream.events()]
    done, calls = stream.completion, dict[tuple[str, str], str]()
    for event in events:
        if isinstance(event, ToolCallDelta):
            calls[event.id, event.name] = calls.get((event.id, event.name), "") + event.arguments
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == done.text
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == (done.reasoning or "")
    read = [ToolCall(*known, json.loads(arguments or "{}")) for known, arguments in calls.items()]
    assert read == list(done.tool_calls)
    assert events[-1] == Finished(done)
    return done


@pytest.mark.parametrize("row", SUBJECTS)
async def test_our_own_player_plays_a_row_as_vcrpy_does(row: str) -> None:
    """What an application's CI has, LLM_REPLAY and the plugin, through the whole adapter."""
    for behaviour in ("stream", "cut", "wrong_key"):
        if (row, behaviour) not in CELLS:
            continue
        file = cassette_of(row, behaviour)
        origin, _ = cassette.load(file.read_text(encoding="utf-8"))
        with no_model_calls(), replaying(file) as player:
            await BEHAVIOURS[behaviour](fresh(row, answers=origin.get("answers", ANSWERS)))
        assert not player.missing
        assert not player.unplayed
        forget()


def same(said: RecordedResponse) -> tuple[object, ...]:
    return (said.status, said.headers, said.pieces, repr(said.failure), said.left)


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
def test_our_own_player_gives_what_vcrpy_gives(row: str, behaviour: str) -> None:
    text = cassette_of(row, behaviour).read_text(encoding="utf-8")
    _, interactions = cassette.load(text)
    player = Player({behaviour: text})
    for each, given in zip(interactions, deserialize(text)["interactions"], strict=True):
        said = given["response"]
        headers = {name: values[0] for name, values in said["headers"].items()}
        played = unmarked(said["status"]["code"], headers, said["body"]["string"])
        assert same(player.play(each.request)) == same(played) == same(each.response)
        assert json.dumps(each.request.body) == (given["request"]["body"] or "null")
    assert not player.unplayed


def test_the_cassettes_are_the_contract() -> None:
    """No cassette is missing, none is there twice over, none is left from another time."""
    expected = {cassette_of(row, behaviour) for row, behaviour in CELLS}
    assert set(cassette_of("", "").parent.rglob("*.yaml")) - {cassette_of("", "absent")} == expected
    for row, why in absent().items():
        assert row in SUBJECTS
        assert set(why) < set(BEHAVIOURS)
        assert all(why.values())


@pytest.mark.parametrize("row", SUBJECTS)
async def test_neither_a_wrong_key_nor_another_model_replays_a_good_answer(row: str) -> None:
    good = fresh(row)
    file = cassette_of(row, "generate")
    for one, key in ((good, "wrong-key"), (fresh(row, model="another-model"), None)):
        if key and not one.key:
            continue
        with replaying(file), pytest.raises(errors.NotRecorded):
            await one.provider(key).generate("Say hello", temperature=0)
        with pytest.raises((errors.NotRecorded, errors.Unsupported)), played_by_vcrpy(file):
            await one.provider(key).generate("Say hello", temperature=0)
        forget()
