"""VLLMProvider: the ``vllm`` row as a class."""

from ..adapter import BaseProvider


class VLLMProvider(BaseProvider):
    """The ``vllm`` row; see ``BaseProvider``."""

    row = "vllm"
