"""The pytest plugin: fixtures that replay or record cassettes (recorded responses), or forbid real model calls.

pytest loads the plugin in every project that has this package installed. Other modules of the package are therefore
imported only if a test uses a fixture.
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


_RECORD_HINT = "Record it with pytest --llm-record while the server is running"
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--llm-record`` and the setting ``llm_no_model_calls``."""
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
    """Store whether the test passed. Only a passed test replaces its cassettes."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture
def llm_replay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Player | Recorder]:
    """Replay cassettes to the test's providers, from ``cassettes/<module>/<test>`` or from the marker's folder.

    A request that is not in a cassette fails the test, even if the application catches the error. A recorded response
    that was not played also fails the test.

    With ``--llm-record``, the real servers respond. If the test passes, the new cassettes replace the test's folder. A
    marker's folder keeps its other cassettes, because other tests may use them.
    """
    from .. import process  # noqa: PLC0415
    from . import kit  # noqa: PLC0415

    marker = request.node.get_closest_marker("llm_replay")
    folders = [*marker.args, *marker.kwargs.values()] if marker else []
    if marker and len(folders) != 1:
        pytest.fail("llm_replay requires one folder. Use @pytest.mark.llm_replay('cassettes')", pytrace=False)
    folder = request.path.parent / (folders[0] if folders else _default_folder(request))
    process.clear_learned_state()
    if request.config.getoption("--llm-record"):
        with kit.recording(tmp_path / "llm_replay") as recorder:
            yield recorder
        if request.node.stash.get(_PASSED, False):
            if not folders:
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(recorder.folder, folder, dirs_exist_ok=True)
        return
    with kit.replaying(folder, hint=_RECORD_HINT) as player:
        yield player
    if player.missing or player.unplayed:
        missing, unplayed = "; ".join(player.missing) or "nothing", "; ".join(player.unplayed) or "nothing"
        pytest.fail(f"not in a cassette: {missing}\nnot played: {unplayed}\n(pytest --llm-record records them again)")


def _default_folder(request: pytest.FixtureRequest) -> str:
    """Return the folder of a test, such as ``cassettes/test_app/TestClass.test_name-parameter``."""
    test = request.node.nodeid.partition("::")[2] or request.node.name
    name = re.sub(r"[^\w-]+", "-", test.replace("::", ".")).strip("-")
    return f"cassettes/{request.path.stem}/{name}"


@pytest.fixture
def no_model_calls() -> Iterator[None]:
    """Raise NotRecorded for each real model call of the test. Requests to a ``FaultServer`` are allowed."""
    from . import kit  # noqa: PLC0415

    with kit.no_model_calls():
        yield


@pytest.fixture(autouse=True)
def _llm_guard(request: pytest.FixtureRequest) -> None:
    """If the pytest setting ``llm_no_model_calls`` is true, use the fixture ``no_model_calls`` in every test.

    But do not use it in tests with the marker ``llm_real``, or in tests that record cassettes.
    """
    is_recording = request.config.getoption("--llm-record") and "llm_replay" in request.fixturenames
    if (
        request.config.getini("llm_no_model_calls")
        and not is_recording
        and not request.node.get_closest_marker("llm_real")
    ):
        request.getfixturevalue("no_model_calls")
