"""LangChain's standard tests for streaming and tools, against a server that fills the request's schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from support import Obedient, provider_for, router, serving

from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.testing import FaultServer


@pytest.fixture(scope="module")
def obedient() -> Iterator[FaultServer]:
    with serving(server := Obedient("vllm")):
        yield server


class TestStandard(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def served(self, obedient: FaultServer) -> None:
        type(self).server = obedient

    server: FaultServer

    @pytest.fixture
    def vcr(self) -> None:
        """Exist. The test that uses it is skipped without recordings."""

    @property
    def chat_model_class(self) -> type[ChatLearnFlow]:
        return ChatLearnFlow

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"provider": router(provider_for(self.server)), "stream_structured": self.streams_structured}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "fault-model"

    streams_structured = False


class TestStandardWithSchemasStreamed(TestStandard):
    streams_structured = True
