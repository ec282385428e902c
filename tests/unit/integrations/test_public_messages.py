"""Error messages for end users."""

from __future__ import annotations

import re

import pytest

from learnflow.llm import errors
from learnflow.llm.integrations.public_messages import public_message


def classes(above: type[errors.LLMError] = errors.LLMError) -> list[type[errors.LLMError]]:
    return [above, *(kind for below in above.__subclasses__() for kind in classes(below))]


@pytest.mark.parametrize("kind", set(classes()), ids=lambda kind: kind.__name__)
def test_public_message_repeats_nothing_of_error(kind: type[errors.LLMError]) -> None:
    error = kind(
        "10.0.0.7 refused", hint="Set OLLAMA_BASE_URL", provider="ollama", model="qwen3:0.6b", status=503, retry_after=7
    )
    error.server_message, error.partial = "no slot is free", "The first half"
    for language, letters in (("ru", "а-яё"), ("en", "a-z")):
        message = public_message(error, language)
        assert re.fullmatch(rf"[{letters} ,.:]+", message, re.IGNORECASE)
        assert "ollama" not in message
    assert public_message(error) == public_message(error, "ru")


def test_public_message_depends_on_error_class() -> None:
    overflow, refused = errors.ContextOverflow("x"), errors.ContentFiltered("x")
    assert public_message(overflow) == "Материал слишком длинный для модели. Сократите его или разделите на части."
    assert public_message(refused, "en") == "The model refused to answer this request. Please rephrase it."
    assert public_message(errors.KeyMissing("x"), "en") == public_message(errors.QuotaExceeded("x"), "en")
    assert "10.0.0.7" not in public_message(OSError("10.0.0.7 refused"), "en")
    assert "later" not in public_message(errors.KeyMissing("x"), "en")
