"""What an error says to an end user, as opposed to the operator."""

from __future__ import annotations

import re

import pytest

from learnflow.llm import errors


def classes(above: type[errors.LLMError] = errors.LLMError) -> list[type[errors.LLMError]]:
    return [above, *(each for below in above.__subclasses__() for each in classes(below))]


@pytest.mark.parametrize("kind", set(classes()), ids=lambda kind: kind.__name__)
def test_the_public_message_repeats_nothing_of_the_operators(kind: type[errors.LLMError]) -> None:
    error = kind(
        "10.0.0.7 refused", hint="Set OLLAMA_BASE_URL", provider="ollama", model="qwen3:0.6b", status=503, retry_after=7
    )
    error.server_message, error.partial = "no slot is free", "The first half"
    for language, letters in (("ru", "а-яё"), ("en", "a-z")):
        said = error.public_message(language)
        assert re.fullmatch(rf"[{letters} ,.:]+", said, re.IGNORECASE)
        assert "ollama" not in said
    assert error.public_message() == error.public_message("ru")


def test_it_says_what_the_end_user_can_do() -> None:
    overflow, refused = errors.ContextOverflow("x"), errors.ContentFiltered("x")
    assert overflow.public_message() == "Материал слишком длинный для модели. Сократите его или разделите на части."
    assert refused.public_message("en") == "The model refused to answer this request. Please rephrase it."
    assert errors.KeyMissing("x").public_message("en") == errors.QuotaExceeded("x").public_message("en")
    assert "later" not in errors.KeyMissing("x").public_message("en")
