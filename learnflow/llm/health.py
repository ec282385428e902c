"""The knock on the door: whether a server would answer, and which models it has.

Must never cost money, load a model or carry user text: it only reads.
The adapter asks it; so will discovery and the command line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import diagnosis, errors, net
from .endpoint import Endpoint
from .errors import LLMError
from .specs import ProviderSpec

_LIST_S: Final = 10.0  # seconds for a list of models: a cloud's may be long


@dataclass(frozen=True, slots=True)
class Door:
    """Where to knock, and how."""

    spec: ProviderSpec
    endpoint: Endpoint
    connect_timeout: float
    local_only: bool

    async def models(self) -> list[str]:
        """The names of the models that the server has. Raises LLMError."""
        spec = self.spec
        said = await self._json(self.endpoint.base + spec.models_path)
        return _names(said, spec.models_key, spec.model_id)

    async def loaded(self) -> list[str]:
        """The names of those that are loaded; empty where the server does not tell. Raises LLMError."""
        if self.spec.loaded is None:
            return []
        path, state = self.spec.loaded
        try:
            said = await self._json(self.endpoint.root + path)
        except (errors.Misconfigured, errors.MalformedAnswer):  # an older server without this page
            return []
        return _names(said, self.spec.models_key, self.spec.model_id, state)

    async def ready(self) -> bool:
        """Whether it answers now: its own health page says so, or else its list of models can be read."""
        try:
            if self.spec.health_path:
                await self._get(self.endpoint.root + self.spec.health_path)
            else:
                await self.models()
        except LLMError:
            return False
        return True

    async def _json(self, url: str) -> Mapping[str, Any]:
        body = await self._get(url)
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if diagnosis.web_page(body):
            raise diagnosis.not_a_server(200)
        if not isinstance(said, dict):
            raise errors.MalformedAnswer("the list of models is no JSON object")
        if said.get("error"):
            raise diagnosis.error_object(said, began=False)
        return said

    async def _get(self, url: str) -> bytes:
        there = self.endpoint
        exchange = net.Exchange(
            there.origin, "", self.connect_timeout, credentials=there.credentials, local_only=self.local_only
        )
        query = f"?api-version={there.version}" if there.version else ""
        try:
            async with asyncio.timeout(_LIST_S):
                return await net.get(url + query, exchange)
        except TimeoutError:
            pass
        raise errors.FirstTokenTimeout(f"no answer within {_LIST_S:g} s", hint="Look into the server's log")


def _names(said: Mapping[str, Any], key: str, name: str, state: str | None = None) -> list[str]:
    rows = said.get(key) or []  # Ollama says null when it has none
    fits = [row for row in rows if isinstance(row, dict) and isinstance(row.get(name), str)]
    return [row[name] for row in fits if state is None or row.get("state") == state]
