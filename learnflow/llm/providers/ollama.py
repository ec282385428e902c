"""OllamaProvider: the ``ollama`` row as a class."""

from ..adapter.provider import BaseProvider


class OllamaProvider(BaseProvider):
    """The ``ollama`` row; see ``BaseProvider``."""

    row = "ollama"
