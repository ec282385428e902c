"""CustomProvider: the ``custom`` row as a class."""

from ..adapter.provider import BaseProvider


class CustomProvider(BaseProvider):
    """The ``custom`` row; see ``BaseProvider``."""

    row = "custom"
