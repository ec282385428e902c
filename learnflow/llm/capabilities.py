"""The values that describe a provider: ``Capabilities`` and ``Health``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast, get_type_hints

State: TypeAlias = Literal["ready", "loading", "unauthorised", "misconfigured", "model_missing", "down"]


class Capabilities(TypedDict):
    """The capabilities of a provider with its model. None means unknown, not "no".

    Attributes:
        streaming: whether answers can be streamed.
        vision: whether images are supported.
        tools: whether tools are supported.
        json_schema: whether a schema in ``response_format`` is supported.
        reasoning: whether the model can think.
        context: the maximum context length of the model, for which it was trained, in tokens.
        context_served: the context length with which the server runs the model, in tokens.
        max_output: the maximum length of an answer in tokens.
        prefill: whether the server can continue a last assistant message.
        local: whether prompts stay on this machine or in a private network.
        cost: US dollars for a million prompt tokens, and for a million completion tokens.
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
    """Return the given capabilities, and defaults or None (unknown) for the others. A local server costs nothing."""
    unknown = dict.fromkeys(Capabilities.__annotations__)
    defaults = {"streaming": True, "local": local, "cost": (0.0, 0.0) if local else None}
    return cast(Capabilities, {**unknown, **defaults, **known})


def merge_capabilities(capabilities: Capabilities, *others: Mapping[str, Any]) -> Capabilities:
    """Merge capabilities. Later mappings win; None never overrides a known value."""
    merged: dict[str, Any] = dict(capabilities)
    for other in others:
        merged |= {name: value for name, value in other.items() if value is not None and name in merged}
    return cast(Capabilities, merged)


# The capabilities that are true or false.
FLAGS: Final = tuple(name for name, kind in get_type_hints(Capabilities).items() if kind in (bool, bool | None))
_CONFIGURABLE_FLAGS: Final = ("finish", *FLAGS)  # "no-finish": the server never sends a finish_reason


def parse_capabilities(text: str) -> dict[str, Any]:
    """Parse configured capabilities: ``vision,no-tools,max_output=4096,cost=0.15/0.6``.

    Raises:
        ValueError: an item is not a capability, or has an invalid value.
    """
    capabilities: dict[str, Any] = {}
    for item in filter(None, (part.strip().lower() for part in text.split(","))):
        name, _, value = item.partition("=")
        flag = name.removeprefix("no-").replace("-", "_")
        if flag in _CONFIGURABLE_FLAGS and not value:
            capabilities[flag] = not name.startswith("no-")
        elif name in ("context", "context_served", "max_output") and value.isdecimal() and int(value):
            capabilities[name] = int(value)
        elif name == "cost" and value.count("/") == 1:
            prices = tuple(map(float, value.split("/")))
            if not all(0 <= price < math.inf for price in prices):
                raise ValueError(f"invalid price {item!r}")
            capabilities[name] = prices
        else:
            flags, numbers = ", ".join(_CONFIGURABLE_FLAGS), "context=, context_served=, max_output=, cost=IN/OUT"
            raise ValueError(f"invalid capability {item!r}. Use {flags} (no- before one turns it off), or {numbers}")
    return capabilities


_MAX_COMPARED_NAMES: Final = 300  # a cloud may list thousands of models


def find_similar(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` names of models that are similar to a name, the most similar first.

    Names are compared in lower case, with and without the folder and the tag ("folder/model:tag").
    """
    spellings: dict[str, str] = {}
    for other in islice(names, _MAX_COMPARED_NAMES):
        for spelling in _spellings(other):
            spellings.setdefault(spelling, other)
    close = [match for word in _spellings(name) for match in difflib.get_close_matches(word, spellings, count)]
    return list(dict.fromkeys(spellings[match] for match in close))[:count]


# The optional end of a name: a date or version ("-2026-08-07", "-0613"), or a tag (":free").
_SNAPSHOT: Final = re.compile(r"(?:[-@_][\d-]{3,}|:[\w.-]+)?")


def is_same_model(name: str, other: str) -> bool:
    """Return whether two names may mean one model. Case and folder are ignored. One name may lack a date or a tag."""
    plain = (spelling.lower().rpartition("/")[2].removesuffix("latest").rstrip("-:") for spelling in (name, other))
    short, long = sorted(plain, key=len)
    return long.startswith(short) and _SNAPSHOT.fullmatch(long, len(short)) is not None


def _spellings(name: str) -> tuple[str, str]:
    lower = name.lower()
    return lower, lower.rpartition("/")[2].partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The result of a probe.

    Attributes:
        state: "ready" if the provider would respond now; otherwise the kind of fault.
        provider: the name of the provider.
        base_url: the probed address; None if the provider has none.
        detail: the result of the probe and what to do, as a sentence.
        latency_s: seconds until the response; None if there was none.
        server: the kind of server; None if unknown.
        version: the version of the server; None if unknown.
        model: the model that a request would use; None if the request must name one.
        cold: whether the server would load the model first; None if unknown.
        models: the names of the server's chat models.
        capabilities: the capabilities with ``model``.
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
        """Return whether the provider would respond now."""
        return self.state == "ready"
