"""Every provider shows every behaviour, replayed from its cassette."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import record
from authored import VOICES
from behaviours import ANSWERS, BEHAVIOURS
from subjects import SUBJECTS, absent, cassette_of, fresh, loaded
from vcr_player import played_by_vcrpy

from learnflow.llm import Completion, Finished, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta, errors
from learnflow.llm.base import AbstractProvider
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.replay.cassette import Interaction, RecordedRequest, RecordedResponse
from learnflow.llm.testing import clear_learned_state, no_model_calls, replaying

CELLS = [(row, behaviour) for row in SUBJECTS for behaviour in BEHAVIOURS if behaviour not in absent().get(row, {})]
# The behaviours are spread over the providers, so that every dialect and every kind of key is replayed.
PLAYED_BY_VCRPY = {
    behaviour: having[at % len(having)]
    for at, behaviour in enumerate(BEHAVIOURS)
    if (having := [row for row in SUBJECTS if (row, behaviour) in CELLS])
}


@pytest.fixture(autouse=True)
def without_learned_state() -> Iterator[None]:
    clear_learned_state()
    yield
    clear_learned_state()


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
async def test_provider_replays_its_cassette_and_shows_behaviour(row: str, behaviour: str) -> None:
    """Use the player of ``LLM_REPLAY`` and of the pytest plugin, through the whole adapter."""
    origin, _ = loaded(row, behaviour)
    with no_model_calls(), replaying(cassette_of(row, behaviour)) as player:
        await BEHAVIOURS[behaviour](fresh(row, answers=origin.get("answers", ANSWERS)))
    assert not [missing for missing in player.missing if " GET " not in missing]  # a probe may find no such page
    assert not player.unplayed


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_vcrpy_plays_cassette_of_behaviour(behaviour: str) -> None:
    """Check ADR 7: vcrpy can read a cassette. One provider per behaviour shows it."""
    origin, _ = loaded(PLAYED_BY_VCRPY[behaviour], behaviour)
    with played_by_vcrpy(cassette_of(PLAYED_BY_VCRPY[behaviour], behaviour)):
        await BEHAVIOURS[behaviour](fresh(PLAYED_BY_VCRPY[behaviour], answers=origin.get("answers", ANSWERS)))


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
async def test_events_of_stream_equal_completion(row: str, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AbstractProvider, "complete", _by_events)
    await test_provider_replays_its_cassette_and_shows_behaviour(row, behaviour)


async def _by_events(provider: AbstractProvider, *given: Any, **more: Any) -> Completion:
    """Return the completion of a stream, after checking that its events have the same text and calls."""
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


def test_every_cell_of_the_contract_has_one_cassette_and_no_other_exists() -> None:
    expected = {cassette_of(row, behaviour) for row, behaviour in CELLS}
    assert set(cassette_of("", "").parent.rglob("*.yaml")) - {cassette_of("", "absent")} == expected
    for row, why in absent().items():
        assert row in SUBJECTS
        assert set(why) < set(BEHAVIOURS)
        assert all(why.values())


def missing_contract(vendors: Iterable[str]) -> list[str]:
    """Return a sentence for each part of the contract that a vendor lacks."""
    faults = []
    for row in vendors:
        if row not in SUBJECTS:
            faults.append(f"{row} has no Subject. Add it to SUBJECTS in tests/contract/subjects.py")
        if row not in VOICES:
            faults.append(f"{row} has no Voice. Add its responses to VOICES in tests/contract/authored.py")
        reasons = absent().get(row, {})
        cells = [name for name in BEHAVIOURS if name not in reasons and not cassette_of(row, name).is_file()]
        if cells:
            how = f"Run make record PROVIDER={row}, or give reasons in cassettes/absent.yaml"
            faults.append(f"{row} has no cassette of {', '.join(cells)}. {how}")
    return faults


def test_every_vendor_has_its_contract() -> None:
    faults = missing_contract(SPECS.keys() - {"embedded"})  # it plays llama.cpp's cassettes; tests/llamacpp has its own
    assert not faults, "\n".join(faults)


def test_missing_parts_of_a_contract_are_named() -> None:
    subject, voice, cassettes = missing_contract(["acme"])
    assert subject == "acme has no Subject. Add it to SUBJECTS in tests/contract/subjects.py"
    assert voice == "acme has no Voice. Add its responses to VOICES in tests/contract/authored.py"
    assert cassettes.startswith(f"acme has no cassette of {', '.join(BEHAVIOURS)}. Run make record PROVIDER=acme")


@pytest.mark.parametrize("row", SUBJECTS)
async def test_wrong_key_or_other_model_does_not_replay_an_answer(row: str) -> None:
    good = fresh(row)
    file = cassette_of(row, "generate")
    for one, key in ((good, "wrong-key"), (fresh(row, model="another-model"), None)):
        if key and not one.key:
            continue
        with replaying(file), pytest.raises(errors.NotRecorded):
            await one.provider(key).generate("Say hello", temperature=0)
        with pytest.raises((errors.NotRecorded, errors.Unsupported)), played_by_vcrpy(file):
            await one.provider(key).generate("Say hello", temperature=0)
        clear_learned_state()


def test_calm_replaces_volatile_fields() -> None:
    page = b'{"id":"chatcmpl-1a","created":1795353650,"eval_duration":123,"model_path":"/home/me/m.gguf","n":2}'
    response = record.calm(
        Interaction(RecordedRequest("GET", "http://ollama.example/"), RecordedResponse(200, {}, (page,)))
    ).response
    assert response.pieces == (b'{"id":"chatcmpl-0","created":0,"eval_duration":0,"model_path":"m.gguf","n":2}',)
