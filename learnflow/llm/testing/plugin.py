"""The pytest plugin: fixtures for replay, for recording, and against real model calls.

pytest finds it by its entry point and loads it wherever the package is installed. So it imports only pytest until a
test uses a fixture.
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


_RECORD = "Record it with pytest --llm-record while the server is running"
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting."""
    group = parser.getgroup("learnflow.llm")
    group.addoption(
        "--llm-record", action="store_true", help="llm_replay sends requests to the real servers and records cassettes"
    )
    parser.addini("llm_no_model_calls", "forbid real model calls in every test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Add the markers."""
    config.addinivalue_line("markers", "llm_replay(folder): the folder of the cassettes, relative to the test file")
    config.addinivalue_line("markers", "llm_real: allow real model calls in this test despite llm_no_model_calls")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record whether a test passed. Only then its new cassettes replace the old ones."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def llm_replay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Player | Recorder]:
    """Let providers that the test creates answer from ``cassettes/<module>/<test>``, or from the marker's folder.

    The test fails if a request was not recorded, even if the application caught the error. It also fails if a cassette
    was not played to its end. With ``--llm-record`` the servers answer. If the test passes, its folder is replaced by
    the new cassettes. They are added to the folder of a marker, which other tests may use, too.
    """
    from .. import process  # noqa: PLC0415
    from . import kit  # noqa: PLC0415

    marker = request.node.get_closest_marker("llm_replay")
    named = [*marker.args, *marker.kwargs.values()] if marker else []
    if marker and len(named) != 1:
        pytest.fail("llm_replay needs one folder. Write @pytest.mark.llm_replay('cassettes')", pytrace=False)
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
        pytest.fail(f"not in a cassette: {missing}\nnot played: {unplayed}\n(pytest --llm-record records them again)")


def _own_folder(request: pytest.FixtureRequest) -> str:
    """Return the folder of this test: ``cassettes/test_app/TestClass.test_name-parameter``."""
    test = request.node.nodeid.partition("::")[2] or request.node.name
    name = re.sub(r"[^\w-]+", "-", test.replace("::", ".")).strip("-")
    return f"cassettes/{request.path.stem}/{name}"


@pytest.fixture
def no_model_calls() -> Iterator[None]:
    """Raise NotRecorded for each real model call in this test. A ``FaultServer`` may be called."""
    from . import kit  # noqa: PLC0415

    with kit.no_model_calls():
        yield


@pytest.fixture(autouse=True)
def _llm_guard(request: pytest.FixtureRequest) -> None:
    """Use ``no_model_calls`` in every test if the setting ``llm_no_model_calls`` is true."""
    records = request.config.getoption("--llm-record") and "llm_replay" in request.fixturenames
    if request.config.getini("llm_no_model_calls") and not records and not request.node.get_closest_marker("llm_real"):
        request.getfixturevalue("no_model_calls")
