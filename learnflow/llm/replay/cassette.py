"""Cassettes: interactions in vcrpy's format, readable, without hosts and secrets, their pieces as they came."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

from .. import errors
from ..errors import LLMError
from ..transport import error_mapping

_VERSION: Final = 1  # of vcrpy's format
_HEADERS: Final = ("content-type", "content-encoding", "retry-after", "retry-after-ms", "server")
_STREAMS: Final = ("text/event-stream", "application/x-ndjson")
_BREAKS: Final = re.compile("[\r\x85\u2028\u2029\ufeff]")  # YAML reads them as ends of lines

# What differs from one recording to the next although the server did not change: times, random names, folders.
_VOLATILE: Final = (
    (re.compile(rb'("created":\s*)\d+'), rb"\g<1>0"),
    (re.compile(rb'("(?:created_at|modified_at|expires_at)":\s*)"[^"]*"'), rb'\g<1>"1970-01-01T00:00:00Z"'),
    (re.compile(rb'("(?:\w+_duration|\w+_ms|\w+_per_second)":\s*)-?[\d.]+(?:e[+-]?\d+)?'), rb"\g<1>0"),
    (re.compile(rb'("id":\s*")(chatcmpl|cmpl|gen|modelperm)-(?!tool)[^"]*"'), rb'\g<1>\g<2>-0"'),
    (re.compile(rb'("media_marker":\s*")[^"]*"'), rb'\g<1>"'),
    (re.compile(rb'("(?:model_path|root|parent_model)":\s*")[^"]*/'), rb"\g<1>"),
    (re.compile(rb"(\\nFROM )/[^\\]*/"), rb"\g<1>"),
)


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as it is in a cassette.

    Attributes:
        method: GET or POST.
        uri: with the provider's name for a host.
        credentials: the headers that carry a key, with what stands for it.
        body: the JSON that was sent; None where nothing was.
    """

    method: str
    uri: str
    credentials: Mapping[str, str] = field(default_factory=dict)
    body: Any = field(default=None, repr=False)

    @property
    def provider(self) -> str:
        """The name of the provider that was asked."""
        return str(urlsplit(self.uri).hostname).partition(".")[0]


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """What was answered.

    Attributes:
        status, headers: its head; None where no answer came.
        pieces: the body, as it arrived.
        failure: how it broke, after the pieces.
        left: the client did not wait for more.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    failure: LLMError | None = None
    left: bool = False

    @property
    def end(self) -> LLMError | None:
        """What a client meets after the last piece; None for the end of the body."""
        if not self.left:
            return self.failure and type(self.failure)(self.failure.what)  # another exception each time
        late = errors.FirstTokenTimeout if self.status is None else errors.GapTimeout
        return late("nothing more is in a cassette: the client left here when it was recorded")


@dataclass(frozen=True, slots=True)
class Interaction:
    """A request and its answer."""

    request: RecordedRequest
    response: RecordedResponse


def recorded_request(
    method: str, url: str, content: bytes, *, root: str, provider: str, credentials: Mapping[str, str]
) -> RecordedRequest:
    """A request as it is in a cassette.

    Args:
        method, url, content: as it was sent.
        root: the address of the server, which the cassette does not name.
        provider: whose name stands there instead.
        credentials: its headers with the key.
    """
    here, there = urlsplit(url), urlsplit(root)
    path = here.path.removeprefix(there.path.rstrip("/")) + (f"?{here.query}" if here.query else "")
    return RecordedRequest(
        method,
        f"http://{provider}.example{path}",
        {name: _stand_in(name, value, provider) for name, value in credentials.items()},
        json.loads(content) if content else None,
    )


def _stand_in(name: str, value: str, provider: str) -> str:
    """What stands for a key: that it is the provider's; a key of the tests, which is a stand-in itself, stays."""
    scheme, space, key = value.partition(" ") if name == "authorization" else ("", "", value)  # "Bearer", "Api-Key"
    return scheme + space + (key if key.startswith(("key-of-", "wrong-")) else f"key-of-{provider}")


def _failure(row: Mapping[str, Any]) -> LLMError | None:
    """The failure that a cassette holds. Raises AttributeError or TypeError where it is none of ours."""
    failure = row.get("failure")
    return getattr(errors, failure["error"])(failure["what"]) if failure else None


def recorded_response(
    status: int | None, headers: Mapping[str, str], pieces: Sequence[bytes], **how: Any
) -> RecordedResponse:
    """An answer as it is in a cassette: with the headers that matter. A date to wait for becomes seconds."""
    kept = {name: headers[name] for name in _HEADERS if name in headers}
    wait = error_mapping.retry_after(headers)
    if wait is not None and "retry-after" in kept:
        kept["retry-after"] = f"{wait:g}"
    return RecordedResponse(status, kept, tuple(pieces), **how)


def calm(one: Interaction) -> Interaction:
    """Without what differs from one recording to the next although the server did not change.

    For cassettes that are compared with others; an application may want its own as they were.
    """
    pieces = []
    for piece in one.response.pieces:
        for pattern, instead in _VOLATILE:
            piece = pattern.sub(instead, piece)  # noqa: PLW2901
        pieces.append(piece)
    return replace(one, response=replace(one.response, pieces=tuple(pieces)))


def dump(origin: Mapping[str, Any], interactions: Sequence[Interaction]) -> str:
    """The cassette as text."""
    rows = [{"request": _request(each.request), "response": _response(each.response)} for each in interactions]
    return serialize({"origin": dict(origin), "interactions": rows, "version": _VERSION})


def load(text: str) -> tuple[Mapping[str, Any], list[Interaction]]:
    """Where the cassette is from, and what it holds. Raises NotConfigured where it is no cassette."""
    import yaml  # noqa: PLC0415  # wanted only by who plays or records

    try:
        said = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # the safe one, in C or not
        rows = [_interaction(row["request"], row["response"]) for row in said["interactions"]]
        return said.get("origin", {}), rows
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        where = getattr(error, "problem_mark", None)
        what = f"line {where.line + 1}" if where else f"{type(error).__name__}"
    raise errors.NotConfigured(f"it is not a cassette ({what})", hint="Restore it, or record it again")


def _request(one: RecordedRequest) -> dict[str, Any]:
    headers = {name: [value] for name, value in one.credentials.items()}
    if one.body is not None:
        headers["content-type"] = ["application/json"]
    body = one.body if _writable(one.body) else json.dumps(one.body)
    return {"method": one.method, "uri": one.uri, "headers": headers, "body": body}


def _response(one: RecordedResponse) -> dict[str, Any]:
    row: dict[str, Any] = {"status": {"code": one.status or 0, "message": "" if one.status else "no answer"}}
    row["headers"] = {name: [value] for name, value in one.headers.items()}
    row["body"] = _readable(one)
    if one.failure:
        row["failure"] = {"error": type(one.failure).__name__, "what": one.failure.what}
    return row | ({"left": True} if one.left else {})


def _readable(one: RecordedResponse) -> dict[str, Any]:
    """A stream as its pieces, JSON as YAML, the rest as it is."""
    if one.headers.get("content-type", "").partition(";")[0] in _STREAMS:
        return {"pieces": [_text(piece) for piece in one.pieces]}
    whole = b"".join(one.pieces)
    try:
        said = json.loads(whole)
    except ValueError:
        return {"string": _text(whole)}
    return {"json": said} if _writable(said) else {"string": _text(whole)}


def _writable(said: Any) -> bool:
    """Whether JSON can stand as YAML: half of a pair of surrogates, or a number beyond all numbers, cannot."""
    try:
        json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:  # cut in the middle of a character
        return data


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _interaction(request: Mapping[str, Any], response: Mapping[str, Any]) -> Interaction:
    headers = {name: str(values[0]) for name, values in request["headers"].items()}
    credentials = {name: value for name, value in headers.items() if name != "content-type"}
    question = request["body"]
    if isinstance(question, str):
        question = json.loads(question)
    body = response["body"]
    if "pieces" in body:
        pieces = tuple(_bytes(piece) for piece in body["pieces"])
    elif "json" in body:
        pieces = (json.dumps(body["json"], ensure_ascii=False, separators=(",", ":")).encode(),)
    else:
        pieces = (_bytes(body["string"]),) if body["string"] else ()
    answer = RecordedResponse(
        response["status"]["code"] or None,
        {name: str(values[0]) for name, values in response["headers"].items()},
        pieces,
        _failure(response),
        response.get("left", False),
    )
    return Interaction(RecordedRequest(request["method"], request["uri"], credentials, question), answer)


def serialize(cassette: Mapping[str, Any]) -> str:
    """The cassette as YAML: lines as lines, Russian as Russian."""
    import yaml  # noqa: PLC0415

    text = _yaml(cassette, getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    return _yaml(cassette, yaml.SafeDumper) if "\\U" in text else text  # libyaml, ten times as fast, spells emoji out


def _yaml(cassette: Mapping[str, Any], base: Any) -> str:
    import yaml  # noqa: PLC0415

    class Dumper(base):  # type: ignore[misc]  # one of two
        """With the texts of several lines written as such."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def lines(dumper: Any, text: str) -> Any:
        style = '"' if _BREAKS.search(text) else "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, lines)
    return str(
        yaml.dump(dict(cassette), Dumper=Dumper, allow_unicode=True, sort_keys=False, width=10_000)
    ).removesuffix("...\n")
