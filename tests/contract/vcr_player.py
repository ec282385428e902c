"""vcrpy plays our cassettes: what it cannot say of an answer, its pieces and how it broke, travels in a header."""

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
from learnflow.llm.replay.transport import Cassettes, played

_JSON: Final = {"content-type": "application/json"}  # by which vcrpy compares bodies as JSON
MARK: Final = "x-learnflow-cassette"


def deserialize(text: str) -> dict[str, Any]:
    """The cassette as vcrpy wants it: bodies in one piece."""
    rows = []
    for each in cassette.load(text)[1]:
        asked, said = each.request, each.response
        mark = {"pieces": [len(piece) for piece in said.pieces], "left": said.left}
        if said.failure:
            mark |= {"error": type(said.failure).__name__, "what": said.failure.what}
        body = "" if asked.body is None else json.dumps(asked.body)
        headers = {name: [value] for name, value in said.headers.items()} | {MARK: [json.dumps(mark)]}
        rows.append(
            {
                "request": {
                    "method": asked.method,
                    "uri": asked.uri,
                    "headers": {name: [value] for name, value in {**asked.credentials, **_JSON}.items()},
                    "body": body,
                },
                "response": {
                    "status": {"code": said.status or 0, "message": ""},
                    "headers": headers,
                    "body": {"string": b"".join(said.pieces)},
                },
            }
        )
    return {"version": 1, "interactions": rows}


def serialize(_: Mapping[str, Any]) -> str:
    raise AssertionError("vcrpy plays here, it does not record")


def unmarked(status: int, headers: Mapping[str, str], body: bytes) -> RecordedResponse:
    """An answer that vcrpy played, in its pieces again."""
    mark, at, pieces = json.loads(headers[MARK]), 0, []
    for length in mark["pieces"]:
        pieces.append(body[at : at + length])
        at += length
    failure = getattr(errors, mark["error"])(mark["what"]) if "error" in mark else None
    kept = {name: value for name, value in headers.items() if name != MARK}
    return RecordedResponse(status or None, kept, tuple(pieces), failure, mark["left"])


class _Unmarking(httpx.AsyncBaseTransport):
    def __init__(self, wrapped: httpx.AsyncBaseTransport) -> None:
        self._wrapped = wrapped

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._wrapped.handle_async_request(request)
        except CannotOverwriteExistingCassetteException:
            raise errors.NotRecorded(f"vcrpy has no such request: {request.method} {request.url}") from None
        return played(unmarked(response.status_code, dict(response.headers), await response.aread()))


class _PlayedByVcrpy(Cassettes):
    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        return _Unmarking(wrapped)


def _credentials(asked: Any, recorded: Any) -> None:
    """The headers that carry a key: the same ones, with the same key."""
    for name in ("authorization", "api-key", "x-api-key"):
        assert asked.headers.get(name) == recorded.headers.get(name), name


@contextmanager
def played_by_vcrpy(file: Path) -> Iterator[None]:
    """Providers that are made inside are answered by vcrpy from this cassette, all of it."""
    recorder = vcr.VCR(record_mode="none", serializer="learnflow")
    recorder.register_serializer("learnflow", sys.modules[__name__])
    recorder.register_matcher("credentials", _credentials)
    match_on = ["method", "scheme", "host", "port", "path", "query", "body", "credentials"]
    with recorder.use_cassette(str(file), match_on=match_on) as cassette, active.instead(_PlayedByVcrpy()):
        yield
    assert cassette.all_played, f"{cassette.play_count} of {len(cassette)} played"
