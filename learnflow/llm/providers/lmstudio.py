"""LMStudioProvider: the ``lmstudio`` row as a class."""

from ..adapter.provider import BaseProvider


class LMStudioProvider(BaseProvider):
    """The ``lmstudio`` row; see ``BaseProvider``."""

    row = "lmstudio"
