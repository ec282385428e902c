"""Import what a request needs, so that processes that are forked from this one start at once."""

from __future__ import annotations

import asyncio

from learnflow.llm.adapter import _litellm
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.transport.endpoint import parse_endpoint

asyncio.run(_litellm.prepare(SPECS["llamacpp"], parse_endpoint(SPECS["llamacpp"], "http://localhost")))
