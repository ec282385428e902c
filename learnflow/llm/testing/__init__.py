"""Tools for the tests of applications: cassettes, a scripted provider, and a server with faults.

Names are imported on first use, because pytest loads ``testing.plugin``, and with it this module, in every project
that has ``learnflow-llm`` installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..process import clear_learned_state
    from .fault_server import Fault, FaultServer, ReceivedRequest, closed_port
    from .kit import no_model_calls, no_waiting, recording, replaying, use_provider
    from .scripted import CutAnswer, ScriptedProvider, ScriptedRequest

__all__ = [
    "CutAnswer",
    "Fault",
    "FaultServer",
    "ReceivedRequest",
    "ScriptedProvider",
    "ScriptedRequest",
    "clear_learned_state",
    "closed_port",
    "no_model_calls",
    "no_waiting",
    "recording",
    "replaying",
    "use_provider",
]

_MODULES = ("..process", ".fault_server", ".scripted", ".kit")  # the fastest to import first


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (importlib.import_module(path, __name__) for path in _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
