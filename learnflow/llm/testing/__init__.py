"""For tests of applications: cassettes, a scripted provider, a server that speaks five dialects and fails by name.

Must never be imported by the package itself, nor need pytest; names are fetched when they are asked for, because
pytest loads ``plugin`` wherever the package is installed.
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

_WHERE = {
    **dict.fromkeys(("Fault", "FaultServer", "Seen", "closed_port"), ".fault_server"),
    **dict.fromkeys(("no_model_calls", "no_waiting", "provided", "recording", "replaying"), ".kit"),
    "forget": "..process",
    **dict.fromkeys(("Cut", "ScriptedRequest", "ScriptedProvider"), ".scripted"),
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
