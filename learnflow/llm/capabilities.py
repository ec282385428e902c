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
    """The capabilities of a provider and one of its models. None means unknown, not "no".

    Attributes:
        streaming: whether answers can be streamed.
        vision: whether images are supported.
        tools: whether tools are supported.
        json_schema: whether a schema in ``response_format`` is supported.
        reasoning: whether the model supports reasoning (thinking).
        context: the context length for which the model was trained, in tokens.
        context_served: the context length with which the server runs the model, in tokens.
        max_output: the maximum length of an answer in tokens.
        prefill: whether the server continues the last message if it is an assistant message.
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


def default_capabilities(*, local: bool = True, **capabilities: Any) -> Capabilities:
    """Return the given capabilities. Every other capability gets its default, or None (unknown).

    The default cost of a local server is 0.
    """
    unknown = dict.fromkeys(Capabilities.__annotations__)
    defaults = {"streaming": True, "local": local, "cost": (0.0, 0.0) if local else None}
    return cast(Capabilities, {**unknown, **defaults, **capabilities})


def merge_capabilities(capabilities: Capabilities, *others: Mapping[str, Any]) -> Capabilities:
    """Merge capabilities. Later mappings win; None never overrides a known value."""
    merged: dict[str, Any] = dict(capabilities)
    for other in others:
        merged |= {name: value for name, value in other.items() if value is not None and name in merged}
    return cast(Capabilities, merged)


# The names of the boolean capabilities.
FLAGS: Final = tuple(name for name, hint in get_type_hints(Capabilities).items() if hint in (bool, bool | None))
_CONFIGURABLE_FLAGS: Final = ("finish", *FLAGS)  # "finish": whether the server sends a finish_reason


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
            raise ValueError(
                f"invalid capability {item!r}. Use {flags}, with the prefix no- to turn one off, or {numbers}"
            )
    return capabilities


_MAX_COMPARED_NAMES: Final = 300  # limits the time, because a cloud can list thousands of models


def find_similar(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of ``names`` that are similar to ``name``, the most similar first.

    Names are compared in lower case, first in full, then without folder and tag ("folder/model:tag").
    """
    spellings: dict[str, str] = {}
    for other in islice(names, _MAX_COMPARED_NAMES):
        for spelling in _spellings(other):
            spellings.setdefault(spelling, other)
    similar = [match for word in _spellings(name) for match in difflib.get_close_matches(word, spellings, count)]
    return list(dict.fromkeys(spellings[match] for match in similar))[:count]


# The end of a name: nothing, a date or version ("-2026-08-07", "-0613"), or a tag (":free").
_OPTIONAL_SUFFIX: Final = re.compile(r"(?:[-@_][\d-]{3,}|:[\w.-]+)?")


def is_same_model(name: str, other: str) -> bool:
    """Return whether two names can refer to the same model. Ignore case, the folder, and "latest" at the end.

    The longer name can also end with a date, a version or a tag.
    """
    plain = (spelling.lower().rpartition("/")[2].removesuffix("latest").rstrip("-:") for spelling in (name, other))
    short, long = sorted(plain, key=len)
    return long.startswith(short) and _OPTIONAL_SUFFIX.fullmatch(long, len(short)) is not None


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
        latency_s: seconds until the response; None if no response arrived.
        server: the kind of server; None if unknown.
        version: the version of the server; None if unknown.
        model: the model of a request without ``model=``; None if unknown, or if a request must name a model.
        cold: whether the server must load the model before it responds; None if unknown.
        models: the names of the server's chat models.
        capabilities: the capabilities of the provider and ``model``.
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
