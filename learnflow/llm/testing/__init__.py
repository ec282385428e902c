"""Tools for the tests of applications: cassettes, a scripted provider, and a server with faults.

Names are imported on first use, because pytest loads ``plugin`` in every project that has this package installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..process import forget
    from .fault_server import Fault, FaultServer, Seen, closed_port
    from .kit import no_model_calls, no_waiting, provided, recording, replaying
    from .scripted import Cut, ScriptedProvider, ScriptedRequest

__all__ = [
    "Cut",
    "Fault",
    "FaultServer",
    "ScriptedProvider",
    "ScriptedRequest",
    "Seen",
    "closed_port",
    "forget",
    "no_model_calls",
    "no_waiting",
    "provided",
    "recording",
    "replaying",
]

_MODULES = ("..process", ".fault_server", ".scripted", ".kit")  # by import time, the fastest first


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (importlib.import_module(path, __name__) for path in _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
