"""One interface to cloud and local language models, which returns complete answers or raises typed errors.

The classes of providers are in ``learnflow.llm.providers``. Names whose import is slow are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .base import AtMost, LLMProvider
from .capabilities import Capabilities, Health
from .completion import (
    Completion,
    Event,
    Failover,
    Finished,
    ReasoningDelta,
    Resumed,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    Waiting,
)
from .errors import LLMError
from .stream import TextStream

if TYPE_CHECKING:
    from . import errors, events
    from .adapter.provider import BaseProvider
    from .adapter.routable import RoutableProvider
    from .factory import discover, get_provider
    from .routing.router import RouterProvider

__version__ = "0.1.0"  # pyproject.toml reads it

__all__ = [
    "AtMost",
    "BaseProvider",
    "Capabilities",
    "Completion",
    "Event",
    "Failover",
    "Finished",
    "Health",
    "LLMError",
    "LLMProvider",
    "ReasoningDelta",
    "Resumed",
    "RoutableProvider",
    "RouterProvider",
    "TextDelta",
    "TextStream",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "Waiting",
    "discover",
    "errors",
    "events",
    "get_provider",
]

_LAZY_IMPORTS = {
    "BaseProvider": ".adapter.provider",
    "discover": ".factory",
    "get_provider": ".factory",
    "RoutableProvider": ".adapter.routable",
    "RouterProvider": ".routing.router",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_IMPORTS:
        return getattr(importlib.import_module(_LAZY_IMPORTS[name], __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
