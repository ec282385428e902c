"""pytest's door to the kit: fixtures for replay, for recording, and for forbidding real model calls.

Must never import more than pytest before a fixture is asked for: pytest loads it wherever the package is installed.
pytest finds it by its entry point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..deck import Player, Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option and the setting."""
    group = parser.getgroup("learnflow.llm")
    group.addoption("--llm-record", action="store_true", help="llm_replay asks the real servers, and makes the tapes")
    parser.addini("llm_no_model_calls", "forbid real model calls in every test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    config.addinivalue_line("markers", "llm_replay(folder): the tapes for llm_replay, from the test file's folder")
    config.addinivalue_line("markers", "llm_real: this test may ask real models although llm_no_model_calls is set")


@pytest.fixture
def llm_replay(request: pytest.FixtureRequest) -> Iterator[Player | Recorder]:
    """Providers made in the test answer from its tapes: ``cassettes/<test>`` beside it, or what the marker names.

    Afterwards a request that was not on tape fails the test, even one whose error the application swallowed, and so
    does a tape that was not played to its end. With ``--llm-record`` the servers are asked, and the folder then holds
    the tapes of this run.
    """
    from . import kit  # noqa: PLC0415

    marker = request.node.get_closest_marker("llm_replay")
    folder = request.path.parent / Path(marker.args[0] if marker else f"cassettes/{request.node.name}")
    kit.forget()
    if request.config.getoption("--llm-record"):
        with kit.recording(folder) as recorder:
            yield recorder
        for stale in set(folder.rglob("*.yaml")) - recorder.files:
            stale.unlink()
        return
    with kit.replaying(folder) as player:
        yield player
    if player.missing or player.unplayed:
        missing, unplayed = "; ".join(player.missing) or "nothing", "; ".join(player.unplayed) or "nothing"
        pytest.fail(f"not on tape: {missing}\nnot played: {unplayed}\n(pytest --llm-record makes the tapes anew)")


@pytest.fixture
def no_model_calls() -> Iterator[None]:
    """Whoever asks a real model in this test gets NotOnTape; a FaultServer may be asked."""
    from . import kit  # noqa: PLC0415

    with kit.no_model_calls():
        yield


@pytest.fixture(autouse=True)
def _llm_guard(request: pytest.FixtureRequest) -> None:
    """``llm_no_model_calls = true`` in pytest's settings: as if every test had asked for ``no_model_calls``."""
    if request.config.getini("llm_no_model_calls") and not request.node.get_closest_marker("llm_real"):
        request.getfixturevalue("no_model_calls")
