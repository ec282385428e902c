"""LlamaCppProvider: the ``llamacpp`` row as a class."""

from ..adapter.provider import BaseProvider


class LlamaCppProvider(BaseProvider):
    """The ``llamacpp`` row; see ``BaseProvider``."""

    row = "llamacpp"
