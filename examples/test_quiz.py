"""The tests of an application, quiz.py, with recorded answers: no server, no key, no network.

    pytest --noconftest examples/test_quiz.py
    LLM_PROVIDER=llamacpp pytest --noconftest examples/test_quiz.py --llm-record

The first command plays the answers in examples/cassettes. The second records them again, from a running server.
(--noconftest leaves out the fixtures of this repository's own tests; your application does not need it.)
"""

import asyncio
import os

import pytest
import quiz

from learnflow.llm import errors
from learnflow.llm.testing import CutAnswer, ScriptedProvider, use_provider


@pytest.mark.usefixtures("llm_replay")
def test_each_question_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLM_PROVIDER", os.environ.get("LLM_PROVIDER", "llamacpp"))
    asyncio.run(quiz.main("RSA"))
    assert [line[:2] for line in capsys.readouterr().out.splitlines()] == ["- ", "- ", "- "]


@pytest.mark.parametrize("answer", ["No JSON.", '{"questions": []}', CutAnswer('{"questions": ["Wh')])
def test_answer_that_is_no_quiz_is_an_error(answer: str | CutAnswer) -> None:  # a script instead of a recording
    with use_provider(ScriptedProvider([answer])), pytest.raises(errors.LLMError):
        asyncio.run(quiz.main("RSA"))
