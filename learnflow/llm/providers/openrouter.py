"""OpenRouterProvider: the ``openrouter`` row as a class."""

from ..adapter import BaseProvider


class OpenRouterProvider(BaseProvider):
    """The ``openrouter`` row; see ``BaseProvider``."""

    row = "openrouter"
