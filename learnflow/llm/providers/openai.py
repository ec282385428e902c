"""OpenAIProvider: the ``openai`` row as a class."""

from ..adapter.provider import BaseProvider


class OpenAIProvider(BaseProvider):
    """The ``openai`` row; see ``BaseProvider``."""

    row = "openai"
