"""The knock on the prober: who answers at an address, how it is, which models it has and what they can.

Must never cost money, load a model or carry user text: it only reads pages, and never through a proxy to a local row.
``inventory`` and discovery ask it.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .. import errors
from ..errors import LLMError
from ..spec import Model, Page, ProviderSpec, Server
from ..transport import error_mapping
from ..transport.client import Client, HttpRequest
from ..transport.endpoint import Endpoint
from ..transport.untrusted import json_object, printable
from .page import listed

_SHOWN: Final = 12  # names of models in a sentence
_LONGEST: Final = 200  # characters of a name there
_MOST: Final = 64  # models that are asked for one by one
_WRONG_METHOD: Final = 405
_TO_CONNECT: Final = 0.9  # of the time for a page
_ODD: Final = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # shapes that nobody documented


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What one look showed.

    Attributes:
        server: what it said of itself, with everything known of ``model``; None where nothing of the kind answered.
        model: the one that would be used; None where that is not clear.
        error: why it would not answer, or why it is not clear which model would.
        latency_s: seconds until it had answered; None where it did not.
    """

    server: Server | None = None
    model: Model | None = None
    error: LLMError | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prober:
    """Where to knock, and how; ``kinds`` may be what answers there."""

    spec: ProviderSpec
    client: Client
    kinds: Sequence[ProviderSpec] = ()

    @property
    def endpoint(self) -> Endpoint:
        """The address, with its key."""
        return self.client.endpoint

    async def look(self, asked: str | None, within: float, *, every: bool = False) -> ProbeResult:
        """Look, for ``within`` seconds at most; never raises.

        Args:
            asked: the model that would be asked for.
            within: seconds.
            every: learn what every model can, not only the one that would be used.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + within
        server, error = await self._server(deadline)
        latency = None if isinstance(error, errors.Unavailable) and server is None else loop.time() - started
        if server is None or error:
            return ProbeResult(server=server, error=error, latency_s=latency)
        if every:
            server = await self._learned(server, server.models[:_MOST], deadline)
        try:
            model = self.chosen(server, asked)
        except LLMError as unclear:
            return ProbeResult(server=server, error=unclear, latency_s=latency)
        if not every and any(model is known for known in server.models):
            at = next(n for n, known in enumerate(server.models) if known is model)
            server = await self._learned(server, [model], deadline)
            model = server.models[at]
        return ProbeResult(server=server, model=model, error=_as_error(model), latency_s=latency)

    def chosen(self, server: Server, asked: str | None) -> Model:
        """The model that would be used: the one asked for, or the one that is loaded, or the only one there is.

        Raises:
            ModelNotFound: it is not there, or none is.
            NotConfigured: no name was given, and there are several.
        """
        variable = self.spec.variable("model")
        if asked and asked not in self.spec.placeholders:
            found = server.find(asked)
            if not found and server.models and self.spec.lists_all:
                hint = self.instead_of(asked, server)
                raise errors.ModelNotFound("the server does not have the model", model=asked, hint=hint)
            return found or Model(name=asked)
        if not self.spec.local:
            raise errors.NotConfigured("no model is named", hint=f"Set {variable}, or give model=")
        chat = [model for model in server.chat_models if not model.remote]  # which leave the machine: only when named
        candidates = [model for model in chat if model.loaded] or chat
        if not candidates and server.chat_models:
            hint = f"Set {variable} to one of them, or give model="
            raise errors.ModelNotFound("no model is named, and those of the server leave this machine", hint=hint)
        if not candidates:
            raise errors.ModelNotFound("the server has no model", hint=f"Get one{self._command('MODEL') or ' first'}")
        if len(candidates) > 1:
            names = ", ".join(model.name for model in candidates[:20])
            raise errors.NotConfigured(
                f"no model is named, and there are {len(candidates)}: {names}",
                hint=f"Set {variable} to one of them, or give model=",
            )
        return candidates[0]

    def instead_of(self, asked: str, server: Server) -> str:
        """What to do where the server does not have the model: the nearest names, all of them, how to get it."""
        names, near = [model.name for model in server.chat_models], server.nearest(asked)
        there = f"{', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}" if names else "no model"
        use = f"Set {self.spec.variable('model')} or model= to {' or '.join(near) or 'another one'}" if names else ""
        command = self._command(asked)
        return ". ".join(filter(None, [use, f"It has {there}", command and f"Get the model{command}"]))

    def _command(self, model: str) -> str:
        """Return the server's own command that downloads a model; empty if it has none."""
        if not self.spec.pull_command:
            return ""
        return f": `{self.spec.pull_command.format(model=shlex.quote(printable(model, _LONGEST)))}`"

    async def _server(self, deadline: float) -> tuple[Server | None, LLMError | None]:
        """Who answers, and what keeps it from serving."""
        spec = self.spec
        paths = {path: self.endpoint.root + path for path in (spec.probe.pages if spec.probe else ())}
        names = self.endpoint.base + spec.models_path
        pages = await self._pages([*paths.values(), names], deadline)
        own = _read(spec, {path: pages[url] for path, url in paths.items()})
        trouble = _trouble(pages[names], pages.values())
        near = spec.local or self.endpoint.near  # a cloud is not asked for other servers' pages
        if isinstance(trouble, errors.AuthenticationFailed) or (own and own.trouble):
            return own or (await self._identified(deadline) if near else None), trouble or _as_error(own)
        server = own
        if server is None and not isinstance(trouble, errors.Unavailable):
            server = (await self._identified(deadline) if near else None) or listed(
                pages[names], spec.models_key, spec.model_id
            )
        if server and server.trouble:
            return server, _as_error(server)
        if server and spec.parser and server.kind and server.kind.name != spec.name:
            return server, self._another(server)
        if server is None and trouble is None:
            trouble = error_mapping.not_a_server()
        if isinstance(trouble, errors.Misconfigured | errors.MalformedAnswer | errors.ErrorBody):
            if await self._chats(deadline):
                return server or Server(), None  # an API without a list of models
            return server, trouble
        return server, None if server else trouble

    async def _identified(self, deadline: float) -> Server | None:
        """Which of the known kinds this is."""
        paths = {path: self.endpoint.root + path for kind in self.kinds if kind.probe for path in kind.probe.pages}
        pages = await self._pages(paths.values(), deadline)
        told = {path: pages[url] for path, url in paths.items()}
        return next((server for kind in self.kinds if (server := _read(kind, told))), None)

    async def _learned(self, server: Server, models: Iterable[Model], deadline: float) -> Server:
        """The server with what it says of each of these models."""
        probe = server.kind and server.kind.probe
        if not probe:
            return server

        async def learned(model: Model) -> tuple[str, Model]:
            try:
                question = probe.question(model)
                if question is None:
                    return model.name, model
                page = await self._page(self.endpoint.root + question[0], question[1], deadline)
                return model.name, model if page.error else probe.learn(model, page.said)
            except _ODD:
                return model.name, model

        known = dict(await asyncio.gather(*map(learned, models)))
        return replace(server, models=tuple(known.get(model.name, model) for model in server.models))

    async def _chats(self, deadline: float) -> bool:
        """Whether the chat route is there, which wants another method, as another page is not."""
        here, nowhere = f"{self.endpoint.base}/chat/completions", f"{self.endpoint.base}/no/such/page"
        pages = await self._pages([here, nowhere], deadline)
        wants = [page.error is not None and page.error.status == _WRONG_METHOD for page in pages.values()]
        return wants == [True, False]

    def _another(self, server: Server) -> LLMError:
        """Another server than the row's, and one whose dialect the row does not speak."""
        kind = server.kind or self.spec
        return errors.Misconfigured(
            f"what answers is {kind.title}, not {self.spec.title}",
            provider=self.spec.name,
            hint=better(self.spec, kind, self.endpoint.root),
        )

    async def _pages(self, urls: Iterable[str], deadline: float) -> dict[str, Page]:
        wanted = list(dict.fromkeys(urls))
        pages = await asyncio.gather(
            *(self._page(url, None, deadline) for url in wanted), return_exceptions=len(wanted) > 1
        )
        missing = [page for page in pages if isinstance(page, errors.NotRecorded)]
        if wanted and len(missing) == len(wanted):
            raise missing[0]
        # a cassette that is older than a kind of server has no page of it
        return {
            url: page if isinstance(page, Page) else _unrecorded(page) for url, page in zip(wanted, pages, strict=True)
        }

    def request(self, url: str, body: Mapping[str, Any] | None = None) -> HttpRequest:
        """A request of our own to this server; never through a proxy to one that is near."""
        return HttpRequest(url=url, body=body, direct=self.endpoint.near)

    async def _page(self, url: str, body: Mapping[str, Any] | None, deadline: float) -> Page:
        """One page; whatever is wrong with it is its error."""
        query = f"?api-version={self.endpoint.version}" if self.endpoint.version else ""
        left = deadline - asyncio.get_running_loop().time()
        # a connection may take most of the time, so that nobody there is told from nobody who answers
        request = replace(self.request(url + query, body), connect_timeout=max(0.001, left * _TO_CONNECT))
        try:
            async with asyncio.timeout_at(deadline):
                headers, data, error = await self.client.page(request)
        except TimeoutError:
            late = errors.FirstTokenTimeout("no answer in time", hint="It may be busy: look into its log")
            return Page(error=late)
        except errors.NotRecorded:
            raise  # of the test, not of the server
        except LLMError as failed:
            return Page(error=failed)
        said: Mapping[str, Any] = {}
        if error is None and data.strip():
            said, error = read_page(data)
        return Page(said=said, headers=headers, error=error)


def _unrecorded(error: BaseException) -> Page:
    if isinstance(error, errors.NotRecorded):
        return Page(error=error)
    raise error


def better(spec: ProviderSpec, kind: ProviderSpec, root: str) -> str:
    """What to set for a server of another kind than the row's."""
    if spec.kind:
        return f"Set {spec.variable('kind')}={kind.name}"
    return f"Use LLM_PROVIDER={kind.name} with {kind.variable('base_url')}={root}"


def read_page(data: bytes) -> tuple[Mapping[str, Any], LLMError | None]:
    """The JSON object of a page, or what it is instead."""
    said = json_object(data)
    if said is None:
        return {}, error_mapping.not_a_server(200)
    return (said, error_mapping.error_object(said, began=False)) if said.get("error") else (said, None)


def _read(kind: ProviderSpec, pages: Mapping[str, Page]) -> Server | None:
    """What this kind makes of its pages; a shape that nobody documented is not of its kind."""
    if kind.probe is None:
        return None
    try:
        server = kind.probe.read(pages)
    except _ODD:
        return None
    return server and replace(server, kind=kind)


def _trouble(names: Page, pages: Iterable[Page]) -> LLMError | None:
    """What is wrong, as far as the pages tell: a key and a load beat everything, else it is the list of models."""
    found = [page.error for page in pages if page.error]
    for kind in (errors.AuthenticationFailed, errors.ModelLoading):
        for error in found:
            if isinstance(error, kind):
                return error
    return names.error


def _as_error(one: Server | Model | None) -> LLMError | None:
    """The trouble that a server or a model is in."""
    if one is None or one.trouble is None:
        return None
    state, sentence = one.trouble
    return errors.ModelLoading(sentence) if state == "loading" else errors.ServerFailed(sentence)
