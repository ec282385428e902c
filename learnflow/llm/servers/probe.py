"""Read a server's pages: its kind, its state, its models and their capabilities.

Must never cost money, load a model or send user text, or use a proxy for a local server.
The model catalog probes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..errors import LLMError
from ..provider_spec import Model, Page, ProviderSpec, Server
from ..transport import error_mapping
from ..transport.client import Client, HttpRequest
from ..transport.untrusted import json_object, non_negative_int, text

_METHOD_NOT_ALLOWED: Final = 405
_CONNECT_SHARE: Final = 0.9  # of the time for a page: what is left tells a busy server from a dead address


async def find_server(
    spec: ProviderSpec, client: Client, kinds: Sequence[ProviderSpec], deadline: float
) -> tuple[Server | None, LLMError | None]:
    """Return the server at the client's endpoint, and the error that it would respond with.

    Args:
        spec: the configured provider.
        client: of its endpoint.
        kinds: the kinds of server that are recognised; a cloud is not probed for other servers' pages.
        deadline: on the clock of the loop.
    """
    endpoint = client.endpoint
    paths = {path: endpoint.root + path for path in (spec.server.probe.pages if spec.server.probe else ())}
    names = endpoint.base + spec.api.models_path
    pages = await _pages(client, [*paths.values(), names], deadline)
    own = _read(spec, {path: pages[url] for path, url in paths.items()})
    trouble = _trouble(pages[names], pages.values())
    kinds = kinds if spec.local or endpoint.near else ()
    if isinstance(trouble, errors.AuthenticationFailed) or (own and own.trouble):
        return own or await _recognised(client, kinds, deadline), trouble or as_error(own)
    server = own
    if server is None and not isinstance(trouble, errors.Unavailable):
        recognised = await _recognised(client, kinds, deadline)
        server = recognised or read_model_list(pages[names], spec.api.models_key, spec.api.model_id)
    if server and server.trouble:
        return server, as_error(server)
    if server and spec.dialect.parser and server.kind and server.kind.name != spec.name:
        what = f"what answers is {server.kind.title}, not {spec.title}"
        hint = better_setting(spec, server.kind, endpoint.root)
        return server, errors.Misconfigured(what, provider=spec.name, hint=hint)
    if server is None and trouble is None:
        trouble = error_mapping.not_a_server()
    if isinstance(trouble, errors.Misconfigured | errors.MalformedAnswer | errors.ErrorBody):
        chats = await _chats(client, deadline)  # an API without a list of models
        return (server or Server(), None) if chats else (server, trouble)
    return server, None if server else trouble


async def learn(client: Client, server: Server, models: Iterable[Model], deadline: float) -> Server:
    """Return the server with what it reports of each of these models."""
    probe = server.kind and server.kind.server.probe
    if not probe:
        return server

    async def learned(model: Model) -> Model:
        question = probe.model_request(model)
        if question is None:
            return model
        page = await _page(client, client.endpoint.root + question[0], question[1], deadline)
        if isinstance(page.error, errors.NotRecorded):
            raise page.error
        try:
            return model if page.error else probe.read_model(model, page.body)
        except Exception:  # noqa: BLE001  # an undocumented shape
            return model

    known = {model.name: model for model in await asyncio.gather(*map(learned, models))}
    return replace(server, models=tuple(known.get(model.name, model) for model in server.models))


async def fetch(client: Client, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return the JSON object of a page, or the response to a body; empty if there is none. Raise LLMError."""
    page = await _fetched(client, HttpRequest(url=client.endpoint.root + path, body=body, direct=client.endpoint.near))
    if page.error:
        raise page.error
    return page.body


def better_setting(spec: ProviderSpec, kind: ProviderSpec, root: str) -> str:
    """Return what to set for a server of another kind than the configured one."""
    if spec.kind:
        return f"Set {spec.variable('kind')}={kind.name}"
    return f"Use LLM_PROVIDER={kind.name} with {kind.variable('base_url')}={root}"


def read_model_list(page: Page, key: str, name: str) -> Server | None:
    """Return the server behind a list of models; None if the page is no such list. It may report the context too."""
    rows = page.rows(key)
    if rows is None:
        return None
    models = []
    for row in rows:
        called = text(row.get(name))
        if called:
            lengths = (non_negative_int(row.get(field)) for field in ("context_length", "max_model_len"))
            context = next(filter(None, lengths), None)
            known = {"context": context, "context_served": context}
            models.append(Model(name=called, chat="embed" not in called.lower(), known=known))
    return Server(models=tuple(models))


def as_error(one: Server | Model | None) -> LLMError | None:
    """Return the error for the trouble that a server or a model reports."""
    if one is None or one.trouble is None:
        return None
    state, sentence = one.trouble
    return errors.ModelLoading(sentence) if state == "loading" else errors.ServerFailed(sentence)


async def _recognised(client: Client, kinds: Sequence[ProviderSpec], deadline: float) -> Server | None:
    """Return the server, if it is one of these kinds."""
    root = client.endpoint.root
    pages = await _pages(
        client, [root + path for kind in kinds if kind.server.probe for path in kind.server.probe.pages], deadline
    )
    by_path = {url.removeprefix(root): page for url, page in pages.items()}
    return next((server for kind in kinds if (server := _read(kind, by_path))), None)


async def _chats(client: Client, deadline: float) -> bool:
    """Return whether the chat route exists: it requires another method, and an unknown page does not."""
    here, nowhere = f"{client.endpoint.base}/chat/completions", f"{client.endpoint.base}/no/such/page"
    pages = await _pages(client, [here, nowhere], deadline)
    statuses = [page.error and page.error.status for page in pages.values()]
    return [status == _METHOD_NOT_ALLOWED for status in statuses] == [True, False]


async def _pages(client: Client, urls: Iterable[str], deadline: float) -> dict[str, Page]:
    """Read pages at once. Raise NotRecorded if a replay has none of them: a cassette may be older than a kind."""
    wanted = list(dict.fromkeys(urls))
    pages = await asyncio.gather(*(_page(client, url, None, deadline) for url in wanted))
    missing = [page.error for page in pages if isinstance(page.error, errors.NotRecorded)]
    if missing and len(missing) == len(wanted):
        raise missing[0]
    return dict(zip(wanted, pages, strict=True))


async def _page(client: Client, url: str, body: Mapping[str, Any] | None, deadline: float) -> Page:
    """Read one page; whatever is wrong with it is its error."""
    endpoint, left = client.endpoint, deadline - asyncio.get_running_loop().time()
    query = f"?api-version={endpoint.version}" if endpoint.version else ""
    connect_s = max(0.001, left * _CONNECT_SHARE)
    request = HttpRequest(url=url + query, body=body, direct=endpoint.near, connect_timeout=connect_s)
    try:
        async with asyncio.timeout_at(deadline):
            return await _fetched(client, request)
    except TimeoutError:
        return Page(error=errors.FirstTokenTimeout("no answer in time", hint="It may be busy: look into its log"))
    except LLMError as failed:
        return Page(error=failed)


async def _fetched(client: Client, request: HttpRequest) -> Page:
    headers, data, error = await client.page(request)
    if error or not data.strip():
        return Page(headers=headers, error=error)
    said = json_object(data)
    if said is None:
        return Page(headers=headers, error=error_mapping.not_a_server(200))
    refused = error_mapping.error_object(said, began=False) if said.get("error") else None
    return Page(body=said, headers=headers, error=refused)


def _read(kind: ProviderSpec, pages: Mapping[str, Page]) -> Server | None:
    """Return what this kind reads from its pages; a page of an undocumented shape is not of its kind."""
    if kind.server.probe is None:
        return None
    try:
        server = kind.server.probe.read(pages)
    except Exception:  # noqa: BLE001  # an undocumented shape
        return None
    return server and replace(server, kind=kind)


def _trouble(names: Page, pages: Iterable[Page]) -> LLMError | None:
    """Return the error of the pages: a refused key, then a load, then that of the list of models."""
    found = [page.error for page in pages if page.error]
    kinds = errors.AuthenticationFailed, errors.ModelLoading
    return next((error for kind in kinds for error in found if isinstance(error, kind)), names.error)
