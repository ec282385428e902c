"""LangChain's own standard tests, against whichever real servers the environment names."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from support import LIVE

from learnflow.llm import RouterProvider
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import build

pytestmark = pytest.mark.live


class Standard(ChatModelIntegrationTests):
    """The model knows forty answers by heart: schemas are kept by the server's grammar, and it calls no tools.

    ``brief`` lets it end a JSON string at all.
    """

    row: str
    brief: ClassVar[dict[str, Any]]

    @pytest.fixture(autouse=True)
    def named(self) -> None:
        if not LIVE.get(f"{self.row.upper()}_BASE_URL"):
            pytest.skip(f"{self.row.upper()}_BASE_URL names no server")

    @pytest.fixture
    def vcr(self) -> None:
        """Exist. The test that uses it is skipped without recordings."""

    @property
    def chat_model_class(self) -> type[ChatLearnFlow]:
        return ChatLearnFlow

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 900, "timeout": 60, "stop": []}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        address, model, key = (LIVE.get(f"{self.row.upper()}_{what}") for what in ("BASE_URL", "MODEL", "API_KEY"))
        return {"provider": RouterProvider(build(self.row, address, model, key)), **self.brief}

    @property
    def has_tool_calling(self) -> bool:
        return False


class TestLlamaCpp(Standard):
    row = "llamacpp"
    brief: ClassVar[dict[str, Any]] = {"model_kwargs": {"extra_body": {"logit_bias": [['"', 12]]}}}


class TestOllama(Standard):
    row = "ollama"
    brief: ClassVar[dict[str, Any]] = {"temperature": 2.0, "seed": 32}
