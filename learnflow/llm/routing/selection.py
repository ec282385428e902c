"""Who is asked: in which order, who cannot serve at all, and who is asked now. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar, cast

from ..adapter.options import rows
from ..base import Call
from ..health import window
from .breaker import Gate
from .places import Head, digest

_SHORTEST: Final = 256  # characters

Routing = Literal["order", "latency", "cost", "local-first", "warm-first"]


class Option(Protocol):
    """One provider that could be asked now: see ``Candidate``."""

    @property
    def gate(self) -> Gate:
        """What its breaker says."""

    @property
    def cold(self) -> bool:
        """Whether it would have to load the model first."""

    @property
    def distance(self) -> int:
        """0 on this machine or a private network, 1 beyond."""

    @property
    def latency_s(self) -> float | None:
        """Seconds to the first token, of late."""

    @property
    def cost(self) -> tuple[float, float] | None:
        """Dollars for a million tokens of the prompt and of the answer."""


_O = TypeVar("_O", bound=Option)


def ranked(chain: Sequence[_O], routing: Routing) -> list[_O]:
    """In the order in which they are asked; what is unknown comes last, ties stay in the user's order."""

    def key(one: Option) -> float:
        if routing == "latency":
            return math.inf if one.latency_s is None else one.latency_s
        if routing == "cost":
            return math.inf if one.cost is None else sum(one.cost)
        return one.distance if routing == "local-first" else 0

    return sorted(chain, key=key)


def select(options: Sequence[_O], routing: Routing, same: Callable[[_O], bool]) -> tuple[_O | None, list[_O], list[_O]]:
    """The first whose breaker lets it be asked; meanwhile, of those before it, who loads its model and who is probed.

    A cold one is waited for, however warm a farther one is: the order is the user's. Only one that is warm and no
    farther away answers meanwhile. ``warm-first`` is the operator's word for anything else. ``same``: it has the very
    model whose answer is to be continued.
    """
    ready = [one for one in options if one.gate in ("closed", "trial")]
    if not ready:
        return None, [], []
    chosen = first = ready[0]
    reach = max(one.distance for one in options) if routing == "warm-first" else first.distance
    if first.cold:
        chosen = next((one for one in ready if not one.cold and one.distance <= reach), first)
    if not same(chosen):  # it can go on with the answer where another model would write another one
        alike = (one for one in ready if same(one) and not one.cold and one.distance <= chosen.distance)
        chosen = next(alike, chosen)
    before = options[: options.index(chosen)]
    load = [one for one in before if one.gate == "closed" and one.cold]
    return chosen, load, [one for one in before if one.gate == "probe"]


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
