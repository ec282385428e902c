"""What each kind of server says of itself: pages in, its identity, models and abilities out.

Must never do I/O or trust a port: a server counts as a kind only by what it says.
``health`` reads the pages and asks ``KINDS``; a kind goes by the name of its row.
"""

from typing import Final

from .kind import Kind, Page
from .llamacpp import LLAMACPP
from .lmstudio import LMSTUDIO
from .ollama import OLLAMA
from .plain import listed
from .vllm import VLLM

# llama.cpp first: its header is on every page, and it has imitated others' pages.
KINDS: Final = {kind.name: kind for kind in (LLAMACPP, OLLAMA, LMSTUDIO, VLLM)}

__all__ = ["KINDS", "Kind", "Page", "listed"]
