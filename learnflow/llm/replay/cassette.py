"""The file format of cassettes (recorded requests and responses).

It is vcrpy's YAML, with placeholders instead of hosts and API keys. A streamed body is stored as the list of its
received pieces, and a JSON body as YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import httpx

from .. import errors
from ..errors import LLMError
from ..transport import error_mapping
from ..transport.endpoint import Endpoint
from ..transport.untrusted import parse_json, printable

_VCRPY_VERSION: Final = 1
_RECORDED_HEADERS: Final = ("content-type", "content-encoding", "retry-after", "retry-after-ms", "server")
_YAML_TYPES: Final = ("null", "bool", "int", "float", "str", "binary", "seq", "map")
_MAX_FAILURE_CHARS: Final = 1000
_MAX_DEPTH: Final = 200
_MAX_YAML_EVENTS: Final = 500_000
_STREAM_CONTENT_TYPES: Final = ("text/event-stream", "application/x-ndjson")
# Line ends other than "\n", and the byte order mark. A YAML block scalar does not preserve these characters.
_UNSAFE_IN_BLOCK: Final = re.compile("[\r\x85\u2028\u2029\ufeff]")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request in a cassette.

    Attributes:
        uri: the URI, with the provider's name instead of the host.
        credentials: the header that has the API key. A placeholder replaces the key.
        body: the parsed JSON body; None if there was none.
    """

    method: str
    uri: str
    credentials: Mapping[str, str] = field(default_factory=dict)
    body: Any = field(default=None, repr=False)

    @property
    def provider(self) -> str:
        """Return the name of the provider."""
        return str(urlsplit(self.uri).hostname).partition(".")[0]


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A response in a cassette.

    Attributes:
        status: the HTTP status; None if no response arrived.
        pieces: the received pieces of the body.
        failure: the error that ended the response, if any.
        client_disconnected: whether the client disconnected before the end of the body.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    failure: LLMError | None = None
    client_disconnected: bool = False

    @property
    def final_error(self) -> LLMError | None:
        """Return a new error to raise after the last piece; None if the body is complete."""
        if not self.client_disconnected:
            return self.failure and type(self.failure)(self.failure.what)
        timeout = errors.FirstTokenTimeout if self.status is None else errors.GapTimeout
        return timeout("the cassette ends here: the client disconnected when it was recorded")


@dataclass(frozen=True, slots=True)
class Interaction:
    """A request and its response."""

    request: RecordedRequest
    response: RecordedResponse


def convert_request(request: httpx.Request, endpoint: Endpoint, provider: str) -> RecordedRequest:
    """Convert a request to its form in a cassette.

    Remove the path of ``Endpoint.server_url`` and the parameters of ``Endpoint.query`` from the URL, because they may
    contain a key. The query parameter ``api-version`` stays.
    """
    url = urlsplit(str(request.url))
    endpoint_parameters = {pair for pair in endpoint.query.split("&") if not pair.startswith("api-version=")}
    query = "&".join(pair for pair in url.query.split("&") if pair not in endpoint_parameters)
    path = url.path.removeprefix(urlsplit(endpoint.server_url).path.rstrip("/")) + (f"?{query}" if query else "")
    credentials = {name: _placeholder(name, value, provider) for name, value in endpoint.credentials.items()}
    body = json.loads(request.content) if request.content else None
    return RecordedRequest(request.method, f"http://{provider}.example{path}", credentials, body)


def _placeholder(name: str, value: str, provider: str) -> str:
    """Replace the key in a header value with a placeholder. Keep the fake keys of tests."""
    scheme, space, key = value.partition(" ") if name == "authorization" else ("", "", value)
    return scheme + space + (key if key.startswith(("key-of-", "wrong-")) else f"key-of-{provider}")


def _parse_failure(response: Mapping[str, Any]) -> LLMError | None:
    """Return the error that ended a response, if any. Raise TypeError if its class is unknown."""
    if not (failure := response.get("failure")):
        return None
    error_class = getattr(errors, failure["error"], None)
    if not (isinstance(error_class, type) and issubclass(error_class, LLMError)):
        raise TypeError
    return error_class(printable(str(failure["what"]), _MAX_FAILURE_CHARS))


def convert_response(
    status: int | None, headers: Mapping[str, str], pieces: Sequence[bytes], **end: Any
) -> RecordedResponse:
    """Convert a response to its form in a cassette. Keep only the headers in ``_RECORDED_HEADERS``.

    A date in ``retry-after`` becomes seconds, because a date would have passed when the cassette is played. ``end`` has
    the keywords ``failure`` and ``client_disconnected``.
    """
    recorded_headers = {name: headers[name] for name in _RECORDED_HEADERS if name in headers}
    retry_after_s = error_mapping.retry_after(headers)
    if retry_after_s is not None and "retry-after" in recorded_headers:
        recorded_headers["retry-after"] = f"{retry_after_s:g}"
    return RecordedResponse(status, recorded_headers, tuple(pieces), **end)


def dump(origin: Mapping[str, Any], interactions: Sequence[Interaction]) -> str:
    """Return the text of a cassette. ``origin`` describes how and where it was recorded."""
    import yaml  # noqa: PLC0415  # only needed to play or record

    entries = [
        {"request": _request_to_dict(interaction.request), "response": _response_to_dict(interaction.response)}
        for interaction in interactions
    ]
    cassette = {"origin": dict(origin), "interactions": entries, "version": _VCRPY_VERSION}
    text = _dump_yaml(cassette, getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    # libyaml is ten times faster than the Python dumper, but escapes emoji. If the text has any, use the Python dumper.
    return _dump_yaml(cassette, yaml.SafeDumper) if "\\U" in text else text


def load(text: str) -> tuple[Mapping[str, Any], list[Interaction]]:
    """Parse a cassette into its origin and its interactions. Raise NotConfigured if the text is invalid."""
    import yaml  # noqa: PLC0415

    try:
        content = yaml.load(text, _loader(text))  # noqa: S506  # a subclass of SafeLoader
        interactions = [_parse_interaction(entry["request"], entry["response"]) for entry in content["interactions"]]
        return content.get("origin", {}), interactions
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        position = getattr(error, "problem_mark", None)
        reason = f"line {position.line + 1}" if position else type(error).__name__
    raise errors.NotConfigured(f"it is not a cassette ({reason})", hint="Restore it, or record it again")


def _loader(text: str) -> Any:
    """Check the text. Return a YAML loader that supports only bytes and JSON's types.

    Raises:
        ValueError: the text has too many values, too deep nesting, or anchors. Anchors are invalid, because a few bytes
            with anchors and aliases can expand to gigabytes.
    """
    import yaml  # noqa: PLC0415

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml may be missing
    depth = 0
    for count, event in enumerate(yaml.parse(text, base)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "anchor", None) or depth > _MAX_DEPTH or count > _MAX_YAML_EVENTS:
            raise ValueError

    class Loader(base):  # type: ignore[misc,valid-type]  # the base class depends on libyaml
        """A loader without dates, sets, merge keys and sexagesimal numbers, which JSON does not have."""

        yaml_constructors: ClassVar = {
            tag: base.yaml_constructors[tag] for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in _YAML_TYPES))
        }
        yaml_implicit_resolvers: ClassVar = {
            character: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _YAML_TYPES]
            for character, resolvers in base.yaml_implicit_resolvers.items()
        }

    for name, construct in (("int", int), ("float", float)):
        Loader.add_constructor(f"tag:yaml.org,2002:{name}", lambda _, node, construct=construct: construct(node.value))
    return Loader


def _request_to_dict(request: RecordedRequest) -> dict[str, Any]:
    headers = {name: [value] for name, value in request.credentials.items()}
    if request.body is not None:
        headers["content-type"] = ["application/json"]
    body = request.body if _is_yaml_safe(request.body) else json.dumps(request.body)
    return {"method": request.method, "uri": request.uri, "headers": headers, "body": body}


def _response_to_dict(response: RecordedResponse) -> dict[str, Any]:
    status = {"code": response.status or 0, "message": "" if response.status else "no answer"}
    headers = {name: [value] for name, value in response.headers.items()}
    entry: dict[str, Any] = {"status": status, "headers": headers, "body": _body_to_dict(response)}
    if response.failure:
        entry["failure"] = {"error": type(response.failure).__name__, "what": response.failure.what}
    return entry | ({"left": True} if response.client_disconnected else {})


def _body_to_dict(response: RecordedResponse) -> dict[str, Any]:
    """Return a dict with ``pieces`` for a stream, else ``json`` for a YAML-safe JSON value, else ``string``."""
    if response.headers.get("content-type", "").partition(";")[0] in _STREAM_CONTENT_TYPES:
        return {"pieces": [_decode(piece) for piece in response.pieces]}
    body = b"".join(response.pieces)
    try:
        body_json = json.loads(body)
    except ValueError:
        return {"string": _decode(body)}
    return {"json": body_json} if _is_yaml_safe(body_json) else {"string": _decode(body)}


def _is_yaml_safe(value: Any) -> bool:
    """Return whether a JSON value is stored as YAML. With a lone surrogate, infinity or NaN, it is stored as text."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def _decode(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:  # the piece is binary, or begins or ends inside a character
        return data


def _encode(value: Any) -> bytes:
    return bytes(memoryview(value.encode() if isinstance(value, str) else value))  # TypeError unless str or bytes


def _parse_interaction(request: Mapping[str, Any], response: Mapping[str, Any]) -> Interaction:
    """Parse an entry of a cassette. Raise LookupError, TypeError, ValueError or AttributeError if it is invalid."""
    headers = {name: str(values[0]) for name, values in request["headers"].items()}
    credentials = {name: value for name, value in headers.items() if name != "content-type"}
    request_body = request["body"]
    if isinstance(request_body, str):
        request_body = parse_json(request_body)
    json.dumps(request_body, allow_nan=False)  # raises if JSON cannot represent the value
    body = response["body"]
    if "pieces" in body:
        pieces = tuple(_encode(piece) for piece in body["pieces"])
    elif "json" in body:
        text = json.dumps(body["json"], ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        pieces = (text.encode(),)
    else:
        pieces = (_encode(body["string"]),) if body["string"] else ()
    recorded_response = RecordedResponse(
        int(response["status"]["code"]) or None,
        {str(name): str(values[0]) for name, values in response["headers"].items()},
        pieces,
        _parse_failure(response),
        bool(response.get("left", False)),
    )
    recorded_request = RecordedRequest(str(request["method"]), str(request["uri"]), credentials, request_body)
    urlsplit(recorded_request.uri)  # raises ValueError if the URI is invalid
    return Interaction(recorded_request, recorded_response)


def _dump_yaml(cassette: Mapping[str, Any], base: Any) -> str:
    import yaml  # noqa: PLC0415

    class Dumper(base):  # type: ignore[misc]  # the base class depends on libyaml
        """A dumper without aliases. ``represent_text`` writes multi-line texts as blocks."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def represent_text(dumper: Any, text: str) -> Any:
        style = '"' if _UNSAFE_IN_BLOCK.search(text) else "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    text: str = yaml.dump(cassette, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n")
