"""The state and the capabilities of a provider, as values.

Sends no request: ``servers`` and ``adapter`` find these values. Every module may import it.
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
    """The capabilities of a provider with its model. None means unknown, not "no".

    Attributes:
        streaming: it can stream an answer.
        vision, tools, json_schema: it accepts images, tools, and a schema in ``response_format``.
        reasoning: the model can think.
        context: the context length of the training, in tokens.
        context_served: the context length that the server provides, in tokens.
        max_output: the longest answer, in tokens.
        prefill: it can continue an assistant's message.
        local: the text stays on this machine or in a private network, according to the address and the server.
        cost: US dollars for a million prompt and completion tokens.
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


def default_capabilities(*, local: bool = True, **known: Any) -> Capabilities:
    """Return capabilities that are None, for unknown, except ``known``. A local server costs nothing."""
    nothing = dict.fromkeys(Capabilities.__annotations__)
    certain = {"streaming": True, "local": local, "cost": (0.0, 0.0) if local else None}
    return cast(Capabilities, {**nothing, **certain, **known})


def merged(capabilities: Capabilities, *others: Mapping[str, Any]) -> Capabilities:
    """Merge capabilities. Later mappings win; None never overrides a known value."""
    known: dict[str, Any] = dict(capabilities)
    for other in others:
        known |= {name: value for name, value in other.items() if value is not None and name in known}
    return cast(Capabilities, known)  # no new key


YES_NO: Final = tuple(name for name, kind in get_type_hints(Capabilities).items() if kind in (bool, bool | None))
# "finish" is not in Capabilities: "no-finish" declares a server that never sends a finish_reason.
_FLAGS: Final = ("finish", *YES_NO)


def stated(words: str) -> dict[str, Any]:
    """Parse an operator's capabilities: ``vision,no-tools,max_output=4096,cost=0.15/0.6``.

    Raises:
        ValueError: a word is not a capability.
    """
    capabilities: dict[str, Any] = {}
    for word in filter(None, (part.strip().lower() for part in words.split(","))):
        name, _, value = word.partition("=")
        flag = name.removeprefix("no-").replace("-", "_")
        if flag in _FLAGS and not value:
            capabilities[flag] = not name.startswith("no-")
        elif name in ("context", "context_served", "max_output") and value.isdecimal() and int(value):
            capabilities[name] = int(value)
        elif name == "cost" and value.count("/") == 1:
            prompt, answer = map(float, value.split("/"))
            if not (0 <= prompt < math.inf and 0 <= answer < math.inf):
                raise ValueError(f"invalid price {word!r}")
            capabilities[name] = (prompt, answer)
        else:
            numbers = "context=, context_served=, max_output=, cost=IN/OUT"
            raise ValueError(f"invalid capability {word!r}. Use {', '.join(_FLAGS)}, with no- for no, or {numbers}")
    return capabilities


_MAX_COMPARED = 300  # a cloud may list thousands of models


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` similar names, the closest first. Case, tags and folders do not count."""
    spellings: dict[str, str] = {}
    for other in islice(names, _MAX_COMPARED):
        spellings.setdefault(other.lower(), other)
        spellings.setdefault(other.lower().rpartition("/")[2].partition(":")[0], other)
    short = name.lower().rpartition("/")[2].partition(":")[0]
    close = [match for word in (name.lower(), short) for match in difflib.get_close_matches(word, spellings, count)]
    return list(dict.fromkeys(spellings[match] for match in close))[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The result of a probe.

    Attributes:
        state: "ready" if the provider would answer now; otherwise the kind of fault.
        provider: the provider's name.
        base_url: the probed address; None without an address.
        detail: a sentence: the result of the probe, and what to do.
        latency_s: seconds until the response; None without a response.
        server, version: the kind of server and its version; None if unknown.
        model: the model that a request would use; None if that is ambiguous.
        cold: the server would have to load the model first; None if unknown.
        models: the values for ``model=``.
        capabilities: of the provider with that model.
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
        """Return whether the provider would answer now."""
        return self.state == "ready"
