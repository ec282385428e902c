"""OllamaProvider: the ``ollama`` row as a class."""

from ..adapter import BaseProvider


class OllamaProvider(BaseProvider):
    """The ``ollama`` row; see ``BaseProvider``."""

    row = "ollama"
