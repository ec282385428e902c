"""OpenAIProvider: the ``openai`` row as a class."""

from ..adapter import BaseProvider


class OpenAIProvider(BaseProvider):
    """The ``openai`` row; see ``BaseProvider``."""

    row = "openai"
