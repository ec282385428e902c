"""Read the kind, state, models and capabilities of a server from its HTTP pages: model list, status, version.

A probe costs nothing, loads no model and sends no prompt. Requests to a local server bypass the proxies of the
environment.
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
from ..transport.untrusted import json_object, non_negative_int, parse_date, text_or_none

_METHOD_NOT_ALLOWED: Final = 405
_LIST_KEYS: Final = ("data", "models")  # possible keys of a model list; a bare array counts as "data"
_NAME_KEYS: Final = ("id", "model", "slug", "name")  # possible keys of a model's name, the preferred one first
# The share of a probe's time for connecting. It is below 1, so that a dead address raises ConnectTimeout, and a busy
# server FirstTokenTimeout.
_CONNECT_SHARE: Final = 0.9


async def find_server(
    spec: ProviderSpec, client: Client, kinds: Sequence[ProviderSpec], deadline: float
) -> tuple[Server | None, LLMError | None]:
    """Probe an endpoint. Return the server if it was recognised, and the error that a request would raise now.

    Args:
        spec: the spec of the configured provider.
        client: the client for the endpoint.
        kinds: the specs of the kinds of server to recognise if the server is not of the configured kind. They are
            ignored for the address of a cloud.
        deadline: the end of the probe in seconds, on the event loop's clock.
    """
    endpoint = client.endpoint
    urls = {path: endpoint.server_url + path for path in (spec.server.probe.pages if spec.server.probe else ())}
    model_list = endpoint.base_url + spec.api.models_path
    pages = await _fetch_pages(client, [*urls.values(), model_list], deadline)
    server = _recognise_kind(spec, {path: pages[url] for path, url in urls.items()})
    error = _most_specific_error(pages[model_list], pages.values())
    kinds = kinds if spec.local or endpoint.looks_local else ()
    if isinstance(error, errors.AuthenticationFailed) or (server and server.fault):
        return server or await _recognise_any(client, kinds, deadline), error or error_of(server)
    if server is None and not isinstance(error, errors.Unavailable):
        server = await _recognise_any(client, kinds, deadline)
        server = server or read_model_list(pages[model_list])
    if server and server.fault:
        return server, error_of(server)
    # A spec with a parser has its own format of responses, which other kinds of server do not support
    if server and spec.dialect.parser and server.spec and server.spec.name != spec.name:
        what = f"the server is {server.spec.title}, not {spec.title}"
        hint = suggest_setting(spec, server.spec, endpoint.server_url)
        return server, errors.Misconfigured(what, provider=spec.name, hint=hint)
    if server is None and error is None:
        error = error_mapping.no_model_api_error()
    if isinstance(error, errors.Misconfigured | errors.RequestRefused | errors.MalformedAnswer | errors.ErrorBody):
        if await _has_chat_route(client, deadline):  # an API without a list of models
            return server or Server(), None
        return server, error
    return server, None if server and (server.models or not server.spec) else error


async def read_capabilities(client: Client, server: Server, models: Iterable[Model], deadline: float) -> Server:
    """Read the page about each of these models. Return the server with their capabilities."""
    probe = server.spec and server.spec.server.probe
    if not probe:
        return server

    async def read_model(model: Model) -> Model:
        request = probe.build_model_request(model)
        if request is None:
            return model
        path, body = request
        page = await _fetch_page(client, client.endpoint.server_url + path, body, deadline)
        if isinstance(page.error, errors.NotRecorded):
            raise page.error
        try:
            return model if page.error else probe.parse_model_page(model, page.body)
        except Exception:  # noqa: BLE001  # the page has an unknown format
            return model

    models_by_name = {model.name: model for model in await asyncio.gather(*map(read_model, models))}
    return replace(server, models=tuple(models_by_name.get(model.name, model) for model in server.models))


async def fetch(client: Client, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Send a POST if ``body`` is given, else a GET. Return the JSON object of the response, or {} if it is empty.

    Raises:
        LLMError: the server cannot be reached, sent an error, or did not send JSON.
    """
    page = await _read_page(client, HttpRequest(url=client.endpoint.server_url + path, body=body))
    if page.error:
        raise page.error
    return page.body


def suggest_setting(spec: ProviderSpec, kind: ProviderSpec, server_url: str) -> str:
    """Return a hint with the variables to set, for a server of another kind than the configured provider."""
    if spec.kind:
        return f"Set {spec.variable('kind')}={kind.name}"
    return f"Use LLM_PROVIDER={kind.name} with {kind.variable('base_url')}={server_url}"


def read_model_list(page: Page) -> Server | None:
    """Return a server with the listed models and their context lengths; None if the page has no model list."""
    rows = next((rows for key in _LIST_KEYS if (rows := page.rows(key)) is not None), None)
    pairs = [(next(filter(None, (text_or_none(row.get(key)) for key in _NAME_KEYS)), None), row) for row in rows or ()]
    return None if rows is None else Server(models=tuple(_listed_model(name, row) for name, row in pairs if name))


def _listed_model(name: str, row: Mapping[str, Any]) -> Model:
    context = non_negative_int(row.get("context_length")) or non_negative_int(row.get("max_model_len")) or None
    end_date = parse_date(row.get("shutdown_date") or row.get("expiration_date"))  # the fields of OpenAI and OpenRouter
    capabilities = {"context": context, "context_served": context}
    return Model(name=name, chat="embed" not in name.lower(), end_date=end_date, capabilities=capabilities)


def error_of(subject: Server | Model | None) -> LLMError | None:
    """Return the error for a server or a model that reports a fault; None if it reports no fault."""
    if subject is None or subject.fault is None:
        return None
    state, sentence = subject.fault
    return errors.ModelLoading(sentence) if state == "loading" else errors.ServerFailed(sentence)


async def _recognise_any(client: Client, kinds: Sequence[ProviderSpec], deadline: float) -> Server | None:
    """Return the server at the endpoint; None if no kind matches."""
    server_url = client.endpoint.server_url
    urls = [server_url + path for kind in kinds if kind.server.probe for path in kind.server.probe.pages]
    pages = await _fetch_pages(client, urls, deadline)
    by_path = {url.removeprefix(server_url): page for url, page in pages.items()}
    return next((server for kind in kinds if (server := _recognise_kind(kind, by_path))), None)


async def _has_chat_route(client: Client, deadline: float) -> bool:
    """Return whether the server has a chat route: GET returns 405 for the route, but not for an unknown path."""
    chat, unknown = f"{client.endpoint.base_url}/chat/completions", f"{client.endpoint.base_url}/no/such/page"
    pages = await _fetch_pages(client, [chat, unknown], deadline)
    statuses = [page.error and page.error.status for page in pages.values()]
    return [status == _METHOD_NOT_ALLOWED for status in statuses] == [True, False]


async def _fetch_pages(client: Client, urls: Iterable[str], deadline: float) -> dict[str, Page]:
    """Read pages concurrently. Raise NotRecorded if the cassettes (recorded responses) lack all of them.

    Some pages may be missing, because the probe may be newer than the cassettes.
    """
    urls = list(dict.fromkeys(urls))
    pages = await asyncio.gather(*(_fetch_page(client, url, None, deadline) for url in urls))
    missing = [page.error for page in pages if isinstance(page.error, errors.NotRecorded)]
    if missing and len(missing) == len(urls):
        raise missing[0]
    return dict(zip(urls, pages, strict=True))


async def _fetch_page(client: Client, url: str, body: Mapping[str, Any] | None, deadline: float) -> Page:
    """Read one page. Return a failure as ``Page.error``."""
    endpoint, remaining_s = client.endpoint, deadline - asyncio.get_running_loop().time()
    query = f"?api-version={endpoint.version}" if endpoint.version else ""
    connect_s = max(0.001, remaining_s * _CONNECT_SHARE)
    request = HttpRequest(url=url + query, body=body, connect_timeout=connect_s)
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_page(client, request)
    except TimeoutError:
        hint = "The server may be busy or hang. Check its log. With a configured model, a request needs no probe"
        return Page(error=errors.FirstTokenTimeout("a probe of the server timed out", hint=hint))
    except LLMError as error:
        return Page(error=error)


async def _read_page(client: Client, request: HttpRequest) -> Page:
    headers, data = await client.fetch(request)
    if isinstance(data, LLMError) or not data.strip():
        return Page(headers=headers, error=data if isinstance(data, LLMError) else None)
    data = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    content = json_object(b'{"data": %b}' % data if data[:1] == b"[" else data)  # a bare array lists the models
    if content is None:
        return Page(headers=headers, error=error_mapping.no_model_api_error(200))
    error = error_mapping.map_error_object(content, answer_started=False) if content.get("error") else None
    return Page(body=content, headers=headers, error=error)


def _recognise_kind(kind: ProviderSpec, pages: Mapping[str, Page]) -> Server | None:
    """Return the server if its pages are those of this kind of server, else None."""
    if kind.server.probe is None:
        return None
    try:
        server = kind.server.probe.parse_pages(pages)
    except Exception:  # noqa: BLE001  # the page has an unknown format
        return None
    return server and replace(server, spec=kind)


def _most_specific_error(model_list: Page, pages: Iterable[Page]) -> LLMError | None:
    """Return the most specific error: a rejected key, else a loading model, else the error of the model list."""
    failures = [page.error for page in pages if page.error]
    classes = errors.AuthenticationFailed, errors.ModelLoading
    return next((error for cls in classes for error in failures if isinstance(error, cls)), model_list.error)
