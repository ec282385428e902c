"""A player of cassettes by vcrpy. A header has what vcrpy cannot represent: the pieces, and how a response broke."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import vcr
from vcr.errors import CannotOverwriteExistingCassetteException

from learnflow.llm import errors
from learnflow.llm.replay import active, cassette
from learnflow.llm.replay.cassette import RecordedResponse
from learnflow.llm.replay.transport import CassetteBackend, build_response

_JSON: Final = {"content-type": "application/json"}  # so that vcrpy compares bodies as JSON
MARK: Final = "x-learnflow-cassette"


def deserialize(text: str) -> dict[str, Any]:
    """Return a cassette in vcrpy's format, with bodies in one piece."""
    rows = []
    for interaction in cassette.load(text)[1]:
        request, response = interaction.request, interaction.response
        mark = {"pieces": [len(piece) for piece in response.pieces], "left": response.client_disconnected}
        if response.failure:
            mark |= {"error": type(response.failure).__name__, "what": response.failure.what}
        body = "" if request.body is None else json.dumps(request.body)
        headers = {name: [value] for name, value in response.headers.items()} | {MARK: [json.dumps(mark)]}
        rows.append(
            {
                "request": {
                    "method": request.method,
                    "uri": request.uri,
                    "headers": {name: [value] for name, value in {**request.credentials, **_JSON}.items()},
                    "body": body,
                },
                "response": {
                    "status": {"code": response.status or 0, "message": ""},
                    "headers": headers,
                    "body": {"string": b"".join(response.pieces)},
                },
            }
        )
    return {"version": 1, "interactions": rows}


def serialize(_: Mapping[str, Any]) -> str:
    raise AssertionError("vcrpy must not record")


def unmarked(status: int, headers: Mapping[str, str], body: bytes) -> RecordedResponse:
    """Return a response of vcrpy in its original pieces."""
    mark, at, pieces = json.loads(headers[MARK]), 0, []
    for length in mark["pieces"]:
        pieces.append(body[at : at + length])
        at += length
    failure = getattr(errors, mark["error"])(mark["what"]) if "error" in mark else None
    original = {name: value for name, value in headers.items() if name != MARK}
    return RecordedResponse(status or None, original, tuple(pieces), failure, mark["left"])


class _Unmarking(httpx.AsyncBaseTransport):
    def __init__(self, wrapped: httpx.AsyncBaseTransport) -> None:
        self._wrapped = wrapped

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._wrapped.handle_async_request(request)
        except CannotOverwriteExistingCassetteException:
            raise errors.NotRecorded(f"vcrpy has no such request: {request.method} {request.url}") from None
        return build_response(unmarked(response.status_code, dict(response.headers), await response.aread()))


class _PlayedByVcrpy(CassetteBackend):
    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        return _Unmarking(wrapped)


def _credentials(request: Any, recorded: Any) -> None:
    """Assert that both requests have the same key in the same header."""
    for name in ("authorization", "api-key", "x-api-key"):
        assert request.headers.get(name) == recorded.headers.get(name), name


@contextmanager
def played_by_vcrpy(file: Path) -> Iterator[None]:
    """Return a context manager in which providers get their responses from vcrpy. All of them must be used."""
    recorder = vcr.VCR(record_mode="none", serializer="learnflow")
    recorder.register_serializer("learnflow", sys.modules[__name__])
    recorder.register_matcher("credentials", _credentials)
    match_on = ["method", "scheme", "host", "port", "path", "query", "body", "credentials"]
    with recorder.use_cassette(str(file), match_on=match_on) as cassette, active.override(_PlayedByVcrpy()):
        yield
    assert cassette.all_played, f"{cassette.play_count} of {len(cassette)} played"
