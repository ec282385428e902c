"""What is known about a provider: how it is, and what it can.

Must never ask anybody: ``health`` and the adapter learn these values, and hand them on.
Everybody may import it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast, get_type_hints

State: TypeAlias = Literal["ready", "loading", "unauthorised", "misconfigured", "model_missing", "down"]


class Capabilities(TypedDict):
    """What a provider can, for the model it uses; None means unknown, which is not "no".

    ``context`` is what the model was trained for, ``context_served`` what the server really gives, ``max_output`` the
    longest answer, all in tokens; ``prefill``: it can continue an answer that was begun; ``local``: the text stays on
    this machine or a private network, as far as the address and the server tell; ``cost``: US dollars for a million
    prompt and completion tokens.
    """

    streaming: bool | None
    vision: bool | None
    tools: bool | None
    json_schema: bool | None
    reasoning: bool | None
    context: int | None
    context_served: int | None
    max_output: int | None
    prefill: bool | None
    local: bool
    cost: tuple[float, float] | None


def unknown(*, local: bool = True, **known: Any) -> Capabilities:
    """Nothing is known, but for what is given and that a server of one's own costs nothing."""
    nothing = dict.fromkeys(Capabilities.__annotations__)
    certain = {"streaming": True, "local": local, "cost": (0.0, 0.0) if local else None}
    return cast(Capabilities, {**nothing, **certain, **known})


def merged(capabilities: Capabilities, *others: Mapping[str, Any]) -> Capabilities:
    """A copy in which what the later ones know stands; what they do not know (None, absent) takes nothing away."""
    known: dict[str, Any] = dict(capabilities)
    for other in others:
        known |= {name: value for name, value in other.items() if value is not None and name in known}
    return cast(Capabilities, known)  # its own keys


YES_NO: Final = tuple(name for name, kind in get_type_hints(Capabilities).items() if kind in (bool, bool | None))
# "finish" is no capability: "no-finish" declares a server that never sends a finish_reason.
_WORDS: Final = ("finish", *YES_NO)


def stated(words: str) -> dict[str, Any]:
    """Capabilities in an operator's words: ``vision,no-tools,max_output=4096,cost=0.15/0.6``.

    Raises:
        ValueError: a word that is none.
    """
    said: dict[str, Any] = {}
    for word in filter(None, (each.strip().lower() for each in words.split(","))):
        name, _, value = word.partition("=")
        yes = name.removeprefix("no-").replace("-", "_")
        if yes in _WORDS and not value:
            said[yes] = not name.startswith("no-")
        elif name in ("context", "context_served", "max_output") and value.isdecimal() and int(value):
            said[name] = int(value)
        elif name == "cost" and value.count("/") == 1:
            prompt, answer = map(float, value.split("/"))
            if not (0 <= prompt < math.inf and 0 <= answer < math.inf):
                raise ValueError(f"{word!r} is no price")
            said[name] = (prompt, answer)
        else:
            known = ", ".join(_WORDS)
            numbers = "context=, context_served=, max_output=, cost=IN/OUT"
            raise ValueError(f"{word!r} is none of {known}, the same with no- before it, {numbers}")
    return said


_MOST = 300  # names that are compared: a cloud may list thousands


def nearest(name: str, names: Iterable[str], most: int = 3) -> list[str]:
    """The names most like this one, the closest first, where people differ in case, tags and folders."""
    by_short: dict[str, str] = {}
    for each in islice(names, _MOST):
        by_short.setdefault(each.lower(), each)
        by_short.setdefault(each.lower().rpartition("/")[2].partition(":")[0], each)
    short = name.lower().rpartition("/")[2].partition(":")[0]
    close = difflib.get_close_matches(name.lower(), by_short, most) + difflib.get_close_matches(short, by_short, most)
    return list(dict.fromkeys(by_short[each] for each in close))[:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a provider is.

    Attributes:
        state: would it answer now, and if not, what kind of trouble it is.
        provider: the row's name.
        base_url: where it was looked for.
        detail: a sentence: what was seen, and what to do.
        latency_s: seconds until it had answered; None where it did not.
        server, version: what it said of itself; None where it did not.
        model: the one that would be used; None where that is not clear.
        cold: it would have to load the model first; None where it does not tell.
        models: the names that ``model=`` may take.
        capabilities: of that model.
    """

    state: State
    provider: str
    base_url: str | None
    detail: str
    latency_s: float | None = None
    server: str | None = None
    version: str | None = None
    model: str | None = None
    cold: bool | None = None
    models: tuple[str, ...] = ()
    capabilities: Capabilities

    @property
    def ready(self) -> bool:
        """Whether it would answer now."""
        return self.state == "ready"
