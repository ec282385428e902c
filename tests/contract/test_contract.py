"""Every row does every behaviour: played from its tape by vcrpy, and by our own player, as LLM_REPLAY has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import vcr
from behaviours import ANSWERS, BEHAVIOURS
from subjects import SUBJECTS, absent, fresh, tape_of
from vcr.errors import CannotOverwriteExistingCassetteException

from learnflow.llm import errors
from learnflow.llm.replay import cassette
from learnflow.llm.replay.player import Player
from learnflow.llm.testing import forget, no_model_calls, replaying

CELLS = [(row, behaviour) for row in SUBJECTS for behaviour in BEHAVIOURS if behaviour not in absent().get(row, {})]


def _credentials(asked: Any, on_tape: Any) -> None:
    """The headers that carry a key: the same ones, with the same key."""
    for name in ("authorization", "api-key", "x-api-key"):
        assert asked.headers.get(name) == on_tape.headers.get(name), name


@contextmanager
def played_by_vcrpy(file: Path) -> Iterator[None]:
    recorder = vcr.VCR(record_mode="none", serializer="learnflow")
    recorder.register_serializer("learnflow", cassette)
    recorder.register_matcher("credentials", _credentials)
    match_on = ["method", "scheme", "host", "port", "path", "query", "body", "credentials"]
    with recorder.use_cassette(str(file), match_on=match_on) as played:
        yield
    assert played.all_played, f"{played.play_count} of {len(played)} played"


@contextmanager
def played_by_us(file: Path) -> Iterator[None]:
    with no_model_calls(), replaying(file) as player:
        yield
    assert not player.missing
    assert not player.unplayed


@pytest.fixture(autouse=True)
def nothing_known_yet() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.mark.parametrize("player", [played_by_vcrpy, played_by_us])
@pytest.mark.parametrize(("row", "behaviour"), CELLS)
async def test_contract(row: str, behaviour: str, player: Any) -> None:
    file = tape_of(row, behaviour)
    origin, _ = cassette.load(file.read_text(encoding="utf-8"))
    with player(file):
        await BEHAVIOURS[behaviour](fresh(row, answers=origin.get("answers", ANSWERS)))


def test_the_tapes_are_the_contract() -> None:
    """No tape is missing, none is there twice over, none is left from another time."""
    expected = {tape_of(row, behaviour) for row, behaviour in CELLS}
    assert set(tape_of("", "").parent.rglob("*.yaml")) - {tape_of("", "absent")} == expected
    for row, why in absent().items():
        assert row in SUBJECTS
        assert set(why) < set(BEHAVIOURS)
        assert all(why.values())


@pytest.mark.parametrize("row", SUBJECTS)
async def test_neither_a_wrong_key_nor_another_model_replays_a_good_answer(row: str) -> None:
    good = fresh(row)
    file = tape_of(row, "generate")
    for one, key in ((good, "wrong-key"), (fresh(row, model="another-model"), None)):
        if key and not one.key:
            continue
        with replaying(file), pytest.raises(errors.NotOnTape):
            await one.provider(key).generate("Say hello", temperature=0)
        with pytest.raises((CannotOverwriteExistingCassetteException, errors.Unsupported)), played_by_vcrpy(file):
            await one.provider(key).generate("Say hello", temperature=0)
        forget()


def test_the_player_and_vcrpy_are_given_the_same() -> None:
    file = tape_of("llamacpp", "stream")
    text = file.read_text(encoding="utf-8")
    _, (only,) = cassette.load(text)
    (row,) = cassette.deserialize(text)["interactions"]
    headers = {name: values[0] for name, values in row["response"]["headers"].items()}
    assert cassette.unmarked(200, headers, row["response"]["body"]["string"]) == only.said
    assert Player({str(file): text}).providers == {"llamacpp"}
