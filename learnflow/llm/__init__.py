"""One interface to cloud and local language models. It returns complete answers or raises typed errors.

The classes of providers are in ``learnflow.llm.providers``. Each name in ``__all__`` is imported on first use, because
the imports take up to a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, events
    from .adapter.provider import BaseProvider
    from .adapter.routable import RoutableProvider
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
    from .factory import discover, get_provider
    from .routing.router import RouterProvider
    from .stream import TextStream

__version__ = "0.1.0"  # pyproject.toml reads the version from this line

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

# The modules that define the names above, the fastest import first.
_FAST_MODULES = ["errors", "capabilities", "completion", "stream", "base", "factory"]
_MODULES = [*_FAST_MODULES, "adapter.routable", "adapter.provider", "routing.router"]


def __getattr__(name: str) -> Any:
    if name in ("errors", "events"):
        return importlib.import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = (importlib.import_module(f".{module}", __name__) for module in _MODULES)
    return next(vars(module)[name] for module in modules if name in vars(module))


def __dir__() -> list[str]:
    return __all__
