"""Who is asked: in which order, who cannot serve at all, and who is asked now. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from ..adapter.options import rows
from ..base import Call
from ..health import window
from .breaker import Gate
from .places import Head, digest

_SHORTEST: Final = 256  # characters

Routing = Literal["order", "latency", "cost", "local-first", "warm-first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What ranking looks at: position in the user's order, seconds to the first token, dollars, whether it is local."""

    position: int
    latency_s: float | None = None
    cost: tuple[float, float] | None = None
    local: bool = False


def ranked(standings: Sequence[Standing], routing: Routing) -> list[int]:
    """Their positions, in the order in which they are asked; what is unknown comes last, ties stay in order."""

    def key(one: Standing) -> tuple[float, int]:
        unknown = float("inf")
        value = {
            "order": 0.0,
            "warm-first": 0.0,
            "latency": unknown if one.latency_s is None else one.latency_s,
            "cost": unknown if one.cost is None else sum(one.cost),
            "local-first": 0.0 if one.local else 1.0,
        }[routing]
        return value, one.position

    return [one.position for one in sorted(standings, key=key)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One provider that could be asked now, in the order of the chain.

    Attributes:
        gate: what its breaker says.
        cold: it would have to load the model first.
        distance: 0 on this machine or a private network, 1 beyond.
        same: it has the very model whose answer is to be continued.
    """

    gate: Gate = "closed"
    cold: bool = False
    distance: int = 0
    same: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Who is asked now (None: nobody can be), and what is done meanwhile with those before it; by their index."""

    chosen: int | None
    load: list[int] = field(default_factory=list)
    probe: list[int] = field(default_factory=list)


def select(options: Sequence[Option], routing: Routing) -> Selection:
    """The first whose breaker lets it be asked.

    A cold one is waited for, however warm a farther one is: the order is the user's. Only one that is warm and no
    farther away answers meanwhile. ``warm-first`` is the operator's word for anything else.
    """
    ready = [at for at, one in enumerate(options) if one.gate in ("closed", "trial")]
    if not ready:
        return Selection(None)
    first = ready[0]
    reach = max(one.distance for one in options) if routing == "warm-first" else options[first].distance
    warm = (at for at in ready if not options[at].cold and options[at].distance <= reach)
    chosen = next(warm, first) if options[first].cold else first
    if not options[chosen].same:  # it can go on with the answer where another model would write another one
        alike = (at for at in ready if options[at].same and not options[at].cold)
        chosen = next((at for at in alike if options[at].distance <= options[chosen].distance), chosen)
    before = list(enumerate(options[:chosen]))
    return Selection(
        chosen,
        load=[at for at, one in before if one.gate == "closed" and one.cold],
        probe=[at for at, one in before if one.gate == "probe"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a request needs of a provider; ``tokens``: of its prompt, at the least."""

    images: bool = False
    tools: bool = False
    schema: bool = False
    tokens: int = 0

    @property
    def named(self) -> list[str]:
        """The capabilities that it needs."""
        wanted = (("vision", self.images), ("tools", self.tools), ("json_schema", self.schema))
        return [name for name, needed in wanted if needed]


def needs_of(call: Call) -> Needs:
    """What a call needs of a provider."""
    texts: list[str] = [call.prompt] if isinstance(call.prompt, str) else []
    images = False
    for message in call.prompt if rows(call.prompt) else ():
        content = cast(Mapping[str, Any], message).get("content")
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if not isinstance(part, Mapping):
                continue  # whoever is asked says what is wrong with it
            kind = part.get("type")
            images = images or (isinstance(kind, str) and "image" in kind)
            texts.append(_text(part))
    wanted = call.options.get("response_format")
    schema = isinstance(wanted, Mapping) and wanted.get("type") == "json_schema"
    return Needs(images=images, tools=bool(call.options.get("tools")), schema=schema, tokens=window.at_least(texts))


def _text(part: Any) -> str:
    """The text of a part; whoever is asked says what is wrong with one that is none."""
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else ""


def head_of(call: Call) -> Head:
    """Digests of beginnings of a conversation, each twice as long as the one before, up to about half of it.

    So that two questions about one text have the same beginning, wherever the text stands, and two texts behind one
    long system prompt have not.
    """
    said = []
    for message in call.prompt if rows(call.prompt) else [{"role": "user", "content": call.prompt}]:
        content = cast(Mapping[str, Any], message).get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        said += [_text(part) for part in parts]
    text = "\n".join(said)
    length = _SHORTEST
    ends = [length]
    while length * 4 <= len(text):
        length *= 2
        ends.append(length)
    return tuple(digest(text[:end]) for end in ends)


def lacks(needs: Needs, can: Mapping[str, Any], served: int | None) -> list[str]:
    """What this provider certainly lacks for it, in words; what is not known is no lack.

    Args:
        needs: of the request.
        can: its capabilities.
        served: the largest context that it can serve, in tokens.
    """
    found = [name for name in needs.named if can[name] is False]
    if served is not None and needs.tokens > served:
        found.append(f"context ({needs.tokens} tokens or more needed, {served} served)")
    return found


def unknown(needs: Needs, can: Mapping[str, Any]) -> list[str]:
    """What nobody knows whether this provider can do it, of what is needed."""
    return [name for name in needs.named if can[name] is None]
