"""FireworksProvider: the ``fireworks`` row as a class."""

from ..adapter.provider import BaseProvider


class FireworksProvider(BaseProvider):
    """The ``fireworks`` row; see ``BaseProvider``."""

    row = "fireworks"
