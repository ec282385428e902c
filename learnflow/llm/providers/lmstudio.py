"""LMStudioProvider: the ``lmstudio`` row as a class."""

from ..adapter import BaseProvider


class LMStudioProvider(BaseProvider):
    """The ``lmstudio`` row; see ``BaseProvider``."""

    row = "lmstudio"
