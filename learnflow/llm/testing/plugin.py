"""The pytest plugin: fixtures for replay, for recording, and for forbidding real model calls.

Must never import more than pytest before a fixture is asked for: pytest loads it wherever the package is installed.
pytest finds it by its entry point.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..replay.player import Player
    from ..replay.recorder import Recorder


_RECORD = "Record it: pytest --llm-record, with the server there"
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option and the setting."""
    group = parser.getgroup("learnflow.llm")
    group.addoption(
        "--llm-record", action="store_true", help="llm_replay asks the real servers, and makes the cassettes"
    )
    parser.addini("llm_no_model_calls", "forbid real model calls in every test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    config.addinivalue_line("markers", "llm_replay(folder): the cassettes for llm_replay, from the test file's folder")
    config.addinivalue_line("markers", "llm_real: this test may ask real models although llm_no_model_calls is set")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test passed: only then are its new cassettes kept."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def llm_replay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Player | Recorder]:
    """Providers made in the test answer from cassettes: ``cassettes/<module>/<test>``, or the marker's folder.

    Afterwards a request that was not recorded fails the test, even one whose error the application swallowed, and so
    does a cassette that was not played to its end. With ``--llm-record`` the servers are asked; where the test passes,
    its folder then holds the cassettes of this run; a folder that a marker names, which others may use too, gets them
    added.
    """
    from .. import process  # noqa: PLC0415
    from . import kit  # noqa: PLC0415

    marker = request.node.get_closest_marker("llm_replay")
    named = [*marker.args, *marker.kwargs.values()] if marker else []
    if marker and len(named) != 1:
        pytest.fail("llm_replay wants one folder: @pytest.mark.llm_replay('cassettes')", pytrace=False)
    folder = request.path.parent / (named[0] if named else _own_folder(request))
    process.forget()
    if request.config.getoption("--llm-record"):
        with kit.recording(tmp_path / "llm_replay") as recorder:
            yield recorder
        if request.node.stash.get(_PASSED, False):
            if not named:
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(recorder.folder, folder, dirs_exist_ok=True)
        return
    with kit.replaying(folder, hint=_RECORD) as player:
        yield player
    if player.missing or player.unplayed:
        missing, unplayed = "; ".join(player.missing) or "nothing", "; ".join(player.unplayed) or "nothing"
        pytest.fail(
            f"not in a cassette: {missing}\nnot played: {unplayed}\n(pytest --llm-record makes the cassettes anew)"
        )


def _own_folder(request: pytest.FixtureRequest) -> str:
    """For this test alone: ``cassettes/test_app/TestClass.test_name-parameter``."""
    inside = request.node.nodeid.partition("::")[2] or request.node.name
    name = re.sub(r"[^\w-]+", "-", inside.replace("::", ".")).strip("-")
    return f"cassettes/{request.path.stem}/{name}"


@pytest.fixture
def no_model_calls() -> Iterator[None]:
    """Whoever asks a real model in this test gets NotRecorded; a FaultServer may be asked."""
    from . import kit  # noqa: PLC0415

    with kit.no_model_calls():
        yield


@pytest.fixture(autouse=True)
def _llm_guard(request: pytest.FixtureRequest) -> None:
    """``llm_no_model_calls = true`` in pytest's settings: as if every test had asked for ``no_model_calls``."""
    records = request.config.getoption("--llm-record") and "llm_replay" in request.fixturenames
    if request.config.getini("llm_no_model_calls") and not records and not request.node.get_closest_marker("llm_real"):
        request.getfixturevalue("no_model_calls")
