"""Import what a text to a local server needs, so that processes that are forked from this one start at once.

LiteLLM is not needed (ADR 10).
"""

from __future__ import annotations

import asyncio

from learnflow.llm import get_provider
from learnflow.llm.transport.client import NETWORK

get_provider("llamacpp")
asyncio.run(NETWORK.prepare())
