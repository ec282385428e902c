"""Every incomplete response raises its error after the text that arrived, in every dialect, streaming or not."""

from __future__ import annotations

import pytest
from support import DIALECTS, provider_for

from learnflow.llm import errors
from learnflow.llm.errors import LLMError
from learnflow.llm.testing import Fault, FaultServer

ANSWER = "The quick brown fox jumps over the lazy dog."
FIRST_THREE = "The quick brown "

# The error of each fault: for servers that send events, and for Ollama's lines if it differs.
BROKEN: dict[str, tuple[type[LLMError], type[LLMError], str]] = {
    "cut": (errors.AnswerCut, errors.AnswerNotDone, FIRST_THREE),
    "half_line": (errors.AnswerCut, errors.AnswerCut, FIRST_THREE),
    "drop": (errors.AnswerCut, errors.AnswerCut, FIRST_THREE),
    "reset": (errors.AnswerCut, errors.AnswerCut, FIRST_THREE),
    "done_without_finish": (errors.FinishMissing, errors.AnswerNotDone, ANSWER),
    "no_finish": (errors.AnswerCut, errors.AnswerNotDone, ANSWER),
    "error_frame": (errors.ErrorInAnswer, errors.ErrorInAnswer, FIRST_THREE),
    "error_first": (errors.ErrorInAnswer, errors.ErrorBody, ""),
    "error_after_finish": (errors.ErrorInAnswer, errors.ErrorInAnswer, ANSWER),
    "malformed": (errors.MalformedAnswer, errors.MalformedAnswer, FIRST_THREE),
    "unknown_finish": (errors.UnknownFinish, errors.UnknownFinish, ANSWER),
    "filtered": (errors.ContentFiltered, errors.ContentFiltered, ANSWER),
    "silent": (errors.EmptyAnswer, errors.EmptyAnswer, ""),
    "empty": (errors.EmptyStream, errors.EmptyStream, ""),
    "error_body": (errors.ErrorBody, errors.ErrorBody, ""),
    "page": (errors.Misconfigured, errors.Misconfigured, ""),
    "whole_cut": (errors.BodyCut, errors.BodyCut, ""),
    "whole_no_finish": (errors.FinishMissing, errors.AnswerNotDone, ANSWER),
    "close": (errors.ConnectionFailed, errors.ConnectionFailed, ""),
    "redirect": (errors.Misconfigured, errors.Misconfigured, ""),
}


def expected(fault: str, dialect: str) -> tuple[type[LLMError], str]:
    events, lines, text = BROKEN[fault]
    if fault == "error_body" and dialect == "lmstudio":  # its response to any unknown route
        return errors.Misconfigured, text
    if fault == "done_without_finish" and dialect == "responses":  # it has no [DONE]
        return errors.AnswerCut, text
    return (lines if dialect == "ollama" else events), text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_stream_raises_error_after_arrived_text(fault: str, dialect: str) -> None:
    kind, arrived = expected(fault, dialect)
    async with FaultServer(dialect, ANSWER, fault=Fault(fault)) as server:
        provider, pieces = provider_for(server), []
        with pytest.raises(LLMError) as caught:
            async with provider.stream("Explain foxes to me") as answer:
                async for piece in answer:
                    pieces.append(piece)
    assert type(caught.value) is kind
    assert "".join(pieces) == arrived
    assert caught.value.partial == arrived
    assert (caught.value.provider, caught.value.model) == (provider.name, "fault-model")
    assert caught.value.hint


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_answer_is_never_returned(fault: str, dialect: str) -> None:
    kind, arrived = expected(fault, dialect)
    async with FaultServer(dialect, ANSWER, fault=Fault(fault)) as server:
        with pytest.raises(LLMError) as caught:
            await provider_for(server).generate("Explain foxes to me")
    assert type(caught.value) is kind
    assert caught.value.partial == arrived
    shown = f"{caught.value} {caught.value!r} {caught.value.args}"
    assert "quick" not in shown
    assert "foxes" not in shown
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("slice_bytes", [None, 1, 7])
@pytest.mark.parametrize("fault", [None, Fault("whole")])
async def test_complete_answer_arrives_unchanged(dialect: str, slice_bytes: int | None, fault: Fault | None) -> None:
    text = "a\u2028b\u0085c [DONE] data: x\r\n\n🔐 ключ <b> &amp; \u200d\ufeff end\n"
    parts = [text[:20], text[20:]] if slice_bytes == 1 else list(text)  # each byte is read alone in both
    async with FaultServer(dialect, parts, thinking="hmm", slice_bytes=slice_bytes, fault=fault) as server:
        async with provider_for(server).stream("Explain foxes") as answer:
            pieces = [piece async for piece in answer]
        done = answer.completion
        completion = await provider_for(server).complete("Explain foxes")
    assert "".join(pieces) == done.text == completion.text == text
    assert done.finish == "stop"
    assert (done.model, done.model.requested, done.model.served) == ("fault-model", "fault-model", "fault-model")
    if fault is None:
        assert done.reasoning == "hmm"
        assert done.usage.prompt_tokens == 5
        assert done.usage.completion_tokens == 7
    assert done.total_s >= (done.first_token_s or 0) > 0
