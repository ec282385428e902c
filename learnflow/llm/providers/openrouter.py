"""OpenRouterProvider: the ``openrouter`` row as a class."""

from ..adapter.provider import BaseProvider


class OpenRouterProvider(BaseProvider):
    """The ``openrouter`` row; see ``BaseProvider``."""

    row = "openrouter"
