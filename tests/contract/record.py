"""``make record PROVIDER=llamacpp``: make the cassettes of a provider again, from the server in the environment.

Without a server they are authored again from documents. Behaviours that the tiny model does not show (images, tools, a
busy server) are authored for every provider. A broken stream is derived from a recorded one. The origin of each
cassette states which it is. ``<NAME>_BUSY_URL`` may name a server that is loading or busy now: ``busy`` is recorded
there. A cassette with unchanged interactions keeps its date, so that a diff shows only changes of the server.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from authored import VOICES, Author, broken, seeing
from behaviours import BEHAVIOURS, BROKEN, Subject
from subjects import SUBJECTS, absent, cassette_of, fresh, named, seal, spec_of

from learnflow.llm.errors import LLMError
from learnflow.llm.replay import active, cassette
from learnflow.llm.replay.cassette import Interaction, RecordedRequest, RecordedResponse
from learnflow.llm.replay.transport import CassetteBackend, Recording
from learnflow.llm.testing import clear_learned_state

_PATIENCE_S = 30.0
_AUTHORED = ("image", "tools", "busy", "rate_limit")  # of every provider
# Ollama checks no key, and the tiny model cannot follow a prompt for the rest of an answer.
_NOT_SHOWN = {"custom": ("wrong_key", "resume")}

# Fields that differ between recordings of the same server: times, random names, folders.
_VOLATILE = (
    (re.compile(rb'("created":\s*)\d+'), rb"\g<1>0"),
    (re.compile(rb'("(?:created_at|modified_at|expires_at)":\s*)"[^"]*"'), rb'\g<1>"1970-01-01T00:00:00Z"'),
    (re.compile(rb'("(?:\w+_duration|\w+_ms|\w+_per_second)":\s*)-?[\d.]+(?:e[+-]?\d+)?'), rb"\g<1>0"),
    (re.compile(rb'("id":\s*")(chatcmpl|cmpl|gen|modelperm)-(?!tool)[^"]*"'), rb'\g<1>\g<2>-0"'),
    (re.compile(rb'("media_marker":\s*")[^"]*"'), rb'\g<1>"'),
    (re.compile(rb'("(?:model_path|root|parent_model)":\s*")[^"]*/'), rb"\g<1>"),
    (re.compile(rb"(\\nFROM )/[^\\]*/"), rb"\g<1>"),
)


class Collector(CassetteBackend):
    """Collects the interactions with a server, in the order of the requests."""

    def __init__(self) -> None:
        self._interactions: list[Interaction | None] = []

    @property
    def interactions(self) -> list[Interaction]:
        """Return the interactions that have ended."""
        return [interaction for interaction in self._interactions if interaction]

    def record(self, request: RecordedRequest) -> Recording:
        """Begin the recording of a response."""
        at = len(self._interactions)
        self._interactions.append(None)

        def keep(interaction: Interaction) -> None:
            self._interactions[at] = calm(interaction)

        return Recording(keep, request)


def calm(interaction: Interaction) -> Interaction:
    """Replace the fields that differ between recordings of the same server."""
    pieces = []
    for piece in interaction.response.pieces:
        for pattern, constant in _VOLATILE:
            piece = pattern.sub(constant, piece)  # noqa: PLW2901
        pieces.append(piece)
    return replace(interaction, response=replace(interaction.response, pieces=tuple(pieces)))


def main() -> int:
    """Record the named providers. Return the exit code."""
    rows = [row for name in sys.argv[1:] for row in (SUBJECTS if name == "all" else [name])]
    unknown = [row for row in rows if row not in SUBJECTS]
    if unknown or not rows:
        print(f"make record PROVIDER=one of: {', '.join(SUBJECTS)}, all", file=sys.stderr)
        return 2
    return max(asyncio.run(_row(row)) for row in rows)


async def _row(row: str) -> int:
    subject = named(row)
    about: dict[str, Any] = {}
    pages: Mapping[str, RecordedResponse] = {}
    if subject:
        collector = Collector()
        with active.override(collector):
            health = await subject.provider().refresh()
        if not health.ready:
            print(f"{row}: {health.detail}", file=sys.stderr)
            return 1
        server = " ".join(filter(None, [health.server or spec_of(row).title, health.version]))
        about = {"server": server, "model": subject.model}
        pages = {one.request.uri.partition(".example")[2]: one.response for one in collector.interactions}
        print(f"{row}: recording {server} at {subject.base_url}", flush=True)
    else:
        print(f"{row}: no server is named, so its cassettes are authored from documents", flush=True)
    failed = 0
    for number, behaviour in enumerate(BEHAVIOURS, 1):
        why = absent().get(row, {}).get(behaviour)
        if why:
            result = f"absent: {why}"
        else:
            try:
                result = await _cassette(row, behaviour, subject, about, pages)
            except (AssertionError, LLMError) as error:
                failed += 1
                result = f"NOT SHOWN, its cassette stays as it is: {type(error).__name__}: {str(error)[:200]}"
        print(f"  {number:2}/{len(BEHAVIOURS)} {behaviour:14} {result}", flush=True)
    return 1 if failed else 0


async def _cassette(
    row: str, behaviour: str, subject: Subject | None, about: Mapping[str, Any], pages: Mapping[str, RecordedResponse]
) -> str:
    """Make one cassette. Return how it was made."""
    clear_learned_state()
    crowded = os.environ.get(f"{row.upper()}_BUSY_URL")
    if subject and behaviour == "busy" and crowded:
        return await _caught(row, replace(subject, base_url=crowded), about)
    if subject and behaviour not in (*_AUTHORED, *_NOT_SHOWN.get(row, ())):
        return await _recorded(row, behaviour, subject, about)
    file = cassette_of(row, behaviour)
    if behaviour == "busy" and subject and file.exists() and _origin(file)["kind"] == "recorded":
        return "recorded, and stays: no server is named that is busy"
    author = Author(row, behaviour, seeing(pages) if behaviour in ("image", "tools") else pages)
    one = fresh(row)
    with active.override(author):
        await BEHAVIOURS[behaviour](one)
    origin = {"kind": "authored", "source": VOICES[row].source}
    if pages and any(one.response in pages.values() for one in author.interactions):
        origin["pages"] = f"of {about['server']}, recorded"
    elif pages and len(author.interactions) > 1:
        origin["pages"] = f"of {about['server']}, recorded, with a model that sees and takes tools"
    return _keep(row, behaviour, origin, author.interactions)


async def _caught(row: str, subject: Subject, about: Mapping[str, Any]) -> str:
    """Record ``busy``. Retry until the server is loading or overloaded, which the operator arranges."""
    over = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await _recorded(row, "busy", subject, about)
        except (AssertionError, LLMError):
            if time.monotonic() > over:
                raise
            clear_learned_state()


async def _recorded(row: str, behaviour: str, subject: Subject, about: Mapping[str, Any]) -> str:
    collector = Collector()
    subject.texts.clear()
    with active.override(collector):
        if behaviour == "cut":
            async with subject.provider().stream(BROKEN, temperature=0) as answer:
                async for _ in answer:
                    pass
        else:
            await BEHAVIOURS[behaviour](subject)
    interactions = collector.interactions
    origin = {"kind": "recorded", **about}
    if subject.answers is None and subject.texts:
        origin["answers"] = dict(subject.texts)
    if behaviour == "cut":
        interactions = broken(interactions)
        origin = {
            "kind": "authored",
            "source": f"derived from an answer of {about['server']}, {about['model']}, recorded: its connection breaks",
        }
    return _keep(row, behaviour, origin, interactions)


def _keep(row: str, behaviour: str, origin: dict[str, Any], interactions: list[Interaction]) -> str:
    file = cassette_of(row, behaviour)
    origin["seal"] = seal(cassette.load(cassette.dump({}, interactions))[1])
    pieces = sum(len(one.response.pieces) for one in interactions)
    result = f"{origin['kind']}, {len(interactions)} interactions in {pieces} pieces"
    if origin["kind"] == "recorded":
        origin["date"] = datetime.now(UTC).date().isoformat()
    if file.exists():
        before = _origin(file)
        same = cassette.dump({**origin, "date": before.get("date")} if "date" in before else origin, interactions)
        if same == file.read_text(encoding="utf-8"):
            return f"{result}, as it was"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(cassette.dump(origin, interactions), encoding="utf-8")
    return result


def _origin(file: Path) -> dict[str, Any]:
    origin: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["origin"]
    return origin


if __name__ == "__main__":
    sys.exit(main())
