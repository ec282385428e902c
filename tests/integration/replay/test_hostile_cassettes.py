"""A cassette contains no secret, and an invalid or hostile cassette is an error of this package in bounded steps."""

from __future__ import annotations

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support import KINDS, provider_for

from learnflow.llm import errors
from learnflow.llm.providers import LlamaCppProvider
from learnflow.llm.replay import active, cassette
from learnflow.llm.replay.scrubber import Scrubber, mask_secrets
from learnflow.llm.testing import Fault, FaultServer, clear_learned_state, recording, replaying

KEY = "sk-secret/key+1"
BODY_SECRET = "tenant-token-77"
SECRETS = {KEY: "key-of-x"}


@pytest.fixture(autouse=True)
def forget_state() -> None:
    clear_learned_state()


def written(folder: Path) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.yaml"))


def encodings(secret: str) -> list[str]:
    escaped = "".join(f"\\u{ord(character):04x}" for character in secret)
    pairs = [f"{pad}:{secret}" for pad in ("", "u", "us", "use")]
    return [
        secret,
        escaped,
        escaped.upper().replace("\\U", "\\u"),
        json.dumps(escaped)[1:-1],
        secret.replace("/", "\\/"),
        quote(secret, safe=""),
        "".join(f"%{ord(character):02x}" for character in secret),
        *(base64.b64encode(pair.encode()).decode() for pair in pairs),
        *(base64.urlsafe_b64encode(pair.encode()).decode() for pair in pairs),
    ]


@pytest.mark.parametrize("text", encodings(KEY))
def test_secret_is_found_in_every_encoding(text: str) -> None:
    clean = Scrubber(SECRETS).scrub_text(f"before {text} after")
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    assert "key-of-x" in clean
    assert text[4:-4] not in clean


@pytest.mark.parametrize("cut", range(1, len(KEY)))
def test_secret_is_found_in_two_pieces(cut: int) -> None:
    pieces = (b"data: x" + KEY[:cut].encode(), KEY[cut:].encode() + b"\n\n")
    assert Scrubber(SECRETS).scrub_pieces(pieces) == (b"data: xkey-of-x\n\n",)


def test_pieces_without_secret_are_unchanged() -> None:
    pieces = (b"data: \xd1", b"\x88\n\n", b"\xff\xfe")
    assert Scrubber(SECRETS, {"10.0.0.1": "x.example"}).scrub_pieces(pieces) == pieces


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@pytest.mark.parametrize("size", [1, 3, 7])
async def test_key_in_deltas_of_a_stream_is_masked(tmp_path: Path, dialect: Any, size: int) -> None:
    deltas = ["It is ", *(KEY[at : at + size] for at in range(0, len(KEY), size)), "."]
    async with FaultServer(dialect, deltas, slice_bytes=5) as server:
        with recording(tmp_path):
            received = [piece async for piece in provider_for(server, api_key=KEY).stream("hi", temperature=0)]
    assert "".join(received) == f"It is {KEY}."
    with replaying(tmp_path):
        played = await KINDS[dialect](model="fault-model").generate("hi", temperature=0)
    assert KEY not in played
    assert (played[:6], played[-1]) == ("It is ", ".")


@pytest.mark.parametrize(
    "headers",
    [{"server": f"nginx {KEY}"}, {"retry-after": KEY}, {"content-type": f"application/json; key={KEY}"}],
    ids=lambda headers: next(iter(headers)),
)
async def test_key_in_header_of_response_is_replaced(tmp_path: Path, headers: dict[str, str]) -> None:
    fault = Fault("refuse", status=401, body=b'{"error": "no"}', headers=headers)
    async with FaultServer("llamacpp", fault=fault) as server:
        with recording(tmp_path), pytest.raises(errors.LLMError):
            await provider_for(server, api_key=KEY).generate("hi")
    text = written(tmp_path)
    assert KEY not in text
    assert "127.0.0.1" not in text


async def test_key_in_compressed_response_is_replaced(tmp_path: Path) -> None:
    body = gzip.compress(json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode())
    fault = Fault("refuse", status=401, body=body, headers={"content-encoding": "gzip"})
    async with FaultServer("llamacpp", fault=fault) as server:
        with recording(tmp_path), pytest.raises(errors.AuthenticationFailed):
            await provider_for(server, api_key=KEY).generate("hi")
    assert "wrong key key-of-llamacpp" in written(tmp_path)
    with replaying(tmp_path), pytest.raises(errors.AuthenticationFailed):
        await LlamaCppProvider(model="fault-model").generate("hi")


@pytest.mark.parametrize("place", ["header", "query"])
async def test_secret_of_header_or_query_is_replaced_if_the_server_repeats_it(tmp_path: Path, place: str) -> None:
    reply = json.dumps({"error": {"message": f"not allowed: {BODY_SECRET}"}}).encode()
    headers = {"x-gateway": f"Bearer {BODY_SECRET}"} if place == "header" else None
    async with FaultServer("llamacpp", fault=Fault("refuse", status=400, body=reply)) as server:
        url = server.base_url + (f"/v1?access={BODY_SECRET}" if place == "query" else "")
        with recording(tmp_path), pytest.raises(errors.LLMError) as caught:
            await LlamaCppProvider(url, "fault-model", headers=headers).generate("hi")
    assert BODY_SECRET not in written(tmp_path)
    assert BODY_SECRET not in str(caught.value)


@pytest.mark.parametrize("encoding", ["br", "gzip"])
async def test_body_that_cannot_be_decompressed_is_not_recorded(tmp_path: Path, encoding: str) -> None:
    fault = Fault("refuse", status=401, body=KEY.encode(), headers={"content-encoding": encoding})
    async with FaultServer("llamacpp", fault=fault) as server:
        with recording(tmp_path), pytest.raises(errors.LLMError):
            await provider_for(server, api_key=KEY).generate("hi")
    text = written(tmp_path)
    assert KEY not in text
    assert base64.b64encode(KEY.encode()).decode()[:12] not in text


@pytest.mark.parametrize(
    "extra",
    [
        {"token": BODY_SECRET},
        {"userApiKey": BODY_SECRET},
        {"nested": {"rows": [{"Authorization": f"Bearer {BODY_SECRET}"}]}},
        {"api_key": [BODY_SECRET]},
        {"anything": "sk-live-1234567890ab"},
        {"anything": "Basic dXNlcjpwYXNzd29yZA=="},
        {"anything": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"},
    ],
    ids=["token", "key", "header", "list", "prefix", "basic", "JWT"],
)
async def test_secret_in_extra_body_is_replaced_in_request_and_response(tmp_path: Path, extra: dict[str, Any]) -> None:
    secret = json.dumps(extra).rpartition(": ")[2].strip('["}] ').split()[-1]
    async with FaultServer("llamacpp", [f"You sent {secret}", "."]) as server:
        with recording(tmp_path):
            assert secret in await provider_for(server).generate("hi", extra_body=extra)
        assert secret in json.dumps(server.seen[-1].body)  # the server receives it
    assert secret not in written(tmp_path)
    with replaying(tmp_path):  # also with another secret, as in CI
        other = json.loads(json.dumps(extra).replace(BODY_SECRET, "ci-token-123456"))
        played = await LlamaCppProvider(model="fault-model").generate("hi", extra_body=other)
    assert played == "You sent masked-secret."


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "a keyboard-shortcut, sk- and token"}], "max_tokens": 10},
        {"prompt_cache_key": "session-1234567", "model": "accounts/fireworks/models/mixtral8x7b"},
        {"images": ["aGVsbG8gd29ybGQgaGVsbG8gd29ybGQ0"], "tools": [{"parameters": {"api_key": {"type": "string"}}}]},
    ],
)
def test_body_without_secret_is_unchanged(body: dict[str, Any]) -> None:
    assert mask_secrets(body) == body


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def entry(**changes: str) -> str:
    """Return the text of a cassette with some values replaced by other YAML."""
    values = {
        "method": "POST",
        "uri": "http://llamacpp.example/v1/chat/completions",
        "headers": "{}",
        "body": "{a: 1}",
        "code": "200",
        "answer_headers": "{}",
        "answer": "{string: x}",
        "more": "",
        **changes,
    }
    text = """interactions:
- request:
    method: {method}
    uri: {uri}
    headers: {headers}
    body: {body}
  response:
    status: {{code: {code}}}
    headers: {answer_headers}
    body: {answer}
    {more}
"""
    return text.format(**values)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "interactions:\n- {request: {method: POST, uri: x, headers: {}, body: *i}, response: {}}\n",
        MERGES + entry(),
        "interactions: &a [*a]\n",
        entry(body="[" * 100_000 + "]" * 100_000),
        entry(body="[" * 900 + "]" * 900),
        entry(body="'" + "[" * 100_000 + "'"),
        entry(answer="{json: " + "[" * 5_000 + "]" * 5_000 + "}"),
        "interactions:\n" + "- []\n" * 600_000,
        entry(body="!!set {a, b}"),
        entry(body="{a: !!binary aGk=}"),
        entry(body="!!timestamp 2026-11-29"),
        entry(body="!!python/object/apply:os.system [ls]"),
        entry(body="!!omap [a: 1]"),
        entry(body="{a: .nan}"),
        entry(body="{a: " + "9" * 5_000 + "}"),
        entry(body="{a: 1" + ":59" * 100_000 + "}"),
        entry(headers="{authorization: []}"),
        entry(answer_headers="{content-type: []}"),
        entry(answer_headers="[1]"),
        entry(answer="{pieces: [1, 2]}"),
        entry(answer="{pieces: [[1]]}"),
        entry(answer="{}"),
        entry(answer="{string: 5}"),
        entry(code="ready"),
        entry(code="[1]"),
        entry(uri="'http://['"),
        entry(more="failure: {error: Mapping, what: x}"),
        entry(more="failure: {error: bare, what: x}"),
        entry(more="failure: {error: NoSuch, what: x}"),
        entry(more="failure: [x]"),
        "interactions: {a: 1}\n",
        "interactions:\n- 1\n",
    ],
)
def test_hostile_cassette_raises_not_configured(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="it is not a cassette") as caught, replaying(file):
        pass
    assert len(str(caught.value)) < 1_000


def test_unquoted_date_is_text() -> None:
    _, (interaction,) = cassette.load(entry(body="{day: 2026-11-29}"))
    assert interaction.request.body == {"day": "2026-11-29"}


def test_control_characters_of_recorded_failure_are_removed() -> None:
    _, (interaction,) = cassette.load(entry(more='failure: {error: AnswerCut, what: "\\e[31mred\\n"}'))
    assert str(interaction.response.failure).startswith("[31mred")


def special(path: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(10**10)  # sparse
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe")
    elif kind == "broken link":
        path.symlink_to(path.with_name("nothing"))
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["FIFO", "device", "huge", "bytes", "broken link", "folder"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "in a folder"])
def test_special_file_raises_not_configured(kind: str, named: bool, tmp_path: Path) -> None:
    """A FIFO would block without end."""
    special(tmp_path / "a.yaml", kind)
    with pytest.raises(errors.NotConfigured, match="cassette"):
        active.read_cassettes(tmp_path / "a.yaml" if named else tmp_path)


def test_folder_named_as_a_cassette_is_skipped(tmp_path: Path) -> None:
    special(tmp_path / "a.yaml", "folder")
    (tmp_path / "a.yaml" / "b.yaml").write_text(entry(), encoding="utf-8")
    assert len(active.read_cassettes(tmp_path)) == 1
